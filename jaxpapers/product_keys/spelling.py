"""Capacity at fixed compute: from the letters of a word to its sounds.

One block of a post-LN transformer's second half, a dense feed-forward layer or
a memory, between an embedding of letters and a linear layer.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from jaxpapers.product_keys.memory import ProductKeyMemory
from jaxpapers.product_keys.optimizers import memory_optimizer
from jaxpapers.product_keys.train import MemoryJob

__all__ = ['Speller', 'spelling_config', 'spelling_job']

# Name -> n_keys and norm of queries; 0 keys: the dense layer.
VARIANTS = {
  'dense': (0, None),
  'memory_32': (32, 'batch'),
  'memory_128': (128, 'batch'),
  'memory_128_no_norm': (128, None),
  'memory_256': (256, 'batch'),
}


def spelling_config() -> ml_collections.ConfigDict:
  """The experiment: five blocks, three seeds.

  Returns:
    The config.
  """
  return ml_collections.ConfigDict(
    {
      'dictionary': '',
      'variants': tuple(VARIANTS),
      'seeds': (0, 1, 2),
      'epochs': 5,
      'batch_size': 1024,
      'width': 128,
      'k_dim': 64,
      'heads': 2,
      'knn': 8,
      'learning_rate': 1e-3,
      'value_learning_rate': 4e-3,
      'value_optimizer': 'dense',
      # Words that training accuracy is measured on.
      'train_words': 12288,
    }
  )


class Speller(nn.Module):
  """Letters in, logits of the sound at each place out.

  Attributes:
    num_phones: Classes, the filling included.
    places: Sounds of a word at most.
    block: A memory layer; None for the dense layer of four times the width.
    width: Of the block.
    letter_kinds: Letters and the filling.
  """

  num_phones: int
  places: int
  block: Any = None
  width: int = 128
  letter_kinds: int = 28

  @nn.compact
  def __call__(self, letters: jax.Array, *, train: bool) -> jax.Array:
    """Maps `[B, L]` letters to `[B, places, num_phones]` logits."""
    length = letters.shape[1]
    table = self.param(
      'embedding',
      nn.initializers.normal(self.width**-0.5),
      (self.letter_kinds, length, self.width),
    )
    x = table[letters, jnp.arange(length)].sum(axis=1)
    x = nn.LayerNorm(name='norm_0')(x)
    if self.block is None:
      y = nn.gelu(
        nn.Dense(4 * self.width, name='dense_0')(x), approximate=False
      )
      y = nn.Dense(self.width, name='dense_1')(y)
    else:
      y = self.block(x, train=train)
    x = nn.LayerNorm(name='norm_1')(x + y)
    logits = nn.Dense(self.places * self.num_phones, name='phones')(x)
    return logits.reshape(-1, self.places, self.num_phones)


def spelling_job(
  config: ml_collections.ConfigDict,
  variant: str,
  shapes: tuple[int, int, int],
) -> tuple[Speller, MemoryJob]:
  """Model and job of a variant.

  Args:
    config: See `spelling_config`.
    variant: One of `VARIANTS`.
    shapes: Letters and sounds of a word, and classes of sounds.

  Returns:
    The model, and what to train.

  Raises:
    ValueError: If there is no such variant.
  """
  if variant not in VARIANTS:
    raise ValueError(
      f'variants has {variant!r}; expected {", ".join(VARIANTS)}.'
    )
  letters, places, kinds = shapes
  n_keys, norm = VARIANTS[variant]
  block = None
  if n_keys:
    block = ProductKeyMemory(
      n_keys=n_keys,
      k_dim=config.k_dim,
      heads=config.heads,
      knn=config.knn,
      query_norm=norm,
    )
  model = Speller(kinds, places, block, config.width)

  def init(key):
    word = jnp.zeros((2, letters), jnp.int32)
    variables = dict(model.init(key, word, train=False))
    names = [name for name in ('params', 'memory') if name in variables]
    return {name: variables.pop(name) for name in names}, variables

  def loss_fn(params, model_state, batch, rng):
    del rng
    logits, state = model.apply(
      {**params, **model_state},
      batch['letters'],
      train=True,
      mutable=list(model_state),
    )
    return spelling_loss(logits, batch['phones']), (dict(state), {})

  tx = memory_optimizer(
    optax.adam(config.learning_rate),
    config.value_learning_rate,
    config.value_optimizer,
    clip_norm=None,
  )
  size = config.batch_size
  batch = {
    'letters': jax.ShapeDtypeStruct((size, letters), jnp.int32),
    'phones': jax.ShapeDtypeStruct((size, places), jnp.int32),
  }
  sparse = bool(n_keys) and config.value_optimizer != 'dense'
  return model, MemoryJob(init, loss_fn, tx, batch, sparse=sparse)


def spelling_loss(logits: jax.Array, phones: jax.Array) -> jax.Array:
  """Mean cross-entropy over all places, filling included."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, phones).mean()


def spelling_metrics(model: Speller) -> Callable:
  """Loss and share of words that are right in every place: a `metric_fn`."""

  def metric_fn(params, model_state, batch):
    logits = model.apply(
      {**params, **model_state}, batch['letters'], train=False
    )
    right = (logits.argmax(axis=-1) == batch['phones']).all(axis=-1)
    loss = spelling_loss(logits, batch['phones'])
    return {'loss': loss, 'accuracy': right.mean()}

  return metric_fn


def spelling_reads(model: Speller) -> Callable:
  """What a model reads: a `reads_of` for `usage.measure_usage`."""

  def reads_of(variables, batch):
    _, changed = model.apply(
      variables, batch['letters'], train=False, mutable='reads'
    )
    return changed.get('reads', {})

  return reads_of
