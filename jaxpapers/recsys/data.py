"""Who interacted with what: the one data type of this room."""

import dataclasses
import functools
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interactions:
  """Interactions of users with items, sparse and on the host.

  Pairs are unique and sorted by user, then item; `interactions` makes one from
  raw data and counts what it had to repair.

  Attributes:
    user: User of each interaction, int32 `[n]`.
    item: Item of each interaction, int32 `[n]`.
    value: Rating or weight of each, float32 `[n]`, none zero.
    shape: Number of users, number of items.
    time: When each happened, int64 `[n]`, or None.
  """

  user: np.ndarray
  item: np.ndarray
  value: np.ndarray
  shape: tuple[int, int]
  time: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.user)

  @property
  def num_users(self) -> int:
    """Number of users, with and without interactions."""
    return self.shape[0]

  @property
  def num_items(self) -> int:
    """Number of items of the catalogue."""
    return self.shape[1]

  @functools.cached_property
  def csr(self) -> Any:
    """The user-item matrix, `scipy.sparse.csr_array` of float32."""
    from jaxpapers.recsys import optional

    return optional.sparse().csr_array(
      (self.value, self.item, self.row_starts), shape=self.shape
    )

  def to_csr(self) -> Any:
    """The same as `csr`: the user-item matrix."""
    return self.csr

  @functools.cached_property
  def row_starts(self) -> np.ndarray:
    """Where each user's interactions begin, int32 `[num_users + 1]`."""
    counts = np.bincount(self.user, minlength=self.shape[0])
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

  def items_of(self, user: int) -> np.ndarray:
    """Items of one user, ascending."""
    return self.item[self.row_starts[user] : self.row_starts[user + 1]]

  def pairs_of(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All interactions of some users, as places of a matrix of them.

    Args:
      users: Whose, int `[b]`.

    Returns:
      Row, from 0 to b - 1, and item of each, int32 `[n]`.
    """
    users = np.asarray(users, int)
    lengths = np.diff(self.row_starts)[users]
    rows = np.repeat(np.arange(len(users), dtype=np.int32), lengths)
    ends = np.cumsum(lengths)
    at = np.arange(len(rows)) + np.repeat(
      self.row_starts[users] - (ends - lengths), lengths
    )
    return rows, self.item[at]

  def user_counts(self) -> np.ndarray:
    """Interactions of each user, int64 `[num_users]`."""
    return np.diff(self.row_starts).astype(np.int64)

  def item_counts(self) -> np.ndarray:
    """Interactions of each item, its popularity, int64 `[num_items]`."""
    return np.bincount(self.item, minlength=self.shape[1])

  def to_dense(self, users: np.ndarray | None = None) -> np.ndarray:
    """Rows of the matrix as float32 `[users, num_items]`.

    Args:
      users: Which rows; None for all.
    """
    rows = self.csr if users is None else self.csr[np.asarray(users)]
    return rows.toarray()

  def to_padded(
    self, users: np.ndarray | None = None, max_len: int | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Profiles as equally long rows, the form that devices like.

    Args:
      users: Whose; None for all.
      max_len: Length; None for the longest profile. Longer ones are refused.

    Returns:
      Items, int32 `[users, max_len]`, padded with `num_items`; and values,
      float32, padded with 0.

    Raises:
      ValueError: A profile is longer than `max_len`.
    """
    users = np.arange(self.shape[0]) if users is None else np.asarray(users)
    starts, lengths = self.row_starts[users], self.user_counts()[users]
    longest = int(lengths.max(initial=0))
    width = max(longest, 1) if max_len is None else max_len
    if longest > width:
      raise ValueError(
        f'max_len is {max_len}, but a user has {longest} interactions.'
      )
    offsets = np.arange(width)
    valid = offsets < lengths[:, None]
    at = np.where(valid, starts[:, None] + offsets, 0)
    if not len(self):
      at = np.zeros_like(at)
      empty = np.full(valid.shape, self.shape[1], np.int32)
      return empty, np.zeros(valid.shape, np.float32)
    items = np.where(valid, self.item[at], self.shape[1]).astype(np.int32)
    return items, np.where(valid, self.value[at], 0).astype(np.float32)

  def transpose(self) -> 'Interactions':
    """Items as users and users as items."""
    order = self.by_item
    return Interactions(
      self.item[order],
      self.user[order],
      self.value[order],
      (self.shape[1], self.shape[0]),
      None if self.time is None else self.time[order],
    )

  @functools.cached_property
  def by_item(self) -> np.ndarray:
    """The order by item, then user: int `[n]`."""
    from jaxpapers.recsys import optional

    # Both are sorted by user: counting is enough.
    places = optional.sparse().csr_array(
      (np.arange(len(self)), self.item, self.row_starts), shape=self.shape
    )
    return places.tocsc().data

  def select(self, keep: np.ndarray) -> 'Interactions':
    """Those interactions where `keep`, bool `[n]`, is true."""
    return Interactions(
      self.user[keep],
      self.item[keep],
      self.value[keep],
      self.shape,
      None if self.time is None else self.time[keep],
    )

  def binary(self) -> 'Interactions':
    """The same pairs, each of value 1."""
    return dataclasses.replace(self, value=np.ones(len(self), np.float32))

  def at_least(self, threshold: float) -> 'Interactions':
    """Implicit feedback: pairs of value `threshold` or more, as 1."""
    return self.select(self.value >= threshold).binary()

  def keys(self) -> np.ndarray:
    """One number for each pair, ascending: user * num_items + item."""
    return self.user.astype(np.int64) * self.shape[1] + self.item


@dataclasses.dataclass(frozen=True)
class Repairs:
  """What `interactions` found and did.

  Attributes:
    duplicates: Pairs that came again and were merged.
    zeros: Interactions of value 0 that were dropped.
    negative: Interactions of negative value (kept, or the input was refused).
    users_without: Users without any interaction.
    items_without: Items without any interaction.
  """

  duplicates: int
  zeros: int
  negative: int
  users_without: int
  items_without: int


def interactions(
  user: Any,
  item: Any,
  value: Any = None,
  *,
  shape: tuple[int, int] | None = None,
  time: Any = None,
  duplicates: str = 'last',
  allow_negative: bool = False,
) -> Interactions:
  """Makes `Interactions` out of raw columns; see `check_interactions`.

  Args:
    user: Users, whole numbers from 0, `[n]`.
    item: Items, whole numbers from 0, `[n]`.
    value: Ratings or weights, `[n]`; None for 1.
    shape: Number of users and items; None for the largest id of each, plus 1.
    time: Time stamps, `[n]`; optional.
    duplicates: Of a pair that comes several times keep the 'last', the 'max',
      their 'sum', or 'refuse' it.
    allow_negative: Keep negative values instead of refusing them.

  Returns:
    The interactions, sorted, each pair once, without zeros.

  Raises:
    ValueError: A column is no list of whole numbers, has another length, holds
      NaN, leaves `shape`, or has what `duplicates` or `allow_negative` refuse.

  Example:
    >>> x = interactions([0, 0, 2], [1, 1, 0], [3, 5, 4])
    >>> x.shape, x.value.tolist()
    ((3, 2), [5.0, 4.0])
  """
  return check_interactions(
    user,
    item,
    value,
    shape=shape,
    time=time,
    duplicates=duplicates,
    allow_negative=allow_negative,
  )[0]


def check_interactions(
  user: Any,
  item: Any,
  value: Any = None,
  *,
  shape: tuple[int, int] | None = None,
  time: Any = None,
  duplicates: str = 'last',
  allow_negative: bool = False,
) -> tuple[Interactions, Repairs]:
  """`interactions`, and a count of all that was repaired."""
  if duplicates not in ('last', 'max', 'sum', 'refuse'):
    raise ValueError(
      f"duplicates is {duplicates!r}; expected 'last', 'max', 'sum' or"
      " 'refuse'."
    )
  user, item = _ids(user, 'user'), _ids(item, 'item')
  n = len(user)
  value = np.ones(n, np.float32) if value is None else np.asarray(value)
  columns = {'item': item, 'value': value}
  if time is not None:
    time = np.asarray(time).astype(np.int64)
    columns['time'] = time
  for name, column in columns.items():
    if column.shape != (n,):
      raise ValueError(
        f'{name} has shape {column.shape}; user has {n} entries. Give columns'
        ' of the same length.'
      )
  value = value.astype(np.float32)
  if not np.isfinite(value).all():
    raise ValueError(
      f'value holds {int((~np.isfinite(value)).sum())} entries that are NaN or'
      ' infinite. Drop these interactions first.'
    )
  negative = int((value < 0).sum())
  if negative and not allow_negative:
    raise ValueError(
      f'value has {negative} negative entries. Shift or drop them, or set'
      ' allow_negative=True if the method can take them.'
    )
  if shape is None:
    shape = (int(user.max(initial=-1)) + 1, int(item.max(initial=-1)) + 1)
  shape = (int(shape[0]), int(shape[1]))
  for name, column, size in (
    ('user', user, shape[0]),
    ('item', item, shape[1]),
  ):
    if n and column.max() >= size:
      raise ValueError(
        f'{name} has id {column.max()}, but shape allows 0..{size - 1}.'
      )
  order = np.lexsort((np.arange(n), item, user))
  user, item, value = user[order], item[order], value[order]
  time = None if time is None else time[order]
  new = np.ones(n, bool)
  new[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
  repeated = n - int(new.sum())
  if repeated:
    if duplicates == 'refuse':
      raise ValueError(
        f'{repeated} pairs of user and item come more than once. Choose what'
        " to keep with duplicates='last', 'max' or 'sum'."
      )
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], n) - 1
    if duplicates == 'last':
      value = value[ends]
    elif duplicates == 'max':
      value = np.maximum.reduceat(value, starts)
    else:
      value = np.add.reduceat(value, starts)
    user, item = user[starts], item[starts]
    time = None if time is None else time[ends]
  keep = value != 0
  zeros = int((~keep).sum())
  result = Interactions(
    user[keep].astype(np.int32),
    item[keep].astype(np.int32),
    value[keep],
    shape,
    None if time is None else time[keep],
  )
  repairs = Repairs(
    duplicates=repeated,
    zeros=zeros,
    negative=negative,
    users_without=int((result.user_counts() == 0).sum()),
    items_without=int((result.item_counts() == 0).sum()),
  )
  return result, repairs


