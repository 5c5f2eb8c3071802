"""Twelve layers of width 1024 with 512 x 512 slots: section 4.3."""

from jaxpapers.product_keys import recipes


def get_config():
  """The config of the program."""
  return recipes.language_model_config('paper')
