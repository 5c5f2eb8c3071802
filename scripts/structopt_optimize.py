r"""Designs structures by topology optimization with a neural network.

Examples:
  # One task with the paper's method, then with its best rival:
  python scripts/structopt_optimize.py --problem=mbb_beam_96x32_0.5 \
      --methods=cnn-lbfgs,mma --steps=100 --save_dir=runs

  # A quick look at every task of at most 64 x 64 elements:
  python scripts/structopt_optimize.py --quick_run --steps=50 --save_dir=runs

  # All bridges of 64 x 64 elements, five seeds at once:
  python scripts/structopt_optimize.py --problem_filter='bridge.*_64x64' \
      --methods=cnn-lbfgs --num_seeds=5 --batch=5 --save_dir=runs

  # A column of the paper's tables, on machines for long computations:
  python scripts/structopt_optimize.py --save_dir=gs://bucket/runs \
      --config=scripts/configs/structopt/typical.py

  # A bridge by four methods in a few minutes, with a picture:
  python scripts/structopt_optimize.py --demo --save_dir=demo_output

Every run leaves four files in <save_dir>/<task>/: its losses and settings
(.json), its designs (.npz), the best design as the paper shows it (.png) and
how it came about (.gif). Start the same command again after an interruption:
finished runs are skipped, and nothing half written is left behind.

On several machines start the same command on each of them, with --distributed
on a TPU pod or under Slurm, elsewhere with --coordinator_address,
--num_processes and --process_id. They share the runs and write into one folder.

The tasks are those of Hoyer, Sohl-Dickstein & Greydanus (2019,
arXiv:1909.04240). See structopt_analyze and structopt_gallery for what to do
with the results.
"""

import ast
import contextlib
import re
import sys
import time

import _command_line
import _structopt_demo
import jax
from absl import flags
from ml_collections import config_flags

from jaxpapers import __version__
from jaxpapers.structopt import (
  analysis,
  arguments,
  methods,
  problems,
  published,
  reports,
  runs,
  solvers,
  sweep,
)

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'File with values for the flags below; those given explicitly win.',
)
_PROBLEM = flags.DEFINE_list(
  'problem', [], 'Names of tasks, separated by commas.'
)
_PROBLEM_FILTER = flags.DEFINE_string(
  'problem_filter',
  None,
  'Regular expression; tasks whose name contains it. "." takes all 116.',
)
_QUICK_RUN = flags.DEFINE_bool(
  'quick_run', False, 'Only tasks of at most 64 x 64 elements.'
)
_METHODS = flags.DEFINE_list(
  'methods',
  ['cnn-lbfgs'],
  f'Methods, separated by commas, out of {", ".join(methods.METHODS)}.',
)
_NUM_SEEDS = flags.DEFINE_integer(
  'num_seeds',
  1,
  'Runs of each method with a network, from seeds 0, 1, ...; the paper has'
  ' 101.',
  lower_bound=1,
)
_BASELINE_SEEDS = flags.DEFINE_integer(
  'baseline_seeds',
  0,
  'Runs of each other method that start from the network of a seed, besides the'
  ' one that starts from a constant. The paper has 101.',
  lower_bound=0,
)
_STEPS = flags.DEFINE_integer(
  'optimization_steps',
  1000,
  'Index of the last evaluation of the compliance.',
  lower_bound=1,
)
flags.DEFINE_alias('steps', 'optimization_steps')
_CNN_KWARGS = flags.DEFINE_string(
  'cnn_kwargs',
  '',
  'Arguments of the network, as "latent_size=64;conv_filters=(32,16,1)".',
)
_DYNAMIC_DEPTH = flags.DEFINE_bool(
  'dynamic_depth', False, 'Choose the depth of the network by the task.'
)
_SOLVER = flags.DEFINE_enum(
  'solver', 'auto', solvers.SOLVERS, 'Solver of the linear systems.'
)
_BACKEND = flags.DEFINE_enum(
  'backend',
  'device',
  ['device', 'scipy'],
  "Where L-BFGS runs; scipy is the host's L-BFGS-B, which the paper used.",
)
_BATCH = flags.DEFINE_integer(
  'batch',
  1,
  'Runs of equal method and size to make at once, split over the devices of'
  ' this machine. Batches leave no animations.',
  lower_bound=1,
)
_FRAMES = flags.DEFINE_integer(
  'frames', 30, 'Pictures in an animation; 0 for none.', lower_bound=0
)
_SAVE_DIR = flags.DEFINE_string(
  'save_dir', 'structopt_output', 'Folder for the results, local or gs://.'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Make finished runs again instead of skipping them.'
)
_DEMO = flags.DEFINE_bool(
  'demo', False, 'Design a bridge by four methods and draw them side by side.'
)
_command_line.define_machine_flags()


