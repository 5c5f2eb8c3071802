"""E4: learning rates of SGD, without L2."""

from jaxpapers.layca import experiments


def get_config(task='C10-CNN1'):
  """SGD at 3^-4 ... 3^0, in the schedule of the task."""
  config = experiments.base_config(task, 'sgd')
  config.learning_rates = experiments.SGD_RATES
  return config
