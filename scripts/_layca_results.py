"""What the Layca programs write: curves as npz and csv, tables, figures."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxpapers import data

_PER_EPOCH = ('train', 'test', 'validation')


@dataclasses.dataclass(frozen=True)
class Curves:
  """What was measured of a population.

  Attributes:
    members: Settings: 'learning_rate', 'alpha' and 'seed'.
    steps_per_epoch: Updates in an epoch.
    layer_order: Paths of the kernels, first layer first.
    arrays: 'train_step' [epochs], 'train_loss', 'train_accuracy',
      'train_cross_entropy' [epochs, members]; 'test_step', 'test_accuracy' and
      'test_cross_entropy' [evaluations, members], and the same of 'validation';
      'rotation_step' and 'rotation' [measurements, members, layers], cosine
      distances to the initial kernels. Whatever else a program adds has its
      members first.
    message: Why it ended early, if it did.
  """

  members: list[dict[str, Any]]
  steps_per_epoch: int
  layer_order: list[str]
  arrays: dict[str, np.ndarray]
  message: str = ''

  def rotation_curve(self, member: int) -> tuple[np.ndarray, np.ndarray]:
    """Epochs [n + 1] and distances [n + 1, layers], from 0 at the start.

    As in the paper, what was measured after the first step of epoch k stands at
    k + 1: the plot puts a zero before it.
    """
    distances = self.arrays['rotation'][:, member]
    zero = np.zeros((1, distances.shape[1]))
    steps = self.arrays['rotation_step']
    if len(steps) > 1 and (np.diff(steps) == self.steps_per_epoch).all():
      epochs = np.arange(len(steps) + 1.0)
    else:
      epochs = np.concatenate([[0], steps]) / self.steps_per_epoch
    return epochs, np.concatenate([zero, distances])

  def test_accuracy(self, best_validation: bool = False) -> np.ndarray:
    """Of the last epoch, or of that with the best validation, [members]."""
    accuracy = self.arrays['test_accuracy']
    if not best_validation or 'validation_accuracy' not in self.arrays:
      return accuracy[-1]
    best = self.arrays['validation_accuracy'].argmax(0)
    return accuracy[best, np.arange(accuracy.shape[1])]

  def train_accuracy(self) -> np.ndarray:
    """Mean over the last epoch, with batch statistics, [members]."""
    return self.arrays['train_accuracy'][-1]

  def distances(self) -> np.ndarray:
    """The last measured cosine distances, [members, layers]."""
    return self.arrays['rotation'][-1]


def join(parts: Sequence[Curves]) -> Curves:
  """One population of the members of several.

  Members that ended early keep their last numbers, so that all curves have one
  length.
  """
  if len(parts) == 1:
    return parts[0]
  arrays = {}
  for name in parts[0].arrays:
    values = [part.arrays[name] for part in parts]
    if name.endswith('_step'):
      arrays[name] = max(values, key=len)
      continue
    in_time = name.split('_')[0] in (*_PER_EPOCH, 'rotation')
    if in_time:
      length = max(map(len, values))
      values = [
        np.concatenate([v, np.repeat(v[-1:], length - len(v), 0)])
        for v in values
      ]
    arrays[name] = np.concatenate(values, 1 if in_time else 0)
  messages = list(dict.fromkeys(p.message for p in parts if p.message))
  return Curves(
    [member for part in parts for member in part.members],
    parts[0].steps_per_epoch,
    parts[0].layer_order,
    arrays,
    ' '.join(messages),
  )


def write_curves(folder: epath.Path, curves: Curves) -> None:
  """Writes `curves.csv` and, last, `curves.npz`."""
  data.write_file(folder / 'curves.csv', curves_as_csv(curves))
  about = {
    'members': curves.members,
    'steps_per_epoch': curves.steps_per_epoch,
    'layer_order': curves.layer_order,
    'message': curves.message,
  }
  buffer = io.BytesIO()
  np.savez_compressed(buffer, about=json.dumps(about), **curves.arrays)
  data.write_file(folder / 'curves.npz', buffer.getvalue())


def read_curves(path: epath.Path) -> Curves:
  """Reads what `write_curves` wrote."""
  with np.load(io.BytesIO(path.read_bytes())) as stored:
    arrays = {name: stored[name] for name in stored.files}
  about = json.loads(str(arrays.pop('about')))
  return Curves(arrays=arrays, **about)


def curves_as_csv(curves: Curves) -> str:
  """One row for each member, step and split; columns of what it measured."""
  layers = [f'rotation:{path}' for path in curves.layer_order]
  columns = ['loss', 'cross_entropy', 'accuracy', *layers]
  rows = []
  for split in (*_PER_EPOCH, 'rotation'):
    steps = curves.arrays.get(f'{split}_step')
    if steps is None:
      continue
    for index, step in enumerate(steps):
      for number, member in enumerate(curves.members):
        if split == 'rotation':
          values = curves.arrays['rotation'][index, number]
          cells = dict(zip(layers, values))
        else:
          cells = {
            name: curves.arrays[f'{split}_{name}'][index, number]
            for name in ('loss', 'cross_entropy', 'accuracy')
            if f'{split}_{name}' in curves.arrays
          }
        rows.append((number, member, int(step), split, cells))
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(
    ['member', 'learning_rate', 'alpha', 'seed', 'step', 'split', *columns]
  )
  for number, member, step, split, cells in sorted(
    rows, key=lambda row: (row[0], row[2], row[3])
  ):
    writer.writerow(
      [
        number,
        f'{member["learning_rate"]:.8g}',
        f'{member["alpha"]:g}',
        member['seed'],
        step,
        split,
        *(f'{cells[c]:.6g}' if c in cells else '' for c in columns),
      ]
    )
  return out.getvalue()


def learning_curve(curves: Curves, member: int) -> dict[str, np.ndarray]:
  """One member's curves as `figures.learning_curves` takes them."""
  arrays, per_epoch = curves.arrays, curves.steps_per_epoch
  return {
    'epochs': arrays['train_step'] / per_epoch,
    'train_loss': arrays['train_loss'][:, member],
    'train_cross_entropy': arrays['train_cross_entropy'][:, member],
    'test_epochs': arrays['test_step'] / per_epoch,
    'test_accuracy': arrays['test_accuracy'][:, member],
  }


def power_of_three(rate: float) -> str:
  """A learning rate as the paper writes them, where it is such a power."""
  exponent = np.log(rate) / np.log(3) if rate > 0 else np.inf
  if not abs(exponent - round(exponent, 1)) <= 1e-6:  # NaN for a rate of 0.
    return f'{rate:.4g}'
  return f'3^{round(exponent, 1) + 0:g}'


def mathematical(rate: float) -> str:
  """The same for figures."""
  text = power_of_three(rate)
  base, caret, exponent = text.partition('^')
  return f'${base}^{{{exponent}}}$' if caret else text


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
  """Prints a table with aligned columns."""
  table = [list(header), *[list(map(str, row)) for row in rows]]
  widths = [max(map(len, column)) for column in zip(*table)]
  for row in table:
    cells = [row[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
    print('  '.join(cells).rstrip())


def write_table(
  path: epath.Path, header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
  """Writes a table as csv."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(header)
  writer.writerows(rows)
  data.write_file(path, out.getvalue())


def save_arrays(path: epath.Path, arrays: Mapping[str, Any]) -> None:
  """Writes arrays as npz."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  data.write_file(path, buffer.getvalue())


def save_figure(path: epath.Path, figure: Any, dpi: int = 130) -> None:
  """Writes a matplotlib figure as PNG."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=dpi)
  data.write_file(path, buffer.getvalue())
