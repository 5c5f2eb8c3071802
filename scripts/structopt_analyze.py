r"""Compares topology optimization methods as the paper does.

Examples:
  # The paper's own numbers:
  python scripts/structopt_analyze.py

  # Runs of structopt_optimize, beside the paper's, and a folder of results:
  python scripts/structopt_analyze.py --runs=runs --save_dir=analysis

  # The losses that the authors published (all_losses.nc, 188 MB):
  python scripts/structopt_analyze.py --netcdf=all_losses.nc --save_dir=analysis

What is printed: the mean relative errors, on how many tasks each method is the
best or nearly so, and for own runs their compliances beside the paper's.
What is written with --save_dir: the distribution of the relative errors as a
figure (distribution.png) and as numbers (distribution.csv), and everything that
is printed (summary.json).

Definitions, as in Hoyer, Sohl-Dickstein & Greydanus (2019, arXiv:1909.04240).
A run's value is its lowest compliance up to evaluation --step. Typical: for
networks the median over seeds, for the others the start from a constant.
Ensemble: the lowest value of all runs. Relative error: the excess over the best
of the compared methods on the same task. Large: 2^15 elements or more.
"""

import json
import re

import _command_line
from absl import flags

from jaxpapers.structopt import analysis, figures, published, reports, runs
from jaxpapers.structopt.render import write_bytes

_RUNS = flags.DEFINE_string(
  'runs', None, 'Folder that structopt_optimize wrote (its --save_dir).'
)
_NETCDF = flags.DEFINE_string(
  'netcdf', None, "The authors' file of losses; local, netCDF-3."
)
_STEP = flags.DEFINE_integer(
  'step',
  None,
  'Last evaluation that counts; 1000, or what all --runs have if that is less.',
  lower_bound=1,
)
_METHODS = flags.DEFINE_list(
  'methods',
  None,
  'Methods to compare, separated by commas; by default those that are there.',
)
_PROBLEM_FILTER = flags.DEFINE_string(
  'problem_filter', '', 'Regular expression; only tasks that contain it.'
)
_TASKS = flags.DEFINE_bool(
  'tasks', False, 'Also print the compliances of every task.'
)
_SAVE_DIR = flags.DEFINE_string(
  'save_dir', None, 'Folder for figure and tables, local or gs://.'
)


def main() -> None:
  """Prints the comparison that the flags ask for."""
  if _RUNS.value is not None and _NETCDF.value is not None:
    raise _command_line.UsageError('Give --runs or --netcdf, not both.')
  try:
    re.compile(_PROBLEM_FILTER.value)
  except re.error as error:
    raise _command_line.UsageError(
      f'--problem_filter is not a regular expression: {error}'
    ) from error
  try:
    source, step, typical, ensemble = _scores()
  except ValueError as error:
    raise _command_line.UsageError(str(error)) from error
  if not typical.problems:
    raise _command_line.UsageError(f'There is nothing to compare in {source}.')
  print(f'{source}; lowest compliance up to evaluation {step}.')
  if _RUNS.value is not None:
    paper = published.paper_scores()
    print('\nCompliances beside those of the paper (evaluation 1000)\n')
    print(reports.beside_paper(typical, ensemble, paper))
  elif _TASKS.value:
    print('\nCompliances: typical, and the best of the ensemble\n')
    print(reports.compliances(typical, ensemble))
  whole = typical.complete(), ensemble.complete()
  if not whole[0].problems:
    print('\nNo task has runs of all methods, so methods cannot be compared.')
    return
  left_out = len(typical.problems) - len(whole[0].problems)
  if left_out:
    print(
      f'\n{left_out} tasks lack runs of some method and are left out below.'
    )
  print('\nMean relative error to the best of these methods\n')
  print(reports.means(*whole))
  if _RUNS.value is not None:
    _print_paper(*whole)
  print('\nNumber of tasks on which a method is the best (ties count for all)')
  print('or within so much of the best\n')
  print(reports.counts(*whole))
  if _SAVE_DIR.value is not None:
    _write(source, step, (typical, ensemble), whole)


def _print_paper(typical, ensemble) -> None:
  """The paper's mean relative errors on the tasks of these runs."""
  paper = published.paper_scores()
  tasks = [name for name in typical.problems if name in paper[0].problems]
  methods = [name for name in typical.methods if name in paper[0].methods]
  if len(methods) > 1 and len(tasks) == len(typical.problems):
    print('\nThe same from the paper, for these tasks and methods\n')
    print(reports.means(*(scores.select(tasks, methods) for scores in paper)))


def _scores():
  """Where the scores come from, their last evaluation, and the scores."""
  methods = _METHODS.value
  if _RUNS.value is None and _NETCDF.value is None:
    if _STEP.value not in (None, 1000):
      raise ValueError('--step: the paper prints evaluation 1000 only.')
    scores = [_pick(s, methods) for s in published.paper_scores()]
    return "The paper's appendix", 1000, *scores
  if _RUNS.value is not None:
    found = runs.find(_RUNS.value, _PROBLEM_FILTER.value)
    source = f'{len(found)} runs in {_RUNS.value}'
    step = _STEP.value or min([1000, *(run.steps for run in found)])
    short = [run for run in found if run.steps < step]
    if short:
      raise ValueError(
        f'--step={step} is beyond the end of {len(short)} runs, such as'
        f' {short[0].key} with {short[0].steps}.'
      )
  else:
    source, step = _NETCDF.value, _STEP.value or 1000
    found = (
      run
      for run in published.read_netcdf(_NETCDF.value)
      if re.search(_PROBLEM_FILTER.value, run.key.problem)
    )
  typical, ensemble = analysis.score(found, step)
  _check(methods, typical.methods)
  if methods:
    typical, ensemble = (s.select(methods=methods) for s in (typical, ensemble))
  return source, step, typical, ensemble


def _pick(scores, methods):
  """The part of the paper's scores that the flags choose."""
  _check(methods, scores.methods)
  names = [p for p in scores.problems if re.search(_PROBLEM_FILTER.value, p)]
  return scores.select(names, methods)


def _check(methods, there) -> None:
  for method in methods or ():
    if method not in there:
      raise ValueError(
        f'--methods: there is no {method!r} here, only {", ".join(there)}.'
        + runs.suggestion(method, there)
      )


def _write(source, step, scores, whole) -> None:
  """Figure and numbers into --save_dir."""
  from etils import epath

  folder = epath.Path(_SAVE_DIR.value)
  figure = reports.distribution_figure(*whole)
  figures.save_figure(folder / 'distribution.png', figure)
  text = analysis.distribution_csv(*whole)
  write_bytes(folder / 'distribution.csv', text.encode())
  numbers = {'source': source} | analysis.summary(*scores, step)
  text = json.dumps(numbers, indent=1)
  write_bytes(folder / 'summary.json', text.encode())
  print(f'\nFigure: {folder / "distribution.png"}')
  print(f'Numbers: {folder / "distribution.csv"}, {folder / "summary.json"}')


if __name__ == '__main__':
  _command_line.run(main)
