"""Moving averages of parameters and of batch statistics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def ema_with_warmup(decay: float = 0.9999) -> Callable[[Any], jax.Array]:
  """Decay of the average at each update: min(decay, (1 + t) / (10 + t)).

  t counts the updates with the present one: 2/11 at the first. Without this
  ramp, an average with decay .9999 shows the initial weights for thousands of
  updates.

  Args:
    decay: What it rises to.

  Returns:
    Function from the number of updates made before, as `make_train_step(ema=)`
    asks for it, to the decay.

  Raises:
    ValueError: If `decay` is not in [0, 1).

  Example:
    >>> decay = ema_with_warmup(0.9999)
    >>> round(float(decay(0)), 4), round(float(decay(1_000_000)), 4)
    (0.1818, 0.9999)
  """
  if not 0 <= decay < 1:
    raise ValueError(f'decay is {decay}; expected 0 to below 1, as .9999.')

  def at(step):
    t = jnp.asarray(step).astype(jnp.result_type(float)) + 1
    return jnp.minimum(decay, (1 + t) / (10 + t))

  return at


def update_average(average: Any, new: Any, decay: Any) -> Any:
  """Average + (1 - decay) (new - average), leaf by leaf.

  Args:
    average: Tree of arrays.
    new: Tree of the same structure.
    decay: Scalar.

  Returns:
    Tree in the types of `average`.
  """
  return jax.tree.map(
    lambda a, x: (a + (1 - decay) * (x.astype(a.dtype) - a)).astype(a.dtype),
    average,
    new,
  )


def init_stats_average(batch_stats: Any) -> dict[str, Any]:
  """The average of batch statistics before the first update.

  Args:
    batch_stats: The statistics, whose values the average begins with.

  Returns:
    {'count': updates so far, int32; 'batch_stats': the average}.
  """
  return {
    'count': jnp.zeros((), jnp.int32),
    'batch_stats': jax.tree.map(jnp.copy, batch_stats),
  }


def update_stats_average(
  state: dict[str, Any],
  batch_stats: Any,
  decay: Callable[[Any], jax.Array],
  accumulate: int = 1,
) -> dict[str, Any]:
  """Takes new batch statistics into their average.

  Args:
    state: From `init_stats_average`.
    batch_stats: The new statistics.
    decay: See `ema_with_warmup`.
    accumulate: Microbatches of an update: the average moves after the last of
      them, as parameters do.

  Returns:
    The new state.
  """
  count = state['count']
  moved = update_average(
    state['batch_stats'], batch_stats, decay(count // accumulate)
  )
  last = count % accumulate == accumulate - 1
  return {
    'count': count + 1,
    'batch_stats': jax.tree.map(
      lambda new, old: jnp.where(last, new, old), moved, state['batch_stats']
    ),
  }
