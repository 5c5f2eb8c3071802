"""k-core percolation of brain networks, from BOLD series to collapse.

Arese Lucini, Del Ferraro, Sigman and Makse (2019), arXiv:1903.09630.
"""

from jaxpapers.kcore.collapse import (
  CollapseParams,
  collapse_curve,
  collapse_rhs,
  critical_coupling,
  fully_active,
  steady_state,
)
from jaxpapers.kcore.coreness import (
  coreness,
  degeneracy_bound,
  k_core_mask,
  shell_occupancy,
)
from jaxpapers.kcore.correlation import (
  correlation_matrix,
  quantize_levels,
  usable_series,
)
from jaxpapers.kcore.edges import Edges, adjacency_matrix, edge_list
from jaxpapers.kcore.network import (
  Network,
  functional_network,
  module_link_counts,
)
from jaxpapers.kcore.null import (
  Mixing,
  NullSummary,
  UnderMixedWarning,
  null_chunks,
  null_coreness,
  null_mixing,
  summarize,
)
from jaxpapers.kcore.null_state import (
  NullState,
  load_null_state,
  save_null_state,
)
from jaxpapers.kcore.percolation import (
  Percolation,
  giant_at,
  module_merge_thresholds,
  percolation_curve,
)
from jaxpapers.kcore.rewire import RewireResult, rewire
from jaxpapers.kcore.score import s_core_mask

__all__ = [
  'adjacency_matrix',
  'collapse_curve',
  'collapse_rhs',
  'CollapseParams',
  'coreness',
  'correlation_matrix',
  'critical_coupling',
  'degeneracy_bound',
  'edge_list',
  'Edges',
  'fully_active',
  'functional_network',
  'giant_at',
  'k_core_mask',
  'load_null_state',
  'Mixing',
  'module_link_counts',
  'module_merge_thresholds',
  'Network',
  'null_chunks',
  'null_coreness',
  'null_mixing',
  'NullState',
  'NullSummary',
  'Percolation',
  'percolation_curve',
  'quantize_levels',
  'rewire',
  'RewireResult',
  's_core_mask',
  'save_null_state',
  'shell_occupancy',
  'steady_state',
  'summarize',
  'UnderMixedWarning',
  'usable_series',
]