def from_dense(matrix: Any) -> Interactions:
  """Interactions of a dense matrix, `[users, items]`; zeros are absent."""
  matrix = np.asarray(matrix)
  if matrix.ndim != 2:
    raise ValueError(f'matrix has shape {matrix.shape}; expected two axes.')
  user, item = np.nonzero(matrix)
  return interactions(
    user, item, matrix[user, item], shape=matrix.shape, allow_negative=True
  )


def union(first: Interactions, second: Interactions) -> Interactions:
  """Both together, as for the last fit on training and validation data.

  Raises:
    ValueError: Their shapes differ.
  """
  if first.shape != second.shape:
    raise ValueError(
      f'first has shape {first.shape}, second {second.shape}; expected equal'
      ' numbers of users and items.'
    )
  times = (first.time, second.time)
  return interactions(
    np.concatenate([first.user, second.user]),
    np.concatenate([first.item, second.item]),
    np.concatenate([first.value, second.value]),
    shape=first.shape,
    time=None if any(t is None for t in times) else np.concatenate(times),
    allow_negative=True,
  )


def overlap(first: Interactions, second: Interactions) -> np.ndarray:
  """Which interactions of `second` are in `first` too, bool `[n]`."""
  from jaxpapers.recsys import optional

  result = np.zeros(len(second), bool)
  if first.shape == second.shape:
    # Both are sorted: their rows are merged, not sorted again.
    places, ones = (
      optional.sparse().csr_array((values, x.item, x.row_starts), shape=x.shape)
      for values, x in (
        (np.arange(1, len(second) + 1), second),
        (np.ones(len(first), np.int64), first),
      )
    )
    result[places.multiply(ones).data - 1] = True
    return result
  width = max(first.num_items, second.num_items)
  known, asked = (
    x.user.astype(np.int64) * width + x.item for x in (first, second)
  )
  return np.isin(asked, known, assume_unique=True)


def _ids(column: Any, name: str) -> np.ndarray:
  column = np.asarray(column)
  if column.ndim != 1:
    raise ValueError(
      f'{name} has shape {column.shape}; expected one axis, an id for each'
      ' interaction.'
    )
  if not len(column):
    return np.zeros(0, np.int64)
  if not np.issubdtype(column.dtype, np.integer):
    whole = np.issubdtype(column.dtype, np.floating)
    if not whole or not (column == np.floor(column)).all():
      raise ValueError(
        f'{name} holds {column.dtype}; expected whole numbers from 0. Map names'
        ' to numbers with index_ids.'
      )
  column = column.astype(np.int64)
  if column.min() < 0:
    raise ValueError(f'{name} has the negative id {column.min()}.')
  return column


def index_ids(column: Any) -> tuple[np.ndarray, np.ndarray]:
  """Numbers for names, in sorted order of the names.

  Args:
    column: Names or arbitrary ids, `[n]`.

  Returns:
    Numbers from 0, int64 `[n]`; and the name of each number.

  Example:
    >>> index_ids(['b', 'a', 'b'])[0].tolist()
    [1, 0, 1]
  """
  names, numbers = np.unique(np.asarray(column), return_inverse=True)
  return numbers.astype(np.int64), names
