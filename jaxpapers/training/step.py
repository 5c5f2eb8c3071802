"""One training step, and one step of an evaluation: jitted, sharded."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.training import gathering
from jaxpapers.training import sharding as sharding_lib
from jaxpapers.training.state import TrainState

LossFn = Callable[..., tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]


def make_train_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  *,
  mesh: jax.sharding.Mesh | None = None,
  rules: sharding_lib.Rules = (),
  accumulate: int = 1,
  ema: float | Callable[[jax.Array], jax.Array] | None = None,
  compute_dtype: Any = None,
  population: bool = False,
  donate: bool = True,
  gather_axis: str | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """Makes the function that does one update.

  The loss sees the whole batch, wherever its parts lie: a mean over examples is
  a mean over all devices, and the gradients of a mesh are those of one device.

  With `accumulate` the batch is cut into that many microbatches, one after the
  other. Each gradient is weighted by the `count` that the loss returns among
  its metrics (1 without it), so that the sum is the gradient of a mean over all
  that was counted, however unequal the microbatches are:
  `sum_i count_i g_i / sum_i count_i`. The model state runs through them in
  turn.

  Args:
    loss_fn: Maps `(params, model_state, batch, rng)` to
      `(loss, (model_state, metrics))`. The loss and the metrics, a dictionary
      of scalars, are means over `metrics['count']` examples or tokens.
    tx: The optimizer.
    mesh: Where state and batch lie; None for the default device.
    rules: How the state lies on the mesh, see `shard_rules`.
    accumulate: Number of microbatches.
    ema: Decay of the moving average of the parameters, a number or a function
      of the step; needs a state made with `ema=True`.
    compute_dtype: Floating-point parameters are cast to this type before the
      loss (jnp.bfloat16, say), once for the step. Optimizer and stored
      parameters keep their own, accumulated gradients are float32. Give the
      modules the same `dtype`.
    population: Whether all leaves of the state have a leading axis of members,
      each trained on the same batches.
    donate: Whether the memory of the state that is passed in may be used again;
      that state is then gone.
    gather_axis: Mesh axis over which rules spread parameters that are to be
      whole when they are used, see `gather_parameters`. Leave out an axis
      whose parts are used where they lie, as of tensor parallelism.

  Returns:
    A jitted function `(state, batch) -> (state, metrics)`. The metrics are
    those of the loss, `loss`, `grad_norm` (global, after accumulation) and
    `learning_rate` where the optimizer keeps it as a hyperparameter; arrays of
    one entry per member in a population.

  Raises:
    ValueError: If `accumulate` or `ema` is out of range or, when called,
      `accumulate` does not divide the batch, or the state does not fit: a
      moving average on one side only, a population or none.
    TypeError: When called: if the loss returns something else.

  Example:
    >>> def loss_fn(params, model_state, batch, rng):
    ...   error = batch['x'] @ params['w'] - batch['y']
    ...   return (error**2).mean(), (model_state, {'count': error.size})
    >>> step = make_train_step(loss_fn, optax.sgd(0.1))
  """
  if accumulate < 1:
    raise ValueError(f'accumulate is {accumulate}; expected 1 or more.')
  if ema is not None and not callable(ema):
    if isinstance(ema, bool) or not 0 <= ema < 1:
      raise ValueError(
        f'ema is {ema}; expected a decay of at least 0 and below 1, as .9999,'
        ' or a function of the step.'
      )
  if mesh is not None:
    sharding_lib.check_auto(mesh)
    if gather_axis is not None:
      loss_fn = gathering.gather_parameters(
        loss_fn, mesh, rules, axis=gather_axis
      )

  def one(state: TrainState, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    gradients, model_state, metrics = _gradients(
      loss_fn, state, batch, rng, accumulate, compute_dtype
    )
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    averages = state.ema_params
    if ema is not None:
      decay = ema(state.step) if callable(ema) else ema
      averages = jax.tree.map(
        lambda average, p: (
          average + (1 - decay) * (p.astype(average.dtype) - average)
        ).astype(average.dtype),
        averages,
        params,
      )
    metrics['grad_norm'] = optax.tree.norm(gradients)
    rate = _learning_rate(opt_state)
    if rate is not None:
      metrics.setdefault('learning_rate', rate)
    state = state.replace(
      step=state.step + 1,
      params=params,
      model_state=model_state,
      opt_state=opt_state,
      ema_params=averages,
    )
    return state, metrics

  def step(state: TrainState, batch):
    _check_state(state, ema is not None, population)
    if mesh is not None:
      batch = jax.lax.with_sharding_constraint(
        batch, sharding_lib.batch_sharding(mesh)
      )
    many = jax.vmap(one, in_axes=(0, None)) if population else one
    new, metrics = many(state, batch)
    if mesh is not None:
      # Said here rather than as out_shardings, which would need the tree of
      # the state before the first call. Equal shardings in and out: the step
      # compiles once.
      new = jax.lax.with_sharding_constraint(
        new,
        sharding_lib.shard_rules(new, rules, mesh, population=population),
      )
      metrics = jax.lax.with_sharding_constraint(
        metrics, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
      )
    return new, metrics

  return jax.jit(step, donate_argnums=(0,) if donate else ())


def _check_state(state: TrainState, ema: bool, population: bool) -> None:
  """Refuses states that were made for another step."""
  if ema and state.ema_params is None:
    raise ValueError(
      'ema is set, but the state keeps no moving average. Make it with'
      ' create_state(..., ema=True).'
    )
  if not ema and state.ema_params is not None:
    raise ValueError(
      'the state keeps a moving average that this step would leave as it is,'
      ' and evaluations would look at it. Give make_train_step a decay,'
      ' ema=.9999, or make the state without ema.'
    )
  if state.step.ndim != population:
    raise ValueError(
      f'population is {population}, but step has shape {state.step.shape} in'
      ' the state; give create_state a vector of keys for a population, one key'
      ' for a single run.'
    )


def _gradients(loss_fn, state, batch, rng, accumulate, compute_dtype):
  """Gradients, model state and metrics of a batch, in microbatches."""
  params = state.params
  if compute_dtype is not None:
    params = _cast(params, compute_dtype)

  def of(model_state, batch, rng):
    (loss, (new, metrics)), gradients = jax.value_and_grad(
      lambda params: _checked(loss_fn(params, model_state, batch, rng)),
      has_aux=True,
    )(params)
    if jax.tree.structure(new) != jax.tree.structure(model_state):
      raise TypeError(
        'loss_fn returned a model_state of another structure'
        f' ({jax.tree.structure(new)}) than it was given'
        f' ({jax.tree.structure(model_state)}).'
      )
    return gradients, new, {'loss': loss} | metrics

  if accumulate == 1:
    gradients, model_state, metrics = of(state.model_state, batch, rng)
    return _like(gradients, state.params), model_state, metrics

  micro = jax.tree_util.tree_map_with_path(
    lambda path, x: _split(path, x, accumulate), batch
  )

  def body(carry, item):
    gradients, sums, total, model_state = carry
    index, part = item
    new, model_state, metrics = of(
      model_state, part, jax.random.fold_in(rng, index)
    )
    count = jnp.asarray(metrics.pop('count', 1.0), jnp.float32)

    def add(total, x):
      x = jnp.asarray(x, total.dtype)
      # A microbatch of nothing but padding may well have a loss of 0 / 0.
      return total + jnp.where(count > 0, x * count.astype(x.dtype), 0)

    gradients = jax.tree.map(add, gradients, new)
    sums = jax.tree.map(add, sums, metrics)
    return (gradients, sums, total + count, model_state), None

  shapes = jax.eval_shape(of, state.model_state, _first(micro), rng)
  has_count = 'count' in shapes[2]
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
    (shapes[0], {k: v for k, v in shapes[2].items() if k != 'count'}),
  )
  carry = (*zeros, jnp.zeros(()), state.model_state)
  (gradients, sums, total, model_state), _ = jax.lax.scan(
    body, carry, (jnp.arange(accumulate), micro)
  )
  # Where nothing at all was counted this is NaN, as it is without accumulation.
  gradients = jax.tree.map(lambda g: g / total.astype(g.dtype), gradients)
  gradients = _like(gradients, state.params)
  metrics = jax.tree.map(lambda m: m / total.astype(m.dtype), sums)
  if has_count:
    metrics['count'] = total
  return gradients, model_state, metrics


def _checked(returned):
  """What a loss returned, if it is what it should return."""
  wanted = '(loss, (model_state, metrics)), metrics a dictionary of scalars'
  match returned:
    case (loss, (model_state, dict() as metrics)):
      return loss, (model_state, dict(metrics))
  shape = jax.tree.map(lambda x: type(x).__name__, returned)
  raise TypeError(f'loss_fn returned {str(shape)[:200]}; expected {wanted}.')


def _like(gradients, params):
  """Gradients in the types of their parameters."""
  return jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)


def _split(path, x, parts: int):
  """Microbatches of a leaf, [parts, batch / parts, ...].

  Every parts-th example goes into the same microbatch: with contiguous blocks
  on the devices of a mesh, each then has a part of every microbatch and none
  has to be sent.
  """
  if x.shape[0] % parts:
    raise ValueError(
      f'batch leaf {sharding_lib.path_name(path)!r} has {x.shape[0]} examples;'
      f' accumulate={parts} does not divide them.'
    )
  x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
  return jnp.swapaxes(x, 0, 1)


def _first(tree):
  return jax.tree.map(lambda x: x[0], tree)


def _cast(tree, dtype):
  return jax.tree.map(
    lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
    tree,
  )


def _learning_rate(opt_state):
  """The hyperparameter of that name in an optax state, None without one."""
  try:
    return optax.tree.get(opt_state, 'learning_rate', default=None)
  except KeyError:  # Several: it is not clear which to show.
    return None


def make_eval_step(
  metric_fn: Callable[[Any, Any, Any], dict[str, jax.Array]],
  *,
  mesh: jax.sharding.Mesh | None = None,
  population: bool = False,
) -> Callable[[TrainState, Any], dict[str, jax.Array]]:
  """Makes the function that measures the model on one batch.

  Args:
    metric_fn: Maps `(params, model_state, batch)` to means over
      `metrics['count']` examples (over the batch's without it).
    mesh: Where state and batch lie; None for the default device.
    population: Whether the state has a leading axis of members.

  Returns:
    A jitted function `(state, batch) -> metrics`. It takes the averaged
    parameters where the state has them.
  """

  def one(state: TrainState, batch):
    metrics = dict(metric_fn(state.eval_params, state.model_state, batch))
    size = jax.tree.leaves(batch)[0].shape[0]
    metrics.setdefault('count', jnp.asarray(size, jnp.float32))
    return metrics

  def step(state: TrainState, batch):
    if mesh is not None:
      batch = jax.lax.with_sharding_constraint(
        batch, sharding_lib.batch_sharding(mesh)
      )
    many = jax.vmap(one, in_axes=(0, None)) if population else one
    metrics = many(state, batch)
    if mesh is not None:
      metrics = jax.lax.with_sharding_constraint(
        metrics, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
      )
    return metrics

  return jax.jit(step)


def evaluate(
  state: TrainState,
  eval_step: Callable[[TrainState, Any], dict[str, jax.Array]],
  batches: Iterable[Any],
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, np.ndarray]:
  """Means of an evaluation step's metrics over batches.

  Args:
    state: The state.
    eval_step: A function that `make_eval_step` made.
    batches: Batches of this process's share; in every process as many.
    mesh: That of `eval_step`.

  Returns:
    The metrics, weighted by `count`, and the sum of the counts; float64
    scalars, or arrays `[members]`.

  Raises:
    ValueError: If there are no batches.
  """
  results = []
  for batch in batches:
    results.append(eval_step(state, sharding_lib.put_batch(batch, mesh)))
    if len(results) > 2:
      # No more than that ahead of the devices: batches wait in their memory.
      jax.block_until_ready(results[-3])
  if not results:
    raise ValueError('There are no batches to evaluate on.')
  results = [
    {name: np.asarray(x, np.float64) for name, x in metrics.items()}
    for metrics in jax.device_get(results)
  ]
  counts = np.stack([metrics.pop('count') for metrics in results])
  total = counts.sum(0)
  means = {}
  for name in results[0]:
    values = np.stack([metrics[name] for metrics in results])
    weights = counts.reshape(counts.shape + (1,) * (values.ndim - counts.ndim))
    # A batch of nothing but padding may well have a mean of 0 / 0.
    values = np.where(weights > 0, values * weights, 0)
    means[name] = values.sum(0) / weights.sum(0)
  return means | {'count': total}
