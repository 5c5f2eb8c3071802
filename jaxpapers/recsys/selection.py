"""The k largest of many long rows, on whatever device there is.

A library's top k sorts rows where k is more than a few, and a sort of a
catalogue for every user is most of an evaluation on a GPU. Here the k-th
largest number is found by bisection on its 32 bits, each a comparison and a sum
over the row, and what is not smaller is then written to its place. The result
is the same, equal numbers in the order of their columns.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

# Columns whose places are counted together: one product with a triangle.
_GROUP = 128
# Shorter rows, and selections that are most of a row, are sorted.
_LONG = 2048


def top_k(x: Any, k: int) -> tuple[jax.Array, jax.Array]:
  """`jax.lax.top_k`, and faster than it for long rows on a GPU.

  Args:
    x: float32 `[b, n]` without NaN.
    k: How many, at most n.

  Returns:
    Values `[b, k]`, descending; their columns, int32 `[b, k]`, the lower one
    first among equals.
  """
  long = x.ndim == 2 and x.shape[1] >= _LONG and 16 < k <= x.shape[1] // 8
  if long and x.dtype == jnp.float32 and jax.default_backend() == 'gpu':
    return select_top_k(x, k)
  return jax.lax.top_k(x, k)


@functools.partial(jax.jit, static_argnums=1)
def select_top_k(x: Any, k: int) -> tuple[jax.Array, jax.Array]:
  """The same by bisection, on any device.

  Args:
    x: float32 `[b, n]` without NaN.
    k: How many, at most n.

  Returns:
    See `top_k`.

  Example:
    >>> values, columns = select_top_k(jnp.array([[1.0, 3.0, 3.0, 2.0]]), 2)
    >>> values.tolist(), columns.tolist()
    ([[3.0, 3.0]], [[1, 2]])
  """
  rows, n = x.shape
  keys = _ordered(x)

  def bit(i, threshold):
    higher = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    enough = (keys >= higher[:, None]).sum(1) >= k
    return jnp.where(enough, higher, threshold)

  zero = jnp.zeros(rows, jnp.uint32)
  threshold = jax.lax.fori_loop(0, 32, bit, zero)[:, None]
  above, equal = keys > threshold, keys == threshold
  room = k - above.sum(1, keepdims=True)
  # Of those that equal the last, the first ones.
  keep = above | (equal & (_places(equal) < room))
  place = jnp.where(keep, _places(keep), k)
  row = jnp.arange(rows)[:, None]
  columns = jnp.zeros((rows, k), jnp.int32)
  columns = columns.at[row, place].set(
    jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), x.shape), mode='drop'
  )
  values = jnp.take_along_axis(x, columns, 1)
  order = _descending(values)
  return jnp.take_along_axis(values, order, 1), jnp.take_along_axis(
    columns, order, 1
  )


def _ordered(x):
  """Whole numbers in the order of floats; -0 and 0 are equal."""
  bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits >= sign, ~bits, bits | sign)


def _descending(values):
  """The order of short rows; equal ones stay as they are."""
  return jnp.argsort(-values, axis=1, stable=True)


def _places(mask):
  """How many are true before each column, int32."""
  rows, n = mask.shape
  groups = -(-n // _GROUP)
  padded = jnp.pad(mask, ((0, 0), (0, groups * _GROUP - n)))
  padded = padded.reshape(rows, groups, _GROUP)
  # Counts up to 128 are exact in any type, and products are what is fast.
  triangle = jnp.triu(jnp.ones((_GROUP, _GROUP), jnp.bfloat16), 1)
  inside = jnp.matmul(
    padded.astype(jnp.bfloat16), triangle, preferred_element_type=jnp.float32
  )
  total = padded.sum(-1)
  before = jnp.cumsum(total, -1) - total
  places = inside.astype(jnp.int32) + before[..., None]
  return places.reshape(rows, -1)[:, :n]
