r"""How far adapters depend on their initialisation, or on the learning rate.

Examples:
  # Figure 6, right: standard deviations from 1e-7 to 1, three seeds each.
  python scripts/adapters_init_scale.py --config.model=roberta-base \
      --config.data=~/data/crowdflower --workdir=scales

  # Figure 7: learning rates from 2e-5 to 1e-3, of adapters and of everything.
  python scripts/adapters_init_scale.py \
      --config=scripts/configs/adapters/init_scale.py:lr \
      --config.model=roberta-base --config.data=~/data/crowdflower \
      --workdir=rates

Scales and seeds are members of one population: they differ in numbers only, so
that the whole sweep of a task is one program on one frozen tree. Members whose
loss becomes NaN are left out and counted.

Into --workdir go scales.png, scales.csv and, per task and mode, the numbers of
the run.

"""

import itertools
from typing import Any

import _adapters_evaluation
import _adapters_tasks
import _adapters_training
import _command_line
import _results
import _training_command_line
import ml_collections
import numpy as np
from absl import flags

from jaxpapers import training
from jaxpapers.adapters import figures, recipes

__doc__ += recipes.FIELDS + recipes.SCALE_FIELDS

_training_command_line.define_flags(
  'adapters/init_scale.py', 'adapters_init_scale'
)
flags.adopt_module_key_flags(_training_command_line)


_NAMES = {
  'full': 'everything',
  'adapter': 'adapters',
  'top_k': 'top layers',
  'layer_norm': 'layer norms',
  'head': 'head',
}


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """A step of the first task and mode, for scripts/compile_for_tpu.py."""
  check(config)
  setting = setting_of(config, config.tasks[0], config.modes[0])
  return _adapters_training.make_job(setting, members_of(config))


def setting_of(config: Any, task: str, mode: str) -> Any:
  """The config of one task and mode."""
  setting = ml_collections.ConfigDict(config)
  setting.task, setting.mode = task, mode
  return setting


def check(config: Any) -> None:
  """Raises UsageError for fields that make no sense."""
  if not config.tasks or not config.modes:
    raise _command_line.UsageError(
      '--config.tasks and --config.modes: expected one or more of each'
    )
  for mode in config.modes:
    _adapters_tasks.check(setting_of(config, config.tasks[0], mode))
  if config.vary == 'init_std' and tuple(config.modes) != ('adapter',):
    raise _command_line.UsageError(
      f'--config.modes is {tuple(config.modes)}: only adapters have an'
      " initialisation; expected ('adapter',), or init_scale.py:lr"
    )
  if not config.scales or min(config.scales) < 0:
    raise _command_line.UsageError(
      f'--config.scales is {tuple(config.scales)}; expected numbers of 0 or'
      ' more'
    )


def main() -> int:
  """Trains, draws."""
  config = _training_command_line.read_config()
  check(config)
  base = _adapters_tasks.load_base(config)
  run = _training_command_line.start()
  rows, curves = [], {}
  for task, mode in itertools.product(config.tasks, config.modes):
    setting = setting_of(config, task, mode)
    problem = _adapters_tasks.load_problem(setting, base)
    try:
      trained = _adapters_training.train(
        setting,
        problem,
        members_of(config),
        workdir=run.workdir / task / mode,
        mesh=run.mesh,
        console=run.console,
      )
    except _adapters_training.Interrupted as stop:
      return run.exit_code(stop.result)
    of_task = _adapters_evaluation.evaluate(trained, setting, problem)
    rows += [{'task': task, 'mode': mode, **row} for row in of_task]
    name = f'valid_{problem.goal.metrics[0]}'
    scores = np.array([row[name] for row in of_task])
    label = task if len(config.modes) == 1 else f'{task}, {_NAMES[mode]}'
    curves[label] = (
      list(config.scales),
      scores.reshape(len(config.scales), len(config.seeds)),
    )
  if run.first:
    _results.show(rows)
    _results.write_csv(run.workdir / 'scales.csv', rows)
    label = {
      'init_std': 'standard deviation of the initialisation',
      'learning_rate': 'learning rate',
    }[config.vary]
    figure = figures.scale_curves(curves, label)
    _results.save_figure(run.workdir / 'scales.png', figure)
    print(f'scales.png and scales.csv are in {run.workdir}.')
  return 0


def members_of(config) -> list[_adapters_training.Member]:
  """Each scale with each seed."""
  if config.vary == 'init_std':
    return [
      _adapters_training.Member(seed, config.learning_rate, scale)
      for scale in config.scales
      for seed in config.seeds
    ]
  return [
    _adapters_training.Member(seed, scale)
    for scale in config.scales
    for seed in config.seeds
  ]


if __name__ == '__main__':
  _command_line.run(main)
