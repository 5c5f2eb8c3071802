"""Images of the OSNet programs: what is trained on, what is evaluated on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import _command_line
import numpy as np
from etils import epath

from jaxpapers import data as shared_data
from jaxpapers.osnet import (
  attributes,
  datasets,
  losses,
  recipes,
  sources,
  synth,
)

MARKET_IDENTITIES, MARKET_IMAGES = 751, 12_936


@dataclasses.dataclass(frozen=True)
class TrainData:
  """What is trained on.

  Attributes:
    source: Examples {'image', 'label'}.
    labels: int32 [n]; of attributes float32 [n, attributes].
    num_classes: Identities, classes or attributes.
    classes: What these are called.
    camids: int32 [n], cameras, of re-identification.
    dsetids: int32 [n], data sets, likewise.
    attribute_weights: A number for each attribute, or None.
  """

  source: Any
  labels: np.ndarray
  num_classes: int
  classes: str = 'identities'
  camids: np.ndarray | None = None
  dsetids: np.ndarray | None = None
  attribute_weights: tuple[float, ...] | None = None

  def __len__(self) -> int:
    return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Queries and the gallery that they are looked for in.

  Attributes:
    name: Of the data set.
    query: Examples {'image'}.
    gallery: Likewise.
    q_pids: Identities of the queries; likewise the others.
    g_pids: Of the gallery.
    q_cams: Cameras.
    g_cams: Of the gallery.
    protocol: As of `rank_metrics`.
    people: Of synthetic images, to sort errors by scale; else None.
    first: Identity of row 0 of `people`.
  """

  name: str
  query: Any
  gallery: Any
  q_pids: np.ndarray
  g_pids: np.ndarray
  q_cams: np.ndarray
  g_cams: np.ndarray
  protocol: str = 'market1501'
  people: synth.Population | None = None
  first: int = 0


@dataclasses.dataclass(frozen=True)
class Labelled:
  """Images whose labels are to be told.

  Attributes:
    name: Of the data set.
    source: Examples {'image'}.
    labels: As of `TrainData`.
    score: Maps logits and labels to numbers.
  """

  name: str
  source: Any
  labels: np.ndarray
  score: Callable[[np.ndarray, np.ndarray], dict[str, float]]


def open_data(config: Any) -> tuple[TrainData, list[Any]]:
  """Opens what a config trains and evaluates on.

  Args:
    config: See `recipes.FIELDS`.

  Returns:
    What is trained on; each target.

  Raises:
    UsageError: If files are missing or do not fit; says what to put where.
  """
  names = recipes.names(config.data.sources)
  targets = recipes.names(config.data.targets) or names
  files = [n for n in dict.fromkeys(names + targets) if n != 'synthetic']
  if files and not config.data.folder:
    raise _command_line.UsageError(
      f'--config.data.folder is empty. Give the folder that holds {files[0]}'
    )
  try:
    if config.task == 'attributes':
      return _open_attributes(config)
    if config.task == 'classify':
      return _open_classes(config, names[0])
    opened = {
      name: _open_reid(config, name) for name in dict.fromkeys(names + targets)
    }
    return (
      _joined([opened[name] for name in names]),
      [opened[name].test for name in targets],
    )
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.data: {_command_line.one_line(error)}'
    ) from error


def placeholder(config: Any) -> TrainData:
  """Stands for images where none are there, as for compile_for_tpu.py.

  Args:
    config: See `recipes.FIELDS`.

  Returns:
    Data of the size that the config says, by default that of Market-1501.
  """
  examples = config.data.train_examples or MARKET_IMAGES
  labels = np.zeros(examples, np.int32)
  classes = config.data.num_classes or MARKET_IDENTITIES
  return TrainData({'label': labels}, labels, classes)


@dataclasses.dataclass(frozen=True)
class _ReID:
  """A data set: `source(labels)` makes its training images."""

  source: Callable[[np.ndarray], Any]
  pids: np.ndarray
  camids: np.ndarray
  test: Retrieval


