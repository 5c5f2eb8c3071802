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
  draws = jax.random.bits(key, x.shape, f'uint{bits}')
  scale = jnp.asarray(2**bits / keep, x.dtype)
  return jnp.where(
    draws < jnp.asarray(keep, draws.dtype), x * scale, jnp.zeros((), x.dtype)
  )
