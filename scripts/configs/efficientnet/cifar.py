"""A small EfficientNet at 32 pixels, minutes on two processor cores.

cifar.py:stride1 keeps the resolution in the first convolution: better, and
three times the work.
"""

from jaxpapers.efficientnet import recipes


def get_config(variant='stride2'):
  """The config of the program.

  Args:
    variant: 'stride2' or 'stride1', the stride of the first convolution.
  """
  if variant not in ('stride2', 'stride1'):
    raise ValueError(
      f'variant is {variant!r}; expected cifar.py:stride2 or cifar.py:stride1.'
    )
  config = recipes.train_config()
  config.bfloat16 = False
  options = config.model.options
  options.width, options.depth, options.resolution = 0.25, 0.5, 32
  options.stem_stride = int(variant[-1])
  # A short run: statistics of .99 lag by hundreds of updates.
  options.bn_momentum = 0.9
  options.survival_prob, options.dropout_rate = 0.0, 0.0  # 0: all blocks stay.
  config.data.kind = 'cifar10'
  config.augment, config.crop, config.crop_padding = '', '', 0
  config.batch_size, config.epochs = 100, 8.0
  config.optimizer.schedule = 'cosine'
  config.optimizer.warmup_epochs = 1.0
  config.optimizer.base_learning_rate = 0.006 * 256 / 100
  config.evaluate_raw = True
  return config
