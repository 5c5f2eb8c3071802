"""A small task of real images on which studies and searches train networks."""

import dataclasses
import functools
import io
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers import training
from jaxpapers.data import files, load_cifar10
from jaxpapers.efficientnet import scaling


@dataclasses.dataclass(frozen=True)
class Images:
  """Images in memory, at any size that a network asks for.

  Attributes:
    images: uint8 `[n, H, W, 3]`.
    labels: int32 `[n]`.
    num_classes: How many there are.
  """

  images: np.ndarray
  labels: np.ndarray
  num_classes: int

  def __post_init__(self):
    if self.images.ndim != 4 or len(self.images) != len(self.labels):
      raise ValueError(
        f'images have shape {list(self.images.shape)}, labels'
        f' {list(self.labels.shape)}; expected [n, H, W, 3] and [n].'
      )

  def __len__(self):
    return len(self.labels)

  def at(self, resolution: int) -> 'Images':
    """The same at another size, each new pixel the mean of what it covers."""
    return dataclasses.replace(
      self, images=area_resize(self.images, resolution)
    )

  def take(self, indices: Any) -> 'Images':
    """Some of the images."""
    return dataclasses.replace(
      self, images=self.images[indices], labels=self.labels[indices]
    )

  def split(self, count: int) -> tuple['Images', 'Images']:
    """All but the last `count`, and these; all classes as often as before.

    Args:
      count: Size of the second part.

    Returns:
      Both parts.

    Raises:
      ValueError: If one of them would be empty.
    """
    if not 0 < count < len(self):
      raise ValueError(
        f'count is {count}; expected 1 to {len(self) - 1} of {len(self)}'
        ' images.'
      )
    share, held = count / len(self), np.zeros(len(self), bool)
    for label in range(self.num_classes):
      where = np.flatnonzero(self.labels == label)
      held[where[len(where) - round(share * len(where)) :]] = True
    return self.take(~held), self.take(held)