def main() -> int:
  """Makes the runs that the flags ask for; returns the exit code."""
  _take_config()
  if _DEMO.value:
    _structopt_demo.choose(flags.FLAGS)
  names = _select_problems()
  settings = sweep.Settings(
    steps=_STEPS.value,
    cnn_kwargs=_parse_cnn_kwargs(_CNN_KWARGS.value),
    dynamic_depth=_DYNAMIC_DEPTH.value,
    backend=_BACKEND.value,
    solver=_SOLVER.value,
  )
  _check_methods(names, settings)
  keys = runs.plan(
    names, _METHODS.value, _NUM_SEEDS.value, _BASELINE_SEEDS.value
  )
  _command_line.use_compilation_cache(flags.FLAGS.compilation_cache)
  shared = _join_processes()
  index = jax.process_index() if shared else 0
  mine = runs.share(keys, index, jax.process_count()) if shared else keys
  todo = mine
  if not _OVERWRITE.value and not _DEMO.value:
    try:
      todo = sweep.pending(mine, _SAVE_DIR.value, settings)
    except ValueError as error:
      raise _command_line.UsageError(f'{error} (--overwrite)') from error
  say = _Speaker(f'[process {index}] ' if shared else '', len(todo))
  say(
    f'jaxpapers {__version__}, {jax.local_device_count()}'
    f' {jax.default_backend()} device(s): {len(todo)} of {len(mine)} runs to'
    f' make in {_SAVE_DIR.value}'
  )
  failures = sweep.execute(
    todo,
    _SAVE_DIR.value,
    settings,
    batch_size=_BATCH.value,
    frames=_FRAMES.value,
    keep_frames=_DEMO.value,
    progress=say.bar,
    finished=say.finished,
  )
  if shared:
    # Returns when all processes have got here.
    jax.distributed.shutdown()
  if index == 0:
    _print_table(keys, settings)
    if _DEMO.value and not failures:
      _structopt_demo.draw(keys, _SAVE_DIR.value)
  for failure in failures:
    print(f'FAILED {failure.key}: {failure.reason}', file=sys.stderr)
  return 1 if failures else 0


def _take_config() -> None:
  """Sets the flags that are in the config file and not on the command line."""
  if _CONFIG.value is None:
    return
  try:
    config = dict(_CONFIG.value)
  except OSError as error:  # The file was read when flags were parsed.
    name = flags.FLAGS['config'].config_filename
    raise _command_line.UsageError(f'--config: cannot read {name!r}') from error
  for name, value in config.items():
    if name not in flags.FLAGS:
      raise _command_line.UsageError(
        f'The config file sets {name!r}, which is no flag.'
        + runs.suggestion(name, flags.FLAGS)
      )
    if flags.FLAGS[name].using_default_value:
      try:
        setattr(flags.FLAGS, name, value)
      except flags.IllegalFlagValueError as error:
        raise _command_line.UsageError(str(error)) from error


def _select_problems() -> list[str]:
  """Names of the tasks that the flags choose."""
  everything = list(problems.PROBLEMS)
  for name in _PROBLEM.value:
    if name not in problems.PROBLEMS:
      raise _command_line.UsageError(
        f'--problem: there is no task {name!r}.'
        + (
          runs.suggestion(name, everything)
          or ' The names are like mbb_beam_96x32_0.5.'
        )
      )
  names = _PROBLEM.value
  if _PROBLEM_FILTER.value is not None:
    try:
      pattern = re.compile(_PROBLEM_FILTER.value)
    except re.error as error:
      raise _command_line.UsageError(
        f'--problem_filter={_PROBLEM_FILTER.value!r} is not a regular'
        f' expression: {error}'
      ) from error
    matching = [name for name in everything if pattern.search(name)]
    if not matching:
      raise _command_line.UsageError(
        f'--problem_filter={_PROBLEM_FILTER.value!r} matches none of the'
        f' {len(everything)} tasks.'
        + runs.suggestion(_PROBLEM_FILTER.value, everything)
      )
    names = names + [name for name in matching if name not in names]
  elif not names and _QUICK_RUN.value:
    names = everything
  if not names:
    raise _command_line.UsageError(
      'Which tasks? Give --problem, --problem_filter, --quick_run or --demo'
    )
  if _QUICK_RUN.value:
    names = [name for name in names if _cells(name) <= 64 * 64]
    if not names:
      raise _command_line.UsageError(
        '--quick_run leaves none of the chosen tasks: all have more than'
        ' 64 x 64 elements'
      )
  return names


