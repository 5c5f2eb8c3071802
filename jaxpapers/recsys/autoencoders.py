"""Mult-VAE and Mult-DAE: autoencoders of a user's profile (Liang et al. 2018).

What the study found: of the seven networks that it could run these alone are
ahead of neighbours and graph methods on all measures; SLIM and EASE match or
beat their NDCG. Their authors' recall and NDCG are cut at the list's length
(`recall_truncated`, `ndcg_truncated`), which gives larger numbers than those of
the other papers. The study's fits end before the weight of the KL term, 0.2
after 40,000 updates, is reached: 95 epochs of MovieLens 20M come to 0.11.

A model scores whomever it is given the profile of: users who are held out need
no fit of their own (`scores_new_users`).
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
from jaxpapers.recsys.tf1_optimizers import linear_to

_KERNEL = nn.initializers.xavier_uniform()
_BIAS = nn.initializers.truncated_normal(0.001)


def _dense(module, width, name):
  return nn.Dense(
    width,
    kernel_init=_KERNEL,
    bias_init=_BIAS,
    dtype=module.dtype,
    precision=module.precision,
    name=name,
  )


def _corrupted(module, x, deterministic):
  """Profiles of length 1, with entries dropped; an empty one stays zero."""
  square = jnp.square(x).sum(-1, keepdims=True)
  x = x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
  return nn.Dropout(1 - module.keep, deterministic=deterministic)(x)


class MultVAE(nn.Module):
  """Variational autoencoder with a multinomial likelihood.

  h = tanh(W x / |x|) to mean and log variance of the latent variable, and back;
  the decoder mirrors the encoder.

  Attributes:
    num_items: Size of the catalogue.
    hidden: Widths of the encoder's hidden layers.
    latent: Size of the latent variable.
    keep: Share of the entries of a profile that training keeps.
    dtype: Compute type.
    precision: Of the products.
  """

  num_items: int
  hidden: Sequence[int] = (600,)
  latent: int = 200
  keep: float = 0.5
  dtype: Any = None
  precision: Any = None

  @nn.compact
  def __call__(
    self, x: Any, deterministic: bool = True
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits of all items.

    Args:
      x: Profiles, `[b, num_items]`.
      deterministic: Nothing is dropped, and the latent variable is its mean.
        Otherwise it draws with the streams 'dropout' and 'latent'.

    Returns:
      Logits `[b, num_items]`; mean and log variance, `[b, latent]`.
    """
    h = _corrupted(self, x, deterministic)
    for i, width in enumerate(self.hidden):
      h = nn.tanh(_dense(self, width, f'encoder_{i}')(h))
    last = len(self.hidden)
    h = _dense(self, 2 * self.latent, f'encoder_{last}')(h)
    mean, log_variance = jnp.split(h.astype(jnp.float32), 2, -1)
    z = mean
    if not deterministic:
      noise = jax.random.normal(self.make_rng('latent'), mean.shape)
      z = mean + noise * jnp.exp(log_variance / 2)
    for i, width in enumerate(reversed(self.hidden)):
      z = nn.tanh(_dense(self, width, f'decoder_{i}')(z))
    return (
      _dense(self, self.num_items, f'decoder_{last}')(z),
      mean,
      log_variance,
    )


class MultDAE(nn.Module):
  """Denoising autoencoder with a multinomial likelihood.

  Attributes:
    num_items: Size of the catalogue.
    hidden: Widths of the hidden layers, all with tanh.
    keep: Share of the entries of a profile that training keeps.
    dtype: Compute type.
    precision: Of the products.
  """

  num_items: int
  hidden: Sequence[int] = (200,)
  keep: float = 0.5
  dtype: Any = None
  precision: Any = None

  @nn.compact
  def __call__(
    self, x: Any, deterministic: bool = True
  ) -> tuple[jax.Array, None, None]:
    """Logits of all items; see `MultVAE`. There is no latent variable."""
    h = _corrupted(self, x, deterministic)
    for i, width in enumerate(self.hidden):
      h = nn.tanh(_dense(self, width, f'layer_{i}')(h))
    h = _dense(self, self.num_items, f'layer_{len(self.hidden)}')(h)
    return h, None, None


@flax.struct.dataclass
class ProfileModel:
  """Scores are what a network makes of a user's profile.

  Attributes:
    params: Parameters of the network.
    module: `MultVAE` or `MultDAE`.
  """

  params: Any
  module: Any = flax.struct.field(pytree_node=False)


