"""One transformer encoder for RoBERTa, BERT, adapters and memory layers.

The feed-forward layer and the adapters come in as factories, so that papers
plug their layers in without this file knowing them. `docs/transformer.md` has
an example of each.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.nn.activations import gelu
from jaxpapers.nn.attention import SelfAttention
from jaxpapers.nn.dropout import dropout
from jaxpapers.nn.embeddings import Embedding, zero_rows
from jaxpapers.nn.encoder_config import EncoderConfig
from jaxpapers.nn.factories import check_homogeneous
from jaxpapers.nn.input_checks import check_adapter_inputs, check_inputs
from jaxpapers.nn.layer_stack import stack_layers, unstack_layers

__all__ = [
  'EncoderConfig',
  'EncoderLayer',
  'FeedForward',
  'SelfAttention',
  'TransformerEncoder',
  'make_position_ids',
  'stack_layers',
  'unstack_layers',
]

# (config, layer, name) -> a module, or None for what is there by default.
Factory = Callable[[EncoderConfig, int | None, str], nn.Module | None]
# (config, layer, place, name) -> a module or None.
AdapterFactory = Callable[
  [EncoderConfig, int | None, str, str], nn.Module | None
]
PLACES = ('attention', 'ffn')


def make_position_ids(ids: jax.Array, pad_id: int) -> jax.Array:
  """Positions that count only what is not padding, from `pad_id + 1` on.

  Padding anywhere gets position `pad_id` and shifts nothing.

  Args:
    ids: Token ids, integers `[B, S]`.
    pad_id: Id of padding.

  Returns:
    int32 `[B, S]`.

  Example:
    >>> make_position_ids(jnp.array([[1, 0, 7, 1, 2]]), 1).tolist()
    [[1, 2, 3, 1, 4]]
  """
  seen = (ids != pad_id).astype(jnp.int32)
  return jnp.cumsum(seen, axis=1) * seen + pad_id


def layer_norm(config: EncoderConfig, name: str) -> nn.Module:
  """Layer normalisation with statistics in float32 or wider.

  Args:
    config: The encoder's.
    name: Name of the module.

  Returns:
    A module with parameters `scale` and `bias`.
  """
  return nn.LayerNorm(
    epsilon=config.layer_norm_eps,
    # E[x^2] - E[x]^2 loses digits where the mean is large.
    use_fast_variance=False,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    name=name,
  )


def residual_sum(x: jax.Array, y: jax.Array) -> jax.Array:
  """Adds in float32 or wider: what an adapter gives may be small."""
  wide = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
  return x.astype(wide) + y.astype(wide)


class FeedForward(nn.Module):
  """Dense, GELU, dense: parameters `intermediate` and `output`.

  Attributes:
    config: The encoder's.
  """

  config: EncoderConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array | None = None,
    *,
    deterministic: bool = True,
  ) -> jax.Array:
    """Maps each token by itself, `[B, S, H]` to `[B, S, H]`."""
    del mask
    config = self.config
    options = {
      'dtype': config.dtype,
      'param_dtype': config.param_dtype,
      'kernel_init': config.kernel_init(),
    }
    x = nn.Dense(config.mlp_dim, name='intermediate', **options)(x)
    x = gelu(x, config.gelu)
    if not deterministic and config.activation_dropout_rate:
      x = dropout(
        self.make_rng('dropout'),
        x,
        config.activation_dropout_rate,
        config.dropout_bits,
      )
    return nn.Dense(config.hidden_size, name='output', **options)(x)


class EncoderLayer(nn.Module):
  """Self-attention and a feed-forward layer, each with residual and norm.

  Post-LN: `x = norm(x + adapter(dropout(block(x))))`; pre-LN:
  `x = x + adapter(dropout(block(norm(x))))`.

  Attributes:
    config: The encoder's.
    layer: Number of the layer, from 0; None where all are one scanned layer.
    ffn: Factory of the feed-forward layer, called as
      `ffn(config, layer, name)`. None, or a factory that returns None, is
      `FeedForward`. The module is called as
      `module(x, mask=mask, deterministic=deterministic, **ffn_inputs)`.
    adapter: Factory called as `adapter(config, layer, place, name)` for the
      places 'attention' and 'ffn'. The module is called as `module(x,
      **inputs)` on what a block adds, after dropout.
    after: Factory like `ffn` of a module whose result is added at the end of
      the layer, with no norm behind it.
  """

  config: EncoderConfig
  layer: int | None = 0
  ffn: Factory | None = None
  adapter: AdapterFactory | None = None
  after: Factory | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array | None = None,
    *,
    deterministic: bool = True,
    adapter_inputs: Mapping[str, Any] | None = None,
    ffn_inputs: Mapping[str, Any] | None = None,
  ) -> jax.Array:
    """Applies the layer.

    Args:
      x: `[B, S, H]`.
      mask: Tokens that are not padding, bool `[B, S]`; all by default.
      deterministic: Whether dropout is off.
      adapter_inputs: Keyword arguments of the adapters; each leaf has a leading
        axis of the two places.
      ffn_inputs: Keyword arguments of the modules of `ffn` and `after`.

    Returns:
      `[B, S, H]`.
    """
    config = self.config
    extra = {
      'mask': jnp.ones(x.shape[:2], bool) if mask is None else mask,
      'deterministic': deterministic,
      **(ffn_inputs or {}),
    }

    def attend(x):
      module = SelfAttention(config, name='attention')
      return module(x, mask, deterministic=deterministic)

    def transform(x):
      module = self._make(self.ffn, 'ffn')
      if module is None:
        module = FeedForward(config, name='ffn')
        return module(x, deterministic=deterministic)
      return module(x, **extra)

    for index, block in enumerate((attend, transform)):
      place = PLACES[index]
      norm = layer_norm(config, f'{place}_norm')
      y = block(norm(x) if config.norm == 'pre' else x)
      if not deterministic and config.dropout_rate:
        y = dropout(
          self.make_rng('dropout'), y, config.dropout_rate, config.dropout_bits
        )
      if self.adapter is not None:
        name = f'{place}_adapter'
        adapter = self.adapter(config, self.layer, place, name)
        if adapter is not None:
          inputs = jax.tree.map(lambda v, i=index: v[i], adapter_inputs or {})
          y = adapter(y, **inputs)
      total = residual_sum(x, y)
      x = norm(total) if config.norm == 'post' else total.astype(config.dtype)
    module = self._make(self.after, 'after')
    if module is not None:
      x = residual_sum(x, module(x, **extra)).astype(config.dtype)
    return x

  def _make(self, factory, name):
    return None if factory is None else factory(self.config, self.layer, name)


class TransformerEncoder(nn.Module):
  """Embeddings and a stack of layers.

  Attributes:
    config: Sizes and choices.
    ffn: See `EncoderLayer`. With `scan_layers` all factories are called with
      layer=None: they have to make equal modules in every layer.
    adapter: See `EncoderLayer`.
    after: See `EncoderLayer`.

  Example:
    >>> config = EncoderConfig(100, 32, 2, 4, 64, max_len=24)
    >>> encoder = TransformerEncoder(config)
    >>> ids = jnp.array([[0, 7, 8, 2, 1]])
    >>> variables = encoder.init(jax.random.key(0), ids)
    >>> encoder.apply(variables, ids).shape
    (1, 5, 32)
  """

  config: EncoderConfig
  ffn: Factory | None = None
  adapter: AdapterFactory | None = None
  after: Factory | None = None

  def setup(self):
    config = self.config
    init = config.kernel_init()
    token_init = position_init = init
    spare = slice(config.vocab_size, None)
    if config.initializer == 'normal':
      token_init = zero_rows(init, config.pad_id, spare)
      if config.position_offset == 'pad':
        position_init = zero_rows(init, config.pad_id)
    elif config.vocab_rows > config.vocab_size:
      token_init = zero_rows(init, spare)
    options = {
      'features': config.hidden_size,
      'dtype': config.dtype,
      'param_dtype': config.param_dtype,
    }
    self.token_embedding = Embedding(
      config.vocab_rows, table_init=token_init, **options
    )
    self.position_embedding = Embedding(
      config.position_rows, table_init=position_init, **options
    )
    if config.type_vocab_size:
      self.token_type_embedding = Embedding(
        config.type_vocab_size, table_init=init, **options
      )

  def token_table(self) -> jax.Array:
    """The token table `[vocab_rows, H]`, for heads that are tied to it."""
    return self.token_embedding.table()

  @nn.compact
  def __call__(
    self,
    ids: jax.Array,
    *,
    token_type_ids: jax.Array | None = None,
    position_ids: jax.Array | None = None,
    attention_mask: jax.Array | None = None,
    deterministic: bool = True,
    capture_hiddens: bool = False,
    adapter_inputs: Mapping[str, Any] | None = None,
    ffn_inputs: Mapping[str, Any] | None = None,
  ) -> Any:
    """Encodes sequences.

    Ids, positions and segments that are out of range raise an error where the
    arrays have values, and give NaN under `jit`. What comes out at padding is
    undefined, but finite.

    Args:
      ids: Token ids, integers `[B, S]`.
      token_type_ids: Segments, integers `[B, S]`; all 0 by default.
      position_ids: Rows of the position table, integers `[B, S]`; by default as
        `config.position_offset` says.
      attention_mask: Tokens that may be looked at, bool `[B, S]`; by default
        those that are not `config.pad_id`.
      deterministic: Whether dropout is off; where it is on, an rng named
        'dropout' is needed.
      capture_hiddens: Whether to return what is between the layers, too.
      adapter_inputs: Keyword arguments of the adapters. Each leaf is
        `[L, 2, ...]`: its slice for the layer and the place is passed on.
      ffn_inputs: Keyword arguments of the modules that `ffn` and `after` make,
        the same for every layer.

    Returns:
      `[B, S, H]` in the type of the computation; with `capture_hiddens` a pair
      of that and a list of L + 1 such arrays, the embeddings first.

    Raises:
      ValueError: If an argument has an impossible shape or value.
      TypeError: If an argument has an impossible type.
    """
    config = self.config
    check_inputs(config, ids, token_type_ids, position_ids, attention_mask)
    check_adapter_inputs(config, PLACES, self.adapter, adapter_inputs)
    if attention_mask is None:
      attention_mask = ids != config.pad_id
    x = self._embed(ids, token_type_ids, position_ids, deterministic)
    if config.padding == 'right' and config.attention_impl != 'plain':
      fine = (attention_mask[:, 1:] <= attention_mask[:, :-1]).all(axis=1)
      x = jnp.where(fine[:, None, None], x, jnp.nan)
    hiddens = [x]
    arguments = (attention_mask, adapter_inputs or {}, ffn_inputs or {})
    if config.scan_layers:
      x, stacked = self._scan(x, *arguments, deterministic, capture_hiddens)
      if capture_hiddens:
        hiddens.extend(stacked[i] for i in range(config.num_layers))
    else:
      mask, per_layer, shared = arguments
      apply = _rematerialized(config, deterministic)
      for i in range(config.num_layers):
        inputs = jax.tree.map(lambda v, i=i: v[i], per_layer)
        x = apply(self._layer(i, f'layers_{i}'), x, mask, inputs, shared)
        hiddens.append(x)
    if config.norm == 'pre':
      x = layer_norm(config, 'final_norm')(x)
    return (x, hiddens) if capture_hiddens else x

  def _embed(self, ids, token_type_ids, position_ids, deterministic):
    """Sum of the tables' rows, normalised (post-LN), with dropout."""
    config = self.config
    x = self.token_embedding(ids)
    if position_ids is None and config.position_offset != 'pad':
      # The same rows for every example: read once.
      position_ids = jnp.arange(ids.shape[1])[None] + config.position_offset
    elif position_ids is None:
      position_ids = make_position_ids(ids, config.pad_id)
    x = x + self.position_embedding(position_ids)
    if config.type_vocab_size:
      if token_type_ids is None:
        token_type_ids = jnp.zeros((1, 1), jnp.int32)
      x = x + self.token_type_embedding(token_type_ids)
    if config.norm == 'post':
      x = layer_norm(config, 'embedding_norm')(x)
    if not deterministic and config.dropout_rate:
      x = dropout(
        self.make_rng('dropout'), x, config.dropout_rate, config.dropout_bits
      )
    return x

  def _layer(self, index, name):
    return EncoderLayer(
      self.config, index, self.ffn, self.adapter, self.after, name=name
    )

  def _scan(self, x, mask, per_layer, shared, deterministic, capture):
    config = self.config
    check_homogeneous(config, self.ffn, self.adapter, self.after)
    apply = _rematerialized(config, deterministic)

    def body(layer, x, inputs, mask, shared):
      x = apply(layer, x, mask, inputs, shared)
      return x, x if capture else None

    scanned = nn.scan(
      body,
      variable_axes={True: 0},
      split_rngs={True: True},
      in_axes=(0, nn.broadcast, nn.broadcast),
      length=config.num_layers,
    )
    return scanned(self._layer(None, 'layers'), x, per_layer, mask, shared)


def _rematerialized(config: EncoderConfig, deterministic: bool):
  """Function that applies a layer, recomputing it for gradients if asked."""

  def apply(layer, x, mask, inputs, shared):
    return layer(
      x,
      mask,
      deterministic=deterministic,
      adapter_inputs=inputs,
      ffn_inputs=shared,
    )

  if not config.remat:
    return apply
  policy = None
  if isinstance(config.remat, str):
    policy = getattr(jax.checkpoint_policies, config.remat)
  # Inside a scan nothing could be merged with the recomputation anyway.
  return nn.remat(apply, prevent_cse=not config.scan_layers, policy=policy)
