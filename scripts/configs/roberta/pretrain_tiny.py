"""A RoBERTa for two processor cores, a vocabulary of its own and 1 MB of text.

Minutes on a laptop; docs/roberta.md has the commands before and after it.
"""

from jaxpapers.roberta import pretraining_recipes


def get_config():
  """The config of the program."""
  config = pretraining_recipes.pretrain_config('tiny')
  config.vocab_size, config.mask_id = 0, -1  # The tokenizer's.
  # So small a model underfits: with two heads and dropout of .1 the held-out
  # loss is 4.76 after 2,000 updates instead of 3.92.
  config.model.num_heads = 4
  config.model.dropout_rate = 0.0
  config.model.attention_dropout_rate = 0.0
  config.block_size = 64
  config.valid_blocks = 640
  config.batch_size = 32
  config.num_steps = 3000
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 200
  config.evaluate_every = 500
  config.log_every = 50
  config.checkpoint_every = 250
  return config
