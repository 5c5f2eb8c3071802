"""EASE: the closed form of a linear item model."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys import optional
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.gram import device_gram, symmetric_gram
from jaxpapers.recsys.models import ItemModel
from jaxpapers.recsys.similarities import top_k_columns

# Up to here the inverse is made in float64 on the host: seconds.
_DOUBLE = 8192


def ease(
  train: Interactions,
  l2: float = 500.0,
  *,
  top_k: int | None = None,
  max_bytes: float = 16e9,
) -> ItemModel:
  """EASE (Steck 2019): least squares over items without self-similarity.

  With G = R'R + l2 I and P = G^-1, B_ij = -P_ij / P_jj and B_jj = 0. The
  diagonal of G holds sums of squares; the code of the study has counts there,
  which is the same for binary data only.

  Args:
    train: Interactions.
    l2: Weight of the penalty, above 0.
    top_k: Entries kept of every column; None for all.
    max_bytes: Refuse catalogues whose matrices would be larger than this.

  Returns:
    An item model with dense weights, float32.

  Raises:
    ValueError: l2 is not positive, or the catalogue is too large.
  """
  _check_l2(l2)
  n = train.num_items
  double = n <= _DOUBLE
  _check_size(n, 16 if double else 8, max_bytes)
  if jax.default_backend() != 'cpu':
    weights = np.asarray(_refined(device_gram(train.csr), l2))
  else:
    weights = _host_ease(train, l2, np.float64 if double else np.float32)
  if top_k is not None and top_k < n:
    weights = top_k_columns(weights, top_k)
  return ItemModel(weights)


def _check_size(n, each, max_bytes):
  need = n * n * each
  if need > max_bytes:
    raise ValueError(
      f'EASE of {n} items needs {need / 1e9:.1f} GB for two dense matrices;'
      f' max_bytes is {max_bytes / 1e9:.1f} GB. Raise it, drop rare items, or'
      ' use slim_elastic_net or rp3_beta, whose weights are sparse.'
    )


def _check_l2(l2):
  if not l2 > 0:
    raise ValueError(f'l2 is {l2}; expected a positive weight such as 500.')


def _host_ease(train, l2, dtype):
  gram = dense_gram(train).astype(dtype)
  gram[np.diag_indices_from(gram)] += l2
  linalg = optional.load('scipy.linalg.lapack')
  prefix = 'd' if dtype == np.float64 else 's'
  # Half the work of a general inverse, and in place.
  factor, info = getattr(linalg, prefix + 'potrf')(
    gram.T, lower=True, overwrite_a=True
  )
  if info == 0:
    inverse, info = getattr(linalg, prefix + 'potri')(
      factor, lower=True, overwrite_c=True
    )
  if info:
    raise ValueError(
      f"R'R + {l2} I is not positive definite in {np.dtype(dtype).name}."
      ' Raise l2.'
    )
  del factor
  diagonal = inverse.diagonal().copy()
  # Rows of C, not columns of Fortran: products with profiles want them. The
  # upper triangle holds it, then.
  weights = np.ascontiguousarray(inverse.T, np.float32)
  del inverse
  for first in range(0, len(weights), 1024):
    block = slice(first, min(first + 1024, len(weights)))
    weights[block.stop :, block] = weights[block, block.stop :].T
    square = np.triu(weights[block, block])
    weights[block, block] = square + np.triu(square, 1).T
  weights /= -diagonal.astype(np.float32)
  weights[np.diag_indices_from(weights)] = 0
  return weights


def dense_gram(train: Interactions) -> np.ndarray:
  """R'R as a dense float32 matrix, `[num_items, num_items]`."""
  return symmetric_gram(train.csr)


def ease_weights(gram: Any, l2: Any) -> jax.Array:
  """EASE out of a Gram matrix, under jit, vmap and grad.

  Args:
    gram: R'R, float `[n, n]`.
    l2: Weight of the penalty; may be traced.

  Returns:
    B, `[n, n]`.

  Example:
    >>> x = jnp.array([[1.0, 1, 0], [1, 1, 1], [0, 0, 1]])
    >>> ease_weights(x.T @ x, 1.0)[0].round(3).tolist()
    [0.0, 0.625, 0.20000000298023224]
  """
  gram = jnp.asarray(gram)
  eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
  factor = jax.scipy.linalg.cho_factor(gram + l2 * eye, lower=True)
  return _weights_of_inverse(jax.scipy.linalg.cho_solve(factor, eye))


def _weights_of_inverse(inverse):
  weights = -inverse / jnp.diagonal(inverse)
  eye = jnp.eye(inverse.shape[0], dtype=bool)
  return jnp.where(eye, 0, weights)


@functools.partial(jax.jit, donate_argnums=0)
def _refined(gram, l2):
  """The same in float32, with one step of Newton against rounding."""
  high = jax.lax.Precision.HIGHEST
  eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
  gram = gram + l2 * eye
  factor = jax.scipy.linalg.cho_factor(gram, lower=True)
  inverse = jax.scipy.linalg.cho_solve(factor, eye)
  residual = eye - jnp.matmul(gram, inverse, precision=high)
  return _weights_of_inverse(
    inverse + jnp.matmul(inverse, residual, precision=high)
  )


def ease_path(
  train: Interactions, l2s: Any, *, max_bytes: float = 16e9
) -> Iterator[tuple[float, ItemModel]]:
  """EASE for many penalties at the price of one decomposition.

  Args:
    train: Interactions.
    l2s: Penalties.
    max_bytes: Refuse catalogues whose matrices would be larger than this.

  Yields:
    Each penalty and its model, in the given order.
  """
  # Vectors, scaled vectors and the inverse, in float64, and weights.
  _check_size(train.num_items, 28, max_bytes)
  for l2 in l2s:
    _check_l2(l2)
  gram = dense_gram(train).astype(np.float64)
  values, vectors = np.linalg.eigh(gram)
  del gram
  for l2 in l2s:
    scaled = vectors / (np.maximum(values, 0) + l2)
    inverse = scaled @ vectors.T
    weights = -inverse / inverse.diagonal()
    weights[np.diag_indices_from(weights)] = 0
    yield float(l2), ItemModel(weights.astype(np.float32))
