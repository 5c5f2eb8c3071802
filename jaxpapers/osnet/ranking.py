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

TIES = ('stable', 'optimistic', 'pessimistic')


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
  block: int = 4096,
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
    block: How much to hold at once: about `block**2` distances (float32, so 64
      MB by default), whatever the size of the gallery.
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
  metrics.check_features(qf, 'qf')
  metrics.check_features(gf, 'gf')
  if qf.shape[1] != gf.shape[1]:
    raise ValueError(
      f'qf has {qf.shape[1]} dimensions and gf {gf.shape[1]}; expected features'
      ' of the same network.'
    )
  labels = _labels(len(qf), len(gf), q_pids, g_pids, q_cams, g_cams)
  gf, labels, junk = _without_junk(gf, labels)
  gf = jnp.asarray(gf)
  if metric == 'cosine':  # Once, not in each block.
    gf = metrics.l2_normalize(gf.astype(jnp.promote_types(gf.dtype, 'float32')))
  place = _placer(mesh, mesh_axis)
  gf = place(gf, False)

  def rows(chosen):
    return place(qf[chosen], True), gf, metric

  result = _rank(
    rows, labels, max_rank, protocol, block, ties, place, key, mesh, mesh_axis
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
  block: int = 4096,
  ties: str = 'stable',
  key: jax.Array | None = None,
) -> RankResult:
  """Ranks a gallery for every query by given distances.

  Args:
    dist: [Q, G], floating; can be a memory-mapped file.
    q_pids: As for `rank_metrics`, as all that follow.
    g_pids: See there.
    q_cams: See there.
    g_cams: See there.
    max_rank: See there.
    protocol: See there.
    block: See there.
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
  metrics.check_features(dist, 'dist')
  labels = _labels(*np.shape(dist), q_pids, g_pids, q_cams, g_cams)
  dist, labels, junk = _without_junk(dist, labels, axis=1)

  def rows(chosen):
    return jnp.asarray(dist[chosen]), None, None

  result = _rank(
    rows, labels, max_rank, protocol, block, ties, _placer(None, None), key
  )
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
      where a query has fewer.
    removed: Gallery indices that a query must not see, int32 [Q, R], or -1.
    ties: See `rank_metrics`.

  Returns:
    int32 [Q, P], ascending; the largest int32 where there is no match.

  Example:
    >>> dist = jnp.array([[0.1, 0.2, 0.3, 0.4]])
    >>> count_ahead(dist, jnp.array([[3, 1]]), jnp.array([[0]])).tolist()
    [[0, 1]]
  """
  check_ties(ties)
  at = functools.partial(jnp.take_along_axis, dist, axis=1)
  threshold = at(jnp.maximum(matches, 0))

  def ahead(other, other_index):
    """Counts others [Q, n] before each match: [Q, P]."""
    other, limit = other[:, None, :], threshold[:, :, None]
    if ties == 'optimistic':
      before = other < limit
    elif ties == 'pessimistic':
      before = other <= limit
    else:
      earlier = other_index[:, None, :] < matches[:, :, None]
      before = (other < limit) | ((other == limit) & earlier)
    return before & (other_index >= 0)[:, None, :]

  index = jnp.arange(dist.shape[1], dtype=jnp.int32)[None]
  total = jnp.sum(ahead(dist, index), axis=2, dtype=jnp.int32)
  for special in (removed, matches):
    counted = ahead(at(jnp.maximum(special, 0)), special)
    total -= jnp.sum(counted, axis=2, dtype=jnp.int32)
  nothing = jnp.iinfo(jnp.int32).max
  return jnp.sort(jnp.where(matches >= 0, total, nothing), axis=1)


def check_ties(ties: str) -> None:
  """Raises a ValueError unless this is a rule for equal distances."""
  if ties not in TIES:
    raise ValueError(f'ties is {ties!r}; expected one of {TIES}.')


@functools.partial(jax.jit, static_argnames=('metric', 'ties'))
def _count_features(qf, gf, matches, removed, metric, ties):
  return count_ahead(_distances(qf, gf, metric), matches, removed, ties)


