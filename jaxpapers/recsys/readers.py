"""Reads interactions from the formats of papers and from plain files."""

import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxpapers.recsys import optional
from jaxpapers.recsys.data import (
  Interactions,
  Repairs,
  check_interactions,
  index_ids,
)

FORMATS = (
  'csv',
  'tsv',
  'movielens',
  'ncf',
  'adjacency',
  'ctr',
  'inter',
  'netflix',
  'parquet',
)


class Loaded(NamedTuple):
  """A file of interactions, read.

  Attributes:
    interactions: The interactions, with users and items as numbers from 0.
    users: Name of each user.
    items: Name of each item.
    repairs: What had to be repaired.
  """

  interactions: Interactions
  users: np.ndarray
  items: np.ndarray
  repairs: Repairs


def read_interactions(
  path: Any,
  file_format: str = 'auto',
  *,
  threshold: float | None = None,
  duplicates: str = 'last',
  allow_negative: bool = False,
  features: bool = False,
) -> Loaded:
  """Reads a file of interactions, or of items and their features.

  Formats: 'csv' and 'tsv' (user, item and optionally rating and time; names of
  columns in the first line are optional), 'movielens' (`user::item::...`),
  'ncf' (tab-separated user, item, rating, time), 'adjacency' (`user item item
  ...` in a line), 'ctr' (`count item item ...`, a line for each user), 'inter'
  (RecBole's, typed names of columns), 'netflix' (`item:`, then lines of
  `user,rating,date`) and 'parquet'.

  Args:
    path: The file.
    file_format: One of `FORMATS`; 'auto' guesses by the ending and first line.
    threshold: Keep ratings of at least this, as 1; None keeps values.
    duplicates: See `interactions`.
    allow_negative: See `interactions`.
    features: The file has items where others have users, and their features
      (genres, tags, ...) where others have items.

  Returns:
    Interactions, names, and counts of repairs. Ids of 'ncf', 'adjacency' and
    'ctr' files are numbers from 0 already, and stay.

  Raises:
    ValueError: The format is unknown, or a line does not fit it.
    OSError: The file cannot be read.
  """
  path = pathlib.Path(path)
  if file_format == 'auto':
    file_format = guess_format(path)
  if file_format not in _READERS:
    raise ValueError(
      f'file_format is {file_format!r}; expected auto or one of'
      f' {", ".join(FORMATS)}.'
    )
  found = _READERS[file_format](path)
  if len(found) == 2:  # Names of columns, and columns.
    found = _choose(path, *found, _FEATURES if features else _INTERACTIONS)
  user, item, value, time = found
  if not len(user):
    raise ValueError(f'{path} holds no interactions.')
  if threshold is not None and value is not None:
    keep = value >= threshold
    if not keep.any():
      raise ValueError(
        f'no interaction of {path} has a value of {threshold} or more.'
      )
    user, item = user[keep], item[keep]
    time = None if time is None else time[keep]
    value = None
  if file_format in ('ncf', 'adjacency', 'ctr'):
    for name, column in (('user', user), ('item', item)):
      if not np.issubdtype(column.dtype, np.integer):
        raise ValueError(
          f'{path} has {name}s such as {str(column[0])!r}; {file_format} files'
          " have numbers from 0. Take file_format='tsv' for names."
        )
    users = np.arange(user.max() + 1)
    items = np.arange(item.max() + 1)
  else:
    user, users = index_ids(user)
    item, items = index_ids(item)
  result, repairs = check_interactions(
    user,
    item,
    value,
    shape=(len(users), len(items)),
    time=time,
    duplicates=duplicates,
    allow_negative=allow_negative,
  )
  return Loaded(result, users, items, repairs)


def guess_format(path: pathlib.Path) -> str:
  """The format of a file, by its ending and first line."""
  ending = path.suffix.lower()
  if ending in ('.parquet', '.inter'):
    return ending[1:]
  if ending == '.rating':
    return 'ncf'
  with path.open(encoding='utf-8-sig', errors='replace') as file:
    line = file.readline()
  if '::' in line:
    return 'movielens'
  if re.fullmatch(r'\d+:\s*', line):
    return 'netflix'
  if '\t' in line:
    return 'tsv'
  if ',' in line:
    return 'csv'
  if re.fullmatch(r'\d+( \d+)*\s*', line):
    return 'adjacency'
  raise ValueError(
    f'the format of {path} is not clear from its first line. Name one of'
    f' {", ".join(FORMATS)}.'
  )


