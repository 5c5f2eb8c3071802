"""SQuAD as in table 10 of the paper; finetune_squad.py:2.0 has no answers."""

from jaxpapers.roberta import finetune_recipes


def get_config(version='1.1'):
  """The config of the program.

  Args:
    version: '1.1' or '2.0'.
  """
  if version not in ('1.1', '2.0'):
    raise ValueError(
      f'version is {version!r}; expected finetune_squad.py:1.1 or :2.0.'
    )
  return finetune_recipes.finetune_config(
    version=version,
    train_file=f'train-v{version}.json',
    dev_file=f'dev-v{version}.json',
    doc_stride=128,
    max_question_len=64,
    n_best=20,
    max_answer_len=30,
    na_threshold=0.5,
  )
