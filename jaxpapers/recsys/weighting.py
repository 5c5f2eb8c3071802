"""TF-IDF and BM25, as the evaluation study weights interactions and features.

Rows are documents (items), columns are terms (users, or features).
"""

from typing import Any

import numpy as np

KINDS = ('none', 'TF-IDF', 'BM25')


def tf_idf(x: Any) -> Any:
  """sqrt(x) * log(N / (1 + df)) of the stored entries.

  Args:
    x: Documents by terms, scipy sparse or dense, `[N, terms]`, not negative.

  Returns:
    `scipy.sparse.csr_array`, float32. A term of all documents gets a negative
    weight, as in the original.

  Raises:
    ValueError: An entry is negative.

  Example:
    >>> x = np.array([[4.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    >>> tf_idf(x).toarray().round(3)
    array([[0.811, 0.   ],
           [0.   , 0.   ],
           [0.   , 0.405]], dtype=float32)
  """
  x = _csr(x)
  if x.nnz and x.data.min() < 0:
    raise ValueError(
      'x has negative entries, which have no root. Use BM25, or drop them.'
    )
  x.data = (np.sqrt(x.data) * _idf(x)[x.indices]).astype(np.float32)
  return x


def bm25(x: Any, k1: float = 1.2, b: float = 0.75) -> Any:
  """Okapi BM25 of the stored entries.

  x (k1 + 1) / (k1 ((1 - b) + b len / mean len) + x) * log(N / (1 + df)), where
  len is the sum of a document.

  Args:
    x: Documents by terms, scipy sparse or dense, `[N, terms]`.
    k1: How soon repetitions stop to count.
    b: How much long documents are held back.

  Returns:
    `scipy.sparse.csr_array`, float32.
  """
  x = _csr(x)
  length = np.asarray(x.sum(axis=1), np.float64)
  mean = length.mean() if len(length) else 1.0
  norm = (1 - b) + b * length / (mean if mean else 1.0)
  row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
  data = x.data.astype(np.float64)
  data = data * (k1 + 1) / (k1 * norm[row] + data)
  x.data = (data * _idf(x)[x.indices]).astype(np.float32)
  return x


def weight(x: Any, kind: str) -> Any:
  """Weights by name: 'none', 'TF-IDF' or 'BM25'."""
  if kind == 'none':
    return _csr(x)
  if kind == 'TF-IDF':
    return tf_idf(x)
  if kind == 'BM25':
    return bm25(x)
  raise ValueError(f'weighting is {kind!r}; expected one of {KINDS}.')


def _csr(x):
  from jaxpapers.recsys import optional

  x = optional.sparse().csr_array(x, dtype=np.float32, copy=True)
  x.eliminate_zeros()
  return x


def _idf(x):
  frequency = np.bincount(x.indices, minlength=x.shape[1])
  return np.log(x.shape[0] / (1 + frequency))
