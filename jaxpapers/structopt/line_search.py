"""A line search for the strong Wolfe conditions, one evaluation at a time.

The algorithm of J. J. Moré & D. J. Thuente, "Line search algorithms with
guaranteed sufficient decrease", ACM Trans. Math. Softw. 20 (1994), as used by
L-BFGS-B. It is written as a state machine over float64 scalars: a caller
evaluates the function where `step` says and hands value and slope back. Hence
every evaluation can be counted and recorded, the function is compiled only
once, and a batch of searches under vmap evaluates in lock step, none of which
a search with the function inside its own loop can offer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Constants of L-BFGS-B: sufficient decrease, curvature, relative width of the
# bracket at which to give up refining, and the bounds of extrapolation.
_DECREASE = 1e-3
_CURVATURE = 0.9
_MIN_WIDTH = 0.1
_EXTRAPOLATE_LOW = 1.1
_EXTRAPOLATE_HIGH = 4.0
_MAX_STEP = 1e10


class _End(NamedTuple):
  """A step of the line with its function value and slope."""

  step: jax.Array
  value: jax.Array
  slope: jax.Array


class SearchState(NamedTuple):
  """State of a line search; all fields are scalars.

  Attributes:
    step: Step length to evaluate next; once `done`, the step to take.
    start_value: Value at step 0.
    start_slope: Slope at step 0, negative.
    best: The end of the interval with the lowest value so far.
    other: Its other end.
    bracketed: Whether the interval contains a minimizer.
    auxiliary: Whether still in the first stage, which seeks a step of
      sufficient decrease and positive slope.
    low: Lower limit of the next step.
    high: Upper limit of the next step.
    width: Width of the interval one evaluation ago.
    previous_width: Width of the interval two evaluations ago.
    evaluations: Number of evaluations consumed, int32.
    done: Whether the last evaluated step is to be taken.
  """

  step: jax.Array
  start_value: jax.Array
  start_slope: jax.Array
  best: _End
  other: _End
  bracketed: jax.Array
  auxiliary: jax.Array
  low: jax.Array
  high: jax.Array
  width: jax.Array
  previous_width: jax.Array
  evaluations: jax.Array
  done: jax.Array


def begin(
  value: jax.Array, slope: jax.Array, first_step: jax.Array
) -> SearchState:
  """Starts a search.

  Args:
    value: Function value at step 0, float64.
    slope: Slope there; negative for the search to make sense.
    first_step: First step length to try, positive.

  Returns:
    The state whose `step` is to be evaluated first.
  """
  zero = jnp.zeros_like(value)
  end = _End(zero, value, slope)
  return SearchState(
    step=first_step,
    start_value=value,
    start_slope=slope,
    best=end,
    other=end,
    bracketed=jnp.zeros((), bool),
    auxiliary=jnp.ones((), bool),
    low=zero,
    high=first_step + _EXTRAPOLATE_HIGH * first_step,
    width=zero + _MAX_STEP,
    previous_width=zero + 2 * _MAX_STEP,
    evaluations=jnp.zeros((), jnp.int32),
    done=jnp.zeros((), bool),
  )


def advance(
  state: SearchState, value: jax.Array, slope: jax.Array
) -> SearchState:
  """Consumes value and slope at `state.step`.

  Args:
    state: The search.
    value: Function value at `state.step`, float64.
    slope: Slope there.

  Returns:
    The state with `done` set and `step` unchanged if that step is accepted: it
    satisfies the strong Wolfe conditions, or the interval has become too narrow
    to refine further. Otherwise the state with the next step.
  """
  step = state.step
  threshold = _DECREASE * state.start_slope
  line = state.start_value + step * threshold
  decreased = value <= line
  flat = jnp.abs(slope) <= -_CURVATURE * state.start_slope
  outside = (step <= state.low) | (step >= state.high)
  narrow = state.high - state.low <= _MIN_WIDTH * state.high
  exhausted = (state.bracketed & (outside | narrow)) | (
    (step >= _MAX_STEP) & decreased & (slope <= threshold)
  )
  done = (decreased & flat) | exhausted

  ends_stage = decreased & (
    slope >= min(_DECREASE, _CURVATURE) * state.start_slope
  )
  auxiliary = state.auxiliary & ~ends_stage
  # In the first stage the interval is kept for the function less the line of
  # sufficient decrease.
  tilt = auxiliary & (value <= state.best.value) & ~decreased
  shift = jnp.where(tilt, threshold, 0.0)

  def tilted(end):
    return _End(end.step, end.value - end.step * shift, end.slope - shift)

  def restored(end):
    return _End(end.step, end.value + end.step * shift, end.slope + shift)

  best, other, bracketed, next_step = _refine(
    tilted(state.best),
    tilted(state.other),
    tilted(_End(step, value, slope)),
    state.bracketed,
    state.low,
    state.high,
  )
  best, other = restored(best), restored(other)

  # An interval that does not shrink by a third in two steps is bisected.
  width = jnp.abs(other.step - best.step)
  lazy = bracketed & (width >= 0.66 * state.previous_width)
  next_step = jnp.where(
    lazy, best.step + 0.5 * (other.step - best.step), next_step
  )
  low = jnp.where(
    bracketed,
    jnp.minimum(best.step, other.step),
    next_step + _EXTRAPOLATE_LOW * (next_step - best.step),
  )
  high = jnp.where(
    bracketed,
    jnp.maximum(best.step, other.step),
    next_step + _EXTRAPOLATE_HIGH * (next_step - best.step),
  )
  next_step = jnp.clip(next_step, 0.0, _MAX_STEP)
  stuck = bracketed & (
    (next_step <= low) | (next_step >= high) | (high - low <= _MIN_WIDTH * high)
  )
  next_step = jnp.where(stuck, best.step, next_step)
  new = state._replace(
    step=next_step,
    best=best,
    other=other,
    bracketed=bracketed,
    auxiliary=auxiliary,
    low=low,
    high=high,
    width=jnp.where(bracketed, width, state.width),
    previous_width=jnp.where(bracketed, state.width, state.previous_width),
  )
  state = jax.tree.map(lambda old, new: jnp.where(done, old, new), state, new)
  return state._replace(evaluations=state.evaluations + 1, done=done)


def _cubic(a: _End, b: _End, sign: jax.Array) -> tuple[jax.Array, ...]:
  """Parts of the minimizer of the cubic through two ends.

  Args:
    a: One end.
    b: The other end.
    sign: Sign of the root, +1 or -1.

  Returns:
    (theta, gamma): see equation (4.1) ff. of Moré & Thuente.
  """
  theta = 3 * (a.value - b.value) / (b.step - a.step) + a.slope + b.slope
  scale = jnp.maximum(
    jnp.abs(theta), jnp.maximum(jnp.abs(a.slope), jnp.abs(b.slope))
  )
  scale = jnp.where(scale > 0, scale, 1.0)
  square = (theta / scale) ** 2 - (a.slope / scale) * (b.slope / scale)
  return theta, sign * scale * jnp.sqrt(jnp.maximum(square, 0.0))


def _refine(
  best: _End,
  other: _End,
  trial: _End,
  bracketed: jax.Array,
  low: jax.Array,
  high: jax.Array,
) -> tuple[_End, _End, jax.Array, jax.Array]:
  """Updates the interval of uncertainty and proposes the next step.

  All four cases of the algorithm are computed, as vmap would do anyway: they
  are a few scalar operations.
  """
  x, y, t = best, other, trial
  opposite = t.slope * jnp.sign(x.slope) < 0
  higher = t.value > x.value
  flatter = jnp.abs(t.slope) < jnp.abs(x.slope)
  right = t.step > x.step
  gap = x.step - t.step

  # Case 1: a higher value. Minimizer of the cubic, or half way to the
  # minimizer of the quadratic when that is further from the best end.
  theta, gamma = _cubic(x, t, jnp.where(right, 1.0, -1.0))
  ratio = ((gamma - x.slope) + theta) / (((gamma - x.slope) + gamma) + t.slope)
  cubic = x.step - ratio * gap
  secant = (x.value - t.value) / -gap + x.slope
  quadratic = x.step - 0.5 * (x.slope / secant) * gap
  case_1 = jnp.where(
    jnp.abs(cubic - x.step) < jnp.abs(quadratic - x.step),
    cubic,
    cubic + 0.5 * (quadratic - cubic),
  )

  # Case 2: a lower value and a slope of the other sign.
  gamma = -gamma
  denominator = ((gamma - t.slope) + gamma) + x.slope
  cubic = t.step + ((gamma - t.slope) + theta) / denominator * gap
  chord = t.step + t.slope / (t.slope - x.slope) * gap
  further = jnp.abs(cubic - t.step) > jnp.abs(chord - t.step)
  case_2 = jnp.where(further, cubic, chord)

  # Case 3: a lower value and a smaller slope of the same sign. The cubic may
  # tend to infinity in the direction of the step or have its minimum there.
  ratio = ((gamma - t.slope) + theta) / ((gamma + (x.slope - t.slope)) + gamma)
  cubic = jnp.where(
    (ratio < 0) & (gamma != 0),
    t.step + ratio * gap,
    jnp.where(right, high, low),
  )
  closer = jnp.abs(cubic - t.step) < jnp.abs(chord - t.step)
  inside = jnp.where(closer, cubic, chord)
  limit = t.step + 0.66 * (y.step - t.step)
  inside = jnp.where(
    right, jnp.minimum(limit, inside), jnp.maximum(limit, inside)
  )
  beyond = jnp.clip(jnp.where(closer, chord, cubic), low, high)
  case_3 = jnp.where(bracketed, inside, beyond)

  # Case 4: a lower value and a slope of the same sign that is not smaller.
  theta, gamma = _cubic(t, y, jnp.where(t.step > y.step, -1.0, 1.0))
  ratio = ((gamma - t.slope) + theta) / (((gamma - t.slope) + gamma) + y.slope)
  cubic = t.step + ratio * (y.step - t.step)
  case_4 = jnp.where(bracketed, cubic, jnp.where(right, high, low))

  step = jnp.where(
    higher,
    case_1,
    jnp.where(opposite, case_2, jnp.where(flatter, case_3, case_4)),
  )

  def choose(condition, a, b):
    return jax.tree.map(lambda p, q: jnp.where(condition, p, q), a, b)

  other = choose(higher, t, choose(opposite, x, y))
  best = choose(higher, x, t)
  return best, other, bracketed | higher | opposite, step
