"""GRID, CUHK01, iLIDS and PRID: small data sets, split at random many times.

Half of the people are trained on, the others looked for, and the mean over all
splits is reported. GRID comes with its splits. Those of the others are drawn,
as everybody does: the same seed draws the same ones.
"""

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
from jaxpapers.osnet.viper import VIPeR, half_split, halves

# People of PRID whom both cameras have; others of the same number differ.
_PRID_SHARED = 200
# Field of a split in GRID's file that holds the people of training.
_GRID_FIELD = 2


def GRID(root: Any, *, split: int = 0) -> ReIDDataset:
  """QMUL underGround: 250 people, 775 images of others in the gallery.

  The ten splits are those of its file features_and_partitions.mat.

  Args:
    root: The folder that holds probe, gallery and that file, or one above it,
      named underground_reid, in grid or not.
    split: 0 to 9.

  Returns:
    Training images, queries, gallery. Images of nobody in particular (0) stay
    in the gallery, as distractors.

  Raises:
    FileNotFoundError: Says what to put where.
    ValueError: There is no such split, the file is not as expected, or an image
      has another name than 0001_1_25004_1_2_3_4.jpeg: person, camera.
    ImportError: scipy is not installed.

  Example:
    >>> GRID('~/data', split=3).counts  # doctest: +SKIP
  """
  partitions = 'features_and_partitions.mat'
  folder = _find(
    root,
    ('grid', 'underground_reid'),
    partitions,
    'GRID',
    f'  probe/*.jpeg, gallery/*.jpeg and {partitions}',
  )
  trained = _grid_training(folder / partitions, split)
  probe, gallery = (
    _named(
      folder / part, _person_and_camera, '0001_1_25004_107_32_106_221.jpeg'
    )
    for part in ('probe', 'gallery')
  )
  probe = chosen(probe, probe.pids != 0)
  seen = [np.isin(part.pids, trained) for part in (probe, gallery)]
  train = concatenated([chosen(probe, seen[0]), chosen(gallery, seen[1])])
  query, gallery = chosen(probe, ~seen[0]), chosen(gallery, ~seen[1])
  return counted(ReIDDataset('grid', train, query, gallery, distractor=0))


def _grid_training(path, split):
  """People to train on, from the struct of a split."""
  try:
    import scipy.io
  except ImportError as error:
    raise ImportError(
      "GRID needs scipy: pip install 'jaxpapers[osnet]'"
    ) from error
  try:
    cells = scipy.io.loadmat(path)['trainIdxAll'].ravel()
    # A cell holds a struct of size one, whose fields have no order but theirs.
    records = [cell.ravel()[0] for cell in cells]
    people = [np.asarray(one[_GRID_FIELD], int).ravel() for one in records]
  except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
    raise files.CorruptFileError(
      f'{path}: {error}; expected a cell array trainIdxAll of structs whose'
      ' third field lists people.'
    ) from error
  if not 0 <= split < len(people):
    raise ValueError(
      f'split of grid is {split}; expected 0 to {len(people) - 1}.'
    )
  return people[split]


def CUHK01(
  root: Any, *, split: int = 0, num_splits: int = 10, seed: int = 0
) -> ReIDDataset:
  """CUHK01: 971 people, two images in each of two cameras, 485 to train on.

  Args:
    root: The folder that holds campus, or one above it, named cuhk01 or CUHK01.
    split: See `VIPeR`, as all that follow.
    num_splits: See there.
    seed: See there.

  Returns:
    Training images, queries, gallery.

  Raises:
    FileNotFoundError: Says what to put where.
    ValueError: There is no such split, or an image has another name than
      0001001.png: person, then images 1 and 2 of one camera, 3 and 4 of the
      other.

  Example:
    >>> CUHK01('~/data', split=3).counts  # doctest: +SKIP
  """
  folder = _find(
    root, ('cuhk01', 'CUHK01'), 'campus', 'CUHK01', '  campus/*.png'
  )
  every = _named(
    folder / 'campus',
    _cuhk01_person,
    '0001001.png',
  )
  sides = (chosen(every, every.camids == camera) for camera in (0, 1))
  return half_split('cuhk01', *sides, split=split, num=num_splits, seed=seed)


