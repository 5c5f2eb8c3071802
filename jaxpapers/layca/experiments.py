"""The paper's tasks and training settings, as data.

Section 3 and the appendix of Carbonnelle & De Vleeschouwer (2019,
arXiv:1806.01603), completed by the configuration of their public experiments.
`scripts/configs/layca` turns these into configs of the experiments E1 to E10 of
docs/layca.md.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import ml_collections

from jaxpapers.layca import initializers, models, models_residual

MODELS = {
  'vgg': models.VGGLayca,
  'torch_blog_vgg': models.TorchBlogVGG,
  'resnet': models_residual.ResNetV1Keras,
  'wide_resnet': models_residual.WideResNet,
  'mnist_mlp': models.MnistMLP,
  'deep_mlp': models.DeepMLP,
}

# Layer-wise multipliers (E1) and initial learning rates (E2 to E4).
ALPHAS = (-0.8, -0.6, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
RATES = tuple(3.0**-i for i in range(7, -1, -1))
SPEED_RATES = tuple(3.0**-i for i in (3, 3.2, 3.4, 3.6, 3.8, 4))
SGD_RATES = tuple(3.0**-i for i in range(4, -1, -1))
SGD_SEARCH = tuple(3.0**-i for i in range(7, -3, -1))


@dataclasses.dataclass(frozen=True)
class Task:
  """Data, network and what all trainings of a task have in common.

  Attributes:
    dataset: 'mnist', 'cifar10', 'cifar100' or 'tiny_imagenet'.
    model: name in `MODELS`, and arguments of that network.
    epochs: duration, for Layca and for SGD without L2.
    drops: epochs, counted from 0, from which on the learning rate is lower ...
    factor: ... by this factor each.
    batch_size: examples of a step.
    last_batch: whether the smaller last batch of an epoch is used.
    validation: fraction of the training set that is held out.
    best_validation: whether the paper reports the test accuracy of the epoch
      with the best validation accuracy, rather than of the last one.
    augment: whether images are shifted and mirrored at random.
    l2: Keras' coefficient, where the setting has L2 regularisation.
    l2_exclude: modules that it leaves out.
    hopeless: (accuracy, epoch) of the stopping rule.
    finished_loss: of the stopping rule.
    unchanged_epochs: of the stopping rule.
  """

  dataset: str
  model: Mapping[str, Any]
  epochs: int
  drops: tuple[int, ...]
  factor: float = 0.2
  batch_size: int = 128
  last_batch: bool = True
  validation: float = 0.1
  best_validation: bool = False
  augment: bool = False
  l2: float = 1e-3
  l2_exclude: tuple[str, ...] = ()
  hopeless: tuple[float, int] | None = None
  finished_loss: float = 0.0
  unchanged_epochs: float = math.inf


_STOP = {'finished_loss': 1e-3, 'unchanged_epochs': 3}
# Keras' generator gave 351 full batches of 45,000 examples in an epoch.
_AUGMENTED = {'augment': True, 'last_batch': False}

TASKS = {
  'C10-CNN1': Task(
    'cifar10',
    {'name': 'vgg'},
    100,
    (80, 90, 97),
    hopeless=(0.2, 7),
    finished_loss=1e-4,
    unchanged_epochs=3,
  ),
  # The repository's reduced variant of the first task.
  'C10-CNN1-fast': Task(
    'cifar10',
    {'name': 'vgg', 'stages': (3,) * 4, 'filters': (16, 32, 64, 128)},
    100,
    (80, 90, 97),
    hopeless=(0.2, 7),
    finished_loss=1e-4,
    unchanged_epochs=3,
  ),
  'C100-resnet': Task(
    'cifar100',
    {'name': 'resnet', 'depth': 32, 'classes': 100},
    100,
    (70, 90, 97),
    factor=0.1,
    best_validation=True,
    l2_exclude=('last_dense',),
    hopeless=(0.1, 7),
    **_STOP,
  ),
  'tiny-CNN': Task(
    'tiny_imagenet',
    {
      'name': 'vgg',
      'stages': (2,) * 5,
      'filters': (32, 64, 128, 256, 512),
      'classes': 200,
      'momentum': 0.9,
    },
    80,
    (70,),
    best_validation=True,
    hopeless=(0.2, 10),
    **_STOP,
  ),
  'C10-CNN2': Task(
    'cifar10',
    {'name': 'torch_blog_vgg'},
    250,
    (100, 170, 220),
    l2=5e-4,
    **_AUGMENTED,
  ),
  'C100-WRN': Task(
    'cifar100',
    {'name': 'wide_resnet', 'depth': 28, 'widen': 10},
    250,
    (100, 170, 220),
    l2=5e-4,
    **_AUGMENTED,
  ),
  'C10-resnet': Task(
    'cifar10',
    {'name': 'resnet', 'depth': 110},
    200,
    (60, 120, 160),
    l2_exclude=('last_dense',),
    hopeless=(0.2, 60),
    **_AUGMENTED,
  ),
  'mnist': Task(
    'mnist',
    {'name': 'mnist_mlp'},
    100,
    (90,),
    batch_size=2048,
    validation=0.0,
  ),
  # Not in the paper: small enough to compare many settings on two CPU cores.
  'mnist-small': Task(
    'mnist',
    {'name': 'deep_mlp'},
    30,
    (24, 27),
    batch_size=125,
    last_batch=False,
    validation=0.0,
    l2=1e-3,
  ),
}
PAPER_TASKS = ('C10-CNN1', 'C100-resnet', 'tiny-CNN', 'C10-CNN2', 'C100-WRN')

# The adaptive method that E7 and E8 compare with on each task.
ADAPTIVE = {
  'C10-CNN1': 'rmsprop',
  'C100-resnet': 'adam',
  'tiny-CNN': 'adagrad',
  'C10-CNN2': 'rmsprop_l2',
  'C100-WRN': 'adam_l2',
  'C10-CNN1-fast': 'rmsprop',
  'mnist-small': 'adam',
}
# What replays its rotations in E8; Adam's, a base that averages gradients too.
REPLAY_BASE = {
  task: 'amom_sgd' if method.startswith('adam') else 'sgd'
  for task, method in ADAPTIVE.items()
}

# (optimizer, task) -> best initial learning rate. Layca's are the same on
# every task; None is for all tasks without an entry of their own.
_BEST = {
  ('sgd', None): 3.0**-1,
  ('sgd', 'C100-WRN'): 3.0**-2,
  ('sgd_l2', None): 3.0**-1,
  ('sgd_l2', 'C10-CNN2'): 0.5,
  ('sgd_l2', 'C100-WRN'): 0.1,
  ('rmsprop', None): 3.0**-6,
  ('adam', None): 3.0**-5,
  ('adagrad', None): 3.0**-4,
  ('rmsprop_l2', None): 3e-4,
  ('adam_l2', None): 3e-4,
  ('normalized_sgd', None): 3.0**-2,
  ('normalized_sgd', 'tiny-CNN'): 3.0**-1,
  ('normalized_sgd', 'C10-CNN2'): 3.0**-1,
  ('sgd_layca', None): 3.0**-3,
  ('rmsprop_layca', None): 3.0**-3,
  ('adagrad_layca', None): 3.0**-3,
  ('adam_layca', None): 3.0**-5,
  ('amom_sgd_layca', None): 3.0**-5,
}


def make_model(options: Mapping[str, Any]) -> nn.Module:
  """The network that a config names.

  Args:
    options: 'name', one of `MODELS`, and arguments of that class;
      'kernel_init' may be a name known to `initializers.by_name`.

  Returns:
    The module.

  Raises:
    ValueError: for an unknown name or argument.
  """
  options = dict(options)
  name = options.pop('name', None)
  if name not in MODELS:
    raise ValueError(f'model.name is {name!r}; expected one of {list(MODELS)}.')
  known = [f.name for f in dataclasses.fields(MODELS[name])]
  for option in options:
    if option not in known or option in ('parent', 'name'):
      raise ValueError(
        f'model.{option} is not an option of {name}; it has'
        f' {[k for k in known if k not in ("parent", "name")]}.'
      )
  defaults = _model_defaults(name)
  for option, value in options.items():
    many = isinstance(defaults.get(option), tuple)
    if many and not isinstance(value, (tuple, list)):
      raise ValueError(
        f'model.{option} is {value!r}; expected a tuple, such as'
        f' {defaults[option]}.'
      )
  if isinstance(options.get('kernel_init'), str):
    options['kernel_init'] = initializers.by_name(options['kernel_init'])
  return MODELS[name](**options)


def get_task(name: str) -> Task:
  """A task by its name.

  Raises:
    ValueError: for an unknown one.
  """
  if name not in TASKS:
    raise ValueError(f'task is {name!r}; expected one of {list(TASKS)}.')
  return TASKS[name]


def best_setting(task_name: str, optimizer: str) -> dict[str, Any]:
  """What the paper trains a task with, for one optimizer.

  Args:
    task_name: name in `TASKS`.
    optimizer: 'sgd', 'amom_sgd', 'rmsprop', 'adam', 'adagrad' or
      'normalized_sgd', followed by '_l2' or '_layca', or neither.

  Returns:
    'base', 'layca', 'learning_rate', 'momentum', 'nesterov', 'l2', 'epochs',
    'drops' and 'factor'.

  Raises:
    ValueError: for an unknown task or optimizer.

  Example:
    >>> best_setting('C100-WRN', 'sgd_l2')['learning_rate']
    0.1
  """
  task = get_task(task_name)
  rate = _BEST.get((optimizer, task_name), _BEST.get((optimizer, None)))
  if rate is None:
    known = sorted({name for name, _ in _BEST})
    raise ValueError(f'optimizer is {optimizer!r}; expected one of {known}.')
  base, _, extra = optimizer.rpartition('_')
  if extra not in ('l2', 'layca'):
    base, extra = optimizer, ''
  setting = {
    'base': base,
    'layca': extra == 'layca',
    'learning_rate': rate,
    'momentum': 0.9 if base == 'amom_sgd' else 0.0,
    'nesterov': False,
    'l2': task.l2 if extra == 'l2' else 0.0,
    'epochs': task.epochs,
    'drops': task.drops,
    'factor': task.factor,
  }
  if task_name == 'C100-WRN' and base == 'sgd' and extra != 'layca':
    # The only runs of the paper with momentum.
    setting |= {'momentum': 0.9, 'nesterov': True}
  if extra == 'l2':
    if task_name == 'tiny-CNN':
      setting |= {'epochs': 100, 'drops': (70, 90, 97)}
    elif task_name == 'C10-CNN2':
      setting |= {'drops': tuple(range(25, 250, 25)), 'factor': 0.5}
    elif task_name == 'C100-WRN':
      setting |= {'epochs': 200, 'drops': (60, 120, 160)}
  return setting


def base_config(task_name: str, optimizer: str) -> ml_collections.ConfigDict:
  """A config of one run: a task, trained in the paper's way.

  Args:
    task_name: name in `TASKS`.
    optimizer: as in `best_setting`.

  Returns:
    The config; `scripts/layca_sweep.py --help` explains its fields.
  """
  task, setting = get_task(task_name), best_setting(task_name, optimizer)
  config = ml_collections.ConfigDict()
  config.task = task_name
  config.seed = 0
  config.seeds = ()
  config.dataset = task.dataset
  config.data_dir = ''
  config.train_examples = 0
  config.validation = task.validation
  config.augment = task.augment
  config.model = ml_collections.ConfigDict(
    {**_model_defaults(task.model['name']), **task.model}
  )
  config.batch_size = task.batch_size
  config.last_batch = task.last_batch
  config.epochs = setting.pop('epochs')
  config.optimizer = ml_collections.ConfigDict(
    {name: setting[name] for name in ('base', 'layca', 'momentum', 'nesterov')}
  )
  config.learning_rates = (setting['learning_rate'],)
  config.alphas = (0.0,)
  config.drops = setting['drops']
  config.factor = setting['factor']
  config.warmup_epochs = 0.0
  config.l2 = setting['l2']
  config.l2_exclude = task.l2_exclude
  config.stopping = ml_collections.ConfigDict(
    {
      'hopeless': task.hopeless or (),
      'finished_loss': task.finished_loss,
      'unchanged_epochs': float(task.unchanged_epochs),
    }
  )
  config.best_validation = task.best_validation
  config.evaluate_every = 1
  config.rotation_every = 0
  config.members_at_once = 0
  config.bfloat16 = False
  return config


def _model_defaults(name: str) -> dict[str, Any]:
  """The numbers that shape a network: a config can only change what it has."""
  return {
    field.name: field.default
    for field in dataclasses.fields(MODELS[name])
    if isinstance(field.default, (int, float, tuple))
  }


def comparison(
  task_name: str, optimizers: Sequence[str]
) -> ml_collections.ConfigDict:
  """A config of several runs of one task.

  Args:
    task_name: name in `TASKS`.
    optimizers: as in `best_setting`.

  Returns:
    The config of the task, with `settings`: name -> what that run changes;
    `baseline`, the one that others are compared with; and `only`, names of the
    runs to train, empty for all.
  """
  config = base_config(task_name, 'sgd_layca')
  config.settings = ml_collections.ConfigDict()
  for optimizer in optimizers:
    own = base_config(task_name, optimizer)
    config.settings[optimizer] = ml_collections.ConfigDict(
      {
        'optimizer': own.optimizer.to_dict(),
        'learning_rates': own.learning_rates,
        'epochs': own.epochs,
        'drops': own.drops,
        'factor': own.factor,
        'l2': own.l2,
      }
    )
  config.baseline = 'sgd_layca'
  config.only = ()
  return config


def adaptive_method(task_name: str) -> str:
  """The adaptive method of E7 and E8 on a task.

  Raises:
    ValueError: if the paper has none for it.
  """
  if task_name not in ADAPTIVE:
    raise ValueError(
      f'task is {task_name!r}; expected one of {list(ADAPTIVE)}.'
    )
  return ADAPTIVE[task_name]
