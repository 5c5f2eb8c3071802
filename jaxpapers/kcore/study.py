"""What the pipeline analyses: correlation matrices over labelled nodes.

A study holds one matrix per recording, over nodes that all of them share. It
comes from recordings, from matrices, or from the generator.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpapers.kcore import clusters, correlation, glm, synthetic

# Seeds of the second state: far from those of the first.
_SUBLIMINAL_SEED = 1000


class Study(NamedTuple):
  """Networks to be, over the same nodes.

  Attributes:
    title: what it is.
    corr: float64[N, N], or float32, for each recording.
    names: one per recording.
    module: int32[N], labels 0..M-1.
    module_names: one per module.
    coords: float64[N, 3] in millimetres, or None.
    other: bool[N], nodes that are active in the second state, or None.
    other_name: what the second state is.
    facts: how it was made, for the report; JSON types only.
  """

  title: str
  corr: Sequence[np.ndarray]
  names: Sequence[str]
  module: np.ndarray
  module_names: Sequence[str]
  coords: np.ndarray | None = None
  other: np.ndarray | None = None
  other_name: str = ''
  facts: dict = {}


class Run(NamedTuple):
  """One recording with its stimuli, over voxels that all runs share.

  Attributes:
    name: of the run.
    series: [V, T].
    stimulus: [T], or finer (`design_matrix`), of the state to be analysed.
    other: the same of the second state, or None.
  """

  name: str
  series: np.ndarray
  stimulus: np.ndarray
  other: np.ndarray | None = None


def synthetic_study(
  num_streams: int = 10, *, seed: int = 0, p: float = 0.01, fraction=0.8
) -> Study:
  """Recordings of the generator; all its 610 voxels are nodes.

  The map of the second state is the consensus of as many subliminal
  recordings.

  Args:
    num_streams: recordings of each state, from seeds `seed`, `seed` + 1, ...
    seed: the first; subliminal ones begin 1000 later.
    p: level of the maps of the second state.
    fraction: part of them that a voxel has to be active in.

  Returns:
    The study.

  Raises:
    ValueError: a number is out of range.

  Example:
    >>> study = synthetic_study(2)
    >>> study.corr[0].shape, int(study.other.sum())
    ((610, 610), 360)
  """
  if num_streams < 1:
    raise ValueError(f'num_streams is {num_streams}; expected at least 1.')
  seeds = range(seed, seed + num_streams)
  corr, maps, made = [], [], None
  for number in seeds:
    made = synthetic.synth_bold(number)
    corr.append(correlation.correlation_matrix(made.series))
    masked = synthetic.synth_bold(number + _SUBLIMINAL_SEED, 'subliminal')
    design = np.column_stack([made.stimulus, np.ones(len(made.stimulus))])
    maps.append(_active(masked.series, design, p))
  return Study(
    title='Planted generator',
    corr=corr,
    names=[f'stream {number}' for number in seeds],
    module=made.module.astype(np.int32),
    module_names=[region.name for region in synthetic.REGIONS],
    coords=made.coords * synthetic.VOXEL_MM,
    other=np.asarray(glm.consensus_map(np.array(maps), fraction)),
    other_name='subliminal state',
    facts={
      'source': 'generator (not data of a brain)',
      'seeds': [seeds[0], seeds[-1]],
      'planted core': [
        synthetic.REGIONS[m].name for m in synthetic.CORE_MODULES
      ],
      'level of the second map': p,
      'consensus': fraction,
    },
  )


def matrix_study(
  corr: Any,
  module: Any,
  *,
  title: str = 'Connectivity matrix',
  module_names: Sequence[str] | None = None,
  coords: Any = None,
  other: Any = None,
  other_name: str = 'second map',
) -> Study:
  """One connectivity matrix that somebody else made.

  Args:
    corr: [N, N], or the upper triangle without diagonal as [N (N - 1) / 2].
    module: int[N] labels 0..M-1.
    title: what it is.
    module_names: M names.
    coords: [N, 3] millimetres.
    other: bool[N], nodes of a second map.
    other_name: what that is.

  Returns:
    The study.

  Raises:
    ValueError: sizes do not fit.

  Example:
    >>> matrix_study(np.array([0.5, 0.2, 0.1]), [0, 0, 1]).corr[0].shape
    (3, 3)
  """
  module = np.asarray(module)
  corr = np.asarray(corr)
  if corr.dtype != np.float32:
    # float32 stays: it says how many decimals count on a grid of thresholds.
    corr = corr.astype(np.float64)
  corr = _square(corr)
  n = len(corr)
  for name, array, shape in (
    ('module', module, (n,)),
    ('coords', coords, (n, 3)),
    ('other', other, (n,)),
  ):
    if array is not None and np.shape(array) != shape:
      raise ValueError(
        f'{name} has shape {np.shape(array)}; expected {shape} for a matrix of '
        f'{n} nodes.'
      )
  if module_names is None:
    module_names = [str(m + 1) for m in range(int(np.max(module)) + 1)]
  return Study(
    title=title,
    corr=[corr],
    names=[title],
    module=module.astype(np.int32),
    module_names=list(module_names),
    coords=None if coords is None else np.asarray(coords, np.float64),
    other=None if other is None else np.asarray(other, bool),
    other_name=other_name,
    facts={'source': 'connectivity matrix'},
  )


def bold_study(
  runs: Sequence[Run],
  coords: Any,
  tr: float,
  *,
  affine: Any = None,
  labels: Any = None,
  label_names: dict[int, str] | None = None,
  title: str = 'Recordings',
  p: float = 1e-6,
  p_other: float = 1e-2,
  fraction: float | None = None,
  connectivity: int = 26,
  min_size: int = 6,
  other_name: str = 'second state',
) -> Study:
  """From recordings to nodes, modules and correlations.

  One general linear model over all runs, with drifts of each run's own, says
  which voxels are active. Modules are their spatial clusters, or the regions of
  an atlas. The correlations of a run are those of what is left when its drifts
  are projected out; the response to the stimulus stays in. Voxels that are
  constant or hold NaN in a run are dropped from all, with a warning that counts
  them.

  Args:
    runs: one network each.
    coords: int[V, 3], voxel indices.
    tr: seconds between scans.
    affine: [4, 4] to millimetres; by default voxels are taken as such.
    labels: int[V] regions of an atlas, 0 for none; by default spatial clusters
      are the modules.
    label_names: names of the regions.
    title: what the data are.
    p: level of the activation map.
    p_other: level of the map of the second state.
    fraction: None fits the second state over all runs; a number asks for voxels
      that are active in this part of the runs' own maps, as the paper does.
    connectivity: 6, 18 or 26 neighbours.
    min_size: smaller modules are dropped with their voxels.
    other_name: what the second state is.

  Returns:
    The study.

  Raises:
    ValueError: names the argument: no run, series of other sizes, no voxel
      that varies, or too few active voxels for two modules.

  Example:
    >>> bold_study(runs, bold.coords, bold.tr)  # doctest: +SKIP
  """
  if not runs:
    raise ValueError('runs is empty; expected at least one recording.')
  coords = np.asarray(coords)
  for run in runs:
    if run.series.ndim != 2 or len(run.series) != len(coords):
      raise ValueError(
        f'runs: {run.name} has series of shape {run.series.shape}; expected '
        f'[{len(coords)}, T], one row per voxel of coords.'
      )
  if labels is not None:
    labels = np.asarray(labels)
    if labels.shape != (len(coords),):
      raise ValueError(
        f'labels has shape {labels.shape}; expected ({len(coords)},), one per '
        'voxel of coords.'
      )
  runs, coords, labels = _usable(runs, coords, labels)
  nuisance = [glm.nuisance_columns(run.series.shape[1], tr) for run in runs]
  first = [_response(run.stimulus, run, tr) for run in runs]
  designs = [
    np.column_stack(both) for both in zip(first, nuisance, strict=True)
  ]
  everything = np.concatenate([run.series for run in runs], axis=1)
  pooled = glm.pooled_design(designs)
  if not np.any(pooled[:, 0]):
    raise ValueError('runs: the stimulus is zero in all of them.')
  active = _active(everything, pooled, p)
  module, names = _modules(
    coords, active, labels, label_names or {}, connectivity, min_size
  )
  node = module >= 0
  if len(names) < 2:
    raise ValueError(
      f'p is {p}: {active.sum()} of {len(active)} voxels are active, which '
      f'makes {len(names)} module(s) of at least {min_size}; expected two or '
      'more. Raise p or lower min_size.'
    )
  corr = [
    correlation.correlation_matrix(
      glm.residual_series(run.series[node], columns)
    )
    for run, columns in zip(runs, nuisance, strict=True)
  ]
  if any(len(c) != node.sum() for c in corr):
    raise ValueError('runs: a voxel holds nothing but drifts in one of them.')
  other = None
  if any(run.other is not None for run in runs):
    other = _second_map(runs, designs, everything, tr, p_other, fraction)[node]
  where = coords.astype(np.float64)
  if affine is not None:
    affine = np.asarray(affine, np.float64)
    where = where @ affine[:3, :3].T + affine[:3, 3]
  return Study(
    title=title,
    corr=corr,
    names=[run.name for run in runs],
    module=module[node],
    module_names=names,
    coords=where[node],
    other=other,
    other_name=other_name,
    facts={
      'source': 'recordings',
      'voxels': len(coords),
      'active voxels': int(active.sum()),
      'nodes': int(node.sum()),
      'level': p,
      'smallest module': min_size,
      'modules': 'atlas'
      if labels is not None
      else f'spatial clusters, {connectivity} neighbours',
    },
  )


def _square(corr):
  if corr.ndim != 1:
    return corr
  n = int(round((1 + np.sqrt(1 + 8 * corr.size)) / 2))
  if n * (n - 1) // 2 != corr.size:
    raise ValueError(
      f'corr has {corr.size} entries, which is not N (N - 1) / 2 for any N; '
      'expected a square matrix or its upper triangle without diagonal.'
    )
  square = np.zeros((n, n), corr.dtype)
  square[np.triu_indices(n, 1)] = corr
  square = square + square.T
  np.fill_diagonal(square, 1.0)
  return square


def _usable(runs, coords, labels):
  """Runs, coordinates and labels without voxels that have no correlation."""
  kept = np.all([correlation.usable_series(run.series) for run in runs], axis=0)
  if kept.all():
    return runs, coords, labels
  dropped = np.count_nonzero(~kept)
  if dropped == len(kept):
    raise ValueError(
      f'runs: all {dropped} voxels are constant or hold NaN in one of them.'
    )
  warnings.warn(
    f'runs: dropped {dropped} of {len(kept)} voxels that are constant or hold '
    'NaN or infinities in one of them.',
    stacklevel=3,
  )
  runs = [run._replace(series=np.asarray(run.series)[kept]) for run in runs]
  return runs, coords[kept], None if labels is None else labels[kept]


def _active(series, design, p):
  # The level of 1e-6 leaves no room for rounding.
  with jax.enable_x64(True):
    t, dof = glm.glm_tmap(series, design)
    return np.asarray(glm.active_voxels(t, int(dof), p))


def _response(stimulus, run, tr):
  scans = run.series.shape[1]
  stimulus = np.asarray(stimulus)
  finer = None if stimulus.size == scans else scans
  return glm.design_matrix(stimulus, tr, num_scans=finer)[:, 0]


def _second_map(runs, designs, everything, tr, p, fraction):
  """Active for the second state, the other stimuli being modelled beside it."""
  second, beside = [], []
  for run, design in zip(runs, designs, strict=True):
    stimulus = np.asarray(run.stimulus, np.float64)
    other = np.zeros_like(stimulus) if run.other is None else run.other
    if np.shape(other) != stimulus.shape:
      raise ValueError(
        f'runs: {run.name} has stimuli of {stimulus.shape} and '
        f'{np.shape(other)} entries; expected the same number.'
      )
    response = _response(other, run, tr)
    second.append(np.column_stack([response, design[:, 1:]]))
    beside.append(_response(np.where(other, 0.0, stimulus), run, tr))
  if fraction is None:
    # One response for all runs; a column of zeros does not hurt.
    pooled = glm.pooled_design(second)
    pooled = np.column_stack([pooled, np.concatenate(beside)])
    return _active(everything, pooled, p)
  maps = [
    _active(run.series, np.column_stack([design, first]), p)
    for run, design, first in zip(runs, second, beside, strict=True)
    if np.any(design[:, 0])
  ]
  return np.asarray(glm.consensus_map(np.array(maps), fraction))


def _modules(coords, active, labels, label_names, connectivity, min_size):
  """Module of each voxel, -1 for none, and names of the modules."""
  module = np.full(len(coords), -1, np.int32)
  where = np.flatnonzero(active)
  if labels is None:
    module[where] = clusters.spatial_clusters(
      coords[where], connectivity, min_size
    )
    count = int(module.max(initial=-1)) + 1
    return module, [f'cluster {m + 1}' for m in range(count)]
  labels = np.asarray(labels)
  names = []
  for label in np.unique(labels[where]):
    chosen = where[labels[where] == label]
    if label > 0 and len(chosen) >= min_size:
      module[chosen] = len(names)
      names.append(label_names.get(int(label), f'region {label}'))
  return module, names
