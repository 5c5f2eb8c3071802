"""How well attributes of pedestrians are recognised (PA-100K's measures)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class AttributeMetrics(NamedTuple):
  """Means over attributes, and means over images.

  Attributes:
    mA: Mean over attributes of the mean of the shares of positive and negative
      images that are told right.
    accuracy: Mean over images of |P and L| / |P or L|, with P the predicted and
      L the true attributes.
    precision: Mean over images of |P and L| / |P|.
    recall: Mean over images of |P and L| / |L|.
    F1: Of these two means.
    per_attribute: [A], what `mA` is the mean of; NaN where it is not defined.
  """

  mA: jax.Array
  accuracy: jax.Array
  precision: jax.Array
  recall: jax.Array
  F1: jax.Array
  per_attribute: jax.Array


def attribute_metrics(
  prob: Any, label: Any, threshold: float = 0.5
) -> AttributeMetrics:
  """Compares probabilities with labels.

  Where the original divides by zero, this does not: an attribute that all
  images have, or none, is left out of `mA`, which is NaN if no other is there;
  an image for which nothing is predicted has the precision 0, and one without
  attributes the recall 0 (and the accuracy 0 if nothing is predicted either).

  Args:
    prob: Probabilities, [n, A], floating.
    label: 0 or 1, [n, A].
    threshold: Above it, an attribute is predicted.

  Returns:
    The measures; under jit as arrays.

  Raises:
    ValueError: Shapes differ or are empty; outside jit, values are none of
      those expected.

  Example:
    >>> m = attribute_metrics([[0.9, 0.2], [0.6, 0.7]], [[1, 0], [0, 1]])
    >>> float(m.mA), float(m.accuracy)
    (0.75, 0.75)
  """
  shape = np.shape(prob)
  if len(shape) != 2 or 0 in shape or np.shape(label) != shape:
    raise ValueError(
      f'prob and label have shapes {shape} and {np.shape(label)}; expected'
      ' [n, attributes] of both, not empty.'
    )
  if not isinstance(prob, jax.core.Tracer):
    values = np.asarray(prob)
    if not ((values >= 0) & (values <= 1)).all():  # NaN is neither.
      raise ValueError(
        'prob has values outside [0, 1] or NaN; apply a sigmoid to logits.'
      )
  if not isinstance(label, jax.core.Tracer):
    if not np.isin(np.asarray(label), (0, 1)).all():
      raise ValueError('label has other values than 0 and 1.')
  predicted = jnp.asarray(prob) > threshold
  true = jnp.asarray(label) > 0.5
  hit = predicted & true
  positive, negative = jnp.sum(true, axis=0), jnp.sum(~true, axis=0)
  right = jnp.sum(hit, axis=0) / jnp.maximum(positive, 1)
  right_none = jnp.sum(~predicted & ~true, axis=0) / jnp.maximum(negative, 1)
  defined = (positive > 0) & (negative > 0)
  each = jnp.where(defined, (right + right_none) / 2, jnp.nan)

  def mean_ratio(part, whole):
    part, whole = jnp.sum(part, axis=1), jnp.sum(whole, axis=1)
    return jnp.mean(part / jnp.maximum(whole, 1))

  precision, recall = mean_ratio(hit, predicted), mean_ratio(hit, true)
  total = precision + recall
  return AttributeMetrics(
    mA=jnp.nanmean(each),
    accuracy=mean_ratio(hit, predicted | true),
    precision=precision,
    recall=recall,
    F1=2 * precision * recall / jnp.where(total > 0, total, 1),
    per_attribute=each,
  )
