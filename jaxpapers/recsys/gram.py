"""R'R: on the host by half, the other half is its mirror image; on a device."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Columns at a time: their products stay in the cache of a core.
BLOCK = 128
# Rows that are laid out densely on a device at a time, in bytes.
_DEVICE_BYTES = 1 << 29


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


def device_gram(
  x: Any, row_weights: Any = None, *, block: int | None = None
) -> jax.Array:
  """X'DX of a sparse matrix on a device, some rows at a time.

  Only the stored entries go to the device, where a block of rows is laid out.
  Numbers that bfloat16 holds exactly (0 and 1, ratings in half stars) are
  multiplied as such and summed in float32: their products are exact, and sums
  of whole numbers up to 2^24 (of quarters up to 2^22). Others are multiplied
  in float32.

  Args:
    x: scipy sparse matrix, `[rows, n]`.
    row_weights: Diagonal of D, `[rows]`; None for ones.
    block: Rows at a time; None for blocks of some 512 MB.

  Returns:
    float32 `[n, n]`.

  Raises:
    ValueError: `row_weights` has another length.
  """
  x = x.tocsr()
  if not x.has_canonical_format:  # Entries of one place are added up.
    x = x.copy()
    x.sum_duplicates()
  rows, n = x.shape
  if row_weights is not None and np.shape(row_weights) != (rows,):
    raise ValueError(
      f'row_weights has shape {np.shape(row_weights)}; expected ({rows},), one'
      ' for each row.'
    )
  exact = row_weights is None and bool(
    (x.data == x.data.astype(jnp.bfloat16).astype(x.data.dtype)).all()
  )
  dtype = jnp.bfloat16 if exact else jnp.float32
  size = jnp.dtype(dtype).itemsize
  block = block or _DEVICE_BYTES // (size * max(n, 1))
  block = int(np.clip(block, 1, max(rows, 1)))
  firsts = range(0, rows, block)
  # One shape for all blocks: one program.
  most = [x.indptr[min(i + block, rows)] - x.indptr[i] for i in firsts]
  most = max(int(max(most, default=0)), 1)
  if row_weights is not None:
    row_weights = np.asarray(row_weights, np.float32)
  gram = jnp.zeros((n, n))
  for first in firsts:
    last = min(first + block, rows)
    part = slice(x.indptr[first], x.indptr[last])
    row = np.repeat(
      np.arange(last - first, dtype=np.int32),
      np.diff(x.indptr[first : last + 1]),
    )
    space = most - len(row)
    left = None
    if row_weights is not None:
      left = np.pad(row_weights[first:last], (0, block - (last - first)))
    gram = _add_products(
      gram,
      np.pad(row, (0, space), constant_values=block),
      np.pad(x.indices[part].astype(np.int32), (0, space)),
      np.pad(x.data[part].astype(dtype), (0, space)),
      left,
      block,
    )
  return gram


@functools.partial(jax.jit, static_argnums=5, donate_argnums=0)
def _add_products(gram, row, column, value, weights, block):
  dense = jnp.zeros((block, gram.shape[0]), value.dtype)
  dense = dense.at[row, column].set(value, mode='drop')
  left = dense if weights is None else dense * weights[:, None]
  return gram + jnp.matmul(
    left.T,
    dense,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
