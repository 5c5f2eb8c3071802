r"""Fits one recommender and evaluates it, with an interval for every number.

Examples:
  # A file of user, item, rating: 80 % of each user for training.
  python scripts/recsys_evaluate.py --interactions=ratings.csv \
      --method=item_knn_cf_cosine --set=top_k=100 --set=shrink=50

  # Data, protocol and tuned parameters of the paper:
  python scripts/recsys_evaluate.py --study=cmn_citeulike_a --method=RP3beta \
      --published

  # Files of NCF, and what is left to the order of equal scores:
  python scripts/recsys_evaluate.py --train=music.train.rating \
      --test=music.test.rating --negatives=music.test.negative \
      --method=EASE_R --set=l2=500 --ties=expected

  # A network. Its epochs are chosen on validation data, and baselines, tuned
  # on them, too, are shown beside it:
  python scripts/recsys_evaluate.py --interactions=ratings.csv --method=mult_vae

The methods are those of the paper's tables; --method=list prints them with
their parameters. The number of epochs of iterative methods comes from early
stopping on validation data unless --set names it. Into --save_dir go
evaluation.json, and per_user.npz with each metric of each user, for tests of
significance.
"""

import dataclasses
import io
import time

import _command_line
import _recsys_data
import _results
import numpy as np
from absl import flags
from etils import epath

from jaxpapers import recsys
from jaxpapers.data import files
from jaxpapers.recsys import (
  methods,
  optimism,
  published,
  ranking,
  reproduction,
)

_METHOD = flags.DEFINE_string(
  'method', None, 'Name of the method, or list.', required=True
)
_SET = flags.DEFINE_multi_string('set', [], 'A parameter, as name=value.')
_PUBLISHED = flags.DEFINE_bool(
  'published', False, 'Take the tuned parameters that the paper prints.'
)
_CUTOFFS = flags.DEFINE_list(
  'cutoffs', None, 'Where lists are cut; by default 5, 10, 20, or the study.'
)
_TIES = flags.DEFINE_enum(
  'ties', 'index', ranking.LIST_TIES, 'What decides between equal scores.'
)
_EXCLUDE = flags.DEFINE_bool(
  'exclude_seen', True, 'Leave out what a user has in training.'
)
_BASELINES = flags.DEFINE_list(
  'baselines',
  None,
  'Tuned and evaluated beside the method; by default TopPopular, ItemKNN and'
  ' RP3beta beside a network, nothing beside a baseline. none for nothing.',
)
_TRIALS = flags.DEFINE_integer(
  'num_trials', 35, 'Configurations of a baseline.', lower_bound=1
)
_STARTUP = flags.DEFINE_integer(
  'num_random', 5, 'Of these at random, at the beginning.', lower_bound=1
)
_OPTIMISTIC = flags.DEFINE_bool(
  'best_test_epoch',
  False,
  'Also report the epochs that are best on TEST data, one for each metric: what'
  ' some released programs print. It is no evaluation.',
)
_SAVE_DIR = flags.DEFINE_string(
  'save_dir', None, 'Output folder, local or gs://; nothing by default.'
)
_recsys_data.define_data_flags()
_SHOWN = ('hit_rate', 'precision', 'recall', 'ndcg', 'map', 'mrr')


def main() -> int:
  """Fits, evaluates, writes; returns the exit code."""
  if _METHOD.value == 'list':
    for method in recsys.METHODS.values():
      names = ', '.join({**method.space, **method.fixed})
      print(f'{method.name}: {names or "no parameters"}')
    return 0
  parameters = _recsys_data.parse_parameters(_METHOD.value, _SET.value)
  name = methods.find(_METHOD.value).name
  problem = _recsys_data.load_problem()
  _recsys_data.print_repairs(problem)
  if _PUBLISHED.value:
    parameters = {**_published(problem, name), **parameters}
  try:
    goal = _goal(problem)
    baselines = _baseline_names(name, problem.data)
    reproduction.check_method(name, problem.data)
    chosen, validation = reproduction.choose_epochs(
      problem.data, name, parameters, seed=flags.FLAGS.seed, **goal
    )
    found = {name: _evaluate(problem, name, chosen, validation)}
    for other in baselines:
      found[other] = _baseline(problem, other, goal)
    if baselines:
      _compare(name, found, goal)
    optimistic = None
    if _OPTIMISTIC.value:
      optimistic = _best_test_epochs(problem, name, parameters, goal)
  except ValueError as error:
    raise _recsys_data.usage(error) from error
  if _SAVE_DIR.value:
    folder = epath.Path(_SAVE_DIR.value)
    _save(folder, name, found, optimistic)
  return 0


