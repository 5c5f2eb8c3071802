"""Distances between features, exact enough to rank by."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

METRICS = ('euclidean', 'cosine')


def check_metric(metric: str) -> None:
  """Raises a ValueError unless this is the name of a distance."""
  if metric not in METRICS:
    raise ValueError(f'metric is {metric!r}; expected one of {METRICS}.')


def l2_normalize(features: Any) -> jax.Array:
  """Features divided by their Euclidean norm; zeros stay zeros.

  Args:
    features: [..., dim], floating.

  Returns:
    Of the same shape and dtype.

  Example:
    >>> l2_normalize(jnp.array([3.0, 4.0])).tolist()
    [0.6000000238418579, 0.800000011920929]
  """
  given = jnp.asarray(features)
  # Squares of float16 are soon out of its range.
  x = given.astype(jnp.promote_types(given.dtype, jnp.float32))
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  # torch's limit of 1e-12 for the norm. Inside the root, so that the gradient
  # at zero is finite.
  unit = x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
  floating = jnp.issubdtype(given.dtype, jnp.floating)
  return unit.astype(given.dtype) if floating else unit


@functools.partial(jax.jit, static_argnames=('metric', 'squared'))
def pairwise_distance(
  a: Any, b: Any, metric: str = 'euclidean', squared: bool = True
) -> jax.Array:
  """Distances of all pairs.

  Euclidean distances are |a|^2 + |b|^2 - 2 a.b, clipped at zero: rounding makes
  that sum negative for images that are nearly equal. Cosine distances are
  1 - a.b / (|a| |b|). Products are of the full precision of float32 on every
  machine: the bfloat16 that TPUs use by default changes ranks.

  Args:
    a: [n, dim], float16, bfloat16, float32 or float64; 16 bits are computed
      with as 32.
    b: [m, dim].
    metric: 'euclidean' or 'cosine'.
    squared: Whether Euclidean distances stay squared, as re-identification
      ranks by them (the order is the same).

  Returns:
    [n, m], float32 or float64.

  Raises:
    ValueError: The shapes do not fit, or there is no such metric.

  Example:
    >>> a = jnp.array([[0.0, 1.0]])
    >>> b = jnp.array([[0.0, 2.0], [3.0, 5.0]])
    >>> pairwise_distance(a, b).tolist()
    [[1.0, 25.0]]
    >>> pairwise_distance(a, b, squared=False).tolist()
    [[1.0, 5.0]]
  """
  check_metric(metric)
  a, b = jnp.asarray(a), jnp.asarray(b)
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(
      f'a and b have shapes {a.shape} and {b.shape}; expected [n, dim] and'
      ' [m, dim] with the same dim.'
    )
  dtype = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
  a, b = a.astype(dtype), b.astype(dtype)
  if metric == 'cosine':
    a, b = l2_normalize(a), l2_normalize(b)
  dot = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
  if metric == 'cosine':
    return 1 - dot
  square = (
    jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None] - 2 * dot
  )
  square = jnp.maximum(square, 0)
  if squared:
    return square
  # The derivative of a root at zero is infinite.
  zero = square == 0
  return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def check_features(features: Any, name: str) -> Any:
  """Refuses what no distance can be computed from, outside jit.

  Args:
    features: To be [n, dim], floating, finite, with n, dim > 0.
    name: What to call them.

  Returns:
    Them; lists as an array.

  Raises:
    TypeError: They are not floating point numbers.
    ValueError: Shape, or the rows that hold NaN or infinity.
  """
  if len(np.shape(features)) != 2 or 0 in np.shape(features):
    raise ValueError(
      f'{name} has shape {list(np.shape(features))}; expected [n, dim] with at'
      ' least one image and one dimension.'
    )
  if not hasattr(features, 'dtype'):
    features = np.asarray(features)
  if not jnp.issubdtype(features.dtype, jnp.floating):
    raise TypeError(
      f'{name} is of dtype {features.dtype}; expected floating point features.'
    )
  if isinstance(features, jax.core.Tracer):
    return features
  # Sums of rows first: no second array of the size of the first.
  with np.errstate(over='ignore', invalid='ignore'):
    total = np.asarray(features.sum(axis=1))
  for row in np.flatnonzero(~np.isfinite(total)):
    if not np.isfinite(np.asarray(features[row], np.float64)).all():
      bad = sum(
        not np.isfinite(np.asarray(features[i], np.float64)).all()
        for i in np.flatnonzero(~np.isfinite(total))
      )
      raise ValueError(
        f'{name}[{row}] holds NaN or infinity, as do {bad} of'
        f' {len(total)} rows. Look at the images of these rows and at the'
        ' weights; no rank can be given to them.'
      )
  return features


def check_both(qf: Any, gf: Any) -> tuple[Any, Any]:
  """Refuses features that cannot be compared, outside jit.

  Args:
    qf: Of the queries, [Q, dim].
    gf: Of the gallery, [G, dim].

  Returns:
    Them.

  Raises:
    TypeError: See `check_features`.
    ValueError: See there; or they have not the same number of dimensions.
  """
  qf, gf = check_features(qf, 'qf'), check_features(gf, 'gf')
  if qf.shape[1] != gf.shape[1]:
    raise ValueError(
      f'qf has {qf.shape[1]} dimensions and gf {gf.shape[1]}; expected features'
      ' of the same network.'
    )
  return qf, gf
