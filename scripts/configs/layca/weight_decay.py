"""E6: SGD with and without L2 regularisation, against Layca."""

from jaxpapers.layca import experiments


def get_config(task='C10-CNN1'):
  """Three runs of a task."""
  return experiments.comparison(task, ('sgd', 'sgd_l2', 'sgd_layca'))
