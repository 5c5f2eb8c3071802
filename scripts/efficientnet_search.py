r"""Architecture search over MnasNet's space, as for EfficientNet-B0.

Examples:
  # Algorithms compared on a benchmark that is a formula; trains nothing.
  python scripts/efficientnet_search.py --workdir=synthetic \
      --config=scripts/configs/efficientnet/search.py:synthetic

  # Evolution on CIFAR-10, 32 architectures in one program:
  python scripts/efficientnet_search.py --config.data=~/data/cifar10 \
      --workdir=search
  # In miniature, on a laptop:
  python scripts/efficientnet_search.py --config.data=~/data/cifar10 \
      --config=scripts/configs/efficientnet/search.py:small --workdir=small

  # Several machines on one search: start this on each of them. A journal file
  # lies where all see it; a database URL works, too.
  python scripts/efficientnet_search.py --config.data=/shared/cifar10 \
      --workdir=/shared/search --storage=/shared/search.journal

A search can be killed and started again: it goes on from its record, a folder
in --workdir or a storage of optuna. Workers with the same --workdir or
--storage share the budget. The reward is accuracy (cost / target)^w on
held-out images; with alpha == beta the target does not change which network is
best, with alpha 0 and beta -1 it is a hard constraint.

Into --workdir go trials.csv, front.csv (networks that no other beats in both
accuracy and cost), best.json, front.png, progress.png (best reward so far) and
costs.png.

Config fields: algorithms (random, evolution, ppo), seeds, budget (trials of
each search), evaluator (population, standalone, synthetic), members (of a
population), objective (target, alpha, beta), evolution (population, sample),
ppo (fields of controller.PPO), data (CIFAR-10 or an .npz of JPEGs), validation
(training images held out), images (how many of the rest are trained on in the
search; 0 for all), space (fields of SearchSpace), recipe (fields of
proxy.Recipe), retrain (how many of the front are trained anew, alone, on all
training images and measured on the test set; 0 for none).

"""

import functools

import _command_line
import _efficientnet_studies
import _results
import _training_command_line
import jax
from absl import flags

from jaxpapers.data import CorruptFileError
from jaxpapers.efficientnet import figures, nas, proxy

_training_command_line.define_flags(
  'efficientnet/search.py', 'efficientnet_search'
)
flags.adopt_module_key_flags(_training_command_line)
_STORAGE = flags.DEFINE_string(
  'storage',
  None,
  'Storage of optuna that workers share, a journal file or the URL of a'
  ' database, instead of a folder in --workdir.',
)
_RETRY = flags.DEFINE_bool(
  'retry', False, 'Run again what a machine that died was running.'
)
ALGORITHMS = {
  'random': nas.random_search,
  'evolution': nas.regularized_evolution,
  'ppo': nas.ppo_search,
}


def main() -> int:
  """Searches, and draws."""
  config = _training_command_line.read_config()
  check(config)
  try:
    space, splits, recipe = load(config)
  except (OSError, TypeError, ValueError, CorruptFileError) as error:
    raise _command_line.UsageError(_command_line.one_line(error)) from error
  run = _training_command_line.start(free=('retrain',))
  _efficientnet_studies.check_run(run, splits and recipe.batch_size)
  objective = functools.partial(nas.reward, **config.objective)
  results = {}
  try:
    evaluate, batch_size = make_evaluator(
      config, space, splits, recipe, run.mesh
    )
  except ValueError as error:
    raise _command_line.UsageError(_command_line.one_line(error)) from error
  for algorithm in config.algorithms:
    options = dict(config[algorithm]) if algorithm in config else {}
    for seed in config.seeds:
      name = f'{algorithm}-{seed}'
      if _STORAGE.value:
        record = nas.OptunaHistory(_STORAGE.value, name, retry=_RETRY.value)
      else:
        folder = run.workdir / 'searches' / name
        record = nas.FolderHistory(str(folder), retry=_RETRY.value)
      say = _training_command_line.say if run.console else None
      try:
        results[algorithm, seed] = ALGORITHMS[algorithm](
          evaluate,
          config.budget,
          seed,
          space=space,
          objective=objective,
          history=record,
          batch_size=batch_size,
          say=say if config.evaluator != 'synthetic' else None,
          **options,
        )
      except InterruptedError as stop:
        _training_command_line.say(str(stop))
        return 0
      except ValueError as error:
        if 'holds another search' not in str(error):
          raise
        raise _command_line.UsageError(_command_line.one_line(error)) from error
  if run.first:
    write(run.workdir, config, space, results)
    if config.retrain and splits:
      retrain(run, config, space, splits, recipe, results)
  return 0


