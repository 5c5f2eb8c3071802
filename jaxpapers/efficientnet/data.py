"""Image sets on disk, and batches of them as the network wants them."""

import dataclasses
import io
import pathlib
import threading
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from jaxpapers import data
from jaxpapers.data import files, tfrecord
from jaxpapers.efficientnet import preprocess

FORMATS = ('imagenet', 'tfrecord', 'folder', 'cifar10', 'cifar100', 'archive')
# Other names of the split to evaluate on, in the order in which they are tried.
_TEST_NAMES = ('val', 'validation', 'test', 'valid')


class LabelError(ValueError):
  """A label is none of the classes; says which, and of which record."""


class TFRecordImages:
  """Images and labels in TFRecord files, in the layout of ImageNet's.

  An example is {'image': uint8 [height, width, 3], 'label': int32 []}.

  Attributes:
    num_classes: How many there are.
  """

  def __init__(
    self,
    records: tfrecord.TFRecordSource,
    num_classes: int,
    *,
    label_offset: int = 1,
  ):
    """Args below.

    Args:
      records: With 'image/encoded' and 'image/class/label' in each Example.
      num_classes: Labels are checked to be below it.
      label_offset: Label of the first class; 1 in ImageNet's files, where 0 is
        the background.
    """
    self._records = records
    self._offset = label_offset
    self.num_classes = num_classes

  def __len__(self) -> int:
    return len(self._records)

  def name(self, index: int) -> str:
    """File and number of a record."""
    return self._records.name(index)

  def __getitem__(self, index: int) -> dict[str, Any]:
    name, payload = self.name(index), self._records[index]
    try:
      example = tfrecord.parse_example(payload)
    except files.CorruptFileError as error:
      raise files.CorruptFileError(f'{name}: {error}') from error
    try:
      encoded = example['image/encoded'][0]
      label = int(example['image/class/label'][0])
      if not isinstance(encoded, bytes):
        raise TypeError(f'image/encoded holds {type(encoded).__name__}')
    except (KeyError, IndexError, TypeError, ValueError) as error:
      raise files.CorruptFileError(
        f'{name}: has {sorted(example)}; expected image/encoded and'
        ' image/class/label.'
      ) from error
    label -= self._offset
    if not 0 <= label < self.num_classes:
      raise LabelError(
        f'{name}: label {label + self._offset}; expected {self._offset} to'
        f' {self._offset + self.num_classes - 1} (num_classes is'
        f' {self.num_classes}, label_offset {self._offset}).'
      )
    return {
      'image': data.decode_image(encoded, name),
      'label': np.int32(label),
    }


class SkipCorrupt:
  """A source that gives the next sound image in place of a corrupt one.

  Each corrupt image is named once, in the log and in a file. Examples get
  'sound': False where another one stands in, so that an evaluation can leave
  them out.

  Attributes:
    found: Names of the corrupt images that this process has met.
  """

  def __init__(self, source: Any, log: Any = None):
    """Args below.

    Args:
      source: A source whose examples are dictionaries.
      log: File to which names and reasons are appended; None for no file.
    """
    self._source = source
    self._log = log and pathlib.Path(log)
    self.found: dict[str, str] = {}

  def __len__(self) -> int:
    return len(self._source)

  def name(self, index: int) -> str:
    """What an example is called."""
    return _name(self._source, index)

  def __getitem__(self, index: int) -> dict[str, Any]:
    for offset in range(min(len(self._source), 1000)):
      other = (index + offset) % len(self._source)
      try:
        example = self._source[other]
      except files.CorruptFileError as error:
        self._note(_name(self._source, other), str(error))
        continue
      return {**example, 'sound': np.bool_(offset == 0)}
    raise files.CorruptFileError(
      f'{self.name(index)} and all of the thousand images after it are corrupt.'
      ' Is the folder whole?'
    )

  def _note(self, name, message):
    with _LOCK:
      if name in self.found:
        return
      self.found[name] = message
      logging.warning('Skipped (%d): %s', len(self.found), message)
      if self._log is not None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open('a', encoding='utf-8') as stream:
          stream.write(f'{name}\t{" ".join(message.split())}\n')


