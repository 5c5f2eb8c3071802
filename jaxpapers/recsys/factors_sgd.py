"""Factors by stochastic gradients: BPR-MF, FunkSVD, AsySVD."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys import sampling, sgd
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.models import FactorModel

# Standard deviation of the factors at the start.
_SPREAD = 0.1


def bpr_mf(
  train: Interactions,
  *,
  factors: int = 10,
  epochs: int = 300,
  batch_size: int = 1024,
  learning_rate: float = 1e-3,
  sgd_mode: str = 'sgd',
  user_reg: float = 0.0,
  positive_reg: float = 0.0,
  negative_reg: float = 0.0,
  seed: Any = 0,
  monitor: Any = None,
) -> FactorModel:
  """Factors for Bayesian personalised ranking (Rendle et al. 2009).

  An epoch is floor(users / batch_size) + 1 batches of a user, one of their
  items and one that they do not have, all uniform: about a sample for each
  user, not for each interaction.

  Args:
    train: Interactions.
    factors: Length of a factor.
    epochs: How many; fewer if `monitor` says so.
    batch_size: Samples of a step; gradients are divided by it.
    learning_rate: Size of steps.
    sgd_mode: 'sgd', 'adagrad', 'rmsprop' or 'adam', on touched rows only.
    user_reg: Penalty of users' factors. The study leaves it 0.
    positive_reg: Penalty of the items that a user has.
    negative_reg: Penalty of the others.
    seed: Whole number, or JAX key.
    monitor: Called with epoch (from 1) and model; true ends the fit.

  Returns:
    A factor model, float32.
  """
  csr, state, key = _start(train, factors, batch_size, epochs, sgd_mode, seed)
  batches = train.num_users // batch_size + 1
  rates = jnp.array([learning_rate, user_reg, positive_reg, negative_reg])
  for epoch in range(1, epochs + 1):
    state = _bpr_epoch(
      jax.random.fold_in(key, epoch),
      csr,
      state,
      rates,
      batches,
      batch_size,
      sgd_mode,
    )
    if monitor is not None and monitor(epoch, _model(state)):
      break
  return _model(state)


@functools.partial(jax.jit, static_argnums=(4, 5, 6), donate_argnums=2)
def _bpr_epoch(key, csr, state, rates, batches, batch_size, mode):
  rate, user_reg, positive_reg, negative_reg = rates

  def step(state, key):
    tables, moments, count = state
    keys = jax.random.split(key, 3)
    users = sampling.draw_users(keys[0], csr, (batch_size,))
    i, _ = sampling.draw_positives(keys[1], csr, users)
    n = tables['items'].shape[0]
    j, found = sampling.draw_negatives(keys[2], csr, users, n)
    u, vi, vj = tables['users'][users], tables['items'][i], tables['items'][j]
    x = (u * (vi - vj)).sum(-1)
    g = (jax.nn.sigmoid(-x) * found / batch_size)[:, None]
    weight = (found / batch_size)[:, None]
    gradients = {
      'users': (users, g * (vi - vj) - weight * user_reg * u),
      'items': (
        jnp.concatenate([i, j]),
        jnp.concatenate(
          [
            g * u - weight * positive_reg * vi,
            -g * u - weight * negative_reg * vj,
          ]
        ),
      ),
    }
    return _apply(tables, moments, count, gradients, rate, mode), None

  return jax.lax.scan(step, state, jax.random.split(key, batches))[0]


def funk_svd(
  train: Interactions,
  *,
  factors: int = 10,
  epochs: int = 300,
  batch_size: int = 1024,
  learning_rate: float = 1e-3,
  sgd_mode: str = 'sgd',
  use_bias: bool = True,
  item_reg: float = 0.0,
  user_reg: float = 0.0,
  negative_quota: float = 0.0,
  compat: bool = False,
  seed: Any = 0,
  monitor: Any = None,
) -> FactorModel:
  """FunkSVD: squared error on sampled entries.

  An epoch is floor(interactions / batch_size) + 1 batches. A sample is a user,
  uniform, and one of their items, or, with probability `negative_quota`, one
  that they do not have, with target 0.

  Args:
    train: Interactions.
    factors: Length of a factor.
    epochs: How many; fewer if `monitor` says so.
    batch_size: Samples of a step; gradients are divided by it.
    learning_rate: Size of steps.
    sgd_mode: 'sgd', 'adagrad', 'rmsprop' or 'adam', on touched rows only.
    use_bias: Whether there are biases of users, of items and of all.
    item_reg: Penalty of items' factors and biases.
    user_reg: Penalty of users' factors and biases.
    negative_quota: Probability of a negative sample.
    compat: As the original code: `item_reg` is ignored, and a quota above 0 is
      the probability of a *positive* sample. The published numbers are so.
    seed: Whole number, or JAX key.
    monitor: Called with epoch (from 1) and model; true ends the fit.

  Returns:
    A factor model, float32.

  Raises:
    ValueError: The quota leaves [0, 1), or another argument is out of range.
  """
  if not 0 <= negative_quota < 1:
    raise ValueError(
      f'negative_quota is {negative_quota}; expected 0 or more, below 1.'
    )
  if compat:
    item_reg = 0.0
    negative_quota = 1 - negative_quota if negative_quota else 0.0
  csr, state, key = _start(
    train, factors, batch_size, epochs, sgd_mode, seed, use_bias
  )
  batches = len(train) // batch_size + 1
  rates = jnp.array([learning_rate, user_reg, item_reg, negative_quota])
  for epoch in range(1, epochs + 1):
    state = _funk_epoch(
      jax.random.fold_in(key, epoch),
      csr,
      state,
      rates,
      batches,
      batch_size,
      sgd_mode,
    )
    if monitor is not None and monitor(epoch, _model(state)):
      break
  return _model(state)


def _sample_entries(key, csr, batch_size, num_items, quota):
  """Users, items, targets and weights of one batch."""
  keys = jax.random.split(key, 4)
  users = sampling.draw_users(keys[0], csr, (batch_size,))
  i, value = sampling.draw_positives(keys[1], csr, users)
  j, found = sampling.draw_negatives(keys[2], csr, users, num_items)
  negative = jax.random.uniform(keys[3], (batch_size,)) < quota
  weight = jnp.where(negative, found, True) / batch_size
  return (
    users,
    jnp.where(negative, j, i),
    jnp.where(negative, 0, value),
    weight[:, None],
  )


@functools.partial(jax.jit, static_argnums=(4, 5, 6), donate_argnums=2)
def _funk_epoch(key, csr, state, rates, batches, batch_size, mode):
  rate, user_reg, item_reg, quota = rates

  def step(state, key):
    tables, moments, count = state
    n = tables['items'].shape[0]
    users, items, target, weight = _sample_entries(
      key, csr, batch_size, n, quota
    )
    u, v = tables['users'][users], tables['items'][items]
    predicted = (u * v).sum(-1, keepdims=True)
    biased = 'bias' in tables
    if biased:
      bu, bv = tables['user_bias'][users], tables['item_bias'][items]
      predicted = predicted + tables['bias'] + bu + bv
    error = target[:, None] - predicted
    gradients = {
      'users': (users, weight * (error * v - user_reg * u)),
      'items': (items, weight * (error * u - item_reg * v)),
    }
    if biased:
      nobody = jnp.zeros_like(users)
      gradients |= {
        'bias': (nobody, weight * error),
        'user_bias': (users, weight * (error - user_reg * bu)),
        'item_bias': (items, weight * (error - item_reg * bv)),
      }
    return _apply(tables, moments, count, gradients, rate, mode), None

  return jax.lax.scan(step, state, jax.random.split(key, batches))[0]


def asy_svd(
  train: Interactions,
  *,
  factors: int = 10,
  epochs: int = 300,
  learning_rate: float = 1e-3,
  sgd_mode: str = 'sgd',
  use_bias: bool = True,
  item_reg: float = 0.0,
  user_reg: float = 0.0,
  negative_quota: float = 0.0,
  compat: bool = False,
  seed: Any = 0,
  monitor: Any = None,
) -> FactorModel:
  """AsySVD (Koren 2008): users are sums of factors of their items.

  User u has the vector sum_l Y_l / sqrt(n) over its n items. Samples are drawn
  as for `funk_svd`, one at a time.

  Args:
    train: Interactions.
    factors: Length of a factor.
    epochs: How many; fewer if `monitor` says so.
    learning_rate: Size of steps.
    sgd_mode: 'sgd', 'adagrad', 'rmsprop' or 'adam', on touched rows only.
    use_bias: Whether there are biases.
    item_reg: Penalty of items' factors and biases.
    user_reg: Penalty of Y and of users' biases.
    negative_quota: Probability of a negative sample.
    compat: See `funk_svd`.
    seed: Whole number, or JAX key.
    monitor: Called with epoch (from 1) and model; true ends the fit.

  Returns:
    A factor model, with the users' vectors worked out.
  """
  if not 0 <= negative_quota < 1:
    raise ValueError(
      f'negative_quota is {negative_quota}; expected 0 or more, below 1.'
    )
  if compat:
    item_reg = 0.0
    negative_quota = 1 - negative_quota if negative_quota else 0.0
  csr, state, key = _start(
    train, factors, 1, epochs, sgd_mode, seed, use_bias, asymmetric=True
  )
  profiles = jnp.asarray(train.to_padded()[0])
  rates = jnp.array([learning_rate, user_reg, item_reg, negative_quota])

  def model(state):
    users = _user_vectors(state[0]['profile'], profiles)
    return _model(state, users)

  for epoch in range(1, epochs + 1):
    state = _asy_epoch(
      jax.random.fold_in(key, epoch),
      csr,
      state,
      rates,
      profiles,
      len(train) + 1,
      sgd_mode,
    )
    if monitor is not None and monitor(epoch, model(state)):
      break
  return model(state)


@jax.jit
def _user_vectors(factors, profiles):
  count = (profiles < factors.shape[0]).sum(-1)

  def one(items):
    return factors.at[items].get(mode='fill', fill_value=0).sum(0)

  sums = jax.lax.map(one, profiles, batch_size=256)
  return sums / jnp.sqrt(jnp.maximum(count, 1))[:, None]


@functools.partial(jax.jit, static_argnums=(5, 6), donate_argnums=2)
def _asy_epoch(key, csr, state, rates, profiles, samples, mode):
  rate, user_reg, item_reg, quota = rates

  def step(state, key):
    tables, moments, count = state
    n = tables['items'].shape[0]
    users, items, target, _ = _sample_entries(key, csr, 1, n, quota)
    profile = profiles[users[0]]
    inside = (profile < n)[:, None]
    root = jnp.sqrt(inside.sum())
    y = tables['profile'].at[profile].get(mode='fill', fill_value=0)
    u, v = y.sum(0, keepdims=True) / root, tables['items'][items]
    predicted = (u * v).sum()
    biased = 'bias' in tables
    if biased:
      bu, bv = tables['user_bias'][users], tables['item_bias'][items]
      predicted = predicted + (tables['bias'] + bu + bv)[0, 0]
    error = target[0] - predicted
    gradients = {
      'profile': (profile, inside * (error * v / root - user_reg * y)),
      'items': (items, error * u - item_reg * v),
    }
    if biased:
      gradients |= {
        'bias': (jnp.zeros_like(users), error[None, None]),
        'user_bias': (users, error - user_reg * bu),
        'item_bias': (items, error - item_reg * bv),
      }
    return _apply(tables, moments, count, gradients, rate, mode), None

  return jax.lax.scan(step, state, jax.random.split(key, samples))[0]


def _start(
  train, factors, batch_size, epochs, mode, seed, bias=False, asymmetric=False
):
  sgd.check_mode(mode)
  for name, value in (
    ('factors', factors),
    ('batch_size', batch_size),
    ('epochs', epochs),
  ):
    if value < 1:
      raise ValueError(f'{name} is {value}; expected 1 or more.')
  key = sampling.as_key(seed)
  first, second, key = jax.random.split(key, 3)
  users, items = train.shape
  tables = {
    'items': _SPREAD * jax.random.normal(second, (items, factors)),
  }
  if asymmetric:
    tables['profile'] = _SPREAD * jax.random.normal(first, (items, factors))
  else:
    tables['users'] = _SPREAD * jax.random.normal(first, (users, factors))
  if bias:
    tables |= {
      'bias': jnp.zeros((1, 1)),
      'user_bias': jnp.zeros((users, 1)),
      'item_bias': jnp.zeros((items, 1)),
    }
  moments = {name: sgd.init(mode, table) for name, table in tables.items()}
  return sampling.put(train), (tables, moments, jnp.zeros(())), key


def _apply(tables, moments, count, gradients, rate, mode):
  tables, moments = dict(tables), dict(moments)
  for name, (rows, gradient) in gradients.items():
    tables[name], moments[name] = sgd.update_rows(
      mode, tables[name], moments[name], rows, gradient, rate, count
    )
  return tables, moments, count + 1


def _model(state, users=None):
  tables = state[0]
  biased = 'bias' in tables
  return FactorModel(
    users=np.array(tables['users'] if users is None else users),
    items=np.array(tables['items']),
    user_bias=np.array(tables['user_bias'][:, 0]) if biased else None,
    item_bias=np.array(tables['item_bias'][:, 0]) if biased else None,
    bias=float(tables['bias'][0, 0]) if biased else 0.0,
  )
