"""A RoBERTa for two processor cores, a vocabulary of its own and 1 MB of text.

Minutes on a laptop; docs/roberta.md has the commands before and after it.
"""

from jaxpapers.roberta import pretraining_recipes


def get_config():
  """The config of the program."""
  config = pretraining_recipes.pretrain_config('tiny')
  config.vocab_size, config.mask_id = 0, -1  # The tokenizer's.
  config.block_size = 64
  config.valid_blocks = 640
  config.batch_size = 32
  config.num_steps = 2000
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 200
  config.evaluate_every = 250
  config.log_every = 50
  config.checkpoint_every = 250
  return config
