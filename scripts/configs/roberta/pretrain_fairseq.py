"""The recipe of fairseq for own data: base, 2048 x 512, 125,000 updates.

pretrain_fairseq.py:256 and :8192 have the learning rates that its README gives
for these batches. The microbatches are for one device of 80 GB; more devices
need fewer (--config.accumulate).
"""

from jaxpapers.roberta import pretraining_recipes

_RATES = {'256': 1e-4, '2048': 5e-4, '8192': 7e-4}


def get_config(batch_size='2048'):
  """The config of the program."""
  if batch_size not in _RATES:
    raise ValueError(
      f'batch_size is {batch_size!r}; expected pretrain_fairseq.py:256, :2048'
      ' or :8192.'
    )
  config = pretraining_recipes.pretrain_config('base')
  config.batch_size = int(batch_size)
  config.accumulate = max(1, int(batch_size) // 128)
  config.num_steps = 125_000
  config.optimizer.learning_rate = _RATES[batch_size]
  config.optimizer.warmup_steps = 10_000
  config.bfloat16 = True
  return config
