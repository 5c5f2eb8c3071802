r"""Layer rotation and first-layer features on MNIST (Layca paper, section 6).

Examples:
  # The paper's figure: four learning rates, 100 epochs, one after the other
  # (minutes on two CPU cores). --config.members_at_once=0 trains them in one
  # program, for GPUs. The folder holds the official MNIST files.
  python scripts/layca_mnist.py --config.data_dir=~/data/mnist \
      --workdir=layca_mnist

  # With the paper's curves, digitised, behind ours:
  python scripts/layca_mnist.py --config.data_dir=~/data/mnist \
      --paper_curves=tests/testdata/layca/mnist_rotation_curves_digitised.json

  # Another grid; a run that was stopped goes on where it was:
  python scripts/layca_mnist.py --config.learning_rates='(0.1, 0.03, 0.01)' \
      --config.drops='(90,)' --config.epochs=95 --workdir=other

A perceptron with one hidden layer is trained by SGD with Layca. Every learning
rate reaches 100 % on the training examples; what differs is how far the first
layer turns from its random initialisation, and with it what its units look at
and how well the network generalises.

Into --workdir go curves.npz and curves.csv (training, test, rotation of each
layer after the first step of every epoch), rotation.png (first layer),
layers.png (all layers), features.png (incoming weights of hidden units before
and after) and features.npz, beside config.json, metrics.jsonl, TensorBoard
files and checkpoints.

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
from jaxpapers.layca import equilibrium, features, figures, sweep

__doc__ += _layca_training.FIELDS

_training_command_line.define_flags('layca/mnist.py', 'layca_mnist')
flags.adopt_module_key_flags(_training_command_line)
_PAPER = flags.DEFINE_string(
  'paper_curves',
  '',
  'JSON file of published curves: {"3^-2": [distance of each epoch, ...], ...}',
)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """What a step is, without data; for scripts/compile_for_tpu.py."""
  return _layca_training.make_problem(config).job


def main() -> int:
  """Trains, and draws."""
  paper = _read_paper(_PAPER.value)
  config = _layca_config.read_config()
  _layca_config.refuse_settings(config)
  _check_units(config)
  splits = _layca_training.load_data(config)
  run = _layca_config.start(config)
  try:
    curves = _layca_training.train_members(
      run,
      run.config,
      run.workdir,
      splits,
      extras=lambda *args: _features(run.config, *args),
    )
  except _layca_training.Interrupted as stop:
    return run.exit_code(stop.result)
  if run.first:
    _write(run, curves, paper)
  return 0


def _check_units(config) -> None:
  """Raises UsageError for units that the hidden layer does not have."""
  hidden = config.model.get('hidden')
  hidden = hidden[0] if isinstance(hidden, tuple) and hidden else hidden
  units = config.get('units', ())
  if not isinstance(hidden, int) or not units:
    raise _command_line.UsageError(
      '--config has no hidden units to draw; expected a perceptron and units,'
      ' as in layca/mnist.py'
    )
  if min(units) < 0 or max(units) >= hidden:
    raise _command_line.UsageError(
      f'--config.units is {tuple(units)}; expected numbers from 0 to'
      f' {hidden - 1}'
    )


def _features(config, problem, initial, state):
  """Pictures of hidden units before and after, [members, units, 28, 28]."""
  first = problem.layer_order[0].split('/')

  def images(params):
    for name in first:
      params = params[name]
    kernels = np.asarray(params).reshape(-1, *params.shape[-2:])
    return np.stack(
      [features.incoming_images(k, tuple(config.units)) for k in kernels]
    )

  return {
    'features_before': images(initial),
    'features_after': images(state.params),
  }


def _write(run, curves, paper) -> None:
  folder, members = run.workdir, curves.members
  labels = [
    _layca_results.power_of_three(member['learning_rate']) for member in members
  ]
  titles = [
    f'ρ(0) = {_layca_results.mathematical(member["learning_rate"])}'
    for member in members
  ]
  runs, expected, rows = [], {}, []
  drops = _layca_config.member_drops(run.config, members)
  values = sweep.hyperparameters(
    members, curves.layer_order, drops, run.config.factor
  )
  for index, label in enumerate(labels):
    epochs, distances = curves.rotation_curve(index)
    runs.append((titles[index], epochs, distances[:, 0]))
    expected[titles[index]] = _noise(curves, values, index)
    row = [
      label,
      f'{100 * curves.train_accuracy()[index]:.2f}',
      f'{100 * curves.test_accuracy()[index]:.2f}',
      *(f'{d:.4f}' for d in curves.distances()[index]),
      f'{_correlation(curves.arrays["features_before"][index]):.3f}',
      f'{_correlation(curves.arrays["features_after"][index]):.3f}',
    ]
    if paper:
      row.append(_difference(distances[1:, 0], paper.get(label)))
    rows.append(row)
  header = ['rho(0)', 'train %', 'test %']
  header += [f'rotation of {path}' for path in curves.layer_order]
  header += ['smoothness before', 'after']
  header += ['largest difference to the paper'] * bool(paper)
  _layca_results.print_table(header, rows)
  _layca_results.write_table(folder / 'summary.csv', header, rows)
  reference = {
    title: _padded(paper[label], len(runs[0][1]))
    for title, label in zip(titles, labels)
    if label in paper
  }
  _layca_results.save_arrays(
    folder / 'features.npz',
    {
      name: curves.arrays[name]
      for name in ('features_before', 'features_after')
    },
  )
  rotation = figures.rotation_by_setting(
    runs,
    reference=reference,
    expected=expected,
    title='Rotation of the first layer',
  )
  layers = figures.layer_rotation_panels(
    [(run[0], *curves.rotation_curve(index)) for index, run in enumerate(runs)],
  )
  pictures = figures.feature_rows(
    [
      ('before training', curves.arrays['features_before'][0]),
      *(
        (
          f'{titles[index]}\nrotation'
          f' {curves.distances()[index, 0]:.2f}\ntest'
          f' {100 * curves.test_accuracy()[index]:.2f} %',
          curves.arrays['features_after'][index],
        )
        for index in np.argsort([m['learning_rate'] for m in members])
      ),
    ],
    list(run.config.units),
  )
  for name, figure in (
    ('rotation', rotation),
    ('layers', layers),
    ('features', pictures),
  ):
    _layca_results.save_figure(folder / f'{name}.png', figure)
  print(f'Curves, features and figures are in {folder}.')


def _noise(curves, values, index):
  """What gradients that know nothing would do, on the epochs of the curve."""
  steps = curves.arrays['rotation_step']
  schedule = sweep.member_schedule(
    values['rate'][index],
    values['factor'][index],
    values['drops'][index],
    curves.steps_per_epoch,
  )
  noise = np.asarray(equilibrium.noise_rotation_curve(schedule, int(steps[-1])))
  return np.concatenate([[0.0], noise[steps - len(noise) - 1]])


def _correlation(images) -> float:
  return float(np.mean(features.neighbour_correlation(images)))


def _difference(distances, published) -> str:
  if published is None:
    return ''
  count = min(len(distances), len(published))
  gap = np.abs(distances[:count] - published[:count])
  return f'{np.nanmax(gap):.4f}'


def _padded(values, length):
  # What was measured after the first step of epoch k stands at k + 1.
  out = np.full(length, np.nan)
  count = min(len(values), length - 1)
  out[1 : 1 + count] = values[:count]
  return out


def _read_paper(path: str) -> dict[str, np.ndarray]:
  if not path:
    return {}
  try:
    stored = json.loads(epath.Path(path).read_text())
    return {name: np.array(curve, float) for name, curve in stored.items()}
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise _command_line.UsageError(
      f'--paper_curves={path} cannot be read: {error}'
    ) from error


if __name__ == '__main__':
  _command_line.run(main)
