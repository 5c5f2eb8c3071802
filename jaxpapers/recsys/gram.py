"""R'R on the host, by half: the other half is its mirror image."""

from typing import Any

import numpy as np

# Columns at a time: their products stay in the cache of a core.
BLOCK = 128


def symmetric_gram(x: Any, row_weights: Any = None) -> np.ndarray:
  """X'DX of a sparse matrix, dense.

  Products of a block of columns are made with itself and the columns after it
  only.

  Args:
    x: scipy sparse matrix, `[rows, n]`.
    row_weights: Diagonal of D, `[rows]`; None for ones.

  Returns:
    float32 `[n, n]`, exactly symmetric.
  """
  n = x.shape[1]
  left = x.tocsr()
  if row_weights is not None:
    left = left.multiply(np.asarray(row_weights, np.float32)[:, None])
  left = left.tocsr().T.tocsr()
  columns = x.tocsc()
  gram = np.empty((n, n), np.float32)
  for first in range(0, n, BLOCK):
    last = min(first + BLOCK, n)
    part = left[first:] @ columns[:, first:last].toarray()
    gram[first:, first:last] = part
    gram[first:last, last:] = part[last - first :].T
  return gram
