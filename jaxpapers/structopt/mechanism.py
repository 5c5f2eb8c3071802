"""Compliant mechanisms: structures that move by bending.

A mechanism is judged by the displacement of an output point, not by its
stiffness: minimize `sum(output * u)` where `K(E) u = f` and K holds, besides
the elements, springs that model the actuator at the input and the workpiece at
the output. Its derivative needs a second solution, the adjoint `K v = output`;
automatic differentiation of `fem.solve_displacement` finds it and reuses the
factorisation.

The force inverter, which answers a push with a pull, is the usual benchmark:
O. Sigmund, On the design of compliant mechanisms using topology optimization,
Mech. Struct. Mach. 25 (1997) 493-524; M. P. Bendsøe & O. Sigmund, Topology
Optimization, Springer (2003), section 2.6.
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
  domain,
  fem,
  grids,
  moving_asymptotes,
)

# Volume in excess of the volume fraction up to which a design counts as
# feasible.
_FEASIBLE = 1e-6


@struct.dataclass
class Mechanism:
  """A task whose objective is an output displacement.

  Attributes:
    problem: supports, input load, design region and volume fraction.
    springs: `(nelx + 1, nely + 1, 2)` stiffnesses, non-negative, of springs
      that tie displacements to the ground.
    output: `(nelx + 1, nely + 1, 2)` weights; the sum of weighted
      displacements is minimized.
  """

  problem: domain.Problem
  springs: Any
  output: Any

  @property
  def nodal_springs(self):
    """Springs as a y-major nodal array `(nely + 1, nelx + 1, 2)`."""
    return self.springs.swapaxes(0, 1)

  @property
  def nodal_output(self):
    """Output weights as a y-major nodal array `(nely + 1, nelx + 1, 2)`."""
    return self.output.swapaxes(0, 1)

  def validate(self) -> 'Mechanism':
    """Raises unless the task is well posed.

    Returns:
      The mechanism itself, so that calls can be chained.

    Raises:
      ValueError: names the field that is wrong, what it holds and what to do.
    """
    self.problem.validate()
    expected = (self.problem.nelx + 1, self.problem.nely + 1, 2)
    for name in ('springs', 'output'):
      array = np.asarray(getattr(self, name))
      if array.shape != expected:
        raise ValueError(
          f'{name} has shape {array.shape}; expected {expected} (x-major nodes)'
          f' for problem {self.problem.name!r}.'
        )
      if not np.isfinite(array).all():
        raise ValueError(f'{name} has entries that are NaN or infinite.')
    if np.min(self.springs) < 0:
      raise ValueError(
        f'springs go down to {np.min(self.springs):.3g}; expected stiffnesses'
        ' that are not negative.'
      )
    if not np.asarray(self.output)[~np.asarray(self.problem.fixed)].any():
      raise ValueError(
        'output is zero on every free displacement: there is nothing to'
        ' minimize. Weight a displacement that is free to move.'
      )
    return self


class MechanismRun(NamedTuple):
  """Record of `optimize_mechanism`.

  Attributes:
    losses: Output displacement of each evaluation, float64 [evaluations].
    volumes: Mean physical density of each evaluation, float64 [evaluations].
    design: Physical densities of the best feasible evaluation [nely, nelx].
    loss: Its output displacement.
  """

  losses: np.ndarray
  volumes: np.ndarray
  design: np.ndarray
  loss: float


def force_inverter(
  width: int = 80,
  height: int = 40,
  density: float = 0.3,
  *,
  input_spring: float = 0.1,
  output_spring: float = 0.1,
) -> Mechanism:
  """Lower half of the force inverter.

  The actuator pushes the middle of the left wall to the right with a unit
  force; the middle of the right wall should move to the left. Both lie on the
  symmetry plane, which is row 0 here. The lower end of the left wall is
  clamped.

  Args:
    width: elements along x.
    height: elements along y, half of the whole.
    density: volume fraction.
    input_spring: stiffness of the actuator.
    output_spring: stiffness of the workpiece. A stiffer one asks for a
      mechanism that transmits force rather than motion.

  Returns:
    The mechanism.

  Example:
    >>> force_inverter(20, 10).problem.nelx
    20
  """
  x = grids.X
  fixed, forces = grids.empty(width, height)
  fixed[:, 0, grids.Y] = True
  fixed[0, height - max(1, round(height / 20)) :] = True
  forces[0, 0, x] = 1.0
  springs, output = np.zeros_like(forces), np.zeros_like(forces)
  springs[0, 0, x] = input_spring
  springs[-1, 0, x] = output_spring
  output[-1, 0, x] = 1.0
  problem = grids.finish('force_inverter', fixed, forces, density)
  return Mechanism(problem, springs, output).validate()


def output_displacement(
  z: Any,
  mechanism: Mechanism,
  *,
  penal: float = 3.0,
  emin: float = 1e-3,
  e0: float = 1.0,
  constrain_volume: bool = False,
  filter_radius: float = 2.0,
  projection: tuple[Any, Any] | None = None,
  **solver: Any,
) -> tuple[jax.Array, jax.Array]:
  """Weighted output displacement of a design, and its physical densities.

  Args:
    z: Densities in [0, 1], or logits with `constrain_volume`; [nely, nelx].
    mechanism: The task.
    penal: Penalisation exponent of SIMP.
    emin: Young's modulus of the void. Larger than for compliance: once output
      and input are disconnected the objective is 0, and a softer void leaves no
      gradient to reconnect them.
    e0: Young's modulus of the solid.
    constrain_volume: Whether z are logits to pass through the volume sigmoid.
    filter_radius: Radius of the cone filter, in elements.
    projection: None, or (beta, eta) of the Heaviside projection.
    **solver: Arguments of `fem.solve_displacement`, such as `solver`.

  Returns:
    `sum(output * u)`, summed over load cases, a float64 scalar that is NaN
    where the linear solve did not converge; and the physical densities.
  """
  problem = mechanism.problem
  with jax.enable_x64(True):
    z = jnp.asarray(z).astype(jnp.float64)
    x = density.physical_density(
      z,
      problem,
      constrain_volume=constrain_volume,
      filter_radius=filter_radius,
      projection=projection,
    )
    u, info = fem.solve_displacement(
      density.simp(x, penal, emin, e0),
      problem.nodal_forces,
      problem.free,
      springs=mechanism.nodal_springs,
      **solver,
    )
    value = jnp.sum(mechanism.nodal_output * u)
    return jnp.where(info.converged, value, jnp.nan), x


@functools.partial(jax.jit, static_argnames='options')
def _evaluate(x, mechanism, options):
  """Loss, volume and their gradients at densities x."""
  options = dict(options)

  def loss(x):
    return output_displacement(x, mechanism, **options)

  def volume(x):
    problem = mechanism.problem
    physical = density.physical_density(
      x,
      problem,
      constrain_volume=False,
      filter_radius=options.get('filter_radius', 2.0),
      projection=options.get('projection'),
    )
    return physical.sum() / problem.mask.sum()

  (value, physical), slope = jax.value_and_grad(loss, has_aux=True)(x)
  return value, slope, *jax.value_and_grad(volume)(x), physical


def optimize_mechanism(
  mechanism: Mechanism,
  steps: int = 150,
  *,
  callback: Callable[[int, float], None] | None = None,
  **options: Any,
) -> MechanismRun:
  """Optimizes a mechanism by the method of moving asymptotes.

  The variables are densities that start at the volume fraction; the mean of
  the filtered densities may not exceed it.

  Args:
    mechanism: The task; validated here.
    steps: Index of the last evaluation.
    callback: Called with the number of evaluations and the loss after each.
    **options: Arguments of `output_displacement`, except `constrain_volume`.

  Returns:
    The record of the run.

  Raises:
    ValueError: An argument is wrong or the task is ill posed.
    FloatingPointError: A linear solve did not converge.

  Example:
    >>> run = optimize_mechanism(force_inverter(20, 10), steps=40)
    >>> run.loss < 0
    True
  """
  steps = arguments.positive('steps', steps)
  if 'constrain_volume' in options:
    raise ValueError(
      'constrain_volume cannot be set here: MMA constrains the volume itself.'
    )
  mechanism.validate()
  problem = mechanism.problem
  shape = (problem.nely, problem.nelx)
  anonymous = mechanism.replace(problem=arguments.anonymous(problem))
  frozen = tuple(sorted(options.items()))
  losses, volumes = [], []
  best, best_design = np.inf, np.zeros(shape)
  with jax.enable_x64(True):
    method = moving_asymptotes.mma(0.0, 1.0, shape=shape)
    state = method.init(problem.volume_fraction * problem.mask)
    for evaluation in range(steps + 1):
      value, slope, volume, volume_slope, design = _evaluate(
        state.trial, anonymous, frozen
      )
      loss, used = float(value), float(volume)
      if not np.isfinite(loss):
        raise FloatingPointError(
          f'mma on mechanism {problem.name!r}: the linear system could not be'
          f' solved at evaluation {evaluation}; try solver="direct" or a larger'
          ' emin.'
        )
      losses.append(loss)
      volumes.append(used)
      excess = used - problem.volume_fraction
      if loss < best and excess <= _FEASIBLE:
        best, best_design = loss, np.asarray(design)
      if callback is not None:
        callback(evaluation + 1, loss)
      state = method.update(
        state,
        value,
        slope,
        volume - problem.volume_fraction,
        volume_slope,
      )
  return MechanismRun(np.array(losses), np.array(volumes), best_design, best)
