"""k-core percolation of brain networks, from BOLD series to collapse.

Arese Lucini, Del Ferraro, Sigman and Makse (2019), arXiv:1903.09630.
"""

from jaxpapers.kcore.clusters import spatial_clusters
from jaxpapers.kcore.collapse import (
  CollapseParams,
  active_nodes,
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
from jaxpapers.kcore.glm import (
  active_voxels,
  canonical_hrf,
  consensus_map,
  design_matrix,
  event_boxcar,
  glm_tmap,
  nuisance_columns,
  pooled_design,
  residual_series,
)
from jaxpapers.kcore.io import (
  BidsRun,
  Bold,
  Events,
  find_bids_runs,
  load_bold,
  read_events,
  read_labels,
)
from jaxpapers.kcore.layout import shell_layout
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
from jaxpapers.kcore.pipeline import (
  Analysis,
  NetworkResult,
  Options,
  analyze,
  analyze_network,
)
from jaxpapers.kcore.rewire import RewireResult, rewire
from jaxpapers.kcore.score import s_core_mask
from jaxpapers.kcore.sensitivity import SensitivityRow, sensitivity_table
from jaxpapers.kcore.statistics import (
  ClusterTest,
  HypergeomTest,
  cluster_frequency,
  core_overlap,
  shell_thirds,
  u_shape_index,
)
from jaxpapers.kcore.study import (
  Run,
  Study,
  bold_study,
  matrix_study,
  synthetic_study,
)
from jaxpapers.kcore.synthetic import Region, SynthBold, synth_bold

__all__ = [
  'active_nodes',
  'active_voxels',
  'adjacency_matrix',
  'Analysis',
  'analyze',
  'analyze_network',
  'BidsRun',
  'Bold',
  'bold_study',
  'canonical_hrf',
  'cluster_frequency',
  'ClusterTest',
  'collapse_curve',
  'collapse_rhs',
  'CollapseParams',
  'consensus_map',
  'core_overlap',
  'coreness',
  'correlation_matrix',
  'critical_coupling',
  'degeneracy_bound',
  'design_matrix',
  'edge_list',
  'Edges',
  'event_boxcar',
  'Events',
  'find_bids_runs',
  'fully_active',
  'functional_network',
  'giant_at',
  'glm_tmap',
  'HypergeomTest',
  'k_core_mask',
  'load_bold',
  'load_null_state',
  'matrix_study',
  'Mixing',
  'module_link_counts',
  'module_merge_thresholds',
  'Network',
  'NetworkResult',
  'nuisance_columns',
  'null_chunks',
  'null_coreness',
  'null_mixing',
  'NullState',
  'NullSummary',
  'Options',
  'Percolation',
  'percolation_curve',
  'pooled_design',
  'quantize_levels',
  'read_events',
  'read_labels',
  'Region',
  'residual_series',
  'rewire',
  'RewireResult',
  'Run',
  's_core_mask',
  'save_null_state',
  'sensitivity_table',
  'SensitivityRow',
  'shell_layout',
  'shell_occupancy',
  'shell_thirds',
  'spatial_clusters',
  'steady_state',
  'Study',
  'summarize',
  'synth_bold',
  'SynthBold',
  'synthetic_study',
  'u_shape_index',
  'UnderMixedWarning',
  'usable_series',
]
