"""Studies of osnet_ablate.py: probe, synthetic, variants, cifar, ain."""

import ml_collections

from jaxpapers.osnet import recipes, scale_probe

# The rows of the paper's table; 'equal' and 'single' are controls it lacks.
_PAPER = tuple(
  name for name in recipes.variants() if name not in ('equal', 'single')
)


def get_config(study='probe'):
  """The config of the program.

  Args:
    study: Its name.
  """
  config = ml_collections.ConfigDict()
  config.study = 'train'
  config.seeds = (0, 1, 2)
  config.variants = ('T4', 'T1', 'equal', 'single', 'add')
  config.probe = {
    'steps': 500,
    'batch_size': 64,
    'learning_rate': 4e-3,
    'test_images': 2000,
  }
  config.search = {'start': 10.0, 'factor': 0.5, 'every': 20, 'least': 1.0}
  config.recipe = recipes.synthetic_config()
  if study == 'probe':
    config.study = 'probe'
    config.variants = tuple(scale_probe.VARIANTS)
  elif study == 'variants':
    config.recipe = recipes.train_config()
    config.variants, config.seeds = _PAPER, (0,)
  elif study == 'cifar':
    config.recipe = recipes.cifar_config()
    config.variants = ('T4', 'T3', 'T2', 'T1')
  elif study == 'ain':
    config.study = 'search'
    config.recipe = recipes.search_config()
  elif study != 'synthetic':
    raise ValueError(
      f'study is {study!r}; expected ablate.py:probe, :synthetic, :variants,'
      ' :cifar or :ain.'
    )
  return config
