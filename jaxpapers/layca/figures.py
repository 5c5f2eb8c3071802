"""Figures of layer rotation, drawn without pyplot and its global state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_INK = '#333333'
_GRID = {'color': '#dddddd', 'linewidth': 0.6}


def layer_rotation_panels(
  panels: Sequence[tuple[str, Any, Any]],
  *,
  columns: int = 4,
  xlabel: str = 'epoch',
):
  """Layer rotation curves as in the paper: one panel a run, one line a layer.

  Args:
    panels: title, epochs [n] and cosine distances [n, layers] of each run.
    columns: panels in a row.
    xlabel: what is on the horizontal axes.

  Returns:
    A `matplotlib.figure.Figure`. The first layer is dark.

  Raises:
    ValueError: if there are no panels.
  """
  figure, axes = _axes(len(panels), columns, width=3.1, height=2.7, right=0.75)
  colormap = _colormap('viridis')
  for ax, (title, epochs, distances) in zip(axes, panels):
    distances = np.asarray(distances)
    layers = distances.shape[1]
    for layer in range(layers):
      colour = colormap(layer / max(layers - 1, 1))
      ax.plot(epochs, distances[:, layer], color=colour, linewidth=1.4)
    ax.set_title(title, fontsize=10)
    ax.set_ylim(0, max(1.0, 1.02 * np.nanmax(distances)))
    ax.set_xlim(0, max(np.max(epochs), 1e-9))
    ax.set_xlabel(xlabel)
  _label_left(axes, columns, 'cosine distance to the start')
  layers = np.asarray(panels[0][2]).shape[1]
  _depth_bar(figure, colormap, layers)
  return figure


def rotation_by_setting(
  runs: Sequence[tuple[str, Any, Any]],
  *,
  reference: Mapping[str, Any] | None = None,
  expected: Mapping[str, Any] | None = None,
  title: str = '',
):
  """Rotation of one layer under several settings, in one picture.

  Args:
    runs: label, epochs [n] and cosine distances [n] of each.
    reference: label -> distances [n] published for it, NaN where unknown; drawn
      as rings.
    expected: label -> distances [n] that independent random gradients would
      give; drawn as dotted lines.
    title: text above.

  Returns:
    A `matplotlib.figure.Figure`.
  """
  figure, (ax,) = _axes(1, 1, width=7.2, height=4.4, left=0.8)
  colormap = _colormap('plasma')
  for index, (label, epochs, distances) in enumerate(runs):
    colour = colormap(0.82 * index / max(len(runs) - 1, 1))
    if expected and label in expected:
      ax.plot(epochs, expected[label], ':', color=colour, linewidth=1)
    if reference and label in reference:
      ax.plot(
        epochs,
        reference[label],
        'o',
        markersize=4.5,
        markerfacecolor='none',
        markeredgecolor=colour,
        markeredgewidth=0.7,
        alpha=0.8,
      )
    ax.plot(epochs, distances, color=colour, linewidth=1.6, label=label)
  ax.set_xlim(0, np.max(runs[0][1]))
  ax.set_ylim(0, 1)
  ax.set_xlabel('epoch')
  ax.set_ylabel('cosine distance to the start')
  ax.set_title(title, fontsize=11)
  handles, labels = ax.get_legend_handles_labels()
  style = {'color': _INK, 'linewidth': 1}
  if reference:
    handles += ax.plot([], [], 'o', markerfacecolor='none', **style)
    labels += ['paper, digitised']
  if expected:
    handles += ax.plot([], [], ':', **style)
    labels += ['random gradients']
  ax.legend(handles, labels, frameon=False, fontsize=9, loc='upper left')
  return figure


def step_rotation(epochs: Any, tangents: Any, *, title: str = ''):
  """Rotation of every layer in every step.

  Args:
    epochs: [steps], where the steps are.
    tangents: [steps, layers] tangents of the angles.
    title: text above.

  Returns:
    A `matplotlib.figure.Figure`. The first layer is dark; the line is a running
    median over a hundredth of the run, the shade behind it every step.
  """
  tangents = np.asarray(tangents)
  figure, (ax,) = _axes(1, 1, width=6.4, height=3.8, left=1.0, right=0.75)
  colormap = _colormap('viridis')
  layers = tangents.shape[1]
  block = max(1, len(tangents) // 100)
  whole = len(tangents) // block * block
  centres = np.asarray(epochs)[:whole].reshape(-1, block).mean(1)
  for layer in range(layers):
    colour = colormap(layer / max(layers - 1, 1))
    values = np.where(tangents[:, layer] > 0, tangents[:, layer], np.nan)
    ax.plot(epochs, values, color=colour, linewidth=0.3, alpha=0.25)
    blocks = tangents[:whole, layer].reshape(-1, block)
    ax.plot(centres, np.median(blocks, 1), color=colour, linewidth=1.5)
  ax.set_yscale('log')
  ax.set_xlim(0, np.max(epochs))
  ax.set_xlabel('epoch')
  ax.set_ylabel('tangent of the angle of a step')
  ax.set_title(title, fontsize=11)
  _depth_bar(figure, colormap, layers)
  return figure


def feature_rows(
  rows: Sequence[tuple[str, Any]], units: Sequence[int] | None = None
):
  """Incoming weights of hidden units as pictures, one row a setting.

  Every picture has its own grey scale, white and black at plus and minus its
  largest weight, so that the pattern shows whatever its size.

  Args:
    rows: label and images [units, height, width] of each row.
    units: numbers of the units, written above the columns.

  Returns:
    A `matplotlib.figure.Figure`.
  """
  count = np.asarray(rows[0][1]).shape[0]
  side, label_width, top = 1.15, 1.75, 0.4
  width, height = label_width + side * count, top + side * len(rows)
  figure = _figure(width, height)
  gap = 0.06
  for row, (label, images) in enumerate(rows):
    bottom = height - top - side * (row + 1)
    figure.text(
      (label_width - 0.15) / width,
      (bottom + side / 2) / height,
      label,
      ha='right',
      va='center',
      fontsize=10,
    )
    for column, image in enumerate(np.asarray(images)):
      ax = figure.add_axes(
        (
          (label_width + side * column) / width,
          (bottom + gap) / height,
          (side - gap) / width,
          (side - gap) / height,
        )
      )
      limit = np.abs(image).max() or 1.0
      ax.imshow(image, cmap='gray', vmin=-limit, vmax=limit)
      ax.set_xticks([])
      ax.set_yticks([])
      if row == 0 and units is not None:
        ax.set_title(f'unit {units[column]}', fontsize=9, pad=4)
  return figure


def learning_curves(
  runs: Sequence[tuple[str, Mapping[str, Any]]],
  *,
  title: str = '',
  loss: str = 'train_loss',
):
  """Training loss and test accuracy of several settings.

  Args:
    runs: label and a mapping with 'epochs' [n], `loss` [n], 'test_epochs' [m]
      and 'test_accuracy' [m].
    title: text above.
    loss: key of the loss.

  Returns:
    A `matplotlib.figure.Figure`.
  """
  longest = max(len(label) for label, _ in runs)
  figure, (left, right) = _axes(
    2, 2, width=4.6, height=3.6, left=0.75, right=0.75 + 0.075 * longest
  )
  for index, (label, curves) in enumerate(runs):
    style = {
      'color': f'C{index % 10}',
      'linestyle': ('-', '--', ':')[index // 10 % 3],
      'linewidth': 1.5,
      'label': label,
    }
    left.plot(curves['epochs'], np.maximum(curves[loss], 1e-6), **style)
    right.plot(curves['test_epochs'], 100 * curves['test_accuracy'], **style)
  left.set_yscale('log')
  left.set_ylabel('training loss')
  right.set_ylabel('test accuracy in %')
  for ax in (left, right):
    ax.set_xlabel('epoch')
    ax.set_xlim(left=0)
  best = max(np.nanmax(100 * c['test_accuracy']) for _, c in runs)
  lowest = min(100 * c['test_accuracy'][-1] for _, c in runs)
  # Where the runs end, not where they begin.
  span = max(best - lowest, 1.0)
  right.set_ylim(max(0, lowest - span), best + 0.1 * span)
  right.legend(
    frameon=False, fontsize=8, loc='center left', bbox_to_anchor=(1.0, 0.5)
  )
  left.set_title(title, fontsize=11, loc='left')
  return figure


def accuracy_by_setting(
  curves: Sequence[tuple[str, Any, Any]],
  *,
  xlabel: str,
  logarithmic: bool = False,
  reference: tuple[str, Any, Any] | None = None,
):
  """Test accuracy over one number that was varied.

  Args:
    curves: label, values [n] and accuracies [n] of each line.
    xlabel: what was varied.
    logarithmic: whether its axis is logarithmic, in powers of 3.
    reference: label, values and accuracies of the paper, on an axis of its own.

  Returns:
    A `matplotlib.figure.Figure`.
  """
  figure, (ax,) = _axes(1, 1, width=6.0, height=3.8, left=0.8, right=0.8)
  for index, (label, values, accuracies) in enumerate(curves):
    ax.plot(
      values,
      100 * np.asarray(accuracies),
      'o-',
      color=f'C{index}',
      linewidth=1.5,
      markersize=5,
      label=label,
    )
  ax.set_xlabel(xlabel)
  ax.set_ylabel('test accuracy in %')
  handles, labels = ax.get_legend_handles_labels()
  if reference is not None:
    other = ax.twinx()
    handles += other.plot(
      reference[1], 100 * np.asarray(reference[2]), 's--', color='#999999'
    )
    labels += [reference[0]]
    other.set_ylabel(f'{reference[0]}: test accuracy in %', color='#777777')
  if logarithmic:
    ax.set_xscale('log', base=3)
  if len(labels) > 1:
    ax.legend(handles, labels, frameon=False, fontsize=9)
  return figure


def _figure(width: float, height: float):
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ImportError(
      "Figures need matplotlib: pip install 'jaxpapers[layca]'"
    ) from error
  return Figure(figsize=(width, height))


def _colormap(name: str):
  import matplotlib

  return matplotlib.colormaps[name]


def _axes(
  count: int,
  columns: int,
  *,
  width: float,
  height: float,
  left: float = 0.65,
  right: float = 0.15,
):
  """A figure with a grid of axes; sizes of a cell and margins in inches."""
  if count < 1:
    raise ValueError('there is nothing to draw; expected one panel or more.')
  columns = min(columns, count)
  rows = -(-count // columns)
  total_width = left + columns * width + right
  total_height = rows * height + 0.1
  figure = _figure(total_width, total_height)
  gap = 0.1 if columns == 1 else 0.45 + 0.1 * (width > 4)
  axes = []
  for index in range(count):
    row, column = divmod(index, columns)
    x = left + column * width
    y = total_height - (row + 1) * height + 0.5
    ax = figure.add_axes(
      (
        x / total_width,
        y / total_height,
        (width - gap) / total_width,
        (height - 0.85) / total_height,
      )
    )
    ax.grid(**_GRID)
    for side in ('top', 'right'):
      ax.spines[side].set_visible(False)
    ax.tick_params(labelsize=8.5)
    axes.append(ax)
  return figure, axes


def _label_left(axes, columns: int, text: str) -> None:
  for index, ax in enumerate(axes):
    if index % columns == 0:
      ax.set_ylabel(text, fontsize=9)


def _depth_bar(figure, colormap, layers: int) -> None:
  """A bar that says which colour is which layer."""
  width, height = figure.get_size_inches()
  bar = figure.add_axes(
    (1 - 0.62 / width, 0.5 / height, 0.12 / width, 1 - 0.9 / height)
  )
  bar.imshow(
    np.arange(layers)[::-1, None] / max(layers - 1, 1),
    cmap=colormap,
    aspect='auto',
    vmin=0,
    vmax=1,
  )
  bar.set_xticks([])
  bar.yaxis.tick_right()
  bar.set_yticks([0, layers - 1] if layers > 1 else [0])
  bar.set_yticklabels(['last', 'first'] if layers > 1 else ['all'], fontsize=8)
  bar.set_title('layer', fontsize=8)
