"""Statistics of cores: where they lie, what they share, the shape of shells."""

from typing import Any, NamedTuple

import numpy as np


class ClusterTest(NamedTuple):
  """How often each module takes part in the innermost core.

  Attributes:
    count: int64[M], networks in which module a has a node in the core.
    frequency: float64[M], count / G.
    random_level: mean frequency, what chance would give each module.
    p_binomial: float64[M], P(at least count) if networks were independent and
      each held a module with probability `random_level`.
    p_exact: float64[M], the same if each network placed the number of modules
      that it has at random among the M (a Poisson-binomial law).
  """

  count: np.ndarray
  frequency: np.ndarray
  random_level: float
  p_binomial: np.ndarray
  p_exact: np.ndarray


class HypergeomTest(NamedTuple):
  """How many nodes of a core lie in another map, against chance.

  Attributes:
    num_nodes: N.
    num_other: nodes in the other map.
    num_core: nodes in the core.
    num_shared: nodes in both.
    mean: expected number of shared nodes if the core were drawn at random.
    std: its standard deviation.
    z: (num_shared - mean) / std; 0 where std is.
    p: one-sided p value.
    method: `'exact'` or `'paper'`.
  """

  num_nodes: int
  num_other: int
  num_core: int
  num_shared: int
  mean: float
  std: float
  z: float
  p: float
  method: str


def cluster_frequency(membership: Any) -> ClusterTest:
  """Tests which modules take part in the core more often than by chance.

  Figure 8 of arXiv:1903.09630, whose test is not named; both p values here are
  one-sided. The exact one is the stricter reading of "at random": a network
  with a core in r modules places them uniformly among all M.

  Args:
    membership: bool[G, M], does module a have a node in the core of network g.

  Returns:
    Frequencies and p values.

  Raises:
    ValueError: `membership` has another rank, no entry, or other values.

  Example:
    >>> test = cluster_frequency([[1, 0], [1, 0], [1, 1]])
    >>> test.count.tolist(), test.random_level, test.p_exact.tolist()
    ([3, 1], 0.6666666666666666, [0.25, 1.0])
  """
  membership = np.asarray(membership)
  if membership.ndim != 2 or not membership.size:
    raise ValueError(
      f'membership has shape {membership.shape}; expected [G, M].'
    )
  if not np.all((membership == 0) | (membership == 1)):
    raise ValueError('membership holds other values than 0 and 1.')
  stats = _scipy_stats()
  networks, modules = membership.shape
  count = membership.sum(axis=0).astype(np.int64)
  level = count.sum() / modules / networks
  chance = membership.sum(axis=1) / modules
  # Law of the number of networks that hold a given module.
  law = np.ones(1)
  for p in chance:
    law = np.convolve(law, [1 - p, p])
  # Summed from the small end: the tail keeps its digits.
  tail = np.cumsum(law[::-1])[::-1]
  return ClusterTest(
    count,
    count / networks,
    float(level),
    stats.binom.sf(count - 1, networks, level),
    np.minimum(tail[count], 1.0),
  )


def core_overlap(
  core: Any,
  other: Any,
  *,
  method: str = 'exact',
  num_draws: int = 100_000,
  seed: int = 0,
) -> HypergeomTest:
  """Tests whether a core shares more nodes with another map than by chance.

  Args:
    core: bool[N], nodes of the core.
    other: bool[N], nodes that are active in the other state.
    method: `'exact'`, the hypergeometric tail; or `'paper'`, Monte-Carlo draws
      and a one-sample t test of their mean against the observed number. The
      latter is there to repeat what was done, not to be believed: its standard
      error shrinks with the number of draws, so that any difference becomes
      significant.
    num_draws: for `'paper'`.
    seed: for `'paper'`.

  Returns:
    The test.

  Raises:
    ValueError: shapes differ, there is no node, an entry is neither 0 nor 1, or
      an option is unknown.

  Example:
    >>> core = np.arange(10) < 3
    >>> round(core_overlap(core, np.arange(10) < 4).p, 6)
    0.033333
  """
  core, other = np.asarray(core), np.asarray(other)
  if core.ndim != 1 or core.shape != other.shape or not core.size:
    raise ValueError(
      f'core has shape {core.shape} and other {other.shape}; expected [N] both.'
    )
  for name, mask in (('core', core), ('other', other)):
    if not np.all((mask == 0) | (mask == 1)):
      raise ValueError(
        f'{name} holds other values than 0 and 1; expected a mask over all '
        'nodes, not their numbers.'
      )
  if method not in ('exact', 'paper'):
    raise ValueError(f"method is {method!r}; expected 'exact' or 'paper'.")
  core, other = core.astype(bool), other.astype(bool)
  total, marked, drawn = core.size, int(other.sum()), int(core.sum())
  shared = int(np.sum(core & other))
  stats = _scipy_stats()
  part = marked / total
  mean = drawn * part
  spread = (total - drawn) / max(total - 1, 1)
  std = float(np.sqrt(mean * (1 - part) * spread))
  if method == 'exact':
    p = stats.hypergeom.sf(shared - 1, total, marked, drawn)
  else:
    if num_draws < 2:
      raise ValueError(f'num_draws is {num_draws}; expected at least 2.')
    rng = np.random.default_rng(seed)
    draws = rng.hypergeometric(marked, total - marked, drawn, num_draws)
    mean, std = float(draws.mean()), float(draws.std(ddof=1))
    p = 1.0
    if std > 0:
      t = (shared - mean) / (std / np.sqrt(num_draws))
      p = stats.t.sf(t, num_draws - 1)
  z = (shared - mean) / std if std > 0 else 0.0
  return HypergeomTest(
    total, marked, drawn, shared, mean, std, z, float(p), method
  )


def shell_thirds(occupancy: Any) -> np.ndarray:
  """Nodes in the outer, middle and inner third of the shells 1..k_max.

  Args:
    occupancy: [k_max + 1], nodes in shells 0, 1, ...; isolated nodes (shell 0)
      do not count.

  Returns:
    float64[3].

  Raises:
    ValueError: `occupancy` has another rank, no shell or a negative entry.

  Example:
    >>> shell_thirds([9, 5, 1, 4]).tolist()
    [5.0, 1.0, 4.0]
  """
  occupancy = np.asarray(occupancy, np.float64)
  if occupancy.ndim != 1 or not occupancy.size or np.any(occupancy < 0):
    raise ValueError(
      f'occupancy has shape {occupancy.shape}; expected [k_max + 1] counts.'
    )
  thirds = np.array_split(occupancy[1:], 3)
  return np.array([third.sum() for third in thirds])


def u_shape_index(occupancy: Any) -> float:
  """How much the occupancy of shells looks like a U.

  1 - middle / min(ends) of the `shell_thirds`: 1 for an empty middle, 0 or less
  where there is no U.

  Args:
    occupancy: [k_max + 1], nodes in shells 0, 1, ...

  Returns:
    The index; NaN for fewer than three shells, where thirds mean nothing.

  Raises:
    ValueError: as `shell_thirds`.

  Example:
    >>> u_shape_index([9, 5, 1, 4])
    0.75
  """
  outer, middle, inner = shell_thirds(occupancy)
  if len(occupancy) < 4:
    return float('nan')
  ends = min(outer, inner)
  if ends == 0:
    return float('-inf') if middle else float('nan')
  return float(1 - middle / ends)


def _scipy_stats():
  try:
    from scipy import stats
  except ImportError as error:
    raise ImportError(
      'p values need scipy: pip install jaxpapers[kcore]'
    ) from error
  return stats