def _cells(name: str) -> int:
  problem = problems.get_problem(name)
  return problem.nelx * problem.nely


def _parse_cnn_kwargs(text: str) -> dict:
  """'a=1;b=(2,3)' as a dictionary."""
  kwargs = {}
  for item in filter(None, (part.strip() for part in text.split(';'))):
    name, equals, value = item.partition('=')
    try:
      if not equals:
        raise ValueError('there is no =')
      kwargs[name.strip()] = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError) as error:
      raise _command_line.UsageError(
        f'--cnn_kwargs: cannot read {item!r} ({error}); expected'
        ' name=value;name=value with numbers or tuples.'
      ) from error
  return kwargs


def _check_methods(names, settings: sweep.Settings) -> None:
  """Refuses unknown methods, and networks that fit none of the tasks."""
  if len(set(_METHODS.value)) < len(_METHODS.value):
    raise _command_line.UsageError('--methods names a method twice.')
  if not _METHODS.value:
    raise _command_line.UsageError('--methods is empty.')
  for method in _METHODS.value:
    if method not in methods.METHODS:
      raise _command_line.UsageError(
        f'--methods: there is no method {method!r}.'
        + (
          runs.suggestion(method, methods.METHODS)
          or f' Choose from {", ".join(methods.METHODS)}.'
        )
      )
  if not any(method in runs.NETWORK_METHODS for method in _METHODS.value):
    if not _BASELINE_SEEDS.value:
      return
  seen = set()
  for name in names:
    problem = problems.get_problem(name)
    if (problem.nelx, problem.nely) in seen:
      continue
    seen.add((problem.nelx, problem.nely))
    try:
      parsed = arguments.parse_settings(
        problem,
        'cnn-lbfgs',
        settings.cnn_kwargs,
        settings.dynamic_depth,
        None,
        0.01,
        {},
      )
      jax.eval_shape(parsed.design().init, jax.random.key(0))
    except (TypeError, ValueError) as error:
      raise _command_line.UsageError(
        f'--cnn_kwargs does not fit {name}: {error}'
      ) from error


def _join_processes() -> bool:
  """Starts jax.distributed if flags or environment ask for it."""
  if _DEMO.value and _command_line.cluster_is_given():
    raise _command_line.UsageError('--demo runs in one process.')
  # Whoever is ready early waits for the others' last runs.
  return _command_line.join_processes(30 * 24 * 3600)


class _Speaker:
  """Tells how far the runs are: bars on a terminal, lines everywhere."""

  def __init__(self, prefix: str, total: int):
    self._prefix, self._total, self._number = prefix, total, 0
    self._began = time.perf_counter()

  def __call__(self, text: str) -> None:
    from tqdm import tqdm

    tqdm.write(self._prefix + text, file=sys.stdout)
    sys.stdout.flush()

  @contextlib.contextmanager
  def bar(self, group):
    """A bar for the evaluations of runs that are made together."""
    from tqdm import tqdm

    label = str(group[0]) if len(group) == 1 else f'{len(group)} runs'
    total = len(group) * (_STEPS.value + 1)
    with tqdm(total=total, desc=label, unit='eval', disable=None) as bar:

      def show(progress):
        bar.set_postfix_str(
          f'best {min(run.best_loss for run in progress):.6g}', refresh=False
        )
        bar.update(sum(run.evaluations for run in progress) - bar.n)

      yield show

  def finished(self, key, result) -> None:
    """One line for a run."""
    self._number += 1
    where = f'{self._number}/{self._total} {key}:'
    if isinstance(result, sweep.Failure):
      self(f'{where} FAILED')
      return
    self(
      f'{where} {result.best_loss:.6g} after {result.evaluations} evaluations,'
      f' {time.perf_counter() - self._began:.0f} s in all'
    )


def _print_table(keys, settings: sweep.Settings) -> None:
  """Our compliances beside the paper's."""
  done = [run for key in keys if (run := runs.load(_SAVE_DIR.value, key))]
  if not done:
    return
  scores = analysis.score(done, settings.steps)
  print()
  print(reports.beside_paper(*scores, published.paper_scores()))
  print(
    f'\nLowest compliance in {settings.steps} evaluations; paper: in 1000.'
    ' Typical is the median over\nseeds for networks, the start from a constant'
    ' for the others.'
  )


if __name__ == '__main__':
  _command_line.run(main)
