"""CIFAR-10 and CIFAR-100: python and binary versions, folder or archive."""

import dataclasses
import tarfile
import zlib
from typing import Any

import numpy as np

from jaxpapers.data import files, restricted_pickle

_PIXELS = 32 * 32 * 3


@dataclasses.dataclass(frozen=True)
class _Version:
  """One of the four published forms."""

  folder: str
  archive: str
  size: str
  members: dict[str, tuple[str, ...]]
  labels: tuple[tuple[str, str, int], ...]  # (ours, in the pickle, classes)
  names: str  # file of the names of the classes
  binary: bool


def _cifar10(kind, folder, size, end, names):
  train = tuple(f'data_batch_{k}{end}' for k in range(1, 6))
  return _Version(
    folder,
    f'cifar-10-{kind}.tar.gz',
    size,
    {'train': train, 'test': (f'test_batch{end}',)},
    (('label', 'labels', 10),),
    names,
    kind == 'binary',
  )


def _cifar100(kind, folder, size, end, names):
  return _Version(
    folder,
    f'cifar-100-{kind}.tar.gz',
    size,
    {'train': (f'train{end}',), 'test': (f'test{end}',)},
    # In this order in the binary version.
    (('coarse_label', 'coarse_labels', 20), ('label', 'fine_labels', 100)),
    names,
    kind == 'binary',
  )


_CIFAR10 = (
  _cifar10('python', 'cifar-10-batches-py', '170,498,071', '', 'batches.meta'),
  _cifar10(
    'binary',
    'cifar-10-batches-bin',
    '170,052,171',
    '.bin',
    'batches.meta.txt',
  ),
)
_CIFAR100 = (
  _cifar100('python', 'cifar-100-python', '169,001,437', '', 'meta'),
  _cifar100(
    'binary', 'cifar-100-binary', '168,513,733', '.bin', 'fine_label_names.txt'
  ),
)


def load_cifar10(path: Any, split: str = 'train') -> dict[str, np.ndarray]:
  """Reads CIFAR-10.

  Args:
    path: the official archive (cifar-10-python.tar.gz or
      cifar-10-binary.tar.gz, read without unpacking it), its unpacked folder,
      or a folder that holds one of these.
    split: 'train' (50,000 in the official files) or 'test' (10,000).

  Returns:
    {'image': uint8 [n, 32, 32, 3] RGB, 'label': int32 [n] in 0..9}, in the
    order of the files.

  Raises:
    ValueError: `split` is another word.
    FileNotFoundError: neither form is at `path`; lists what to put there.
    CorruptFileError: a file is damaged, cut short, or a pickle that asks for
      more than plain data.

  Example:
    >>> train = load_cifar10('~/data/cifar10', 'train')  # doctest: +SKIP
  """
  return _load('CIFAR-10', _CIFAR10, path, split)


def load_cifar100(path: Any, split: str = 'train') -> dict[str, np.ndarray]:
  """Reads CIFAR-100 with its fine and coarse labels.

  Args:
    path: the official archive (cifar-100-python.tar.gz or
      cifar-100-binary.tar.gz, read without unpacking it), its unpacked folder,
      or a folder that holds one of these.
    split: 'train' (50,000 in the official files) or 'test' (10,000).

  Returns:
    {'image': uint8 [n, 32, 32, 3] RGB, 'label': int32 [n] in 0..99 (fine),
    'coarse_label': int32 [n] in 0..19}, in the order of the files.

  Raises:
    ValueError: `split` is another word.
    FileNotFoundError: neither form is at `path`; lists what to put there.
    CorruptFileError: a file is damaged, cut short, or a pickle that asks for
      more than plain data.

  Example:
    >>> train = load_cifar100('~/data/cifar100')  # doctest: +SKIP
  """
  return _load('CIFAR-100', _CIFAR100, path, split)


def cifar_class_names(path: Any) -> tuple[str, ...]:
  """Names of the classes, in the order of 'label'.

  Args:
    path: as for `load_cifar10` and `load_cifar100`. Of a folder that holds
      both, the names of CIFAR-10: name the archive or subfolder instead.

  Returns:
    10 or 100 names.

  Raises:
    FileNotFoundError: no CIFAR is at `path`.
    CorruptFileError: the file of the names is damaged.
  """
  found = _locate('CIFAR', _CIFAR10 + _CIFAR100, path, None)
  version, name, content = next(_members(*found, (found[0].names,)))
  if version.binary:
    return tuple(content.decode('ascii').split())
  meta = restricted_pickle.load(content, name)
  key = b'label_names' if b'label_names' in meta else b'fine_label_names'
  return tuple(_text(label) for label in meta[key])


def _text(value):
  return value.decode('ascii') if isinstance(value, bytes) else value


