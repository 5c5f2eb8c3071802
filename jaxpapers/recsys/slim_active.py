"""SLIM's regressions solved exactly, each on the items that have a weight.

After a few sweeps of coordinate descent it is nearly known which weights of a
column are positive. On these the optimum is a linear system; where its solution
has negative weights these leave, and where the gradient of another item points
up it enters, until neither happens. First this is done among items near to
having a weight, on a small part of the Gram matrix, then all others are looked
at. A few systems of some hundred unknowns cost less than the sweeps that would
be left, because on sparse data most items never meet the one that is explained.
"""

from typing import Any

import numpy as np

# Changes of a set after which a column is given back: rounding can make them
# alternate.
_ROUNDS = 12
# Steps of a system; with SLIM's penalties it takes four or five.
_STEPS = 60
# Items whose weight would be less negative than this part of the largest are
# near to having one.
_NEAR = 0.005
# An item that meets more is left to others: its products would take 256 MB.
_MOST = 8192


def solve_active(
  gram: Any,
  columns: Any,
  weights: Any,
  ascent: Any,
  l1: float,
  l2: float,
  tol: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Weights w >= 0 of some items, w_j = 0 for the item itself.

  Args:
    gram: G = R'R, float32 `[n, n]`.
    columns: Items to explain, int `[b]`.
    weights: Where to begin, float32 `[n, b]`.
    ascent: Derivative there, g_j - G w - l2 w - l1, `[n, b]`.
    l1: Weight of the absolute value, times the number of users.
    l2: Weight of half the square, times the number of users.
    tol: How far a weight may be from the optimum of its coordinate, over the
      largest of its column.

  Returns:
    Weights, float32 `[n, b]`; and which columns are solved, bool `[b]`. Others,
    whose systems are singular or too ill-conditioned for float32, are not.
  """
  l1, l2 = np.float32(l1), np.float32(l2)
  number = len(columns)
  curvature = np.diagonal(gram) + l2
  curvature = np.where(curvature > 0, curvature, 1)
  largest = weights.max(0)
  own = columns, np.arange(number)
  near = (weights > 0) | (ascent > -_NEAR * largest * curvature[:, None])
  near[own] = False
  # Rows are columns here: each is looked at alone.
  near = np.ascontiguousarray(near.T)
  found = np.ascontiguousarray(weights.T)
  solved = np.zeros(number, bool)
  left = np.arange(number)
  for _ in range(_ROUNDS):
    if not len(left):
      break
    sound = np.ones(len(left), bool)
    for k, column in enumerate(left):
      rows = np.flatnonzero(near[column])
      # Rows first: they are contiguous.
      part = gram.take(rows, 0).take(rows, 1)
      right = gram[rows, columns[column]] - l1
      weight, sound[k] = _solve(
        part, right, curvature[rows], found[column, rows], l2, tol
      )
      found[column] = 0
      found[column, rows] = weight
    now = found[left].T
    ascent = gram[:, columns[left]] - gram @ now - l2 * now - l1
    ascent[columns[left], np.arange(len(left))] = -np.inf
    limit = tol * np.maximum(now.max(0), 1e-30) * curvature[:, None]
    missing = (ascent > limit) & ~near[left].T
    # What has a weight must be at its optimum, and not only nearly.
    sound &= ~((now > 0) & (np.abs(ascent) > limit)).any(0)
    more = missing.any(0)
    solved[left[sound & ~more]] = True
    near[left] |= missing.T
    left = left[sound & more]
  return found.T, solved


def solve_met(
  gram: Any, columns: Any, l1: float, l2: float, tol: float
) -> tuple[np.ndarray, np.ndarray]:
  """The same without a beginning, each item on all that it meets.

  With R >= 0 and w >= 0 an item gets no weight where g_ij <= l1: nothing else
  has to be looked at. For catalogues where an item meets few others.

  Args:
    gram: G = R'R, float32 `[n, n]`, not negative.
    columns: Items to explain, int `[b]`.
    l1: See `solve_active`.
    l2: See `solve_active`.
    tol: See `solve_active`.

  Returns:
    See `solve_active`; items that meet thousands of others are left unsolved.
  """
  l1, l2 = np.float32(l1), np.float32(l2)
  curvature = np.diagonal(gram) + l2
  weights = np.zeros((len(columns), len(gram)), np.float32)
  solved = np.ones(len(columns), bool)
  for k, column in enumerate(columns):
    rows = np.flatnonzero(gram[column] > l1)
    rows = rows[rows != column]
    if len(rows) > _MOST:
      solved[k] = False
      continue
    weights[k, rows], solved[k] = _solve(
      gram[rows[:, None], rows],
      gram[column, rows] - l1,
      curvature[rows],
      np.zeros(len(rows), np.float32),
      l2,
      tol,
    )
  return weights.T, solved


def _solve(gram, right, curvature, start, l2, tol):
  """Weights among some items, and whether they are the optimum."""
  weights = np.zeros_like(start)
  active = (start > 0) | (right - gram @ start > l2 * start)
  for _ in range(_ROUNDS):
    rows = np.flatnonzero(active)
    part = gram if len(rows) == len(gram) else gram.take(rows, 0).take(rows, 1)
    start, sound = _system(
      part, right[rows], curvature[rows], start[rows], l2, tol
    )
    if not sound:
      return weights, False
    weights[:] = 0
    weights[rows] = start
    largest = np.maximum(start.max(initial=0), 1e-30)
    ascent = right - gram @ weights
    missing = ~active & (ascent > tol * largest * curvature)
    negative = weights < 0
    if not negative.any() and not missing.any():
      return weights, True
    active = active & ~negative | missing
    start = weights
  return np.maximum(weights, 0), False


def _system(gram, right, curvature, weights, l2, tol):
  """(G + l2 I) w = right, by conjugate gradients; and whether it got there."""
  residual = right - gram @ weights - l2 * weights
  scaled = residual / curvature
  direction = scaled.copy()
  product = residual @ scaled
  for _ in range(_STEPS):
    limit = 0.5 * tol * np.maximum(weights.max(initial=0), 1e-30)
    if np.abs(scaled).max(initial=0) <= limit:
      return weights, True
    ahead = gram @ direction + l2 * direction
    curve = direction @ ahead
    if not curve > 0:
      break
    step = product / curve
    weights = weights + step * direction
    residual = residual - step * ahead
    scaled = residual / curvature
    before, product = product, residual @ scaled
    direction = scaled + (product / before) * direction
  return weights, False
