"""The numbers of Hoyer et al. (2019), and the losses they published."""

import functools
import importlib.resources
import json
import os
from collections.abc import Iterator

import numpy as np

from jaxpapers.structopt.analysis import Scores
from jaxpapers.structopt.runs import Key, Run

# The names in the authors' files -> ours.
_METHODS = {
  'cnn-lbfgs': 'cnn-lbfgs',
  'pixels-lbfgs': 'pixel-lbfgs',
  'pixels-mma': 'mma',
  'pixels-oc': 'oc',
}
_DIMENSIONS = ('problem_name', 'method_name', 'seed', 'step')


@functools.cache
def paper_scores() -> tuple[Scores, Scores]:
  """The compliances of the paper's appendix: 116 tasks, four methods.

  The lowest compliance in 1000 evaluations, as printed: three decimals or six
  digits. See `analysis` for what the two scores are; the paper had 101 seeds.

  Returns:
    `(typical, ensemble)`.
  """
  file = importlib.resources.files(__package__) / 'paper_tables.json'
  tables = json.loads(file.read_text(encoding='utf-8'))
  methods = tuple(_METHODS[name] for name in tables['columns'])

  def scores(kind):
    values = np.array(list(tables[kind].values()), np.float64)
    values.flags.writeable = False
    return Scores(tuple(tables[kind]), methods, values)

  return scores('typical'), scores('ensemble')


def read_netcdf(path) -> Iterator[Run]:
  """Reads the losses that the authors published, `all_losses.nc`.

  A netCDF-3 file with a variable `loss(problem_name, method_name, seed, step)`
  in any order of dimensions, and a coordinate variable for each of the first
  three. Seed -1 is the constant start; NaN is where a run had stopped.

  Args:
    path: the file, local. It is read task by task: the original has 188 MB.

  Yields:
    The runs that have any finite loss.

  Raises:
    ValueError: the file is not such a file.
  """
  try:
    from scipy.io import netcdf_file
  except ImportError as error:
    raise ImportError(
      'Reading netCDF needs scipy: pip install jaxpapers[structopt]'
    ) from error
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise ValueError(f'There is no file {path!r}.')
  try:
    # A memory map would outlive the file; slices are read instead.
    file = netcdf_file(path, 'r', mmap=True)
  except (TypeError, ValueError, IndexError) as error:
    raise ValueError(
      f'{path!r} is not a netCDF-3 file ({error}). Files in the HDF5 format'
      " (netCDF-4) have to be converted: nccopy -k classic IN OUT, or xarray's"
      " to_netcdf(..., format='NETCDF3_64BIT')."
    ) from error
  # Slices of a mapped variable are copied below, so that it can be closed.
  with file:
    yield from _runs(path, file)


def _runs(path, file) -> Iterator[Run]:
  missing = [
    name for name in ('loss', *_DIMENSIONS[:3]) if name not in file.variables
  ]
  if missing:
    raise ValueError(
      f'{path!r} has no variable {missing[0]!r}; expected'
      f' loss({", ".join(_DIMENSIONS)}) and its coordinates, got'
      f' {sorted(file.variables)}.'
    )
  dimensions = file.variables['loss'].dimensions
  if sorted(dimensions) != sorted(_DIMENSIONS):
    raise ValueError(
      f'loss in {path!r} has the dimensions {dimensions}; expected'
      f' {_DIMENSIONS}.'
    )
  problems = _text(file.variables['problem_name'])
  methods = _text(file.variables['method_name'])
  seeds = [int(seed) for seed in file.variables['seed'][:]]
  order = [dimensions.index(name) for name in _DIMENSIONS]
  for i, problem in enumerate(problems):
    index = [slice(None)] * 4
    index[order[0]] = slice(i, i + 1)
    block = np.array(file.variables['loss'][tuple(index)], np.float64)
    block = block.transpose(order)[0]
    for method, losses in zip(methods, block):
      for seed, row in zip(seeds, losses):
        if np.isfinite(row).any():
          key = Key(problem, _METHODS.get(method, method), seed)
          yield Run(key, row, len(row) - 1)


def _text(variable) -> list[str]:
  """Strings from an array of characters, one string in a row."""
  rows = np.array(variable[:])
  return [b''.join(row.astype('S1')).decode().rstrip('\0 ') for row in rows]
