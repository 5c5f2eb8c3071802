"""MNIST and Fashion-MNIST, from the files that their authors publish."""

import io
from typing import Any

import numpy as np

from jaxpapers.data import files, idx

_SPLITS = {'train': 'train', 'test': 't10k'}
_EXPECTED = """\
  train-images-idx3-ubyte.gz   9,912,422 bytes (Fashion-MNIST 26,421,880)
  train-labels-idx1-ubyte.gz      28,881 bytes (Fashion-MNIST     29,515)
  t10k-images-idx3-ubyte.gz    1,648,877 bytes (Fashion-MNIST  4,422,102)
  t10k-labels-idx1-ubyte.gz        4,542 bytes (Fashion-MNIST      5,148)
compressed or not, also under the names train-images.idx3-ubyte and so on; or
one mnist.npz with x_train, y_train, x_test, y_test; or for `train` a file
mnist_train*.npz with images and labels, for `test` mnist_test*.npz."""


def load_mnist(folder: Any, split: str = 'train') -> dict[str, np.ndarray]:
  """Reads MNIST, or any data set in its format such as Fashion-MNIST.

  Args:
    folder: folder of the official files (the error of a missing one lists
      them); local, or on any file system that etils.epath knows.
    split: 'train' (60,000 in the official files) or 'test' (10,000).

  Returns:
    {'image': uint8 [n, 28, 28], 'label': int32 [n]}, in the order of the file.

  Raises:
    ValueError: `split` is another word.
    FileNotFoundError: the split is not in the folder.
    CorruptFileError: a file is damaged, or images and labels do not match.

  Example:
    >>> train = load_mnist('~/data/mnist', 'train')  # doctest: +SKIP
  """
  if split not in _SPLITS:
    raise ValueError(f"split is {split!r}; expected 'train' or 'test'.")
  folder = files.as_path(folder)
  images = _find_idx(folder, f'{_SPLITS[split]}-images', 3)
  labels = _find_idx(folder, f'{_SPLITS[split]}-labels', 1)
  if images is not None and labels is not None:
    data = {'image': idx.read_idx(images), 'label': idx.read_idx(labels)}
    return _checked(data, images, labels)
  archive, keys = _find_npz(folder, split)
  if archive is not None:
    try:
      content = io.BytesIO(archive.read_bytes())
      with np.load(content, allow_pickle=False) as stored:
        data = {'image': stored[keys[0]], 'label': stored[keys[1]]}
    except Exception as error:  # numpy raises five kinds for a damaged file
      raise files.CorruptFileError(
        f'{archive}: cannot be read as an npz file with the arrays'
        f' {keys[0]!r} and {keys[1]!r}: {error}'
      ) from error
    return _checked(data, archive, archive)
  raise files.missing(f"MNIST's {split} split", folder, _EXPECTED)


def _find_idx(folder, stem, ndim):
  names = (f'{stem}-idx{ndim}-ubyte', f'{stem}.idx{ndim}-ubyte')
  return files.find(folder, [n + end for n in names for end in ('', '.gz')])


def _find_npz(folder, split):
  whole = files.find(folder, ['mnist.npz'])
  if whole is not None:
    return whole, (f'x_{split}', f'y_{split}')
  found = sorted(folder.glob(f'mnist_{split}*.npz')) if folder.is_dir() else []
  return (found[0] if found else None), ('images', 'labels')


def _checked(data, images, labels):
  image, label = data['image'], data['label']
  if image.dtype != np.uint8 or image.ndim != 3:
    raise files.CorruptFileError(
      f'{images}: expected images as uint8 [n, height, width], got'
      f' {image.dtype} {list(image.shape)}.'
    )
  if label.shape != (len(image),):
    raise files.CorruptFileError(
      f'{labels}: expected {len(image):,} labels, one for each image of'
      f' {images}, got shape {list(label.shape)}.'
    )
  return {'image': image, 'label': label.astype(np.int32)}
