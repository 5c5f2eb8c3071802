"""Products of the interaction matrix with thin matrices, wherever they are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.similarities import DENSE_BYTES


class Products:
  """R and R' as linear maps: scipy on the CPU, dense float32 on a device.

  Attributes:
    shape: Of R.
    xp: Where results live: `numpy` or `jax.numpy`.
  """

  def __init__(self, train: Interactions, dtype: Any = np.float32):
    self.shape = train.shape
    self.host = (
      jax.default_backend() == 'cpu'
      or 4 * train.num_users * train.num_items > DENSE_BYTES
    )
    self.xp = np if self.host else jnp
    if self.host:
      self._forward = train.csr.astype(dtype)
      self._back = self._forward.T.tocsr()
    else:
      self._dense = jnp.asarray(train.to_dense())

  def times(self, matrix: Any) -> Any:
    """R @ matrix, `[items, k]` to `[users, k]`."""
    if self.host:
      return self._forward @ matrix
    return jnp.matmul(self._dense, matrix, precision=jax.lax.Precision.HIGHEST)

  def transpose_times(self, matrix: Any) -> Any:
    """R' @ matrix, `[users, k]` to `[items, k]`."""
    if self.host:
      return self._back @ matrix
    return jnp.matmul(
      self._dense.T, matrix, precision=jax.lax.Precision.HIGHEST
    )
