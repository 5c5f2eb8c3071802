"""What lists are like beside being right: coverage, diversity, novelty.

With c_i how often item i is recommended, N items, U evaluated users and k the
cutoff, as in the evaluator of Ferrari Dacrema et al. (2019):

  coverage_item         share of items that are recommended at all
  coverage_user         users with a list / all users, evaluated or not
  diversity_gini        2 sum_i (N + 1 - i) / (N + 1) c_(i) / sum c, ascending
  diversity_herfindahl  1 - sum (c_i / sum c)^2
  shannon_entropy       - sum p log2 p. The appendix prints ln; its values are
                        log2
  mean_inter_list       mean over pairs of users of 1 - common items / k
  novelty               mean over users of sum_i -log2 (pop_i / total) / N; the
                        sum is divided by the catalogue, not by the list
  average_popularity    mean of pop_i / max pop over the list
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.ranking import Lists

BEYOND = (
  'novelty',
  'average_popularity',
  'mean_inter_list',
  'diversity_herfindahl',
  'coverage_item',
  'coverage_user',
  'diversity_gini',
  'shannon_entropy',
)


def beyond_accuracy(
  lists: Lists,
  train: Interactions,
  cutoffs: Sequence[int] = (10,),
  *,
  ignore_items: Any = (),
  num_users: int | None = None,
) -> dict[str, np.ndarray]:
  """Coverage, diversity and novelty of recommendations.

  Args:
    lists: Recommendations of all evaluated users.
    train: Interactions that popularity is counted in.
    cutoffs: Where lists are cut.
    ignore_items: Items that never were candidates.
    num_users: All users, evaluated or not; None for those of `train`.

  Returns:
    Name -> float64 `[cutoffs]`.
  """
  n = train.num_items
  allowed = np.ones(n, bool)
  allowed[np.asarray(ignore_items, int)] = False
  popularity = train.item_counts().astype(np.float64)
  novelty = np.zeros(n)
  seen = popularity > 0
  novelty[seen] = -np.log2(popularity[seen] / popularity.sum()) / n
  relative = popularity / max(popularity.max(initial=0), 1)
  results: dict[str, list[float]] = {name: [] for name in BEYOND}
  users = len(lists.users)
  for cutoff in cutoffs:
    items = lists.items[:, :cutoff]
    valid = items >= 0
    lengths = valid.sum(1)
    of_all = np.bincount(items[valid], minlength=n).astype(float)
    counts = of_all[allowed]
    total = counts.sum()
    share = counts / total if total else counts
    if users and lengths.min() == lengths.max() > 0:
      # Equally long lists: one sum over items instead of many.
      popular = of_all @ relative / lengths[0] / users
    else:
      at = np.where(valid, items, 0)
      sums = np.where(valid, relative[at], 0).sum(1)
      popular = (sums / np.maximum(lengths, 1)).mean() if users else 0.0
    order = np.sort(counts)
    rank = np.arange(1, len(order) + 1)
    size = len(order)
    gini = (size + 1 - rank) / (size + 1) * order
    positive = share[share > 0]
    pairs = users * users - users
    common = ((counts**2).sum() - users * cutoff) / cutoff
    values = {
      'novelty': of_all @ novelty / max(users, 1),
      'average_popularity': popular,
      'mean_inter_list': (pairs - common) / pairs if pairs else 0.0,
      'diversity_herfindahl': 1 - (share**2).sum(),
      'coverage_item': (counts > 0).mean() if size else 0.0,
      'coverage_user': (lengths > 0).sum()
      / max(train.num_users if num_users is None else num_users, 1),
      'diversity_gini': 2 * gini.sum() / total if total else 0.0,
      'shannon_entropy': -(positive * np.log2(positive)).sum(),
    }
    for name, value in values.items():
      results[name].append(float(value))
  return {name: np.array(values) for name, values in results.items()}


def intra_list_diversity(
  lists: Lists, distances: Any, cutoff: int, *, compat: bool = False
) -> np.ndarray:
  """Mean distance between the items of each list.

  Args:
    lists: Recommendations.
    distances: Distance of items, `[num_items, num_items]`.
    cutoff: Where lists are cut.
    compat: Leave out the rows of the last item, as the original does.

  Returns:
    float64 `[users]`; 0 for lists of fewer than two items.
  """
  distances = np.asarray(distances, np.float64)
  result = np.zeros(len(lists.users))
  for row, items in enumerate(lists.items[:, :cutoff]):
    items = items[items >= 0]
    length = len(items)
    if length < 2:
      continue
    square = distances[np.ix_(items, items)]
    if compat:
      result[row] = square[:-1].sum() / (length * (length - 1))
    else:
      off = square.sum() - np.trace(square)
      result[row] = off / (length * (length - 1))
  return result
