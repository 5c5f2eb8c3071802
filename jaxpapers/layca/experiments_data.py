"""The data of the tasks: splits, one mean and one standard deviation."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpapers import data

# Training examples (before a validation set is held out), shape and classes of
# the official files: what a step looks like before there are any data.
NOMINAL = {
  'mnist': (60_000, (28, 28), 10),
  'cifar10': (50_000, (32, 32, 3), 10),
  'cifar100': (50_000, (32, 32, 3), 100),
  'tiny_imagenet': (100_000, (64, 64, 3), 200),
}
# Seed of the held-out examples of the paper.
_SPLIT_SEED = 1


class Splits(NamedTuple):
  """Images as uint8 with labels, and how to standardise them.

  Attributes:
    train: 'image' [n, ...] and 'label' [n].
    validation: the same, or None where nothing is held out.
    test: the same.
    mean: of all pixels of the training images, validation included.
    std: their standard deviation.
  """

  train: Mapping[str, np.ndarray]
  validation: Mapping[str, np.ndarray] | None
  test: Mapping[str, np.ndarray]
  mean: float
  std: float


def load(
  dataset: str, folder: Any, *, validation: float = 0.0, train_examples: int = 0
) -> Splits:
  """Reads a data set into memory.

  Args:
    dataset: 'mnist', 'cifar10', 'cifar100' or 'tiny_imagenet'.
    folder: of its files, see `jaxpapers.data`.
    validation: fraction of the training set to hold out at random, the same in
      every run.
    train_examples: how many of the training examples to use, the first ones;
      0 for all.

  Returns:
    The splits. Tiny-ImageNet's test set has no labels: its validation set
    takes that place.

  Raises:
    ValueError: for another name, or if there are too few examples.
    FileNotFoundError: says which files are missing.
  """
  readers = {
    'mnist': (data.load_mnist, 'test'),
    'cifar10': (data.load_cifar10, 'test'),
    'cifar100': (data.load_cifar100, 'test'),
    'tiny_imagenet': (_load_tiny_imagenet, 'val'),
  }
  if dataset not in readers:
    raise ValueError(
      f'dataset is {dataset!r}; expected one of {list(readers)}.'
    )
  read, test_split = readers[dataset]
  train, test = (
    {name: loaded[name] for name in ('image', 'label')}
    for loaded in (read(folder, 'train'), read(folder, test_split))
  )
  available = len(train['label'])
  if not 0 <= train_examples <= available:
    raise ValueError(
      f'train_examples is {train_examples}; expected 0, for all, up to the'
      f' {available} that there are.'
    )
  if train_examples:
    train = {name: x[:train_examples] for name, x in train.items()}
  mean, std = data.pixel_statistics(train['image'])
  held_out = None
  if validation:
    used, rest = data.split_indices(
      len(train['label']), float(validation), _SPLIT_SEED
    )
    held_out = {name: x[rest] for name, x in train.items()}
    train = {name: x[used] for name, x in train.items()}
  return Splits(train, held_out, test, mean, std)


def training_batches(
  splits: Splits,
  batch_size: int,
  *,
  seed: int,
  last_batch: bool,
  share: tuple[int, int] | None = None,
) -> Iterator[Any]:
  """Shuffled batches without end.

  Args:
    splits: from `load`.
    batch_size: examples of a batch, over all processes.
    seed: of the order.
    last_batch: whether the smaller last batch of an epoch is used, filled up
      and with a 'mask'; else its examples are left out.
    share: what this process loads, from `training.batch_share`; by default
      its part of as many as there are processes.

  Returns:
    A resumable iterator of 'image', 'label' and, with `last_batch`, 'mask'.
  """
  return data.batches(
    splits.train,
    batch_size,
    seed=seed,
    remainder='pad' if last_batch else 'drop',
    batch_transform=functools.partial(_standardize, splits.mean, splits.std),
    **_processes(share),
  )


def evaluation_batches(
  splits: Splits,
  split: str,
  batch_size: int,
  share: tuple[int, int] | None = None,
) -> Iterator[Any]:
  """All examples of a split once, in order, the last batch filled up.

  Args:
    splits: from `load`.
    split: 'train', 'validation' or 'test'.
    batch_size: examples of a batch, over all processes.
    share: as in `training_batches`.

  Returns:
    An iterator of 'image', 'label' and 'mask'.
  """
  return data.batches(
    getattr(splits, split),
    batch_size,
    shuffle=False,
    num_epochs=1,
    remainder='pad',
    batch_transform=functools.partial(_standardize, splits.mean, splits.std),
    **_processes(share),
  )


def _processes(share):
  if share is None:
    return {}
  return {'process_index': share[0], 'process_count': share[1]}


def steps_per_epoch(examples: int, batch_size: int, last_batch: bool) -> int:
  """Updates in an epoch."""
  full, rest = divmod(examples, batch_size)
  return full + bool(rest and last_batch)


def abstract_batch(
  dataset: str, batch_size: int, last_batch: bool
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a batch of `training_batches`.

  Args:
    dataset: as in `load`.
    batch_size: examples of a batch, over all processes.
    last_batch: as in `training_batches`.

  Returns:
    'image', 'label' and, with `last_batch`, 'mask'.
  """
  _, shape, _ = NOMINAL[dataset]
  batch = {
    'image': jax.ShapeDtypeStruct((batch_size, *shape), np.float32),
    'label': jax.ShapeDtypeStruct((batch_size,), np.int32),
  }
  if last_batch:
    batch['mask'] = jax.ShapeDtypeStruct((batch_size,), np.bool_)
  return batch


def _standardize(mean, std, batch, rng):
  del rng
  return {**batch, 'image': data.standardize(batch['image'], mean, std)}


def _load_tiny_imagenet(folder, split):
  """All images, decoded once: 1.2 GB, and no decoding in later epochs."""
  source = data.open_tiny_imagenet(folder, split)
  size = 500
  parts = data.batches(
    source,
    size,
    shuffle=False,
    num_epochs=1,
    remainder='keep',
    **_processes((0, 1)),  # Every process keeps all of them.
  )
  images = np.empty((len(source), 64, 64, 3), np.uint8)
  for index, part in enumerate(parts):
    images[index * size : index * size + len(part['label'])] = part['image']
  return {'image': images, 'label': source.labels}
