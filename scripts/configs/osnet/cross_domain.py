"""Models for cameras that they were not trained on.

cross_domain.py:ibn and :ain train on Market-1501 and are evaluated on DukeMTMC,
:msmt17 trains on all of MSMT17, :multi_source on three data sets, one of which
can be left out: --config.data.sources, --config.data.targets. Jitter of colours
and no erasing, which hurts here. Give --config.weights.
"""

from jaxpapers.osnet import recipes


def get_config(variant='ain'):
  """The config of the program.

  Args:
    variant: 'ibn', 'ain', 'msmt17' or 'multi_source'.
  """
  if variant not in ('ibn', 'ain', 'msmt17', 'multi_source'):
    raise ValueError(
      f'variant is {variant!r}; expected cross_domain.py:ibn, :ain, :msmt17 or'
      ' :multi_source.'
    )
  config = recipes.finetune_config('step' if variant == 'ibn' else 'cosine')
  config.augment = 'flip,jitter'
  config.data.targets = 'dukemtmc'
  if variant == 'ibn':
    config.model.name = 'osnet_ibn_x1_0'
    return config
  config.model.name = 'osnet_ain_x1_0'
  config.metric = 'cosine'
  config.epochs = 100 if variant == 'ain' else 50
  if variant == 'msmt17':
    config.data.sources, config.data.combine_all = 'msmt17', True
    config.data.targets = 'market1501,dukemtmc'
  if variant == 'multi_source':
    config.data.sources = 'market1501,cuhk03,msmt17'
  return config
