"""Learning rates: schedules, tables that are replayed, and trees of either."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.layca import trees

Schedule = Callable[[Any], Any]


def replay_schedule(table: Any) -> Schedule:
  """Schedule that reads one row of a table per step and stays at the last.

  Args:
    table: learning rates, [steps] or [steps, layers].

  Returns:
    Function of the step count, giving a scalar or an array [layers].

  Raises:
    ValueError: the table has no steps, or another number of axes.

  Example:
    >>> [float(replay_schedule([4.0, 2.0])(t)) for t in (0, 1, 7)]
    [4.0, 2.0, 2.0]
  """
  table = table if isinstance(table, jax.Array) else np.asarray(table)
  shape = table.shape
  if len(shape) not in (1, 2) or not shape[0]:
    raise ValueError(
      f'table has shape {shape}; expected [steps] or [steps, layers].'
    )

  def schedule(count):
    row = jnp.clip(jnp.asarray(count), 0, shape[0] - 1)
    return jnp.asarray(table)[row]

  return schedule


def replay_schedules(
  table: Any, layer_order: Sequence[str]
) -> dict[str, Schedule]:
  """One schedule per layer from the columns of a table of rotations.

  Replaying the per-step tangents that another optimizer made is the paper's
  experiment on training speed.

  Args:
    table: learning rates [steps, layers].
    layer_order: path of the layer of each column.

  Returns:
    Path -> schedule, for the `learning_rate` of `layca`.

  Raises:
    ValueError: the table does not have one column per path.

  Example:
    >>> rates = replay_schedules([[1.0, 2.0]], ['a/kernel', 'b/kernel'])
    >>> float(rates['b/kernel'](0))
    2.0
  """
  table = table if isinstance(table, jax.Array) else np.asarray(table)
  shape = table.shape
  if len(shape) != 2 or shape[1] != len(layer_order):
    raise ValueError(
      f'table has shape {shape}; expected [steps, {len(layer_order)}], one'
      ' column for each path in layer_order.'
    )
  return {
    path: replay_schedule(table[:, column])
    for column, path in enumerate(layer_order)
  }


def keras_step_schedule(
  initial: float, factor: float, epochs: Sequence[int], steps_per_epoch: int
) -> Schedule:
  """Learning rate multiplied by a factor at the start of some epochs.

  Args:
    initial: rate of the first epoch.
    factor: what it is multiplied with.
    epochs: epoch indices, counted from 0; at each the factor applies once.
    steps_per_epoch: optimizer steps in an epoch, 351 for 45,000 examples in
      full batches of 128.

  Returns:
    Function of the step count.

  Raises:
    ValueError: `steps_per_epoch` is not positive.

  Example:
    >>> rate = keras_step_schedule(1.0, 0.5, (2, 3), steps_per_epoch=10)
    >>> [float(rate(t)) for t in (19, 20, 30)]
    [1.0, 0.5, 0.25]
  """
  if steps_per_epoch < 1:
    raise ValueError(
      f'steps_per_epoch is {steps_per_epoch}; expected a positive number.'
    )
  starts = np.sort(np.asarray(epochs, np.int64).reshape(-1)) * steps_per_epoch
  values = initial * factor ** np.arange(len(starts) + 1.0)

  def schedule(count):
    passed = jnp.sum(jnp.asarray(count) >= starts.astype(np.int32))
    return jnp.asarray(values, jnp.result_type(float))[passed]

  return schedule


def linear_warmup_from_tenth(learning_rate: Any, warmup_steps: int) -> Schedule:
  """Linear warmup from a tenth of the learning rate to all of it.

  `lr f + lr / 10 (1 - f)` with f = step / warmup_steps, at most 1.

  Args:
    learning_rate: number, or schedule of the step count from the start.
    warmup_steps: optimizer steps of the warmup; 0 for none.

  Returns:
    Function of the step count.

  Example:
    >>> rate = linear_warmup_from_tenth(1.0, 10)
    >>> [round(float(rate(t)), 3) for t in (0, 5, 10, 99)]
    [0.1, 0.55, 1.0, 1.0]
  """
  if warmup_steps < 0:
    raise ValueError(f'warmup_steps is {warmup_steps}; expected 0 or more.')

  def schedule(count):
    value = learning_rate(count) if callable(learning_rate) else learning_rate
    fraction = jnp.minimum(jnp.asarray(count) / max(warmup_steps, 1), 1.0)
    if not warmup_steps:
      fraction = jnp.ones_like(fraction)
    return value * (fraction + (1 - fraction) / 10)

  return schedule


def decayed(learning_rate: Any, decay: Any) -> Any:
  """Keras' time-based decay, `lr / (1 + decay step)`, of every rate in a tree.

  Args:
    learning_rate: as in `layca`.
    decay: number; 0 leaves the rates as they are.

  Returns:
    The same tree with schedules.
  """
  if isinstance(decay, (int, float)) and decay == 0:
    return learning_rate

  return jax.tree.map(lambda rate: _Decayed(rate, decay), learning_rate)


@dataclasses.dataclass(frozen=True, eq=False)
class _Decayed:
  """A schedule, whose rate may be an array that only its leaf can explain."""

  rate: Any
  decay: Any

  def divisor(self, count):
    return 1 + self.decay * jnp.asarray(count)

  def __call__(self, count):
    rate = self.rate
    if not callable(rate) and jnp.ndim(rate):
      rate = replay_schedule(rate)
    value = rate(count) if callable(rate) else rate
    return value / self.divisor(count)


def per_layer(
  value: Any, shape: tuple[int, ...], layer_axes: tuple[int, ...], what: str
) -> Any:
  """Shapes a number, or one number per layer, to broadcast against a leaf.

  Args:
    value: scalar, array that broadcasts to the leaf with its reduced axes of
      length 1, or array of the lengths of the layer axes alone.
    shape: shape of the leaf.
    layer_axes: its axes that index layers.
    what: what the value is, for the message.

  Returns:
    The value, reshaped where needed.

  Raises:
    ValueError: it fits neither way.
  """
  have = jnp.shape(value)
  kept = tuple(n if i in layer_axes else 1 for i, n in enumerate(shape))
  layers = tuple(shape[axis] for axis in layer_axes)
  if not have:
    return value
  fits = len(have) == len(kept) and all(
    n in (1, m) for n, m in zip(have, kept, strict=True)
  )
  if fits:
    return value
  if have == layers:
    return jnp.reshape(value, kept)
  raise ValueError(
    f'{what} has shape {have}; expected a scalar, {kept} or {layers}, since the'
    f' leaf has shape {shape} and layer_axes {layer_axes}. For a table with one'
    ' column per layer of the network use replay_schedules.'
  )


def evaluate(
  learning_rate: Any,
  multipliers: Any,
  count: Any,
  names: Sequence[str],
  shapes: Sequence[tuple[int, ...] | None],
  axes: Sequence[tuple[int, ...]],
) -> list[Any]:
  """The learning rate of every layer at a step, multipliers included.

  Args:
    learning_rate: as in `layca`.
    multipliers: as in `layca`.
    count: the step, 0 for the first update.
    names: names of the leaves.
    shapes: their shapes; None for absent leaves.
    axes: their layer axes.

  Returns:
    Per leaf a number or an array that broadcasts; None for absent leaves.

  Raises:
    ValueError: a layer has no rate or multiplier, or one of a wrong shape.
  """
  present = [shape is not None for shape in shapes]
  rates = trees.match_prefix(learning_rate, names, present, 'learning_rate')
  if multipliers is None:
    factors = [None] * len(names)
  else:
    factors = trees.match_prefix(multipliers, names, present, 'multipliers')
  values = []
  for name, shape, over, rate, factor in zip(
    names, shapes, axes, rates, factors, strict=True
  ):
    if shape is None:
      values.append(None)
      continue
    what = f'the learning rate of {name!r}'
    rate = _at(rate, count, shape, over, what)
    if factor is not None:
      what = f'the multiplier of {name!r}'
      rate = rate * per_layer(factor, shape, over, what)
    values.append(rate)
  return values


def _at(rate, count, shape, layer_axes, what):
  """The rate of one leaf at a step."""
  if isinstance(rate, _Decayed):
    value = _at(rate.rate, count, shape, layer_axes, what)
    return value / rate.divisor(count)
  if callable(rate):
    return per_layer(rate(count), shape, layer_axes, what)
  if jnp.ndim(rate):
    return _constant_or_table(rate, count, shape, layer_axes, what)
  return rate


def _constant_or_table(rate, count, shape, layer_axes, what):
  """An array is one rate per layer if it has or broadcasts to their shape.

  It is a table of steps otherwise.
  """
  if layer_axes and jnp.shape(rate) == tuple(shape[a] for a in layer_axes):
    return per_layer(rate, shape, layer_axes, what)
  try:
    if jnp.ndim(rate) == len(shape):
      return per_layer(rate, shape, layer_axes, what)
  except ValueError:
    pass
  return per_layer(replay_schedule(rate)(count), shape, layer_axes, what)
