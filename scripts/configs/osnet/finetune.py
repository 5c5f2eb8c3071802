"""From weights of ImageNet: torchreid's recipes for one data set.

finetune.py:step is that of its tables, finetune.py:cosine what it recommends,
finetune.py:small for widths of 0.5 and 0.25. Give --config.weights.
"""

from jaxpapers.osnet import recipes


def get_config(variant='cosine'):
  """The config of the program.

  Args:
    variant: 'step', 'cosine' or 'small'.
  """
  return recipes.finetune_config(variant)
