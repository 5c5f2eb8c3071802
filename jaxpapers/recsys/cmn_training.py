"""How the collaborative memory network is trained, and how it scores."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.recsys import cmn_network as network
from jaxpapers.recsys import methods, models, sampling
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.neural_losses import bpr_loss, sum_of_squares
from jaxpapers.recsys.tf1_optimizers import rmsprop_tf1

# Numbers of one gathered block of memories when pairs are scored.
_BLOCK = 1 << 22
_TRIES = 16


@flax.struct.dataclass
class CmnModel:
  """A fitted memory network.

  Attributes:
    params: Of the network.
    neighbours: Who has which item.
    module: The network.
  """

  params: Any
  neighbours: network.Neighbours
  module: network.CMN = flax.struct.field(pytree_node=False)


@models.score_candidates.register
def _(model: CmnModel, train: Interactions, users, items) -> np.ndarray:
  models.check_pairs(model.module, train)
  items = np.asarray(items)
  pairs = np.repeat(np.asarray(users), items.shape[1])
  return score_pairs(model, pairs, items.ravel()).reshape(items.shape)


@models.score.register
def _(model: CmnModel, train: Interactions, users: Any) -> np.ndarray:
  items = np.arange(model.module.num_items)
  shape = len(users), len(items)
  return models.score_candidates(
    model, train, users, np.broadcast_to(items, shape)
  )


def score_pairs(model: CmnModel, users: Any, items: Any) -> np.ndarray:
  """Scores of pairs, those of about the same number of neighbours together.

  Args:
    model: A fitted network.
    users: int `[n]`.
    items: int `[n]`.

  Returns:
    float32 `[n]`.
  """
  users, items = np.asarray(users), np.asarray(items)
  counts = np.diff(np.asarray(model.neighbours.starts))[items]
  result = np.zeros(len(users), np.float32)
  order = np.argsort(counts, kind='stable')
  at = 0
  while at < len(order):
    # A few shapes to compile, at most four times the work.
    width = 8
    while width < counts[order[at]]:
      width *= 4
    end = int(np.searchsorted(counts[order], width, side='right'))
    most = max(_BLOCK // (width * model.module.dim), 1)
    for first in range(at, end, most):
      rows = order[first : min(first + most, end)]
      filled = np.resize(rows, min(most, 1 << (len(rows) - 1).bit_length()))
      found = _score(model, users[filled], items[filled], width)
      result[rows] = np.asarray(found)[: len(rows)]
    at = end
  return result


@functools.partial(jax.jit, static_argnums=3)
def _score(model, users, items, width):
  ids, valid = network.neighbours_of(model.neighbours, users, items, width)
  return model.module.apply({'params': model.params}, users, items, ids, valid)


def cmn(
  train: Interactions,
  *,
  dim: int = 50,
  hops: int = 3,
  batch_size: int = 128,
  learning_rate: float = 1e-3,
  negatives: int = 4,
  l2: float = 0.1,
  epochs: int = 50,
  pretrain_epochs: int = 100,
  pretrain_l2: float = 1e-4,
  exclude_self: bool = False,
  seed: Any = 0,
  monitor: Any = None,
) -> CmnModel:
  """Fits a collaborative memory network with the study's training.

  Memories and items start at half of what a pairwise GMF learns. Batches are
  triples of an interaction and an item that the user does not have, drawn from
  the items that somebody has; steps are TensorFlow's RMSProp with momentum 0.9,
  each gradient cut to norm 5, on the rows that a batch looks up.

  Args:
    train: Interactions; their values are not looked at.
    dim: Length of a memory.
    hops: Times that memory is read.
    batch_size: Triples of a step.
    learning_rate: Size of steps, of both networks.
    negatives: Triples of each interaction in an epoch.
    l2: Penalty of the weight matrices; half of it times the sum of squares.
    epochs: How many; fewer if `monitor` says so.
    pretrain_epochs: Of the pairwise GMF; 0 for a random start.
    pretrain_l2: Its penalty.
    exclude_self: Leave the user out of the neighbours of the pairs that are
      learnt from. The authors do not.
    seed: Whole number, or JAX key.
    monitor: Called with epoch (from 1) and model; true ends the fit.

  Returns:
    A model, float32.

  Raises:
    ValueError: An argument is out of range.
  """
  for name, value in (
    ('dim', dim),
    ('hops', hops),
    ('batch_size', batch_size),
    ('negatives', negatives),
    ('epochs', epochs),
  ):
    if value < 1:
      raise ValueError(f'{name} is {value}; expected 1 or more.')
  csr, data = sampling.put(train), _put(train)
  table, width = network.put_neighbours(train)
  key = sampling.as_key(seed)
  start, before, key = jax.random.split(key, 3)
  module = network.CMN(train.num_users, train.num_items, dim, hops)
  one = jnp.zeros((1,), jnp.int32)
  params = _init(module, start, one, one, one[None], jnp.ones((1, 1), bool))
  if pretrain_epochs:
    learnt = pairwise_gmf(
      train,
      dim=dim,
      batch_size=batch_size,
      learning_rate=learning_rate,
      negatives=negatives,
      l2=pretrain_l2,
      epochs=pretrain_epochs,
      seed=before,
    )
    params |= {name: 0.5 * learnt[name] for name in ('memory', 'item')}
  state = _optimizer(0.0).init(params)
  rates = jnp.array([learning_rate, l2], jnp.float32)
  for epoch in range(1, epochs + 1):
    params, state = _epoch(
      jax.random.fold_in(key, epoch), csr, data, table, params, state, rates,
      module, batch_size, negatives, width, exclude_self,
    )  # fmt: skip
    if monitor is not None and epoch % getattr(monitor, 'every', 1) == 0:
      # The next epoch takes the buffers of this one.
      kept = jax.tree.map(jnp.copy, params)
      if monitor(epoch, CmnModel(kept, table, module)):
        break
  return CmnModel(params, table, module)


@functools.partial(jax.jit, static_argnums=0)
def _init(module, key, *inputs):
  return module.init(key, *inputs)['params']


def _put(train):
  """Interactions, and the items that somebody has."""
  items = np.flatnonzero(train.item_counts())
  return jnp.asarray(train.user), jnp.asarray(train.item), jnp.asarray(items)


def _triples(key, csr, data, batch, negatives):
  """An epoch in batches `[steps, batch]`: interactions in a random order."""
  users, items, known = data
  order, draw = jax.random.split(key)
  total = len(users) * negatives
  steps = -(-total // batch)
  at = jax.random.permutation(order, total)
  at = jnp.resize(at, steps * batch)
  weight = (jnp.arange(steps * batch) < total).astype(jnp.float32)
  u, i = users[at // negatives], items[at // negatives]
  shape = (steps, batch)
  return (
    u.reshape(shape),
    i.reshape(shape),
    weight.reshape(shape),
    jax.random.split(draw, steps),
  ), known


def _negatives(key, csr, known, users):
  """Items that others have and the user does not, and whether one was found."""
  tries = jax.random.randint(key, (len(users), _TRIES), 0, len(known))
  tries = known[tries]
  free = ~sampling.has(csr, users, tries)
  first = jnp.argmax(free, -1)[:, None]
  return jnp.take_along_axis(tries, first, 1)[:, 0], free.any(-1)


def _optimizer(learning_rate):
  return rmsprop_tf1(
    learning_rate, 0.9, 0.9, 5.0, lazy=('memory', 'output', 'item')
  )


def cmn_loss(
  module: network.CMN, params: Any, positive: Any, negative: Any, l2: Any,
  weights: Any = None,
) -> jax.Array:  # fmt: skip
  """BPR of the scores of pairs, and the penalty of the weight matrices.

  Args:
    module: The network.
    params: Its parameters.
    positive: Users, items, neighbours and valid of pairs that there are.
    negative: The same of others.
    l2: Weight of half the sum of squares.
    weights: Weight of each pair, `[b]`.
  """
  scores = (
    module.apply({'params': params}, *pairs) for pairs in (positive, negative)
  )
  loss = bpr_loss(*scores, weights, eps=1e-12)
  return loss + l2 / 2 * sum_of_squares(network.kernels(params))


@functools.partial(
  jax.jit, static_argnums=(7, 8, 9, 10, 11), donate_argnums=(4, 5)
)
def _epoch(
  key, csr, data, table, params, state, rates,
  module, batch, negatives, width, exclude_self,
):  # fmt: skip
  learning_rate, l2 = rates
  optimizer = _optimizer(learning_rate)
  batches, known = _triples(key, csr, data, batch, negatives)

  def step(carry, given):
    params, state = carry
    u, i, weight, key = given
    j, found = _negatives(key, csr, known, u)
    pairs = [
      (u, x, *network.neighbours_of(
        table, u, x, width, exclude_self=exclude_self
      )) for x in (i, j)
    ]  # fmt: skip
    gradient = jax.grad(cmn_loss, 1)(module, params, *pairs, l2, weight * found)
    touched = network.touched_rows(
      params, u, jnp.stack([i, j]), jnp.stack([pairs[0][2], pairs[1][2]])
    )
    updates, state = optimizer.update(gradient, state, touched=touched)
    return (jax.tree.map(jnp.add, params, updates), state), None

  return jax.lax.scan(step, (params, state), batches)[0]


def pairwise_gmf(
  train: Interactions,
  *,
  dim: int = 50,
  batch_size: int = 128,
  learning_rate: float = 1e-3,
  negatives: int = 4,
  l2: float = 1e-4,
  epochs: int = 100,
  seed: Any = 0,
) -> dict[str, Any]:
  """Fits a pairwise GMF by Adam: where CMN starts.

  Args:
    train: Interactions.
    dim: Length of a memory.
    batch_size: Triples of a step.
    learning_rate: Size of steps.
    negatives: Triples of each interaction in an epoch.
    l2: Penalty of the head; half of it times the sum of squares.
    epochs: How many.
    seed: Whole number, or JAX key.

  Returns:
    Parameters of `PairwiseGMF`: memory, item and head.
  """
  csr, data = sampling.put(train), _put(train)
  key = sampling.as_key(seed)
  start, key = jax.random.split(key)
  module = network.PairwiseGMF(train.num_users, train.num_items, dim)
  one = jnp.zeros((1,), jnp.int32)
  params = _init(module, start, one, one)
  state = optax.adam(0.0).init(params)
  rates = jnp.array([learning_rate, l2], jnp.float32)
  for epoch in range(1, epochs + 1):
    params, state = _gmf_epoch(
      jax.random.fold_in(key, epoch), csr, data, params, state, rates,
      module, batch_size, negatives,
    )  # fmt: skip
  return params


def gmf_loss(
  module: network.PairwiseGMF, params: Any, u: Any, i: Any, j: Any, l2: Any,
  weights: Any = None,
) -> jax.Array:  # fmt: skip
  """BPR of triples of a user, an item they have and one they do not have.

  Args:
    module: The network.
    params: Its parameters.
    u: int `[b]`.
    i: int `[b]`.
    j: int `[b]`.
    l2: Weight of half the sum of squares of the head.
    weights: Weight of each triple, `[b]`.
  """
  scores = (module.apply({'params': params}, u, x) for x in (i, j))
  loss = bpr_loss(*scores, weights, eps=1e-12)
  return loss + l2 / 2 * sum_of_squares(network.kernels(params))


@functools.partial(jax.jit, static_argnums=(6, 7, 8), donate_argnums=(3, 4))
def _gmf_epoch(key, csr, data, params, state, rates, module, batch, negatives):
  learning_rate, l2 = rates
  optimizer = optax.adam(learning_rate)
  batches, known = _triples(key, csr, data, batch, negatives)

  def step(carry, given):
    params, state = carry
    u, i, weight, key = given
    j, found = _negatives(key, csr, known, u)
    gradient = jax.grad(gmf_loss, 1)(
      module, params, u, i, j, l2, weight * found
    )
    updates, state = optimizer.update(gradient, state)
    return (jax.tree.map(jnp.add, params, updates), state), None

  return jax.lax.scan(step, (params, state), batches)[0]


methods.register(
  methods.Method(
    'CMN',
    cmn,
    {},
    {
      'epochs': 50,
      'dim': 50,
      'hops': 3,
      'batch_size': 128,
      'learning_rate': 1e-3,
      'pretrain_epochs': 100,
    },
    random=True,
    iterative=True,
    family='neural',
    scores_new_users=False,
  )
)
