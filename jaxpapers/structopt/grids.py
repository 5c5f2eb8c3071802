"""Building blocks of the design families: grids, positions, soft curves."""

import math

import numpy as np

from jaxpapers.structopt import domain

X, Y = 0, 1


def empty(width: int, height: int):
  """Nodes of a `width` x `height` grid without supports or loads.

  Args:
    width: elements along x.
    height: elements along y.

  Returns:
    `fixed` and `forces`, both `(width + 1, height + 1, 2)`.

  Raises:
    ValueError: if a size is not a positive integer.
  """
  for name, size in (('width', width), ('height', height)):
    if isinstance(size, bool) or int(size) != size or size < 1:
      raise ValueError(f'{name} must be a positive integer, got {size!r}.')
  shape = (int(width) + 1, int(height) + 1, 2)
  return np.zeros(shape, bool), np.zeros(shape)


def finish(family, fixed, forces, density, mask=None) -> domain.Problem:
  """Names and validates the task that these boundary conditions define."""
  width, height = fixed.shape[0] - 1, fixed.shape[1] - 1
  return domain.make_problem(
    name=f'{family}_{width}x{height}_{density}',
    forces=forces,
    fixed=fixed,
    volume_fraction=density,
    mask=mask,
    category=family,
  )


def node(name: str, value: float, size: int) -> int:
  """Rounds a position to a node number and checks that it is on the grid."""
  node = round(value)
  if not 0 <= node <= size:
    raise ValueError(
      f'{name} puts a node at {node}, outside 0..{size}; choose it so that the '
      'node lies on the grid.'
    )
  return node


def require_square(family: str, width: int, height: int) -> None:
  """Refuses grids on which the family loses its meaning."""
  if width != height:
    raise ValueError(
      f'{family} is only meaningful on a square grid, got width={width} and '
      f'height={height}; make them equal.'
    )


def antialiased_line(shape, start, stop):
  """Weights of the grid points around a straight line.

  A point at distance d from the infinite line weighs max(0, 1 - d) if it lies
  in the segment's bounding box, and nothing elsewhere.

  Args:
    shape: (columns, rows) of the grid.
    start: (column, row) of one end.
    stop: (column, row) of the other end.

  Returns:
    Float64 weights of shape `shape`.
  """
  (x0, y0), (x1, y1) = start, stop
  x, y = np.ogrid[: shape[0], : shape[1]]
  cross = (x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)
  distance = np.abs(cross) / math.hypot(x1 - x0, y1 - y0)
  inside = (min(x0, x1) <= x) & (x <= max(x0, x1))
  inside = inside & (min(y0, y1) <= y) & (y <= max(y0, y1))
  return np.where(inside, np.maximum(1 - distance, 0), 0)


def antialiased_circle(shape, center, radius):
  """Weights of the grid points around a circle, clipped to the grid.

  In each column of the octant about the vertical axis, the two points next to
  the circle share a weight of one in proportion to their nearness; the other
  octants follow by symmetry, diagonal-most columns taking precedence.

  Args:
    shape: (columns, rows) of the grid.
    center: (column, row) of the centre.
    radius: integer radius in grid spacings.

  Returns:
    Float64 weights of shape `shape`.
  """
  weights = np.zeros(shape)
  for along in range(radius + 1):
    exact = math.sqrt(radius**2 - along**2)
    if math.ceil(exact) < along:
      break
    for across in {math.ceil(exact), math.floor(exact)}:
      for dx, dy in ((along, across), (across, along)):
        for x in (center[0] - dx, center[0] + dx):
          for y in (center[1] - dy, center[1] + dy):
            if 0 <= x < shape[0] and 0 <= y < shape[1]:
              weights[x, y] = 1 - abs(across - exact)
  return weights
