"""SQuAD for the adapter programs: windows, answers, scores."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import _adapters_bert
import numpy as np
from etils import epath

from jaxpapers.adapters import wordpiece
from jaxpapers.roberta import squad, squad_scores


@dataclasses.dataclass(frozen=True)
class Version:
  """One of SQuAD's versions.

  Attributes:
    train: Name of the file to train on.
    dev: Name of the file to measure on.
    answerable: Whether questions may have no answer.
  """

  train: str
  dev: str
  answerable: bool


TASKS: Mapping[str, Version] = {
  f'SQuAD{number}': Version(
    f'train-v{number}.json', f'dev-v{number}.json', number == '2.0'
  )
  for number in ('1.1', '2.0')
}


def load(config: Any, tokenizer: Any, length: int) -> dict[str, Any]:
  """Questions and windows of the training and the dev file.

  Args:
    config: The config.
    tokenizer: The vocabulary.
    length: Most tokens of a window.

  Returns:
    'train' and 'valid': questions, and features of `squad.squad_features`.

  Raises:
    OSError: If a file cannot be read.
    ValueError: If one is damaged, belongs to the other version, or a size
      leaves no room for the passage.
  """
  version, folder = TASKS[config.task], epath.Path(config.data).expanduser()
  found = {}
  for name, file in (
    ('train', config.squad.train_file or version.train),
    ('valid', config.squad.dev_file or version.dev),
  ):
    questions = squad.load_squad(folder / file)
    empty = sum(not question.answers for question in questions)
    if empty and not version.answerable:
      raise ValueError(
        f'{empty} questions of {file} have no answer: this is v2.0. Use'
        ' --config.task=SQuAD2.0'
      )
    windows = squad.squad_features(
      questions,
      tokenizer,
      max_len=length,
      doc_stride=config.squad.doc_stride,
      max_question_len=config.squad.max_question_len,
    )
    if isinstance(tokenizer, wordpiece.WordPiece):
      windows = _adapters_bert.with_one_separator(windows)
    found[name] = questions, windows
  return found


def answers(
  source: Any, outputs: Mapping[str, Any], config: Any
) -> squad.SquadAnswers:
  """Answers of a model.

  Args:
    source: Questions and windows.
    outputs: 'start', 'end' and, of v2.0, 'answerable' of each window.
    config: The config.

  Returns:
    The best spans of each question.
  """
  there = outputs.get('answerable')
  return squad.squad_answers(
    *source,
    outputs['start'],
    outputs['end'],
    None if there is None else np.array(there),
    n_best=config.squad.n_best,
    max_answer_len=config.squad.max_answer_len,
  )


def scores(
  source: Any, outputs: Mapping[str, Any], config: Any
) -> dict[str, float]:
  """The official script's 'f1' and 'exact', from 0 to 1 as other metrics."""
  found = answers(source, outputs, config)
  percent = squad_scores.squad_metrics(
    source[0], found.best, found.na_probs, config.squad.na_threshold
  )
  return {name: percent[name] / 100 for name in ('f1', 'exact')}
