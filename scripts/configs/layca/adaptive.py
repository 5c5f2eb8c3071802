"""E7: an adaptive method as it is, and with Layca (and without L2)."""

from jaxpapers.layca import experiments


def get_config(task='C10-CNN1'):
  """The adaptive method that the paper trains the task with."""
  method = experiments.adaptive_method(task)
  base = method.removesuffix('_l2')
  names = [method, f'{base}_layca', 'sgd_layca']
  if task == 'mnist-small':
    names += ['rmsprop', 'rmsprop_layca']
  return experiments.comparison(task, names)
