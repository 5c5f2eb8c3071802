"""Collaborative variational autoencoder (Li & She 2017).

What the study found (Ferrari Dacrema et al. 2019): with one interaction per
user for training (P=1), methods of interactions have next to nothing to rank
by, and their published rows are the order of equal scores; neighbours by
content beat CVAE at P=10 on citeulike-a, and on citeulike-t for all but the
longest lists; for short lists and P=1 the older CDL is better. An "epoch" of
the authors' code draws each batch anew, so that many items are in none.
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
# Of the weights that are shared by encoder and decoder, which count twice.
_DECAY = 2e-4


class CVAE(nn.Module):
  """Variational autoencoder of content, with shared weights.

  The encoder has sigmoid layers and a linear end for mean and logarithm of the
  variance; the decoder a layer of its own, then the encoder's transposed, with
  the biases of the encoder's lower layers.

  Attributes:
    num_features: Number of features.
    hidden: Widths of the encoder's layers.
    latent: Length of the code.
  """

  num_features: int
  hidden: tuple[int, ...] = (200, 100)
  latent: int = 50

  def setup(self):
    """Declares the parameters."""
    widths = (self.num_features, *self.hidden)
    self.kernels = [
      self.param(f'kernel_{k}', _KERNEL, widths[k : k + 2])
      for k in range(len(self.hidden))
    ]
    self.biases = [
      self.param(f'bias_{k}', _ZEROS, (width,))
      for k, width in enumerate(self.hidden)
    ]
    last = self.hidden[-1]
    code = self.latent
    self.mean_kernel = self.param('mean_kernel', _KERNEL, (last, code))
    self.mean_bias = self.param('mean_bias', _ZEROS, (code,))
    self.variance_kernel = self.param('variance_kernel', _KERNEL, (last, code))
    self.variance_bias = self.param('variance_bias', _ZEROS, (code,))
    self.code_kernel = self.param('code_kernel', _KERNEL, (code, last))
    self.code_bias = self.param('code_bias', _ZEROS, (last,))
    self.visible_bias = self.param('visible_bias', _ZEROS, widths[:1])

  def encode(self, x: Any) -> tuple[jax.Array, jax.Array]:
    """Mean and logarithm of the variance of the code, each `[b, latent]`."""
    for kernel, bias in zip(self.kernels, self.biases, strict=True):
      x = jax.nn.sigmoid(dot(x, kernel) + bias)
    return self.encode_last(x)

  def encode_last(self, x: Any) -> tuple[jax.Array, jax.Array]:
    """The same of the last hidden layer, `[b, hidden[-1]]`."""
    return (
      dot(x, self.mean_kernel) + self.mean_bias,
      dot(x, self.variance_kernel) + self.variance_bias,
    )

  def decode_first(self, z: Any) -> jax.Array:
    """Logits of the last hidden layer, `[b, hidden[-1]]`."""
    return dot(z, self.code_kernel) + self.code_bias

  def decode(self, z: Any) -> jax.Array:
    """Logits of the content, `[b, num_features]`."""
    x = jax.nn.sigmoid(self.decode_first(z))
    for k in range(len(self.hidden) - 1, 0, -1):
      x = jax.nn.sigmoid(dot(x, self.kernels[k].T) + self.biases[k - 1])
    return dot(x, self.kernels[0].T) + self.visible_bias

  def __call__(self, x: Any, noise: Any) -> tuple[jax.Array, ...]:
    """Logits, code, mean and logarithm of the variance.

    Args:
      x: Content, `[b, num_features]`, from 0 to 1.
      noise: Standard normal, `[b, latent]`; 0 takes the mean for a code.
    """
    mean, log_variance = self.encode(x)
    z = mean + jnp.exp(log_variance / 2) * noise
    return self.decode(z), z, mean, log_variance


def divergence(mean: Any, log_variance: Any) -> jax.Array:
  """KL(N(mean, var) || N(0, 1)), averaged over items."""
  terms = jnp.exp(log_variance) + mean**2 - 1 - log_variance
  return terms.sum(-1).mean() / 2


def cvae_losses(
  module: CVAE, params: Any, x: Any, v: Any, noise: Any, pull: Any
) -> dict[str, jax.Array]:
  """The parts of the loss; 'total' is their sum.

  Args:
    module: The network.
    params: Its parameters.
    x: Content, `[b, num_features]`.
    v: Factors of the items, `[b, latent]`; None without that part.
    noise: Standard normal, `[b, latent]`.
    pull: lambda_v / lambda_r, weight of the distance of codes and factors.

  Returns:
    'content', 'divergence', 'factors', 'weights' and 'total', scalars.
  """
  logits, z, mean, log_variance = module.apply({'params': params}, x, noise)
  shared = [params[f'kernel_{k}'] for k in range(len(module.hidden))]
  parts = {
    'content': content_nets.reconstruction(logits, x),
    'divergence': divergence(mean, log_variance),
    'factors': jnp.zeros(()),
    'weights': _DECAY * sum((kernel**2).sum() for kernel in shared),
  }
  if v is not None:
    parts['factors'] = pull * ((v - z) ** 2).sum(-1).mean()
  return parts | {'total': sum(parts.values())}


@dataclasses.dataclass(frozen=True)
class _Loss:
  """The loss of a batch, for `content_nets.train_epoch`."""

  module: CVAE
  pull: float = 0.0

  def __call__(self, params, data, rows, targets, key):
    x = take(data, rows, self.module.num_features)
    noise = jax.random.normal(key, (len(rows), self.module.latent))
    v = None if targets is None else targets[rows]
    losses = cvae_losses(self.module, params, x, v, noise, self.pull)
    return losses['total']


@dataclasses.dataclass(frozen=True)
class _LatentLoss:
  """A variational autoencoder of the codes of the last hidden layer."""

  module: CVAE

  def __call__(self, params, data, rows, targets, key):
    del targets
    x, variables = data[rows], {'params': params}
    mean, log_variance = self.module.apply(
      variables, x, method=CVAE.encode_last
    )
    noise = jax.random.normal(key, mean.shape)
    z = mean + jnp.exp(log_variance / 2) * noise
    logits = self.module.apply(variables, z, method=CVAE.decode_first)
    return content_nets.reconstruction(logits, x) + divergence(
      mean, log_variance
    )


@dataclasses.dataclass(frozen=True)
class _Mean:
  """Codes without noise, for `content_nets.map_rows`."""

  module: CVAE

  def __call__(self, params, x):
    return self.module.apply({'params': params}, x, method=CVAE.encode)[0]


def cvae(
  train: Interactions,
  features: Any,
  *,
  factors: int = 50,
  hidden: tuple[int, ...] = (200, 100),
  batch_size: int = 128,
  learning_rate: float = 1e-3,
  pretrain_learning_rate: float = 1e-2,
  lambda_u: float = 0.1,
  lambda_v: float = 10.0,
  lambda_r: float = 1.0,
  a: float = 1.0,
  b: float = 0.01,
  noise: float = 0.3,
  epochs: int = 100,
  layer_epochs: int = 50,
  latent_epochs: int = 50,
  whole_epochs: int = 100,
  seed: Any = 0,
  monitor: Any = None,
) -> FactorModel:
  """Fits CVAE with the authors' training.

  Layers are trained as denoising autoencoders one by one, then the latent
  layer, then the whole network. After that each epoch trains the network, draws
  item factors to the codes, and solves all factors once.

  Args:
    train: Interactions; their values are not looked at.
    features: Content of items, `[num_items, num_features]`, values from 0 to 1.
    factors: Length of factors and codes.
    hidden: Widths of the encoder's layers.
    batch_size: Items of a step.
    learning_rate: Of Adam, in the joint part.
    pretrain_learning_rate: Of Adam before.
    lambda_u: Weight of the prior of users.
    lambda_v: Weight of the distance of items from their codes.
    lambda_r: What divides it in the network's loss.
    a: Confidence of interactions.
    b: Confidence of all else.
    noise: Share of the input that is set to 0 in pretraining of layers.
    epochs: Of the joint part; fewer if `monitor` says so.
    layer_epochs: Of each layer.
    latent_epochs: Of the latent layer.
    whole_epochs: Of the whole network.
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
  if epochs < 1 or factors < 1 or batch_size < 1:
    raise ValueError(
      f'epochs is {epochs}, factors {factors} and batch_size {batch_size};'
      ' expected 1 or more.'
    )
  data, num_features = content_nets.put_content(features, train.num_items)
  key = sampling.as_key(seed)
  before, start, key = jax.random.split(key, 3)
  module = CVAE(num_features, tuple(hidden), factors)
  params = pretrain_cvae(
    before, module, data, noise=noise, batch_size=batch_size,
    learning_rate=pretrain_learning_rate, layer_epochs=layer_epochs,
    latent_epochs=latent_epochs, whole_epochs=whole_epochs,
  )  # fmt: skip
  encode = functools.partial(
    content_nets.map_rows, _Mean(module), data=data, num_features=num_features
  )
  theta = encode(params=params)
  users = 0.1 * jax.random.normal(start, (train.num_users, factors))
  items, plan = theta, ctr.make_plan(train, factors)
  size = min(batch_size, train.num_items)
  state = content_nets.start_state('adam', params)
  for epoch in range(1, epochs + 1):
    params, state = content_nets.train_epoch(
      jax.random.fold_in(key, epoch), params, state, data, items,
      learning_rate, loss=_Loss(module, lambda_v / lambda_r), optimizer='adam',
      batch_size=size, steps=max(train.num_items // size, 1),
    )  # fmt: skip
    theta = encode(params=params)
    users, items = ctr.ctr_sweep(users, items, theta, plan, weights)
    if monitor is not None and monitor(epoch, ctr.factor_model(users, items)):
      break
  return ctr.factor_model(users, items)


def pretrain_cvae(
  key: Any,
  module: CVAE,
  data: Any,
  *,
  noise: float = 0.3,
  batch_size: int = 128,
  learning_rate: float = 1e-2,
  layer_epochs: int = 50,
  latent_epochs: int = 50,
  whole_epochs: int = 100,
) -> dict[str, Any]:
  """Trains the network on content alone.

  Args:
    key: Of starts, batches and noise.
    module: The network.
    data: Content, of `content_nets.put_content`.
    noise: Share of the input that is set to 0, for the layers.
    batch_size: Items of a step.
    learning_rate: Of Adam.
    layer_epochs: Of each layer.
    latent_epochs: Of the latent layer.
    whole_epochs: Of the whole network.

  Returns:
    Parameters of the network.
  """
  keys = jax.random.split(key, 4)
  options = {
    'optimizer': 'adam',
    'learning_rate': learning_rate,
    'batch_size': batch_size,
  }
  n = module.num_features
  params = jax.jit(module.init)(
    keys[0], jnp.zeros((1, n)), jnp.zeros((1, module.latent))
  )['params']
  layers, codes = content_nets.pretrain_layers(
    keys[1], data, n, module.hidden, noise=noise, epochs=layer_epochs, **options
  )
  for k, layer in enumerate(layers):
    params |= {f'kernel_{k}': layer['kernel'], f'bias_{k}': layer['bias']}
  params['visible_bias'] = layers[0]['visible_bias']
  own = [k for k in params if k.startswith(('mean', 'variance', 'code'))]
  learnt = content_nets.train(
    keys[2], params, codes, loss=_LatentLoss(module), epochs=latent_epochs,
    **options,
  )  # fmt: skip
  params |= {k: learnt[k] for k in own}
  return content_nets.train(
    keys[3], params, data, loss=_Loss(module), epochs=whole_epochs, **options
  )


methods.register(
  methods.Method(
    'CVAE',
    cvae,
    {},
    {
      'epochs': 100,
      'factors': 50,
      'layer_epochs': 50,
      'latent_epochs': 50,
      'whole_epochs': 100,
    },
    needs_features=True,
    random=True,
    iterative=True,
    family='neural',
    scores_new_users=False,
  )
)
