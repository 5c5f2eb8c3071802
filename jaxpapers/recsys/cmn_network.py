"""Collaborative memory network (Ebesu et al. 2018), the network.

What the study found (Ferrari Dacrema et al. 2019): neighbourhood and graph
methods beat it on both dense data sets, and TopPopular on the sparse one. The
authors' loop looks at test data after each epoch. In training the target user
is one of an item's neighbours for positives only, which no test pair has; and
an item without users has its own number for a neighbour, read as a user's.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys.data import Interactions

_HIGH = jax.lax.Precision.HIGHEST
_TABLE = nn.initializers.truncated_normal(0.01)
_KERNEL = nn.initializers.glorot_uniform()
_ONES = nn.initializers.ones_init()


class Neighbours(NamedTuple):
  """Who has each item, on a device.

  Attributes:
    starts: int32 `[num_items + 1]`.
    users: int32 `[n]`, ascending for each item.
  """

  starts: Any
  users: Any


def put_neighbours(train: Interactions) -> tuple[Neighbours, int]:
  """Puts the users of all items on the device.

  Returns:
    The table, and the largest number of users of an item.
  """
  back = train.transpose()
  users = back.item if len(back) else np.zeros(1, np.int32)
  width = int(back.user_counts().max(initial=1))
  return Neighbours(jnp.asarray(back.row_starts), jnp.asarray(users)), width


def neighbours_of(
  table: Neighbours,
  users: Any,
  items: Any,
  width: int,
  *,
  empty: str = 'user',
  exclude_self: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Neighbours of pairs: the users who have the item.

  Args:
    table: Of `put_neighbours`.
    users: Target users, int `[b]`.
    items: Target items, int `[b]`.
    width: At most so many neighbours.
    empty: What an item without users has: 'user' the target user, as the
      authors' code at test; 'item' the item's own number, read as a user's, as
      their code in training.
    exclude_self: Leave the target user out where there are others. The authors
      do not: a positive pair of training is told apart by it.

  Returns:
    Users int32 `[b, width]`, and which of them count, bool `[b, width]`.
  """
  start = table.starts[items][:, None]
  count = table.starts[items + 1][:, None] - start
  at = jnp.arange(width)
  valid = at < count
  ids = table.users[jnp.minimum(start + at, len(table.users) - 1)]
  if exclude_self:
    valid &= (ids != users[:, None]) | (count == 1)
  fallback = users if empty == 'user' else items
  first = (at == 0) & (count == 0)
  ids = jnp.where(valid, ids, 0)
  return jnp.where(first, fallback[:, None], ids), valid | first


class CMN(nn.Module):
  """Memories of users, read by attention over who has the item.

    q_0 = m_u + e_i,   o_h = sum_v softmax_v(q_h m_v) c_v,
    q_h = relu(W_h q_{h-1} + b_h + o_{h-1}),
    score = w relu(K [m_u * e_i, o_H] + k)

  Attributes:
    num_users: Number of users.
    num_items: Number of items.
    dim: Length of a memory.
    hops: Times that memory is read.
  """

  num_users: int
  num_items: int
  dim: int = 50
  hops: int = 3

  @nn.compact
  def __call__(
    self, users: Any, items: Any, neighbours: Any, valid: Any
  ) -> jax.Array:
    """Scores of pairs.

    Args:
      users: int `[b]`.
      items: int `[b]`.
      neighbours: Users who have the item, int `[b, n]`.
      valid: Which of them count, bool `[b, n]`, one in a row at least.

    Returns:
      float `[b]`.
    """
    d = self.dim
    memory = self.param('memory', _TABLE, (self.num_users, d))
    output = self.param('output', _TABLE, (self.num_users, d))
    user, item = (
      memory[users],
      self.param('item', _TABLE, (self.num_items, d))[items],
    )
    keys, values = memory[neighbours], output[neighbours]

    def read(query):
      logits = jnp.einsum('bd,bnd->bn', query, keys, precision=_HIGH)
      attention = jax.nn.softmax(jnp.where(valid, logits, -jnp.inf))
      return jnp.einsum('bn,bnd->bd', attention, values, precision=_HIGH)

    query = user + item
    out = read(query)
    for hop in range(1, self.hops):
      mapped = nn.Dense(
        d,
        kernel_init=_KERNEL,
        bias_init=_ONES,
        precision=_HIGH,
        name=f'hop_{hop}',
      )(query)
      query = jax.nn.relu(mapped + out)
      out = read(query)
    joined = jnp.concatenate([user * item, out], -1)
    hidden = nn.Dense(d, kernel_init=_KERNEL, precision=_HIGH, name='mix')(
      joined
    )
    return nn.Dense(
      1, use_bias=False, kernel_init=_KERNEL, precision=_HIGH, name='head'
    )(jax.nn.relu(hidden))[..., 0]


class PairwiseGMF(nn.Module):
  """What CMN starts from: score = relu(w (m_u * e_i)).

  Its last step makes many scores, and their gradients, exactly 0.

  Attributes:
    num_users: Number of users.
    num_items: Number of items.
    dim: Length of a memory.
  """

  num_users: int
  num_items: int
  dim: int = 50

  @nn.compact
  def __call__(self, users: Any, items: Any) -> jax.Array:
    """Scores of pairs, `[b]`, of users and items, int `[b]`."""
    memory = self.param('memory', _TABLE, (self.num_users, self.dim))
    item = self.param('item', _TABLE, (self.num_items, self.dim))
    product = memory[users] * item[items]
    return jax.nn.relu(
      nn.Dense(
        1, use_bias=False, kernel_init=_KERNEL, precision=_HIGH, name='head'
      )(product)
    )[..., 0]


def kernels(params: Any) -> list[Any]:
  """The weight matrices, which the penalty is on; no tables, no biases."""
  return [part['kernel'] for part in params.values() if isinstance(part, dict)]


def touched_rows(
  params: Any, users: Any, items: Any, neighbours: Any
) -> dict[str, Any]:
  """Which rows of the tables a batch looks up.

  TensorFlow's optimizers leave the others as they are, momentum included.

  Args:
    params: Of `CMN`.
    users: int `[...]`.
    items: int `[...]`.
    neighbours: int `[...]`; padding counts, as it is looked up, too.

  Returns:
    A tree like params, of bool `[rows]` for tables and None for the rest.
  """

  def mark(table, *ids):
    rows = jnp.zeros(table.shape[0], bool)
    for some in ids:
      rows = rows.at[some.ravel()].set(True)
    return rows

  marks = jax.tree.map(lambda _: None, params)
  return marks | {
    'memory': mark(params['memory'], users, neighbours),
    'output': mark(params['output'], neighbours),
    'item': mark(params['item'], items),
  }
