"""The objective of a task: compliance as a function of the design variables."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.structopt import density, domain, fem


def design_compliance(
  z: Any,
  problem: domain.Problem,
  *,
  penal: float = 3.0,
  emin: float = 1e-9,
  e0: float = 1.0,
  constrain_volume: bool = True,
  filter_radius: float = 2.0,
  projection: tuple[Any, Any] | None = None,
  constrain: str = 'design',
  **solver: Any,
) -> tuple[jax.Array, jax.Array]:
  """Compliance of a design together with its physical densities.

  Densities from `density.physical_density`, Young's moduli from `density.simp`,
  then u^T K u summed over the load cases. With self-weight the structure also
  carries its own load, in every load case. Unlike `make_objective` this takes
  the problem as an argument, so that one compiled program serves all problems
  of a size.

  Args:
    z: Logits, or densities in [0, 1] without `constrain_volume`; [nely, nelx].
      Computed in float64 whatever its dtype.
    problem: The task.
    penal: Penalisation exponent of SIMP.
    emin: Young's modulus of the void.
    e0: Young's modulus of the solid.
    constrain_volume: Whether z are logits to pass through the volume sigmoid.
    filter_radius: Radius of the cone filter, in elements.
    projection: None, or (beta, eta) of the Heaviside projection.
    constrain: What has the wanted volume, 'design' or 'physical'; see
      `density.physical_density`.
    **solver: Arguments of `fem.compliance`, such as `solver` and `tol`.

  Returns:
    The compliance, a float64 scalar, and the physical densities [nely, nelx].
  """
  with jax.enable_x64(True):
    z = jnp.asarray(z).astype(jnp.float64)
    x = density.physical_density(
      z,
      problem,
      constrain_volume=constrain_volume,
      filter_radius=filter_radius,
      projection=projection,
      constrain=constrain,
    )
    youngs = density.simp(x, penal, emin, e0)
    forces = problem.nodal_forces
    if problem.self_weight:
      forces = forces + density.self_weight(x, problem.self_weight)
    return fem.compliance(youngs, forces, problem.free, **solver), x


def make_objective(
  problem: domain.Problem,
  *,
  penal: float = 3.0,
  constrain_volume: bool = True,
  solver: str = 'auto',
  **options: Any,
) -> Callable[[Any], jax.Array]:
  """Returns the function that the paper minimizes for one task.

  Args:
    problem: The task; validated here.
    penal: Penalisation exponent of SIMP.
    constrain_volume: Whether the variables are logits, to be passed through the
      volume sigmoid, or densities.
    solver: See `fem.solve_displacement`.
    **options: More arguments of `design_compliance`: `filter_radius`,
      `projection`, `constrain`, `emin`, `tol` and others.

  Returns:
    f(z) -> float64 compliance, where z are logits [nely, nelx] (or densities
    with `constrain_volume=False`). Works under jit, vmap and grad.

  Raises:
    ValueError: The problem is ill posed; from f: z has the wrong shape or,
      where its values are known, holds NaN or densities outside [0, 1].

  Example:
    >>> from jaxpapers.structopt import problems
    >>> objective = make_objective(problems.mbb_beam(32, 16, 0.5))
    >>> compliance = objective(np.zeros((16, 32)))
  """
  problem.validate()
  expected = (problem.nely, problem.nelx)

  def objective(z):
    if np.shape(z) != expected:
      raise ValueError(
        f'z has shape {np.shape(z)}; problem {problem.name!r} expects (nely,'
        f' nelx) = {expected}. Use jax.vmap for a batch.'
      )
    return design_compliance(
      z,
      problem,
      penal=penal,
      constrain_volume=constrain_volume,
      solver=solver,
      **options,
    )[0]

  return objective
