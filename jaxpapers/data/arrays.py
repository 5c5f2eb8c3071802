"""Data sets in memory: batches by one gather, splits, standardisation."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class ArraySource:
  """Arrays with a common first axis, as a data source.

  `batches` makes one of any mapping of arrays. It has `take`, by which a whole
  batch costs one indexing operation for each array.

  Example:
    >>> images = np.zeros((5, 28, 28))
    >>> source = ArraySource({'image': images, 'label': range(5)})
    >>> len(source), source[2]['label'].item()
    (5, 2)
    >>> source.take(np.array([3, 1]))['label'].tolist()
    [3, 1]
  """

  def __init__(self, arrays: Mapping[str, Any]):
    """Name -> array [n, ...], not copied.

    Raises:
      ValueError: there is no array, or their lengths differ.
    """
    self.arrays = {name: np.asarray(value) for name, value in arrays.items()}
    lengths = {
      name: value.shape[0] if value.ndim else 'a scalar'
      for name, value in self.arrays.items()
    }
    if len(set(lengths.values())) != 1 or 'a scalar' in lengths.values():
      raise ValueError(
        f'arrays have the lengths {lengths}; expected one or more arrays of the'
        ' same length along the first axis.'
      )
    self._length = next(iter(lengths.values()))

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return {name: value[index] for name, value in self.arrays.items()}

  def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The examples of some indices, [len(indices), ...] of each array."""
    return {name: value[indices] for name, value in self.arrays.items()}


class Subset:
  """Some examples of a source, in the order of the indices.

  Example:
    >>> part = Subset(ArraySource({'x': np.arange(10)}), [7, 2])
    >>> len(part), part[0]['x'].item()
    (2, 7)
  """

  def __init__(self, source: Any, indices: Any):
    """Of a source or mapping of arrays, the examples `indices` [m].

    Raises:
      ValueError: an index is not an integer in 0 .. len(source) - 1.
    """
    self._source = as_source(source)
    indices = np.asarray(indices)
    if indices.ndim != 1 or indices.dtype.kind not in 'iu':
      raise ValueError(
        f'indices is {indices.dtype} {list(indices.shape)}; expected integers'
        ' [m]. For a boolean mask pass np.flatnonzero(mask).'
      )
    length = len(self._source)
    if indices.size and not 0 <= indices.min() <= indices.max() < length:
      raise ValueError(
        f'indices reach from {indices.min()} to {indices.max()}; expected'
        f' 0 to {length - 1} for a source of {length} examples.'
      )
    self._indices = indices.astype(np.int64)
    if hasattr(self._source, 'take'):
      self.take = self._take

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Any:
    return self._source[int(self._indices[index])]

  def _take(self, indices):
    return self._source.take(self._indices[indices])


def as_source(source: Any) -> Any:
  """A data source of what `batches` accepts.

  Args:
    source: a mapping of arrays, or an object with `__len__` and
      `__getitem__(int)`.

  Returns:
    An `ArraySource` of a mapping, anything else unchanged.

  Raises:
    TypeError: it is neither.
  """
  if isinstance(source, Mapping):
    return ArraySource(source)
  if not (hasattr(source, '__len__') and hasattr(source, '__getitem__')):
    raise TypeError(
      f'source is {type(source).__name__}; expected a mapping of arrays such as'
      " {'image': ..., 'label': ...}, or an object with __len__ and"
      ' __getitem__(index).'
    )
  return source


def split_indices(
  num_examples: int, held_out: int | float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Divides a training set at random into training and validation.

  The order is that of `np.random.RandomState(seed).permutation`, the same as
  after `np.random.seed(seed)`: numpy keeps that stream for ever. The held-out
  examples are the first of the permutation; both results are sorted.

  Args:
    num_examples: size of the set.
    held_out: how many to hold out, or which fraction of them (a float in
      (0, 1), rounded to the nearest number).
    seed: 0 .. 2**32 - 1.

  Returns:
    (training, validation): int64 indices, disjoint, together all.

  Raises:
    ValueError: one of the parts would be empty.

  Example:
    >>> train, validation = split_indices(50000, 0.1, seed=1)
    >>> len(train), len(validation)
    (45000, 5000)
  """
  count = held_out
  if isinstance(held_out, (float, np.floating)):
    count = round(held_out * num_examples)
  if not 0 < count < num_examples:
    raise ValueError(
      f'held_out is {held_out} of {num_examples} examples; expected a number'
      f' from 1 to {num_examples - 1}, or such a fraction.'
    )
  # The frozen generator, on purpose: a split is part of an experiment.
  order = np.random.RandomState(seed).permutation(num_examples)  # noqa: NPY002
  return np.sort(order[count:]), np.sort(order[:count])


def pixel_statistics(images: Any) -> tuple[float, float]:
  """Mean and standard deviation over all pixels and channels: two scalars.

  Exact for uint8 (from the counts of the 256 values), in float64 for others.

  Args:
    images: any shape and real type, [...].

  Returns:
    (mean, standard deviation) in the units of the images.

  Raises:
    ValueError: there is no pixel, or all are equal.

  Example:
    >>> pixel_statistics(np.array([[0, 2], [2, 0]], np.uint8))
    (1.0, 1.0)
  """
  images = np.asarray(images)
  if not images.size:
    raise ValueError(f'images has shape {list(images.shape)}: no pixel.')
  flat = images.reshape(-1)
  if images.dtype == np.uint8:
    counts, values = np.bincount(flat, minlength=256), np.arange(256.0)
    mean = float(counts @ values) / flat.size
    variance = float(counts @ (values - mean) ** 2) / flat.size
  else:
    mean = float(np.mean(flat, dtype=np.float64))
    # In blocks: a float64 copy of a training set may not fit.
    variance = 0.0
    for start in range(0, flat.size, 2**22):
      block = flat[start : start + 2**22].astype(np.float64) - mean
      variance += float(block @ block) / flat.size
  if not variance > 0:
    raise ValueError(
      f'images have the mean {mean} and the variance {variance}; expected'
      ' finite values that differ.'
    )
  return mean, float(np.sqrt(variance))


def standardize(images: Any, mean: float, std: float) -> np.ndarray:
  """(images - mean) / std, as float32.

  Take `mean` and `std` from `pixel_statistics` of the training images, before
  a validation set is split off, and use them for every split.

  Args:
    images: any shape and real type, [...].
    mean: scalar, in the units of the images.
    std: scalar, positive.

  Returns:
    float32 of the same shape.

  Raises:
    ValueError: `std` is not positive.

  Example:
    >>> images = np.array([[0, 2], [2, 0]], np.uint8)
    >>> standardize(images, *pixel_statistics(images)).tolist()
    [[-1.0, 1.0], [1.0, -1.0]]
  """
  if not std > 0:
    raise ValueError(f'std is {std}; expected a positive number.')
  result = np.array(images, np.float32)
  result -= np.float32(mean)
  result /= np.float32(std)
  return result