def _distances(qf, gf, metric):
  """As `pairwise_distance`, of a gallery that has been normalised."""
  if metric == 'cosine':
    qf = metrics.l2_normalize(qf.astype(gf.dtype))
    dot = jnp.matmul(qf, gf.T, precision=jax.lax.Precision.HIGHEST)
    return 1 - dot
  return metrics.pairwise_distance(qf, gf, metric)


def _rank(
  rows: Callable,
  labels: identities.Labels,
  max_rank: int,
  rule: str,
  block: int,
  ties: str,
  place: Callable,
  key: Any,
  mesh: Any = None,
  mesh_axis: str | None = None,
) -> RankResult:
  """Ranks by the rows that a function gives for chosen queries."""
  check_ties(ties)
  if rule not in ('market1501', 'cuhk03'):
    raise ValueError(
      f"protocol is {rule!r}; expected 'market1501' or 'cuhk03'."
    )
  for name, value in (('max_rank', max_rank), ('block', block)):
    if value < 1:
      raise ValueError(f'{name} is {value}; expected a positive number.')
  num_queries, num_gallery = len(labels.q_pids), len(labels.g_pids)
  size = int(np.clip(block**2 // num_gallery, 1, num_queries))
  if mesh is not None:
    shards = mesh.shape[mesh_axis or mesh.axis_names[0]]
    size = -(-size // shards) * shards
  ap = np.full(num_queries, np.nan)
  inp = np.full(num_queries, np.nan)
  first = np.zeros(num_queries, np.int32)
  for chosen, matches, removed in _blocks(labels, size):
    padded = np.resize(chosen, size)  # The last block repeats its queries.
    left, gallery, metric = rows(padded)
    matches, removed = (
      place(jnp.asarray(np.resize(x, (size, x.shape[1]))), True)
      for x in (matches, removed)
    )
    if gallery is None:
      ahead = count_ahead(left, matches, removed, ties)
    else:
      ahead = _count_features(left, gallery, matches, removed, metric, ties)
    ahead = np.asarray(ahead)[: len(chosen)].astype(np.int64)
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
    left, gallery, metric = rows(chosen)
    if gallery is not None:
      left = _distances(left, gallery, metric)
    part = labels._replace(
      q_pids=labels.q_pids[chosen], q_cams=labels.q_cams[chosen]
    )
    if key is not None:
      key, own = jax.random.split(key)
    curves = single_shot.curves(
      np.asarray(left), part, max_rank, ties, None if key is None else own
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
      yield chosen[some], matches[some], removed[some]


def _pack(index, kept):
  """Moves the kept indices of each row to its front; -1 fills the rest."""
  width = max(int(kept.sum(axis=1).max()), 1)
  width = identities.rounded_up(width)
  order = np.argsort(~kept, axis=1, kind='stable')
  index = np.take_along_axis(np.where(kept, index, -1), order, axis=1)
  missing = max(width - index.shape[1], 0)
  index = np.pad(index, ((0, 0), (0, missing)), constant_values=-1)
  return index[:, :width].astype(np.int32)


def _labels(num_queries, num_gallery, *arrays):
  return identities.check_labels(num_queries, num_gallery, *arrays)


def _without_junk(array, labels, axis=0):
  kept = labels.g_pids != -1
  junk = int((~kept).sum())
  if junk == len(kept):
    raise ValueError('g_pids is -1 everywhere: the gallery is all junk.')
  if junk:
    array = np.compress(kept, np.asarray(array), axis=axis)
    labels = labels._replace(
      g_pids=labels.g_pids[kept], g_cams=labels.g_cams[kept]
    )
  return array, labels, junk


def _placer(mesh, mesh_axis):
  """place(array, sharded): puts it on the mesh, if there is one."""
  if mesh is None:
    return lambda array, sharded: jnp.asarray(array)
  axis = mesh_axis or mesh.axis_names[0]
  if axis not in mesh.axis_names:
    raise ValueError(
      f'mesh_axis is {axis!r}; the mesh has the axes {mesh.axis_names}.'
    )

  def place(array, sharded):
    spec = jax.sharding.PartitionSpec(axis if sharded else None)
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))

  return place
