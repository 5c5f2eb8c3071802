"""The families of bridges among the design tasks of Hoyer et al. (2019).

See `families`, which lists them together with the others.
"""

import numpy as np

from jaxpapers.structopt import grids

X, Y = grids.X, grids.Y


def causeway_bridge(width=64, height=64, density=0.3, deck_level=1):
  """One bay of a periodic bridge on a point support.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    deck_level: height of the loaded deck, as a fraction; 1 is the top.

  Returns:
    The problem.
  """
  fixed, forces = grids.empty(width, height)
  fixed[-1, -1, Y] = True
  fixed[-1, :, X] = True
  fixed[0, :, X] = True
  deck = grids.node('deck_level', height * (1 - deck_level), height)
  forces[:, deck, Y] = -1 / width
  return grids.finish('causeway_bridge', fixed, forces, density)


def two_level_bridge(width=64, height=64, density=0.2, deck_height=0.2):
  """A periodic bridge with two decks.

  As published, the decks are pulled along x as hard as along y.

  Args:
    width: elements along x; equal to `height`.
    height: elements along y.
    density: volume fraction.
    deck_height: distance between the decks, as a fraction of the height.

  Returns:
    The problem.

  Raises:
    ValueError: if the grid is not square.
  """
  grids.require_square('two_level_bridge', width, height)
  fixed, forces = grids.empty(width, height)
  fixed[0, -1] = True
  fixed[0, :, X] = True
  fixed[-1, :, X] = True
  for place in (1 - deck_height, 1 + deck_height):
    deck = grids.node('deck_height', height * place / 2, height)
    forces[:, deck] = -1 / (2 * width)
  return grids.finish('two_level_bridge', fixed, forces, density)


def suspended_bridge(
  width=64, height=64, density=0.15, span_position=0.2, anchored=False
):
  """Left half of a bridge whose deck spans between two banks.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    span_position: width of the bank, as a fraction.
    anchored: whether the bank also holds the structure along x.

  Returns:
    The problem.
  """
  fixed, forces = grids.empty(width, height)
  fixed[-1, :, X] = True
  bank = round(span_position * width)
  fixed[:bank, -1, Y] = True
  if anchored:
    fixed[:bank, -1, X] = True
  forces[:, -1, Y] = -1 / width
  return grids.finish('suspended_bridge', fixed, forces, density)


def canyon_bridge(width=64, height=64, density=0.16, deck_level=1):
  """Right half of a bridge that is clamped to a canyon's wall.

  Args:
    width: elements along x.
    height: elements along y.
    density: volume fraction.
    deck_level: height of the deck and the canyon's rim, as a fraction.

  Returns:
    The problem.
  """
  fixed, forces = grids.empty(width, height)
  deck = grids.node('deck_level', height * (1 - deck_level), height)
  fixed[-1, deck:] = True
  fixed[0, :, X] = True
  forces[:, deck, Y] = -1 / width
  return grids.finish('canyon_bridge', fixed, forces, density)


def thin_support_bridge(width=64, height=64, density=0.3, design_width=0.25):
  """A deck on a support that must stay within a narrow strip.

  Args:
    width: elements along x; equal to `height`.
    height: elements along y.
    density: volume fraction.
    design_width: thickness of the strip and of the deck, as a fraction.

  Returns:
    The problem.

  Raises:
    ValueError: if the grid is not square.
  """
  grids.require_square('thin_support_bridge', width, height)
  fixed, forces = grids.empty(width, height)
  fixed[:, -1, Y] = True
  fixed[0, :, X] = True
  fixed[-1, :, X] = True
  forces[:, 0, Y] = -1 / width
  mask = np.ones((height, width))
  rows, columns = (round(side * (1 - design_width)) for side in (width, height))
  mask[height - rows :, :columns] = 0
  return grids.finish('thin_support_bridge', fixed, forces, density, mask)


def drawbridge(width=64, height=64, density=0.2):
  """A deck that hangs from a wall."""
  fixed, forces = grids.empty(width, height)
  fixed[0] = True
  forces[:, -1, Y] = -1 / width
  return grids.finish('drawbridge', fixed, forces, density)
