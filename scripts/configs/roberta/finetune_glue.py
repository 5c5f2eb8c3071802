"""GLUE by fairseq's recipes; --task chooses one."""

from jaxpapers.roberta import finetune_recipes


def get_config():
  """The config of the program."""
  return finetune_recipes.finetune_config(task='RTE', layout='glue')
