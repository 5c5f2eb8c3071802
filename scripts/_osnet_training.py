"""What the OSNet programs share: from a config to a step, numbers, files."""

import dataclasses
import json
import math
from typing import Any

import _command_line
import _osnet_data
import _training_command_line
import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers import data as shared_data
from jaxpapers import training
from jaxpapers.data import arrays
from jaxpapers.osnet import config as config_lib
from jaxpapers.osnet import (
  exchange,
  metrics,
  ranking,
  recipes,
  samplers,
  synth,
  train,
)
from jaxpapers.osnet import network as network_lib

NETWORK = 'network.json'
WEIGHTS = 'model.pth'


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a config says, before there is a device.

  Attributes:
    network: The network's config.
    model: The network.
    num_classes: Of its classifier.
    steps_per_epoch: Updates in an epoch, nominal where a sampler decides.
    num_steps: Updates of the whole run.
    job: The training step.
  """

  network: config_lib.OSNetConfig
  model: network_lib.OSNet
  num_classes: int
  steps_per_epoch: int
  num_steps: int
  job: training.Job


def make_problem(
  config: Any, data: _osnet_data.TrainData | None = None
) -> Problem:
  """Builds network, loss and optimizer of a config.

  Args:
    config: See `recipes.FIELDS`.
    data: What is trained on; by default what the config says.

  Returns:
    What can be trained, or compiled.

  Raises:
    UsageError: If a field does not fit.
  """
  try:
    return _make_problem(config, data)
  except (TypeError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config: {_command_line.one_line(error)}'
    ) from error


def _make_problem(config, data):
  recipes.check(config)
  size = config.batch_size
  if data is None:
    num_classes = config.data.num_classes or _osnet_data.MARKET_IDENTITIES
    examples = config.data.train_examples or _osnet_data.MARKET_IMAGES
    steps_per_epoch = examples // size
    attribute_weights = None
  else:
    num_classes = data.num_classes
    steps_per_epoch = len(data) // size
    if config.sampler != 'random':
      steps_per_epoch = sampled(config, data, 1).steps_per_epoch
    attribute_weights = data.attribute_weights
  if not steps_per_epoch:
    raise ValueError(
      f'batch_size is {size}; expected no more than there are training images.'
    )
  network = recipes.model_config(config)
  model = network_lib.OSNet(network, num_classes)
  augmentation = recipes.augmentation(config)
  objective = recipes.objective(config, attribute_weights)
  # The pool sees microbatches.
  micro = (size // config.accumulate, config.height, config.width, 3)
  labels = (size, num_classes) if config.task == 'attributes' else (size,)
  kind = jnp.float32 if config.task == 'attributes' else jnp.int32
  fixed = config.optimizer.fixed_epochs * steps_per_epoch
  job = training.Job(
    train.make_init(model, micro, augmentation, config.loss.mutual),
    train.make_loss_fn(
      model,
      augmentation,
      objective,
      fixed_microbatches=fixed * config.accumulate,
      open_layers=tuple(config.optimizer.open_layers),
    ),
    recipes.make_optimizer(config, steps_per_epoch),
    {
      'image': jax.ShapeDtypeStruct((size, *micro[1:]), jnp.uint8),
      'label': jax.ShapeDtypeStruct(labels, kind),
    },
    accumulate=config.accumulate,
  )
  return Problem(
    network,
    model,
    num_classes,
    steps_per_epoch,
    config.epochs * steps_per_epoch,
    job,
  )


def sampled(
  config: Any, data: _osnet_data.TrainData, steps: int
) -> samplers.SampledSource:
  """The training images in the order of the config's sampler.

  Args:
    config: See `recipes.FIELDS`.
    data: What is trained on.
    steps: Batches in all.

  Returns:
    A source of batches, to be read without shuffling.
  """
  size = config.batch_size
  if config.sampler == 'pk':
    groups = config.num_instances
    order = _Order('pk', data.labels, size // groups, groups)
  else:
    domains = data.camids if config.sampler == 'domain' else data.dsetids
    number = config.num_domains or len(np.unique(domains))
    if size % number:
      raise ValueError(
        f'batch_size is {size}; expected a multiple of the {number}'
        f' {"cameras" if config.sampler == "domain" else "data sets"} in it.'
      )
    order = _Order('domain', domains, number, size // number)
  return samplers.SampledSource(data.source, order, config.seed, steps)


@dataclasses.dataclass(frozen=True)
class _Order:
  """A sampler with its arguments, that can be sent to workers."""

  kind: str
  groups: np.ndarray
  number: int
  per_group: int

  def __call__(self, rng):
    sampler = samplers.pk_sampler
    if self.kind == 'domain':
      sampler = samplers.domain_sampler
    return sampler(self.groups, self.number, self.per_group, rng)


def training_batches(
  config: Any,
  problem: Problem,
  data: _osnet_data.TrainData,
  mesh: jax.sharding.Mesh,
) -> Any:
  """Batches to train on, of this process's share."""
  index, count = training.batch_share(mesh)
  options = {
    'seed': config.seed,
    'process_index': index,
    'process_count': count,
    'num_workers': config.data.workers,
  }
  if config.sampler == 'random':
    return shared_data.batches(data.source, config.batch_size, **options)
  # One epoch of the length of the run: the sampler knows the epochs.
  source = sampled(config, data, problem.num_steps)
  return shared_data.batches(
    source, config.batch_size, shuffle=False, num_epochs=1, **options
  )


