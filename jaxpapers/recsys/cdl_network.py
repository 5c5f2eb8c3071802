"""Collaborative deep learning (Wang, Wang & Yeung 2015).

What the study found (Ferrari Dacrema et al. 2019): neighbours by content beat
CDL at P=10 on citeulike-a and nearly everywhere on citeulike-t; at P=1 (one
interaction per user for training, some forty for test) and for short lists it
is better than the newer CVAE, and methods of interactions alone have nothing
but the order of equal scores there. The authors' code needs Matlab and GSL.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.recsys import content_nets, ctr, methods, sampling
from jaxpapers.recsys.content_nets import dot, take
from jaxpapers.recsys.data import Interactions
from jaxpapers.recsys.models import FactorModel

_ZEROS = nn.initializers.zeros_init()
_KERNEL = nn.initializers.glorot_uniform()


class CDL(nn.Module):
  """Stacked denoising autoencoder, sigmoid throughout, with tied weights.

  The layers are num_features, hidden, code, hidden reversed, num_features; a
  layer of the decoder has the transposed kernel of its twin, and its own bias.

  Attributes:
    num_features: Number of features.
    hidden: Widths between features and code.
    code: Length of the code.
    dropout: Share of hidden units that are set to 0 in training; the code and
      the features are not among them.
  """

  num_features: int
  hidden: tuple[int, ...] = (200,)
  code: int = 50
  dropout: float = 0.1

  def setup(self):
    """Declares the parameters."""
    widths = (self.num_features, *self.hidden, self.code)
    self.kernels = [
      self.param(f'kernel_{k}', _KERNEL, widths[k : k + 2])
      for k in range(len(widths) - 1)
    ]
    self.biases = [
      self.param(f'bias_{k}', _ZEROS, (width,))
      for k, width in enumerate(widths[1:])
    ]
    self.visible_biases = [
      self.param(f'visible_bias_{k}', _ZEROS, (width,))
      for k, width in enumerate(widths[:-1])
    ]

  def encode(self, x: Any, key: Any = None) -> jax.Array:
    """Codes `[b, code]` of content `[b, num_features]`.

    Args:
      x: Content, from 0 to 1, with noise or without.
      key: Of dropout; None for none.
    """
    last = len(self.kernels) - 1
    for k, kernel in enumerate(self.kernels):
      x = jax.nn.sigmoid(dot(x, kernel) + self.biases[k])
      if k < last:
        x = self._drop(x, key, k)
    return x

  def decode(self, code: Any, key: Any = None) -> jax.Array:
    """Logits of the content, `[b, num_features]`, of codes `[b, code]`."""
    x = code
    for k in range(len(self.kernels) - 1, -1, -1):
      x = dot(x, self.kernels[k].T) + self.visible_biases[k]
      if k:
        x = self._drop(jax.nn.sigmoid(x), key, len(self.kernels) + k)
    return x

  def _drop(self, x, key, number):
    if key is None or not self.dropout:
      return x
    key = jax.random.fold_in(key, number)
    kept = content_nets.mask_noise(key, x, self.dropout)
    return kept / (1 - self.dropout)

  def __call__(self, x: Any, key: Any = None) -> tuple[jax.Array, jax.Array]:
    """Logits of the content, and codes."""
    code = self.encode(x, key)
    return self.decode(code, key), code


def cdl_losses(
  module: CDL,
  params: Any,
  noisy: Any,
  x: Any,
  v: Any,
  pull: Any,
  weight_decay: Any = 1e-4,
  key: Any = None,
) -> dict[str, jax.Array]:
  """The parts of the loss; 'total' is their sum.

  Args:
    module: The network.
    params: Its parameters.
    noisy: Content with noise, `[b, num_features]`.
    x: Content, from 0 to 1.
    v: Factors of the items, `[b, code]`; None without that part.
    pull: lambda_v / lambda_n, weight of half the squared distance between codes
      of noisy content and factors. It moves the encoder only.
    weight_decay: Half of it times the sum of squares of the kernels.
    key: Of dropout; None for none.

  Returns:
    'content', 'factors', 'weights' and 'total', scalars, means over items.
  """
  logits, code = module.apply({'params': params}, noisy, key)
  kernels = [v for k, v in params.items() if k.startswith('kernel')]
  parts = {
    'content': content_nets.reconstruction(logits, x),
    'factors': jnp.zeros(()),
    'weights': weight_decay / 2 * sum((k**2).sum() for k in kernels),
  }
  if v is not None:
    parts['factors'] = pull / 2 * ((code - v) ** 2).sum(-1).mean()
  return parts | {'total': sum(parts.values())}


@dataclasses.dataclass(frozen=True)
class _Loss:
  """The loss of a batch, for `content_nets.train_epoch`."""

  module: CDL
  noise: float
  weight_decay: float
  pull: float

  def __call__(self, params, data, rows, targets, key):
    x = take(data, rows, self.module.num_features)
    mask, drop = jax.random.split(key)
    noisy = content_nets.mask_noise(mask, x, self.noise)
    v = None if targets is None else targets[rows]
    losses = cdl_losses(
      self.module, params, noisy, x, v, self.pull, self.weight_decay, drop
    )
    return losses['total']


@dataclasses.dataclass(frozen=True)
class _Code:
  """Codes without noise, for `content_nets.map_rows`."""

  module: CDL

  def __call__(self, params, x):
    return self.module.apply({'params': params}, x, method=CDL.encode)


def cdl(
  train: Interactions,
  features: Any,
  *,
  factors: int = 50,
  hidden: tuple[int, ...] = (200,),
  batch_size: int = 128,
  learning_rate: float = 1.0,
  lambda_u: float = 1.0,
  lambda_v: float = 10.0,
  lambda_n: float = 1000.0,
  a: float = 1.0,
  b: float = 0.01,
  noise: float = 0.3,
  dropout: float = 0.1,
  weight_decay: float = 1e-4,
  epochs: int = 200,
  layer_epochs: int = 200,
  last_sweeps: int = 100,
  seed: Any = 0,
  monitor: Any = None,
) -> FactorModel:
  """Fits CDL with the authors' training.

  Layers are trained as denoising autoencoders on three quarters of the items.
  Then each epoch trains the network on all batches of items, its codes drawn to
  the items' factors (not in the first epoch, which has none), and solves all
  factors once; after the last epoch they are solved `last_sweeps` times.

  Args:
    train: Interactions; their values are not looked at.
    features: Content of items, `[num_items, num_features]`, values from 0 to 1.
    factors: Length of factors and codes.
    hidden: Widths between features and code.
    batch_size: Items of a step.
    learning_rate: What AdaDelta's steps are multiplied by.
    lambda_u: Weight of the prior of users.
    lambda_v: Weight of the distance of items from their codes.
    lambda_n: Weight of the reconstruction; divides the distance in the
      network's loss.
    a: Confidence of interactions.
    b: Confidence of all else.
    noise: Share of the content that is set to 0 for the encoder.
    dropout: Share of hidden units that are.
    weight_decay: Of the kernels.
    epochs: Of the joint part; fewer if `monitor` says so.
    layer_epochs: Of each layer.
    last_sweeps: Solutions of all factors at the end.
    seed: Whole number, or JAX key.
    monitor: Called with epoch (from 1) and model; true ends the fit.

  Returns:
    A factor model, float32; items without interactions have factors, too.

  Raises:
    ValueError: An argument is out of range, or train is empty.
  """
  weights = ctr.Weights(a, b, lambda_u, lambda_v)
  ctr.check_weights(weights)
  if not len(train):
    raise ValueError('train is empty: there is nothing to learn from.')
  for name, value in (
    ('epochs', epochs),
    ('factors', factors),
    ('batch_size', batch_size),
    ('last_sweeps', last_sweeps),
  ):
    if value < 1:
      raise ValueError(f'{name} is {value}; expected 1 or more.')
  if not lambda_n > 0:
    raise ValueError(f'lambda_n is {lambda_n}; expected a positive number.')
  data, num_features = content_nets.put_content(features, train.num_items)
  key = sampling.as_key(seed)
  before, start, key = jax.random.split(key, 3)
  module = CDL(num_features, tuple(hidden), factors, dropout)
  params = pretrain_cdl(
    before, module, data, noise=noise, batch_size=batch_size,
    learning_rate=learning_rate, weight_decay=weight_decay, epochs=layer_epochs,
  )  # fmt: skip
  encode = functools.partial(
    content_nets.map_rows, _Code(module), data=data, num_features=num_features
  )
  users = 0.1 * jax.random.normal(start, (train.num_users, factors))
  items, plan = None, ctr.make_plan(train, factors)
  size = min(batch_size, train.num_items)
  loss = _Loss(module, noise, weight_decay, lambda_v / lambda_n)
  state = content_nets.start_state('adadelta', params)
  for epoch in range(1, epochs + 1):
    params, state = content_nets.train_epoch(
      jax.random.fold_in(key, epoch), params, state, data, items,
      learning_rate, loss=loss, optimizer='adadelta', batch_size=size,
      steps=-(-train.num_items // size), cover=True,
    )  # fmt: skip
    theta = encode(params=params)
    for _ in range(last_sweeps if epoch == epochs else 1):
      users, items = ctr.ctr_sweep(
        users, theta if items is None else items, theta, plan, weights
      )
    if monitor is not None and monitor(epoch, ctr.factor_model(users, items)):
      break
  return ctr.factor_model(users, items)


def pretrain_cdl(
  key: Any,
  module: CDL,
  data: Any,
  *,
  noise: float = 0.3,
  batch_size: int = 128,
  learning_rate: float = 1.0,
  weight_decay: float = 1e-4,
  epochs: int = 200,
  share: float = 0.75,
) -> dict[str, Any]:
  """Trains the layers one by one on a part of the items.

  Args:
    key: Of starts, the part, batches and noise.
    module: The network.
    data: Content, of `content_nets.put_content`.
    noise: Share of an input that is set to 0.
    batch_size: Items of a step.
    learning_rate: What AdaDelta's steps are multiplied by.
    weight_decay: Of the kernels.
    epochs: Of each layer; 0 for a random start.
    share: Of the items that are trained on.

  Returns:
    Parameters of the network.
  """
  choose, run = jax.random.split(key)
  n = content_nets.number_of_rows(data)
  some = jax.random.permutation(choose, n)[: max(int(n * share), 1)]
  part = jax.tree.map(lambda x: x[some], data)
  layers, _ = content_nets.pretrain_layers(
    run, part, module.num_features, (*module.hidden, module.code),
    noise=noise, weight_decay=weight_decay, optimizer='adadelta',
    learning_rate=learning_rate, batch_size=batch_size, epochs=epochs,
    cover=True,
  )  # fmt: skip
  params = {}
  for k, layer in enumerate(layers):
    params |= {f'{name}_{k}': value for name, value in layer.items()}
  return params


methods.register(
  methods.Method(
    'CDL',
    cdl,
    {},
    {'epochs': 200, 'factors': 50, 'layer_epochs': 200, 'last_sweeps': 100},
    needs_features=True,
    random=True,
    iterative=True,
    family='neural',
    scores_new_users=False,
  )
)
