"""VIPeR, and random splits of small data sets of two cameras."""

from typing import Any

import numpy as np

from jaxpapers.data import files, images
from jaxpapers.osnet.splits import (
  ReIDDataset,
  ReIDSplit,
  chosen,
  concatenated,
  counted,
  make_split,
)


def VIPeR(
  root: Any, *, split: int = 0, num_splits: int = 10, seed: int = 0
) -> ReIDDataset:
  """VIPeR: 632 people, one image in each of two cameras, half to train on.

  The data set comes without splits: they are drawn, as everybody does, and the
  mean over all of them is reported. The same seed draws the same ones.

  Args:
    root: The folder that holds cam_a and cam_b, or one above it, named VIPeR or
      viper.
    split: 0 to 2 num_splits - 1; an odd one is the one before with queries and
      gallery swapped.
    num_splits: How many halves are drawn.
    seed: Of the draw.

  Returns:
    Training images, queries, gallery.

  Raises:
    FileNotFoundError: Says what to put where.
    ValueError: There is no such split, or a file has another name than
      000_45.bmp.

  Example:
    >>> VIPeR('~/data', split=3).counts  # doctest: +SKIP
  """
  root = files.as_path(root)
  places = [
    place / inner
    for place in (root, root / 'viper', root / 'VIPeR')
    for inner in ('', 'VIPeR')
  ]
  folder = next((p for p in places if (p / 'cam_a').is_dir()), None)
  if folder is None:
    raise files.missing('VIPeR', root, '  cam_a/*.bmp and cam_b/*.bmp')
  parts = []
  for camera, name in enumerate(('cam_a', 'cam_b')):
    names = images.list_images(folder / name)
    try:
      pids = [int(one.split('_')[0]) for one in names]
    except ValueError as error:
      raise ValueError(
        f'{folder / name}: {error}; expected names such as 000_45.bmp.'
      ) from error
    parts.append(
      make_split(folder / name, names, pids, np.full(len(pids), camera))
    )
  return half_split('viper', *parts, split=split, num=num_splits, seed=seed)


def halves(name, people, split, number, seed, directions=1):
  """A generator, and the people of training and of test by it.

  Args:
    name: Of the data set, for errors.
    people: Their numbers, `[n]`.
    split: Which one.
    number: How many there are.
    seed: Of the draw.
    directions: How many splits share a draw.

  Returns:
    A NumPy generator and two arrays of numbers.

  Raises:
    ValueError: There is no such split, or fewer than two people.
  """
  if not 0 <= split < number:
    raise ValueError(f'split of {name} is {split}; expected 0 to {number - 1}.')
  if len(people) < 2:
    raise ValueError(
      f'{name}: {len(people)} people that can be split; expected two or more.'
    )
  rng = np.random.default_rng([seed, split // directions])
  order = rng.permutation(people)
  return rng, (order[: len(order) // 2], order[len(order) // 2 :])


def half_split(
  name: str,
  first: ReIDSplit,
  second: ReIDSplit,
  *,
  split: int = 0,
  num: int = 10,
  seed: int = 0,
) -> ReIDDataset:
  """Half of the people of two cameras to train on, half to find.

  Args:
    name: Of the data set.
    first: Images of one camera.
    second: Images of the other.
    split: See `VIPeR`.
    num: How many halves are drawn.
    seed: Of the draw.

  Returns:
    The data set. People whom one camera does not know are left out.

  Raises:
    ValueError: There is no such split, or fewer than two people.

  Example:
    >>> a = ReIDSplit(('a', 'b'), np.array([1, 2]), np.array([0, 0]))
    >>> b = ReIDSplit(('c', 'd'), np.array([1, 2]), np.array([1, 1]))
    >>> data = half_split('toy', a, b)
    >>> len(data.train.paths), len(data.query.paths), len(data.gallery.paths)
    (2, 1, 1)
  """
  people = np.intersect1d(first.pids, second.pids)
  _, (trained, tested) = halves(name, people, split, 2 * num, seed, 2)

  sides = first, second
  train = concatenated(
    [chosen(side, np.isin(side.pids, trained)) for side in sides]
  )
  query, gallery = (chosen(side, np.isin(side.pids, tested)) for side in sides)
  if split % 2:
    query, gallery = gallery, query
  return counted(ReIDDataset(name, train, query, gallery))
