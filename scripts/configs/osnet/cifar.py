"""OSNet on CIFAR-10 or CIFAR-100.

cifar.py:small is a quarter of the width with a pooling stem, minutes on two
processor cores. cifar.py:full is the whole network at 32 x 32; the stem and the
recipe that the paper had there are not known, so this is a guess: SGD for 350
epochs as from scratch on Market-1501.
"""

from jaxpapers.osnet import recipes


def get_config(variant='small'):
  """The config of the program.

  Args:
    variant: 'small' or 'full'.
  """
  if variant == 'small':
    return recipes.cifar_config()
  if variant != 'full':
    raise ValueError(
      f'variant is {variant!r}; expected cifar.py:small or cifar.py:full.'
    )
  config = recipes.train_config()
  config.task, config.model.name = 'classify', 'osnet_cifar'
  config.data.sources = 'cifar10'
  config.data.num_classes, config.data.train_examples = 10, 50_000
  config.height = config.width = 32
  config.augment = 'flip,crop,erase'
  config.loss.label_smoothing = 0.0
  return config
