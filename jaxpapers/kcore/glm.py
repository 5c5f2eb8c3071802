"""First-level activation maps: design matrices, t values, active voxels."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_OVERSAMPLING = 25
_HIGH_PASS = 128.0  # seconds


def canonical_hrf(dt: float, length: float = 32.0) -> np.ndarray:
  """The canonical haemodynamic response, a difference of two gammas.

    h(t) = t^5 e^-t / 5! - (1/6) t^15 e^-t / 15!,  scaled to sum 1

  Args:
    dt: seconds between samples.
    length: seconds; the last sample is before it.

  Returns:
    float64[ceil(length / dt)], at t = 0, dt, 2 dt, ...

  Raises:
    ValueError: `dt` or `length` is not positive.

  Example:
    >>> hrf = canonical_hrf(0.5)
    >>> len(hrf), int(np.argmax(hrf))
    (64, 10)
  """
  if not dt > 0 or not length > 0:
    raise ValueError(
      f'dt is {dt} and length is {length}; expected seconds, above 0.'
    )
  t = np.arange(0.0, length, dt)
  decay = np.exp(-t)
  peak = t**5 * decay / math.factorial(5)
  undershoot = t**15 * decay / math.factorial(15) / 6.0
  hrf = peak - undershoot
  return hrf / hrf.sum()


def event_boxcar(
  onset: Sequence[float],
  duration: Sequence[float],
  num_scans: int,
  tr: float,
  *,
  oversampling: int = _OVERSAMPLING,
) -> np.ndarray:
  """Which instants of a recording lie within an event.

  Args:
    onset: seconds from the first scan, one per event.
    duration: seconds; an event of 0 takes one instant.
    num_scans: T.
    tr: seconds between scans.
    oversampling: instants per scan.

  Returns:
    float64[T * oversampling] of zeros and ones.

  Raises:
    ValueError: lengths differ, or an event is not finite or lasts negative
      time.

  Example:
    >>> event_boxcar([2.0], [2.0], 3, 2.0, oversampling=2).tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
  """
  onset, duration = np.asarray(onset, float), np.asarray(duration, float)
  if onset.shape != duration.shape or onset.ndim != 1:
    raise ValueError(
      f'onset has shape {onset.shape} and duration {duration.shape}; expected '
      'one number of each per event.'
    )
  finite = np.all(np.isfinite(onset)) and np.all(np.isfinite(duration))
  if not finite or np.any(duration < 0):
    raise ValueError(
      'duration and onset have to be finite, duration not negative.'
    )
  instants = np.arange(num_scans * oversampling)
  box = np.zeros(instants.size)
  # Rounded: 2.4 / 0.096 is 24.999999999999996.
  start = np.ceil(np.round(onset * oversampling / tr, 6))
  stop = np.ceil(np.round((onset + duration) * oversampling / tr, 6))
  for begin, end in zip(start, np.maximum(stop, start + 1), strict=True):
    box[(instants >= begin) & (instants < end)] = 1.0
  return box


def design_matrix(
  stimulus: Any,
  tr: float,
  *,
  num_scans: int | None = None,
  high_pass: float = _HIGH_PASS,
) -> np.ndarray:
  """Design of one run: expected response, constant and slow drifts.

  Column 0 is the stimulus, on a grid of 25 instants per scan, convolved with
  the canonical response and read at every scan. Column 1 is one. The others
  are sqrt(2/T) cos(pi j (2 t + 1) / (2 T)), j = 1..floor(2 T tr / high_pass).

  Args:
    stimulus: [T], one value per scan; or, with `num_scans`, finer: any multiple
      of T (`event_boxcar`).
    tr: seconds between scans.
    num_scans: T, where the stimulus is finer than the scans.
    high_pass: seconds; slower drifts are modelled. inf for none.

  Returns:
    float64[T, 2 + K].

  Raises:
    ValueError: `stimulus` is not finite or of no such length, or `tr` or
      `high_pass` is not positive.

  Example:
    >>> design_matrix(np.arange(60) // 10 % 2, 2.5).shape
    (60, 4)
  """
  stimulus = np.asarray(stimulus, np.float64)
  if stimulus.ndim != 1 or not np.all(np.isfinite(stimulus)):
    raise ValueError(
      f'stimulus has shape {stimulus.shape}; expected one finite number per '
      'scan.'
    )
  if not tr > 0 or not high_pass > 0:
    raise ValueError(
      f'tr is {tr} and high_pass is {high_pass}; expected seconds, above 0.'
    )
  if num_scans is None:
    num_scans, oversampling = stimulus.size, _OVERSAMPLING
    stimulus = np.repeat(stimulus, oversampling)
  else:
    oversampling, rest = divmod(stimulus.size, num_scans)
    if rest or not oversampling:
      raise ValueError(
        f'stimulus has {stimulus.size} entries; expected a multiple of '
        f'num_scans={num_scans}.'
      )
  hrf = canonical_hrf(tr / oversampling)
  response = np.convolve(stimulus, hrf)[: stimulus.size : oversampling]
  return np.column_stack([response, nuisance_columns(num_scans, tr, high_pass)])


def nuisance_columns(
  num_scans: int, tr: float, high_pass: float = _HIGH_PASS
) -> np.ndarray:
  """The constant and the slow cosines of `design_matrix`.

  Args:
    num_scans: T.
    tr: seconds between scans.
    high_pass: seconds.

  Returns:
    float64[T, 1 + K].

  Example:
    >>> nuisance_columns(121, 2.5).shape
    (121, 5)
  """
  order = np.arange(1, int(np.floor(2 * num_scans * tr / high_pass)) + 1)
  phase = (2 * np.arange(num_scans) + 1) / (2 * num_scans)
  cosines = np.sqrt(2 / num_scans) * np.cos(np.pi * np.outer(phase, order))
  return np.column_stack([np.ones(num_scans), cosines])


def pooled_design(designs: Sequence[Any]) -> np.ndarray:
  """One design for several runs: a common response, drifts of each run's own.

  Args:
    designs: [T_r, 1 + K_r] of each run, from `design_matrix`.

  Returns:
    float64[sum T_r, 1 + sum K_r].

  Raises:
    ValueError: `designs` is empty.

  Example:
    >>> run = design_matrix(np.arange(60) // 10 % 2, 2.5)
    >>> pooled_design([run, run]).shape
    (120, 7)
  """
  designs = [np.asarray(design, np.float64) for design in designs]
  if not designs:
    raise ValueError('designs is empty; expected the design of at least a run.')
  height = sum(len(design) for design in designs)
  width = 1 + sum(design.shape[1] - 1 for design in designs)
  pooled = np.zeros((height, width))
  row, column = 0, 1
  for design in designs:
    rows, columns = len(design), design.shape[1] - 1
    pooled[row : row + rows, 0] = design[:, 0]
    pooled[row : row + rows, column : column + columns] = design[:, 1:]
    row, column = row + rows, column + columns
  return pooled


def glm_tmap(
  series: Any, design: Any, contrast: Any = None
) -> tuple[jax.Array, jax.Array]:
  """Student's t of a contrast of ordinary least squares, per voxel.

    beta = D^+ y,  s2 = |y - D beta|^2 / dof,  t = c beta / sqrt(s2 c (D'D)^+ c)

  Computes in the type of its arguments, float32 or, in a scope with x64,
  float64; works under jit and vmap, and costs V T p.

  Args:
    series: [V, T]. T may come with any number of axes before V.
    design: [T, p], may lack full rank.
    contrast: [p]; by default the first column.

  Returns:
    t: [V]; 0 for a voxel that the design explains to the last bit.
    dof: int32 scalar, T - rank.

  Raises:
    ValueError: shapes do not fit, or fewer scans than columns.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> design = design_matrix(np.arange(60) // 10 % 2, 2.5)
    >>> noise = 0.1 * rng.standard_normal((2, 60))
    >>> t, dof = glm_tmap(noise + np.outer([0, 1], design[:, 0]), design)
    >>> bool(abs(t[0]) < 4), bool(t[1] > 20), int(dof)
    (True, True, 56)
  """
  shape, columns = np.shape(series), np.shape(design)
  if len(columns) != 2 or len(shape) < 1 or shape[-1] != columns[0]:
    raise ValueError(
      f'series has shape {shape} and design {columns}; expected [V, T] and '
      '[T, p] with the same number of scans T.'
    )
  if columns[0] <= columns[1]:
    raise ValueError(
      f'design has {columns[0]} scans for {columns[1]} columns; expected more '
      'scans than columns.'
    )
  if contrast is None:
    contrast = np.eye(columns[1])[0]
  if np.shape(contrast) != columns[1:]:
    raise ValueError(
      f'contrast has shape {np.shape(contrast)}; expected {columns[1:]}, one '
      'weight per column of the design.'
    )
  series, design = jnp.asarray(series), jnp.asarray(design)
  dtype = jnp.promote_types(
    jnp.promote_types(series.dtype, design.dtype), jnp.float32
  )
  return _tmap(*(jnp.asarray(x, dtype) for x in (series, design, contrast)))


@jax.jit
def _tmap(series, design, contrast):
  dot = functools.partial(jnp.matmul, precision='highest')
  # Columns of length one: else the cutoff of the pseudoinverse takes a column
  # of small numbers for rounding.
  norm = jnp.linalg.norm(design, axis=0)
  norm = jnp.where(norm > 0, norm, 1)
  design, contrast = design / norm, contrast / norm
  inverse = jnp.linalg.pinv(design)
  rank = jnp.linalg.matrix_rank(design).astype(jnp.int32)
  beta = dot(series, inverse.T)
  residual = series - dot(beta, design.T)
  # Once more on what is left: raw BOLD is a thousand times its fluctuation,
  # whose digits the first pass loses in float32.
  beta = beta + dot(residual, inverse.T)
  residual = residual - dot(dot(residual, inverse.T), design.T)
  dof = design.shape[0] - rank
  square = jnp.sum(residual * residual, axis=-1)
  weight = dot(contrast, inverse)
  variance = square / dof * jnp.sum(weight * weight)
  # What is left of a constant voxel is rounding, and seldom zero.
  floor = (16 * jnp.finfo(series.dtype).eps) ** 2
  usable = square > floor * jnp.sum(series * series, axis=-1)
  usable = usable & (variance > 0)
  t = dot(beta, contrast) / jnp.sqrt(jnp.where(usable, variance, 1))
  return jnp.where(usable, t, 0), dof


def residual_series(series: Any, nuisance: Any) -> np.ndarray:
  """What is left of series when nuisance columns are projected out.

  Args:
    series: [V, T].
    nuisance: [T, K].

  Returns:
    float64[V, T], on the host.

  Raises:
    ValueError: numbers of scans differ.

  Example:
    >>> residual_series([[1.0, 2.0, 3.0]], np.ones((3, 1))).round(9).tolist()
    [[-1.0, 0.0, 1.0]]
  """
  series, nuisance = np.asarray(series, float), np.asarray(nuisance, float)
  if nuisance.ndim != 2 or series.shape[-1] != len(nuisance):
    raise ValueError(
      f'series has shape {series.shape} and nuisance {nuisance.shape}; '
      'expected [V, T] and [T, K].'
    )
  return series - series @ np.linalg.pinv(nuisance).T @ nuisance.T


def active_voxels(t: Any, dof: int, p: float) -> jax.Array:
  """Voxels whose one-sided p value is below a level.

  Args:
    t: t values, any shape, may be traced.
    dof: degrees of freedom, known.
    p: level, in (0, 1); the paper has 1e-6 for words that are seen and 1e-2
      for masked ones.

  Returns:
    bool array of the shape of `t`: P(T_dof > t) < p.

  Raises:
    ValueError: `p` or `dof` is out of range.

  Example:
    >>> active_voxels(np.array([1.0, 3.0]), 100, 0.01).tolist()
    [False, True]
  """
  if not 0 < p < 1:
    raise ValueError(f'p is {p}; expected a level in (0, 1).')
  if not dof > 0:
    raise ValueError(f'dof is {dof}; expected degrees of freedom, above 0.')
  try:
    from scipy import stats
  except ImportError as error:
    raise ImportError(
      'p values need scipy: pip install jaxpapers[kcore]'
    ) from error
  return jnp.asarray(t) > stats.t.isf(p, float(dof))


def consensus_map(maps: Any, fraction: float = 0.8) -> jax.Array:
  """Voxels that are active in most maps.

  Args:
    maps: bool[G, V], one row per recording.
    fraction: kept if active in at least this part of the maps, in (0, 1].

  Returns:
    bool[V].

  Raises:
    ValueError: `maps` has another rank or no row, or `fraction` is out of
      range.

  Example:
    >>> consensus_map([[1, 1], [1, 0], [1, 1], [1, 1], [0, 1]]).tolist()
    [True, True]
  """
  if np.ndim(maps) != 2 or not np.shape(maps)[0]:
    raise ValueError(
      f'maps has shape {np.shape(maps)}; expected [G, V] with a row per map.'
    )
  if not 0 < fraction <= 1:
    raise ValueError(f'fraction is {fraction}; expected a number in (0, 1].')
  count = jnp.sum(jnp.asarray(maps) != 0, axis=0, dtype=jnp.int32)
  # 0.07 * 100 is 7.000000000000001.
  return count >= math.ceil(round(fraction * np.shape(maps)[0], 9))
