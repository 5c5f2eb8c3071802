"""ImageNet (ILSVRC 2012) and Tiny-ImageNet-200 as they are unpacked."""

import csv
import io
from collections.abc import Callable
from typing import Any

from jaxpapers.data import files, images

_LABEL_FILES = (
  'LOC_val_solution.csv',
  'imagenet_2012_validation_synset_labels.txt',
  'val_labels.txt',
  'val.txt',
)
_DEVKIT = 'ILSVRC2012_devkit_t12'
_GROUND_TRUTH = 'ILSVRC2012_validation_ground_truth.txt'
_EXPECTED = f"""\
  ILSVRC2012_img_train.tar      147,897,477,120 bytes, and the tar file of each
    class in it, unpacked to train/<wnid>/*.JPEG
  ILSVRC2012_img_val.tar          6,744,924,160 bytes, unpacked to
    val/<wnid>/*.JPEG, or flat to val/*.JPEG together with one file of labels:
    LOC_val_solution.csv (Kaggle);
    {_DEVKIT}/data/ with meta.mat and {_GROUND_TRUTH};
    imagenet_2012_validation_synset_labels.txt, one wnid a line; or val.txt or
    val_labels.txt, a file name and a wnid (or index of sorted wnids) a line."""
_TINY_EXPECTED = """\
  tiny-imagenet-200.zip             248,100,043 bytes, unpacked to wnids.txt,
    words.txt, train/<wnid>/images/*.JPEG, val/images/*.JPEG and
    val/val_annotations.txt"""


def open_imagenet(
  folder: Any,
  split: str = 'train',
  *,
  labels_file: Any = None,
  decode: Callable[[bytes, Any], Any] | None = images.decode_image,
) -> images.ImageSource:
  """ImageNet 2012; the labels are the ranks of the sorted wnids.

  Args:
    folder: holds train/ and val/ (the error of a missing one says what they
      hold); local, or on any file system that etils.epath knows.
    split: 'train' (1,281,167 images) or 'val' (50,000).
    labels_file: labels of a flat val/; by default one of the files named in
      the error, in `folder` or in val/.
    decode: see `ImageSource`.

  Returns:
    The images, with wnids as `class_names`: the folders of train/. Where train/
    is missing, those of val/ or of the file of labels.

  Raises:
    ValueError: `split` is another word.
    FileNotFoundError: the split or its labels are missing.
    CorruptFileError: the file of labels does not fit the images.

  Example:
    >>> source = open_imagenet('~/data/imagenet', 'val')  # doctest: +SKIP
  """
  if split not in ('train', 'val'):
    raise ValueError(f"split is {split!r}; expected 'train' or 'val'.")
  folder = files.as_path(folder)
  place = folder / split
  wnids = _subfolders(folder / 'train')
  own = _subfolders(place)
  if own:
    return images.open_image_folder(
      place, class_names=wnids or own, decode=decode
    )
  names = images.list_images(place) if place.is_dir() else []
  if split == 'train' or not names:
    raise files.missing(f"ImageNet's {split} split", place, _EXPECTED)
  path = _labels_path(folder, labels_file)
  if path.name == _GROUND_TRUTH:
    words = _devkit_labels(path)
  else:
    words = _listed_labels(path)
  if isinstance(words, list):
    if len(words) != len(names):
      raise files.CorruptFileError(
        f'{path}: {len(words):,} labels; expected one for each of the'
        f' {len(names):,} images in {place}.'
      )
    words = dict(zip((_stem(name) for name in names), words))
  lacking = [name for name in names if _stem(name) not in words]
  if lacking:
    raise files.CorruptFileError(
      f'{path}: no label for {len(lacking):,} of the {len(names):,} images in'
      f' {place}, the first of them {lacking[0]}.'
    )
  words = [words[_stem(name)] for name in names]
  if all(word.isdecimal() for word in words):
    count = max(len(wnids), 1 + max(map(int, words)))
    classes = wnids or [str(k) for k in range(count)]
    labels = [int(word) for word in words]
    if wnids and count > len(wnids):
      raise files.CorruptFileError(
        f'{path}: label {count - 1}; expected 0 to {len(wnids) - 1}, as train/'
        f' has {len(wnids)} classes.'
      )
  else:
    classes = wnids or sorted(set(words))
    ranks = {wnid: rank for rank, wnid in enumerate(classes)}
    unknown = sorted(set(words) - set(ranks))
    if unknown:
      raise files.CorruptFileError(
        f'{path}: the classes {unknown[:5]} are no folders of'
        f' {folder / "train"}.'
      )
    labels = [ranks[word] for word in words]
  return images.ImageSource(names, labels, classes, root=place, decode=decode)


