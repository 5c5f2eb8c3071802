"""CMC, mAP and mINP, by counting instead of sorting.

The rank of a match is one more than the number of gallery images that are
nearer. A query has few matches, so counting needs a fraction of the work of a
sort, no array of indices, and the distances of a few queries at a time.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.osnet import identities, metrics, single_shot

TIES = identities.TIES
# Queries at once: fewer would read the gallery from memory too often.
_LEAST = 32


class RankResult(NamedTuple):
  """How well a gallery is ranked for each of Q queries.

  Attributes:
    cmc: float64 [max_rank]. `cmc[k - 1]` is the share of valid queries with a
      match among the first k.
    mAP: Mean of `ap` over valid queries.
    mINP: Mean of `inp` over valid queries.
    ap: float64 [Q], average precision; NaN where a query is not valid.
    inp: float64 [Q], number of matches over the rank of the last; or NaN.
    valid: bool [Q], whether the gallery holds a match of the query.
    num_valid: How many do: the denominator of all means.
    first_rank: int32 [Q], rank of the first match, from 1; 0 where none is.
    num_junk: Gallery images with identity -1, which were left out.
  """

  cmc: np.ndarray
  mAP: float
  mINP: float
  ap: np.ndarray
  inp: np.ndarray
  valid: np.ndarray
  num_valid: int
  first_rank: np.ndarray
  num_junk: int = 0


def rank_metrics(
  qf: Any,
  gf: Any,
  q_pids: Any,
  g_pids: Any,
  q_cams: Any,
  g_cams: Any,
  *,
  metric: str = 'euclidean',
  max_rank: int = 50,
  protocol: str = 'market1501',
  block: int | None = None,
  ties: str = 'stable',
  key: jax.Array | None = None,
  mesh: jax.sharding.Mesh | None = None,
  mesh_axis: str | None = None,
) -> RankResult:
  """Ranks a gallery for every query by features.

  For each query, gallery images of the same identity and the same camera are
  left out, as are those of identity -1 (junk). The others of its identity are
  the matches. Queries without any are left out of the means (`num_valid`).

    AP = mean over matches i, in order, of i / rank_i
    INP = number of matches / rank of the last

  Args:
    qf: Features of the queries, [Q, dim], floating.
    gf: Features of the gallery, [G, dim].
    q_pids: Identities, integers [Q].
    g_pids: [G]; -1 for junk. Distractors have an identity that no query has.
    q_cams: Cameras, integers [Q].
    g_cams: [G].
    metric: 'euclidean' or 'cosine'.
    max_rank: Length of the CMC curve. Where a query keeps fewer images than
      that, its last value is held.
    protocol: 'market1501', or 'cuhk03': a CMC curve that would come from one
      random gallery image of each identity, see `single_shot_cmc`.
    block: How much to hold at once: about `block**2` distances, of 32 queries
      at least. By default 2048 on CPUs (17 MB of float32) and 4096 on
      accelerators.
    ties: What of several equal distances comes first: 'stable' the one with the
      lower gallery index, 'optimistic' matches, 'pessimistic' the others.
    key: For 'cuhk03': draws as the original did, instead of the expectation.
    mesh: Shares the queries of each block among the devices of a mesh.
    mesh_axis: Of which of its axes; the first by default.

  Returns:
    The result; see there.

  Raises:
    ValueError: Shapes that do not fit, empty input, NaN in the features, an
      argument that is none of its values, or no query with a match.
    TypeError: Identities or cameras that are not integers.

  Example:
    >>> qf = np.array([[0.0], [1.0]], np.float32)
    >>> gf = np.array([[0.1], [0.2], [1.5]], np.float32)
    >>> r = rank_metrics(qf, gf, [1, 2], [3, 1, 2], [0, 0], [1, 1, 1])
    >>> r.cmc[:2].tolist(), r.mAP
    ([0.5, 1.0], 0.75)
  """
  metrics.check_metric(metric)
  qf, gf = metrics.check_both(qf, gf)
  labels = identities.check_labels(
    len(qf), len(gf), q_pids, g_pids, q_cams, g_cams
  )
  kept, labels, junk = _without_junk(labels)
  gf = jnp.asarray(gf[kept])
  if metric == 'cosine':  # Once, not in each block.
    gf = metrics.l2_normalize(gf.astype(jnp.promote_types(gf.dtype, 'float32')))
  mesh_axis, shards = _check_mesh(mesh, mesh_axis)
  if mesh is not None:
    gf = jax.device_put(gf, _sharding(mesh))

  def rows(chosen):
    return _distances(jnp.asarray(qf[chosen]), gf, metric)

  def count(chosen, matches, removed):
    queries = [np.asarray(qf[chosen]), matches, removed]
    if mesh is not None:
      queries = jax.device_put(queries, _sharding(mesh, mesh_axis))
    left, *pairs = queries
    return _count_features(left, gf, *pairs, metric, ties, mesh, mesh_axis)

  if block is None and jax.default_backend() == 'cpu':
    # Smaller blocks would stay in the cache, but the memory of each goes back
    # to the system, and getting it anew took a third of the time.
    block = 2048
  result = _rank(
    count, rows, labels, max_rank, protocol, block, ties, key, shards
  )
  return result._replace(num_junk=junk)


def rank_metrics_from_distance(
  dist: Any,
  q_pids: Any,
  g_pids: Any,
  q_cams: Any,
  g_cams: Any,
  *,
  max_rank: int = 50,
  protocol: str = 'market1501',
  block: int | None = None,
  ties: str = 'stable',
  key: jax.Array | None = None,
) -> RankResult:
  """Ranks a gallery for every query by given distances.

  Args:
    dist: [Q, G], floating; can be a memory-mapped file, or a function from
      numbers of queries, int [n], to their distances, [n, G]. As everywhere in
      JAX, float64 is compared as float32 unless `jax.enable_x64` is on.
    q_pids: As for `rank_metrics`, as all that follow.
    g_pids: See there.
    q_cams: See there.
    g_cams: See there.
    max_rank: See there.
    protocol: See there.
    block: See there; 1024 on CPUs.
    ties: See there.
    key: See there.

  Returns:
    The result.

  Raises:
    ValueError: As `rank_metrics`.
    TypeError: As `rank_metrics`.

  Example:
    >>> dist = np.array([[0.1, 0.2, 0.3]], np.float32)
    >>> r = rank_metrics_from_distance(dist, [7], [8, 7, 7], [0], [1, 1, 2])
    >>> r.ap.round(4).tolist(), r.first_rank.tolist()
    ([0.5833], [2])
  """
  if callable(dist):
    shape = len(q_pids), len(g_pids)
  else:
    dist = metrics.check_features(dist, 'dist')
    shape = np.shape(dist)
  labels = identities.check_labels(*shape, q_pids, g_pids, q_cams, g_cams)
  kept, labels, junk = _without_junk(labels)

  def rows(chosen):
    if not callable(dist):
      return jnp.asarray(dist[chosen][:, kept])
    part = metrics.check_features(dist(chosen), 'dist')
    if np.shape(part) != (len(chosen), shape[1]):
      raise ValueError(
        f'dist of {len(chosen)} queries has shape {list(np.shape(part))};'
        f' expected {[len(chosen), shape[1]]}.'
      )
    return jnp.asarray(part[:, kept])

  def count(chosen, matches, removed):
    return count_ahead(rows(chosen), matches, removed, ties)

  result = _rank(count, rows, labels, max_rank, protocol, block, ties, key)
  return result._replace(num_junk=junk)


@functools.partial(jax.jit, static_argnames=('ties',))
def count_ahead(
  dist: Any, matches: Any, removed: Any, ties: str = 'stable'
) -> jax.Array:
  """How many images that are no match come before each match.

  Under jit, with shapes of its own; `rank_metrics` calls it for block after
  block. The rank of the i-th match of a query is i + this, i from 1.

  Args:
    dist: Distances of queries to the gallery, [Q, G].
    matches: Gallery indices of the matches of each query, int32 [Q, P]; -1
      where a query has fewer, best at the end.
    removed: Gallery indices that a query must not see, int32 [Q, R], or -1.
    ties: See `rank_metrics`.

  Returns:
    int32 [Q, P], ascending; the largest int32 where there is no match.

  Example:
    >>> dist = jnp.array([[0.1, 0.2, 0.3, 0.4]])
    >>> count_ahead(dist, jnp.array([[3, 1]]), jnp.array([[0]])).tolist()
    [[0, 1]]
  """
  identities.check_ties(ties)
  limit = _at(dist, matches)
  total = _count(dist, None, limit, matches, ties)
  for special in (removed, matches):
    # Infinity is before nothing.
    other = jnp.where(special >= 0, _at(dist, special), jnp.inf)
    total -= _count(other, special, limit, matches, ties)
  nothing = jnp.iinfo(jnp.int32).max
  return jnp.sort(jnp.where(matches >= 0, total, nothing), axis=1)


def _at(dist, index):
  return jnp.take_along_axis(dist, jnp.maximum(index, 0), axis=1)


def _count(other, other_index, limit, index, ties):
  """How many of `other` [Q, n] are before each match [Q, P]; None: 0 .. n."""
  # XLA would write the comparisons of all matches to memory on CPUs; one match
  # after the other stays in the cache. GPUs want them all at once.
  return jax.lax.platform_dependent(
    other,
    other_index,
    limit,
    index,
    cpu=functools.partial(_count_in_turn, ties=ties),
    default=functools.partial(_count_at_once, ties=ties),
  )


def _ahead(other, other_index, limit, index, ties):
  """Whether images come before others, by distance and gallery index."""
  if ties == 'optimistic':
    return other < limit
  if ties == 'pessimistic':
    return other <= limit
  return (other < limit) | ((other == limit) & (other_index < index))


def _count_in_turn(other, other_index, limit, index, ties):
  everything = jnp.arange(other.shape[1], dtype=jnp.int32)

  def of_query(arguments):
    row, row_index, limits, own = arguments
    row_index = everything if row_index is None else row_index

    def of_match(i, counts):
      before = _ahead(row, row_index, limits[i], own[i], ties)
      return counts.at[i].set(jnp.sum(before, dtype=jnp.int32))

    # The matches that there are come first.
    last = jnp.max(jnp.where(own >= 0, jnp.arange(len(own)) + 1, 0))
    return jax.lax.fori_loop(0, last, of_match, jnp.zeros_like(own))

  return jax.lax.map(of_query, (other, other_index, limit, index))


def _count_at_once(other, other_index, limit, index, ties):
  if other_index is None:
    other_index = jnp.arange(other.shape[1], dtype=jnp.int32)[None]
  before = _ahead(
    other[:, None],
    other_index[:, None],
    limit[:, :, None],
    index[:, :, None],
    ties,
  )
  return jnp.sum(before, axis=2, dtype=jnp.int32)


@functools.partial(
  jax.jit, static_argnames=('metric', 'ties', 'mesh', 'mesh_axis')
)
def _count_features(
  qf, gf, matches, removed, metric, ties, mesh=None, mesh_axis=None
):
  def count(qf, gf, matches, removed):
    return count_ahead(_distances(qf, gf, metric), matches, removed, ties)

  if mesh is not None:
    rows, everything = _sharding(mesh, mesh_axis).spec, _sharding(mesh).spec
    count = jax.shard_map(
      count,
      mesh=mesh,
      in_specs=(rows, everything, rows, rows),
      out_specs=rows,
      check_vma=False,  # Loops start from zeros that are the same everywhere.
    )
  return count(qf, gf, matches, removed)


def _distances(qf, gf, metric):
  """As `pairwise_distance`, of a gallery that has been normalised."""
  if metric == 'cosine':
    qf = metrics.l2_normalize(qf.astype(gf.dtype))
    dot = jnp.matmul(qf, gf.T, precision=jax.lax.Precision.HIGHEST)
    return 1 - dot
  return metrics.pairwise_distance(qf, gf, metric)


def _rank(
  count: Callable,
  rows: Callable,
  labels: identities.Labels,
  max_rank: int,
  rule: str,
  block: int | None,
  ties: str,
  key: jax.Array | None,
  shards: int = 1,
) -> RankResult:
  """Ranks by functions of chosen queries: their counts, their distances."""
  identities.check_ties(ties)
  if rule not in ('market1501', 'cuhk03'):
    raise ValueError(
      f"protocol is {rule!r}; expected 'market1501' or 'cuhk03'."
    )
  if block is None:
    block = 1024 if jax.default_backend() == 'cpu' else 4096
  for name, value in (('max_rank', max_rank), ('block', block)):
    if value < 1:
      raise ValueError(f'{name} is {value}; expected a positive number.')
  num_queries, num_gallery = len(labels.q_pids), len(labels.g_pids)
  size = min(max(block**2 // num_gallery, _LEAST), num_queries)
  size = -(-size // shards) * shards
  ap = np.full(num_queries, np.nan)
  inp = np.full(num_queries, np.nan)
  first = np.zeros(num_queries, np.int32)
  for chosen, matches, removed in _blocks(labels, size):
    # The last block repeats its queries: no program for another shape.
    padded, matches, removed = (
      np.resize(x, (size, *x.shape[1:])) for x in (chosen, matches, removed)
    )
    ahead = np.asarray(count(padded, matches, removed), np.int64)
    ahead = ahead[: len(chosen)]
    there = ahead < np.iinfo(np.int32).max
    order = np.arange(1, ahead.shape[1] + 1)
    ranks = ahead + order
    number = there.sum(axis=1)
    ap[chosen] = np.where(there, order / ranks, 0).sum(axis=1) / number
    inp[chosen] = number / ranks[np.arange(len(chosen)), number - 1]
    first[chosen] = ranks[:, 0]
  valid = first > 0
  if not valid.any():
    raise ValueError(
      f'No query has a match: of {num_queries} queries none finds its identity'
      f' under another camera among {num_gallery} gallery images. Look at how'
      ' identities and cameras are read from file names.'
    )
  if rule == 'cuhk03':
    cmc = _single_shot_rows(rows, labels, size, max_rank, ties, key)
  else:
    cmc = np.mean(first[valid][:, None] <= np.arange(1, max_rank + 1), axis=0)
  return RankResult(
    cmc=cmc,
    mAP=float(ap[valid].mean()),
    mINP=float(inp[valid].mean()),
    ap=ap,
    inp=inp,
    valid=valid,
    num_valid=int(valid.sum()),
    first_rank=first,
  )


def _single_shot_rows(rows, labels, size, max_rank, ties, key):
  """The CMC curve of single-gallery-shot, a block of queries at a time."""
  total, number = np.zeros(max_rank), 0
  for start in range(0, len(labels.q_pids), size):
    chosen = np.arange(start, min(start + size, len(labels.q_pids)))
    part = labels._replace(
      q_pids=labels.q_pids[chosen], q_cams=labels.q_cams[chosen]
    )
    if key is not None:
      key, own = jax.random.split(key)
    curves = single_shot.curves(
      np.asarray(rows(chosen)),
      part,
      max_rank,
      ties,
      None if key is None else own,
    )
    total += curves.sum(axis=0)
    number += len(curves)
  return total / number


def _blocks(
  labels: identities.Labels, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields queries that have matches, these, and what they must not see.

  Queries with about as many images come together, so that there is little to
  fill up; the numbers are rounded, so that few programs are compiled.
  """
  same = identities.SameIdentity(labels.q_pids, labels.g_pids)
  queries = np.argsort(same.number, kind='stable')
  queries = queries[same.number[queries] > 0]
  for start in range(0, len(queries), size):
    chosen = queries[start : start + size]
    index = same.index(chosen)
    there = index >= 0
    other = labels.g_cams[index] != labels.q_cams[chosen][:, None]
    matches = _pack(index, there & other)
    some = matches[:, 0] >= 0
    if some.any():
      removed = _pack(index, there & ~other)
      width = max(matches.shape[1], removed.shape[1])
      width = identities.rounded_up(width)
      yield (
        chosen[some],
        _filled(matches[some], width),
        _filled(removed[some], width),
      )


