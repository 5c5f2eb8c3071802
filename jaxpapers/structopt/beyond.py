"""Design tasks beyond the paper's suite: several load cases, self-weight.

Loads point along negative y, as in `families`; reversing every load, weights
included, changes no compliance.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.structopt import domain, grids

X, Y = grids.X, grids.Y


def moving_load_bridge(
  width=120, height=40, density=0.25, num_cases=3, deck=2
) -> domain.Problem:
  """A bridge that a unit load crosses, one load case for each position.

  A deck of solid material lies along the bottom, pinned at its left end and on
  rollers at its right. The sum of the load cases' compliances is minimized. A
  design for all loads at once would be free to rely on their balance.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction, deck included.
    num_cases: number of equally spaced positions of the load.
    deck: thickness of the deck in elements.

  Returns:
    The problem; its forces are `(num_cases, width + 1, height + 1, 2)`.

  Raises:
    ValueError: if there is no load case or no room for so many.

  Example:
    >>> moving_load_bridge(40, 16).forces.shape
    (3, 41, 17, 2)
  """
  if not 1 <= num_cases < width:
    raise ValueError(
      f'num_cases is {num_cases}; expected at least 1 and fewer than width ='
      f' {width}.'
    )
  fixed, forces = grids.empty(width, height)
  fixed[0, -1] = True
  fixed[-1, -1, Y] = True
  forces = np.zeros((num_cases, *forces.shape))
  for case in range(num_cases):
    forces[case, round(width * (case + 1) / (num_cases + 1)), -1, Y] = -1
  solid = np.zeros((height, width), bool)
  solid[height - deck :] = True
  return domain.make_problem(
    name=f'moving_load_bridge_{width}x{height}_{density}',
    forces=forces,
    fixed=fixed,
    volume_fraction=density,
    solid=solid,
    category='moving_load_bridge',
  )


def together(problem: domain.Problem) -> domain.Problem:
  """The same task with all load cases acting at once.

  Args:
    problem: a task with a leading axis of load cases.

  Returns:
    The task with their sum as its only load.
  """
  if np.ndim(problem.forces) != 4:
    raise ValueError(
      f'problem {problem.name!r} has one load case; expected several, on a'
      ' leading axis of its forces.'
    )
  return problem.replace(
    name=f'{problem.name}_together', forces=np.sum(problem.forces, 0)
  )


def heavy_bridge(
  width=64, height=48, density=0.25, weight=0.01, deck=2
) -> domain.Problem:
  """Right half of a bridge that carries a deck and its own weight.

  The wall x = 0 is a symmetry plane, the foot stands at the lower right
  corner, and the deck along the top is solid and carries a unit load spread
  evenly. Material adds weight wherever it is placed, so the heavier it is the
  more the best shape resembles an arch that only its weight would bend.

  Args:
    width: elements along x, half of the span.
    height: elements along y.
    density: volume fraction that is allowed, deck included.
    weight: weight of a full element, relative to the half's unit load.
    deck: thickness of the deck in elements.

  Returns:
    The problem.

  Example:
    >>> heavy_bridge(16, 12, weight=0.02).self_weight
    0.02
  """
  fixed, forces = grids.empty(width, height)
  fixed[0, :, X] = True
  fixed[-max(2, round(width / 32)) :, -1] = True
  # Half the load of an element at each of its nodes.
  forces[:, 0, Y] = -1 / width
  forces[[0, -1], 0, Y] /= 2
  solid = np.zeros((height, width), bool)
  solid[:deck] = True
  return domain.make_problem(
    name=f'heavy_bridge_{width}x{height}_{density}_{weight}',
    forces=forces,
    fixed=fixed,
    volume_fraction=density,
    solid=solid,
    self_weight=weight,
    category='heavy_bridge',
  )


def non_discreteness(x, mask=1.0) -> jax.Array:
  """How far densities are from black and white: `mean(4 x (1 - x))`.

  The measure of non-discreteness of O. Sigmund, Morphology-based black and
  white filters for topology optimization, Struct. Multidisc. Optim. 33 (2007)
  401-424: 0 for a design of zeros and ones, 1 if every density is one half.

  Args:
    x: densities `(..., nely, nelx)`.
    mask: 1 where material may be placed, 0 in the void, which does not count.

  Returns:
    Scalar `(...)`.

  Example:
    >>> float(non_discreteness(np.array([[0.0, 1.0], [0.5, 0.5]])))
    0.5
  """
  weight = jnp.broadcast_to(jnp.asarray(mask, float), jnp.shape(x)[-2:])
  return (4 * x * (1 - x) * weight).sum((-2, -1)) / weight.sum()
