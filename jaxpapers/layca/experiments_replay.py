"""Recording how an optimizer rotates every layer in every step (paper, E8)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpapers.layca import rotation, trees


class RecorderState(NamedTuple):
  """State of `record_rotations`.

  Attributes:
    count: number of updates so far, int32.
    tangents: [steps, layers] float32, zero for steps that are yet to come.
  """

  count: jax.Array
  tangents: jax.Array


def record_rotations(
  num_steps: int, layer_order: Sequence[str]
) -> optax.GradientTransformationExtraArgs:
  """Keeps the tangent of every layer's angle in every step, on the device.

  Updates pass unchanged; it comes last in a chain. The table is part of the
  optimizer's state and so of its checkpoints: 4 bytes for each layer and step.
  `rates.replay_schedules(table, layer_order)` makes learning rates of it.

  Args:
    num_steps: rows of the table; later steps are not recorded.
    layer_order: paths of the layers, one column each.

  Returns:
    The transform.

  Raises:
    ValueError: if `num_steps` is less than 1, a path is no parameter, or params
      are not given to update.

  Example:
    >>> params = {'kernel': jnp.asarray([1.0, 0.0])}
    >>> tx = optax.chain(optax.sgd(0.5), record_rotations(3, ['kernel']))
    >>> gradient = {'kernel': jnp.asarray([0.0, -2.0])}
    >>> _, state = tx.update(gradient, tx.init(params), params)
    >>> state[1].tangents[:, 0].round(5).tolist()
    [1.0, 0.0, 0.0]
  """
  if num_steps < 1:
    raise ValueError(f'num_steps is {num_steps}; expected 1 or more.')
  layer_order = list(layer_order)

  def init(params):
    names, _, _ = trees.flatten(params)
    missing = [path for path in layer_order if path not in names]
    if missing:
      raise ValueError(
        f'layer_order has {missing[0]!r}, which is none of the parameters'
        f' {names}.'
      )
    return RecorderState(
      jnp.zeros([], jnp.int32),
      jnp.zeros((num_steps, len(layer_order)), jnp.float32),
    )

  def update(updates, state, params=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError(
        'params is None; expected the parameters: call'
        ' update(updates, state, params).'
      )
    names, old, _ = trees.flatten(params)
    _, new, _ = trees.flatten(optax.apply_updates(params, updates))
    old, new = dict(zip(names, old)), dict(zip(names, new))
    before = {path: old[path] for path in layer_order}
    after = {path: new[path] for path in layer_order}
    tangent = rotation.step_tangent(before, after)
    row = jnp.stack([tangent[path] for path in layer_order])
    # 'drop': steps beyond the table leave it as it is.
    table = state.tangents.at[state.count].set(
      row.astype(jnp.float32), mode='drop'
    )
    return updates, RecorderState(optax.safe_increment(state.count), table)

  return optax.GradientTransformationExtraArgs(init, update)


def recorded_rotations(opt_state: Any) -> jax.Array:
  """The table of the recorder in an optimizer's state.

  Args:
    opt_state: state of a chain with `record_rotations`.

  Returns:
    [steps, layers] float32: the steps so far, as zeros would be replayed as no
    rotation. Where their number is traced, or of a population, all rows.

  Raises:
    ValueError: if there is no recorder.
  """
  found = rotation.find_states(opt_state, RecorderState)
  if len(found) != 1:
    raise ValueError(
      f'opt_state has {len(found)} states of record_rotations; expected one.'
    )
  count, table = found[0]
  if isinstance(count, jax.core.Tracer) or jnp.ndim(count):
    return table
  return table[: int(count)]
