"""Draws positives and negatives on a device, out of a CSR matrix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys.data import Interactions

# Tries for an item that the user does not have. A user with half of all items
# has none after so many with probability 2^-16; the sample then weighs nothing.
_TRIES = 16


class Csr(NamedTuple):
  """Interactions on a device.

  Attributes:
    starts: int32 `[num_users + 1]`.
    items: int32 `[n]`, ascending for each user.
    values: float32 `[n]`.
    users: Users with an interaction and an item left, int32 `[active]`.
  """

  starts: Any
  items: Any
  values: Any
  users: Any


def as_key(seed: Any) -> Any:
  """A JAX key of a whole number; a key stays what it is."""
  return jax.random.key(seed) if isinstance(seed, (int, np.integer)) else seed


def put(train: Interactions) -> Csr:
  """Puts interactions on the device.

  Raises:
    ValueError: No user has something and misses something.
  """
  counts = train.user_counts()
  users = np.flatnonzero((counts > 0) & (counts < train.num_items))
  if not len(users):
    raise ValueError(
      'train has no user with an interaction and an item left to compare with.'
    )
  return Csr(
    jnp.asarray(train.row_starts),
    jnp.asarray(train.item),
    jnp.asarray(train.value),
    jnp.asarray(users, dtype=jnp.int32),
  )


def has(csr: Csr, users: Any, items: Any) -> jax.Array:
  """Whether users have items: a binary search in each profile.

  Args:
    csr: Interactions.
    users: int `[b]`.
    items: int `[b, ...]`.

  Returns:
    bool, of the shape of items.
  """
  extra = (1,) * (items.ndim - users.ndim)
  low = csr.starts[users].reshape(users.shape + extra)
  stop = csr.starts[users + 1].reshape(users.shape + extra)
  low, high = jnp.broadcast_arrays(low + 0 * items, stop)
  last = len(csr.items) - 1

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    less = csr.items[jnp.minimum(middle, last)] < items
    open_ = low < high
    return (
      jnp.where(open_ & less, middle + 1, low),
      jnp.where(open_ & ~less, middle, high),
    )

  steps = max(int(np.ceil(np.log2(max(last + 1, 2)))) + 1, 1)
  low, _ = jax.lax.fori_loop(0, steps, halve, (low, high))
  return (low < stop) & (csr.items[jnp.minimum(low, last)] == items)


def draw_users(key: Any, csr: Csr, shape: tuple[int, ...]) -> jax.Array:
  """Users, uniform over those who have something."""
  return csr.users[jax.random.randint(key, shape, 0, len(csr.users))]


def draw_positives(
  key: Any, csr: Csr, users: Any
) -> tuple[jax.Array, jax.Array]:
  """One interaction of each user: items and values."""
  start = csr.starts[users]
  count = csr.starts[users + 1] - start
  at = start + jnp.minimum(
    (jax.random.uniform(key, users.shape) * count).astype(jnp.int32), count - 1
  )
  return csr.items[at], csr.values[at]


def draw_negatives(
  key: Any, csr: Csr, users: Any, num_items: int
) -> tuple[jax.Array, jax.Array]:
  """An item that each user does not have.

  Returns:
    Items, and whether one was found.
  """
  tries = jax.random.randint(key, (*users.shape, _TRIES), 0, num_items)
  free = ~has(csr, users, tries)
  first = jnp.argmax(free, -1)
  items = jnp.take_along_axis(tries, first[..., None], -1)[..., 0]
  return items, free.any(-1)
