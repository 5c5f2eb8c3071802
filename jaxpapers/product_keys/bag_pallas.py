"""Kernels for GPUs of the sums in `bag`: rows go from memory into registers.

They are written in Pallas and compiled by Triton. A program of the grid has one
token, and reads of a tile are in flight at once. Nothing but the result is
written: what a token costs is its rows, read once.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

# Reads that are in flight together, and columns of a row; powers of two.
TILE = 8
MAX_BLOCK = 512


def bag(
  values: jax.Array,
  ids: jax.Array,
  weights: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """`sum_r weights[t, r] * values[ids[t, r]]`, see `bag.embedding_bag`.

  Args:
    values: `[N, D]`.
    ids: int32 `[T, R]`, none negative; those of N or more read zeros.
    weights: `[T, R]`; the sum is made and returned in their type.
    interpret: Whether to run the kernel as ordinary JAX code, on any device.

  Returns:
    `[T, D]`.
  """
  ids, weights = _padded(values, ids, weights)
  tokens, width = ids.shape[0], values.shape[1]
  block = _block(width)
  kernel = functools.partial(_bag_kernel, reads=ids.shape[1], block=block)
  return pl.pallas_call(
    kernel,
    grid=(tokens, pl.cdiv(width, block)),
    out_shape=jax.ShapeDtypeStruct((tokens, width), weights.dtype),
    **_options(interpret),
  )(values, ids, weights)


def dot(
  values: jax.Array,
  ids: jax.Array,
  x: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """`<x[t], values[ids[t, r]]>`, see `bag.embedding_dot`.

  Args:
    values: `[N, D]`.
    ids: int32 `[T, R]`, none negative; those of N or more give zeros.
    x: `[T, D]`; the sum is made and returned in its type.
    interpret: Whether to run the kernel as ordinary JAX code, on any device.

  Returns:
    `[T, R]`.
  """
  reads = ids.shape[1]
  (ids,) = _padded(values, ids)
  kernel = functools.partial(_dot_kernel, block=_block(values.shape[1]))
  y = pl.pallas_call(
    kernel,
    grid=(ids.shape[0], ids.shape[1] // TILE),
    out_shape=jax.ShapeDtypeStruct(ids.shape, x.dtype),
    **_options(interpret),
  )(values, ids, x)
  return y[:, :reads]


def _bag_kernel(values_ref, ids_ref, weights_ref, y_ref, *, reads, block):
  """A part of the width of one token."""
  from jax.experimental.pallas import triton

  token = pl.program_id(0)
  columns = pl.program_id(1) * block + jnp.arange(block)

  def add(i, total):
    at = (token, pl.ds(i * TILE, TILE))
    weights = triton.load(weights_ref.at[at])
    rows = _rows(values_ref, triton.load(ids_ref.at[at]), columns)
    return total + (rows.astype(total.dtype) * weights[:, None]).sum(axis=0)

  total = jax.lax.fori_loop(
    0, reads // TILE, add, jnp.zeros((block,), y_ref.dtype)
  )
  inside = columns < y_ref.shape[1]
  triton.store(y_ref.at[token, columns], total, mask=inside)


def _dot_kernel(values_ref, ids_ref, x_ref, y_ref, *, block):
  """A tile of the reads of one token."""
  from jax.experimental.pallas import triton

  token = pl.program_id(0)
  at = (token, pl.ds(pl.program_id(1) * TILE, TILE))
  ids = triton.load(ids_ref.at[at])
  width = x_ref.shape[1]

  def add(i, total):
    columns = i * block + jnp.arange(block)
    x = triton.load(
      x_ref.at[token, jnp.minimum(columns, width - 1)],
      mask=columns < width,
      other=0.0,
    )
    rows = _rows(values_ref, ids, columns)
    return total + (rows.astype(total.dtype) * x[None]).sum(axis=1)

  total = jax.lax.fori_loop(
    0, pl.cdiv(width, block), add, jnp.zeros((TILE,), y_ref.dtype)
  )
  triton.store(y_ref.at[at], total)


def _rows(values_ref, ids, columns):
  """A tile of rows, zero where there is no such row or column."""
  from jax.experimental.pallas import triton

  count, width = values_ref.shape
  inside = (ids < count)[:, None] & (columns < width)[None]
  at = (
    jnp.minimum(ids, count - 1)[:, None],
    jnp.minimum(columns, width - 1)[None],
  )
  zero = jnp.zeros((), values_ref.dtype)
  return triton.load(values_ref.at[at], mask=inside, other=zero)


def _padded(values, ids, *others):
  """Reads of no row, up to a multiple of a tile."""
  spare = ((0, 0), (0, -ids.shape[1] % TILE))
  ids = jnp.pad(ids.astype(jnp.int32), spare, constant_values=values.shape[0])
  return ids, *(jnp.pad(x, spare) for x in others)


def _block(width: int) -> int:
  return min(MAX_BLOCK, pl.next_power_of_2(width))


def _options(interpret: bool) -> dict:
  if interpret:
    return {'interpret': True}
  from jax.experimental.pallas import triton

  return {'compiler_params': triton.CompilerParams(num_warps=4, num_stages=2)}