def _load(what, versions, path, split):
  if split not in ('train', 'test'):
    raise ValueError(f"split is {split!r}; expected 'train' or 'test'.")
  version, place = _locate(what, versions, path, split)
  parts = [
    _read_binary(*member) if version.binary else _read_python(*member)
    for member in _members(version, place, version.members[split])
  ]
  data = {
    key: np.concatenate([part[key] for part in parts]) for key in parts[0]
  }
  # Planes of red, green and blue, each row by row.
  planes = data['image'].reshape(-1, 3, 32, 32)
  data['image'] = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
  return data


def _locate(what, versions, path, split):
  """(version, folder or archive) of what is at `path`."""
  path = files.as_path(path)
  if path.is_file():
    for version in versions:
      if path.name == version.archive:
        return version, path
  elif path.is_dir():
    for version in versions:
      first = version.members[split or 'test'][0]
      folders = [path] if path.name == version.folder else []
      folders.append(path / version.folder)
      # A folder of another name with unmistakable files in it. Those of the
      # python version of CIFAR-100 are called just `train` and `test`.
      if version.binary or len(version.members['train']) > 1:
        folders.append(path)
      for folder in folders:
        if (folder / first).is_file():
          return version, folder
    for version in versions:
      if (path / version.archive).is_file():
        return version, path / version.archive
  expected = '\nor\n'.join(
    f'  {version.archive}   {version.size} bytes\n'
    f'  or unpacked: {version.folder}/ with '
    + ', '.join(name for names in version.members.values() for name in names)
    for version in versions
  )
  raise files.missing(what, path, expected)


def _members(version, place, names):
  """Yields (version, name for errors, content) of files of one version."""
  if place.is_dir():
    for name in names:
      path = place / name
      if not path.is_file():
        raise files.missing(str(path), place, f'  {name}')
      yield version, path, path.read_bytes()
    return
  contents = {}
  try:
    with (
      place.open('rb') as stream,
      tarfile.open(fileobj=stream, mode='r:*') as archive,
    ):
      for member in archive:
        name = member.name.rpartition('/')[2]
        if member.isfile() and name in names:
          contents[name] = archive.extractfile(member).read()
        if len(contents) == len(names):
          break
  except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
    raise files.CorruptFileError(
      f'{place}: the archive is damaged or cut short ({error}); expected'
      f' {version.size} bytes, got {files.size(place):,}.'
    ) from error
  for name in names:
    if name not in contents:
      raise files.CorruptFileError(
        f'{place}: holds no {name}; expected the official {version.archive}.'
      )
    yield version, f'{place}:{name}', contents[name]


def _read_python(version, name, content):
  batch = restricted_pickle.load(content, name)
  if not isinstance(batch, dict):
    raise files.CorruptFileError(
      f'{name}: expected a pickled dictionary, got {type(batch).__name__}.'
    )
  batch = {
    key.encode() if isinstance(key, str) else key: value
    for key, value in batch.items()
  }
  data = {'image': batch.get(b'data')}
  image = data['image']
  if (
    not isinstance(image, np.ndarray)
    or image.dtype != np.uint8
    or image.ndim != 2
    or image.shape[1] != _PIXELS
  ):
    got = (
      f'{image.dtype} {list(image.shape)}'
      if isinstance(image, np.ndarray)
      else type(image).__name__
    )
    raise files.CorruptFileError(
      f"{name}: expected b'data' to be uint8 [n, {_PIXELS}], got {got}."
    )
  for ours, theirs, classes in version.labels:
    if theirs.encode() not in batch:
      raise files.CorruptFileError(
        f"{name}: has no b'{theirs}'; it has {sorted(batch)}."
      )
    try:
      labels = np.asarray(batch[theirs.encode()], np.int32)
    except (TypeError, ValueError, OverflowError) as error:
      raise files.CorruptFileError(
        f"{name}: b'{theirs}' is not a list of integers: {error}."
      ) from error
    data[ours] = _checked_labels(labels, len(image), classes, name)
  return data


def _read_binary(version, name, content):
  record = len(version.labels) + _PIXELS
  if not content or len(content) % record:
    raise files.CorruptFileError(
      f'{name}: got {len(content):,} bytes; expected a multiple of {record}'
      f' ({len(version.labels)} of labels and {_PIXELS} of pixels for each'
      ' image; 10,000 images in an official test file).'
    )
  rows = np.frombuffer(content, np.uint8).reshape(-1, record)
  data = {'image': rows[:, len(version.labels) :]}
  for column, (ours, _, classes) in enumerate(version.labels):
    labels = rows[:, column].astype(np.int32)
    data[ours] = _checked_labels(labels, len(rows), classes, name)
  return data


def _checked_labels(labels, count, classes, name):
  if labels.shape != (count,):
    raise files.CorruptFileError(
      f'{name}: expected {count:,} labels, one for each image, got shape'
      f' {list(labels.shape)}.'
    )
  if count and not 0 <= labels.min() <= labels.max() < classes:
    raise files.CorruptFileError(
      f'{name}: labels from {labels.min()} to {labels.max()}; expected 0 to'
      f' {classes - 1}.'
    )
  return labels
