"""Reading fMRI recordings: NIfTI files, masks, BIDS folders."""

import csv
import pathlib
import re
import warnings
from typing import Any, NamedTuple

import numpy as np

from jaxpapers.kcore import correlation

_SECONDS = {'sec': 1.0, 'msec': 1e-3, 'usec': 1e-6}
# No scanner takes this long over a volume: such a number is milliseconds.
_LONGEST_TR = 100.0


class Bold(NamedTuple):
  """A recording: the voxels of a mask, without those that hold no signal.

  Attributes:
    series: [V, T], in C order of the voxels.
    coords: int32[V, 3], voxel indices.
    affine: float64[4, 4], from indices to millimetres.
    tr: seconds between scans.
  """

  series: np.ndarray
  coords: np.ndarray
  affine: np.ndarray
  tr: float


class Events(NamedTuple):
  """What was shown and when.

  Attributes:
    onset: float64[E], seconds from the first scan.
    duration: float64[E], seconds.
    trial_type: name of each.
  """

  onset: np.ndarray
  duration: np.ndarray
  trial_type: tuple[str, ...]


class BidsRun(NamedTuple):
  """One run in a BIDS folder.

  Attributes:
    name: such as `sub-01_task-words_run-1`.
    bold: path of the recording.
    events: path of its events.
    mask: path of its brain mask, or None.
  """

  name: str
  bold: pathlib.Path
  events: pathlib.Path
  mask: pathlib.Path | None


def load_bold(
  path: Any, mask: Any = None, *, tr: float | None = None, dtype=np.float64
) -> Bold:
  """Reads a four-dimensional recording.

  `.nii`, `.nii.gz`, and whatever else nibabel opens; either byte order;
  integers come out scaled by the slope and intercept of their header.

  Args:
    path: of the recording, (x, y, z, t).
    mask: a path or an array of the same three sides; voxels above 0 are read.
      By default all.
    tr: seconds between scans, where the header is wrong or silent.
    dtype: type of the series.

  Returns:
    The recording.

  Raises:
    ValueError: names the argument: a file with other than four axes, a mask of
      another shape or with no voxel left, no time between scans.
    FileNotFoundError: there is no such file.

  Warns:
    UserWarning: voxels were dropped because they are constant or not finite,
      with their number; or the header's time was read as milliseconds.

  Example:
    >>> bold = load_bold('bold.nii.gz', 'mask.nii.gz')  # doctest: +SKIP
    >>> bold.series.shape, bold.tr  # doctest: +SKIP
    ((530, 1452), 2.5)
  """
  image = _open(path, 'path')
  if len(image.shape) != 4:
    raise ValueError(
      f'path {path} holds an array of shape {image.shape}; expected a '
      'recording (x, y, z, t).'
    )
  tr = _repetition_time(image, path) if tr is None else float(tr)
  if not tr > 0 or not np.isfinite(tr):
    raise ValueError(f'tr is {tr}; expected seconds between scans, above 0.')
  inside = _mask(mask, image.shape[:3])
  series = np.asarray(image.dataobj)[inside].astype(dtype)
  if series.shape[1] < 2:
    raise ValueError(f'path {path} holds one scan; expected a series.')
  coords = np.argwhere(inside).astype(np.int32)
  kept = correlation.usable_series(series)
  dropped = np.count_nonzero(~kept)
  if dropped == len(kept):
    raise ValueError(
      f'path {path}: all {dropped} voxels{_of_mask(mask)} are constant or not '
      'finite.'
    )
  if dropped:
    warnings.warn(
      f'{path}: dropped {dropped} of {len(kept)} voxels{_of_mask(mask)} that '
      'are constant or hold NaN or infinities.',
      stacklevel=2,
    )
  return Bold(series[kept], coords[kept], np.asarray(image.affine), tr)


def read_labels(path: Any, coords: Any) -> np.ndarray:
  """Reads the values of an atlas at given voxels.

  Args:
    path: of an image (x, y, z) of integers.
    coords: int[N, 3], voxel indices on the same grid.

  Returns:
    int64[N]; 0 usually stands for no region.

  Raises:
    ValueError: `path` holds no such image, or `coords` lie outside it.

  Example:
    >>> read_labels('atlas.nii.gz', [[0, 0, 0]])  # doctest: +SKIP
  """
  values = np.asarray(_open(path, 'path').dataobj)
  if values.ndim == 4 and values.shape[3] == 1:
    values = values[..., 0]
  if values.ndim != 3 or not np.array_equal(values, np.round(values)):
    raise ValueError(
      f'path {path} holds an array of shape {values.shape}; expected a volume '
      'of integer labels (x, y, z).'
    )
  coords = np.asarray(coords)
  if np.any(coords < 0) or np.any(coords >= values.shape):
    raise ValueError(
      f'coords go up to {coords.max(axis=0).tolist()}; the atlas {path} has '
      f'the shape {values.shape}. Resample one onto the grid of the other.'
    )
  return values[tuple(coords.T)].astype(np.int64)


