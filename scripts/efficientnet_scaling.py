r"""Compound scaling: the paper's tables, its grid search, a study of one's own.

Examples:
  # Exact parameters and multiply-adds of the networks of tables 2, 3 and 7 and
  # figures 3 and 4, beside what the paper prints. Trains nothing.
  python scripts/efficientnet_scaling.py --table=table7

  # A base network scaled by depth, width, resolution and all three, at equal
  # multiply-adds, three seeds each, on CIFAR-10:
  python scripts/efficientnet_scaling.py --config.data=~/data/cifar10 \
      --workdir=study
  # The same with MobileNetV1, MobileNetV2 or ResNet-50:
  python scripts/efficientnet_scaling.py --config.data=~/data/cifar10 \
      --config.family=mobilenet_v2 --workdir=study_v2
  # In miniature, on a laptop:
  python scripts/efficientnet_scaling.py --config.data=~/data/cifar10 \
      --config=scripts/configs/efficientnet/scaling.py:study-small

  # The best alpha, beta, gamma at about twice the cost of the base:
  python scripts/efficientnet_scaling.py --config.data=~/data/cifar10 \
      --config=scripts/configs/efficientnet/scaling.py:grid --workdir=grid

Every network is trained once per seed. Start the same command on several
machines with one --workdir that all of them see: each takes what nobody has
taken. A training that was killed goes on from its last checkpoint.

Data: the official CIFAR-10 (archive or folder), or an .npz file of JPEGs.
The grid search chooses on --config.validation images held out of the training
set; the study reports the test set.

Into --workdir go results.csv and a figure, study.png or grid.png, beside runs/
(the record that workers share) and one folder of checkpoints for each training.

Config fields: experiment (study or grid), data, family (efficientnet,
mobilenet_v1, mobilenet_v2, resnet50), base (fields of the family's config),
factors (depth, width, resolution of the compound network), seeds, recipe
(fields of proxy.Recipe), grid (step, tol, cost, target), validation.

"""

import functools
import json

import _command_line
import _efficientnet_studies
import _results
import _training_command_line
import numpy as np
from absl import flags

from jaxpapers.data import CorruptFileError
from jaxpapers.efficientnet import (
  figures,
  history,
  proxy,
  scaling,
  scaling_tables,
)
from jaxpapers.efficientnet.config import ModelConfig
from jaxpapers.efficientnet.mobilenet import MobileNetConfig
from jaxpapers.efficientnet.resnet import ResNetConfig

_training_command_line.define_flags(
  'efficientnet/scaling.py', 'efficientnet_scaling'
)
flags.adopt_module_key_flags(_training_command_line)
_TABLE = flags.DEFINE_enum(
  'table',
  None,
  sorted(scaling_tables.TABLES),
  'Print this table of the paper with exact counts, and end.',
)
_RETRY = flags.DEFINE_bool(
  'retry', False, 'Run again what a machine that died was running.'
)
FAMILIES = {
  'efficientnet': (ModelConfig, {}),
  'mobilenet_v1': (MobileNetConfig, {'version': 1}),
  'mobilenet_v2': (MobileNetConfig, {'version': 2}),
  'resnet50': (ResNetConfig, {}),
}


def make_job(config):
  """The training step of the compound network, without data."""
  shape = (50_000, 1, 1, 3)
  data = proxy.Images(np.zeros(shape, np.uint8), np.zeros(50_000, int), 10)
  network = scaling.multiply(base_network(config, 10), *config.factors)
  recipe = proxy.Recipe(**config.recipe)
  return proxy.ProxyTrainer(network, data, data, recipe).job


def base_network(config, num_classes: int):
  """The base, with as many outputs as the data has classes."""
  if config.family not in FAMILIES:
    raise _command_line.UsageError(
      f'--config.family is {config.family!r}; expected one of'
      f' {", ".join(FAMILIES)}'
    )
  make, fields = FAMILIES[config.family]
  fields = {**fields, **dict(config.base), 'num_classes': num_classes}
  try:
    return make(**fields)
  except (TypeError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.base: {_command_line.one_line(error)}'
    ) from error


