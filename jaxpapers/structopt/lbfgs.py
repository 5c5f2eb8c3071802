"""L-BFGS on the device, one evaluation at a time, and SciPy's as reference.

This is not `optax.lbfgs`, whose line search holds its values in the precision
of the parameters (compliances need float64 although the network's weights are
float32), contains the objective twice, both copies of which a batch under vmap
evaluates, and does not report the evaluations it makes, which are what the
paper counts and plots. Here every update consumes exactly one evaluation. The
inverse Hessian is applied in its compact form (Byrd, Nocedal & Schnabel, Math.
Program. 63, 1994): two passes over the memory, no loop over it, no branch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


class Memory(NamedTuple):
  """The last steps and gradient changes, in rings of `memory_size` rows.

  Attributes:
    steps: Changes of the parameters, a tree of [memory_size, ...].
    changes: Changes of the gradient, likewise.
    steps_changes: Inner products of a step (row) and a change (column),
      float64 [memory_size, memory_size].
    changes_changes: Inner products of the changes, likewise.
    pairs: Number of rows in use, int32.
    head: Row to write next, int32.
  """

  steps: Any
  changes: Any
  steps_changes: jax.Array
  changes_changes: jax.Array
  pairs: jax.Array
  head: jax.Array


class LBFGSState(NamedTuple):
  """State of `lbfgs`.

  Attributes:
    trial: Parameters to evaluate next, a PyTree.
    params: Parameters at which the current line search starts.
    value: Objective at `params`, float64.
    grad: Gradient at `params`.
    direction: Search direction.
    memory: What approximates the Hessian.
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
  memory: Memory
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


def _select(condition: jax.Array, a: Any, b: Any) -> Any:
  """`a` or `b`, leaf by leaf."""
  return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _products(rows: Any, vector: Any) -> jax.Array:
  """Inner products of each row of a ring with a vector, float64 [rows]."""

  def product(r, v):
    r, v = r.reshape(len(r), -1), v.reshape(-1)
    out = jnp.matmul(r, v, precision=jax.lax.Precision.HIGHEST)
    return out.astype(jnp.float64)

  return sum(jax.tree.leaves(jax.tree.map(product, rows, vector)))


def _combination(weights: jax.Array, rows: Any) -> Any:
  """Sum of the rows of a ring times weights."""

  def combine(r):
    return jnp.tensordot(
      weights.astype(r.dtype), r, axes=1, precision=jax.lax.Precision.HIGHEST
    )

  return jax.tree.map(combine, rows)


def _remember(
  memory: Memory, step: Any, change: Any, store: jax.Array
) -> Memory:
  """Writes a pair over the oldest one, or leaves all as it is."""
  head, size = memory.head, len(memory.steps_changes)

  def write(ring, new):
    # Only one row is selected and written, so that XLA can do it in place.
    return ring.at[head].set(jnp.where(store, new, ring[head]))

  steps = jax.tree.map(write, memory.steps, step)
  changes = jax.tree.map(write, memory.changes, change)
  by_change = _products(steps, change)
  column = jnp.where(store, by_change, memory.steps_changes[:, head])
  # The row of the new step: its products with all changes.
  row = jnp.where(store, _products(changes, step), memory.steps_changes[head])
  both = jnp.where(
    store, _products(changes, change), memory.changes_changes[head]
  )
  return Memory(
    steps=steps,
    changes=changes,
    steps_changes=memory.steps_changes.at[:, head]
    .set(column)
    .at[head]
    .set(row),
    changes_changes=(
      memory.changes_changes.at[:, head].set(both).at[head].set(both)
    ),
    pairs=jnp.minimum(memory.pairs + store, size),
    head=(head + store) % size,
  )


def _forget(memory: Memory, condition: jax.Array) -> Memory:
  """Empties the memory; rows that are not in use need not be cleared."""
  return memory._replace(pairs=jnp.where(condition, 0, memory.pairs))