# Sources are copied to worker processes, a lock of their own would not be.
_LOCK = threading.Lock()


def corrupt_images(log: Any) -> list[str]:
  """Names in a file that `SkipCorrupt` wrote, each once.

  Args:
    log: The file; it need not exist.

  Returns:
    Sorted names.
  """
  path = pathlib.Path(log)
  if not path.is_file():
    return []
  lines = path.read_text(encoding='utf-8').splitlines()
  return sorted({line.partition('\t')[0] for line in lines})


@dataclasses.dataclass(frozen=True)
class Images:
  """A split of an image set.

  Attributes:
    source: Its examples: 'image' and 'label'.
    num_classes: How many classes there are.
    class_names: Their names, () where files do not say.
  """

  source: Any
  num_classes: int
  class_names: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.source)


def open_images(
  kind: str,
  folder: Any,
  split: str,
  *,
  num_classes: int = 1000,
  label_offset: int = 1,
  minival_shards: int = 0,
  class_names: Sequence[str] | None = None,
) -> Images:
  """Opens the training or the test split of an image set.

  Args:
    kind: 'imagenet' (train/ and val/ of the original images, or Kaggle's
      layout), 'tfrecord' (train-00000-of-01024, validation-...), 'folder'
      (train/ and val/ or test/, in them a folder for each class), 'cifar10' and
      'cifar100' (official python or binary files), 'archive' (an .npz file with
      jpeg_bytes, offsets, labels, is_test and class_names).
    folder: Where it is.
    split: 'train', 'test', or, of 'tfrecord', 'minival'.
    num_classes: Of 'tfrecord', whose files do not say.
    label_offset: Of 'tfrecord': label of the first class.
    minival_shards: Of 'tfrecord': how many of the first training files are the
      split 'minival' rather than 'train'; 20 in the paper.
    class_names: Of 'folder': those of the training split; by default the
      folders in train/, where it is. The others know theirs.

  Returns:
    The split.

  Raises:
    ValueError: If an argument does not fit.
    FileNotFoundError: If there are no such files; says what to put where.
    CorruptFileError: If a file is damaged.

  Example:
    >>> open_images('cifar10', '~/data/cifar10', 'test')  # doctest: +SKIP
  """
  if kind not in FORMATS:
    raise ValueError(f'kind is {kind!r}; expected one of {FORMATS}.')
  splits = ('train', 'test') + ('minival',) * (kind == 'tfrecord')
  if split not in splits:
    raise ValueError(f'split is {split!r}; expected one of {splits}.')
  test = split == 'test'
  folder = files.as_path(folder)
  if kind == 'imagenet':
    source = data.open_imagenet(folder, 'val' if test else 'train')
    return Images(source, len(source.class_names), source.class_names)
  if kind == 'folder':
    place = _split_folder(folder, test)
    if class_names is None and test:
      # The test split may lack a class: labels are those of training.
      class_names = _class_folders(folder / 'train')
    source = data.open_image_folder(place, class_names=class_names)
    return Images(source, len(source.class_names), source.class_names)
  if kind == 'tfrecord':
    paths = _shards(folder, split, minival_shards)
    records = tfrecord.TFRecordSource(paths)
    source = TFRecordImages(records, num_classes, label_offset=label_offset)
    return Images(source, num_classes)
  if kind == 'archive':
    return _open_archive(folder, test)
  load = data.load_cifar10 if kind == 'cifar10' else data.load_cifar100
  arrays = load(folder, split)
  source = data.ArraySource({name: arrays[name] for name in ('image', 'label')})
  return Images(
    source, 10 if kind == 'cifar10' else 100, data.cifar_class_names(folder)
  )


