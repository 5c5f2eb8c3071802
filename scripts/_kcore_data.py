"""What the kcore scripts read: recordings, matrices with labels, networks."""

import io
import pathlib
import re

import _command_line
import numpy as np
from etils import epath

from jaxpapers.kcore import io as kcore_io
from jaxpapers.kcore import study

_USAGE = _command_line.UsageError


def read_folder(
  folder: str,
  *,
  mask: str | None,
  atlas: str | None,
  tr: float | None,
  rest: str,
  condition: str,
  second_condition: str,
  **options,
) -> study.Study:
  """A study from a BIDS folder, or from bold, mask and attributes files.

  Args:
    folder: with sub-*/func/*_bold.nii[.gz], or bold.nii[.gz].
    mask: path of a mask for all runs, or None for those of the folder.
    atlas: path of an image of regions, or None for spatial clusters.
    tr: seconds between scans, or None for those of the headers.
    rest: regular expression of labels that are no stimulus.
    condition: regular expression of the stimuli of the first state.
    second_condition: of the second state; empty for none.
    **options: of `bold_study`.

  Returns:
    The study.

  Raises:
    UsageError: files are missing or do not fit together.
  """
  path = pathlib.Path(folder)
  if not path.is_dir():
    raise _USAGE(f'--data: there is no folder {folder!r}')
  try:
    if any(path.glob('sub-*')):
      runs, bold = _bids(path, mask, tr, rest, condition, second_condition)
    else:
      runs, bold = _labelled(path, mask, tr, rest, condition, second_condition)
    labels = None if atlas is None else kcore_io.read_labels(atlas, bold.coords)
    return study.bold_study(
      runs,
      bold.coords,
      bold.tr,
      affine=bold.affine,
      labels=labels,
      title=f'{path.resolve().name}: {len(runs)} run(s)',
      other_name=f'map of {second_condition}',
      **options,
    )
  except (ValueError, OSError) as error:
    raise _USAGE(str(error)) from error


def read_matrix(
  matrix: str,
  labels: str | None,
  *,
  label_column: int,
  label_pattern: str,
  coord_columns: list[str],
) -> study.Study:
  """A study from a connectivity matrix and a table of its nodes.

  Args:
    matrix: .npy or text, square or the upper triangle in a row.
    labels: table with a row per node.
    label_column: column of the module, from 1.
    label_pattern: regular expression; nodes with other labels are left out.
    coord_columns: columns of x, y, z, from 1; none without coordinates.

  Returns:
    The study.

  Raises:
    UsageError: files are missing or do not fit together.
  """
  if labels is None:
    raise _USAGE(
      '--matrix needs --labels, a table with the module of each node'
    )
  rows = _table(labels, '--labels')
  names = _column(rows, label_column, '--label_column', labels)
  kept = [bool(re.fullmatch(label_pattern, name)) for name in names]
  kept = np.flatnonzero(kept)
  if not kept.size:
    raise _USAGE(
      f'--label_pattern={label_pattern!r} matches none of the labels, such as '
      f'{names[0]!r}'
    )
  chosen = [names[i] for i in kept]
  modules = sorted(set(chosen), key=_natural)
  module = np.array([modules.index(name) for name in chosen])
  try:
    full = study.matrix_study(
      _array(matrix, '--matrix'), np.zeros(len(names), int)
    )
    coords = None
    if coord_columns:
      columns = [int(column) for column in coord_columns]
      coords = np.array(
        [
          [float(x) for x in _column(rows, c, '--coord_columns', labels)]
          for c in columns
        ]
      ).T[kept]
    return study.matrix_study(
      full.corr[0][np.ix_(kept, kept)],
      module,
      title=pathlib.Path(matrix).name,
      module_names=modules,
      coords=coords,
    )
  except ValueError as error:
    raise _USAGE(f'--matrix or --labels: {error}') from error


def read_network(path: str | None) -> dict:
  """A network from network.npz, an adjacency matrix or a list of edges.

  Args:
    path: network.npz of kcore_analyze or its folder; .npy of an [N, N] matrix;
      or text with two columns of node numbers from 0.

  Returns:
    edges int32[m, 2] and num_nodes.

  Raises:
    UsageError: there is no such file, or it holds something else.
  """
  from jaxpapers.kcore import edges as graphs

  if path is None:
    raise _USAGE(
      'Which network? Give --network, a network.npz of kcore_analyze, an .npy '
      'adjacency matrix or a list of edges'
    )
  file = epath.Path(path)
  file = file / 'network.npz' if file.is_dir() else file
  if not file.is_file():
    raise _USAGE(f'--network: there is no file {str(file)!r}')
  try:
    if file.suffix == '.npz':
      with np.load(_buffer(file), allow_pickle=False) as archive:
        edges, nodes = archive['edges'], int(archive['num_nodes'])
    else:
      array = _array(str(file), '--network')
      if file.suffix != '.npy' and array.ndim == 2 and array.shape[1] == 2:
        edges, nodes = array.astype(np.int64), int(array.max()) + 1
      else:
        edges, nodes = graphs.edge_list(array), len(array)
    edges = np.asarray(edges, np.int32)
    graphs.check_edges(edges, nodes)
  except (ValueError, KeyError) as error:
    raise _USAGE(f'--network={path}: {error}') from error
  if len(edges) < 2:
    raise _USAGE(
      f'--network={path} has {len(edges)} edge(s); two or more are needed'
    )
  return {'edges': edges, 'num_nodes': nodes}


