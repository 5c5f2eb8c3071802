"""Search algorithms, and the loop that runs them.

An algorithm is a pure function from what is known to what to try next: the
architecture of trial i follows from the seed, i, and the finished trials. All
that has to be kept is therefore the record of trials. A search that was killed
goes on from it to the same trials, and workers need nothing in common but it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxpapers.efficientnet.history import History, MemoryHistory, Trial
from jaxpapers.efficientnet.reward import pareto_front, reward
from jaxpapers.efficientnet.search_space import (
  OPTIONS,
  SearchSpace,
  generator,
)

Objective = Callable[[float, int], float]


class Strategy(Protocol):
  """An algorithm."""

  def propose(
    self, space: SearchSpace, trials: Sequence[Trial], index: int
  ) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Tokens of trial `index`, and what the record has to keep of it."""

  def describe(self) -> Mapping[str, Any]:
    """Its settings: a record of other settings is not gone on with."""


@dataclasses.dataclass(frozen=True)
class RandomSearch:
  """Uniform samples: what every algorithm has to beat.

  Attributes:
    seed: Of the samples.
  """

  seed: int = 0

  def propose(self, space, trials, index):
    """Tokens of trial `index`."""
    del trials
    return space.sample([self.seed, index]), {}

  def describe(self):
    """Its settings."""
    return {'algorithm': 'random', **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class RegularizedEvolution:
  """Tournaments among the young: aging evolution of Real et al. (2019).

  The population are the last `population` finished trials. A child is the best
  of `sample` of them with one token changed; it replaces the oldest.

  Attributes:
    seed: Of all choices.
    population: Members, of which the first are sampled uniformly.
    sample: Size of a tournament.

  Raises:
    ValueError: If `sample` is not between 1 and `population`.
  """

  seed: int = 0
  population: int = 64
  sample: int = 16

  def __post_init__(self):
    if not 1 <= self.sample <= self.population:
      raise ValueError(
        f'sample is {self.sample}, population {self.population}; expected'
        ' 1 <= sample <= population.'
      )

  def propose(self, space, trials, index):
    """Tokens of trial `index`."""
    rng = generator([self.seed, index])
    if len(trials) < self.population:
      return space.sample(rng), {}
    members = trials[-self.population :]
    chosen = rng.choice(len(members), self.sample, replace=False)
    best = max((members[i] for i in chosen), key=lambda trial: trial.score)
    return mutate(space, best.tokens, rng), {'parent': best.index}

  def describe(self):
    """Its settings."""
    return {'algorithm': 'evolution', **dataclasses.asdict(self)}


def mutate(space: SearchSpace, tokens: Any, rng: Any) -> np.ndarray:
  """Changes one token to another value.

  Args:
    space: Of the tokens.
    tokens: Integers `[blocks, 6]`.
    rng: A typed key, a seed, or a generator of numpy.

  Returns:
    int32 `[blocks, 6]`, different in one place.
  """
  rng = generator(rng)
  child = space.check(tokens).copy()
  block = rng.integers(space.num_blocks)
  dimension = rng.integers(len(OPTIONS))
  step = rng.integers(1, OPTIONS[dimension])
  value = (child[block, dimension] + step) % OPTIONS[dimension]
  child[block, dimension] = value
  return child


@dataclasses.dataclass(frozen=True)
class SearchResult:
  """What a search found.

  Attributes:
    trials: All finished trials, by index.
    space: In which they are.
  """

  trials: tuple[Trial, ...]
  space: SearchSpace

  @property
  def best(self) -> Trial:
    """The trial of the largest reward; the first of equals."""
    if not self.trials:
      raise ValueError('the search has no finished trials.')
    return max(self.trials, key=lambda trial: trial.score)

  def best_so_far(self) -> np.ndarray:
    """Largest reward among the first 1, 2, ... trials, `[trials]`."""
    return np.maximum.accumulate([trial.score for trial in self.trials])

  def pareto_front(self) -> list[Trial]:
    """Trials that no other beats in accuracy and multiply-adds both."""
    front = pareto_front(
      [trial.macs for trial in self.trials],
      [trial.accuracy for trial in self.trials],
    )
    return [self.trials[index] for index in front]


def run_search(
  strategy: Strategy,
  evaluate: Callable[..., Any],
  budget: int,
  *,
  space: SearchSpace | None = None,
  objective: Objective = reward,
  history: History | None = None,
  batch_size: int | None = None,
  say: Callable[[str], None] | None = None,
) -> SearchResult:
  """Evaluates architectures until the record holds `budget` of them.

  Args:
    strategy: The algorithm.
    evaluate: Maps tokens `[blocks, 6]` to an accuracy. NaN, as of a training
      that diverged, is recorded and counts as the worst reward.
    budget: Number of trials, those of other workers and earlier runs included.
    space: Where to search; the paper's by default.
    objective: Maps accuracy and multiply-adds to what is maximised.
    history: The record: in memory by default, in a folder (`FolderHistory`) or
      a storage of optuna (`OptunaHistory`), which several workers may share.
    batch_size: If given, `evaluate` gets tokens `[n, blocks, 6]` of at most so
      many trials at once, chosen without knowledge of each other, and returns
      accuracies `[n]`.
    say: Called with a line for each trial.

  Returns:
    All trials that are finished.

  Raises:
    ValueError: If `budget` or `batch_size` is below 1, the record is of another
      search, or `evaluate` returns something else.
  """
  for name, value in (('budget', budget), ('batch_size', batch_size or 1)):
    if value < 1:
      raise ValueError(f'{name} is {value}; expected 1 or more.')
  space = space or SearchSpace()
  history = MemoryHistory() if history is None else history
  history.open({'space': _plain(space), **strategy.describe()})
  while True:
    indices = []
    while len(indices) < (batch_size or 1):
      index = history.claim(budget)
      if index is None:
        break
      indices.append(index)
    if not indices:
      break
    trials = history.finished()
    proposals = [strategy.propose(space, trials, index) for index in indices]
    if batch_size is None:
      values = [evaluate(proposals[0][0])]
    else:
      values = evaluate(np.stack([tokens for tokens, _ in proposals]))
    values = np.asarray(values, np.float64)
    if values.shape != (len(indices),):
      raise ValueError(
        f'evaluate returned shape {list(values.shape)}; expected one accuracy'
        f' for each of {len(indices)} architectures.'
      )
    for index, (tokens, info), value in zip(
      indices, proposals, values.tolist(), strict=True
    ):
      macs = space.macs(tokens)
      score = float(objective(value, macs))
      if not math.isfinite(score):
        score = -math.inf
      trial = Trial(index, tokens, macs, value, score, info)
      history.record(trial)
      if say is not None:
        say(
          f'trial {index}: accuracy {value:.4f}, {macs / 1e6:.3g} M'
          f' multiply-adds, reward {score:.4f}'
        )
  return SearchResult(tuple(history.finished()), space)


def _plain(space: SearchSpace) -> dict[str, Any]:
  """A space as JSON has it."""

  def as_list(value):
    return [as_list(v) for v in value] if isinstance(value, tuple) else value

  return {k: as_list(v) for k, v in dataclasses.asdict(space).items()}


def _seed(rng: Any) -> int:
  """An integer seed; of a key or generator, one that follows from it."""
  if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool):
    return int(rng)
  return int(generator(rng).integers(2**31))


