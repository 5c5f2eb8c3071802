"""How popularity is spread over items: the statistics of table 29."""

import numpy as np

from jaxpapers.recsys import optional
from jaxpapers.recsys.data import Interactions


def gini(counts: np.ndarray) -> float:
  """Gini index of popularity: 0 if all are equal, 1 if one has everything."""
  counts = np.sort(np.asarray(counts, np.float64)) + 1e-7
  n = len(counts)
  rank = np.arange(1, n + 1)
  return float(((2 * rank - n - 1) * counts).sum() / (n * counts.sum()))


def shannon(counts: np.ndarray) -> float:
  """Entropy of popularity, in bits."""
  counts = np.asarray(counts, np.float64)
  share = counts[counts > 0] / max(counts.sum(), 1e-300)
  return float(-(share * np.log2(share)).sum())


def herfindahl(counts: np.ndarray) -> float:
  """1 - sum of squared shares: 0 if one item has everything."""
  counts = np.asarray(counts, np.float64)
  return float(1 - ((counts / max(counts.sum(), 1e-300)) ** 2).sum())


def kendall_tau(first: np.ndarray, second: np.ndarray) -> float:
  """Kendall's tau-b between two popularities; NaN if one is constant."""
  stats = optional.load('scipy.stats')
  return float(stats.kendalltau(first, second).statistic)


def popularity_statistics(
  x: Interactions, full: Interactions | None = None
) -> dict[str, float]:
  """Statistics of the popularity of items.

  Args:
    x: Interactions.
    full: All interactions that `x` is a part of, for Kendall's tau.

  Returns:
    'max', 'mean', 'gini', 'shannon', 'herfindahl' and, with `full`,
    'kendall_tau'.
  """
  counts = x.item_counts()
  result = {
    'max': float(counts.max(initial=0)),
    'mean': float(counts.mean()) if len(counts) else 0.0,
    'gini': gini(counts),
    'shannon': shannon(counts),
    'herfindahl': herfindahl(counts),
  }
  if full is not None:
    result['kendall_tau'] = kendall_tau(counts, full.item_counts())
  return result


def describe(x: Interactions) -> dict[str, float]:
  """Sizes, density and profile lengths of a data set."""
  users, items = x.user_counts(), x.item_counts()
  active = users[users > 0]
  return {
    'users': x.num_users,
    'items': x.num_items,
    'interactions': len(x),
    'density': len(x) / max(x.num_users * x.num_items, 1),
    'users_without_interactions': int((users == 0).sum()),
    'items_without_interactions': int((items == 0).sum()),
    'median_profile': float(np.median(active)) if len(active) else 0.0,
    'longest_profile': int(users.max(initial=0)),
    'item_gini': gini(items) if len(items) else 0.0,
  }