def _joined(opened):
  """Labels, cameras and data sets count on from one data set to the next."""
  parts, columns = [], {'label': [], 'camid': [], 'dsetid': []}
  people = cameras = 0
  for number, one in enumerate(opened):
    labels, who = datasets.relabel(one.pids)
    camids, where = datasets.relabel(one.camids)
    labels = labels + np.int32(people)
    parts.append(one.source(labels))
    columns['label'].append(labels)
    columns['camid'].append(camids + cameras)
    columns['dsetid'].append(np.full(len(labels), number, np.int32))
    people, cameras = people + len(who), cameras + len(where)
  source = parts[0] if len(parts) == 1 else sources.Concatenated(parts)
  labels, camids, dsetids = map(np.concatenate, columns.values())
  return TrainData(source, labels, people, camids=camids, dsetids=dsetids)


def _open_reid(config, name):
  if name == 'synthetic':
    return _open_synthetic(config)
  splits = datasets.open_reid(
    name,
    config.data.folder,
    cuhk03=config.data.cuhk03,
    split=config.data.split,
    combine_all=config.data.combine_all,
  )
  size = (config.height, config.width)
  trained = splits.train
  return _ReID(
    lambda labels: sources.ImageFiles(trained.paths, *size, label=labels),
    trained.pids,
    trained.camids,
    Retrieval(
      name,
      sources.ImageFiles(splits.query.paths, *size),
      sources.ImageFiles(splits.gallery.paths, *size),
      splits.query.pids,
      splits.gallery.pids,
      splits.query.camids,
      splits.gallery.camids,
      splits.protocol,
    ),
  )


def _open_synthetic(config):
  options = config.data
  benchmark = synth.make_benchmark(
    options.seed,
    options.train_identities,
    options.test_identities,
    (config.height, config.width),
  )
  train, query, gallery = benchmark.train, benchmark.query, benchmark.gallery
  pids, camids = train.pids, train.camids
  images = train.images
  if options.combine_all:
    parts = (train, query, gallery)
    images = np.concatenate([part.images for part in parts])
    pids = np.concatenate([part.pids for part in parts])
    camids = np.concatenate([part.camids for part in parts])
  return _ReID(
    lambda labels: {'image': images, 'label': labels},
    pids,
    camids,
    Retrieval(
      'synthetic',
      {'image': query.images},
      {'image': gallery.images},
      query.pids,
      gallery.pids,
      query.camids,
      gallery.camids,
      people=benchmark.people,
      first=options.train_identities,
    ),
  )


def _open_attributes(config):
  train, test = datasets.open_pa100k(config.data.folder)
  size = (config.height, config.width)

  def score(logits, labels):
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = attributes.attribute_metrics(probability, labels)
    names = ('mA', 'accuracy', 'precision', 'recall', 'F1')
    return {name: float(getattr(found, name)) for name in names}

  labels = np.asarray(train.labels, np.float32)
  return (
    TrainData(
      sources.ImageFiles(train.paths, *size, label=labels),
      labels,
      labels.shape[1],
      'attributes',
      attribute_weights=tuple(losses.attribute_weights(labels).tolist()),
    ),
    [
      Labelled(
        'pa100k',
        sources.ImageFiles(test.paths, *size),
        np.asarray(test.labels),
        score,
      )
    ],
  )


def _open_classes(config, name):
  size = (config.height, config.width)

  def score(logits, labels):
    return {'accuracy': float((logits.argmax(-1) == labels).mean())}

  folder = epath.Path(config.data.folder).expanduser()
  if name == 'folder':
    train = shared_data.open_image_folder(folder / 'train')
    test = shared_data.open_image_folder(
      folder / 'test', class_names=train.class_names
    )
    splits = [
      (
        sources.ImageFiles(
          [part.name(i) for i in range(len(part))], *size, label=part.labels
        ),
        part.labels,
      )
      for part in (train, test)
    ]
    num_classes = len(train.class_names)
  else:
    load = getattr(shared_data, f'load_{name}')
    splits = []
    for split in ('train', 'test'):
      arrays = load(folder, split)
      images = np.stack([sources.resize(x, *size) for x in arrays['image']])
      labels = arrays['label'].astype(np.int32)
      splits.append(({'image': images, 'label': labels}, labels))
    num_classes = {'cifar10': 10, 'cifar100': 100}[name]
  (train, labels), (test, test_labels) = splits
  return (
    TrainData(train, labels, num_classes, 'classes'),
    [Labelled(name, test, test_labels, score)],
  )
