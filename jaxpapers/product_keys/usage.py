"""How evenly slots are used: section 4.2 of the paper, and XLM's metrics."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
  'MemoryUsage',
  'measure_usage',
  'memory_usage_by_head',
  'memory_usage_init',
  'memory_usage_report',
  'memory_usage_update',
]


class MemoryUsage(NamedTuple):
  """What was read so far. Those of shards and of batches add up leaf by leaf.

  Attributes:
    counts: Reads of each slot, uint32 `[N]`, or `[H, N]` by head.
    mass: Sum of the weights of each slot, float32 of that shape.
    lost: What rounding took off `mass`: without it a slot would stop counting
      at 2^24.
  """

  counts: jax.Array
  mass: jax.Array
  lost: jax.Array


def memory_usage_init(num_slots: int, heads: int | None = None) -> MemoryUsage:
  """No reads of any slot.

  Args:
    num_slots: N.
    heads: H, to count the reads of each head by themselves.

  Returns:
    Zeros.

  Raises:
    ValueError: If N or H is below 1.
  """
  for name, value in (('num_slots', num_slots), ('heads', heads)):
    if value is not None and value < 1:
      raise ValueError(f'{name} is {value}; expected 1 or more.')
  shape = (num_slots,) if heads is None else (heads, num_slots)
  return MemoryUsage(
    jnp.zeros(shape, jnp.uint32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros(shape, jnp.float32),
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
      padding, do not count. By head, `[..., H * k]`, the first k of the first
      head, as layers have them.
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
  slots = state.counts.shape[-1]
  if mask is not None:
    if mask.shape != ids.shape[: mask.ndim]:
      raise ValueError(
        f'mask has shape {mask.shape}; expected leading axes of ids,'
        f' {ids.shape}.'
      )
    mask = mask.reshape(*mask.shape, *(1,) * (ids.ndim - mask.ndim))
    ids = jnp.where(mask, ids, slots)
  ids = jnp.where(ids < 0, slots, ids)
  if state.counts.ndim == 2:
    heads = state.counts.shape[0]
    if ids.shape[-1:] == () or ids.shape[-1] % heads:
      raise ValueError(
        f'ids has shape {ids.shape}; expected [..., reads] with a multiple of'
        f' the {heads} heads.'
      )
    by_head = (
      jnp.moveaxis(x.reshape(-1, heads, x.shape[-1] // heads), 1, 0)
      for x in (ids, weights)
    )
    return jax.vmap(_add)(state, *by_head)
  return _add(state, ids, weights)


def _add(state: MemoryUsage, ids, weights) -> MemoryUsage:
  """Adds reads whose ids are not negative to counts of one dimension."""
  ids = ids.reshape(-1)
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
    state: Reads; those of several heads are summed.

  Returns:
    `usage` (percentage of slots with weight), `kl_w`, `gini_w`, `top50_w`,
    `top90_w`, `top99_w`, and the same with `_u`.

  Raises:
    ValueError: If nothing was read.
  """
  counts = np.atleast_2d(np.asarray(state.counts, np.float64)).sum(axis=0)
  return _report(counts, slot_mass(state).sum(axis=0))


def memory_usage_by_head(state: MemoryUsage) -> list[dict[str, float]]:
  """`memory_usage_report` of each head.

  Args:
    state: Reads by head; of others there is one report.

  Returns:
    The reports.

  Raises:
    ValueError: If a head read nothing.
  """
  counts = np.atleast_2d(np.asarray(state.counts, np.float64))
  return [_report(*pair) for pair in zip(counts, slot_mass(state))]


def slot_mass(state: MemoryUsage) -> np.ndarray:
  """Weight of each slot by head, `[H, N]` in float64; H is 1 without heads."""
  parts = np.asarray(state.mass, np.float64), np.asarray(state.lost, np.float64)
  return np.atleast_2d(parts[0] + parts[1])


def sum_usage(parts: Iterable[MemoryUsage]) -> MemoryUsage:
  """All reads of several layers of one table, on the host."""
  parts = list(parts)
  mass = sum(np.asarray(p.mass, np.float64) for p in parts)
  lost = sum(np.asarray(p.lost, np.float64) for p in parts)
  counts = sum(np.asarray(p.counts, np.uint64) for p in parts)
  return MemoryUsage(counts, mass, lost)


def measure_usage(
  reads_of: Callable[[Any, Any], Mapping[str, Any]],
  variables: Any,
  batches: Iterable[Any],
  num_slots: int,
  heads: int | None = None,
) -> dict[str, MemoryUsage]:
  """What every memory of a model reads in all of some batches.

  Args:
    reads_of: Maps variables and a batch to the collection 'reads' that a model
      leaves, in its evaluation mode; it is compiled.
    variables: Of the model, wherever they lie.
    batches: Inputs; one after the other, none is kept.
    num_slots: N.
    heads: See `memory_usage_init`.

  Returns:
    Path of the memory's module, with slashes -> reads. PEER's two tables are
    read alike and count once.

  Raises:
    ValueError: If there is no batch, or the model has no memory.

  Example:
    >>> from jaxpapers.product_keys import ProductKeyMemory
    >>> memory = ProductKeyMemory(n_keys=8, k_dim=8, heads=2, knn=4)
    >>> x = jnp.ones((5, 16))
    >>> variables = memory.init(jax.random.key(0), x, train=False)
    >>> def reads_of(variables, x):
    ...   _, state = memory.apply(variables, x, train=False, mutable='reads')
    ...   return state['reads']
    >>> state = measure_usage(reads_of, variables, [x, x], 64)['']
    >>> int(state.counts.sum())  # 2 batches of 5 tokens with 2 heads of 4.
    80
  """
  empty = memory_usage_init(num_slots, heads)

  @jax.jit
  def update(totals, variables, batch):
    found = _weighted_reads(reads_of(variables, batch))
    totals = totals or dict.fromkeys(found, empty)
    return {
      name: memory_usage_update(totals[name], read['ids'], read['weights'])
      for name, read in found.items()
    }

  totals: dict[str, MemoryUsage] = {}
  seen = 0
  for batch in batches:
    totals = update(totals, variables, batch)
    seen += 1
  if not totals:
    raise ValueError(
      'reads_of leaves no reads; expected a model with a memory, and the'
      " collection 'reads' mutable."
      if seen
      else 'batches is empty; expected one or more.'
    )
  return totals


def _weighted_reads(tree, path=()) -> dict[str, Mapping[str, jax.Array]]:
  """Path of a module -> ids and weights."""
  found: dict[str, Mapping[str, jax.Array]] = {}
  for name, node in tree.items():
    if 'ids' not in node:
      found |= _weighted_reads(node, (*path, name))
    elif 'weights' in node:
      found['/'.join(path)] = node
  return found


def _report(counts: np.ndarray, mass: np.ndarray) -> dict[str, float]:
  """The numbers of one list of slots."""
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
