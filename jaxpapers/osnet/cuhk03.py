"""CUHK03: images in an HDF5 file, splits of two protocols."""

import io
import json
import os
from typing import Any

import numpy as np

from jaxpapers.data import files
from jaxpapers.osnet.pa100k import load_mat, texts
from jaxpapers.osnet.splits import ReIDDataset, ReIDSplit, make_split

_SPLITS = 'splits_classic.json'


def open_cuhk03(
  root: Any, *, detected: bool, protocol: str, split: int
) -> ReIDDataset:
  """See `datasets.CUHK03`.

  Args:
    root: See there.
    detected: See there.
    protocol: See there.
    split: See there.

  Returns:
    The data set.

  Raises:
    FileNotFoundError: Says what to put where.
    ValueError: There is no such protocol or split.
  """
  if protocol not in ('new', 'classic'):
    raise ValueError(f"protocol is {protocol!r}; expected 'new' or 'classic'.")
  root = files.as_path(root)
  boxes = 'detected' if detected else 'labeled'
  folder = root / 'cuhk03' if (root / 'cuhk03').is_dir() else root
  images = folder / f'images_{boxes}'
  splits_there = protocol == 'new' or (folder / _SPLITS).exists()
  if not (images.is_dir() and splits_there):
    source = files.find(folder, ('cuhk03_release/cuhk-03.mat', 'cuhk-03.mat'))
    if source is None:
      raise files.missing(
        'CUHK03',
        folder,
        '  cuhk03_release/cuhk-03.mat, and of the new protocol'
        ' cuhk03_new_protocol_config_{detected,labeled}.mat',
      )
    unpack(source, folder)
  if protocol == 'new':
    config = folder / f'cuhk03_new_protocol_config_{boxes}.mat'
    if not config.exists():
      raise files.missing("CUHK03's new protocol", folder, f'  {config.name}')
    parts = new_protocol(config, images)
    return ReIDDataset('cuhk03', *parts)
  splits = json.loads((folder / _SPLITS).read_text(encoding='utf-8'))
  if not 0 <= split < len(splits):
    raise ValueError(f'split is {split}; expected 0 to {len(splits) - 1}.')
  train, test = _classic(images, splits[split])
  return ReIDDataset('cuhk03', train, test, test, protocol='cuhk03')


def new_protocol(
  config: Any, images: Any = ''
) -> tuple[ReIDSplit, ReIDSplit, ReIDSplit]:
  """Reads a split of 767 and 700 people.

  Args:
    config: cuhk03_new_protocol_config_{detected,labeled}.mat.
    images: Folder of the images; they need not be there.

  Returns:
    Training images, queries, gallery.

  Raises:
    CorruptFileError: It is another file.

  Example:
    >>> new_protocol('config.mat')  # doctest: +SKIP
  """
  content = load_mat(config)
  wanted = ('filelist', 'labels', 'train_idx', 'query_idx', 'gallery_idx')
  missing = [name for name in wanted if name not in content]
  if missing:
    raise files.CorruptFileError(
      f'{config}: {missing[0]} is missing; expected the variables'
      f' {", ".join(wanted)}.'
    )
  names = np.array(texts(content['filelist']))
  pids = content['labels'].ravel().astype(int)
  images = files.as_path(images)
  parts = []
  for part in ('train', 'query', 'gallery'):
    chosen = content[f'{part}_idx'].ravel().astype(int) - 1
    own = names[chosen]
    cameras = [_view(name) for name in own]
    parts.append(make_split(images, own.tolist(), pids[chosen], cameras))
  return tuple(parts)


def _view(name):
  return int(name.split('_')[2]) - 1


def _classic(images, test_people):
  """Splits people as one of the 20 lists says."""
  test_people = {tuple(pair) for pair in test_people}
  numbers: dict[tuple[int, int], int] = {}
  rows: tuple[list, list] = ([], [])
  for name in sorted(entry.name for entry in images.iterdir()):
    if not name.endswith('.png') or name.startswith('.'):
      continue
    pair, person, _, _ = name.split('_')
    who = (int(pair), int(person))
    pid = numbers.setdefault(who, len(numbers))
    rows[who in test_people].append((name, pid, _view(name)))
  return tuple(make_split(images, *zip(*part, strict=True)) for part in rows)


def unpack(mat: Any, folder: Any) -> dict[str, int]:
  """Unpacks the images of cuhk-03.mat to PNG files.

  They are called as torchreid calls them: number of the pair of cameras, number
  of the person there, view (1 or 2), number of the image from 1.

  Args:
    mat: The HDF5 file.
    folder: Where images_detected, images_labeled and splits_classic.json go; a
      folder that is there was finished and is left as it is.

  Returns:
    Name of each folder -> number of images in it.

  Raises:
    ImportError: h5py or Pillow is not installed.
    CorruptFileError: The file is not HDF5, or holds other things.

  Example:
    >>> unpack('cuhk-03.mat', 'cuhk03')  # doctest: +SKIP
  """
  try:
    import h5py
    from PIL import Image
  except ImportError as error:
    raise ImportError(
      "unpacking CUHK03 needs h5py and Pillow: pip install 'jaxpapers[osnet]'"
    ) from error
  folder = files.as_path(folder)
  counts = {}
  try:
    file = h5py.File(mat, 'r')
  except OSError as error:
    raise files.CorruptFileError(
      f'{mat}: not a MATLAB file of version 7.3 ({error}).'
    ) from error
  with file:
    missing = {'detected', 'labeled', 'testsets'} - set(file)
    if missing:
      raise files.CorruptFileError(f'{mat}: has no {sorted(missing)[0]!r}.')
    # MATLAB's arrays are the other way round in HDF5.
    splits = [
      np.asarray(file[reference]).T.astype(int).tolist()
      for reference in np.asarray(file['testsets']).ravel()
    ]
    for boxes in ('detected', 'labeled'):
      target = folder / f'images_{boxes}'
      if target.is_dir():
        counts[target.name] = sum(1 for _ in target.glob('*.png'))
        continue
      partial = folder / f'.images_{boxes}.{os.getpid()}.partial'
      partial.mkdir(parents=True)
      number = 0
      for pair, reference in enumerate(np.asarray(file[boxes]).ravel(), 1):
        people = np.asarray(file[reference]).T
        for person, row in enumerate(people, 1):
          for i, image in enumerate(row, 1):
            pixels = np.asarray(file[image]).T
            if pixels.ndim != 3 or not pixels.size:
              continue  # Some people have fewer than ten images.
            stream = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(stream, 'PNG')
            view = 1 if i <= 5 else 2
            name = f'{pair}_{person:03d}_{view}_{i:02d}.png'
            (partial / name).write_bytes(stream.getvalue())
            number += 1
      if number == 0:
        raise files.CorruptFileError(f'{mat}: {boxes!r} holds no image.')
      partial.rename(target)
      counts[target.name] = number
  files.write_file(folder / _SPLITS, json.dumps(splits))
  return counts
