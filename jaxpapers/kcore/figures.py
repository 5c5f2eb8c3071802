"""Curves and bars of an analysis: percolation, shells, nulls, collapse.

Drawn with matplotlib's Figure and no pyplot: no display and no global state.
Each function returns a `matplotlib.figure.Figure`; `to_png` makes bytes of it.
Pictures of matrices, voxels and graphs are in `figures_maps`.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpapers.kcore import pipeline

# Colours that most colour-blind readers tell apart (Okabe and Ito), then more.
COLOURS = (
  '#0072B2',
  '#E69F00',
  '#009E73',
  '#CC79A7',
  '#D55E00',
  '#56B4E9',
  '#8C6D31',
  '#7F7F7F',
  '#6A3D9A',
  '#B2DF8A',
)
INK, FAINT = '#222222', '#9AA0A6'
IN_COLOUR, OUT_COLOUR = '#E69F00', '#009E73'


def new_figure(width: float = 7.0, height: float = 4.2, **grid) -> tuple:
  """An empty figure and its axes.

  Args:
    width: inches.
    height: inches.
    **grid: arguments of `Figure.subplots`.

  Returns:
    figure, axes.

  Raises:
    ImportError: matplotlib is not there.

  Example:
    >>> figure, axes = new_figure()
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ImportError(
      'Figures need matplotlib: pip install jaxpapers[kcore]'
    ) from error
  figure = Figure(figsize=(width, height), layout='constrained')
  axes = figure.subplots(**grid)
  for one in np.ravel(axes):
    one.spines[['top', 'right']].set_visible(False)
    one.spines[['left', 'bottom']].set_color(FAINT)
    one.tick_params(colors=INK, labelsize=9)
  return figure, axes


def to_png(figure: Any, dpi: int = 150) -> bytes:
  """Renders a figure.

  Args:
    figure: of matplotlib.
    dpi: pixels per inch.

  Returns:
    The bytes of a PNG file.

  Example:
    >>> to_png(new_figure()[0])[1:4]
    b'PNG'
  """
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=dpi, facecolor='white')
  return buffer.getvalue()


def module_colours(count: int) -> list[str]:
  """A colour for each module.

  Args:
    count: M.

  Returns:
    M colours; they repeat beyond ten.

  Example:
    >>> len(set(module_colours(7)))
    7
  """
  return [COLOURS[m % len(COLOURS)] for m in range(count)]


def percolation(result: pipeline.NetworkResult, names: Sequence[str]) -> Any:
  """Largest component over the threshold, with lambda_in and lambda_out.

  Args:
    result: a network.
    names: of the modules.

  Returns:
    The figure.

  Example:
    >>> figure = percolation(analysis.shown, names)  # doctest: +SKIP
  """
  figure, axis = new_figure()
  n = len(result.coreness)
  if len(result.threshold):
    top = min(1.0, result.threshold[0] * 1.03)
    x = np.concatenate([[max(top, result.threshold[0])], result.threshold])
    axis.plot(
      x,
      np.concatenate([[1], result.giant]) / n,
      drawstyle='steps-post',
      color=INK,
      lw=1.6,
      label='largest component',
    )
    axis.plot(
      x,
      np.concatenate([[1], result.second]) / n,
      drawstyle='steps-post',
      color=FAINT,
      lw=1.0,
      label='second largest',
    )
  inside, outside = thresholds(result)
  for values, colour, label, marker in (
    (inside, IN_COLOUR, r'$\lambda_{in}$ of a module', 'v'),
    (outside, OUT_COLOUR, r'$\lambda_{out}$, its first merge', '^'),
  ):
    if not len(values):
      continue
    height = [_giant_at(result, value) / n for value in values]
    axis.scatter(
      values, height, s=34, marker=marker, color=colour, zorder=3, label=label
    )
    axis.vlines(values, 0, height, color=colour, lw=0.7, alpha=0.6)
  low = min([*inside, *outside], default=0.0)
  if len(result.threshold):
    axis.set_xlim(max(result.threshold[-1], low - 0.25), x[0])
  # As in the paper, links appear from high thresholds to low ones.
  axis.invert_xaxis()
  axis.set_ylim(0, 1.02)
  axis.set_xlabel(r'threshold $\lambda$ (links where $C_{ij} \geq \lambda$)')
  axis.set_ylabel('fraction of nodes')
  axis.legend(frameon=False, fontsize=9, loc='upper left')
  return figure


