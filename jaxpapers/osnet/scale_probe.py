"""A task that shows which scales a block can see, and no other.

An image is a sum of four textures of white noise that is added to a copy of
itself, moved by a lag of 2, 4, 6 or 8 pixels and multiplied by +1 or -1:

  image = sum_t (n_t[i, j] + s_t n_t[i, j - L_t]) / sqrt(8)

The four signs are to be told. A window that is no wider than a lag sees white
noise whatever the sign is, so for features that are averaged over the image a
lag of 2 t is out of reach of streams whose windows have fewer than 2 t + 1
pixels. A 1x1 convolution, one omni-scale block, the mean over the image and a
linear layer then show the scales of the block.
"""

import functools
from typing import NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers.osnet.blocks import OSBlock
from jaxpapers.osnet.config import OSNetConfig

LAGS = (2, 4, 6, 8)
# Blocks worth comparing: one to four scales, and the two controls. 'equal' has
# as many streams of one scale, 'single' one stream as deep as the deepest.
VARIANTS = {
  'T1': {'streams': (1,)},
  'T2': {'streams': (1, 2)},
  'T3': {'streams': (1, 2, 3)},
  'T4': {'streams': (1, 2, 3, 4)},
  'T4-add': {'streams': (1, 2, 3, 4), 'aggregation': 'add'},
  'equal': {'streams': (1, 1, 1, 1)},
  'single': {'streams': (4,)},
}


def make_textures(
  key: jax.Array, number: int, size: int = 24
) -> tuple[jax.Array, jax.Array]:
  """Draws images and the signs in them.

  Args:
    key: Typed key.
    number: Of images.
    size: Height and width.

  Returns:
    float32 [number, size, size, 1] of mean 0 and variance 1; float32 [number,
    4], 1 where the sign of a lag is positive, 0 where it is negative.

  Example:
    >>> images, signs = make_textures(jax.random.key(0), 3)
    >>> images.shape, signs.shape
    ((3, 24, 24, 1), (3, 4))
  """
  sign_key, noise_key = jax.random.split(key)
  signs = jax.random.bernoulli(sign_key, 0.5, (number, len(LAGS)))
  far = max(LAGS)
  noise = jax.random.normal(noise_key, (number, size, size + far, len(LAGS)))
  image = jnp.zeros((number, size, size))
  for t, lag in enumerate(LAGS):
    here = noise[:, :, far:, t]
    there = noise[:, :, far - lag : far - lag + size, t]
    image += here + jnp.where(signs[:, t], 1, -1)[:, None, None] * there
  return (image / np.sqrt(2 * len(LAGS)))[..., None], signs.astype(jnp.float32)


