"""E1: layer-wise multipliers, from the first layer's favour to the last's."""

from jaxpapers.layca import experiments


def get_config(task='C10-CNN1'):
  """SGD with Layca at rho(0) = 3^-3, for the alphas of the paper."""
  config = experiments.base_config(task, 'sgd_layca')
  config.alphas = experiments.ALPHAS
  return config
