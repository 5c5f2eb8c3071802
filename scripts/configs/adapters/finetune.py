"""One setting: adapters of 64 with the paper's initialisation and Adam."""

from jaxpapers.adapters import recipes


def get_config():
  """The config of the program."""
  return recipes.base_config()
