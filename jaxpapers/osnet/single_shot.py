"""The CMC curve of one gallery image per identity: exactly, or by draws.

CUHK03's first protocol draws one image of each identity into the gallery, ten
times, from a generator that is not seeded. The expectation of that curve can be
computed: for one match at a distance d, identity j outranks it with the
probability f_j, the share of j's images that are nearer, independently of the
others. The number of those that do has a Poisson binomial distribution.
"""

from typing import Any

import jax
import numpy as np

from jaxpapers.osnet import identities, metrics

_ROWS = 4096  # Matches to go through at once.


def single_shot_cmc(
  dist: Any,
  q_pids: Any,
  g_pids: Any,
  q_cams: Any,
  g_cams: Any,
  *,
  exact: bool = True,
  key: jax.Array | None = None,
  repeats: int = 10,
  max_rank: int = 20,
  ties: str = 'stable',
) -> np.ndarray:
  """CMC curve when the gallery has one random image of each identity.

  As in `rank_metrics`, images of a query's identity and camera, and junk, are
  left out first, and queries without a match do not count.

  Args:
    dist: Distances, [Q, G].
    q_pids: Identities of the queries, integers [Q].
    g_pids: Of the gallery, [G].
    q_cams: Cameras of the queries, [Q].
    g_cams: Of the gallery, [G].
    exact: Computes the expectation. False draws `repeats` galleries for each
      query, as torchreid does.
    key: A typed key for the draws.
    repeats: How many.
    max_rank: Length of the curve.
    ties: See `rank_metrics`.

  Returns:
    float64 [max_rank].

  Raises:
    ValueError: As `rank_metrics`; or draws are wanted without a key.
    TypeError: Labels are not integers.

  Example:
    >>> dist = np.array([[0.1, 0.5, 0.3]], np.float32)
    >>> single_shot_cmc(dist, [1], [2, 2, 1], [0], [1, 1, 1], max_rank=2)
    array([0.5, 1. ])
  """
  if not exact and key is None:
    raise ValueError(
      'exact is False and key is None; expected a key: jax.random.key(seed).'
    )
  if max_rank < 1 or repeats < 1:
    raise ValueError(
      f'max_rank is {max_rank} and repeats {repeats}; expected positive'
      ' numbers.'
    )
  identities.check_ties(ties)
  dist = metrics.check_features(dist, 'dist')
  labels = identities.check_labels(
    *np.shape(dist), q_pids, g_pids, q_cams, g_cams
  )
  kept = labels.g_pids != -1
  labels = labels._replace(
    g_pids=labels.g_pids[kept], g_cams=labels.g_cams[kept]
  )
  dist = np.asarray(dist)[:, kept]
  each = curves(dist, labels, max_rank, ties, None if exact else key, repeats)
  if not len(each):
    raise ValueError('No query has a match under another camera.')
  return each.mean(axis=0)


def curves(
  dist: np.ndarray,
  labels: identities.Labels,
  max_rank: int,
  ties: str,
  key: jax.Array | None,
  repeats: int = 10,
) -> np.ndarray:
  """The curve of each valid query.

  Args:
    dist: [Q, G].
    labels: Of them.
    max_rank: Length of the curves.
    ties: See `rank_metrics`.
    key: None for the expectation.
    repeats: Draws otherwise.

  Returns:
    float64 [number of valid queries, max_rank].
  """
  order = np.argsort(labels.g_pids, kind='stable')
  pids, cams = labels.g_pids[order], labels.g_cams[order]
  starts = np.flatnonzero(np.r_[True, pids[1:] != pids[:-1]])
  if key is not None:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  out, shares = [], []
  for row, pid, cam in zip(dist, labels.q_pids, labels.q_cams, strict=True):
    row = row[order]
    own = pids == pid
    kept = ~(own & (cams == cam))
    matches = np.flatnonzero(own & kept)
    if not len(matches):
      continue
    ahead = kept & _ahead(row, order, matches, ties) & ~own
    number = np.add.reduceat(kept, starts, dtype=np.int64)
    if key is not None:
      out.append(_drawn(rng, ahead, kept, own, number, repeats, max_rank))
      continue
    nearer = np.add.reduceat(ahead, starts, axis=1, dtype=np.int64)
    shares.append(nearer / np.maximum(number, 1))
    if sum(map(len, shares)) > _ROWS:
      out += _expected(shares, max_rank)
      shares = []
  if shares:
    out += _expected(shares, max_rank)
  return np.array(out).reshape(-1, max_rank)


def _expected(shares, max_rank):
  """Mean over the matches of each query, for many queries at once."""
  curve = _at_most(np.concatenate(shares), max_rank)
  ends = np.cumsum([len(share) for share in shares])
  return [part.mean(axis=0) for part in np.split(curve, ends[:-1])]


def _ahead(row, index, matches, ties):
  """Whether each image [G] comes before each match: [P, G]."""
  limit = row[matches][:, None]
  if ties == 'optimistic':
    return row < limit
  if ties == 'pessimistic':
    return row <= limit
  earlier = index < index[matches][:, None]
  return (row < limit) | ((row == limit) & earlier)


def _at_most(share, max_rank):
  """P(at most k of independent events happen), k = 0 .. max_rank - 1.

  Args:
    share: Probabilities of the events, [P, n].
    max_rank: How many k.

  Returns:
    float64 [P, max_rank].
  """
  happen = np.zeros((len(share), max_rank))
  happen[:, 0] = 1
  # Events that cannot happen change nothing, and are most.
  for p in share.T[(share > 0).any(axis=0)]:
    p = p[:, None]
    moved = happen * p
    happen -= moved
    happen[:, 1:] += moved[:, :-1]
  return np.minimum(np.cumsum(happen, axis=1), 1)


def _drawn(rng, ahead, kept, own, number, repeats, max_rank):
  """Mean curve of galleries with one drawn image of each identity."""
  # The n-th kept image of each identity, by a position among all kept ones.
  place = np.flatnonzero(kept)
  before = np.cumsum(number) - number
  some = np.flatnonzero(number)
  match = np.cumsum(own & kept) - 1  # Row of `ahead` of an own image.
  curve = np.zeros(max_rank)
  for _ in range(repeats):
    draw = before[some] + rng.integers(number[some])
    chosen = place[draw]
    mine = chosen[own[chosen]][0]
    rank = ahead[match[mine], chosen].sum()
    curve += np.arange(max_rank) >= rank
  return curve / repeats
