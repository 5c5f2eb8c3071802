"""RACE, CommonsenseQA, WSC and WinoGrande; --task chooses one."""

from jaxpapers.roberta import finetune_recipes


def get_config():
  """The config of the program."""
  return finetune_recipes.finetune_config(
    task='race',
    # race_fairseq is what fairseq's README says instead of the paper.
    recipe='',
    max_option_len=128,
    # Of WSC and WinoGrande: (alpha, beta), () for the cross entropy.
    margin=(),
    # Of a sentence of WSC in training; on dev and test there are all.
    max_candidates=16,
    winogrande_size='xl',
  )
