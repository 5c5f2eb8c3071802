"""The analysis of the paper, from correlations to the collapse of the core."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpapers.kcore import (
  collapse,
  correlation,
  network,
  null,
  percolation,
  sensitivity,
  statistics,
)
from jaxpapers.kcore import edges as graphs
from jaxpapers.kcore.coreness import coreness, shell_occupancy
from jaxpapers.kcore.study import Study


class Options(NamedTuple):
  """Choices of the analysis; the defaults are those of the documentation.

  Attributes:
    strategy: of `functional_network`.
    step: grid of thresholds, None for exact levels.
    quorum: part of a module that has to merge.
    threshold: for the strategy `'global'`.
    density: for the strategy `'global'`.
    shown: network that the figures, nulls and the collapse are of.
    num_nulls: random networks per network, 0 for none.
    null_networks: how many networks get nulls, beginning with `shown`.
    rounds: of switches per null; None for as many as `enough_rounds` says.
    seed: of the nulls.
    sensitivity: whether to try other choices.
    max_couplings: most couplings in the sweep, 0 for no sweep.
    I: background of the dynamical model, like the next three.
    R: inverse of the rate of inactivation.
    n: slope.
    alpha: threshold of activation.
  """

  strategy: str = 'module_merge'
  step: float | None = 0.01
  quorum: float = 0.5
  threshold: float | None = None
  density: float | None = None
  shown: int = 0
  num_nulls: int = 1000
  null_networks: int = 1
  rounds: int | None = None
  seed: int = 0
  sensitivity: bool = True
  max_couplings: int = 60
  I: float = 0.1  # noqa: E741 (the paper's symbol)
  R: float = 1.0
  n: float = 60.0
  alpha: float = 1.0


class NetworkResult(NamedTuple):
  """One network and its cores.

  Attributes:
    name: of the recording.
    network: adjacency, weights, thresholds.
    edges: int32[m, 2].
    threshold: float64[L], the levels of the percolation curve, descending.
    giant: int64[L], size of the largest component at each.
    second: int64[L], of the second largest.
    link_counts: int64[M, M], links within and between modules.
    coreness: int32[N].
    occupancy: int64[k_max + 1], nodes per shell.
    core_sizes: int64[k_max + 1], nodes in the k-core.
    core: bool[N], the k_max-core.
    core_by_module: int64[M].
    thirds: nodes in the outer, middle and inner third of the shells.
    u_index: see `u_shape_index`.
  """

  name: str
  network: network.Network
  edges: np.ndarray
  threshold: np.ndarray
  giant: np.ndarray
  second: np.ndarray
  link_counts: np.ndarray
  coreness: np.ndarray
  occupancy: np.ndarray
  core_sizes: np.ndarray
  core: np.ndarray
  core_by_module: np.ndarray
  thirds: np.ndarray
  u_index: float

  @property
  def k_max(self) -> int:
    """Largest coreness."""
    return len(self.occupancy) - 1


class Sweep(NamedTuple):
  """Active nodes over the coupling.

  Attributes:
    J: float64[S], rising.
    K: float64[S], the k at which each J prunes, (alpha / R - I) / J.
    down: int64[S], active nodes as J falls from a fully active network.
    up: int64[S], as it rises again after the collapse.
    turned: int64[S], as it rises again from the last J before the collapse.
    core_sizes: int64[S], nodes of the k-core that the theory of a steep sigmoid
      predicts on the way down.
    critical: coupling of the collapse of the k_max-core by that theory.
  """

  J: np.ndarray
  K: np.ndarray
  down: np.ndarray
  up: np.ndarray
  turned: np.ndarray
  core_sizes: np.ndarray
  critical: float


class Analysis(NamedTuple):
  """Everything that the report shows.

  Attributes:
    study: what was analysed.
    options: with which choices.
    results: one per network.
    frequency: test of the modules in the core over networks; None for one
      network.
    overlaps: test against the second state's map, one per network; None
      without such a map.
    shared: bool[N], nodes in the core of every network whose overlap has p
      below 1e-5; None without a map or if no network passes.
    nulls: index of a network -> its null ensemble.
    sweep: of the shown network, or None.
    table: sensitivity of the shown network, or None.
  """

  study: Study
  options: Options
  results: Sequence[NetworkResult]
  frequency: statistics.ClusterTest | None
  overlaps: Sequence[statistics.HypergeomTest] | None
  shared: np.ndarray | None
  nulls: dict[int, null.NullSummary]
  sweep: Sweep | None
  table: Sequence[sensitivity.SensitivityRow] | None

  @property
  def shown(self) -> NetworkResult:
    """The network that figures are of."""
    return self.results[self.options.shown]


_OVERLAP_LEVEL = 1e-5


def analyze(
  study: Study,
  options: Options = Options(),  # noqa: B008 (immutable)
  *,
  say: Callable[[str], Any] = lambda text: None,
) -> Analysis:
  """Runs the whole analysis.

  Args:
    study: correlation matrices over labelled nodes.
    options: choices.
    say: called with a line before each stage.

  Returns:
    The analysis; `report.write` makes files of it.

  Raises:
    ValueError: names the argument: options out of range, matrices that are no
      correlation matrices, labels that do not fit.

  Example:
    >>> from jaxpapers.kcore.study import synthetic_study
    >>> analysis = analyze(synthetic_study(1), Options(num_nulls=20))
    >>> analysis.shown.k_max, analysis.nulls[0].k_max.size
    (95, 20)
  """
  total = len(study.corr)
  if not 0 <= options.shown < total:
    raise ValueError(
      f'shown is {options.shown}; expected the index of one of {total} '
      'networks.'
    )
  say(f'{total} network(s) of {len(study.module)} nodes')
  results = [
    analyze_network(corr, study.module, options, name)
    for corr, name in zip(study.corr, study.names, strict=True)
  ]
  frequency = None
  if total > 1:
    membership = np.array([r.core_by_module > 0 for r in results])
    frequency = statistics.cluster_frequency(membership)
  overlaps = shared = None
  if study.other is not None:
    overlaps = [statistics.core_overlap(r.core, study.other) for r in results]
    passing = [
      r.core
      for r, test in zip(results, overlaps, strict=True)
      if test.p < _OVERLAP_LEVEL
    ]
    if passing:
      shared = np.all(passing, axis=0)
  shown = results[options.shown]
  nulls = {}
  if options.num_nulls:
    order = np.roll(np.arange(total), -options.shown)
    for index in order[: options.null_networks].tolist():
      say(f'{options.num_nulls} random networks like {results[index].name!r}')
      nulls[index] = _nulls(results[index], options, index)
  sweep = table = None
  if options.max_couplings and shown.k_max:
    say('falling and rising coupling')
    sweep = sweep_couplings(shown.edges, shown.coreness, options)
  if options.sensitivity and len(study.module_names) > 1:
    say('other choices on the way to the network')
    table = sensitivity.sensitivity_table(
      study.corr[options.shown],
      study.module,
      step=options.step,
      quorum=options.quorum,
    )
  return Analysis(
    study, options, results, frequency, overlaps, shared, nulls, sweep, table
  )


def analyze_network(
  corr: Any,
  module: Any,
  options: Options = Options(),  # noqa: B008
  name: str = '',
) -> NetworkResult:
  """Thresholds one matrix and finds its cores.

  Args:
    corr: [N, N] correlations.
    module: int[N] labels.
    options: choices.
    name: of the network.

  Returns:
    The network and its cores.

  Raises:
    ValueError: as `functional_network`.

  Example:
    >>> corr = np.array([[1, 0.9, 0.5], [0.9, 1, 0.4], [0.5, 0.4, 1]])
    >>> result = analyze_network(corr, np.array([0, 0, 1]))
    >>> result.k_max, result.occupancy.tolist()
    (1, [0, 3])
  """
  module = np.asarray(module)
  net = network.functional_network(
    corr,
    module,
    strategy=options.strategy,
    step=options.step,
    quorum=options.quorum,
    threshold=options.threshold,
    density=options.density,
  )
  levels, values = correlation.quantize_levels(corr, options.step)
  curve = jax.device_get(percolation.percolation_curve(levels))
  level, first = np.unique(-curve.level, return_index=True)
  edges = graphs.edge_list(net.adj)
  shells = np.asarray(coreness(graphs.Edges(edges, len(module))))
  occupancy = np.asarray(shell_occupancy(shells)).astype(np.int64)
  # Without links there is no core, although all share the largest coreness 0.
  core = (shells == shells.max(initial=0)) & (shells > 0)
  modules = int(module.max()) + 1
  return NetworkResult(
    name,
    net,
    edges,
    values[-level],
    curve.giant[first].astype(np.int64),
    curve.second[first].astype(np.int64),
    network.module_link_counts(net.adj, module),
    shells,
    occupancy,
    np.cumsum(occupancy[::-1])[::-1],
    core,
    np.bincount(module[core], minlength=modules),
    statistics.shell_thirds(occupancy),
    statistics.u_shape_index(occupancy),
  )


def sweep_couplings(
  edges: Any,
  coreness: Any,
  options: Options = Options(),  # noqa: B008
) -> Sweep:
  """Lets the coupling fall until activity collapses, then rise again.

  The couplings are those at which the theory prunes at k - 1/2, for k up to
  k_max + 1: in the middle between two cores.

  Args:
    edges: int[m, 2] links of a network.
    coreness: int[N].
    options: I, R, n, alpha and max_couplings.

  Returns:
    Numbers of active nodes.

  Raises:
    ValueError: `edges` is empty, or parameters are out of range.

  Example:
    >>> path = np.array([[0, 1], [1, 2]])
    >>> sweep_couplings(path, [1, 1, 1]).down.tolist()  # K is 1.5, then 0.5
    [0, 3]
  """
  if not len(edges):
    raise ValueError('edges is empty; without links nothing is active.')
  k_max = int(np.max(coreness))
  core_sizes = np.bincount(coreness)[::-1].cumsum()[::-1]
  adj = np.zeros((len(coreness), len(coreness)))
  adj[tuple(np.transpose(edges))] = 1.0
  critical = collapse.critical_coupling(
    k_max, options.I, options.R, options.alpha
  )
  k = np.arange(k_max + 1, 0, -1)
  if len(k) > options.max_couplings:
    # About even in log J, and with the collapse itself.
    some = np.geomspace(1, k_max + 1, max(options.max_couplings, 2))
    k = np.unique(np.append(np.round(some), k_max))[::-1]
  level = k - 0.5
  J = (options.alpha / options.R - options.I) / level
  params = collapse.CollapseParams(
    options.I,
    options.R,
    options.n,
    options.alpha,
    J[0],
    adj + adj.T,
  )
  # Where the sigmoid is steep, float32 takes thousands of steps to settle.
  with jax.enable_x64(True):
    states = np.asarray(collapse.collapse_curve(params, J[::-1]))[::-1]
    low = options.I * options.R
    rising = collapse.collapse_curve(params, J, x0=low)
    down = _count(states, options.alpha)
    up = _count(rising, options.alpha)
    turn = int(np.argmax(down > 0))
    turned = np.zeros(len(J), np.int64)
    if down.any():
      back = collapse.collapse_curve(params, J[turn:], x0=states[turn])
      turned[turn:] = _count(back, options.alpha)
  sizes = np.append(core_sizes, 0)
  return Sweep(
    J,
    level,
    down,
    up,
    turned,
    sizes[k.astype(int)],
    float(critical),
  )


def enough_rounds(key: jax.Array, edges: Any, num_nodes: int) -> int:
  """Rounds of switches that mix a null ensemble, from a few trial graphs.

  At least 20, and as many as it takes to accept three switches per edge: in a
  network with a dense core most switches would double an edge and are refused.

  Args:
    key: typed random key.
    edges: int[m, 2], each edge of a simple graph once.
    num_nodes: N.

  Returns:
    Number of rounds, at most 500.

  Raises:
    ValueError: `edges` is no simple graph.

  Example:
    >>> ring = np.stack([np.arange(40), (np.arange(40) + 1) % 40], 1)
    >>> enough_rounds(jax.random.key(0), ring, 40)
    20
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', null.UnderMixedWarning)
    trial = null.null_coreness(
      key, edges, num_nodes, 8, rounds=null.MIN_ROUNDS, chunk=8
    )
  per_round = trial.swaps_per_edge / null.MIN_ROUNDS
  # A little more, as eight graphs are few.
  wanted = math.ceil(1.03 * null.MIN_SWAPS_PER_EDGE / max(per_round, 1e-3))
  return min(max(null.MIN_ROUNDS, wanted), 500)


def _count(x, alpha):
  return np.sum(np.asarray(collapse.active_nodes(x, alpha)), axis=1)


def _nulls(result, options, index):
  key = jax.random.fold_in(jax.random.key(options.seed), index)
  nodes = len(result.coreness)
  rounds = options.rounds
  if rounds is None:
    rounds = enough_rounds(key, result.edges, nodes)
  with warnings.catch_warnings():
    # The report says how well it is mixed.
    warnings.simplefilter('ignore', null.UnderMixedWarning)
    return null.null_coreness(
      key, result.edges, nodes, options.num_nulls, rounds=rounds
    )
