"""Small data, after nyu-mll's models: what 1 or 10 million tokens are good for.

pretrain_nyu.py:10M is base in batches of 1024, pretrain_nyu.py:1M their
med-small (6 layers of 512) in batches of 512; 10,000 updates each, learning
rate 5e-4, warmup of 6 %. Their perplexities on held-out text: 10.8 to 11.6 for
10 million tokens, 134 to 153 for one million.
"""

from jaxpapers.roberta import pretraining_recipes

_RUNS = {'10M': ('base', 1024), '1M': ('med_small', 512)}


def get_config(tokens='10M'):
  """The config of the program."""
  if tokens not in _RUNS:
    raise ValueError(
      f'tokens is {tokens!r}; expected pretrain_nyu.py:10M or :1M.'
    )
  size, batch_size = _RUNS[tokens]
  config = pretraining_recipes.pretrain_config(size)
  config.batch_size = batch_size
  config.accumulate = batch_size // 128
  config.num_steps = 10_000
  config.optimizer.learning_rate = 5e-4
  config.optimizer.warmup_steps = 600
  config.bfloat16 = True
  config.evaluate_every = 500
  config.checkpoint_every = 500
  return config
