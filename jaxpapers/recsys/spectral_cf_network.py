"""SpectralCF (Zheng et al. 2018): convolution on the graph of interactions.

What the study found (Ferrari Dacrema et al. 2019): the test part that the
authors released is no random sample (its popularity has a Kendall tau of .44
with that of all data, where a random part has .85); on it SpectralCF beats all
baselines, on random parts of three data sets it is at or below TopPopular. An
"epoch" of the authors' code is one batch: their 600 epochs are 600 updates.
"""

import functools
import weakref
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.recsys import methods, sampling, spectrum
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.models import FactorModel
from jaxpapers.recsys.neural_losses import bpr_loss, sum_of_squares
from jaxpapers.recsys.tf1_optimizers import rmsprop_tf1

_HIGH = jax.lax.Precision.HIGHEST


def _start(key, shape, dtype=jnp.float32):
  return 0.01 + 0.02 * jax.random.normal(key, shape, dtype)


class SpectralCF(nn.Module):
  """Layers E_k = sigma(A E_{k-1} F_k) over users and items together.

  E_0 is a table of embeddings; the result is [E_0, ..., E_K] side by side, and
  a score is the product of a user's and an item's row.

  Attributes:
    num_users: Number of users.
    num_items: Number of items.
    dim: Width of a layer.
    layers: Number of layers K, without E_0.
  """

  num_users: int
  num_items: int
  dim: int = 16
  layers: int = 3

  @nn.compact
  def __call__(self, operator: Any) -> tuple[jax.Array, jax.Array]:
    """Embeddings of all users and items.

    Args:
      operator: The filter of the graph, `[n, n]` of n = users + items; see
        `spectral_operator`.

    Returns:
      `[num_users, (layers + 1) * dim]` and `[num_items, (layers + 1) * dim]`.
    """
    x = jnp.concatenate(
      [
        self.param('user_embedding', _start, (self.num_users, self.dim)),
        self.param('item_embedding', _start, (self.num_items, self.dim)),
      ]
    )
    outputs = [x]
    for k in range(self.layers):
      weight = self.param(f'filter_{k}', _start, (self.dim, self.dim))
      x = jnp.matmul(operator, x, precision=_HIGH)
      x = jax.nn.sigmoid(jnp.matmul(x, weight, precision=_HIGH))
      outputs.append(x)
    joined = jnp.concatenate(outputs, -1)
    return joined[: self.num_users], joined[self.num_users :]


def spectral_loss(
  users: Any,
  items: Any,
  u: Any,
  i: Any,
  j: Any,
  decay: Any,
  weights: Any = None,
) -> jax.Array:
  """BPR of triples, and the decay of the embeddings that are in them.

    mean -log sigma(e_u e_i - e_u e_j) + decay / b (|e_u|^2 + |e_i|^2 + |e_j|^2)
    / 2, summed over the batch.

  Args:
    users: Embeddings of all users, `[num_users, d]`.
    items: Embeddings of all items, `[num_items, d]`.
    u: Users, int `[b]`.
    i: An item that each has, int `[b]`.
    j: An item that each does not have, int `[b]`.
    decay: Weight of the second term.
    weights: Weight of each triple in the first, `[b]`.

  Returns:
    The loss, a scalar.
  """
  eu, ei, ej = users[u], items[i], items[j]
  loss = bpr_loss((eu * ei).sum(-1), (eu * ej).sum(-1), weights)
  return loss + decay * sum_of_squares((eu, ei, ej)) / 2 / len(u)


