"""Pickles of plain data and numpy arrays, read without running code.

A pickle says which functions to call with which arguments. Here none of
numpy's is called by it: some of them take the bytes of a file for pointers.
What the pickle would have passed to them is kept in records, checked, and made
into arrays afterwards.
"""

import collections
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxpapers.data import files


class Call:
  """A function that a pickle may call.

  No function: a pickle could write the attributes of one.
  """

  __slots__ = ('_function',)

  def __init__(self, function: Callable[..., Any]):
    object.__setattr__(self, '_function', function)

  def __setattr__(self, name, value):
    raise AttributeError(f'{name} is fixed')

  def __call__(self, *args):
    return self._function(*args)


def _latin1(text, encoding='latin1'):
  """What Python 3 writes for bytes in a pickle of protocol 2."""
  if encoding != 'latin1':
    raise pickle.UnpicklingError(f'bytes in the encoding {encoding!r}')
  return text.encode('latin1')


def _text(value) -> str:
  return value.decode('latin1') if isinstance(value, bytes) else value


class _Dtype:
  """A type of numbers or text; structures, dates and objects are refused."""

  __slots__ = ('dtype',)

  def __init__(self, text, *_):
    self.dtype = np.dtype(_text(text))
    if self.dtype.kind not in 'biufcSU':
      what = 'dates' if self.dtype.kind in 'mM' else 'objects or structures'
      raise pickle.UnpicklingError(f'an array of {what} ({self.dtype})')

  def __setstate__(self, state):
    _, order, *structure = state[:5]
    if any(part is not None for part in structure):
      raise pickle.UnpicklingError('an array of objects or structures')
    self.dtype = self.dtype.newbyteorder(_text(order))


class Array:
  """An array or a number before it is made."""

  __slots__ = ('_state',)

  def __init__(self, *state):
    self._state = state

  def __setstate__(self, state):
    _, shape, dtype, fortran, data = state
    self._state = (data, dtype, shape, 'F' if fortran else 'C')

  def value(self):
    """The array; a number of numpy's if it was one."""
    if not self._state:
      raise pickle.UnpicklingError('an array without numbers')
    data, dtype, shape, order, *axes = self._state
    if isinstance(data, str):  # bytes that Python 2 wrote
      data = data.encode('latin1')
    if not isinstance(data, bytes | bytearray | pickle.PickleBuffer):
      raise pickle.UnpicklingError(f'an array of {type(data).__name__}')
    flat = np.frombuffer(data, dtype.dtype)
    if shape is None:
      return flat.reshape(())[()]
    if order == 'K':
      return flat.reshape(shape).transpose(*axes).copy()
    # A copy, since one made on bytes cannot be written.
    return flat.reshape(shape, order=_text(order)).copy(order='A')


def _scalar(dtype, data):
  return Array(data, dtype, None, 'C')


def numpy_globals() -> dict[tuple[str, str], Any]:
  """What pickled arrays and numbers of numpy ask for, in all its spellings.

  Returns:
    Module and name -> what stands for it. `finish` makes arrays of the records
    that come out.
  """
  names: dict[tuple[str, str], Any] = {
    ('numpy', 'ndarray'): 'numpy.ndarray',  # only ever an argument
    ('numpy', 'dtype'): Call(_Dtype),
    ('_codecs', 'encode'): Call(_latin1),
    # Protocols 0 to 2 write no bytes as a call without arguments.
    ('__builtin__', 'bytes'): Call(lambda: b''),
  }
  for package in ('numpy.core', 'numpy._core'):
    names[f'{package}.multiarray', '_reconstruct'] = Call(lambda *_: Array())
    names[f'{package}.multiarray', 'scalar'] = Call(_scalar)
    names[f'{package}.numeric', '_frombuffer'] = Call(Array)
  return names


def finish(
  tree: Any, convert: Callable[..., Any] = lambda leaf, _: leaf
) -> Any:
  """What was unpickled, with arrays in place of records.

  Args:
    tree: What an unpickler with `numpy_globals` returned. Containers that
      occur twice, or within themselves, do so in the result.
    convert: Called with every other leaf and with this function itself, for
      leaves that hold further ones; returns what to put in its place.

  Returns:
    The tree; ordered dictionaries are plain ones in it.
  """
  done: dict[int, Any] = {}

  def walk(x):
    if id(x) in done:
      return done[id(x)]
    kind = type(x)
    if kind in (dict, collections.OrderedDict):
      new = done[id(x)] = {}
      # The pickle may have set an attribute `items`.
      new.update((walk(k), walk(v)) for k, v in kind.items(x))
    elif kind is list:
      new = done[id(x)] = []
      new.extend(map(walk, x))
    elif kind in (tuple, set, frozenset):
      new = done[id(x)] = kind(map(walk, x))
    elif kind is Array:
      new = done[id(x)] = x.value()
    elif kind is _Dtype:
      new = x.dtype
    else:
      new = convert(x, walk)
    return new

  return walk(tree)


class _Unpickler(pickle.Unpickler):
  """Refuses every global but those of numpy arrays."""

  _names = numpy_globals()

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
    return finish(_Unpickler(io.BytesIO(content), encoding='bytes').load())
  except Exception as error:  # a damaged pickle raises nearly anything
    raise files.CorruptFileError(
      f'{name}: refused or damaged pickle of {len(content):,} bytes: {error}.'
      ' Expected the plain dictionary of arrays of the official file.'
    ) from error
