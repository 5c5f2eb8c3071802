"""What the EfficientNet programs share: from a config to data, step, files."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import _command_line
import _efficientnet_studies
import _training_command_line
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from jaxpapers import data as shared_data
from jaxpapers import training
from jaxpapers.efficientnet import config as config_lib
from jaxpapers.efficientnet import data, ema, optimizers, recipes, train
from jaxpapers.efficientnet import model as model_lib
from jaxpapers.efficientnet import schedules as schedules_lib
from jaxpapers.training.optimizers import scale_by_shown_rate

# Classes that the files of a kind always have.
_CLASSES = {'imagenet': 1000, 'cifar10': 10, 'cifar100': 100}
_EXAMPLES = {'cifar10': 50_000, 'cifar100': 50_000}
_IMAGENET_EXAMPLES = 1_281_167
CORRUPT_LOG = 'corrupt_images.tsv'
NETWORK = 'network.json'
WEIGHTS = 'model.safetensors'


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a config says, before there is a device.

  Attributes:
    network: The network's config.
    model: The network.
    steps_per_epoch: Updates in an epoch.
    num_steps: Updates of the whole run.
    job: The training step.
  """

  network: config_lib.ModelConfig
  model: model_lib.EfficientNet
  steps_per_epoch: int
  num_steps: int
  job: training.Job


def make_problem(
  config: Any, num_classes: int | None = None, examples: int | None = None
) -> Problem:
  """Builds network, loss and optimizer of a config.

  Args:
    config: See `recipes.FIELDS`.
    num_classes: Those of the data; by default what the config says.
    examples: Size of the training split; by default what the config says.

  Returns:
    What can be trained, or compiled.

  Raises:
    UsageError: If a field does not fit.
  """
  try:
    return _make_problem(config, num_classes, examples)
  except (TypeError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config: {_command_line.one_line(error)}'
    ) from error


def _make_problem(config, num_classes, examples):
  recipes.check(config)
  kind = config.data.kind
  if num_classes is None:
    num_classes = _CLASSES.get(kind, config.data.num_classes)
  if examples is None:
    examples = config.data.train_examples
    examples = examples or _EXAMPLES.get(kind, _IMAGENET_EXAMPLES)
  if config.batch_size > examples:
    raise ValueError(
      f'batch_size is {config.batch_size}; expected no more than the {examples}'
      ' training images.'
    )
  steps_per_epoch = examples // config.batch_size
  num_steps = max(1, round(config.epochs * steps_per_epoch))
  network = recipes.model_config(config, num_classes)
  model = model_lib.EfficientNet(network)
  size = (config.batch_size, network.resolution, network.resolution, 3)
  dtype = jnp.uint8 if config.augment else jnp.float32
  batch = {
    'image': jax.ShapeDtypeStruct(size, dtype),
    'label': jax.ShapeDtypeStruct(size[:1], jnp.int32),
  }
  if config.data.corrupt == 'skip':
    batch['sound'] = jax.ShapeDtypeStruct(size[:1], jnp.bool_)
  decay = config.ema or None
  job = training.Job(
    train.make_init(model, network.resolution, average=decay is not None),
    train.make_loss_fn(
      model,
      label_smoothing=config.label_smoothing,
      mixup_alpha=config.mixup,
      normalization=config.normalization,
      ema=decay,
      accumulate=config.accumulate,
      bn_batch_size=config.bn_batch_size,
      weight_decay=config.optimizer.weight_decay,
    ),
    make_optimizer(config, steps_per_epoch, num_steps),
    batch,
    accumulate=config.accumulate,
    ema=ema.ema_with_warmup(decay) if decay else None,
  )
  return Problem(network, model, steps_per_epoch, num_steps, job)


def make_optimizer(
  config: Any, steps_per_epoch: int, num_steps: int
) -> optax.GradientTransformation:
  """RMSProp as in the paper, or SGD for fine-tuning; both with coupled L2."""
  options = config.optimizer
  if options.name == 'rmsprop':
    return optimizers.efficientnet_optimizer(
      config.batch_size,
      steps_per_epoch,
      options.weight_decay,
      base_learning_rate=options.base_learning_rate,
      schedule=options.schedule,
      total_steps=num_steps,
      warmup_epochs=options.warmup_epochs,
      decay_factor=options.decay_factor,
      decay_epochs=options.decay_epochs,
      decay=options.decay,
      momentum=options.momentum,
      eps=options.eps,
    )
  rate = schedules_lib.efficientnet_schedule(
    schedules_lib.scaled_learning_rate(
      config.batch_size, options.base_learning_rate
    ),
    steps_per_epoch,
    options.schedule,
    total_steps=num_steps,
    warmup_epochs=options.warmup_epochs,
    decay_factor=options.decay_factor,
    decay_epochs=options.decay_epochs,
  )
  return optax.chain(
    optax.add_decayed_weights(options.weight_decay, optimizers.is_decayed),
    optax.trace(options.momentum, nesterov=True),
    scale_by_shown_rate(rate),
  )