def iLIDS(
  root: Any, *, split: int = 0, num_splits: int = 10, seed: int = 0
) -> ReIDDataset:
  """QMUL i-LIDS, its single images: 119 people, 476 images, 59 to train on.

  Of each of the other 60 people one image is a query and one is in the gallery.
  Cameras are not known: each image of a person counts as of its own.

  Args:
    root: The folder that holds Persons, or one above it, named
      i-LIDS_Pedestrian, in ilids or not.
    split: 0 to num_splits - 1.
    num_splits: See `VIPeR`.
    seed: See there.

  Returns:
    Training images, queries, gallery.

  Raises:
    FileNotFoundError: Says what to put where.
    ValueError: There is no such split, a person has one image, or an image has
      another name than 0001001.jpg: person, then number.

  Example:
    >>> iLIDS('~/data', split=3).counts  # doctest: +SKIP
  """
  folder = _find(
    root, ('ilids', 'i-LIDS_Pedestrian'), 'Persons', 'iLIDS', '  Persons/*.jpg'
  )
  every = _named(
    folder / 'Persons',
    lambda name: (int(name[:4]), int(name[4:7]) - 1),
    '0001001.jpg',
  )
  people, number = np.unique(every.pids, return_counts=True)
  if number.min() < 2:
    raise ValueError(
      f'{folder / "Persons"}: person {people[number.argmin()]} has one image;'
      ' expected two or more of each.'
    )
  rng, (trained, tested) = halves('ilids', people, split, num_splits, seed)
  pairs = np.array(
    [
      rng.choice(np.flatnonzero(every.pids == pid), 2, replace=False)
      for pid in np.sort(tested)
    ]
  )
  query, gallery = (_taken(every, pairs[:, side]) for side in (0, 1))
  train = chosen(every, np.isin(every.pids, trained))
  return counted(ReIDDataset('ilids', train, query, gallery))


def PRID(
  root: Any, *, split: int = 0, num_splits: int = 10, seed: int = 0
) -> ReIDDataset:
  """PRID 2011, single-shot: 200 people in both cameras, half to train on.

  The 100 others of camera a are looked for in camera b, among them the 549 whom
  only b has. With an odd split it is the other way round: camera a has 185 more
  people. Numbers beyond 200 are other people in each camera; they are part of
  the gallery, and with `combine_all` of the images to train on, one of each.

  Args:
    root: The folder that holds single_shot, or one above it, named prid_2011,
      in prid2011 or not.
    split: See `VIPeR`, as all that follow; an odd one swaps the cameras.
    num_splits: See there.
    seed: See there.

  Returns:
    Training images, queries, gallery.

  Raises:
    FileNotFoundError: Says what to put where.
    ValueError: There is no such split, or an image has another name than
      person_0001.png.

  Example:
    >>> PRID('~/data', split=3).counts  # doctest: +SKIP
  """
  folder = _find(
    root,
    ('prid2011', 'prid_2011'),
    'single_shot',
    'PRID',
    '  single_shot/cam_a/*.png and single_shot/cam_b/*.png',
  )
  cameras = [
    _named(
      folder / 'single_shot' / f'cam_{letter}',
      lambda name, camera=camera: (_prid_person(name), camera),
      'person_0001.png',
    )
    for camera, letter in enumerate('ab')
  ]
  shared = np.intersect1d(*(part.pids for part in cameras))
  shared = shared[shared <= _PRID_SHARED]
  _, (trained, _) = halves('prid', shared, split, 2 * num_splits, seed, 2)
  train = concatenated(
    [chosen(part, np.isin(part.pids, trained)) for part in cameras]
  )
  if split % 2:
    cameras.reverse()
  rest = [chosen(part, ~np.isin(part.pids, trained)) for part in cameras]
  query = chosen(rest[0], np.isin(rest[0].pids, shared))
  return counted(ReIDDataset('prid', train, query, rest[1]))


def _cuhk01_person(name):
  number = int(name[4:7])
  if not 1 <= number <= 4:
    raise ValueError('no image of two cameras')
  return int(name[:4]), (number - 1) // 2


def _prid_person(name):
  word, _, number = name.partition('_')
  if word != 'person':
    raise ValueError('no person_')
  return int(number.partition('.')[0])


def _person_and_camera(name):
  person, camera = name.split('_')[:2]
  return int(person), int(camera) - 1


def _find(root, names, inside, what, expected):
  """The first of the usual places below a folder that holds a data set."""
  root = files.as_path(root)
  first, second = names
  for place in (
    root,
    root / second,
    root / first,
    root / first / second,
  ):
    if (place / inside).exists():
      return place
  raise files.missing(what, root, f'{expected}, in it or in {first}/{second}')


def _named(folder, parse, example):
  """Images of a folder whose names tell person and camera."""
  names = images.list_images(folder) if folder.is_dir() else []
  if not names:
    raise files.missing('A folder of images', folder, f'  such as {example}')
  found = []
  for name in names:
    try:
      found.append(parse(name.rpartition('/')[2]))
    except ValueError as error:
      raise ValueError(
        f'{folder / name}: expected a name such as {example}.'
      ) from error
  return make_split(folder, names, *zip(*found, strict=True))


def _taken(split, index):
  return ReIDSplit(
    tuple(split.paths[i] for i in index), split.pids[index], split.camids[index]
  )


# Readers that take a number of a split.
READERS = {
  'viper': VIPeR,
  'grid': GRID,
  'cuhk01': CUHK01,
  'ilids': iLIDS,
  'prid': PRID,
}
