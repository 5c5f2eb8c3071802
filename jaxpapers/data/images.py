"""Images in files: found once, decoded one by one when they are asked for."""

import functools
import io
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from jaxpapers.data import files

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.webp', '.gif')


def decode_image(content: bytes, name: Any = 'image') -> np.ndarray:
  """Decodes an image to RGB; grey, palette, CMYK and alpha are converted.

  Transparent pixels keep their colour, animations give their first frame, and
  16-bit grey is scaled to 8 bits. The orientation in EXIF is ignored, as the
  published pipelines of ImageNet do.

  Args:
    content: the bytes of a file in any format that Pillow knows.
    name: what to call it in an error, usually the path.

  Returns:
    uint8 [height, width, 3].

  Raises:
    CorruptFileError: it is no image, or is cut short.
    ImportError: Pillow is not installed.

  Example:
    >>> from PIL import Image
    >>> stream = io.BytesIO()
    >>> Image.new('L', (4, 2), 7).save(stream, 'PNG')
    >>> decode_image(stream.getvalue())[0, 0].tolist()
    [7, 7, 7]
  """
  try:
    from PIL import Image
  except ImportError as error:
    raise ImportError(
      'decoding images needs Pillow: pip install pillow'
    ) from error
  _ignore_exif_warnings()
  try:
    with Image.open(io.BytesIO(content)) as image:
      if image.mode.startswith('I'):
        grey = np.asarray(image).astype(np.int64) >> 8
        grey = np.clip(grey, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
      return np.array(image.convert('RGB'))
  except Image.DecompressionBombError as error:
    raise files.CorruptFileError(
      f'{name}: too large to be decoded ({error}). It may be sound: leave it'
      ' out, or raise PIL.Image.MAX_IMAGE_PIXELS.'
    ) from error
  except Exception as error:  # Pillow's decoders raise many kinds
    raise files.CorruptFileError(
      f'{name}: cannot be decoded as an image ({type(error).__name__}:'
      f' {error}); the file has {len(content):,} bytes.'
    ) from error


@functools.cache
def _ignore_exif_warnings() -> None:
  """Damaged EXIF is frequent in ImageNet, and is not read here.

  Once and narrowly: `catch_warnings` around each image would, in threads, leave
  all warnings of the program switched off.
  """
  warnings.filterwarnings('ignore', module=r'PIL\.TiffImagePlugin')


class ImageSource:
  """Images with labels, read and decoded when they are asked for.

  An example is {'image': uint8 [height, width, 3], 'label': int32 []}. What is
  in memory is only the list of files, so that workers can have copies of it.

  Attributes:
    labels: int32 [n].
    class_names: name of each class, in the order of the labels.

  Example:
    >>> from PIL import Image
    >>> stream = io.BytesIO()
    >>> Image.new('RGB', (4, 2)).save(stream, 'PNG')
    >>> source = ImageSource([stream.getvalue()], [1], ('cat', 'dog'))
    >>> source[0]['image'].shape, source.class_names[source[0]['label']]
    ((2, 4, 3), 'dog')
  """

  def __init__(
    self,
    items: Sequence[Any],
    labels: Any,
    class_names: Sequence[str],
    *,
    root: Any = None,
    decode: Callable[[bytes, Any], Any] | None = decode_image,
  ):
    """Args below.

    Args:
      items: paths, or the bytes of the files; [n].
      labels: integers in 0 .. len(class_names) - 1; [n].
      class_names: of the classes.
      root: folder that the paths are relative to.
      decode: `decode(content, name) -> image`. None leaves the bytes of the
        file under 'encoded', for a transform that decodes only a crop.

    Raises:
      ValueError: the numbers of items and labels differ, or a label is none.
    """
    self.labels = np.asarray(labels, np.int32)
    self.class_names = tuple(class_names)
    if self.labels.shape != (len(items),):
      raise ValueError(
        f'labels has shape {list(self.labels.shape)}; expected one for each of'
        f' the {len(items)} items.'
      )
    if len(items) and not (
      0 <= self.labels.min() <= self.labels.max() < len(self.class_names)
    ):
      raise ValueError(
        f'labels reach from {self.labels.min()} to {self.labels.max()};'
        f' expected 0 to {len(self.class_names) - 1}, as class_names has'
        f' {len(self.class_names)}.'
      )
    self._root = None if root is None else files.as_path(root)
    self._decode = decode
    self._in_memory = bool(len(items)) and isinstance(items[0], bytes)
    # As one array: a list of a million strings is slow to copy to workers.
    self._items = (
      list(items)
      if self._in_memory
      else np.array([os.fsencode(item) for item in items], 'S')
    )

  def __len__(self) -> int:
    return len(self._items)

  def name(self, index: int) -> str:
    """Path of an image, or its number if it is held in memory."""
    if self._in_memory:
      return f'image {index}'
    relative = os.fsdecode(bytes(self._items[index]))
    return relative if self._root is None else str(self._root / relative)

  def read(self, index: int) -> bytes:
    """Content of the file of an image."""
    if self._in_memory:
      return self._items[index]
    name = self.name(index)
    if '://' in name:
      return files.as_path(name).read_bytes()
    with open(name, 'rb') as stream:
      return stream.read()

  def __getitem__(self, index: int) -> dict[str, Any]:
    content, label = self.read(index), self.labels[index]
    if self._decode is None:
      return {'encoded': content, 'label': label}
    return {'image': self._decode(content, self.name(index)), 'label': label}


def find_corrupt(
  source: Any, *, num_threads: int | None = None, progress: bool = False
) -> list[tuple[int, str]]:
  """Decodes every image once and lists those that cannot be.

  Training stops at a corrupt file. To go on without them:
  `Subset(source, np.setdiff1d(np.arange(len(source)), [i for i, _ in found]))`.

  Args:
    source: an `ImageSource` or any source that raises `CorruptFileError`.
    num_threads: by default one for each processor.
    progress: whether to show a progress bar.

  Returns:
    (index, message) of each, in order.
  """
  import tqdm

  def attempt(index):
    try:
      source[index]
    except (files.CorruptFileError, OSError) as error:
      return index, str(error)

  with futures.ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
    results = tqdm.tqdm(
      pool.map(attempt, range(len(source))),
      total=len(source),
      desc='checking images',
      disable=not progress,
    )
    return [result for result in results if result is not None]


def open_image_folder(
  folder: Any,
  *,
  class_names: Sequence[str] | None = None,
  extensions: Iterable[str] = EXTENSIONS,
  decode: Callable[[bytes, Any], Any] | None = decode_image,
) -> ImageSource:
  """A folder with one subfolder of images for each class.

  Subfolders of a class are searched too. Names that begin with a dot are left
  out.

  Args:
    folder: local, or on any file system that etils.epath knows.
    class_names: names of the subfolders in the order of their labels; by
      default all of them, sorted. Give those of the training set when opening
      another split, in which a class may be missing.
    extensions: of the files that are images, in lower case.
    decode: see `ImageSource`.

  Returns:
    The images, sorted by class and path.

  Raises:
    FileNotFoundError: there is no folder, or no image in it.
    ValueError: `class_names` lacks one of the subfolders.

  Example:
    >>> train = open_image_folder('~/data/flowers/train')  # doctest: +SKIP
  """
  folder = files.as_path(folder)
  found = []
  if folder.is_dir():
    found = sorted(
      path.name
      for path in folder.iterdir()
      if not path.name.startswith('.') and path.is_dir()
    )
  if class_names is None:
    class_names = found
  unknown = set(found) - set(class_names)
  if unknown:
    raise ValueError(
      f'{folder} has the subfolders {sorted(unknown)[:5]}, which are not in'
      f' class_names ({list(class_names)[:5]}, ...). Are these the classes of'
      ' another data set?'
    )
  present = set(found)
  items, labels = [], []
  for label, name in enumerate(class_names):
    if name in present:
      paths = list_images(folder / name, extensions, f'{name}/')
      items += paths
      labels += [label] * len(paths)
  if not items:
    raise files.missing(
      'A folder of images',
      folder,
      f'  {folder}/<name of the class>/<any name>'
      f' with one of the endings {", ".join(extensions)}',
    )
  return ImageSource(items, labels, class_names, root=folder, decode=decode)


def list_images(
  folder: Any, extensions: Iterable[str] = EXTENSIONS, prefix: str = ''
) -> list[str]:
  """Sorted paths of the images below a folder, each after `prefix`.

  Args:
    folder: local, or on any file system that etils.epath knows.
    extensions: of the files that are images, in lower case.
    prefix: what the paths begin with.

  Returns:
    Paths relative to the folder, with '/' between names.
  """
  extensions = tuple(extensions)
  found = []
  for entry in list_entries(folder):
    name, is_folder = entry
    if name.startswith('.'):
      continue
    if name.lower().endswith(extensions) and not is_folder:
      found.append(prefix + name)
    elif is_folder:
      path = files.as_path(folder) / name
      found += list_images(path, extensions, f'{prefix}{name}/')
  return sorted(found)


def list_entries(folder):
  """Yields (name, whether it is a folder) of what is in a folder."""
  if '://' in str(folder):
    # No question to the server about a file: it has an ending.
    for path in files.as_path(folder).iterdir():
      yield path.name, not path.suffix and path.is_dir()
    return
  with os.scandir(folder) as entries:
    for entry in entries:
      try:
        yield entry.name, entry.is_dir()
      except OSError:  # A link to itself.
        yield entry.name, False
