"""Procedural pedestrians, a quarter of the width, one block for each stage.

Minutes on two processor cores: a test of all of the program, and of which
details a network tells apart. It ranks no networks.
"""

from jaxpapers.osnet import recipes


def get_config(variant='T4'):
  """The config of the program.

  Args:
    variant: A key of `recipes.variants()`, as synthetic.py:T1.
  """
  config = recipes.synthetic_config()
  changes = recipes.variants()
  if variant not in changes:
    raise ValueError(
      f'variant is {variant!r}; expected one of {list(changes)}.'
    )
  for name, value in changes[variant].items():
    config.model.options[name] = value
  return config
