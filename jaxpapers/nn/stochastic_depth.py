"""Stochastic depth: residual branches that are left out at random."""

import jax
import jax.numpy as jnp


def drop_path(
  key: jax.Array | None,
  x: jax.Array,
  survival_prob: float | None,
  deterministic: bool = False,
) -> jax.Array:
  """Keeps each example with a probability, divided by it, or zeroes it.

  Args:
    key: Typed key; not looked at if nothing can be dropped.
    x: `[N, ...]`, floating: a residual branch before it is added.
    survival_prob: Probability of staying, above 0 up to 1; None is 1.
    deterministic: Whether to return x as it is, as in evaluation.

  Returns:
    An array like x whose mean over keys is x.

  Raises:
    ValueError: If the probability is impossible.

  Example:
    >>> y = drop_path(jax.random.key(0), jnp.ones((64, 1)), 0.5)
    >>> sorted(set(y.ravel().tolist()))
    [0.0, 2.0]
  """
  if survival_prob is None:
    return x
  if not 0 < survival_prob <= 1:
    raise ValueError(
      f'survival_prob is {survival_prob}; expected more than 0, up to 1.'
    )
  if deterministic or survival_prob == 1:
    return x
  shape = (x.shape[0],) + (1,) * (x.ndim - 1)
  kept = jax.random.bernoulli(key, survival_prob, shape)
  scale = jnp.asarray(1 / survival_prob, x.dtype)
  return x * jnp.where(kept, scale, jnp.zeros((), x.dtype))
