"""Loads and supports as marks in a picture: where they go and how they look."""

from typing import NamedTuple

import numpy as np

from jaxpapers.structopt import domain

_LOAD_COLOURS = ('#c8102e', '#0072b2', '#e69f00', '#009e73', '#cc79a7')
_SUPPORT_COLOUR = '#1f5fa8'
# Arrows along the longer side; more cannot be told apart.
_ARROWS = 12


class Frame:
  """Where the copies of a mirrored domain lie.

  Attributes:
    copies: pairs (shift, sign); x is drawn at `shift + sign * x`.
    left: leftmost coordinate of all copies.
    right: rightmost coordinate of all copies.
    size: longer side of the picture, in elements.
    planes: symmetry planes that are walls of the picture's only copy.
  """

  def __init__(self, problem: domain.Problem, mirror: bool):
    copies = [(0, 1)]
    if mirror and problem.mirror_left:
      copies = [(0, -1), *copies]
    if mirror and problem.mirror_right:
      copies += [(2 * problem.nelx - shift, -sign) for shift, sign in copies]
    ends = [
      shift + sign * x for shift, sign in copies for x in (0, problem.nelx)
    ]
    self.copies = copies
    self.left, self.right = min(ends), max(ends)
    self.size = max(self.right - self.left, problem.nely)
    self.planes = []
    if not mirror and problem.mirror_left:
      self.planes.append(0)
    if not mirror and problem.mirror_right:
      self.planes.append(problem.nelx)


class Arrow(NamedTuple):
  """A load in the picture, from `tail` to `tip`."""

  tail: np.ndarray
  tip: np.ndarray
  colour: str


def arrows(problem: domain.Problem, frame: Frame) -> list[Arrow]:
  """Arrows for all loads; loads that lie close together share one.

  Loads without a horizontal part are drawn as weights, pointing down, although
  the published tasks have them point towards row 0: reversing every load
  changes no compliance.

  Args:
    problem: the task.
    frame: the copies to draw.

  Returns:
    The arrows. One ends at its node, or starts there if it points out of the
    domain. Each load case has its colour.
  """
  forces = np.asarray(problem.forces)
  cases = forces.reshape((-1, *forces.shape[-3:]))
  direction = 1 if cases[..., 0].any() else -1
  result = []
  for number, case in enumerate(cases):
    colour = _LOAD_COLOURS[number % len(_LOAD_COLOURS)]
    places, loads = _gather(case)
    if not len(loads):
      continue
    sizes = np.hypot(*loads.T)
    few = len(loads) <= 4
    reach = (0.09 if few else 0.06) * frame.size / len(frame.copies) ** 0.5
    for (x, y), load, size in zip(places, direction * loads, sizes):
      # Long enough to be seen however small it is beside the largest.
      vector = reach * (0.35 + 0.65 * size / sizes.max()) * load / size
      leaves = (
        (x <= 0 and load[0] < 0)
        or (x >= problem.nelx and load[0] > 0)
        or (y <= 0 and load[1] < 0)
        or (y >= problem.nely and load[1] > 0)
      )
      for shift, sign in frame.copies:
        node = np.array([shift + sign * x, y], float)
        step = vector * (sign, 1)
        tail = node if leaves else node - step
        result.append(Arrow(tail, tail + step, colour))
  return result


