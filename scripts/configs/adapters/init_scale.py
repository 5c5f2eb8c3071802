"""Scale of the initialisation; init_scale.py:lr varies the learning rate."""

from jaxpapers.adapters import recipes


def get_config(variant='init'):
  """The config of the program."""
  return recipes.scale_config(variant)
