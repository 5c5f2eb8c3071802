r"""An adaptive method's rotations replayed by SGD (Layca paper, section 5.3).

Examples:
  # In miniature, on MNIST:
  python scripts/layca_replay.py --config.data_dir=~/data/mnist \
      --workdir=replay_small

  # The paper's second task: Adam on ResNet-32, CIFAR-100.
  python scripts/layca_replay.py --config.data_dir=~/data/cifar100 \
      --config=scripts/configs/layca/replay.py:C100-resnet --workdir=resnet

Trains with the adaptive method and records by which angle every layer turns in
every step; trains again with SGD and Layca, whose learning rates replay these
angles layer by layer and step by step; and trains with SGD and L2 to compare.
Where the first two learn equally fast, the adaptive method's speed lies in how
it rotates layers, not in how it scales single weights.

Into --workdir go summary.csv, rotations.npz (tangents, [steps, layers]),
learning.png, layers.png and steps.png (rotation per step), and for each run a
folder with curves.npz, curves.csv, metrics.jsonl and checkpoints. A run that is
finished is not repeated.

"""

import math

import _command_line
import _layca_config
import _layca_results
import _layca_training
import _training_command_line
import ml_collections
import numpy as np
import optax
from absl import flags

from jaxpapers import training
from jaxpapers.layca import (
  experiments_optimizers,
  experiments_replay,
  figures,
  rates,
)

__doc__ += _layca_training.FIELDS

_training_command_line.define_flags(
  'layca/replay.py:mnist-small', 'layca_replay'
)
flags.adopt_module_key_flags(_training_command_line)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """The step that records, without data; for scripts/compile_for_tpu.py."""
  own = _layca_config.with_setting(config, config.recorded)
  return _layca_training.make_problem(own, optimizer=_recorder(own, None)).job


def main() -> int:
  """Trains three times, and draws."""
  config = _layca_config.read_config()
  _layca_config.settings_of(config)
  if 'recorded' not in config or 'replayed' not in config:
    raise _command_line.UsageError(
      '--config does not say which run is recorded and which replayed; expected'
      ' layca/replay.py'
    )
  for name in (config.recorded, config.replayed):
    if name not in config.settings:
      raise _command_line.UsageError(
        f'--config.settings has no {name!r}; expected the recorded and the'
        f' replayed one among {", ".join(config.settings)}'
      )
    own = _layca_config.with_setting(config, name)
    if len(_layca_config.all_members(own)) > 1:
      raise _command_line.UsageError(
        f'--config.settings.{name} has several members; expected one learning'
        ' rate, alpha and seed'
      )
  splits = _layca_training.load_data(config)
  run = _layca_config.start(config)
  curves = {}

  def train(name, label, own=None, **options):
    _training_command_line.say(f'\n{label}')
    own = own or _layca_config.with_setting(config, name)
    curves[label] = _layca_training.train_members(
      run, own, run.workdir / label, splits, **options
    )

  try:
    own = _layca_config.with_setting(config, config.recorded)
    examples = len(splits.train['label'])
    train(
      config.recorded,
      config.recorded,
      optimizer=_recorder(own, examples),
      extras=lambda problem, initial, state: {
        'tangents': np.asarray(
          experiments_replay.recorded_rotations(state.opt_state)
        )[None]
      },
    )
    table = curves[config.recorded].arrays['tangents'][0]
    replayed = _as_long_as(
      _layca_config.with_setting(config, config.replayed),
      len(table) / curves[config.recorded].steps_per_epoch,
    )
    train(
      config.replayed,
      'replayed',
      replayed,
      optimizer=lambda tx, order: experiments_optimizers.make(
        replayed.optimizer.to_dict(), rates.replay_schedules(table, order)
      ),
    )
    for name in config.settings:
      if name not in (config.recorded, config.replayed):
        train(name, name)
  except _layca_training.Interrupted as stop:
    return run.exit_code(stop.result)
  if run.first:
    _write(run, curves, table)
  return 0


def _as_long_as(config, epochs):
  """A config that ends where the table does, after an early stop."""
  config = ml_collections.ConfigDict(config.to_dict())
  config.epochs = max(1, min(config.epochs, math.ceil(epochs)))
  return ml_collections.FrozenConfigDict(config)


def _recorder(config, examples):
  """Puts a recorder after an optimizer."""
  steps = _layca_training.make_problem(config, examples).steps_per_epoch

  def record(tx, layer_order):
    return optax.chain(
      tx,
      experiments_replay.record_rotations(steps * config.epochs, layer_order),
    )

  return record


def _write(run, curves, table) -> None:
  folder, config = run.workdir, run.config
  adaptive = curves[config.recorded]
  header = ['run', 'epochs to 99 % train', 'train %', 'test %']
  header += ['largest distance to the recorded rotation']
  rows = []
  for name, c in curves.items():
    reached = np.flatnonzero(c.arrays['train_accuracy'][:, 0] >= 0.99)
    count = min(len(c.arrays['rotation']), len(adaptive.arrays['rotation']))
    gap = np.abs(
      c.arrays['rotation'][:count, 0] - adaptive.arrays['rotation'][:count, 0]
    ).max()
    rows.append(
      [
        name,
        str(reached[0] + 1) if len(reached) else 'never',
        f'{100 * c.train_accuracy()[0]:.2f}',
        f'{100 * c.test_accuracy(config.best_validation)[0]:.2f}',
        f'{gap:.3f}',
      ]
    )
  print()
  _layca_results.print_table(header, rows)
  _layca_results.write_table(folder / 'summary.csv', header, rows)
  order = adaptive.layer_order
  _layca_results.save_arrays(
    folder / 'rotations.npz', {'tangents': table, 'layer_order': order}
  )
  labels = [
    config.recorded,
    f'its rotations, by {config.settings[config.replayed].optimizer.base}'
    ' + Layca',
    *list(curves)[2:],
  ]
  learning = figures.learning_curves(
    [
      (label, _layca_results.learning_curve(c, 0))
      for label, c in zip(labels, curves.values())
    ],
    title=config.task,
    loss='train_cross_entropy',
  )
  layers = figures.layer_rotation_panels(
    [
      (label, *c.rotation_curve(0)) for label, c in zip(labels, curves.values())
    ],
  )
  epochs = (1 + np.arange(len(table))) / adaptive.steps_per_epoch
  steps = figures.step_rotation(epochs, table, title=config.recorded)
  for name, figure in (
    ('learning', learning),
    ('layers', layers),
    ('steps', steps),
  ):
    _layca_results.save_figure(folder / f'{name}.png', figure)
  print(f'Table, rotations and figures are in {folder}.')


if __name__ == '__main__':
  _command_line.run(main)
