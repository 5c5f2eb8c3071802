"""SQuAD v1.1 through adapters of 64 (section 3.5); squad.py:2.0 for v2.0."""

from jaxpapers.adapters import recipes


def get_config(version='1.1'):
  """The config of the program.

  Args:
    version: '1.1' or '2.0'.
  """
  return recipes.squad_config(version)
