r"""Training settings and how their layers rotate (Layca paper, section 5).

Examples:
  # SGD with and without L2, and with Layca, in miniature on MNIST:
  python scripts/layca_compare.py \
      --config=scripts/configs/layca/weight_decay.py:mnist-small \
      --config.data_dir=~/data/mnist --workdir=weight_decay_small

  # Adaptive methods with and without Layca, the paper's first task:
  python scripts/layca_compare.py \
      --config=scripts/configs/layca/adaptive.py:C10-CNN1 \
      --config.data_dir=~/data/cifar10 --workdir=adaptive_cnn1

  # One of the settings only, with another learning rate:
  python scripts/layca_compare.py \
      --config=scripts/configs/layca/warmup.py --config.only="('warmup05',)" \
      --config.settings.warmup05.learning_rates='(0.1,)' --workdir=warmup05

The settings differ in optimizer, L2, warmup or schedule, so each is a run of
its own, in a folder of its own below --workdir; runs that are finished are not
repeated. config.settings holds what each changes of the other fields.

Configs: weight_decay.py (E6), adaptive.py (E7), each with :TASK, one of
C10-CNN1, C10-CNN1-fast, C100-resnet, tiny-CNN, C10-CNN2, C100-WRN, mnist-small;
warmup.py (E9), with ResNet-110 on CIFAR-10 or warmup.py:mnist-small.

Into --workdir go summary.csv (test accuracies, and differences to
config.baseline), learning.png and layers.png, and for each setting SETTING/
with curves.npz, curves.csv, metrics.jsonl, TensorBoard files and checkpoints.

"""

import _command_line
import _layca_config
import _layca_results
import _layca_training
import _training_command_line
import ml_collections
from absl import flags

from jaxpapers import training
from jaxpapers.layca import figures

__doc__ += _layca_training.FIELDS

_training_command_line.define_flags(
  'layca/weight_decay.py:mnist-small', 'layca_compare'
)
flags.adopt_module_key_flags(_training_command_line)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """What a step of the first setting is; for scripts/compile_for_tpu.py."""
  return _layca_training.make_problem(
    _layca_config.with_setting(config, _names(config)[0])
  ).job


def main() -> int:
  """Trains, and draws."""
  config = _layca_config.read_config()
  names = _names(config)
  splits = _layca_training.load_data(config)
  run = _layca_config.start(config)
  curves = {}
  try:
    for name in names:
      _training_command_line.say(f'\n{name}')
      curves[name] = _layca_training.train_members(
        run,
        _layca_config.with_setting(run.config, name),
        run.workdir / name,
        splits,
      )
  except _layca_training.Interrupted as stop:
    return run.exit_code(stop.result)
  if run.first:
    _write(run, curves)
  return 0


def _names(config) -> list[str]:
  """The settings to train."""
  known = _layca_config.settings_of(config)
  for name in config.only:
    if name not in known:
      raise _command_line.UsageError(
        f'--config.only has {name!r}; expected some of {", ".join(known)}'
      )
  return list(config.only) or known


def _write(run, curves) -> None:
  folder, config = run.workdir, run.config
  best = config.best_validation
  scores = {
    name: float(c.test_accuracy(best).mean()) for name, c in curves.items()
  }
  baseline = scores.get(config.baseline)
  header = ['setting', 'learning rate', 'train %', 'test %']
  header += [f'against {config.baseline}'] * (baseline is not None)
  header += ['rotation: mean', 'first', 'last']
  rows = []
  for name, c in curves.items():
    distances = c.distances().mean(0)
    row = [
      name,
      ' '.join(
        dict.fromkeys(
          _layca_results.power_of_three(m['learning_rate']) for m in c.members
        )
      ),
      f'{100 * c.train_accuracy().mean():.2f}',
      f'{100 * scores[name]:.2f}',
    ]
    if baseline is not None:
      row.append(f'{100 * (scores[name] - baseline):+.2f}')
    row += [f'{distances.mean():.3f}', f'{distances[0]:.3f}']
    rows.append([*row, f'{distances[-1]:.3f}'])
  print()
  _layca_results.print_table(header, rows)
  for name, c in curves.items():
    if c.message:
      print(f'{name}: {c.message}')
  _layca_results.write_table(folder / 'summary.csv', header, rows)
  _layca_results.save_figure(
    folder / 'learning.png',
    figures.learning_curves(
      [
        (name, _layca_results.learning_curve(c, 0))
        for name, c in curves.items()
      ],
      title=config.task,
      loss='train_cross_entropy',
    ),
  )
  _layca_results.save_figure(
    folder / 'layers.png',
    figures.layer_rotation_panels(
      [
        (f'{name}: {100 * scores[name]:.2f} %', *c.rotation_curve(0))
        for name, c in curves.items()
      ],
    ),
  )
  print(f'Table and figures are in {folder}.')


if __name__ == '__main__':
  _command_line.run(main)
