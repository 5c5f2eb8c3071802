"""Configs of the training programs: fields, defaults, and what fits."""

import math
from typing import Any

import ml_collections
import optax

from jaxpapers.osnet import ablations, augment, datasets, optimizers, train
from jaxpapers.osnet import config as config_lib
from jaxpapers.osnet import network as network_lib
from jaxpapers.training.optimizers import scale_by_shown_rate

FIELDS = """Config fields (--config.NAME=VALUE):
  model.name            osnet_x1_0, _x0_75, _x0_5, _x0_25, osnet_ibn_x1_0,
                        osnet_ain_x1_0 ..., osnet_attribute, osnet_cifar
  model.options         fields of jaxpapers.osnet.OSNetConfig to change, as
                        --config.model.options.streams='(1,)' or .aggregation
                        (unified, separate, streamwise, fixed, add, concat)
  bfloat16              whether activations are bfloat16
  task                  reid, attributes, or classify
  data.sources          trained on: market1501, dukemtmc, msmt17, cuhk03, viper,
                        grid, cuhk01, ilids, prid, synthetic; with commas. Of
                        attributes: pa100k; classify: cifar10, cifar100, folder
  data.targets          evaluated on; empty: the sources
  data.folder           where the folders of the data sets are
  data.combine_all      train on the people of the test as well, without junk
  data.cuhk03, .split   (detected or labeled)-(new or classic); number of split
                        of -classic and of viper, grid, cuhk01, ilids, prid
  data.train_identities, .test_identities, .seed    of synthetic
  data.workers          processes that read; 0: threads of this one
  data.num_classes, .train_examples   for compile_for_tpu only, which sees no
                        images; 0: those of Market-1501
  height, width         of the network's images
  augment               of flip, crop, patch, jitter, erase, with commas
  erase_fill            0 (the mean), or torchreid for its number
  patch_capacity        patches to choose from
  jitter                brightness, contrast, saturation, hue
  sampler               random; pk (identities); domain (cameras); dataset
  num_instances         images of an identity in a batch, of pk
  num_domains           cameras or data sets in a batch; 0: all
  loss.cross_entropy, .triplet, .circle     weights of the parts
  loss.margin           of the triplet loss; soft for its soft form
  loss.label_smoothing
  loss.mutual           two networks that learn from each other
  optimizer.name, .schedule     amsgrad or sgd; step or cosine
  optimizer.learning_rate, .weight_decay, .momentum, .b1, .b2
  optimizer.step_epochs a number (every so many epochs) or a tuple of epochs
  optimizer.fixed_epochs, .open_layers      what trains alone at first
  epochs, batch_size    a batch is that of an update, over all devices
  accumulate            microbatches it is cut into
  weights               to begin with: .pth, .pth.tar, .safetensors of torchreid
  metric                euclidean or cosine
  normalize             whether features get length 1 before they are compared
  evaluate_every, log_every, checkpoint_every    in epochs; 0: at the end
  seed
"""

variants = ablations.variants

REID = (*datasets.DATASETS, 'synthetic')
ATTRIBUTES = ('pa100k',)
CLASSES = ('cifar10', 'cifar100', 'folder')
_SOURCES = {'reid': REID, 'attributes': ATTRIBUTES, 'classify': CLASSES}
_AUGMENTS = ('flip', 'crop', 'patch', 'jitter', 'erase')
_SAMPLERS = ('random', 'pk', 'domain', 'dataset')


