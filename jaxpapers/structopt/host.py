"""Sparse direct solution on the host: SciPy's SuperLU or CHOLMOD.

A reference and a convenience on CPU-only machines, reached from compiled code
through ``jax.pure_callback``. Slower than the pure-JAX backends, never needed
by them, and not parallel under ``vmap``.
"""

import functools

import jax
import numpy as np

from jaxpapers.structopt import elements


@functools.lru_cache(maxsize=32)
def _pattern(ny, nx):
  """Row and column of every element matrix entry, ``[elements, 64]``."""
  node = np.arange((ny + 1) * (nx + 1)).reshape(ny + 1, nx + 1)
  local = [
    node[cy : ny + cy, cx : nx + cx].reshape(-1)
    for cy, cx in elements.CORNERS_2D
  ]
  dofs = np.stack([2 * n + c for n in local for c in (0, 1)], axis=1)
  rows = np.repeat(dofs, 8, axis=1)
  columns = np.tile(dofs, (1, 8))
  return rows, columns


def assemble(youngs, free, stiffness):
  """Reduced stiffness matrix of the free degrees of freedom.

  Args:
    youngs: ``[ny, nx]`` Young's moduli, numpy.
    free: ``[ny + 1, nx + 1, 2]`` bool, numpy.
    stiffness: ``[8, 8]`` unit element stiffness.

  Returns:
    A ``scipy.sparse.csc_array`` over ``flatnonzero(free)``.

  Raises:
    ImportError: if SciPy is missing.
  """
  sparse = _scipy_sparse()
  rows, columns = _pattern(*youngs.shape)
  values = youngs.reshape(-1, 1) * np.asarray(stiffness).reshape(1, -1)
  keep = np.flatnonzero(free)
  number = np.full(free.size, -1)
  number[keep] = np.arange(keep.size)
  r, c = number[rows].reshape(-1), number[columns].reshape(-1)
  inside = (r >= 0) & (c >= 0)
  entries = values.reshape(-1)[inside], (r[inside], c[inside])
  return sparse.coo_array(entries, shape=(keep.size, keep.size)).tocsc()


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


def _solve(youngs, free, forces, stiffness):
  youngs, free, forces = (np.asarray(a) for a in (youngs, free, forces))
  matrix = assemble(youngs.astype(np.float64), free, stiffness)
  keep = np.flatnonzero(free)
  flat = forces.reshape(-1, free.size)
  u = np.zeros(flat.shape)
  try:
    solve = _factorize(matrix)
    for case in range(flat.shape[0]):
      u[case, keep] = solve(flat[case, keep])
  except (ArithmeticError, RuntimeError, ValueError):
    u[:] = np.nan  # reported by the caller as an unconverged solve
  return u.reshape(forces.shape).astype(forces.dtype)


def solve(youngs, free, forces, stiffness):
  """Displacements by a host library; traced arguments are allowed.

  Args:
    youngs: ``[ny, nx]`` Young's moduli.
    free: ``[ny + 1, nx + 1, 2]`` bool.
    forces: ``[*cases, ny + 1, nx + 1, 2]``.
    stiffness: ``[8, 8]`` unit element stiffness.

  Returns:
    Displacements with the shape and dtype of ``forces``; NaN where the
    factorisation failed.
  """
  _scipy_sparse()  # fail here, with our message, not inside the callback
  shape = jax.ShapeDtypeStruct(forces.shape, forces.dtype)
  return jax.pure_callback(
    functools.partial(_solve, stiffness=np.asarray(stiffness)),
    shape,
    youngs,
    free,
    forces,
    vmap_method='sequential',
  )