@dataclasses.dataclass(frozen=True)
class Splits:
  """The two splits of a run.

  Attributes:
    train: Trained on; None where only the other is wanted.
    test: Evaluated on.
  """

  train: data.Images | None
  test: data.Images


def open_splits(
  config: Any,
  workdir: epath.Path | None,
  *,
  only_test: bool = False,
  class_names: Sequence[str] = (),
) -> Splits:
  """Opens the images of a config.

  Args:
    config: See `recipes.FIELDS`.
    workdir: Where corrupt images are listed, if they are skipped.
    only_test: Whether the training split is not needed.
    class_names: Of kind folder without a training split: those of the network.

  Returns:
    The splits.

  Raises:
    UsageError: If they are not there or do not fit; says what to put where.
  """
  options = config.data
  if not options.folder:
    raise _command_line.UsageError(
      f'--config.data.folder is empty. Give the folder of the {options.kind}'
      ' images'
    )

  def opened(split, class_names=None):
    return data.open_images(
      options.kind,
      options.folder,
      split,
      num_classes=options.num_classes,
      label_offset=options.label_offset,
      minival_shards=options.minival_shards,
      class_names=class_names,
    )

  try:
    first = None if only_test else opened('train')
    # Labels are those of training, also where the test split lacks a class.
    names = (first.class_names if first else class_names) or None
    splits = Splits(first, opened(config.evaluate_on, names))
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.data.folder: {_command_line.one_line(error)}'
    ) from error
  if options.corrupt == 'refuse':
    return splits
  log = None
  if workdir is not None and '://' not in str(workdir):
    log = workdir / CORRUPT_LOG
  return Splits(
    *(
      images
      and dataclasses.replace(
        images, source=data.SkipCorrupt(images.source, log)
      )
      for images in (splits.train, splits.test)
    )
  )


def training_batches(
  config: Any, problem: Problem, images: data.Images, mesh: jax.sharding.Mesh
) -> Iterator[Any]:
  """Batches to train on, of this process's share."""
  index, count = training.batch_share(mesh)
  return shared_data.batches(
    images.source,
    config.batch_size,
    seed=config.seed,
    transform=recipes.train_transform(config, problem.network.resolution),
    process_index=index,
    process_count=count,
    num_workers=config.data.workers,
  )