def area_resize(images: np.ndarray, resolution: int) -> np.ndarray:
  """Resizes images so that each new pixel is the mean of what it covers.

  Args:
    images: uint8 `[n, H, W, C]`.
    resolution: New height and width.

  Returns:
    uint8 `[n, resolution, resolution, C]`.

  Example:
    >>> area_resize(np.full((1, 4, 4, 1), 7, np.uint8), 3).ravel()[:3].tolist()
    [7, 7, 7]
  """
  if resolution < 1:
    raise ValueError(f'resolution is {resolution}; expected 1 or more.')
  if images.shape[1:3] == (resolution, resolution):
    return images
  rows = _overlaps(images.shape[1], resolution)
  columns = _overlaps(images.shape[2], resolution)
  parts = [
    np.einsum('ih,nhwc,jw->nijc', rows, part.astype(np.float32), columns)
    for part in np.array_split(images, max(1, len(images) // 1000))
  ]
  return np.clip(np.rint(np.concatenate(parts)), 0, 255).astype(np.uint8)


def _overlaps(size: int, new: int) -> np.ndarray:
  """Share of each old pixel in each new one, `[new, size]`."""
  edges = np.arange(new + 1) * size / new
  low = np.maximum(edges[:-1, None], np.arange(size))
  high = np.minimum(edges[1:, None], np.arange(1, size + 1))
  return (np.maximum(high - low, 0) * new / size).astype(np.float32)


def load_images(path: Any) -> tuple[Images, Images]:
  """Reads a task: training and test images.

  Args:
    path: The official CIFAR-10, archive or folder; or an .npz file with
      `jpeg_bytes` (all files one after the other), `offsets` `[n + 1]`,
      `labels` `[n]` and `is_test` `[n]`.

  Returns:
    Training and test images.

  Raises:
    FileNotFoundError: If nothing is there.
    CorruptFileError: If a file is damaged.
  """
  path = files.as_path(path)
  if path.suffix == '.npz':
    return _read_jpegs(path)
  splits = (load_cifar10(path, split) for split in ('train', 'test'))
  train, test = (Images(s['image'], s['label'], 10) for s in splits)
  return train, test


def _read_jpegs(path) -> tuple[Images, Images]:
  from jaxpapers.data import decode_image

  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist.')
  names = ('jpeg_bytes', 'offsets', 'labels', 'is_test')
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
      content, offsets, labels, is_test = (archive[name] for name in names)
  except (
    EOFError,
    KeyError,
    OSError,
    ValueError,
    zipfile.BadZipFile,
  ) as error:
    raise files.CorruptFileError(
      f'{path}: cannot be read as an .npz file with {", ".join(names)}'
      f' ({error}).'
    ) from error
  images = np.stack(
    [
      decode_image(content[a:b].tobytes(), f'{path}[{index}]')
      for index, (a, b) in enumerate(zip(offsets[:-1], offsets[1:]))
    ]
  )
  everything = Images(images, labels.astype(np.int32), int(labels.max()) + 1)
  is_test = is_test.astype(bool)
  return everything.take(~is_test), everything.take(is_test)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a proxy network is trained.

  AdamW with a linear warm-up and a cosine, label smoothing, mirrored and
  shifted images. Short trainings have few steps, for which the paper's RMSProp
  and its moving averages are too slow.

  Attributes:
    epochs: Passes over the training images.
    batch_size: Images of a step.
    learning_rate: Its peak.
    warmup_epochs: Until the peak.
    weight_decay: Of AdamW, kernels only.
    label_smoothing: Share of all classes in the target.
    shift: Largest shift, as a share of the resolution.
  """

  epochs: int = 8
  batch_size: int = 100
  learning_rate: float = 3e-3
  warmup_epochs: float = 1.0
  weight_decay: float = 1e-2
  label_smoothing: float = 0.1
  shift: float = 0.0

  def __post_init__(self):
    for name in ('epochs', 'batch_size', 'learning_rate'):
      if not getattr(self, name) > 0:
        raise ValueError(
          f'{name} is {getattr(self, name)}; expected more than 0.'
        )

  def steps_per_epoch(self, images: int) -> int:
    """Steps of a pass; what does not fill a batch is left for another pass."""
    if images < self.batch_size:
      raise ValueError(
        f'batch_size is {self.batch_size} for {images} training images;'
        ' expected at most as many.'
      )
    return images // self.batch_size

  def optimizer(self, images: int) -> optax.GradientTransformation:
    """The optimizer for that many training images."""
    steps = self.steps_per_epoch(images)
    total = self.epochs * steps
    schedule = optax.warmup_cosine_decay_schedule(
      0.0,
      self.learning_rate,
      min(round(self.warmup_epochs * steps), total - 1),
      total,
    )

    def kernels(params):
      return jax.tree.map(lambda x: x.ndim > 1, params)

    return optax.adamw(schedule, weight_decay=self.weight_decay, mask=kernels)


class Batches:
  """Shuffled, augmented batches; batch i depends on the seed and i alone."""

  def __init__(self, data: Images, recipe: Recipe, seed: int):
    """Begins with batch 0 of epoch 0."""
    self._data, self._recipe, self._seed = data, recipe, seed
    self._steps = recipe.steps_per_epoch(len(data))
    self._index = 0
    self._order: tuple[int, Any] = (-1, None)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def get_state(self) -> dict[str, int]:
    """Where the iterator is."""
    return {'index': self._index}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes there."""
    self._index = int(state['index'])

  def __next__(self) -> dict[str, np.ndarray]:
    epoch, step = divmod(self._index, self._steps)
    if self._order[0] != epoch:
      rng = np.random.default_rng([self._seed, epoch])
      self._order = epoch, rng.permutation(len(self._data))
    rng = np.random.default_rng([self._seed, epoch, step])
    size = self._recipe.batch_size
    chosen = self._order[1][step * size : (step + 1) * size]
    images = self._data.images[chosen]
    mirrored = rng.random(size) < 0.5
    images[mirrored] = images[mirrored, :, ::-1]
    most = int(self._recipe.shift * images.shape[1])
    if most:
      images = _shifted(images, rng.integers(-most, most + 1, (size, 2)))
    self._index += 1
    return {'image': images, 'label': self._data.labels[chosen]}


def _shifted(images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
  """Moves each image; grey comes in from the sides."""
  moved = np.full_like(images, 128)
  side = images.shape[1]
  for image, target, (down, right) in zip(images, moved, shifts.tolist()):
    rows = slice(max(down, 0), side + min(down, 0))
    columns = slice(max(right, 0), side + min(right, 0))
    source_rows = slice(max(-down, 0), side + min(-down, 0))
    source_columns = slice(max(-right, 0), side + min(-right, 0))
    target[rows, columns] = image[source_rows, source_columns]
  return moved


def normalize(images: Any) -> jax.Array:
  """uint8 pixels to float32 of mean about 0 and deviation about 1."""
  return (jnp.asarray(images, jnp.float32) - 127.5) / 64.0


class ProxyTrainer:
  """Trains one network with any number of seeds; it is compiled once.

  Example:
    >>> train, test = load_images('cifar10')  # doctest: +SKIP
    >>> config = scaling.ModelConfig(width=0.25, resolution=16, num_classes=10)
    >>> trainer = ProxyTrainer(config, train, test)  # doctest: +SKIP
    >>> accuracies = [trainer(seed) for seed in range(3)]  # doctest: +SKIP
  """

  def __init__(
    self,
    config: Any,
    train: Images,
    test: Images,
    recipe: Recipe | None = None,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Prepares the data and the step.

    Args:
      config: A `ModelConfig`, `MobileNetConfig` or `ResNetConfig` with as many
        classes as the data.
      train: Training images.
      test: Images whose accuracy is wanted.
      recipe: How to train.
      mesh: Where.

    Raises:
      ValueError: If the classes do not fit.
    """
    if config.num_classes != train.num_classes:
      raise ValueError(
        f'the config has {config.num_classes} classes, the images have'
        f' {train.num_classes}.'
      )
    self.config, self.recipe = config, recipe or Recipe()
    self._train, self._test = train, test
    self._mesh = mesh
    self._model = scaling.build(config)
    self.job = self._make_job()
    self._step = self.job.step(mesh)
    self._make_state = jax.jit(lambda key: self.job.state(key, mesh))
    self._eval_step = training.make_eval_step(self._measure, mesh=mesh)

  @functools.cached_property
  def _resized(self) -> Images:
    return self._train.at(self.config.resolution)

  @property
  def num_steps(self) -> int:
    """Steps of a whole training."""
    return self.recipe.epochs * self.recipe.steps_per_epoch(len(self._train))

  def __call__(
    self,
    seed: int,
    workdir: str | os.PathLike | None = None,
    console: bool = False,
  ) -> float:
    """Trains, and measures.

    Args:
      seed: Of parameters, batches and dropout.
      workdir: If given, the training can be killed and goes on from there.
      console: Whether to show how far it is.

    Returns:
      Accuracy on the test images; NaN if the training diverged.

    Raises:
      InterruptedError: After a SIGTERM; a checkpoint has been written.
    """
    per_epoch = self.recipe.steps_per_epoch(len(self._train))
    try:
      result = training.fit(
        self._make_state(jax.random.key(seed)),
        self._step,
        Batches(self._resized, self.recipe, seed),
        num_steps=self.num_steps,
        workdir=workdir,
        mesh=self._mesh,
        keep=1,
        tensorboard=False,
        console=console,
        log_every=per_epoch,
        # Epochs are short: a checkpoint now and then is enough.
        checkpoint_every=max(per_epoch, self.num_steps // 10),
        examples_per_step=self.recipe.batch_size,
      )
    except training.NonFiniteLossError:
      return float('nan')
    if not result.finished:
      raise InterruptedError(result.message)
    return self.accuracy(result.state)

  def accuracy(self, state: training.TrainState) -> float:
    """Share of the test images that are classified right."""
    batches = evaluation_batches(
      self._test.at(self.config.resolution), self.recipe.batch_size
    )
    means = training.evaluate(state, self._eval_step, batches, mesh=self._mesh)
    return float(means['accuracy'])

  def _make_job(self) -> training.Job:
    config, recipe = self.config, self.recipe
    shape = (recipe.batch_size, config.resolution, config.resolution, 3)

    def init(key):
      variables = self._model.init(key, jnp.zeros((1, *shape[1:])))
      return variables['params'], {'batch_stats': variables['batch_stats']}

    def loss_fn(params, model_state, batch, rng):
      logits, new = self._model.apply(
        {'params': params, **model_state},
        normalize(batch['image']),
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': rng},
      )
      loss = smoothed_cross_entropy(
        logits, batch['label'], recipe.label_smoothing
      ).mean()
      accuracy = (logits.argmax(-1) == batch['label']).mean()
      return loss, (dict(new), {'accuracy': accuracy})

    batch = {
      'image': jax.ShapeDtypeStruct(shape, jnp.uint8),
      'label': jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }
    tx = recipe.optimizer(len(self._train))
    return training.Job(init, loss_fn, tx, batch)

  def _measure(self, params, model_state, batch):
    logits = self._model.apply(
      {'params': params, **model_state}, normalize(batch['image'])
    )
    right = logits.argmax(-1) == batch['label']
    count = batch['weight'].sum()
    mean = (right * batch['weight']).sum() / count
    return {'accuracy': mean, 'count': count}


def smoothed_cross_entropy(logits, labels, smoothing: float) -> jax.Array:
  """Cross entropy with a share of the target on all classes, `[n]`."""
  targets = optax.smooth_labels(
    jax.nn.one_hot(labels, logits.shape[-1]), smoothing
  )
  return optax.softmax_cross_entropy(logits, targets)


def evaluation_batches(
  data: Images, size: int
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of one size; what fills up the last one has weight 0.

  Args:
    data: Images at their final size.
    size: Of a batch.

  Yields:
    'image', 'label', 'weight'.
  """
  for begin in range(0, len(data), size):
    indices = np.arange(begin, begin + size)
    weight = (indices < len(data)).astype(np.float32)
    part = data.take(np.minimum(indices, len(data) - 1))
    yield {'image': part.images, 'label': part.labels, 'weight': weight}