def _gather(case: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Places and sums of loads; where they are many, one for each small cell."""
  nodes = np.argwhere(case.any(-1))
  loads = case[nodes[:, 0], nodes[:, 1]]
  if len(nodes) <= _ARROWS:
    return nodes.astype(float), loads
  shape = np.array(case.shape[:2])
  cells = np.maximum(1, np.round(_ARROWS * shape / shape.max())).astype(int)
  numbers = nodes * cells // shape
  labels = numbers[:, 0] * cells[1] + numbers[:, 1]
  places, sums = [], []
  for label in np.unique(labels):
    inside = labels == label
    total = loads[inside].sum(0)
    weight = np.hypot(*loads[inside].T)
    if np.hypot(*total) > 1e-9 * weight.sum():
      places.append(np.average(nodes[inside], axis=0, weights=weight))
      sums.append(total)
  return np.array(places), np.array(sums)


def draw_arrows(axes, marks: list[Arrow], points: float) -> None:
  """Draws arrows on matplotlib axes.

  Args:
    axes: the axes.
    marks: what to draw.
    points: printer's points per element, which the arrows' heads follow.
  """
  for arrow in marks:
    length = points * np.hypot(*(arrow.tip - arrow.tail))
    axes.annotate(
      '',
      xy=arrow.tip,
      xytext=arrow.tail,
      arrowprops={
        'arrowstyle': '-|>,head_length=0.45,head_width=0.22',
        'mutation_scale': float(np.clip(0.8 * length, 5, 18)),
        'color': arrow.colour,
        'linewidth': float(np.clip(length / 14, 0.7, 2)),
        'shrinkA': 0,
        'shrinkB': 0,
      },
      annotation_clip=False,
      zorder=6,
    )


def draw_supports(axes, problem: domain.Problem, frame: Frame) -> None:
  """Draws supports on matplotlib axes.

  Hatched bars are clamped lines, rows of circles are lines that may slide,
  triangles are single nodes (open if they may slide), squares are nodes inside
  the domain, and dash-dotted lines are symmetry planes.

  Args:
    axes: the axes.
    problem: the task.
    frame: the copies to draw.
  """
  fixed = np.array(problem.fixed)
  for wall, plane in ((0, problem.mirror_left), (-1, problem.mirror_right)):
    if plane:  # the symmetry plane, which is no support
      fixed[wall, :, 0] = False
  for x in frame.planes:
    over = 0.03 * frame.size
    axes.plot(
      [x, x],
      [-over, problem.nely + over],
      color='0.45',
      linewidth=0.9,
      linestyle='-.',
      clip_on=False,
      zorder=4,
    )
  gap = 0.012 * frame.size
  for start, stop, outward, clamped in _supported_lines(fixed):
    for shift, sign in frame.copies:
      x = np.sort([shift + sign * start[0], shift + sign * stop[0]])
      y = np.array([start[1], stop[1]])
      _draw_line(
        axes, x, y, (sign * outward[0], outward[1]), clamped, gap, frame.size
      )


def _supported_lines(fixed: np.ndarray):
  """Yields lines of fixed nodes: ends, outward direction, whether clamped."""
  nelx, nely = fixed.shape[0] - 1, fixed.shape[1] - 1
  held = fixed.any(-1)
  taken = np.zeros_like(held)
  for row, outward in ((nely, (0, 1)), (0, (0, -1))):
    # Corners go with bottom or top if these are held beside them, so that a
    # clamped floor is one bar; a corner alone is left to its wall.
    if held[1:-1, row].any():
      taken[:, row] = held[:, row]
      for first, last in _runs(held[:, row]):
        clamped = fixed[first : last + 1, row].all(-1).mean() > 0.5
        yield (first, row), (last, row), outward, clamped
  for column, wall in ((0, (-1, 0)), (nelx, (1, 0))):
    for first, last in _runs(held[column] & ~taken[column]):
      clamped = fixed[column, first : last + 1].all(-1).mean() > 0.5
      corner = first == last and first in (0, nely)
      outward = (0, 1 if first else -1) if corner else wall
      yield (column, first), (column, last), outward, clamped
  for i, j in np.argwhere(held[1:-1, 1:-1]) + 1:
    yield (i, j), (i, j), (0, 0), fixed[i, j].all()


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
  """First and last index of each run of True."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
  return list(zip(edges[::2], edges[1::2] - 1))


def _draw_line(axes, x, y, outward, clamped, gap, size) -> None:
  """Draws one line of supported nodes beside them."""
  from matplotlib.patches import Rectangle

  length = abs(x[1] - x[0]) + abs(y[1] - y[0])
  dx, dy = gap * outward[0], gap * outward[1]
  style = {
    'color': _SUPPORT_COLOUR,
    'markerfacecolor': _SUPPORT_COLOUR if clamped else 'white',
    'clip_on': False,
    'zorder': 5,
  }
  if not any(outward):
    axes.plot(x[:1], y[:1], 's', markersize=4, **style)
  elif not length:
    marker = {(0, 1): '^', (0, -1): 'v', (-1, 0): '>', (1, 0): '<'}[outward]
    axes.plot(x.mean() + dx, y.mean() + dy, marker, markersize=8, **style)
  elif clamped:
    corner = (x.min() + min(0, 2 * dx), y.min() + min(0, 2 * dy))
    axes.add_patch(
      Rectangle(
        corner,
        abs(x[1] - x[0]) or 2 * gap,
        abs(y[1] - y[0]) or 2 * gap,
        facecolor='#d5e3f3',
        edgecolor=_SUPPORT_COLOUR,
        hatch='//////',
        linewidth=0,
        zorder=4,
        clip_on=False,
      )
    )
  else:
    number = int(np.clip(length / (0.035 * size), 2, 24))
    axes.plot(
      np.linspace(*x, number) + dx,
      np.linspace(*y, number) + dy,
      'o',
      markersize=4.5,
      **style,
    )