def random_search(
  evaluate: Callable[..., Any], budget: int, rng: Any, **options: Any
) -> SearchResult:
  """Uniform random search.

  Args:
    evaluate: Maps tokens to an accuracy.
    budget: Number of trials.
    rng: A seed, a typed key, or a generator of numpy.
    **options: Of `run_search`.

  Returns:
    What it found.

  Example:
    >>> from jaxpapers.efficientnet.synthetic import SyntheticBenchmark
    >>> len(random_search(SyntheticBenchmark(), 10, 0).trials)
    10
  """
  return run_search(RandomSearch(_seed(rng)), evaluate, budget, **options)


def regularized_evolution(
  evaluate: Callable[..., Any],
  budget: int,
  rng: Any,
  *,
  population: int = 64,
  sample: int = 16,
  **options: Any,
) -> SearchResult:
  """Regularised evolution.

  Args:
    evaluate: Maps tokens to an accuracy.
    budget: Number of trials.
    rng: A seed, a typed key, or a generator of numpy.
    population: Members.
    sample: Size of a tournament.
    **options: Of `run_search`.

  Returns:
    What it found.
  """
  strategy = RegularizedEvolution(_seed(rng), population, sample)
  return run_search(strategy, evaluate, budget, **options)


def ppo_search(
  evaluate: Callable[..., Any], budget: int, rng: Any, **options: Any
) -> SearchResult:
  """A recurrent controller, trained by proximal policy optimisation.

  Args:
    evaluate: Maps tokens to an accuracy.
    budget: Number of trials.
    rng: A seed, a typed key, or a generator of numpy.
    **options: Of `run_search`, and fields of `controller.PPO`.

  Returns:
    What it found.
  """
  from jaxpapers.efficientnet.controller import PPO

  names = {field.name for field in dataclasses.fields(PPO)} - {'seed'}
  fields = {name: options.pop(name) for name in names & set(options)}
  return run_search(PPO(_seed(rng), **fields), evaluate, budget, **options)


def hard_objective(target: float) -> Objective:
  """MnasNet's hard constraint: accuracy, times target / cost above it.

  Args:
    target: Multiply-adds.

  Returns:
    An objective for `run_search`.
  """
  return functools.partial(reward, target=target, alpha=0.0, beta=-1.0)
