"""A language model of bytes with one memory, for two processor cores."""

from jaxpapers.product_keys import recipes


def get_config():
  """The config of the program."""
  return recipes.language_model_config('tiny')
