"""The s-core: the k-core of a weighted network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.kcore import edges as graphs


def s_core_mask(weights: Any, s: Any) -> jax.Array:
  """Which nodes belong to the s-core.

  The s-core is the largest set of nodes in which each has strength (sum of the
  weights of its links inside the set) of at least s. With couplings J_ij that
  differ, it takes the place of the k-core in the collapse of activity. Costs
  N^2 per round of pruning.

  Args:
    weights: [N, N], symmetric, not negative, zero on the diagonal.
    s: threshold, may be traced.

  Returns:
    bool[N].

  Raises:
    ValueError: `weights`, where known, is not such a matrix, or `s` is NaN.

  Example:
    >>> weights = np.array([[0, 2.0, 0.5], [2.0, 0, 0], [0.5, 0, 0]])
    >>> s_core_mask(weights, 1.0).tolist()
    [True, True, False]
  """
  graphs.check_adjacency(weights, 'weights')
  if not graphs.is_traced(weights) and np.min(weights, initial=0) < 0:
    raise ValueError(
      f'weights has a negative entry, {np.min(weights)}; pruning has one '
      'result only if removing a node never strengthens another.'
    )
  if not graphs.is_traced(s) and np.isnan(s):
    raise ValueError('s is nan; expected a threshold of the strength.')
  weights = jnp.asarray(weights)
  if weights.dtype == bool:
    weights = weights.astype(jnp.int32)
  return _prune(weights, s)


@jax.jit
def _prune(weights, s):
  def step(state):
    alive, _ = state
    # A product with zeros and ones: on accelerators the default precision
    # would round the weights to bfloat16 first.
    strength = jnp.matmul(
      weights, alive.astype(weights.dtype), precision='highest'
    )
    kept = alive & (strength >= s)
    return kept, jnp.any(kept != alive)

  state = (jnp.ones(weights.shape[0], bool), jnp.ones((), bool))
  return jax.lax.while_loop(lambda state: state[1], step, state)[0]
