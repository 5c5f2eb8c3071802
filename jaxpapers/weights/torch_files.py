"""PyTorch files (.pt, .pth, .pth.tar, .bin), read without torch.

Two containers hold a pickle of the structure and, apart from it, the numbers:
a zip archive (since torch 1.6), and before that one stream of pickles with the
numbers behind them. Files are mapped into memory: numbers are read when they
are used.
"""

import io
import mmap
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxpapers.data import files, restricted_pickle
from jaxpapers.weights import torch_pickle

# What a stream begins with: a number of ten bytes, as a pickle of protocol 2.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class TorchFile:
  """An open PyTorch file.

  Attributes:
    path: Its path.
    tree: Its content, with `torch_pickle.Tensor` records for tensors;
      `numbers` turns a part of it, or all, into arrays.
  """

  def __init__(
    self, path: Any, *, opaque: Sequence[str] = (), verify: bool = True
  ):
    """Reads the structure and none of the numbers. As `read_torch`."""
    self.path = files.as_path(path)
    stream, content = _open(self.path)
    self._verify = verify
    self._cache: dict[tuple[str, int], np.ndarray] = {}
    # Numbers of a storage in bytes, and whether they are of this byte order.
    self._bytes: Callable[[torch_pickle.Storage], np.ndarray]
    self._swapped = False
    start = bytes(content[:4])
    if start == b'PK\x03\x04':
      self._open_zip(stream, content, opaque)
    elif start[:1] == b'\x80':
      self._open_stream(stream, content, opaque)
    else:
      raise files.CorruptFileError(_not_torch(self.path, content))

  def numbers(self, tree: Any) -> Any:
    """A part of `tree` with arrays in place of tensors.

    Args:
      tree: `self.tree`, or what is below it.

    Returns:
      The same with dictionaries, lists, tuples, plain values, arrays that
      cannot be written (they lie on the file), and `Opaque` objects. Tensors
      that shared numbers still do.

    Raises:
      CorruptFileError: Numbers are missing or damaged.
    """
    try:
      return restricted_pickle.finish(tree, self._convert)
    except files.CorruptFileError:
      raise
    except Exception as error:  # records that a damaged pickle put together
      raise files.CorruptFileError(
        f'{self.path}: damaged: {type(error).__name__}: {error}.'
      ) from error

  def _convert(self, leaf: Any, walk: Callable[[Any], Any]) -> Any:
    if isinstance(leaf, torch_pickle.Tensor):
      return self._array(leaf)
    if isinstance(leaf, torch_pickle.Opaque):
      leaf.args, leaf.state = walk(leaf.args), walk(leaf.state)
      leaf.items = walk(leaf.items)
    elif isinstance(leaf, torch_pickle.Storage):
      return self._storage(leaf, leaf.dtype)
    elif isinstance(leaf, torch_pickle.Name):
      return leaf.name
    return leaf

  def _array(self, tensor: torch_pickle.Tensor) -> np.ndarray:
    flat = self._storage(tensor.storage, tensor.dtype)
    try:
      array = np.ndarray(
        tensor.shape,
        flat.dtype,
        flat,
        tensor.offset * flat.itemsize,
        [stride * flat.itemsize for stride in tensor.strides],
      )
    except (TypeError, ValueError):
      if 0 in tensor.shape:  # Empty tensors may begin anywhere.
        return np.zeros(tensor.shape, flat.dtype)
      raise files.CorruptFileError(
        f'{self.path}: a tensor of shape {tensor.shape} that begins at'
        f' {tensor.offset} with strides {tensor.strides} does not fit its'
        f' storage of {flat.size} numbers.'
      ) from None
    array = np.asarray(array.conj()) if tensor.conjugate else array
    array = np.asarray(-array) if tensor.negative else array
    array.flags.writeable = False
    return array

  def _storage(self, storage: torch_pickle.Storage, name: str) -> np.ndarray:
    """The numbers of a storage, flat."""
    dtype = torch_pickle.DTYPES['uint8' if name == 'bytes' else name]
    unit = dtype.itemsize // (2 if dtype.kind == 'c' else 1)
    raw = self._cache.get((storage.key, unit))
    if raw is None:
      raw = self._bytes(storage)
      if self._swapped and unit > 1:
        raw = raw.view(f'u{unit}').byteswap().view(np.uint8)
      self._cache[storage.key, unit] = raw
    size = torch_pickle.itemsize(storage.dtype)
    raw = raw[storage.start * size : (storage.start + storage.length) * size]
    return raw[: raw.size // dtype.itemsize * dtype.itemsize].view(dtype)

  def _open_zip(self, stream, content, opaque) -> None:
    try:
      # Not on the mapped file, which zipfile cannot decompress from.
      remote = isinstance(stream, io.BytesIO)
      archive = zipfile.ZipFile(stream if remote else self.path)
      names = {info.filename: info for info in archive.infolist()}
    except Exception as error:  # of zipfile, which raises several kinds
      raise files.CorruptFileError(
        f'{self.path}: the directory at the end of the zip archive is missing'
        f' or damaged ({error}); the file has {len(content):,} bytes. It was'
        ' cut short: get it again and compare its size.'
      ) from error
    pickles = [n for n in names if n.split('/')[1:] == ['data.pkl']]
    if len(pickles) != 1:
      raise files.CorruptFileError(
        f'{self.path}: a zip archive without data.pkl, so not of torch.save;'
        f' it holds {", ".join(list(names)[:3]) or "nothing"}.'
      )
    root = pickles[0].removesuffix('data.pkl')
    if f'{root}constants.pkl' in names:
      raise files.CorruptFileError(
        f'{self.path}: a TorchScript program, not weights. Where torch is:'
        ' torch.save(torch.jit.load(path).state_dict(), ...) and read that.'
      )

    def member(name, size=None):
      if name not in names:
        raise files.CorruptFileError(
          f'{self.path}: the archive lacks {name}, which its pickle refers to.'
        )
      info = names[name]
      if size is not None and info.file_size != size:
        raise files.CorruptFileError(
          f'{self.path}: {name} has {info.file_size:,} bytes; its pickle says'
          f' {size:,}.'
        )
      return self._member(archive, info, content)

    order = 'little'
    if f'{root}byteorder' in names:
      order = member(f'{root}byteorder').tobytes().decode('latin1')
    self._swapped = self._differs(order)
    pickled = io.BytesIO(member(pickles[0]).tobytes())
    self.tree, _ = torch_pickle.load(pickled, self.path, opaque)
    self._bytes = lambda storage: member(
      f'{root}data/{storage.key}',
      storage.size * torch_pickle.itemsize(storage.dtype),
    )

  def _member(self, archive, info, content) -> np.ndarray:
    """Bytes of a member of the archive, where they lie in the file."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
      try:
        return np.frombuffer(archive.read(info), np.uint8)
      except Exception as error:  # zlib, zipfile and others
        raise files.CorruptFileError(
          f'{self.path}: {info.filename} cannot be read: {error}.'
        ) from error
    header = bytes(content[info.header_offset :][:30])
    begin = info.header_offset + 30
    if len(header) == 30:
      begin += sum(struct.unpack('<HH', header[26:]))
    data = content[begin : begin + info.file_size]
    if header[:4] != b'PK\x03\x04' or data.size != info.file_size:
      raise files.CorruptFileError(
        f'{self.path}: {info.filename} is cut short or not where the'
        ' directory of the archive says.'
      )
    if self._verify and zlib.crc32(data) != info.CRC:
      raise files.CorruptFileError(
        f'{self.path}: {info.filename} is damaged: its checksum differs. If'
        ' the file was written without checksums, read it with verify=False.'
      )
    return data

  def _open_stream(self, stream, content, opaque) -> None:
    def load(what):
      try:
        return torch_pickle.load(stream, self.path, opaque)
      except torch_pickle.UnsafePickleError:
        raise
      except files.CorruptFileError as error:
        raise files.CorruptFileError(
          f'{error} (It should be {what}.)'
        ) from None

    first, _ = load('the magic number of a PyTorch file')
    if first != _MAGIC:
      raise files.CorruptFileError(
        f'{self.path}: a pickle, but not one of torch.save: it does not begin'
        f' with its magic number but with {type(first).__name__}.'
      )
    version, _ = load('the version of the format')
    if version != _PROTOCOL:
      raise files.CorruptFileError(
        f'{self.path}: version {version!r} of the format; expected {_PROTOCOL}.'
      )
    load('a description of the machine')
    # Whatever the machine: only archives are in its own byte order.
    self._swapped = self._differs('little')
    self.tree, storages = load('the saved object')
    keys, _ = load('the list of storages')
    places = {}
    position = stream.tell()
    for key in keys if isinstance(keys, list) else ():
      storage = storages.get(key)
      if storage is None:
        raise files.CorruptFileError(
          f'{self.path}: storage {key!r} is not the one of any tensor.'
        )
      header = bytes(content[position : position + 8])
      length = storage.size * torch_pickle.itemsize(storage.dtype)
      size = int.from_bytes(header, 'little')
      if len(header) == 8 and size != storage.size:
        raise files.CorruptFileError(
          f'{self.path}: storage {key} has {size:,} numbers at byte'
          f' {position:,}; its tensors say {storage.size:,}.'
        )
      position += 8 + length
      if position > len(content):
        raise files.CorruptFileError(
          f'{self.path}: cut short: the file has {len(content):,} bytes, and'
          f' storage {key} ends at byte {position:,}. Get it again.'
        )
      places[key] = content[position - length : position]
    missing = [key for key in storages if key not in places]
    if missing:
      raise files.CorruptFileError(
        f'{self.path}: no numbers for storage {missing[0]}'
        f' ({len(missing)} of {len(storages)} are missing).'
      )
    self._bytes = lambda storage: places[storage.key]

  def _differs(self, order: str) -> bool:
    if order not in ('little', 'big'):
      raise files.CorruptFileError(
        f'{self.path}: byte order {order!r}; expected little or big.'
      )
    return order != sys.byteorder


def read_torch(
  path: Any, *, opaque: Sequence[str] = (), verify: bool = True
) -> Any:
  """Reads everything that `torch.save` wrote to a file.

  Args:
    path: The file, local or gs://; .pt, .pth, .pth.tar, .bin, whatever torch
      wrote it (both containers).
    opaque: Names of classes, or prefixes that end with a dot, which are read as
      inert `Opaque` objects instead of being refused. Namespaces of argparse,
      omegaconf and fairseq always are.
    verify: Whether to check the checksums of numbers (zip only).

  Returns:
    Dictionaries, lists, tuples, strings, numbers and NumPy arrays as they were
    nested. Arrays are read-only views of the file; bfloat16 is that of
    `jax.numpy`. Parameters lose gradient, hooks and attributes.

  Raises:
    FileNotFoundError: There is no such file.
    UnsafePickleError: The file asks for something else than tensors and plain
      data; it is named, and none of it was run.
    CorruptFileError: It is damaged, cut short or no file of torch.

  Example:
    >>> checkpoint = read_torch('model.pth.tar')  # doctest: +SKIP
    >>> checkpoint['epoch'], checkpoint['state_dict'].keys()  # doctest: +SKIP
  """
  file = TorchFile(path, opaque=opaque, verify=verify)
  return file.numbers(file.tree)


def _open(path) -> tuple[Any, np.ndarray]:
  """A file as a stream and as bytes, mapped into memory if it is local."""
  if not path.exists():
    raise FileNotFoundError(f'There is no file {path}.')
  if path.is_dir():
    raise IsADirectoryError(f'{path} is a folder; expected a file of torch.')
  if '://' in str(path):
    content = path.read_bytes()
    return io.BytesIO(content), np.frombuffer(content, np.uint8)
  with open(path, 'rb') as file:
    if not file.seek(0, 2):
      raise files.CorruptFileError(f'{path} is empty.')
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  return mapped, np.frombuffer(mapped, np.uint8)


def _not_torch(path, content: np.ndarray) -> str:
  start = bytes(content[:4])
  if start == b'vers':
    what = 'a Git LFS pointer: get the file itself'
  elif start[:1] == b'<':
    what = 'a page of a web server, saved under the name of the file'
  elif bytes(content[257:262]) == b'ustar':
    what = 'a tar archive: unpack it; if torch before 0.1.10 (2017) wrote it,'
    what += ' save it anew with a later one'
  else:
    what = f'it begins with {start!r}; files of torch.save with PK or \\x80'
  return f'{path}: not a PyTorch file, of {len(content):,} bytes: {what}.'
