"""Weights that Keras keeps in HDF5 files."""

from typing import Any

import numpy as np

from jaxpapers.data import files
from jaxpapers.weights.state_dict import StateDict


def open_keras(path: Any) -> StateDict:
  """Opens the weights in an HDF5 file of Keras.

  Args:
    path: A local `.h5` or `.hdf5` file: `save_weights` of Keras 2, or a whole
      model saved by `save` of Keras 2 or 3. Optimizer state is left out.

  Returns:
    'layer/variable' -> array, such as 'stem_conv/kernel'; read when it is asked
    for.

  Raises:
    ImportError: h5py is missing.
    FileNotFoundError: There is no such file.
    CorruptFileError: It is no HDF5 file.
    ValueError: It is a `.weights.h5` of Keras 3, whose layers have no names.

  Example:
    >>> state = open_keras('efficientnetb0.h5')  # doctest: +SKIP
    >>> state['stem_conv/kernel'].shape  # doctest: +SKIP
    (3, 3, 3, 32)
  """
  try:
    import h5py
  except ImportError as error:
    raise ImportError(
      "reading .h5 files needs h5py: pip install 'jaxpapers[efficientnet]'."
    ) from error
  path = files.as_path(path)
  if not path.exists():
    raise FileNotFoundError(f'There is no file {path}.')
  found: dict[str, str] = {}

  def visit(full, item):
    if not isinstance(item, h5py.Dataset):
      return
    parts = full.split('/')
    if parts[0] == 'optimizer_weights':
      return
    if parts[-2:-1] == ['vars']:
      raise ValueError(
        f'{path} is a .weights.h5 of Keras 3, which numbers its layers instead'
        " of naming them. Save the whole model there, model.save('x.h5')."
      )
    name = '/'.join(parts[-2:]).partition(':')[0]
    if name in found:
      raise ValueError(f'{path}: {found[name]} and {full} are both {name}.')
    found[name] = full

  try:
    with h5py.File(str(path), 'r') as file:
      file.visititems(visit)
  except OSError as error:
    raise files.CorruptFileError(
      f'{path} is no HDF5 file, or damaged: {error}.'
    ) from error

  def reader(full):
    def read():
      with h5py.File(str(path), 'r') as file:
        return np.asarray(file[full])

    return read

  return StateDict(path, {name: reader(full) for name, full in found.items()})
