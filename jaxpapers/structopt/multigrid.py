"""Matrix-free conjugate gradients with a Galerkin multigrid preconditioner.

One code for plane (Q4) and solid (H8) elements on regular grids. The finest
operator is applied from the Young's moduli alone; coarser ones are formed
element by element, ``K_coarse = sum over children P^T K_child P``, which keeps
the stiffness contrast of a design (1e9) visible on every level. Fixed degrees
of freedom are zeroed in the element matrices, exactly, so no identity rows
enter the hierarchy.

Vectors are ``[dim, *nodes]``: components first, which vectorises best.

Reference: O. Amir, N. Aage, B. S. Lazarov, On multigrid-CG for efficient
topology optimization, Struct. Multidisc. Optim. 49 (2014) 815-829.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpapers.structopt import dense, elements

_COARSEST_DOFS = {2: 320, 3: 640}  # solved densely; by dimension
_DAMPING = 0.6  # of block-Jacobi


class Level(NamedTuple):
  """One grid of the hierarchy.

  Attributes:
    operator: Young's moduli ``[*elements]`` on the finest grid, else node
      stencils ``[3**dim, dim, dim, *nodes]``.
    smoother: inverse diagonal blocks ``[dim, dim, *nodes]``, zero where fixed.
  """

  operator: Any
  smoother: Any


class Hierarchy(NamedTuple):
  """Multigrid hierarchy of one stiffness matrix.

  Attributes:
    levels: grids, finest first, without the coarsest.
    coarsest: ``[dofs, dofs]`` inverse of the coarsest operator.
    mask: ``[dim, *nodes]``, one where a displacement is free.
    springs: ``[dim, *nodes]`` added to the diagonal of the finest operator,
      zero where fixed, or None.
  """

  levels: tuple[Level, ...]
  coarsest: Any
  mask: Any
  springs: Any = None


def num_levels(shape):
  """Number of coarsenings for a mesh of ``shape`` elements."""
  dim = len(shape)
  count = 0
  while True:
    grid = [math.ceil(n / 2**count) for n in shape]
    dofs = dim * math.prod(n + 1 for n in grid)
    if dofs <= _COARSEST_DOFS[dim] or min(grid) < 4:
      return count
    count += 1


def padded_shape(shape):
  """Mesh size that the hierarchy works on: void is added at the far ends."""
  factor = 2 ** num_levels(shape)
  return tuple(math.ceil(n / factor) * factor for n in shape)


@functools.lru_cache(maxsize=8)
def _child_prolongations(dim):
  """``[children, corners, coarse corners]`` multilinear interpolation."""
  corners = elements.corners(dim)
  out = []
  for child in itertools.product((0, 1), repeat=dim):
    rows = []
    for corner in corners:
      at = [(a + c) / 2 for a, c in zip(child, corner, strict=True)]
      rows.append(
        [
          math.prod(t if k else 1 - t for t, k in zip(at, coarse, strict=True))
          for coarse in corners
        ]
      )
    out.append(rows)
  return np.array(out)


def _offsets(dim):
  return tuple(itertools.product((-1, 0, 1), repeat=dim))


def _galerkin(matrices, dim):
  """Coarse element matrices from child ones.

  Args:
    matrices: callable from child position to ``[corners, dim, corners, dim,
      *coarse elements]``.
    dim: 2 or 3.

  Returns:
    ``[corners, dim, corners, dim, *coarse elements]``, and the node stencils
    of these matrices.
  """
  total = None
  children = itertools.product((0, 1), repeat=dim)
  for child, prolong in zip(children, _child_prolongations(dim), strict=True):
    k = matrices(child)
    p = jnp.asarray(prolong, k.dtype)
    k = jnp.tensordot(p.T, k, axes=1, precision='highest')
    k = jnp.moveaxis(k, 2, 0)
    k = jnp.tensordot(p.T, k, axes=1, precision='highest')
    k = jnp.moveaxis(k, 0, 2)
    total = k if total is None else total + k
  return total, _stencil(total, dim)


def _galerkin_packed(matrices, dim):
  """As ``_galerkin`` on packed upper triangles, in one matrix product.

  In two dimensions the whole map is a small matrix, which one product applies
  faster than the two contractions do; in three it would be large.
  """
  count = len(elements.corners(dim))
  _, _, unpack, weights = _packed_galerkin(count, dim)
  children = itertools.product((0, 1), repeat=dim)
  stacked = jnp.concatenate([matrices(child) for child in children])
  weights = jnp.asarray(weights, stacked.dtype)
  packed = jnp.tensordot(weights, stacked, axes=1, precision='highest')
  full = packed[unpack].reshape((count, dim, count, dim, *packed.shape[1:]))
  return packed, _stencil(full, dim)


@functools.lru_cache(maxsize=8)
def _packed_galerkin(corners, dim):
  """The map of ``_galerkin`` as one matrix on packed upper triangles.

  Returns:
    ``(rows, columns, unpack, weights)``: the packed entries, where to find a
    full matrix's entries among them, and ``[packed, children * packed]``.
  """
  size = corners * dim
  rows, columns = np.triu_indices(size)
  unpack = np.zeros((size, size), np.int32)
  unpack[rows, columns] = unpack[columns, rows] = np.arange(len(rows))
  weights = []
  for prolong in _child_prolongations(dim):
    p = np.kron(prolong, np.eye(dim))
    w = p[rows][:, rows] * p[columns][:, columns]
    off = (rows != columns)[:, None]  # both halves of the symmetric matrix
    weights.append(w + off * p[columns][:, rows] * p[rows][:, columns])
  return rows, columns, unpack, np.concatenate(weights).T


def _stencil(matrices, dim):
  """Node stencils ``[3**dim, dim, dim, *nodes]`` of element matrices."""
  corners = elements.corners(dim)
  parts = {offset: None for offset in _offsets(dim)}
  for (a, corner_a), (b, corner_b) in itertools.product(
    enumerate(corners), repeat=2
  ):
    offset = tuple(q - p for p, q in zip(corner_a, corner_b, strict=True))
    block = matrices[a, :, b]
    pad = [(0, 0), (0, 0)] + [(c, 1 - c) for c in corner_a]
    block = jnp.pad(block, pad)
    old = parts[offset]
    parts[offset] = block if old is None else old + block
  return jnp.stack([parts[offset] for offset in _offsets(dim)])


def _apply_stencil(stencil, u):
  dim = u.shape[0]
  nodes = u.shape[1:]
  padded = jnp.pad(u, [(0, 0)] + [(1, 1)] * dim)
  out = [0.0] * dim
  for k, offset in enumerate(_offsets(dim)):
    window = tuple(
      slice(1 + o, 1 + o + n) for o, n in zip(offset, nodes, strict=True)
    )
    shifted = padded[(slice(None), *window)]
    for i, j in itertools.product(range(dim), repeat=2):
      out[i] += stencil[k, i, j] * shifted[j]
  return jnp.stack(out)


def _invert_blocks(blocks):
  """Inverse of symmetric ``[dim, dim, *nodes]`` blocks; zero rows stay zero."""
  dim = blocks.shape[0]
  alive = jnp.stack([blocks[i, i] > 0 for i in range(dim)])
  pair = alive[:, None] & alive[None, :]
  eye = jnp.eye(dim, dtype=blocks.dtype).reshape((dim, dim) + (1,) * dim)
  b = jnp.where(pair, blocks, eye)
  if dim == 2:
    adjugate = jnp.stack(
      [jnp.stack([b[1, 1], -b[0, 1]]), jnp.stack([-b[1, 0], b[0, 0]])]
    )
  else:

    def cofactor(i, j):
      r, s = [k for k in range(3) if k != i], [k for k in range(3) if k != j]
      minor = b[r[0], s[0]] * b[r[1], s[1]] - b[r[0], s[1]] * b[r[1], s[0]]
      return minor if (i + j) % 2 == 0 else -minor

    adjugate = jnp.stack(
      [jnp.stack([cofactor(i, j) for j in range(3)]) for i in range(3)]
    )
  determinant = sum(b[0, j] * adjugate[0, j] for j in range(dim))
  return jnp.where(pair, adjugate / determinant, 0)


def _blocks_times(blocks, u):
  dim = u.shape[0]
  return jnp.stack(
    [sum(blocks[i, j] * u[j] for j in range(dim)) for i in range(dim)]
  )


def _prolong(coarse):
  """Multilinear interpolation of nodal values to the next finer grid."""
  fine = coarse
  for axis in range(1, coarse.ndim):
    pad = [(0, 0, 0)] * coarse.ndim
    pad[axis] = (0, 0, 1)
    spread = lax.pad(fine, jnp.zeros((), fine.dtype), pad)
    n = spread.shape[axis]
    left = lax.slice_in_dim(spread, 0, n - 1, axis=axis)
    right = lax.slice_in_dim(spread, 1, n, axis=axis)
    edge = [(0, 0)] * coarse.ndim
    # Every odd node is the mean of its even neighbours, which are the only
    # non-zero entries next to it; even nodes see only zeros.
    edge[axis] = (1, 0)
    before = jnp.pad(left, edge)
    edge[axis] = (0, 1)
    after = jnp.pad(right, edge)
    fine = spread + 0.5 * (before + after)
  return fine


def _restrict(fine):
  """Transpose of ``_prolong``."""
  coarse = fine
  for axis in range(1, fine.ndim):
    n = coarse.shape[axis]
    even = lax.slice_in_dim(coarse, 0, n, stride=2, axis=axis)
    odd = lax.slice_in_dim(coarse, 1, n, stride=2, axis=axis)
    pad = [(0, 0)] * fine.ndim
    pad[axis] = (0, 1)
    right = jnp.pad(odd, pad)
    pad[axis] = (1, 0)
    left = jnp.pad(odd, pad)
    coarse = even + 0.5 * (left + right)
  return coarse


def _share_among_elements(springs):
  """Splits nodal stiffnesses evenly over the elements at each node."""
  nodes = springs.shape[1:]
  share = springs
  for axis, n in enumerate(nodes):
    inner = np.full(n, 0.5)
    inner[[0, -1]] = 1.0
    shape = [1] * springs.ndim
    shape[axis + 1] = n
    share = share * inner.reshape(shape).astype(springs.dtype)
  return share


def _finest_matrices(youngs, mask, stiffness, springs):
  """Masked element matrices of the children of every coarse element.

  Returns:
    A function from child position to the children's matrices: packed upper
    triangles ``[packed, *coarse elements]`` in two dimensions, ``[corners, dim,
    corners, dim, *coarse elements]`` in three.
  """
  dim = youngs.ndim
  count = len(elements.corners(dim))
  unit = np.asarray(stiffness)
  diagonal = np.eye(count * dim)
  if dim == 2:
    rows, columns = _packed_galerkin(count, dim)[:2]
    unit, diagonal = unit[rows, columns], diagonal[rows, columns]
  else:
    unit = unit.reshape(count, dim, count, dim)
    diagonal = diagonal.reshape(unit.shape)

  def pairs(local):
    if dim == 2:
      return local[rows] * local[columns]
    local = local.reshape((count, dim, *local.shape[1:]))
    return local[:, :, None, None] * local

  def constant(array):
    array = jnp.asarray(array, youngs.dtype)
    return array.reshape(array.shape + (1,) * dim)

  masks = elements.gather_corners(mask, dim)
  if springs is not None:
    springs = elements.gather_corners(_share_among_elements(springs), dim)

  def matrices(child):
    every = tuple(slice(c, None, 2) for c in child)
    k = constant(unit) * youngs[every]
    if springs is not None:
      own = jnp.sqrt(springs[(slice(None), *every)])
      k = k + constant(diagonal) * pairs(own)
    return k * pairs(masks[(slice(None), *every)])

  return matrices


def _diagonal_blocks(youngs, mask, stiffness, springs):
  """``[dim, dim, *nodes]`` diagonal blocks of the masked fine operator."""
  dim = youngs.ndim
  corners = elements.corners(dim)
  unit = np.asarray(stiffness)
  total = 0.0
  for a, corner in enumerate(corners):
    block = unit[a * dim : (a + 1) * dim, a * dim : (a + 1) * dim]
    block = jnp.asarray(block, youngs.dtype)
    block = block.reshape((dim, dim) + (1,) * dim)
    padded = jnp.pad(youngs, [(c, 1 - c) for c in corner])
    total = total + block * padded
  if springs is not None:
    eye = np.eye(dim).reshape((dim, dim) + (1,) * dim)
    total = total + jnp.asarray(eye, youngs.dtype) * springs
  return total * mask[:, None] * mask[None, :]


def _coarsest_inverse(operator, nodes, dim, dtype):
  """Dense inverse of the coarsest operator, scaled to unit diagonal."""
  size = dim * math.prod(nodes)
  basis = jnp.eye(size, dtype=dtype).reshape((size, dim, *nodes))
  matrix = jax.vmap(operator)(basis).reshape((size, size))
  diagonal = jnp.diagonal(matrix)
  alive = diagonal > 0
  scale = jnp.where(alive, lax.rsqrt(jnp.where(alive, diagonal, 1)), 0)
  matrix = matrix * scale[:, None] * scale[None, :]
  # Floating islands of solid make the matrix singular to rounding.
  shift = 100 * jnp.finfo(dtype).eps
  matrix = matrix + jnp.diag(jnp.where(alive, shift, 1.0).astype(dtype))
  factor = dense.inverse_cholesky(matrix[None])[0]
  inverse = dense.matmul(factor.T, factor)
  return inverse * scale[:, None] * scale[None, :]


def build(youngs, mask, stiffness, springs=None):
  """Multigrid hierarchy of a stiffness matrix.

  Args:
    youngs: ``[*elements]`` Young's moduli, each side divisible by two to the
      power of ``num_levels``.
    mask: ``[dim, *nodes]`` in the dtype of ``youngs``, one where free.
    stiffness: unit element stiffness.
    springs: ``[dim, *nodes]`` stiffnesses of springs to the ground in the dtype
      of ``youngs``, zero where fixed; or None.

  Returns:
    A ``Hierarchy``.
  """
  dim = youngs.ndim
  count = num_levels(youngs.shape)
  blocks = _diagonal_blocks(youngs, mask, stiffness, springs)
  levels = [Level(youngs, _invert_blocks(blocks))]
  matrices = _finest_matrices(youngs, mask, stiffness, springs)
  coarsen = _galerkin_packed if dim == 2 else _galerkin
  for _ in range(count):
    k, stencil = coarsen(matrices, dim)
    centre = _offsets(dim).index((0,) * dim)
    levels.append(Level(stencil, _invert_blocks(stencil[centre])))

    def matrices(child, k=k):
      every = tuple(slice(c, None, 2) for c in child)
      return k[(slice(None),) * (k.ndim - dim) + every]

  last = levels.pop() if count else levels[0]
  nodes = last.smoother.shape[2:]
  hierarchy = Hierarchy(tuple(levels), None, mask, springs)
  if count:
    operator = functools.partial(_apply_stencil, last.operator)
  else:
    operator = functools.partial(apply_finest, hierarchy, stiffness)
  coarsest = _coarsest_inverse(operator, nodes, dim, youngs.dtype)
  return Hierarchy(tuple(levels) if count else (), coarsest, mask, springs)


def apply_finest(hierarchy, stiffness, u):
  """Masked action of the finest operator."""
  youngs = hierarchy.levels[0].operator
  mask = hierarchy.mask
  u = u * mask
  force = elements.apply_stiffness(youngs, u, stiffness)
  if hierarchy.springs is not None:
    force = force + hierarchy.springs * u
  return force * mask


def v_cycle(hierarchy, stiffness, residual):
  """One V(1, 1) cycle from a zero guess: symmetric positive definite.

  Args:
    hierarchy: from ``build``.
    stiffness: unit element stiffness.
    residual: ``[dim, *nodes]``.

  Returns:
    ``[dim, *nodes]`` correction.
  """

  def cycle(level, r):
    if level == len(hierarchy.levels):
      return (hierarchy.coarsest @ r.reshape(-1)).reshape(r.shape)
    grid = hierarchy.levels[level]

    def apply(x):
      if level:
        return _apply_stencil(grid.operator, x)
      force = elements.apply_stiffness(grid.operator, x, stiffness)
      if hierarchy.springs is not None:
        force = force + hierarchy.springs * x
      return force

    def smooth(x):
      return _DAMPING * _blocks_times(grid.smoother, x)

    x = smooth(r)
    # The smoother's zeros mask the corrections; a residual on a fixed degree
    # of freedom must not reach the coarse grid either.
    defect = r - apply(x)
    if not level:
      defect = defect * hierarchy.mask
    correction = _prolong(cycle(level + 1, _restrict(defect)))
    if not level:
      correction = correction * hierarchy.mask
    x = x + correction
    return x + smooth(r - apply(x))

  return cycle(0, residual)


def conjugate_gradients(apply, precondition, b, x0, tol, maxiter):
  """Preconditioned conjugate gradients.

  The flexible (Polak-Ribiere) update tolerates a preconditioner that is
  applied in lower precision.

  Args:
    apply: the operator.
    precondition: approximate inverse.
    b: right-hand side, any shape.
    x0: initial guess or None.
    tol: relative residual at which to stop.
    maxiter: iteration limit.

  Returns:
    ``(x, iterations, relative residual)``.
  """
  norm = jnp.sqrt(jnp.sum(b * b))
  target = tol * norm

  def dot(a, c):
    return jnp.sum(a * c)

  def step(state):
    x, r, p, z_r, _, k = state
    q = apply(p)
    alpha = z_r / dot(p, q)
    x = x + alpha * p
    new = r - alpha * q
    z = precondition(new)
    z_new = dot(z, new)
    beta = (z_new - dot(z, r)) / z_r
    return x, new, z + beta * p, z_new, jnp.sqrt(dot(new, new)), k + 1

  def unfinished(state):
    # A NaN residual compares false and ends the loop.
    return (state[4] > target) & (state[5] < maxiter)

  if x0 is None:
    x, r = jnp.zeros_like(b), b
  else:
    x, r = x0, b - apply(x0)
  z = precondition(r)
  zero = jnp.zeros((), np.int32)
  state = x, r, z, dot(z, r), jnp.sqrt(dot(r, r)), zero
  x, _, _, _, residual, k = lax.while_loop(unfinished, step, state)
  return x, k, residual / jnp.where(norm > 0, norm, 1)