@models.score.register
def _(model: ProfileModel, train: Interactions, users: Any) -> jax.Array:
  if model.module.num_items != train.num_items:
    raise ValueError(
      f'model was fitted for {model.module.num_items} items; train has'
      f' {train.num_items}.'
    )
  x = (train.to_dense(np.asarray(users)) != 0).astype(np.float32)
  return _logits(model.module, model.params, x)


@functools.partial(jax.jit, static_argnums=0)
def _logits(module, params, x):
  return module.apply({'params': params}, x)[0].astype(jnp.float32)


def profile_loss(
  module: nn.Module,
  params: Any,
  x: Any,
  *,
  beta: Any = 0.0,
  l2: Any = 0.0,
  weights: Any = None,
  key: Any = None,
) -> jax.Array:
  """What both networks are trained on.

  Args:
    module: `MultVAE` or `MultDAE`.
    params: Its parameters.
    x: Profiles, 0 or 1, `[b, num_items]`.
    beta: Weight of the KL term.
    l2: Weight of the sum of the squares of all kernels.
    weights: Weight of each user, `[b]`.
    key: JAX key of dropout and latent variable; None for neither.

  Returns:
    The loss, a scalar.
  """
  rngs = None
  if key is not None:
    first, second = jax.random.split(key)
    rngs = {'dropout': first, 'latent': second}
  logits, mean, log_variance = module.apply(
    {'params': params}, x, deterministic=key is None, rngs=rngs
  )
  loss = neural_losses.multinomial_elbo(
    logits, x, mean, log_variance, beta, weights
  )
  kernels = [layer['kernel'] for layer in params.values()]
  return loss + l2 * neural_losses.sum_of_squares(kernels)


def mult_vae(
  train: Interactions,
  *,
  hidden: Sequence[int] = (600,),
  latent: int = 200,
  keep: float = 0.5,
  epochs: int = 200,
  batch_size: int = 500,
  learning_rate: float = 1e-3,
  anneal_cap: float = 0.2,
  total_anneal_steps: int = 200_000,
  l2: float = 0.0,
  dtype: Any = None,
  seed: Any = 0,
  monitor: Any = None,
) -> ProfileModel:
  """Fits Mult-VAE with Adam, the KL term annealed linearly.

  Args:
    train: Interactions; any value counts as 1. Users without any are left out.
    hidden: Widths of the encoder's hidden layers.
    latent: Size of the latent variable.
    keep: Share of the entries of a profile that training keeps.
    epochs: How many; fewer if `monitor` says so.
    batch_size: Users of a step.
    learning_rate: Of Adam.
    anneal_cap: Largest weight of the KL term.
    total_anneal_steps: Updates that would lead to a weight of 1. The authors'
      number fits MovieLens 20M; scale it with the number of updates.
    l2: Weight of the squares of kernels.
    dtype: Compute type, such as bfloat16.
    seed: Whole number, or JAX key.
    monitor: Called with epoch (from 1) and model; true ends the fit.

  Returns:
    A model that scores any profile of the same items.

  Raises:
    ValueError: An argument is out of range, or train is empty.

  Example:
    >>> from jaxpapers.recsys import interactions
    >>> x = interactions([0, 0, 1, 2], [0, 1, 1, 2])
    >>> model = mult_vae(x, hidden=(4,), latent=2, epochs=2)
    >>> models.score(model, x, [0, 2]).shape
    (2, 3)
  """
  module = MultVAE(train.num_items, tuple(hidden), latent, keep, dtype)
  return _fit(
    module,
    train,
    epochs,
    batch_size,
    learning_rate,
    linear_to(anneal_cap, total_anneal_steps),
    l2,
    seed,
    monitor,
  )


def mult_dae(
  train: Interactions,
  *,
  hidden: Sequence[int] = (200,),
  keep: float = 0.5,
  epochs: int = 200,
  batch_size: int = 500,
  learning_rate: float = 1e-3,
  l2: float = 0.01 / 500,
  dtype: Any = None,
  seed: Any = 0,
  monitor: Any = None,
) -> ProfileModel:
  """Fits Mult-DAE; the arguments are those of `mult_vae`."""
  module = MultDAE(train.num_items, tuple(hidden), keep, dtype)
  return _fit(
    module,
    train,
    epochs,
    batch_size,
    learning_rate,
    linear_to(0.0, 1),
    l2,
    seed,
    monitor,
  )


