"""Families of design tasks, as functions of the grid's size.

The 28 families of Hoyer et al. (2019) and two that their suite leaves out.
Each function returns a validated `Problem` of any size for which the family
makes sense. Where the published tasks follow from an indexing accident rather
than from a plain reading of the family's name (marked below), the published
task wins, because its compliances are what one compares with.

Positions are rounded as Python rounds, half to even. Loads point along
negative y, which is towards row 0.
"""

import math

import numpy as np

from jaxpapers.structopt import grids
from jaxpapers.structopt.bridges import (
  canyon_bridge,
  causeway_bridge,
  drawbridge,
  suspended_bridge,
  thin_support_bridge,
  two_level_bridge,
)

__all__ = (
  'mbb_beam',
  'cantilever_beam_full',
  'cantilever_beam_two_point',
  'pure_bending_moment',
  'ground_structure',
  'michell_centered_both',
  'michell_centered_below',
  'l_shape',
  'crane',
  'tower',
  'center_support',
  'column',
  'roof',
  'causeway_bridge',
  'two_level_bridge',
  'suspended_bridge',
  'canyon_bridge',
  'thin_support_bridge',
  'drawbridge',
  'hoop',
  'dam',
  'staircase',
  'ramp',
  'staggered_points',
  'multistory_building',
  'multipoint_circle',
)

X, Y = grids.X, grids.Y


# Beams.


def mbb_beam(width=60, height=20, density=0.5):
  """Right half of a Messerschmitt-Boelkow-Blohm beam, loaded at its middle."""
  fixed, forces = grids.empty(width, height)
  fixed[0, :, X] = True
  fixed[-1, -1, Y] = True
  forces[0, 0, Y] = -1
  return grids.finish('mbb_beam', fixed, forces, density)


def cantilever_beam_full(width=60, height=60, density=0.5, force_position=0):
  """Cantilever clamped along the whole left wall, loaded at the right one.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    force_position: height of the load above the bottom, as a fraction.

  Returns:
    The problem.
  """
  fixed, forces = grids.empty(width, height)
  fixed[0] = True
  row = grids.node('force_position', (1 - force_position) * height, height)
  forces[-1, row, Y] = -1
  return grids.finish('cantilever_beam_full', fixed, forces, density)


def cantilever_beam_two_point(
  width=60, height=60, density=0.5, support_position=0.25, force_position=0.5
):
  """Cantilever held at two points of the left wall.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    support_position: distance of the supports from top and bottom, as a
      fraction of the height.
    force_position: height of the load above the bottom, as a fraction.

  Returns:
    The problem.
  """
  fixed, forces = grids.empty(width, height)
  for place in (1 - support_position, support_position):
    fixed[0, grids.node('support_position', height * place, height)] = True
  row = grids.node('force_position', (1 - force_position) * height, height)
  forces[-1, row, Y] = -1
  return grids.finish('cantilever_beam_two_point', fixed, forces, density)


def pure_bending_moment(
  width=32, height=64, density=0.15, support_position=0.45
):
  """Two opposite horizontal loads bend a half beam about its middle plane.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    support_position: distance of the loaded points from top and bottom, as a
      fraction of the height.

  Returns:
    The problem.
  """
  fixed, forces = grids.empty(width, height)
  fixed[-1, :, X] = True
  for place, load in ((1 - support_position, 1), (support_position, -1)):
    row = grids.node('support_position', height * place, height)
    fixed[0, row, Y] = True
    forces[0, row, X] = load
  return grids.finish('pure_bending_moment', fixed, forces, density)


def ground_structure(width=64, height=64, density=0.12, force_position=0.5):
  """Half bridge on a pin, loaded along the bottom.

  The load's column is `force_position * height`, not `* width`, as in the
  published tasks; the two agree on square grids.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    force_position: column of the load, as a fraction of the height.

  Returns:
    The problem.
  """
  fixed, forces = grids.empty(width, height)
  fixed[-1, :, X] = True
  fixed[0, -1] = True
  column = grids.node('force_position', force_position * height, width)
  forces[column, -1, Y] = -1
  return grids.finish('ground_structure', fixed, forces, density)


# Michell structures.


def _michell(family, width, height, density, position, row):
  fixed, forces = grids.empty(width, height)
  fixed[grids.node('position', position * width, width), row, Y] = True
  fixed[-1, :, X] = True
  forces[-1, row, Y] = -1
  return grids.finish(family, fixed, forces, density)