def train_config() -> ml_collections.ConfigDict:
  """From scratch on Market-1501: what gives 93.6 % rank-1, 81.0 % mAP.

  SGD at .065 for 350 epochs, flips, crops and erasing: of the paper and of what
  its author told those who could not reproduce it; no config of the authors has
  it.

  Returns:
    The config, to be changed.
  """
  return ml_collections.ConfigDict(
    {
      'model': {'name': 'osnet_x1_0', 'options': _options()},
      'bfloat16': False,
      'task': 'reid',
      'data': {
        'sources': 'market1501',
        'targets': '',
        'folder': '',
        'combine_all': False,
        'cuhk03': 'detected-new',
        'split': 0,
        'train_identities': 180,
        'test_identities': 80,
        'seed': 0,
        'workers': 0,
        'num_classes': 0,
        'train_examples': 0,
      },
      'height': 256,
      'width': 128,
      'augment': 'flip,crop,erase',
      'erase_fill': '0',
      'patch_capacity': 1000,
      'jitter': (0.2, 0.15, 0.0, 0.0),
      'sampler': 'random',
      'num_instances': 4,
      'num_domains': 0,
      'loss': {
        'cross_entropy': 1.0,
        'triplet': 0.0,
        'circle': 0.0,
        'margin': '0.3',
        'label_smoothing': 0.1,
        'mutual': False,
      },
      'optimizer': {
        'name': 'sgd',
        'learning_rate': 0.065,
        'weight_decay': 5e-4,
        'momentum': 0.9,
        'b1': 0.9,
        'b2': 0.999,
        'schedule': 'step',
        'step_epochs': (150, 225, 300),
        'fixed_epochs': 0,
        'open_layers': ('classifier',),
      },
      'epochs': 350,
      'batch_size': 64,
      'accumulate': 1,
      'weights': '',
      'metric': 'euclidean',
      'normalize': False,
      'evaluate_every': 10.0,
      'log_every': 1.0,
      'checkpoint_every': 1.0,
      'seed': 0,
    }
  )


def finetune_config(variant: str = 'step') -> ml_collections.ConfigDict:
  """From weights of ImageNet: AMSGrad, the classifier alone at first.

  Args:
    variant: 'step' (150 epochs, flips; torchreid's tables), 'cosine' (250
      epochs, erasing as well) or 'small' (x0.5 and x0.25: 180 epochs, batches
      of 128).

  Returns:
    The config, to be changed.

  Raises:
    ValueError: If there is no such variant.
  """
  if variant not in ('step', 'cosine', 'small'):
    raise ValueError(
      f"variant is {variant!r}; expected 'step', 'cosine' or 'small'."
    )
  config = train_config()
  config.augment = 'flip,erase' if variant == 'cosine' else 'flip'
  config.epochs = {'step': 150, 'cosine': 250, 'small': 180}[variant]
  config.optimizer.name = 'amsgrad'
  config.optimizer.learning_rate = 1.5e-3
  config.optimizer.schedule = 'cosine' if variant == 'cosine' else 'step'
  # A number of epochs, not a tuple: 60, 120, ...
  del config.optimizer.step_epochs
  config.optimizer.step_epochs = 60
  config.optimizer.fixed_epochs = 10
  if variant == 'small':
    config.model.name = 'osnet_x0_5'
    config.optimizer.learning_rate = 3e-3
    config.optimizer.step_epochs = 80
    config.batch_size = 128
  return config


def synthetic_config() -> ml_collections.ConfigDict:
  """A quarter of the width and one block a stage, on procedural pedestrians.

  Returns:
    The config, to be changed.
  """
  config = train_config()
  config.model.name = 'osnet_x0_25'
  config.model.options.blocks_per_stage = (1, 1, 1)
  config.model.options.feature_dim = 128
  config.data.sources = 'synthetic'
  config.height, config.width = 64, 32
  config.augment = 'flip'
  config.optimizer.name = 'amsgrad'
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = 'cosine'
  config.epochs, config.batch_size = 30, 48
  config.metric = 'cosine'
  config.evaluate_every = 10.0
  return config


def cifar_config() -> ml_collections.ConfigDict:
  """A quarter of the width on CIFAR: minutes on two processor cores.

  The stem and the recipe that the paper had for CIFAR are not known.

  Returns:
    The config, to be changed.
  """
  config = train_config()
  config.task = 'classify'
  config.model.name = 'osnet_x0_25'
  config.model.options.stem = 'cifar_pool'
  config.model.options.blocks_per_stage = (1, 1, 1)
  config.model.options.feature_dim = 128
  config.data.sources = 'cifar10'
  config.height = config.width = 32
  config.augment = 'flip,crop'
  config.loss.label_smoothing = 0.0
  config.optimizer.name = 'amsgrad'
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = 'cosine'
  config.epochs, config.evaluate_every = 12, 1.0
  return config


def search_config() -> ml_collections.ConfigDict:
  """The search for OSNet-AIN: SGD on all of MSMT17, 120 epochs, batches of 512.

  Returns:
    The config, to be changed.
  """
  config = train_config()
  config.data.sources, config.data.combine_all = 'msmt17', True
  config.model.options.stem_norm = 'instance'
  config.augment = 'flip,jitter'
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = 'cosine'
  config.epochs, config.batch_size = 120, 512
  return config


