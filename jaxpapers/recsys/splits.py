"""Ways to split interactions into training, validation and test data.

Randomness comes from a whole number, which seeds numpy's PCG64, or from a key
of `jax.random.key`. The same key gives the same split everywhere.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpapers.recsys.data import Interactions


class StrongSplit(NamedTuple):
  """Held-out users whom training never sees.

  All parts have the shape of the data; each holds rows of its users only.

  Attributes:
    train: All interactions of the other users.
    val_fold_in: Known part of the validation users.
    val_target: What is to be found for them.
    test_fold_in: Known part of the test users.
    test_target: What is to be found for them.
    users: Training, validation and test users.
  """

  train: Interactions
  val_fold_in: Interactions
  val_target: Interactions
  test_fold_in: Interactions
  test_target: Interactions
  users: tuple[np.ndarray, np.ndarray, np.ndarray]


def generator(key: Any) -> np.random.Generator:
  """A numpy generator from a whole number or a JAX key."""
  if isinstance(key, (int, np.integer)):
    return np.random.Generator(np.random.PCG64(int(key)))
  data = np.asarray(jax.random.key_data(key)).ravel()
  return np.random.Generator(np.random.PCG64([int(x) for x in data]))


def split_user_fraction(
  key: Any, x: Interactions, train: float = 0.8
) -> tuple[Interactions, Interactions]:
  """The same share of every user's interactions, at random.

  Of n a user keeps round(n * train) for training; one fewer if that is all and
  there are two or more, so that each such user has something to be tested on.

  Args:
    key: Whole number or JAX key.
    x: Interactions.
    train: Share of the first part, in (0, 1).

  Returns:
    Both parts.

  Raises:
    ValueError: `train` is out of range, or a part is empty.

  Example:
    >>> from jaxpapers.recsys import interactions
    >>> x = interactions([0] * 5, list(range(5)))
    >>> [len(part) for part in split_user_fraction(0, x)]
    [4, 1]
  """
  _check_fraction(train, 'train')
  counts = x.user_counts()
  quota = np.round(counts * train).astype(np.int64)
  quota -= (quota == counts) & (counts > 1)
  first = _ranks(generator(key), x) < quota[x.user]
  return _both(x, first)


def split_holdout(
  key: Any, x: Interactions, train: float = 0.8
) -> tuple[Interactions, Interactions]:
  """A share of all interactions at random, whoever they are of."""
  _check_fraction(train, 'train')
  order = generator(key).permutation(len(x))
  first = np.zeros(len(x), bool)
  first[order[: round(len(x) * train)]] = True
  return _both(x, first)


def split_leave_one_out(
  key: Any, x: Interactions, by: str = 'random', min_interactions: int = 2
) -> tuple[Interactions, Interactions]:
  """One interaction of each user for testing.

  Args:
    key: Whole number or JAX key. With 'time' it decides between equal times.
    x: Interactions; with 'time' they have times.
    by: 'random', or 'time' for the last one.
    min_interactions: Users with fewer keep all for training.

  Returns:
    The rest, and one interaction of each user.

  Raises:
    ValueError: `by` is unknown, times are missing, or a part is empty.
  """
  if by not in ('random', 'time'):
    raise ValueError(f"by is {by!r}; expected 'random' or 'time'.")
  if by == 'time' and x.time is None:
    raise ValueError("by is 'time', but the interactions have no times.")
  ranks = _ranks(generator(key), x, x.time if by == 'time' else None)
  counts = x.user_counts()
  last = ranks == counts[x.user] - 1
  return _both(x, ~(last & (counts >= min_interactions)[x.user]))


def split_k_fold(
  key: Any, x: Interactions, folds: int = 5
) -> Iterator[tuple[Interactions, Interactions]]:
  """Training and test data, each interaction in one test part.

  A user's interactions are spread as evenly over folds as can be.

  Args:
    key: Whole number or JAX key.
    x: Interactions.
    folds: How many, 2 or more.

  Yields:
    Training and test part of each fold.
  """
  if folds < 2:
    raise ValueError(f'folds is {folds}; expected 2 or more.')
  rng = generator(key)
  start = rng.integers(folds, size=x.num_users)
  fold = (_ranks(rng, x) + start[x.user]) % folds
  for i in range(folds):
    yield _both(x, fold != i)


def split_strong_generalization(
  key: Any,
  x: Interactions,
  n_val: int,
  n_test: int,
  fold_in: float = 0.8,
  min_items: int = 5,
) -> StrongSplit:
  """Held-out users, as in Liang et al. (2018).

  Users with `min_items` or more are shuffled; the first are for validation,
  those after them for testing. Items that no training user has are dropped from
  these.

  Args:
    key: Whole number (98765 there) or JAX key.
    x: Interactions.
    n_val: Validation users.
    n_test: Test users.
    fold_in: Share of a held-out user's interactions that is known.
    min_items: Users with fewer interactions are dropped.

  Returns:
    The parts.

  Raises:
    ValueError: Too few users, or `fold_in` out of range.
  """
  _check_fraction(fold_in, 'fold_in')
  rng = generator(key)
  users = np.flatnonzero(x.user_counts() >= min_items)
  if n_val < 1 or n_test < 1 or n_val + n_test >= len(users):
    raise ValueError(
      f'n_val is {n_val} and n_test {n_test}, but only {len(users)} users have'
      f' {min_items} interactions or more; some have to be left for training.'
    )
  users = rng.permutation(users)
  parts = (
    np.sort(users[n_val + n_test :]),
    np.sort(users[:n_val]),
    np.sort(users[n_val : n_val + n_test]),
  )
  train = x.select(np.isin(x.user, parts[0]))
  known = train.item_counts() > 0
  held = []
  for some in parts[1:]:
    own = x.select(np.isin(x.user, some) & known[x.item])
    quota = np.ceil(own.user_counts() * fold_in)
    # One item cannot be both known and looked for.
    quota = np.minimum(quota, np.maximum(own.user_counts() - 1, 0))
    held += _both(own, _ranks(rng, own) < quota[own.user])
  return StrongSplit(train, *held, parts)


def sample_negatives(
  key: Any, known: Interactions, users: Any, count: int
) -> np.ndarray:
  """Items that users do not have, uniformly, without repetition.

  Args:
    key: Whole number or JAX key.
    known: All interactions, those for testing included.
    users: For whom.
    count: How many for each.

  Returns:
    Items, int32 `[users, count]`, ascending.

  Raises:
    ValueError: A user has too few items left.
  """
  rng = generator(key)
  users = np.asarray(users)
  left = known.num_items - known.user_counts()[users]
  if len(users) and left.min() < count:
    raise ValueError(
      f'count is {count}, but user {users[left.argmin()]} has only'
      f' {left.min()} items left.'
    )
  result = np.empty((len(users), count), np.int32)
  for row, user in enumerate(users):
    # Ranks among what is left, moved past what the user has.
    ranks = np.sort(
      rng.choice(int(left[row]), count, replace=False, shuffle=False)
    )
    have = known.items_of(user)
    gaps = have - np.arange(len(have))
    result[row] = ranks + np.searchsorted(gaps, ranks, side='right')
  return result


def random_ranks(key: Any, x: Interactions) -> np.ndarray:
  """Place of each interaction in a random order of its user's, from 0."""
  return _ranks(generator(key), x)


def _ranks(rng, x, time=None):
  """Place of each interaction in a random (or the time's) order of its user."""
  noise = rng.random(len(x))
  keys = (noise, x.user) if time is None else (noise, time, x.user)
  order = np.lexsort(keys)
  ranks = np.empty(len(x), np.int64)
  ranks[order] = np.arange(len(x)) - x.row_starts[x.user[order]]
  return ranks


def _both(x, first):
  if first.all() or not first.any():
    raise ValueError(
      f'a split of {len(x)} interactions leaves one part empty. Take another'
      ' share, or more data.'
    )
  return x.select(first), x.select(~first)


def _check_fraction(value, name):
  if not 0 < value < 1:
    raise ValueError(f'{name} is {value}; expected a share between 0 and 1.')
