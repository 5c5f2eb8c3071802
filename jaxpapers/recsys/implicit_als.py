"""Implicit alternating least squares, with exact solutions for each row."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.models import FactorModel

# Numbers in one gathered block of factors: what fits into the cache of a core
# on the host; on a device 256 MB, and as much for the systems of its rows.
_HOST_BLOCK = 1 << 18
_BLOCK = 1 << 26


def ials(
  key: Any,
  train: Interactions,
  factors: int = 32,
  alpha: float = 1.0,
  reg: float = 1e-3,
  scaling: str = 'linear',
  *,
  epochs: int = 15,
  epsilon: float = 1.0,
  init: Any = None,
  cold: str = 'zero',
  monitor: Any = None,
) -> FactorModel:
  """Implicit ALS (Hu, Koren & Volinsky 2008).

  With confidence c = 1 + alpha r ('linear') or 1 + alpha log(1 + r / epsilon)
  ('log') of stored entries, per epoch first all users, then all items:
  x_u = (Y'Y + Y_u' diag(c - 1) Y_u + reg I)^-1 Y_u' c.

  Args:
    key: Of the start of the item factors, uniform in [0, 1) / sqrt(factors): a
      JAX key, or a whole number, which gives the original's stream.
    train: Interactions, not negative.
    factors: Length of a factor.
    alpha: Weight of confidence.
    reg: Weight of the penalty, not scaled by counts.
    scaling: 'linear' or 'log'.
    epochs: How many; fewer if `monitor` says so.
    epsilon: Of 'log'.
    init: Item factors to start from, `[num_items, factors]`, instead; `key` is
      not used then.
    cold: 'zero' gives items without interactions zero factors; with 'keep'
      they keep their random start, which takes part in Y'Y, as in the original.
    monitor: Called with epoch (from 1) and model; true ends the fit.

  Returns:
    A factor model, of the dtype of `init`, else float32.

  Raises:
    ValueError: An argument is out of range.

  Example:
    >>> from jaxpapers.recsys import interactions
    >>> x = interactions([0, 0, 1], [0, 1, 1])
    >>> model = ials(jax.random.key(0), x, factors=2, epochs=3)
    >>> model.users.shape
    (2, 2)
  """
  if scaling not in ('linear', 'log'):
    raise ValueError(f"scaling is {scaling!r}; expected 'linear' or 'log'.")
  if cold not in ('zero', 'keep'):
    raise ValueError(f"cold is {cold!r}; expected 'zero' or 'keep'.")
  if epochs < 1:
    raise ValueError(f'epochs is {epochs}; expected 1 or more.')
  if factors < 1:
    raise ValueError(f'factors is {factors}; expected 1 or more.')
  if not reg > 0:
    raise ValueError(f'reg is {reg}; expected a positive number.')
  if len(train) and train.value.min() < 0:
    raise ValueError('train has negative values; iALS needs them above 0.')
  if init is None:
    shape = train.num_items, factors
    if isinstance(key, (int, np.integer)):
      start = np.random.RandomState(key).random_sample(shape)
    else:
      start = np.asarray(jax.random.uniform(key, shape))
    init = (factors**-0.5 * start).astype(np.float32)
  items = np.array(init)
  if items.shape != (train.num_items, factors):
    raise ValueError(
      f'init has shape {items.shape}; expected {(train.num_items, factors)}.'
    )
  dtype = items.dtype
  if scaling == 'linear':
    extra = alpha * train.value
  else:
    extra = alpha * np.log(1 + train.value / np.float32(epsilon))
  if cold == 'zero':
    items[train.item_counts() == 0] = 0
  extra = extra.astype(np.float32)
  back = train.transpose()
  sides = (
    (train.row_starts, train.item, extra),
    (back.row_starts, back.item, extra[train.by_item]),
  )
  if jax.default_backend() == 'cpu':
    plans = [_plan(*side, factors) for side in sides]
    return _host(train, items, *plans, reg, epochs, monitor)
  with jax.enable_x64(dtype == np.float64):
    # Both tables are as long as the longer one: one program for both.
    most = max(train.shape)
    users = jnp.zeros((most, factors), dtype)
    items = jnp.zeros((most, factors), dtype).at[: train.num_items].set(items)
    by_user, by_item = (_put(*side, factors, most) for side in sides)
    for epoch in range(1, epochs + 1):
      users = _half(users, items, by_user, reg)
      items = _half(items, users, by_item, reg)
      if monitor is not None and monitor(
        epoch, _device_model(train, users, items)
      ):
        break
    return _device_model(train, users, items)


def _device_model(train, users, items):
  return FactorModel(
    np.asarray(users[: train.num_users]), np.asarray(items[: train.num_items])
  )


def _plan(starts, others, extra, factors):
  """Rows of about the same length, together, padded.

  Returns:
    Tuples of rows `[b]`, their partners `[b, length]`, c - 1 and 1 for stored
    entries. Rows without entries are in none of them.
  """
  lengths = np.diff(starts)
  order = np.argsort(lengths, kind='stable')
  order = order[lengths[order] > 0]
  plan, at = [], 0
  while at < len(order):
    # At most a quarter more than needed, few shapes to compile.
    size = _round(int(lengths[order[at]]))
    end = np.searchsorted(lengths[order], size, side='right')
    most = max(_HOST_BLOCK // (size * factors), 1)
    for first in range(at, end, most):
      rows = order[first : min(first + most, end)]
      inside = np.arange(size) < lengths[rows, None]
      where = np.where(inside, starts[rows, None] + np.arange(size), 0)
      plan.append(
        (
          rows.astype(np.int32),
          np.where(inside, others[where], 0).astype(np.int32),
          np.where(inside, extra[where], 0).astype(np.float32),
          inside.astype(np.float32),
        )
      )
    at = end
  return plan


def _host(train, items, by_user, by_item, reg, epochs, monitor):
  """The same on the CPU, where BLAS needs no compiling."""
  users = np.zeros((train.num_users, items.shape[1]), items.dtype)
  for epoch in range(1, epochs + 1):
    _host_half(users, items, by_user, reg)
    _host_half(items, users, by_item, reg)
    model = FactorModel(users, items)
    if monitor is not None and monitor(
      epoch, FactorModel(users.copy(), items.copy())
    ):
      break
  return model


def _host_half(own, others, plan, reg):
  dtype = own.dtype
  gram = others.T @ others + reg * np.eye(own.shape[1], dtype=dtype)
  for rows, partners, extra, stored in plan:
    gathered = others[partners]
    extra = extra.astype(dtype, copy=False)
    weighted = gathered * extra[..., None]
    system = gram + gathered.transpose(0, 2, 1) @ weighted
    right = np.einsum('blf,bl->bf', gathered, stored + extra)
    own[rows] = np.linalg.solve(system, right[..., None])[..., 0]


def _round(length):
  """The next of 8, 12, 16, 24, 32, 48, ..."""
  size = 8
  while size < length:
    size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
  return size


def _put(starts, others, extra, factors, fill):
  """Entries of a device, and which rows are solved together.

  Rows are as long as a power of four or shorter, so that there are few programs
  to compile; only their starts are sent, and a block is padded where it is
  used.

  Returns:
    Partners and c - 1 of all entries; and tuples of a size, rows `[b]`, padded
    with `fill`, their starts and lengths.
  """
  lengths = np.diff(starts)
  order = np.argsort(lengths, kind='stable').astype(np.int32)
  order = order[lengths[order] > 0]
  blocks, at = [], 0
  while at < len(order):
    size = 8
    while size < lengths[order[at]]:
      size *= 4
    end = int(np.searchsorted(lengths[order], size, side='right'))
    most = max(_BLOCK // (factors * max(size, factors)), 1)
    most = min(most, 1 << (end - at - 1).bit_length())
    for first in range(at, end, most):
      rows = order[first : min(first + most, end)]
      pad = (0, most - len(rows))
      blocks.append(
        (
          size,
          jnp.asarray(np.pad(rows, pad, constant_values=fill)),
          jnp.asarray(np.pad(starts[rows], pad)),
          jnp.asarray(np.pad(lengths[rows], pad)),
        )
      )
    at = end
  return jnp.asarray(others), jnp.asarray(extra), blocks


def _half(own, others, plan, reg):
  gram = _gram(others, reg)
  partners, extra, blocks = plan
  for size, *rows in blocks:
    own = _rows(own, others, gram, partners, extra, *rows, size)
  return own


@jax.jit
def _gram(others, reg):
  gram = jnp.matmul(others.T, others, precision=jax.lax.Precision.HIGHEST)
  return gram + reg * jnp.eye(others.shape[1], dtype=others.dtype)


@functools.partial(jax.jit, static_argnums=8, donate_argnums=0)
def _rows(own, others, gram, partners, extra, rows, starts, lengths, size):
  inside = jnp.arange(size) < lengths[:, None]
  at = jnp.where(inside, starts[:, None] + jnp.arange(size), 0)
  found = solve_rows(
    others,
    gram,
    jnp.where(inside, partners[at], 0),
    jnp.where(inside, extra[at], 0),
    inside.astype(others.dtype),
  )
  return own.at[rows].set(found, mode='drop')


def solve_rows(
  others: Any, gram: Any, partners: Any, extra: Any, stored: Any
) -> jax.Array:
  """Exact factors of some rows, given those of the other side.

  Args:
    others: Factors Y of the other side, `[n, f]`.
    gram: Y'Y + reg I, `[f, f]`.
    partners: Stored entries of each row, int `[b, length]`, padded.
    extra: c - 1 of each, 0 where padded.
    stored: 1, or 0 where padded.

  Returns:
    Factors `[b, f]`.
  """
  high = jax.lax.Precision.HIGHEST
  gathered = others[partners]
  extra, stored = extra.astype(others.dtype), stored.astype(others.dtype)
  system = gram + jnp.einsum(
    'blf,blg->bfg', gathered * extra[..., None], gathered, precision=high
  )
  right = jnp.einsum('blf,bl->bf', gathered, stored + extra, precision=high)
  factor = jnp.linalg.cholesky(system)
  return jax.scipy.linalg.cho_solve((factor, True), right[..., None])[..., 0]
