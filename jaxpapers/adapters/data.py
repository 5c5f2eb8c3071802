"""The text classification tasks of section 3.3, from their original files."""

import csv
import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpapers.data import files


@dataclasses.dataclass(frozen=True)
class TextTask:
  """Texts and their classes.

  Attributes:
    name: Of the task.
    texts: The texts.
    labels: int32 `[number of texts]`.
    classes: Names of the classes, in the order of the labels.
  """

  name: str
  texts: tuple[str, ...]
  labels: np.ndarray
  classes: tuple[str, ...]

  def __post_init__(self):
    if len(self.texts) != len(self.labels):
      raise ValueError(
        f'{self.name} has {len(self.texts)} texts and {len(self.labels)}'
        ' labels.'
      )

  def __len__(self) -> int:
    return len(self.texts)

  def counts(self) -> dict[str, int]:
    """Number of texts of each class."""
    return {
      name: int((self.labels == i).sum()) for i, name in enumerate(self.classes)
    }

  def subset(self, rows: np.ndarray) -> 'TextTask':
    """Some of the texts."""
    return dataclasses.replace(
      self, texts=tuple(self.texts[i] for i in rows), labels=self.labels[rows]
    )


@dataclasses.dataclass(frozen=True)
class _Table:
  """How a file of CrowdFlower (Figure Eight) is read.

  Attributes:
    file: Its usual name.
    encoding: Its encoding.
    text: Column of the texts.
    label: Column of the classes.
    classes: What is written there -> class. Rows with anything else are
      dropped, as they were for the paper's numbers of texts.
  """

  file: str
  encoding: str
  text: str
  label: str
  classes: Mapping[str, str]


CROWDFLOWER = {
  'airline': _Table(
    'Tweets.csv',
    'utf-8',
    'text',
    'airline_sentiment',
    {'negative': 'negative', 'neutral': 'neutral', 'positive': 'positive'},
  ),
  'corporate_messaging': _Table(
    'Corporate-messaging-DFE.csv',
    'latin-1',
    'text',
    'category',
    {x: x for x in ('Action', 'Dialogue', 'Exclude', 'Information')},
  ),
  'disasters': _Table(
    'socialmedia-disaster-tweets-DFE.csv',
    'latin-1',
    'text',
    'choose_one',
    {'Not Relevant': 'Not Relevant', 'Relevant': 'Relevant'},
  ),
  'global_warming': _Table(
    '1377884570_tweet_global_warming.csv',
    'utf-8',
    'tweet',
    'existence',
    {'Yes': 'yes', 'Y': 'yes', 'No': 'no', 'N': 'no'},
  ),
}
TASKS = ('sms_spam', *CROWDFLOWER)
_SMS_FILE = 'SMSSpamCollection'
_SMS_CLASSES = ('ham', 'spam')


def classes_of(name: str) -> tuple[str, ...]:
  """Classes of one of the tasks, in the order of its labels.

  Args:
    name: One of `TASKS`.

  Returns:
    Their names.

  Raises:
    ValueError: If there is no such task.

  Example:
    >>> classes_of('sms_spam')
    ('ham', 'spam')
  """
  if name not in TASKS:
    raise ValueError(f'task is {name!r}; expected one of {TASKS}.')
  if name == 'sms_spam':
    return _SMS_CLASSES
  return tuple(dict.fromkeys(CROWDFLOWER[name].classes.values()))


def load_task_texts(folder: Any, name: str) -> TextTask:
  """Reads one of the tasks from a folder that holds its file.

  Args:
    folder: The folder, local or gs://.
    name: One of `TASKS`.

  Returns:
    The task.

  Raises:
    ValueError: If there is no such task.
    FileNotFoundError: If its file is not there; says which one it is.
    CorruptFileError: If the file has other columns, or none of its labels.
  """
  if name not in TASKS:
    raise ValueError(f'task is {name!r}; expected one of {TASKS}.')
  file = _SMS_FILE if name == 'sms_spam' else CROWDFLOWER[name].file
  path = files.as_path(folder) / file
  if not path.exists():
    raise FileNotFoundError(f'There is no {path}, the file of task {name!r}.')
  return (
    load_sms_spam(path) if name == 'sms_spam' else load_crowdflower(path, name)
  )


def load_sms_spam(path: Any) -> TextTask:
  """Reads the SMS Spam Collection: label, tab, message, one a line.

  One message has a line break in it: a line without a tab goes on with the one
  before.

  Args:
    path: The file.

  Returns:
    5574 messages, ham (0) or spam (1), from the complete file.

  Raises:
    CorruptFileError: If a line has another label.
  """
  text = files.read_bytes(path).decode('utf-8')
  classes = _SMS_CLASSES
  texts, labels = [], []
  for number, line in enumerate(text.split('\n'), 1):
    label, tab, message = line.rstrip('\r').partition('\t')
    if tab and label in classes:
      labels.append(classes.index(label))
      texts.append(message)
    elif tab or (line and not texts):
      raise files.CorruptFileError(
        f'{path}, line {number}: {line[:40]!r}; expected ham or spam, a tab and'
        ' the message.'
      )
    elif line:
      texts[-1] += f'\n{line}'
  if not texts:
    raise files.CorruptFileError(f'{path}: no messages in it.')
  return TextTask('sms_spam', tuple(texts), np.array(labels, np.int32), classes)


