"""Pictures of an analysis: matrix, voxels, graph of the cores, two states."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpapers.kcore import figures, layout, pipeline

# More links than these are not told apart in a picture.
_MOST_LINKS = 6000
_QUIET = '#D9DCE0'


def matrix(
  result: pipeline.NetworkResult, module: np.ndarray, names: Sequence[str]
) -> Any:
  """Links and their correlation, nodes sorted by module.

  Within a module nodes are sorted by coreness, so that cores show as squares.

  Args:
    result: a network.
    module: int[N].
    names: of the modules.

  Returns:
    The figure.

  Example:
    >>> figure = matrix(result, study.module, names)  # doctest: +SKIP
  """
  figure, axis = figures.new_figure(6.4, 5.6)
  order = np.lexsort((-result.coreness, module))
  weights = result.network.weights[np.ix_(order, order)]
  shown = np.where(weights != 0, weights, np.nan)
  low = np.nanmin(shown) if np.isfinite(shown).any() else 0.0
  image = axis.imshow(
    shown, cmap='viridis', vmin=low, vmax=1.0, interpolation='nearest'
  )
  ends = np.cumsum(np.bincount(module, minlength=len(names)))
  for end in ends[:-1]:
    axis.axhline(end - 0.5, color=figures.FAINT, lw=0.6)
    axis.axvline(end - 0.5, color=figures.FAINT, lw=0.6)
  middle = ends - np.bincount(module, minlength=len(names)) / 2 - 0.5
  axis.set_yticks(middle, names, fontsize=8)
  axis.set_xticks([])
  for spine in axis.spines.values():
    spine.set_visible(True)
  figure.colorbar(image, ax=axis, shrink=0.8, label='correlation of a link')
  return figure


def core_voxels(
  result: pipeline.NetworkResult,
  module: np.ndarray,
  coords: np.ndarray,
  names: Sequence[str],
) -> Any:
  """Where the nested cores lie, from above and from the side.

  Args:
    result: a network.
    module: int[N].
    coords: [N, 3] millimetres.
    names: of the modules.

  Returns:
    The figure.

  Example:
    >>> figure = core_voxels(result, module, coords, names)  # doctest: +SKIP
  """
  cores = figures.nested(result) or [0]
  views = _views(coords)
  size = float(np.clip(9000 / len(coords), 8, 40))
  figure, axes = figures.new_figure(
    3.0 * len(cores) + 0.4,
    2.8 * len(views) + 0.6,
    nrows=len(views),
    ncols=len(cores),
    squeeze=False,
  )
  colours = np.array(figures.module_colours(len(names)))
  for row, (x, y, view) in enumerate(views):
    for column, k in enumerate(cores):
      axis = axes[row, column]
      _scatter(axis, coords[:, [x, y]], np.full(len(coords), _QUIET), size / 2)
      inside = np.flatnonzero(result.coreness >= k)
      _scatter(axis, coords[inside][:, [x, y]], colours[module[inside]], size)
      if row == 0:
        axis.set_title(f'{k}-core, {len(inside)} nodes', fontsize=10)
      if column == 0:
        axis.set_ylabel(view, fontsize=9)
  _legend(figure, names)
  return figure


def core_graph(
  result: pipeline.NetworkResult,
  module: np.ndarray,
  names: Sequence[str],
  place: np.ndarray | None = None,
) -> Any:
  """The nested cores as graphs, in one force-directed layout.

  Args:
    result: a network.
    module: int[N].
    names: of the modules.
    place: [N, 2] from `shell_layout`, of the nodes with links; made if None.

  Returns:
    The figure.

  Example:
    >>> figure = core_graph(result, module, names)  # doctest: +SKIP
  """
  place = linked_layout(result, module) if place is None else place
  cores = figures.nested(result) or [0]
  figure, axes = figures.new_figure(
    3.3 * len(cores), 3.9, ncols=len(cores), squeeze=False
  )
  colours = np.array(figures.module_colours(len(names)))
  for axis, k in zip(axes[0], cores, strict=True):
    inside = result.coreness >= k
    _links(axis, result, place, inside)
    _scatter(axis, place[inside], colours[module[inside]], 9)
    axis.set_title(f'{k}-core, {inside.sum()} nodes', fontsize=10)
    axis.set_xlim(np.nanmin(place[:, 0]) - 1, np.nanmax(place[:, 0]) + 1)
    axis.set_ylim(np.nanmin(place[:, 1]) - 1, np.nanmax(place[:, 1]) + 1)
  _legend(figure, names)
  return figure


def shell_picture(
  result: pipeline.NetworkResult,
  module: np.ndarray,
  names: Sequence[str],
  place: np.ndarray | None = None,
) -> Any:
  """The whole network by k-shell: the innermost core in the middle.

  Args:
    result: a network.
    module: int[N].
    names: of the modules.
    place: as in `core_graph`.

  Returns:
    The figure: colours by shell on the left, by module on the right.

  Example:
    >>> figure = shell_picture(result, module, names)  # doctest: +SKIP
  """
  place = linked_layout(result, module) if place is None else place
  figure, (left, right) = figures.new_figure(11.0, 5.4, ncols=2)
  inside = result.coreness >= min(1, result.k_max)
  for axis in (left, right):
    _links(axis, result, place, inside)
  dots = _scatter(left, place[inside], result.coreness[inside], 20)
  figure.colorbar(dots, ax=left, shrink=0.75, label='k-shell', pad=0.01)
  colours = np.array(figures.module_colours(len(names)))
  _scatter(right, place[inside], colours[module[inside]], 20)
  core = place[result.core]
  right.scatter(
    *core.T, s=26, facecolors='none', edgecolors=figures.INK, lw=0.6
  )
  left.set_title('by k-shell', fontsize=10)
  right.set_title(f'by module; circled: the {result.k_max}-core', fontsize=10)
  _legend(figure, names)
  return figure


def linked_layout(
  result: pipeline.NetworkResult, module: np.ndarray
) -> np.ndarray:
  """`shell_layout` of the nodes that have links; NaN for the others.

  Args:
    result: a network.
    module: int[N].

  Returns:
    float64[N, 2].

  Example:
    >>> place = linked_layout(result, study.module)  # doctest: +SKIP
  """
  inside = np.flatnonzero(result.coreness > 0)
  if not inside.size:
    return np.zeros((len(module), 2))
  number = np.full(len(module), -1)
  number[inside] = np.arange(inside.size)
  _, sector = np.unique(module[inside], return_inverse=True)
  place = np.full((len(module), 2), np.nan)
  place[inside] = layout.shell_layout(
    number[result.edges], result.coreness[inside], module=sector
  )
  return place


def two_states(
  core: np.ndarray,
  other: np.ndarray,
  coords: np.ndarray,
  *,
  core_name: str,
  other_name: str,
) -> Any:
  """The k_max-core next to the map of the second state.

  Args:
    core: bool[N].
    other: bool[N].
    coords: [N, 3] millimetres.
    core_name: caption of the core.
    other_name: of the second state.

  Returns:
    The figure.

  Example:
    >>> figure = two_states(  # doctest: +SKIP
    ...   core, study.other, coords, core_name='core', other_name='masked'
    ... )
  """
  views = _views(coords)
  size = float(np.clip(9000 / len(coords), 8, 40))
  figure, axes = figures.new_figure(
    9.6,
    3.1 * len(views) + 0.4,
    nrows=len(views),
    ncols=3,
    squeeze=False,
  )
  both = core & other
  panels = (
    (f'{core_name}: {core.sum()} nodes', core, figures.COLOURS[4]),
    (f'{other_name}: {other.sum()} nodes', other, figures.COLOURS[0]),
    (f'in both: {both.sum()} nodes', both, figures.COLOURS[2]),
  )
  for row, (x, y, view) in enumerate(views):
    for column, (title, chosen, colour) in enumerate(panels):
      axis = axes[row, column]
      _scatter(axis, coords[:, [x, y]], np.full(len(coords), _QUIET), size / 2)
      inside = coords[chosen][:, [x, y]]
      _scatter(axis, inside, np.full(len(inside), colour), size)
      if row == 0:
        axis.set_title(title, fontsize=10)
      if column == 0:
        axis.set_ylabel(view, fontsize=9)
  return figure


def _views(coords):
  """Projections; one slice is seen from above only."""
  views = [(0, 1, 'from above')]
  if np.ptp(coords[:, 2]) > 1e-3 * np.ptp(coords[:, :2]):
    views.append((1, 2, 'from the side'))
  return views


def _scatter(axis, points, colours, size):
  axis.set_aspect('equal')
  axis.set_xticks([])
  axis.set_yticks([])
  axis.spines[:].set_visible(False)
  return axis.scatter(
    *np.asarray(points).reshape(-1, 2).T,
    c=colours,
    s=size,
    lw=0,
    cmap='viridis' if np.asarray(colours).dtype.kind in 'if' else None,
    zorder=2,
  )


def _links(axis, result, place, inside):
  """Draws links among some nodes; a sample of them where there are many."""
  from matplotlib.collections import LineCollection

  edges = result.edges
  edges = edges[inside[edges].all(axis=1)]
  if len(edges) > _MOST_LINKS:
    chosen = np.random.default_rng(0).choice(
      len(edges), _MOST_LINKS, replace=False
    )
    edges = edges[chosen]
  alpha = float(np.clip(60 / max(len(edges), 1) ** 0.75, 0.03, 0.5))
  axis.add_collection(
    LineCollection(
      place[edges], colors=figures.INK, linewidths=0.4, alpha=alpha, zorder=1
    )
  )


def _legend(figure, names):
  from matplotlib.lines import Line2D

  handles = [
    Line2D([], [], marker='o', ls='', ms=5, color=colour, label=name)
    for colour, name in zip(
      figures.module_colours(len(names)), names, strict=True
    )
  ]
  figure.legend(
    handles=handles,
    loc='outside lower center',
    ncols=min(len(names), 7),
    frameon=False,
    fontsize=8,
  )
