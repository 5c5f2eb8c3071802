"""Backends that solve ``K(E) u = f``, behind one preparing function each.

``prepare(config, youngs, free)`` does the work that depends on the matrix
alone (factorisation, multigrid hierarchy) and returns ``solve(forces, x0) ->
(u, SolveInfo)``, so that several right-hand sides share it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxpapers.structopt import direct, elements, host, multigrid

SOLVERS = ('auto', 'direct', 'mgcg', 'host')
PRECISIONS = ('double', 'mixed')

# "auto" factorises meshes up to this many elements: there a factorisation
# costs no more than an iteration history and nothing can fail to converge.
AUTO_DIRECT_ELEMENTS = 64 * 64

# Where a float32 factorisation fails, because rounding makes floating islands
# indefinite, moduli below this are lifted in it (and only in it).
_SINGLE_FLOOR = 1e-6


class SolveConfig(NamedTuple):
  """Static options of a solve; hashable."""

  solver: str = 'auto'
  tol: float = 1e-8
  maxiter: int = 500
  precision: str = 'double'
  poisson: float = 0.3
  accept: float | None = None  # largest residual used; None: tol


@struct.dataclass
class SolveInfo:
  """How a linear solve went.

  Attributes:
    iterations: int32, iterations of the iterative method (0 for a direct one);
      the largest over load cases.
    residual: float64, true relative residual ``|f - K u| / |f|``; the largest
      over load cases.
    converged: bool, whether the residual is finite and within the tolerance.
    fallback: bool, whether "auto" had to fall back on the direct solver.
    solver: name of the backend that was run first (static).
  """

  iterations: Any
  residual: Any
  converged: Any
  fallback: Any
  solver: str = struct.field(pytree_node=False, default='')


def prepare(config, youngs, free, springs=None):
  """Factorises or builds the hierarchy; see the module docstring.

  Args:
    config: a ``SolveConfig``.
    youngs: ``[*elements]`` float64 Young's moduli, of a plane or (for
      ``"mgcg"`` and ``"host"``) a solid.
    free: ``[*nodes, dim]`` bool.
    springs: ``[*nodes, dim]`` float64 stiffnesses of springs to the ground,
      added to the diagonal of K, or None.

  Returns:
    ``solve(forces, x0)`` on ``[cases, *nodes, dim]`` forces that are zero on
    fixed degrees of freedom.
  """
  solver = config.solver
  if solver == 'auto' and youngs.ndim == 3:
    solver = 'mgcg'  # a direct factorisation of a solid takes too much memory
  elif solver == 'auto':
    small = youngs.size <= AUTO_DIRECT_ELEMENTS
    solver = 'direct' if small else 'fallback'
  builder = {
    'direct': _prepare_direct,
    'mgcg': _prepare_multigrid,
    'host': _prepare_host,
    'fallback': _prepare_fallback,
  }[solver]
  return builder(config, youngs, free, springs)


def _operator(config, youngs, free, springs):
  """The masked stiffness action on ``[*nodes, dim]`` fields."""
  stiffness = elements.unit_stiffness(youngs.ndim, config.poisson)

  def apply(u):
    force = elements.apply_stiffness(youngs, jnp.moveaxis(u, -1, 0), stiffness)
    force = jnp.moveaxis(force, 0, -1)
    if springs is not None:
      force = force + springs * u
    return force * free

  return apply


def _report(config, name, apply, forces, u, iterations=0):
  residual = forces - jax.vmap(apply)(u)
  axes = tuple(range(1, forces.ndim))
  norm = jnp.sqrt(jnp.sum(forces**2, axes))
  error = jnp.sqrt(jnp.sum(residual**2, axes)) / jnp.where(norm > 0, norm, 1)
  # A maximum would drop NaN; a sum of comparisons does not.
  converged = jnp.all(error <= config.tol)
  return SolveInfo(
    iterations=jnp.max(jnp.asarray(iterations, jnp.int32)),
    residual=jnp.max(error),
    converged=converged,
    fallback=jnp.zeros((), bool),
    solver=name,
  )


def _prepare_direct(config, youngs, free, springs):
  stiffness = elements.element_stiffness(1.0, config.poisson)
  plan = direct.make_plan(*youngs.shape)
  apply = _operator(config, youngs, free, springs)
  if config.precision == 'double':
    factorized = direct.factorize(
      plan, youngs, free, stiffness=stiffness, springs=springs
    )

    def solve(forces, x0):
      del x0
      u = factorized.solve(forces) * free
      return u, _report(config, 'direct', apply, forces, u)

    return solve

  def factorize(floor):
    return direct.factorize(
      plan,
      jnp.maximum(youngs, floor * jnp.max(youngs)),
      free,
      stiffness=stiffness,
      springs=springs,
      dtype=jnp.float32,
    )

  single = _first_finite(factorize, (0.0, _SINGLE_FLOOR))

  def precondition(r):
    return single.solve(r.astype(jnp.float32)).astype(r.dtype) * free

  return _iterate(config, 'direct', apply, precondition)


def _first_finite(function, candidates):
  """``function`` of the first candidate for which it is finite, or the last.

  A loop whose body is compiled once, where a conditional would be compiled
  for every candidate; under vmap it repeats only where somebody needs it.
  """
  candidates = jnp.asarray(candidates, jnp.float64)

  def unfinished(state):
    attempt, finite, _ = state
    return ~finite & (attempt < len(candidates))

  def body(state):
    attempt, _, _ = state
    result = function(candidates[attempt])
    leaves = jax.tree.leaves(result)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))
    return attempt + 1, finite, result

  empty = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(function, candidates[0]),
  )
  start = jnp.zeros((), jnp.int32), jnp.zeros((), bool), empty
  return lax.while_loop(unfinished, body, start)[2]


def _iterate(config, name, apply, precondition):
  """Conjugate gradients over load cases, with a true final residual."""

  def solve(forces, x0):
    def one(b, start):
      # Aim a little lower than asked: the recursive residual drifts.
      return multigrid.conjugate_gradients(
        apply, precondition, b, start, 0.9 * config.tol, config.maxiter
      )

    if x0 is None:
      u, iterations, _ = jax.vmap(lambda b: one(b, None))(forces)
    else:
      u, iterations, _ = jax.vmap(one)(forces, x0)
    return u, _report(config, name, apply, forces, u, iterations)

  return solve


def _prepare_multigrid(config, youngs, free, springs):
  solve_padded, pad, unpad = _multigrid(config, youngs, free, springs)
  apply = _operator(config, youngs, free, springs)

  def solve(forces, x0):
    start = None if x0 is None else pad(x0 * free)
    u, iterations = solve_padded(pad(forces), start)
    u = unpad(u) * free
    return u, _report(config, 'mgcg', apply, forces, u, iterations)

  return solve


def _multigrid(config, youngs, free, springs):
  dim = youngs.ndim
  stiffness = elements.unit_stiffness(dim, config.poisson)
  extra = [
    (0, p - n)
    for p, n in zip(
      multigrid.padded_shape(youngs.shape), youngs.shape, strict=True
    )
  ]
  moduli = jnp.pad(youngs, extra)
  inside = tuple(slice(n + 1) for n in youngs.shape)

  def pad(nodal):
    swapped = jnp.moveaxis(nodal, -1, -dim - 1)
    lead = [(0, 0)] * (swapped.ndim - dim)
    return jnp.pad(swapped, lead + extra)

  def unpad(nodal):
    return jnp.moveaxis(nodal[(..., *inside)], -dim - 1, -1)

  mask = pad(free.astype(youngs.dtype))
  cycle_dtype = (
    youngs.dtype if config.precision == 'double' else jnp.dtype(jnp.float32)
  )
  grounded = None if springs is None else pad(springs) * mask
  hierarchy = multigrid.build(
    moduli.astype(cycle_dtype),
    mask.astype(cycle_dtype),
    stiffness,
    None if grounded is None else grounded.astype(cycle_dtype),
  )

  def apply(u):
    force = elements.apply_stiffness(moduli, u, stiffness)
    if grounded is not None:
      force = force + grounded * u
    return force * mask

  def precondition(r):
    z = multigrid.v_cycle(hierarchy, stiffness, r.astype(cycle_dtype))
    return z.astype(r.dtype)

  def one(b, start):
    u, iterations, _ = multigrid.conjugate_gradients(
      apply, precondition, b, start, 0.9 * config.tol, config.maxiter
    )
    return u, iterations

  def solve(forces, x0):
    if x0 is None:
      return jax.vmap(lambda b: one(b, None))(forces)
    return jax.vmap(one)(forces, x0)

  return solve, pad, unpad


def _prepare_host(config, youngs, free, springs):
  stiffness = elements.unit_stiffness(youngs.ndim, config.poisson)
  apply = _operator(config, youngs, free, springs)

  def solve(forces, x0):
    del x0
    u = host.solve(youngs, free, forces, stiffness, springs)
    return u, _report(config, 'host', apply, forces, u)

  return solve


def _prepare_fallback(config, youngs, free, springs):
  """Multigrid, and the direct solver for what does not converge."""
  first = _prepare_multigrid(config, youngs, free, springs)

  def solve(forces, x0):
    u, info = first(forces, x0)
    return _rescue(config, (youngs, free, springs), forces, u, info)

  return solve


def _rescue(config, system, forces, u, info):
  def again(system, forces):
    exact = config._replace(precision='double')
    v, after = _prepare_direct(exact, *system)(forces, None)
    return v, after.residual, after.converged

  # Under vmap a conditional becomes a select that runs both branches for
  # every example; the custom rule keeps one conditional for the whole batch.
  @jax.custom_batching.custom_vmap
  def rescue(system, forces, u, residual, converged):
    return lax.cond(
      converged,
      lambda: (u, residual, converged),
      lambda: again(system, forces),
    )

  @rescue.def_vmap
  def _(axis_size, in_batched, *args):
    axes = jax.tree.map(lambda batched: 0 if batched else None, in_batched)

    def full(x, batched):
      return x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))

    old = tuple(
      full(x, b) for x, b in zip(args[2:], in_batched[2:], strict=True)
    )

    def redo():
      new = jax.vmap(again, in_axes=tuple(axes[:2]), axis_size=axis_size)(
        *args[:2]
      )
      keep = old[2]
      return tuple(
        jnp.where(keep.reshape(keep.shape + (1,) * (a.ndim - 1)), a, b)
        for a, b in zip(old, new, strict=True)
      )

    out = lax.cond(jnp.all(old[2]), lambda: old, redo)
    return out, (True, True, True)

  v, residual, converged = rescue(
    system, forces, u, info.residual, info.converged
  )
  fallback = ~info.converged
  return v, info.replace(
    residual=residual, converged=converged, fallback=fallback
  )