def _apply_inverse(memory: Memory, grad: Any) -> Any:
  """Multiplies the gradient by the approximate inverse Hessian."""
  size = len(memory.steps_changes)
  # From the oldest row to the newest; rows not in use come first.
  order = (memory.head + jnp.arange(size, dtype=jnp.int32)) % size
  used = jnp.arange(size, dtype=jnp.int32) >= size - memory.pairs
  both = used[:, None] & used[None, :]
  products = memory.steps_changes[order][:, order]
  triangle = jnp.where(both, jnp.triu(products), jnp.eye(size))
  square = jnp.where(both, memory.changes_changes[order][:, order], 0.0)
  bend = jnp.where(used, jnp.diagonal(products), 0.0)
  scale = jnp.where(
    memory.pairs > 0, bend[-1] / jnp.where(used[-1], square[-1, -1], 1.0), 1.0
  )
  along_steps = jnp.where(used, _products(memory.steps, grad)[order], 0.0)
  along_changes = jnp.where(used, _products(memory.changes, grad)[order], 0.0)
  solve = jax.scipy.linalg.solve_triangular
  alpha = solve(triangle, along_steps)
  rest = bend * alpha + scale * (square @ alpha - along_changes)
  weights = solve(triangle, rest, trans=1)
  # Back to the order of the rows.
  weights = jnp.zeros(size).at[order].set(jnp.where(used, weights, 0.0))
  alpha = jnp.zeros(size).at[order].set(jnp.where(used, alpha, 0.0))
  return jax.tree.map(
    lambda g, s, y: scale.astype(g.dtype) * g + s - y,
    grad,
    _combination(weights, memory.steps),
    _combination(scale * alpha, memory.changes),
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

  def init(params: Any) -> LBFGSState:
    with jax.enable_x64(True):
      params = jax.tree.map(jnp.asarray, params)
      zeros = jax.tree.map(jnp.zeros_like, params)
      zero = jnp.zeros((), jnp.float64)
      square = jnp.zeros((memory_size, memory_size), jnp.float64)

      def rows(p):
        return jnp.zeros((memory_size, *p.shape), p.dtype)

      return LBFGSState(
        trial=params,
        params=params,
        value=zero,
        grad=zeros,
        direction=zeros,
        memory=Memory(
          steps=jax.tree.map(rows, params),
          changes=jax.tree.map(rows, params),
          steps_changes=square,
          changes_changes=square,
          pairs=jnp.zeros((), jnp.int32),
          head=jnp.zeros((), jnp.int32),
        ),
        search=line_search.begin(zero, zero, zero),
        iterations=jnp.zeros((), jnp.int32),
        restarts=jnp.zeros((), jnp.int32),
        evaluations=jnp.zeros((), jnp.int32),
        status=jnp.full((), RUNNING, jnp.int32),
      )

  @jax.jit
  def step(state: LBFGSState, value: jax.Array, grad: Any) -> LBFGSState:
    epsilon = np.finfo(np.float64).eps
    running = state.status == RUNNING
    first = state.evaluations == 0
    slope = _inner(grad, state.direction)
    search = line_search.advance(state.search, value, slope)
    accept = first | search.done
    failed = ~accept & (search.evaluations >= max_line_search_steps)
    # Without positive curvature along the step the pairs are worth nothing.
    bend = slope - state.search.start_slope
    concave = search.done & ~(bend > -epsilon * state.search.start_slope)
    hopeless = failed & (state.memory.pairs == 0)

    # The point to search from: the trial, or once more the one before. While
    # the search goes on all this is computed in vain, which is seldom, and
    # cheaper than a branch, whose operands XLA copies.
    turn = accept | failed
    params, here, value_here = _select(
      accept,
      (state.trial, grad, value),
      (state.params, state.grad, state.value),
    )
    memory = _remember(
      _forget(state.memory, running & (failed | concave)),
      jax.tree.map(jnp.subtract, state.trial, state.params),
      jax.tree.map(jnp.subtract, grad, state.grad),
      running & accept & ~first & ~concave,
    )
    direction = jax.tree.map(jnp.negative, _apply_inverse(memory, here))
    descent = _inner(here, direction)
    # Rounding can spoil the pairs so far that the direction rises.
    rises = ~(descent < 0)
    steepest = jax.tree.map(jnp.negative, here)
    direction = _select(rises, steepest, direction)
    descent = jnp.where(rises, _inner(here, steepest), descent)
    memory = _forget(memory, running & turn & rises)
    # Nothing is known of the scale before the first step: a unit length then.
    norm = jnp.sqrt(_inner(direction, direction))
    unit = 1.0 / jnp.where(norm > 0, norm, 1.0)
    fresh = line_search.begin(
      value_here, descent, jnp.where(memory.pairs == 0, unit, 1.0)
    )

    scale = jnp.maximum(jnp.abs(state.value), jnp.abs(value))
    stalled = state.value - value <= factr * epsilon * jnp.maximum(scale, 1.0)
    largest = [
      jnp.max(jnp.abs(g)).astype(value.dtype) for g in jax.tree.leaves(grad)
    ]
    flat = jnp.max(jnp.stack(largest)) <= pgtol
    finite = jnp.isfinite(value) & jnp.isfinite(_inner(grad, grad))
    status = jnp.where(hopeless, SEARCH_FAILED, state.status)
    status = jnp.where(accept & ((stalled & ~first) | flat), CONVERGED, status)
    status = jnp.where(finite, status, NOT_FINITE).astype(jnp.int32)

    params = _select(turn, params, state.params)
    direction = _select(turn, direction, state.direction)
    search = _select(turn, fresh, search)
    new = state._replace(
      trial=jax.tree.map(
        lambda p, d: p + search.step.astype(p.dtype) * d, params, direction
      ),
      params=params,
      value=jnp.where(turn, value_here, state.value),
      grad=_select(turn, here, state.grad),
      direction=direction,
      memory=None,
      search=search,
      iterations=state.iterations + (accept & ~first),
      restarts=state.restarts + (failed | concave | (turn & rises)),
      evaluations=state.evaluations + 1,
      status=status,
    )
    new = _select(running, new, state._replace(memory=None))
    return new._replace(memory=memory)

  def update(state: LBFGSState, value: Any, grad: Any) -> LBFGSState:
    with jax.enable_x64(True):
      value = jnp.asarray(value, jnp.float64)
      grad = jax.tree.map(
        lambda g, p: jnp.asarray(g, p.dtype), grad, state.trial
      )
      return step(state, value, grad)

  return LBFGS(init, update)


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
