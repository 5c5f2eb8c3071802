"""What the Layca programs share: from a config to curves.

A config describes a population of runs that differ in learning rate, layer-wise
multipliers and seed only. All members train in one vmapped program.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import _command_line
import _layca_config
import _layca_results
import _training_command_line
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxpapers import training
from jaxpapers.layca import (
  augmentation,
  experiments,
  experiments_data,
  multipliers,
  rotation,
  sweep,
  train,
  trees,
)

FIELDS = """\
Fields of a config (change one by --config.FIELD=VALUE):
  task             Name of the task, for titles.
  dataset          mnist, cifar10, cifar100 or tiny_imagenet, read from
  data_dir         this folder; by default $JAXPAPERS_DATA/DATASET ...
  train_examples   Use only the first so many of the training set; 0 for all.
  validation       Fraction of the training set that is held out.
  augment          Random shifts and flips.
  model            name and arguments of the network.
  batch_size       Examples of a step, over all devices.
  last_batch       Whether the smaller last batch of an epoch is used.
  epochs           Duration.
  optimizer        base (sgd, amom_sgd, rmsprop, adam, adagrad, normalized_sgd),
                   layca (True or False), momentum, nesterov.
  learning_rates   Initial learning rates (rho(0) of the paper), and
  alphas           layer-wise multipliers, pairwise or one of either;
  seeds            each pair is trained from each of these seeds; (seed,) if
                   empty.
  seed             Of the order of the examples, and of the initial weights.
  drops, factor    Epochs at which the learning rates drop, and by what.
  warmup_epochs    Linear warmup from a tenth.
  l2, l2_exclude   Keras' L2 coefficient, and modules without it.
  stopping         When to end early; see `layca.train.stopping_rule`.
  best_validation  Report the test accuracy of the best validation epoch.
  evaluate_every   Epochs between two evaluations.
  rotation_every   Steps between two measurements of the rotation; 0 for the
                   first step of every epoch, as in the paper.
  members_at_once  How many members train in one program; 0 for all.
  bfloat16         Compute in bfloat16; parameters stay float32.
  settings         Of comparisons: what each run changes. A field given on the
                   command line holds in all of them; one run's is
                   --config.settings.NAME.FIELD.\
"""


class Interrupted(Exception):
  """SIGTERM came; `result` is what `training.fit` returned."""

  def __init__(self, result: training.FitResult):
    super().__init__(result.message)
    self.result = result


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a config says, before there are data.

  Attributes:
    model: The network.
    init: Its initialisation.
    layer_order: Paths of its kernels, first layer first.
    members: The settings of the population.
    values: Their hyperparameters.
    steps_per_epoch: Updates in an epoch.
    job: The training step.
  """

  model: Any
  init: Callable[[jax.Array], tuple[Any, Any]]
  layer_order: list[str]
  members: list[dict[str, Any]]
  values: dict[str, np.ndarray]
  steps_per_epoch: int
  job: training.Job


def make_problem(
  config: Any,
  examples: int | None = None,
  members: list[dict[str, Any]] | None = None,
  optimizer: Callable[[Any, list[str]], Any] | None = None,
) -> Problem:
  """Builds network, loss and optimizer of a config.

  Args:
    config: See `FIELDS`.
    examples: Size of the training set; by default that of the official files.
    members: Some of the members of the config; by default all.
    optimizer: Maps the optimizer and the order of the layers to another one.

  Returns:
    What can be trained, or compiled.

  Raises:
    UsageError: If a field does not fit.
  """
  try:
    return _make_problem(config, examples, members, optimizer)
  except (TypeError, ValueError) as error:
    raise _command_line.UsageError(f'--config: {error}') from error


def _make_problem(config, examples, members, optimizer):
  _layca_config.check(config)
  if examples is None:
    examples = experiments_data.NOMINAL[config.dataset][0]
    examples = config.train_examples or examples
    examples -= round(examples * config.validation)
  _layca_config.check_examples(config, examples)
  options = config.model.to_dict()
  dtype = jnp.bfloat16 if config.bfloat16 else None
  model = experiments.make_model(options | {'dtype': dtype})
  batch = experiments_data.abstract_batch(
    config.dataset, config.batch_size, config.last_batch
  )
  image = batch['image']
  example = jax.ShapeDtypeStruct((1, *image.shape[1:]), image.dtype)
  layer_order = multipliers.layer_order(model, example)
  if members is None:
    members = _layca_config.all_members(config)
  values = sweep.hyperparameters(
    members,
    layer_order,
    _layca_config.member_drops(config, members),
    config.factor,
  )
  steps_per_epoch = experiments_data.steps_per_epoch(
    examples, config.batch_size, config.last_batch
  )
  tx = sweep.make_optimizer(
    config.optimizer.to_dict(),
    values,
    layer_order,
    steps_per_epoch,
    config.warmup_epochs,
  )
  if optimizer is not None:
    tx = optimizer(tx, layer_order)
  init = train.make_init(model, example)
  job = training.Job(
    init,
    train.make_loss_fn(
      model,
      l2=config.l2,
      l2_exclude=tuple(config.l2_exclude),
      augment=augmentation.shift_and_flip if config.augment else None,
    ),
    tx,
    batch,
    compute_dtype=dtype,
    population=len(members) if len(members) > 1 else 0,
  )
  return Problem(
    model, init, layer_order, members, values, steps_per_epoch, job
  )


