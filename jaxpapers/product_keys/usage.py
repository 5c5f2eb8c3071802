"""How evenly slots are used: section 4.2 of the paper, and XLM's metrics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
  'MemoryUsage',
  'memory_usage_init',
  'memory_usage_report',
  'memory_usage_update',
]


class MemoryUsage(NamedTuple):
  """What was read so far. Those of shards and of batches add up leaf by leaf.

  Attributes:
    counts: Reads of each slot, uint32 `[N]`.
    mass: Sum of the weights of each slot, float32 `[N]`.
    lost: What rounding took off `mass`, float32 `[N]`: without it a slot would
      stop counting at 2^24.
  """

  counts: jax.Array
  mass: jax.Array
  lost: jax.Array


def memory_usage_init(num_slots: int) -> MemoryUsage:
  """No reads of any slot.

  Args:
    num_slots: N.

  Returns:
    Zeros.

  Raises:
    ValueError: If N is below 1.
  """
  if num_slots < 1:
    raise ValueError(f'num_slots is {num_slots}; expected 1 or more.')
  return MemoryUsage(
    jnp.zeros((num_slots,), jnp.uint32),
    jnp.zeros((num_slots,), jnp.float32),
    jnp.zeros((num_slots,), jnp.float32),
  )


def memory_usage_update(
  state: MemoryUsage,
  ids: jax.Array,
  weights: jax.Array,
  mask: jax.Array | None = None,
) -> MemoryUsage:
  """Adds reads.

  Works under `jit` and on a mesh; to sum over shards by hand, update an empty
  state on each and `psum` it.

  Args:
    state: What was read before.
    ids: Slots, integers of any shape; those out of range, which layers give
      padding, do not count.
    weights: Of the same shape.
    mask: Tokens that are not padding: the leading axes of `ids`.

  Returns:
    The new state.

  Raises:
    ValueError: If shapes do not fit.

  Example:
    >>> state = memory_usage_init(4)
    >>> ids = jnp.array([[0, 1], [0, 3]])
    >>> state = memory_usage_update(state, ids, jnp.full((2, 2), 0.5))
    >>> state.counts.tolist()
    [2, 1, 0, 1]
  """
  if ids.shape != weights.shape:
    raise ValueError(
      f'weights has shape {weights.shape}; expected that of ids, {ids.shape}.'
    )
  slots = state.counts.shape[0]
  if mask is not None:
    if mask.shape != ids.shape[: mask.ndim]:
      raise ValueError(
        f'mask has shape {mask.shape}; expected leading axes of ids,'
        f' {ids.shape}.'
      )
    mask = mask.reshape(*mask.shape, *(1,) * (ids.ndim - mask.ndim))
    ids = jnp.where(mask, ids, slots)
  ids = jnp.where(ids < 0, slots, ids).reshape(-1)
  counts = state.counts.at[ids].add(1, mode='drop')
  # Weights of slots that are read twice in a batch are summed first.
  new = jnp.zeros_like(state.mass)
  new = new.at[ids].add(weights.reshape(-1).astype(new.dtype), mode='drop')
  # Two-sum (Knuth): total + error is exactly mass + new. Summation within one
  # batch is plain float32.
  total = state.mass + new
  shadow = total - state.mass
  error = (state.mass - (total - shadow)) + (new - shadow)
  return MemoryUsage(counts, total, state.lost + error)


def memory_usage_report(state: MemoryUsage) -> dict[str, float]:
  """The numbers, from reads so far, in float64 on the host.

  With z the share of each slot in all weight (`_w`) or all reads (`_u`):
  `kl = ln N + sum z ln z`, 0 where all are used alike and ln N where one is;
  `gini = 1 - 2 mean(cumsum(sort z))`; `top50`, `top90`, `top99` how many slots
  hold that percentage.

  Args:
    state: Reads.

  Returns:
    `usage` (percentage of slots with weight), `kl_w`, `gini_w`, `top50_w`,
    `top90_w`, `top99_w`, and the same with `_u`.

  Raises:
    ValueError: If nothing was read.
  """
  counts = np.asarray(state.counts, np.float64)
  mass = np.asarray(state.mass, np.float64) + np.asarray(state.lost, np.float64)
  report = {'usage': float(100 * np.mean(mass != 0))}
  for suffix, total in (('w', mass), ('u', counts)):
    # Weights of other scores than the softmax's may be negative.
    total = np.abs(total)
    if not total.sum() > 0:
      raise ValueError(
        'state has no reads, or none with weight; update it first, in the'
        " evaluation mode of the layer with the collection 'reads' mutable."
      )
    report |= _spread(total / total.sum(), suffix)
  return report


def _spread(z: np.ndarray, suffix: str) -> dict[str, Any]:
  size = z.size
  positive = z[z > 0]
  rising = np.cumsum(np.sort(z))
  report = {
    f'kl_{suffix}': float(np.log(size) + np.sum(positive * np.log(positive))),
    f'gini_{suffix}': float(1 - 2 * np.mean(rising)),
  }
  for percentage, rest in ((50, 0.5), (90, 0.1), (99, 0.01)):
    top = size - np.searchsorted(rising, rest)
    report[f'top{percentage}_{suffix}'] = int(top)
  return report
