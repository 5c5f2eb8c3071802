"""E8: is it the rotation that makes adaptive methods fast?

Records the rotation of every layer in every step of an adaptive method, and
replays it with SGD and Layca.
"""

from jaxpapers.layca import experiments


def get_config(task='C10-CNN1'):
  """The adaptive method of the task, its replay, and SGD with L2."""
  method = experiments.adaptive_method(task)
  config = experiments.comparison(task, (method, 'sgd_layca', 'sgd_l2'))
  config.recorded = method
  config.replayed = 'sgd_layca'
  config.settings['sgd_layca'].epochs = config.settings[method].epochs
  base = experiments.REPLAY_BASE[task]
  config.settings['sgd_layca'].optimizer = {
    'base': base,
    'layca': True,
    'momentum': 0.9 if base == 'amom_sgd' else 0.0,
    'nesterov': False,
  }
  return config
