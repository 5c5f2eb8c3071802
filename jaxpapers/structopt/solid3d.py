"""Structures in three dimensions: trilinear cubes and multigrid CG.

The same mechanics as `fem`, through the same code, on `[nelz, nely, nelx]`
fields of unit cubes: a direct factorisation would need memory that grows like
the 4/3 power of the number of elements, so the solver is matrix-free conjugate
gradients with a Galerkin multigrid preconditioner (`multigrid`), with a host
factorisation for small meshes and for comparison.

Nodal arrays are `[..., nelz + 1, nely + 1, nelx + 1, 3]`, with the components
x, y, z; x runs along the last axis of a field, y downwards along the middle one
and z along the first.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxpapers.structopt import (
  arguments,
  density,
  elements,
  fem,
  oc,
)
from jaxpapers.structopt.solvers import SolveConfig, SolveInfo


def solve_displacement_3d(
  youngs,
  forces,
  free,
  *,
  solver: str = 'mgcg',
  tol: float = 1e-8,
  maxiter: int = 500,
  x0=None,
  precision: str = 'double',
  poisson: float = 0.3,
  springs=None,
) -> tuple[jax.Array, SolveInfo]:
  """Displacements of a solid under nodal loads.

  Differentiable with respect to `youngs`, `forces` and `springs` to any order.

  Args:
    youngs: `[nelz, nely, nelx]` Young's moduli, non-negative. Computed in
      float64 whatever comes in.
    forces: `[..., nelz + 1, nely + 1, nelx + 1, 3]` nodal loads (x, y, z);
      leading axes are load cases, which share the multigrid hierarchy.
    free: `[nelz + 1, nely + 1, nelx + 1, 3]` bool, true where a displacement is
      free.
    solver: `"mgcg"` (also called `"auto"` here), or `"host"`, a sparse
      factorisation by SciPy or CHOLMOD for meshes of a few thousand elements.
    tol: relative residual to reach.
    maxiter: iteration limit of `"mgcg"`.
    x0: initial guess of the shape of `forces`.
    precision: `"double"`, or `"mixed"` for a float32 V-cycle inside the float64
      iteration.
    poisson: Poisson's ratio, below 0.5.
    springs: `[nelz + 1, nely + 1, nelx + 1, 3]` stiffnesses of springs to the
      ground, or None.

  Returns:
    `(u, info)`: float64 displacements of the shape of `forces` and a
    `SolveInfo`. Check `info.converged`: this function does not raise on an
    unconverged solve.

  Raises:
    ValueError: on an argument of the wrong shape, kind or (where its values are
      known, outside `jit`) with impossible values.

  Example:
    >>> task = cantilever_3d(8, 4, 4)
    >>> u, info = solve_displacement_3d(
    ...   np.ones((4, 4, 8)), task.forces, task.free)
    >>> bool(info.converged)
    True
  """
  config = SolveConfig(
    solver, float(tol), int(maxiter), precision, float(poisson)
  )
  with jax.enable_x64(True):
    checked = fem.check_arguments(
      config, youngs, forces, free, x0, springs, dim=3
    )
    return fem.solve(config, *checked)


def compliance_3d(
  youngs,
  forces,
  free,
  *,
  solver: str = 'mgcg',
  tol: float = 1e-8,
  maxiter: int = 500,
  precision: str = 'double',
  poisson: float = 0.3,
) -> jax.Array:
  """Compliance `u^T K u` of a solid, summed over load cases.

  First derivatives need no second linear solve, as for `fem.compliance`.

  Args:
    youngs: `[nelz, nely, nelx]` Young's moduli; see `solve_displacement_3d`.
    forces: `[..., nelz + 1, nely + 1, nelx + 1, 3]` loads.
    free: `[nelz + 1, nely + 1, nelx + 1, 3]` bool.
    solver: `"mgcg"` or `"host"`.
    tol: relative residual to reach.
    maxiter: iteration limit of `"mgcg"`.
    precision: `"double"` or `"mixed"`.
    poisson: Poisson's ratio, below 0.5.

  Returns:
    Float64 scalar. Inside `jit` a solve that did not converge gives NaN, in the
    value and in every derivative.

  Raises:
    ValueError: on invalid arguments.
    fem.SolveError: outside `jit`, when the solve did not converge.

  Example:
    >>> task = cantilever_3d(8, 4, 4)
    >>> youngs = np.ones((4, 4, 8))
    >>> bool(compliance_3d(youngs, task.forces, task.free) > 0)
    True
  """
  config = SolveConfig(
    solver, float(tol), int(maxiter), precision, float(poisson)
  )
  with jax.enable_x64(True):
    youngs, forces, free, *_ = fem.check_arguments(
      config, youngs, forces, free, dim=3
    )
    return fem.checked_compliance(config, youngs, forces, free)


@struct.dataclass
class Solid:
  """A design task in three dimensions.

  Attributes:
    name: identifies the task.
    forces: `[..., nelz + 1, nely + 1, nelx + 1, 3]` float64 nodal loads.
    free: `[nelz + 1, nely + 1, nelx + 1, 3]` bool.
    volume_fraction: mean filtered density that is allowed.
    mirror_z: whether the layer z = 0 is a symmetry plane, beyond which pictures
      continue the design.
  """

  name: str = struct.field(pytree_node=False)
  forces: Any
  free: Any
  volume_fraction: Any
  mirror_z: bool = struct.field(pytree_node=False, default=False)

  @property
  def shape(self) -> tuple[int, int, int]:
    """Elements along z, y and x."""
    nodes = self.free.shape[:3]
    return nodes[0] - 1, nodes[1] - 1, nodes[2] - 1


def cantilever_3d(
  length: int = 48, height: int = 24, depth: int = 12, density: float = 0.12
) -> Solid:
  """Half of a cantilever with a line load along its lower free edge.

  The wall x = 0 is clamped and z = 0 is a symmetry plane, so that `depth`
  elements model twice as many. The half's load is 1/2 in total, in the
  direction of increasing y.

  Args:
    length: elements along x.
    height: elements along y.
    depth: elements along z, half of the whole.
    density: volume fraction.

  Returns:
    The task.

  Raises:
    ValueError: a size is not positive or `density` not in (0, 1).

  Example:
    >>> cantilever_3d(8, 4, 2).shape
    (2, 4, 8)
  """
  for name, size in (('length', length), ('height', height), ('depth', depth)):
    arguments.positive(name, size)
  if not 0 < density < 1:
    raise ValueError(
      f'density must lie strictly between 0 and 1, got {density}.'
    )
  nodes = (depth + 1, height + 1, length + 1, 3)
  free = np.ones(nodes, bool)
  free[:, :, 0] = False
  free[0, :, :, 2] = False
  forces = np.zeros(nodes)
  forces[:, -1, -1, 1] = 0.5 / depth
  forces[[0, -1], -1, -1, 1] /= 2  # the line ends in the middle of a node
  return Solid(
    f'cantilever_3d_{length}x{height}x{depth}_{density}',
    forces,
    free,
    float(density),
    mirror_z=True,
  )


class SolidRun(NamedTuple):
  """Record of `optimize_solid`.

  Attributes:
    losses: Compliance of each evaluation, float64 [evaluations].
    iterations: Iterations of the linear solver in each evaluation.
    design: Physical densities of the last evaluation [nelz, nely, nelx].
  """

  losses: np.ndarray
  iterations: np.ndarray
  design: np.ndarray


@functools.partial(jax.jit, static_argnames=('config', 'penal', 'radius'))
def _step(x, start, forces, free, fraction, config, penal, radius):
  """Compliance of densities x, and the next densities."""

  def filtered(x):
    return density.cone_filter(x, radius, dim=3)

  def loss(x):
    physical = filtered(x)
    youngs = density.simp(physical, penal)
    u, info = fem.solve(
      config, jax.lax.stop_gradient(youngs), forces, free, start, None
    )
    u = jax.lax.stop_gradient(jnp.where(info.converged, u, jnp.nan))
    # Stationary in u, hence also the right derivative at fixed u.
    energy = jnp.sum(youngs * _energy(u, config.poisson))
    return 2 * jnp.sum(forces * u) - energy, (physical, u, info)

  (value, (physical, u, info)), slope = jax.value_and_grad(loss, has_aux=True)(
    x
  )
  weights = jax.grad(lambda x: filtered(x).mean())(x)  # linear in x
  following = oc.optimality_criteria(
    x,
    slope,
    weights,
    fraction,
    volume=functools.partial(jnp.vdot, weights),
  )
  return value, physical, u, info, following


def _energy(u, poisson):
  """`u_e^T K_0 u_e` of every element, summed over load cases."""
  stiffness = elements.unit_stiffness(3, poisson)
  cases = jnp.moveaxis(u.reshape((-1, *u.shape[-4:])), -1, 1)
  return jax.vmap(lambda v: elements.strain_energy(v, stiffness))(cases).sum(0)


def optimize_solid(
  solid: Solid,
  steps: int = 40,
  *,
  filter_radius: float = 1.5,
  penal: float = 3.0,
  solver: str = 'mgcg',
  tol: float = 1e-6,
  maxiter: int = 500,
  precision: str = 'double',
  callback: Callable[[int, float, int], None] | None = None,
) -> SolidRun:
  """Minimizes the compliance of a solid by optimality criteria.

  Starts from the uniform density. Every linear solve starts from the
  displacements of the last design.

  Args:
    solid: The task.
    steps: Number of updates; the design after the last is evaluated too.
    filter_radius: Radius of the cone filter, in elements.
    penal: Penalisation exponent of SIMP.
    solver: `"mgcg"` or `"host"`.
    tol: Relative residual. The error of the compliance is about its square.
    maxiter: Iteration limit of the linear solver.
    precision: `"double"` or `"mixed"`.
    callback: Called after each evaluation with the number of evaluations, the
      compliance and the iterations of the linear solver.

  Returns:
    The record of the run.

  Raises:
    ValueError: An argument is wrong.
    fem.SolveError: A linear solve did not converge.

  Example:
    >>> run = optimize_solid(cantilever_3d(8, 4, 2, 0.3), steps=3)
    >>> bool(run.losses[-1] < run.losses[0])
    True
  """
  steps = arguments.positive('steps', steps)
  config = SolveConfig(solver, float(tol), int(maxiter), precision)
  losses, iterations = [], []
  with jax.enable_x64(True):
    x = jnp.full(solid.shape, solid.volume_fraction, jnp.float64)
    _, forces, free, u, _ = fem.check_arguments(
      config, x, solid.forces, solid.free, np.zeros_like(solid.forces), dim=3
    )
    for evaluation in range(steps + 1):
      value, physical, u, info, x = _step(
        x,
        u,
        forces,
        free,
        solid.volume_fraction,
        config,
        float(penal),
        float(filter_radius),
      )
      if not info.converged:
        raise fem.SolveError(
          f'oc on solid {solid.name!r}, evaluation {evaluation}: the'
          f' {info.solver} solver reached a relative residual of'
          f' {float(info.residual):.1e} after {int(info.iterations)}'
          f' iterations; {tol:.1e} was asked for. Raise maxiter.'
        )
      losses.append(float(value))
      iterations.append(int(info.iterations))
      if callback is not None:
        callback(evaluation + 1, losses[-1], iterations[-1])
  return SolidRun(np.array(losses), np.array(iterations), np.asarray(physical))
