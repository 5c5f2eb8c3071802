"""Cross-entropy with a triplet loss of the hardest pairs, or that alone.

Batches of 16 people with 4 images each. triplet.py:only has no cross-entropy.
Give --config.weights.
"""

from jaxpapers.osnet import recipes


def get_config(variant='combined'):
  """The config of the program.

  Args:
    variant: 'combined' or 'only'.
  """
  if variant not in ('combined', 'only'):
    raise ValueError(
      f'variant is {variant!r}; expected triplet.py:combined or'
      ' triplet.py:only.'
    )
  config = recipes.finetune_config('cosine')
  config.sampler, config.loss.triplet = 'pk', 1.0
  if variant == 'only':
    config.loss.cross_entropy = 0.0
    # The classifier gets no gradient: nothing to train alone.
    config.optimizer.fixed_epochs = 0
  return config
