"""Linear elasticity on a grid: displacements, compliance and derivatives.

``solve_displacement`` solves ``K(E) u = f``; ``compliance`` returns the
objective ``u^T K u`` of Hoyer et al. (2019) with derivatives that cost no
second linear solve. Both work under ``jit``, ``vmap``, ``grad`` (any order, in
forward and reverse mode) and inside a program that otherwise runs in float32:
the mechanics are always done in float64, in a scope of their own, because at a
stiffness contrast of 1e9 float32 loses the compliance at 1e-3 and its gradient
at 1e-2.

Nodal arrays are y-major, ``[..., nely + 1, nelx + 1, 2]``, oriented like the
element arrays ``[nely, nelx]``; ``Problem.nodal_forces`` and ``Problem.free``
have this layout.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpapers.structopt import elements, solvers
from jaxpapers.structopt.direct import (  # noqa: F401
  FactorizedStiffness,
  factorize,
  make_plan,
)
from jaxpapers.structopt.elements import element_stiffness  # noqa: F401
from jaxpapers.structopt.solvers import SolveConfig


class SolveError(FloatingPointError):
  """A linear solve that did not reach its tolerance or is not finite."""


def solve_displacement(
  youngs,
  forces,
  free,
  *,
  solver='auto',
  tol=1e-8,
  maxiter=500,
  x0=None,
  precision='double',
  poisson=0.3,
  springs=None,
):
  """Displacements of a plane-stress structure under nodal loads.

  Solves ``K(E) u = f`` with fixed displacements at zero. The solution is
  differentiable with respect to ``youngs``, ``forces`` and ``springs`` to any
  order; the adjoint of a functional of ``u`` reuses the factorisation.

  Args:
    youngs: ``[nely, nelx]`` Young's moduli, non-negative. Computed in float64
      whatever comes in.
    forces: ``[..., nely + 1, nelx + 1, 2]`` nodal loads (x, y), y positive
      downwards. Leading axes are load cases, which share one factorisation.
      Loads on fixed degrees of freedom do no work.
    free: ``[nely + 1, nelx + 1, 2]`` bool, true where a displacement is free.
    solver: ``"direct"`` (nested-dissection Cholesky), ``"mgcg"`` (multigrid
      conjugate gradients), ``"host"`` (SciPy or CHOLMOD through a callback), or
      ``"auto"``: direct on small meshes, else mgcg that falls back on direct
      where it does not converge.
    tol: relative residual to reach.
    maxiter: iteration limit of ``"mgcg"``.
    x0: initial guess of the shape of ``forces``, for ``"mgcg"``.
    precision: ``"double"``, or ``"mixed"`` for a float32 factorisation or
      V-cycle inside a float64 iteration (same tolerance, less memory traffic).
    poisson: Poisson's ratio.
    springs: ``[nely + 1, nelx + 1, 2]`` stiffnesses, non-negative, of springs
      that tie displacements to the ground (they are added to the diagonal of
      K), or None.

  Returns:
    ``(u, info)``: float64 displacements of the shape of ``forces`` and a
    ``SolveInfo``. Check ``info.converged``: this function does not raise on an
    unconverged solve.

  Raises:
    ValueError: on an argument of the wrong shape, kind or (where its values
      are known, outside ``jit``) with impossible values.

  Example:
    >>> problem = get_problem('mbb_beam_96x32_0.5')
    >>> u, info = solve_displacement(
    ...   np.full((32, 96), 0.125), problem.nodal_forces, problem.free)
    >>> bool(info.converged)
    True
  """
  config = SolveConfig(
    solver, float(tol), int(maxiter), precision, float(poisson)
  )
  with jax.enable_x64(True):
    youngs, forces, free, x0, springs = check_arguments(
      config, youngs, forces, free, x0, springs
    )
    return solve(config, youngs, forces, free, x0, springs)


def compliance(
  youngs,
  forces,
  free,
  *,
  solver='auto',
  tol=1e-8,
  maxiter=500,
  precision='double',
  poisson=0.3,
  accept=None,
):
  """Compliance ``u^T K u`` of a structure, summed over load cases.

  The value is ``2 f^T u - u^T K u``, which equals ``u^T K u`` at the solution
  and whose error is quadratic in that of ``u``. First derivatives need no
  second linear solve: ``dc = -sum_e dE_e u_e^T K_0 u_e + 2 u . df``.

  Args:
    youngs: ``[nely, nelx]`` Young's moduli; see ``solve_displacement``.
    forces: ``[..., nely + 1, nelx + 1, 2]`` loads; leading axes are load
      cases, solved with one factorisation.
    free: ``[nely + 1, nelx + 1, 2]`` bool.
    solver: see ``solve_displacement``.
    tol: relative residual to reach.
    maxiter: iteration limit of ``"mgcg"``.
    precision: ``"double"`` or ``"mixed"``.
    poisson: Poisson's ratio.
    accept: largest relative residual whose result is returned; ``tol`` if
      None. A structure whose load rests on an island of solid moves by 1e9,
      and rounding alone then leaves residuals of 1e-6, whatever the solver.
      Its value is still good to about the square of that.

  Returns:
    Float64 scalar. Inside ``jit`` a solve that did not reach ``accept`` gives
    NaN, in the value and in every derivative.

  Raises:
    ValueError: on invalid arguments; see ``solve_displacement``.
    SolveError: outside ``jit``, when the solve did not reach ``accept``.

  Example:
    >>> p = get_problem('mbb_beam_96x32_0.5')
    >>> round(float(compliance(np.ones((32, 96)), p.nodal_forces, p.free)), 1)
    127.6
  """
  config = SolveConfig(
    solver,
    float(tol),
    int(maxiter),
    precision,
    float(poisson),
    None if accept is None else float(accept),
  )
  with jax.enable_x64(True):
    youngs, forces, free, *_ = check_arguments(config, youngs, forces, free)
    return checked_compliance(config, youngs, forces, free)


def checked_compliance(config, youngs, forces, free):
  """Compliance of validated arguments, in two or three dimensions.

  Raises:
    SolveError: outside ``jit``, when the solve did not converge.
  """
  value = _compliance_jit(config, youngs, forces, free)
  if not isinstance(value, jax.core.Tracer) and not np.isfinite(value):
    _, info = solve(config, youngs, forces, free, None, None)
    other = 'direct' if youngs.ndim == 2 else 'host'
    raise SolveError(
      f'the {info.solver} solver reached a relative residual of'
      f' {float(info.residual):.1e} after {int(info.iterations)} iterations;'
      f' {_accepted(config):.1e} was asked for. Use solver="{other}", or check'
      ' that the supports exclude every rigid-body motion and that no modulus'
      ' is zero.'
    )
  return value


def _solve(config, youngs, forces, free, x0, springs=None):
  dim = youngs.ndim
  nodal = forces.shape[-dim - 1 :]
  cases = forces.shape[: -dim - 1]
  f = (forces * free).reshape((-1, *nodal))
  start = None if x0 is None else x0.reshape(f.shape)
  frozen = lax.stop_gradient((youngs, springs))
  backend = solvers.prepare(config, frozen[0], free, frozen[1])
  apply = solvers._operator(config, youngs, free, springs)

  def matvec(u):
    # Identity on fixed degrees of freedom keeps the operator invertible.
    return jax.vmap(apply)(u * free) + jnp.where(free, 0, u)

  def solve(_, b):
    return backend(b * free, start)

  u, info = lax.custom_linear_solve(
    matvec, f, solve, symmetric=True, has_aux=True
  )
  return u.reshape((*cases, *nodal)), info


solve = jax.jit(_solve, static_argnums=0)


def _accepted(config):
  return config.tol if config.accept is None else config.accept


def _value_and_energy(config, youngs, forces, free):
  u, info = _solve(config, youngs, forces, free, None)
  # A comparison that NaN fails.
  u = jnp.where(info.residual <= _accepted(config), u, jnp.nan)
  dim = youngs.ndim
  stiffness = elements.unit_stiffness(dim, config.poisson)
  flat = jnp.moveaxis(u.reshape((-1, *u.shape[-dim - 1 :])), -1, 1)
  energy = jnp.sum(
    jax.vmap(lambda v: elements.strain_energy(v, stiffness))(flat), axis=0
  )
  value = 2 * jnp.sum(forces * u) - jnp.sum(youngs * energy)
  return value, energy, u


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _compliance(config, youngs, forces, free):
  return _value_and_energy(config, youngs, forces, free)[0]


@_compliance.defjvp
def _compliance_jvp(config, primals, tangents):
  youngs, forces, free = primals
  d_youngs, d_forces, _ = tangents
  # The derivative rule may be traced outside the caller's scope.
  with jax.enable_x64(True):
    value, energy, u = _value_and_energy(config, youngs, forces, free)
    change = 2 * jnp.sum(d_forces * u) - jnp.sum(d_youngs * energy)
  return value, change


_compliance_jit = jax.jit(_compliance, static_argnums=0)


def check_arguments(
  config, youngs, forces, free, x0=None, springs=None, *, dim=2
):
  """Validates arguments and casts them to float64 and bool."""
  grid = ('nely', 'nelx') if dim == 2 else ('nelz', 'nely', 'nelx')
  if config.solver not in solvers.SOLVERS:
    raise ValueError(
      f'solver must be one of {solvers.SOLVERS}, got {config.solver!r}.'
    )
  if dim == 3 and config.solver == 'direct':
    raise ValueError(
      "solver='direct' factorises plane meshes only; use 'mgcg' or, for small"
      " solids, 'host'."
    )
  if config.precision not in solvers.PRECISIONS:
    raise ValueError(
      f'precision must be one of {solvers.PRECISIONS}, got'
      f' {config.precision!r}; all-float32 mechanics are off by 1e-3 and not'
      ' offered.'
    )
  if config.accept is not None and not config.accept >= config.tol:
    raise ValueError(
      'accept is the largest residual to put up with and must be at least tol,'
      f' got accept={config.accept!r} and tol={config.tol!r}.'
    )
  if not config.tol > 0 or config.maxiter < 1:
    raise ValueError(
      f'tol must be positive and maxiter at least 1, got tol={config.tol!r}'
      f' and maxiter={config.maxiter!r}.'
    )
  youngs, forces, free = _as_arrays(youngs, forces, free)
  if springs is not None:
    springs = jnp.asarray(springs, jnp.float64)
  if youngs.ndim != dim:
    raise ValueError(
      f'youngs must be [{", ".join(grid)}], got shape {youngs.shape}; use'
      ' jax.vmap for a batch of designs.'
    )
  nodes = (*(n + 1 for n in youngs.shape), dim)
  for name, array in (('forces', forces), ('free', free), ('springs', springs)):
    if array is None:
      continue
    lead = array.shape[: -dim - 1] if name == 'forces' else ()
    if array.shape != (*lead, *nodes):
      swapped = (nodes[1], nodes[0], 2)
      hint = ''
      if dim == 2 and array.shape[-3:] == swapped:
        hint = (
          ' It looks x-major: pass Problem.nodal_forces and Problem.free, not'
          ' Problem.forces and Problem.fixed.'
        )
      expected = '(..., ' if name == 'forces' else '('
      expected += f'{", ".join(map(str, nodes))})'
      raise ValueError(
        f'{name} must have shape {expected} for youngs of shape'
        f' {youngs.shape}, got {array.shape}.{hint}'
      )
  _check_values(youngs, forces, free)
  if springs is not None and not isinstance(springs, jax.core.Tracer):
    if not (np.isfinite(springs).all() and np.min(springs) >= 0):
      raise ValueError(
        'springs must be finite and non-negative, got values from'
        f' {np.min(springs):.3g} to {np.max(springs):.3g}; a negative stiffness'
        ' makes the structure unstable.'
      )
  if x0 is not None:
    x0 = jnp.asarray(x0, jnp.float64)
    if x0.shape != forces.shape:
      raise ValueError(
        f'x0 must have the shape of forces, {forces.shape}, got {x0.shape}.'
      )
  return youngs, forces, free, x0, springs


def _as_arrays(youngs, forces, free):
  if not jnp.issubdtype(jnp.result_type(free), jnp.bool_):
    raise ValueError(
      f'free must be boolean, got dtype {jnp.result_type(free)}; true marks a'
      ' displacement that is free to move.'
    )
  return (
    jnp.asarray(youngs, jnp.float64),
    jnp.asarray(forces, jnp.float64),
    jnp.asarray(free),
  )


def _check_values(youngs, forces, free):
  """Checks of values, for the arguments whose values are known."""
  known = [not isinstance(a, jax.core.Tracer) for a in (youngs, forces, free)]
  if known[0]:
    values = np.asarray(youngs)
    if not np.isfinite(values).all():
      raise ValueError(
        f'youngs holds {int((~np.isfinite(values)).sum())} NaN or infinite'
        ' values; check the densities it was computed from.'
      )
    if (values < 0).any():
      raise ValueError(
        f'youngs must be non-negative, got a minimum of {values.min():.3g};'
        ' densities must lie in [0, 1] before the power law.'
      )
  if known[1] and not np.isfinite(np.asarray(forces)).all():
    raise ValueError('forces holds NaN or infinite values.')
  if known[2]:
    fixed = int((~np.asarray(free)).sum())
    needed, space = (3, 'the plane') if youngs.ndim == 2 else (6, 'space')
    if fixed < needed:
      raise ValueError(
        f'free leaves {fixed} displacements fixed; at least {needed} are needed'
        f' to exclude the rigid-body motions of {space}.'
      )
  if known[1] and known[2]:
    load, moves = np.asarray(forces), np.asarray(free)
    if load.any() and not (load * moves).any():
      raise ValueError(
        'forces act on fixed displacements only and do no work; move the load'
        ' or free the degrees of freedom it acts on.'
      )
