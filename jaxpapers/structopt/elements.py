"""Bilinear square (Q4) and trilinear cube (H8) elements on regular grids.

Everything that depends on the element alone lives here: closed-form
stiffness matrices and the action of the assembled stiffness matrix on a nodal
field, without ever assembling it.

Conventions (two dimensions): element fields are ``[nely, nelx]`` arrays whose
row 0 is the top of the picture; nodal fields are ``[nely + 1, nelx + 1, 2]``
with component 0 along x (to the right) and component 1 along y (downwards).
The eight local degrees of freedom of element ``(ey, ex)`` are those of the
corners ``(ey, ex), (ey, ex + 1), (ey + 1, ex + 1), (ey + 1, ex)``, x before y.
"""

import functools
import itertools

import jax.numpy as jnp
import numpy as np

# Corner offsets (dy, dx) in local order, matching the rows of the stiffness
# matrix; three dimensions append the same loop for the next layer.
CORNERS_2D = ((0, 0), (0, 1), (1, 1), (1, 0))
CORNERS_3D = tuple((0, *c) for c in CORNERS_2D) + tuple(
  (1, *c) for c in CORNERS_2D
)


def element_stiffness(young=1.0, poisson=0.3):
  """Stiffness matrix of a unit square plane-stress Q4 element.

  Bilinear shape functions, exact integration, thickness one.

  Args:
    young: Young's modulus, a scalar (force per unit area).
    poisson: Poisson's ratio, a scalar in (-1, 0.5].

  Returns:
    ``[8, 8]`` float64 array, symmetric positive semi-definite with the three
    rigid-body motions as null space.

  Raises:
    ValueError: if ``young`` is not positive or ``poisson`` is out of range.

  Example:
    >>> element_stiffness(1.0, 0.3).shape
    (8, 8)
  """
  if not np.isfinite(young) or young <= 0:
    raise ValueError(
      f'young must be a positive finite number, got {young!r}; for a void'
      ' element scale the matrix by a small modulus instead.'
    )
  if not -1.0 < poisson <= 0.5:
    raise ValueError(
      f'poisson must lie in (-1, 0.5] for plane stress, got {poisson!r}.'
    )
  nu = float(poisson)
  # The eight distinct entries, times (1 - nu^2) / E.
  k = np.array(
    [
      1 / 2 - nu / 6,
      1 / 8 + nu / 8,
      -1 / 4 - nu / 12,
      -1 / 8 + 3 * nu / 8,
      -1 / 4 + nu / 12,
      -1 / 8 - nu / 8,
      nu / 6,
      1 / 8 - 3 * nu / 8,
    ]
  )
  pattern = (
    '01234567 10765432 27056341 36507214 45670123 54321076 63412705 72143650'
  )
  index = np.array([[int(c) for c in row] for row in pattern.split()])
  return float(young) / (1 - nu**2) * k[index]


@functools.lru_cache(maxsize=16)
def hex_stiffness(poisson=0.3):
  """Stiffness matrix of a unit cube H8 element of unit modulus.

  Trilinear shape functions, 2x2x2 Gauss points (exact for a cube).

  Args:
    poisson: Poisson's ratio, a scalar in (-1, 0.5).

  Returns:
    ``[24, 24]`` float64 array; local degrees of freedom are x, y, z of each
    corner in the order of ``CORNERS_3D``, whose offsets are (dz, dy, dx).
  """
  if not -1.0 < poisson < 0.5:
    raise ValueError(f'poisson must lie in (-1, 0.5), got {poisson!r}.')
  nu = float(poisson)
  lame = nu / ((1 + nu) * (1 - 2 * nu))
  shear = 1 / (2 * (1 + nu))
  elasticity = np.zeros((6, 6))
  elasticity[:3, :3] = lame
  elasticity[range(3), range(3)] += 2 * shear
  elasticity[range(3, 6), range(3, 6)] = shear
  stiffness = np.zeros((24, 24))
  gauss = 0.5 + np.array([-0.5, 0.5]) / np.sqrt(3)
  for point in itertools.product(gauss, repeat=3):  # (z, y, x) in the cube
    strain = np.zeros((6, 24))
    for a, corner in enumerate(CORNERS_3D):
      value = [p if c else 1 - p for p, c in zip(point, corner, strict=True)]
      slope = [1.0 if c else -1.0 for c in corner]
      dz = slope[0] * value[1] * value[2]
      dy = value[0] * slope[1] * value[2]
      dx = value[0] * value[1] * slope[2]
      strain[:, 3 * a : 3 * a + 3] = [
        [dx, 0, 0],
        [0, dy, 0],
        [0, 0, dz],
        [dy, dx, 0],
        [0, dz, dy],
        [dz, 0, dx],
      ]
    stiffness += strain.T @ elasticity @ strain / 8
  return (stiffness + stiffness.T) / 2


