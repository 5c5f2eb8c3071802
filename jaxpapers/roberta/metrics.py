"""Accuracy, F1, Matthews' and the two correlations: what GLUE reports.

On the host in float64, equal to scikit-learn and scipy. Counts and moments can
be kept batch by batch: `Confusion` and `Moments` are sums, and add up.
"""

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Confusion:
  """How often each class was taken for each; adds up over batches.

  Attributes:
    counts: int64 [classes, classes], rows are labels, columns predictions.

  Example:
    >>> first = Confusion.of([1, 0], [1, 1])
    >>> both = first + Confusion.of([1], [1], first.num_classes)
    >>> round(both.accuracy, 3), both.f1
    (0.667, 0.8)
  """

  counts: np.ndarray

  @classmethod
  def of(
    cls, predictions: Any, labels: Any, num_classes: int | None = None
  ) -> 'Confusion':
    """Counts pairs.

    Args:
      predictions: Class numbers, [n].
      labels: Class numbers, [n].
      num_classes: How many classes there are; by default as many as occur.

    Returns:
      The counts.

    Raises:
      ValueError: If lengths differ, or a number is no class.
    """
    predictions = _classes(predictions, 'predictions')
    labels = _classes(labels, 'labels')
    _same_length(predictions, labels)
    largest = max(labels.max(initial=0), predictions.max(initial=0))
    size = int(largest) + 1 if num_classes is None else num_classes
    if largest >= size:
      raise ValueError(
        f'class {largest} among predictions and labels; expected 0 to'
        f' num_classes - 1, which is {size - 1}.'
      )
    counts = np.bincount(labels * size + predictions, minlength=size * size)
    return cls(counts.reshape(size, size))

  def __add__(self, other: 'Confusion') -> 'Confusion':
    return Confusion(self.counts + other.counts)

  @property
  def num_classes(self) -> int:
    """Number of classes."""
    return len(self.counts)

  @property
  def accuracy(self) -> float:
    """Part of the predictions that are right; NaN of none."""
    return _ratio(np.trace(self.counts), self.counts.sum(), math.nan)

  @property
  def f1(self) -> float:
    """F1 of class 1; 0 where nothing is or was called positive."""
    if self.num_classes > 2:
      raise ValueError(
        f'f1 is that of two classes; there are {self.num_classes}. Use'
        ' f1_macro.'
      )
    return self._f1_of(1) if self.num_classes > 1 else 0.0

  @property
  def f1_macro(self) -> float:
    """Mean over the classes that occur of the F1 of each."""
    seen = np.flatnonzero(self.counts.sum(0) + self.counts.sum(1))
    return _ratio(sum(self._f1_of(i) for i in seen), len(seen), math.nan)

  @property
  def matthews(self) -> float:
    """Matthews' correlation, of any number of classes; 0 if one is constant."""
    # Python's integers: products of counts leave 64 bits.
    counts = self.counts.tolist()
    total = sum(map(sum, counts))
    right = sum(counts[i][i] for i in range(len(counts)))
    labels = [sum(row) for row in counts]
    predicted = [sum(column) for column in zip(*counts)]
    covariance = right * total - sum(t * p for t, p in zip(labels, predicted))
    of_labels = total**2 - sum(t * t for t in labels)
    of_predictions = total**2 - sum(p * p for p in predicted)
    if not of_labels or not of_predictions:
      return 0.0
    # One root: of equal numbers it is exact.
    return covariance / math.sqrt(of_labels * of_predictions)

  def _f1_of(self, index) -> float:
    both = self.counts[index].sum() + self.counts[:, index].sum()
    return _ratio(2 * self.counts[index, index], both, 0.0)


