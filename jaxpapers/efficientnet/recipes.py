"""Configs of the training programs: fields, defaults, and what fits."""

import math
from typing import Any

import ml_collections

from jaxpapers.efficientnet import config as config_lib
from jaxpapers.efficientnet import data, resize, schedules

FIELDS = """Config fields (--config.NAME=VALUE):
  model.name            efficientnet-b0 ... -b8, -l2, -lite0 ...; timm's names
  model.options         fields of jaxpapers.efficientnet.ModelConfig to change,
                        as --config.model.options.stem_stride=1: width, depth,
                        resolution, blocks (a tuple of block strings), ...
  bfloat16              whether activations are bfloat16
  data.kind             imagenet, tfrecord, folder, cifar10, cifar100, archive
  data.folder           where the images are
  data.num_classes      of tfrecord; elsewhere files say
  data.label_offset     of tfrecord: label of the first class
  data.minival_shards   of tfrecord: training files that are evaluated on
                        (evaluate_on=minival), not trained on
  data.train_examples   size of the training split, for compile_for_tpu; 0: that
                        of ImageNet
  data.corrupt          refuse: stop at a corrupt image, by name; skip: take the
                        next one, name it in <workdir>/corrupt_images.tsv, do
                        not count it in an evaluation
  data.workers          processes that read; 0: threads of this one
  augment               autoaugment, randaugment, or empty
  randaugment_layers, randaugment_magnitude
  crop                  box (a random part), pad (moved by up to an eighth), or
                        empty (the whole image)
  crop_padding          of the evaluation, see preprocess.crop_geometry
  resize                tf1_bicubic or pil_bicubic
  normalization         imagenet, advprop, lite or none
  mixup                 alpha, 0 for none
  label_smoothing
  batch_size            of an update, over all devices
  accumulate            microbatches it is cut into
  bn_batch_size         images that share batch statistics; 0: a microbatch
  epochs
  optimizer.name        rmsprop (the paper's) or sgd (Nesterov)
  optimizer.base_learning_rate    peak for a batch of 256
  optimizer.schedule    exponential, cosine or constant
  optimizer.warmup_epochs, .decay_factor, .decay_epochs
  optimizer.decay, .momentum, .eps, .weight_decay
  ema                   decay of the averages that are evaluated; 0 for none
  evaluate_on           test or minival
  evaluate_raw          whether to evaluate without averages, too
  evaluate_every, log_every, checkpoint_every     in epochs; fractions are fine
  seed
"""


def train_config() -> ml_collections.ConfigDict:
  """The paper's recipe for ImageNet, B0 at a batch of 2048.

  Returns:
    The config, to be changed.
  """
  return ml_collections.ConfigDict(
    {
      'model': {
        'name': 'efficientnet-b0',
        'options': _options(config_lib.ModelConfig()),
      },
      'bfloat16': True,
      'data': {
        'kind': 'imagenet',
        'folder': '',
        'num_classes': 1000,
        'label_offset': 1,
        'minival_shards': 0,
        'train_examples': 0,
        'corrupt': 'refuse',
        'workers': 0,
      },
      'augment': 'autoaugment',
      'randaugment_layers': 2,
      'randaugment_magnitude': 10.0,
      'crop': 'box',
      'crop_padding': 32,
      'resize': 'tf1_bicubic',
      'normalization': 'imagenet',
      'mixup': 0.0,
      'label_smoothing': 0.1,
      'batch_size': 2048,
      'accumulate': 1,
      'bn_batch_size': 0,
      'epochs': 350.0,
      'optimizer': {
        'name': 'rmsprop',
        'base_learning_rate': 0.016,
        'schedule': 'exponential',
        'warmup_epochs': 5.0,
        'decay_factor': 0.97,
        'decay_epochs': 2.4,
        'decay': 0.9,
        'momentum': 0.9,
        'eps': 1e-3,
        'weight_decay': 1e-5,
      },
      'ema': 0.9999,
      'evaluate_on': 'test',
      'evaluate_raw': False,
      'evaluate_every': 1.0,
      'log_every': 0.1,
      'checkpoint_every': 1.0,
      'seed': 0,
    }
  )


_TEXT_OPTIONS = ('padding', 'bn_variance', 'depthwise_impl', 'activation')
_NUMBER_OPTIONS = (
  'width',
  'depth',
  'resolution',
  'dropout_rate',
  'survival_prob',
  'bn_momentum',
  'bn_epsilon',
  'stem_stride',
  'stem_filters',
  'head_filters',
  'depth_divisor',
)