def thresholds(result: pipeline.NetworkResult) -> tuple:
  """lambda_in of each module and lambda_out of its first merge, finite ones.

  Args:
    result: a network.

  Returns:
    Two arrays.

  Example:
    >>> inside, outside = thresholds(analysis.shown)  # doctest: +SKIP
  """
  between = np.array(result.network.lambda_out)
  np.fill_diagonal(between, np.nan)
  rows = between[np.any(np.isfinite(between), axis=1)]
  outside = np.nanmax(rows, axis=1) if len(rows) else np.zeros(0)
  inside = np.asarray(result.network.lambda_in)
  return inside[np.isfinite(inside)], outside


def _giant_at(result, threshold):
  # The grid in floating point: 0.57 and 57 * 0.01 differ.
  reached = result.threshold >= threshold - 1e-9
  return result.giant[reached][-1] if reached.any() else 1


def shells(
  result: pipeline.NetworkResult, module: np.ndarray, names: Sequence[str]
) -> Any:
  """Nodes in each k-shell, coloured by module; isolated nodes are named.

  Args:
    result: a network.
    module: int[N].
    names: of the modules.

  Returns:
    The figure.

  Example:
    >>> figure = shells(result, study.module, names)  # doctest: +SKIP
  """
  figure, axis = new_figure()
  k = np.arange(1, result.k_max + 1)
  bottom = np.zeros(len(k))
  for m, colour in enumerate(module_colours(len(names))):
    inside = result.coreness[module == m]
    height = np.bincount(inside, minlength=result.k_max + 1)[1:]
    axis.bar(k, height, bottom=bottom, width=0.9, color=colour, label=names[m])
    bottom = bottom + height
  axis.set_xlabel('k-shell')
  axis.set_ylabel('nodes')
  isolated = int(result.occupancy[0])
  axis.set_title(
    f'{isolated} isolated nodes (shell 0) are not drawn',
    fontsize=9,
    color=FAINT,
    loc='right',
  )
  axis.legend(frameon=False, fontsize=8, ncols=2)
  return figure


def core_sizes(result: pipeline.NetworkResult) -> Any:
  """Nodes in each k-core over k.

  Args:
    result: a network.

  Returns:
    The figure.

  Example:
    >>> figure = core_sizes(analysis.shown)  # doctest: +SKIP
  """
  figure, axis = new_figure()
  k = np.arange(1, result.k_max + 1)
  axis.step(k, result.core_sizes[1:], where='mid', color=INK, lw=1.6)
  for m in nested(result):
    axis.plot(m, result.core_sizes[m], 'o', color=COLOURS[0], ms=6, zorder=3)
    last = m == result.k_max and m > 1
    axis.annotate(
      f'{result.core_sizes[m]} nodes in the {m}-core',
      (m, result.core_sizes[m]),
      xytext=(-4, -14) if last else (6, 6),
      textcoords='offset points',
      fontsize=8,
      color=COLOURS[0],
      ha='right' if last else 'left',
    )
  # Room for the label of a small core.
  axis.set_ylim(-0.09 * result.core_sizes[1], None)
  axis.margins(x=0.06)
  axis.set_xlabel('k')
  axis.set_ylabel('nodes in the k-core')
  return figure


def nested(result: pipeline.NetworkResult) -> list[int]:
  """The cores that are shown: 1, 5, 10 and k_max, where they differ.

  Args:
    result: a network.

  Returns:
    Rising numbers; empty for a network without links.

  Example:
    >>> nested(analysis.shown)  # doctest: +SKIP
    [1, 5, 10, 95]
  """
  k_max = result.k_max
  return sorted({k for k in (1, 5, 10) if k < k_max} | ({k_max} - {0}))


