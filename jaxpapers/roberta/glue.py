"""GLUE on disk: TSV files as the benchmark gives them out, and submissions.

Texts hold quotes that are never closed, so that quoting is off: a row is what
lies between two newlines, a column what lies between two tabs.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpapers.data import files
from jaxpapers.roberta import tasks

_LAYOUTS = ('glue', 'raw')

# Task -> split -> files in the form in which they were first published, and
# columns of text and label. Names may have something before them, as in
# cola_in_domain_dev.tsv.
_RAW = {
  'CoLA': {
    'train': (('in_domain_train.tsv',), (3,), 1),
    # GLUE's dev set is both, one after the other.
    'dev': (('in_domain_dev.tsv', 'out_of_domain_dev.tsv'), (3,), 1),
    'dev_in': (('in_domain_dev.tsv',), (3,), 1),
    'dev_out': (('out_of_domain_dev.tsv',), (3,), 1),
  },
  'SST-2': {
    'train': (('sst2_train.tsv',), (0,), 1),
    'dev': (('sst2_dev.tsv',), (0,), 1),
    'test': (('sst2_test.tsv',), (0,), 1),
  },
  'MRPC': {
    'train': (('msr_paraphrase_train.txt',), (3, 4), 0),
    'test': (('msr_paraphrase_test.txt',), (3, 4), 0),
  },
}
_RAW_HEADER = {'MRPC'}


@dataclasses.dataclass(frozen=True)
class GlueSplit:
  """The examples of one split.

  Attributes:
    task: The task.
    split: Name of the split.
    first: Texts.
    second: Second texts of pairs; None where the task has single ones.
    labels: int32 class numbers or float32 scores, [n]; None in a test set.
    index: What the submission calls each example.
    dropped: Rows that are no examples: of QQP those without all columns, of
      MNLI those without a label.
  """

  task: tasks.GlueTask
  split: str
  first: list[str]
  second: list[str] | None
  labels: np.ndarray | None
  index: list[str]
  dropped: int = 0

  def __len__(self) -> int:
    return len(self.first)


def load_glue(
  folder: str | os.PathLike,
  task: str | tasks.GlueTask,
  split: str,
  *,
  layout: str = 'glue',
) -> GlueSplit:
  """Reads a split of one of GLUE's tasks.

  Args:
    folder: The one that has a folder for each task (`MNLI/train.tsv` ...), or
      the task's own.
    task: Name, as 'MNLI' or 'sst2', or an entry of `GLUE_TASKS`.
    split: 'train', 'dev' or 'test'; of MNLI 'dev_matched', 'dev_mismatched',
      'test_matched' and 'test_mismatched'.
    layout: 'glue', or 'raw' for files that are older than GLUE: CoLA's
      `in_domain_train.tsv`, `in_domain_dev.tsv` and `out_of_domain_dev.tsv`
      (dev is both of them; also 'dev_in' and 'dev_out'), SST-2 as
      `sst2_train.tsv` and so on with rows of text, tab, label and no header,
      MRPC's `msr_paraphrase_train.txt` and `_test.txt`. The names may have
      something before them, as in `cola_in_domain_train.tsv`.

  Returns:
    The examples, texts without blanks around them, as fairseq's encoder takes
    them.

  Raises:
    FileNotFoundError: If the file is not there; says what to put where.
    CorruptFileError: If a row does not fit; says which line of which file.
    ValueError: If there is no such task, split or layout.

  Example:
    >>> split = load_glue('GLUE', 'RTE', 'dev')  # doctest: +SKIP
    >>> split.first[0], split.labels[0]  # doctest: +SKIP
  """
  if isinstance(task, str):
    task = tasks.glue_task(task)
  if layout not in _LAYOUTS:
    raise ValueError(f'layout is {layout!r}; expected one of {_LAYOUTS}.')
  find = _find_raw if layout == 'raw' else _find_glue
  paths, columns, label_column, header = find(
    files.as_path(folder), task, split
  )
  rows = [
    row
    for path in paths
    for row in _read_rows(path, task, columns, label_column, header)
  ]
  kept = [row for row in rows if row is not None]
  if not kept:
    raise files.CorruptFileError(
      f'{paths[0]}: no example; expected rows with {max(columns) + 1} columns'
      ' or more, parted by tabs.'
    )
  texts, labels, index = zip(*kept)
  if layout == 'raw' or label_column is not None:
    index = [str(i) for i in range(len(kept))]
  dtype = np.float32 if task.regression else np.int32
  return GlueSplit(
    task,
    split,
    [text[0] for text in texts],
    [text[1] for text in texts] if len(columns) > 1 else None,
    None if label_column is None else np.array(labels, dtype),
    list(index),
    dropped=len(rows) - len(kept),
  )


def write_submission(
  folder: str | os.PathLike,
  split: GlueSplit,
  predictions: Sequence[Any],
) -> Any:
  """Writes predictions as GLUE's server wants them.

  Args:
    folder: Where to put the file; made if it is not there.
    split: The test set.
    predictions: Class numbers, or scores of a regression, [n].

  Returns:
    Path of the file, such as `MNLI-m.tsv`.

  Raises:
    ValueError: If the split is not one of the server's, or the number of
      predictions is another.
  """
  task = split.task
  name = task.submission.get(split.split)
  if name is None:
    raise ValueError(
      f'split is {split.split!r}; {task.name} has submissions for'
      f' {", ".join(task.submission)}.'
    )
  if len(predictions) != len(split):
    raise ValueError(
      f'{len(predictions)} predictions for the {len(split)} examples of'
      f' {task.name} {split.split}.'
    )
  lines = ['index\tprediction']
  for index, value in zip(split.index, predictions):
    if task.regression:
      low, high = task.label_range
      value = f'{min(max(float(value), low), high):.3f}'
    else:
      value = task.labels[int(value)]
    lines.append(f'{index}\t{value}')
  return _write(files.as_path(folder), name, '\n'.join(lines) + '\n')


def _write(folder, name, text):
  folder.mkdir(parents=True, exist_ok=True)
  temporary = folder / f'{name}.partial'
  temporary.write_text(text, encoding='utf-8')
  temporary.replace(folder / name)
  return folder / name


def _at(columns: Mapping[str, Any], split: str) -> Any:
  """The entry of a split, or of all others."""
  kind = 'test' if split.startswith('test') else split
  return columns.get(kind, columns.get(''))


def _find_glue(folder, task, split):
  """Paths, columns of texts and label, and whether there is a header."""
  if split not in task.splits:
    raise ValueError(
      f'split is {split!r}; {task.name} has {", ".join(task.splits)}.'
    )
  name = task.splits[split]
  path = files.find(folder, [f'{task.name}/{name}', name])
  if path is None:
    raise files.missing(f"GLUE's {task.name}", folder, f'  {task.name}/{name}')
  label = None if split.startswith('test') else _at(task.label_column, split)
  return [path], _at(task.text_columns, split), label, split in task.header


def _find_raw(folder, task, split):
  splits = _RAW.get(task.name, {})
  if split not in splits:
    known = ', '.join(f'{t}: {", ".join(s)}' for t, s in _RAW.items())
    raise ValueError(
      f"layout 'raw' of {task.name} has no split {split!r}; there are {known}."
    )
  names, columns, label = splits[split]
  paths = []
  for name in names:
    found = sorted(folder.glob(f'*{name}')) if folder.exists() else []
    if len(found) != 1:
      if found:
        raise ValueError(
          f'{folder} has {len(found)} files that end in {name}:'
          f' {", ".join(f.name for f in found)}; expected one.'
        )
      raise files.missing(f'{task.name} in layout raw', folder, f'  *{name}')
    paths += found
  return paths, columns, label, task.name in _RAW_HEADER


def _read_rows(path, task, columns, label_column, header):
  """(texts, label, index) of each row; None for what is no example."""
  content = files.read_bytes(path)
  try:
    # MRPC begins with a byte order mark.
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b'\n') + 1
    raise files.CorruptFileError(
      f'{path}, line {line}: no UTF-8 ({error.reason}).'
    ) from error
  # Not splitlines(): U+2028, U+0085 and others are part of texts.
  lines = text.split('\n')
  if not lines[-1].strip():
    lines.pop()
  width = max(*columns, -1 if label_column is None else label_column) + 1
  needed = task.num_columns if label_column is not None else 0
  for number, line in enumerate(lines, 1):
    if number == 1 and header:
      continue
    fields = line.rstrip('\r').split('\t')
    if len(fields) < needed:
      yield None
      continue
    if len(fields) < width:
      raise files.CorruptFileError(
        f'{path}, line {number}: {len(fields)} columns; expected {width} or'
        f' more for {task.name}: {line[:60]!r}.'
      )
    label = None
    if label_column is not None:
      label = fields[label_column].strip()
      if task.unlabelled is not None and label == task.unlabelled:
        yield None
        continue
      label = _label(label, task, f'{path}, line {number}')
    yield [fields[c].strip() for c in columns], label, fields[0]


def _label(text, task, where):
  """Class number, or score, of a label."""
  if not task.regression:
    if text in task.labels:
      return task.labels.index(text)
    raise files.CorruptFileError(
      f'{where}: label {text[:40]!r}; expected one of'
      f' {", ".join(task.labels)}. Are the columns those of {task.name}?'
    )
  low, high = task.label_range
  try:
    score = float(text)
  except ValueError:
    score = float('nan')
  if not low <= score <= high:
    raise files.CorruptFileError(
      f'{where}: score {text[:40]!r}; expected a number from {low} to {high}.'
    )
  return score
