"""Training of GMF, MLP and NeuMF: epochs with fresh negatives, pretraining."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.recsys import methods, sampling
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.neural_cf import (
  GMF,
  MLPRec,
  NeuMF,
  PairModel,
  fuse,
  pair_loss,
)
from jaxpapers.training import optimizers

# Keras's Adam, which GMF and MLP are trained with.
_ADAM = {'weight_decay': 0.0, 'b1': 0.9, 'b2': 0.999, 'eps': 1e-7}


def gmf(
  train: Interactions,
  *,
  factors: int = 64,
  epochs: int = 20,
  learning_rate: float = 1e-3,
  learner: str = 'adam',
  batch_size: int = 256,
  num_negatives: int = 4,
  reg_mf: float = 0.0,
  seed: Any = 0,
  monitor: Any = None,
) -> PairModel:
  """Fits GMF; see `neumf` for the arguments."""
  return _fit(
    GMF(*train.shape, factors),
    train,
    epochs=epochs,
    learning_rate=learning_rate,
    learner=learner,
    batch_size=batch_size,
    num_negatives=num_negatives,
    reg_mf=reg_mf,
    seed=seed,
    monitor=monitor,
  )


def mlp_rec(
  train: Interactions,
  *,
  factors: int = 64,
  layers: Sequence[int] | None = None,
  epochs: int = 20,
  learning_rate: float = 1e-3,
  learner: str = 'adam',
  batch_size: int = 256,
  num_negatives: int = 4,
  reg_layers: float = 0.0,
  seed: Any = 0,
  monitor: Any = None,
) -> PairModel:
  """Fits the MLP; see `neumf` for the arguments."""
  return _fit(
    MLPRec(*train.shape, _layers(factors, layers)),
    train,
    epochs=epochs,
    learning_rate=learning_rate,
    learner=learner,
    batch_size=batch_size,
    num_negatives=num_negatives,
    reg_layers=reg_layers,
    seed=seed,
    monitor=monitor,
  )


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
  key = sampling.as_key(seed)
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
  first, key = jax.random.split(sampling.as_key(seed))
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