def check(config) -> None:
  """Refuses words that are none of ours."""
  for algorithm in config.algorithms:
    if algorithm not in ALGORITHMS:
      raise _command_line.UsageError(
        f'--config.algorithms has {algorithm!r}; expected some of'
        f' {", ".join(ALGORITHMS)}'
      )
  evaluators = ('population', 'standalone', 'synthetic')
  if config.evaluator not in evaluators:
    raise _command_line.UsageError(
      f'--config.evaluator is {config.evaluator!r}; expected one of'
      f' {", ".join(evaluators)}'
    )
  if not config.algorithms or not config.seeds:
    raise _command_line.UsageError(
      '--config.algorithms and --config.seeds need one entry or more'
    )
  if config.budget < 1 or min(config.seeds) < 0:
    raise _command_line.UsageError(
      f'--config.budget is {config.budget}, --config.seeds {config.seeds};'
      ' expected 1 or more, and seeds of 0 or more'
    )
  try:
    nas.RegularizedEvolution(0, **config.evolution)
    nas.PPO(0, **config.ppo)
    nas.reward(0.5, 1.0, **config.objective)
  except (TypeError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config: {_command_line.one_line(error)}'
    ) from error


def load(config):
  """Space, images (none for the formula) and recipe."""
  recipe = proxy.Recipe(**config.recipe)
  if config.evaluator == 'synthetic':
    return nas.SearchSpace(**config.space), None, recipe
  everything, test = proxy.load_images(config.data)
  train, held = everything.split(config.validation)
  if config.images:
    # The last ones: files need not be in random order, splits mix classes.
    train = train.split(config.images)[1]
  space = nas.SearchSpace(**config.space, num_classes=test.num_classes)
  return space, (train, held, everything, test), recipe


def make_evaluator(config, space, splits, recipe, mesh):
  """What maps tokens to accuracies, and how many it takes at once."""
  if config.evaluator == 'synthetic':
    return nas.SyntheticBenchmark(space), None
  train, held = splits[:2]
  if config.evaluator == 'standalone':
    return nas.StandaloneTrainer(space, train, held, recipe, mesh=mesh), None
  trainer = nas.PopulationTrainer(
    space, config.members, train, held, recipe, mesh=mesh
  )
  return trainer, config.members


def write(folder, config, space, results) -> None:
  """Tables and figures."""
  results = {key: result for key, result in results.items() if result.trials}
  if not results:
    print('Nothing is finished yet; other workers are at it.')
    return
  rows, fronts = [], []
  for (algorithm, seed), result in results.items():
    search = {'algorithm': algorithm, 'seed': seed}
    rows += [search | as_row(space, trial) for trial in result.trials]
    fronts += [search | as_row(space, t) for t in result.pareto_front()]
  _results.write_csv(folder / 'trials.csv', rows)
  _results.write_csv(folder / 'front.csv', fronts)
  summary = [
    {
      'algorithm': algorithm,
      'seed': seed,
      'trials': len(result.trials),
      'reward': result.best.score,
      'accuracy': result.best.accuracy,
      'macs': result.best.macs,
    }
    for (algorithm, seed), result in results.items()
  ]
  _results.show(summary)
  best = max(results.values(), key=lambda result: result.best.score).best
  _results.write_json(
    folder / 'best.json',
    best.to_json() | {'blocks': describe(space, best.tokens)},
  )
  one, many = {}, {}
  for (algorithm, _), result in results.items():
    one.setdefault(algorithm, result)
    many.setdefault(algorithm, []).append(result)
  target = config.objective.target
  save = _results.save_figure
  save(folder / 'front.png', figures.search_front(one, target))
  save(folder / 'costs.png', figures.cost_histogram(one, target))
  if len({len(r.trials) for r in results.values()}) == 1:
    save(folder / 'progress.png', figures.search_progress(many))
  print(f'Tables and figures are in {folder}.')


def as_row(space, trial) -> dict:
  """A trial as a line of a table."""
  return {
    'index': trial.index,
    'reward': trial.score,
    'accuracy': trial.accuracy,
    'macs': trial.macs,
    'params': space.params(trial.tokens),
    'tokens': ''.join(map(str, trial.tokens.ravel().tolist())),
  }


def describe(space, tokens) -> list[str]:
  """The blocks of an architecture in words."""
  return [
    f'{block.layers} x {block.op} {block.kernel}x{block.kernel},'
    f' {block.filters} filters, stride {block.stride}, se {block.se_ratio:g},'
    f' skip {block.skip}'
    for block in space.decode(tokens)
  ]


def retrain(run, config, space, splits, recipe, results) -> None:
  """Trains the best of the front alone, and measures the test set."""
  everything, test = splits[2:]
  front = {}
  for result in results.values():
    for trial in result.pareto_front():
      front[trial.tokens.tobytes()] = trial
  chosen = sorted(front.values(), key=lambda trial: -trial.score)
  alone = nas.StandaloneTrainer(space, everything, test, recipe, mesh=run.mesh)
  rows = []
  for trial in chosen[: config.retrain]:
    jax.clear_caches()  # Each network is a program of its own.
    accuracy = alone(trial.tokens)
    rows.append(as_row(space, trial) | {'test_accuracy': accuracy})
  _results.show(rows)
  _results.write_csv(run.workdir / 'retrained.csv', rows)


if __name__ == '__main__':
  _command_line.run(main)