def networks_of(config, base) -> dict:
  """Name -> network of all that is trained."""
  try:
    if config.experiment == 'study':
      scaled = scaling.compound_and_single(base, *config.factors)
      return {'base': base, **scaled}
    if config.experiment == 'grid':
      points = scaling.grid(**config.grid, base=base)
      names = ('_'.join(f'{x:g}' for x in point.triple) for point in points)
      return {
        name: point.config for name, point in zip(names, points, strict=True)
      }
  except (TypeError, ValueError) as error:
    raise _command_line.UsageError(_command_line.one_line(error)) from error
  raise _command_line.UsageError(
    f"--config.experiment is {config.experiment!r}; expected 'study' or 'grid'"
  )


def main() -> int:
  """Runs what is left, and draws what there is."""
  if _TABLE.value:
    rows = scaling_tables.TABLES[_TABLE.value]()
    _results.show([row.row() for row in rows])
    return 0
  config = _training_command_line.read_config()
  try:
    recipe = proxy.Recipe(**config.recipe)
    train, test = proxy.load_images(config.data)
    if config.experiment == 'grid':
      train, test = train.split(config.validation)
    recipe.steps_per_epoch(len(train))  # Whether there is a batch.
  except (OSError, TypeError, ValueError, CorruptFileError) as error:
    raise _command_line.UsageError(_command_line.one_line(error)) from error
  base = base_network(config, train.num_classes)
  networks = networks_of(config, base)
  run = _training_command_line.start()
  _efficientnet_studies.check_run(run, recipe.batch_size)
  # Equal networks are trained once.
  unique = {scaling.network_key(n): name for name, n in networks.items()}
  runs = [(name, seed) for seed in config.seeds for name in unique.values()]
  record = history.FolderHistory(str(run.workdir / 'runs'), retry=_RETRY.value)
  record.open(json.loads(config.to_json_best_effort()))

  @functools.cache  # Each network is compiled once.
  def trainer_of(name):
    return proxy.ProxyTrainer(networks[name], train, test, recipe, run.mesh)

  while (index := record.claim(len(runs))) is not None:
    name, seed = runs[index]
    network = networks[name]
    try:
      accuracy = trainer_of(name)(
        seed, run.workdir / f'{name}-{seed}', console=run.console
      )
    except InterruptedError as stop:
      _training_command_line.say(str(stop))
      return 0
    macs = scaling.count_macs(network)
    info = {'name': name, 'seed': int(seed)}
    record.record(
      history.Trial(index, np.array([[index]]), macs, accuracy, accuracy, info)
    )
    _training_command_line.say(
      f'{name}, seed {seed}: {accuracy:.4f} with {macs:,} multiply-adds'
    )
  if run.first:
    write(run.workdir, config, networks, unique, record.finished())
  return 0


def write(folder, config, networks, unique, trials) -> None:
  """Table and figure of what is finished."""
  accuracies = {}
  for trial in trials:
    accuracies.setdefault(trial.info['name'], []).append(trial.accuracy)
  rows = []
  for name, network in networks.items():
    found = accuracies.get(unique[scaling.network_key(network)])
    if found:
      rows.append(
        scaling.StudyRow(
          name,
          network,
          scaling.count_macs(network),
          scaling.count_params(network),
          tuple(found),
        )
      )
  if not rows:
    print('Nothing is finished yet; other workers are at it.')
    return
  table = [
    {
      'network': row.name,
      'width': row.config.width,
      'depth': row.config.depth,
      'resolution': row.config.resolution,
      'params': row.params,
      'macs': row.macs,
      'accuracy': row.mean,
      'deviation': row.deviation,
      'seeds': len(row.accuracies),
    }
    for row in rows
  ]
  if config.experiment == 'grid':
    table.sort(key=lambda line: (-line['accuracy'], line['macs']))
  _results.show(table)
  _results.write_csv(folder / 'results.csv', table)
  if config.experiment == 'study':
    figure = figures.study(rows)
  else:
    base = scaling.count_macs(base_network(config, rows[0].config.num_classes))
    lines = []
    for line in table:
      alpha, beta, gamma = map(float, line['network'].split('_'))
      lines.append(
        {
          'alpha': alpha,
          'beta': beta,
          'gamma': gamma,
          'ratio': line['macs'] / base,
          'accuracy': line['accuracy'],
        }
      )
    figure = figures.grid(lines)
  name = f'{config.experiment}.png'
  _results.save_figure(folder / name, figure)
  print(f'results.csv and {name} are in {folder}.')


if __name__ == '__main__':
  _command_line.run(main)