@dataclasses.dataclass(frozen=True)
class Moments:
  """First and second moments of pairs of numbers; adds up over batches.

  Sums of squares are those of deviations, merged exactly, so that a large mean
  costs no digits.

  Attributes:
    count: Number of pairs.
    mean: float64 [2].
    products: Sums of products of deviations, float64 [2, 2].

  Example:
    >>> halves = Moments.of([1, 2], [3, 4]) + Moments.of([5], [9])
    >>> round(halves.pearson, 3)
    0.996
  """

  count: int
  mean: np.ndarray
  products: np.ndarray

  @classmethod
  def of(cls, predictions: Any, labels: Any) -> 'Moments':
    """Moments of predictions [n] and labels [n]."""
    pairs = np.stack(_pairs(predictions, labels))
    if not pairs.size:
      return cls(0, np.zeros(2), np.zeros((2, 2)))
    mean = pairs.mean(1)
    deviations = pairs - mean[:, None]
    return cls(pairs.shape[1], mean, deviations @ deviations.T)

  def __add__(self, other: 'Moments') -> 'Moments':
    count = self.count + other.count
    if not count:
      return self
    step = other.mean - self.mean
    products = self.products + other.products
    products = products + np.outer(step, step) * (
      self.count * other.count / count
    )
    return Moments(count, self.mean + step * (other.count / count), products)

  @property
  def pearson(self) -> float:
    """Pearson's correlation; NaN if either is constant, as in scipy."""
    first, second = float(self.products[0, 0]), float(self.products[1, 1])
    if not first or not second:
      return math.nan
    scale = math.sqrt(first * second)
    return float(np.clip(self.products[0, 1] / scale, -1, 1))


def accuracy(predictions: Any, labels: Any) -> float:
  """Part of the predictions that are equal to the labels.

  Args:
    predictions: Class numbers, [n].
    labels: Class numbers, [n].

  Returns:
    The accuracy, in [0, 1].

  Raises:
    ValueError: If lengths differ, or there is nothing.

  Example:
    >>> accuracy([0, 1, 1, 2], [0, 1, 2, 2])
    0.75
  """
  return _confusion(predictions, labels).accuracy


def f1_binary(predictions: Any, labels: Any) -> float:
  """F1 of class 1, `2 tp / (2 tp + fp + fn)`; 0 where that is 0 / 0.

  Args:
    predictions: 0 or 1, [n].
    labels: 0 or 1, [n].

  Returns:
    The F1, in [0, 1].

  Raises:
    ValueError: If lengths differ, there is nothing, or there are more classes.

  Example:
    >>> f1_binary([1, 1, 0], [1, 0, 0])
    0.6666666666666666
  """
  return _confusion(predictions, labels).f1


def f1_macro(predictions: Any, labels: Any) -> float:
  """Mean of the F1 of each class that occurs.

  Args:
    predictions: Class numbers, [n].
    labels: Class numbers, [n].

  Returns:
    The mean, in [0, 1].

  Raises:
    ValueError: If lengths differ, or there is nothing.

  Example:
    >>> f1_macro([0, 2], [0, 2])
    1.0
  """
  return _confusion(predictions, labels).f1_macro


def matthews(predictions: Any, labels: Any) -> float:
  """Matthews' correlation coefficient, CoLA's metric.

  0 if all predictions, or all labels, are equal.

  Args:
    predictions: Class numbers, [n]; of any number of classes.
    labels: Class numbers, [n].

  Returns:
    The coefficient, in [-1, 1].

  Raises:
    ValueError: If lengths differ, or there is nothing.

  Example:
    >>> matthews([1, 1, 0, 0], [1, 1, 0, 0]), matthews([1, 1], [0, 1])
    (1.0, 0.0)
  """
  return _confusion(predictions, labels).matthews


def pearson(predictions: Any, labels: Any) -> float:
  """Pearson's correlation coefficient.

  Args:
    predictions: Numbers, [n].
    labels: Numbers, [n].

  Returns:
    The coefficient; NaN if all predictions, or all labels, are equal.

  Raises:
    ValueError: If lengths differ, or a number is not finite.

  Example:
    >>> round(pearson([1, 2, 3], [2, 4, 6.5]), 4)
    0.9979
  """
  predictions, labels = _pairs(predictions, labels)
  if _constant(predictions) or _constant(labels):
    return math.nan
  # The scale does not matter, but squares of very small numbers are 0.
  predictions = predictions / np.abs(predictions).max()
  return Moments.of(predictions, labels / np.abs(labels).max()).pearson


