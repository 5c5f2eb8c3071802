"""The paper's recipe for ImageNet; imagenet.py:b3 is another network."""

from jaxpapers.efficientnet import config as config_lib
from jaxpapers.efficientnet import recipes

# Published magnitudes differ; AutoAugment is the paper's for all of them.
_REMAT_FROM = 5  # B5 and larger: activations are computed again.


def get_config(name='b0'):
  """The config of the program.

  Args:
    name: 'b0' to 'b8', 'l2', or another network of
      `jaxpapers.efficientnet.config_for`.
  """
  config = recipes.train_config()
  if name in config_lib.COEFFICIENTS:
    name = f'efficientnet-{name}'
  config_lib.config_for(name)  # Says which names there are.
  config.model.name = name
  number = name.rpartition('-b')[2]
  large = number.isdecimal() and int(number) >= _REMAT_FROM
  config.model.options.remat = large or name.endswith('-l2')
  return config
