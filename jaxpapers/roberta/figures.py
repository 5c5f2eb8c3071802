"""Figures of pre-training studies, drawn without pyplot's global state."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_INK = '#333333'
_GRID = {'color': '#dddddd', 'linewidth': 0.6}


def seed_curves(
  panels: Sequence[tuple[str, Sequence[tuple[str, Any, Any]]]],
  *,
  xlabel: str,
  ylabel: str,
  reference: tuple[str, float] | None = None,
):
  """Curves of several settings: the mean over seeds, and each seed thinly.

  Args:
    panels: Title and runs of each panel; a run is a label, positions [n] and
      values [seeds, n].
    xlabel: What is on the horizontal axes.
    ylabel: What is on the vertical axes.
    reference: Label and height of a dotted line.

  Returns:
    A `matplotlib.figure.Figure`. The panels share their vertical axis.

  Raises:
    ValueError: If there are no panels, or a run's shapes do not fit.
  """
  if not panels:
    raise ValueError('panels is empty; expected one or more.')
  figure = _figure(4.6 * len(panels) + 0.6, 3.8)
  axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
  colormap = _colormap()
  for ax, (title, runs) in zip(axes, panels):
    for index, (label, positions, values) in enumerate(runs):
      positions = np.asarray(positions)
      values = np.atleast_2d(np.asarray(values))
      if values.shape[-1] != len(positions) or values.ndim != 2:
        raise ValueError(
          f'values of {label!r} have shape {list(values.shape)}; expected'
          f' [seeds, {len(positions)}].'
        )
      colour = colormap(0.85 * index / max(len(runs) - 1, 1))
      for row in values:
        ax.plot(positions, row, color=colour, linewidth=0.6, alpha=0.5)
      ax.plot(
        positions, values.mean(0), color=colour, linewidth=1.8, label=label
      )
    if reference is not None:
      ax.axhline(
        reference[1], color=_INK, linestyle=':', linewidth=1, label=reference[0]
      )
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(xlabel)
    ax.legend(fontsize=8, frameon=False)
    _plain(ax)
  axes[0].set_ylabel(ylabel)
  figure.tight_layout()
  return figure


def seed_points(
  labels: Sequence[str], values: Any, *, ylabel: str, title: str = ''
):
  """A dot for each seed of each setting, and a stroke at their mean.

  Args:
    labels: Settings.
    values: Their results [settings, seeds].
    ylabel: What is on the vertical axis.
    title: Text above.

  Returns:
    A `matplotlib.figure.Figure`.

  Raises:
    ValueError: If the shapes do not fit.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or len(values) != len(labels) or not values.size:
    raise ValueError(
      f'values has shape {list(values.shape)}; expected [{len(labels)}, seeds].'
    )
  figure = _figure(1.8 + 1.2 * len(labels), 3.6)
  ax = figure.subplots()
  colormap = _colormap()
  for index, row in enumerate(values):
    colour = colormap(0.85 * index / max(len(labels) - 1, 1))
    ax.plot(np.full(len(row), index), row, 'o', color=colour, markersize=5)
    ax.hlines(row.mean(), index - 0.25, index + 0.25, color=colour, linewidth=2)
  ax.set_xlim(-0.5, len(labels) - 0.5)
  ax.set_xticks(range(len(labels)), labels, fontsize=8)
  ax.set_ylabel(ylabel)
  ax.set_title(title, fontsize=10)
  _plain(ax)
  figure.tight_layout()
  return figure


def _figure(width: float, height: float):
  try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ImportError(
      "Figures need matplotlib: pip install 'jaxpapers[roberta]'"
    ) from error
  figure = Figure(figsize=(width, height))
  FigureCanvasAgg(figure)
  return figure


def _colormap():
  import matplotlib

  return matplotlib.colormaps['viridis']


def _plain(ax) -> None:
  ax.grid(**_GRID)
  ax.set_axisbelow(True)
  for side in ('top', 'right'):
    ax.spines[side].set_visible(False)
  ax.tick_params(colors=_INK, labelsize=8)
