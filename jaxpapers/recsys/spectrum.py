"""The graph of users and items, and the filter that SpectralCF makes of it."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys.data import Interactions

MODES = ('authors', 'paper')
SOLVERS = ('symmetric', 'general')

# Eigenvalues nearer than this count as one: their eigenvectors are any basis of
# a plane, and rounding of the matrix decides which. Double precision gives them
# to some 1e-14.
_SAME = 1e-9


def adjacency(train: Interactions, dtype: Any = np.float64) -> np.ndarray:
  """Users and items with who has what, each node linked to itself.

  Args:
    train: Interactions; their values are not looked at.
    dtype: Of the result.

  Returns:
    `[n, n]` of n = users + items, symmetric, 0 and 1.
  """
  n = train.num_users + train.num_items
  matrix = np.eye(n, dtype=dtype)
  matrix[train.user, train.num_users + train.item] = 1
  matrix[train.num_users + train.item, train.user] = 1
  return matrix


def multiplicity(eigenvalues: Any, same: float = _SAME) -> int:
  """How many eigenvalues are not alone.

  Args:
    eigenvalues: Real, `[n]`.
    same: What is nearer counts as equal.

  Example:
    >>> multiplicity([0.0, 0.5, 0.5, 1.0])
    2
  """
  close = np.diff(np.sort(np.asarray(eigenvalues))) < same
  return int((np.append(close, False) | np.insert(close, 0, False)).sum())


def spectral_operator(
  train: Interactions,
  *,
  mode: str = 'authors',
  solver: str = 'symmetric',
  warn: bool = True,
) -> np.ndarray:
  """The filter of SpectralCF.

  With A the adjacency with self-links, D its row sums and L = I - D^-1 A:

    'paper':   I + L
    'authors': U U' + U diag(lambda) U', of L = U diag(lambda) U^-1, columns of
               U of length 1

  Were L symmetric these would be the same; it is not, and they differ by up to
  1 in an entry. Where an eigenvalue occurs more than once (nodes with the same
  neighbours, separate parts of the graph) the authors' filter depends on which
  basis the solver happens to return: there is a warning, and 'paper' is the
  filter that is well defined.

  Args:
    train: Interactions.
    mode: 'authors' or 'paper'.
    solver: 'symmetric' decomposes D^-1/2 A D^-1/2 = V diag(mu) V' and has
      U = D^-1/2 V with columns made unit, lambda = 1 - mu: the same filter, in
      a fraction of the time, always real. 'general' decomposes L as the
      authors do.
    warn: Whether to warn.

  Returns:
    float32 `[n, n]`, n = users + items.

  Raises:
    ValueError: `mode` or `solver` is unknown, or the general solver returned
      complex numbers.

  Example:
    >>> from jaxpapers.recsys import interactions
    >>> x = interactions([0, 0, 1], [0, 1, 1])
    >>> spectral_operator(x, mode='paper').shape
    (4, 4)
  """
  if mode not in MODES:
    raise ValueError(f'mode is {mode!r}; expected one of {", ".join(MODES)}.')
  if solver not in SOLVERS:
    raise ValueError(
      f'solver is {solver!r}; expected one of {", ".join(SOLVERS)}.'
    )
  links = adjacency(train)
  degree = links.sum(1)
  if mode == 'paper':
    result = links / -degree[:, None]
    result[np.diag_indices_from(result)] += 2
    return result.astype(np.float32)
  if solver == 'general':
    eigenvalues, u = _general(links, degree)
  else:
    eigenvalues, u = _symmetric(links, degree)
  repeated = multiplicity(eigenvalues)
  if repeated and warn:
    warnings.warn(
      f'{repeated} of {len(eigenvalues)} eigenvalues of the graph occur more'
      " than once: the filter of mode='authors' depends on the solver. Scores"
      " of other programs will differ; mode='paper' has no such freedom.",
      stacklevel=2,
    )
  weighted = (u * (1 + eigenvalues)).astype(np.float32)
  return np.asarray(_product(weighted, u.astype(np.float32)))


def _general(links, degree):
  laplacian = np.eye(len(links)) - links / degree[:, None]
  eigenvalues, u = np.linalg.eig(laplacian)
  if np.iscomplexobj(eigenvalues) and np.abs(eigenvalues.imag).max() > 0:
    count = int((eigenvalues.imag != 0).sum())
    raise ValueError(
      f'the general solver returned {count} complex eigenvalues, which are'
      " rounding errors of repeated ones. Use solver='symmetric'."
    )
  return eigenvalues.real, u.real


def _symmetric(links, degree):
  root = degree**-0.5
  links *= root[:, None]
  links *= root
  if jax.default_backend() == 'gpu':
    with jax.enable_x64(True):
      mu, v = (np.asarray(x) for x in jnp.linalg.eigh(links))
  else:
    mu, v = np.linalg.eigh(links)
  u = v * root[:, None]
  u /= np.linalg.norm(u, axis=0)
  return 1 - mu, u


@jax.jit
def _product(a, b):
  return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
