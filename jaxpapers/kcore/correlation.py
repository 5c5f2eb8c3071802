"""Correlation matrices that are symmetric, and their integer levels."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.kcore import edges as graphs

# Decimals of c / step that count. A value such as 0.29 / 0.01 is 28.999999...
# in float64 and means 29. A float32 of 0.29 is 0.28999999 and means 29, too.
_DECIMALS = 9
_DECIMALS_SINGLE = 4
_ROWS = 64


def usable_series(series: Any) -> np.ndarray:
  """Which time series have a correlation: all finite, and not constant.

  Args:
    series: [N, T].

  Returns:
    bool[N], on the host.

  Raises:
    ValueError: `series` has another rank, or one scan only.

  Example:
    >>> usable_series([[1.0, 2.0], [1.0, 1.0], [np.nan, 1.0]]).tolist()
    [True, False, False]
  """
  _check_series(series)
  series = np.asarray(series)
  with np.errstate(invalid='ignore'):
    finite = np.all(np.isfinite(series), axis=1)
    return finite & np.any(series != series[:, :1], axis=1)


def correlation_matrix(series: Any, *, device: bool = False) -> Any:
  """Pearson correlation of every pair of series, symmetric by construction.

  The upper triangle is mirrored: the product of a matrix with its transpose is
  not symmetric to the last bit, and one link in a thresholded matrix would then
  be there in one direction only. Costs N^2 T.

  Outside jit, series that are constant or hold NaN are dropped with a warning
  that counts them; `usable_series` says which, so that labels can follow:

      kept = usable_series(series)
      corr = correlation_matrix(series[kept])
      module = module[kept]

  Args:
    series: [N, T].
    device: false computes on the host in float64, which is what thresholding
      wants: float32 moves about one value in 1e5 over a line of a 0.01 grid.
      True, or traced series, computes with JAX in the type of `series`, under
      jit, vmap and grad; unusable series then correlate 0 with all.

  Returns:
    [M, M], M usable series of N, ones on the diagonal. numpy float64, or a JAX
    array.

  Raises:
    ValueError: `series` has another rank, one scan only, or no usable row.

  Example:
    >>> correlation_matrix([[1.0, 2.0, 4.0], [2.0, 1.0, -1.0]]).round(6)
    array([[ 1., -1.],
           [-1.,  1.]])
  """
  _check_series(series)
  if graphs.is_traced(series):
    return _correlate(series)
  kept = usable_series(series)
  dropped = np.count_nonzero(~kept)
  if not np.any(kept):
    raise ValueError(
      f'series: all {len(kept)} rows are constant or hold NaN; expected time '
      'series that vary.'
    )
  if dropped:
    warnings.warn(
      f'series: dropped {dropped} of {len(kept)} rows that are constant or '
      'hold NaN or infinities. usable_series(series) says which.',
      stacklevel=2,
    )
  if device:
    return _correlate(jnp.asarray(series)[np.flatnonzero(kept)])
  series = np.asarray(series, np.float64)[kept]
  corr = np.atleast_2d(np.corrcoef(series))
  corr = np.triu(corr, 1)
  corr = corr + corr.T
  np.fill_diagonal(corr, 1.0)
  return corr


@jax.jit
def _correlate(series):
  if not jnp.issubdtype(series.dtype, jnp.floating):
    series = series.astype(jnp.float32)
  centred = series - jnp.mean(series, axis=1, keepdims=True)
  square = jnp.sum(centred * centred, axis=1, keepdims=True)
  usable = jnp.isfinite(square) & (square > 0)
  # Divides by one where unusable, so that no NaN enters the gradient.
  norm = jnp.sqrt(jnp.where(usable, square, 1.0))
  unit = jnp.where(usable, centred / norm, 0.0)
  corr = jnp.matmul(unit, unit.T, precision='highest')
  corr = jnp.clip(jnp.triu(corr, 1), -1.0, 1.0)
  return corr + corr.T + jnp.eye(len(series), dtype=corr.dtype)


def quantize_levels(
  corr: Any, step: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Turns correlations into int32 levels, once, in float64 on the host.

  All that follows compares levels, and integers compare alike on any device.
  Two links of equal weight have one level, and `values[levels]` is the weight,
  rounded down to the grid if there is one. Of c / step 9 decimals count, or 4
  where correlations come in float32 or shorter: 0.29 stays on a grid of 0.01.
  Costs N^2 with a grid, N^2 log N without.

  Args:
    corr: [N, N], finite and exactly symmetric; the diagonal is ignored.
    step: distance of thresholds, multiples of it: a link of weight c is there
      at every threshold up to floor(c / step) * step. None takes each distinct
      weight as a level.

  Returns:
    levels: int32[N, N], symmetric; -1 (no link) on the diagonal.
    values: float64[L], ascending: the threshold that each level stands for.

  Raises:
    ValueError: `corr` is not finite or not symmetric, or `step` not positive.

  Example:
    >>> levels, values = quantize_levels([[1, 0.29], [0.29, 1]], step=0.01)
    >>> levels.tolist(), values.tolist()
    ([[-1, 0], [0, -1]], [0.29])
  """
  graphs.check_symmetric(corr, 'corr')
  corr = np.asarray(corr)
  # bfloat16 is not of a kind of numpy's own.
  single = corr.dtype.itemsize < 8 and corr.dtype.kind not in 'biu'
  decimals = _DECIMALS_SINGLE if single else _DECIMALS
  corr = corr.astype(np.float64, copy=False)
  n = len(corr)
  levels = np.full((n, n), -1, np.int32)
  if n < 2:
    return levels, np.zeros(0)
  if step is None:
    upper = np.triu_indices(n, 1)
    values, rank = np.unique(corr[upper], return_inverse=True)
    levels[upper] = rank
    levels[upper[::-1]] = rank
    return levels, values
  if not step > 0 or not np.isfinite(step):
    raise ValueError(f'step is {step}; expected a positive distance or None.')

  def ticks(values):
    return np.floor(np.round(values / step, decimals))

  # The rows of this view hold all entries between two of the diagonal.
  off = np.ascontiguousarray(corr).ravel()[1:].reshape(n - 1, n + 1)[:, :-1]
  lowest = ticks(off.min())
  number = ticks(off.max()) - lowest + 1
  if not number < 2**31:
    raise ValueError(
      f'step is {step}, which makes {number:.3g} levels; expected fewer than '
      '2**31. Take a larger step, or None for the exact levels.'
    )
  # Some rows at a time: whole matrices of float64 would not stay in the cache.
  for start in range(0, n, _ROWS):
    rows = slice(start, start + _ROWS)
    # The diagonal may hold anything finite; it is written over below.
    levels[rows] = np.clip(ticks(corr[rows]) - lowest, 0, number)
  np.fill_diagonal(levels, -1)
  values = (lowest + np.arange(int(number))) * step
  return levels, values


def _check_series(series):
  shape = np.shape(series)
  if len(shape) != 2 or shape[1] < 2:
    raise ValueError(
      f'series has shape {shape}; expected [N, T], one row per voxel and at '
      'least two scans.'
    )
