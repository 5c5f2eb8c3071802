"""Attributes of pedestrians, PA-100K: 26 of them, by max-pooling."""

from jaxpapers.osnet import recipes


def get_config():
  """The config of the program."""
  config = recipes.train_config()
  config.task = 'attributes'
  config.model.name = 'osnet_attribute'
  config.data.sources = 'pa100k'
  config.data.num_classes, config.data.train_examples = 26, 80_000
  config.augment = 'flip,crop'
  config.optimizer.step_epochs = (30, 40)
  config.epochs, config.batch_size = 50, 32
  config.evaluate_every = 1.0
  return config