def _bids(path, mask, tr, rest, condition, second):
  found = kcore_io.find_bids_runs(path)
  bolds = [
    kcore_io.load_bold(run.bold, mask or run.mask, tr=tr) for run in found
  ]
  first = bolds[0]
  for run, bold in zip(found, bolds, strict=True):
    if not np.allclose(bold.affine, first.affine, atol=1e-3):
      raise ValueError(
        f'{run.name} lies on another grid than {found[0].name}; resample all '
        'runs to one space first.'
      )
    if not np.isclose(bold.tr, first.tr):
      raise ValueError(
        f'{run.name} has {bold.tr} s between scans, {found[0].name} {first.tr}.'
      )
  common = _common([bold.coords for bold in bolds])
  runs = []
  for run, bold in zip(found, bolds, strict=True):
    events = kcore_io.read_events(run.events)
    scans = bold.series.shape[1]
    kinds = np.array(events.trial_type)
    stimuli = [
      _boxcar(events, chosen, scans, bold.tr)
      for chosen in _choose(kinds, rest, condition, second)
    ]
    where = [tuple(c) for c in bold.coords.tolist()]
    where = {voxel: i for i, voxel in enumerate(where)}
    series = bold.series[[where[voxel] for voxel in common]]
    runs.append(study.Run(run.name, series, *stimuli))
  coords = np.array(common, np.int32)
  return runs, first._replace(series=runs[0].series, coords=coords)


def _common(coords):
  shared = set(map(tuple, coords[0].tolist()))
  for other in coords[1:]:
    shared &= set(map(tuple, other.tolist()))
  if not shared:
    raise ValueError('no voxel is in the mask of all runs.')
  return sorted(shared)


def _boxcar(events, chosen, scans, tr):
  from jaxpapers.kcore import glm

  if chosen is None:
    return None
  return glm.event_boxcar(
    events.onset[chosen], events.duration[chosen], scans, tr
  )


def _labelled(path, mask, tr, rest, condition, second):
  """One long recording with a label and a run number for every scan."""
  bold_file = _only(path, 'bold.nii*', 'a recording bold.nii or bold.nii.gz')
  if mask is None:
    masks = sorted(path.glob('mask.nii*'))
    mask = masks[0] if masks else None
  attributes = _only(path, 'attributes*.txt', 'a list of labels attributes.txt')
  bold = kcore_io.load_bold(bold_file, mask, tr=tr)
  rows = _table(str(attributes), '--data')
  if len(rows) != bold.series.shape[1]:
    raise ValueError(
      f'{attributes} has {len(rows)} lines for {bold.series.shape[1]} scans.'
    )
  kinds = np.array(_column(rows, 1, '--data', str(attributes)))
  chunk = np.array(_column(rows, 2, '--data', str(attributes)))
  runs = []
  for name in dict.fromkeys(chunk.tolist()):
    scans = chunk == name
    stimuli = _choose(kinds[scans], rest, condition, second)
    stimuli = [None if x is None else x.astype(np.float64) for x in stimuli]
    runs.append(study.Run(f'run {name}', bold.series[:, scans], *stimuli))
  return runs, bold


def _choose(kinds, rest, condition, second):
  """Which events or scans are of the first and of the second state."""

  def matching(pattern):
    return np.array([bool(re.fullmatch(pattern, kind)) for kind in kinds], bool)

  first = matching(condition) & ~matching(rest)
  return first, (matching(second) if second else None)


def _only(path, pattern, what):
  found = sorted(path.glob(pattern))
  if not found:
    raise ValueError(
      f'folder {path} holds neither sub-* nor {what}; see --help for the two '
      'layouts that are read.'
    )
  return found[0]


def _natural(name):
  """Sorts region 10 behind region 9."""
  parts = re.split(r'(\d+)', name)
  return [(int(p), '') if p.isdigit() else (-1, p) for p in parts]


def _lines(path, flag):
  try:
    text = epath.Path(path).read_text('utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise _USAGE(f'{flag}: cannot read {path!r} ({error})') from error
  return [line for line in text.splitlines() if line.strip()]


def _table(path, flag):
  """Cells of a text file, separated by tabs, commas or blanks."""
  lines = _lines(path, flag)
  if not lines:
    raise _USAGE(f'{flag}: {path!r} is empty')
  separator = next((s for s in ('\t', ',') if s in lines[0]), None)
  return [
    [cell.strip() for cell in line.split(separator)]
    for line in lines
    if not line.startswith('#')
  ]


def _column(rows, number, flag, path):
  width = min(map(len, rows))
  if not 1 <= number <= width:
    raise _USAGE(f'{flag}={number}: {path} has columns 1 to {width}')
  return [row[number - 1] for row in rows]


def _buffer(file):
  return io.BytesIO(file.read_bytes())


def _array(path, flag):
  """Numbers of an .npy or text file."""
  file = epath.Path(path)
  if not file.is_file():
    raise _USAGE(f'{flag}: there is no file {path!r}')
  try:
    if file.suffix == '.npy':
      return np.load(_buffer(file), allow_pickle=False)
    return np.array([[float(x) for x in row] for row in _table(path, flag)])
  except ValueError as error:
    raise _USAGE(f'{flag}: {path!r} holds no table of numbers ({error})') from (
      error
    )
