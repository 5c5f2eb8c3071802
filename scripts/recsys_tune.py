r"""Tunes a recommender on validation data; machines can share one search.

Examples:
  # The paper's protocol: 35 configurations, the first 5 at random.
  python scripts/recsys_tune.py --study=cmn_citeulike_a \
      --methods=item_knn_cf_cosine --save_dir=tuned

  # A file of one's own; start the same line on any number of machines:
  python scripts/recsys_tune.py --interactions=ratings.csv \
      --methods=RP3beta,EASE_R,iALS --metric=ndcg --cutoff=10 \
      --save_dir=/shared/tuned

What is tried is in SAVE_DIR/search.journal. A search that was killed goes on
with the same command and loses the configuration that it was at. Test data are
evaluated once at the end, with --evaluate_test, after a last fit on training
and validation data; never before.

Into --save_dir go search.journal and tuned.json: the best parameters, their
validation metric, and all trials.
"""

import json

import _command_line
import _recsys_data
import _results
from absl import flags
from etils import epath

from jaxpapers import recsys
from jaxpapers.recsys import methods, metrics, reproduction, search

_METHODS = flags.DEFINE_list('methods', None, 'Names.', required=True)
_TRIALS = flags.DEFINE_integer(
  'num_trials', 35, 'Configurations of each method.', lower_bound=1
)
_STARTUP = flags.DEFINE_integer(
  'num_random', 5, 'Of these at random, at the beginning.', lower_bound=1
)
_METRIC = flags.DEFINE_enum(
  'metric', None, metrics.METRICS, "What counts; by default ndcg or the study's"
)
_CUTOFF = flags.DEFINE_integer(
  'cutoff', None, "Its cutoff; by default 10 or the study's.", lower_bound=1
)
_MAX_EPOCHS = flags.DEFINE_integer(
  'max_epochs', None, 'Most epochs of iterative methods.', lower_bound=1
)
_STORAGE = flags.DEFINE_string(
  'storage',
  None,
  'Journal file that all machines see, or URL of a database; by default'
  ' search.journal in --save_dir.',
)
_RETRY = flags.DEFINE_bool(
  'retry', False, 'Try again what dead machines were at. Only if none runs.'
)
_TEST = flags.DEFINE_bool(
  'evaluate_test', False, 'Evaluate the best once on test data.'
)
_SAVE_DIR = flags.DEFINE_string('save_dir', 'recsys_tuned', 'Output folder.')
_recsys_data.define_data_flags()


def main() -> int:
  """Searches; returns the exit code."""
  for name in _METHODS.value:
    _recsys_data.parse_parameters(name, [])
  problem = _recsys_data.load_problem()
  _recsys_data.print_repairs(problem)
  folder = epath.Path(_SAVE_DIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  storage = _STORAGE.value or str(folder / 'search.journal')
  study, data = problem.study, problem.data
  metric = _METRIC.value or (study.metric if study else 'ndcg')
  cutoff = _CUTOFF.value or (study.cutoff if study else 10)
  options = reproduction.validation_options(data)
  content = _content(folder / 'tuned.json')
  # Another file, split or number of epochs is another search.
  source = (
    f'{study.name if study else "files"}/{_recsys_data.fingerprint(data)}'
  )
  if _MAX_EPOCHS.value:
    source += f'/{_MAX_EPOCHS.value}'
  for name in (methods.find(name).name for name in _METHODS.value):
    try:
      reproduction.check_method(name, data)
      objective = search.validation_objective(
        name,
        data.search_train,
        data.validation,
        metric=metric,
        cutoff=cutoff,
        features=data.features,
        seed=flags.FLAGS.seed,
        max_epochs=_MAX_EPOCHS.value,
        **options,
      )
      found = recsys.run_search(
        objective,
        recsys.search_space(name),
        n_trials=_TRIALS.value,
        n_startup=_STARTUP.value,
        storage=storage,
        name=f'{source}/{name}/{metric}@{cutoff}',
        seed=flags.FLAGS.seed,
        retry=_RETRY.value,
        say=lambda line, name=name: print(f'{name} {line}', flush=True),
      )
    except ValueError as error:
      raise _recsys_data.usage(error) from error
    best = reproduction.best_parameters(found.best)
    print(f'{name}: validation {metric}@{cutoff} {found.best.value:.4f}')
    content[name] = {
      'parameters': best,
      'metric': f'{metric}@{cutoff}',
      'validation': found.best.value,
      'trials': [
        {
          'parameters': dict(trial.parameters),
          'value': trial.value,
          **trial.results,
          **({'error': trial.error} if trial.error else {}),
        }
        for trial in found.trials
      ],
    }
    if _TEST.value:
      try:
        model = methods.fit(
          name, data.train, best, features=data.features, seed=flags.FLAGS.seed
        )
        result = recsys.evaluate_model(
          model,
          data.train,
          data.test,
          (cutoff,),
          **problem.options(),
        )
      except ValueError as error:
        raise _recsys_data.usage(error) from error
      content[name]['test'] = result.means()
      print(f'{name}: test {metric}@{cutoff} {result.mean(metric, cutoff):.4f}')
    _results.write_json(folder / 'tuned.json', content)
  print(f'tuned.json is in {folder}.')
  return 0


def _content(path):
  """What earlier runs found for other methods."""
  if not path.exists():
    return {}
  try:
    return dict(json.loads(path.read_text()))
  except ValueError as error:
    raise _command_line.UsageError(f'{path} is no JSON: {error}') from None


if __name__ == '__main__':
  _command_line.run(main)
