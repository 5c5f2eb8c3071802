"""Spatial clusters: voxels that touch, through jax-md's neighbour lists."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Neighbours by face; by face or edge; by face, edge or corner: the largest
# number of coordinates that differ.
CONNECTIVITY = {6: 1, 18: 2, 26: 3}
# Above sqrt(3), the distance of voxels that share a corner, and below 2.
_CUTOFF = 1.75


def spatial_clusters(
  coords: Any, connectivity: int = 26, min_size: int = 6
) -> np.ndarray:
  """Labels sets of voxels that hang together.

  Neighbours are found by `jax_md.partition.neighbor_list`, so that cost grows
  with the number of voxels and not with its square or with the volume.

  Args:
    coords: int[N, 3], distinct voxel indices.
    connectivity: 6 for voxels that share a face, 18 for those that also share
      an edge, 26 for those that also share a corner.
    min_size: smaller clusters are no cluster.

  Returns:
    int32[N]: 0..M-1 in the order in which clusters begin when voxels are sorted
    by index, -1 for a voxel of none. The partition is that of
    `scipy.ndimage.label`.

  Raises:
    ValueError: `coords` is not such an array, or holds a voxel twice; or
      another argument is out of range.

  Example:
    >>> voxels = np.array([[0, 0, 0], [1, 1, 1], [5, 5, 5]])
    >>> spatial_clusters(voxels, min_size=2).tolist()
    [0, 0, -1]
  """
  if connectivity not in CONNECTIVITY:
    raise ValueError(
      f'connectivity is {connectivity}; expected one of {list(CONNECTIVITY)}.'
    )
  if min_size < 1:
    raise ValueError(f'min_size is {min_size}; expected at least 1.')
  coords = np.asarray(coords)
  if coords.ndim != 2 or coords.shape[1] != 3:
    raise ValueError(f'coords has shape {coords.shape}; expected [N, 3].')
  if not len(coords):
    return np.zeros(0, np.int32)
  if not np.all(np.isfinite(coords)) or np.any(coords != np.round(coords)):
    raise ValueError(
      'coords are no integers; expected voxel indices, not millimetres.'
    )
  coords = coords.astype(np.int64)
  if len(np.unique(coords, axis=0)) < len(coords):
    raise ValueError('coords holds a voxel twice.')
  component = np.asarray(_components(*_touching(coords, connectivity)))
  order = np.lexsort(coords.T[::-1])
  _, first, inverse, size = np.unique(
    component[order],
    return_index=True,
    return_inverse=True,
    return_counts=True,
  )
  large = size >= min_size
  name = np.full(len(size), -1, np.int32)
  kept = np.flatnonzero(large)
  name[kept[np.argsort(first[kept])]] = np.arange(len(kept))
  label = np.empty(len(coords), np.int32)
  label[order] = name[inverse]
  return label


def _touching(coords, connectivity):
  """Pairs of voxels that touch, both ways round: senders and receivers."""
  try:
    from jax_md import partition, space
  except ImportError as error:
    raise ImportError(
      'Spatial clusters need jax-md: pip install jaxpapers[kcore]'
    ) from error

  n = len(coords)
  # Room for one more cell on all sides, and whole numbers that float32 holds.
  position = jnp.asarray(coords - coords.min(axis=0) + 1, jnp.float32)
  box = float(np.max(np.ptp(coords, axis=0)) + 4)
  displacement, _ = space.free()
  search = partition.neighbor_list(
    displacement,
    box,
    _CUTOFF,
    dr_threshold=0.0,
    # Cells pay where there are several along each side.
    disable_cell_list=box < 4 * _CUTOFF,
    format=partition.Sparse,
  )
  found = search.allocate(position)
  receiver, sender = np.asarray(found.idx)
  real = (sender < n) & (receiver < n)
  sender, receiver = sender[real], receiver[real]
  offset = np.abs(coords[sender] - coords[receiver])
  touch = offset.max(axis=1, initial=0) == 1
  touch &= offset.sum(axis=1) <= CONNECTIVITY[connectivity]
  return sender[touch], receiver[touch], n


def _components(sender, receiver, num_nodes):
  return _propagate(
    jnp.asarray(sender, jnp.int32),
    jnp.asarray(receiver, jnp.int32),
    jnp.arange(num_nodes, dtype=jnp.int32),
  )


@jax.jit
def _propagate(sender, receiver, label):
  """Smallest index in each component, by spreading and by jumping ahead."""

  def step(state):
    label, _ = state
    new = label.at[receiver].min(label[sender])
    # The label of one's label is as good and farther away.
    new = jnp.minimum(new, new[new])
    return new, jnp.any(new != label)

  state = (label, jnp.ones((), bool))
  return jax.lax.while_loop(lambda state: state[1], step, state)[0]
