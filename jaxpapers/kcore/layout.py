"""Pictures of a network by k-shell: a force-directed layout in nested rings.

Nodes are soft discs that repel each other, links are springs, and each k-shell
has a ring of its own, the innermost core in the middle. The energies and the
minimiser (FIRE) are those of jax-md.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Side of the square that a disc of diameter 1 gets.
_ROOM = 1.1
# Of the springs, against a repulsion of 4 and rings of 2.
_PULL = 0.015


def shell_layout(
  edges: Any,
  coreness: Any,
  *,
  module: Any = None,
  steps: int = 400,
  seed: int = 0,
) -> np.ndarray:
  """Places nodes in the plane, shell by shell.

  The rings have areas in proportion to their nodes. Costs N^2 per step; 600
  nodes take seconds.

  Args:
    edges: int[m, 2], links.
    coreness: int[N].
    module: int[N]; nodes start at the angle of their module, so that modules
      become sectors. By default at random angles.
    steps: of FIRE.
    seed: of the start.

  Returns:
    float32[N, 2]; discs have diameter 1.

  Raises:
    ValueError: shapes do not fit.

  Example:
    >>> triangle = np.array([[0, 1], [1, 2], [0, 2]])
    >>> shell_layout(triangle, [2, 2, 2], steps=50).shape
    (3, 2)
  """
  coreness = np.asarray(coreness)
  edges = np.asarray(edges, np.int64).reshape(-1, 2)
  n = len(coreness)
  if coreness.ndim != 1 or (edges.size and edges.max() >= n):
    raise ValueError(
      f'edges go up to node {edges.max(initial=-1)} and coreness has shape '
      f'{coreness.shape}; expected one coreness per node.'
    )
  if module is not None and np.shape(module) != (n,):
    raise ValueError(f'module has shape {np.shape(module)}; expected ({n},).')
  if n == 0:
    return np.zeros((0, 2), np.float32)
  inner, outer = _rings(coreness)
  start = _start(inner, outer, module, np.random.default_rng(seed))
  degree = np.bincount(edges.ravel(), minlength=n)
  # All springs of a node together pull about as hard, whatever their number;
  # harder ones would draw whole shells to one side.
  stiffness = _PULL / np.sqrt(degree[edges[:, 0]] * degree[edges[:, 1]])
  with warnings.catch_warnings():
    # jax-md asks for float64 in places and takes float32 as well.
    warnings.filterwarnings('ignore', 'Explicitly requested dtype')
    place = _minimise(steps)(
      jnp.asarray(start, jnp.float32),
      jnp.asarray(edges, jnp.int32),
      jnp.asarray(stiffness, jnp.float32),
      jnp.asarray(inner, jnp.float32),
      jnp.asarray(outer, jnp.float32),
    )
  return np.asarray(place)


def _rings(coreness):
  """Inner and outer radius of the ring of each node."""
  radius = _ROOM * np.sqrt(len(coreness) / np.pi)
  within = np.sum(coreness[None, :] > coreness[:, None], axis=1)
  upto = np.sum(coreness[None, :] >= coreness[:, None], axis=1)
  total = len(coreness)
  return radius * np.sqrt(within / total), radius * np.sqrt(upto / total)


def _start(inner, outer, module, rng):
  n = len(inner)
  if module is None:
    angle = rng.uniform(0, 2 * np.pi, n)
  else:
    module = np.asarray(module)
    # Sectors as wide as the modules are large.
    size = np.bincount(module)
    begin = np.cumsum(size) - size
    angle = (
      2 * np.pi * (begin[module] + rng.uniform(0, 1, n) * size[module]) / n
    )
  radius = np.sqrt(rng.uniform(inner**2, outer**2 + 1e-6))
  return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _minimise(steps):
  """A compiled run of FIRE over springs, discs and rings."""
  try:
    from jax_md import energy, minimize, space
  except ImportError as error:
    raise ImportError(
      'Layouts need jax-md: pip install jaxpapers[kcore]'
    ) from error

  displacement, shift = space.free()
  repulsion = energy.soft_sphere_pair(displacement, sigma=1.0, epsilon=4.0)

  @jax.jit
  def run(position, edges, stiffness, inner, outer):
    springs = energy.simple_spring_bond(
      displacement, edges, length=1.0, epsilon=stiffness
    )

    def total(position):
      radius = jnp.sqrt(jnp.sum(position**2, axis=1) + 1e-6)
      outside = jnp.maximum(radius - outer, 0) + jnp.maximum(inner - radius, 0)
      return repulsion(position) + springs(position) + 2.0 * jnp.sum(outside**2)

    init, apply = minimize.fire_descent(total, shift, dt_start=0.05, dt_max=0.2)
    state = jax.lax.fori_loop(
      0, steps, lambda _, state: apply(state), init(position)
    )
    return state.position

  return run
