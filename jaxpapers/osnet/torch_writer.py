"""Files in torch's zip format, written without torch."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpapers import data

_STORAGES = {
  'bool': 'BoolStorage',
  'uint8': 'ByteStorage',
  'int8': 'CharStorage',
  'int16': 'ShortStorage',
  'int32': 'IntStorage',
  'int64': 'LongStorage',
  'float16': 'HalfStorage',
  'bfloat16': 'BFloat16Storage',
  'float32': 'FloatStorage',
  'float64': 'DoubleStorage',
}
# What each storage begins at a multiple of, so that torch can map the file.
_ALIGNMENT = 64
# A field of a zip entry's header that torch fills up with, too.
_PADDING = struct.pack('<H', 0x4246)


def write_torch(path: Any, tree: Mapping[str, Any]) -> None:
  """Writes nested dictionaries of arrays and plain values for `torch.load`.

  It loads with `weights_only=True`: nothing but tensors and plain values is in
  it.

  Args:
    path: Where; written as a whole or not at all.
    tree: Text -> array, number, text, bool, None, list of these, or such a
      dictionary.

  Raises:
    TypeError: If a value is of another kind, or a key no text.

  Example:
    >>> write_torch('model.pth', {'w': np.ones(2)})  # doctest: +SKIP
  """
  storages: list[np.ndarray] = []
  program = b'\x80\x02' + _value(tree, storages, 'tree') + b'.'
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_STORED) as archive:
    _add(archive, buffer, 'data.pkl', program)
    _add(archive, buffer, 'byteorder', b'little')
    for i, array in enumerate(storages):
      _add(archive, buffer, f'data/{i}', array.tobytes())
    _add(archive, buffer, 'version', b'3\n')
  data.write_file(path, buffer.getvalue())


def _add(archive, buffer, name, content):
  entry = zipfile.ZipInfo(f'archive/{name}')
  # The header is 30 bytes and the name, then the field's own four.
  used = buffer.tell() + 30 + len(entry.filename) + 4
  fill = -used % _ALIGNMENT
  entry.extra = _PADDING + struct.pack('<H', fill) + b'Z' * fill
  archive.writestr(entry, content)


def _value(value, storages, place) -> bytes:
  """The part of a pickle that makes a value."""
  if isinstance(value, Mapping):
    entries = b''
    for key, item in value.items():
      if not isinstance(key, str):
        raise TypeError(f'{place} has the key {key!r}; expected texts.')
      entries += _text(key) + _value(item, storages, f'{place}[{key!r}]')
    return b'}(' + entries + b'u'
  if isinstance(value, (list, tuple)):
    parts = (_value(x, storages, place) for x in value)
    return b'](' + b''.join(parts) + b'e'
  if value is None or type(value) in (bool, int, float, str):
    # Without the header and the stop of a pickle.
    return pickle.dumps(value, 2)[2:-1]
  if isinstance(value, np.generic):
    return _value(value.item(), storages, place)
  if hasattr(value, '__array__'):
    return _tensor(np.asarray(value), storages, place)
  raise TypeError(
    f'{place} is a {type(value).__name__}; expected an array, a number, a text,'
    ' None, or lists and dictionaries of these.'
  )


def _tensor(array, storages, place) -> bytes:
  name = _STORAGES.get(array.dtype.name)
  if name is None:
    raise TypeError(
      f'{place} is {array.dtype}; expected one of {sorted(_STORAGES)}.'
    )
  array = np.asarray(array, order='C')
  if array.dtype.byteorder == '>':
    array = array.astype(array.dtype.newbyteorder('<'))
  key = str(len(storages))
  storages.append(array)
  strides = [s // array.itemsize for s in array.strides]
  if array.size == 0:
    strides = [1] * array.ndim
  storage = (
    b'('
    + _text('storage')
    + _global('torch', name)
    + _text(key)
    + _text('cpu')
    + _integer(array.size)
    + b'tQ'
  )
  return (
    _global('torch._utils', '_rebuild_tensor_v2')
    + b'('
    + storage
    + _integer(0)
    + _integers(array.shape)
    + _integers(strides)
    + b'\x89'
    + _global('collections', 'OrderedDict')
    + b')R'
    + b'tR'
  )


def _global(module, name) -> bytes:
  return b'c' + module.encode() + b'\n' + name.encode() + b'\n'


def _text(text) -> bytes:
  encoded = text.encode()
  return b'X' + struct.pack('<I', len(encoded)) + encoded


def _integer(number) -> bytes:
  return pickle.dumps(int(number), 2)[2:-1]


def _integers(numbers) -> bytes:
  return b'(' + b''.join(map(_integer, numbers)) + b't'
