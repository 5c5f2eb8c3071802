"""Training steps in which gradients of value tables are rows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpapers import training
from jaxpapers.product_keys.row_sparse import (
  is_row_sparse,
  sparse_value_grads,
)
from jaxpapers.training.sharding import check_auto

__all__ = ['MemoryJob', 'make_memory_train_step', 'sparse_value_and_grad']


def sparse_value_and_grad(loss_fn: training.step.LossFn):
  """Like `jax.value_and_grad` of a loss, but tables get `RowSparse`.

  Args:
    loss_fn: As in `training.make_train_step`. Parameters are a dictionary of
      collections, with the tables in 'memory'; the loss has to apply its model
      to `{**params, **model_state}` with `mutable=list(model_state)`, and to
      return what changed: so it is asked for reads, and given perturbations.

  Returns:
    A function `(params, model_state, batch, rng)` that returns
    `((loss, (model_state, metrics)), gradients)`.
  """

  def function(params, model_state, batch, rng):
    tables = params['memory']
    others = {name: tree for name, tree in params.items() if name != 'memory'}
    asked = {**model_state, 'reads': {}, 'perturbations': {}}
    shapes = jax.eval_shape(loss_fn, params, asked, batch, rng)[1][0]
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
    rows = sparse_value_grads(reads, gradients[1], tables)
    return (value, (state, metrics)), {**gradients[0], 'memory': rows}

  return function


def make_memory_train_step(
  loss_fn: training.step.LossFn,
  tx: optax.GradientTransformation,
  *,
  mesh: jax.sharding.Mesh | None = None,
  rules: training.sharding.Rules = (),
  donate: bool = True,
):
  """`training.make_train_step` with gradients of tables that are rows.

  Args:
    loss_fn: See `sparse_value_and_grad`.
    tx: An optimizer that knows `RowSparse`, as `memory_optimizer`.
    mesh: Where state and batch lie; None for the default device.
    rules: How the state lies on the mesh.
    donate: Whether the memory of the state that is passed in may be used again.

  Returns:
    A jitted function `(state, batch) -> (state, metrics)` for `training.fit`.
  """
  if mesh is not None:
    check_auto(mesh)
  gradients_of = sparse_value_and_grad(loss_fn)

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
      job.loss_fn, job.tx, mesh=mesh, rules=job.rules
    )

  def __post_init__(self):
    changed = [
      name
      for name, value in (
        ('accumulate', self.accumulate != 1),
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
