"""The method of moving asymptotes, globally convergent, as pure functions.

This is the conservative convex separable approximation (CCSA) variant of MMA:
K. Svanberg, "A class of globally convergent optimization methods based on
conservative convex separable approximations", SIAM J. Optim. 12 (2002), with
the choices of NLopt's `LD_MMA`, the optimizer behind the MMA column of Hoyer,
Sohl-Dickstein & Greydanus (2019, arXiv:1909.04240).

The interface is ask and tell: the state holds the point to evaluate next and
`update` consumes one evaluation. Inner (conservativeness) iterations are
therefore ordinary evaluations, which is how they are counted in the paper.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Largest multiplier considered. A subproblem without a feasible point would
# send its multiplier to infinity; at this size the objective no longer counts.
_MAX_MULTIPLIER = 1e40
_RHO_MIN = 1e-5
# Closest that an asymptote may come, relative to the width of the bounds.
_SIGMA_MIN = 0.01


class MMAState(NamedTuple):
  """State of `mma`: everything that the next update needs.

  Attributes:
    trial: Point to evaluate next, shape [...], float64.
    center: Expansion point of the current approximations, shape [...].
    value: Objective at `center`.
    grad: Its gradient, shape [...].
    constraints: Constraint values at `center`, shape [m].
    jacobian: Constraint gradients at `center`, shape [m, ...].
    sigma: Distance of the asymptotes from `center`, shape [...].
    rho: Curvature added to the objective's approximation.
    rho_constraints: The same for each constraint, shape [m].
    multipliers: Dual variables of the last subproblem, shape [m].
    approximation: Approximate objective at `trial`.
    constraint_approximations: Approximate constraints at `trial`, shape [m].
    weight: What one unit of `rho` adds to an approximation at `trial`.
    previous: Point at which the current outer iteration started, shape [...].
    before_previous: The same of the outer iteration before, shape [...].
    feasible: Whether `center` satisfies the constraints.
    infeasibility: Largest constraint value at `center`, at least 0.
    outer: Number of outer iterations begun, int32.
    evaluations: Number of evaluations consumed, int32.
  """

  trial: jax.Array
  center: jax.Array
  value: jax.Array
  grad: jax.Array
  constraints: jax.Array
  jacobian: jax.Array
  sigma: jax.Array
  rho: jax.Array
  rho_constraints: jax.Array
  multipliers: jax.Array
  approximation: jax.Array
  constraint_approximations: jax.Array
  weight: jax.Array
  previous: jax.Array
  before_previous: jax.Array
  feasible: jax.Array
  infeasibility: jax.Array
  outer: jax.Array
  evaluations: jax.Array


class MMA(NamedTuple):
  """The pair of pure functions returned by `mma`."""

  init: Callable[[Any], MMAState]
  update: Callable[..., MMAState]


class _Point(NamedTuple):
  """Minimizer of the separable Lagrangian and the approximations there."""

  x: jax.Array
  approximation: jax.Array
  constraint_approximations: jax.Array
  weight: jax.Array
  dual: jax.Array


def _lagrangian_minimizer(
  multipliers: jax.Array, state: MMAState, lower: jax.Array, upper: jax.Array
) -> _Point:
  """Minimizes the approximate Lagrangian, variable by variable.

  Each function is approximated around the center by
  f + sum_j [s_j^2 g_j d_j + (|g_j| s_j + rho/2) d_j^2] / (s_j^2 - d_j^2).

  Args:
    multipliers: Dual variables, shape [m].
    state: Where the approximations are expanded.
    lower: Lower bounds, shape [...].
    upper: Upper bounds, shape [...].

  Returns:
    The minimizer and what is needed to judge it.
  """
  sigma = state.sigma
  linear = state.grad
  quadratic = jnp.abs(state.grad) * sigma + state.rho / 2
  shape = (-1,) + (1,) * sigma.ndim
  rho_constraints = state.rho_constraints.reshape(shape)
  constraint_quadratic = jnp.abs(state.jacobian) * sigma + rho_constraints / 2
  u = linear + jnp.tensordot(multipliers, state.jacobian, axes=1)
  v = quadratic + jnp.tensordot(multipliers, constraint_quadratic, axes=1)
  # u / (v sigma) never exceeds 1 in magnitude but by rounding, hence the abs.
  ratio = u * sigma / v
  step = -ratio * sigma / (1 + jnp.sqrt(jnp.abs(1 - ratio**2)))
  low = jnp.maximum(lower, state.center - 0.9 * sigma)
  high = jnp.minimum(upper, state.center + 0.9 * sigma)
  x = jnp.clip(state.center + step, low, high)
  step = x - state.center
  inverse = 1 / (sigma**2 - step**2)
  first = sigma**2 * step * inverse
  second = step**2 * inverse
  approximation = state.value + jnp.sum(linear * first + quadratic * second)
  axes = tuple(range(1, state.jacobian.ndim))
  constraint_approximations = state.constraints + jnp.sum(
    state.jacobian * first + constraint_quadratic * second, axis=axes
  )
  return _Point(
    x=x,
    approximation=approximation,
    constraint_approximations=constraint_approximations,
    weight=0.5 * jnp.sum(second),
    dual=approximation + jnp.vdot(multipliers, constraint_approximations),
  )


def _solve_scalar_dual(solve, multipliers: jax.Array) -> jax.Array:
  """Finds the one multiplier: bracket by growth, then bisect to rounding."""

  def excess(y):
    return solve(y[None]).constraint_approximations[0]

  active = excess(jnp.zeros((), multipliers.dtype)) > 0

  # The last multiplier is a good guess of the scale; the bracket starts there.
  guess = jnp.clip(multipliers[0], 1e-12, 1e12)

  def grow_cond(bracket):
    _, high, excess_high = bracket
    return active & (excess_high > 0) & (high < _MAX_MULTIPLIER)

  def grow(bracket):
    _, high, _ = bracket
    next_high = jnp.minimum(8 * high, _MAX_MULTIPLIER)
    return high, next_high, excess(next_high)

  low, high, excess_high = jax.lax.while_loop(
    grow_cond, grow, (jnp.zeros_like(guess), 2 * guess, excess(2 * guess))
  )

  def bisect_cond(bracket):
    low, high, count = bracket
    return active & (high - low > 1e-15 * high) & (count < 200)

  def bisect(bracket):
    low, high, count = bracket
    middle = 0.5 * (low + high)
    # The approximate constraint falls as its multiplier grows.
    outside = excess(middle) > 0
    low = jnp.where(outside, middle, low)
    high = jnp.where(outside, high, middle)
    return low, high, count + 1

  solvable = excess_high <= 0
  low, high, _ = jax.lax.while_loop(
    bisect_cond,
    bisect,
    (jnp.where(solvable, low, high), high, jnp.zeros((), jnp.int32)),
  )
  # The upper end is the side on which the approximate constraint holds.
  return jnp.where(active, high, 0.0)[None]


def _solve_dual(solve, multipliers: jax.Array, iterations: int) -> jax.Array:
  """Maximizes the concave dual over y >= 0 by projected Newton steps."""
  steps = 0.5 ** jnp.arange(30, dtype=multipliers.dtype)

  def gradient(y):
    return solve(y).constraint_approximations

  def cond(carry):
    _, _, count, done = carry
    return ~done & (count < iterations)

  def body(carry):
    y, damping, count, _ = carry
    point = solve(y)
    grad = point.constraint_approximations
    hessian = -jax.jacfwd(gradient)(y)
    hessian = 0.5 * (hessian + hessian.T)
    free = (y > 0) | (grad > 0)
    both = free[:, None] & free[None, :]
    scale = jnp.max(jnp.where(both, jnp.abs(hessian), 0.0))
    # Where every variable sits at a bound the dual is linear and its Hessian
    # vanishes; the damping then makes this a plain (long) ascent step.
    ridge = damping * jnp.where(scale > 0, scale, 1.0)
    matrix = jnp.where(both, hessian, 0.0) + jnp.diag(
      jnp.where(free, ridge, 1.0)
    )
    newton = jnp.linalg.solve(matrix, jnp.where(free, grad, 0.0))
    newton = jnp.where(jnp.isfinite(newton), newton, grad)
    candidates = jnp.clip(y + steps[:, None] * newton, 0.0, _MAX_MULTIPLIER)
    duals = jax.vmap(lambda c: solve(c).dual)(candidates)
    best_dual = jnp.max(jnp.where(jnp.isnan(duals), -jnp.inf, duals))
    # The longest step among the best, without argmax: its lowering asks for
    # the global x64 switch, which a scope inside a trace does not set.
    best = candidates[0]
    for k in range(1, len(steps)):
      best = jnp.where(jnp.max(duals[:k]) >= best_dual, best, candidates[k])
    rounding = 4e-16 * jnp.abs(point.dual)
    # Near the optimum the dual is flat to rounding while its gradient is not:
    # full Newton steps are still worth taking when they shrink the gradient.
    full = candidates[0]
    full_grad = gradient(full)
    residual = jnp.max(jnp.abs(jnp.where(free, grad, 0.0)))
    full_free = (full > 0) | (full_grad > 0)
    full_residual = jnp.max(jnp.abs(jnp.where(full_free, full_grad, 0.0)))
    polish = (full_residual < residual) & (duals[0] >= point.dual - rounding)
    improved = best_dual > point.dual + rounding
    y_new = jnp.where(polish, full, jnp.where(improved, best, y))
    moved = polish | improved
    damping_new = jnp.where(
      moved, jnp.maximum(damping * 1e-2, 1e-15), damping * 1e3
    )
    done = (residual == 0) | (~moved & (damping > 1.0))
    return y_new, damping_new, count + 1, done

  start = (
    multipliers,
    jnp.asarray(1e-12, multipliers.dtype),
    jnp.zeros((), jnp.int32),
    jnp.zeros((), bool),
  )
  return jax.lax.while_loop(cond, body, start)[0]


def mma(
  lower: Any,
  upper: Any,
  n_constraints: int = 1,
  *,
  shape: tuple[int, ...] | None = None,
  constraint_tolerance: float = 1e-8,
  dual_iterations: int = 100,
) -> MMA:
  """Returns the two functions of the method of moving asymptotes.

  Minimizes f(x) subject to g_i(x) <= 0 and lower <= x <= upper. Everything is
  float64 whatever the global setting. `update` is compiled already; both
  functions also work under the caller's jit and vmap, which should then be
  called within `jax.enable_x64(True)` lest they round their inputs to float32.

  From a feasible start the points are NLopt's. From an infeasible one they may
  differ: there the dual optimum can lie at infinity, where NLopt's iterative
  dual solver stops early and this one does not.

  Args:
    lower: Lower bounds, broadcastable to the shape of x; -inf allowed.
    upper: Upper bounds, likewise.
    n_constraints: Number m >= 1 of inequality constraints.
    shape: Shape of x where the bounds do not already have it.
    constraint_tolerance: Violation up to which a trial point may replace the
      expansion point although its approximations were not conservative.
    dual_iterations: Cap on the Newton steps of the dual, used when m > 1.

  Returns:
    `MMA(init, update)`. `init(x)` gives the state whose `trial` is x clipped to
    the bounds. `update(state, value, grad, constraints, jacobian)` takes f, its
    gradient [...], g [m] and its gradients [m, ...] at `state.trial`; with one
    constraint the leading axis may be left out. It returns the next state.

  Raises:
    ValueError: `n_constraints` is not positive, a lower bound is not below its
      upper bound, or an argument of `init` or `update` has the wrong shape.

  Example:
    >>> init, update = mma(0.0, 1.0, shape=(3,))
    >>> state = init(np.full(3, 0.5))
    >>> for _ in range(20):
    ...   x = state.trial
    ...   f, df = (x**2).sum(), 2 * x
    ...   g, dg = 1 - x.sum(), -np.ones(3)
    ...   state = update(state, f, df, g, dg)
  """
  if n_constraints < 1:
    raise ValueError(
      f'n_constraints is {n_constraints}; expected at least 1. Use L-BFGS for'
      ' a problem without constraints.'
    )
  lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
  full = np.broadcast_shapes(lower.shape, upper.shape, shape or ())
  if shape is not None and full != tuple(shape):
    raise ValueError(
      f'lower and upper have shapes {lower.shape} and {upper.shape}, which do'
      f' not broadcast to shape={tuple(shape)}.'
    )
  if not np.all(lower < upper):
    raise ValueError(
      'lower is not below upper everywhere; fix such variables beforehand by'
      ' leaving them out of x.'
    )
  lower, upper = np.broadcast_to(lower, full), np.broadcast_to(upper, full)
  width = upper - lower
  bounded = np.isfinite(width)
  first_sigma = np.where(bounded, 0.5 * np.where(bounded, width, 2.0), 1.0)

  def next_trial(state: MMAState) -> MMAState:
    def solve(multipliers):
      return _lagrangian_minimizer(multipliers, state, lower, upper)

    if n_constraints == 1:
      multipliers = _solve_scalar_dual(solve, state.multipliers)
    else:
      multipliers = _solve_dual(solve, state.multipliers, dual_iterations)
    point = solve(multipliers)
    return state._replace(
      trial=point.x,
      multipliers=multipliers,
      approximation=point.approximation,
      constraint_approximations=point.constraint_approximations,
      weight=point.weight,
    )

  @jax.jit
  def step(state, value, grad, constraints, jacobian):
    trial = state.trial
    first = state.evaluations == 0
    infeasibility = jnp.maximum(jnp.max(constraints), 0.0)
    conservative = (state.approximation >= value) & jnp.all(
      state.constraint_approximations >= constraints
    )
    within = jnp.all(constraints <= constraint_tolerance)
    improves = (value < state.value) & (conservative | within | ~state.feasible)
    repairs = ~state.feasible & (infeasibility < state.infeasibility)
    accept = first | improves | repairs

    def keep(new, old):
      return jnp.where(accept, new, old)

    # Not conservative: raise the curvature of whatever was underestimated.
    rho = jnp.where(
      value > state.approximation,
      _raised(state.rho, value - state.approximation, state.weight),
      state.rho,
    )
    rho_constraints = jnp.where(
      constraints > state.constraint_approximations,
      _raised(
        state.rho_constraints,
        constraints - state.constraint_approximations,
        state.weight,
      ),
      state.rho_constraints,
    )
    # Conservative: relax, and move the asymptotes by the sign of progress.
    turn = (trial - state.previous) * (state.previous - state.before_previous)
    factor = jnp.where(turn < 0, 0.7, jnp.where(turn > 0, 1.2, 1.0))
    sigma = state.sigma * factor
    sigma = jnp.where(
      bounded, jnp.clip(sigma, _SIGMA_MIN * width, 10 * width), sigma
    )
    sigma = jnp.where(state.outer > 1, sigma, state.sigma)
    advance = ~first & conservative

    def select(advanced, inner, initial):
      return jnp.where(first, initial, jnp.where(advance, advanced, inner))

    state = state._replace(
      center=keep(trial, state.center),
      value=keep(value, state.value),
      grad=keep(grad, state.grad),
      constraints=keep(constraints, state.constraints),
      jacobian=keep(jacobian, state.jacobian),
      feasible=jnp.where(
        first,
        infeasibility == 0,
        state.feasible | (accept & (infeasibility == 0)),
      ),
      infeasibility=keep(infeasibility, state.infeasibility),
      rho=select(jnp.maximum(0.1 * state.rho, _RHO_MIN), rho, state.rho),
      rho_constraints=select(
        jnp.maximum(0.1 * state.rho_constraints, _RHO_MIN),
        rho_constraints,
        state.rho_constraints,
      ),
      sigma=select(sigma, state.sigma, state.sigma),
      before_previous=select(
        state.previous, state.before_previous, state.before_previous
      ),
      previous=select(trial, state.previous, trial),
      outer=state.outer + (first | advance),
      evaluations=state.evaluations + 1,
    )
    return next_trial(state)

  def init(x: Any) -> MMAState:
    with jax.enable_x64(True):
      x = jnp.asarray(x, jnp.float64)
      if x.shape != full:
        raise ValueError(
          f'x has shape {x.shape}; the bounds say {full}. Pass shape= to mma'
          ' when the bounds are scalars.'
        )
      x = jnp.clip(x, lower, upper)
      zeros = jnp.zeros((n_constraints,), jnp.float64)
      zero = jnp.zeros((), jnp.float64)
      return MMAState(
        trial=x,
        center=x,
        value=zero,
        grad=jnp.zeros_like(x),
        constraints=zeros,
        jacobian=jnp.zeros((n_constraints,) + full, jnp.float64),
        sigma=jnp.asarray(first_sigma),
        rho=jnp.ones_like(zero),
        rho_constraints=jnp.ones_like(zeros),
        multipliers=zeros,
        approximation=zero,
        constraint_approximations=zeros,
        weight=jnp.ones_like(zero),
        previous=x,
        before_previous=x,
        feasible=jnp.zeros((), bool),
        infeasibility=zero,
        outer=jnp.zeros((), jnp.int32),
        evaluations=jnp.zeros((), jnp.int32),
      )

  def update(
    state: MMAState, value: Any, grad: Any, constraints: Any, jacobian: Any
  ) -> MMAState:
    with jax.enable_x64(True):
      value = jnp.asarray(value, jnp.float64)
      grad = jnp.asarray(grad, jnp.float64)
      constraints = jnp.asarray(constraints, jnp.float64)
      jacobian = jnp.asarray(jacobian, jnp.float64)
      if n_constraints == 1:
        constraints = constraints.reshape((1,))
        jacobian = jacobian.reshape((1,) + jacobian.shape[-len(full) or 99 :])
      for name, array, expected in (
        ('value', value, ()),
        ('grad', grad, full),
        ('constraints', constraints, (n_constraints,)),
        ('jacobian', jacobian, (n_constraints,) + full),
      ):
        if array.shape != expected:
          raise ValueError(
            f'{name} has shape {array.shape}; expected {expected} for'
            f' {n_constraints} constraint(s) on x of shape {full}.'
          )
      return step(state, value, grad, constraints, jacobian)

  return MMA(init, update)


def _raised(rho: jax.Array, gap: jax.Array, weight: jax.Array) -> jax.Array:
  """The larger curvature after an approximation fell short by `gap`."""
  return jnp.minimum(10 * rho, 1.1 * (rho + gap / weight))