def find_bids_runs(folder: Any) -> list[BidsRun]:
  """Lists `sub-*/[ses-*/]func/*_bold.nii[.gz]` with their events and masks.

  Args:
    folder: of a BIDS data set, or of derivatives with the events beside.

  Returns:
    The runs, sorted by name.

  Raises:
    ValueError: there is none, or one has no `_events.tsv`.

  Example:
    >>> find_bids_runs('dataset')[0].name  # doctest: +SKIP
    'sub-01_task-words_run-1'
  """
  folder = pathlib.Path(folder)
  found = []
  for pattern in ('sub-*/func', 'sub-*/ses-*/func'):
    for ending in ('nii', 'nii.gz'):
      found += folder.glob(f'{pattern}/*_bold.{ending}')
  if not found:
    raise ValueError(
      f'folder {folder} holds no sub-*/func/*_bold.nii or .nii.gz.'
    )
  runs = []
  for bold in sorted(found):
    name = re.sub(r'_bold\.nii(\.gz)?$', '', bold.name)
    # Derivatives add entities to the name that events do not have.
    plain = re.sub(r'_(space|desc|res|rec)-[^_]+', '', name)
    events = [bold.parent / f'{stem}_events.tsv' for stem in (name, plain)]
    existing = [path for path in events if path.is_file()]
    if not existing:
      raise ValueError(f'folder {folder}: {bold} has no {events[-1].name}.')
    without = re.sub(r'_desc-[^_]+', '', name)
    masks = [
      path
      for stem in (f'{without}_desc-brain_mask', f'{name}_mask')
      for path in sorted(bold.parent.glob(f'{stem}.nii*'))
    ]
    runs.append(BidsRun(name, bold, existing[0], masks[0] if masks else None))
  return runs


def read_events(path: Any) -> Events:
  """Reads a BIDS `_events.tsv`.

  Args:
    path: of a table, columns separated by tabs, with at least `onset` and
      `duration`; without `trial_type` all events are called `event`.

  Returns:
    The events.

  Raises:
    ValueError: a column is missing, or a cell is no number.

  Example:
    >>> read_events('run-1_events.tsv').trial_type[:2]  # doctest: +SKIP
    ('word', 'blank')
  """
  with open(path, encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file, delimiter='\t'))
  names = rows[0].keys() if rows else ()
  for name in ('onset', 'duration'):
    if name not in names:
      raise ValueError(
        f'path {path}: there is no column {name!r}, or no event; columns:'
        f' {", ".join(map(str, names)) or "none"}.'
      )
  try:
    onset = np.array([float(row['onset']) for row in rows])
    # n/a is allowed for an impulse.
    duration = np.array(
      [float(row['duration'].replace('n/a', '0')) for row in rows]
    )
  except (AttributeError, TypeError, ValueError) as error:
    raise ValueError(f'path {path}: {error}.') from error
  kinds = tuple(row.get('trial_type') or 'event' for row in rows)
  return Events(onset, duration, kinds)


def _open(path, argument):
  try:
    import nibabel
  except ImportError as error:
    raise ImportError(
      'Reading fMRI files needs nibabel: pip install jaxpapers[kcore]'
    ) from error
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{argument}: there is no file {path}.')
  try:
    return nibabel.load(path)
  except (nibabel.filebasedimages.ImageFileError, OSError, EOFError) as error:
    raise ValueError(
      f'{argument} {path} is no image that nibabel reads: {error}'
    ) from error


def _repetition_time(image, path):
  """Seconds between scans, from the header."""
  zooms = image.header.get_zooms()
  # Headers hold float32: the shortest number that it stands for, 2.4 and not
  # 2.4000000953674316.
  value = float(str(zooms[3])) if len(zooms) > 3 else 0.0
  unit = 'unknown'
  if hasattr(image.header, 'get_xyzt_units'):
    unit = image.header.get_xyzt_units()[1]
  seconds = value * _SECONDS.get(unit, 1.0)
  if not seconds > 0 or not np.isfinite(seconds):
    raise ValueError(
      f'tr: the header of {path} says {value}; give the seconds between scans.'
    )
  if seconds > _LONGEST_TR:
    warnings.warn(
      f'{path}: the header says {value:g} {unit} between scans; taken as '
      'milliseconds.',
      stacklevel=3,
    )
    seconds *= 1e-3
  return seconds


def _mask(mask, shape):
  if mask is None:
    return np.ones(shape, bool)
  if isinstance(mask, (str, pathlib.Path)):
    values = np.asarray(_open(mask, 'mask').dataobj)
    if values.ndim == 4 and values.shape[3] == 1:
      values = values[..., 0]
  else:
    values = np.asarray(mask)
  if values.shape != tuple(shape):
    raise ValueError(
      f'mask has shape {values.shape}; expected {tuple(shape)}, that of the '
      'recording. Resample it onto its grid.'
    )
  inside = values > 0
  if not inside.any():
    raise ValueError('mask has no voxel above 0.')
  return inside


def _of_mask(mask):
  return '' if mask is None else ' of the mask'
