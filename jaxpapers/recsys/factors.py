"""PureSVD and NMF: factors of the whole matrix, zeros included."""

import numpy as np

from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.models import FactorModel
from jaxpapers.recsys.products import Products


def truncated_svd(
  train: Interactions,
  factors: int,
  *,
  seed: int = 0,
  oversampling: int = 20,
  iterations: int = 12,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The largest singular values and vectors, by subspace iteration.

  Args:
    train: Interactions.
    factors: How many.
    seed: Of the start.
    oversampling: Vectors carried along.
    iterations: Products with R R'. With 12 the result does not depend on the
      seed where singular values differ by a few per cent.

  Returns:
    U `[users, factors]`, singular values `[factors]`, descending, and V'
    `[factors, items]`; the largest entry of each row of V' is positive.

  Raises:
    ValueError: There are not so many singular values.
  """
  _check_factors(factors, min(train.shape))
  size = min(factors + oversampling, *train.shape)
  products = Products(train, np.float64)
  rng = np.random.default_rng(seed)
  dtype = np.float64 if products.host else np.float32
  xp = products.xp
  basis = xp.asarray(rng.standard_normal((train.num_items, size)).astype(dtype))
  basis = xp.linalg.qr(basis)[0]
  for _ in range(iterations):
    basis = xp.linalg.qr(products.times(basis))[0]
    basis = xp.linalg.qr(products.transpose_times(basis))[0]
  left, values, small = np.linalg.svd(
    np.asarray(products.times(basis), np.float64), full_matrices=False
  )
  right = small @ np.asarray(basis, np.float64).T
  largest = np.abs(right).argmax(axis=1)
  signs = np.sign(right[np.arange(len(right)), largest])
  signs[signs == 0] = 1
  left, right = left * signs, right * signs[:, None]
  return left[:, :factors], values[:factors], right[:factors]


def _check_factors(factors, most):
  if not 1 <= factors <= most:
    raise ValueError(f'factors is {factors}; expected 1 to {most}.')


def pure_svd(
  train: Interactions, *, factors: int = 100, seed: int = 0
) -> FactorModel:
  """PureSVD (Cremonesi et al. 2010): U Sigma and V of the truncated SVD.

  Args:
    train: Interactions.
    factors: How many.
    seed: Of the solver's start; it hardly matters.

  Returns:
    A factor model, float32.
  """
  left, values, right = truncated_svd(train, factors, seed=seed)
  return FactorModel(
    users=(left * values).astype(np.float32),
    items=np.ascontiguousarray(right.T).astype(np.float32),
  )


def nmf(
  train: Interactions,
  *,
  factors: int = 100,
  solver: str = 'multiplicative',
  init: str = 'nndsvda',
  loss: str = 'frobenius',
  iterations: int = 500,
  tol: float = 1e-4,
  seed: int = 0,
) -> FactorModel:
  """Non-negative matrix factorisation: R = W H with W, H >= 0.

  Args:
    train: Interactions, not negative.
    factors: How many.
    solver: 'multiplicative' updates (Lee & Seung) or 'coordinate' descent.
    init: 'nndsvda' (of an SVD, zeros filled with the mean) or 'random'.
    loss: 'frobenius', or 'kullback-leibler' (multiplicative updates only).
    iterations: Most sweeps.
    tol: Ends when the loss has fallen by less than this part of the first over
      10 sweeps; 0 never.
    seed: Of the start.

  Returns:
    A factor model, float32.

  Raises:
    ValueError: An argument is unknown, or a value is negative.
  """
  for name, value, known in (
    ('solver', solver, ('multiplicative', 'coordinate')),
    ('init', init, ('nndsvda', 'random')),
    ('loss', loss, ('frobenius', 'kullback-leibler')),
  ):
    if value not in known:
      raise ValueError(f'{name} is {value!r}; expected one of {known}.')
  if loss == 'kullback-leibler' and solver == 'coordinate':
    raise ValueError(
      "solver 'coordinate' minimises 'frobenius' only; use 'multiplicative'."
    )
  _check_factors(factors, min(train.shape))
  if len(train) and train.value.min() < 0:
    raise ValueError('train has negative values; NMF needs them above 0.')
  w, h = _nmf_start(train, factors, init, seed)
  rows = train.user, train.item, train.value
  products = Products(train)
  square = float((train.value.astype(np.float64) ** 2).sum())
  first = before = None
  for sweep in range(iterations):
    if loss == 'kullback-leibler':
      w, h = _kullback_leibler(w, h, train, rows)
    elif solver == 'multiplicative':
      w, h = _multiplicative(w, h, products)
    else:
      w = _coordinate(w, h.T @ h, np.asarray(products.times(h)))
      h = _coordinate(h, w.T @ w, np.asarray(products.transpose_times(w)))
    if tol and sweep % 10 == 9:
      error = (
        _divergence(w, h, rows)
        if loss == 'kullback-leibler'
        else _frobenius(w, h, products, square)
      )
      first = error if first is None else first
      if before is not None and before - error < tol * first:
        break
      before = error
  return FactorModel(users=np.asarray(w), items=np.asarray(h))


_TINY = np.finfo(np.float32).eps


def _nmf_start(train, factors, init, seed):
  mean = len(train) and float(train.value.sum()) / np.prod(train.shape)
  if init == 'random':
    rng = np.random.default_rng(seed)
    scale = np.sqrt(mean / factors)
    w = np.abs(scale * rng.standard_normal((train.num_users, factors)))
    h = np.abs(scale * rng.standard_normal((train.num_items, factors)))
    return w.astype(np.float32), h.astype(np.float32)
  left, values, right = truncated_svd(train, factors, seed=seed)
  w = np.zeros((train.num_users, factors))
  h = np.zeros((train.num_items, factors))
  for j in range(factors):
    x, y = left[:, j], right[j]
    if j == 0:  # Perron: all of one sign.
      x, y = np.abs(x), np.abs(y)
    candidates = []
    for sign in (1, -1):
      p, q = np.maximum(sign * x, 0), np.maximum(sign * y, 0)
      norms = np.linalg.norm(p), np.linalg.norm(q)
      candidates.append((norms[0] * norms[1], p, q, *norms))
    product, p, q, np_, nq = max(candidates, key=lambda c: c[0])
    if product > 0:
      scale = np.sqrt(values[j] * product)
      w[:, j], h[:, j] = scale * p / np_, scale * q / nq
  for factor in (w, h):
    factor[factor < 1e-6] = 0
    factor[factor == 0] = mean
  return w.astype(np.float32), h.astype(np.float32)


def _multiplicative(w, h, products):
  w = w * products.times(h) / np.maximum(w @ (h.T @ h), _TINY)
  h = h * products.transpose_times(w) / np.maximum(h @ (w.T @ w), _TINY)
  return w, h


def _coordinate(w, gram, product):
  """One sweep of coordinate descent over the columns of w."""
  w = np.array(w)
  for j in range(w.shape[1]):
    if gram[j, j] > 0:
      gradient = w @ gram[:, j] - product[:, j]
      w[:, j] = np.maximum(w[:, j] - gradient / gram[j, j], 0)
  return w


def _ratios(w, h, rows, chunk=1 << 20):
  user, item, value = rows
  predicted = np.empty(len(user), np.float32)
  for first in range(0, len(user), chunk):
    part = slice(first, first + chunk)
    predicted[part] = np.einsum('nf,nf->n', w[user[part]], h[item[part]])
  return np.maximum(predicted, _TINY), value


def _kullback_leibler(w, h, train, rows):
  predicted, value = _ratios(w, h, rows)
  ratio = train.csr.copy()
  ratio.data = value / predicted
  w = w * (ratio @ h) / np.maximum(h.sum(axis=0), _TINY)
  predicted, value = _ratios(w, h, rows)
  ratio.data = value / predicted
  h = h * (ratio.T @ w) / np.maximum(w.sum(axis=0), _TINY)
  return w, h


def _divergence(w, h, rows):
  predicted, value = _ratios(w, h, rows)
  total = float(w.sum(axis=0, dtype=np.float64) @ h.sum(axis=0))
  inside = (value * np.log(value / predicted) - value).sum(dtype=np.float64)
  return np.sqrt(2 * max(float(inside) + total, 0))


def _frobenius(w, h, products, square):
  cross = float((np.asarray(products.times(h)) * w).sum(dtype=np.float64))
  both = float(((w.T @ w) * (h.T @ h)).sum(dtype=np.float64))
  return np.sqrt(max(square - 2 * cross + both, 0))
