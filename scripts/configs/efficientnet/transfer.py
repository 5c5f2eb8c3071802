"""Fine-tuning; transfer.py:cifar10 and :cifar100 read the official files.

The paper borrows its settings from others and does not print them. These are
Kornblith et al.'s (2019) optimizer, SGD with Nesterov's momentum and a cosine,
with one learning rate in the middle of their grid.
"""

from jaxpapers.efficientnet import recipes


def get_config(kind='folder'):
  """The config of the program.

  Args:
    kind: See data.kind.
  """
  config = recipes.train_config()
  config.init_from, config.new_head = '', False
  config.auto_bn_momentum = True
  config.data.kind = kind
  if kind.startswith('cifar'):
    # All of the small images is shown.
    config.crop_padding, config.crop = 0, 'pad'
  config.augment, config.label_smoothing = '', 0.0
  config.batch_size, config.epochs = 256, 80.0
  config.ema = 0.0
  options = config.optimizer
  options.name, options.schedule = 'sgd', 'cosine'
  options.base_learning_rate, options.weight_decay = 0.01, 4e-5
  options.warmup_epochs = 0.0
  return config
