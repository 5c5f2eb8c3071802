"""What the recommendation programs share: data by flags, whole files."""

import ast
import os
import pathlib
import zlib
from typing import Any

import _command_line
import numpy as np
from absl import flags

from jaxpapers import recsys
from jaxpapers.recsys import evaluation, methods, readers, splits, studies

FLAGS = flags.FLAGS


def define_data_flags() -> None:
  """Defines the flags that say which data to use."""
  flags.DEFINE_string(
    'study', None, 'Data and protocol of the paper, such as cmn_citeulike_a.'
  )
  flags.DEFINE_string(
    'data_dir',
    None,
    "Folder of the studies' files; by default recsys/ in $JAXPAPERS_DATA.",
  )
  flags.DEFINE_string(
    'interactions', None, 'A file of interactions, to be split.'
  )
  flags.DEFINE_string('train', None, 'A file of training interactions.')
  flags.DEFINE_string('test', None, 'A file of test interactions.')
  flags.DEFINE_string(
    'negatives', None, "Negatives of the test users, in NCF's format."
  )
  flags.DEFINE_enum(
    'file_format', 'auto', ('auto', *readers.FORMATS), 'Format of the files.'
  )
  flags.DEFINE_float('threshold', None, 'Keep ratings of at least this, as 1.')
  define_features_flag()
  flags.DEFINE_enum(
    'split',
    'user_fraction',
    ['user_fraction', 'holdout', 'leave_one_out', 'last'],
    'How --interactions are split; last leaves out the latest of each user.',
  )
  flags.DEFINE_float(
    'train_share', 0.8, 'Of user_fraction and holdout.', 0.0, 1.0
  )
  flags.DEFINE_integer(
    'sampled_negatives',
    0,
    'Rank test items among so many random items; 0 ranks all items.',
    lower_bound=0,
  )
  flags.DEFINE_integer('seed', 0, 'Of splits and of random methods.')


def define_features_flag() -> None:
  """Defines --features."""
  flags.DEFINE_string(
    'features',
    None,
    'A file of items and features, in the format of interactions, for content'
    ' and hybrid methods: item,genre or the like. Items are named as in the'
    ' interactions.',
  )


def usage(error: Exception) -> _command_line.UsageError:
  """An error of the library as one of the flags."""
  return _command_line.UsageError(_command_line.one_line(error))


def study_folder() -> pathlib.Path:
  """Where the studies' files are."""
  if FLAGS.data_dir:
    return pathlib.Path(FLAGS.data_dir).expanduser()
  root = os.environ.get('JAXPAPERS_DATA')
  if not root:
    raise _command_line.UsageError(
      'a study needs --data_dir or $JAXPAPERS_DATA: the folder of its files'
    )
  return pathlib.Path(root).expanduser() / 'recsys'


def load_study(name: str) -> tuple[studies.Study, studies.Data]:
  """A study and its data.

  Raises:
    UsageError: There is none of this name, or its file is missing.
  """
  try:
    study = studies.find(name)
    path = study_folder() / study.file
    if not path.is_file():
      raise _command_line.UsageError(
        f'--study={name} needs {path}, which is not there'
      )
    return study, study.load(path)
  except (OSError, ValueError) as error:
    raise usage(error) from error


class Problem:
  """Training and test data, and names for what is in them.

  Attributes:
    data: The data.
    study: The study, if one was named.
    users: Name of each user.
    items: Name of each item.
    repairs: File -> what was repaired.
  """

  def __init__(self, data, study=None, users=None, items=None, repairs=None):
    self.data, self.study = data, study
    shape = data.train.shape
    self.users = np.arange(shape[0]) if users is None else users
    self.items = np.arange(shape[1]) if items is None else items
    self.repairs = repairs or {}

  def options(self) -> dict[str, Any]:
    """What `evaluate_model` needs to know of these data."""
    return {'negatives': self.data.negatives, 'profiles': self.data.profiles}