def _options(defaults):
  """Fields of a ModelConfig that a command line can change; None: as named."""
  options = ml_collections.ConfigDict({'remat': defaults.remat})
  options.blocks = ml_collections.config_dict.placeholder(tuple)
  for name in (*_TEXT_OPTIONS, *_NUMBER_OPTIONS):
    default = getattr(defaults, name)
    placeholder = float if isinstance(default, float) else type(default)
    options[name] = ml_collections.config_dict.placeholder(placeholder)
  return options


def model_config(config: Any, num_classes: int) -> config_lib.ModelConfig:
  """The network of a config.

  Args:
    config: See `FIELDS`.
    num_classes: Outputs.

  Returns:
    The network's config.

  Raises:
    ValueError: If there is no such network, or an option does not fit.
  """
  options = {
    name: value
    for name, value in config.model.options.items()
    if value is not None
  }
  if options.get('survival_prob') == 0:
    options['survival_prob'] = None  # ConfigDict knows no other way to say so.
  if config.bfloat16:
    options['dtype'] = 'bfloat16'
  return config_lib.config_for(
    config.model.name, num_classes=num_classes, **options
  )


def check(config: Any) -> None:
  """Refuses a config that cannot work, before anything is read.

  Args:
    config: See `FIELDS`.

  Raises:
    ValueError: Names the field, what it is and what it may be.
  """
  for name, value, choices in (
    ('data.kind', config.data.kind, data.FORMATS),
    ('data.corrupt', config.data.corrupt, ('refuse', 'skip')),
    ('augment', config.augment, ('autoaugment', 'randaugment', '')),
    ('crop', config.crop, ('box', 'pad', '')),
    ('resize', config.resize, resize.METHODS),
    (
      'normalization',
      config.normalization,
      ('imagenet', 'advprop', 'lite', 'none'),
    ),
    ('optimizer.name', config.optimizer.name, ('rmsprop', 'sgd')),
    ('optimizer.schedule', config.optimizer.schedule, schedules.KINDS),
    ('evaluate_on', config.evaluate_on, ('test', 'minival')),
  ):
    if value not in choices:
      raise ValueError(f'{name} is {value!r}; expected one of {choices}.')
  for name, value, least in (
    ('batch_size', config.batch_size, 1),
    ('accumulate', config.accumulate, 1),
    ('bn_batch_size', config.bn_batch_size, 0),
    ('data.workers', config.data.workers, 0),
    ('crop_padding', config.crop_padding, 0),
    ('mixup', config.mixup, 0),
    ('optimizer.weight_decay', config.optimizer.weight_decay, 0),
    ('optimizer.warmup_epochs', config.optimizer.warmup_epochs, 0),
  ):
    if not (math.isfinite(value) and value >= least):
      raise ValueError(f'{name} is {value}; expected {least} or more.')
  for name in ('epochs', 'evaluate_every', 'log_every', 'checkpoint_every'):
    if not (math.isfinite(config[name]) and config[name] > 0):
      raise ValueError(f'{name} is {config[name]}; expected more than 0.')
  if not 0 <= config.ema < 1:
    raise ValueError(f'ema is {config.ema}; expected 0 to below 1.')
  if config.batch_size % config.accumulate:
    raise ValueError(
      f'accumulate is {config.accumulate}; expected a divisor of batch_size,'
      f' {config.batch_size}.'
    )
  micro = config.batch_size // config.accumulate
  if config.bn_batch_size and micro % config.bn_batch_size:
    raise ValueError(
      f'bn_batch_size is {config.bn_batch_size}; expected a divisor of the'
      f' microbatch of {micro} images.'
    )
  if config.evaluate_on == 'minival' and not config.data.minival_shards:
    raise ValueError(
      "evaluate_on is 'minival'; this needs data.kind=tfrecord and"
      ' data.minival_shards, 20 in the paper.'
    )
  model_config(config, max(config.data.num_classes, 1))


def train_transform(config: Any, resolution: int) -> data.TrainTransform:
  """What happens to an image before it is trained on.

  Args:
    config: See `FIELDS`.
    resolution: Of the network.

  Returns:
    A transform of `jaxpapers.data.batches`.
  """
  return data.TrainTransform(
    resolution,
    {
      'augment': config.augment or None,
      'crop': config.crop or None,
      'randaugment_layers': config.randaugment_layers,
      'randaugment_magnitude': config.randaugment_magnitude,
      'crop_padding': config.crop_padding,
      'resize': config.resize,
    },
  )


def eval_transform(config: Any, resolution: int) -> data.EvalTransform:
  """What happens to an image before it is evaluated on.

  Args:
    config: See `FIELDS`.
    resolution: Of the network.

  Returns:
    A transform of `jaxpapers.data.batches`.
  """
  return data.EvalTransform(resolution, config.crop_padding, config.resize)
