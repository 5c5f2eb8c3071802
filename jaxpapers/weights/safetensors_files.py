"""Safetensors files: read one array at a time, written whole or not at all."""

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.data import files

# Types that the library itself does not hand over to NumPy.
_EIGHT_BITS = {
  'F8_E4M3': jnp.float8_e4m3fn,
  'F8_E5M2': jnp.float8_e5m2,
}
_WRITABLE = (
  'bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16'
  ' float32 float64 complex64 float8_e4m3fn float8_e5m2'
).split()


def read_safetensors(path: Any) -> dict[str, Callable[[], np.ndarray]]:
  """Opens a file; its arrays are read when they are asked for.

  Args:
    path: The file, local or gs://.

  Returns:
    Name -> a function without arguments that reads the array.

  Raises:
    FileNotFoundError: There is no such file.
    CorruptFileError: It is damaged, cut short or not in this format.
  """
  import safetensors

  path = files.as_path(path)
  if not path.exists():
    raise FileNotFoundError(f'There is no file {path}.')
  try:
    if '://' in str(path):
      return _readers(safetensors.deserialize(path.read_bytes()))
    file = safetensors.safe_open(os.fspath(path), framework='np')
    names = list(file.keys())
    types = {name: file.get_slice(name).get_dtype() for name in names}
    if _EIGHT_BITS.keys() & set(types.values()):
      return _readers(safetensors.deserialize(path.read_bytes()))
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise files.CorruptFileError(
      f'{path}: damaged, cut short or not a safetensors file: {error}. It has'
      f' {files.size(path):,} bytes; get it again and compare its size.'
    ) from error

  def reader(name):
    return lambda: file.get_tensor(name)

  return {name: reader(name) for name in names}


def _readers(deserialized) -> dict[str, Callable[[], np.ndarray]]:
  """Arrays on bytes that were read as a whole."""
  names = {
    'BF16': jnp.bfloat16,
    'BOOL': np.bool_,
    'C64': np.complex64,
    **_EIGHT_BITS,
  }

  def reader(value):
    code = value['dtype']
    if code not in names:
      code = f'{dict(F="f", I="i", U="u")[code[0]]}{int(code[1:]) // 8}'
    dtype = np.dtype(names.get(code, code))
    return lambda: np.frombuffer(value['data'], dtype).reshape(value['shape'])

  return {name: reader(value) for name, value in deserialized}


def write_safetensors(
  path: str | os.PathLike,
  tensors: Mapping[str, Any],
  *,
  metadata: Mapping[str, str] | None = None,
  max_shard_bytes: int | None = None,
) -> list[Any]:
  """Writes arrays under their names.

  Files appear under their names only when they are complete. With several, the
  index comes last.

  Args:
    path: The file, local or gs://, such as 'folder/model.safetensors'.
    tensors: Name -> array of NumPy or JAX, of any memory layout. It may be a
      lazy mapping: one file's arrays are in memory at a time.
    metadata: Texts for the header. {'format': 'pt'} is what other libraries
      look for, and the default.
    max_shard_bytes: Above it, the arrays are split over files
      'model-00001-of-00002.safetensors' with 'model.safetensors.index.json', in
      the layout of Hugging Face. An array alone may be larger.

  Returns:
    The paths written, the index last.

  Raises:
    TypeError: An array is of a type that the format does not have.
    ValueError: An array lies on devices of other processes.

  Example:
    >>> write_safetensors('w.safetensors', {'w': np.ones(3)})  # doctest: +SKIP
  """
  path = files.as_path(path)
  if not str(path).endswith('.safetensors'):
    raise ValueError(f'path is {path}; expected a name in .safetensors.')
  if max_shard_bytes is not None and max_shard_bytes < 1:
    raise ValueError(
      f'max_shard_bytes is {max_shard_bytes}; expected 1 or more.'
    )
  sizes = {name: _size(name, tensor) for name, tensor in tensors.items()}
  groups = list(_split(sizes, max_shard_bytes))
  stem = path.name.removesuffix('.safetensors')
  index = path.with_name(f'{path.name}.index.json')
  before = _shards_of(index)
  metadata = {'format': 'pt'} if metadata is None else dict(metadata)
  path.parent.mkdir(parents=True, exist_ok=True)
  paths = [path]
  if len(groups) > 1:
    paths = [
      path.with_name(f'{stem}-{k:05d}-of-{len(groups):05d}.safetensors')
      for k in range(1, len(groups) + 1)
    ]
  parts = []
  try:
    for target, names in zip(paths, groups, strict=True):
      parts.append(_temporary(target))
      arrays = {name: _array(tensors[name]) for name in names}
      _save(parts[-1], arrays, metadata)
    for part, target in zip(parts, paths, strict=True):
      part.replace(target)
  finally:
    for part in parts:
      part.unlink(missing_ok=True)
  if len(groups) > 1:
    weight_map = {
      name: target.name
      for target, names in zip(paths, groups, strict=True)
      for name in names
    }
    content = {
      'metadata': {'total_size': sum(sizes.values())},
      'weight_map': dict(sorted(weight_map.items())),
    }
    write_text(index, json.dumps(content, indent=2) + '\n')
    paths.append(index)
  # What an earlier call left would be read instead, or beside it.
  for old in {path, index, *before} - set(paths):
    old.unlink(missing_ok=True)
  return paths


