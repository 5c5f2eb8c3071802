"""A root finder for increasing scalar functions."""

import jax
import jax.numpy as jnp


def monotone_root(value_and_slope, low, high, max_iterations=128):
  """Finds where an increasing function of a scalar crosses zero.

  Newton's method inside a shrinking bracket: a step that would leave the
  bracket, or that is not at most half of the step before the last one, is
  replaced by bisection, so that the worst case is a bisection and the usual
  case a handful of steps. Works under jit and vmap. Not differentiable through
  its iterations: wrap it in a rule of the implicit function theorem.

  Args:
    value_and_slope: maps a scalar to the function's value and derivative.
    low: scalar at which the function is not positive.
    high: scalar at which it is not negative.
    max_iterations: bound on the evaluations, enough for a bisection from any
      bracket that the dtype can represent to within rounding.

  Returns:
    The root, a scalar of the dtype of `low`; NaN if the function is NaN.
  """
  low, high = jnp.broadcast_arrays(low, high)
  tolerance = 4 * jnp.finfo(low.dtype).eps

  def unfinished(state):
    count, _, low, high, x, step, _ = state
    resolution = tolerance * jnp.maximum(1, jnp.abs(x))
    wide = (high - low > resolution) & (jnp.abs(step) > resolution)
    return (count < max_iterations) & wide

  def advance(state):
    count, _, low, high, x, step, previous = state
    value, slope = value_and_slope(x)
    # An exact zero closes the bracket from both sides.
    low = jnp.where(value <= 0, x, low)
    high = jnp.where(value >= 0, x, high)
    newton = -value / slope
    target = x + newton
    shrinks = jnp.abs(newton) <= 0.5 * jnp.abs(previous)
    trusted = (low < target) & (target < high) & shrinks
    middle = low + 0.5 * (high - low)
    following = jnp.where(trusted, target, middle)
    following = jnp.where(value == 0, x, following)
    following = jnp.where(jnp.isnan(value), jnp.nan, following)
    return count + 1, value, low, high, following, following - x, step

  start = low + 0.5 * (high - low)
  width = high - low
  state = (0, jnp.zeros_like(start), low, high, start, 2 * width, 2 * width)
  state = jax.lax.while_loop(unfinished, advance, state)
  return state[4]
