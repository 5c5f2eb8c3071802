"""Sweeps that several machines share, and what is read off them.

A study of optuna lies in a database or a file that all machines see. The
number of a trial, which the storage gives out once, is its place in the grid:
no two machines run the same one, and whatever order they come in, the grid is
complete at the end.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpapers.training import shared_studies

FAILED = 'failed'
_POINT = 'point'
# Seconds that a machine waits for another one to write down what it runs.
_PATIENCE = 10.0


@dataclasses.dataclass(frozen=True)
class Trial:
  """One point of a grid, run.

  Attributes:
    point: Its place in the grid.
    params: Its values.
    value: Validation score, None if it failed.
    results: What else the run returned.
    status: 'ok' or 'failed'.
  """

  point: int
  params: Mapping[str, Any]
  value: float | None
  results: Mapping[str, Any]
  status: str


def grid_points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
  """All combinations of some values, the last name changing fastest.

  Args:
    grid: Name -> values.

  Returns:
    One dictionary for each.

  Raises:
    ValueError: If a name has no values.

  Example:
    >>> grid_points({'size': (8, 64), 'learning_rate': (1e-3,)})[1]
    {'size': 64, 'learning_rate': 0.001}
  """
  for name, values in grid.items():
    if not len(values):
      raise ValueError(f'grid has no values for {name!r}.')
  return [
    dict(zip(grid, values, strict=True))
    for values in itertools.product(*grid.values())
  ]


def run_sweep(
  run: Callable[[Mapping[str, Any]], Mapping[str, Any]],
  points: Sequence[Mapping[str, Any]],
  *,
  storage: str | None = None,
  name: str = 'adapters',
  retry: bool = False,
  say: Callable[[str], None] | None = None,
) -> list[Trial]:
  """Runs what is left of a grid, together with others who do the same.

  A run whose score is NaN, as a learning rate of the paper's sweep may well
  give, has failed, and is not tried again.

  Args:
    run: Maps a point to its results: 'value', the validation score (larger is
      better), and whatever else JSON can hold.
    points: The grid, the same on every machine.
    storage: Where the study is: a file, 'sweep.journal', on a file system that
      the machines share, or the URL of a database, 'sqlite:///sweep.db',
      'mysql://...'. None keeps it in memory.
    name: Of the study in the storage.
    retry: Whether points that are being run are run again: of machines that
      died. Only when no other machine is at work.
    say: Called with a line for each trial.

  Returns:
    All trials of the grid that are finished, in its order; those of other
    machines too.

  Raises:
    ImportError: If optuna is missing.
    ValueError: If there are no points, or the study has another grid.
  """
  optuna = _optuna()
  if not points:
    raise ValueError('points is empty; expected one point or more.')
  given: dict[str, Any] = {}
  study = optuna.create_study(
    storage=shared_studies.open_storage(storage),
    sampler=shared_studies.given_sampler(given),
    study_name=name,
    direction='maximize',
    load_if_exists=True,
  )
  described = [_describe(point) for point in points]
  # For optuna's own tools: each parameter with all its values.
  choices = {
    key: list(dict.fromkeys(point[key] for point in described))
    for key in described[0]
  }
  known = study.user_attrs.get('points')
  if known is None:
    study.set_user_attr('points', described)
  elif known != described:
    raise ValueError(
      f'the study {name!r} in {storage} has another grid, of {len(known)}'
      f' points; this one has {len(points)}. Choose another name or storage.'
    )
  state = optuna.trial.TrialState
  if retry:
    for trial in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
      study.tell(trial.number, state=state.FAIL)
  while _points_left(study, len(points)):
    trial = study.ask()
    point = _claim(study, trial.number, len(points))
    if point is None:
      study.tell(trial, state=state.FAIL)
      continue
    trial.set_user_attr(_POINT, point)
    given.clear()
    given.update(described[point])
    for key in given:
      trial.suggest_categorical(key, choices[key])
    results = dict(run(points[point]))
    value = float(results.pop('value'))
    good = math.isfinite(value)
    trial.set_user_attr('results', results)
    if good:
      # Again: whoever is killed before the study is told has written it down.
      trial.set_user_attr('value', value)
    trial.set_user_attr('status', 'ok' if good else FAILED)
    if good:
      study.tell(trial, value)
    else:
      study.tell(trial, state=state.FAIL)
    if say is not None:
      text = ', '.join(f'{k}={v}' for k, v in described[point].items())
      say(f'{text}: {value:.4f}' if good else f'{text}: {FAILED}')
  return read_sweep(points, study)


def _points_left(study: Any, points: int, own: int | None = None) -> set[int]:
  """Points that are neither finished nor being run by somebody else.

  Args:
    study: A study of optuna.
    points: Points of the grid.
    own: Number of a trial that is not counted.

  Returns:
    The points.
  """
  from optuna.trial import TrialState

  left = set(range(points))
  for trial in study.get_trials(deepcopy=False):
    if trial.number == own:
      continue
    point = trial.user_attrs.get(_POINT)
    if trial.state == TrialState.RUNNING:
      # A trial that has just been asked for has not yet written down its
      # point: it is its number.
      if point is None and trial.number < points:
        point = trial.number
      left.discard(point)
    elif trial.user_attrs.get('status') is not None:
      left.discard(point)
  return left


def _claim(study: Any, number: int, points: int) -> int | None:
  """The point that a trial may run, None if there is none for it.

  The first `points` numbers are the grid; later ones fill its holes, in the
  order of their numbers: each waits for those before it to say what they took.

  Args:
    study: A study of optuna.
    number: Number of the trial, which is running.
    points: Points of the grid.

  Returns:
    The point.
  """
  from optuna.trial import TrialState

  if number < points:
    return number if number in _points_left(study, points, number) else None
  deadline = time.monotonic() + _PATIENCE
  while time.monotonic() < deadline:
    undecided = any(
      trial.number >= points and _POINT not in trial.user_attrs
      for trial in study.get_trials(
        deepcopy=False, states=(TrialState.RUNNING,)
      )
      if trial.number < number
    )
    if not undecided:
      break
    time.sleep(0.02)
  return min(_points_left(study, points, number), default=None)


def read_sweep(points: Sequence[Mapping[str, Any]], study: Any) -> list[Trial]:
  """Finished trials of a study, in the order of the grid.

  Args:
    points: The grid.
    study: A study of optuna, as `run_sweep` makes it.

  Returns:
    The trials; the first of those at one point.
  """
  found = {}
  for trial in study.get_trials(deepcopy=False):
    status = trial.user_attrs.get('status')
    if status is None:
      continue
    point = trial.user_attrs[_POINT]
    found.setdefault(
      point,
      Trial(
        point,
        dict(points[point]),
        _value_of(trial) if status == 'ok' else None,
        trial.user_attrs['results'],
        status,
      ),
    )
  return [found[point] for point in sorted(found)]


def _value_of(trial):
  # Older studies have no attribute.
  return trial.user_attrs.get('value', trial.value)


@dataclasses.dataclass(frozen=True)
class Selection:
  """The best setting of a group, chosen on validation scores.

  Attributes:
    group: What the group has in common.
    params: The setting.
    validation: Its mean validation score.
    scores: Test score of each seed.
    failed: Trials of the group that failed.
  """

  group: Mapping[str, Any]
  params: Mapping[str, Any]
  validation: float
  scores: tuple[float, ...]
  failed: int

  @property
  def mean(self) -> float:
    """Mean test score over seeds."""
    return float(np.mean(self.scores))

  @property
  def median(self) -> float:
    """Median test score: the best of several seeds would be biased upward."""
    return float(np.median(self.scores))

  @property
  def sem(self) -> float:
    """Standard error of the mean; 0 of one seed."""
    if len(self.scores) < 2:
      return 0.0
    return float(np.std(self.scores, ddof=1) / math.sqrt(len(self.scores)))


def select(
  trials: Sequence[Trial], group_by: Sequence[str], scores: str = 'test'
) -> list[Selection]:
  """The best setting of each group by its validation score.

  Args:
    trials: Of `run_sweep`.
    group_by: Names of parameters: within a group all else is chosen.
    scores: Name of the result with one test score for each seed.

  Returns:
    One selection for each group with a trial that did not fail, in the order
    in which they come.
  """
  groups: dict[tuple, list[Trial]] = {}
  for trial in trials:
    groups.setdefault(
      tuple(trial.params[name] for name in group_by), []
    ).append(trial)
  chosen = []
  for key, members in groups.items():
    good = [trial for trial in members if trial.value is not None]
    if not good:
      continue
    best = max(good, key=lambda trial: trial.value)
    chosen.append(
      Selection(
        dict(zip(group_by, key, strict=True)),
        best.params,
        best.value,
        tuple(best.results[scores]),
        len(members) - len(good),
      )
    )
  return chosen


def percentile_curve(
  scores: Mapping[str, Mapping[Any, float]],
  full: Mapping[str, float],
  q: Sequence[float] = (20, 50, 80),
) -> tuple[list[Any], np.ndarray]:
  """Figure 3: how far tasks are from full fine-tuning, in percentiles.

  Args:
    scores: Task -> setting (a size, say) -> score.
    full: Task -> score of full fine-tuning.
    q: Percentiles over tasks.

  Returns:
    Settings that every task has, sorted; and percentiles of score minus that of
    full fine-tuning, `[len(q), settings]`.

  Raises:
    ValueError: If the tasks differ, or have no setting in common.

  Example:
    >>> scores = {'a': {8: 0.8, 64: 0.9}, 'b': {8: 0.7, 64: 0.7}}
    >>> percentile_curve(scores, {'a': 0.9, 'b': 0.7}, q=(50,))[1].round(3)
    array([[-0.05,  0.  ]])
  """
  if set(scores) != set(full):
    raise ValueError(
      f'scores has tasks {sorted(scores)}, full has {sorted(full)}.'
    )
  common = sorted(set.intersection(*(set(s) for s in scores.values())))
  if not common:
    raise ValueError('the tasks in scores have no setting in common.')
  gaps = np.array(
    [[scores[task][s] - full[task] for s in common] for task in scores]
  )
  return common, np.percentile(gaps, q, axis=0)


def _describe(point: Mapping[str, Any]) -> dict[str, Any]:
  """A point as a study can hold it."""
  plain = (str, int, float, bool, type(None))
  return {
    name: value if isinstance(value, plain) else str(value)
    for name, value in point.items()
  }


def _optuna() -> Any:
  try:
    import optuna
  except ImportError as error:
    raise ImportError(
      "A sweep needs optuna: pip install 'jaxpapers[adapters]'."
    ) from error
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return optuna
