"""Training images of one or more data sets, as sources of batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpapers.data import arrays
from jaxpapers.data import images as images_lib


class ImageFiles:
  """Images of one size from files, read when they are asked for.

  An example is {'image': uint8 [height, width, 3]} and a value of each column.

  Example:
    >>> source = ImageFiles(['a.jpg'], 256, 128, label=[0])  # doctest: +SKIP
  """

  def __init__(
    self, paths: Sequence[Any], height: int, width: int, **columns: Any
  ):
    """Args below.

    Args:
      paths: Of the files, [n].
      height: To which images are resized, bilinearly, with antialiasing.
      width: Likewise.
      **columns: Arrays [n, ...] that belong to the images.

    Raises:
      ValueError: If a column has another length.
    """
    self._files = images_lib.ImageSource(
      [str(path) for path in paths], np.zeros(len(paths), int), ('',)
    )
    self._size = (int(height), int(width))
    self._columns = {name: np.asarray(value) for name, value in columns.items()}
    for name, value in self._columns.items():
      if len(value) != len(self._files):
        raise ValueError(
          f'{name} has {len(value)} entries; expected one for each of'
          f' {len(self._files)} paths.'
        )

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = resize(self._files[index]['image'], *self._size)
    columns = {name: value[index] for name, value in self._columns.items()}
    return {'image': image, **columns}


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resizes as torchreid: Pillow, bilinear, with antialiasing.

  Args:
    image: uint8 [h, w, 3].
    height: The new one.
    width: Likewise.

  Returns:
    uint8 [height, width, 3].
  """
  if image.shape[:2] == (height, width):
    return image
  from PIL import Image

  # Pillow has the width first.
  return np.asarray(
    Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
  )


class Concatenated:
  """The examples of several sources, one after the other.

  Example:
    >>> both = Concatenated([{'x': np.zeros(2)}, {'x': np.ones(3)}])
    >>> len(both), both[4]['x'].item()
    (5, 1.0)
  """

  def __init__(self, sources: Sequence[Any]):
    """Of sources, or mappings of arrays."""
    self._sources = [arrays.as_source(source) for source in sources]
    self._ends = np.cumsum([len(source) for source in self._sources])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Any:
    number = int(np.searchsorted(self._ends, index, 'right'))
    before = int(self._ends[number - 1]) if number else 0
    return self._sources[number][index - before]
