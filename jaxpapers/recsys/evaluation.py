"""The protocols: rank all items, or the test items among stored negatives."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxpapers.recsys import data as data_lib
from jaxpapers.recsys import metrics as metrics_lib
from jaxpapers.recsys import models, numpy_ties, ranking
from jaxpapers.recsys.beyond_accuracy import beyond_accuracy
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.ranking import Lists

USER_METRICS = metrics_lib.METRICS


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Results of one model on one test set.

  Attributes:
    users: Evaluated users, int `[u]`: those with test items.
    cutoffs: Where lists were cut.
    per_user: Metric -> float64 `[u, cutoffs]`.
    beyond: Metric of all lists together -> float64 `[cutoffs]`.
    report: What was counted on the way: users left out, items dropped, ties.
    lists: The recommendations.
  """

  users: np.ndarray
  cutoffs: tuple[int, ...]
  per_user: Mapping[str, np.ndarray]
  beyond: Mapping[str, np.ndarray]
  report: Mapping[str, int]
  lists: Lists

  def mean(self, metric: str, cutoff: int) -> float:
    """Mean over users; 'f1' and those beyond accuracy too.

    F1 is the harmonic mean of mean precision and mean recall.

    Raises:
      ValueError: The metric or the cutoff was not evaluated.
    """
    if cutoff not in self.cutoffs:
      raise ValueError(f'cutoff is {cutoff}; there is {self.cutoffs}.')
    column = self.cutoffs.index(cutoff)
    if metric in self.beyond:
      return float(self.beyond[metric][column])
    if metric == 'f1':
      p, r = self.mean('precision', cutoff), self.mean('recall', cutoff)
      return 2 * p * r / (p + r) if p + r else 0.0
    if metric not in self.per_user:
      names = ', '.join((*self.per_user, *self.beyond))
      raise ValueError(f'metric is {metric!r}; there is {names}.')
    return float(self.per_user[metric][:, column].mean())

  def means(self) -> dict[str, dict[int, float]]:
    """All metrics: name -> cutoff -> mean."""
    names = [*self.per_user, *self.beyond]
    if {'precision', 'recall'} <= set(self.per_user):
      names.append('f1')
    return {
      name: {cutoff: self.mean(name, cutoff) for cutoff in self.cutoffs}
      for name in names
    }


