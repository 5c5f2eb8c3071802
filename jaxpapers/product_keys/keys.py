"""How keys begin."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ['KEY_INITIALIZERS', 'xlm_keys']

KEY_INITIALIZERS = ('uniform', 'gaussian', 'binary', 'xlm', 'xlm_gaussian')


def make_keys(
  kind: str | Callable,
  rng: jax.Array,
  shape: tuple[int, ...],
  dtype,
  normalized: bool = False,
) -> jax.Array:
  """Keys `[..., n, dim]` of a kind, or what a function gives.

  Args:
    kind: A function (rng, shape, dtype), or 'uniform' within 1 / sqrt(dim),
      'gaussian' of variance 1, 'binary' (all patterns of signs, over
      sqrt(dim)), 'xlm' and 'xlm_gaussian': the numbers that XLM draws, the same
      in every layer.
    rng: Typed key.
    shape: Of the result.
    dtype: Of the result.
    normalized: Whether keys have length 1.

  Returns:
    The keys.

  Raises:
    ValueError: If `kind` is unknown, or the sizes of binary keys do not fit.
  """
  n, dim = shape[-2:]
  if callable(kind):
    keys = kind(rng, shape, dtype)
  elif kind == 'uniform':
    bound = dim**-0.5
    keys = jax.random.uniform(rng, shape, dtype, -bound, bound)
  elif kind == 'gaussian':
    keys = jax.random.normal(rng, shape, dtype)
  elif kind == 'binary':
    if 2**dim != n:
      raise ValueError(
        f"key_init is 'binary' with {n} keys of {dim} numbers; expected"
        f' 2^{dim} = {2**dim} keys, one for each pattern of signs.'
      )
    bits = (np.arange(n)[:, None] >> np.arange(dim)) & 1
    keys = jnp.broadcast_to(
      jnp.asarray((2 * bits - 1) * dim**-0.5, dtype), shape
    )
  elif kind in ('xlm', 'xlm_gaussian'):
    count = int(np.prod(shape[:-2], dtype=int))
    law = 'gaussian' if kind == 'xlm_gaussian' else 'uniform'
    keys = np.stack([xlm_keys(n, dim, seed, law) for seed in range(count)])
    keys = jnp.asarray(keys.reshape(shape), dtype)
  else:
    choices = ', '.join(map(repr, KEY_INITIALIZERS))
    raise ValueError(
      f'key_init is {kind!r}; expected one of {choices}, or a function of rng,'
      ' shape and dtype.'
    )
  if normalized:
    keys = keys / jnp.linalg.norm(keys, axis=-1, keepdims=True)
  return keys


def xlm_keys(
  n: int, dim: int, seed: int, law: str = 'uniform', normalized: bool = False
) -> np.ndarray:
  """The keys that XLM draws with numpy.

  Args:
    n: Number of keys.
    dim: Their width.
    seed: `2 * head + half` in XLM, whatever the layer.
    law: 'uniform' or 'gaussian'.
    normalized: Whether keys have length 1.

  Returns:
    float32 `[n, dim]`.

  Example:
    >>> xlm_keys(4, 2, seed=0).shape
    (4, 2)
  """
  random = np.random.RandomState(seed)
  if law == 'uniform':
    bound = 1 / np.sqrt(dim)
    keys = random.uniform(-bound, bound, (n, dim))
  else:
    keys = random.randn(n, dim)
  if normalized:
    keys = keys / np.linalg.norm(keys, axis=1, keepdims=True)
  return keys.astype(np.float32)
