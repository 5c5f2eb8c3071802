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

The methods are those of the paper's tables; --method=list prints them with
their parameters. Into --save_dir go evaluation.json, and per_user.npz with each
metric of each user, for tests of significance.
"""

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
from jaxpapers.recsys import methods, published, ranking, reproduction

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
  'ties', 'index', ranking.TIES, 'What decides between equal scores.'
)
_EXCLUDE = flags.DEFINE_bool(
  'exclude_seen', True, 'Leave out what a user has in training.'
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
      print(f'{method.name}: {", ".join(method.space) or "no parameters"}')
    return 0
  parameters = _recsys_data.parse_parameters(_METHOD.value, _SET.value)
  name = methods.find(_METHOD.value).name
  problem = _recsys_data.load_problem()
  _recsys_data.print_repairs(problem)
  if _PUBLISHED.value:
    parameters = {**_published(problem, name), **parameters}
  data = problem.data
  try:
    reproduction.check_method(name, data)
    began = time.perf_counter()
    model = methods.fit(
      name,
      data.train,
      parameters,
      features=data.features,
      seed=flags.FLAGS.seed,
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
  except ValueError as error:
    raise _recsys_data.usage(error) from error
  done = time.perf_counter()
  seconds = {'fit': fitted - began, 'evaluate': done - fitted}
  means = result.means()
  _show(name, parameters, result, means, seconds)
  if _SAVE_DIR.value:
    _save(epath.Path(_SAVE_DIR.value), name, parameters, result, means, seconds)
  return 0


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


def _save(folder, name, parameters, result, means, seconds):
  _results.write_json(
    folder / 'evaluation.json',
    {
      'method': name,
      'parameters': parameters,
      'ties': _TIES.value,
      'metrics': means,
      'counts': dict(result.report),
      'seconds': seconds,
    },
  )
  content = io.BytesIO()
  np.savez_compressed(
    content, users=result.users, cutoffs=result.cutoffs, **result.per_user
  )
  files.write_file(folder / 'per_user.npz', content.getvalue())
  print(f'evaluation.json and per_user.npz are in {folder}.')


if __name__ == '__main__':
  _command_line.run(main)
