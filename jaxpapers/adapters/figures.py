"""Pictures of the paper: trade-off, removal, initialisation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_COLORS = {
  'adapter': '#1b6ca8',
  'top_k': '#d1495b',
  'layer_norm': '#3c8d5a',
  'head': '#8a6fb0',
  'full': '#333333',
}
_NAMES = {
  'adapter': 'adapters',
  'top_k': 'top layers',
  'layer_norm': 'layer norms',
  'head': 'head only',
  'full': 'everything',
}


def trade_off(
  curves: Mapping[str, Sequence[tuple[float, float, float, float]]],
  ylabel: str = 'accuracy − that of full fine-tuning',
) -> Any:
  """Figures 3 and 4: score over the number of trained parameters.

  Args:
    curves: Mode -> points (trained parameters per task, low, middle, high).
    ylabel: Of the axis.

  Returns:
    A figure of matplotlib.
  """
  figure, axes = _figure(6, 4)
  for mode, points in curves.items():
    x, low, middle, high = np.array(sorted(points)).T
    color = _COLORS.get(mode)
    axes.plot(x, middle, 'o-', color=color, label=_NAMES.get(mode, mode))
    if len(x) > 1:
      axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    else:
      axes.errorbar(
        x, middle, [middle - low, high - middle], color=color, capsize=3
      )
  axes.axhline(0, color='#999999', lw=0.8, ls=':')
  axes.set_xscale('log')
  axes.set_xlabel('trained parameters per task')
  axes.set_ylabel(ylabel)
  axes.legend(frameon=False)
  return figure


def removal_map(table: np.ndarray, title: str = '', unit: float = 100) -> Any:
  """Figure 6, left and centre: what is lost without a span of layers.

  Args:
    table: Change of the score `[L, L]`, first removed layer i, last j >= i.
    title: Of the picture.
    unit: What changes are multiplied by; 100 for percentage points.

  Returns:
    A figure of matplotlib.
  """
  table = np.asarray(table) * unit
  size = 2.2 + 0.5 * len(table)
  figure, axes = _figure(size + 1, size)
  upper = np.triu(np.ones_like(table, bool))
  shown = np.ma.masked_where(~upper, table)
  worst = max(float(np.abs(shown).max()), 1e-9)
  image = axes.imshow(shown, cmap='RdBu', vmin=-worst, vmax=worst)
  for i, j in zip(*np.nonzero(upper), strict=True):
    axes.text(
      j,
      i,
      f'{table[i, j]:.1f}',
      ha='center',
      va='center',
      fontsize=8,
      color='white' if abs(table[i, j]) > 0.6 * worst else 'black',
    )
  axes.set_xticks(range(len(table)))
  axes.set_yticks(range(len(table)))
  axes.set_xlabel('last layer without adapters')
  axes.set_ylabel('first layer without adapters')
  axes.set_title(title, fontsize=10)
  figure.colorbar(image, ax=axes, shrink=0.8, label='change (points)')
  return figure


def scale_curves(
  curves: Mapping[str, tuple[Sequence[float], np.ndarray]],
  xlabel: str,
  ylabel: str = 'validation accuracy',
) -> Any:
  """Figures 6, right, and 7: score over a scale, mean and range of seeds.

  Args:
    curves: Name -> (values of the scale [n], scores [n, seeds]); NaN where a
      run failed.
    xlabel: Name of the scale.
    ylabel: Of the scores.

  Returns:
    A figure of matplotlib.
  """
  figure, axes = _figure(6, 4)
  for name, (x, scores) in curves.items():
    scores = np.ma.masked_invalid(scores)
    (line,) = axes.plot(x, scores.mean(1), 'o-', label=name)
    axes.fill_between(
      x,
      scores.min(1),
      scores.max(1),
      color=line.get_color(),
      alpha=0.15,
      lw=0,
    )
  axes.set_xscale('log')
  axes.set_xlabel(xlabel)
  axes.set_ylabel(ylabel)
  axes.legend(frameon=False)
  return figure


def _figure(width: float, height: float):
  # Not pyplot: it would want a display, and keep figures.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  axes.spines[['top', 'right']].set_visible(False)
  return figure, axes
