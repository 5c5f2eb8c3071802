"""Whether two images show the same person: ROC curve, equal error rate."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxpapers.osnet import identities, metrics


@dataclasses.dataclass(frozen=True, eq=False)
class VerificationResult:
  """A receiver operating characteristic, by distance.

  Unpacks to the first five: `fpr, tpr, thresholds, eer, auc = result`.

  Attributes:
    fpr: float64 [n], share of pairs of different people that are accepted.
    tpr: float64 [n], share of pairs of the same person that are.
    thresholds: float64 [n]: pairs at most so far apart are accepted.
    eer: Error rate where both kinds of errors are equally frequent.
    auc: Area under the curve.
    eer_threshold: The distance there.
    num_positive: Pairs of the same person.
    num_negative: Pairs of different people.
  """

  fpr: np.ndarray
  tpr: np.ndarray
  thresholds: np.ndarray
  eer: float
  auc: float
  eer_threshold: float
  num_positive: int
  num_negative: int

  def __iter__(self) -> Iterator[Any]:
    return iter((self.fpr, self.tpr, self.thresholds, self.eer, self.auc))


def verification_roc(
  dist: Any, q_pids: Any, g_pids: Any, q_cams: Any, g_cams: Any
) -> VerificationResult:
  """ROC curve of all pairs of a query and a gallery image.

  Pairs of one identity and one camera are left out, as in ranking, and so is
  junk.

  Args:
    dist: Distances, [Q, G].
    q_pids: Identities of the queries, integers [Q].
    g_pids: Of the gallery, [G].
    q_cams: Cameras of the queries, [Q].
    g_cams: Of the gallery, [G].

  Returns:
    The curve, with its corners only: at most two points for each pair of the
    same person.

  Raises:
    ValueError: Shapes that do not fit, NaN, or no pair of one of the kinds.
    TypeError: Labels are not integers.

  Example:
    >>> dist = np.array([[0.1, 0.4, 0.3, 0.2]])
    >>> labels = ([1], [1, 1, 2, 3], [0], [1, 1, 1, 1])
    >>> verification_roc(dist, *labels).auc
    0.5
  """
  dist = metrics.check_features(dist, 'dist')
  labels = identities.check_labels(
    *np.shape(dist), q_pids, g_pids, q_cams, g_cams
  )
  dist = np.asarray(dist)
  positive, negative = [], []
  for row, pid, cam in zip(dist, labels.q_pids, labels.q_cams, strict=True):
    own = labels.g_pids == pid
    positive.append(row[own & (labels.g_cams != cam)])
    negative.append(row[~own & (labels.g_pids != -1)])
  positive = np.sort(np.concatenate(positive))
  negative = np.sort(np.concatenate(negative))
  if not len(positive) or not len(negative):
    raise ValueError(
      f'There are {len(positive)} pairs of the same person and'
      f' {len(negative)} of different people; expected some of both.'
    )
  level, number = np.unique(positive, return_counts=True)
  right = np.cumsum(number) / len(positive)
  wrong = np.searchsorted(negative, level, 'right') / len(negative)
  # Just before each level: as many right pairs as at the one before.
  wrong_before = np.searchsorted(negative, level, 'left') / len(negative)
  right_before = np.concatenate([[0], right[:-1]])
  below = np.nextafter(level, -np.inf)
  fpr = np.concatenate(
    [[0], np.stack([wrong_before, wrong], axis=1).ravel(), [1]]
  )
  tpr = np.concatenate(
    [[0], np.stack([right_before, right], axis=1).ravel(), [1]]
  )
  last = max(positive[-1], negative[-1])
  thresholds = np.concatenate(
    [[-np.inf], np.stack([below, level], axis=1).ravel(), [last]]
  ).astype(np.float64)
  eer, threshold = _equal_error(fpr, tpr, thresholds)
  return VerificationResult(
    fpr=fpr,
    tpr=tpr,
    thresholds=thresholds,
    eer=eer,
    auc=float(np.trapezoid(tpr, fpr)),
    eer_threshold=threshold,
    num_positive=len(positive),
    num_negative=len(negative),
  )


def _equal_error(fpr, tpr, thresholds):
  """Where fpr = 1 - tpr, between the two points on either side."""
  gap = fpr - (1 - tpr)
  after = int(np.argmax(gap >= 0))
  before = after - 1  # gap begins at -1.
  share = -gap[before] / (gap[after] - gap[before])
  eer = fpr[before] + share * (fpr[after] - fpr[before])
  low, high = thresholds[before], thresholds[after]
  threshold = low + share * (high - low) if np.isfinite(low) else high
  return float(eer), float(threshold)


def threshold_at_fpr(result: VerificationResult, fpr: float) -> float:
  """The distance up to which pairs may be accepted.

  Args:
    result: From `verification_roc`, of people that the model has not seen.
    fpr: The largest share of pairs of different people to accept, in [0, 1].

  Returns:
    The least threshold that accepts as many pairs of the same person as any
    that keeps it; minus infinity if none accepts any.

  Raises:
    ValueError: It is no share.

  Example:
    >>> dist = np.array([[0.1, 0.4, 0.3, 0.2]])
    >>> labels = ([1], [1, 1, 2, 3], [0], [1, 1, 1, 1])
    >>> threshold_at_fpr(verification_roc(dist, *labels), 0)
    0.1
  """
  if not 0 <= fpr <= 1:
    raise ValueError(f'fpr is {fpr}; expected a share in [0, 1].')
  best = np.flatnonzero((result.fpr <= fpr) & (result.tpr > 0))
  if not len(best):
    return -np.inf
  # The first of those with the same rates: as near as can be.
  last = best[-1]
  same = result.tpr[best] == result.tpr[last]
  return float(result.thresholds[best[same][0]])


def tpr_at_fpr(result: VerificationResult, fpr: float) -> float:
  """Share of pairs of the same person accepted at a false positive rate.

  Args:
    result: From `verification_roc`.
    fpr: The rate, in [0, 1].

  Returns:
    The largest that the curve has at most there.

  Example:
    >>> dist = np.array([[0.1, 0.4, 0.3, 0.2]])
    >>> labels = ([1], [1, 1, 2, 3], [0], [1, 1, 1, 1])
    >>> tpr_at_fpr(verification_roc(dist, *labels), 0.5)
    0.5
  """
  if not 0 <= fpr <= 1:
    raise ValueError(f'fpr is {fpr}; expected a share in [0, 1].')
  return float(result.tpr[result.fpr <= fpr].max())
