"""k-core percolation of brain networks, from BOLD series to collapse.

Arese Lucini, Del Ferraro, Sigman and Makse (2019), arXiv:1903.09630.
"""

from jaxpapers.kcore.coreness import (
  coreness,
  degeneracy_bound,
  k_core_mask,
  shell_occupancy,
)
