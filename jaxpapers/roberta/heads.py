"""What sits on the encoder: masked LM, classification, pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.nn import dropout, gelu
from jaxpapers.nn.encoder_config import EncoderConfig
from jaxpapers.nn.transformer import layer_norm


def dense(config: EncoderConfig, features: int, name: str) -> nn.Dense:
  """A dense layer in the types and with the initializer of the encoder.

  Args:
    config: The encoder's.
    features: Outputs.
    name: Name of the module.

  Returns:
    The module.
  """
  return nn.Dense(
    features,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    kernel_init=config.kernel_init(),
    name=name,
  )


def drop(
  module: nn.Module, x: jax.Array, rate: float, deterministic: bool
) -> jax.Array:
  """Dropout with the module's rng.

  Args:
    module: Bound module with a field `config`.
    x: Array of any shape.
    rate: Probability of zero.
    deterministic: Whether dropout is off.

  Returns:
    Array like `x`.
  """
  if deterministic or not rate:
    return x
  return dropout(
    module.make_rng('dropout'), x, rate, module.config.dropout_bits
  )


class MaskedLMHead(nn.Module):
  """Dense, GELU, norm, and a projection to the vocabulary.

  Parameters: `dense`, `norm`, `bias` `[V]` and, when nothing is tied,
  `decoder` `[V, H]`.

  Attributes:
    config: The encoder's.
    tie: Whether the projection is the token table.
  """

  config: EncoderConfig
  tie: bool = True

  @nn.compact
  def __call__(
    self, hidden: jax.Array, embedding: jax.Array | None = None
  ) -> jax.Array:
    """Logits of every token of the vocabulary.

    Args:
      hidden: `[..., H]`.
      embedding: Token table `[V, H]`; not needed when nothing is tied.

    Returns:
      `[..., V]` in float32 or wider, -inf at rows beyond `vocab_size`.

    Raises:
      ValueError: If the table is missing.
    """
    config = self.config
    x = dense(config, config.hidden_size, 'dense')(hidden)
    x = layer_norm(config, 'norm')(gelu(x, config.gelu))
    rows = config.vocab_rows
    if not self.tie:
      shape = (rows, config.hidden_size)
      embedding = self.param(
        'decoder', config.kernel_init(), shape, config.param_dtype
      )
    elif embedding is None:
      raise ValueError(
        'embedding is None; a tied head needs the token table [V, H]. Give it,'
        ' or set tie=False.'
      )
    bias = self.param(
      'bias', nn.initializers.zeros, (rows,), config.param_dtype
    )
    wide = jnp.promote_types(config.dtype, jnp.float32)
    logits = jnp.einsum(
      '...h,vh->...v',
      x,
      embedding.astype(config.dtype),
      preferred_element_type=wide,
    )
    logits = logits + bias.astype(wide)
    if rows == config.vocab_size:
      return logits
    return jnp.where(jnp.arange(rows) < config.vocab_size, logits, -jnp.inf)


class ClassificationHead(nn.Module):
  """Dropout, dense, tanh, dropout, dense on the first token.

  Attributes:
    config: The encoder's.
    num_outputs: Outputs.
    dropout_rate: Of both dropouts: 0 in fairseq, the encoder's .1 in Hugging
      Face's code.
  """

  config: EncoderConfig
  num_outputs: int
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self, hidden: jax.Array, *, deterministic: bool = True
  ) -> jax.Array:
    """Maps `[B, S, H]` to `[B, num_outputs]`, in float32 or wider."""
    x = drop(self, hidden[:, 0], self.dropout_rate, deterministic)
    x = jnp.tanh(dense(self.config, self.config.hidden_size, 'dense')(x))
    x = drop(self, x, self.dropout_rate, deterministic)
    x = dense(self.config, self.num_outputs, 'output')(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Pooler(nn.Module):
  """Dense and tanh on the first token.

  Attributes:
    config: The encoder's.
  """

  config: EncoderConfig

  @nn.compact
  def __call__(self, hidden: jax.Array) -> jax.Array:
    """Maps `[B, S, H]` to `[B, H]`."""
    x = dense(self.config, self.config.hidden_size, 'dense')(hidden[:, 0])
    return jnp.tanh(x)
