"""Tables of vectors, looked up by id."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Embedding(nn.Module):
  """A table of one vector per id.

  Ids outside of the table give NaN, where indexing in JAX would silently take
  the nearest row: a loss that turns NaN is noticed.

  Attributes:
    rows: Number of ids.
    features: Width of a vector.
    table_init: Initializer of the table.
    dtype: Type of the result.
    param_dtype: Type of the table.
  """

  rows: int
  features: int
  table_init: Callable[..., Any]
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def setup(self):
    shape = (self.rows, self.features)
    self.embedding = self.param(
      'embedding', self.table_init, shape, self.param_dtype
    )

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Vectors of the ids, `[..., features]`."""
    # Negative indices would count from the end.
    ids = jnp.where(ids < 0, self.rows, ids)
    found = (
      jnp.asarray(self.embedding).at[ids].get(mode='fill', fill_value=jnp.nan)
    )
    return found.astype(self.dtype)

  def table(self) -> jax.Array:
    """The whole table, `[rows, features]`."""
    return self.embedding


def zero_rows(init: Callable[..., Any], *rows: slice | int):
  """An initializer whose result is zero in some rows.

  Args:
    init: Initializer of a table.
    *rows: Indices or slices of rows.

  Returns:
    An initializer.
  """

  def zeroed(key, shape, dtype=jnp.float32):
    table = init(key, shape, dtype)
    for row in rows:
      table = table.at[row].set(0)
    return table

  return zeroed
