"""P3alpha and RP3beta: three steps of a random walk on the bipartite graph."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys import numpy_ties, optional
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.models import ItemModel
from jaxpapers.recsys.similarities import check_k, keep_top, top_k_columns


def p3_alpha(
  train: Interactions,
  *,
  top_k: int | None = 100,
  alpha: float = 1.0,
  normalize: bool = False,
  min_rating: float = 0.0,
  implicit: bool = False,
  block: int = 512,
  ties: str = 'index',
) -> ItemModel:
  """Probability of walking user - item - user - item, probabilities ^ alpha.

  Args:
    train: Interactions, not negative.
    top_k: Entries kept: first of every row, then of every column.
    alpha: Exponent of the transition probabilities; 0 counts co-occurrences.
    normalize: Make rows sum to 1 in between.
    min_rating: Drop lower ratings first.
    implicit: Then count every rating as 1.
    block: Rows at a time; memory is 8 * num_items * block bytes, a few times.
    ties: See `rp3_beta`.

  Returns:
    An item model.
  """
  return rp3_beta(
    train,
    top_k=top_k,
    alpha=alpha,
    beta=0.0,
    normalize=normalize,
    min_rating=min_rating,
    implicit=implicit,
    block=block,
    ties=ties,
  )


def rp3_beta(
  train: Interactions,
  *,
  top_k: int | None = 100,
  alpha: float = 1.0,
  beta: float = 0.6,
  normalize: bool = True,
  min_rating: float = 0.0,
  implicit: bool = False,
  block: int = 512,
  ties: str = 'index',
) -> ItemModel:
  """P3alpha over the popularity of the item that is reached, ^ beta.

  Args:
    train: Interactions, not negative.
    top_k: Entries kept: first of every row, then of every column.
    alpha: Exponent of the transition probabilities.
    beta: Exponent of the popularity.
    normalize: Make rows sum to 1 in between.
    min_rating: Drop lower ratings first.
    implicit: Then count every rating as 1.
    block: Rows at a time.
    ties: Of entries that are equal keep those of lower 'index', or, as the
      study's program, which computes in single precision, those that 'numpy'
      sorts last (`numpy_ties`).

  Returns:
    An item model.

  Raises:
    ValueError: A value is negative, or `ties` is unknown.
  """
  check_k(top_k)
  if ties not in ('index', 'numpy'):
    raise ValueError(f"ties is {ties!r}; expected 'index' or 'numpy'.")
  # In double precision walks of equal probability stay equal, whatever the
  # order of summation: rounding would decide which of them are kept.
  dtype = np.float32 if ties == 'numpy' else np.float64
  if len(train) and train.value.min() < 0:
    raise ValueError(
      'train has negative values; probabilities need values above 0.'
    )
  if min_rating > 0:
    train = train.select(train.value >= min_rating)
    if implicit:
      train = train.binary()
  n = train.num_items
  user_to_item, item_to_user = _transitions(train, alpha, dtype)
  left = user_to_item.T.tocsr()  # [items, users]
  right = item_to_user.T.tocsc()  # [users, items]
  popularity = train.item_counts().astype(dtype)
  discount = np.zeros(n)
  seen = popularity > 0
  discount[seen] = popularity[seen] ** -float(beta)
  rows, columns, values = [], [], []
  for first in range(0, n, block):
    dense = right[:, first : first + block].toarray()
    walk = np.ascontiguousarray((left @ dense).T)  # [block, n]
    inside = np.arange(len(walk))
    walk[inside, first + inside] = 0
    if beta:
      walk = walk * discount
    if ties == 'numpy':
      keep = numpy_ties.keep_sorted(walk, top_k)
      walk = walk.astype(np.float32)
    else:
      keep = keep_top(walk, n if top_k is None else top_k, zeros=False)
    if normalize:
      total = np.where(keep, walk, 0).sum(1, np.float64, keepdims=True)
      walk = walk / np.where(total > 0, total, 1)
    row, column = np.nonzero(keep)
    rows.append(row + first)
    columns.append(column)
    values.append(walk[keep].astype(np.float32))
  weights = optional.sparse().csc_array(
    (
      np.concatenate(values or [np.zeros(0, np.float32)]),
      (
        np.concatenate(rows or [np.zeros(0, int)]),
        np.concatenate(columns or [np.zeros(0, int)]),
      ),
    ),
    shape=(n, n),
    dtype=np.float32,
  )
  prune = numpy_ties.prune_columns if ties == 'numpy' else prune_columns
  return ItemModel(prune(weights, top_k).tocsr())


def _transitions(train, alpha, dtype):
  """Probabilities ^ alpha from users to items and from items to users."""
  sparse = optional.sparse()
  total = np.bincount(train.user, train.value, minlength=train.num_users)
  forward = (train.value / total[train.user]).astype(dtype) ** float(alpha)
  count = train.item_counts().astype(np.float64)
  backward = (1.0 / count[train.item]).astype(dtype) ** float(alpha)
  shape = train.shape
  starts = train.row_starts
  user_to_item = sparse.csr_array((forward, train.item, starts), shape=shape)
  back = sparse.csr_array((backward, train.item, starts), shape=shape)
  return user_to_item, back.T


def prune_columns(weights: Any, top_k: int | None) -> Any:
  """Keeps the k largest stored entries of every column of a CSC matrix."""
  weights = weights.tocsc()
  if top_k is None or top_k >= weights.shape[0]:
    return weights
  weights.sort_indices()
  keep = np.ones(weights.nnz, bool)
  starts = weights.indptr
  for column in np.flatnonzero(np.diff(starts) > top_k):
    part = slice(starts[column], starts[column + 1])
    keep[part] = keep_top(weights.data[None, part], top_k)[0]
  if keep.all():
    return weights
  counts = np.add.reduceat(np.append(keep, False).astype(np.int64), starts[:-1])
  counts[np.diff(starts) == 0] = 0
  return optional.sparse().csc_array(
    (
      weights.data[keep],
      weights.indices[keep],
      np.concatenate([[0], np.cumsum(counts)]).astype(starts.dtype),
    ),
    shape=weights.shape,
  )


def walk_weights(
  x: Any,
  alpha: Any = 1.0,
  beta: Any = 0.0,
  *,
  top_k: int | None = None,
  normalize: bool = False,
) -> jax.Array:
  """P3alpha and RP3beta of a dense matrix, under jit, vmap and grad.

  Args:
    x: Interactions, float `[users, items]`, not negative.
    alpha: Exponent of probabilities; may be traced.
    beta: Exponent of popularity; may be traced.
    top_k: Entries kept of every row, then of every column.
    normalize: Make rows sum to 1 in between.

  Returns:
    Weights, `[items, items]`.
  """
  x = jnp.asarray(x)
  x = x.astype(jnp.result_type(x, jnp.float32))
  stored = x > 0

  def power(base, exponent):
    return jnp.where(stored, jnp.where(stored, base, 1) ** exponent, 0)

  total = jnp.maximum(x.sum(axis=1, keepdims=True), 1e-30)
  count = jnp.maximum(stored.sum(axis=0), 1)
  walk = jnp.matmul(
    power(1 / count, alpha).T,
    power(x / total, alpha),
    precision=jax.lax.Precision.HIGHEST,
  )
  walk = jnp.where(jnp.eye(x.shape[1], dtype=bool), 0, walk)
  walk = walk * count.astype(x.dtype) ** -beta
  walk = top_k_columns(walk.T, top_k).T
  if normalize:
    sums = walk.sum(axis=1, keepdims=True)
    walk = walk / jnp.where(sums > 0, sums, 1)
  return top_k_columns(walk, top_k)
