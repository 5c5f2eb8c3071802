"""Paths between users and items, out of interactions and types of items.

MCRec's authors released their paths of MovieLens 100k, and no program that
makes them. This one takes the best instances of each kind by the mean cosine of
neighbouring nodes, which is what the paper's walkers prefer, exactly and not by
sampling: the first steps of all users are solved once, the last for each pair.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys import factors_sgd
from jaxpapers.recsys.data import Interactions

# u user, m item, t type of an item.
KINDS = ('umtm', 'umum', 'umtmum', 'uuum')
STEPS = (4, 4, 6, 4)
_NONE = -1e9


class Paths(NamedTuple):
  """What the paths of pairs are read from. Nodes are users, items, types.

  Attributes:
    has: Who has what, bool `[num_users, num_items]`.
    types: Which item is of which type, bool `[num_items, num_types]`.
    user_item: Similarities, float32 `[num_users, num_items]`.
    item_type: Similarities, float32 `[num_items, num_types]`.
    by_type: Value and item of the best u-m-t, `[num_users, num_types, k]`.
    by_item: Value and item of the two best u-m-u', `[users, users, 2]`.
    by_both: Value, item, type, item of the two best u-m-t-m'-u' that begin with
      different items, `[users, users, 2]`.
    by_user: Value and user of the best u-u'-u'', `[users, users]`.
    nodes: Features of nodes, float32 `[users + items + types + 1, f]`; the last
      is 0, and stands where there is no path.
  """

  has: Any
  types: Any
  user_item: Any
  item_type: Any
  by_type: tuple
  by_item: tuple
  by_both: tuple
  by_user: tuple
  nodes: Any


def node_features(
  train: Interactions, types: Any, *, factors: int = 64, seed: Any = 0
) -> np.ndarray:
  """Features of users, items and types by BPR-MF, which stay as they are.

  Args:
    train: Interactions.
    types: Items by types, `[num_items, num_types]`.
    factors: Number of features.
    seed: Whole number, or JAX key.

  Returns:
    float32 `[num_users + num_items + num_types, factors]`; a type has the mean
    of its items.
  """
  model = factors_sgd.bpr_mf(
    train, factors=factors, epochs=200, sgd_mode='adam', learning_rate=1e-2,
    batch_size=max(min(train.num_users // 4, 1024), 1), seed=seed,
  )  # fmt: skip
  types = np.asarray(types, bool).astype(np.float32)
  items = np.asarray(model.items)
  counts = np.maximum(types.sum(0), 1)[:, None]
  means = types.T @ items / counts
  return np.concatenate([np.asarray(model.users), items, means])


def make_paths(
  train: Interactions,
  types: Any,
  features: Any,
  *,
  instances: int = 5,
  near: int = 10,
  max_bytes: float = 4e9,
) -> Paths:
  """Solves the first steps of all paths.

  No path uses the link between the user and the item that it leads to: for a
  pair of the training data this would give away that there is one. (umtmum may
  pass by the item on its way.)

  Args:
    train: Interactions; their values are not looked at.
    types: Items by types, `[num_items, num_types]`, not 0 where an item is of a
      type.
    features: Of nodes, float `[num_users + num_items + num_types, f]`.
    instances: Paths of each kind for a pair.
    near: Users that are linked to a user: the most similar profiles by cosine.
    max_bytes: Refuse larger tables.

  Returns:
    The tables.

  Raises:
    ValueError: A shape is wrong, or the tables are too large.
  """
  types = np.asarray(types) != 0
  users, items = train.shape
  if types.ndim != 2 or len(types) != items:
    raise ValueError(
      f'types have shape {types.shape}; expected one row for each of the'
      f' {items} items.'
    )
  n = users + items + types.shape[1]
  features = np.asarray(features, np.float32)
  if features.ndim != 2 or len(features) != n:
    raise ValueError(
      f'features have shape {features.shape}; expected {n} rows: users, items,'
      ' types.'
    )
  needed = 60 * users**2 + 24 * users * items
  if needed > max_bytes:
    raise ValueError(
      f'tables of paths need {needed / 1e9:.1f} GB, more than'
      f' max_bytes={max_bytes:.3g}. Leave out rare users and items.'
    )
  if not len(train):
    raise ValueError('train is empty: there are no paths.')
  norms = np.linalg.norm(features, axis=1, keepdims=True)
  unit = features / np.maximum(norms, 1e-12)
  u, m, t = np.split(unit, [users, users + items])
  has = train.to_dense() != 0
  tables = _solve(
    jnp.asarray(has), jnp.asarray(types),
    (jnp.asarray(train.user), jnp.asarray(train.item)),
    _near(has, max(min(near, users - 1), 1)),
    jnp.asarray(u @ m.T), jnp.asarray(m @ t.T), jnp.asarray(u @ u.T),
    min(max(instances + 1, 3), items),
  )  # fmt: skip
  nodes = np.concatenate([features, np.zeros_like(features[:1])])
  return Paths(*tables, jnp.asarray(nodes))


def _near(has, count):
  """The most similar users of each, `[users, count]`, and which are any."""
  profiles = has.astype(np.float32)
  profiles /= np.maximum(np.linalg.norm(profiles, axis=1, keepdims=True), 1e-12)
  cosine = profiles @ profiles.T
  np.fill_diagonal(cosine, -1)
  best = np.argsort(-cosine, axis=1, kind='stable')[:, :count]
  valid = np.take_along_axis(cosine, best, 1) > 0
  return jnp.asarray(best), jnp.asarray(valid)


def _two_best(values, ids, *others):
  """The best of the first axis, and the best with another id.

  Returns:
    Values, ids and others, `[..., 2]`; values are _NONE where there is none.
  """

  def pick(values):
    at = jnp.argmax(values, 0)[None]
    return [jnp.take_along_axis(x, at, 0)[0] for x in (values, ids, *others)]

  first = pick(values)
  second = pick(jnp.where(ids == first[1], _NONE, values))
  return tuple(jnp.stack(pair, -1) for pair in zip(first, second, strict=True))


def _two_best_of_users(values, owner, num_users, ids, *others):
  """The same for each user, over entries `[n]` in the order of users.

  Returns:
    Values, ids and others, `[num_users, 2]`.
  """
  reduce = {'num_segments': num_users, 'indices_are_sorted': True}
  at = jnp.arange(len(values))

  def pick(values):
    best = jax.ops.segment_max(values, owner, **reduce)
    best = jnp.maximum(best, _NONE)  # Of nothing it is -inf.
    first = jnp.where(values == best[owner], at, len(values) - 1)
    where = jax.ops.segment_min(first, owner, **reduce)
    where = jnp.minimum(where, len(values) - 1)
    return [best, *(x[where] for x in (ids, *others))]

  first = pick(values)
  second = pick(jnp.where(ids == first[1][owner], _NONE, values))
  return tuple(jnp.stack(pair, -1) for pair in zip(first, second, strict=True))


@functools.partial(jax.jit, static_argnums=7)
def _solve(has, types, pairs, near, user_item, item_type, user_user, k):
  num_users = len(has)
  num_items, num_types = types.shape
  item_ids = jnp.arange(num_items)
  other, middle = pairs
  onward = user_item[other, middle]

  def one(given):
    mine, near, to_item, to_user = given
    # u-m-t: the k best items of each type.
    value = jnp.where(
      mine[:, None] & types, to_item[:, None] + item_type, _NONE
    )
    by_type = jax.lax.top_k(value.T, k)
    # u-m-u', over the interactions of all u'.
    value = jnp.where(mine[middle], to_item[middle] + onward, _NONE)
    by_item = _two_best_of_users(value, other, num_users, middle)
    # u-m-t-m': three of each type, one of which may be m', then over types.
    value = by_type[0][:, :3, None] + item_type.T[:, None]
    first = jnp.broadcast_to(by_type[1][:, :3, None], value.shape)
    value = jnp.where(types.T[:, None] & (first != item_ids), value, _NONE)
    kind = jnp.broadcast_to(jnp.arange(num_types)[:, None, None], value.shape)
    flat = (-1, num_items)
    value, first, kind = _two_best(
      value.reshape(flat), first.reshape(flat), kind.reshape(flat)
    )
    # ... and on to u', both of the best for each interaction.
    by_both = _two_best_of_users(
      (value[middle] + onward[:, None]).ravel(),
      jnp.repeat(other, 2),
      num_users,
      first[middle].ravel(),
      kind[middle].ravel(),
      jnp.repeat(middle, 2),
    )
    # u-u'-u''
    ids, valid = near
    linked = (near_ids[ids] == jnp.arange(num_users)[:, None, None]) & (
      near_valid[ids]
    )
    linked = linked.any(-1) & valid
    value = jnp.where(linked, to_user[ids] + user_user[ids].T, _NONE)
    by_user = value.max(1), ids[value.argmax(1)]
    return by_type, by_item, by_both, by_user

  near_ids, near_valid = near
  found = jax.lax.map(one, (has, near, user_item, user_user))
  return has, types, user_item, item_type, *found


@functools.partial(jax.jit, static_argnames='instances')
def paths_of(
  paths: Paths, users: Any, items: Any, instances: int = 5
) -> tuple[jax.Array, ...]:
  """The best paths of pairs.

  Args:
    paths: Of `make_paths`.
    users: int `[b]`.
    items: int `[b]`.
    instances: Paths of each kind.

  Returns:
    For each of `KINDS` nodes, int32 `[b, instances, steps]`: rows of
    `paths.nodes`, all of them the last row where there is no more path.
  """
  num_users, num_items = paths.has.shape
  u, i = users[:, None], items[:, None]
  type_of = num_users + num_items

  def keep(values, *columns):
    """Of the best instances their nodes; `columns` are `[b, n]`."""
    count = min(instances, values.shape[1])
    best, at = jax.lax.top_k(values, count)
    nodes = jnp.stack(
      [jnp.take_along_axis(jnp.broadcast_to(x, values.shape), at, 1)
       for x in columns], -1,
    )  # fmt: skip
    missing = len(paths.nodes) - 1
    nodes = jnp.where((best > _NONE / 2)[..., None], nodes, missing)
    pad = ((0, 0), (0, instances - count), (0, 0))
    return jnp.pad(nodes, pad, constant_values=missing).astype(jnp.int32)

  # The last step of umtm: from a type of the item, not by way of the item.
  value, first = (x[users] for x in paths.by_type)
  value = value + paths.item_type[items][..., None]
  good = paths.types[items][..., None] & (first != i[..., None])
  value = jnp.where(good, value, _NONE)
  kind = jnp.broadcast_to(jnp.arange(value.shape[1])[:, None], value.shape)
  flat = (len(users), -1)
  umtm = keep(
    value.reshape(flat), u, num_users + first.reshape(flat),
    type_of + kind.reshape(flat), num_users + i,
  )  # fmt: skip

  # The others come from another user who has the item.
  others = jnp.arange(num_users)
  last = jnp.where(
    paths.has[:, items].T & (others != u), paths.user_item[:, items].T, _NONE
  )

  def other_first(table):
    rows = [x[users] for x in table]
    second = rows[1][..., 0] == i
    return [jnp.where(second, x[..., 1], x[..., 0]) for x in rows]

  value, first = other_first(paths.by_item)
  umum = keep(value + last, u, num_users + first, others, num_users + i)
  value, first, kind, then = other_first(paths.by_both)
  umtmum = keep(
    value + last, u, num_users + first, type_of + kind, num_users + then,
    others, num_users + i,
  )  # fmt: skip
  value, between = (x[users] for x in paths.by_user)
  uuum = keep(value + last, u, between, others, num_users + i)
  return umtm, umum, umtmum, uuum
