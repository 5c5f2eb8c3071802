"""Size against score; tradeoff.py:paper has the paper's grids."""

from jaxpapers.adapters import recipes


def get_config(variant='small'):
  """The config of the program."""
  return recipes.tradeoff_config(variant)