def _lines(path):
  with path.open(encoding='utf-8-sig', errors='replace') as file:
    for number, line in enumerate(file, 1):
      line = line.strip('\r\n')
      if line.strip():
        yield number, line


def _table(path: pathlib.Path, separator: str):
  """Columns of a text file, by name where it has names."""
  rows, names = [], None
  for number, line in _lines(path):
    fields = [field.strip().strip('"') for field in line.split(separator)]
    if number == 1 and _is_header(fields):
      names = [field.split(':')[0].lower() for field in fields]
      continue
    if len(fields) < 2:
      raise ValueError(
        f'{path}, line {number}: expected user{separator!r}item, found'
        f' {line[:60]!r}.'
      )
    if rows and len(fields) != len(rows[0]):
      raise ValueError(
        f'{path}, line {number}: {len(fields)} columns, {len(rows[0])} before.'
      )
    rows.append(fields)
  columns = (
    list(map(np.array, zip(*rows, strict=True))) if rows else [np.zeros(0)] * 2
  )
  return names, columns


def _is_header(fields):
  known = re.compile(
    r'(user|uid|item|sid|movie|song|artist|track|product|rating)[\w:]*', re.I
  )
  return (
    len(fields) > 1
    and bool(known.match(fields[0]))
    and not any(_number(field) for field in fields[1:])
  )


def _number(text):
  try:
    float(text)
  except ValueError:
    return False
  return True


_ITEMS = ('item', 'sid', 'movie', 'song', 'artist', 'track', 'product')
_MORE = {
  'value': ('rating', 'value', 'count', 'weight', 'score'),
  'time': ('time', 'date'),
}
# What the columns of a file may be called.
_INTERACTIONS = {'user': ('user', 'uid'), 'item': _ITEMS, **_MORE}
_FEATURES = {
  'user': ('user', 'uid', *_ITEMS),
  'item': ('feature', 'genre', 'tag', 'categor', 'attribute', *_ITEMS),
  **_MORE,
}


def _choose(path, names, columns, words_of):
  """User, item, value and time among columns."""
  found: dict[str, Any] = {}
  if names is None:
    names = ['user', 'item', 'rating', 'time'][: len(columns)]
  for name, column in zip(names, columns, strict=False):
    for kind, words in words_of.items():
      if kind not in found and any(name.startswith(word) for word in words):
        found[kind] = column
        break
  for kind in ('user', 'item'):
    if kind not in found:
      raise ValueError(
        f'{path} has columns {names}; none is named like'
        f' {", ".join(words_of[kind])}.'
      )
  for kind, dtype in (('value', np.float32), ('time', np.float64)):
    if kind in found:
      try:
        found[kind] = np.asarray(found[kind]).astype(dtype)
      except ValueError as error:
        if kind == 'time':
          found.pop(kind)  # A date in words.
          continue
        raise ValueError(f'{path}: ratings are no numbers: {error}.') from None
  time = found.get('time')
  return (
    _as_numbers(found['user']),
    _as_numbers(found['item']),
    found.get('value'),
    None if time is None else time.astype(np.int64),
  )


def _as_numbers(column):
  """Whole numbers as such, so that names sort as numbers; else text."""
  column = np.asarray(column)
  if column.dtype.kind == 'f':
    bad = int((~np.isfinite(column) | (column != np.floor(column))).sum())
    if bad:
      raise ValueError(
        f'a column of users or items has {bad} entries that are missing or no'
        ' whole numbers. Drop these lines, or write ids as text.'
      )
  try:
    numbers = column.astype(np.int64)
  except (ValueError, OverflowError):
    return column.astype(str)
  # '007' and '7' are two names.
  if column.dtype.kind == 'U' and (numbers.astype(str) != column).any():
    return column
  return numbers


def _read_adjacency(path):
  users, items = [], []
  for number, line in _lines(path):
    fields = _whole(path, number, line)
    users.append(np.full(len(fields) - 1, fields[0]))
    items.append(fields[1:])
  return _joined(users), _joined(items), None, None