def michell_centered_both(width=32, height=64, density=0.12, position=0.05):
  """Michell structure: material above and below the loaded line.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    position: column of the support, as a fraction of the width.

  Returns:
    The problem.
  """
  return _michell(
    'michell_centered_both',
    width,
    height,
    density,
    position,
    round(height / 2),
  )


def michell_centered_below(width=64, height=64, density=0.12, position=0.25):
  """Michell structure: supports and load on the top edge.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    position: column of the support, as a fraction of the width.

  Returns:
    The problem.
  """
  return _michell('michell_centered_below', width, height, density, position, 0)


# Domains that are not rectangles.


def l_shape(width=64, height=64, density=0.4, aspect=0.4, force_position=0.5):
  """L-shaped bracket hanging from the top, loaded at its right arm.

  Args:
    width: elements along x; equal to `height`.
    height: elements along y.
    density: volume fraction.
    aspect: thickness of the arms, as a fraction of the side.
    force_position: height of the load within the arm, as a fraction.

  Returns:
    The problem.

  Raises:
    ValueError: if the grid is not square.
  """
  grids.require_square('l_shape', width, height)
  fixed, forces = grids.empty(width, height)
  fixed[: round(aspect * width), 0] = True
  row = grids.node(
    'force_position', (1 - aspect * force_position) * height, height
  )
  forces[-1, row, Y] = -1
  mask = np.ones((height, width))
  mask[: round(width * (1 - aspect)), round(height * aspect) :] = 0
  return grids.finish('l_shape', fixed, forces, density, mask)


def crane(width=64, height=64, density=0.3, aspect=0.5, force_position=0.9):
  """Crane on the ground whose arm is loaded near its tip.

  The load sits on the underside of the arm, two rows below `aspect * height`:
  the published tasks reach that row through a negative index.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    aspect: width of the mast and height of the arm, as fractions.
    force_position: column of the load, as a fraction of the width.

  Returns:
    The problem.
  """
  fixed, forces = grids.empty(width, height)
  fixed[:, -1] = True
  column = grids.node('force_position', force_position * width, width)
  forces[column, round(1 - aspect * height) % (height + 1), Y] = -1
  mask = np.ones((height, width))
  mask[round(aspect * height) + 2 :, round(aspect * width) :] = 0
  return grids.finish('crane', fixed, forces, density, mask)


# Vertical supports.


def tower(width=32, height=128, density=0.5):
  """Right half of a tower, loaded at the top of its axis.

  Not one of the 116 published tasks.
  """
  fixed, forces = grids.empty(width, height)
  fixed[:, -1, Y] = True
  fixed[0, :, X] = True
  forces[0, 0, Y] = -1
  return grids.finish('tower', fixed, forces, density)


def center_support(width=64, height=64, density=0.15):
  """Left half of a roof that rests on one point below its middle."""
  fixed, forces = grids.empty(width, height)
  fixed[-1, -1, Y] = True
  fixed[-1, :, X] = True
  forces[:, 0, Y] = -1 / width
  return grids.finish('center_support', fixed, forces, density)


def column(width=32, height=128, density=0.3):
  """Left half of a column that carries a distributed load on its top."""
  fixed, forces = grids.empty(width, height)
  fixed[:, -1, Y] = True
  fixed[-1, :, X] = True
  forces[:, 0, Y] = -1 / width
  return grids.finish('column', fixed, forces, density)


def roof(width=64, height=64, density=0.2):
  """One bay of a periodic roof on the ground."""
  fixed, forces = grids.empty(width, height)
  fixed[0, :, X] = True
  fixed[-1, :, X] = True
  fixed[:, -1, Y] = True
  forces[:, 0, Y] = -1 / width
  return grids.finish('roof', fixed, forces, density)


# Other loads.


def hoop(width=32, height=64, density=0.25):
  """Left half of a ring under its own distributed load, on the ground.

  Args:
    width: elements along x.
    height: elements along y; twice `width`.
    density: volume fraction.

  Returns:
    The problem.

  Raises:
    ValueError: if `height` is not `2 * width`.
  """
  if height != 2 * width:
    raise ValueError(
      f'hoop needs height = 2 * width so that half a circle fits, got '
      f'width={width} and height={height}.'
    )
  fixed, forces = grids.empty(width, height)
  fixed[-1, :, X] = True
  fixed[:, -1, Y] = True
  weights = grids.antialiased_circle(
    (width + 1, height + 1), (width, width), width
  )
  forces[..., Y] = -weights / (2 * np.pi * width)
  return grids.finish('hoop', fixed, forces, density)


