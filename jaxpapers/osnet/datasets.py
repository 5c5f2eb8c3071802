"""Re-identification data sets as they lie on a disk. Nothing is downloaded.

Images are sorted by name, and identities keep their numbers: the same files
give the same numbers on every machine.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpapers.data import files, images
from jaxpapers.osnet import cuhk03 as cuhk03_lib
from jaxpapers.osnet.pa100k import PA100K
from jaxpapers.osnet.small_sets import CUHK01, GRID, PRID, READERS, VIPeR, iLIDS
from jaxpapers.osnet.splits import (
  ReIDDataset,
  ReIDSplit,
  chosen,
  concatenated,
  counted,
  make_split,
)

__all__ = [
  'CUHK01',
  'CUHK03',
  'DATASETS',
  'GRID',
  'MSMT17',
  'PA100K',
  'PRID',
  'DukeMTMC',
  'Market1501',
  'ReIDDataset',
  'ReIDSplit',
  'VIPeR',
  'iLIDS',
  'image_folder',
  'image_folders',
  'merge',
  'open_pa100k',
  'open_reid',
  'relabel',
]

MARKET_PATTERN = r'(?P<pid>-?\d+)_c(?P<cam>\d)'


def image_folder(
  folder: Any,
  pattern: str = MARKET_PATTERN,
  *,
  first_camera: int = 1,
  junk: Sequence[int] = (-1,),
  unmatched: str = 'error',
) -> ReIDSplit:
  r"""Images whose identity and camera are in their names.

  Args:
    folder: Is searched with all its subfolders.
    pattern: Regular expression with groups `pid` and, if there are cameras,
      `cam`; looked for in the name of the file, never in that of a folder.
      Without `cam`, each image has a camera of its own, so that no match is
      left out. A group that is no number is numbered in sorted order.
    first_camera: Number of the first camera, which becomes 0.
    junk: Identities to leave out.
    unmatched: 'error', or 'skip' for files that the pattern does not fit.

  Returns:
    The images, sorted by path; `excluded` says how many were left out.

  Raises:
    FileNotFoundError: There is no folder or no image in it.
    ValueError: The pattern has no group `pid`, or does not fit a file.

  Example:
    >>> split = image_folder('~/gallery', r'^(?P<pid>\w+)-')  # doctest: +SKIP
  """
  (split,) = image_folders(
    [folder],
    pattern,
    first_camera=first_camera,
    junk=junk,
    unmatched=unmatched,
  )
  return split


def image_folders(
  folders: Sequence[Any],
  pattern: str = MARKET_PATTERN,
  *,
  first_camera: int = 1,
  junk: Sequence[int] = (-1,),
  unmatched: str = 'error',
) -> tuple[ReIDSplit, ...]:
  r"""Folders of the same people, such as of queries and of a gallery.

  Args:
    folders: As for `image_folder`. Where identities or cameras are no numbers,
      they are numbered in all folders together; so are images where there are
      no cameras.
    pattern: See there, as the others.
    first_camera: See there.
    junk: See there.
    unmatched: See there.

  Returns:
    The images of each folder.

  Raises:
    FileNotFoundError: As `image_folder`.
    ValueError: As `image_folder`.

  Example:
    >>> image_folders(['query', 'gallery'])  # doctest: +SKIP
  """
  try:
    expression = re.compile(pattern)
  except re.error as error:
    raise ValueError(f'pattern is {pattern!r}: {error}') from error
  if 'pid' not in expression.groupindex:
    raise ValueError(
      f'pattern is {pattern!r}; expected a group (?P<pid>...) for the identity.'
    )
  if unmatched not in ('error', 'skip'):
    raise ValueError(f"unmatched is {unmatched!r}; expected 'error' or 'skip'.")
  paths = [files.as_path(folder) for folder in folders]
  found = [_matches(folder, expression, unmatched) for folder in paths]
  ends = np.cumsum([len(matches) for matches, _ in found])[:-1]
  everything = [match for matches, _ in found for match in matches.values()]
  pids, _ = _numbers([match['pid'] for match in everything])
  if 'cam' in expression.groupindex:
    camids, given = _numbers([match['cam'] for match in everything])
    camids = camids - first_camera if given else camids
  else:  # By file: one that is in two folders does not find itself.
    names = [
      str(f / n) for f, m in zip(paths, found, strict=True) for n in m[0]
    ]
    camids = np.unique(names, return_inverse=True)[1]
  return tuple(
    make_split(
      folder, list(matches), pids_there, camids_there, junk=junk, excluded=out
    )
    for folder, (matches, out), pids_there, camids_there in zip(
      paths, found, np.split(pids, ends), np.split(camids, ends), strict=True
    )
  )


def _matches(folder, expression, unmatched):
  """Name of each image of a folder -> match; what was left out."""
  names = (
    images.list_images(folder, images.EXTENSIONS) if folder.is_dir() else []
  )
  if not names:
    raise files.missing('A folder of images', folder, '  *.jpg, *.png, ...')
  every = {name: expression.search(name.rpartition('/')[2]) for name in names}
  others = [name for name, match in every.items() if match is None]
  if others and unmatched == 'error':
    raise ValueError(
      f'{len(others)} of {len(names)} images in {folder} do not fit'
      f' {expression.pattern!r}, {others[0]} among them. Change the pattern, or'
      " take the rest with unmatched='skip'."
    )
  if len(others) == len(names):
    raise ValueError(
      f'No image in {folder} fits {expression.pattern!r}: {others[0]} ...'
    )
  kept = {name: match for name, match in every.items() if match is not None}
  return kept, {'unmatched': len(others)} if others else {}


def Market1501(root: Any, *, distractors: bool = False) -> ReIDDataset:
  """Market-1501: bounding_box_train, query, bounding_box_test.

  Args:
    root: The folder that holds these, or one above it.
    distractors: Adds the 500,000 images of the folder `images` to the gallery.

  Returns:
    Training images, queries, gallery. Junk (-1) is left out of the gallery;
    distractors (0) stay in it.

  Raises:
    FileNotFoundError: Says what to put where.
    ValueError: A file has another name than 0002_c1s1_000451_03.jpg.

  Example:
    >>> Market1501('~/data').counts  # doctest: +SKIP
  """
  folder = _find(root, ('market1501', 'Market-1501-v15.09.15'), 'Market-1501')
  data = _market(folder, 'market1501')
  if distractors:
    names = images.list_images(folder / 'images', images.EXTENSIONS)
    if not names:
      raise files.missing('The distractors', folder / 'images', '  *.jpg')
    more = make_split(
      folder / 'images', names, np.zeros(len(names)), np.full(len(names), -1)
    )
    data = data._replace(gallery=concatenated([data.gallery, more]))
    data = counted(data)
  return data


def DukeMTMC(root: Any) -> ReIDDataset:
  """DukeMTMC-reID: the folders and names of Market-1501, eight cameras.

  The data set has been withdrawn by its owners; this reads what you have.

  Args:
    root: The folder that holds bounding_box_train, or one above it.

  Returns:
    Training images, queries, gallery.

  Raises:
    FileNotFoundError: Says what to put where.
    ValueError: A file has another name than 0001_c2_f0046182.jpg.

  Example:
    >>> DukeMTMC('~/data').counts  # doctest: +SKIP
  """
  folder = _find(root, ('dukemtmc-reid', 'dukemtmc', 'DukeMTMC-reID'), 'Duke')
  return _market(folder, 'dukemtmc')


def _market(folder, name):
  train, query, gallery = (
    image_folder(folder / part)
    for part in ('bounding_box_train', 'query', 'bounding_box_test')
  )
  return counted(ReIDDataset(name, train, query, gallery, distractor=0))


def _find(root, names, what, inside='bounding_box_train'):
  """The first of the usual places below a folder that holds the data."""
  root = files.as_path(root)
  places = [root, *(root / name for name in names)]
  places += [root / a / b for a in names for b in names if a != b]
  for place in places:
    if (place / inside).exists():
      return place
  raise files.missing(
    what,
    root,
    f'  {inside} and what comes with it, in it or in {" or ".join(names)}',
  )


# Folders of training and test images by version.
_MSMT17 = {
  'MSMT17_V2': ('mask_train_v2', 'mask_test_v2'),
  'MSMT17_V1': ('train', 'test'),
}


def MSMT17(root: Any, *, combine_all: bool = False) -> ReIDDataset:
  """MSMT17, version 1 or 2.

  Args:
    root: The folder that holds MSMT17_V1 or MSMT17_V2 (2 if both), or that
      folder itself.
    combine_all: Adds the validation images to those of training.

  Returns:
    Training images, queries, gallery. The lists number the people of training
    and of test from 0 each; those of the test come after the others here.

  Raises:
    FileNotFoundError: Says what to put where.
    ValueError: A line of a list is no path and number.

  Example:
    >>> MSMT17('~/data').counts  # doctest: +SKIP
  """
  root = files.as_path(root)
  places = [
    (place, parts)
    for version, parts in _MSMT17.items()
    for place in (root, root / version, root / 'msmt17' / version)
    if (place / 'list_train.txt').exists() and (place / parts[0]).is_dir()
  ]
  if not places:
    raise files.missing(
      'MSMT17',
      root,
      '  MSMT17_V1/{list_train,list_val,list_query,list_gallery}.txt, train,'
      ' test; or MSMT17_V2 with mask_train_v2, mask_test_v2',
    )
  folder, (train_folder, test_folder) = places[0]
  train = _msmt17_list(folder, 'list_train.txt', train_folder)
  if combine_all:
    val = _msmt17_list(folder, 'list_val.txt', train_folder)
    train = concatenated([train, val])
  first = int(train.pids.max()) + 1
  query, gallery = (
    split._replace(pids=split.pids + np.int32(first))
    for split in (
      _msmt17_list(folder, f'list_{part}.txt', test_folder)
      for part in ('query', 'gallery')
    )
  )
  return counted(ReIDDataset('msmt17', train, query, gallery))


def _msmt17_list(folder, name, images_folder):
  names, pids, cameras = [], [], []
  text = (folder / name).read_text(encoding='utf-8')
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    try:
      path, pid = line.rsplit(maxsplit=1)
      pids.append(int(pid))
      # Of the file's name: a folder may hold a _.
      cameras.append(int(path.rpartition('/')[2].split('_')[2]) - 1)
    except (ValueError, IndexError) as error:
      raise ValueError(
        f'{folder / name}, line {number} is {line!r}; expected such as'
        " '0000/0000_000_01_0303morning_0015_0.jpg 0'."
      ) from error
    names.append(path)
  return make_split(folder / images_folder, names, pids, cameras)


def CUHK03(
  root: Any,
  *,
  detected: bool = True,
  protocol: str = 'new',
  split: int = 0,
) -> ReIDDataset:
  """CUHK03 with boxes that were detected or drawn by hand.

  Images are in cuhk-03.mat, from which they are unpacked once, to PNG files
  beside it: see `cuhk03.unpack`.

  Args:
    root: The folder that holds cuhk03_release/cuhk-03.mat, or one above it,
      named cuhk03; and cuhk03_new_protocol_config_{detected,labeled}.mat.
    detected: Which boxes.
    protocol: 'new': 767 people of training, 700 of test. 'classic': one of 20
      splits with 100 people of test and one gallery image of each.
    split: Which of the 20.

  Returns:
    Training images, queries, gallery; `protocol` is 'cuhk03' for the classic.

  Raises:
    FileNotFoundError: Says what to put where.
    ValueError: There is no such protocol or split.
    ImportError: h5py or scipy is not installed.

  Example:
    >>> CUHK03('~/data', detected=False).counts  # doctest: +SKIP
  """
  return counted(
    cuhk03_lib.open_cuhk03(
      root, detected=detected, protocol=protocol, split=split
    )
  )


DATASETS = {
  'market1501': Market1501,
  'dukemtmc': DukeMTMC,
  'msmt17': MSMT17,
  'cuhk03': CUHK03,
  **READERS,
}


def open_reid(
  name: str,
  folder: Any,
  *,
  cuhk03: str = 'detected-new',
  split: int = 0,
  combine_all: bool = False,
) -> ReIDDataset:
  """Opens a data set by its name.

  Args:
    name: Of `DATASETS`.
    folder: Holds the data set, or the folders of several.
    cuhk03: 'detected' or 'labeled', then '-new' or '-classic'.
    split: Of the classic protocol of CUHK03, and of the small data sets.
    combine_all: Trains on the people of the test as well, as for a model that
      is evaluated on another data set. Junk and distractors are left out.

  Returns:
    The data set.

  Raises:
    ValueError: There is no such data set or protocol.
    FileNotFoundError: Says what to put where.

  Example:
    >>> open_reid('market1501', '~/data').protocol  # doctest: +SKIP
    'market1501'
  """
  if name not in DATASETS:
    raise ValueError(f'name is {name!r}; expected one of {list(DATASETS)}.')
  if name == 'cuhk03':
    boxes, _, protocol = cuhk03.partition('-')
    if boxes not in ('detected', 'labeled') or protocol not in (
      'new',
      'classic',
    ):
      raise ValueError(
        f"cuhk03 is {cuhk03!r}; expected such as 'detected-new' or"
        " 'labeled-classic'."
      )
    data = CUHK03(
      folder, detected=boxes == 'detected', protocol=protocol, split=split
    )
  elif name == 'msmt17':
    data = MSMT17(folder, combine_all=combine_all)
  elif name in READERS:
    data = READERS[name](folder, split=split)
  else:
    data = DATASETS[name](folder)
  if not combine_all:
    return data
  parts = [data.train, data.query]
  if data.gallery.paths != data.query.paths:
    parts.append(data.gallery)
  train = concatenated(parts)
  people = train.pids != (-1 if data.distractor is None else data.distractor)
  return counted(data._replace(train=chosen(train, people)))


def open_pa100k(folder: Any):
  """Training and test images of PA-100K: see `PA100K`."""
  data = PA100K(folder)
  return data.train, data.test


def relabel(pids: Any) -> tuple[np.ndarray, np.ndarray]:
  """Numbers identities from 0, in sorted order.

  Args:
    pids: Integers [n].

  Returns:
    Labels, int32 [n]; the identity of each label.

  Example:
    >>> relabel([7, 2, 7])[0].tolist()
    [1, 0, 1]
  """
  classes, labels = np.unique(np.asarray(pids), return_inverse=True)
  return labels.astype(np.int32), classes


def merge(splits: Sequence[ReIDSplit]) -> tuple[ReIDSplit, np.ndarray]:
  """Puts training images of several data sets together.

  Identities are numbered from 0 without gaps, those of each data set after the
  ones before, and so are cameras.

  Args:
    splits: One for each data set.

  Returns:
    The images; number of the data set of each, int32 [n].

  Raises:
    ValueError: There is none.

  Example:
    >>> a = ReIDSplit(('a.jpg',), np.array([5]), np.array([2]))
    >>> both, source = merge([a, a])
    >>> both.pids.tolist(), both.camids.tolist(), source.tolist()
    ([0, 1], [0, 1], [0, 1])
  """
  if not splits:
    raise ValueError('splits is empty; expected one for each data set.')
  out, people, cameras = [], 0, 0
  for split in splits:
    pids, who = relabel(split.pids)
    camids, where = relabel(split.camids)
    out.append(split._replace(pids=pids + people, camids=camids + cameras))
    people, cameras = people + len(who), cameras + len(where)
  source = np.repeat(np.arange(len(splits)), [len(s.paths) for s in splits])
  return concatenated(out), source.astype(np.int32)


def _numbers(texts):
  """Texts as integers; or their places in sorted order, and False."""
  try:
    return np.array([int(text) for text in texts], np.int64), True
  except ValueError:
    return np.unique(texts, return_inverse=True)[1], False