@dataclasses.dataclass
class _Result:
  """One method, evaluated."""

  parameters: dict
  validation: float | None
  evaluation: recsys.Evaluation
  means: dict
  seconds: dict


def _goal(problem):
  """What epochs and baselines are chosen by."""
  if problem.study is not None:
    return {'metric': problem.study.metric, 'cutoff': problem.study.cutoff}
  return {'metric': 'ndcg', 'cutoff': min(10, problem.data.train.num_items)}


def _baseline_names(name, data):
  if _BASELINES.value is None:
    return reproduction.baselines_of(name, data)
  if _BASELINES.value == ['none']:
    return ()
  names = [methods.find(other).name for other in _BASELINES.value]
  for other in names:
    reproduction.check_method(other, data)
  return tuple(other for other in dict.fromkeys(names) if other != name)


def _evaluate(problem, name, parameters, validation=None):
  """The last fit, and one look at test data."""
  data = problem.data
  began = time.perf_counter()
  model = methods.fit(
    name, data.train, parameters, features=data.features, seed=flags.FLAGS.seed
  )
  fitted = time.perf_counter()
  result = recsys.evaluate_model(
    model,
    data.train,
    data.test,
    _cutoffs(problem),
    ties=_TIES.value,
    exclude_seen=_EXCLUDE.value,
    **problem.options(),
  )
  done = time.perf_counter()
  seconds = {'fit': fitted - began, 'evaluate': done - fitted}
  means = result.means()
  _show(name, parameters, result, means, seconds)
  return _Result(parameters, validation, result, means, seconds)


def _baseline(problem, name, goal):
  """A baseline, tuned if it has something to tune."""
  data, parameters, value = problem.data, {}, None
  if methods.find(name).space and len(data.validation):
    storage = None
    if _SAVE_DIR.value:
      epath.Path(_SAVE_DIR.value).mkdir(parents=True, exist_ok=True)
      storage = str(epath.Path(_SAVE_DIR.value) / 'search.journal')
    search = reproduction.tune_method(
      data,
      name,
      name=f'{_recsys_data.fingerprint(data)}/{name}/{goal["metric"]}'
      f'@{goal["cutoff"]}',
      storage=storage,
      n_trials=_TRIALS.value,
      n_startup=min(_STARTUP.value, _TRIALS.value),
      seed=flags.FLAGS.seed,
      **goal,
    )
    parameters = reproduction.best_parameters(search.best)
    value = search.best.value
  print()
  return _evaluate(problem, name, parameters, value)


def _compare(name, found, goal):
  """The method against each baseline, on the same users."""
  metric = goal['metric']
  first = found[name].evaluation
  cutoff = goal['cutoff']
  if cutoff not in first.cutoffs:
    cutoff = first.cutoffs[-1]
  column = first.cutoffs.index(cutoff)
  vectors = {
    other: result.evaluation.per_user[metric][:, column]
    for other, result in found.items()
  }
  print(f'\n{metric}@{cutoff}, differences of {name} from tuned baselines:')
  if len(first.users) < 3:
    print('  fewer than three users: no tests.')
    return
  for other, (test, p) in recsys.compare_all(vectors, name).items():
    low, high = (-x for x in reversed(test.interval))
    print(
      f'  {other}: {-test.difference:+.4f} [{low:+.4f}, {high:+.4f}],'
      f' corrected p {p:.3g}'
    )