def load_data(config: Any) -> experiments_data.Splits:
  """Checks a config and reads its data; uses nothing of JAX.

  It comes before `start`, so that a command that cannot work leaves no folder
  behind.

  Raises:
    UsageError: If a field does not fit, or the data are not there, saying what
      to put where.
  """
  try:
    parts = _layca_config.populations(config)
    for part in parts:
      _layca_config.check(part)
  except ValueError as error:
    raise _command_line.UsageError(f'--config: {error}') from error
  folder = config.data_dir
  if not folder:
    root = os.environ.get('JAXPAPERS_DATA', '')
    folder = os.path.join(root, config.dataset) if root else ''
    if config.dataset == 'mnist' and root and not os.path.isdir(folder):
      folder = os.path.join(root, 'layca')
  if not folder:
    raise _command_line.UsageError(
      f'--config.data_dir is empty. Give the folder of the official'
      f' {config.dataset} files, or set JAXPAPERS_DATA to a folder that has'
      f' them in {config.dataset}/'
    )
  try:
    splits = experiments_data.load(
      config.dataset,
      folder,
      validation=config.validation,
      train_examples=config.train_examples,
    )
  except (FileNotFoundError, ValueError) as error:
    text = ' '.join(str(error).split())
    raise _command_line.UsageError(f'--config.data_dir: {text}') from error
  try:
    for part in parts:
      _layca_config.check_examples(part, len(splits.train['label']))
  except ValueError as error:
    raise _command_line.UsageError(f'--config: {error}') from error
  return splits


def train_members(
  run: _training_command_line.Run,
  config: Any,
  workdir: epath.Path,
  splits: experiments_data.Splits,
  *,
  optimizer: Callable[[Any, list[str]], Any] | None = None,
  extras: Callable[[Problem, Any, Any], Mapping[str, Any]] | None = None,
) -> _layca_results.Curves:
  """Trains all members of a config, or reads what an earlier call wrote.

  Args:
    run: The flags.
    config: See `FIELDS`; it may differ from that of the flags.
    workdir: Where this population goes.
    splits: The data.
    optimizer: See `make_problem`.
    extras: Maps the problem, the initial parameters and the last state to more
      arrays for the curves, members first.

  Returns:
    The curves, which are also in `<workdir>/curves.npz` and `curves.csv`.

  Raises:
    Interrupted: After a SIGTERM.
  """
  path = workdir / 'curves.npz'
  if path.exists():
    _training_command_line.say(f'{path} is there: nothing left to train.')
    return _layca_results.read_curves(path)
  members = _layca_config.all_members(config)
  size = config.members_at_once or len(members)
  parts = [members[i : i + size] for i in range(0, len(members), size)]
  curves = []
  for index, part in enumerate(parts):
    folder = workdir if len(parts) == 1 else workdir / f'part{index}'
    if len(parts) > 1:
      _training_command_line.say(f'Part {index + 1} of {len(parts)}.')
    curves.append(
      _train_part(run, config, part, folder, splits, optimizer, extras)
    )
  joined = _layca_results.join(curves)
  if run.first:
    _layca_results.write_curves(workdir, joined)
  return joined


