"""From random weights on Market-1501: 93.6 % rank-1, 81.0 % mAP in the paper.

SGD at .065 with momentum for 350 epochs, batches of 64, flips, crops and random
erasing. scratch.py:patch pastes patches instead of erasing, as the paper says.
"""

from jaxpapers.osnet import recipes


def get_config(variant='erase'):
  """The config of the program.

  Args:
    variant: 'erase' or 'patch'.
  """
  if variant not in ('erase', 'patch'):
    raise ValueError(
      f'variant is {variant!r}; expected scratch.py:erase or scratch.py:patch.'
    )
  config = recipes.train_config()
  config.augment = f'flip,crop,{variant}'
  return config
