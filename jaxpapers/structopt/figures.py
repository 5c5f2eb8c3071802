"""Figures of designs with their loads, supports and captions.

Drawn with matplotlib's Agg canvas, without pyplot: no display and no global
state are involved.
"""

import io
import textwrap
from collections.abc import Sequence

import numpy as np

from jaxpapers.structopt import boundary_marks, domain, render

_LINE = 0.2  # height of a line of caption in inches
_LETTER = 0.09  # width of a letter of it


def strip(
  designs: Sequence,
  problems: domain.Problem | Sequence[domain.Problem],
  captions: Sequence[str] | None = None,
  *,
  title: str | None = None,
  columns: int | None = None,
  loads: bool = False,
  supports: bool = False,
  mirror: bool = True,
  width: float = 12.0,
):
  """Shows designs side by side, each under its caption.

  Args:
    designs: physical densities, each `(nely, nelx)` of its task.
    problems: the task of all designs, or one for each.
    captions: one text for each design; long lines are wrapped.
    title: text above the whole figure.
    columns: designs in a row; by default all of them.
    loads: whether to draw the loads as arrows.
    supports: whether to draw the supports.
    mirror: whether to continue designs beyond symmetry planes.
    width: width of the figure in inches; its height follows.

  Returns:
    A `matplotlib.figure.Figure`; see `save_figure`.

  Raises:
    ValueError: if the numbers of designs, problems and captions differ.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ImportError(
      'Figures need matplotlib: pip install jaxpapers[structopt]'
    ) from error
  count = len(designs)
  if isinstance(problems, domain.Problem):
    problems = [problems] * count
  captions = [''] * count if captions is None else captions
  if not count or len(problems) != count or len(captions) != count:
    raise ValueError(
      f'got {count} designs, {len(problems)} problems and {len(captions)} '
      'captions; expected as many of each, and at least one.'
    )
  columns = min(columns or count, count)
  cell = width / columns
  inner = 0.96 * cell
  options = {'loads': loads, 'supports': supports, 'mirror': mirror}
  boxes = [_box(problem, **options) for problem in problems]
  # Every panel is as wide as its cell, unless that makes it a tower.
  panels = []
  for left, right, bottom, top in boxes:
    inch = min(inner / (right - left), 1.25 * inner / (bottom - top))
    panels.append((inch * (right - left), inch * (bottom - top)))
  captions = [_wrap(caption, inner) for caption in captions]
  rows = [range(i, min(i + columns, count)) for i in range(0, count, columns)]
  heights = [max(panels[i][1] for i in row) for row in rows]
  texts = [
    _LINE * max(captions[i].count('\n') + bool(captions[i]) for i in row) + 0.12
    for row in rows
  ]
  heading = 0.42 if title else 0.04
  total = sum(heights) + sum(texts) + heading + 0.06
  figure = Figure(figsize=(width, total))
  top = total - heading
  for row, height, text in zip(rows, heights, texts):
    for position, i in enumerate(row):
      centre = (position + 0.5) * cell
      wide, high = panels[i]
      axes = figure.add_axes(
        (
          (centre - wide / 2) / width,
          (top - text - high) / total,
          wide / width,
          high / total,
        )
      )
      draw_design(axes, designs[i], problems[i], **options)
      figure.text(
        centre / width,
        (top - 0.04) / total,
        captions[i],
        ha='center',
        va='top',
        fontsize=11,
      )
    top -= height + text
  if title:
    figure.text(
      0.5, (total - 0.08) / total, title, ha='center', va='top', fontsize=14
    )
  return figure


def draw_design(
  axes,
  x,
  problem: domain.Problem,
  *,
  loads: bool = False,
  supports: bool = False,
  mirror: bool = True,
) -> None:
  """Draws a design on matplotlib axes, in units of elements.

  Args:
    axes: the axes; their limits are set and their frame is hidden.
    x: physical densities `(nely, nelx)`.
    problem: the task.
    loads: whether to draw the loads (see `boundary_marks.arrows`).
    supports: whether to draw the supports (see
      `boundary_marks.draw_supports`).
    mirror: whether to continue the design beyond symmetry planes.
  """
  frame = boundary_marks.Frame(problem, mirror)
  extent = (frame.left, frame.right, problem.nely, 0)
  seen = problem if mirror else None
  render.check_fits(x, problem)
  axes.imshow(
    render.to_image(x, seen),
    cmap='gray',
    vmin=0,
    vmax=255,
    extent=extent,
    interpolation='nearest',
    aspect='equal',
  )
  void = render.mirrored(np.asarray(problem.mask) == 0, seen)
  if void.any():
    shade = np.zeros((*void.shape, 4))
    shade[void] = (0.90, 0.90, 0.93, 1.0)
    axes.imshow(shade, extent=extent, interpolation='nearest', zorder=1.5)
  axes.plot(
    [frame.left, frame.right, frame.right, frame.left, frame.left],
    [0, 0, problem.nely, problem.nely, 0],
    color='0.75',
    linewidth=0.6,
    zorder=2,
  )
  axes.set_axis_off()
  left, right, bottom, top = _box(
    problem, loads=loads, supports=supports, mirror=mirror
  )
  axes.set_xlim(left, right)
  axes.set_ylim(bottom, top)
  if supports:
    boundary_marks.draw_supports(axes, problem, frame)
  if loads:
    inches = axes.get_position().width * axes.figure.get_figwidth()
    boundary_marks.draw_arrows(
      axes,
      boundary_marks.arrows(problem, frame),
      72 * inches / (right - left),
    )


def save_figure(path, figure, dpi: int = 150) -> None:
  """Writes a figure as PNG, whole or not at all.

  Args:
    path: local or on any file system that etils.epath knows.
    figure: from `strip`, or any matplotlib figure.
    dpi: pixels per inch.
  """
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=dpi, facecolor='white')
  render.write_bytes(path, buffer.getvalue())


def _box(problem, *, loads, supports, mirror):
  """Left, right, bottom and top of a picture that holds all its marks."""
  frame = boundary_marks.Frame(problem, mirror)
  points = [(frame.left, 0), (frame.right, problem.nely)]
  if loads:
    for arrow in boundary_marks.arrows(problem, frame):
      points += [arrow.tail, arrow.tip]
  low, high = np.min(points, axis=0), np.max(points, axis=0)
  room = (0.035 if supports else 0.01) * frame.size
  edge = 0.015 * frame.size if loads else 0
  left = min(frame.left - room, low[0] - edge)
  right = max(frame.right + room, high[0] + edge)
  top = min(-room, low[1] - edge)
  bottom = max(problem.nely + room, high[1] + edge)
  return left, right, bottom, top


def _wrap(caption: str, inches: float) -> str:
  """Breaks the lines of a caption that are wider than its panel."""
  letters = max(8, int(inches / _LETTER))
  return '\n'.join(
    textwrap.fill(line, letters) for line in caption.splitlines()
  )
