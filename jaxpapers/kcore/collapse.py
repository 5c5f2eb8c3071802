"""The dynamical model of the transition: collapse of activity = k-core pruning.

Equations 1 to 5 of Arese Lucini et al. (2019), arXiv:1903.09630: the activity
of a node relaxes to a background plus the sum of its active neighbours'
couplings. As the coupling falls, the active set shrinks core by core, and the
last one, the k_max-core, collapses at a critical coupling.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.kcore import edges as graphs

# Where the relaxation counts as still, in units of the spacing of floats.
_STILL = 4.0
_MAX_STEPS = 200_000


class CollapseParams(NamedTuple):
  """Parameters of the model, a pytree whose leaves can all be traced.

  Attributes:
    I: background activity, a scalar like the next four.
    R: inverse of the rate of inactivation, positive.
    n: slope of the sigmoid; infinity makes it a step that is on at x = alpha,
      up to rounding (`active_nodes`).
    alpha: threshold of activation, above I R.
    J: strength of the couplings, 0 or more.
    adj: [N, N], 0 or 1, or relative weights J_ij / J of 0 or more.
  """

  I: Any  # noqa: E741 (the paper's symbol)
  R: Any
  n: Any
  alpha: Any
  J: Any
  adj: Any


def collapse_rhs(t: Any, x: Any, params: CollapseParams) -> jax.Array:
  """Right-hand side of equation 1, in the argument order of ODE solvers.

  dx_i/dt = I - x_i / R + sum_j A_ij J (1 + tanh(n (x_j - alpha))) / 2.

  Args:
    t: time; the equation does not depend on it.
    x: [N] activities.
    params: parameters.

  Returns:
    [N].

  Example:
    >>> params = CollapseParams(0.1, 1.0, 60.0, 1.0, 1.0, np.zeros((2, 2)))
    >>> [round(float(v), 4) for v in collapse_rhs(0.0, np.zeros(2), params)]
    [0.1, 0.1]
  """
  del t
  params, x = _as_arrays(params, x)
  return (_fixed_point_map(params, x) - x) / params.R


def steady_state(
  params: CollapseParams, x0: Any = None, *, implicit_diff: bool = True
) -> jax.Array:
  """Steady activities, differentiable in every parameter.

  Solves x = I R + R J A (1 + tanh(n (x - alpha))) / 2 by relaxation. From the
  fully active state, which lies above all solutions, the iteration descends to
  the highest one, as the differential equation does. Each step costs N^2; their
  number grows near the collapse, where the solution ends. Use float64 (`with
  jax.enable_x64(True):`) for gradients near it.

  Derivatives (forward and reverse, also with respect to the entries of `adj`)
  come from the implicit function theorem: one linear system of N unknowns.

  Args:
    params: parameters; vmap over J, or over any other.
    x0: [N] or scalar, start. By default fully active, x_i = I R + J R sum_j
      A_ij. From I R everywhere one gets the lowest state.
    implicit_diff: false differentiates the iteration instead, in forward mode
      only.

  Returns:
    [N] activities. `active_nodes(x, alpha)` says which nodes are active: x_i >
      alpha, or equal to it up to rounding.

  Raises:
    ValueError: names the argument, where values are known: I R >= alpha (all
      nodes would stay active), negative or infinite J, R or n not positive,
      `adj` not symmetric, with negative entries or self-loops. Also J, I, R, n
      or alpha that is no scalar, or x0 of another length.

  Example:
    >>> triangle = 1.0 - np.eye(3)
    >>> params = CollapseParams(0.1, 1.0, 60.0, 1.0, 0.5, triangle)
    >>> [round(float(v), 4) for v in steady_state(params)]
    [1.1, 1.1, 1.1]
  """
  _check_scalars(params)
  check_params(params)
  params, x0 = _as_arrays(params, x0)
  return _steady_state(params, _start(x0, params), implicit_diff)


def fully_active(params: CollapseParams) -> jax.Array:
  """Activities with all neighbours active: I R + J R sum_j A_ij.

  Args:
    params: parameters.

  Returns:
    [N].

  Example:
    >>> params = CollapseParams(0.5, 1.0, 60.0, 1.0, 1.0, 1.0 - np.eye(3))
    >>> fully_active(params).tolist()
    [2.5, 2.5, 2.5]
  """
  params, _ = _as_arrays(params, None)
  return params.R * (params.I + params.J * jnp.sum(params.adj, axis=1))


def active_nodes(x: Any, alpha: Any) -> jax.Array:
  """Which nodes are active: x >= alpha, up to rounding.

  Where n is infinite and (alpha / R - I) / J an integer k, nodes with k active
  neighbours sit at x = alpha exactly, and rounding would put some of them
  below. So x counts from 16 spacings of floats below alpha, here as in the
  step of the model itself.

  Args:
    x: activities, any shape.
    alpha: threshold of activation.

  Returns:
    bool array of the shape of `x`.

  Example:
    >>> params = CollapseParams(0.1, 1.0, np.inf, 1.0, 0.45, 1.0 - np.eye(3))
    >>> active_nodes(steady_state(params), params.alpha).tolist()
    [True, True, True]
  """
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    x = x.astype(float)
  alpha = jnp.asarray(alpha, x.dtype)
  scale = jnp.maximum(jnp.abs(x), jnp.abs(alpha))
  return x >= alpha - 16 * jnp.finfo(x.dtype).eps * scale


def collapse_curve(
  params: CollapseParams, J: Any, *, adiabatic: bool = True, x0: Any = None
) -> jax.Array:
  """Steady activities over a sweep of the coupling.

  A falling and a rising sweep differ: active neighbours keep each other up, so
  that activity collapses at a lower coupling than that at which it returns. The
  rising branch starts from the collapsed state: `x0=params.I * params.R`.

  Args:
    params: parameters; its J is not used.
    J: [S] couplings, in the order of the sweep.
    adiabatic: true starts from the state before; false from the fully active
      state (or x0) each time.
    x0: [N] or scalar, start of the sweep; by default the fully active state.

  Returns:
    [S, N] activities.

  Raises:
    ValueError: as in `steady_state`; or `J` is not one-dimensional.

  Example:
    >>> params = CollapseParams(0.1, 1.0, 60.0, 1.0, 1.0, 1.0 - np.eye(3))
    >>> x = collapse_curve(params, np.array([0.6, 0.4]))
    >>> (x > params.alpha).sum(1).tolist()
    [3, 0]
  """
  if np.ndim(J) != 1:
    raise ValueError(f'J has shape {np.shape(J)}; expected [S].')
  # Its J is not used, whatever it is.
  params = params._replace(J=0.0)
  _check_scalars(params)
  check_params(params._replace(J=J))
  params, _ = _as_arrays(params, None)
  J = jnp.asarray(J, params.adj.dtype)
  if not J.size:
    return jnp.zeros((0, params.adj.shape[0]), params.adj.dtype)
  if x0 is not None:
    x0 = _start(jnp.asarray(x0, params.adj.dtype), params)
  return _curve(params, J, x0, adiabatic)


def critical_coupling(k_max: Any, I: Any, R: Any, alpha: Any) -> Any:  # noqa: E741
  """Coupling below which the k_max-core collapses, for a steep sigmoid.

  J_c = (alpha / R - I) / k_max. At a finite slope the collapse comes earlier,
  at a larger J.

  Args:
    k_max: largest coreness, positive; with unequal couplings the largest s that
      has an s-core.
    I: background activity.
    R: inverse of the rate of inactivation.
    alpha: threshold.

  Returns:
    J_c, a float or, from arrays, an array.

  Raises:
    ValueError: names the argument: I R >= alpha, R or k_max not positive.

  Example:
    >>> round(critical_coupling(50, 0.1, 1.0, 1.0), 6)
    0.018
  """
  _check_threshold(I, R, alpha)
  if not graphs.is_traced(k_max) and not np.all(np.asarray(k_max) > 0):
    raise ValueError(
      f'k_max is {k_max}; expected a positive number: without links nothing is '
      'active, and nothing collapses.'
    )
  return (alpha / R - I) / k_max


def check_params(params: CollapseParams) -> None:
  """Raises unless these parameters make a model; looks at known values only.

  Args:
    params: parameters; each may also be an array of many.

  Raises:
    ValueError: names the argument, what it is and what was expected.
  """
  for name, value in zip(params._fields, params, strict=True):
    if name == 'adj' or graphs.is_traced(value):
      continue
    if np.any(np.isnan(np.asarray(value))):
      raise ValueError(f'{name} is {value}; expected a number.')
  _check_threshold(params.I, params.R, params.alpha)
  if not graphs.is_traced(params.n) and np.any(np.asarray(params.n) <= 0):
    raise ValueError(f'n is {params.n}; expected a positive slope.')
  if not graphs.is_traced(params.J) and np.any(np.isinf(np.asarray(params.J))):
    raise ValueError(f'J is {params.J}; expected a finite coupling.')
  if not graphs.is_traced(params.J) and np.any(np.asarray(params.J) < 0):
    raise ValueError(
      f'J is {params.J}; expected 0 or more: the model has positive couplings '
      'only, and with others the active set is not unique.'
    )
  graphs.check_adjacency(params.adj, 'adj')
  if not graphs.is_traced(params.adj) and np.min(params.adj, initial=0) < 0:
    raise ValueError(
      f'adj has a negative entry, {np.min(params.adj)}; expected couplings of '
      '0 or more. Drop negative correlations.'
    )


def _check_scalars(params):
  for name, value in zip(params._fields, params, strict=True):
    if name != 'adj' and np.ndim(value):
      raise ValueError(
        f'{name} has shape {np.shape(value)}; expected a scalar. Couplings that'
        ' differ between links are weights in adj; for many parameters use '
        'jax.vmap, and for a sweep of J collapse_curve.'
      )


def _start(x0, params):
  """A start for every node, or None."""
  if x0 is None:
    return None
  shape = params.adj.shape[:1]
  if x0.shape not in ((), shape):
    raise ValueError(
      f'x0 has shape {x0.shape}; expected {shape}, one activity per node of '
      'adj, or a scalar.'
    )
  return jnp.broadcast_to(x0, shape)


def _check_threshold(background, resistance, alpha):
  if graphs.is_traced(background, resistance, alpha):
    known = not graphs.is_traced(resistance)
    if known and np.any(np.asarray(resistance) <= 0):
      raise ValueError(f'R is {resistance}; expected a positive number.')
    return
  if not np.all(np.asarray(resistance) > 0):
    raise ValueError(f'R is {resistance}; expected a positive number.')
  if not np.all(np.asarray(background) * resistance < np.asarray(alpha)):
    raise ValueError(
      f'alpha is {alpha} and I R is {np.asarray(background) * resistance}; '
      'expected I R < alpha. Otherwise the background alone activates every '
      'node and nothing collapses.'
    )


def _as_arrays(params, x0):
  """All leaves in one floating-point type; x0 may be None."""
  leaves = [p for p in (*params, x0) if p is not None]
  # Python numbers and matrices of integers or bools leave the type to the
  # caller's x64 setting.
  dtype = jnp.result_type(*leaves)
  if not jnp.issubdtype(dtype, jnp.floating):
    dtype = jnp.result_type(float)
  params = CollapseParams(*(jnp.asarray(leaf, dtype) for leaf in params))
  return params, None if x0 is None else jnp.asarray(x0, dtype)


def _gate(params, x):
  """(1 + tanh(n (x - alpha))) / 2, and its limit, a step with value 1 at 0."""
  finite = jnp.isfinite(params.n)
  slope = jnp.where(finite, params.n, 1.0)
  smooth = 0.5 * (1.0 + jnp.tanh(slope * (x - params.alpha)))
  step = active_nodes(x, params.alpha).astype(x.dtype)
  return jnp.where(finite, smooth, step)


def _fixed_point_map(params, x):
  drive = jnp.matmul(params.adj, _gate(params, x), precision='highest')
  return params.R * (params.I + params.J * drive)


def _relax(params, x, fraction):
  """Iterates x <- x + fraction (F(x) - x) until x stands still."""
  spacing = jnp.finfo(x.dtype).eps

  def proceed(state):
    x, change, step = state
    tolerance = _STILL * spacing * jnp.max(jnp.abs(x))
    return (change > tolerance) & (step < _MAX_STEPS)

  def step(state):
    x, _, step = state
    move = fraction * (_fixed_point_map(params, x) - x)
    return x + move, jnp.max(jnp.abs(move)), step + 1

  change = jnp.asarray(jnp.inf, x.dtype)
  state = (x, change, jnp.zeros((), jnp.int32))
  return jax.lax.while_loop(proceed, step, state)[0]


@functools.partial(jax.jit, static_argnums=2)
def _steady_state(params, x0, implicit_diff):
  # Full steps descend from above all solutions without passing one. From
  # anywhere else they can jump between two states for ever (in a bipartite
  # graph); half steps, Euler's method with dt = R / 2, cannot.
  fraction = 1.0 if x0 is None else 0.5
  if x0 is None:
    x0 = params.R * (params.I + params.J * jnp.sum(params.adj, axis=1))
  if not implicit_diff:
    return _relax(params, x0, fraction)

  def residual(x):
    return x - _fixed_point_map(params, x)

  def solve(_, start):
    return _relax(jax.lax.stop_gradient(params), start, fraction)

  def tangent_solve(linear, y):
    return jnp.linalg.solve(jax.jacfwd(linear)(y), y)

  return jax.lax.custom_root(
    residual, jax.lax.stop_gradient(x0), solve, tangent_solve
  )


@functools.partial(jax.jit, static_argnums=3)
def _curve(params, J, x0, adiabatic):
  def at(J, start):
    return _steady_state(params._replace(J=J), start, True)

  if not adiabatic:
    return jax.lax.map(lambda J: at(J, x0), J)

  def step(x, J):
    x = at(J, x)
    return x, x

  first = at(J[0], x0)
  _, rest = jax.lax.scan(step, first, J[1:])
  return jnp.concatenate([first[None], rest])
