r"""Similarities between the columns of a matrix, and feature weighting.

With g = x_i . x_j, q_i = x_i . x_i, a shrink term s and eps = 1e-6, W[j, i] is
the similarity of a neighbour j (row) to a target i (column):

  cosine      g / (sqrt(q_i q_j) + s + eps)
  asymmetric  g / (q_i^a q_j^(1-a) + s + eps)
  jaccard     n / (n_i + n_j - n + s + eps)
  dice        n / (n_i + n_j + s + eps)              without the factor 2
  tversky     n / (n + a (n_i - n) + b (n_j - n) + s + eps)
  pearson     cosine, stored entries minus the mean of their column
  adjusted    cosine, stored entries minus the mean of their row
  euclidean   1 / (f(d) + s + 1e-9)

The formulas are those of the code of Ferrari Dacrema et al. (2019), including
where these deviate from textbooks. One function writes them for numpy blocks on
the host and for traced arrays on a device.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.gram import BLOCK, device_gram, symmetric_gram

KINDS = (
  'cosine',
  'asymmetric',
  'jaccard',
  'dice',
  'tversky',
  'pearson',
  'adjusted',
  'euclidean',
)
_SETS = ('jaccard', 'dice', 'tversky')
# Items up to which all products are kept on the host: 256 MB.
_WHOLE = 8192
_EPS = 1e-6
# Largest matrix that is laid out densely on an accelerator.
DENSE_BYTES = 16e9


def similarity(
  x: Any,
  kind: str = 'cosine',
  *,
  shrink: Any = 0.0,
  alpha: Any = 0.5,
  tversky: tuple[Any, Any] = (1.0, 1.0),
  normalize: bool = True,
  row_weights: Any = None,
  euclidean: str = 'linear',
  average_row: bool = False,
  precision: Any = jax.lax.Precision.HIGHEST,
) -> jax.Array:
  """Similarity of all columns of a dense matrix with each other.

  Works under jit, vmap and grad; `shrink`, `alpha` and `tversky` may be
  traced, so that hundreds of settings are one program.

  Args:
    x: Matrix, float `[rows, n]`.
    kind: One of `KINDS`.
    shrink: Term in the denominator that makes rare pairs less similar.
    alpha: Exponent of the target's squared norm, of 'asymmetric'.
    tversky: Weights of what only the target and only the neighbour have.
    normalize: False makes 'cosine' the plain product, over `shrink` if that is
      positive; for 'euclidean', True divides by the norms. Ignored by sets.
    row_weights: Weight of each row in products, `[rows]`; not in norms.
    euclidean: f of the distance: 'linear', 'log' (1 + d) or 'exp'.
    average_row: Divide squared distances by the number of rows.
    precision: Of the product. Less than HIGHEST changes the order of
      neighbours on TPU and GPU.

  Returns:
    W, float `[n, n]`: row = neighbour, column = target, zero diagonal.

  Raises:
    ValueError: `kind` or `euclidean` is unknown, or x has not two axes.

  Example:
    >>> x = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 2.0]])
    >>> similarity(x)[0].round(3).tolist()
    [0.0, 0.7070000171661377, 0.7070000171661377]
  """
  check_kind(kind, euclidean)
  x = jnp.asarray(x)
  if x.ndim != 2:
    raise ValueError(f'x has shape {x.shape}; expected two axes.')
  x = _prepare_dense(x.astype(jnp.result_type(x, jnp.float32)), kind)
  left = x if row_weights is None else x * jnp.asarray(row_weights)[:, None]
  gram = jnp.matmul(left.T, x, precision=precision)
  norms = jnp.sum(x * x, axis=0)
  weights = from_gram(
    gram,
    norms[:, None],
    norms[None, :],
    kind,
    shrink=shrink,
    alpha=alpha,
    tversky=tversky,
    normalize=normalize,
    euclidean=euclidean,
    num_rows=x.shape[0] if average_row else 1,
    xp=jnp,
  )
  return jnp.where(jnp.eye(x.shape[1], dtype=bool), 0, weights)


def from_gram(
  gram: Any,
  neighbour: Any,
  target: Any,
  kind: str,
  *,
  shrink: Any = 0.0,
  alpha: Any = 0.5,
  tversky: tuple[Any, Any] = (1.0, 1.0),
  normalize: bool = True,
  euclidean: str = 'linear',
  num_rows: int = 1,
  xp: Any = np,
) -> Any:
  """Similarities out of products and squared norms.

  Args:
    gram: Products g, `[neighbours, targets]`.
    neighbour: Squared norms q_j of the neighbours, `[neighbours, 1]`.
    target: Squared norms q_i of the targets, `[1, targets]`.
    kind: One of `KINDS`; what has to be subtracted or made binary has been.
    shrink: See `similarity`.
    alpha: See `similarity`.
    tversky: See `similarity`.
    normalize: See `similarity`.
    euclidean: See `similarity`.
    num_rows: What squared distances are divided by.
    xp: `numpy` or `jax.numpy`.

  Returns:
    Similarities, of the shape of gram; the diagonal is not zeroed.
  """
  if kind == 'euclidean':
    square = xp.maximum(neighbour + target - 2 * gram, 0)
    defined = True
    if normalize:
      norms = xp.sqrt(neighbour) * xp.sqrt(target)
      # An empty column has no neighbours.
      defined = norms > 0
      square = square / xp.where(defined, norms, 1)
    square = square / num_rows
    # The root has no derivative at 0.
    positive = square > 0
    distance = xp.where(positive, xp.sqrt(xp.where(positive, square, 1)), 0)
    if euclidean == 'log':
      distance = xp.log(distance + 1)
    elif euclidean == 'exp':
      distance = xp.exp(distance)
    return xp.where(defined, 1 / (distance + shrink + 1e-9), 0)
  if kind == 'jaccard':
    return gram / (neighbour + target - gram + shrink + _EPS)
  if kind == 'dice':
    return gram / (neighbour + target + shrink + _EPS)
  if kind == 'tversky':
    a, b = tversky
    only = a * (target - gram) + b * (neighbour - gram)
    return gram / (gram + only + shrink + _EPS)
  if not normalize and kind != 'asymmetric':
    divide = xp.asarray(shrink) > 0
    return xp.where(divide, gram / xp.where(divide, shrink, 1), gram)
  if kind == 'asymmetric':
    scale = _power(target, alpha, xp) * _power(neighbour, 1 - alpha, xp)
  else:
    scale = xp.sqrt(neighbour) * xp.sqrt(target)
  return gram / (scale + shrink + _EPS)


def _power(base, exponent, xp):
  """Base ** exponent with 0 for empty columns, whatever the exponent."""
  positive = base > 0
  return xp.where(positive, xp.where(positive, base, 1) ** exponent, 0)


def check_kind(kind: str, euclidean: str = 'linear') -> None:
  """Refuses similarities that do not exist."""
  if kind not in KINDS:
    raise ValueError(f'kind is {kind!r}; expected one of {", ".join(KINDS)}.')
  if euclidean not in ('linear', 'log', 'exp'):
    raise ValueError(
      f"euclidean is {euclidean!r}; expected 'linear', 'log' or 'exp'."
    )


def _prepare_dense(x, kind):
  stored = x != 0
  if kind in _SETS:
    return stored.astype(x.dtype)
  if kind in ('pearson', 'adjusted'):
    axis = 0 if kind == 'pearson' else 1
    count = jnp.maximum(stored.sum(axis, keepdims=True), 1)
    return jnp.where(stored, x - x.sum(axis, keepdims=True) / count, 0)
  return x


def prepare_sparse(x, kind):
  """The same for a sparse matrix: CSR, float32."""
  from jaxpapers.recsys import optional

  x = optional.sparse().csr_array(x, dtype=np.float32, copy=True)
  x.sum_duplicates()  # Norms are made from what is stored.
  if kind in _SETS:
    x.data = (x.data != 0).astype(np.float32)
  elif kind in ('pearson', 'adjusted'):
    index = (
      x.indices
      if kind == 'pearson'
      else np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    )
    size = x.shape[1] if kind == 'pearson' else x.shape[0]
    count = np.maximum(np.bincount(index, minlength=size), 1)
    mean = np.bincount(index, x.data, minlength=size) / count
    x.data = (x.data - mean[index]).astype(np.float32)
  return x


def similarity_blocks(
  x: Any,
  kind: str = 'cosine',
  *,
  block: int = 2048,
  row_weights: Any = None,
  average_row: bool = False,
  **options: Any,
) -> Iterator[tuple[int, np.ndarray]]:
  """Similarities of a sparse matrix, some columns at a time, on the host.

  Args:
    x: `Interactions`, or a scipy sparse or dense matrix, `[rows, n]`.
    kind: One of `KINDS`.
    block: Columns at a time. Memory is 4 * n * block bytes, a few times, and
      4 * n * n for up to 8192 columns.
    row_weights: See `similarity`.
    average_row: See `similarity`.
    **options: What `from_gram` takes.

  Yields:
    The first column of the block, and W[:, first : first + block], float32.
  """
  check_kind(kind, options.get('euclidean', 'linear'))
  x = prepare_sparse(x.csr if isinstance(x, Interactions) else x, kind)
  squares = x.multiply(x).sum(axis=0)
  norms = np.asarray(squares, np.float64).astype(np.float32)
  n = x.shape[1]
  # All products at once take half the time, where they fit.
  whole = symmetric_gram(x, row_weights) if n <= _WHOLE else None
  if whole is None:
    left = x
    if row_weights is not None:
      left = x.multiply(np.asarray(row_weights, np.float32)[:, None])
    left, columns = left.tocsr().T.tocsr(), x.tocsc()
  for first in range(0, n, block):
    some = slice(first, min(first + block, n))
    if whole is None:
      gram = left @ columns[:, some].toarray()
    else:
      gram = whole[some].T  # Its columns, each contiguous.
    weights = from_gram(
      gram,
      norms[:, None],
      norms[None, some],
      kind,
      num_rows=x.shape[0] if average_row else 1,
      **options,
    )
    inside = np.arange(some.stop - first)
    weights[first + inside, inside] = 0
    yield first, np.asarray(weights, np.float32)


def check_k(k: int | None) -> None:
  """Refuses numbers of neighbours that are no positive whole numbers."""
  if k is not None and (not isinstance(k, (int, np.integer)) or k < 1):
    raise ValueError(f'k is {k!r}; expected 1 or more, or None for all.')


def top_k_columns(w: Any, k: int | None, ties: str = 'index') -> Any:
  """Keeps the k largest entries of every column, zeros elsewhere.

  Args:
    w: Matrix, `[n, m]`; numpy, or a jax array (also traced).
    k: How many; None or n or more keeps all.
    ties: Of equal entries at the end keep those of lowest 'index', or 'keep'
      all of them.

  Returns:
    The matrix of the same type and shape.
  """
  if ties not in ('index', 'keep'):
    raise ValueError(f"ties is {ties!r}; expected 'index' or 'keep'.")
  check_k(k)
  if k is None or k >= w.shape[0]:
    return w
  if isinstance(w, np.ndarray):
    return np.where(keep_top(np.ascontiguousarray(w.T), k, ties).T, w, 0)
  values, indices = jax.lax.top_k(w.T, k)
  if ties == 'keep':
    return jnp.where(w >= values[:, -1], w, 0)
  rows = jnp.arange(w.shape[1])[:, None]
  kept = jnp.zeros_like(w.T).at[rows, indices].set(values)
  return kept.T


def keep_top(
  rows: np.ndarray, k: int, ties: str = 'index', zeros: bool = True
) -> np.ndarray:
  """Where the k largest of each row are, bool; lowest index among equals.

  Args:
    rows: `[b, n]`.
    k: How many.
    ties: 'index', or 'keep' all that equal the last.
    zeros: Whether zeros count; False keeps fewer instead.
  """
  n = rows.shape[1]
  if k >= n:
    return np.ones(rows.shape, bool) if zeros else rows != 0
  if not zeros:
    return _keep_top_stored(rows, k, ties)
  threshold = np.partition(rows, n - k, axis=1)[:, n - k, None]
  keep = rows >= threshold
  if ties == 'keep':
    return keep
  many = np.flatnonzero(np.count_nonzero(keep, axis=1) > k)
  for first in range(0, len(many), 256):
    some = many[first : first + 256]
    part, limit = rows[some], threshold[some]
    equal, above = part == limit, part > limit
    left = k - np.count_nonzero(above, axis=1)[:, None]
    keep[some] = above | (equal & (np.cumsum(equal, 1, np.int32) <= left))
  return keep


def _keep_top_stored(rows, k, ties):
  """The same without zeros: a partition of many equal numbers is slow."""
  keep = rows != 0
  if rows.size and rows.min() < 0:
    # Zeros, though not stored, come before what is negative.
    return keep & keep_top(rows, k, ties)
  for row in np.flatnonzero(np.count_nonzero(keep, axis=1) > k):
    where = np.flatnonzero(keep[row])
    values = rows[row, where]
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    inside = values >= threshold
    if ties == 'index' and np.count_nonzero(inside) > k:
      equal = np.flatnonzero(values == threshold)
      above = np.count_nonzero(values > threshold)
      inside[equal[k - above :]] = False
    keep[row, where] = inside
  return keep


def sparse_top_k(
  blocks: Iterator[tuple[int, np.ndarray]], k: int | None, n: int
) -> Any:
  """The k largest of every column, as a sparse matrix.

  Args:
    blocks: Of `similarity_blocks`.
    k: How many of each column; None for all.
    n: Number of rows and columns.

  Returns:
    `scipy.sparse.csc_array`, float32 `[n, n]`, without stored zeros.
  """
  from jaxpapers.recsys import optional

  values, indices, counts = [], [], []
  for _, block in blocks:
    rows = np.ascontiguousarray(block.T)
    keep = keep_top(rows, n if k is None else k, zeros=False)
    counts.append(np.count_nonzero(keep, axis=1))
    indices.append(np.nonzero(keep)[1].astype(np.int32))
    values.append(rows[keep])
  starts = np.concatenate([[0], np.cumsum(np.concatenate(counts or [[]]))])
  return optional.sparse().csc_array(
    (
      np.concatenate(values or [np.zeros(0, np.float32)]),
      np.concatenate(indices or [np.zeros(0, np.int32)]),
      starts.astype(np.int64 if starts[-1] > 2**31 - 1 else np.int32),
    ),
    shape=(n, n),
  )


def similarity_top_k(
  x: Any, kind: str = 'cosine', *, k: int | None, block: int = 2048, **options
) -> Any:
  """The k nearest neighbours of every column, on what is fastest here.

  On the CPU blocks of a sparse product; on an accelerator the products of all
  columns, made of blocks of rows, and similarities a block at a time. Where all
  products are too many for its memory they stay on the host.

  Args:
    x: `Interactions` or a scipy sparse matrix, `[rows, n]`.
    kind: One of `KINDS`.
    k: Neighbours of a column; None for all.
    block: Columns at a time.
    **options: See `similarity_blocks`.

  Returns:
    `scipy.sparse.csc_array`, float32 `[n, n]`.
  """
  check_k(k)
  n = x.shape[1]
  device = (
    jax.default_backend() != 'cpu'
    and kind not in ('pearson', 'adjusted')
    and 4 * n * n <= DENSE_BYTES
  )
  if not device or k is None:
    # Several passes over a block have to fit into the cache of a core.
    return sparse_top_k(
      similarity_blocks(x, kind, block=min(block, BLOCK), **options), k, n
    )
  return _device_top_k(x, kind, min(k, n), block, options)


def _device_top_k(x, kind, k, block, options):
  """Products and similarities on an accelerator; only neighbours come back."""
  from jaxpapers.recsys import optional

  x = prepare_sparse(x.csr if isinstance(x, Interactions) else x, kind)
  n = x.shape[1]
  average_row = options.pop('average_row', False)
  num_rows = x.shape[0] if average_row else 1
  squares = np.bincount(x.indices, x.data.astype(np.float64) ** 2, minlength=n)
  norms = jnp.asarray(squares, jnp.float32)
  gram = device_gram(x, options.pop('row_weights', None))
  static = tuple(
    (key, options.pop(key))
    for key in ('normalize', 'euclidean')
    if key in options
  )
  block = min(block, n)
  found = []
  for first in range(0, n, block):
    # The last block overlaps the one before: one shape, one program.
    found.append(
      _device_block(
        gram, norms, min(first, n - block), block, kind, k, num_rows, static,
        options,
      )
    )  # fmt: skip
  values, rows = (
    np.concatenate([np.asarray(part) for part in parts])
    for parts in zip(*found, strict=True)
  )
  extra = len(values) - n
  if extra:
    at = n // block * block
    values, rows = (
      np.delete(a, np.s_[at : at + extra], 0) for a in (values, rows)
    )
  keep = values != 0
  starts = np.concatenate([[0], np.cumsum(keep.sum(1))])
  weights = optional.sparse().csc_array(
    (values[keep], rows[keep], starts), shape=(n, n)
  )
  weights.sort_indices()
  return weights


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _device_block(
  gram, norms, first, block, kind, k, num_rows, static, options
):
  # Rows of the products are targets here: they are symmetric.
  products = jax.lax.dynamic_slice_in_dim(gram, first, block)
  target = jax.lax.dynamic_slice_in_dim(norms, first, block)[:, None]
  weights = from_gram(
    products,
    norms[None, :],
    target,
    kind,
    num_rows=num_rows,
    xp=jnp,
    **dict(static),
    **options,
  )
  own = first + jnp.arange(block)[:, None] == jnp.arange(gram.shape[0])
  return jax.lax.top_k(jnp.where(own, 0, weights), k)
