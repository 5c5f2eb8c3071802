"""Configs of the language models, and what is made of them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from jaxpapers import training
from jaxpapers.product_keys import language_model, sharding
from jaxpapers.product_keys.bag import embedding_bag
from jaxpapers.product_keys.memory import FlatMemory, ProductKeyMemory
from jaxpapers.product_keys.optimizers import (
  inverse_sqrt_schedule,
  memory_optimizer,
)
from jaxpapers.product_keys.train import MemoryJob
from jaxpapers.product_keys.variants import PEER, MemoryPlus
from jaxpapers.product_keys.weighting import check_choice

__all__ = ['language_model_config', 'language_model_job', 'make_model']

KINDS = {
  'product': ProductKeyMemory,
  'flat': FlatMemory,
  'plus': MemoryPlus,
  'peer': PEER,
}
# Over `table_axis`, where the mesh has it.
TABLE_SHARDINGS = ('row', 'column')
FIELDS = """
Fields of the config:
  train, valid: text files, with commas between them; no valid, no evaluation
  vocabulary: 'bytes', or a file of lines "token count" for text whose tokens
    have spaces between them, as XLM writes both
  num_layers, d_model, num_heads, dropout, norm ('post', 'pre'), length
  memory_positions: '5,11+' inside layer 5 and after layer 11, from 0; '' none
  kind: 'product', 'flat' (n_keys is then the number of slots), 'plus', 'peer'
  n_keys, k_dim, heads, knn, query_norm ('batch', 'layer', 'qk', 'none')
  share_values: one table for all positions
  learning_rate, warmup: of the model, with one over the square root after it
  value_learning_rate: constant; value_optimizer: 'auto', 'lazy' or 'dense'
  table_sharding: 'row' or 'column', over the mesh axis table_axis, 'mem' or
    'data', where the mesh has it
