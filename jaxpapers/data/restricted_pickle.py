"""Pickles of plain data and numpy arrays, read without running code."""

import io
import pickle
from typing import Any

import numpy as np

from jaxpapers.data import files


class _Latin1:
  """What Python 3 writes for bytes in a pickle of protocol 2.

  No function: a pickle could write the attributes of one.
  """

  __slots__ = ()

  def __call__(self, text, encoding='latin1'):
    if encoding != 'latin1':
      raise pickle.UnpicklingError(f'bytes in the encoding {encoding!r}')
    return text.encode('latin1')


class _Dtype:
  """Types of numbers and text.

  An array of objects takes the bytes of a pickle for pointers.
  """

  __slots__ = ()

  def __call__(self, *args):
    dtype = np.dtype(*args)
    if dtype.hasobject:
      raise pickle.UnpicklingError(f'an array of {dtype}')
    return dtype


def _allowed():
  """Names that a pickled numpy array needs, in the spelling of each numpy.

  Taken from what this numpy itself would write, so that nothing private of it
  is named here; the functions only build arrays and types.
  """
  array = np.zeros(1, np.uint8)
  reconstruct = array.__reduce__()[0]
  scalar = np.uint8(0).__reduce__()[0]
  names = {
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): _Dtype(),
    ('_codecs', 'encode'): _Latin1(),
  }
  for package in ('numpy.core', 'numpy._core'):
    names[f'{package}.multiarray', '_reconstruct'] = reconstruct
    names[f'{package}.multiarray', 'scalar'] = scalar
  from_buffer = array.__reduce_ex__(5)[0]
  for package in ('numpy.core', 'numpy._core'):
    names[f'{package}.numeric', '_frombuffer'] = from_buffer
  return names


class _Unpickler(pickle.Unpickler):
  """Refuses every global but those of numpy arrays."""

  _names = _allowed()

  def find_class(self, module, name):
    try:
      return self._names[module, name]
    except KeyError:
      raise pickle.UnpicklingError(
        f'it asks for {module}.{name}, which is not plain data'
      ) from None

  def persistent_load(self, pid):
    raise pickle.UnpicklingError('it refers to an object outside of it')


def load(content: bytes, name: Any) -> Any:
  """Unpickles numbers, strings, containers and numpy arrays; nothing else.

  Args:
    content: the pickle, of any protocol. Strings of Python 2 become bytes.
    name: what to call it in an error, usually the path.

  Returns:
    The object.

  Raises:
    CorruptFileError: the pickle is damaged, or asks for anything that is not
      plain data: such a file could run code, and is refused before it does.
  """
  try:
    return _Unpickler(io.BytesIO(content), encoding='bytes').load()
  except Exception as error:  # a damaged pickle raises nearly anything
    raise files.CorruptFileError(
      f'{name}: refused or damaged pickle of {len(content):,} bytes: {error}.'
      ' Expected the plain dictionary of arrays of the official file.'
    ) from error