def _best_test_epochs(problem, name, parameters, goal):
  """What is reported by programs that look at test data."""
  data = problem.data
  found = optimism.best_test_epochs(
    name,
    data.train,
    data.test,
    parameters,
    metrics=tuple(dict.fromkeys((goal['metric'], 'hit_rate', 'ndcg'))),
    cutoff=goal['cutoff'],
    features=data.features,
    seed=flags.FLAGS.seed,
    ties=_TIES.value,
    exclude_seen=_EXCLUDE.value,
    **problem.options(),
  )
  print('\nOPTIMISTIC: epochs chosen on test data. This is no evaluation.')
  for metric, (epoch, value) in found.best.items():
    print(f'  {metric}@{goal["cutoff"]}: {value:.4f} in epoch {epoch}')
  return found


def _published(problem, name):
  if problem.study is None:
    raise _command_line.UsageError('--published needs --study')
  found = published.tuned(problem.study.tables[0]).get(name)
  if found is None:
    raise _command_line.UsageError(
      f'--published: the paper prints no parameters of {name} for'
      f' {problem.study.name}'
    )
  return found


def _cutoffs(problem):
  if _CUTOFFS.value is None:
    return problem.study.cutoffs if problem.study else (5, 10, 20)
  try:
    return sorted({int(text) for text in _CUTOFFS.value})
  except ValueError:
    raise _command_line.UsageError(
      f'--cutoffs={",".join(_CUTOFFS.value)}: expected whole numbers'
    ) from None


def _show(name, parameters, result, means, seconds):
  text = ', '.join(f'{k}={v}' for k, v in parameters.items())
  print(f'{name}{f" ({text})" if text else ""}')
  counts = [f'{v} {k.replace("_", " ")}' for k, v in result.report.items() if v]
  print('; '.join(counts) + '.')
  print('cutoff  ' + '  '.join(f'{m:>18}' for m in _SHOWN))
  for column, cutoff in enumerate(result.cutoffs):
    cells = []
    for metric in _SHOWN:
      values = result.per_user[metric][:, column]
      low, high = recsys.confidence_interval(values, resamples=1000)
      half = (high - low) / 2
      cells.append(f'{values.mean():.4f} ± {half:.4f}'.rjust(18))
    print(f'{cutoff:6d}  ' + '  '.join(cells))
  column = result.cutoffs[-1]
  print(
    f'Lists of {column}: '
    + ', '.join(f'{m} {means[m][column]:.4f}' for m in result.beyond)
  )
  rate = len(result.users) / max(seconds['evaluate'], 1e-9)
  print(
    f'Fitted in {seconds["fit"]:.2f} s, evaluated in'
    f' {seconds["evaluate"]:.2f} s ({rate:.0f} users per second).'
  )


def _save(folder, name, found, optimistic):
  contents = {
    other: {
      'method': other,
      'parameters': result.parameters,
      'validation': result.validation,
      'ties': _TIES.value,
      'metrics': result.means,
      'counts': dict(result.evaluation.report),
      'seconds': result.seconds,
    }
    for other, result in found.items()
  }
  content = contents.pop(name)
  if contents:
    content['baselines'] = contents
  if optimistic is not None:
    content['optimistic_best_test_epochs'] = optimistic.best
  _results.write_json(folder / 'evaluation.json', content)
  for other, result in found.items():
    buffer = io.BytesIO()
    evaluation = result.evaluation
    np.savez_compressed(
      buffer,
      users=evaluation.users,
      cutoffs=evaluation.cutoffs,
      **evaluation.per_user,
    )
    stem = '' if other == name else '_' + other.lower().replace(' ', '_')
    files.write_file(folder / f'per_user{stem}.npz', buffer.getvalue())
  print(f'evaluation.json and per_user.npz are in {folder}.')


if __name__ == '__main__':
  _command_line.run(main)
