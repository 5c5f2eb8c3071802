r"""Sweeps of learning rates and depth multipliers (Layca paper, section 4).

Examples:
  # E1, E2 and E4 in miniature, on MNIST, on a laptop: one program each.
  python scripts/layca_sweep.py --config.data_dir=~/data/mnist \
      --config=scripts/configs/layca/rho.py:mnist-small --workdir=rho_small
  python scripts/layca_sweep.py --config.data_dir=~/data/mnist \
      --config=scripts/configs/layca/alpha.py:mnist-small --workdir=alpha_small

  # The paper's alpha sweep on CIFAR-10, four members at a time:
  python scripts/layca_sweep.py --config.data_dir=~/data/cifar10 \
      --config=scripts/configs/layca/alpha.py:C10-CNN1 \
      --config.members_at_once=4 --workdir=alpha_cnn1

  # A grid of one's own, three seeds each:
  python scripts/layca_sweep.py --config.data_dir=~/data/mnist \
      --config.learning_rates='(0.1, 0.05, 0.02)' --config.seeds='(0, 1, 2)'

The members of a sweep differ in numbers only (learning rate, multipliers,
seed), which are part of the optimizer's state: the training step is vmapped
over them, and one compilation trains the whole grid. On a mesh with an axis
'population' the members are split over its devices.

Configs: alpha.py (E1), rho.py (E2), speed.py (E3), sgd.py (E4), first_epoch.py
(E5); each with :TASK, one of C10-CNN1, C10-CNN1-fast, C100-resnet, tiny-CNN,
C10-CNN2, C100-WRN, mnist-small.

Into --workdir go curves.npz, curves.csv, summary.csv, accuracy.png (test
accuracy over what was varied), layers.png (rotation of all layers) and
learning.png, beside config.json, metrics.jsonl, TensorBoard files, checkpoints.

"""

import json

import _command_line
import _layca_config
import _layca_results
import _layca_training
import _training_command_line
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from jaxpapers import training
from jaxpapers.layca import figures

__doc__ += _layca_training.FIELDS

_training_command_line.define_flags('layca/rho.py:mnist-small', 'layca_sweep')
flags.adopt_module_key_flags(_training_command_line)
_PAPER = flags.DEFINE_string(
  'paper_accuracies',
  '',
  'JSON file of published accuracies to print beside ours: {"alpha": {task:'
  ' [[alpha, accuracy], ...]}, "rho0_exp": {task: [[i, accuracy], ...]}}, where'
  ' the learning rate is 3^i.',
)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """What a step is, without data; for scripts/compile_for_tpu.py."""
  members = _layca_config.all_members(config)
  if config.members_at_once:
    members = members[: config.members_at_once]
  return _layca_training.make_problem(config, members=members).job


def main() -> int:
  """Trains, and draws."""
  paper = _read_paper(_PAPER.value)
  config = _layca_config.read_config()
  _layca_config.refuse_settings(config)
  splits = _layca_training.load_data(config)
  run = _layca_config.start(config)
  try:
    curves = _layca_training.train_members(run, run.config, run.workdir, splits)
  except _layca_training.Interrupted as stop:
    return run.exit_code(stop.result)
  if run.first:
    _write(run, curves, paper)
  return 0


def _write(run, curves, paper) -> None:
  folder, config = run.workdir, run.config
  accuracy = curves.test_accuracy(config.best_validation)
  distances = curves.distances()
  published = [_published(paper, config, m) for m in curves.members]
  header = ['learning rate', 'alpha', 'seed', 'train %', 'test %']
  header += ['rotation: mean', 'first', 'last'] + ['paper %'] * any(published)
  rows = []
  for index, member in enumerate(curves.members):
    row = [
      _layca_results.power_of_three(member['learning_rate']),
      f'{member["alpha"]:+g}',
      str(member['seed']),
      f'{100 * curves.train_accuracy()[index]:.2f}',
      f'{100 * accuracy[index]:.2f}',
      f'{distances[index].mean():.3f}',
      f'{distances[index, 0]:.3f}',
      f'{distances[index, -1]:.3f}',
    ]
    if any(published):
      value = published[index]
      row.append('' if value is None else f'{100 * value:.2f}')
    rows.append(row)
  _layca_results.print_table(header, rows)
  if curves.message:
    print(curves.message)
  _layca_results.write_table(folder / 'summary.csv', header, rows)
  labels = [_label(member, curves.members) for member in curves.members]
  _layca_results.save_figure(
    folder / 'layers.png',
    figures.layer_rotation_panels(
      [
        (
          f'{label}: {100 * accuracy[index]:.2f} %',
          *curves.rotation_curve(index),
        )
        for index, label in enumerate(labels)
      ],
    ),
  )
  _layca_results.save_figure(
    folder / 'learning.png',
    figures.learning_curves(
      [
        (label, _layca_results.learning_curve(curves, index))
        for index, label in enumerate(labels)
      ],
      title=config.task,
    ),
  )
  figure = _accuracy_figure(curves, accuracy, published)
  if figure is not None:
    _layca_results.save_figure(folder / 'accuracy.png', figure)
  print(f'Curves, table and figures are in {folder}.')


def _accuracy_figure(curves, accuracy, published):
  """Test accuracy over whichever of the two numbers was varied."""
  rates = np.array([m['learning_rate'] for m in curves.members])
  alphas = np.array([m['alpha'] for m in curves.members])
  seeds = np.array([m['seed'] for m in curves.members])
  if len(set(alphas)) > 1:
    values, label, logarithmic = alphas, 'α', False
  elif len(set(rates)) > 1:
    values, label, logarithmic = rates, 'initial learning rate', True
  else:
    return None
  lines = []
  for seed in dict.fromkeys(seeds.tolist()):
    chosen = np.flatnonzero(seeds == seed)
    chosen = chosen[np.argsort(values[chosen])]
    name = 'here' if len(set(seeds.tolist())) == 1 else f'seed {seed}'
    lines.append((name, values[chosen], accuracy[chosen]))
  reference = None
  known = [i for i, value in enumerate(published) if value is not None]
  if known:
    known = sorted(known, key=lambda i: values[i])
    reference = ('paper', values[known], [published[i] for i in known])
  return figures.accuracy_by_setting(
    lines, xlabel=label, logarithmic=logarithmic, reference=reference
  )


def _label(member, members) -> str:
  parts = []
  if len({m['learning_rate'] for m in members}) > 1 or len(members) == 1:
    parts.append(f'rate {_layca_results.mathematical(member["learning_rate"])}')
  if len({m['alpha'] for m in members}) > 1:
    parts.append(f'α = {member["alpha"]:+g}')
  if len({m['seed'] for m in members}) > 1:
    parts.append(f'seed {member["seed"]}')
  return ', '.join(parts)


def _published(paper, config, member) -> float | None:
  """The paper's accuracy of a member, where it is known."""
  if not paper or not config.optimizer.layca or config.optimizer.base != 'sgd':
    return None
  exponent = np.log(member['learning_rate']) / np.log(3)
  if abs(exponent + 3) < 1e-6:
    pairs, value = paper.get('alpha', {}), member['alpha']
  elif member['alpha'] == 0:
    pairs, value = paper.get('rho0_exp', {}), exponent
  else:
    return None
  for at, accuracy in pairs.get(config.task, ()):
    if abs(at - value) < 1e-6:
      return accuracy
  return None


def _read_paper(path: str):
  if not path:
    return {}
  try:
    return json.loads(epath.Path(path).read_text())
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--paper_accuracies={path} cannot be read: {error}'
    ) from error


if __name__ == '__main__':
  _command_line.run(main)
