"""Losses of re-identification: of identities, of distances, of attributes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Below it the root has no useful gradient; torchreid's number.
_SMALLEST_SQUARE = 1e-12


def cross_entropy_label_smoothing(
  logits: jax.Array, labels: jax.Array, eps: float = 0.1
) -> jax.Array:
  """Cross-entropy with targets (1 - eps) onehot + eps / K, averaged.

  The true class gets its share of eps, too.

  Args:
    logits: `[B, K]`, floating.
    labels: Classes, `[B]`, integers.
    eps: What is spread over all classes; 0 for none.

  Returns:
    A scalar, float32 or wider. Under `jit`, NaN if a label is out of range.

  Raises:
    ValueError: If shapes do not fit, eps is not in [0, 1], or, outside of
      `jit`, a label is out of range.

  Example:
    >>> loss = cross_entropy_label_smoothing(jnp.zeros((1, 4)), jnp.array([2]))
    >>> round(float(loss), 3)  # log 4
    1.386
  """
  logits = _check_logits('logits', logits)
  labels = _check_labels(labels, len(logits))
  if not isinstance(eps, jax.core.Tracer) and not 0 <= eps <= 1:
    raise ValueError(f'eps is {eps}; expected 0 to 1.')
  classes = logits.shape[1]
  _check_range(labels, classes)
  log = jax.nn.log_softmax(_wide(logits))
  # Under jit a class that is none gives NaN: -1 would be the last one.
  labels = labels.astype(jnp.int32)
  labels = jnp.where(labels < 0, classes, labels)
  true = jnp.take_along_axis(log, labels[:, None], 1, mode='fill')[:, 0]
  return -((1 - eps) * true + eps * log.mean(1)).mean()


def batch_hard_triplet(
  features: jax.Array, labels: jax.Array, margin: float | str = 0.3
) -> jax.Array:
  """Triplet loss with the hardest positive and negative of each image.

    mean_a max(0, d(a, p) - d(a, n) + margin)

  d is the Euclidean distance, p the farthest image of the same identity (a
  itself, if there is no other), n the closest of another one.

  Args:
    features: `[B, D]`, floating; not normalised in torchreid.
    labels: Identities, `[B]`, integers.
    margin: A number, or 'soft' for log(1 + exp(d(a, p) - d(a, n))).

  Returns:
    A scalar, float32 or wider. Under `jit`, images without a negative count as
    zero.

  Raises:
    ValueError: If shapes do not fit, the margin is another text, or, outside
      of `jit`, all labels are the same.

  Example:
    >>> x = jnp.array([[0.0], [1.0], [3.0]])
    >>> loss = batch_hard_triplet(x, jnp.array([0, 0, 1]), margin=2.0)
    >>> round(float(loss), 3)
    0.333
  """
  features = _check_logits('features', features)
  labels = _check_labels(labels, len(features))
  if isinstance(margin, str) and margin != 'soft':
    raise ValueError(f"margin is {margin!r}; expected a number or 'soft'.")
  if not isinstance(labels, jax.core.Tracer):
    if len(np.unique(np.asarray(labels))) < 2:
      raise ValueError(
        'labels has a single identity, so that there is no negative; expected'
        ' two or more in a batch. A sampler of identities sees to that.'
      )
  distance = _euclidean(_wide(features))
  same = labels[:, None] == labels[None]
  positive = jnp.max(jnp.where(same, distance, -jnp.inf), 1)
  negative = jnp.min(jnp.where(same, jnp.inf, distance), 1)
  # Not inf: zero times its gradient would be NaN.
  some = ~same.all(1)
  gap = positive - jnp.where(some, negative, 0)
  if margin == 'soft':
    loss = jax.nn.softplus(gap)
  else:
    loss = jax.nn.relu(gap + margin)
  return jnp.where(some, loss, 0).mean()


def mutual_learning(teacher: jax.Array, student: jax.Array) -> jax.Array:
  """Cross-entropy of the student to what a teacher says (deep mutual learning).

    - mean_b sum_k softmax(p)_bk log(softmax(q)_bk + 1e-8)

  Args:
    teacher: p, logits `[B, K]`, a constant: gets no gradient.
    student: q, logits `[B, K]`.

  Returns:
    A scalar, float32 or wider.

  Raises:
    ValueError: If shapes differ.

  Example:
    >>> p = jnp.zeros((1, 2))
    >>> round(float(mutual_learning(p, p)), 3)
    0.693
  """
  teacher = _check_logits('teacher', teacher)
  student = _check_logits('student', student)
  if jnp.shape(student) != jnp.shape(teacher):
    raise ValueError(
      f'student has shape {jnp.shape(student)}; expected that of teacher,'
      f' {jnp.shape(teacher)}.'
    )
  p = jax.lax.stop_gradient(jax.nn.softmax(_wide(teacher)))
  q = jax.nn.softmax(_wide(student))
  return -(p * jnp.log(q + 1e-8)).sum(1).mean()


def weighted_bce(
  logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
  """Binary cross-entropy of attributes, each with its weight, averaged.

  Args:
    logits: `[B, A]`.
    labels: 0 or 1, `[B, A]`.
    weights: `[A]`, as of `attribute_weights`; all 1 by default.

  Returns:
    A scalar, float32 or wider.

  Raises:
    ValueError: If shapes do not fit.

  Example:
    >>> float(weighted_bce(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.zeros(2)))
    0.0
  """
  logits = _check_logits('logits', logits)
  if jnp.shape(labels) != jnp.shape(logits):
    raise ValueError(
      f'labels has shape {jnp.shape(labels)}; expected that of logits,'
      f' {jnp.shape(logits)}.'
    )
  logits = _wide(logits)
  labels = jnp.asarray(labels, logits.dtype)
  # log(1 + exp(-z)) of the side that the label is on.
  loss = jax.nn.softplus(logits) - labels * logits
  if weights is not None:
    if jnp.shape(weights) != logits.shape[1:]:
      raise ValueError(
        f'weights has shape {jnp.shape(weights)}; expected one for each of'
        f' {logits.shape[1]} attributes.'
      )
    loss = loss * jnp.asarray(weights)
  return loss.mean()


def attribute_weights(labels: Any) -> np.ndarray:
  """exp(-r) for each attribute, r the share of images that have it.

  Args:
    labels: 0 or 1, `[images, A]`, of the training set.

  Returns:
    `[A]`, float32: rare attributes weigh more.

  Raises:
    ValueError: If there are no images.

  Example:
    >>> attribute_weights([[1, 0], [1, 0]]).round(3).tolist()
    [0.36800000071525574, 1.0]
  """
  labels = np.asarray(labels, np.float64)
  if labels.ndim != 2 or not len(labels):
    raise ValueError(
      f'labels has shape {labels.shape}; expected [images, attributes] of one'
      ' image or more.'
    )
  return np.exp(-labels.mean(0)).astype(np.float32)


def circle(
  features: jax.Array,
  labels: jax.Array,
  margin: float = 0.25,
  scale: float = 64.0,
) -> jax.Array:
  """Circle loss over all pairs of a batch (Sun et al. 2020, equation 6).

    softplus(logsumexp_n scale a_n (s_n - m)
             + logsumexp_p scale a_p (1 - m - s_p))

  with cosines s, and weights a_n = [s_n + m]+, a_p = [1 + m - s_p]+ that are
  constants for the gradient; one such term for each image, averaged.

  Args:
    features: `[B, D]`; normalised here.
    labels: Identities, `[B]`.
    margin: m.
    scale: gamma of the paper.

  Returns:
    A scalar, float32 or wider. Images without a positive or without a negative
    count as zero.

  Raises:
    ValueError: If shapes do not fit.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    >>> round(float(circle(x, jnp.array([0, 0, 1, 1]))), 3)
    0.036
  """
  features = _check_logits('features', features)
  labels = _check_labels(labels, len(features))
  x = _wide(features)
  square = jnp.square(x).sum(1, keepdims=True)
  x = x * jax.lax.rsqrt(jnp.maximum(square, _SMALLEST_SQUARE))
  cosine = _products(x)
  same = labels[:, None] == labels[None]
  positives = same & ~jnp.eye(len(x), dtype=bool)
  weight_p = jax.lax.stop_gradient(jax.nn.relu(1 + margin - cosine))
  weight_n = jax.lax.stop_gradient(jax.nn.relu(cosine + margin))
  towards = scale * weight_p * (1 - margin - cosine)
  away = scale * weight_n * (cosine - margin)
  both = positives.any(1) & ~same.all(1)
  # A finite number: the gradient of a logsumexp of nothing is NaN.
  lowest = jnp.finfo(x.dtype).min / 4
  terms = jax.nn.softplus(
    jax.nn.logsumexp(jnp.where(positives, towards, lowest), 1)
    + jax.nn.logsumexp(jnp.where(same, lowest, away), 1)
  )
  return jnp.where(both, terms, 0).mean()


def _euclidean(x):
  """Distances of rows, as torchreid's loss has them."""
  square = jnp.square(x).sum(1)
  squared = square[:, None] + square[None] - 2 * _products(x)
  # Clipped before the root: its gradient at 0 is infinite.
  # What is not a number stays so, that a run stops.
  tiny = squared <= _SMALLEST_SQUARE
  return jnp.sqrt(jnp.where(tiny, _SMALLEST_SQUARE, squared))


def _products(x):
  # The default of TPUs, bfloat16, is too coarse for small distances.
  return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _array(x):
  return x if hasattr(x, 'dtype') else np.asarray(x)


def _check_logits(name, x):
  x = _array(x)
  if jnp.ndim(x) != 2 or 0 in jnp.shape(x):
    raise ValueError(
      f'{name} has shape {jnp.shape(x)}; expected two axes, images first.'
    )
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f'{name} is {x.dtype}; expected floating.')
  return x


def _check_labels(labels, rows):
  labels = _array(labels)
  if jnp.shape(labels) != (rows,):
    raise ValueError(
      f'labels has shape {jnp.shape(labels)}; expected one for each of {rows}'
      ' images.'
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(f'labels is {labels.dtype}; expected integers.')
  return labels


def _check_range(labels, classes):
  if isinstance(labels, jax.core.Tracer):
    return
  values = np.asarray(labels)
  if values.min() < 0 or values.max() >= classes:
    raise ValueError(
      f'labels has values from {values.min()} to {values.max()}; expected 0 to'
      f' {classes - 1}. Number the identities of the training set from 0.'
    )
