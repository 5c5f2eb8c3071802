"""L-BFGS on the device, one evaluation at a time, and SciPy's as reference.

The direction comes from `optax.scale_by_lbfgs`. Optax's own line search is not
used: it holds its values in the precision of the parameters (compliances need
float64 although the network's weights are float32), it contains the objective
twice, both copies of which a batch under vmap evaluates, and it does not report
the evaluations it makes, which are what the paper counts and plots. With
`line_search` every update consumes exactly one evaluation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.structopt import line_search

RUNNING = 0
CONVERGED = 1
SEARCH_FAILED = 2
NOT_FINITE = 3

MESSAGES = (
  'stopped at the evaluation limit',
  'converged: no further relative reduction of the objective or gradient',
  'line search failed twice in a row, the second time along the gradient',
  'the objective or its gradient is not finite',
)


class LBFGSState(NamedTuple):
  """State of `lbfgs`.

  Attributes:
    trial: Parameters to evaluate next, a PyTree.
    params: Parameters at which the current line search starts.
    value: Objective at `params`, float64.
    grad: Gradient at `params`.
    direction: Search direction.
    memory: State of `optax.scale_by_lbfgs`.
    search: State of the line search.
    iterations: Number of accepted steps, int32.
    restarts: Number of times that the memory was dropped, int32.
    evaluations: Number of evaluations consumed, int32.
    status: `RUNNING`, `CONVERGED`, `SEARCH_FAILED` or `NOT_FINITE`, int32.
  """

  trial: Any
  params: Any
  value: jax.Array
  grad: Any
  direction: Any
  memory: Any
  search: line_search.SearchState
  iterations: jax.Array
  restarts: jax.Array
  evaluations: jax.Array
  status: jax.Array


class LBFGS(NamedTuple):
  """The pair of pure functions returned by `lbfgs`."""

  init: Callable[[Any], LBFGSState]
  update: Callable[..., LBFGSState]


def _inner(a: Any, b: Any) -> jax.Array:
  """Inner product of two trees, accumulated in float64."""
  return sum(
    jnp.sum(x.astype(jnp.float64) * y.astype(jnp.float64))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def lbfgs(
  memory_size: int = 10,
  *,
  factr: float = 1.0,
  pgtol: float = 1e-14,
  max_line_search_steps: int = 20,
) -> LBFGS:
  """Returns the two functions of limited-memory BFGS in ask-and-tell form.

  Steps satisfy the strong Wolfe conditions. The stopping rules, and what
  happens when a line search fails (its steps are undone, the memory is dropped
  and the gradient is followed; if that fails too, the run ends), are those of
  L-BFGS-B, so that float64 runs without bounds follow SciPy's
  `fmin_l_bfgs_b`, evaluation by evaluation, until rounding tells them apart.

  Values and inner products are float64; the parameters, directions and memory
  keep the dtypes of the parameters. Both functions work under jit and vmap,
  which should be called within `jax.enable_x64(True)`.

  Args:
    memory_size: Number of past steps that approximate the Hessian.
    factr: Stop when a step reduces the objective by less than this times
      machine precision, relative to the larger of its magnitude and 1.
    pgtol: Stop when no entry of the gradient exceeds this.
    max_line_search_steps: Evaluations after which a line search has failed.

  Returns:
    `LBFGS(init, update)`. `init(params)` gives the state whose `trial` is
    `params`; `update(state, value, grad)` consumes the objective and its
    gradient at `state.trial`. Once `state.status` is not `RUNNING`, `update`
    changes nothing.

  Raises:
    ValueError: `memory_size` or `max_line_search_steps` is not positive.

  Example:
    >>> init, update = lbfgs()
    >>> state = init({'x': jnp.ones(3)})
    >>> while state.status == RUNNING and state.evaluations < 20:
    ...   x = state.trial['x']
    ...   state = update(state, (x**4).sum(), {'x': 4 * x**3})
  """
  if memory_size < 1:
    raise ValueError(f'memory_size is {memory_size}; expected at least 1.')
  if max_line_search_steps < 1:
    raise ValueError(
      f'max_line_search_steps is {max_line_search_steps}; expected at least 1.'
    )
  scaling = optax.scale_by_lbfgs(memory_size)

  def descend(params, value, grad, memory):
    """The next direction and the line search along it."""
    scaled, memory = scaling.update(grad, memory, params)
    direction = jax.tree.map(lambda d, p: -d.astype(p.dtype), scaled, params)
    slope = _inner(grad, direction)
    # Rounding can spoil the curvature pairs so far that the direction rises.
    rises = ~(slope < 0)
    direction = jax.tree.map(
      lambda d, g: jnp.where(rises, -g, d), direction, grad
    )
    slope = jnp.where(rises, -_inner(grad, grad), slope)
    memory = _forget(memory, rises)
    # Nothing is known of the scale before the first step: a unit length then.
    norm = jnp.sqrt(_inner(direction, direction))
    unit = 1.0 / jnp.where(norm > 0, norm, 1.0)
    first_step = jnp.where(memory.count <= 1, unit, 1.0)
    return direction, memory, line_search.begin(value, slope, first_step), rises

  def init(params: Any) -> LBFGSState:
    with jax.enable_x64(True):
      params = jax.tree.map(jnp.asarray, params)
      zeros = jax.tree.map(jnp.zeros_like, params)
      zero = jnp.zeros((), jnp.float64)
      return LBFGSState(
        trial=params,
        params=params,
        value=zero,
        grad=zeros,
        direction=zeros,
        memory=scaling.init(params),
        search=line_search.begin(zero, zero, zero),
        iterations=jnp.zeros((), jnp.int32),
        restarts=jnp.zeros((), jnp.int32),
        evaluations=jnp.zeros((), jnp.int32),
        status=jnp.full((), RUNNING, jnp.int32),
      )

  @jax.jit
  def step(state: LBFGSState, value: jax.Array, grad: Any) -> LBFGSState:
    first = state.evaluations == 0
    slope = _inner(grad, state.direction)
    search = line_search.advance(state.search, value, slope)
    finite = jnp.isfinite(value) & jnp.isfinite(_inner(grad, grad))
    accept = first | search.done
    failed = ~accept & (search.evaluations >= max_line_search_steps)
    # Without positive curvature along the step the pairs are worth nothing.
    bend = slope - state.search.start_slope
    epsilon = np.finfo(np.float64).eps
    concave = search.done & ~(bend > -epsilon * state.search.start_slope)

    def turned(_):
      """Looks in a new direction, from the trial or once more from before."""
      params, grad_here, value_here = jax.tree.map(
        lambda a, b: jnp.where(accept, a, b),
        (state.trial, grad, value),
        (state.params, state.grad, state.value),
      )
      direction, memory, fresh, rises = descend(
        params, value_here, grad_here, _forget(state.memory, failed | concave)
      )
      # What is left to try when the gradient itself led nowhere?
      hopeless = failed & (state.memory.count <= 1)
      scale = jnp.maximum(jnp.abs(state.value), jnp.abs(value))
      gain = state.value - value
      stalled = gain <= factr * epsilon * jnp.maximum(scale, 1.0)
      largest = [
        jnp.max(jnp.abs(g)).astype(value.dtype) for g in jax.tree.leaves(grad)
      ]
      flat = jnp.max(jnp.stack(largest)) <= pgtol
      converged = accept & ((stalled & ~first) | flat)
      status = jnp.where(hopeless, SEARCH_FAILED, state.status)
      status = jnp.where(converged, CONVERGED, status)
      return state._replace(
        params=params,
        value=value_here,
        grad=grad_here,
        direction=direction,
        memory=memory,
        search=fresh,
        iterations=state.iterations + (accept & ~first),
        restarts=state.restarts + (failed | concave | rises),
        status=status.astype(jnp.int32),
      )

    def continued(_):
      return state._replace(search=search)

    new = jax.lax.cond(accept | failed, turned, continued, None)
    trial = jax.tree.map(
      lambda p, d: p + new.search.step.astype(p.dtype) * d,
      new.params,
      new.direction,
    )
    status = jnp.where(finite, new.status, NOT_FINITE).astype(jnp.int32)
    new = new._replace(
      trial=trial, evaluations=state.evaluations + 1, status=status
    )
    return jax.tree.map(
      lambda a, b: jnp.where(state.status == RUNNING, a, b), new, state
    )

  def update(state: LBFGSState, value: Any, grad: Any) -> LBFGSState:
    with jax.enable_x64(True):
      value = jnp.asarray(value, jnp.float64)
      grad = jax.tree.map(
        lambda g, p: jnp.asarray(g, p.dtype), grad, state.trial
      )
      return step(state, value, grad)

  return LBFGS(init, update)


def _forget(memory: Any, condition: jax.Array) -> Any:
  """Empties the memory; pairs of zero weight take no part in the product."""
  return memory._replace(
    count=jnp.where(condition, 0, memory.count),
    weights_memory=jnp.where(condition, 0.0, memory.weights_memory),
  )


def scipy_lbfgs(
  value_and_grad: Callable[[Any], tuple[Any, Any]],
  params: Any,
  max_evaluations: int,
  *,
  memory_size: int = 10,
  factr: float = 1.0,
  pgtol: float = 1e-14,
) -> tuple[Any, str]:
  """Minimizes with SciPy's L-BFGS-B on the host, as the paper did.

  Args:
    value_and_grad: Maps parameters to the objective and its gradient tree. It
      is called once per evaluation, which is where to record them.
    params: Start, a PyTree. SciPy works on a float64 vector of all of it; each
      evaluation sees it cast back to the dtypes of the leaves.
    max_evaluations: Evaluations after which no new iteration is begun; SciPy
      finishes the one under way and so may exceed it.
    memory_size: Number of past steps that approximate the Hessian.
    factr: See `lbfgs`.
    pgtol: See `lbfgs`.

  Returns:
    The final parameters and SciPy's message.

  Raises:
    ImportError: SciPy is not installed.
  """
  try:
    from scipy import optimize
  except ImportError as error:
    raise ImportError(
      "backend='scipy' needs SciPy: pip install jaxpapers[structopt]"
    ) from error
  leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, params))
  ends = np.cumsum([leaf.size for leaf in leaves])

  def unravel(vector):
    parts = np.split(vector, ends[:-1])
    return jax.tree.unflatten(
      tree,
      [
        part.reshape(leaf.shape).astype(leaf.dtype)
        for part, leaf in zip(parts, leaves, strict=True)
      ],
    )

  def ravel(values):
    return np.concatenate(
      [np.asarray(v, np.float64).ravel() for v in jax.tree.leaves(values)]
    )

  def objective(vector):
    value, grad = value_and_grad(unravel(vector))
    return float(value), ravel(grad)

  vector, _, info = optimize.fmin_l_bfgs_b(
    objective,
    ravel(leaves),
    m=memory_size,
    factr=factr,
    pgtol=pgtol,
    maxfun=max_evaluations,
  )
  message = info['task']
  if isinstance(message, bytes):
    message = message.decode()
  return unravel(vector), message
