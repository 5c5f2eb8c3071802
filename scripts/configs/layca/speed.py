"""E3: training speed; the learning rates of the paper's finer grid.

The curves of the alphas are those of alpha.py.
"""

from jaxpapers.layca import experiments


def get_config(task='C10-CNN1'):
  """SGD with Layca at rho(0) = 3^-3, 3^-3.2 ... 3^-4."""
  config = experiments.base_config(task, 'sgd_layca')
  config.learning_rates = experiments.SPEED_RATES
  return config
