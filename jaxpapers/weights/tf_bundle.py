"""TensorFlow's checkpoints, read without TensorFlow.

A checkpoint `model.ckpt` is `model.ckpt.index`, a sorted table (LevelDB's
format) from names to records, and `model.ckpt.data-00000-of-00001` with the
numbers one after another.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpapers.data import crc32c, files
from jaxpapers.weights.state_dict import StateDict

_MAGIC = 0xDB4775248B80FB57
# TensorFlow's numbers of types.
_DTYPES = {
  1: np.dtype('<f4'),
  2: np.dtype('<f8'),
  3: np.dtype('<i4'),
  4: np.dtype('u1'),
  5: np.dtype('<i2'),
  6: np.dtype('i1'),
  9: np.dtype('<i8'),
  10: np.dtype('?'),
  14: np.dtype(jnp.bfloat16),
  17: np.dtype('<u2'),
  19: np.dtype('<f2'),
  22: np.dtype('<u4'),
  23: np.dtype('<u8'),
}


class _Record(NamedTuple):
  """Where an array is."""

  dtype: int
  shape: tuple[int, ...]
  shard: int
  offset: int
  size: int
  checksum: int | None


def open_tf_checkpoint(path: Any, *, verify: bool = True) -> StateDict:
  """Opens a checkpoint that a `Saver` of TensorFlow wrote.

  Strings, which are no weights, are left out.

  Args:
    path: `model.ckpt`, its `.index` file, or a folder whose file `checkpoint`
      names the latest, or that holds one checkpoint.
    verify: Whether checksums of arrays are compared when they are read.

  Returns:
    Name -> array, read when it is asked for.

  Raises:
    FileNotFoundError: There is no checkpoint, or a file of it is missing.
    CorruptFileError: The index or an array is damaged or cut short.

  Example:
    >>> state = open_tf_checkpoint('efficientnet-b0')  # doctest: +SKIP
    >>> state['efficientnet-b0/stem/conv2d/kernel'].shape  # doctest: +SKIP
    (3, 3, 3, 32)
  """
  index = _find_index(files.as_path(path))
  try:
    records = dict(_read_table(index.read_bytes()))
    count = _first(_fields(records.pop('')), 1, 1)
    parsed = {
      name: record
      for name, value in records.items()
      if (record := _parse_record(value)).dtype in _DTYPES
    }
  except (IndexError, KeyError, ValueError, UnicodeDecodeError) as error:
    raise files.CorruptFileError(
      f'{index} is no index of a TensorFlow checkpoint, or damaged: {error}.'
    ) from error
  stem = index.name.removesuffix('.index')
  shards = [
    index.parent / f'{stem}.data-{i:05d}-of-{count:05d}' for i in range(count)
  ]
  for shard in shards:
    if not shard.exists():
      raise FileNotFoundError(f'{index} refers to {shard.name}, not beside it.')

  def reader(name, record):
    return lambda: _read_array(shards[record.shard], name, record, verify)

  return StateDict(
    index, {name: reader(name, record) for name, record in parsed.items()}
  )


def _find_index(path):
  if path.is_dir():
    latest = path / 'checkpoint'
    if latest.exists():
      match = re.search(
        r'^model_checkpoint_path: "(.*)"', latest.read_text(), re.MULTILINE
      )
      if match:
        # Often the path on the machine that wrote it.
        name = match.group(1).rpartition('/')[2]
        if (path / f'{name}.index').exists():
          return path / f'{name}.index'
    found = sorted(p for p in path.iterdir() if p.name.endswith('.index'))
    if len(found) != 1:
      raise FileNotFoundError(
        f'{path} holds {len(found)} checkpoints of TensorFlow; expected one, or'
        ' a file "checkpoint" that names one.'
      )
    return found[0]
  if path.name.endswith('.index'):
    index = path
  else:
    index = path.with_name(f'{path.name}.index')
  if not index.exists():
    raise FileNotFoundError(f'There is no file {index}.')
  return index


def _read_table(data: bytes) -> Iterator[tuple[str, bytes]]:
  """All entries of a sorted table."""
  if len(data) < 48 or int.from_bytes(data[-8:], 'little') != _MAGIC:
    raise ValueError('it does not end as a table does')
  footer = memoryview(data)[-48:]
  _, place = _varint(footer, 0)  # The block of statistics, not needed.
  _, place = _varint(footer, place)
  offset, place = _varint(footer, place)
  size, _ = _varint(footer, place)
  for _, handle in _block(data, offset, size):
    start, place = _varint(handle, 0)
    length, _ = _varint(handle, place)
    for name, value in _block(data, start, length):
      yield name.decode('utf-8'), value


def _block(data: bytes, offset: int, size: int):
  """Keys and values of a block; keys share their beginning with the last."""
  if offset + size + 5 > len(data):
    raise ValueError('a block lies outside of it')
  if data[offset + size]:
    raise ValueError('it is compressed, which checkpoints are not')
  end = offset + size + 1
  stored = int.from_bytes(data[end : end + 4], 'little')
  if _checksum(data[offset:end]) != stored:
    raise ValueError('a checksum is wrong')
  content = memoryview(data)[offset : offset + size]
  restarts = int.from_bytes(content[-4:], 'little')
  end = size - 4 * (restarts + 1)
  if end < 0:
    raise ValueError('a block is too short')
  place, key = 0, b''
  while place < end:
    shared, place = _varint(content, place)
    own, place = _varint(content, place)
    length, place = _varint(content, place)
    if shared > len(key) or place + own + length > end:
      raise ValueError('an entry does not fit its block')
    key = key[:shared] + bytes(content[place : place + own])
    place += own
    yield key, bytes(content[place : place + length])
    place += length


def _varint(data, place: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = data[place]
    place += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value, place
    shift += 7
    if shift > 63:
      raise ValueError('a number is too long')


def _fields(message: bytes) -> list[tuple[int, Any]]:
  """Numbers and values of a protocol buffer."""
  found, place = [], 0
  while place < len(message):
    tag, place = _varint(message, place)
    kind = tag & 7
    if kind == 0:
      value, place = _varint(message, place)
    elif kind == 2:
      length, place = _varint(message, place)
      value, place = message[place : place + length], place + length
    elif kind in (1, 5):
      length = 8 if kind == 1 else 4
      value = int.from_bytes(message[place : place + length], 'little')
      place += length
    else:
      raise ValueError(f'a field of kind {kind}')
    found.append((tag >> 3, value))
  if place != len(message):
    raise ValueError('a record is cut short')
  return found


def _first(fields, number: int, default: Any) -> Any:
  return next((value for n, value in fields if n == number), default)


def _parse_record(value: bytes) -> _Record:
  fields = _fields(value)
  if any(number == 7 for number, _ in fields):
    raise ValueError('an array is stored in slices, which are not read')
  shape = tuple(
    _first(_fields(dim), 1, 0)
    for number, dim in _fields(_first(fields, 2, b''))
    if number == 2
  )
  return _Record(
    _first(fields, 1, 0),
    shape,
    _first(fields, 3, 0),
    _first(fields, 4, 0),
    _first(fields, 5, 0),
    _first(fields, 6, None),
  )


def _read_array(path, name: str, record: _Record, verify: bool) -> np.ndarray:
  dtype = _DTYPES[record.dtype]
  with path.open('rb') as file:
    file.seek(record.offset)
    content = file.read(record.size)
  expected = dtype.itemsize * int(np.prod(record.shape, dtype=np.int64))
  if len(content) != record.size or record.size != expected:
    raise files.CorruptFileError(
      f'{path}: {name} has {len(content)} bytes; expected {expected} for'
      f' {dtype} of shape {record.shape}. The file is cut short or another.'
    )
  if verify and record.checksum not in (None, _checksum(content)):
    raise files.CorruptFileError(
      f'{path}: the checksum of {name} is wrong: the file is damaged.'
    )
  return np.frombuffer(content, dtype).reshape(record.shape)


def _checksum(content: bytes) -> int:
  return crc32c.mask(crc32c.crc32c(content))
