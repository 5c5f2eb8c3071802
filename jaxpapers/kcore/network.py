"""From a correlation matrix to a binary network, by its percolation jumps."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpapers.kcore import correlation, percolation
from jaxpapers.kcore import edges as graphs

STRATEGIES = ('module_merge', 'largest_jump', 'global')


class Network(NamedTuple):
  """A functional brain network.

  Attributes:
    adj: bool[N, N], symmetric, false on the diagonal. Isolated nodes stay.
    weights: float64[N, N], the correlation on links and 0 elsewhere.
    lambda_in: float64[M], threshold of links inside each module.
    lambda_out: float64[M, M], threshold of links between two modules; NaN for
      pairs that never merge and have no links. On the diagonal, the level at
      which the module itself is connected (not used for links).
  """

  adj: Any
  weights: Any
  lambda_in: Any
  lambda_out: Any


def functional_network(
  corr: Any,
  module: Any = None,
  *,
  strategy: str = 'module_merge',
  step: float | None = 0.01,
  quorum: float = 0.5,
  threshold: float | None = None,
  density: float | None = None,
) -> Network:
  """Thresholds a correlation matrix at its percolation jumps.

  Nodes i and j of one module a are linked if C_ij >= lambda_in(a), nodes of two
  modules if C_ij >= lambda_out(a, b) (section "Functional brain networks" of
  arXiv:1903.09630). Strategies:

  * `'module_merge'`: lambda_out(a, b) is the level at which modules a and b
    merge, lambda_in(a) the level just above the first merge of a; see
    `module_merge_thresholds`.
  * `'largest_jump'`: one pair for all. lambda_out is the level of the largest
    jump of the giant component, lambda_in the level before it.
  * `'global'`: one threshold for all links: `threshold`, or the highest one
    that keeps at least the fraction `density` of all pairs.

  A threshold can be negative where modules hardly correlate; the links between
  them may then have negative weights, which the collapse model refuses.

  The location of the innermost core depends on this choice much more than
  k_max does: a module that merges late gets a low lambda_in and many links.

  A function of the host: thresholds are compared as integers made in float64.
  Costs N^2 (N^2 log N for step None).

  Args:
    corr: [N, N], finite and exactly symmetric (`correlation_matrix`).
    module: int[N], labels 0..M-1. The strategy `'global'` does without.
    strategy: one of the above.
    step: grid of thresholds, or None for exact levels.
    quorum: fraction of a module that has to be in the merged component.
    threshold: for `'global'`, keeps C_ij >= threshold.
    density: for `'global'`, in (0, 1].

  Returns:
    The network, in numpy arrays.

  Raises:
    ValueError: names the argument: `corr` is not finite or not symmetric,
      `module` is missing, has an empty label or a module that merges with no
      other, or an option is out of range.

  Example:
    >>> corr = np.array([[1, 0.9, 0.5], [0.9, 1, 0.4], [0.5, 0.4, 1]])
    >>> net = functional_network(corr, np.array([0, 0, 1]))
    >>> net.adj.sum(1).tolist(), net.lambda_out[0, 1]
    ([2, 1, 1], np.float64(0.5))
  """
  if strategy not in STRATEGIES:
    raise ValueError(f'strategy is {strategy!r}; expected one of {STRATEGIES}.')
  if graphs.is_traced(corr, module):
    raise ValueError(
      'corr is traced: functional_network runs on the host. Under jit, use '
      'quantize_levels outside and module_merge_thresholds inside.'
    )
  graphs.check_symmetric(corr, 'corr')
  corr = np.asarray(corr)
  n = len(corr)
  if strategy == 'global' and module is None:
    module = np.zeros(n, np.int32)
  if module is None or not np.size(module):
    raise ValueError(
      f'module is {module}; strategy {strategy!r} needs the label 0..M-1 of '
      'each node.'
    )
  module = percolation.known_labels(module, n)
  num_modules = int(np.max(module, initial=0)) + 1
  if strategy == 'global':
    return _global(corr, module, num_modules, step, threshold, density)
  for name, value in (('threshold', threshold), ('density', density)):
    if value is not None:
      raise ValueError(
        f"{name} is {value}; only strategy 'global' takes it, not {strategy!r}."
      )
  levels, values = correlation.quantize_levels(corr, step)
  if strategy == 'largest_jump':
    inside, between = _largest_jump(levels, step is None)
    inside = np.full(num_modules, inside)
    between = np.full((num_modules, num_modules), between)
  else:
    inside, between = _module_merge(levels, module, num_modules, quorum)
  # Compared as integers: the values are for the reader.
  same = module[:, None] == module[None, :]
  needed = np.where(
    same, inside[module][:, None], between[module[:, None], module[None, :]]
  )
  adj = (levels >= needed) & (needed >= 0) & (levels >= 0)
  return Network(
    adj,
    np.where(adj, corr.astype(np.float64), 0.0),
    _value(values, inside, step),
    _value(values, between, step),
  )


def module_link_counts(adj: Any, module: Any) -> np.ndarray:
  """Number of links inside each module and between each pair.

  Args:
    adj: bool[N, N] adjacency matrix.
    module: int[N] labels 0..M-1.

  Returns:
    int64[M, M], symmetric, on the host; each link counts once.

  Raises:
    ValueError: `adj` is no adjacency matrix, or labels do not fit.

  Example:
    >>> adj = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0]])
    >>> module_link_counts(adj, np.array([0, 0, 1])).tolist()
    [[1, 1], [1, 0]]
  """
  graphs.check_square(adj, 'adj')
  module = percolation.known_labels(module, np.shape(adj)[0])
  num_modules = int(np.max(module, initial=0)) + 1
  u, v = graphs.edge_list(adj).T
  counts = np.zeros((num_modules, num_modules), np.int64)
  np.add.at(counts, (module[u], module[v]), 1)
  return counts + counts.T - np.diag(np.diagonal(counts))


def _module_merge(levels, module, num_modules, quorum):
  if num_modules < 2:
    raise ValueError(
      'module holds one label only, and one module never merges; expected at '
      "least two, or strategy='global'."
    )
  inside, between = jax.device_get(
    percolation.module_merge_thresholds(levels, module, num_modules, quorum)
  )
  alone = np.flatnonzero(inside < 0)
  if alone.size:
    raise ValueError(
      f'module: {alone.tolist()} merge with no other at any level with quorum='
      f'{quorum}; lambda_in has no value there. Lower the quorum, or use '
      "strategy='global'."
    )
  return inside, between


def _largest_jump(levels, exact):
  if len(levels) < 2:
    raise ValueError(
      f'corr has shape {levels.shape}; a jump needs at least two nodes.'
    )
  curve = jax.device_get(percolation.percolation_curve(levels))
  # Descending distinct levels, with the size after each.
  level, where = np.unique(-curve.level, return_index=True)
  level, giant = -level, curve.giant[where]
  jump = int(np.argmax(np.diff(giant, prepend=1)))
  between = int(level[jump])
  # On a grid every threshold is a level, whether or not something happens.
  before = level[jump - 1] if exact and jump else between + 1
  return int(before), between


def _global(corr, module, num_modules, step, threshold, density):
  if (threshold is None) == (density is None):
    raise ValueError(
      f'threshold is {threshold} and density is {density}; expected exactly one'
      " of them with strategy='global'."
    )
  if density is not None:
    if not 0 < density <= 1:
      raise ValueError(f'density is {density}; expected a fraction in (0, 1].')
    levels, values = correlation.quantize_levels(corr, step)
    upper = np.sort(levels[np.triu_indices(len(corr), 1)])
    if not upper.size:
      raise ValueError('corr has no pair of nodes; expected two or more.')
    # The largest threshold that keeps at least this many pairs.
    wanted = max(1, int(np.ceil(round(density * upper.size, 6))))
    level = upper[upper.size - wanted]
    threshold, adj = values[level], levels >= level
  else:
    if not np.isfinite(threshold):
      raise ValueError(f'threshold is {threshold}; expected a number.')
    # In the type of corr: a float32 of 0.29 is below 0.29.
    adj = corr >= float(threshold)
    np.fill_diagonal(adj, False)
  between = np.full((num_modules, num_modules), float(threshold))
  weights = np.where(adj, corr.astype(np.float64), 0.0)
  return Network(adj, weights, between[0].copy(), between)


def _value(values, level, step):
  """Thresholds as numbers: of levels, the one above the top, and none."""
  beyond = np.inf if step is None else values[-1] + step
  table = np.append(values, beyond)
  value = table[np.clip(level, 0, len(values))]
  value = np.where(level > len(values), np.inf, value)
  return np.where(level < 0, np.nan, value)
