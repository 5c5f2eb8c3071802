"""Value tables of eight bits, for inference."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ['QuantizedTable', 'quantize_values']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedTable:
  """Rows of integers, each with its scale.

  Takes the place of a table in the collection 'memory', or as `values=`.

  Attributes:
    rows: int8 `[N, D]`.
    scale: float32 `[N]`; row i of the table is `rows[i] * scale[i]`.
  """

  rows: jax.Array
  scale: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the table."""
    return self.rows.shape

  def dequantize(self) -> jax.Array:
    """The table in float32, `[N, D]`."""
    return self.rows * self.scale[:, None]


def quantize_values(values: jax.Array) -> QuantizedTable:
  """Rounds each row to 255 levels between minus and plus its largest magnitude.

  Args:
    values: Table `[N, D]`, floating-point and finite.

  Returns:
    A quarter of its float32 size, and 4 bytes a row.

  Raises:
    ValueError: If it has another rank or, where it has values, NaN or infinity.

  Example:
    >>> table = quantize_values(jnp.array([[1.0, -0.5], [0.0, 0.0]]))
    >>> table.rows.tolist()
    [[127, -64], [0, 0]]
  """
  if values.ndim != 2:
    raise ValueError(f'values has shape {values.shape}; expected [N, D].')
  if not isinstance(values, jax.core.Tracer):
    if not np.isfinite(np.asarray(values, np.float32)).all():
      raise ValueError('values has NaN or infinity; expected finite numbers.')
  wide = values.astype(jnp.float32)
  scale = jnp.max(jnp.abs(wide), axis=1) / 127
  rows = jnp.round(wide / jnp.where(scale > 0, scale, 1)[:, None])
  return QuantizedTable(rows.astype(jnp.int8), scale)


def read_table(bag: Callable, table: Any, ids: jax.Array, weights: jax.Array):
  """`bag(table, ids, weights)`, for quantized tables too."""
  if not isinstance(table, QuantizedTable):
    return bag(table, ids, weights)
  scale = table.scale.at[ids].get(mode='fill', fill_value=0)
  return bag(table.rows, ids, weights * scale)


def dot_table(dot: Callable, table: Any, ids: jax.Array, x: jax.Array):
  """`dot(table, ids, x)`, for quantized tables too."""
  if not isinstance(table, QuantizedTable):
    return dot(table, ids, x)
  scale = table.scale.at[ids].get(mode='fill', fill_value=0)
  return dot(table.rows, ids, x) * scale