class Embedder:
  """Features and logits of many images, with the weights of a state."""

  def __init__(self, config: Any, problem: Problem, mesh: jax.sharding.Mesh):
    """Of a config, its network and where to compute."""
    self._mutual = config.loss.mutual
    self._size = max(1, config.batch_size // config.accumulate)
    self._workers = config.data.workers
    self._mesh = mesh
    embed = train.make_embed_fn(problem.model)
    self._embed = jax.jit(
      lambda variables, images: embed(variables, images),
      out_shardings=jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec()
      ),
    )

  def __call__(
    self, state: training.TrainState, source: Any
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """Features [n, dim] and logits [n, classes] of a source of images.

    Raises:
      UsageError: If an image is corrupt.
    """
    variables = train.state_variables(state, self._mutual)
    source = arrays.as_source(source)
    index, count = training.batch_share(self._mesh)
    parts = math.lcm(count, self._mesh.size)
    size = -(-min(self._size, len(source)) // parts) * parts
    batches = shared_data.batches(
      source,
      size,
      num_epochs=1,
      shuffle=False,
      remainder='pad',
      process_index=index,
      process_count=count,
      num_workers=self._workers,
    )
    found = []
    try:
      for batch in batches:
        images = training.put_batch(batch['image'], self._mesh)
        found.append(self._embed(variables, images))
        if len(found) > 2:
          jax.block_until_ready(found[-3])
    except shared_data.CorruptFileError as error:
      raise _command_line.UsageError(_command_line.one_line(error)) from error
    finally:
      batches.close()
    features, logits = (
      np.concatenate([np.asarray(x, np.float32) for x in column])[: len(source)]
      if column[0] is not None
      else None
      for column in zip(*found, strict=True)
    )
    return features, logits


def evaluate(
  config: Any, embedder: Embedder, state: training.TrainState, test: Any
) -> dict[str, float]:
  """The numbers of one data set, as its task has them.

  Args:
    config: See `recipes.FIELDS`.
    embedder: Of the run.
    state: With the weights.
    test: An `_osnet_data.Retrieval` or `_osnet_data.Labelled`.

  Returns:
    Name -> number: of retrieval rank1, rank5, rank10, rank20, mAP, mINP,
    num_valid, of synthetic people error_fine ... (see `synth.error_scales`);
    of attributes mA, accuracy, precision, recall, F1; of classes accuracy.
  """
  if isinstance(test, _osnet_data.Labelled):
    _, logits = embedder(state, test.source)
    return test.score(logits, test.labels)
  features = {}
  for part in ('query', 'gallery'):
    found, _ = embedder(state, getattr(test, part))
    if config.normalize:
      found = np.asarray(metrics.l2_normalize(found))
    features[part] = found
  try:
    result = ranking.rank_metrics(
      features['query'],
      features['gallery'],
      test.q_pids,
      test.g_pids,
      test.q_cams,
      test.g_cams,
      metric=config.metric,
      protocol=test.protocol,
    )
  except ValueError as error:
    raise _command_line.UsageError(
      f'{test.name}: {_command_line.one_line(error)}'
    ) from error
  numbers = {
    **{f'rank{k}': float(result.cmc[k - 1]) for k in (1, 5, 10, 20)},
    'mAP': float(result.mAP),
    'mINP': float(result.mINP),
    'num_valid': float(result.num_valid),
  }
  if test.people is not None:
    shares = synth.error_scales(
      test.people,
      test.q_pids,
      _first_matches(config, test, features),
      test.first,
    )
    del shares['right']
    numbers |= {f'error_{name}': share for name, share in shares.items()}
  return numbers


def _first_matches(config, test, features):
  """Identity of the nearest gallery image of each query, by the protocol."""
  distance = np.array(
    metrics.pairwise_distance(
      features['query'], features['gallery'], config.metric
    )
  )
  same = (test.q_pids[:, None] == test.g_pids) & (
    test.q_cams[:, None] == test.g_cams
  )
  distance[same] = np.inf
  return test.g_pids[distance.argmin(1)]


def fit(
  run: _training_command_line.Run,
  config: Any,
  problem: Problem,
  data: _osnet_data.TrainData,
  tests: Any,
) -> training.FitResult:
  """Trains, evaluates on every target and exports.

  Args:
    run: The flags.
    config: See `recipes.FIELDS`.
    problem: From `make_problem`.
    data: What is trained on.
    tests: What is evaluated on.

  Returns:
    How the run ended.

  Raises:
    UsageError: If the loss is not finite, or an image is corrupt.
  """
  try:
    training.batch_sharding(run.mesh).shard_shape((config.batch_size,))
  except ValueError as error:
    raise _command_line.UsageError(
      f'--config.batch_size is {config.batch_size}, which the {run.mesh.size}'
      ' devices of --mesh cannot share evenly'
    ) from error
  if run.first:
    _write_network(run.workdir, config, problem, data)
  weights = read_weights(config, problem)
  state = problem.job.state(jax.random.key(config.seed), run.mesh)
  if weights:
    # Those of other identities are of no use; those of ImageNet never fit.
    state = train.with_variables(
      state, weights, new_classifier=True, mutual=config.loss.mutual
    )
  embedder = Embedder(config, problem, run.mesh)
  per_epoch = problem.steps_per_epoch
  # 0: at the end only.
  every = round(config.evaluate_every * per_epoch) or problem.num_steps

  def evaluation(test):
    return training.Evaluation(
      test.name,
      lambda state: evaluate(config, embedder, state, test),
      every=every,
      at_end=True,
    )

  evaluations = [evaluation(test) for test in tests]
  batches = training_batches(config, problem, data, run.mesh)
  if run.console:
    _training_command_line.say(
      f'{len(data)} images of {problem.num_classes} {data.classes}, {per_epoch}'
      f' steps an epoch, {problem.num_steps} in all.'
    )
  try:
    result = training.fit(
      state,
      problem.job.step(run.mesh),
      batches,
      num_steps=problem.num_steps,
      workdir=run.workdir,
      mesh=run.mesh,
      evaluations=evaluations,
      log_every=max(1, round(config.log_every * per_epoch)),
      checkpoint_every=max(1, round(config.checkpoint_every * per_epoch)),
      keep=1 if recipes.augmentation(config).patch else 3,
      console=run.console,
      examples_per_step=config.batch_size,
    )
  except training.NonFiniteLossError as error:
    raise _command_line.UsageError(str(error)) from error
  except shared_data.CorruptFileError as error:
    raise _command_line.UsageError(_command_line.one_line(error)) from error
  finally:
    batches.close()
  if result.finished:
    for test in tests:
      _report(run, test.name)
    export(run, config, problem, result.state)
  return result


def _write_network(workdir, config, problem, data):
  """What osnet_eval needs to know besides the weights."""
  network = dataclasses.asdict(problem.network)
  shared_data.write_file(
    workdir / NETWORK,
    json.dumps(
      {
        'model': config.model.name,
        'network': network,
        'num_classes': problem.num_classes,
        'height': config.height,
        'width': config.width,
        'metric': config.metric,
        'trained_on': config.data.sources,
        'train_images': len(data),
      },
      indent=2,
      default=str,
    )
    + '\n',
  )


def read_weights(config: Any, problem: Problem) -> dict[str, Any] | None:
  """{'params', 'batch_stats'} to begin with; None if the config has none.

  Raises:
    UsageError: If there are no such weights, or they do not fit.
  """
  if not config.weights:
    return None
  try:
    arrays = exchange.load_torch_checkpoint(config.weights)
    return exchange.from_torch_state_dict(arrays, problem.network)
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.weights={config.weights}: {_command_line.one_line(error)}'
    ) from error


def _report(run, split):
  """Says how it went on one data set."""
  rows = training.read_metrics(run.workdir, split)
  if not rows or not run.first:
    return
  numbers = [
    f'{name} {100 * rows[name][-1]:.1f} %'
    for name in rows
    if name not in ('step', 'num_valid') and not name.startswith('error')
  ]
  if run.console:
    _training_command_line.say(f'{split}: {", ".join(numbers)}.')


def export(
  run: _training_command_line.Run,
  config: Any,
  problem: Problem,
  state: training.TrainState,
) -> None:
  """Writes the weights under torchreid's names, for osnet_eval and torch.

  Args:
    run: The flags.
    config: See `recipes.FIELDS`.
    problem: Of the run.
    state: The last state.
  """
  variables = training.fetch(train.state_variables(state, config.loss.mutual))
  if not run.first:
    return
  path = run.workdir / WEIGHTS
  exchange.save_torch_checkpoint(
    path,
    exchange.to_torch_state_dict(variables, problem.network),
    extra={'epoch': int(config.epochs)},
  )
  if run.console:
    _training_command_line.say(
      f"The weights are in {path}, under torchreid's names."
    )