def write_text(path: Any, text: str) -> None:
  """Writes a text file, which appears only when it is complete."""
  part = _temporary(path)
  try:
    part.write_text(text)
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def read_index(path: Any) -> dict[str, str]:
  """Name of each array -> name of the file beside the index that holds it.

  Raises:
    CorruptFileError: It is no such index, or names files elsewhere.
  """
  path = files.as_path(path)
  try:
    weight_map = json.loads(path.read_text())['weight_map']
    entries = dict(weight_map).items()
  except (ValueError, KeyError, TypeError) as error:
    raise files.CorruptFileError(
      f'{path}: not an index of weights: {type(error).__name__}: {error};'
      " expected JSON with 'weight_map', from names to files."
    ) from error
  for name, file in entries:
    if not isinstance(file, str) or not file or file.strip('.') == '':
      raise files.CorruptFileError(f'{path}: {name} is in {file!r}.')
    if '/' in file or '\\' in file or ':' in file:
      raise files.CorruptFileError(
        f'{path}: {name} is in {file!r}; expected a file beside the index.'
      )
  return dict(entries)


def _shards_of(index) -> list[Any]:
  if not index.exists():
    return []
  try:
    return [index.with_name(file) for file in read_index(index).values()]
  except files.CorruptFileError:
    return []


def _temporary(path):
  return path.with_name(f'.{path.name}.{os.getpid()}.tmp')


def _size(name: Any, tensor: Any) -> int:
  if not isinstance(name, str):
    raise TypeError(f'{name!r} is no name of an array; expected a string.')
  dtype = getattr(tensor, 'dtype', None)
  if dtype is None or np.dtype(dtype).name not in _WRITABLE:
    kind = type(tensor).__name__ if dtype is None else dtype
    raise TypeError(
      f'{name} is {kind}, which safetensors cannot hold; expected an array of'
      f' one of {", ".join(_WRITABLE)}.'
    )
  if isinstance(tensor, jax.Array) and not tensor.is_fully_addressable:
    raise ValueError(
      f'{name} lies on devices of other processes too. Gather it first, as with'
      ' jax.experimental.multihost_utils.process_allgather.'
    )
  return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _split(sizes: Mapping[str, int], limit: int | None) -> Iterator[list[str]]:
  """Names of the arrays of each file, in order."""
  group, total = [], 0
  for name, size in sizes.items():
    if group and limit is not None and total + size > limit:
      yield group
      group, total = [], 0
    group.append(name)
    total += size
  yield group


def _array(tensor: Any) -> np.ndarray:
  """The numbers in C order and little-endian: the library takes any memory."""
  array = np.asarray(tensor, order='C')
  if array.dtype.byteorder == '>':
    array = array.astype(array.dtype.newbyteorder('<'))
  return array


def _save(path, arrays, metadata) -> None:
  import safetensors.numpy

  if '://' in str(path):
    path.write_bytes(safetensors.numpy.save(arrays, metadata))
  else:
    # The library gives its files to their owner alone; a new file here has the
    # mode that the user's umask asks for.
    path.touch()
    local = os.fspath(path)  # What an epath says of a file has no mode.
    mode = stat.S_IMODE(os.stat(local).st_mode)
    safetensors.numpy.save_file(arrays, local, metadata)
    os.chmod(local, mode)
