"""Is this split fair, and are these negatives negative?

The faults that the study found in published splits, looked for automatically:
test items that are no random sample, stored negatives that the user has, pairs
that are in training and test data, and ranks that only ties decide.
"""

import dataclasses
from typing import Any

from jaxpapers.recsys import data as data_lib
from jaxpapers.recsys import evaluation, popularity, splits
from jaxpapers.recsys.data import Interactions

# A test part may agree with the popularity of all data this much less, in
# Kendall's tau, than a random part of the same size does. Random parts differ
# from each other by less than 0.02 on the data sets of the study.
TAU_MARGIN = 0.15


@dataclasses.dataclass(frozen=True)
class SplitReport:
  """What `audit_split` found.

  Attributes:
    users: Users with test items.
    test_items: Test interactions.
    seen_negatives: Negatives that the user has in training; None without.
    negatives: All negatives; None without.
    negatives_in_test: Negatives that are test items of the user.
    overlap: Pairs in training and in test data.
    users_without_history: Users with test items but none to learn from.
    items_unseen: Test interactions with items that training has not.
    tau_train: Kendall's tau of popularity, training against all data.
    tau_test: The same of the test part.
    tau_random: The same of a random part with as many items of each user.
    train: Popularity statistics of the training part.
    test: The same of the test part.
    flags: Name -> what is wrong, in words; empty if nothing is.
  """

  users: int
  test_items: int
  seen_negatives: int | None
  negatives: int | None
  negatives_in_test: int | None
  overlap: int
  users_without_history: int
  items_unseen: int
  tau_train: float
  tau_test: float
  tau_random: float
  train: dict[str, float]
  test: dict[str, float]
  flags: dict[str, str]

  @property
  def tau(self) -> float:
    """Kendall's tau of the test part's popularity against all data."""
    return self.tau_test

  @property
  def gini(self) -> float:
    """Gini index of the test part's popularity."""
    return self.test['gini']

  @property
  def shannon(self) -> float:
    """Shannon entropy of the test part's popularity, in bits."""
    return self.test['shannon']


def audit_split(
  train: Interactions, test: Interactions, negatives: Any = None, seed: int = 0
) -> SplitReport:
  """Looks for the faults that the study found.

  Args:
    train: Training data.
    test: Test data.
    negatives: Stored negatives: ids `[users with test items, c]` in the order
      of users, or `Interactions`.
    seed: Of the random split that is compared with.

  Returns:
    Counts, statistics, and flags.

  Raises:
    ValueError: Shapes differ, or a part is empty.
  """
  if train.shape != test.shape:
    raise ValueError(
      f'train has shape {train.shape}, test {test.shape}; expected equal ones.'
    )
  for name, part in (('train', train), ('test', test)):
    if not len(part):
      raise ValueError(f'{name} is empty: there is nothing to audit.')
  overlap = data_lib.overlap(train, test)
  full = data_lib.union(train.binary(), test.binary())
  counts = test.user_counts()
  random_part = _random_part(full, counts, seed)
  tau_test, tau_random = (
    popularity.kendall_tau(part.item_counts(), full.item_counts())
    for part in (test, random_part)
  )
  statistics = popularity.popularity_statistics(train, full)
  flags = {}
  if overlap.any():
    flags['overlap'] = (
      f'{int(overlap.sum())} pairs of test are in train too: a model that'
      ' repeats the past wins.'
    )
  if tau_test < tau_random - TAU_MARGIN:
    flags['popularity_shift'] = (
      f'The test part is no random sample: its popularity agrees with all data'
      f' by tau {tau_test:.2f}, a random part of this size by'
      f' {tau_random:.2f}.'
    )
  seen = number = in_test = None
  if negatives is not None:
    given = _as_interactions(negatives, test)
    number = len(given)
    seen = int(data_lib.overlap(train, given).sum())
    in_test = int(data_lib.overlap(test, given).sum())
    if seen:
      flags['seen_negatives'] = (
        f'{seen} of {number} negatives are in train: they rank high and push'
        ' test items down unless they are left out.'
      )
    if in_test:
      flags['negatives_in_test'] = (
        f'{in_test} negatives are test items of the same user.'
      )
  history = train.user_counts()
  without = int(((counts > 0) & (history == 0)).sum())
  if without:
    flags['users_without_history'] = (
      f'{without} users have test items but nothing to learn from.'
    )
  unseen = int((train.item_counts()[test.item] == 0).sum())
  if unseen > 0.05 * len(test):
    flags['items_unseen'] = (
      f'{unseen} of {len(test)} test interactions are with items that training'
      ' has not: no collaborative method finds them but by ties.'
    )
  return SplitReport(
    users=int((counts > 0).sum()),
    test_items=len(test),
    seen_negatives=seen,
    negatives=number,
    negatives_in_test=in_test,
    overlap=int(overlap.sum()),
    users_without_history=without,
    items_unseen=unseen,
    tau_train=statistics['kendall_tau'],
    tau_test=tau_test,
    tau_random=tau_random,
    train=statistics,
    test=popularity.popularity_statistics(test, full),
    flags=flags,
  )


def _as_interactions(negatives, test):
  if isinstance(negatives, Interactions):
    return negatives
  return evaluation.candidates_of(negatives, test)


def _random_part(full, counts, seed):
  ranks = splits.random_ranks(seed, full)
  return full.select(ranks < counts[full.user])


@dataclasses.dataclass(frozen=True)
class TieReport:
  """How much of a metric is the order of equal scores.

  Attributes:
    metric: Name.
    cutoff: Where lists are cut.
    pessimistic: Test items last among equals.
    expected: Mean over all orders.
    optimistic: Test items first.
    users_tied: Users with a test item whose score another item has.
  """

  metric: str
  cutoff: int
  pessimistic: float
  expected: float
  optimistic: float
  users_tied: int


def audit_ties(
  model: Any,
  train: Interactions,
  test: Interactions,
  *,
  metric: str = 'hit_rate',
  cutoff: int = 10,
  **options: Any,
) -> TieReport:
  """A metric for all orders of equal scores.

  Args:
    model: What a fit function returned, or a score function.
    train: Profiles.
    test: Test items.
    metric: One of `metrics.METRICS`.
    cutoff: Where lists are cut.
    **options: Of `evaluate_model`.

  Returns:
    The interval, and how many users it concerns.
  """
  values, tied = {}, 0
  for ties in ('pessimistic', 'expected', 'optimistic'):
    result = evaluation.evaluate_model(
      model, train, test, (cutoff,), metrics=(metric,), ties=ties, **options
    )
    values[ties] = result.mean(metric, cutoff)
    tied = result.report['users_with_tied_test_items']
  return TieReport(metric, cutoff, **values, users_tied=tied)
