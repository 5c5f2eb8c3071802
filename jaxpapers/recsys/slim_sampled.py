"""SLIM for Bayesian personalised ranking: weights between items by sampling."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys import optional, sampling, sgd
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.graph import prune_columns
from jaxpapers.recsys.models import ItemModel
from jaxpapers.recsys.similarities import check_k, keep_top


def slim_bpr(
  train: Interactions,
  *,
  top_k: int | None = 100,
  epochs: int = 300,
  learning_rate: float = 1e-4,
  sgd_mode: str = 'adagrad',
  symmetric: bool = True,
  lambda_i: float = 0.0,
  lambda_j: float = 0.0,
  compat: bool = False,
  seed: Any = 0,
  monitor: Any = None,
  max_bytes: float = 8e9,
) -> ItemModel:
  """SLIM-BPR as in the study: dense or symmetric weights, one sample a step.

  An epoch is users + 1 samples: a user, an item i of theirs and an item j that
  they do not have, all uniform. With x = sum over the profile of S[i] - S[j]
  and g = 1 / (1 + e^x), S[i] rises and S[j] falls over the profile. The
  adaptive rules have one number for each item, not for each weight.

  Args:
    train: Interactions; values do not count.
    top_k: Weights kept, first of every row, then of every column.
    epochs: How many; fewer if `monitor` says so.
    learning_rate: Size of steps.
    sgd_mode: 'sgd', 'adagrad', 'rmsprop' or 'adam'.
    symmetric: Whether S[i, l] and S[l, i] are one number.
    lambda_i: Penalty of the weights of i.
    lambda_j: Penalty of the weights of j.
    compat: As the original code, where the penalty of j has the wrong sign and
      makes its weights larger.
    seed: Whole number, or JAX key.
    monitor: Called with epoch (from 1) and model; true ends the fit.
    max_bytes: Refuse data whose weights and profiles, padded to the longest,
      would be larger than this.

  Returns:
    An item model with sparse weights.

  Raises:
    ValueError: An argument is out of range, or the catalogue too large.
  """
  sgd.check_mode(sgd_mode)
  check_k(top_k)
  if epochs < 1:
    raise ValueError(f'epochs is {epochs}; expected 1 or more.')
  n = train.num_items
  longest = int(train.user_counts().max(initial=0))
  need = 4 * (n * n + train.num_users * longest)
  if need > max_bytes:
    raise ValueError(
      f'SLIM-BPR of {n} items, with profiles of up to {longest} of them, needs'
      f' {need / 1e9:.1f} GB; max_bytes is {max_bytes / 1e9:.1f} GB. Raise it,'
      ' drop rare items and longest profiles, or use slim_elastic_net.'
    )
  key = sampling.as_key(seed)
  csr = sampling.put(train)
  profiles = jnp.asarray(train.to_padded()[0])
  sign = -1.0 if compat else 1.0
  rates = jnp.array([learning_rate, lambda_i, sign * lambda_j])
  moments = sgd.init(sgd_mode, jnp.zeros(n))
  state = (jnp.zeros((n, n)), moments, jnp.zeros(()))
  for epoch in range(1, epochs + 1):
    state = _epoch(
      jax.random.fold_in(key, epoch),
      csr,
      profiles,
      state,
      rates,
      train.num_users + 1,
      sgd_mode,
      symmetric,
    )
    if monitor is not None and monitor(epoch, _model(state[0], top_k)):
      break
  return _model(state[0], top_k)


@functools.partial(jax.jit, static_argnums=(5, 6, 7), donate_argnums=3)
def _epoch(key, csr, profiles, state, rates, samples, mode, symmetric):
  rate, lambda_i, lambda_j = rates

  def step(state, key):
    weights, moments, count = state
    n = weights.shape[0]
    keys = jax.random.split(key, 3)
    users = sampling.draw_users(keys[0], csr, (1,))
    i = sampling.draw_positives(keys[1], csr, users)[0][0]
    j, found = sampling.draw_negatives(keys[2], csr, users, n)
    j = j[0]
    profile = profiles[users[0]]
    inside = profile < n
    at = jnp.minimum(profile, n - 1)
    si = jnp.where(inside, weights[i, at], 0)
    sj = jnp.where(inside, weights[j, at], 0)
    g = jax.nn.sigmoid(-(si - sj).sum()) * found[0]
    # Item i rises, item j falls, each with a step of its own.
    pair = jnp.stack([i, j])
    move, moments_pair = sgd.direction(
      mode, tuple(part[pair] for part in moments), jnp.stack([g, g]), count
    )
    moments = tuple(
      part.at[pair].set(value)
      for part, value in zip(moments, moments_pair, strict=True)
    )
    up = rate * (move[0] - lambda_i * si) * found[0]
    down = -rate * (move[1] + lambda_j * sj) * found[0]
    for row, change in ((i, up), (j, down)):
      keep = inside & (profile != row)
      columns = jnp.where(keep, profile, n)
      weights = weights.at[row, columns].add(change, mode='drop')
      if symmetric:
        weights = weights.at[columns, row].add(change, mode='drop')
    return (weights, moments, count + 1), None

  return jax.lax.scan(step, state, jax.random.split(key, samples))[0]


def _model(weights, top_k):
  """The k largest of each row, then of each column."""
  # Row = item to score in the update, so that columns score: transpose.
  weights = np.array(weights)
  n = len(weights)
  if top_k is not None and top_k < n:
    weights = np.where(keep_top(weights, top_k), weights, 0)
  sparse = optional.sparse().csr_array(weights.T)
  return ItemModel(prune_columns(sparse, top_k).tocsr())
