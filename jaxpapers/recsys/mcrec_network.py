"""MCRec (Hu et al. 2018): context of users and items by kinds of paths.

What the study found (Ferrari Dacrema et al. 2019): ItemKNN and many others are
better by every metric. The authors' NDCG has the retrieved hits for an ideal,
so that a list with all its hits on top counts as perfect, and each of their
metrics is of its own best epoch on test data. Their code works with their paths
of MovieLens 100k alone, and reads two of the four files as another kind; the
attention over the paths of a kind that the paper describes is not in it.
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.recsys import meta_paths, methods, models, sampling
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.neural_losses import bce, sum_of_squares

_HIGH = jax.lax.Precision.HIGHEST
_TABLE = nn.initializers.glorot_normal()
# Pairs that are scored at a time: 2,048 with five paths of 64 features in four
# kinds are 50 MB.
_BLOCK = 2048


class _Convolution(nn.Module):
  """A convolution over four nodes as one product: fast also on CPUs.

  Attributes:
    filters: Number of filters.
  """

  filters: int

  @nn.compact
  def __call__(self, x):
    """`[..., steps, f]` to `[..., steps - 3, filters]`."""
    width = 4
    places = x.shape[-2] - width + 1
    kernel = self.param(
      'kernel',
      nn.initializers.glorot_uniform(),
      (width, x.shape[-1], self.filters),
    )
    bias = self.param('bias', nn.initializers.zeros_init(), (self.filters,))
    windows = jnp.stack([x[..., k : k + width, :] for k in range(places)], -3)
    flat = windows.reshape(*windows.shape[:-2], -1)
    kernel = kernel.reshape(-1, self.filters)
    return jnp.matmul(flat, kernel, precision=_HIGH) + bias


class MCRec(nn.Module):
  """Co-attention of a user, an item and the paths between them.

  Each path goes through a convolution over four nodes and a maximum over
  places, a kind is the maximum over its paths; attention weighs the kinds by
  user and item, and gates user and item by the result.

  Attributes:
    num_users: Number of users.
    num_items: Number of items.
    embedding: Length of the embeddings of users and items.
    filters: Of the convolutions.
    attention: Width of the attention over kinds.
    layers: Widths of the final layers.
    dropout: Share of a path's features that are set to 0 in training.
    kinds: Names of the kinds of paths.
  """

  num_users: int
  num_items: int
  embedding: int = 128
  filters: int = 128
  attention: int = 128
  layers: tuple[int, ...] = (512, 256, 128, 64)
  dropout: float = 0.5
  kinds: tuple[str, ...] = meta_paths.KINDS

  @nn.compact
  def __call__(
    self, users: Any, items: Any, paths: Any, *, train: bool = False
  ) -> jax.Array:
    """Logits of pairs.

    Args:
      users: int `[b]`.
      items: int `[b]`.
      paths: Of each kind features of nodes, float `[b, paths, steps, f]`.
      train: Whether there is dropout; takes the stream 'dropout'.

    Returns:
      float `[b]`; the sigmoid of it is what the authors' network returns.
    """
    d = self.embedding
    user = self.param('user_embedding', _TABLE, (self.num_users, d))[users]
    item = self.param('item_embedding', _TABLE, (self.num_items, d))[items]
    contexts = []
    for kind, x in zip(self.kinds, paths, strict=True):
      x = _Convolution(self.filters, name=f'{kind}_conv')(x)
      x = jax.nn.relu(x).max(-2)
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      contexts.append(x.max(-2))
    context = jnp.stack(contexts, 1)

    def both(x, y):
      return jnp.concatenate([x, y], -1)

    def dense(width, name):
      return nn.Dense(
        width,
        kernel_init=nn.initializers.glorot_uniform(),
        precision=_HIGH,
        name=name,
      )

    pair = both(user, item)[:, None]
    pair = jnp.broadcast_to(pair, (*context.shape[:2], 2 * d))
    logits = jax.nn.relu(
      dense(self.attention, 'kind_attention_1')(both(pair, context))
    )
    logits = jax.nn.relu(dense(1, 'kind_attention_2')(logits))
    context = (jax.nn.softmax(logits, 1) * context).sum(1)
    gates = (
      jax.nn.softmax(jax.nn.relu(dense(d, f'{name}_gate')(both(x, context))))
      for name, x in (('user', user), ('item', item))
    )
    user, item = (x * gate for x, gate in zip((user, item), gates, strict=True))
    x = both(both(user, context), item)
    for k, width in enumerate(self.layers):
      x = jax.nn.relu(dense(width, f'layer_{k}')(x))
    return dense(1, 'head')(x)[..., 0]


def mcrec_loss(
  module: MCRec,
  params: Any,
  users: Any,
  items: Any,
  paths: Any,
  labels: Any,
  l2: Any = 1e-3,
  weights: Any = None,
  key: Any = None,
) -> jax.Array:
  """Cross-entropy, and the penalty of attention and layers.

  Args:
    module: The network.
    params: Its parameters.
    users: int `[b]`.
    items: int `[b]`.
    paths: Features of paths; see `MCRec`.
    labels: 1 for pairs that there are, else 0, `[b]`.
    l2: Weight of the sum of squares of all kernels but the convolutions' and
      the head's.
    weights: Weight of each pair, `[b]`.
    key: Of dropout; None for none.

  Returns:
    The loss, a scalar.
  """
  logits = module.apply(
    {'params': params}, users, items, paths, train=key is not None,
    rngs=None if key is None else {'dropout': key},
  )  # fmt: skip
  kernels = [
    part['kernel']
    for name, part in params.items()
    if 'attention' in name or 'gate' in name or name.startswith('layer')
  ]
  return bce(logits, labels, weights) + l2 * sum_of_squares(kernels)


@flax.struct.dataclass
class McrecModel:
  """A fitted network, and the paths that it looks at.

  Attributes:
    params: Of the network.
    paths: What the paths of pairs are read from.
    module: The network.
    instances: Paths of each kind.
  """

  params: Any
  paths: meta_paths.Paths
  module: MCRec = flax.struct.field(pytree_node=False)
  instances: int = flax.struct.field(pytree_node=False, default=5)


@models.score_candidates.register
def _(model: McrecModel, train: Interactions, users, items) -> np.ndarray:
  models.check_pairs(model.module, train)
  items = np.asarray(items)
  u, i = np.repeat(np.asarray(users), items.shape[1]), items.ravel()
  block = min(_BLOCK, 1 << max(len(u) - 1, 0).bit_length())
  result = np.zeros(len(u), np.float32)
  for first in range(0, len(u), block):
    part = slice(first, first + block)
    count = len(u[part])
    some = _score(model, np.resize(u[part], block), np.resize(i[part], block))
    result[part] = np.asarray(some)[:count]
  return result.reshape(items.shape)


@models.score.register
def _(model: McrecModel, train: Interactions, users: Any) -> np.ndarray:
  items = np.arange(model.module.num_items)
  shape = len(users), len(items)
  return models.score_candidates(
    model, train, users, np.broadcast_to(items, shape)
  )


@jax.jit
def _score(model, users, items):
  paths = _features(model.paths, users, items, model.instances)
  return model.module.apply({'params': model.params}, users, items, paths)


def _features(paths, users, items, instances):
  found = meta_paths.paths_of(paths, users, items, instances)
  return [paths.nodes[nodes] for nodes in found]


def mcrec(
  train: Interactions,
  features: Any,
  *,
  embedding: int = 128,
  filters: int = 128,
  layers: tuple[int, ...] = (512, 256, 128, 64),
  batch_size: int = 256,
  learning_rate: float = 1e-3,
  learning_rate_decay: float = 1e-4,
  negatives: int = 4,
  l2: float = 1e-3,
  dropout: float = 0.5,
  instances: int = 5,
  node_dim: int = 64,
  nodes: Any = None,
  epochs: int = 130,
  seed: Any = 0,
  monitor: Any = None,
) -> McrecModel:
  """Fits MCRec with the authors' training, on paths that are made here.

  Args:
    train: Interactions; their values are not looked at.
    features: Types of the items, such as genres, `[num_items, num_types]`.
    embedding: Length of the embeddings of users and items.
    filters: Of the convolutions.
    layers: Widths of the final layers.
    batch_size: Pairs of a step.
    learning_rate: Of Adam.
    learning_rate_decay: The rate of step n is divided by 1 + n times this.
    negatives: Pairs that there are not, for each that there is.
    l2: Penalty of attention and layers.
    dropout: Share of a path's features that are set to 0.
    instances: Paths of each kind for a pair.
    node_dim: Features of a node.
    nodes: Features of users, items and types, `[n, f]`, instead of those that
      BPR-MF finds.
    epochs: How many; fewer if `monitor` says so.
    seed: Whole number, or JAX key.
    monitor: Called with epoch (from 1) and model; true ends the fit.

  Returns:
    A model, float32.

  Raises:
    ValueError: An argument is out of range, or the data are too large.
  """
  for name, value in (
    ('epochs', epochs),
    ('batch_size', batch_size),
    ('negatives', negatives),
    ('instances', instances),
  ):
    if value < 1:
      raise ValueError(f'{name} is {value}; expected 1 or more.')
  csr = sampling.put(train)
  types = features.toarray() if models.is_sparse(features) else features
  key = sampling.as_key(seed)
  before, start, key = jax.random.split(key, 3)
  if nodes is None:
    nodes = meta_paths.node_features(
      train, types, factors=node_dim, seed=before
    )
  paths = meta_paths.make_paths(train, types, nodes, instances=instances)
  module = MCRec(
    train.num_users, train.num_items, embedding, filters,
    layers=tuple(layers), dropout=dropout,
  )  # fmt: skip
  one = jnp.zeros((1,), jnp.int32)
  params = _init(module, start, paths, one, instances)
  state = optax.adam(0.0).init(params)
  rates = jnp.array([learning_rate, learning_rate_decay, l2], jnp.float32)
  users = jnp.asarray(train.user)
  for epoch in range(1, epochs + 1):
    params, state = _epoch(
      jax.random.fold_in(key, epoch), csr, users, paths, params, state, rates,
      module, batch_size, negatives, instances,
    )  # fmt: skip
    if monitor is not None and epoch % getattr(monitor, 'every', 1) == 0:
      # The next epoch takes the buffers of this one.
      kept = jax.tree.map(jnp.copy, params)
      if monitor(epoch, McrecModel(kept, paths, module, instances)):
        break
  return McrecModel(params, paths, module, instances)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _init(module, key, paths, one, instances):
  return module.init(key, one, one, _features(paths, one, one, instances))[
    'params'
  ]


@functools.partial(jax.jit, static_argnums=(7, 8, 9, 10), donate_argnums=(4, 5))
def _epoch(
  key, csr, users, paths, params, state, rates,
  module, batch, negatives, instances,
):  # fmt: skip
  learning_rate, rate_decay, l2 = rates
  group = negatives + 1
  order, noise = jax.random.split(key)
  total = len(users) * group
  steps = -(-total // batch)
  at = jnp.resize(jax.random.permutation(order, total), steps * batch)
  weight = (jnp.arange(steps * batch) < total).astype(jnp.float32)

  def step(carry, given):
    params, state = carry
    at, weight, key = given
    draw, drop = jax.random.split(key)
    u, positive = users[at // group], at % group == 0
    j, found = sampling.draw_negatives(draw, csr, u, module.num_items)
    items = jnp.where(positive, csr.items[at // group], j)
    weight = weight * (positive | found)
    x = _features(paths, u, items, instances)
    gradient = jax.grad(mcrec_loss, 1)(
      module, params, u, items, x, positive.astype(jnp.float32), l2, weight,
      drop,
    )  # fmt: skip
    rate = learning_rate / (1 + rate_decay * state[0].count)
    updates, state = optax.adam(rate, eps=1e-7).update(gradient, state)
    return (jax.tree.map(jnp.add, params, updates), state), None

  shape = (steps, batch)
  batches = at.reshape(shape), weight.reshape(shape)
  keys = jax.random.split(noise, steps)
  return jax.lax.scan(step, (params, state), (*batches, keys))[0]


methods.register(
  methods.Method(
    'MCRec',
    mcrec,
    {},
    {
      'epochs': 130,
      'embedding': 128,
      'filters': 128,
      'batch_size': 256,
      'learning_rate': 1e-3,
    },
    needs_features=True,
    random=True,
    iterative=True,
    family='neural',
    scores_new_users=False,
  )
)
