"""How Hoyer et al. (2019) compare methods: scores and relative errors.

The value of a run is the lowest compliance up to a given evaluation, 1000 in
the paper. For each task and method there are two scores:

- typical: of the methods with a network the median over seeds, of the others
  the single run that starts from a constant;
- ensemble: the lowest value of all runs, whatever their start.

The relative error of a method is its score over the best score that any of the
compared methods has on that task, less one. Tasks of at least 2^15 elements
are large.
"""

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxpapers.structopt.runs import CONSTANT, NETWORK_METHODS, Run

METHODS = ('cnn-lbfgs', 'pixel-lbfgs', 'mma', 'oc')
"""The methods that the paper compares, in its order."""

TITLES = {
  'cnn-lbfgs': 'CNN-LBFGS',
  'pixel-lbfgs': 'Pixel-LBFGS',
  'mma': 'MMA',
  'oc': 'OC',
  'adam': 'CNN-Adam',
  'pixel-adam': 'Pixel-Adam',
}
"""How tables and figures call the methods."""

GROUPS = ('small', 'large', 'all')
TOLERANCES = (0.001, 0.005, 0.01, 0.02, 0.05)
"""Relative errors within which methods are counted."""

THRESHOLDS = np.linspace(0, 0.2, 201)
"""Where the paper's distribution of relative errors is drawn."""

_LARGE = 2**15
_SIZE = re.compile(r'_(\d+)x(\d+)(?:_|$)')


@dataclasses.dataclass(frozen=True)
class Scores:
  """One value for each task and method.

  Attributes:
    problems: names of the tasks.
    methods: names of the methods.
    values: compliance, float64 [problems, methods]; NaN where there is none.
    counts: number of runs behind each value, int64 [problems, methods]; None
      if unknown.
  """

  problems: tuple[str, ...]
  methods: tuple[str, ...]
  values: np.ndarray
  counts: np.ndarray | None = None

  def complete(self) -> 'Scores':
    """Only the tasks for which every method has a value."""
    return self._rows(np.isfinite(self.values).all(1))

  def group(self, name: str) -> 'Scores':
    """Only the tasks of a size: `small`, `large` or `all`."""
    if name not in GROUPS:
      raise ValueError(f'name is {name!r}; expected one of {GROUPS}.')
    if name == 'all':
      return self
    large = np.array([is_large(p) for p in self.problems], bool)
    return self._rows(large if name == 'large' else ~large)

  def select(
    self,
    problems: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
  ) -> 'Scores':
    """Only some tasks and methods, in the order given; None takes all."""
    problems = self.problems if problems is None else tuple(problems)
    methods = self.methods if methods is None else tuple(methods)
    cells = np.ix_(
      [self.problems.index(problem) for problem in problems],
      [self.methods.index(method) for method in methods],
    )
    counts = None if self.counts is None else self.counts[cells]
    return Scores(problems, methods, self.values[cells], counts)

  def value(self, problem: str, method: str) -> float:
    """One entry; NaN if the task or the method is not there."""
    if problem not in self.problems or method not in self.methods:
      return float('nan')
    row = self.problems.index(problem)
    return float(self.values[row, self.methods.index(method)])

  def _rows(self, keep: np.ndarray) -> 'Scores':
    counts = None if self.counts is None else self.counts[keep]
    problems = tuple(p for p, k in zip(self.problems, keep) if k)
    return Scores(problems, self.methods, self.values[keep], counts)


def is_large(problem: str) -> bool:
  """Whether a task has at least 2^15 elements, going by its name.

  Args:
    problem: a name that contains its size, as `mbb_beam_96x32_0.5` does.

  Returns:
    Whether width times height is at least 2^15.

  Raises:
    ValueError: the name contains no size.
  """
  match = _SIZE.search(problem)
  if match is None:
    raise ValueError(
      f'problem is {problem!r}; expected a name that contains the size of the'
      " grid, such as 'mbb_beam_96x32_0.5'."
    )
  return int(match[1]) * int(match[2]) >= _LARGE


def score(
  runs: Iterable[Run],
  step: int = 1000,
  methods: Sequence[str] | None = None,
) -> tuple[Scores, Scores]:
  """Typical and ensemble scores of runs.

  Args:
    runs: the runs; consumed one at a time.
    step: index of the last evaluation that counts. Runs that stopped earlier
      keep their lowest value.
    methods: the methods to score, by default those of the runs, the paper's
      first.

  Returns:
    `(typical, ensemble)` with the tasks in the order of their first run.
  """
  values: dict[tuple[str, str], dict[int, float]] = {}
  problems: dict[str, None] = {}
  for run in runs:
    losses = np.asarray(run.losses, np.float64)[: step + 1]
    problems.setdefault(run.key.problem)
    if np.isfinite(losses).any():
      seeds = values.setdefault((run.key.problem, run.key.method), {})
      seeds[run.key.seed] = float(np.nanmin(losses))
  if methods is None:
    there = {method for _, method in values}
    methods = [m for m in METHODS if m in there]
    methods += sorted(there - set(methods))

  def table(statistic):
    cells = [
      [statistic(m, values.get((p, m), {})) for m in methods] for p in problems
    ]
    cells = np.array(cells, np.float64).reshape(len(problems), len(methods), 2)
    return Scores(
      tuple(problems),
      tuple(methods),
      cells[..., 0],
      cells[..., 1].astype(np.int64),
    )

  return table(_typical), table(_ensemble)