def evaluate_model(
  model: Any,
  train: Interactions,
  test: Interactions,
  cutoffs: Sequence[int] = (10,),
  *,
  metrics: Sequence[str] | None = None,
  negatives: Any = None,
  exclude_seen: bool = True,
  ties: str = 'index',
  graded: bool = False,
  min_ratings: int = 1,
  ignore_users: Any = (),
  ignore_items: Any = (),
  allow_overlap: bool = False,
  block: int | None = None,
  profiles: Interactions | None = None,
) -> Evaluation:
  """Evaluates a model under one of the two protocols.

  Args:
    model: What a fit function returned, or a function of users `[b]` that
      returns scores `[b, num_items]`.
    train: Profiles to score from.
    test: Test items.
    cutoffs: Where lists are cut.
    metrics: Some of `metrics.METRICS`; None for all that are defined.
    negatives: Of each test user the items to rank the test items among: ids
      `[users with test items, c]` in the order of users, or `Interactions`.
      None ranks all items.
    exclude_seen: Leave out what is in `train`, also of the candidates.
    ties: 'index', 'expected', 'optimistic' or 'pessimistic'; see
      `rank_candidates`. Beyond accuracy, lists are by index then. 'numpy' is
      the order of the study's program; see `numpy_ties`.
    graded: Values of test are relevances.
    min_ratings: Evaluate users with at least so many test items.
    ignore_users: Users to leave out.
    ignore_items: Items that are never recommended. As in the original they
      count as test items all the same.
    allow_overlap: Accept pairs that are in train and in test. They cannot be
      recommended if `exclude_seen`, but count as test items.
    block: Users at a time.
    profiles: Score from, and leave out, these instead of `train`: the known
      part of users whom training has not seen.

  Returns:
    Results of each user, and what was counted on the way.

  Raises:
    ValueError: Nothing to evaluate, an overlap that is not allowed, NaN scores,
      impossible cutoffs, unknown names, or negatives of another shape.
  """
  learnt = train
  if profiles is not None:
    train = profiles
  for name, part in (('train', learnt), ('profiles', train)):
    if part.shape != test.shape:
      raise ValueError(
        f'{name} has shape {part.shape}, test {test.shape}; expected equal'
        ' numbers of users and items.'
      )
  if graded and len(test) and test.value.min() < 0:
    raise ValueError(
      'test has negative values, which are no relevances. Drop these'
      ' interactions, or set graded=False.'
    )
  if ties not in ranking.LIST_TIES:
    raise ValueError(
      f'ties is {ties!r}; expected one of {", ".join(ranking.LIST_TIES)}.'
    )
  if metrics is None:
    metrics = [
      name
      for name in metrics_lib.METRICS
      if ties != 'expected' or name not in metrics_lib.SETTLED_ONLY
    ]
  metrics = metrics_lib.check_metrics(metrics)
  if ties == 'expected' and set(metrics) & set(metrics_lib.SETTLED_ONLY):
    raise ValueError(
      f'{", ".join(metrics_lib.SETTLED_ONLY)} are not defined for expected'
      " ties; use ties='index', 'optimistic' or 'pessimistic'."
    )
  cutoffs = metrics_lib.check_cutoffs(cutoffs, train.num_items)
  repeated = data_lib.overlap(train, test)
  if repeated.any() and not allow_overlap:
    raise ValueError(
      f'{int(repeated.sum())} pairs of test are in train too. Remove them, or'
      ' set allow_overlap=True.'
    )
  candidates = candidates_of(negatives, test)
  counts = test.user_counts()
  evaluated = counts >= max(min_ratings, 1)
  ignored = np.zeros(test.num_users, bool)
  ignored[np.asarray(ignore_users, int)] = True
  users = np.flatnonzero(evaluated & ~ignored)
  if not len(users):
    raise ValueError(
      f'no user has {max(min_ratings, 1)} test items or more: there is nothing'
      ' to evaluate.'
    )
  history = train.user_counts()[users]
  report = {
    'evaluated_users': len(users),
    'users_without_test_items': int((counts == 0).sum()),
    'users_below_min_ratings': int(((counts > 0) & ~evaluated).sum()),
    'users_without_history': int((history == 0).sum()),
    'test_items': int(counts[users].sum()),
    'test_items_unseen_in_train': int(
      (learnt.item_counts()[test.item] == 0)[np.isin(test.user, users)].sum()
    ),
    'test_pairs_in_train': int(repeated.sum()),
  }
  arguments = (model, train, test, users, cutoffs, metrics)
  options = (exclude_seen, ties, graded, ignore_items, block)
  if candidates is None and ties in ('index', 'numpy'):
    per_user, lists = _full(*arguments, *options)
  else:
    per_user, lists, more = _ranked(*arguments, candidates, *options)
    report.update(more)
  report['users_with_empty_list'] = int((lists.items[:, 0] < 0).sum())
  report['users_with_short_list'] = int((lists.items[:, -1] < 0).sum())
  beyond = beyond_accuracy(
    lists,
    learnt,
    cutoffs,
    ignore_items=ignore_items,
    num_users=train.num_users - int(ignored.sum()),
  )
  return Evaluation(users, cutoffs, per_user, beyond, report, lists)


def _full(
  model, train, test, users, cutoffs, metrics,
  exclude_seen, ties, graded, ignore_items, block,
):  # fmt: skip
  lists = ranking.rank_full(
    model,
    train,
    users,
    max(cutoffs),
    exclude_seen=exclude_seen,
    ties=ties,
    ignore_items=ignore_items,
    block=block,
  )
  return (
    metrics_lib.evaluate(lists, test, cutoffs, metrics, graded=graded),
    lists,
  )