_TEXT_OPTIONS = (
  'aggregation',
  'gate_activation',
  'stem',
  'stem_norm',
  'pool',
  'depthwise',
)
_INT_OPTIONS = ('reduction', 'gate_reduction', 'feature_dim')
_TUPLE_OPTIONS = ('channels', 'blocks_per_stage', 'streams', 'instance_norm')
_BOOL_OPTIONS = ('lite', 'gate_norm', 'remat')


def _options():
  """Fields of an OSNetConfig that a command line can change; None: as named."""
  options = ml_collections.ConfigDict()
  for names, kind in (
    (_TEXT_OPTIONS, str),
    (_INT_OPTIONS, int),
    (_TUPLE_OPTIONS, tuple),
    (_BOOL_OPTIONS, bool),
  ):
    for name in names:
      options[name] = ml_collections.config_dict.placeholder(kind)
  return options


def names(text: str) -> tuple[str, ...]:
  """The parts of 'a,b'."""
  return tuple(part.strip() for part in text.split(',') if part.strip())


def model_config(config: Any) -> config_lib.OSNetConfig:
  """The network of a config.

  Args:
    config: See `FIELDS`.

  Returns:
    The network's config.

  Raises:
    ValueError: If there is no such network, or an option does not fit.
  """
  options = {k: v for k, v in config.model.options.items() if v is not None}
  # ConfigDict knows no other way to say None.
  if options.get('feature_dim') == 0:
    options['feature_dim'] = None
  if 'instance_norm' in options:
    options['instance_norm'] = tuple(
      kind or None for kind in options['instance_norm']
    )
  if config.bfloat16:
    options['dtype'] = 'bfloat16'
  return config_lib.config_for(config.model.name, **options)


def augmentation(config: Any) -> train.Augmentation:
  """What happens to the images that are trained on.

  Args:
    config: See `FIELDS`.

  Returns:
    The augmentation.

  Raises:
    ValueError: If there is no such transform, or a number does not fit.
  """
  chosen = names(config.augment)
  unknown = sorted(set(chosen) - set(_AUGMENTS))
  if unknown:
    raise ValueError(f'augment has {unknown}; expected of {_AUGMENTS}.')
  return train.Augmentation(
    flip='flip' in chosen,
    crop='crop' in chosen,
    patch=(
      augment.RandomPatchPool(
        config.patch_capacity, min(100, config.patch_capacity)
      )
      if 'patch' in chosen
      else None
    ),
    jitter=tuple(config.jitter) if 'jitter' in chosen else (),
    erase='erase' in chosen,
    erase_fill=_number(config.erase_fill, 'erase_fill', 'torchreid'),
  )


def objective(
  config: Any, attribute_weights: tuple[float, ...] | None = None
) -> train.Objective:
  """What is minimised.

  Args:
    config: See `FIELDS`.
    attribute_weights: Of attributes.

  Returns:
    The objective.

  Raises:
    ValueError: If a field does not fit.
  """
  loss = config.loss
  return train.Objective(
    task=config.task,
    cross_entropy=loss.cross_entropy,
    triplet=loss.triplet,
    circle=loss.circle,
    margin=_number(loss.margin, 'loss.margin', 'soft'),
    label_smoothing=loss.label_smoothing,
    attribute_weights=attribute_weights,
    mutual=loss.mutual,
  )


def make_optimizer(
  config: Any, steps_per_epoch: int
) -> optax.GradientTransformation:
  """The optimizer of a config.

  Args:
    config: See `FIELDS`.
    steps_per_epoch: Updates of an epoch.

  Returns:
    The transform.

  Raises:
    ValueError: If a field does not fit.
  """
  options = config.optimizer
  drops = options.step_epochs
  if not isinstance(drops, int):
    drops = tuple(drops)
  if options.schedule == 'cosine':
    rate = optimizers.cosine_schedule(
      options.learning_rate, config.epochs, steps_per_epoch
    )
  else:
    rate = optimizers.step_schedule(
      options.learning_rate, drops, steps_per_epoch
    )
  core = [optax.add_decayed_weights(options.weight_decay)]
  if options.name == 'amsgrad':
    core.append(optimizers.scale_by_amsgrad_torch(options.b1, options.b2))
  elif options.momentum:
    core.append(optax.trace(options.momentum))
  core = optax.chain(*core)
  if options.fixed_epochs:
    core = optimizers.freeze_base(
      core, options.open_layers, options.fixed_epochs * steps_per_epoch
    )
  return optax.chain(core, scale_by_shown_rate(rate))


