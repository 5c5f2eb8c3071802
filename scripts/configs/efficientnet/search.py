"""Search: search.py:cifar, :small (a laptop), :synthetic (trains nothing)."""

import ml_collections


def get_config(variant='cifar'):
  """The config of the program."""
  if variant not in ('cifar', 'small', 'synthetic'):
    raise ValueError(
      f"variant is {variant!r}; expected 'cifar', 'small' or 'synthetic'."
    )
  config = ml_collections.ConfigDict()
  config.algorithms = ('evolution',)
  config.seeds = (0,)
  config.budget = 1000
  config.evaluator = 'population'
  config.members = 32
  # The reward accuracy (cost / target)^w; w is alpha up to the target, beta
  # above it.
  config.objective = dict(target=4e8, alpha=-0.07, beta=-0.07)
  config.evolution = dict(population=64, sample=16)
  config.ppo = dict(batch=20, epochs=4, learning_rate=3e-3, entropy=1e-3)
  config.data = 'cifar10'
  config.validation = 5000
  config.images = 0
  config.space = dict(
    reference='mobilenet_v2', width=0.5, stem_stride=1, resolution=32
  )
  config.recipe = dict(epochs=5, batch_size=128, learning_rate=3e-3, shift=0.1)
  config.retrain = 0
  if variant == 'cifar':
    config.objective.target = 2e7
    config.retrain = 3
  if variant == 'synthetic':
    config.algorithms = ('random', 'evolution', 'ppo')
    config.seeds = (0, 1, 2, 3, 4)
    config.evaluator = 'synthetic'
    config.space = dict(reference='mobilenet_v2')
  if variant == 'small':
    config.budget = 32
    config.members = 8
    config.evolution = dict(population=8, sample=4)
    config.ppo.batch = 8
    config.validation = 1000
    config.space = dict(
      reference=((8, 16), (1, 1)),
      strides=(2, 2),
      divisor=4,
      stem=8,
      stem_stride=1,
      head=96,
      resolution=12,
    )
    config.objective.target = 2e5
    config.images = 3000
    config.recipe = dict(
      epochs=2, batch_size=100, learning_rate=5e-3, warmup_epochs=0.3
    )
  return config