def _train_part(run, config, members, workdir, splits, optimizer, extras):
  path = workdir / 'curves.npz'
  if path.exists():
    return _layca_results.read_curves(path)
  problem = make_problem(config, len(splits.train['label']), members, optimizer)
  many, per_epoch = len(members) > 1, problem.steps_per_epoch
  state = problem.job.state(_keys(members), run.mesh)
  if many:
    state = sweep.assign_members(state, problem.values)
  # A copy: the first step takes the state's memory.
  initial = jax.tree.map(jnp.copy, state.params)
  evaluations = _evaluations(run, config, problem, splits, initial)
  try:
    batches = experiments_data.training_batches(
      splits,
      config.batch_size,
      seed=config.seed,
      last_batch=config.last_batch,
      share=training.batch_share(run.mesh),
    )
    result = training.fit(
      state,
      problem.job.step(run.mesh),
      batches,
      num_steps=config.epochs * per_epoch,
      workdir=workdir,
      mesh=run.mesh,
      evaluations=evaluations,
      stop_when=_stopping(config, per_epoch, workdir),
      log_every=per_epoch,
      checkpoint_every=per_epoch * math.ceil(config.epochs / 10),
      keep=1,
      console=run.console,
      examples_per_step=len(splits.train['label']) / per_epoch,
    )
  except training.NonFiniteLossError as error:
    raise _command_line.UsageError(str(error)) from error
  if not result.finished:
    raise Interrupted(result)
  arrays = _arrays(workdir, many)
  for evaluation in evaluations:
    if evaluation.at_end:
      _complete(arrays, evaluation, result)
  if extras is not None:
    more = dict(extras(problem, initial, result.state))
    arrays |= {name: np.asarray(value) for name, value in more.items()}
  curves = _layca_results.Curves(
    members, per_epoch, problem.layer_order, arrays, result.message
  )
  if run.first:
    _layca_results.write_curves(workdir, curves)
  return curves


def _keys(members):
  keys = [jax.random.key(member['seed']) for member in members]
  return jnp.stack(keys) if len(keys) > 1 else keys[0]


def _stopping(config, per_epoch, workdir):
  return train.stopping_rule(
    per_epoch,
    hopeless=tuple(config.stopping.hopeless) or None,
    finished_loss=config.stopping.finished_loss,
    unchanged_epochs=config.stopping.unchanged_epochs,
    past=training.read_metrics(workdir, 'train'),
  )


def _evaluations(run, config, problem, splits, initial):
  many, per_epoch = len(problem.members) > 1, problem.steps_per_epoch
  eval_step = training.make_eval_step(
    train.make_metric_fn(problem.model), mesh=run.mesh, population=many
  )

  def measure(split, state):
    batches = experiments_data.evaluation_batches(
      splits, split, config.batch_size, training.batch_share(run.mesh)
    )
    return training.evaluate(state, eval_step, batches, mesh=run.mesh)

  measured = ['test'] + ['validation'] * (splits.validation is not None)
  evaluations = [
    training.Evaluation(
      split,
      lambda state, split=split: measure(split, state),
      every=config.evaluate_every * per_epoch,
      at_end=True,
    )
    for split in measured
  ]
  distances = rotation_of(problem.layer_order, many)
  every = config.rotation_every or per_epoch
  evaluations.append(
    training.Evaluation(
      'rotation',
      lambda state: {'distance': distances(state.params, initial)},
      every=every,
      # In the paper's curves: after the first step of every epoch.
      offset=0 if config.rotation_every else 1 % per_epoch,
    )
  )
  return evaluations


def rotation_of(layer_order: list[str], many: bool) -> Callable[..., Any]:
  """Jitted function of two trees of parameters: cosine distance per layer.

  Args:
    layer_order: Paths of the kernels.
    many: Whether the trees are of a population.

  Returns:
    Function whose result is [layers], or [members, layers].
  """

  def distances(params, reference):
    found = rotation.layer_rotation(params, reference)
    names, values, _ = trees.flatten(found)
    flat = dict(zip(names, values))
    return jnp.stack([flat[path] for path in layer_order])

  return jax.jit(jax.vmap(distances) if many else distances)


def _complete(arrays, evaluation, result) -> None:
  """Evaluates the last state, which an early stop left without."""
  name, step = evaluation.name, result.step
  steps = arrays.get(f'{name}_step', np.zeros(0, int))
  if len(steps) and steps[-1] >= step:
    return
  arrays[f'{name}_step'] = np.append(steps, step)
  for key, value in evaluation.function(result.state).items():
    row = np.reshape(np.asarray(value), (1, -1))
    before = arrays.get(f'{name}_{key}', row[:0])
    arrays[f'{name}_{key}'] = np.concatenate([before, row])


def _arrays(workdir, many) -> dict[str, np.ndarray]:
  """What `fit` wrote, with an axis of members in every case."""
  arrays = {}
  for split, names in (
    ('train', ('loss', 'accuracy', 'cross_entropy')),
    ('test', ('accuracy', 'cross_entropy')),
    ('validation', ('accuracy', 'cross_entropy')),
    ('rotation', ('distance',)),
  ):
    rows = training.read_metrics(workdir, split)
    if not rows:
      continue
    # The last step is evaluated twice if it falls on the schedule.
    _, first = np.unique(rows['step'], return_index=True)
    arrays[f'{split}_step'] = rows['step'][first]
    for name in names:
      values = rows[name][first]
      values = values if many else values[:, None]
      key = 'rotation' if split == 'rotation' else f'{split}_{name}'
      arrays[key] = values
  return arrays