def _fit(
  module, train, epochs, batch_size, learning_rate, beta, l2, seed, monitor
):
  for name, value in (('epochs', epochs), ('batch_size', batch_size)):
    if value < 1:
      raise ValueError(f'{name} is {value}; expected 1 or more.')
  if not 0 < module.keep <= 1:
    raise ValueError(f'keep is {module.keep}; expected above 0, up to 1.')
  counts = train.user_counts()
  users = np.flatnonzero(counts)
  if not len(users):
    raise ValueError('train is empty: there is no profile to learn from.')
  key = sampling.as_key(seed)
  first, key = jax.random.split(key)
  profiles = sampling.Csr(
    jnp.asarray(train.row_starts),
    jnp.asarray(train.item),
    jnp.asarray(train.value),
    jnp.asarray(users, dtype=jnp.int32),
  )
  # A batch is no larger than the data, whatever was asked for.
  batch_size = min(batch_size, len(users))
  tx = optax.adam(learning_rate)
  params = _init(module, first)
  state = params, jax.jit(tx.init)(params), jnp.zeros((), jnp.int32)
  epoch_fn = make_epoch(module, tx, beta, l2, batch_size, int(counts.max()))
  for epoch in range(1, epochs + 1):
    state, _ = epoch_fn(jax.random.fold_in(key, epoch), profiles, state)
    if monitor is not None and monitor(epoch, ProfileModel(state[0], module)):
      break
  return ProfileModel(jax.tree.map(np.asarray, state[0]), module)


@functools.partial(jax.jit, static_argnums=0)
def _init(module, key):
  return module.init(key, jnp.zeros((1, module.num_items)))['params']


def make_epoch(
  module: nn.Module,
  tx: optax.GradientTransformation,
  beta: optax.Schedule,
  l2: float,
  batch_size: int,
  width: int,
) -> Any:
  """One pass over all users, in random order, as one program.

  Args:
    module: `MultVAE` or `MultDAE`.
    tx: The optimizer.
    beta: Weight of the KL term, of the number of updates done.
    l2: See `profile_loss`.
    batch_size: Users of a step; the last step has those that are left.
    width: Length of the longest profile.

  Returns:
    Jitted function of a key, the profiles (`sampling.Csr`) and the state
    (parameters, state of the optimizer, updates done), which returns the new
    state and the loss of each step, `[steps]`.
  """

  def step(csr, state, batch):
    params, moments, count = state
    users, weights, key = batch
    # Items beyond the end of a profile fall off the matrix.
    items = csr.starts[users][:, None] + jnp.arange(width)
    inside = items < csr.starts[users + 1][:, None]
    last = len(csr.items) - 1
    items = jnp.where(
      inside, csr.items[jnp.minimum(items, last)], module.num_items
    )
    x = jnp.zeros((batch_size, module.num_items))
    x = x.at[jnp.arange(batch_size)[:, None], items].set(1.0, mode='drop')

    def loss_fn(params):
      return profile_loss(
        module,
        params,
        x,
        beta=beta(count),
        l2=l2,
        weights=weights,
        key=key,
      )

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, moments = tx.update(gradients, moments, params)
    return (optax.apply_updates(params, updates), moments, count + 1), loss

  @jax.jit
  def epoch(key, csr, state):
    first, second = jax.random.split(key)
    number = len(csr.users)
    steps = -(-number // batch_size)
    order = jax.random.permutation(first, csr.users)
    order = jnp.resize(order, (steps, batch_size))
    weights = (jnp.arange(steps * batch_size) < number).reshape(order.shape)
    return jax.lax.scan(
      functools.partial(step, csr),
      state,
      (order, weights, jax.random.split(second, steps)),
    )

  return epoch


methods.register(
  methods.Method(
    'Mult VAE',
    mult_vae,
    fixed={'epochs': 200, 'batch_size': 500, 'total_anneal_steps': 200_000},
    random=True,
    iterative=True,
    family='neural',
  )
)
methods.register(
  methods.Method(
    'Mult DAE',
    mult_dae,
    fixed={'epochs': 200, 'batch_size': 500},
    random=True,
    iterative=True,
    family='neural',
  )
)