def open_tiny_imagenet(
  folder: Any,
  split: str = 'train',
  *,
  decode: Callable[[bytes, Any], Any] | None = images.decode_image,
) -> images.ImageSource:
  """Tiny-ImageNet-200: 64 x 64 images; labels in the order of wnids.txt.

  The grey images among them become RGB.

  Args:
    folder: tiny-imagenet-200, or a folder that holds it.
    split: 'train' (100,000 images) or 'val' (10,000). The test set has no
      labels.
    decode: see `ImageSource`.

  Returns:
    The images, with wnids as `class_names`; `tiny_imagenet_words` tells what
    they mean.

  Raises:
    ValueError: `split` is another word.
    FileNotFoundError: the split is missing.
    CorruptFileError: wnids.txt or val_annotations.txt does not fit the images.

  Example:
    >>> source = open_tiny_imagenet('~/data', 'val')  # doctest: +SKIP
  """
  if split not in ('train', 'val'):
    raise ValueError(
      f"split is {split!r}; expected 'train' or 'val' ('test' has no labels)."
    )
  folder = _tiny_folder(folder)
  wnids = (folder / 'wnids.txt').read_text(encoding='utf-8').split()
  ranks = {wnid: rank for rank, wnid in enumerate(wnids)}
  place = folder / split
  if split == 'train':
    if not place.is_dir():
      raise files.missing("Tiny-ImageNet's train split", folder, _TINY_EXPECTED)
    unknown = set(_subfolders(place)) - set(ranks)
    if unknown:
      raise files.CorruptFileError(
        f'{folder / "wnids.txt"}: lacks {sorted(unknown)[:5]}, which are'
        f' folders of {place}.'
      )
    return images.open_image_folder(place, class_names=wnids, decode=decode)
  annotations = place / 'val_annotations.txt'
  if not annotations.is_file():
    raise files.missing("Tiny-ImageNet's val split", folder, _TINY_EXPECTED)
  items, labels = [], []
  for number, line in enumerate(
    annotations.read_text(encoding='utf-8').splitlines(), 1
  ):
    # Name, wnid, and four numbers of the box.
    fields = line.split('\t')
    if len(fields) < 2 or fields[1] not in ranks:
      raise files.CorruptFileError(
        f'{annotations}, line {number}: {line!r}; expected a file name, a tab'
        ' and a wnid of wnids.txt.'
      )
    items.append(f'images/{fields[0]}')
    labels.append(ranks[fields[1]])
  return images.ImageSource(items, labels, wnids, root=place, decode=decode)


def tiny_imagenet_words(folder: Any) -> dict[str, str]:
  """What each wnid means, from words.txt.

  Args:
    folder: tiny-imagenet-200, or a folder that holds it.

  Returns:
    wnid -> words, of the whole of WordNet that the file lists.

  Raises:
    FileNotFoundError: it is not there.
  """
  path = _tiny_folder(folder) / 'words.txt'
  if not path.is_file():
    raise files.missing("Tiny-ImageNet's words.txt", path, _TINY_EXPECTED)
  lines = path.read_text(encoding='utf-8').splitlines()
  pairs = (line.partition('\t') for line in lines if line)
  return {wnid: words for wnid, _, words in pairs}


