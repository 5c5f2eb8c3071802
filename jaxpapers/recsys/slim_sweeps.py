"""Coordinate descent for many regressions on one Gram matrix.

SLIM has a regression for each item, all with the same Gram matrix. A sweep goes
through blocks of coordinates. Within a block it is exact coordinate descent,
one coordinate of all regressions after the other, on the small part of the
residual that the block sees; what the block changed then goes to the rest as
one matrix product. The numbers are those of a sweep without blocks, up to
rounding.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Coordinates of a block: the product with the rest then runs at full speed.
_BLOCK = 64


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
  result = np.zeros((n, len(columns)), gram.dtype)
  where = np.arange(len(columns))
  residual = jnp.pad(jnp.asarray(gram[:, columns]), ((0, length - n), (0, 0)))
  weights = jnp.zeros_like(residual)
  for count in range(1, max_iter + 1):
    weights, residual, change, largest = _sweep(
      padded, weights, residual, jnp.asarray(columns[where]), l1, l2, size
    )
    left = np.asarray(change) > tol * np.maximum(np.asarray(largest), 1e-30)
    if not left.any() or count == max_iter:
      break
    # Once half of the columns are at rest they leave: sizes are few, so that
    # few programs are compiled. Others keep them company to fill the size.
    room = len(where)
    while room % 2 == 0 and room >= 32 and left.sum() <= room // 2:
      room //= 2
    if room < len(where):
      result[:, where] = np.asarray(weights)[:n]
      keep = np.sort(np.argsort(~left, kind='stable')[:room])
      where = where[keep]
      weights, residual = weights[:, keep], residual[:, keep]
  result[:, where] = np.asarray(weights)[:n]
  return result


@functools.partial(jax.jit, static_argnums=6, donate_argnums=(1, 2))
def _sweep(gram, weights, residual, columns, l1, l2, size):
  """One sweep; residual = targets - gram @ weights."""
  n = gram.shape[0]
  offsets = jnp.arange(size)

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

    def coordinate(i, state):
      own, seen = state
      ahead = seen[i] + diagonal[i] * own[i] - l1
      new = jnp.where(free[i], jnp.maximum(ahead / curvature[i], 0), 0)
      seen = seen - inner[:, i, None] * (new - own[i])
      return own.at[i].set(new), seen

    after, _ = jax.lax.fori_loop(0, size, coordinate, (before, seen))
    moved = after - before
    residual = residual - jnp.matmul(
      rows.T, moved, precision=jax.lax.Precision.HIGHEST
    )
    weights = jax.lax.dynamic_update_slice_in_dim(weights, after, first, 0)
    return weights, residual, jnp.maximum(change, jnp.abs(moved).max(0))

  zero = jnp.zeros(residual.shape[1], residual.dtype)
  weights, residual, change = jax.lax.fori_loop(
    0, n // size, block, (weights, residual, zero)
  )
  return weights, residual, change, weights.max(0)
