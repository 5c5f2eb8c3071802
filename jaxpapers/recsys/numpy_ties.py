"""Equal scores in the order in which the study's program met them.

With binary data many neighbours of an item are equally near, and many items
have equal scores. The study's program left the choice to numpy's `argpartition`
and `argsort`, which promise nothing about equal numbers: the published values
are those of one order. `ties='numpy'` of the fit functions and of the
evaluation takes the same steps, in the same order and precision, and so
computes the published numbers to their four decimals.

There is a condition. numpy sorts with vector instructions where the processor
has them (from numpy 1.25 on), and these leave equal numbers in another order.
The program's own numbers then change, too. `scalar_sorts` tells which it is,
and `SCALAR` is the environment variable that turns the instructions off.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxpapers.recsys import optional, similarities

# Names of the instructions, in numpy before and from 2.4; unknown ones are
# ignored.
SCALAR = (
  'NPY_DISABLE_CPU_FEATURES=X86_V4 X86_V3 AVX512_ICL AVX512_SKX AVX512F AVX2'
)


def scalar_sorts() -> bool:
  """Whether equal numbers come out in the order of numpy's scalar sorts.

  A partition and a sort of numbers that are equal by the hundred are compared
  with what they are without vector instructions.
  """
  x = np.arange(600) * 7919 % 5 * 1.0
  order = np.argsort(x), np.argpartition(x, 100)[:100]
  weights = np.arange(1, 601)
  # Position times index: another order has another sum.
  found = [int((part * weights[: len(part)]).sum()) for part in order]
  return found == _SCALAR_SUMS


_SCALAR_SUMS = [53606460, 1570460]


def nearest(
  x: Any,
  kind: str,
  k: int | None,
  *,
  shrink: float = 0.0,
  alpha: float = 0.5,
  tversky: tuple[float, float] = (1.0, 1.0),
  normalize: bool = True,
  block: int = 256,
) -> Any:
  """The k nearest neighbours of every column.

  Similarities are computed in double precision; a partition of them, in the
  order in which walking from the column's rows to their columns meets the
  neighbours first, decides which are kept.

  Args:
    x: scipy sparse matrix, `[rows, n]`, CSR (items) or CSC (users).
    kind: One of `similarities.KINDS`, but 'euclidean'.
    k: How many; None for all.
    shrink: See `similarities.similarity`.
    alpha: See `similarities.similarity`; in single precision.
    tversky: See `similarities.similarity`; in single precision.
    normalize: See `similarities.similarity`.
    block: Columns at a time; memory is 8 * n * block bytes, a few times.

  Returns:
    `scipy.sparse.csr_array`, float32 `[n, n]`.

  Raises:
    ValueError: The similarity is 'euclidean', where all are neighbours.
  """
  similarities.check_k(k)
  similarities.check_kind(kind)
  if kind == 'euclidean':
    raise ValueError(
      "ties='numpy' is the order of common rows, which euclidean similarities"
      " do not need; use ties='index'."
    )
  by_column = x.format == 'csc'
  x = similarities.prepare_sparse(x, kind)
  x.sort_indices()
  # In single precision, whose rounding depends on the order of summation: that
  # of rows, or of columns.
  squares = x.multiply(x)
  squares = squares.tocsc() if by_column else squares.tocsr()
  norms = np.asarray(squares.sum(axis=0)).astype(np.float64).ravel()
  n = x.shape[1]
  double = x.astype(np.float64)
  left, columns = double.T.tocsr(), double.tocsc()
  columns.sort_indices()
  rows, values, counts = [], [], []
  for first in range(0, n, block):
    some = slice(first, min(first + block, n))
    weights = similarities.from_gram(
      (left @ columns[:, some].toarray()).T,
      norms[None, :],
      norms[some, None],
      kind,
      shrink=shrink,
      alpha=float(np.float32(alpha)),
      tversky=tuple(float(np.float32(v)) for v in tversky),
      normalize=normalize,
    )
    for column, similar in enumerate(weights, first):
      order = _met(x, columns, column)
      if k is not None and k < len(order):
        # The program's array is as long as there are columns, zeros behind.
        array = np.zeros(n)
        array[: len(order)] = -similar[order]
        order = order[np.argpartition(array, k - 1)[:k]]
      order = np.sort(order[similar[order] != 0])
      rows.append(order)
      values.append(similar[order].astype(np.float32))
      counts.append(len(order))
  return _csc(rows, values, counts, n).tocsr()


def _met(x, columns, column):
  """Columns with a row in common, in the order in which they are met."""
  own = columns.indices[columns.indptr[column] : columns.indptr[column + 1]]
  starts = x.indptr[own]
  lengths = x.indptr[own + 1] - starts
  shift = np.cumsum(lengths) - lengths
  met = x.indices[np.arange(lengths.sum()) + np.repeat(starts - shift, lengths)]
  # Of repeated places the last value stays: backwards, that is the first.
  first = np.full(x.shape[1], -1)
  first[met[::-1]] = np.arange(len(met))[::-1]
  first[column] = -1
  found = np.flatnonzero(first >= 0)
  return found[np.argsort(first[found])]


def keep_sorted(rows: np.ndarray, k: int | None) -> np.ndarray:
  """Where the k last of each row, sorted, are that are not zero; bool.

  Args:
    rows: float `[b, n]`, not negative.
    k: How many; None for all.
  """
  keep = rows != 0
  if k is not None:
    for row in np.flatnonzero(np.count_nonzero(keep, axis=1) > k):
      keep[row] = False
      keep[row, np.argsort(rows[row])[-k:]] = True
  return keep


def prune_columns(weights: Any, k: int | None) -> Any:
  """The k last of every column, sorted, of a scipy sparse matrix; CSC."""
  weights = weights.tocsc()
  weights.sort_indices()
  if k is None:
    return weights
  rows, values, counts = [], [], []
  for start, stop in zip(weights.indptr, weights.indptr[1:], strict=False):
    part = weights.data[start:stop]
    kept = np.sort(np.argsort(part)[-k:]) if len(part) > k else slice(None)
    rows.append(weights.indices[start:stop][kept])
    values.append(part[kept])
    counts.append(len(values[-1]))
  return _csc(rows, values, counts, weights.shape[0])


def _csc(rows, values, counts, n):
  starts = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])
  return optional.sparse().csc_array(
    (
      np.concatenate([np.zeros(0, np.float32), *values]),
      np.concatenate([np.zeros(0, np.int64), *rows]),
      starts,
    ),
    shape=(n, len(counts)),
  )


def top_items(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """The k best items of each row, as the study's program lists them.

  A partition of all scores, then a sort of those k.

  Args:
    scores: float32 `[b, n]` without NaN; -inf for what is left out.
    k: How many.

  Returns:
    Items int32 `[b, k]`, -1 where there are no more; their scores.
  """
  items, values = [], []
  for negative in _rows(scores):
    if k < negative.shape[1]:
      part = np.argpartition(negative, k, axis=1)[:, :k]
    else:
      part = np.broadcast_to(np.arange(negative.shape[1]), negative.shape)
    chosen = np.take_along_axis(negative, part, 1)
    order = np.argsort(chosen, axis=1)
    values.append(-np.take_along_axis(chosen, order, 1))
    items.append(np.take_along_axis(part, order, 1))
  value = np.concatenate(values)
  item = np.concatenate(items).astype(np.int32)
  return np.where(value == -np.inf, -1, item), value


def _rows(scores: np.ndarray, block: int = 256) -> Iterator[np.ndarray]:
  for first in range(0, max(len(scores), 1), block):
    yield -scores[first : first + block]
