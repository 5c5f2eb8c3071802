"""Scaling: scaling.py:study, :study-small, :grid, :grid-small."""

import ml_collections

# Stages of the reduced network, for images of 16 to 32 pixels.
REDUCED = (
  'r1_k3_s11_e1_i32_o16_se0.25',
  'r1_k3_s22_e6_i16_o24_se0.25',
  'r2_k5_s22_e6_i24_o40_se0.25',
)


def get_config(variant='study'):
  """The config of the program."""
  names = ('study', 'study-small', 'grid', 'grid-small')
  if variant not in names:
    raise ValueError(f'variant is {variant!r}; expected one of {names}.')
  config = ml_collections.ConfigDict()
  config.experiment = variant.partition('-')[0]
  config.data = 'cifar10'
  config.family = 'efficientnet'
  # Half-size B0 for CIFAR: 16 pixels, so that twice the resolution is native.
  config.base = dict(
    width=0.5, depth=1.0, resolution=16, stem_stride=1, bn_momentum=0.9
  )
  config.factors = (1.4, 1.2, 1.3)
  config.seeds = (0, 1, 2)
  config.recipe = dict(epochs=60, batch_size=128, learning_rate=3e-3, shift=0.1)
  config.grid = dict(step=0.05, tol=0.1, cost='exact', target=2.0)
  config.validation = 1000
  if variant.endswith('-small'):
    config.base = dict(
      width=0.25,
      depth=1.0,
      depth_divisor=4,
      resolution=12,
      stem_stride=1,
      bn_momentum=0.9,
      dropout_rate=0.0,
      survival_prob=1.0,
      head_filters=640,
      blocks=REDUCED,
    )
    config.recipe = dict(
      epochs=2, batch_size=100, learning_rate=3e-3, warmup_epochs=0.5
    )
    config.grid.step = 0.25
    config.grid.tol = 0.3
  return config
