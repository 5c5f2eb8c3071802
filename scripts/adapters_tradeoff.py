r"""Score over the number of trained parameters (adapter paper, figure 3, 4).

Examples:
  # Four tasks, adapters of several sizes against top layers, layer norms, the
  # head alone and everything; best learning rate by validation.
  python scripts/adapters_tradeoff.py --config.model=roberta-base \
      --config.data=~/data/crowdflower --workdir=tradeoff

  # The paper's grids for BERT-base, many machines on one study: start this on
  # each of them. The file lies where all see it; a database URL works, too.
  python scripts/adapters_tradeoff.py --config.model=bert-base-uncased \
      --config=scripts/configs/adapters/tradeoff.py:paper \
      --config.data=/shared/crowdflower --storage=/shared/tradeoff.journal

Each point of the grid (task, mode, size or number of layers, learning rate,
epochs) is run once by one of the machines, its seeds side by side. Scores that
are compared are means over seeds of the test split; settings are chosen on the
validation split.

Into --workdir go tradeoff.png (20th, 50th and 80th percentile over tasks of
the score minus that of full fine-tuning), TASK.png, selected.csv, trials.csv.

"""

import functools

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
from jaxpapers.adapters import figures, recipes, sweep

__doc__ += recipes.FIELDS + recipes.TRADEOFF_FIELDS

_training_command_line.define_flags('adapters/tradeoff.py', 'adapters_tradeoff')
flags.adopt_module_key_flags(_training_command_line)
_STORAGE = flags.DEFINE_string(
  'storage',
  None,
  'Study that machines share: a file, or the URL of a database. By default'
  ' WORKDIR/sweep.journal.',
)
_RETRY = flags.DEFINE_bool(
  'retry', False, 'Run again what a machine that died was running.'
)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """A step of the config's own task, mode and size, for compile_for_tpu."""
  return _adapters_training.make_job(config)


def main() -> int:
  """Runs what is left of the grid; draws what there is."""
  config = _training_command_line.read_config()
  _adapters_tasks.check(config)
  points = recipes.tradeoff_points(config)
  base = _adapters_tasks.load_base(config)
  run = _training_command_line.start()

  # One task after the other: its texts are encoded once.
  @functools.lru_cache(maxsize=1)
  def problem_of(task):
    setting = ml_collections.ConfigDict(config)
    setting.task = task
    return _adapters_tasks.load_problem(setting, base)

  def one(point):
    setting = recipes.setting_of(config, point)
    problem = problem_of(point['task'])
    trained = _adapters_training.train(setting, problem, mesh=run.mesh)
    rows = _adapters_evaluation.evaluate(trained, setting, problem)
    return summary(rows, problem)

  try:
    trials = sweep.run_sweep(
      one,
      points,
      storage=_STORAGE.value or str(run.workdir / 'sweep.journal'),
      name='tradeoff',
      retry=_RETRY.value,
      say=_training_command_line.say,
    )
  except _adapters_training.Interrupted as stop:
    _training_command_line.say(
      'Stopped. The point that was being run is left to a start with --retry.'
    )
    return run.exit_code(stop.result)
  if run.first:
    write(run.workdir, trials)
  return 0


def summary(rows, problem) -> dict:
  """What a study keeps of a point."""
  main_metric = problem.goal.metrics[0]
  test = 'test' if 'test' in problem.measured else 'valid'
  good = [row for row in rows if row['status'] == 'ok']
  valid = [row[f'valid_{main_metric}'] for row in good]
  return {
    'value': float(np.mean(valid)) if valid else float('nan'),
    'valid': valid,
    'test': [row[f'{test}_{main_metric}'] for row in good],
    'failed_seeds': len(rows) - len(good),
    'trained': rows[0]['trained'],
    'trained_in_encoder': rows[0]['trained_in_encoder'],
    'majority': problem.majority(test),
  }


def write(folder, trials) -> None:
  """Tables and figures of a study."""
  _results.write_csv(
    folder / 'trials.csv',
    [
      {**t.params, 'status': t.status, 'value': t.value, **t.results}
      for t in trials
    ],
  )
  chosen = sweep.select(trials, ('task', 'mode', 'size'))
  by_params = {tuple(t.params.items()): t for t in trials}
  rows, scores, counts = [], {}, {}
  for best in chosen:
    results = by_params[tuple(best.params.items())].results
    group = best.group
    rows.append(
      {
        **group,
        'learning_rate': best.params['learning_rate'],
        'epochs': best.params['epochs'],
        'trained': results['trained'],
        'trained_in_encoder': results['trained_in_encoder'],
        'validation': best.validation,
        'test': best.mean,
        'sem': best.sem,
        'median': best.median,
        'failed': best.failed,
        'majority': results['majority'],
      }
    )
    key = (group['mode'], group['size'])
    scores.setdefault(group['mode'], {}).setdefault(group['task'], {})[
      group['size']
    ] = best.mean
    counts[key] = results['trained']
  _results.show(rows)
  _results.write_csv(folder / 'selected.csv', rows)
  full = {task: s[0] for task, s in scores.get('full', {}).items()}
  curves = {}
  for mode, by_task in scores.items():
    common = {task: s for task, s in by_task.items() if task in full}
    if mode == 'full' or not common:
      continue
    sizes, table = sweep.percentile_curve(
      common, {task: full[task] for task in common}
    )
    curves[mode] = [
      (counts[mode, size], *table[:, i]) for i, size in enumerate(sizes)
    ]
  if curves:
    _results.save_figure(folder / 'tradeoff.png', figures.trade_off(curves))
  for task in full:
    of_task = {}
    for row in rows:
      if row['task'] == task:
        of_task.setdefault(row['mode'], []).append(
          (
            row['trained'],
            row['test'] - row['sem'],
            row['test'],
            row['test'] + row['sem'],
          )
        )
    _results.save_figure(
      folder / f'{task}.png', figures.trade_off(of_task, f'{task}: test score')
    )
  print(f'Tables and figures are in {folder}.')


if __name__ == '__main__':
  _command_line.run(main)