def _split_folder(folder, test):
  if not test:
    return folder / 'train'
  found = files.find(folder, _TEST_NAMES)
  return folder / _TEST_NAMES[0] if found is None else found


def _class_folders(folder):
  """Sorted names of the folders in a folder; None if there are none."""
  if not folder.is_dir():
    return None
  names = (path.name for path in folder.iterdir() if path.is_dir())
  return sorted(name for name in names if not name.startswith('.')) or None


def _shards(folder, split, minival_shards):
  prefixes = _TEST_NAMES if split == 'test' else ('train',)
  for prefix in prefixes:
    paths = sorted(folder.glob(f'{prefix}-*-of-*'), key=lambda p: p.name)
    paths = [path for path in paths if not path.name.endswith('.partial')]
    if not paths:
      continue
    count = paths[0].name.rpartition('-of-')[2]
    if count.isdecimal() and int(count) != len(paths):
      raise FileNotFoundError(
        f'{folder} has {len(paths)} of the {int(count)} files'
        f' {prefix}-*-of-{count}. Get the others, or rename those that are'
        ' there.'
      )
    if split == 'test':
      return paths
    if not 0 <= minival_shards < len(paths):
      raise ValueError(
        f'minival_shards is {minival_shards}; expected 0 to {len(paths) - 1},'
        f' as there are {len(paths)} training files.'
      )
    if split == 'minival':
      if not minival_shards:
        raise ValueError('minival_shards is 0: there is no split minival.')
      return paths[:minival_shards]
    return paths[minival_shards:]
  raise files.missing(
    f'TFRecord files of the {split} split',
    folder,
    '  train-00000-of-01024 ... and validation-00000-of-00128 ...',
  )


def _open_archive(path, test):
  needed = ('jpeg_bytes', 'offsets', 'labels', 'is_test', 'class_names')
  if not path.is_file():
    raise files.missing('An archive of images', path, f'  {path}')
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in needed}
  except (
    EOFError,
    KeyError,
    OSError,
    ValueError,
    zipfile.BadZipFile,
  ) as error:
    raise files.CorruptFileError(
      f'{path}: cannot be read as an .npz file with {", ".join(needed)}'
      f' ({error}).'
    ) from error
  content, offsets = arrays['jpeg_bytes'].tobytes(), arrays['offsets']
  chosen = np.flatnonzero(arrays['is_test'] == test)
  names = tuple(str(name) for name in arrays['class_names'])
  source = data.ImageSource(
    [content[offsets[i] : offsets[i + 1]] for i in chosen],
    arrays['labels'][chosen],
    names,
  )
  return Images(source, len(names), names)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
  """`preprocess_train` as a transform of `jaxpapers.data.batches`.

  Attributes:
    size: Resolution of the network.
    options: Further arguments of `preprocess_train`.
  """

  size: int
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __call__(
    self, example: dict[str, Any], rng: np.random.Generator
  ) -> dict[str, Any]:
    """An example for training."""
    image = preprocess.preprocess_train(
      rng, example['image'], self.size, **self.options
    )
    return _example(example, image)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
  """`preprocess_eval` as a transform of `jaxpapers.data.batches`.

  Attributes:
    size: Resolution of the network.
    crop_padding: See `preprocess.crop_geometry`.
    resize: 'tf1_bicubic' or 'pil_bicubic'.
  """

  size: int
  crop_padding: int = 32
  resize: str = 'tf1_bicubic'

  def __call__(
    self, example: dict[str, Any], rng: np.random.Generator
  ) -> dict[str, Any]:
    """An example for evaluation."""
    del rng
    image = preprocess.preprocess_eval(
      example['image'], self.size, self.crop_padding, self.resize
    )
    return _example(example, image.astype(np.float32))


def _example(example, image):
  new = {'image': image, 'label': np.int32(example['label'])}
  if 'sound' in example:
    new['sound'] = example['sound']
  return new


def _name(source, index):
  return source.name(index) if hasattr(source, 'name') else f'image {index}'
