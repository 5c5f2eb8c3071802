"""k-reciprocal re-ranking (Zhong et al. 2017) and query expansion.

Each image is described by a sparse vector over all images: its k-reciprocal
neighbours, extended, with the weights exp(-distance). The Jaccard distance of
two such vectors is mixed with the original distance. Everything here works on
the non-zero entries only, in arrays of fixed shape.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.osnet import metrics, retrieval


class _Sparse(NamedTuple):
  """Rows with few entries.

  Attributes:
    index: int32 [n, width], ascending; `n` where a row has fewer entries.
    value: float32 [n, width]; 0 there.
  """

  index: jax.Array
  value: jax.Array


def k_reciprocal_rerank(
  qq: Any,
  qg: Any,
  gg: Any,
  k1: int = 20,
  k2: int = 6,
  lam: float = 0.3,
  *,
  squared_input: bool = True,
) -> np.ndarray:
  """Re-ranked distances from the distances of all pairs.

  The same numbers as the implementation that everybody uses. It squares its
  input although that is squared already; so does this, unless told otherwise.
  `k_reciprocal_rerank_features` and `k_reciprocal_rows` need no array of all
  pairs.

  Args:
    qq: Distances among the queries, [Q, Q].
    qg: Distances of queries to the gallery, [Q, G].
    gg: Distances among the gallery, [G, G].
    k1: Neighbours that count as reciprocal.
    k2: Neighbours whose vectors are averaged; 1 for none.
    lam: Weight of the original distance, in [0, 1].
    squared_input: Squares the distances, as the original does with what it is
      given. Set it to False where they are not to be squared (once more).

  Returns:
    float32 [Q, G].

  Raises:
    ValueError: Shapes that do not fit, NaN, fewer images than k1 + 1, or a
      parameter out of its range.

  Example:
    >>> x = np.arange(8.0)[:, None] ** 2
    >>> d = (x - x.T) ** 2
    >>> new = k_reciprocal_rerank(d[:2, :2], d[:2, 2:], d[2:, 2:], k1=3, k2=2)
    >>> new.shape
    (2, 6)
  """
  qq, qg, gg = (jnp.asarray(x, jnp.float32) for x in (qq, qg, gg))
  for name, array in (('qq', qq), ('qg', qg), ('gg', gg)):
    metrics.check_features(array, name)
  queries, gallery = qg.shape
  if qq.shape != (queries, queries) or gg.shape != (gallery, gallery):
    raise ValueError(
      f'qq, qg, gg have shapes {qq.shape}, {qg.shape}, {gg.shape}; expected'
      ' [Q, Q], [Q, G] and [G, G].'
    )
  _check_parameters(k1, k2, lam, queries + gallery)
  neighbours, dist = _dense_neighbours(qq, qg, gg, k1, squared_input)
  kept, masses = _expand(neighbours, k1)
  width = int(masses.max())
  index = _compact(kept, width)
  value = _weights(
    index, jnp.take_along_axis(dist, jnp.minimum(index, len(dist) - 1), axis=1)
  )
  rows = _average(_Sparse(index, value), neighbours[:, :k2], k2)
  candidates = jnp.broadcast_to(
    jnp.arange(queries, queries + gallery, dtype=jnp.int32), (queries, gallery)
  )
  jaccard = _jaccard(rows, jnp.arange(queries), candidates)
  return np.asarray((1 - lam) * jaccard + lam * dist[:queries, queries:])


def k_reciprocal_rerank_features(
  qf: Any,
  gf: Any,
  k1: int = 20,
  k2: int = 6,
  lam: float = 0.3,
  *,
  candidates: int | None = None,
  metric: str = 'euclidean',
  squared_input: bool = True,
  block: int = 16384,
) -> tuple[np.ndarray, np.ndarray]:
  """Re-ranks the nearest gallery images of each query, from features.

  Memory grows with the number of images times k1, not with its square: what is
  kept of each image are its neighbours and its sparse vector.

  Args:
    qf: Features of the queries, [Q, dim].
    gf: Features of the gallery, [G, dim].
    k1: See `k_reciprocal_rerank`.
    k2: See there.
    lam: See there.
    candidates: How many of the nearest images of each query get a new place;
      all by default. Those after them cannot move up.
    metric: 'euclidean' or 'cosine'.
    squared_input: See `k_reciprocal_rerank`; Euclidean distances are squared
      before.
    block: Images at once, where distances are computed.

  Returns:
    New distances, float32 [Q, candidates], ascending, and gallery indices,
    int32 [Q, candidates].

  Raises:
    ValueError: See `k_reciprocal_rerank`.

  Example:
    >>> x = np.arange(8, dtype=np.float32)[:, None] ** 2
    >>> dist, index = k_reciprocal_rerank_features(x[:2], x[2:], k1=3, k2=2)
    >>> index[0, :2].tolist()
    [0, 1]
  """
  metrics.check_metric(metric)
  qf, gf = metrics.check_both(qf, gf)
  queries, gallery = len(qf), len(gf)
  _check_parameters(k1, k2, lam, queries + gallery)
  candidates = gallery if candidates is None else candidates
  if not 1 <= candidates <= gallery:
    raise ValueError(
      f'candidates is {candidates}; expected 1 to {gallery}, the size of the'
      ' gallery.'
    )
  features, largest, rows = _described(
    qf, gf, k1, k2, metric, squared_input, block
  )
  distance = functools.partial(
    _normalized, features, largest, metric=metric, squared_input=squared_input
  )
  chosen = jnp.asarray(
    retrieval.nearest(features[:queries], gf, candidates, metric=metric)[1]
  )
  of_queries = jnp.arange(queries)
  jaccard = _jaccard(rows, of_queries, chosen + queries)
  new = (1 - lam) * jaccard + lam * distance(of_queries, chosen + queries)
  new, chosen = jax.lax.sort((new, chosen), num_keys=2)
  return np.asarray(new), np.asarray(chosen)


def k_reciprocal_rows(
  qf: Any,
  gf: Any,
  k1: int = 20,
  k2: int = 6,
  lam: float = 0.3,
  *,
  metric: str = 'euclidean',
  squared_input: bool = True,
  block: int = 16384,
) -> Callable[[Any], np.ndarray]:
  """Re-ranked distances to the whole gallery, of a few queries at a time.

  For galleries whose distances to all queries are too many to be held, as
  `rank_metrics_from_distance` takes such a function.

  Args:
    qf: See `k_reciprocal_rerank_features`, as all that follow.
    gf: See there.
    k1: See there.
    k2: See there.
    lam: See there.
    metric: See there.
    squared_input: See there.
    block: See there.

  Returns:
    A function from numbers of queries, int [n], to float32 [n, G].

  Raises:
    ValueError: See `k_reciprocal_rerank`.

  Example:
    >>> x = np.arange(8, dtype=np.float32)[:, None] ** 2
    >>> rows = k_reciprocal_rows(x[:2], x[2:], k1=3, k2=2)
    >>> rows([1]).shape
    (1, 6)
  """
  metrics.check_metric(metric)
  qf, gf = metrics.check_both(qf, gf)
  _check_parameters(k1, k2, lam, len(qf) + len(gf))
  described = _described(qf, gf, k1, k2, metric, squared_input, block)

  def rows(chosen):
    chosen = jnp.asarray(np.atleast_1d(np.arange(len(qf))[chosen]))
    return np.asarray(
      _whole_rows(*described, chosen, lam, len(qf), metric, squared_input)
    )

  return rows


@functools.partial(
  jax.jit, static_argnames=('queries', 'metric', 'squared_input')
)
def _whole_rows(
  features, largest, rows, chosen, lam, queries, metric, squared_input
):
  """New distances of some queries to the gallery, [n, G]."""
  dist = metrics.pairwise_distance(features[chosen], features[queries:], metric)
  most = largest[chosen][:, None]
  if squared_input:
    dist, most = dist * dist, most * most
  dist = dist / jnp.where(most > 0, most, 1)
  everyone = jnp.arange(queries, len(features), dtype=jnp.int32)

  def of_query(query):
    return _jaccard(rows, query[None], everyone[None])[0]

  return (1 - lam) * jax.lax.map(of_query, chosen) + lam * dist


def _described(qf, gf, k1, k2, metric, squared_input, block):
  """All features, the largest distance of each image, its sparse vector."""
  features = jnp.concatenate([jnp.asarray(qf), jnp.asarray(gf)])
  _, neighbours = retrieval.nearest(
    features, features, k1 + 1, metric=metric, block=block
  )
  largest = _largest(features, metric, block)
  neighbours = jnp.asarray(neighbours)
  kept, masses = _expand(neighbours, k1)
  index = _compact(kept, int(masses.max()))
  dist = _normalized(
    features,
    largest,
    jnp.arange(len(features)),
    index,
    metric=metric,
    squared_input=squared_input,
  )
  rows = _Sparse(index, _weights(index, dist))
  return features, largest, _average(rows, neighbours[:, :k2], k2)


def alpha_query_expansion(
  qf: Any, gf: Any, k: int = 5, alpha: float = 3.0, metric: str = 'cosine'
) -> tuple[jax.Array, jax.Array]:
  """Replaces each feature by a weighted mean of its neighbours'.

    f_i' = 1/k sum_{j in k nearest of i} max(cos(f_i, f_j), 0)^alpha f_j

  among queries and gallery together, itself included (Radenovic et al. 2018;
  the means are of the features as they are, as in fast-reid).

  Args:
    qf: Features of the queries, [Q, dim].
    gf: Features of the gallery, [G, dim].
    k: Neighbours; itself is one.
    alpha: Exponent of the similarity.
    metric: What neighbours are near by.

  Returns:
    New features, [Q, dim] and [G, dim].

  Raises:
    ValueError: k is not in 1 .. Q + G, shapes that do not fit, or NaN
      (outside jit).

  Example:
    >>> q, g = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [2.0, 0.0]])
    >>> new, _ = alpha_query_expansion(q, g, k=2)
    >>> new.tolist()
    [[1.5, 0.0]]
  """
  metrics.check_metric(metric)
  qf, gf = metrics.check_both(qf, gf)
  if not 1 <= k <= len(qf) + len(gf):
    raise ValueError(
      f'k is {k}; expected 1 to {len(qf) + len(gf)}, the number of all images.'
    )
  features = jnp.concatenate([jnp.asarray(qf), jnp.asarray(gf)])
  new = _expanded(features, k, alpha, metric)
  return new[: len(qf)], new[len(qf) :]


@functools.partial(jax.jit, static_argnames=('k', 'metric'))
def _expanded(features, k, alpha, metric):
  unit = metrics.l2_normalize(features)
  of = unit if metric == 'cosine' else features

  def expand(row):
    own, direction = row
    dist = metrics.pairwise_distance(own[None], of, metric)[0]
    _, index = jax.lax.top_k(-dist, k)
    similarity = jnp.sum(unit[index] * direction, axis=-1)
    weight = jnp.maximum(similarity, 0) ** alpha
    return jnp.sum(weight[:, None] * features[index], axis=0) / k

  return jax.lax.map(expand, (of, unit), batch_size=256)


def _check_parameters(k1, k2, lam, number):
  if not 1 <= k1 < number:
    raise ValueError(
      f'k1 is {k1}; expected 1 to {number - 1}: there are {number} images with'
      ' the queries, and each needs k1 others.'
    )
  if not 1 <= k2 <= k1 + 1:
    raise ValueError(f'k2 is {k2}; expected 1 to k1 + 1 = {k1 + 1}.')
  if not 0 <= lam <= 1:
    raise ValueError(f'lam is {lam}; expected a weight in [0, 1].')


@functools.partial(jax.jit, static_argnames=('k1', 'squared_input'))
def _dense_neighbours(qq, qg, gg, k1, squared_input):
  """Neighbours, [n, k1 + 1], and distances over each column's largest."""
  dist = jnp.concatenate(
    [
      jnp.concatenate([qq, qg], axis=1),
      jnp.concatenate([qg.T, gg], axis=1),
    ]
  )
  if squared_input:
    dist = dist * dist
  largest = jnp.max(dist, axis=0)
  dist = (dist / jnp.where(largest > 0, largest, 1)).T
  _, neighbours = jax.lax.top_k(-dist, k1 + 1)
  return neighbours.astype(jnp.int32), dist


