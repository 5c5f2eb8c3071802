"""SLIM's regressions solved exactly, each on the items that have a weight.

After a few sweeps of coordinate descent it is nearly known which weights of a
column are positive. On these the optimum is a linear system; where its solution
has negative weights these leave, and where the gradient of another item points
up it enters, until neither happens. A few systems of some hundred unknowns cost
less than the sweeps that would be left, because on sparse data most items never
meet the one that is explained.
"""

from typing import Any

import numpy as np

from jaxpapers.recsys import optional

# Sets after which a column is given back: rounding can make them alternate.
_ROUNDS = 12


def solve_active(
  gram: Any, columns: Any, active: Any, l1: float, l2: float, tol: float
) -> tuple[np.ndarray, np.ndarray]:
  """Weights w >= 0 of some items, w_j = 0 for the item itself.

  Args:
    gram: G = R'R, float32 `[n, n]`.
    columns: Items to explain, int `[b]`.
    active: Items that may have a weight, bool `[n, b]`: where to begin.
    l1: Weight of the absolute value, times the number of users.
    l2: Weight of half the square, times the number of users.
    tol: How far a weight may be from the optimum of its coordinate, over the
      largest of its column.

  Returns:
    Weights, float32 `[n, b]`; and which columns are solved, bool `[b]`. Others,
    whose system is singular or too ill-conditioned for float32, are zero.
  """
  lapack = optional.load('scipy.linalg.lapack')
  n, number = active.shape
  active = active.copy()
  active[columns, np.arange(number)] = False
  weights = np.zeros((n, number), np.float32)
  solved = np.zeros(number, bool)
  curvature = (np.diagonal(gram) + np.float32(l2))[:, None]
  left = np.arange(number)
  for _ in range(_ROUNDS):
    if not len(left):
      break
    part = np.zeros((n, len(left)), np.float32)
    sound = np.ones(len(left), bool)
    for k, column in enumerate(left):
      rows = np.flatnonzero(active[:, column])
      if not len(rows):
        continue
      # Rows first: they are contiguous.
      system = gram.take(rows, 0).take(rows, 1)
      system.flat[:: len(rows) + 1] += l2
      right = gram[rows, columns[column]] - np.float32(l1)
      # Symmetric: the transpose is in the order of LAPACK already.
      _, found, info = lapack.sposv(system.T, right, lower=1, overwrite_a=1)
      sound[k] = info == 0
      part[rows, k] = found if info == 0 else 0
    inside = active[:, left]
    ascent = gram[:, columns[left]] - gram @ part - l2 * part - l1
    limit = tol * np.maximum(part.max(0), 1e-30) * curvature
    negative = part < 0
    missing = ~inside & (ascent > limit)
    missing[columns[left], np.arange(len(left))] = False
    rough = (inside & (np.abs(ascent) > limit)).any(0)
    settled = ~negative.any(0) & ~missing.any(0)
    done = settled & sound & ~rough
    weights[:, left[done]] = part[:, done]
    solved[left[done]] = True
    active[:, left] = inside & ~negative | missing
    left = left[sound & ~settled]
  return weights, solved
