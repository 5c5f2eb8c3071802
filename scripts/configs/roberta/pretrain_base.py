"""RoBERTa-base as in the paper: 8192 x 512 tokens, 500,000 updates."""

from jaxpapers.roberta import pretraining_recipes


def get_config():
  """The config of the program."""
  config = pretraining_recipes.pretrain_config('base')
  config.bfloat16 = True
  return config
