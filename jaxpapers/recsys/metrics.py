"""Accuracy metrics of each user, at all cutoffs at once.

The definitions are those of the evaluator of Ferrari Dacrema et al. (2019); n
is the number of a user's test items and L = min(cutoff, length of the list):

  precision                 hits / L, not / cutoff
  precision_recall_min_den  hits / min(n, L)
  recall                    hits / n
  recall_truncated          hits / min(n, cutoff): Mult-VAE's authors
  hit_rate                  hits: above 1 where n > 1
  hit                       1 with a hit, else 0
  arhr                      sum over hits of 1 / rank
  mrr                       1 / rank of the first hit
  map                       sum over hits of precision there / min(n, L)
  ndcg                      DCG / DCG of all n test items, not only of `cutoff`
  ndcg_truncated            DCG / DCG of the best min(n, cutoff) test items
  ndcg_retrieved            DCG / DCG of the retrieved hits in ideal order:
                            MCRec's authors; 1 for any list that begins with all
                            its hits
  roc_auc                   within the list: 1 without negatives, 0 without hits
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.ranking import (
  Lists,
  Ranks,
  pad_pairs,
  rank_of_hits,
)

METRICS = (
  'precision',
  'precision_recall_min_den',
  'recall',
  'recall_truncated',
  'hit_rate',
  'hit',
  'arhr',
  'mrr',
  'map',
  'ndcg',
  'ndcg_truncated',
  'ndcg_retrieved',
  'roc_auc',
)
# Not means of facts about single lists: no closed form with expected ties.
SETTLED_ONLY = ('ndcg_retrieved', 'roc_auc')


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
  """Refuses names that are no metrics of users."""
  unknown = [name for name in metrics if name not in METRICS]
  if unknown:
    raise ValueError(
      f'metrics has {unknown[0]!r}; expected some of {", ".join(METRICS)}.'
    )
  return tuple(metrics)


def check_cutoffs(cutoffs: Sequence[int], most: int) -> tuple[int, ...]:
  """Refuses cutoffs that are not positive or not possible."""
  cutoffs = tuple(int(c) for c in cutoffs)
  if not cutoffs or min(cutoffs) < 1:
    raise ValueError(f'cutoffs is {cutoffs}; expected positive numbers.')
  if max(cutoffs) > most:
    raise ValueError(
      f'cutoffs has {max(cutoffs)}, but there are only {most} items to rank.'
    )
  return cutoffs


@functools.partial(jax.jit, static_argnames=('cutoffs', 'metrics'))
def rank_metrics(
  ranks: Ranks,
  total: Any,
  ideal: Any,
  ideal_at: Any,
  *,
  cutoffs: tuple[int, ...],
  metrics: tuple[str, ...] = METRICS,
) -> dict[str, jax.Array]:
  """Metrics out of ranks, under jit.

  Args:
    ranks: Of `b` users, to a depth of at least the largest cutoff or the length
      of the longest list.
    total: Test items of each user, `[b]`, 1 or more.
    ideal: DCG of all test items, `[b]`.
    ideal_at: DCG of the best `cutoff` of them, `[b, cutoffs]`.
    cutoffs: Where lists are cut.
    metrics: Names.

  Returns:
    Name -> `[b, cutoffs]`.
  """
  hit = ranks.hit
  depth = hit.shape[-1]
  position = 1 + jnp.arange(depth)
  columns = np.minimum(np.asarray(cutoffs), depth) - 1
  length = jnp.minimum(jnp.asarray(cutoffs), ranks.length[:, None])
  nonzero = jnp.maximum(length, 1)
  total = jnp.asarray(total)[:, None]

  def cut(x):
    return jnp.cumsum(x, -1)[:, columns]

  hits = cut(hit)
  discount = 1 / jnp.log2(1.0 + position)
  dcg = cut(ranks.gain * discount)
  first = jnp.concatenate([jnp.ones_like(hit[:, :1]), ranks.none[:, :-1]], -1)
  smaller = jnp.maximum(jnp.minimum(total, length), 1)
  values = {
    'precision': lambda: hits / nonzero,
    'precision_recall_min_den': lambda: hits / smaller,
    'recall': lambda: hits / total,
    'recall_truncated': lambda: hits / jnp.minimum(total, jnp.asarray(cutoffs)),
    'hit_rate': lambda: hits,
    'hit': lambda: 1 - ranks.none[:, columns],
    'arhr': lambda: cut(hit / position),
    'mrr': lambda: cut((first - ranks.none) / position),
    'map': lambda: cut(hit * (1 + ranks.before) / position) / smaller,
    'ndcg': lambda: dcg / jnp.where(ideal > 0, ideal, 1)[:, None],
    'ndcg_truncated': lambda: dcg / jnp.where(ideal_at > 0, ideal_at, 1),
    'ndcg_retrieved': lambda: _retrieved(ranks.gain, dcg, discount, columns),
    'roc_auc': lambda: _auc(hits, hit, length, cut),
  }
  return {name: values[name]() for name in metrics}


def _retrieved(gain, dcg, discount, columns):
  ideal = jnp.stack(
    [
      (jnp.sort(gain[:, : c + 1], -1)[:, ::-1] * discount[: c + 1]).sum(-1)
      for c in columns
    ],
    -1,
  )
  return dcg / jnp.where(ideal > 0, ideal, 1)


def _auc(hits, hit, length, cut):
  """Pairs of a hit and a negative below it, over all such pairs."""
  negatives = length - hits
  # For each hit: the negatives in the list minus those above it.
  position = jnp.arange(hit.shape[-1])
  above = position - (jnp.cumsum(hit, -1) - hit)
  pairs = hits * negatives
  below = pairs - cut(hit * above)
  auc = below / jnp.where(pairs > 0, pairs, 1)
  return jnp.where(negatives == 0, 1.0, jnp.where(hits == 0, 0.0, auc))


def ideal_gains(
  test: Interactions, users: np.ndarray, cutoffs: Sequence[int], graded: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """What metrics are divided by.

  Args:
    test: Test items.
    users: Rows of it.
    cutoffs: Where lists are cut.
    graded: Whether values are relevances; otherwise each counts 1.

  Returns:
    Number of test items `[b]`, DCG of all in ideal order `[b]`, and of the best
    `cutoff` of them `[b, cutoffs]`; float64.
  """
  total = test.user_counts()[users]
  depth = max(int(total.max(initial=0)), 1)
  discount = 1 / np.log2(2.0 + np.arange(depth))
  if not graded:
    sums = np.concatenate([[0], np.cumsum(discount)])
    at = [sums[np.minimum(total, c)] for c in cutoffs]
    return total, sums[total], np.stack(at, -1)
  ideal = np.zeros(len(users))
  ideal_at = np.zeros((len(users), len(cutoffs)))
  for first in range(0, len(users), 1024):
    some = users[first : first + 1024]
    gains = 2.0 ** test.to_padded(some, depth)[1].astype(np.float64) - 1
    sums = np.cumsum(-np.sort(-gains, axis=1) * discount, axis=1)
    ideal[first : first + 1024] = sums[:, -1]
    columns = np.minimum(cutoffs, depth) - 1
    ideal_at[first : first + 1024] = sums[:, columns]
  return total, ideal, ideal_at


_MASK_BYTES = 1 << 29


def hits_of_lists(
  lists: Lists, test: Interactions, graded: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Whether each recommendation is a test item, and its gain; `[b, k]`."""
  valid = lists.items >= 0
  if jax.default_backend() != 'cpu' and not graded:
    # A mask of users and items is laid out, of so many users at a time.
    rows = max(1, _MASK_BYTES // max(test.num_items, 1))
    hits = [np.zeros((0, lists.items.shape[1]), bool)]
    for first in range(0, len(lists.users), rows):
      part = slice(first, first + rows)
      users = lists.users[part]
      at = pad_pairs([test.pairs_of(users)], len(users))
      hits.append(np.asarray(_look_up(lists.items[part], at, test.num_items)))
    hit = np.concatenate(hits)
    return hit, hit.astype(np.float64)
  keys = lists.users[:, None].astype(np.int64) * test.num_items + lists.items
  known = test.keys()
  at = np.searchsorted(known, keys)
  at = np.minimum(at, max(len(known) - 1, 0))
  hit = valid & (known[at] == keys) if len(known) else np.zeros_like(valid)
  if not graded:
    return hit, hit.astype(np.float64)
  gain = 2.0 ** test.value[at].astype(np.float64) - 1
  return hit, np.where(hit, gain, 0)


@functools.partial(jax.jit, static_argnums=2)
def _look_up(items, pairs, n):
  """Whether each item is among the pairs of its row; -1 is not."""
  mask = jnp.zeros((items.shape[0], n), bool).at[pairs].set(True, mode='drop')
  found = jnp.take_along_axis(mask, jnp.maximum(items, 0), 1)
  return found & (items >= 0)


def evaluate(
  lists: Lists,
  test: Interactions,
  cutoffs: Sequence[int] = (10,),
  metrics: Sequence[str] = METRICS,
  idcg: str = 'all',
  *,
  graded: bool = False,
  block: int = 8192,
) -> dict[str, np.ndarray]:
  """Metrics of recommendations, for each user.

  Args:
    lists: Recommendations, as long as the largest cutoff or complete.
    test: Test items. Users without any are refused.
    cutoffs: Where lists are cut.
    metrics: Some of `METRICS`. Both NDCGs are there, under names of their own.
    idcg: What 'ndcg' divides by: the DCG of 'all' test items, as in the study,
      or of the best min(n, cutoff), 'truncated': then it is what is otherwise
      called 'ndcg_truncated'.
    graded: Values of `test` are relevances (gain 2^r - 1); otherwise each
      counts 1.
    block: Users at a time.

  Returns:
    Name -> float64 `[users, cutoffs]`.

  Raises:
    ValueError: A cutoff or metric is impossible, a user has no test items, or
      lists are shorter than a cutoff.
  """
  metrics = check_metrics(metrics)
  if idcg not in ('all', 'truncated'):
    raise ValueError(f"idcg is {idcg!r}; expected 'all' or 'truncated'.")
  asked = metrics
  if idcg == 'truncated':
    metrics = tuple(
      dict.fromkeys('ndcg_truncated' if m == 'ndcg' else m for m in metrics)
    )
  cutoffs = check_cutoffs(cutoffs, test.num_items)
  depth = lists.items.shape[1]
  if max(cutoffs) > depth and (lists.items[:, -1] >= 0).any():
    raise ValueError(
      f'cutoffs has {max(cutoffs)}, but lists end after {depth} items.'
    )
  users = np.asarray(lists.users)
  empty = int((test.user_counts()[users] == 0).sum())
  if empty:
    raise ValueError(
      f'{empty} users of lists have no items in test. Leave them out: their'
      ' metrics are undefined.'
    )
  results = []
  for first in range(0, len(users), block):
    part = Lists(*(x[first : first + block] for x in lists))
    hit, gain = hits_of_lists(part, test, graded)
    scale = ideal_gains(test, part.users, cutoffs, graded)
    with jax.enable_x64(True):
      ranks = rank_of_hits(hit, gain, (part.items >= 0).sum(1))
      values = rank_metrics(ranks, *scale, cutoffs=cutoffs, metrics=metrics)
    results.append({name: np.asarray(x) for name, x in values.items()})
  found = join(results, metrics, len(cutoffs))
  if idcg == 'truncated' and 'ndcg' in asked:
    found['ndcg'] = found['ndcg_truncated']
  return {name: found[name] for name in asked}


def join(
  results: Sequence[dict[str, np.ndarray]],
  metrics: Sequence[str],
  num_cutoffs: int,
) -> dict[str, np.ndarray]:
  """Puts the blocks of some results together."""
  if not results:
    return {name: np.zeros((0, num_cutoffs)) for name in metrics}
  return {
    name: np.concatenate([part[name] for part in results]) for name in metrics
  }
