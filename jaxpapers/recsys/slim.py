"""SLIM with an elastic net: sparse, not negative weights between items."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys import optional
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.linear import dense_gram
from jaxpapers.recsys.models import ItemModel
from jaxpapers.recsys.similarities import check_k, sparse_top_k
from jaxpapers.recsys.slim_active import solve_met
from jaxpapers.recsys.slim_sweeps import sweep_columns

# Up to here the Gram matrix is kept dense on the host: 1 GB.
_DENSE = 16_384
# Up to here all items are candidates for all others: matrix products are faster
# than choosing.
_SWEEP = 6144
# Up to here, and up to this share of pairs of items that meet at all, each item
# is explained by those that it meets: 4 GB.
_MET = 32_768
_FEW = 0.1
# Items in the first working set.
_FIRST = 64


def slim_elastic_net(
  train: Interactions,
  alpha: float = 1.0,
  l1_ratio: float = 0.1,
  tol: float = 1e-6,
  *,
  top_k: int | None = 100,
  max_iter: int = 2000,
  block: int = 256,
) -> ItemModel:
  """SLIM (Ning & Karypis 2011), each item a regression on all others.

  For each item j: min over w >= 0, w_j = 0 of
  |r_j - R w|^2 / (2 users) + alpha l1_ratio |w|_1
  + alpha (1 - l1_ratio) |w|^2 / 2, solved for many items at once on the Gram
  matrix: on the CPU by cyclic coordinate descent, and exactly on the items that
  have a weight; by accelerated proximal gradients on a device.

  Args:
    train: Interactions, not negative.
    alpha: Weight of the penalty.
    l1_ratio: Share of the absolute value in it, in (0, 1].
    tol: Largest change of a weight, over the largest weight, at the end.
    top_k: Weights kept of every item; None for all.
    max_iter: Steps after which it ends anyway.
    block: Items at a time.

  Returns:
    An item model with sparse weights.

  Raises:
    ValueError: A value is negative, or `alpha` or `l1_ratio` is out of range.
  """
  check_k(top_k)
  if not alpha > 0:
    raise ValueError(f'alpha is {alpha}; expected a positive weight.')
  if not 0 <= l1_ratio <= 1:
    raise ValueError(f'l1_ratio is {l1_ratio}; expected 0 to 1.')
  if len(train) and train.value.min() < 0:
    raise ValueError('train has negative values; SLIM needs them above 0.')
  n = train.num_items
  l1 = alpha * l1_ratio * train.num_users
  l2 = alpha * (1 - l1_ratio) * train.num_users
  settings = (l1, l2, tol, max_iter)
  if n <= _SWEEP and jax.default_backend() == 'cpu':
    blocks = _sweeps(dense_gram(train), settings, 2 * block)
    return ItemModel(sparse_top_k(blocks, top_k, n).tocsr())
  gram = _sparse_gram(train)
  if n <= 512 or (gram.nnz > 0.2 * n * n and jax.default_backend() != 'cpu'):
    blocks = _dense_blocks(dense_gram(train), settings, block)
  elif jax.default_backend() == 'cpu' and n <= _MET and gram.nnz < _FEW * n * n:
    del gram
    blocks = _met(dense_gram(train), settings, block)
  elif n <= _DENSE:
    blocks = _working_sets(gram.toarray(), settings, block)
  else:
    blocks = _sparse_blocks(gram, settings, block)
  return ItemModel(sparse_top_k(blocks, top_k, n).tocsr())


def _sparse_gram(train):
  sparse = optional.sparse()
  if train.num_items <= 512:
    return sparse.csr_array(dense_gram(train))
  return (train.csr.T.tocsr() @ train.csr).tocsc()


def _dense_blocks(gram, settings, block):
  """All items against blocks of items."""
  n = len(gram)
  device = jnp.asarray(gram)
  step = _lipschitz(gram) + settings[1]
  for first in range(0, n, block):
    columns = np.arange(first, min(first + block, n))
    # The last block has the same shape, so that it is compiled once.
    padded = np.resize(columns, min(block, n))
    weights = solve_slim(
      device,
      device[:, padded],
      jnp.asarray(padded),
      *settings[:2],
      step,
      tol=settings[2],
      max_iter=settings[3],
    )
    yield first, np.asarray(weights)[:, : len(columns)]


def _sweeps(gram, settings, block):
  """All items against blocks of items, by coordinates."""
  n = len(gram)
  l1, l2, tol, max_iter = settings
  for first in range(0, n, block):
    columns = np.arange(first, min(first + block, n))
    padded = np.resize(columns, min(block, n))
    weights = sweep_columns(gram, padded, l1, l2, tol=tol, max_iter=max_iter)
    yield first, weights[:, : len(columns)]


def _met(gram, settings, block):
  """Each item on those that it meets; what that does not solve, by sweeps."""
  l1, l2, tol, max_iter = settings
  # As in sweeps: below this a weight of float32 cannot come to rest.
  least = max(tol, 4 * float(np.finfo(gram.dtype).eps))
  for first in range(0, len(gram), block):
    columns = np.arange(first, min(first + block, len(gram)))
    weights, solved = solve_met(gram, columns, l1, l2, least)
    if not solved.all():
      weights[:, ~solved] = sweep_columns(
        gram, columns[~solved], l1, l2, tol=tol, max_iter=max_iter
      )
    yield first, weights


def _lipschitz(gram, iterations=50):
  """The largest eigenvalue of a matrix without negative entries."""
  vector = np.ones(len(gram), np.float32)
  value = 0.0
  for _ in range(iterations):
    vector = gram @ vector
    value = float(np.linalg.norm(vector))
    if not value:
      return 1.0
    vector /= value
  # Power iteration comes from below; row sums bound from above.
  return min(value * 1.05, float(np.abs(gram).sum(axis=1).max()))


@functools.partial(jax.jit, static_argnames=('max_iter',))
def solve_slim(
  gram: Any,
  targets: Any,
  columns: Any,
  l1: Any,
  l2: Any,
  lipschitz: Any,
  *,
  tol: float = 1e-6,
  max_iter: int = 2000,
) -> jax.Array:
  """Accelerated projected gradients for some columns of SLIM.

  Args:
    gram: R'R of the items that may get weights, `[m, m]`.
    targets: R'r of the items to explain, `[m, b]`.
    columns: Row of each of these among the m, int `[b]`; it stays zero.
    l1: Weight of the absolute value, times the number of users.
    l2: Weight of half the square, times the number of users.
    lipschitz: Bound of the largest eigenvalue of gram + l2 I.
    tol: Ends when no weight changes by more than this, over the largest.
    max_iter: Most steps.

  Returns:
    Weights, `[m, b]`.
  """
  own = jnp.arange(gram.shape[0])[:, None] == columns[None, :]

  def proximal(point):
    gradient = (
      jnp.matmul(gram, point, precision=jax.lax.Precision.HIGHEST)
      + l2 * point
      - targets
      + l1
    )
    return jnp.where(own, 0, jnp.maximum(point - gradient / lipschitz, 0))

  def body(state):
    weights, point, momentum, _, i = state
    new = proximal(point)
    next_momentum = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
    # Restart a column where the momentum points uphill.
    uphill = ((point - new) * (new - weights)).sum(axis=0) > 0
    factor = jnp.where(uphill, 0.0, (momentum - 1) / next_momentum)
    next_momentum = jnp.where(uphill, 1.0, next_momentum)
    change = jnp.abs(new - weights).max()
    scale = jnp.maximum(new.max(), 1e-30)
    point = new + factor * (new - weights)
    return new, point, next_momentum, change / scale, i + 1

  def running(state):
    return (state[3] > tol) & (state[4] < max_iter)

  zero = jnp.zeros_like(targets)
  ones = jnp.ones(targets.shape[1], targets.dtype)
  state = (zero, zero, ones, jnp.asarray(jnp.inf, targets.dtype), 0)
  return jax.lax.while_loop(running, body, state)[0]


def _working_sets(gram, settings, block):
  """Small problems on the items that matter, grown until none is missing.

  Solves each column on a set of items, looks at the gradient of all others, and
  takes in those that would still get a weight. Most weights of SLIM are zero:
  the sets stay small.
  """
  l1, l2, tol, _ = settings
  n = len(gram)
  for first in range(0, n, block):
    columns = np.arange(first, min(first + block, n))
    inside = np.arange(len(columns))
    targets = gram[:, columns].copy()
    # Below what any item needs to get a weight.
    targets[columns, inside] = -np.inf
    largest = np.maximum(targets.max(axis=0), 0)
    threshold = max(tol, 1e-6) * largest
    weights = np.zeros((n, len(columns)), np.float32)
    sets = [
      _first_set(targets[:, i], l1) if largest[i] > l1 else None for i in inside
    ]
    pending = [i for i in inside if sets[i] is not None]
    rounds = 0
    while pending:
      rounds += 1
      _solve_sets(gram, columns, sets, pending, settings, weights)
      part = weights[:, pending]
      gradient = gram @ part + l2 * part - targets[:, pending] + l1
      gradient[part > 0] = 0
      left = []
      for place, i in enumerate(pending):
        missing = np.flatnonzero(gradient[:, place] < -threshold[i])
        # What is in the set already is as good as max_iter and float32 allow.
        missing = np.setdiff1d(missing, sets[i], assume_unique=True)
        if not len(missing):
          continue
        # Sets that only grow come to an end, whatever rounding does.
        support = np.flatnonzero(part[:, place]) if rounds < 20 else sets[i]
        room = max(_FIRST, len(support))
        if len(missing) > room:
          order = np.argpartition(gradient[missing, place], room)
          missing = missing[order[:room]]
        sets[i] = np.sort(np.concatenate([support, missing]))
        left.append(i)
      pending = left
    yield first, weights


def _first_set(target, l1):
  rows = np.flatnonzero(target > l1)
  if len(rows) > _FIRST:
    rows = rows[np.argpartition(-target[rows], _FIRST)[:_FIRST]]
  return np.sort(rows)


def _solve_sets(gram, columns, sets, pending, settings, weights):
  """Solves the columns `pending` on their sets, in batches of equal size."""
  l1, l2, tol, max_iter = settings
  sizes = {}
  for i in pending:
    size = int(2 ** np.ceil(np.log2(max(len(sets[i]), 32))))
    sizes.setdefault(size, []).append(i)
  for size, members in sizes.items():
    batch = int(np.clip(2**24 // size**2, 1, 256))
    for at in range(0, len(members), batch):
      some = members[at : at + batch]
      grams = np.zeros((batch, size, size), np.float32)
      targets = np.zeros((batch, size), np.float32)
      for row, i in enumerate(some):
        rows = sets[i]
        grams[row, : len(rows), : len(rows)] = gram[np.ix_(rows, rows)]
        targets[row, : len(rows)] = gram[rows, columns[i]]
      found = np.asarray(
        descend(grams, targets, l1, l2, tol=tol, max_iter=max_iter)
      )
      for row, i in enumerate(some):
        weights[:, i] = 0
        weights[sets[i], i] = found[row, : len(sets[i])]


def _sparse_blocks(gram, settings, block):
  """Only items that meet an item often enough can get a weight for it.

  With R >= 0 and w >= 0 the gradient at w_i = 0 is at least l1 - g_ij, so that
  weights are zero where g_ij <= l1. The rest are small problems, solved
  together with others of about the same size.
  """
  l1, l2, tol, max_iter = settings
  n = gram.shape[0]
  gram = gram.tocsc()
  members, sizes = [], np.zeros(n, int)
  for j in range(n):
    part = slice(gram.indptr[j], gram.indptr[j + 1])
    rows, values = gram.indices[part], gram.data[part]
    rows = np.sort(rows[(values > l1) & (rows != j)])
    members.append(rows)
    sizes[j] = len(rows)
  rows_of = gram.tocsr()
  solved = [None] * n
  order = np.argsort(sizes, kind='stable')
  order = order[sizes[order] > 0]
  at = 0
  while at < len(order):
    size = int(2 ** np.ceil(np.log2(max(sizes[order[at]], 8))))
    inside = np.searchsorted(sizes[order], size, side='right')
    # Problems side by side, within 256 MB.
    batch = int(np.clip(2**26 // size**2, 1, 256))
    for first in range(at, inside, batch):
      _solve_batch(
        rows_of,
        members,
        order[first : min(first + batch, inside)],
        size,
        batch,
        (l1, l2, tol, max_iter),
        solved,
      )
    at = inside
  for first in range(0, n, block):
    weights = np.zeros((n, min(block, n - first)), np.float32)
    for j in range(first, first + weights.shape[1]):
      if solved[j] is not None:
        weights[members[j], j - first] = solved[j]
    yield first, weights


def _solve_batch(gram, members, items, size, batch, settings, solved):
  l1, l2, tol, max_iter = settings
  grams = np.zeros((batch, size, size), np.float32)
  targets = np.zeros((batch, size, 1), np.float32)
  position = np.full(gram.shape[0], -1)
  for i, j in enumerate(items):
    rows = members[j]
    part = gram[rows]
    position[rows] = np.arange(len(rows))
    column = position[part.indices]
    inside = column >= 0
    row = np.repeat(np.arange(len(rows)), np.diff(part.indptr))
    grams[i, row[inside], column[inside]] = part.data[inside]
    own = gram[[j]]
    column = position[own.indices]
    inside = column >= 0
    targets[i, column[inside], 0] = own.data[inside]
    position[rows] = -1
  weights = descend(grams, targets[..., 0], l1, l2, tol=tol, max_iter=max_iter)
  weights = np.asarray(weights)
  for i, j in enumerate(items):
    solved[j] = weights[i, : len(members[j])]


@functools.partial(jax.jit, static_argnames=('max_iter',))
def descend(
  grams: Any,
  targets: Any,
  l1: Any,
  l2: Any,
  *,
  tol: float = 1e-6,
  max_iter: int = 2000,
) -> jax.Array:
  """Cyclic coordinate descent for many small problems side by side.

  Where every problem has a Gram matrix of its own a gradient step reads as much
  memory as a sweep over coordinates, and a sweep gets further.

  Args:
    grams: R'R of each problem, `[b, m, m]`, zero where padded.
    targets: R'r of each, `[b, m]`.
    l1: Weight of the absolute value, times the number of users.
    l2: Weight of half the square, times the number of users.
    tol: Ends when no weight changes by more than this, over the largest.
    max_iter: Most sweeps.

  Returns:
    Weights, `[b, m]`, not negative.
  """
  curvature = jnp.diagonal(grams, axis1=1, axis2=2) + l2
  curvature = jnp.where(curvature > 0, curvature, 1)

  def coordinate(i, state):
    weights, residual = state  # residual = targets - grams @ weights
    old = weights[:, i]
    ahead = residual[:, i] + (curvature[:, i] - l2) * old - l1
    new = jnp.maximum(ahead / curvature[:, i], 0)
    residual = residual - (new - old)[:, None] * grams[:, i, :]
    return weights.at[:, i].set(new), residual

  def sweep(state):
    weights, residual, _, count = state
    after, residual = jax.lax.fori_loop(
      0, targets.shape[1], coordinate, (weights, residual)
    )
    change = jnp.abs(after - weights).max()
    scale = jnp.maximum(after.max(), 1e-30)
    return after, residual, change / scale, count + 1

  def running(state):
    return (state[2] > tol) & (state[3] < max_iter)

  infinite = jnp.asarray(jnp.inf, targets.dtype)
  state = (jnp.zeros_like(targets), targets, infinite, 0)
  return jax.lax.while_loop(running, sweep, state)[0]


def duality_gap(
  gram: Any, target: Any, norm: Any, weights: Any, l1: float, l2: float
) -> float:
  """How far from the optimum a column is: its primal minus a dual value.

  Args:
    gram: R'R without the item itself, `[m, m]`.
    target: R'r, `[m]`.
    norm: r'r.
    weights: Its weights, `[m]`, not negative.
    l1: Weight of the absolute value.
    l2: Weight of half the square.

  Returns:
    The gap, in the units of |r - R w|^2 / 2, not negative up to rounding.
  """
  gram = np.asarray(gram, np.float64)
  target = np.asarray(target, np.float64)
  w = np.asarray(weights, np.float64)
  gram = gram + l2 * np.eye(len(gram))  # Ridge as further rows.
  quadratic = w @ gram @ w
  residual = norm - 2 * target @ w + quadratic
  primal = residual / 2 + l1 * w.sum()
  # A scaled residual is feasible: R'(s res) <= l1.
  largest = (target - gram @ w).max(initial=0)
  scale = min(1.0, l1 / largest) if largest > 0 else 1.0
  dual = scale * (norm - target @ w) - scale**2 * residual / 2
  return float(primal - dual)
