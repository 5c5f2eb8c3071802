"""Collaborative topic regression: the factors of CVAE and CDL (Wang & Blei).

Item factors are drawn to what a network makes of the item's content; users have
a plain prior. One sweep solves all users, then all items, exactly.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.models import FactorModel

_HIGH = jax.lax.Precision.HIGHEST
# Numbers in one gathered block of factors.
_BLOCK = 1 << 22


class Weights(NamedTuple):
  """Weights of the regression.

  Attributes:
    a: Confidence of an interaction.
    b: Confidence of all else.
    users: Weight of the prior of users, lambda_u.
    items: Weight of the distance of an item from its content, lambda_v.
  """

  a: float = 1.0
  b: float = 0.01
  users: float = 0.1
  items: float = 10.0


class Plan(NamedTuple):
  """Who is solved together: rows of about the same length, padded.

  Attributes:
    by_user: Blocks of rows int32 `[b]`, partners int32 `[b, length]`, and 1 or
      0 where padded, float32 `[b, length]`; users with interactions only.
    by_item: The same of all items.
    active: 1 for users with interactions, float32 `[num_users]`.
    rated: 1 for items with interactions, float32 `[num_items]`.
  """

  by_user: tuple
  by_item: tuple
  active: Any
  rated: Any


def check_weights(weights: Weights) -> None:
  """Refuses weights that make no sense.

  Raises:
    ValueError: Which one, and why.
  """
  a, b, users, items = weights
  if not a > b >= 0:
    raise ValueError(
      f'a is {a} and b {b}; expected a above b, and b of 0 or more.'
    )
  for name, value in (('lambda_u', users), ('lambda_v', items)):
    if not value > 0:
      raise ValueError(f'{name} is {value}; expected a positive number.')


def make_plan(train: Interactions, factors: int) -> Plan:
  """Groups users and items by their number of interactions.

  Args:
    train: Interactions; their values are not looked at.
    factors: Length of a factor, which bounds the size of a block.
  """
  back = train.transpose()
  return Plan(
    _blocks(train.row_starts, train.item, factors, False),
    _blocks(back.row_starts, back.item, factors, True),
    jnp.asarray(train.user_counts() > 0, jnp.float32),
    jnp.asarray(train.item_counts() > 0, jnp.float32),
  )


def _blocks(starts, others, factors, empty):
  lengths = np.diff(starts)
  order = np.argsort(lengths, kind='stable')
  if not empty:
    order = order[lengths[order] > 0]
  if not len(others):
    others = np.zeros(1, np.int32)
  blocks, at = [], 0
  while at < len(order):
    # Few shapes to compile, at most twice the work.
    size = 1 << max(int(lengths[order[at]]) - 1, 7).bit_length()
    end = int(np.searchsorted(lengths[order], size, side='right'))
    most = max(_BLOCK // (size * factors), 1)
    for first in range(at, end, most):
      rows = order[first : min(first + most, end)]
      inside = np.arange(size) < lengths[rows, None]
      where = np.where(inside, starts[rows, None] + np.arange(size), 0)
      blocks.append(
        (
          jnp.asarray(rows, jnp.int32),
          jnp.asarray(np.where(inside, others[where], 0), jnp.int32),
          jnp.asarray(inside, jnp.float32),
        )
      )
    at = end
  return tuple(blocks)


def ctr_sweep(
  users: Any,
  items: Any,
  theta: Any,
  plan: Plan,
  weights: Weights,
) -> tuple[jax.Array, jax.Array]:
  """Solves all users, then all items.

    u = (b V'V + (a - b) sum v v' + lambda_u I)^-1 a sum v
    v = (b U'U + (a - b) sum u u' + lambda_v I)^-1 (a sum u + lambda_v theta)

  with sums over what the user has, or who has the item; V'V over items with
  interactions, U'U over users with interactions. The others keep their factors.

  Args:
    users: Factors U, `[num_users, f]`.
    items: Factors V, `[num_items, f]`.
    theta: What the content says of the items, `[num_items, f]`.
    plan: Of `make_plan`.
    weights: Of the regression.

  Returns:
    New U and V.

  Example:
    >>> from jaxpapers.recsys import interactions
    >>> plan = make_plan(interactions([0, 1], [0, 1]), 2)
    >>> u, v = ctr_sweep(jnp.ones((2, 2)), jnp.ones((2, 2)), jnp.ones((2, 2)),
    ...                  plan, Weights())
    >>> u.shape, v.shape
    ((2, 2), (2, 2))
  """
  users, items, theta = (jnp.asarray(x) for x in (users, items, theta))
  difference = weights.a - weights.b
  gram = _gram(items * plan.rated[:, None], weights.b, weights.users)
  for block in plan.by_user:
    users = _solve(users, items, gram, block, weights.a, difference)
  gram = _gram(users * plan.active[:, None], weights.b, weights.items)
  prior = weights.items * theta
  for block in plan.by_item:
    items = _solve(items, users, gram, block, weights.a, difference, prior)
  return users, items


@jax.jit
def _gram(factors, b, ridge):
  gram = b * jnp.matmul(factors.T, factors, precision=_HIGH)
  return gram + ridge * jnp.eye(factors.shape[1], dtype=factors.dtype)


@jax.jit
def _solve(own, others, gram, block, a, difference, prior=None):
  rows, partners, stored = block
  gathered = others[partners] * stored[..., None].astype(others.dtype)
  system = gram + difference * jnp.einsum(
    'blf,blg->bfg', gathered, gathered, precision=_HIGH
  )
  right = a * gathered.sum(1)
  if prior is not None:
    right = right + prior[rows]
  factor = jnp.linalg.cholesky(system)
  solved = jax.scipy.linalg.cho_solve((factor, True), right[..., None])
  return own.at[rows].set(solved[..., 0])


def ctr_log_likelihood(
  users: Any,
  items: Any,
  theta: Any,
  train: Interactions,
  weights: Weights,
) -> jax.Array:
  """Logarithm of the posterior, up to a constant.

    -lambda_u/2 sum |u|^2 - lambda_v/2 sum |v - theta|^2
    - 1/2 sum_uv c (r - u v)^2

  c = a for interactions and b for all other pairs of users and items with
  interactions; the first sum is over such users, too. No half of a sweep makes
  it smaller.

  Args:
    users: Factors, `[num_users, f]`.
    items: Factors, `[num_items, f]`.
    theta: `[num_items, f]`.
    train: Interactions.
    weights: Of the regression.
  """
  users, items = jnp.asarray(users), jnp.asarray(items)
  active = jnp.asarray(train.user_counts() > 0)[:, None]
  rated = jnp.asarray(train.item_counts() > 0)[:, None]
  chosen = users * active
  content = items - theta
  scores = (users[train.user] * items[train.item]).sum(-1)
  grams = (chosen.T @ chosen) * ((rated * items).T @ (rated * items))
  error = weights.a * (1 - scores) ** 2 - weights.b * scores**2
  return -0.5 * (
    weights.users * (chosen**2).sum()
    + weights.items * (content**2).sum()
    + error.sum()
    + weights.b * grams.sum()
  )


def factor_model(users: jax.Array, items: jax.Array) -> FactorModel:
  """The factors, on the host, as the model that both fits return."""
  return FactorModel(np.asarray(users), np.asarray(items))
