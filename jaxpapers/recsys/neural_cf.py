"""GMF, MLP and NeuMF: neural collaborative filtering (He et al. 2017).

What the study found: the released program prints, and keeps, the best epoch on
*test* data. With the number of epochs chosen on validation data, simple methods
win on Pinterest and linear ones on MovieLens 1M (EASE's HR@10 .7192, NeuMF's
.7093). Here a fit never sees test data; `optimism.test_epochs` reports what
choosing on them would have given, under that name.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.recsys import methods, models, neural_losses, sampling
from jaxpapers.recsys.data import Interactions
from jaxpapers.training import optimizers

_EMBEDDING = nn.initializers.normal(0.05)
_HEAD = nn.initializers.lecun_uniform()
_KERNEL = nn.initializers.xavier_uniform()
# Keras's Adam, which GMF and MLP are trained with.
_ADAM = {'weight_decay': 0.0, 'b1': 0.9, 'b2': 0.999, 'eps': 1e-7}


def _table(rows, width, name):
  return nn.Embed(rows, width, embedding_init=_EMBEDDING, name=name)


class GMF(nn.Module):
  """Generalised matrix factorisation: logit = w . (p_u * q_i) + b.

  Attributes:
    num_users: Rows of the users' table.
    num_items: Rows of the items' table.
    factors: Length of an embedding.
  """

  num_users: int
  num_items: int
  factors: int = 8

  @nn.compact
  def __call__(self, users: Any, items: Any) -> jax.Array:
    """Logits of pairs of users `[...]` and items `[...]`."""
    p = _table(self.num_users, self.factors, 'user_embedding')(users)
    q = _table(self.num_items, self.factors, 'item_embedding')(items)
    return nn.Dense(1, kernel_init=_HEAD, name='prediction')(p * q)[..., 0]


class MLPRec(nn.Module):
  """A perceptron on both embeddings, side by side.

  Attributes:
    num_users: Rows of the users' table.
    num_items: Rows of the items' table.
    layers: Widths; the first is that of both embeddings together.
  """

  num_users: int
  num_items: int
  layers: Sequence[int] = (32, 16, 8)

  @nn.compact
  def __call__(self, users: Any, items: Any) -> jax.Array:
    """Logits of pairs of users `[...]` and items `[...]`."""
    half = self.layers[0] // 2
    p = _table(self.num_users, half, 'user_embedding')(users)
    q = _table(self.num_items, half, 'item_embedding')(items)
    h = _perceptron(self.layers, jnp.concatenate([p, q], -1))
    return nn.Dense(1, kernel_init=_HEAD, name='prediction')(h)[..., 0]


def _perceptron(layers, h):
  for i, width in enumerate(layers[1:], 1):
    h = nn.relu(nn.Dense(width, kernel_init=_KERNEL, name=f'layer{i}')(h))
  return h


class NeuMF(nn.Module):
  """GMF and a perceptron, with tables of their own, under one head.

  Attributes:
    num_users: Rows of the users' tables.
    num_items: Rows of the items' tables.
    factors: Length of GMF's embeddings.
    layers: Of the perceptron; see `MLPRec`.
  """

  num_users: int
  num_items: int
  factors: int = 8
  layers: Sequence[int] = (32, 16, 8)

  @nn.compact
  def __call__(self, users: Any, items: Any) -> jax.Array:
    """Logits of pairs of users `[...]` and items `[...]`."""
    half = self.layers[0] // 2
    mf_p = _table(self.num_users, self.factors, 'mf_user_embedding')(users)
    mf_q = _table(self.num_items, self.factors, 'mf_item_embedding')(items)
    p = _table(self.num_users, half, 'mlp_user_embedding')(users)
    q = _table(self.num_items, half, 'mlp_item_embedding')(items)
    h = _perceptron(self.layers, jnp.concatenate([p, q], -1))
    h = jnp.concatenate([mf_p * mf_q, h], -1)
    return nn.Dense(1, kernel_init=_HEAD, name='prediction')(h)[..., 0]


def fuse(gmf_params: Any, mlp_params: Any, alpha: float = 0.5) -> Any:
  """Parameters of NeuMF out of those of a trained GMF and a trained MLP.

  Args:
    gmf_params: Of `GMF`.
    mlp_params: Of `MLPRec`.
    alpha: Weight of GMF's head; the MLP's has 1 - alpha. The biases of both
      heads are always averaged, as in the original.

  Returns:
    Parameters of `NeuMF`.
  """
  heads = gmf_params['prediction'], mlp_params['prediction']
  kernel = jnp.concatenate(
    [alpha * heads[0]['kernel'], (1 - alpha) * heads[1]['kernel']]
  )
  fused = {
    'mf_user_embedding': gmf_params['user_embedding'],
    'mf_item_embedding': gmf_params['item_embedding'],
    'mlp_user_embedding': mlp_params['user_embedding'],
    'mlp_item_embedding': mlp_params['item_embedding'],
    'prediction': {
      'kernel': kernel,
      'bias': 0.5 * (heads[0]['bias'] + heads[1]['bias']),
    },
  }
  layers = {k: v for k, v in mlp_params.items() if k.startswith('layer')}
  return fused | layers


def pair_loss(
  module: nn.Module,
  params: Any,
  users: Any,
  items: Any,
  labels: Any,
  weights: Any = None,
  *,
  reg_mf: Any = 0.0,
  reg_layers: Any = 0.0,
) -> jax.Array:
  """Mean binary cross-entropy, plus penalties of whole tables.

  As in Keras a penalty counts all rows of a table in each step, also of users
  and items that are not in the batch.

  Args:
    module: `GMF`, `MLPRec` or `NeuMF`.
    params: Its parameters.
    users: int `[b]`.
    items: int `[b]`.
    labels: 0 or 1, `[b]`.
    weights: Weight of each pair, `[b]`.
    reg_mf: Weight of the squares of GMF's embeddings.
    reg_layers: Weight of the squares of the MLP's embeddings and kernels.

  Returns:
    The loss, a scalar.
  """
  logits = module.apply({'params': params}, users, items)
  loss = neural_losses.bce(logits, labels, weights)
  for name, layer in params.items():
    if name == 'prediction':
      continue
    is_mf = name.startswith('mf_') or isinstance(module, GMF)
    matrix = layer['kernel'] if 'kernel' in layer else layer['embedding']
    squares = neural_losses.sum_of_squares(matrix)
    loss = loss + (reg_mf if is_mf else reg_layers) * squares
  return loss


@flax.struct.dataclass
class PairModel:
  """Scores are a network's logits of pairs.

  Attributes:
    params: Parameters of the network.
    module: `GMF`, `MLPRec` or `NeuMF`.
  """

  params: Any
  module: Any = flax.struct.field(pytree_node=False)


@models.score.register
def _(model: PairModel, train: Interactions, users: Any) -> jax.Array:
  module = model.module
  if (module.num_users, module.num_items) != train.shape:
    raise ValueError(
      f'model was fitted for {module.num_users} users and {module.num_items}'
      f' items; train has {train.num_users} and {train.num_items}. Embeddings'
      ' do not extend to new ones.'
    )
  return score_all(module, model.params, jnp.asarray(np.asarray(users)))


@models.score_candidates.register
def _(
  model: PairModel, train: Interactions, users: Any, items: Any
) -> jax.Array:
  del train
  users = jnp.asarray(np.asarray(users))[:, None]
  return _score_pairs(model.module, model.params, users, jnp.asarray(items))


@functools.partial(jax.jit, static_argnums=0)
def _score_pairs(module, params, users, items):
  users = jnp.broadcast_to(users, items.shape)
  return module.apply({'params': params}, users, items)


@functools.partial(jax.jit, static_argnums=0)
def score_all(module: nn.Module, params: Any, users: Any) -> jax.Array:
  """Logits of all items for some users.

  The first layer of the perceptron is a sum of a part of the user and a part of
  the item: each is worked out once, and not for each pair.

  Args:
    module: `GMF`, `MLPRec` or `NeuMF`.
    params: Its parameters.
    users: int `[b]`.

  Returns:
    Logits `[b, num_items]`.
  """
  high = jax.lax.Precision.HIGHEST
  head = params['prediction']['kernel'][:, 0]
  bias = params['prediction']['bias'][0]
  prefix = 'mf_' if isinstance(module, NeuMF) else ''
  result = jnp.zeros((len(users), module.num_items))
  if not isinstance(module, MLPRec):
    p = params[prefix + 'user_embedding']['embedding'][users]
    q = params[prefix + 'item_embedding']['embedding']
    result = jnp.matmul(p * head[: p.shape[1]], q.T, precision=high)
    head = head[p.shape[1] :]
  if isinstance(module, GMF):
    return result + bias
  prefix = 'mlp_' if prefix else ''
  p = params[prefix + 'user_embedding']['embedding'][users]
  q = params[prefix + 'item_embedding']['embedding']
  depth = len(module.layers) - 1
  if depth:
    first = params['layer1']
    p = jnp.matmul(p, first['kernel'][: p.shape[1]], precision=high)
    q = jnp.matmul(q, first['kernel'][-q.shape[1] :], precision=high)
    q = q + first['bias']

  def one(own):
    if not depth:
      half = len(own)
      return own @ head[:half] + jnp.matmul(q, head[half:], precision=high)
    h = nn.relu(own + q)
    for i in range(2, depth + 1):
      layer = params[f'layer{i}']
      h = jnp.matmul(h, layer['kernel'], precision=high) + layer['bias']
      h = nn.relu(h)
    return jnp.matmul(h, head, precision=high)

  # Hidden layers of a few users at a time: all of them would not fit.
  return result + bias + jax.lax.map(one, p, batch_size=8)


def gmf(train: Interactions, *, factors: int = 64, **more: Any) -> PairModel:
  """Fits GMF with Adam; see `neumf` for more arguments."""
  module = GMF(*train.shape, factors)
  return _fit(module, train, **{'learner': 'adam', **more})


def mlp_rec(
  train: Interactions,
  *,
  factors: int = 64,
  layers: Sequence[int] | None = None,
  **more: Any,
) -> PairModel:
  """Fits the MLP with Adam; see `neumf` for more arguments."""
  module = MLPRec(*train.shape, _layers(factors, layers))
  return _fit(module, train, **{'learner': 'adam', **more})


def neumf(
  train: Interactions,
  *,
  factors: int = 64,
  layers: Sequence[int] | None = None,
  epochs: int = 20,
  epochs_gmf: int = 20,
  epochs_mlp: int = 20,
  learning_rate: float = 1e-3,
  learning_rate_pretrain: float = 1e-3,
  learner: str = 'sgd',
  pretrain: bool = True,
  batch_size: int = 256,
  num_negatives: int = 4,
  reg_mf: float = 0.0,
  reg_layers: float = 0.0,
  seed: Any = 0,
  monitor: Any = None,
) -> PairModel:
  """Fits NeuMF: GMF and MLP by Adam, then both under one head by SGD.

  An epoch is every interaction and `num_negatives` fresh items that the user
  does not have for each, in random order.

  Args:
    train: Interactions; any value counts as 1.
    factors: Length of GMF's embeddings, and of the MLP's last layer.
    layers: Widths of the MLP, the first of both embeddings together; None for
      4, 2 and 1 times `factors`.
    epochs: Of the fused network; fewer if `monitor` says so.
    epochs_gmf: Of GMF before.
    epochs_mlp: Of the MLP before.
    learning_rate: Of the fused network.
    learning_rate_pretrain: Of both before.
    learner: 'sgd' or 'adam', for the fused network.
    pretrain: Whether GMF and MLP are trained before.
    batch_size: Pairs of a step.
    num_negatives: For each interaction.
    reg_mf: Penalty of GMF's tables.
    reg_layers: Penalty of the MLP's tables and kernels.
    seed: Whole number, or JAX key.
    monitor: Called with epoch (from 1) and model; true ends the fit. One with a
      `phase`, such as `EarlyStopping`, chooses the epochs of GMF and MLP, too.

  Returns:
    A model for the users and items of `train`.

  Raises:
    ValueError: An argument is out of range, or train has nothing to learn from.

  Example:
    >>> from jaxpapers.recsys import interactions
    >>> x = interactions([0, 0, 1, 2], [0, 1, 1, 2])
    >>> once = {'epochs': 1, 'epochs_gmf': 1, 'epochs_mlp': 1}
    >>> models.score(neumf(x, factors=2, **once), x, [0, 2]).shape
    (2, 3)
  """
  layers = _layers(factors, layers)
  key = _key(seed)
  keys = jax.random.split(key, 3)
  common = {'batch_size': batch_size, 'num_negatives': num_negatives}
  params = None
  if pretrain:
    parts = []
    for function, parameter, limit, some, more in (
      (gmf, 'epochs_gmf', epochs_gmf, keys[0], {'reg_mf': reg_mf}),
      (
        mlp_rec,
        'epochs_mlp',
        epochs_mlp,
        keys[1],
        {'layers': layers, 'reg_layers': reg_layers},
      ),
    ):
      own = monitor.phase(parameter) if hasattr(monitor, 'phase') else None
      model = function(
        train,
        factors=factors,
        epochs=limit,
        learning_rate=learning_rate_pretrain,
        seed=some,
        monitor=own,
        **common,
        **more,
      )
      parts.append(model if own is None else own.result(model))
    params = fuse(*(jax.tree.map(jnp.asarray, part.params) for part in parts))
  return _fit(
    NeuMF(*train.shape, factors, layers),
    train,
    epochs=epochs,
    learning_rate=learning_rate,
    learner=learner,
    reg_mf=reg_mf,
    reg_layers=reg_layers,
    seed=keys[2],
    monitor=monitor,
    params=params,
    **common,
  )


def _layers(factors, layers):
  if factors < 1:
    raise ValueError(f'factors is {factors}; expected 1 or more.')
  layers = (4 * factors, 2 * factors, factors) if layers is None else layers
  layers = tuple(int(width) for width in layers)
  if not layers or min(layers) < 1 or layers[0] % 2:
    raise ValueError(
      f'layers is {layers}; expected widths of 1 or more, the first of them'
      ' even: half of it is the length of an embedding.'
    )
  return layers


def _key(seed):
  return jax.random.key(seed) if isinstance(seed, (int, np.integer)) else seed


def _fit(
  module,
  train,
  *,
  epochs=20,
  learning_rate=1e-3,
  learner='adam',
  batch_size=256,
  num_negatives=4,
  reg_mf=0.0,
  reg_layers=0.0,
  seed=0,
  monitor=None,
  params=None,
):
  for name, value, least in (
    ('epochs', epochs, 1),
    ('batch_size', batch_size, 1),
    ('num_negatives', num_negatives, 0),
    ('factors', getattr(module, 'factors', 1), 1),
  ):
    if value < least:
      raise ValueError(f'{name} is {value}; expected {least} or more.')
  if learner not in ('adam', 'sgd'):
    raise ValueError(f"learner is {learner!r}; expected 'adam' or 'sgd'.")
  csr = sampling.put(train)
  first, key = jax.random.split(_key(seed))
  if params is None:
    params = _init(module, first)
  # The rate is an argument of the program: another one needs no compiling.
  rate = jnp.asarray(learning_rate, jnp.float32)
  state = params, _optimizer(learner, rate).init(params)
  settings = module, learner, batch_size, num_negatives
  rates = rate, reg_mf, reg_layers
  owners = jnp.asarray(train.user)
  for epoch in range(1, epochs + 1):
    state, _ = run_epoch(
      jax.random.fold_in(key, epoch), csr, owners, state, rates, *settings
    )
    if monitor is not None and monitor(epoch, PairModel(state[0], module)):
      break
  return PairModel(jax.tree.map(np.asarray, state[0]), module)


def _optimizer(learner, rate):
  if learner == 'sgd':
    return optax.sgd(rate)
  return optimizers.fairseq_adam(rate, **_ADAM)


@functools.partial(jax.jit, static_argnums=0)
def _init(module, key):
  one = jnp.zeros(1, jnp.int32)
  return module.init(key, one, one)['params']


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8))
def run_epoch(
  key: Any,
  csr: sampling.Csr,
  owners: Any,
  state: Any,
  rates: Any,
  module: nn.Module,
  learner: str,
  batch_size: int,
  num_negatives: int,
) -> tuple[Any, jax.Array]:
  """One pass over all interactions, with fresh negatives, as one program.

  Args:
    key: JAX key.
    csr: Interactions.
    owners: User of each interaction, int `[n]`.
    state: Parameters, and state of the optimizer.
    rates: Learning rate, reg_mf and reg_layers.
    module: `GMF`, `MLPRec` or `NeuMF`.
    learner: 'sgd' or 'adam'.
    batch_size: Pairs of a step; the last step has those that are left.
    num_negatives: For each interaction.

  Returns:
    The new state, and the loss of each step.
  """
  rate, reg_mf, reg_layers = rates
  tx = _optimizer(learner, rate)
  each = 1 + num_negatives
  number = each * len(owners)
  steps = -(-number // batch_size)
  first, second = jax.random.split(key)
  order = jax.random.permutation(first, number)
  order = jnp.resize(order, (steps, batch_size))
  inside = (jnp.arange(steps * batch_size) < number).reshape(order.shape)

  def step(state, batch):
    params, moments = state
    which, weights, key = batch
    at, copy = which // each, which % each
    users = owners[at]
    drawn, found = sampling.draw_negatives(key, csr, users, module.num_items)
    positive = copy == 0
    items = jnp.where(positive, csr.items[at], drawn)
    # Who has everything has no negatives.
    weights = weights & (positive | found)
    loss, gradients = jax.value_and_grad(
      lambda p: pair_loss(
        module,
        p,
        users,
        items,
        positive.astype(jnp.float32),
        weights,
        reg_mf=reg_mf,
        reg_layers=reg_layers,
      )
    )(params)
    updates, moments = tx.update(gradients, moments, params)
    return (optax.apply_updates(params, updates), moments), loss

  return jax.lax.scan(
    step, state, (order, inside, jax.random.split(second, steps))
  )


for _name, _function, _more in (
  ('GMF', gmf, {}),
  ('MLP', mlp_rec, {}),
  ('NeuMF', neumf, {'epochs_gmf': 100, 'epochs_mlp': 100}),
):
  methods.register(
    methods.Method(
      _name,
      _function,
      fixed={'epochs': 100, 'factors': 64, 'learning_rate': 1e-3, **_more},
      random=True,
      iterative=True,
      family='neural',
      scores_new_users=False,
    )
  )