class Probe(linen.Module):
  """One omni-scale block between a 1x1 convolution and the mean.

  Attributes:
    cfg: Of the block.
    stem: Channels that go into it.
    features: Channels that come out.
  """

  cfg: OSNetConfig = OSNetConfig()
  stem: int = 16
  features: int = 64

  @linen.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits of the signs, [B, 4], of images [B, H, W, 1]."""
    # No norm or ReLU: of single pixels there is nothing to be told.
    x = linen.Dense(self.stem, name='conv1')(x)
    x = OSBlock(self.features, self.cfg, name='block')(x, train)
    return linen.Dense(len(LAGS), name='classifier')(x.mean((1, 2)))


class ProbeResult(NamedTuple):
  """What a block learned.

  Attributes:
    accuracy: float32 [seeds, 4], share of signs that are told right in new
      images, for the lags of `LAGS`; 0.5 by chance.
    losses: float32 [seeds, steps], of training.
  """

  accuracy: jax.Array
  losses: jax.Array


def run_probe(
  cfg: OSNetConfig,
  seeds: tuple[int, ...] = (0,),
  *,
  steps: int = 500,
  batch: int = 64,
  learning_rate: float = 4e-3,
  size: int = 24,
  test_images: int = 2000,
  init: str = 'torch',
) -> ProbeResult:
  """Trains blocks and tests them: Adam, the rate a cosine, new images always.

  Args:
    cfg: Of the block: `streams`, `aggregation` ...
    seeds: One run for each, in one program.
    steps: Updates.
    batch: Images of each.
    learning_rate: The first.
    size: Of the images.
    test_images: How many the accuracy is of.
    init: 'torch': all weights are drawn as torch's layers draw them, uniform
      within 1 / sqrt(inputs), as for a block that is taken out of torchreid.
      'paper': as in the network, where kernels follow their outputs.

  Returns:
    The result.

  Raises:
    ValueError: If `init` is neither.

  Example:
    >>> result = run_probe(OSNetConfig(streams=(1,)), (0, 1), steps=2)
    >>> result.accuracy.shape
    (2, 4)
  """
  if init not in ('torch', 'paper'):
    raise ValueError(f"init is {init!r}; expected 'torch' or 'paper'.")
  rounds = -(-test_images // batch)
  keys = jnp.stack([jax.random.key(seed) for seed in seeds])
  return _run(cfg, keys, steps, batch, learning_rate, size, rounds, init)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 5, 6, 7))
def _run(cfg, keys, steps, batch, learning_rate, size, rounds, init):
  model = Probe(cfg)
  schedule = optax.cosine_decay_schedule(learning_rate, steps)
  tx = optax.adam(schedule)

  def loss_fn(params, statistics, images, signs):
    logits, new = model.apply(
      {'params': params, 'batch_stats': statistics},
      images,
      True,
      mutable=['batch_stats'],
    )
    loss = optax.sigmoid_binary_cross_entropy(logits, signs).mean()
    return loss, new['batch_stats']

  def step(state, key):
    params, statistics, opt_state = state
    images, signs = make_textures(key, batch, size)
    (loss, statistics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
      params, statistics, images, signs
    )
    updates, opt_state = tx.update(gradients, opt_state, params)
    params = optax.apply_updates(params, updates)
    return (params, statistics, opt_state), loss

  def test(variables, key):
    images, signs = make_textures(key, batch, size)
    logits = model.apply(variables, images)
    return ((logits > 0) == (signs > 0)).mean(0)

  def one(key):
    init_key, train_key, test_key = jax.random.split(key, 3)
    variables = model.init(init_key, jnp.zeros((1, size, size, 1)))
    params, statistics = variables['params'], variables['batch_stats']
    if init == 'torch':
      params = _as_torch(jax.random.fold_in(init_key, 1), params)
    (params, statistics, _), losses = jax.lax.scan(
      step,
      (params, statistics, tx.init(params)),
      jax.random.split(train_key, steps),
    )
    trained = {'params': params, 'batch_stats': statistics}
    right = jax.lax.map(
      lambda key: test(trained, key), jax.random.split(test_key, rounds)
    )
    return ProbeResult(right.mean(0), losses)

  # Kernels of their own for each member are slow convolutions on a CPU, which
  # `vmap` would ask for.
  return jax.lax.map(one, keys)


def _as_torch(key, params):
  """Draws kernels, and the biases beside them, as torch's layers do."""
  layers = jax.tree_util.tree_leaves_with_path(params)
  names = {jax.tree_util.keystr(path): leaf for path, leaf in layers}

  def draw(path, leaf):
    kernel = names.get(jax.tree_util.keystr((*path[:-1], _KERNEL)))
    if kernel is None:  # A norm.
      return leaf
    limit = 1 / np.sqrt(np.prod(kernel.shape[:-1]))
    number = list(names).index(jax.tree_util.keystr(path))
    return jax.random.uniform(
      jax.random.fold_in(key, number), leaf.shape, leaf.dtype, -limit, limit
    )

  return jax.tree_util.tree_map_with_path(draw, params)


_KERNEL = jax.tree_util.DictKey('kernel')
