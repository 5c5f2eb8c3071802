"""E9: learning-rate warmup of a deep network, against Layca without any."""

from jaxpapers.layca import experiments


def get_config(task='C10-resnet'):
  """SGD with L2 after 0, 5, 10 and 15 epochs of warmup, and SGD with Layca."""
  config = experiments.comparison(task, ('sgd_l2', 'sgd_layca'))
  for epochs in (5, 10, 15):
    setting = config.settings['sgd_l2'].copy_and_resolve_references()
    setting.warmup_epochs = float(epochs)
    config.settings[f'warmup{epochs:02d}'] = setting
  return config
