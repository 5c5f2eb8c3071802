"""RACE and CommonsenseQA: one of several answers is right.

Read as fairseq reads them, and packed token for token as it packs them: what is
cut off is the end, separators included.
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpapers.data import files
from jaxpapers.roberta.bpe import ByteLevelBPE

_RACE_SPLITS = ('train', 'dev', 'test')
_RACE_LEVELS = ('middle', 'high')
_BLANKS = re.compile(r'\s+')


@dataclasses.dataclass(frozen=True)
class ChoiceExample:
  """A question with several answers.

  Attributes:
    index: Name of the example.
    context: What all choices share: RACE's passage, CommonsenseQA's question.
    choices: Texts: of RACE question and option joined, of CommonsenseQA the
      answers.
    label: Number of the right choice; None in a test set.
  """

  index: str
  context: str
  choices: tuple[str, ...]
  label: int | None


def load_race(
  folder: str | os.PathLike, split: str = 'train'
) -> list[ChoiceExample]:
  """Reads a split of RACE (Lai et al. 2017).

  An option takes the place of each underscore in the question, or follows it
  where there is none; blanks in a row become one.

  Args:
    folder: The one with `train`, `dev` and `test`, which have `middle` and
      `high` with a JSON file for each passage.
    split: One of these, or one level of it, such as 'test-high'.

  Returns:
    The questions, those of `middle` first, files by name: fairseq takes them
    as the file system lists them.

  Raises:
    FileNotFoundError: If there are no such files.
    CorruptFileError: If a file is damaged; says which.
    ValueError: If there is no such split.

  Example:
    >>> examples = load_race('RACE', 'dev')  # doctest: +SKIP
    >>> len(examples[0].choices)  # doctest: +SKIP
    4
  """
  name, _, level = split.partition('-')
  if name not in _RACE_SPLITS or level not in ('', *_RACE_LEVELS):
    raise ValueError(
      f'split is {split!r}; expected one of {", ".join(_RACE_SPLITS)}, or one'
      ' level of it, such as test-middle.'
    )
  folder = files.as_path(folder)
  examples = []
  for part in [level] if level else _RACE_LEVELS:
    paths = []
    if (folder / name / part).exists():
      paths = sorted((folder / name / part).glob('*.txt'), key=str)
    if not paths:
      raise files.missing('RACE', folder, f'  {name}/{part}/*.txt')
    for path in paths:
      examples += _read_race(path, f'{name}/{part}/{path.name}')
  return examples


def load_csqa(path: str | os.PathLike) -> list[ChoiceExample]:
  """Reads a file of CommonsenseQA (Talmor et al. 2019), one JSON each line.

  Args:
    path: Such as `train_rand_split.jsonl`.

  Returns:
    The questions; contexts and choices with the 'Q: ' and 'A: ' that fairseq
    puts before them.

  Raises:
    FileNotFoundError: If the file is not there.
    CorruptFileError: If a line does not fit; says which.
  """
  examples = []
  for where, row in read_json_lines(path, 'CommonsenseQA'):
    try:
      question = row['question']
      texts = tuple(f'A: {choice["text"]}' for choice in question['choices'])
      names = [choice['label'] for choice in question['choices']]
      stem, index = question['stem'], str(row['id'])
      key = row.get('answerKey')
    except (KeyError, TypeError) as error:
      raise files.CorruptFileError(
        f'{where}: no {error}; expected id, question with stem and choices,'
        ' and answerKey.'
      ) from error
    if key is not None and key not in names:
      raise files.CorruptFileError(
        f'{where}: answerKey {key!r}; expected one of {", ".join(names)}.'
      )
    label = None if key is None else names.index(key)
    examples.append(ChoiceExample(index, f'Q: {stem}', texts, label))
  return examples


def encode_race(
  examples: Sequence[ChoiceExample],
  bpe: ByteLevelBPE,
  *,
  max_option_len: int = 128,
  max_len: int = 512,
) -> list[list[list[int]]]:
  """Token ids of `<s> question and option </s> </s> passage </s>`.

  As fairseq does it, the question and option with their `<s>` and `</s>` are
  cut to `max_option_len`, then the whole to `max_len`: whatever was cut has no
  `</s>` at its end.

  Args:
    examples: Of `load_race`.
    bpe: The tokenizer.
    max_option_len: Most tokens of question and option.
    max_len: Most tokens.

  Returns:
    Ids of each choice of each example.
  """
  contexts = bpe.encode_batch([e.context.strip() for e in examples])
  flat = bpe.encode_batch([c.strip() for e in examples for c in e.choices])
  flat = iter(flat)
  packed = []
  for example, context in zip(examples, contexts):
    rows = []
    for _ in example.choices:
      option = [bpe.bos_id, *next(flat), bpe.eos_id][:max_option_len]
      rows.append([*option, bpe.eos_id, *context, bpe.eos_id][:max_len])
    packed.append(rows)
  return packed


def encode_csqa(
  examples: Sequence[ChoiceExample],
  bpe: ByteLevelBPE,
  *,
  max_len: int = 512,
) -> list[list[list[int]]]:
  """Token ids of `<s> Q: question </s> A: choice </s>`, one separator.

  Args:
    examples: Of `load_csqa`.
    bpe: The tokenizer.
    max_len: Most tokens.

  Returns:
    Ids of each choice of each example.
  """
  contexts = bpe.encode_batch([e.context for e in examples])
  flat = iter(bpe.encode_batch([c for e in examples for c in e.choices]))
  return [
    [
      [bpe.bos_id, *context, bpe.eos_id, *next(flat), bpe.eos_id][:max_len]
      for _ in example.choices
    ]
    for example, context in zip(examples, contexts)
  ]


def choice_labels(examples: Sequence[ChoiceExample]) -> np.ndarray | None:
  """Numbers of the right choices, int32 [n]; None if one is not known."""
  labels = [example.label for example in examples]
  return None if None in labels else np.array(labels, np.int32)


def read_json_lines(path: Any, what: str) -> list[tuple[str, dict[str, Any]]]:
  """Objects of a file of JSON lines, each with file and line for errors.

  Args:
    path: File, local or a URL.
    what: Name of the data set.

  Returns:
    ('file, line n', object) of each line that is not blank.

  Raises:
    FileNotFoundError: If the file is not there.
    CorruptFileError: If a line is no JSON object.
  """
  path = files.as_path(path)
  if not path.exists():
    raise FileNotFoundError(f'{what}: there is no file {path}.')
  rows = []
  for number, line in enumerate(files.read_bytes(path).split(b'\n'), 1):
    if not line.strip():
      continue
    where = f'{path}, line {number}'
    try:
      row = json.loads(line.decode('utf-8-sig'))
    except ValueError as error:
      raise files.CorruptFileError(f'{where}: no JSON ({error}).') from error
    if not isinstance(row, dict):
      raise files.CorruptFileError(f'{where}: expected a JSON object.')
    rows.append((where, row))
  if not rows:
    raise files.CorruptFileError(f'{path}: no line.')
  return rows


def _read_race(path, index):
  try:
    content = json.loads(files.read_bytes(path).decode('utf-8'))
    context = _BLANKS.sub(' ', content['article'])
    columns = content['questions'], content['options'], content['answers']
    rows = list(zip(*columns, strict=True))
  except (ValueError, KeyError, TypeError) as error:
    raise files.CorruptFileError(
      f'{path}: {error}; expected a JSON object with article and, of the same'
      ' length, questions, options and answers.'
    ) from error
  examples = []
  for number, (question, options, answer) in enumerate(rows):
    if answer not in 'ABCD'[: len(options)]:
      raise files.CorruptFileError(
        f'{path}: answer {number} is {answer!r}; there are {len(options)}'
        ' options.'
      )
    joined = (
      question.replace('_', option)
      if '_' in question
      else f'{question} {option}'
      for option in options
    )
    choices = tuple(_BLANKS.sub(' ', text) for text in joined)
    label = ord(answer) - ord('A')
    examples.append(ChoiceExample(f'{index}-{number}', context, choices, label))
  return examples
