"""Training: one state, one sharded step, one loop that survives being killed.

    config -> data iterator -> init -> loss_fn -> optax chain
           -> make_train_step -> fit -> numbers, checkpoints

`docs/training.md` trains a model of one's own in 40 lines.
"""

from jaxpapers.training.checkpoint import Checkpoints, restore, save
from jaxpapers.training.distributed import fetch, initialize_distributed
from jaxpapers.training.gathering import gather_parameters
from jaxpapers.training.job import Job
from jaxpapers.training.loop import (
  Evaluation,
  FitResult,
  NonFiniteLossError,
  fit,
)
from jaxpapers.training.sharding import (
  batch_sharding,
  batch_share,
  fsdp,
  make_mesh,
  put_batch,
  shard_rules,
)
from jaxpapers.training.state import TrainState, abstract_state, create_state
from jaxpapers.training.step import evaluate, make_eval_step, make_train_step
from jaxpapers.training.throughput import estimate_flops, peak_flops
from jaxpapers.training.writers import (
  Console,
  JsonLines,
  TensorBoard,
  read_metrics,
)

__all__ = [
  'Checkpoints',
  'Console',
  'Evaluation',
  'FitResult',
  'Job',
  'JsonLines',
  'NonFiniteLossError',
  'TensorBoard',
  'TrainState',
  'abstract_state',
  'batch_share',
  'batch_sharding',
  'create_state',
  'estimate_flops',
  'evaluate',
  'fetch',
  'fit',
  'fsdp',
  'gather_parameters',
  'initialize_distributed',
  'make_eval_step',
  'make_mesh',
  'make_train_step',
  'peak_flops',
  'put_batch',
  'read_metrics',
  'restore',
  'save',
  'shard_rules',
]