def null_band(occupancy: np.ndarray, nulls: Any) -> Any:
  """Occupancy of the shells, against the random networks of equal degrees.

  Args:
    occupancy: [k_max + 1], nodes in each shell of the real network.
    nulls: `NullSummary`.

  Returns:
    The figure.

  Example:
    >>> figure = null_band(occupancy, nulls)  # doctest: +SKIP
  """
  figure, (left, right) = new_figure(10.0, 4.0, ncols=2, width_ratios=(3, 2))
  k_max = len(occupancy) - 1
  last = max(k_max, int(nulls.k_max.max(initial=0)))
  k = np.arange(1, last + 1)
  mean, std = (_padded(x, last)[1:] for x in (nulls.occ_mean, nulls.occ_std))
  left.fill_between(
    k,
    np.maximum(mean - std, 0),
    mean + std,
    color=COLOURS[5],
    alpha=0.35,
    lw=0,
    label='random networks, mean ± s.d.',
  )
  left.plot(k, mean, color=COLOURS[0], lw=1.4)
  left.plot(
    k,
    _padded(occupancy, last)[1:],
    'o-',
    color=INK,
    ms=3,
    lw=1.0,
    label='real network',
  )
  left.set_xlabel('k-shell')
  left.set_ylabel('nodes')
  left.legend(frameon=False, fontsize=8)
  values, counts = np.unique(nulls.k_max, return_counts=True)
  right.bar(
    values, counts / counts.sum(), width=0.9, color=COLOURS[5], label='random'
  )
  right.axvline(k_max, color=INK, lw=1.6)
  right.text(
    k_max,
    1.0,
    f'real {k_max} ',
    transform=right.get_xaxis_transform(),
    ha='right',
    va='top',
    fontsize=9,
  )
  right.set_xlabel(r'$k_{max}$')
  right.set_ylabel('fraction of random networks')
  right.set_title(
    f'z = {nulls.z_score(k_max):.1f},'
    f' p = {nulls.p_value(k_max):.2g} ({len(nulls.k_max)} nulls)',
    fontsize=9,
  )
  from matplotlib.ticker import MaxNLocator

  right.xaxis.set_major_locator(MaxNLocator(integer=True))
  return figure


def _padded(array, last):
  padded = np.zeros(last + 1)
  padded[: len(array)] = array[: last + 1]
  return padded


def cluster_frequency(test: Any, names: Sequence[str], networks: int) -> Any:
  """How often each module takes part in the core, with the random level.

  Args:
    test: `ClusterTest`.
    names: of the modules.
    networks: G.

  Returns:
    The figure.

  Example:
    >>> figure = cluster_frequency(test, names, 10)  # doctest: +SKIP
  """
  figure, axis = new_figure()
  x = np.arange(len(names))
  axis.bar(x, test.frequency, width=0.7, color=module_colours(len(names)))
  axis.axhline(test.random_level, color=INK, lw=1.2, ls='--')
  axis.set_title(
    f'dashed: random level {test.random_level:.2f}',
    fontsize=9,
    color=FAINT,
    loc='right',
  )
  for m, p in enumerate(test.p_exact):
    axis.text(
      m,
      test.frequency[m] + 0.01,
      f'p = {p:.2g}',
      ha='center',
      va='bottom',
      fontsize=8,
    )
  axis.set_xticks(x, names, rotation=20, ha='right', fontsize=9)
  axis.set_ylim(0, max(1.08, axis.get_ylim()[1]))
  axis.set_ylabel(f'in the $k_{{max}}$-core, of {networks} networks')
  return figure


def collapse(sweep: pipeline.Sweep, nodes: int) -> Any:
  """Active fraction over the coupling, falling and rising.

  Args:
    sweep: numbers of active nodes.
    nodes: N.

  Returns:
    The figure.

  Example:
    >>> figure = collapse(analysis.sweep, 610)  # doctest: +SKIP
  """
  figure, axis = new_figure()
  ratio = sweep.J / sweep.critical
  axis.plot(
    ratio,
    sweep.core_sizes / nodes,
    color=FAINT,
    lw=4.0,
    alpha=0.5,
    label='k-core of the network (steep limit)',
  )
  axis.plot(
    ratio,
    sweep.down / nodes,
    'o-',
    color=COLOURS[4],
    ms=3,
    lw=1.2,
    label='coupling falls',
  )
  axis.plot(
    ratio,
    sweep.turned / nodes,
    '^--',
    color=COLOURS[2],
    ms=3,
    lw=1.0,
    label='rises from the last core',
  )
  axis.plot(
    ratio,
    sweep.up / nodes,
    's-',
    color=COLOURS[0],
    ms=3,
    lw=1.2,
    label='rises after the collapse',
  )
  axis.axvline(1.0, color=INK, lw=1.0, ls=':')
  axis.text(
    1.0,
    0.5,
    f'  $J_c$ = {sweep.critical:.4g}',
    transform=axis.get_xaxis_transform(),
    fontsize=9,
  )
  axis.set_xscale('log')
  ticks = [1, 2, 5, 10, 20, 50, 100, 200]
  ticks = [tick for tick in ticks if tick <= ratio.max()]
  axis.set_xticks(ticks, [str(tick) for tick in ticks])
  axis.minorticks_off()
  axis.set_ylim(-0.02, None)
  axis.set_xlabel('coupling $J / J_c$')
  axis.set_ylabel('active fraction of nodes')
  axis.legend(
    frameon=False, fontsize=8, loc='upper left', bbox_to_anchor=(0.1, 1.0)
  )
  return figure
