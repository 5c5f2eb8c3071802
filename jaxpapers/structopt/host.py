"""Sparse direct solution on the host: SciPy's SuperLU or CHOLMOD.

A reference and a convenience on CPU-only machines, reached from compiled code
through ``jax.pure_callback``. Slower than the pure-JAX backends, never needed
by them, and not parallel under ``vmap``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpapers.structopt import elements


@functools.lru_cache(maxsize=32)
def _pattern(shape):
  """Row and column of every entry of all element matrices."""
  dim = len(shape)
  nodes = tuple(n + 1 for n in shape)
  node = np.arange(np.prod(nodes)).reshape(nodes)
  local = [
    node[tuple(slice(c, n + c) for c, n in zip(corner, shape, strict=True))]
    for corner in elements.corners(dim)
  ]
  dofs = np.stack(
    [dim * n.reshape(-1) + c for n in local for c in range(dim)], axis=1
  )
  rows = np.repeat(dofs, dofs.shape[1], axis=1)
  columns = np.tile(dofs, (1, dofs.shape[1]))
  return rows, columns


def assemble(youngs, free, stiffness, springs=None):
  """Reduced stiffness matrix of the free degrees of freedom.

  Args:
    youngs: ``[*elements]`` Young's moduli, numpy, in two or three dimensions.
    free: ``[*nodes, dim]`` bool, numpy.
    stiffness: unit element stiffness.
    springs: ``[*nodes, dim]`` diagonal to add, or None.

  Returns:
    A ``scipy.sparse.csc_array`` over ``flatnonzero(free)``.

  Raises:
    ImportError: if SciPy is missing.
  """
  sparse = _scipy_sparse()
  rows, columns = _pattern(youngs.shape)
  values = youngs.reshape(-1, 1) * np.asarray(stiffness).reshape(1, -1)
  keep = np.flatnonzero(free)
  number = np.full(free.size, -1)
  number[keep] = np.arange(keep.size)
  r, c = number[rows].reshape(-1), number[columns].reshape(-1)
  inside = (r >= 0) & (c >= 0)
  entries = values.reshape(-1)[inside], (r[inside], c[inside])
  matrix = sparse.coo_array(entries, shape=(keep.size, keep.size)).tocsc()
  if springs is None:
    return matrix
  return (matrix + sparse.diags_array(springs.reshape(-1)[keep])).tocsc()


def _scipy_sparse():
  try:
    import scipy.sparse
    import scipy.sparse.linalg  # noqa: F401
  except ImportError as e:
    raise ImportError(
      'solver="host" needs SciPy: pip install "jaxpapers[structopt]", or use'
      ' solver="direct", which needs nothing beyond JAX.'
    ) from e
  return scipy.sparse


def _factorize(matrix):
  try:
    from sksparse import cholmod
  except ImportError:
    linalg = _scipy_sparse().linalg
    # The matrix is symmetric: an ordering of A + A^T without pivoting does
    # half the work of the general default.
    return linalg.splu(
      matrix,
      permc_spec='MMD_AT_PLUS_A',
      diag_pivot_thresh=0.0,
      options={'SymmetricMode': True},
    ).solve
  return cholmod.cholesky(matrix)


def _to_words(x):
  """Float64 as pairs of 32-bit words, which no callback rounds.

  A callback may run in a thread where 64-bit types are off; JAX would then
  turn its arguments and results into float32.
  """
  return lax.bitcast_convert_type(x.astype(jnp.float64), jnp.uint32)


def _from_words(words):
  return np.ascontiguousarray(words).view(np.float64)[..., 0]


def _solve(youngs, free, forces, springs, stiffness):
  youngs, forces = _from_words(youngs), _from_words(forces)
  springs = None if springs is None else _from_words(springs)
  free = np.asarray(free)
  matrix = assemble(youngs, free, stiffness, springs)
  keep = np.flatnonzero(free)
  flat = forces.reshape(-1, free.size)
  u = np.zeros(flat.shape)
  try:
    solve = _factorize(matrix)
    for case in range(flat.shape[0]):
      u[case, keep] = solve(flat[case, keep])
  except (ArithmeticError, RuntimeError, ValueError):
    u[:] = np.nan  # reported by the caller as an unconverged solve
  return u.reshape((*forces.shape, 1)).view(np.uint32)


def solve(youngs, free, forces, stiffness, springs=None):
  """Displacements by a host library; traced arguments are allowed.

  Args:
    youngs: ``[*elements]`` Young's moduli, in two or three dimensions.
    free: ``[*nodes, dim]`` bool.
    forces: ``[*cases, *nodes, dim]``.
    stiffness: unit element stiffness.
    springs: ``[*nodes, dim]`` added to the diagonal of K, or None.

  Returns:
    Displacements with the shape of ``forces``, float64; NaN where the
    factorisation failed.
  """
  _scipy_sparse()  # fail here, with our message, not inside the callback
  words = jax.pure_callback(
    functools.partial(_solve, stiffness=np.asarray(stiffness)),
    jax.ShapeDtypeStruct((*forces.shape, 2), jnp.uint32),
    _to_words(youngs),
    free,
    _to_words(forces),
    None if springs is None else _to_words(springs),
    vmap_method='sequential',
  )
  return lax.bitcast_convert_type(words, jnp.float64)