def dam(width=64, height=64, density=0.2):
  """A wall that holds water, whose pressure grows with depth."""
  fixed, forces = grids.empty(width, height)
  fixed[:, -1] = True
  forces[0, :, X] = 2 * np.arange(1, height + 2) / height**2
  return grids.finish('dam', fixed, forces, density)


def staircase(width=64, height=64, density=0.3, num_stories=2):
  """A zigzag of ramps, one for each storey.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    num_stories: number of ramps.

  Returns:
    The problem.
  """
  if num_stories < 1:
    raise ValueError(f'num_stories must be at least 1, got {num_stories}.')
  fixed, forces = grids.empty(width, height)
  fixed[:, -1] = True
  for storey in range(num_stories):
    odd = storey % 2
    start = (0, (storey + odd) * height // num_stories)
    stop = (width, (storey + 1 - odd) * height // num_stories)
    weights = grids.antialiased_line((width + 1, height + 1), start, stop)
    ramp_load = -weights / (width * num_stories)
    forces[..., Y] = np.minimum(forces[..., Y], ramp_load)
  return grids.finish('staircase', fixed, forces, density)


def ramp(width=64, height=64, density=0.3):
  """One ramp from the bottom left to the top right."""
  problem = staircase(width, height, density, num_stories=1)
  name = problem.name.replace('staircase', 'ramp')
  return problem.replace(name=name, category='ramp')


def staggered_points(
  width=64, height=64, density=0.3, interval=16, break_symmetry=False
):
  """Loads on a staggered grid of points, supported from below.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    interval: distance between loads of a row.
    break_symmetry: shifts all loads by one node along x.

  Returns:
    The problem.
  """
  if interval < 2:
    raise ValueError(f'interval must be at least 2, got {interval}.')
  fixed, forces = grids.empty(width, height)
  fixed[:, -1, Y] = True
  fixed[0, :, X] = True
  fixed[-1, :, X] = True
  load = interval**2 / (width * height)
  shift = int(break_symmetry)
  forces[interval // 2 + shift :: interval, ::interval, Y] = -load
  forces[shift::interval, interval // 2 :: interval, Y] = -load
  return grids.finish('staggered_points', fixed, forces, density)


def multistory_building(width=32, height=64, density=0.5, interval=16):
  """Left half of a building with equally loaded floors.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    interval: distance between floors, in elements.

  Returns:
    The problem.
  """
  if interval < 1:
    raise ValueError(f'interval must be at least 1, got {interval}.')
  fixed, forces = grids.empty(width, height)
  fixed[:, -1, Y] = True
  fixed[-1, :, X] = True
  forces[:, ::interval, Y] = -1 / width
  return grids.finish('multistory_building', fixed, forces, density)


def multipoint_circle(
  width=64, height=64, density=0.333, radius=6 / 7, num_points=12
):
  """A hub whose rim must carry a vertical load at any of several points.

  Every point is a load case of its own, so that `forces` is
  `(num_points, width + 1, height + 1, 2)`. Not one of the 116 published tasks.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    radius: radius of the rim, as a fraction of half the shorter side.
    num_points: number of equally spaced points, the first at the right.

  Returns:
    The problem.
  """
  if num_points < 1:
    raise ValueError(f'num_points must be at least 1, got {num_points}.')
  if not 0 < radius <= 1:
    raise ValueError(f'radius must lie in (0, 1], got {radius}.')
  fixed, forces = grids.empty(width, height)
  x, y = width // 2, height // 2
  fixed[x - 1 : x + 2, y - 1 : y + 2] = True
  forces = np.zeros((num_points,) + forces.shape)
  reach = radius * min(width, height) / 2
  for case in range(num_points):
    angle = 2 * np.pi * case / num_points
    column = round(width / 2 + reach * math.cos(angle))
    row = round(height / 2 + reach * math.sin(angle))
    forces[case, column, row, Y] = -1
  return grids.finish('multipoint_circle', fixed, forces, density)
