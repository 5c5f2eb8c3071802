"""TFRecord files and the Examples in them, without TensorFlow.

A record is: its length as uint64, the masked CRC-32C of these 8 bytes, the
payload, its masked CRC-32C; all little-endian. The payload of a data set is
usually a protocol buffer, tf.train.Example: a map from names to lists of bytes,
floats or integers.
"""

import os
import pathlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from jaxpapers.data import crc32c, files

_HEADER = struct.Struct('<QI')
_CHECKSUM = struct.Struct('<I')
_FRAME = _HEADER.size + _CHECKSUM.size


class TFRecordSource:
  """Records of one or more files, each read when it is asked for.

  Opening reads the 12 bytes before each record, and nothing of the payloads:
  a source of a million records holds 24 MB.

  Example:
    >>> source = TFRecordSource(['train-00000-of-00001'])  # doctest: +SKIP
    >>> parse_example(source[0])['image/class/label']  # doctest: +SKIP
  """

  def __init__(self, paths: Sequence[Any], *, verify: bool = True):
    """Args below.

    Args:
      paths: Uncompressed files, local or on any file system that etils.epath
        knows; in this order.
      verify: Whether payloads are compared with their checksums.

    Raises:
      FileNotFoundError: A file is not there.
      ValueError: There are no paths.
      CorruptFileError: A file is no TFRecord file, or is cut short.
    """
    self._paths = [files.as_path(path) for path in paths]
    if not self._paths:
      raise ValueError('paths is empty; expected one or more TFRecord files.')
    self._verify = verify
    workers = min(16, len(self._paths))
    with futures.ThreadPoolExecutor(workers) as pool:
      indices = list(pool.map(_index, self._paths))
    self._files = np.repeat(
      np.arange(len(indices), dtype=np.int32), [len(i) for i in indices]
    )
    # Position and length of payloads.
    self._places = np.concatenate(indices)

  def __len__(self) -> int:
    return len(self._files)

  def name(self, index: int) -> str:
    """File and number of a record, for errors."""
    file = self._files[index]
    number = index - int(np.searchsorted(self._files, file))
    return f'{self._paths[file]}, record {number}'

  def __getitem__(self, index: int) -> bytes:
    start, length = self._places[index].tolist()
    with self._paths[self._files[index]].open('rb') as stream:
      stream.seek(start)
      content = stream.read(length + _CHECKSUM.size)
    if len(content) != length + _CHECKSUM.size:
      raise files.CorruptFileError(
        f'{self.name(index)}: the file has become shorter.'
      )
    payload = content[:length]
    if self._verify:
      (stored,) = _CHECKSUM.unpack_from(content, length)
      found = crc32c.mask(crc32c.crc32c(payload))
      if found != stored:
        raise files.CorruptFileError(
          f'{self.name(index)}: its checksum is {found:#010x}, the file says'
          f' {stored:#010x}. Get the file again.'
        )
    return payload


def _index(path) -> np.ndarray:
  """Position and length of the payloads of a file, int64 [n, 2]."""
  if not path.exists():
    raise FileNotFoundError(f'{path}: there is no such file.')
  end, position, places = files.size(path), 0, []
  # Without a buffer: it would read 8 kB for every 12 bytes.
  buffering = {'buffering': 0} if isinstance(path, pathlib.Path) else {}
  with path.open('rb', **buffering) as stream:
    while position < end:
      stream.seek(position)
      header = stream.read(_HEADER.size)
      if position == 0 and header[:2] == b'\x1f\x8b':
        raise files.CorruptFileError(
          f'{path}: is compressed by gzip, and records of it cannot be read one'
          ' by one. Decompress it: gunzip.'
        )
      length, stored = 0, None
      if len(header) == _HEADER.size:
        length, stored = _HEADER.unpack(header)
      if stored != crc32c.mask(crc32c.crc32c(header[:8])):
        raise files.CorruptFileError(
          f'{path}: no record begins at byte {position:,} of {end:,}, after'
          f' {len(places):,} sound ones. Is it a TFRecord file, and whole?'
        )
      if position + _FRAME + length > end:
        raise files.CorruptFileError(
          f'{path}: cut short within record {len(places)}: it needs'
          f' {position + _FRAME + length:,} bytes, the file has {end:,}. Get it'
          ' again.'
        )
      places.append((position + _HEADER.size, length))
      position += _FRAME + length
  return np.array(places, np.int64).reshape(-1, 2)


