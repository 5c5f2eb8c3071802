"""Identities and cameras of queries and gallery: who is a match of whom."""

from typing import Any, NamedTuple

import numpy as np

TIES = ('stable', 'optimistic', 'pessimistic')


def check_ties(ties: str) -> None:
  """Raises a ValueError unless this is a rule for equal distances."""
  if ties not in TIES:
    raise ValueError(f'ties is {ties!r}; expected one of {TIES}.')


class Labels(NamedTuple):
  """Who is where.

  Attributes:
    q_pids: Identities of the queries, int64 [Q].
    g_pids: Identities of the gallery, int64 [G].
    q_cams: Cameras of the queries, int64 [Q].
    g_cams: Cameras of the gallery, int64 [G].
  """

  q_pids: np.ndarray
  g_pids: np.ndarray
  q_cams: np.ndarray
  g_cams: np.ndarray


def check_labels(
  num_queries: int,
  num_gallery: int,
  q_pids: Any,
  g_pids: Any,
  q_cams: Any,
  g_cams: Any,
) -> Labels:
  """Labels as arrays.

  Args:
    num_queries: How many queries there are.
    num_gallery: How many gallery images there are.
    q_pids: Integers [Q].
    g_pids: Integers [G].
    q_cams: Integers [Q].
    g_cams: Integers [G].

  Returns:
    Them.

  Raises:
    TypeError: They are not integers.
    ValueError: Their number is another; a query is junk.
  """
  out = []
  for name, value, number in (
    ('q_pids', q_pids, num_queries),
    ('g_pids', g_pids, num_gallery),
    ('q_cams', q_cams, num_queries),
    ('g_cams', g_cams, num_gallery),
  ):
    array = np.asarray(value)
    if array.shape != (number,):
      raise ValueError(
        f'{name} has shape {list(array.shape)}; expected [{number}], one for'
        f' each {"query" if name[0] == "q" else "gallery image"}.'
      )
    if not np.issubdtype(array.dtype, np.integer):
      raise TypeError(f'{name} is of dtype {array.dtype}; expected integers.')
    out.append(array.astype(np.int64))
  labels = Labels(*out)
  if (labels.q_pids == -1).any():
    row = int(np.flatnonzero(labels.q_pids == -1)[0])
    raise ValueError(
      f'q_pids[{row}] is -1, the mark of junk; leave such images out of the'
      ' queries.'
    )
  return labels


class SameIdentity:
  """Finds the gallery images of the identity of a query.

  Attributes:
    number: int64 [Q], how many each query has.
  """

  def __init__(self, q_pids: np.ndarray, g_pids: np.ndarray):
    """Sorts the gallery by identity.

    Args:
      q_pids: [Q].
      g_pids: [G].
    """
    self._order = np.argsort(g_pids, kind='stable')
    in_order = g_pids[self._order]
    self._start = np.searchsorted(in_order, q_pids, 'left')
    self.number = np.searchsorted(in_order, q_pids, 'right') - self._start

  def index(self, queries: np.ndarray) -> np.ndarray:
    """Their gallery indices, ascending.

    Args:
      queries: int [n].

    Returns:
      int64 [n, most]; -1 where a query has fewer.
    """
    number = self.number[queries]
    column = np.arange(max(int(number.max(initial=0)), 1))
    there = column < number[:, None]
    place = np.where(there, self._start[queries][:, None] + column, 0)
    return np.where(there, self._order[place], -1)


def rounded_up(number: int) -> int:
  """The next of 4, 16, 64, ...: few array shapes, so few compiled programs."""
  return 4 ** max(1, -(-(number - 1).bit_length() // 2))