"""


def language_model_config(size: str) -> ml_collections.ConfigDict:
  """The config of a language model.

  Args:
    size: 'tiny', three layers for a processor, or 'paper': section 4.3 of the
      paper, 12 layers and 512 x 512 slots inside the sixth.

  Returns:
    The config; see `FIELDS`.

  Raises:
    ValueError: If the size is unknown.
  """
  check_choice('size', size, ('tiny', 'paper'))
  config = ml_collections.ConfigDict(
    {
      'train': '',
      'valid': '',
      'vocabulary': 'bytes',
      'num_layers': 3,
      'd_model': 128,
      'num_heads': 4,
      'dropout': 0.1,
      'norm': 'post',
      'length': 128,
      'batch_size': 16,
      'num_steps': 2000,
      'memory_positions': '1',
      'kind': 'product',
      'n_keys': 128,
      'k_dim': 64,
      'heads': 4,
      'knn': 16,
      'query_norm': 'batch',
      'share_values': False,
      'learning_rate': 1e-3,
      'warmup': 200,
      'value_learning_rate': 1e-3,
      'value_optimizer': 'auto',
      'table_sharding': 'row',
      'table_axis': 'mem',
      'dtype': 'float32',
      'remat': False,
      'seed': 0,
      'log_every': 50,
      'evaluate_every': 500,
      'checkpoint_every': 500,
    }
  )
  if size == 'paper':
    config.update(
      num_layers=12,
      d_model=1024,
      num_heads=16,
      length=256,
      batch_size=256,
      num_steps=500_000,
      memory_positions='5',
      n_keys=512,
      k_dim=512,
      knn=32,
      learning_rate=2.5e-4,
      warmup=4000,
      dtype='bfloat16',
      remat=True,
      log_every=100,
      evaluate_every=10_000,
      checkpoint_every=5000,
    )
  return config


def make_model(
  config: ml_collections.ConfigDict,
  vocab_size: int,
  bag: Callable = embedding_bag,
) -> language_model.TransformerLM:
  """The model of a config.

  Args:
    config: See `FIELDS`.
    vocab_size: Number of tokens.
    bag: See `ProductKeyMemory`.

  Returns:
    The model.

  Raises:
    ValueError: If a field does not fit.
  """
  check_choice('kind', config.kind, tuple(KINDS))
  dtype = jnp.dtype(config.dtype)
  memory = None
  if config.memory_positions:
    memory = KINDS[config.kind](
      n_keys=config.n_keys,
      k_dim=config.k_dim,
      heads=config.heads,
      knn=config.knn,
      query_norm=None if config.query_norm == 'none' else config.query_norm,
      bag=bag,
      dtype=dtype,
    )
  return language_model.TransformerLM(
    vocab_size,
    config.num_layers,
    config.d_model,
    config.num_heads,
    memory_positions=config.memory_positions,
    memory=memory,
    share_values=config.share_values,
    max_len=config.length,
    norm=config.norm,
    dropout_rate=config.dropout,
    attention_dropout_rate=config.dropout,
    dtype=dtype,
    remat=config.remat,
  )


def language_model_job(
  config: ml_collections.ConfigDict, vocab_size: int
) -> MemoryJob:
  """Model, loss, optimizers and shapes of a config.

  Args:
    config: See `FIELDS`.
    vocab_size: Number of tokens.

  Returns:
    The job. Tables lie on the mesh axis `table_axis` where a mesh has it.

  Raises:
    ValueError: If a field does not fit.
  """
  check_choice('table_sharding', config.table_sharding, TABLE_SHARDINGS)
  model = make_model(config, vocab_size)
  tokens = jax.ShapeDtypeStruct((config.batch_size, config.length), jnp.int32)
  schedule = inverse_sqrt_schedule(config.learning_rate, config.warmup)
  has_memory = bool(config.memory_positions)

  def init(key):
    one = jnp.zeros((1, config.length), jnp.int32)
    variables = dict(model.init(key, one, train=False))
    names = ('params', 'memory') if has_memory else ('params',)
    params = {name: variables.pop(name) for name in names}
    return params, variables

  def loss_for(mesh):
    bag = bag_for(config, mesh)
    return language_model.language_model_loss(
      make_model(config, vocab_size, bag)
    )

  table = sharding.table_spec(config.table_sharding, config.table_axis)
  return MemoryJob(
    init,
    loss_for(None),
    memory_optimizer(
      optax.adam(schedule, b2=0.98),
      config.value_learning_rate,
      config.value_optimizer,
    ),
    {'inputs': tokens, 'targets': tokens},
    rules=[('memory/.*(values|up|down)$', table)],
    sparse=has_memory,
    loss_for=loss_for,
  )


def bag_for(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh | None
) -> Callable:
  """How rows are summed: where they lie, if the mesh splits the table."""
  if mesh is None or config.table_axis not in mesh.shape:
    return embedding_bag
  return sharding.make_sharded_bag(
    mesh, axis=config.table_axis, kind=config.table_sharding
  )


def language_model_reads(model: language_model.TransformerLM) -> Callable:
  """What a model reads: a `reads_of` for `usage.measure_usage`."""

  def reads_of(variables, batch):
    _, changed = model.apply(
      variables, batch['inputs'], train=False, mutable='reads'
    )
    return changed.get('reads', {})

  return reads_of


def evaluation_metrics(model: language_model.TransformerLM) -> Callable:
  """Loss, perplexity-ready, with running statistics: a `metric_fn`."""

  def metric_fn(params, model_state, batch) -> dict[str, Any]:
    logits = model.apply(
      {**params, **model_state}, batch['inputs'], train=False
    )
    loss, metrics = language_model.next_token_metrics(logits, batch)
    return {'loss': loss, **metrics}

  return metric_fn


def make_evaluation(
  config: ml_collections.ConfigDict,
  vocab_size: int,
  batches: Callable[[], Any],
  mesh: jax.sharding.Mesh | None,
) -> training.Evaluation:
  """Held-out loss, every so many steps and at the end."""
  step = training.make_eval_step(
    evaluation_metrics(make_model(config, vocab_size, bag_for(config, mesh))),
    mesh=mesh,
  )
  return training.Evaluation(
    'valid',
    functools.partial(_evaluate, step, batches, mesh),
    every=config.evaluate_every,
    at_end=True,
  )


def _evaluate(step, batches, mesh, state):
  return training.evaluate(state, step, batches(), mesh=mesh)
