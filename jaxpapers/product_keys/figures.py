"""Pictures of memories, drawn without pyplot's global state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpapers.product_keys import usage

__all__ = ['capacity_curve', 'loss_curves', 'scaling', 'usage_panels']

_INK = '#333333'
_GRID = {'color': '#dddddd', 'linewidth': 0.6}


def usage_panels(memories: Mapping[str, usage.MemoryUsage]):
  """How weight is spread over slots: one row of three panels a memory.

  On the left slots in the order of their share of all weight, each head and all
  together; in the middle usage and KL of each head; on the right, where slots
  are pairs of keys, the share of each pair: stripes are keys of one half that
  are read much whatever the other is.

  Args:
    memories: Name -> what was read, of one head or several.

  Returns:
    A `matplotlib.figure.Figure`.

  Raises:
    ValueError: If there is no memory, or one was not read.
  """
  if not memories:
    raise ValueError('memories is empty; expected one or more.')
  figure = _figure(11.4, 3.3 * len(memories))
  rows = figure.subplots(len(memories), 3, squeeze=False)
  for (name, state), (left, middle, right) in zip(memories.items(), rows):
    mass = usage.slot_mass(state)
    report = usage.memory_usage_report(state)
    heads = usage.memory_usage_by_head(state)
    _ranked(left, mass)
    left.set_title(
      f'{name}: usage {report["usage"]:.1f}%, KL {report["kl_w"]:.2f}',
      fontsize=9,
    )
    _head_bars(middle, heads)
    _pairs(right, mass.sum(axis=0))
  figure.tight_layout()
  return figure


def _ranked(ax, mass) -> None:
  colormap = _colormap()
  several = len(mass) > 1
  for head, values in enumerate(mass if several else ()):
    _rank_line(
      ax,
      values,
      color=colormap(0.85 * head / (len(mass) - 1)),
      linewidth=1,
      label=f'head {head}' if len(mass) <= 8 else None,
    )
  _rank_line(ax, mass.sum(axis=0), color=_INK, linewidth=1.8, label='all heads')
  ax.axhline(1 / mass.shape[1], color=_INK, linestyle=':', linewidth=1)
  ax.set_xscale('log')
  ax.set_yscale('log')
  ax.set_xlabel('slots, most used first')
  ax.set_ylabel('share of all weight')
  if several:
    ax.legend(fontsize=7, frameon=False, loc='lower left')
  _plain(ax)


def _rank_line(ax, values, **options) -> None:
  values = np.sort(np.abs(values))[::-1]
  values = values[values > 0]
  # Equal steps of the logarithm: a million points would say no more.
  places = np.unique(np.geomspace(1, values.size, 400).astype(int))
  ax.plot(places, values[places - 1] / values.sum(), **options)


def _head_bars(ax, heads) -> None:
  places = np.arange(len(heads))
  ax.bar(places - 0.2, [h['usage'] for h in heads], 0.38, color='#1b6ca8')
  ax.set_ylabel('usage, %', color='#1b6ca8')
  ax.set_ylim(0, 105)
  ax.set_xticks(places, [str(i) for i in places])
  ax.set_xlabel('head')
  _plain(ax)
  other = ax.twinx()
  other.bar(places + 0.2, [h['kl_w'] for h in heads], 0.38, color='#d1495b')
  other.set_ylabel('KL to uniform, nats', color='#d1495b')
  other.set_ylim(0, max(0.1, 1.05 * max(h['kl_w'] for h in heads)))
  other.spines['top'].set_visible(False)
  other.tick_params(colors=_INK, labelsize=8)


def _pairs(ax, mass) -> None:
  side = round(mass.size**0.5)
  if side * side != mass.size:
    ax.set_axis_off()
    return
  # Blocks of slots where there are more than pixels.
  step = -(-side // 256)
  padded = np.zeros((side + (-side) % step,) * 2)
  padded[:side, :side] = np.abs(mass).reshape(side, side)
  blocks = padded.reshape(len(padded) // step, step, -1, step).sum((1, 3))
  with np.errstate(divide='ignore'):
    shown = np.log10(blocks / blocks.sum())
  shown[np.isinf(shown)] = np.nan
  colormap = _colormap().with_extremes(bad='#f4f4f4')
  image = ax.imshow(
    shown, cmap=colormap, extent=(0, side, side, 0), interpolation='nearest'
  )
  ax.set_xlabel('key of the second half')
  ax.set_ylabel('key of the first half')
  ax.tick_params(colors=_INK, labelsize=8)
  bar = ax.figure.colorbar(image, ax=ax, fraction=0.046)
  bar.set_label('log10 of share', fontsize=8)
  bar.ax.tick_params(labelsize=7)


def scaling(
  curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  *,
  levels: Mapping[str, float] | None = None,
  ylabel: str = 'milliseconds',
  title: str = '',
):
  """Cost against the number of slots, on two logarithmic axes.

  Args:
    curves: Name -> slots and costs.
    levels: Name -> a cost that does not depend on slots, as that of a dense
      layer; drawn as dotted lines.
    ylabel: Of the axis.
    title: Text above.

  Returns:
    A `matplotlib.figure.Figure`.

  Raises:
    ValueError: If there are no curves, or slots and costs are not as many.
  """
  if not curves:
    raise ValueError('curves is empty; expected one or more.')
  figure = _figure(5.6, 4)
  ax = figure.subplots()
  colormap = _colormap()
  for index, (name, (slots, costs)) in enumerate(curves.items()):
    if len(slots) != len(costs):
      raise ValueError(
        f'curves has {len(slots)} slots and {len(costs)} costs for {name!r};'
        ' expected as many.'
      )
    ax.plot(
      slots,
      costs,
      'o-',
      markersize=4,
      color=colormap(0.85 * index / max(len(curves) - 1, 1)),
      label=name,
    )
  for name, cost in (levels or {}).items():
    ax.axhline(cost, color=_INK, linestyle=':', linewidth=1)
    ax.annotate(
      name,
      (1, cost),
      xycoords=('axes fraction', 'data'),
      ha='right',
      va='bottom',
      fontsize=8,
    )
  ax.set_xscale('log', base=2)
  ax.set_yscale('log')
  ax.set_xlabel('slots')
  ax.set_ylabel(ylabel)
  ax.set_title(title, fontsize=10)
  ax.legend(fontsize=8, frameon=False)
  _plain(ax)
  figure.tight_layout()
  return figure


def capacity_curve(
  memories: Mapping[str, Mapping[int, Sequence[float]]],
  *,
  levels: Mapping[str, Sequence[float]] | None = None,
  ylabel: str,
):
  """A score against the number of slots, over seeds.

  Args:
    memories: Name -> slots -> score of each seed. A line goes through means,
      bars are standard deviations over seeds, dots are seeds.
    levels: Name -> score of each seed, of models without slots.
    ylabel: Of the axis.

  Returns:
    A `matplotlib.figure.Figure`.

  Raises:
    ValueError: If there are no memories.
  """
  if not memories:
    raise ValueError('memories is empty; expected one or more.')
  figure = _figure(5.6, 4)
  ax = figure.subplots()
  colormap = _colormap()
  for index, (name, points) in enumerate(memories.items()):
    colour = colormap(0.75 * index / max(len(memories) - 1, 1))
    slots = sorted(points)
    means = [np.mean(points[s]) for s in slots]
    ax.errorbar(
      slots,
      means,
      [_spread(points[s]) for s in slots],
      fmt='o-',
      capsize=3,
      color=colour,
      label=name,
    )
    for s in slots:
      ax.plot([s] * len(points[s]), points[s], '.', color=colour, alpha=0.5)
  for name, values in (levels or {}).items():
    mean, spread = np.mean(values), _spread(values)
    ax.axhline(mean, color=_INK, linestyle='--', linewidth=1, label=name)
    ax.axhspan(mean - spread, mean + spread, color=_INK, alpha=0.1, lw=0)
  ax.set_xscale('log', base=2)
  ax.set_xlabel('slots')
  ax.set_ylabel(ylabel)
  ax.legend(fontsize=8, frameon=False)
  _plain(ax)
  figure.tight_layout()
  return figure


def loss_curves(
  runs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  *,
  xlabel: str = 'step',
  ylabel: str = 'loss, nats per token',
):
  """Losses of several runs in one picture.

  Args:
    runs: Name -> positions and losses.
    xlabel: Of the axis.
    ylabel: Of the axis.

  Returns:
    A `matplotlib.figure.Figure`.

  Raises:
    ValueError: If there are no runs.
  """
  if not runs:
    raise ValueError('runs is empty; expected one or more.')
  figure = _figure(5.6, 4)
  ax = figure.subplots()
  colormap = _colormap()
  for index, (name, (positions, losses)) in enumerate(runs.items()):
    colour = colormap(0.85 * index / max(len(runs) - 1, 1))
    ax.plot(positions, losses, 'o-', markersize=3, color=colour, label=name)
  ax.set_xlabel(xlabel)
  ax.set_ylabel(ylabel)
  ax.legend(fontsize=8, frameon=False)
  _plain(ax)
  figure.tight_layout()
  return figure


def _spread(values) -> float:
  return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _figure(width: float, height: float) -> Any:
  try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ImportError(
      "Figures need matplotlib: pip install 'jaxpapers[product_keys]'"
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
