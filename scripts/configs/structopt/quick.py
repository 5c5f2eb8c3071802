"""A first look at the comparison: small tasks, 100 evaluations."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Values of the flags of structopt_optimize."""
  config = ml_collections.ConfigDict()
  config.quick_run = True
  config.methods = ['cnn-lbfgs', 'pixel-lbfgs', 'mma', 'oc']
  config.optimization_steps = 100
  config.frames = 0
  return config