def load_problem() -> Problem:
  """Reads the data that the flags name.

  Raises:
    UsageError: The flags contradict each other, or a file is wrong.
  """
  given = [
    name
    for name in ('study', 'interactions', 'train')
    if getattr(FLAGS, name) is not None
  ]
  if len(given) != 1:
    raise _command_line.UsageError(
      'give one of --study, --interactions and --train (with --test); found'
      f' {", ".join("--" + name for name in given) or "none"}'
    )
  _check_flags(given[0])
  if FLAGS.study:
    study, data = load_study(FLAGS.study)
    return Problem(data, study)
  try:
    return _from_files()
  except (OSError, ValueError) as error:
    raise usage(error) from error


def _check_flags(source: str) -> None:
  """Refuses flags that would be ignored."""
  allowed = {
    'study': (),
    'interactions': ('sampled_negatives', 'features', 'threshold'),
    'train': (
      'test',
      'negatives',
      'sampled_negatives',
      'features',
      'threshold',
    ),
  }
  for name in allowed['train']:
    unset = FLAGS[name].default
    if getattr(FLAGS, name) != unset and name not in allowed[source]:
      raise _command_line.UsageError(f'--{name} does not go with --{source}')
  if FLAGS.negatives and FLAGS.sampled_negatives:
    raise _command_line.UsageError(
      'give --negatives or --sampled_negatives, not both'
    )


def _from_files() -> Problem:
  if FLAGS.train:
    if not FLAGS.test:
      raise _command_line.UsageError('--train needs --test')
    names = ('train', 'test')
  else:
    names = ('interactions',)
  loaded = [
    readers.read_interactions(
      getattr(FLAGS, name), FLAGS.file_format, threshold=FLAGS.threshold
    )
    for name in names
  ]
  repairs = {
    getattr(FLAGS, name): part.repairs
    for name, part in zip(names, loaded, strict=True)
  }
  parts, users, items = _same_names(loaded)
  negatives = None
  if FLAGS.train:
    train, test = parts
    if FLAGS.negatives:
      negatives = _negatives(FLAGS.negatives, users, items)
  else:
    train, test = _split(parts[0])
  if FLAGS.sampled_negatives:
    some = np.flatnonzero(test.user_counts())
    full = recsys.union(train.binary(), test.binary())
    # As interactions, so that validation users can be judged by them too.
    negatives = evaluation.candidates_of(
      splits.sample_negatives(FLAGS.seed, full, some, FLAGS.sampled_negatives),
      test,
    )
  try:
    search, validation = splits.split_user_fraction(FLAGS.seed + 1, train)
  except ValueError:  # Too small: there is nothing to tune on.
    search, validation = train, train.select(np.zeros(len(train), bool))
  features = load_features(items) if FLAGS.features else None
  data = studies.Data(
    train,
    test,
    search,
    validation,
    negatives=negatives,
    features=features,
  )
  return Problem(data, None, users, items, repairs)


def _split(x):
  kind = FLAGS.split
  if kind == 'user_fraction':
    return splits.split_user_fraction(FLAGS.seed, x, FLAGS.train_share)
  if kind == 'holdout':
    return splits.split_holdout(FLAGS.seed, x, FLAGS.train_share)
  by = 'time' if kind == 'last' else 'random'
  return splits.split_leave_one_out(FLAGS.seed, x, by)


def _same_names(loaded):
  """The same numbers for the same names in all files."""
  users = np.unique(np.concatenate([part.users for part in loaded]))
  items = np.unique(np.concatenate([part.items for part in loaded]))
  parts = [
    recsys.interactions(
      np.searchsorted(users, part.users)[part.interactions.user],
      np.searchsorted(items, part.items)[part.interactions.item],
      part.interactions.value,
      shape=(len(users), len(items)),
      time=part.interactions.time,
      allow_negative=True,
    )
    for part in loaded
  ]
  return parts, users, items


def _negatives(path, users, items):
  """Negatives by the names that the interactions have."""
  whose, _, ids = readers.read_ncf_negatives(path)
  return recsys.interactions(
    _places(path, 'user', users, np.repeat(whose, ids.shape[1])),
    _places(path, 'item', items, ids.ravel()),
    shape=(len(users), len(items)),
  )


