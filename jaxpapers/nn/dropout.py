"""Dropout that draws no more random bits than it needs."""

import jax
import jax.numpy as jnp


def dropout(
  key: jax.Array, x: jax.Array, rate: float, bits: int = 16
) -> jax.Array:
  """Sets elements to zero at random and scales the others up.

  The mask is a comparison of random integers with a threshold. Of a 32-bit
  float most bits would decide nothing, and on CPUs drawing them takes longer
  than all else here.

  Args:
    key: Typed key.
    x: Array of any shape, floating.
    rate: Probability of zero, at least 0 and below 1. It is rounded to the
      nearest multiple of 2^-bits.
    bits: Random bits per element: 8, 16 or 32.

  Returns:
    Array like `x`. Its mean over keys is `x`: the scale is the reciprocal of
    the rounded probability of staying.

  Example:
    >>> y = dropout(jax.random.key(0), jnp.ones(8), 0.5)
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
  """
  keep = round((1 - rate) * 2**bits)
  if keep >= 2**bits:
    return x
  if keep <= 0:
    return jnp.zeros_like(x)
  draws = random_bits(key, x.shape, bits)
  scale = jnp.asarray(2**bits / keep, x.dtype)
  kept = draws < jnp.asarray(keep, draws.dtype)
  return jnp.where(kept, x * scale, jnp.zeros((), x.dtype))


def random_bits(key: jax.Array, shape: tuple[int, ...], bits: int) -> jax.Array:
  """Random integers, several cut from each 32-bit draw.

  `jax.random.bits` spends a whole draw on each element however few bits it
  has: on CPUs, twice and four times as long.

  Args:
    key: Typed key.
    shape: Shape of the result.
    bits: Of each integer: 8, 16 or 32.

  Returns:
    Unsigned integers of that many bits.
  """
  parts = 32 // bits
  if parts == 1 or not shape or shape[-1] % parts:
    return jax.random.bits(key, shape, f'uint{bits}')
  words = jax.random.bits(key, (*shape[:-1], shape[-1] // parts), 'uint32')
  return jax.lax.bitcast_convert_type(words, f'uint{bits}').reshape(shape)