def test_batches(
  config: Any, resolution: int, images: data.Images, mesh: jax.sharding.Mesh
) -> Iterator[Any]:
  """One pass over the images to evaluate on."""
  index, count = training.batch_share(mesh)
  # No larger than needed, and every device gets as many.
  size = config.batch_size // config.accumulate
  parts = math.lcm(count, mesh.size)
  size = max(parts, min(size, len(images)) // parts * parts)
  return shared_data.batches(
    images.source,
    size,
    num_epochs=1,
    shuffle=False,
    transform=recipes.eval_transform(config, resolution),
    remainder='pad',
    process_index=index,
    process_count=count,
    num_workers=config.data.workers,
  )


def evaluate(
  config: Any,
  problem: Problem,
  images: data.Images,
  state: training.TrainState,
  eval_step: Any,
  mesh: jax.sharding.Mesh,
) -> dict[str, np.ndarray]:
  """Accuracy on a split.

  Raises:
    UsageError: If an image is corrupt and the config refuses it.
  """
  batches = test_batches(config, problem.network.resolution, images, mesh)
  try:
    return training.evaluate(state, eval_step, batches, mesh=mesh)
  except data.LabelError as error:
    raise _command_line.UsageError(str(error)) from error
  except shared_data.CorruptFileError as error:
    raise corrupt_image(error) from error
  finally:
    batches.close()


def corrupt_image(error: Exception) -> _command_line.UsageError:
  """The error of a run that met a corrupt image."""
  return _command_line.UsageError(
    f'{_command_line.one_line(error)} --config.data.corrupt=skip goes on'
    ' without such images and lists them'
  )


def make_eval_step(config: Any, problem: Problem, mesh: Any) -> Any:
  """The evaluation step, of averages where there are any."""
  return training.make_eval_step(
    train.make_metric_fn(problem.model, normalization=config.normalization),
    mesh=mesh,
  )


def _evaluations(config, problem, images, mesh):
  every = max(1, round(config.evaluate_every * problem.steps_per_epoch))
  averaged = make_eval_step(config, problem, mesh)
  found = [
    training.Evaluation(
      config.evaluate_on,
      lambda state: evaluate(config, problem, images, state, averaged, mesh),
      every=every,
      at_end=True,
    )
  ]
  if config.evaluate_raw and config.ema:
    metric_fn = train.make_metric_fn(
      problem.model, normalization=config.normalization, average=False
    )
    raw = training.make_eval_step(metric_fn, mesh=mesh)

    def evaluate_raw(state):
      state = state.replace(ema_params=None)
      return evaluate(config, problem, images, state, raw, mesh)

    found.append(
      training.Evaluation(
        f'{config.evaluate_on}_raw', evaluate_raw, every=every, at_end=True
      )
    )
  return found


def fit(
  run: _training_command_line.Run,
  config: Any,
  problem: Problem,
  splits: Splits,
  variables: dict[str, Any] | None = None,
) -> training.FitResult:
  """Trains, evaluates and exports.

  Args:
    run: The flags.
    config: See `recipes.FIELDS`.
    problem: From `make_problem`.
    splits: The data.
    variables: Weights to begin with.

  Returns:
    How the run ended.

  Raises:
    UsageError: If the loss is not finite, or an image is corrupt.
  """
  size = config.batch_size
  _efficientnet_studies.check_batch(size, run.mesh, '--config.batch_size')
  if run.first:
    _write_network(run.workdir, problem, splits)
  state = problem.job.state(jax.random.key(config.seed), run.mesh)
  if variables is not None:
    state = train.with_variables(state, variables)
  batches = training_batches(config, problem, splits.train, run.mesh)
  per_epoch = problem.steps_per_epoch
  _training_command_line.say(
    f'{len(splits.train)} images of {splits.train.num_classes} classes,'
    f' {per_epoch} steps an epoch, {problem.num_steps} in all; evaluated on'
    f' {len(splits.test)}.'
  )
  try:
    result = training.fit(
      state,
      problem.job.step(run.mesh),
      batches,
      num_steps=problem.num_steps,
      workdir=run.workdir,
      mesh=run.mesh,
      evaluations=_evaluations(config, problem, splits.test, run.mesh),
      log_every=max(1, round(config.log_every * per_epoch)),
      checkpoint_every=max(1, round(config.checkpoint_every * per_epoch)),
      console=run.console,
      examples_per_step=config.batch_size,
    )
  except (training.NonFiniteLossError, data.LabelError) as error:
    raise _command_line.UsageError(str(error)) from error
  except shared_data.CorruptFileError as error:
    raise corrupt_image(error) from error
  finally:
    batches.close()
  if result.finished:
    _report(run, config)
    export(run, result.state)
  return result


def _write_network(workdir, problem, splits):
  """What an evaluation needs to know besides the config."""
  shared_data.write_file(
    workdir / NETWORK,
    json.dumps(
      {
        'num_classes': splits.train.num_classes,
        'train_examples': len(splits.train),
        'class_names': list(splits.train.class_names),
        'resolution': problem.network.resolution,
      },
      indent=2,
    )
    + '\n',
  )


def _report(run, config):
  """Says how it went, and which images were left out."""
  for split in (config.evaluate_on, f'{config.evaluate_on}_raw'):
    rows = training.read_metrics(run.workdir, split)
    if rows:
      what = 'averaged' if config.ema and split == config.evaluate_on else 'raw'
      top5 = ''
      if 'top5' in rows:
        top5 = f', top-5 {100 * rows["top5"][-1]:.2f} %'
      _training_command_line.say(
        f'{config.evaluate_on}, {what} weights: top-1'
        f' {100 * rows["accuracy"][-1]:.2f} %{top5}'
        f' ({rows["count"][-1]:.0f} images).'
      )
  if '://' not in str(run.workdir):
    corrupt = data.corrupt_images(run.workdir / CORRUPT_LOG)
    if corrupt:
      _training_command_line.say(
        f'{len(corrupt)} corrupt images were left out, the first of them'
        f' {corrupt[0]}; see {run.workdir / CORRUPT_LOG}.'
      )


def load_weights(
  path: str,
  network: config_lib.ModelConfig,
  flag: str,
  new_head: jax.Array | None = None,
) -> dict[str, Any]:
  """Reads weights of any format.

  Args:
    path: The file.
    network: What they are of, number of classes included.
    flag: Named in errors.
    new_head: Key of the classifier, if it need not be the file's.

  Returns:
    {'params', 'batch_stats'}.

  Raises:
    UsageError: If they cannot be read, or are of another network.
  """
  from jaxpapers.efficientnet import pretrained

  try:
    return pretrained.load_pretrained(path, network, new_head=new_head)
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'{flag}={path}: {_command_line.one_line(error)}'
    ) from error


def export(run: _training_command_line.Run, state: training.TrainState) -> None:
  """Writes the weights under timm's names, for whoever reads those.

  Args:
    run: The flags.
    state: The last state; its averages are written.
  """
  from jaxpapers.efficientnet import pretrained

  variables = training.fetch(train.state_variables(state))
  if not run.first:
    return
  path = run.workdir / WEIGHTS
  pretrained.save_pretrained(path, variables)
  _training_command_line.say(f"The weights are in {path}, under timm's names.")