def _typical(method: str, values: Mapping[int, float]) -> tuple[float, int]:
  """Typical value and the number of runs behind it."""
  if method in NETWORK_METHODS:
    chosen = [v for seed, v in values.items() if seed != CONSTANT]
  else:
    chosen = [v for seed, v in values.items() if seed == CONSTANT]
  return (float(np.median(chosen)) if chosen else np.nan), len(chosen)


def _ensemble(method: str, values: Mapping[int, float]) -> tuple[float, int]:
  """Lowest value and the number of runs behind it."""
  del method
  return min(values.values(), default=np.nan), len(values)


def relative_errors(scores: Scores) -> np.ndarray:
  """Excess of each method over the best one on the same task.

  Args:
    scores: typical or ensemble scores without gaps; see `Scores.complete`.

  Returns:
    float64 [problems, methods], 0 for the best.

  Raises:
    ValueError: a score is missing.
  """
  if not np.isfinite(scores.values).all():
    raise ValueError(
      'scores has missing values, against which methods cannot be compared;'
      ' take scores.complete().'
    )
  return scores.values / scores.values.min(1, keepdims=True) - 1


def mean_relative_errors(scores: Scores) -> dict[str, np.ndarray]:
  """Mean of the relative errors over small, large and all tasks.

  Args:
    scores: scores without gaps.

  Returns:
    Group -> float64 [methods]; NaN where a group is empty.
  """
  means = {}
  for name in GROUPS:
    errors = relative_errors(scores.group(name))
    means[name] = errors.mean(0) if len(errors) else errors.sum(0) + np.nan
  return means


def counts_within(scores: Scores, tolerance: float = 0.0) -> np.ndarray:
  """On how many tasks each method is the best, or nearly so.

  Args:
    scores: scores without gaps.
    tolerance: relative error that is still counted. With 0 only the best are,
      and all of those that tie.

  Returns:
    int64 [methods].
  """
  return (relative_errors(scores) <= tolerance).sum(0)


def distribution(
  scores: Scores, thresholds: np.ndarray = THRESHOLDS
) -> np.ndarray:
  """Fraction of tasks on which a method stays within each threshold.

  Args:
    scores: scores without gaps, of at least one task.
    thresholds: relative errors [thresholds].

  Returns:
    float64 [thresholds, methods], the empirical distribution function.
  """
  errors = relative_errors(scores)
  return (errors <= np.asarray(thresholds)[:, None, None]).mean(1)


def summary(typical: Scores, ensemble: Scores, step: int = 1000) -> dict:
  """All numbers of the comparison, in JSON types.

  Args:
    typical: typical scores.
    ensemble: ensemble scores of the same tasks and methods.
    step: index of the last evaluation that they count.

  Returns:
    For each of the two kinds the mean relative errors, the counts within each
    tolerance and the scores themselves. Tasks with missing scores are left out
    of means and counts.
  """
  result: dict = {'step': step, 'methods': list(typical.methods)}
  for kind, scores in (('typical', typical), ('ensemble', ensemble)):
    whole = scores.complete()
    means = mean_relative_errors(whole)
    result[kind] = {
      'tasks': {g: len(whole.group(g).problems) for g in GROUPS},
      'mean_relative_error': {
        g: [None if np.isnan(v) else float(v) for v in means[g]] for g in GROUPS
      },
      'count_within': {
        g: {
          str(t): counts_within(whole.group(g), t).tolist()
          for t in (0.0, *TOLERANCES)
        }
        for g in GROUPS
      },
      'compliance': {
        p: [None if np.isnan(v) else float(v) for v in row]
        for p, row in zip(scores.problems, scores.values)
      },
    }
  return result


def distribution_csv(typical: Scores, ensemble: Scores) -> str:
  """The curves of the paper's figure as text.

  Args:
    typical: typical scores without gaps.
    ensemble: ensemble scores without gaps.

  Returns:
    CSV with the columns kind, group, threshold and one for each method.
  """
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(('kind', 'group', 'threshold', *typical.methods))
  for kind, scores in (('typical', typical), ('ensemble', ensemble)):
    for name in GROUPS:
      part = scores.group(name)
      if part.problems:
        for threshold, row in zip(THRESHOLDS, distribution(part)):
          cells = (f'{value:.6f}' for value in row)
          writer.writerow((kind, name, f'{threshold:.3f}', *cells))
  return out.getvalue()