def _pack(index, kept):
  """Moves the kept indices of each row to its front; -1 fills the rest."""
  width = max(int(kept.sum(axis=1).max()), 1)
  order = np.argsort(~kept, axis=1, kind='stable')
  index = np.take_along_axis(np.where(kept, index, -1), order, axis=1)
  return index[:, :width].astype(np.int32)


def _filled(index, width):
  missing = width - index.shape[1]
  return np.pad(index, ((0, 0), (0, missing)), constant_values=-1)


def _without_junk(labels):
  """What to keep of the gallery, its labels, and how many are left out."""
  kept = np.flatnonzero(labels.g_pids != -1)
  junk = len(labels.g_pids) - len(kept)
  if not len(kept):
    raise ValueError('g_pids is -1 everywhere: the gallery is all junk.')
  if not junk:
    return slice(None), labels, 0
  labels = labels._replace(
    g_pids=labels.g_pids[kept], g_cams=labels.g_cams[kept]
  )
  return kept, labels, junk


def _check_mesh(mesh, mesh_axis):
  """The axis of a mesh that shares the queries, and how many it has."""
  if mesh is None:
    return None, 1
  axis = mesh_axis or mesh.axis_names[0]
  if axis not in mesh.axis_names:
    raise ValueError(
      f'mesh_axis is {axis!r}; the mesh has the axes {mesh.axis_names}.'
    )
  return axis, mesh.shape[axis]


def _sharding(mesh, *axes):
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
