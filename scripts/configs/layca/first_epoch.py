"""E5: what a high learning rate of SGD does in the first epoch.

The rotation of every layer after every single step.
"""

from jaxpapers.layca import experiments


def get_config(task='C10-CNN1'):
  """SGD at 3^0 and at the best learning rate of the task, for one epoch."""
  config = experiments.base_config(task, 'sgd')
  config.learning_rates = (1.0, *config.learning_rates)
  config.epochs = 1
  config.rotation_every = 1
  return config
