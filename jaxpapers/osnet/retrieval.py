"""The nearest gallery images of queries, without all distances at once."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.osnet import metrics


def nearest(
  qf: Any,
  gf: Any,
  k: int,
  *,
  metric: str = 'euclidean',
  block: int = 65536,
  query_block: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
  """The k nearest gallery images of each query.

  Goes through the gallery in blocks, which are read as they are needed: a
  memory-mapped file (`np.load(path, mmap_mode='r')`) of any size will do. A
  `jax.Array` is searched where it is, in one program.

  Args:
    qf: Features of the queries, [Q, dim].
    gf: Features of the gallery, [G, dim].
    k: How many.
    metric: 'euclidean' (squared) or 'cosine'.
    block: Gallery images at once.
    query_block: Queries at once.

  Returns:
    Distances, float32 [Q, k], ascending, and gallery indices, int32 [Q, k]. Of
    equal distances the lower index comes first.

  Raises:
    ValueError: Shapes that do not fit, NaN, distances out of the range of
      float32, or k is not in 1 .. G.

  Example:
    >>> gf = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    >>> dist, index = nearest(np.array([[2.2]], np.float32), gf, 2)
    >>> index.tolist()
    [[2, 3]]
  """
  metrics.check_metric(metric)
  qf = metrics.check_features(qf, 'qf')
  shape = np.shape(gf)
  if len(shape) != 2 or 0 in shape or shape[1] != qf.shape[1]:
    raise ValueError(
      f'gf has shape {list(shape)}; expected [G, {qf.shape[1]}], G > 0, as qf'
      f' has shape {list(qf.shape)}.'
    )
  if not jnp.issubdtype(getattr(gf, 'dtype', jnp.float32), jnp.floating):
    raise ValueError(
      f'gf is of dtype {gf.dtype}; expected floating point features.'
    )
  if not 1 <= k <= len(gf):
    raise ValueError(
      f'k is {k}; expected 1 to {len(gf)}, the size of the gallery.'
    )
  if block < 1 or query_block < 1:
    raise ValueError('block and query_block must be positive.')
  block = min(max(block, k), len(gf))
  query_block = min(query_block, len(qf))
  starts = [min(i, len(gf) - block) for i in range(0, len(gf), block)]
  queries = [
    np.resize(np.arange(i, min(i + query_block, len(qf))), query_block)
    for i in range(0, len(qf), query_block)
  ]
  if isinstance(gf, jax.Array):
    metrics.check_features(gf, 'gf')
    begin = jnp.asarray(starts, jnp.int32)
    best = [
      _through(jnp.asarray(qf[chosen]), gf, begin, k, block, metric)
      for chosen in queries
    ]
  else:
    best = _read_through([qf[q] for q in queries], gf, starts, k, block, metric)
  dist = np.concatenate([np.asarray(d) for d, _ in best])[: len(qf)]
  index = np.concatenate([np.asarray(i) for _, i in best])[: len(qf)]
  if not np.isfinite(dist).all():
    raise ValueError(
      'Distances are too large for float32: normalise the features.'
    )
  return dist, index


def _nothing(queries, k):
  return (
    jnp.full((len(queries), k), jnp.inf),
    jnp.full((len(queries), k), -1, jnp.int32),
  )


@functools.partial(jax.jit, static_argnames=('k', 'block', 'metric'))
def _through(qf, gf, starts, k, block, metric):
  """All blocks of a gallery on the device, in one program."""

  def step(best, bounds):
    start, seen = bounds
    part = jax.lax.dynamic_slice_in_dim(gf, start, block)
    return _merge(*best, qf, part, start, seen, metric), None

  ends = starts + block
  seen = jnp.concatenate([jnp.zeros(1, starts.dtype), ends[:-1]])
  return jax.lax.scan(step, _nothing(qf, k), (starts, seen))[0]


def _read_through(queries, gf, starts, k, block, metric):
  """Each block of a gallery on the host is read once."""
  best = [_nothing(own, k) for own in queries]
  seen = 0
  finite = True
  for start in starts:
    part = jnp.asarray(gf[start : start + block])
    for i, own in enumerate(queries):
      best[i] = _merge(*best[i], own, part, start, seen, metric)
    seen = start + block
    # Of the block before: its work goes on while this one is read.
    _check_block(finite, gf)
    finite = jnp.isfinite(jnp.sum(part))
  _check_block(finite, gf)
  return best


def _check_block(finite, gf):
  if not finite:  # Or too large for a sum: looks again.
    metrics.check_features(gf, 'gf')


def smallest(dist: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """The k smallest numbers of each row, ascending, and their places.

  A row is cut into groups. The k smallest numbers are in the k groups whose
  least is smallest: each of these has one that is as small, and groups of equal
  least come in their order, as do equal numbers. So two short lists are sorted,
  of about sqrt(n k) numbers each, and not the row, which is what XLA does on
  GPUs.

  Args:
    dist: [Q, n], without NaN.
    k: How many, 1 to n.

  Returns:
    [Q, k] and int32 [Q, k]; of equal numbers the first comes first.

  Raises:
    ValueError: k is not in 1 .. n.

  Example:
    >>> values, places = smallest(jnp.array([[3.0, 1.0, 2.0, 1.0]]), 3)
    >>> values.tolist(), places.tolist()
    ([[1.0, 1.0, 2.0]], [[1, 3, 2]])
  """
  rows, number = dist.shape
  if not 1 <= k <= number:
    raise ValueError(f'k is {k}; expected 1 to {number}.')
  width = math.isqrt(number // k)
  if width < 4:
    return _by_top_k(dist, k)
  width = 1 << (width.bit_length() - 1)  # Most blocks are a multiple of it.
  dist = jnp.pad(dist, ((0, 0), (0, -number % width)), constant_values=jnp.inf)
  groups = dist.reshape(rows, -1, width)
  _, chosen = jax.lax.top_k(-groups.min(2), k)
  chosen = jnp.sort(chosen, axis=1)  # Equal numbers keep their order.
  places = chosen[..., None] * width + jnp.arange(width, dtype=chosen.dtype)
  values = jnp.take_along_axis(groups, chosen[..., None], axis=1)
  negative, chosen = jax.lax.top_k(-values.reshape(rows, -1), k)
  places = jnp.take_along_axis(places.reshape(rows, -1), chosen, axis=1)
  return -negative, places


def _by_top_k(dist, k):
  negative, places = jax.lax.top_k(-dist, k)
  return -negative, places


@functools.partial(jax.jit, static_argnames=('metric',))
def _merge(dist, index, qf, gf, start, seen, metric):
  """The nearest so far and those of one more block, at `start`."""
  new = metrics.pairwise_distance(qf, gf, metric).astype(jnp.float32)
  place = start + jnp.arange(gf.shape[0], dtype=jnp.int32)
  # The last block reaches back into what has been seen, to be of their size.
  new = jnp.where(place < seen, jnp.inf, new)
  k = dist.shape[1]
  # CPUs have a top_k that does not sort.
  new, chosen = jax.lax.platform_dependent(
    new,
    cpu=functools.partial(_by_top_k, k=k),
    default=functools.partial(smallest, k=k),
  )
  dist = jnp.concatenate([dist, new], axis=1)
  index = jnp.concatenate([index, place[chosen]], axis=1)
  negative, chosen = jax.lax.top_k(-dist, k)  # Stable: those before first.
  return -negative, jnp.take_along_axis(index, chosen, axis=1)