def _places(path, kind, names, given):
  if not np.issubdtype(names.dtype, np.integer):
    raise ValueError(
      f'{path} has numbers; the {kind}s of the interactions have names such as'
      f' {str(names[0])!r}.'
    )
  place = np.minimum(np.searchsorted(names, given), len(names) - 1)
  unknown = np.unique(given[names[place] != given])
  if len(unknown):
    raise ValueError(
      f'{path} has {len(unknown)} {kind}s that no interaction has, the first'
      f' {unknown[0]}. With --file_format=ncf ids are numbers of a catalogue'
      ' up to the largest.'
    )
  return place


def load_features(items: np.ndarray) -> Any:
  """What --features names, of the items of the interactions.

  Args:
    items: Names of the items, sorted.

  Returns:
    scipy sparse, `[items, features]`; items that the file lacks have none.

  Raises:
    ValueError: The file has none of the items.
  """
  loaded = readers.read_interactions(
    FLAGS.features, FLAGS.file_format, features=True
  )
  row = np.searchsorted(items, loaded.users)
  row = np.minimum(row, len(items) - 1)
  known = items[row] == loaded.users
  if not known.any():
    raise ValueError(f'{FLAGS.features} has no item of the interactions.')
  x = loaded.interactions
  keep = known[x.user]
  return recsys.interactions(
    row[x.user[keep]],
    x.item[keep],
    x.value[keep],
    shape=(len(items), x.num_items),
  ).csr


def fingerprint(data: studies.Data) -> str:
  """Eight letters that other data to search on do not have."""
  value = 0
  for part in (data.search_train, data.validation, data.negatives):
    if isinstance(part, recsys.Interactions):
      for column in (np.array(part.shape), part.keys(), part.value):
        value = zlib.crc32(np.ascontiguousarray(column).tobytes(), value)
  if data.features is not None:
    value = zlib.crc32(np.ascontiguousarray(data.features.sum(0)), value)
  return f'{value:08x}'


def parse_parameters(method: str, texts: list[str]) -> dict[str, Any]:
  """Parameters given as name=value.

  Raises:
    UsageError: There is no such method, a text is no name=value, or the value
      is no number or flag where there has to be one.
  """
  try:
    found = methods.find(method)
  except ValueError as error:
    raise usage(error) from error
  result = {}
  for text in texts:
    name, equals, value = text.partition('=')
    if not equals or not name:
      raise _command_line.UsageError(
        f'--set={text}: expected name=value, such as top_k=100'
      )
    try:
      result[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      result[name] = value
    expected = _expected(found.space.get(name)) or _like(found.fixed.get(name))
    if name == 'top_k' and result[name] is None:
      continue  # All neighbours.
    if expected and not isinstance(result[name], expected):
      raise _command_line.UsageError(
        f'--set={text}: expected {expected[0].__name__}'
      )
  return result


def _expected(values):
  """Types of a parameter, of what a search would draw."""
  if values is None:
    return ()
  if values.kind != 'choice':
    return (int,) if values.kind == 'int' else (float, int)
  first = type(values.values[0])
  return (first,) if first in (bool, int) else ()


def _like(value):
  """Types of a parameter that is not searched, of its usual value."""
  if isinstance(value, float):
    return (float, int)
  return (type(value),) if isinstance(value, (bool, int)) else ()


def print_repairs(problem: Problem) -> None:
  """Says what was repaired in files, if anything."""
  for path, repairs in problem.repairs.items():
    counts = [
      f'{count} {text}'
      for count, text in (
        (repairs.duplicates, 'repeated pairs, of which the last was kept'),
        (repairs.zeros, 'interactions of value 0, dropped'),
        (repairs.users_without, 'users without interactions'),
        (repairs.items_without, 'items without interactions'),
      )
      if count
    ]
    if counts:
      print(f'{path}: {"; ".join(counts)}.')