def write_tfrecord(path: str | os.PathLike, payloads: Iterable[bytes]) -> None:
  """Writes a TFRecord file, under a temporary name first.

  Args:
    path: The file; one that is there is replaced.
    payloads: Content of the records.
  """
  path = files.as_path(path)
  temporary = path.parent / f'{path.name}.partial'
  with temporary.open('wb') as stream:
    for payload in payloads:
      length = struct.pack('<Q', len(payload))
      stream.write(length)
      for part in (length, payload):
        if part is payload:
          stream.write(payload)
        stream.write(_CHECKSUM.pack(crc32c.mask(crc32c.crc32c(part))))
  temporary.replace(path)


def parse_example(payload: bytes) -> dict[str, Any]:
  """Reads a tf.train.Example.

  Args:
    payload: The protocol buffer.

  Returns:
    Name -> list of bytes, float32 [n] or int64 [n].

  Raises:
    CorruptFileError: It is no such message.

  Example:
    >>> parse_example(encode_example({'label': [3], 'name': [b'cat']}))
    {'label': array([3]), 'name': [b'cat']}
  """
  try:
    return _parse_example(payload)
  except (
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    struct.error,
  ) as error:  # A number where there should be a message, too.
    raise files.CorruptFileError(
      f'a payload of {len(payload):,} bytes is no tf.train.Example'
      f' ({type(error).__name__}: {error}).'
    ) from error


def _parse_example(payload):
  found = {}
  for number, features in _fields(payload):
    if number != 1:
      continue
    for _, entry in _fields(features):
      pair = dict(_fields(entry))
      found[pair[1].decode()] = _values(pair.get(2, b''))
  return found


def _values(feature):
  for kind, content in _fields(feature):
    if kind == 1:
      return [item for _, item in _fields(content)]
    items = [item for _, item in _fields(content)]
    if kind == 2:  # Packed bytes, or bytes of one number each.
      return np.frombuffer(b''.join(items), '<f4').astype(np.float32)
    if kind == 3:
      numbers = []
      for item in items:
        if isinstance(item, bytes):
          position = 0
          while position < len(item):
            number, position = _varint(item, position)
            numbers.append(number)
        else:
          numbers.append(item)
      return np.array(numbers, np.uint64).astype(np.int64)
    raise ValueError(f'a feature of kind {kind}')
  return []


def _fields(content):
  """Yields (number, value) of a message: bytes, or an int for a varint."""
  position = 0
  while position < len(content):
    key, position = _varint(content, position)
    kind = key & 7
    if kind == 0:
      value, position = _varint(content, position)
    else:
      if kind == 2:
        length, position = _varint(content, position)
      else:
        length = {1: 8, 5: 4}[kind]
      value = content[position : position + length]
      position += length
      if len(value) != length:
        raise ValueError('it ends within a field')
    yield key >> 3, value


def _varint(content, position):
  number = shift = 0
  while True:
    byte = content[position]
    position += 1
    number |= (byte & 0x7F) << shift
    if byte < 0x80:
      return number & (2**64 - 1), position
    shift += 7
    if shift > 63:
      raise ValueError('a number of more than 64 bits')


def encode_example(features: Mapping[str, Any]) -> bytes:
  """Writes a tf.train.Example.

  Args:
    features: Name -> list of bytes or text, of floats, or of integers.

  Returns:
    The protocol buffer.

  Raises:
    TypeError: If a list holds something else.
  """
  entries = b''
  for name, values in features.items():
    values = list(values)
    if all(isinstance(value, (bytes, str)) for value in values):
      encoded = (v.encode() if isinstance(v, str) else v for v in values)
      feature = _message(1, b''.join(_message(1, v) for v in encoded))
    elif all(isinstance(value, (int, np.integer)) for value in values):
      packed = b''.join(_encode_varint(int(v) % 2**64) for v in values)
      feature = _message(3, _message(1, packed))
    elif all(isinstance(value, (float, np.floating)) for value in values):
      packed = np.asarray(values, '<f4').tobytes()
      feature = _message(2, _message(1, packed))
    else:
      raise TypeError(
        f'features[{name!r}] holds {values[:3]}; expected only bytes or text,'
        ' only integers or only floats.'
      )
    entry = _message(1, name.encode()) + _message(2, feature)
    entries += _message(1, entry)
  return _message(1, entries)


def _message(number, content):
  head = _encode_varint(number << 3 | 2) + _encode_varint(len(content))
  return head + content


def _encode_varint(number):
  encoded = bytearray()
  while number > 0x7F:
    encoded.append(number & 0x7F | 0x80)
    number >>= 7
  encoded.append(number)
  return bytes(encoded)