def spectral_cf(
  train: Interactions,
  *,
  dim: int = 16,
  layers: int = 3,
  batch_size: int = 1024,
  learning_rate: float = 1e-3,
  decay: float = 1e-3,
  epochs: int = 600,
  min_epochs: int = 0,
  mode: str = 'authors',
  operator: Any = None,
  max_bytes: float = 8e9,
  seed: Any = 0,
  monitor: Any = None,
) -> FactorModel:
  """Fits SpectralCF with the authors' training.

  An epoch is one batch: `batch_size` users, each with an item that they have
  and one that they do not have, and one step of TensorFlow's RMSProp.

  Args:
    train: Interactions.
    dim: Width of a layer.
    layers: Number of layers.
    batch_size: Users of a batch, without repetition where there are so many.
    learning_rate: Size of steps.
    decay: Weight decay of the embeddings of a batch.
    epochs: Batches; fewer if `monitor` says so.
    min_epochs: A monitor cannot end the fit before; 400 in the study's search.
    mode: Of the operator, see `spectral_operator`.
    operator: The operator, if it is there already.
    max_bytes: Refuse larger operators. Its decomposition needs some eight times
      as much.
    seed: Whole number, or JAX key.
    monitor: Called with epoch (from 1) and model; true ends the fit.

  Returns:
    A factor model, float32.

  Raises:
    ValueError: An argument is out of range, or the graph is too large.
  """
  for name, value in (
    ('dim', dim),
    ('layers', layers),
    ('batch_size', batch_size),
    ('epochs', epochs),
  ):
    if value < 1:
      raise ValueError(f'{name} is {value}; expected 1 or more.')
  n = train.num_users + train.num_items
  if operator is None:
    operator = _operator(train, mode, max_bytes)
  if operator.shape != (n, n):
    raise ValueError(
      f'operator has shape {operator.shape}; expected {(n, n)}, users and'
      ' items.'
    )
  operator = jnp.asarray(operator, jnp.float32)
  csr = sampling.put(train)
  key = sampling.as_key(seed)
  start, key = jax.random.split(key)
  module = SpectralCF(train.num_users, train.num_items, dim, layers)
  params = _init(module, start, operator)
  state = rmsprop_tf1(0.0).init(params)
  rates = jnp.array([learning_rate, decay], jnp.float32)
  every = max(getattr(monitor, 'every', 1), 1) if monitor is not None else 50
  done = 0
  while done < epochs:
    count = min(every - done % every, epochs - done)
    params, state = _steps(
      key, csr, operator, params, state, rates, module, batch_size, count
    )
    done += count
    if monitor is not None and done % every == 0:
      ended = monitor(done, _model(module, params, operator))
      if ended and done >= min_epochs:
        break
  return _model(module, params, operator)


@functools.partial(jax.jit, static_argnums=0)
def _init(module, key, operator):
  return module.init(key, operator)['params']


@functools.partial(jax.jit, static_argnums=0)
def _embeddings(module, params, operator):
  return module.apply({'params': params}, operator)


def _model(module, params, operator):
  users, items = _embeddings(module, params, operator)
  return FactorModel(np.asarray(users), np.asarray(items))


@functools.partial(jax.jit, static_argnums=(6, 7, 8), donate_argnums=(3, 4))
def _steps(key, csr, operator, params, state, rates, module, batch, count):
  learning_rate, decay = rates
  optimizer = rmsprop_tf1(learning_rate)

  def step(carry, _):
    params, state = carry
    keys = jax.random.split(jax.random.fold_in(key, state.count), 3)
    u = _draw(keys[0], csr, batch)
    i, _ = sampling.draw_positives(keys[1], csr, u)
    j, found = sampling.draw_negatives(keys[2], csr, u, module.num_items)

    def loss(params):
      users, items = module.apply({'params': params}, operator)
      return spectral_loss(users, items, u, i, j, decay, found)

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    params = jax.tree.map(jnp.add, params, updates)
    return (params, state), None

  return jax.lax.scan(step, (params, state), length=count)[0]


def _draw(key, csr, batch):
  """Users of a batch, without repetition if there are enough."""
  if batch <= len(csr.users):
    return jax.random.permutation(key, csr.users)[:batch]
  return sampling.draw_users(key, csr, (batch,))


# The operator of the last data: a search fits the same data many times.
_last: list[Any] = [None, None, None]


def _operator(train, mode, max_bytes):
  n = train.num_users + train.num_items
  if 4 * n**2 > max_bytes:
    raise ValueError(
      f'the graph has {n} nodes: its operator needs {4 * n**2 / 1e9:.1f} GB,'
      f' more than max_bytes={max_bytes:.3g}. Raise max_bytes, or leave out'
      ' rare users and items.'
    )
  known, known_mode, operator = _last
  if known is None or known() is not train or known_mode != mode:
    operator = spectrum.spectral_operator(train, mode=mode)
    _last[:] = weakref.ref(train, _forget), mode, operator
  return operator


def _forget(reference):
  if _last[0] is reference:
    _last[:] = None, None, None


methods.register(
  methods.Method(
    'SpectralCF',
    spectral_cf,
    {
      'batch_size': methods.Range('choice', values=(128, 256, 512, 1024, 2048)),
      'dim': methods.Range('choice', values=(4, 8, 16, 32)),
      'decay': methods.Range('float', 1e-5, 1e-1, True),
      'learning_rate': methods.Range('float', 1e-5, 1e-2, True),
      'layers': methods.Range('int', 1, 6),
    },
    {'epochs': 2000, 'min_epochs': 400},
    random=True,
    iterative=True,
    family='neural',
    scores_new_users=False,
  )
)
methods.register(
  methods.Method(
    'SpectralCF article default',
    spectral_cf,
    {},
    {'epochs': 2000, 'min_epochs': 400},
    random=True,
    iterative=True,
    family='neural',
    scores_new_users=False,
  )
)
