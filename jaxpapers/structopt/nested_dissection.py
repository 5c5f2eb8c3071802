"""Static elimination plans for nested dissection on a rectangular grid.

The grid is cut into small leaf blocks of elements. Neighbouring blocks are
merged level by level; a merge eliminates the nodes that no other block shares
and keeps the rest. Only index arithmetic happens here, once per mesh size, in
numpy; ``direct.py`` runs the numerical factorisation over these plans.

Blocks of one level are handled in batches. Small blocks all keep their whole
perimeter, so one batch holds them all. For the few large blocks near the root
it pays to eliminate the nodes on the outer boundary of the domain as early as
possible (they connect to nothing outside the block), which roughly halves the
arithmetic; such blocks are batched by which of their sides are open.

Reference: A. George, Nested dissection of a regular finite element mesh, SIAM
J. Numer. Anal. 10 (1973) 345-363.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np

# Blocks are distinguished by their open sides once the block grid is at most
# this large; below that (smaller, more numerous blocks) one batch is cheaper.
# Small meshes stop earlier: they gain little and compile faster.
_CLASSIFIED_BLOCKS = {'small': 4, 'large': 16}
_SMALL_ELEMENTS = 128 * 128


@dataclasses.dataclass(frozen=True, eq=False)
class Patch:
  """Contributions of the children to one part of a merged matrix or vector.

  Attributes:
    start: first row (and column) that this patch adds to.
    index: integer positions in the concatenation of the flattened child
      arrays; the last position of the concatenation holds a zero.
  """

  start: tuple[int, ...]
  index: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
  """Equally shaped blocks of one level, processed as one batch.

  Attributes:
    blocks: positions ``(row, column)`` in the block grid of the level.
    eliminated: number of nodes eliminated in this block.
    kept: node coordinates ``(y, x)`` relative to the block, in order.
    children: for merges, per child slot ``(group, members)`` into the level
      below; empty for leaves.
    matrix_patches: patches of the (eliminated, eliminated), (eliminated,
      kept) and (kept, kept) parts.
    vector_patches: patches of the stacked (eliminated, kept) vector.
    down: per child slot, position of every kept degree of freedom of the child
      in the stacked (eliminated, kept) vector of this block.
    nodes: for leaves, ``[blocks, local nodes]`` node numbers of the padded
      grid, eliminated nodes first.
  """

  blocks: tuple[tuple[int, int], ...]
  eliminated: int
  kept: tuple[tuple[int, int], ...]
  children: tuple[tuple[int, np.ndarray], ...] = ()
  matrix_patches: tuple[tuple[Patch, ...], ...] = ()
  vector_patches: tuple[Patch, ...] = ()
  down: tuple[np.ndarray, ...] = ()
  nodes: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """Elimination plan of an ``ny x nx`` element grid.

  Attributes:
    ny: number of element rows of the mesh.
    nx: number of element columns of the mesh.
    leaf: elements ``(rows, columns)`` of a leaf block.
    grid: number of leaf blocks ``(rows, columns)``; ``leaf * grid`` is the
      padded mesh.
    levels: groups per level, leaves first, the root (one block) last.
    owner: ``[leaf nodes]`` flat positions, in the concatenation over leaf
      groups of ``[blocks, local nodes]``, of one copy of every padded node.
    flops: floating point operations of one factorisation (estimate).
  """

  ny: int
  nx: int
  leaf: tuple[int, int]
  grid: tuple[int, int]
  levels: tuple[tuple[Group, ...], ...]
  owner: np.ndarray
  flops: float

  @property
  def padded(self):
    """Element rows and columns of the padded mesh."""
    return self.leaf[0] * self.grid[0], self.leaf[1] * self.grid[1]


def _is_smooth(n):
  for p in (2, 3):
    while n % p == 0:
      n //= p
  return n == 1


def _split(n):
  """Leaf size and number of leaves for one axis, with the least padding."""
  best = None
  for leaf in (4, 5, 3, 6):
    count = max(1, math.ceil(n / leaf))
    while not _is_smooth(count):
      count += 1
    cost = (leaf * count - n, (4, 5, 3, 6).index(leaf))
    if best is None or cost < best[0]:
      best = (cost, leaf, count)
  return best[1:]


def _merge_factors(grid, size):
  """How many blocks to merge along each axis at the next level."""

  def factor(n):
    return 1 if n == 1 else (2 if n % 2 == 0 else 3)

  fy, fx = factor(grid[0]), factor(grid[1])
  # Keep blocks close to square: never lengthen the long side of a block that
  # is already elongated while its short side can still grow.
  if fx > 1 and size[0] >= 2 * size[1]:
    fy = 1
  elif fy > 1 and size[1] >= 2 * size[0]:
    fx = 1
  return fy, fx


def _open_sides(block, grid, limit):
  """Which of (top, bottom, left, right) have a neighbour, if it matters."""
  if grid[0] * grid[1] > limit:
    return True, True, True, True
  y, x = block
  return y > 0, y < grid[0] - 1, x > 0, x < grid[1] - 1


def _is_kept(node, size, sides):
  y, x = node
  top, bottom, left, right = sides
  return (
    (top and y == 0)
    or (bottom and y == size[0])
    or (left and x == 0)
    or (right and x == size[1])
  )


def _leaf_groups(grid, leaf, limit):
  size = leaf
  stride = grid[1] * leaf[1] + 1
  members = {}
  for block in itertools.product(range(grid[0]), range(grid[1])):
    members.setdefault(_open_sides(block, grid, limit), []).append(block)
  groups = []
  for sides, blocks in members.items():
    local = list(itertools.product(range(size[0] + 1), range(size[1] + 1)))
    kept = tuple(n for n in local if _is_kept(n, size, sides))
    gone = [n for n in local if not _is_kept(n, size, sides)]
    order = np.array(gone + list(kept))
    corner = np.array(blocks) * np.array(leaf)
    nodes = (corner[:, None, 0] + order[:, 0]) * stride + (
      corner[:, None, 1] + order[:, 1]
    )
    groups.append(Group(tuple(blocks), len(gone), kept, nodes=nodes))
  return groups


def _dofs(nodes):
  """Degree-of-freedom positions of node positions, -1 staying -1."""
  nodes = np.asarray(nodes)
  pair = np.stack([2 * nodes, 2 * nodes + 1], axis=-1)
  return np.where(nodes[..., None] < 0, -1, pair).reshape(-1)


def _patches(positions, offsets, strides, zero):
  """Gather maps that sum child arrays into a merged array.

  Args:
    positions: per axis, per child, the child's position of every merged row.
    offsets: start of each flattened child in the concatenation.
    strides: row length of each child array.
    zero: position of the zero in the concatenation.

  Returns:
    A tuple of patches: the first covers everything, later ones only the
    bounding box of entries with that many contributions.
  """
  shape = tuple(len(p[0]) for p in positions)
  found = []  # per multiplicity, index arrays
  seen = np.zeros(shape, np.int8)
  for child, offset in enumerate(offsets):
    if len(shape) == 2:
      rows, cols = positions[0][child], positions[1][child]
      valid = (rows >= 0)[:, None] & (cols >= 0)[None, :]
      where = offset + rows[:, None] * strides[child] + cols[None, :]
    else:
      valid = positions[0][child] >= 0
      where = offset + positions[0][child]
    if not valid.any():
      continue
    for k in range(int(seen[valid].max()) + 1):
      if len(found) <= k:
        found.append(np.full(shape, zero, np.int32))
      now = valid & (seen == k)
      found[k][now] = where[now]
    seen[valid] += 1
  patches = []
  for k, index in enumerate(found):
    start = (0,) * len(shape)
    if k:
      hit = np.argwhere(index != zero)
      start, stop = hit.min(0), hit.max(0) + 1
      index = index[
        tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
      ]
      start = tuple(int(s) for s in start)
    patches.append(Patch(start, np.ascontiguousarray(index)))
  if not patches:
    patches = [Patch((0,) * len(shape), np.full(shape, zero, np.int32))]
  return tuple(patches)


def _merge_level(groups, grid, size, factors, limit):
  """Groups of the level above ``groups``, with its grid and block size."""
  where = {
    block: (g, i)
    for g, group in enumerate(groups)
    for i, block in enumerate(group.blocks)
  }
  new_grid = grid[0] // factors[0], grid[1] // factors[1]
  new_size = size[0] * factors[0], size[1] * factors[1]
  slots = list(itertools.product(range(factors[0]), range(factors[1])))
  members = {}
  for block in itertools.product(range(new_grid[0]), range(new_grid[1])):
    below = [
      where[block[0] * factors[0] + sy, block[1] * factors[1] + sx]
      for sy, sx in slots
    ]
    key = _open_sides(block, new_grid, limit), tuple(g for g, _ in below)
    members.setdefault(key, []).append((block, [i for _, i in below]))
  merged = []
  for (sides, child_groups), found in members.items():
    count = {}
    child_nodes = []
    for (sy, sx), g in zip(slots, child_groups, strict=True):
      at = [(y + sy * size[0], x + sx * size[1]) for y, x in groups[g].kept]
      child_nodes.append(at)
      for node in at:
        count[node] = count.get(node, 0) + 1
    # Shared nodes sit next to each other around the split between eliminated
    # and kept, so that the boxes of repeated contributions stay small.
    nodes = sorted(
      count,
      key=lambda n: (
        _is_kept(n, new_size, sides),
        -count[n] if _is_kept(n, new_size, sides) else count[n],
        n[1] % new_size[1] == 0,
        n,
      ),
    )
    kept = tuple(n for n in nodes if _is_kept(n, new_size, sides))
    gone = len(nodes) - len(kept)
    position = {n: i for i, n in enumerate(nodes)}
    inverse = []  # per child: child's dof position of every merged dof
    down = []
    for at in child_nodes:
      inv = np.full(len(nodes), -1)
      down_nodes = np.array([position[n] for n in at], np.int64)
      inv[down_nodes] = np.arange(len(at))
      inverse.append(_dofs(inv))
      down.append(_dofs(down_nodes).astype(np.int32))
    strides = [2 * len(at) for at in child_nodes]
    sizes = [s * s for s in strides]
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
    zero = int(sum(sizes))
    e = 2 * gone
    top = [inv[:e] for inv in inverse]
    low = [inv[e:] for inv in inverse]
    parts = tuple(
      _patches(rows_cols, offsets, strides, zero)
      for rows_cols in ((top, top), (top, low), (low, low))
    )
    vector_offsets = np.concatenate([[0], np.cumsum(strides)[:-1]]).astype(int)
    vector = _patches((inverse,), vector_offsets, strides, int(sum(strides)))
    children = tuple(
      (g, np.array([members_of[slot] for _, members_of in found]))
      for slot, g in enumerate(child_groups)
    )
    merged.append(
      Group(
        blocks=tuple(block for block, _ in found),
        eliminated=gone,
        kept=kept,
        children=children,
        matrix_patches=parts,
        vector_patches=vector,
        down=tuple(down),
      )
    )
  return merged, new_grid, new_size


@functools.lru_cache(maxsize=32)
def make_plan(ny, nx):
  """Elimination plan for a mesh of ``ny`` rows and ``nx`` columns.

  Any size works: a mesh that does not divide into leaf blocks is padded with
  void elements whose outer nodes are fixed.

  Args:
    ny: number of element rows, a positive integer.
    nx: number of element columns, a positive integer.

  Returns:
    A ``Plan``; the same object for the same arguments.

  Example:
    >>> make_plan(23, 61).padded
    (24, 64)
  """
  leaf_y, grid_y = _split(ny)
  leaf_x, grid_x = _split(nx)
  leaf, grid = (leaf_y, leaf_x), (grid_y, grid_x)
  limit = _CLASSIFIED_BLOCKS['small' if ny * nx <= _SMALL_ELEMENTS else 'large']
  groups = _leaf_groups(grid, leaf, limit)
  levels = [tuple(groups)]
  size = leaf
  now = grid
  while now != (1, 1):
    factors = _merge_factors(now, size)
    groups, now, size = _merge_level(groups, now, size, factors, limit)
    levels.append(tuple(groups))
  flat = np.concatenate([g.nodes.reshape(-1) for g in levels[0]])
  _, owner = np.unique(flat, return_index=True)
  flops = 0.0
  for group in itertools.chain.from_iterable(levels):
    e, k = 2 * group.eliminated, 2 * len(group.kept)
    flops += len(group.blocks) * (e**3 / 3 + e * e * k + 2 * e * k * k)
  return Plan(ny, nx, leaf, grid, tuple(levels), owner, flops)
