"""PA-100K: attributes of pedestrians."""

from typing import Any, NamedTuple

import numpy as np

from jaxpapers.data import files

_PARTS = ('train', 'val', 'test')


class AttributeSplit(NamedTuple):
  """Images with attributes.

  Attributes:
    paths: Of the files, [n].
    labels: int32 [n, number of attributes], 0 or 1.
  """

  paths: tuple[str, ...]
  labels: np.ndarray


class AttributeDataset(NamedTuple):
  """Images with attributes, in three parts.

  Attributes:
    name: Of the data set.
    attributes: Names.
    train: To train on.
    val: To choose by.
    test: To report.
  """

  name: str
  attributes: tuple[str, ...]
  train: AttributeSplit
  val: AttributeSplit
  test: AttributeSplit


def PA100K(root: Any) -> AttributeDataset:
  """PA-100K: 80,000, 10,000 and 10,000 images with 26 attributes.

  Args:
    root: The folder that holds annotation.mat and the images in data or
      release_data/release_data; or one above it, named pa100k or PA-100K.

  Returns:
    The data set.

  Raises:
    FileNotFoundError: Says what to put where.
    ValueError: A variable is missing, names and labels differ in number, or
      labels are not 0 or 1.
    ImportError: scipy is not installed.

  Example:
    >>> PA100K('~/data').train.labels.shape  # doctest: +SKIP
    (80000, 26)
  """
  root = files.as_path(root)
  places = [root / name for name in ('', 'pa100k', 'PA-100K')]
  folder = next((p for p in places if (p / 'annotation.mat').exists()), None)
  if folder is None:
    raise files.missing(
      'PA-100K', root, '  annotation.mat, and the images in data'
    )
  content = load_mat(folder / 'annotation.mat')
  wanted = [f'{a}_{b}' for a in _PARTS for b in ('images_name', 'label')]
  for name in (*wanted, 'attributes'):
    if name not in content:
      raise files.CorruptFileError(
        f'{folder / "annotation.mat"}: {name} is missing; expected the'
        f' variables {", ".join(wanted)}, attributes.'
      )
  images = files.find(
    folder, ('data', 'release_data/release_data', 'release_data', 'images')
  )
  if images is None:
    raise files.missing('The images of PA-100K', folder, '  data/000001.jpg')
  parts = []
  for part in _PARTS:
    names = texts(content[f'{part}_images_name'])
    labels = np.asarray(content[f'{part}_label'])
    if labels.ndim != 2 or len(labels) != len(names):
      raise ValueError(
        f'{folder / "annotation.mat"}: {part}_label has shape'
        f' {list(labels.shape)} for {len(names)} names.'
      )
    if not np.isin(labels, (0, 1)).all():
      raise ValueError(
        f'{folder / "annotation.mat"}: {part}_label holds other than 0 and 1.'
      )
    paths = tuple(str(images / name) for name in names)
    parts.append(AttributeSplit(paths, labels.astype(np.int32)))
  return AttributeDataset('pa100k', texts(content['attributes']), *parts)


def load_mat(path: Any) -> dict[str, Any]:
  """The variables of a MATLAB file of version 5.

  Args:
    path: The file.

  Returns:
    Name -> array.

  Raises:
    ImportError: scipy is not installed.
    CorruptFileError: It is damaged or in another format.
  """
  try:
    import scipy.io
  except ImportError as error:
    raise ImportError(
      "reading .mat files needs scipy: pip install 'jaxpapers[osnet]'"
    ) from error
  import io

  content = files.as_path(path).read_bytes()
  try:
    return scipy.io.loadmat(io.BytesIO(content))
  except Exception as error:  # It raises many kinds.
    raise files.CorruptFileError(
      f'{path}: not a MATLAB file of version 5 ({error}); it has'
      f' {len(content):,} bytes.'
    ) from error


def texts(cells: Any) -> tuple[str, ...]:
  """The texts in an array of MATLAB cells.

  Args:
    cells: As `load_mat` has it.

  Returns:
    Them.
  """
  return tuple(str(np.asarray(cell).ravel()[0]) for cell in cells.ravel())
