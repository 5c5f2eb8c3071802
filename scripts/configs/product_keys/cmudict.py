"""Capacity at fixed compute: how to say a word from its letters."""

from jaxpapers.product_keys import spelling


def get_config():
  """The config of the program."""
  return spelling.spelling_config()
