"""Architecture search: space, objective, algorithms, records, populations."""

from jaxpapers.efficientnet.controller import PPO
from jaxpapers.efficientnet.history import (
  FolderHistory,
  MemoryHistory,
  Trial,
)
from jaxpapers.efficientnet.history_optuna import OptunaHistory
from jaxpapers.efficientnet.population import (
  MaskedNetwork,
  MaskedPopulation,
  extract,
)
from jaxpapers.efficientnet.proxy_search import (
  PopulationTrainer,
  StandaloneTrainer,
)
from jaxpapers.efficientnet.reward import hypervolume, pareto_front, reward
from jaxpapers.efficientnet.search import (
  RandomSearch,
  RegularizedEvolution,
  SearchResult,
  hard_objective,
  mutate,
  ppo_search,
  random_search,
  regularized_evolution,
  run_search,
)
from jaxpapers.efficientnet.search_network import SearchNetwork
from jaxpapers.efficientnet.search_space import SearchBlock, SearchSpace
from jaxpapers.efficientnet.synthetic import SyntheticBenchmark

__all__ = [
  'FolderHistory',
  'MaskedNetwork',
  'MaskedPopulation',
  'MemoryHistory',
  'OptunaHistory',
  'PPO',
  'PopulationTrainer',
  'RandomSearch',
  'RegularizedEvolution',
  'SearchBlock',
  'SearchNetwork',
  'SearchResult',
  'SearchSpace',
  'StandaloneTrainer',
  'SyntheticBenchmark',
  'Trial',
  'extract',
  'hard_objective',
  'hypervolume',
  'mutate',
  'pareto_front',
  'ppo_search',
  'random_search',
  'regularized_evolution',
  'reward',
  'run_search',
]