def load_crowdflower(path: Any, name: str) -> TextTask:
  """Reads a file of CrowdFlower; other columns than two are ignored.

  Args:
    path: The file.
    name: Which one it is, a key of `CROWDFLOWER`.

  Returns:
    The task; rows that the paper does not use are dropped.

  Raises:
    ValueError: If there is no such task.
    CorruptFileError: If columns are missing, or no row has a known label.
  """
  if name not in CROWDFLOWER:
    raise ValueError(f'name is {name!r}; expected one of {list(CROWDFLOWER)}.')
  table = CROWDFLOWER[name]
  content = files.read_bytes(path)
  try:
    text = content.decode(table.encoding)
  except UnicodeDecodeError as error:
    raise files.CorruptFileError(
      f'{path}: not {table.encoding}: {error}.'
    ) from error
  # newline='': texts have line breaks of their own within quotes.
  reader = csv.DictReader(io.StringIO(text.removeprefix('\ufeff'), newline=''))
  columns = tuple(reader.fieldnames or ())
  if not {table.text, table.label} <= set(columns):
    raise files.CorruptFileError(
      f'{path}: its columns are {columns[:8]}; expected {table.text!r} and'
      f' {table.label!r}.'
    )
  classes = classes_of(name)
  texts, labels = [], []
  for row in reader:
    label = table.classes.get((row[table.label] or '').strip())
    if label is not None and row[table.text] is not None:
      texts.append(row[table.text])
      labels.append(classes.index(label))
  if not texts:
    raise files.CorruptFileError(
      f'{path}: no row has one of the labels {list(table.classes)}.'
    )
  return TextTask(name, tuple(texts), np.array(labels, np.int32), classes)


def load_tsv(folder: Any, name: str) -> TextTask:
  """Reads a task of one's own: class, tab, text, one a line, no header.

  Args:
    folder: The folder, local or gs://.
    name: Of the task; its file is `<name>.tsv`, UTF-8.

  Returns:
    The task; classes are sorted by name.

  Raises:
    FileNotFoundError: If there is no such file.
    CorruptFileError: If a line has no tab, or there are fewer than two classes.
  """
  path = files.as_path(folder) / f'{name}.tsv'
  if not path.exists():
    raise FileNotFoundError(
      f'There is no {path}: task {name!r} is none of {TASKS}.'
    )
  rows = []
  text = files.read_bytes(path).decode('utf-8')
  for number, line in enumerate(text.split('\n'), 1):
    label, tab, words = line.rstrip('\r').partition('\t')
    if tab:
      rows.append((label, words))
    elif line.strip():
      raise files.CorruptFileError(
        f'{path}, line {number}: {line[:40]!r}; expected class, tab, text.'
      )
  classes = tuple(sorted({label for label, _ in rows}))
  if len(classes) < 2:
    raise files.CorruptFileError(
      f'{path}: its classes are {classes}; expected two or more.'
    )
  labels = np.array([classes.index(label) for label, _ in rows], np.int32)
  return TextTask(name, tuple(words for _, words in rows), labels, classes)


def split_80_10_10(
  number: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Random rows for training, validation and test, in the paper's sizes.

  Training has 80 %, rounded down, validation half of the rest, rounded down;
  so all 17 tasks of Table 3 come out. Which rows they were is not known.

  Args:
    number: Rows.
    seed: Of the permutation.

  Returns:
    Three arrays of indices.

  Raises:
    ValueError: If there are fewer than 10 rows.

  Example:
    >>> [len(part) for part in split_80_10_10(5574, seed=0)]
    [4459, 557, 558]
  """
  if number < 10:
    raise ValueError(f'number is {number}; expected 10 rows or more.')
  order = np.random.default_rng(seed).permutation(number)
  train = number * 8 // 10
  valid = train + (number - train) // 2
  return order[:train], order[train:valid], order[valid:]


def check_labels(labels: Any, num_classes: int) -> None:
  """Refuses labels that a head has no output for.

  Args:
    labels: Integers.
    num_classes: Outputs of the head.

  Raises:
    ValueError: Names the first one and where it is.
  """
  labels = np.asarray(labels)
  bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if bad.size:
    raise ValueError(
      f'labels[{bad[0]}] is {labels[bad[0]]}; the head has {num_classes}'
      f' outputs and expects 0 to {num_classes - 1}.'
    )