def _read_ctr(path):
  users, items = [], []
  for number, line in _lines(path):
    row = number - 1  # Also after an empty line.
    fields = _whole(path, number, line)
    if fields[0] != len(fields) - 1:
      raise ValueError(
        f'{path}, line {number}: says {fields[0]} items, has {len(fields) - 1}.'
      )
    users.append(np.full(len(fields) - 1, row))
    items.append(fields[1:])
  return _joined(users), _joined(items), None, None


def _joined(parts):
  return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _whole(path, number, line):
  try:
    return np.array(line.split(), np.int64)
  except ValueError:
    raise ValueError(
      f'{path}, line {number}: expected whole numbers, found {line[:60]!r}.'
    ) from None


def _read_netflix(path):
  users, items, values = [], [], []
  item = None
  for number, line in _lines(path):
    if line.endswith(':'):
      item = line[:-1]
      continue
    fields = line.split(',')
    if item is None or len(fields) < 2:
      raise ValueError(
        f'{path}, line {number}: expected `item:` before `user,rating,date`.'
      )
    users.append(fields[0])
    items.append(item)
    values.append(fields[1])
  return (
    _as_numbers(users),
    _as_numbers(items),
    np.array(values, np.float32),
    None,
  )


def _read_parquet(path):
  table = optional.load('pyarrow.parquet').read_table(path)
  names = [name.lower() for name in table.column_names]
  columns = [table.column(i).to_numpy() for i in range(len(names))]
  known = any(name.startswith(('user', 'uid')) for name in names)
  return names if known else None, columns


_READERS: dict[str, Callable] = {
  'csv': lambda path: _table(path, ','),
  'tsv': lambda path: _table(path, '\t'),
  'inter': lambda path: _table(path, '\t'),
  'ncf': lambda path: _table(path, '\t'),
  'movielens': lambda path: _table(path, '::'),
  'adjacency': _read_adjacency,
  'ctr': _read_ctr,
  'netflix': _read_netflix,
  'parquet': _read_parquet,
}


def read_ncf_negatives(path: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Reads NCF's `.test.negative`: `(user,item)`, then ids, tab-separated.

  Args:
    path: The file.

  Returns:
    Users `[u]`, their test items `[u]`, negatives `[u, c]`, sorted by user.

  Raises:
    ValueError: A line does not fit.
  """
  path = pathlib.Path(path)
  users, items, negatives = [], [], []
  for number, line in _lines(path):
    fields = line.rstrip().split('\t')
    pair = re.fullmatch(r'\((\d+),\s*(\d+)\)', fields[0])
    if not pair or (negatives and len(fields) - 1 != len(negatives[0])):
      raise ValueError(
        f'{path}, line {number}: expected `(user,item)` and as many negatives'
        f' as before, found {line[:60]!r}.'
      )
    users.append(int(pair.group(1)))
    items.append(int(pair.group(2)))
    negatives.append(_whole(path, number, ' '.join(fields[1:])))
  order = np.argsort(users, kind='stable')
  return (
    np.array(users)[order],
    np.array(items)[order],
    np.array(negatives)[order],
  )


def load_parts(path: Any, parts: tuple[str, ...]) -> dict[str, Interactions]:
  """Interactions out of an .npz of columns `<part>_user`, `<part>_item`.

  Args:
    path: The file; it also holds `shape`. `<part>_rating` is used if there.
    parts: Names; '' for columns `user` and `item`.

  Returns:
    Name -> interactions.

  Raises:
    ValueError: A column is missing.
  """
  with np.load(path, allow_pickle=False) as file:
    result = {}
    for part in parts:
      prefix = f'{part}_' if part else ''
      missing = [
        name
        for name in (f'{prefix}user', f'{prefix}item', 'shape')
        if name not in file.files
      ]
      if missing:
        raise ValueError(f'{path} has no column {missing[0]!r}.')
      rating = f'{prefix}rating'
      result[part] = check_interactions(
        file[f'{prefix}user'],
        file[f'{prefix}item'],
        file[rating] if rating in file.files else None,
        shape=tuple(file['shape']),
      )[0]
  return result
