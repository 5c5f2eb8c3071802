"""Training steps in which gradients of value tables are rows."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpapers import training
from jaxpapers.product_keys.row_sparse import (
  is_row_sparse,
  sparse_value_grads,
)
from jaxpapers.product_keys.sharding import table_layouts
from jaxpapers.training.sharding import check_auto

__all__ = ['MemoryJob', 'make_memory_train_step', 'sparse_value_and_grad']


def sparse_value_and_grad(
  loss_fn: training.step.LossFn,
  *,
  accumulate: int = 1,
  mesh: jax.sharding.Mesh | None = None,
  rules: training.sharding.Rules = (),
):
  """Like `jax.value_and_grad` of a loss, but tables get `RowSparse`.

  In a program that is given the table to keep, adding these gradients, or what
  `lazy_adam` makes of them, changes the table where it is: no array of its size
  is made (`jax.jit(..., donate_argnums=..)`).

  Args:
    loss_fn: As in `training.make_train_step`. Parameters are a dictionary of
      collections, with the tables in 'memory'; the loss has to apply its model
      to `{**params, **model_state}` with `mutable=list(model_state)`, and to
      return what changed: so it is asked for reads, and given perturbations.
    accumulate: Number of microbatches that follow one another, weighted by
      their 'count' as in `training.make_train_step`. What all of them read is
      kept until the end, when rows are summed once.
    mesh: Where the tables lie, if on several devices. Each then sums the rows
      of its own part.
    rules: How they lie there, see `training.shard_rules`; those of the training
      state, or at least of 'params/memory/...'.

  Returns:
    A function `(params, model_state, batch, rng)` that returns
    `((loss, (model_state, metrics)), gradients)`.

  Raises:
    ValueError: If `accumulate` is below 1 or, when called, does not divide the
      batch, parameters have no tables, or the loss hides what was read.

  Example:
    >>> from jaxpapers import product_keys as pk
    >>> memory = pk.ProductKeyMemory(n_keys=8, k_dim=8, heads=2, knn=4)
    >>> options = {'memory_positions': '0', 'memory': memory}
    >>> model = pk.TransformerLM(9, 1, 8, 2, **options)
    >>> x = jnp.array([[1, 7, 8, 3]])
    >>> state = dict(model.init(jax.random.key(0), x, train=False))
    >>> params = {name: state.pop(name) for name in ('params', 'memory')}
    >>> gradients_of = sparse_value_and_grad(pk.language_model_loss(model))
    >>> batch = {'inputs': x, 'targets': x}
    >>> _, gradients = gradients_of(params, state, batch, jax.random.key(1))
    >>> jax.tree.leaves(gradients['memory'])[1].shape
    (32, 8)
  """
  if accumulate < 1:
    raise ValueError(f'accumulate is {accumulate}; expected 1 or more.')

  def function(params, model_state, batch, rng):
    if not isinstance(params, Mapping) or not params.get('memory'):
      names = sorted(params) if isinstance(params, Mapping) else type(params)
      raise ValueError(
        f'params has {names}; expected a dictionary of collections with the'
        " tables in 'memory'. Without a table use jax.value_and_grad, or"
        ' training.make_train_step.'
      )
    tables = params['memory']
    layouts = None if mesh is None else table_layouts(tables, rules, mesh)
    if accumulate == 1:
      result = _factors(loss_fn, params, model_state, batch, rng)
    else:
      result = _accumulated(
        loss_fn, accumulate, params, model_state, batch, rng
      )
    *values, gradients, perturbations, reads = result
    loss, state, metrics = values
    rows = sparse_value_grads(reads, perturbations, tables, layouts)
    rows = _after(rows, (values, gradients))
    return (loss, (state, metrics)), {**gradients, 'memory': rows}

  return function


def _factors(loss_fn, params, model_state, batch, rng):
  """What gradients of rows are made of: of one batch.

  Returns:
    Loss, model state, metrics, gradients of all but the tables, gradients of
    perturbations, and reads.
  """
  tables = params['memory']
  others = {name: tree for name, tree in params.items() if name != 'memory'}
  asked = {**model_state, 'reads': {}, 'perturbations': {}}
  shapes = jax.eval_shape(loss_fn, params, asked, batch, rng)[1][0]
  if not shapes.get('reads') or not shapes.get('perturbations'):
    raise ValueError(
      "loss_fn returned a model_state without 'reads' and 'perturbations';"
      ' expected it to apply the model to {**params, **model_state} with'
      ' mutable=list(model_state), and to return what changed.'
    )
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), shapes['perturbations']
  )

  def loss(others, perturbations):
    given = {**others, 'memory': tables, 'perturbations': perturbations}
    state = {**model_state, 'reads': {}}
    return loss_fn(given, state, batch, rng)

  (value, (state, metrics)), gradients = jax.value_and_grad(
    loss, argnums=(0, 1), has_aux=True
  )(others, zeros)
  reads = state['reads']
  state = {name: tree for name, tree in state.items() if name != 'reads'}
  return value, state, dict(metrics), *gradients, reads


def _accumulated(loss_fn, accumulate, params, model_state, batch, rng):
  """The same of microbatches, as if they were one batch."""
  micro = jax.tree_util.tree_map_with_path(
    lambda path, x: _split(path, x, accumulate), batch
  )

  def body(carry, item):
    sums, total, model_state = carry
    index, part = item
    loss, model_state, metrics, gradients, perturbations, reads = _factors(
      loss_fn, params, model_state, part, jax.random.fold_in(rng, index)
    )
    count = jnp.asarray(metrics.pop('count', 1.0), jnp.float32)

    def weigh(x):
      x = jnp.asarray(x)
      x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
      # A microbatch of nothing but padding may well have a loss of 0 / 0.
      return jnp.where(count > 0, x * count.astype(x.dtype), 0)

    new = jax.tree.map(weigh, (loss, metrics, gradients))
    perturbations = jax.tree.map(weigh, perturbations)
    sums = jax.tree.map(jnp.add, sums, new)
    return (sums, total + count, model_state), (perturbations, reads)

  first = jax.tree.map(lambda x: x[0], micro)
  shapes = jax.eval_shape(
    lambda: _factors(loss_fn, params, model_state, first, rng)
  )
  has_count = 'count' in shapes[2]
  summed = {k: v for k, v in shapes[2].items() if k != 'count'}
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
    (shapes[0], summed, shapes[3]),
  )
  (sums, total, model_state), (perturbations, reads) = jax.lax.scan(
    body,
    (zeros, jnp.zeros(()), model_state),
    (jnp.arange(accumulate), micro),
  )
  loss, metrics, gradients = jax.tree.map(
    lambda x: x / total.astype(x.dtype), sums
  )
  gradients = jax.tree.map(
    lambda g, like: g.astype(like.dtype), gradients, shapes[3]
  )
  # Microbatches are more tokens.
  perturbations, reads = jax.tree.map(
    lambda x: x.reshape(-1, x.shape[-1]), (perturbations, reads)
  )
  perturbations = jax.tree.map(
    lambda x: x / total.astype(x.dtype), perturbations
  )
  if has_count:
    metrics['count'] = total
  return loss, model_state, metrics, gradients, perturbations, reads


def _split(path, x, parts: int):
  """Every parts-th example into the same microbatch, [parts, B / parts, ..]."""
  if x.shape[0] % parts:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    raise ValueError(
      f'batch leaf {name!r} has {x.shape[0]} examples; accumulate={parts} does'
      ' not divide them.'
    )
  x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
  return jnp.swapaxes(x, 0, 1)


def _after(rows, others):
  """The same gradients, but not to be had before others.

  XLA scatters into a table where it is only if nothing can read it later, and
  it goes by what depends on what: all that reads the table leads to `others`.
  An optimization barrier is gone before XLA looks.
  """
  squares = [
    jnp.sum(jnp.square(x.astype(jnp.float32)))
    for x in jax.tree.leaves(others)
    if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  # Never the case, which XLA does not know.
  shift = (sum(squares) < -1).astype(jnp.int32)
  return jax.tree.map(
    lambda g: g.replace(ids=g.ids + shift),
    rows,
    is_leaf=is_row_sparse,
  )


def make_memory_train_step(
  loss_fn: training.step.LossFn,
  tx: optax.GradientTransformation,
  *,
  mesh: jax.sharding.Mesh | None = None,
  rules: training.sharding.Rules = (),
  accumulate: int = 1,
  donate: bool = True,
):
  """`training.make_train_step` with gradients of tables that are rows.

  With `donate` table and moments change where they are. On a mesh every device
  updates its own part of them; ids, weights and sums of what was read travel,
  and nothing of the size of a table.

  Args:
    loss_fn: See `sparse_value_and_grad`.
    tx: An optimizer that knows `RowSparse`, as `memory_optimizer`.
    mesh: Where state and batch lie; None for the default device.
    rules: How the state lies on the mesh.
    accumulate: Number of microbatches, see `sparse_value_and_grad`.
    donate: Whether the memory of the state that is passed in may be used again.

  Returns:
    A jitted function `(state, batch) -> (state, metrics)` for `training.fit`.

  Raises:
    ValueError: If `accumulate` is below 1, or the mesh has axes that are not
      Auto.
  """
  if mesh is not None:
    check_auto(mesh)
  gradients_of = sparse_value_and_grad(
    loss_fn, accumulate=accumulate, mesh=mesh, rules=rules
  )

  def step(state: training.TrainState, batch):
    if mesh is not None:
      batch = jax.lax.with_sharding_constraint(
        batch, training.batch_sharding(mesh)
      )
    rng = jax.random.fold_in(state.rng, state.step)
    (loss, (model_state, metrics)), gradients = gradients_of(
      state.params, state.model_state, batch, rng
    )
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    leaves = jax.tree.leaves(gradients, is_leaf=is_row_sparse)
    # The ids of rows are no gradient.
    norm = optax.tree.norm([x.rows if is_row_sparse(x) else x for x in leaves])
    metrics = {'loss': loss, **metrics, 'grad_norm': norm}
    new = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      model_state=model_state,
      opt_state=opt_state,
    )
    if mesh is not None:
      new = jax.lax.with_sharding_constraint(
        new, training.shard_rules(new, rules, mesh)
      )
      metrics = jax.lax.with_sharding_constraint(
        metrics, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
      )
    return new, metrics

  return jax.jit(step, donate_argnums=(0,) if donate else ())


@dataclasses.dataclass(frozen=True)
class MemoryJob(training.Job):
  """A job whose steps have gradients of rows.

  Attributes:
    sparse: Whether they have; otherwise it is like any job.
    loss_for: Makes the loss for a mesh, whose layers may know that mesh;
      `loss_fn` for every mesh by default.
  """

  sparse: bool = True
  loss_for: Callable[[Any], training.step.LossFn] | None = None

  def step(self, mesh: jax.sharding.Mesh | None = None) -> Any:
    """The training step, jitted for a mesh."""
    job = self
    if self.loss_for is not None:
      job = dataclasses.replace(self, loss_fn=self.loss_for(mesh))
    if not self.sparse:
      return super(MemoryJob, job).step(mesh)
    return make_memory_train_step(
      job.loss_fn,
      job.tx,
      mesh=mesh,
      rules=job.rules,
      accumulate=job.accumulate,
    )

  def __post_init__(self):
    changed = [
      name
      for name, value in (
        ('ema', self.ema is not None),
        ('compute_dtype', self.compute_dtype is not None),
        ('population', self.population),
      )
      if value
    ]
    if self.sparse and changed:
      raise ValueError(
        f'{changed[0]} is {getattr(self, changed[0])}; a sparse step has none.'
        ' Set sparse=False, or leave it out.'
      )