def unit_stiffness(dim, poisson=0.3):
  """Element stiffness at unit modulus: plane stress in 2-D, solid in 3-D."""
  if dim == 2:
    return element_stiffness(1.0, poisson)
  return hex_stiffness(poisson)


def corners(dim):
  """Corner offsets of the ``dim``-dimensional element, in local order."""
  return CORNERS_2D if dim == 2 else CORNERS_3D


def gather_corners(nodal, dim):
  """Element view of a nodal field.

  Args:
    nodal: ``[components, *nodes]``, component axis first, where ``nodes`` has
      ``dim`` axes of size elements + 1.
    dim: 2 or 3.

  Returns:
    ``[corners * components, *elements]`` in local degree-of-freedom order.
  """
  views = []
  for corner in corners(dim):
    window = tuple(
      slice(c, n - 1 + c) for c, n in zip(corner, nodal.shape[1:], strict=True)
    )
    views.append(nodal[(slice(None), *window)])
  return jnp.concatenate(views, axis=0)


def scatter_corners(local, dim):
  """Transpose of ``gather_corners``: sums element vectors into nodes."""
  parts = corners(dim)
  components = local.shape[0] // len(parts)
  total = None
  for a, corner in enumerate(parts):
    piece = local[a * components : (a + 1) * components]
    pad = [(0, 0)] + [(c, 1 - c) for c in corner]
    piece = jnp.pad(piece, pad)
    total = piece if total is None else total + piece
  return total


def apply_gemm(youngs, nodal, stiffness):
  """Stiffness action as one matrix product over all elements.

  Args:
    youngs: ``[*elements]`` Young's moduli.
    nodal: ``[dim, *nodes]`` displacements.
    stiffness: ``[dim * 2**dim, dim * 2**dim]`` unit element stiffness.

  Returns:
    ``[dim, *nodes]`` nodal forces.
  """
  dim = youngs.ndim
  local = gather_corners(nodal, dim)
  stiffness = jnp.asarray(stiffness, nodal.dtype)
  # HIGHEST: on TPU and GPU the default would round the factors.
  product = jnp.tensordot(stiffness, local, axes=1, precision='highest')
  return scatter_corners(product * youngs, dim)


def apply_fused(youngs, nodal, stiffness):
  """Stiffness action as one fused loop over nodes (two dimensions).

  The same result as ``apply_gemm``; every node sums its four elements, so that
  XLA emits a single vectorised loop with no intermediate element arrays. On
  CPU this is several times faster than gathering corners.
  """
  ny, nx = youngs.shape
  modulus = jnp.pad(youngs, 1)
  u = jnp.pad(nodal, ((0, 0), (1, 1), (1, 1)))
  out = [0.0, 0.0]
  for a, (ay, ax) in enumerate(CORNERS_2D):
    # This node is corner ``a`` of the element at (node - corner offset).
    e = modulus[1 - ay : ny + 2 - ay, 1 - ax : nx + 2 - ax]
    force = [0.0, 0.0]
    for b, (by, bx) in enumerate(CORNERS_2D):
      sy, sx = 1 - ay + by, 1 - ax + bx
      window = u[:, sy : sy + ny + 1, sx : sx + nx + 1]
      for i in range(2):
        for j in range(2):
          force[i] += float(stiffness[2 * a + i, 2 * b + j]) * window[j]
    for i in range(2):
      out[i] += e * force[i]
  return jnp.stack(out)


def apply_stiffness(youngs, nodal, stiffness):
  """Action of the assembled stiffness matrix; see ``apply_gemm``."""
  if youngs.ndim == 2:
    return apply_fused(youngs, nodal, np.asarray(stiffness))
  return apply_gemm(youngs, nodal, stiffness)


def strain_energy(nodal, stiffness):
  """Per-element ``u_e^T K_0 u_e`` for unit modulus.

  Args:
    nodal: ``[dim, *nodes]`` displacements.
    stiffness: unit element stiffness.

  Returns:
    ``[*elements]``; twice the strain energy of each element at modulus one.
  """
  dim = nodal.ndim - 1
  local = gather_corners(nodal, dim)
  stiffness = jnp.asarray(stiffness, nodal.dtype)
  product = jnp.tensordot(stiffness, local, axes=1, precision='highest')
  return jnp.sum(local * product, axis=0)