@functools.partial(jax.jit, static_argnames=('metric', 'block'))
def _largest(features, metric, block):
  """Distance of each image to the one that is farthest from it, [n]."""
  size = max(1, block**2 // 4 // len(features))

  def farthest(row):
    return jnp.max(metrics.pairwise_distance(row[None], features, metric))

  return jax.lax.map(farthest, features, batch_size=min(size, 1024))


@functools.partial(jax.jit, static_argnames=('metric', 'squared_input'))
def _normalized(features, largest, rows, index, metric, squared_input):
  """Distances of each row to the images of its list, as the dense ones."""

  def of_row(arguments):
    row, own = arguments
    others = features[jnp.minimum(own, len(features) - 1)]
    dist = metrics.pairwise_distance(features[row][None], others, metric)[0]
    most = largest[row]
    if squared_input:
      dist, most = dist * dist, most * most
    return dist / jnp.where(most > 0, most, 1)

  # The features of a list are copied: up to 128 MiB of float32 at once.
  size = (1 << 25) // max(index.shape[1] * features.shape[1], 1)
  return jax.lax.map(of_row, (rows, index), batch_size=min(max(size, 1), 64))


@functools.partial(jax.jit, static_argnames=('k1',))
def _expand(neighbours, k1):
  """Indices of the extended k-reciprocal sets.

  Args:
    neighbours: int32 [n, k1 + 1], of each image, the nearest first.
    k1: See `k_reciprocal_rerank`.

  Returns:
    int32 [n, (k1 + 1)(h + 2)], ascending, `n` where there is nothing, and the
    number of the others, [n].
  """
  nothing = len(neighbours)
  near = round(k1 / 2) + 1  # Python rounds half to even, as the original.
  reciprocal = _reciprocal(neighbours)
  close = _reciprocal(neighbours[:, :near])

  def of_image(own):
    forward, mutual = own
    other, other_mutual = neighbours[forward][:, :near], close[forward]
    shared = jnp.any(
      (other[:, :, None] == forward) & mutual, axis=2
    )  # [k1 + 1, near]
    common = jnp.sum(shared & other_mutual, axis=1)
    number = jnp.sum(other_mutual, axis=1)
    # common > 2/3 number, in whole numbers.
    enough = mutual & (3 * common > 2 * number)
    added = jnp.where(enough[:, None] & other_mutual, other, nothing)
    index = jnp.where(mutual, forward, nothing)
    index = jnp.sort(jnp.concatenate([index, added.ravel()]))
    again = jnp.concatenate([jnp.zeros(1, bool), index[1:] == index[:-1]])
    index = jnp.sort(jnp.where(again, nothing, index))
    return index, jnp.sum(index < nothing)

  return jax.lax.map(of_image, (neighbours, reciprocal), batch_size=256)


def _reciprocal(neighbours):
  """Whether an image is among the neighbours of each of its own, [n, k]."""

  def of_image(arguments):
    image, own = arguments
    return jnp.any(neighbours[own] == image, axis=1)

  everyone = jnp.arange(len(neighbours), dtype=neighbours.dtype)
  return jax.lax.map(of_image, (everyone, neighbours), batch_size=1024)


def _compact(index, width):
  return index[:, :width]


@jax.jit
def _weights(index, dist):
  """exp(-distance), with the sum of one, of the entries that there are."""
  value = jnp.where(index < len(index), jnp.exp(-dist), 0)
  total = jnp.sum(value, axis=1, keepdims=True)
  # Of many equal images some are not among their own neighbours: no entries.
  return value / jnp.where(total > 0, total, 1)


def _average(rows, neighbours, k2):
  """Mean of the rows of the k2 nearest images of each."""
  if k2 == 1:
    return rows
  rows, number = _mean_rows(rows, neighbours)
  width = int(number.max())
  return _Sparse(_compact(rows.index, width), _compact(rows.value, width))


@jax.jit
def _mean_rows(rows, neighbours):
  nothing = len(rows.index)

  def of_image(own):
    index = rows.index[own].ravel()
    value = rows.value[own].ravel() / len(own)
    index, value = jax.lax.sort((index, value), num_keys=1)
    new = jnp.concatenate([jnp.ones(1, bool), index[1:] != index[:-1]])
    new &= index < nothing
    place = jnp.cumsum(new) - 1
    place = jnp.where(index < nothing, place, len(index))
    total = jnp.zeros_like(value).at[place].add(value, mode='drop')
    found = jnp.full_like(index, nothing).at[place].set(index, mode='drop')
    return found, total, jnp.sum(new)

  index, value, number = jax.lax.map(of_image, neighbours, batch_size=64)
  return _Sparse(index, value), number


@jax.jit
def _jaccard(rows, queries, candidates):
  """Jaccard distances of each query's vector to those of its candidates.

  Args:
    rows: Vectors of all images; each sums to 1.
    queries: int32 [Q].
    candidates: int32 [Q, C].

  Returns:
    float32 [Q, C]: 1 - s / (2 - s) with s the sum of the smaller entries.
  """

  def of_query(arguments):
    query, others = arguments
    dense = jnp.zeros(len(rows.index) + 1)
    dense = dense.at[rows.index[query]].set(rows.value[query])
    own = dense[rows.index[others]]
    smaller = jnp.sum(jnp.minimum(own, rows.value[others]), axis=1)
    return 1 - smaller / (2 - smaller)

  return jax.lax.map(of_query, (queries, candidates))