def check(config: Any) -> None:
  """Refuses a config that cannot work, before anything is read.

  Args:
    config: See `FIELDS`.

  Raises:
    ValueError: Names the field, what it is and what it may be.
  """
  for name, value, choices in (
    ('task', config.task, train.TASKS),
    ('sampler', config.sampler, _SAMPLERS),
    ('optimizer.name', config.optimizer.name, ('amsgrad', 'sgd')),
    ('optimizer.schedule', config.optimizer.schedule, ('step', 'cosine')),
    ('metric', config.metric, ('euclidean', 'cosine')),
  ):
    if value not in choices:
      raise ValueError(f'{name} is {value!r}; expected one of {choices}.')
  known = _SOURCES[config.task]
  for field in ('sources', 'targets'):
    for name in names(config.data[field]):
      if name not in known:
        raise ValueError(
          f'data.{field} has {name!r}; expected of {known} for task'
          f' {config.task!r}.'
        )
  if not names(config.data.sources):
    raise ValueError('data.sources is empty; expected a data set to train on.')
  if config.task != 'reid' and len(names(config.data.sources)) > 1:
    raise ValueError(
      f'data.sources is {config.data.sources!r}; expected one data set for task'
      f' {config.task!r}.'
    )
  if config.task != 'reid' and config.sampler != 'random':
    raise ValueError(
      f"sampler is {config.sampler!r}; expected 'random' for task"
      f' {config.task!r}: its images have no identities or cameras.'
    )
  network = model_config(config)
  side = network_lib.smallest_side(network)
  for name, value, least in (
    ('height', config.height, side),
    ('width', config.width, side),
    ('epochs', config.epochs, 1),
    ('batch_size', config.batch_size, 1),
    ('accumulate', config.accumulate, 1),
    ('num_instances', config.num_instances, 1),
    ('num_domains', config.num_domains, 0),
    ('data.workers', config.data.workers, 0),
    ('optimizer.fixed_epochs', config.optimizer.fixed_epochs, 0),
    ('optimizer.learning_rate', config.optimizer.learning_rate, 0),
    ('optimizer.weight_decay', config.optimizer.weight_decay, 0),
    ('evaluate_every', config.evaluate_every, 0),
  ):
    if not (math.isfinite(value) and value >= least):
      raise ValueError(f'{name} is {value}; expected {least} or more.')
  for name in ('log_every', 'checkpoint_every'):
    if not (math.isfinite(config[name]) and config[name] > 0):
      raise ValueError(f'{name} is {config[name]}; expected more than 0.')
  if config.batch_size % config.accumulate:
    raise ValueError(
      f'accumulate is {config.accumulate}; expected a divisor of batch_size,'
      f' {config.batch_size}.'
    )
  if config.sampler == 'pk' and config.batch_size % config.num_instances:
    raise ValueError(
      f'num_instances is {config.num_instances}; expected a divisor of'
      f' batch_size, {config.batch_size}.'
    )
  pairs = config.loss.triplet or config.loss.circle
  if pairs and config.sampler != 'pk':
    raise ValueError(
      f"sampler is {config.sampler!r}; expected 'pk' with a triplet or circle"
      ' loss: in other batches most images have no positive.'
    )
  least = max(2, 2 * config.num_instances if pairs else 0)
  if config.batch_size // config.accumulate < least:
    raise ValueError(
      f'batch_size is {config.batch_size} in {config.accumulate} parts;'
      f' expected {least} or more images in each: two for batch norms, two'
      ' people for losses of pairs.'
    )
  if len(config.jitter) != 4:
    raise ValueError(
      f'jitter is {tuple(config.jitter)}; expected four numbers: brightness,'
      ' contrast, saturation, hue.'
    )
  if config.optimizer.fixed_epochs:
    network_lib.check_children(network, config.optimizer.open_layers)
  augmentation(config)
  objective(config)
  make_optimizer(config, 1)


def _number(value: Any, name: str, word: str) -> float | str:
  """A number, or a word in its place."""
  if value == word:
    return word
  try:
    return float(value)
  except ValueError:
    raise ValueError(
      f'{name} is {value!r}; expected a number or {word!r}.'
    ) from None