def _ranked(
  model, train, test, users, cutoffs, metrics, candidates,
  exclude_seen, ties, graded, ignore_items, block,
):  # fmt: skip
  """Ranks some candidates, or all items with a rule for ties."""
  n = train.num_items
  results, items, values = [], [], []
  if candidates is None and block is None:
    # All items are sorted, with what belongs to them: some 200 MB.
    block = max(ranking.block_size(n) // 8, 16)
  dropped = tied = alone = 0
  if candidates is not None:
    rows = data_lib.union(candidates.binary(), test.binary())
    width = max(int(rows.user_counts()[users].max(initial=1)), 1)
    if models.scores_pairs(model):
      model = _only_candidates(model, train, rows, width)
  for part, scores in ranking.score_blocks(
    model, train, users, exclude_seen, ignore_items, block, host=True
  ):
    some = users[part]
    if candidates is None:
      ids = np.broadcast_to(np.arange(n), scores.shape)
    else:
      ids, _ = rows.to_padded(some, width)
      inside = ids < n
      if ties == 'numpy':
        listed = numpy_ties.top_items(_alone(scores, ids, inside), max(cutoffs))
      ids = np.where(inside, ids, 0)
      scores = np.take_along_axis(scores, ids, 1)
      dropped += int(((scores == -np.inf) & inside).sum())
      scores = np.where(inside, scores, -np.inf)
    found = Lists(some, np.where(scores > -np.inf, ids, -1), scores)
    hit, gain = metrics_lib.hits_of_lists(found, test, graded)
    tied += _tied(scores, hit)
    alone += int((hit.any(1) & (hit | (scores == -np.inf)).all(1)).sum())
    if ties == 'numpy':
      items.append(listed[0])
      values.append(listed[1])
      continue
    scale = metrics_lib.ideal_gains(test, some, cutoffs, graded)
    with jax.enable_x64(True):
      ranks = ranking.rank_candidates(scores, hit, ties=ties, gain=gain)
      result = metrics_lib.rank_metrics(
        ranks, *scale, cutoffs=cutoffs, metrics=metrics
      )
    results.append({name: np.asarray(x) for name, x in result.items()})
    best, value = ranking.top_items(scores, max(cutoffs))
    chosen = np.take_along_axis(ids, np.maximum(best, 0), 1)
    items.append(np.where(best >= 0, chosen, -1).astype(np.int32))
    values.append(value)
  lists = Lists(
    users,
    _widen(np.concatenate(items), max(cutoffs), -1),
    _widen(np.concatenate(values), max(cutoffs), -np.inf),
  )
  more = {'users_with_tied_test_items': tied}
  if candidates is not None:
    more['candidates_dropped_as_seen'] = dropped
    # Their test items cannot but come first.
    more['users_without_negatives'] = alone
  if ties == 'numpy':
    return (
      metrics_lib.evaluate(lists, test, cutoffs, metrics, graded=graded),
      lists,
      more,
    )
  return metrics_lib.join(results, metrics, len(cutoffs)), lists, more


def _alone(scores, ids, inside):
  """Scores of some items among all, the others at -inf."""
  result = np.full_like(scores, -np.inf)
  row, column = np.nonzero(inside)
  result[row, ids[row, column]] = scores[row, ids[row, column]]
  return result


def _only_candidates(model, train, rows, width):
  """A score function that leaves 0 where nobody looks."""

  def function(users):
    ids, _ = rows.to_padded(users, width)
    inside = ids < train.num_items
    found = models.score_candidates(
      model, train, users, np.where(inside, ids, 0)
    )
    scores = np.zeros((len(users), train.num_items), np.float32)
    places = np.nonzero(inside)
    scores[places[0], ids[places]] = np.asarray(found)[places]
    return scores

  return function


def _widen(array, width, fill):
  missing = width - array.shape[1]
  if missing <= 0:
    return array
  return np.pad(array, ((0, 0), (0, missing)), constant_values=fill)


def _tied(scores, hit):
  """Users with a test item whose score another candidate has, too."""
  order = np.argsort(scores, axis=1)
  ranked = np.take_along_axis(scores, order, 1)
  equal = (ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] > -np.inf)
  tied = np.zeros(scores.shape, bool)
  tied[:, 1:] |= equal
  tied[:, :-1] |= equal
  return int((tied & np.take_along_axis(hit, order, 1)).any(1).sum())


def candidates_of(negatives: Any, test: Interactions) -> Interactions | None:
  """Negatives as interactions; see `evaluate_model`."""
  if negatives is None or isinstance(negatives, Interactions):
    if negatives is not None and negatives.shape != test.shape:
      raise ValueError(
        f'negatives have shape {negatives.shape}; expected {test.shape}.'
      )
    return negatives
  negatives = np.asarray(negatives)
  users = np.flatnonzero(test.user_counts())
  if negatives.ndim != 2 or len(negatives) != len(users):
    raise ValueError(
      f'negatives have shape {negatives.shape}; expected one row for each of'
      f' the {len(users)} users with test items.'
    )
  return data_lib.interactions(
    np.repeat(users, negatives.shape[1]),
    negatives.ravel().astype(np.int64),
    shape=test.shape,
  )
