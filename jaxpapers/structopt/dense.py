"""Batched inverse Cholesky factors of small dense matrices.

An explicit inverse factor turns every later triangular solve into a matrix
product, which CPU, GPU and TPU all do well; batched triangular solves are slow
on accelerators.

On CPU the factorisation itself is written in XLA operations too. LAPACK calls
inside a larger CPU program were seen to stall the thread pool that runs them
(jaxlib 0.10 on two cores: sporadic pauses of .4 s, and hangs), and the solver
has many small blocks; the loops below never leave the program.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

_BASE = 16  # scalar elimination up to this size, blocked above
_LOOP = 256  # blocked loop up to this size, recursive halving above


def matmul(a, b):
  """Batched matrix product at full precision on every backend."""
  return jnp.matmul(a, b, precision='highest')


def transpose(a):
  """Swaps the last two axes."""
  return jnp.swapaxes(a, -1, -2)


def _scalar_inverse_factor(a):
  """Row elimination of ``[a | I]``, one pivot at a time."""
  n = a.shape[-1]
  eye = jnp.broadcast_to(jnp.eye(n, dtype=a.dtype), a.shape)
  rows = jnp.arange(n, dtype=np.int32)

  def step(j, state):
    row = lax.dynamic_slice_in_dim(state, j, 1, axis=1)
    column = lax.dynamic_slice_in_dim(state, j, 1, axis=2)
    pivot = lax.rsqrt(lax.dynamic_slice_in_dim(row, j, 1, axis=2))
    row = row * pivot
    column = column * pivot
    index = rows[None, :, None]
    state = jnp.where(index > j, state - column * row, state)
    return jnp.where(index == j, row, state)

  state = jnp.concatenate([a, eye], axis=-1)
  return lax.fori_loop(np.int32(0), np.int32(n), step, state)[..., n:]


def _looped_inverse_factor(a):
  """The same elimination with blocks of about ``_BASE`` pivots."""
  n = a.shape[-1]
  count = math.ceil(n / _BASE)
  base = math.ceil(n / count)
  size = base * count
  extra = size - n
  a = jnp.pad(a, ((0, 0), (0, extra), (0, extra)))
  if extra:
    a = a + jnp.asarray(np.diag([0.0] * n + [1.0] * extra), a.dtype)
  eye = jnp.broadcast_to(jnp.eye(size, dtype=a.dtype), a.shape)
  rows = jnp.arange(size, dtype=np.int32)

  def step(i, state):
    start = i * np.int32(base)
    block = lax.dynamic_slice_in_dim(state, start, base, axis=1)
    pivot = lax.dynamic_slice_in_dim(block, start, base, axis=2)
    inverse = _scalar_inverse_factor(pivot)
    column = lax.dynamic_slice_in_dim(state, start, base, axis=2)
    column = matmul(column, transpose(inverse))
    column = jnp.where(rows[:, None] >= start + base, column, 0)
    block = matmul(inverse, block)
    state = state - matmul(column, block)
    return lax.dynamic_update_slice_in_dim(state, block, start, axis=1)

  state = jnp.concatenate([a, eye], axis=-1)
  state = lax.fori_loop(np.int32(0), np.int32(count), step, state)
  return state[:, :n, size : size + n]


def _recursive_inverse_factor(a):
  n = a.shape[-1]
  if n <= _BASE + _BASE // 2:
    return _scalar_inverse_factor(a)
  if n <= _LOOP:
    return _looped_inverse_factor(a)
  half = -(-n // (2 * _BASE)) * _BASE
  first = _recursive_inverse_factor(a[:, :half, :half])
  off = matmul(first, a[:, :half, half:])  # transpose of the factor's block
  rest = a[:, half:, half:] - matmul(transpose(off), off)
  second = _recursive_inverse_factor(rest)
  corner = -matmul(matmul(second, transpose(off)), first)
  top = jnp.concatenate([first, jnp.zeros_like(off)], axis=-1)
  low = jnp.concatenate([corner, second], axis=-1)
  return jnp.concatenate([top, low], axis=-2)


def _native_inverse_factor(a):
  factor = lax.linalg.cholesky(a, symmetrize_input=False)
  eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
  return lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)


def inverse_cholesky(a):
  """Inverse of the Cholesky factor of every matrix in a batch.

  Args:
    a: ``[batch, n, n]`` symmetric positive definite matrices, floating.

  Returns:
    ``[batch, n, n]`` lower-triangular ``W`` with ``W a W^T = I``. A matrix that
    is not positive definite gives NaN.
  """
  if a.shape[-1] == 0:
    return a
  return lax.platform_dependent(
    a,
    cpu=_recursive_inverse_factor,
    default=_native_inverse_factor,
  )