def spearman(predictions: Any, labels: Any) -> float:
  """Spearman's rank correlation; equal numbers share the mean of their ranks.

  Args:
    predictions: Numbers, [n].
    labels: Numbers, [n].

  Returns:
    The coefficient; NaN if all predictions, or all labels, are equal.

  Raises:
    ValueError: If lengths differ, or a number is not finite.

  Example:
    >>> spearman([1, 5, 2], [10, 1000, 100])
    1.0
  """
  predictions, labels = _pairs(predictions, labels)
  return pearson(average_ranks(predictions), average_ranks(labels))


def average_ranks(values: Any) -> np.ndarray:
  """Ranks from 1, equal values at the mean of the ranks that they take.

  Args:
    values: Numbers, [n].

  Returns:
    float64 [n].

  Example:
    >>> average_ranks([7, 3, 7]).tolist()
    [2.5, 1.0, 2.5]
  """
  _, inverse, counts = np.unique(
    np.asarray(values), return_inverse=True, return_counts=True
  )
  last = np.cumsum(counts)
  return (last - (counts - 1) / 2)[inverse.reshape(-1)]


_METRICS = {
  'accuracy': accuracy,
  'f1': f1_binary,
  'f1_macro': f1_macro,
  'matthews': matthews,
  'pearson': pearson,
  'spearman': spearman,
}
_MEANS = {
  'accuracy_and_f1': ('accuracy', 'f1'),
  'pearson_and_spearman': ('pearson', 'spearman'),
}


def compute(
  names: tuple[str, ...], predictions: Any, labels: Any
) -> dict[str, float]:
  """Several metrics by name.

  Args:
    names: Of accuracy, f1, f1_macro, matthews, pearson, spearman; and of
      accuracy_and_f1 and pearson_and_spearman, the means that GLUE averages.
    predictions: Class numbers or numbers, [n].
    labels: The same, [n].

  Returns:
    Name -> value.

  Raises:
    ValueError: If there is no such metric, or the arrays do not fit.

  Example:
    >>> compute(('accuracy', 'matthews'), [1, 0], [1, 0])
    {'accuracy': 1.0, 'matthews': 1.0}
  """
  values = {}
  for name in names:
    parts = _MEANS.get(name, (name,))
    if parts[0] not in _METRICS:
      raise ValueError(
        f'metric {name!r}; expected one of {", ".join((*_METRICS, *_MEANS))}.'
      )
    found = [_METRICS[part](predictions, labels) for part in parts]
    values[name] = sum(found) / len(found)
  return values


def _confusion(predictions, labels):
  confusion = Confusion.of(predictions, labels)
  if not confusion.counts.sum():
    raise ValueError('predictions are empty; expected one for each label.')
  return confusion


def _classes(values, name):
  values = np.asarray(values)
  if not values.size:
    values = values.astype(np.int64)
  if values.ndim != 1 or values.dtype.kind not in 'iub':
    raise ValueError(
      f'{name} are {values.dtype} {list(values.shape)}; expected class numbers,'
      ' integers [n]. Take the argmax of logits first.'
    )
  if values.min(initial=0) < 0:
    raise ValueError(
      f'{name} reach down to {values.min()}; expected class numbers from 0.'
    )
  return values.astype(np.int64)


def _pairs(predictions, labels):
  found = []
  for name, values in (('predictions', predictions), ('labels', labels)):
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
      raise ValueError(f'{name} are {list(values.shape)}; expected [n].')
    if not np.isfinite(values).all():
      bad = np.flatnonzero(~np.isfinite(values))[0]
      raise ValueError(
        f'{name}[{bad}] is {values[bad]}; expected finite numbers.'
      )
    found.append(values)
  _same_length(*found)
  return found


def _same_length(predictions, labels):
  if len(predictions) != len(labels):
    raise ValueError(
      f'there are {len(predictions)} predictions and {len(labels)} labels;'
      ' expected as many.'
    )


def _constant(values):
  # By the values: their deviations from a rounded mean need not be 0.
  return not len(values) or bool((values == values[0]).all())


def _ratio(numerator, denominator, otherwise):
  return float(numerator / denominator) if denominator else otherwise
