"""E2: initial learning rates of Layca, the same for all layers."""

from jaxpapers.layca import experiments


def get_config(task='C10-CNN1'):
  """SGD with Layca at rho(0) = 3^-7 ... 3^0."""
  config = experiments.base_config(task, 'sgd_layca')
  config.learning_rates = experiments.RATES
  return config
