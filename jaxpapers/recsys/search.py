"""Tuning: a study of optuna that any number of machines work on.

The protocol of the paper: 35 configurations, the first 5 at random, judged on
validation data only. A configuration that fails counts as done; the search
goes on. What is done is in a journal file: a killed search loses the trial that
it was at.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxpapers.recsys import evaluation, methods, optional
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.early_stopping import EarlyStopping
from jaxpapers.training import shared_studies

_SLOT, _STATUS, _VALUE = 'slot', 'status', 'value'
# What a configuration may fail with, and the search goes on.
FAILURES = (
  ValueError,
  ArithmeticError,
  MemoryError,
  jax.errors.JaxRuntimeError,
)


@dataclasses.dataclass(frozen=True)
class Trial:
  """A configuration, tried.

  Attributes:
    slot: Its place in the search, from 0.
    parameters: Its values.
    value: Validation metric; None if it failed.
    results: What else the objective returned, such as 'epochs'.
    error: Why it failed.
  """

  slot: int
  parameters: Mapping[str, Any]
  value: float | None
  results: Mapping[str, Any]
  error: str = ''


@dataclasses.dataclass(frozen=True)
class Search:
  """A finished search.

  Attributes:
    best: The best trial.
    trials: All, in the order of slots.
  """

  best: Trial
  trials: tuple[Trial, ...]


def search_space(name: str) -> dict[str, Any]:
  """The paper's ranges of a method.

  Args:
    name: Of the method; see `methods.find`.

  Returns:
    Parameter -> distribution of optuna.
  """
  distributions = _optuna().distributions
  space = {}
  for key, values in methods.find(name).space.items():
    if values.kind == 'choice':
      space[key] = distributions.CategoricalDistribution(values.values)
    elif values.kind == 'int':
      space[key] = distributions.IntDistribution(
        int(values.low), int(values.high), log=values.log
      )
    else:
      space[key] = distributions.FloatDistribution(
        values.low, values.high, log=values.log
      )
  return space


def run_search(
  objective: Callable[[Mapping[str, Any]], Any],
  space: Mapping[str, Any],
  n_trials: int = 35,
  n_startup: int = 5,
  storage: str | None = None,
  *,
  name: str = 'recsys',
  seed: int = 0,
  retry: bool = False,
  say: Callable[[str], None] | None = None,
) -> Search:
  """Searches a space, together with others that do the same.

  Args:
    objective: Maps parameters to the validation metric, larger is better, or to
      a dictionary with it under 'value'. NaN, ValueError, ArithmeticError,
      MemoryError and errors of the device (out of memory) count as a failed
      trial.
    space: Parameter -> distribution of optuna.
    n_trials: Configurations in all, of all workers together.
    n_startup: Random ones at the beginning.
    storage: A journal file that all workers see (also 'journal:PATH'), or the
      URL of a database. None keeps it in memory.
    name: Of the study.
    seed: Of the search. One worker that is not disturbed always does the same,
      killed and started again or not.
    retry: Free the slots of all running trials: only when no worker runs. Slots
      of dead workers of this machine are freed in any case.
    say: Called with a line for each trial.

  Returns:
    The best trial and all others.

  Raises:
    ValueError: Numbers are out of range, another search has this name, or all
      trials failed.
    ImportError: optuna is missing.
  """
  optuna = _optuna()
  if n_trials < 1 or n_startup < 1:
    raise ValueError(
      f'n_trials is {n_trials}, n_startup {n_startup}; expected 1 or more.'
    )
  described = {
    key: optuna.distributions.distribution_to_json(value)
    for key, value in space.items()
  }
  if not space:
    n_trials = 1  # Nothing to choose.
  study = optuna.create_study(
    storage=shared_studies.open_storage(storage),
    study_name=name,
    direction='maximize',
    load_if_exists=True,
  )
  known = study.user_attrs.get('space')
  if known is None:
    study.set_user_attr('space', described)
  elif known != described:
    raise ValueError(
      f'the study {name!r} in {storage} searches another space. Choose another'
      ' name or storage.'
    )
  state = optuna.trial.TrialState
  shared_studies.void_dead(study, retry, _value_of)
  while True:
    if not _slots_left(study, state, n_trials):
      # Somebody may have died in the meantime.
      if shared_studies.void_dead(study, values=_value_of):
        continue
      break
    trial = shared_studies.ask(study)
    # Numbers are given out once: this is a slot of its own, unless there is a
    # hole before it, which a dead worker left. Holes come first, so that a
    # search that was killed goes the way of one that was not.
    left = _slots_left(study, state, n_trials, trial.number)
    slot = min((s for s in left if s < trial.number), default=trial.number)
    trial.set_user_attr(_SLOT, slot)
    if slot not in left or _taken(study, state, trial.number, slot):
      study.tell(trial, state=state.FAIL)
      continue
    study.sampler = optuna.samplers.TPESampler(
      seed=zlib.crc32(f'{seed} {name} {slot}'.encode()),
      n_startup_trials=n_startup,
      constant_liar=True,
    )
    parameters = {
      key: _suggest(trial, key, value) for key, value in space.items()
    }
    _run(objective, study, trial, slot, parameters, state, say)
  trials = _read(study, n_trials)
  good = [trial for trial in trials if trial.value is not None]
  if not good:
    raise ValueError(
      f'all {len(trials)} trials failed; the first: {trials[0].error}'
      if trials
      else 'no trial is finished yet: others are at work on all of them.'
    )
  return Search(max(good, key=lambda trial: trial.value), tuple(trials))


def _suggest(trial, key, distribution):
  if hasattr(distribution, 'choices'):
    return trial.suggest_categorical(key, distribution.choices)
  bounds = key, distribution.low, distribution.high
  if type(distribution).__name__ == 'IntDistribution':
    return trial.suggest_int(*bounds, log=distribution.log)
  return trial.suggest_float(*bounds, log=distribution.log)


def _run(objective, study, trial, slot, parameters, state, say):
  """One trial: the objective, and what became of it into the storage."""
  error, results = '', {}
  try:
    results = objective(dict(parameters))
    if not isinstance(results, Mapping):
      results = {'value': results}
    results = dict(results)
    value = float(results.pop('value'))
    if not math.isfinite(value):
      error = f'the metric is {value}'
  except FAILURES as raised:
    value, error = float('nan'), ' '.join(str(raised).split())
  trial.set_user_attr('parameters', parameters)
  trial.set_user_attr('results', results)
  trial.set_user_attr('error', error)
  if not error:
    trial.set_user_attr(_VALUE, value)
  trial.set_user_attr(_STATUS, 'failed' if error else 'ok')
  if error:
    study.tell(trial, state=state.FAIL)
  else:
    study.tell(trial, value)
  if say is not None:
    text = ', '.join(f'{k}={_short(v)}' for k, v in parameters.items())
    outcome = f'failed: {error}' if error else f'{value:.4f}'
    say(f'{slot + 1}: {text}: {outcome}')


def read_search(
  storage: str, name: str = 'recsys', n_trials: int = 35
) -> list[Trial]:
  """Finished trials of a search, of all workers.

  Raises:
    ValueError: There is no such study.
  """
  optuna = _optuna()
  try:
    study = optuna.load_study(
      study_name=name, storage=shared_studies.open_storage(storage)
    )
  except KeyError:
    raise ValueError(f'{storage} has no study {name!r}.') from None
  return _read(study, n_trials)


def _read(study, n_trials):
  found: dict[int, Trial] = {}
  for trial in study.get_trials(deepcopy=False):
    attributes = trial.user_attrs
    if _STATUS not in attributes or attributes[_SLOT] >= n_trials:
      continue
    found.setdefault(
      attributes[_SLOT],
      Trial(
        attributes[_SLOT],
        attributes['parameters'],
        # Before the study is told, and in older studies, it is in one place.
        attributes.get(_VALUE, trial.value)
        if attributes[_STATUS] == 'ok'
        else None,
        attributes['results'],
        attributes['error'],
      ),
    )
  return [found[slot] for slot in sorted(found)]


def _value_of(trial):
  """What a trial came to whose worker died before it told the study."""
  finished = _STATUS in trial.user_attrs
  return trial.user_attrs.get(_VALUE) if finished else None


def _slots_left(study, state, n_trials, ignore=None):
  left = set(range(n_trials))
  for trial in study.get_trials(deepcopy=False):
    if trial.number == ignore:
      continue
    slot = trial.user_attrs.get(_SLOT)
    running = trial.state == state.RUNNING
    if slot is not None and (running or _STATUS in trial.user_attrs):
      left.discard(slot)
    elif running:  # Asked, but not yet told which slot.
      left.discard(trial.number)
  return left


def _taken(study, state, number, slot):
  """Whether a trial that came earlier has this slot."""
  return any(
    trial.number < number
    and trial.user_attrs.get(_SLOT) == slot
    and (trial.state == state.RUNNING or _STATUS in trial.user_attrs)
    for trial in study.get_trials(deepcopy=False)
  )


def _short(value):
  return f'{value:.4g}' if isinstance(value, float) else value


def _optuna() -> Any:
  optuna = optional.load('optuna')
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return optuna


def validation_objective(
  name: str,
  train: Interactions,
  validation: Interactions,
  *,
  metric: str = 'ndcg',
  cutoff: int = 10,
  features: Any = None,
  seed: int = 0,
  max_epochs: int | None = None,
  **options: Any,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """What a search calls: fits on training, judges on validation data.

  There is no way to give it test data. Iterative methods stop early, and report
  the number of epochs for the last fit.

  Args:
    name: Of the method.
    train: Training data.
    validation: Validation items.
    metric: What counts.
    cutoff: Where lists are cut.
    features: For content and hybrid methods.
    seed: For random methods.
    max_epochs: At most so many, instead of the paper's number.
    **options: Of `evaluate_model`: negatives, exclude_seen, allow_overlap.

  Returns:
    A function of parameters that returns 'value', 'epochs' and the epochs of
    earlier parts of a fit (see `EarlyStopping.phase`).
  """
  method = methods.find(name)

  def objective(parameters: Mapping[str, Any]) -> dict[str, Any]:
    monitor, given = None, dict(parameters)
    if method.iterative:
      monitor = EarlyStopping(
        train, validation, metric=metric, cutoff=cutoff, **options
      )
      if max_epochs is not None:
        # Of NeuMF's pretrained parts, too.
        for key in {'epochs', *method.fixed}:
          if key.startswith('epochs'):
            given[key] = max_epochs
    model = methods.fit(
      name, train, given, features=features, seed=seed, monitor=monitor
    )
    # Parts too short for a look: the last fit is as long as this one was.
    chosen = {k: v for k, v in given.items() if k.startswith('epochs')}
    if monitor is not None:
      chosen |= monitor.epochs()
      if monitor.best is not None:
        return {'value': monitor.best_value, **chosen}
    result = evaluation.evaluate_model(
      model, train, validation, (cutoff,), metrics=(metric,), **options
    )
    return {'value': result.mean(metric, cutoff), **chosen}

  return objective
