"""How much the core depends on the choices made on the way to the network."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpapers.kcore import edges as graphs
from jaxpapers.kcore import network
from jaxpapers.kcore.coreness import coreness

STEPS = (None, 0.005, 0.01, 0.02, 0.05)
QUORUMS = (0.3, 0.5, 0.7)


class SensitivityRow(NamedTuple):
  """One choice and what comes of it.

  Attributes:
    strategy: of `functional_network`.
    step: grid of thresholds, None for exact levels.
    quorum: part of a module that has to merge; None where it plays no part.
    links: number of links.
    k_max: largest coreness.
    core_size: nodes in the k_max-core.
    core_by_module: int64[M], where they lie.
    jaccard: nodes shared with the core of the first row, over nodes in either.
    problem: why there is no network, or ''; the numbers are then 0.
  """

  strategy: str
  step: float | None
  quorum: float | None
  links: int
  k_max: int
  core_size: int
  core_by_module: np.ndarray
  jaccard: float
  problem: str = ''


def sensitivity_table(
  corr: Any,
  module: Any,
  *,
  step: float | None = 0.01,
  quorum: float = 0.5,
  steps: Sequence[float | None] = STEPS,
  quorums: Sequence[float] = QUORUMS,
) -> list[SensitivityRow]:
  """The k_max-core under other grids, quorums and strategies.

  One choice is changed at a time. A module that merges late gets a low
  lambda_in, hence many links, and can host the core for that reason alone. The
  grid hardly moves k_max, but it does move the core.

  Args:
    corr: [N, N], as in `functional_network`.
    module: int[N] labels.
    step: of the first row.
    quorum: of the first row.
    steps: grids to try.
    quorums: to try.

  Returns:
    Rows; the first is `'module_merge'` with `step` and `quorum`, the last is
    one threshold for all that gives at least as many links as the first.

  Raises:
    ValueError: as `functional_network`, for the first row.

  Example:
    >>> from jaxpapers.kcore.synthetic import synth_bold
    >>> from jaxpapers.kcore import correlation_matrix
    >>> made = synth_bold(0)
    >>> corr = correlation_matrix(made.series)
    >>> rows = sensitivity_table(corr, made.module, steps=(), quorums=())
    >>> [(row.strategy, row.k_max) for row in rows][0]
    ('module_merge', 95)
  """
  module = np.asarray(module)
  first = network.functional_network(corr, module, step=step, quorum=quorum)
  pairs = len(module) * (len(module) - 1) / 2
  density = first.adj.sum() / 2 / pairs
  choices = [('module_merge', step, quorum)]
  choices += [('module_merge', s, quorum) for s in steps if s != step]
  choices += [('module_merge', step, q) for q in quorums if q != quorum]
  choices += [('largest_jump', step, None), ('global', step, None)]
  rows, reference = [], None
  for strategy, grid, part in choices:
    options = {'strategy': strategy, 'step': grid}
    if part is not None:
      options['quorum'] = part
    if strategy == 'global':
      options['density'] = max(density, 1 / pairs)
    try:
      net = network.functional_network(corr, module, **options)
    except ValueError as error:
      empty = np.zeros(int(module.max()) + 1, np.int64)
      rows.append(
        SensitivityRow(strategy, grid, part, 0, 0, 0, empty, 0.0, str(error))
      )
      continue
    links = graphs.edge_list(net.adj)
    values = np.asarray(coreness(graphs.Edges(links, len(module))))
    core = (values == values.max()) & (values.max() > 0)
    reference = core if reference is None else reference
    either = np.sum(core | reference)
    rows.append(
      SensitivityRow(
        strategy,
        grid,
        part,
        len(links),
        int(values.max()),
        int(core.sum()),
        np.bincount(module[core], minlength=int(module.max()) + 1),
        float(np.sum(core & reference) / either) if either else 1.0,
      )
    )
  return rows
