"""Line charts as SVG text, to be put into a page."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Told apart by those who do not see all colours, too (Okabe and Ito).
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 44


def line_chart(
  title: str,
  series: Mapping[str, tuple[Any, Any]],
  *,
  x_label: str,
  y_label: str,
  x_range: tuple[float, float],
  y_range: tuple[float, float],
  x_ticks: Sequence[float],
  y_ticks: Sequence[float],
  log_x: bool = False,
  filled: bool = False,
  marks: Sequence[tuple[float, str]] = (),
) -> str:
  """Draws curves with a legend.

  Args:
    title: Read aloud by screen readers.
    series: Name -> x and y.
    x_label: Of the axis.
    y_label: Likewise.
    x_range: Least and largest x.
    y_range: Likewise.
    x_ticks: Where labels are.
    y_ticks: Likewise.
    log_x: Whether x is on a logarithmic scale.
    filled: Whether areas below are filled.
    marks: x and text of vertical lines.

  Returns:
    An <svg> element.
  """
  scale = np.log10 if log_x else np.asarray
  low, high = (float(scale(v)) for v in x_range)

  def at_x(value):
    share = (scale(np.maximum(value, x_range[0])) - low) / (high - low)
    return _LEFT + np.clip(share, 0, 1) * (_WIDTH - _LEFT - _RIGHT)

  def at_y(value):
    share = (np.asarray(value) - y_range[0]) / (y_range[1] - y_range[0])
    return _HEIGHT - _BOTTOM - np.clip(share, 0, 1) * (_HEIGHT - _TOP - _BOTTOM)

  bottom = _HEIGHT - _BOTTOM
  out = [
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
    f' aria-label="{html.escape(title)}">'
  ]
  for tick in y_ticks:
    y = float(at_y(tick))
    out.append(
      f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}"'
      f' y2="{y:.1f}"/><text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}"'
      f' text-anchor="end">{tick:g}</text>'
    )
  for tick in x_ticks:
    x = float(at_x(tick))
    out.append(
      f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}"'
      f' y2="{bottom}"/><text class="tick" x="{x:.1f}" y="{bottom + 16}"'
      f' text-anchor="middle">{tick:g}</text>'
    )
  for value, text in marks:
    x = float(at_x(value))
    out.append(
      f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}"'
      f' y2="{bottom}"/><text class="tick" x="{x + 4:.1f}" y="{_TOP + 10}">'
      f'{html.escape(text)}</text>'
    )
  for (name, (x, y)), colour in zip(series.items(), COLOURS, strict=False):
    x, y = at_x(np.asarray(x, float)), at_y(np.asarray(y, float))
    points = _points(x, y)
    if filled:
      out.append(
        f'<polygon points="{x[0]:.1f},{bottom} {points} {x[-1]:.1f},{bottom}"'
        f' fill="{colour}" opacity="0.2"/>'
      )
    out.append(
      f'<polyline points="{points}" fill="none" stroke="{colour}"'
      f' stroke-width="2"><title>{html.escape(name)}</title></polyline>'
    )
  out.append(
    f'<text class="label" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}"'
    f' text-anchor="middle">{html.escape(x_label)}</text>'
    f'<text class="label" transform="rotate(-90)" x="{-(_TOP + bottom) / 2}"'
    f' y="13" text-anchor="middle">{html.escape(y_label)}</text></svg>'
  )
  keys = ''.join(
    f'<li><span style="background:{colour}"></span>{html.escape(name)}</li>'
    for name, colour in zip(series, COLOURS, strict=False)
  )
  return f'{"".join(out)}<ul class="legend">{keys}</ul>'


def _points(x, y):
  """Places of a curve, without those that make no difference to be seen."""
  places, last = [], (np.inf, np.inf)
  for i, place in enumerate(zip(x, y, strict=True)):
    far = max(abs(place[0] - last[0]), abs(place[1] - last[1])) >= 0.4
    if far or i == len(x) - 1:
      places.append(f'{place[0]:.1f},{place[1]:.1f}')
      last = place
  return ' '.join(places)
