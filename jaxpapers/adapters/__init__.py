"""Adapters: parameter-efficient transfer (Houlsby et al. 2019)."""

from jaxpapers.adapters.ablation import ablate_spans, span_gates
from jaxpapers.adapters.bank import AdapterBank, route
from jaxpapers.adapters.compress import (
  Int8Array,
  compress_frozen,
  tree_bytes,
)
from jaxpapers.adapters.config import AdapterConfig
from jaxpapers.adapters.counts import (
  adapter_param_count,
  count_params,
  layer_norm_param_count,
  total_size_ratio,
)
from jaxpapers.adapters.initialize import init_adapters
from jaxpapers.adapters.inject import add_adapters, find_sites
from jaxpapers.adapters.model import BottleneckAdapter
from jaxpapers.adapters.partition import (
  Names,
  merge_params,
  partition_params,
  trainable_labels,
)
from jaxpapers.adapters.tasks import (
  extract_task,
  insert_task,
  load_task,
  load_task_metadata,
  save_task,
)
from jaxpapers.adapters.train import (
  FinetuneStep,
  create_finetune_state,
  make_finetune_eval_step,
  make_finetune_step,
  put_frozen,
)
from jaxpapers.training.optimizers import bert_adam, bert_schedule

__all__ = [
  'AdapterBank',
  'AdapterConfig',
  'BottleneckAdapter',
  'FinetuneStep',
  'Int8Array',
  'Names',
  'ablate_spans',
  'adapter_param_count',
  'add_adapters',
  'bert_adam',
  'bert_schedule',
  'compress_frozen',
  'count_params',
  'create_finetune_state',
  'extract_task',
  'find_sites',
  'init_adapters',
  'insert_task',
  'layer_norm_param_count',
  'load_task',
  'load_task_metadata',
  'make_finetune_eval_step',
  'make_finetune_step',
  'merge_params',
  'partition_params',
  'put_frozen',
  'route',
  'save_task',
  'span_gates',
  'total_size_ratio',
  'trainable_labels',
  'tree_bytes',
]
