"""Kernel initialisers with the norms that the paper's networks start from.

Layca keeps the norm of a kernel for ever, so the initialiser also fixes the
scale of every layer at the end of training: that of the last one is the
temperature of the softmax. It has to be the one that the paper used.
"""

import jax
import jax.numpy as jnp
import numpy as np

he_uniform = jax.nn.initializers.he_uniform
glorot_uniform = jax.nn.initializers.glorot_uniform


def keras_he_normal(dtype=jnp.float32) -> jax.nn.initializers.Initializer:
  """He normal as Keras 2.1.2 defines it: without a correction for truncation.

  Draws from a normal of standard deviation sqrt(2 / fan_in), truncated at two
  of them. Truncation leaves a standard deviation of .8796 times that, which
  `jax.nn.initializers.he_normal` makes up for and Keras 2.1.2 did not: kernels
  of JAX's initialiser are 1.137 times as large.

  Args:
    dtype: default type of the kernels.

  Returns:
    `init(key, shape, dtype)` for kernels [..., in, out]; fan_in is the product
    of all axes but the last.

  Example:
    >>> kernel = keras_he_normal()(jax.random.key(0), (3, 3, 64, 64))
    >>> round(float(kernel.std() * (9 * 64 / 2) ** 0.5), 2)
    0.88
  """

  def init(key, shape, dtype=dtype):
    if len(shape) < 2:
      raise ValueError(
        f'shape is {shape}; expected a kernel of at least two axes'
        ' [..., in, out].'
      )
    deviation = np.sqrt(2.0 / np.prod(shape[:-1]))
    draw = jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
    return draw * jnp.asarray(deviation, dtype)

  return init


def by_name(name: str) -> jax.nn.initializers.Initializer:
  """The initialiser that a config names.

  Args:
    name: 'keras_he_normal', 'he_uniform' or 'glorot_uniform'.

  Returns:
    The initialiser.

  Raises:
    ValueError: for another name.
  """
  known = {
    'keras_he_normal': keras_he_normal,
    'he_uniform': he_uniform,
    'glorot_uniform': glorot_uniform,
  }
  if name not in known:
    raise ValueError(f'initializer is {name!r}; expected one of {list(known)}.')
  return known[name]()
