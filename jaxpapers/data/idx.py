"""IDX, the file format of MNIST: a big-endian header, then one array."""

import gzip
import math
import os
import struct
from typing import Any

import numpy as np

from jaxpapers.data import files

# Third byte of the magic number -> type of the elements, big-endian.
_TYPES = {
  0x08: np.dtype('u1'),
  0x09: np.dtype('i1'),
  0x0B: np.dtype('>i2'),
  0x0C: np.dtype('>i4'),
  0x0D: np.dtype('>f4'),
  0x0E: np.dtype('>f8'),
}


def read_idx(path: Any) -> np.ndarray:
  """Reads an IDX file, raw or compressed by gzip.

  The header is two zero bytes, a type code, the number of dimensions, and each
  dimension as a big-endian 32-bit integer: magic 0x00000803 is a
  three-dimensional array of bytes.

  Args:
    path: local, or on any file system that etils.epath knows.

  Returns:
    A new array in the byte order of this machine.

  Raises:
    FileNotFoundError: there is no such file.
    CorruptFileError: the header is not IDX's, or the file holds more or fewer
      bytes than the header announces.

  Example:
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> write_idx(f'{folder}/a-idx1-ubyte', np.array([3, 1, 4], np.uint8))
    >>> read_idx(f'{folder}/a-idx1-ubyte').tolist()
    [3, 1, 4]
  """
  content = files.read_bytes(path)
  if len(content) < 4:
    raise files.CorruptFileError(
      f'{path}: {len(content)} bytes; an IDX file starts with a magic number of'
      ' 4 bytes.'
    )
  zero, code, ndim = struct.unpack('>HBB', content[:4])
  if zero or code not in _TYPES:
    raise files.CorruptFileError(
      f'{path}: the magic number is 0x{content[:4].hex()}; expected two zero'
      ' bytes and one of the type codes '
      + ', '.join(f'{known:02x}' for known in _TYPES)
      + ' (0x00000803 for images, 0x00000801 for labels).'
    )
  start = 4 + 4 * ndim
  if len(content) < start:
    raise files.CorruptFileError(
      f'{path}: {len(content)} bytes; the header of {ndim} dimensions alone has'
      f' {start}.'
    )
  shape = struct.unpack(f'>{ndim}I', content[4:start])
  dtype = _TYPES[code]
  expected = start + math.prod(shape) * dtype.itemsize
  if len(content) != expected:
    raise files.CorruptFileError(
      f'{path}: expected {expected:,} bytes (uncompressed) for an array of'
      f' shape {shape} and type {dtype.name}, got {len(content):,}.'
    )
  array = np.frombuffer(content, dtype, offset=start).reshape(shape)
  return array.astype(dtype.newbyteorder('='))


def write_idx(path: Any, array: Any) -> None:
  """Writes an IDX file, compressed if the name ends in `.gz`.

  The file appears under its name when it is complete.

  Args:
    path: local, or on any file system that etils.epath knows.
    array: uint8, int8, int16, int32, float32 or float64; [...].

  Raises:
    ValueError: IDX has no code for the type of the array.
  """
  array = np.asarray(array)
  codes = {dtype.newbyteorder('='): code for code, dtype in _TYPES.items()}
  code = codes.get(array.dtype.newbyteorder('='))
  if code is None:
    names = ', '.join(dtype.name for dtype in codes)
    raise ValueError(f'array is {array.dtype}; IDX stores one of {names}.')
  content = struct.pack(f'>HBB{array.ndim}I', 0, code, array.ndim, *array.shape)
  content += array.astype(_TYPES[code]).tobytes()
  path = files.as_path(path)
  if path.name.endswith('.gz'):
    content = gzip.compress(content, mtime=0)
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  temporary.write_bytes(content)
  temporary.replace(path)
