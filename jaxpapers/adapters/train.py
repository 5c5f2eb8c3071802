"""Training steps that hold the frozen parameters apart.

The state of a run is what the task owns: its parameters, their optimizer, the
step. The frozen tree is a second argument of the compiled step. It is neither
donated nor in checkpoints, and many tasks share one copy of it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from jaxpapers import training
from jaxpapers.adapters.partition import merge_params
from jaxpapers.training import sharding as sharding_lib
from jaxpapers.training import state as state_lib


class FinetuneStep:
  """A training or evaluation step with the frozen tree in it.

  Called as `step(state, batch)`, like what `training.make_train_step` makes,
  and so taken by `training.fit`.

  Attributes:
    frozen: The frozen tree, as it lies on the devices.
  """

  def __init__(self, function: Callable[..., Any], frozen: Any):
    """Holds a jitted function of state, frozen tree and batch."""
    self._function = function
    self.frozen = frozen

  def __call__(self, state: training.TrainState, batch: Any) -> Any:
    """Runs the step."""
    return self._function(state, self.frozen, batch)

  def trace(self, state: Any, batch: Any) -> Any:
    """`jax.jit(...).trace`, on arrays or their shapes."""
    return self._function.trace(state, self.frozen, batch)

  def lower(self, state: Any, batch: Any) -> Any:
    """`jax.jit(...).lower`, on arrays or their shapes."""
    return self._function.lower(state, self.frozen, batch)


def put_frozen(
  frozen: Any,
  mesh: jax.sharding.Mesh | None = None,
  rules: sharding_lib.Rules = (),
) -> Any:
  """Lays a frozen tree on the devices.

  Args:
    frozen: Tree of arrays, compressed ones included.
    mesh: The mesh; None for the default device.
    rules: How it lies there, see `training.shard_rules`.

  Returns:
    The tree; leaves that lie there already are not copied.
  """
  if mesh is None:
    return jax.device_put(frozen)
  return jax.device_put(frozen, training.shard_rules(frozen, rules, mesh))


def create_finetune_state(
  trainable: Mapping[str, Any],
  tx: optax.GradientTransformation,
  rng: jax.Array,
  *,
  model_state: Any = None,
  mesh: jax.sharding.Mesh | None = None,
  rules: sharding_lib.Rules = (),
  ema: bool = False,
) -> training.TrainState:
  """The state of step 0 of a task.

  Args:
    trainable: What is trained. It is copied: steps take the state's memory,
      and the base model stays whole. In a population every leaf has a leading
      axis of members.
    tx: The optimizer. Its state is as large as what is trained makes it.
    rng: Typed key, or `[members]` for a population.
    model_state: Other variables of the model; none by default.
    mesh: Where the state lies; None for the default device.
    rules: How it lies there.
    ema: Whether to keep a moving average of what is trained.

  Returns:
    The state.
  """
  model_state = {} if model_state is None else model_state

  def make(trainable, model_state, rng):
    def one(trainable, model_state, rng):
      maker = state_lib.state_maker(
        lambda key: (trainable, model_state), tx, rng, ema=ema
      )
      return maker(rng)

    many = jax.vmap(one) if rng.ndim else one
    return many(trainable, model_state, rng)

  shardings = None
  if mesh is not None:
    shardings = training.shard_rules(
      jax.eval_shape(make, trainable, model_state, rng),
      rules,
      mesh,
      population=rng.ndim == 1,
    )
  return jax.jit(make, out_shardings=shardings)(trainable, model_state, rng)


def make_finetune_step(
  loss_fn: Callable[..., Any],
  tx: optax.GradientTransformation,
  frozen: Mapping[str, Any],
  *,
  mesh: jax.sharding.Mesh | None = None,
  rules: sharding_lib.Rules = (),
  donate: bool = True,
  **options: Any,
) -> FinetuneStep:
  """Makes the step that trains a part of a model.

  Gradients are with respect to the state's parameters alone: the compiled step
  has no gradient of a frozen kernel, and clipping sees what is trained.

  Args:
    loss_fn: Maps `(params, model_state, batch, rng)` to
      `(loss, (model_state, metrics))` with the parameters of the whole model.
    tx: The optimizer.
    frozen: The frozen tree, of `partition_params` and perhaps
      `compress_frozen`.
    mesh: Where state, frozen tree and batch lie; None for the default device.
    rules: How they lie there, see `training.shard_rules`: one list for the
      whole model.
    donate: Whether the memory of the state may be used again. That of the
      frozen tree never is.
    **options: Of `training.make_train_step`: `accumulate`, `ema`,
      `compute_dtype` (of what is trained), `population` (members share the
      frozen tree).

  Returns:
    The step, `(state, batch) -> (state, metrics)`.
  """

  def step(state, frozen, batch):
    def loss(trainable, model_state, batch, rng):
      params = merge_params(trainable, frozen)
      return loss_fn(params, model_state, batch, rng)

    # Traced into this program; that one's own donation would mean nothing.
    inner = training.make_train_step(
      loss, tx, mesh=mesh, rules=rules, donate=False, **options
    )
    return inner(state, batch)

  return FinetuneStep(
    jax.jit(step, donate_argnums=(0,) if donate else ()),
    _placed(frozen, mesh, rules),
  )


def make_finetune_eval_step(
  metric_fn: Callable[..., Any],
  frozen: Mapping[str, Any],
  *,
  mesh: jax.sharding.Mesh | None = None,
  rules: sharding_lib.Rules = (),
  population: bool = False,
) -> FinetuneStep:
  """Makes the step that evaluates it, for `training.evaluate`.

  Args:
    metric_fn: Maps `(params, model_state, batch)` to means over
      `metrics['count']` examples, with the parameters of the whole model.
    frozen: The frozen tree.
    mesh: As in `make_finetune_step`.
    rules: As in `make_finetune_step`.
    population: Whether the state has a leading axis of members.

  Returns:
    The step, `(state, batch) -> metrics`.
  """

  def step(state, frozen, batch):
    inner = training.make_eval_step(
      lambda trainable, model_state, batch: metric_fn(
        merge_params(trainable, frozen), model_state, batch
      ),
      mesh=mesh,
      population=population,
    )
    return inner(state, batch)

  return FinetuneStep(jax.jit(step), _placed(frozen, mesh, rules))


def _placed(frozen, mesh, rules):
  """The tree on the devices; shapes alone stay what they are."""
  leaves = jax.tree.leaves(frozen)
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
    if mesh is None:
      return frozen
    shardings = training.shard_rules(frozen, rules, mesh)
    return state_lib.with_shardings(frozen, shardings)
  return put_frozen(frozen, mesh, rules)
