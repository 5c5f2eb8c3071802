"""A table of the study, computed again, row by row."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpapers.recsys import (
  data as data_lib,
)
from jaxpapers.recsys import (
  evaluation,
  methods,
  numpy_ties,
  published,
  search,
  significance,
)
from jaxpapers.recsys.studies import Data, Study, column

# How far a row may be from the published one. Parameters are printed with four
# decimals, and neighbours and items with equal scores come in another order:
# three of 5551 users are 5.4e-4. Randomised solvers and random starts differ
# more; TopPopular is nothing but ties; see docs/recsys.md.
TOLERANCE = 6e-4
TOLERANCES: Mapping[str, float] = {
  'TopPopular': 3.5e-3,
  'PureSVD': 2e-3,
  'iALS': 3e-3,
  'NMF': 1e-2,
  'Random': 5e-3,
  'SLIM ElasticNet': 2e-3,
  'SLIM BPR': 1e-2,
  'MF BPR': 2e-2,
  'MF FunkSVD': 2e-2,
  'NeuMF': 2e-2,
  'Mult VAE': 2e-2,
  'CMN': 2e-2,
  'SpectralCF': 2e-2,
  'CVAE': 2e-2,
  'CDL': 2e-2,
  'MCRec': 2e-2,
}
# With ties='numpy' and numpy's scalar sorts the order is the same, and what is
# left is the rounding of print.
EXACT_TOLERANCE = 5e-4
# What is tuned and shown beside a network unless something else is asked for.
BASELINES = ('TopPopular', 'ItemKNN CF cosine', 'RP3beta')
# Diversity is not bounded by 1: entropy is in bits.
_SPREAD = {'shannon_entropy': 4.0, 'coverage_item': 4.0}


@dataclasses.dataclass(frozen=True)
class Row:
  """One method on one study.

  Attributes:
    method: Name.
    parameters: Its hyper-parameters.
    source: 'published', 'search' or 'default': where they come from.
    values: Column -> our value.
    published: Column -> published value; empty without.
    intervals: Column -> 95 % interval over users.
    differences: Column -> ours minus published.
    tolerance: How far they may be apart.
    agrees: Whether all are within it; None without published values.
    fit_seconds: Of the last fit.
    evaluate_seconds: Of the evaluation.
    report: What the evaluation counted.
    validation: Best validation metric of the search, if there was one.
    error: Why there are no values.
  """

  method: str
  parameters: Mapping[str, Any]
  source: str
  values: Mapping[str, float]
  published: Mapping[str, float]
  intervals: Mapping[str, tuple[float, float]]
  differences: Mapping[str, float]
  tolerance: float
  agrees: bool | None
  fit_seconds: float
  evaluate_seconds: float
  report: Mapping[str, int]
  validation: float | None = None
  error: str = ''


def within(label: str, difference: float, tolerance: float) -> bool:
  """Whether a difference of one column is within the tolerance of its row.

  Means over users have it as it is, numbers of all lists together twice, and
  entropy, in bits, and coverage, which single items move, four times.
  """
  metric, _ = column(label)
  scale = 1.0 if metric in evaluation.USER_METRICS else 2.0
  return abs(difference) <= tolerance * _SPREAD.get(metric, scale)


def tolerance_of(study: Study, method: str, ties: str = 'index') -> float:
  """How far a row may be from the published one.

  Args:
    study: The study; of another random split, its rows differ more.
    method: Name.
    ties: Of the evaluation, see `reproduce_row`.
  """
  tolerance = TOLERANCES.get(method, TOLERANCE)
  exact = tolerance == TOLERANCE or method == 'TopPopular'
  if exact and ties == 'numpy' and numpy_ties.scalar_sorts():
    tolerance = EXACT_TOLERANCE
  return max(tolerance, study.tolerance)


def agreement(
  differences: Mapping[str, float], tolerance: float
) -> bool | None:
  """Whether all columns agree; None without published values."""
  if not differences:
    return None
  return all(within(k, v, tolerance) for k, v in differences.items())


def columns_of(study: Study) -> tuple[str, ...]:
  """Columns of all published tables of a study, without repetition."""
  names: dict[str, None] = {}
  for table in study.tables:
    names |= dict.fromkeys(published.table(table)['columns'])
  return tuple(names)


def rows_of(study: Study, data: Data) -> tuple[str, ...]:
  """Methods of a study that can be run: registered, with features if needed."""
  names = []
  for name in published.table(study.tables[0])['rows']:
    try:
      method = methods.find(name)
    except ValueError:
      continue
    if method.needs_features and data.features is None:
      continue
    if data.profiles is not None and not method.scores_new_users:
      continue
    names.append(method.name)
  return tuple(names)


def check_method(method: str, data: Data) -> None:
  """Refuses methods that know nothing of the users who are tested.

  They would give them equal scores, and the order of ids a metric.

  Raises:
    ValueError: Test users are new, and the method has none but its own.
  """
  found = methods.find(method)
  if data.profiles is not None and not found.scores_new_users:
    raise ValueError(
      f'{found.name} has no scores for users whom training has not seen. Take'
      ' a method of items, or fold_in for factors.'
    )


def published_row(study: Study, method: str) -> dict[str, float]:
  """Column -> published value of a method."""
  result = {}
  for name in study.tables:
    table = published.table(name)
    values = table['rows'].get(method)
    for label, value in zip(table['columns'], values or (), strict=False):
      if value is not None:
        result[label] = value
  return result


def reproduce_row(
  study: Study,
  data: Data,
  method: str,
  *,
  parameters: Mapping[str, Any] | None = None,
  source: str = 'published',
  seed: int = 0,
  validation: float | None = None,
  ties: str = 'index',
) -> tuple[Row, np.ndarray]:
  """Fits a method and evaluates it once on the test data.

  Args:
    study: The study.
    data: Its data.
    method: Name.
    parameters: Hyper-parameters; None for the published ones.
    source: Where they come from.
    seed: For random methods.
    validation: Metric of the search that chose them.
    ties: See `evaluate_model`. The published rows have one order of equal
      scores and neighbours: 'numpy' (see `numpy_ties`). 'expected' is nearer to
      them than 'index' where there are many.

  Returns:
    The row, and the study's metric of each user, for tests.
  """
  name = methods.find(method).name
  check_method(name, data)
  if parameters is None:
    parameters = published.tuned(study.tables[0]).get(name, {})
    if 'FunkSVD' in name and parameters:
      parameters = {**parameters, 'compat': True}
  labels = columns_of(study)
  wanted = [column(label) for label in labels]
  began = time.perf_counter()
  given = dict(parameters)
  if ties == 'numpy' and methods.find(name).keeps_neighbours:
    given['ties'] = ties
  model = methods.fit(
    name, data.train, given, features=data.features, seed=seed
  )
  fitted = time.perf_counter()
  metrics = dict.fromkeys(
    metric for metric, _ in wanted if metric in evaluation.USER_METRICS
  )
  metrics[study.metric] = None
  result = evaluation.evaluate_model(
    model,
    data.profiles or data.train,
    data.test,
    study.cutoffs,
    metrics=tuple(metrics),
    negatives=data.negatives,
    ties=ties,
  )
  done = time.perf_counter()
  values = {
    label: result.mean(*where)
    for label, where in zip(labels, wanted, strict=True)
  }
  intervals = {}
  for label, (metric, cutoff) in zip(labels, wanted, strict=True):
    if metric in result.per_user:
      at = result.cutoffs.index(cutoff)
      intervals[label] = significance.confidence_interval(
        result.per_user[metric][:, at], resamples=1000
      )
  comparable = study.comparable and not (
    study.own_features and methods.find(name).needs_features
  )
  known = published_row(study, name) if comparable else {}
  differences = {label: values[label] - known[label] for label in known}
  tolerance = tolerance_of(study, name, ties)
  row = Row(
    method=name,
    parameters=dict(parameters),
    source=source,
    values=values,
    published=known,
    intervals=intervals,
    differences=differences,
    tolerance=tolerance,
    agrees=agreement(differences, tolerance),
    fit_seconds=fitted - began,
    evaluate_seconds=done - fitted,
    report=dict(result.report),
    validation=validation,
  )
  at = result.cutoffs.index(study.cutoff)
  return row, result.per_user[study.metric][:, at]


def failed_row(method: str, source: str, error: Exception) -> Row:
  """A row that could not be computed."""
  return Row(
    method, {}, source, {}, {}, {}, {}, 0.0, None, 0.0, 0.0, {},
    error=' '.join(str(error).split()),
  )  # fmt: skip


def tune(
  study: Study,
  data: Data,
  method: str,
  *,
  storage: str | None = None,
  n_trials: int = 35,
  n_startup: int = 5,
  seed: int = 0,
  max_epochs: int | None = None,
  retry: bool = False,
  say: Any = None,
) -> search.Search:
  """Searches the paper's ranges on the study's validation data.

  Args:
    study: The study.
    data: Its data. The test part is not looked at.
    method: Name.
    storage: See `run_search`.
    n_trials: Configurations.
    n_startup: Random ones at the beginning.
    seed: Of the search.
    max_epochs: At most so many epochs.
    retry: See `run_search`.
    say: Called with a line for each trial.

  Returns:
    The search; parameters of the best trial, with its 'epochs' if it is
    iterative, are what `reproduce_row` takes (see `best_parameters`).
  """
  return tune_method(
    data,
    method,
    metric=study.metric,
    cutoff=study.cutoff,
    name=f'{study.name}/{methods.find(method).name}'
    + (f'/{max_epochs}' if max_epochs else ''),
    storage=storage,
    n_trials=n_trials,
    n_startup=n_startup,
    seed=seed,
    max_epochs=max_epochs,
    retry=retry,
    say=say,
  )


def tune_method(
  data: Data,
  method: str,
  *,
  metric: str,
  cutoff: int,
  name: str,
  seed: int = 0,
  max_epochs: int | None = None,
  **options: Any,
) -> search.Search:
  """Searches the ranges of a method on the validation part of any data.

  Args:
    data: Data. The test part is not looked at.
    method: Name.
    metric: What counts.
    cutoff: Where lists are cut.
    name: Of the search.
    seed: Of the search and of random methods.
    max_epochs: At most so many epochs.
    **options: Of `run_search`.

  Returns:
    The search; see `best_parameters`.
  """
  check_method(method, data)
  objective = search.validation_objective(
    method,
    data.search_train,
    data.validation,
    metric=metric,
    cutoff=cutoff,
    features=data.features,
    seed=seed,
    max_epochs=max_epochs,
    **validation_options(data),
  )
  space = search.search_space(method)
  return search.run_search(objective, space, name=name, seed=seed, **options)


def choose_epochs(
  data: Data,
  method: str,
  parameters: Mapping[str, Any],
  *,
  metric: str,
  cutoff: int,
  seed: int = 0,
) -> tuple[dict[str, Any], float | None]:
  """Epochs of an iterative method, chosen on validation data.

  Args:
    data: Data. The test part is not looked at.
    method: Name.
    parameters: Of its fit function. Where they say how many 'epochs', or the
      method has none, or nothing can be validated on, they are final.
    metric: What counts.
    cutoff: Where lists are cut.
    seed: For random methods.

  Returns:
    Parameters of the last fit, on training and validation data; and the best
    validation metric, None if nothing was chosen.
  """
  found = methods.find(method)
  given = 'epochs' in parameters
  if not found.iterative or given or not len(data.validation):
    return dict(parameters), None
  objective = search.validation_objective(
    method,
    data.search_train,
    data.validation,
    metric=metric,
    cutoff=cutoff,
    features=data.features,
    seed=seed,
    **validation_options(data),
  )
  chosen = objective(parameters)
  value = chosen.pop('value')
  return {**chosen, **parameters}, value


def baselines_of(method: str, data: Data) -> tuple[str, ...]:
  """Baselines to show beside a network; none beside another baseline."""
  if methods.find(method).family != 'neural':
    return ()
  return tuple(
    name
    for name in BASELINES
    if data.profiles is None or methods.find(name).scores_new_users
  )


def validation_options(data: Data) -> dict[str, Any]:
  """How validation data are evaluated: as the test data are."""
  options: dict[str, Any] = {}
  if data.validation_profiles is not None:
    options['profiles'] = data.validation_profiles
  if data_lib.overlap(data.search_train, data.validation).any():
    # The copy of P = 1: it can only be found if seen items stay.
    options |= {'exclude_seen': False, 'allow_overlap': True}
  if data.negatives is not None:
    options['negatives'] = data.negatives
  return options


def best_parameters(trial: search.Trial) -> dict[str, Any]:
  """Parameters of a trial for the last fit."""
  parameters = dict(trial.parameters)
  for name, value in trial.results.items():
    if name.startswith('epochs') and value:
      parameters[name] = int(value)
  return parameters