def _tiny_folder(folder):
  folder = files.as_path(folder)
  for place in (folder, folder / 'tiny-imagenet-200'):
    if (place / 'wnids.txt').is_file():
      return place
  raise files.missing('Tiny-ImageNet-200', folder, _TINY_EXPECTED)


def _subfolders(folder):
  if not folder.is_dir():
    return []
  if '://' in str(folder):
    return sorted(p.name for p in folder.iterdir() if not p.suffix)
  # By scandir: a flat folder of 50,000 files needs no question about each.
  return sorted(
    name
    for name, is_folder in images.list_entries(folder)
    if is_folder and not name.startswith('.')
  )


def _stem(name):
  return name.rpartition('/')[2].partition('.')[0]


def _labels_path(folder, labels_file):
  if labels_file is not None:
    path = files.as_path(labels_file)
    if not path.is_file():
      raise files.missing(f'labels_file {path}', path, _EXPECTED)
    return path
  devkit = (f'{_DEVKIT}/data/{_GROUND_TRUTH}', f'data/{_GROUND_TRUTH}')
  for place in (folder, folder / 'val'):
    found = files.find(place, (*_LABEL_FILES, *devkit, _GROUND_TRUTH))
    if found is not None:
      return found
  raise files.missing(
    "The labels of ImageNet's flat val/ folder", folder, _EXPECTED
  )


def _listed_labels(path):
  """Stem of the file -> label, or labels in the order of the file names."""
  text = path.read_text(encoding='utf-8')
  if path.name.endswith('.csv'):
    rows = csv.DictReader(io.StringIO(text))
    if not {'ImageId', 'PredictionString'} <= set(rows.fieldnames or ()):
      raise files.CorruptFileError(
        f'{path}: the columns are {rows.fieldnames}; expected ImageId and'
        ' PredictionString.'
      )
    # The class, then boxes.
    return {
      row['ImageId']: (row['PredictionString'] or '').partition(' ')[0]
      for row in rows
    }
  lines = [line.split() for line in text.splitlines() if line.strip()]
  if all(len(line) == 1 for line in lines):
    words = [line[0] for line in lines]
    if any(word.isdecimal() for word in words):
      raise files.CorruptFileError(
        f'{path}: numbers without file names. If these are the ids of the'
        f' development kit, keep the name {_GROUND_TRUTH} and put meta.mat'
        ' beside it: their order is not that of the sorted wnids.'
      )
    return words
  for number, line in enumerate(lines, 1):
    if len(line) != 2:
      raise files.CorruptFileError(
        f'{path}, line {number}: {" ".join(line)!r}; expected a file name and a'
        ' wnid (or the index of the class).'
      )
  return {_stem(name): word for name, word in lines}


def _devkit_labels(path):
  """Wnids in the order of the file names, through the kit's meta.mat."""
  meta = path.with_name('meta.mat')
  if not meta.is_file():
    raise files.missing(
      f"The development kit's meta.mat, for {path}", path.parent, _EXPECTED
    )
  import scipy.io

  try:
    content = io.BytesIO(meta.read_bytes())
    synsets = scipy.io.loadmat(content, squeeze_me=True)['synsets']
    wnids = {int(s['ILSVRC2012_ID']): str(s['WNID']) for s in synsets}
  except Exception as error:  # scipy raises many kinds
    raise files.CorruptFileError(
      f"{meta}: cannot be read as the development kit's table of synsets"
      f' ({type(error).__name__}: {error}).'
    ) from error
  words = path.read_text(encoding='utf-8').split()
  unknown = [w for w in words if not w.isdecimal() or int(w) not in wnids]
  if unknown:
    raise files.CorruptFileError(f'{path}: {unknown[0]!r} is no id of {meta}.')
  return [wnids[int(word)] for word in words]
