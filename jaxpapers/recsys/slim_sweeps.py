"""Coordinate descent for many regressions on one Gram matrix.

SLIM has a regression for each item, all with the same Gram matrix. A sweep goes
through blocks of coordinates. Within a block it is exact coordinate descent,
one coordinate of all regressions after the other, on the small part of the
residual that the block sees; what the block changed then goes to the rest as
one matrix product. The numbers are those of a sweep without blocks, up to
rounding. After a few sweeps columns with few weights are solved exactly, see
`slim_active`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys.slim_active import solve_active

# Coordinates of a block: the product with the rest then runs at full speed. In
# the same way parts of a block are done one after the other.
_BLOCK = 64
_PART = 16
# Sweeps before columns are solved on the items that have a weight by then.
_FIRST = 3
# Some products with m x m numbers cost less than sweeps over n x n that many
# columns share where m^2 < 500 n.
_CHEAP = 500


def sweep_columns(
  gram: Any,
  columns: Any,
  l1: float,
  l2: float,
  *,
  tol: float = 1e-6,
  max_iter: int = 2000,
) -> np.ndarray:
  """Weights w >= 0 of some items, w_j = 0 for the item itself.

  Minimises w'Gw / 2 - g_j'w + l1 |w|_1 + l2 |w|^2 / 2 for each column j.

  Args:
    gram: G = R'R, `[n, n]`.
    columns: Items to explain, int `[b]`.
    l1: Weight of the absolute value, times the number of users.
    l2: Weight of half the square, times the number of users.
    tol: Ends when no weight changes by more than this, over the largest.
    max_iter: Most sweeps.

  Returns:
    Weights, float `[n, b]`.
  """
  gram = np.asarray(gram)
  columns = np.asarray(columns)
  n = len(gram)
  size = min(_BLOCK, n)
  length = -(-n // size) * size
  padded = jnp.asarray(np.pad(gram, ((0, length - n), (0, length - n))))
  # Below this a weight of float32 cannot come to rest.
  tol = max(tol, 4 * float(np.finfo(gram.dtype).eps))
  residual = jnp.pad(jnp.asarray(gram[:, columns]), ((0, length - n), (0, 0)))
  weights = jnp.zeros_like(residual)
  result = np.zeros((n, len(columns)), gram.dtype)
  where = np.arange(len(columns))
  for count in range(1, max_iter + 1):
    weights, residual, change, largest = _sweep(
      padded, weights, residual, jnp.asarray(columns[where]), l1, l2, size
    )
    left = np.asarray(change) > tol * np.maximum(np.asarray(largest), 1e-30)
    finish = count == _FIRST and gram.dtype == np.float32 and left.any()
    room = _room(len(where), int(left.sum()))
    if not (finish or room < len(where) or count == max_iter):
      continue
    now = np.array(weights)[:n]
    if finish:
      rest = np.asarray(residual)[:n]
      left = _finish(gram, columns[where], now, rest, left, l1, l2, tol)
      room = _room(len(where), int(left.sum()))
    result[:, where] = now
    if not left.any():
      break
    keep = np.resize(np.flatnonzero(left), room)
    where = where[keep]
    weights, residual = weights[:, keep], residual[:, keep]
  return result


def _room(now, left):
  """Columns of the next sweep: sizes are few, to compile few programs."""
  if not left:
    return 0
  while now % 2 == 0 and now >= 32 and left <= now // 2:
    now //= 2
  return now


def _finish(gram, columns, weights, residual, left, l1, l2, tol):
  """Solves columns with few weights, in place; returns which are left."""
  ascent = residual - np.float32(l2) * weights - np.float32(l1)
  size = ((weights > 0) | (ascent > 0)).sum(0).astype(float)
  few = left & (size**2 < _CHEAP * len(gram))
  found, solved = solve_active(
    gram, columns[few], weights[:, few], ascent[:, few], l1, l2, tol
  )
  which = np.flatnonzero(few)[solved]
  weights[:, which] = found[:, solved]
  left = left.copy()
  left[which] = False
  return left


@functools.partial(jax.jit, static_argnums=6, donate_argnums=(1, 2))
def _sweep(gram, weights, residual, columns, l1, l2, size):
  """One sweep; residual = targets - gram @ weights."""
  n = gram.shape[0]
  offsets = jnp.arange(size)
  high = jax.lax.Precision.HIGHEST

  def block(b, state):
    weights, residual, change = state
    first = b * size
    rows = jax.lax.dynamic_slice_in_dim(gram, first, size)
    inner = jax.lax.dynamic_slice_in_dim(rows, first, size, 1)
    before = jax.lax.dynamic_slice_in_dim(weights, first, size)
    seen = jax.lax.dynamic_slice_in_dim(residual, first, size)
    diagonal = jnp.diagonal(inner)
    curvature = jnp.where(diagonal + l2 > 0, diagonal + l2, 1)
    free = (first + offsets)[:, None] != columns
    moved = jnp.zeros((0, weights.shape[1]), weights.dtype)
    for start in range(0, size, _PART):
      part = slice(start, min(start + _PART, size))
      ahead = seen[part] - jnp.matmul(
        inner[part, :start], moved, precision=high
      )
      square, given = inner[part, part], before[part]

      def coordinate(i, state, part=part, square=square):
        own, seen = state
        ahead = seen[i] + diagonal[part][i] * own[i] - l1
        new = jnp.maximum(ahead / curvature[part][i], 0)
        new = jnp.where(free[part][i], new, 0)
        return own.at[i].set(new), seen - square[:, i, None] * (new - own[i])

      after, _ = jax.lax.fori_loop(0, len(given), coordinate, (given, ahead))
      moved = jnp.concatenate([moved, after - given])
    after = before + moved
    residual = residual - jnp.matmul(rows.T, moved, precision=high)
    weights = jax.lax.dynamic_update_slice_in_dim(weights, after, first, 0)
    return weights, residual, jnp.maximum(change, jnp.abs(moved).max(0))

  zero = jnp.zeros(residual.shape[1], residual.dtype)
  weights, residual, change = jax.lax.fori_loop(
    0, n // size, block, (weights, residual, zero)
  )
  return weights, residual, change, weights.max(0)
