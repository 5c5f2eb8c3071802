"""Transformers with memory layers, and a causal language model of them."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.nn.transformer import EncoderConfig, TransformerEncoder

__all__ = [
  'TransformerLM',
  'language_model_loss',
  'memory_factories',
  'parse_positions',
]


def parse_positions(
  positions: str, num_layers: int
) -> tuple[frozenset[int], frozenset[int]]:
  """Reads where memories are: "5" inside layer 5, "11+" after layer 11.

  Inside, a memory takes the place of the feed-forward layer; after, it is added
  at the end of the layer. Layers count from 0, as in XLM's flags (the paper
  counts from 1).

  Args:
    positions: Numbers with commas between them; empty for none.
    num_layers: Layers there are.

  Returns:
    Layers with a memory inside, and layers with one after.

  Raises:
    ValueError: If a position is no number, twice there, or no layer.

  Example:
    >>> inside, after = parse_positions('5,11+', 12)
    >>> sorted(inside), sorted(after)
    ([5], [11])
  """
  found: tuple[set[int], set[int]] = (set(), set())
  for part in filter(None, (p.strip() for p in positions.split(','))):
    number = part.removesuffix('+')
    if not number.isdecimal() or int(number) >= num_layers:
      raise ValueError(
        f'memory_positions has {part!r}; expected numbers from 0 to'
        f' {num_layers - 1}, each with or without a +, as "5,11+".'
      )
    where = found[part.endswith('+')]
    if int(number) in where:
      raise ValueError(f'memory_positions has {part!r} twice.')
    where.add(int(number))
  return frozenset(found[0]), frozenset(found[1])


def memory_factories(memory: nn.Module, positions: str, num_layers: int):
  """Factories that put a memory into a `TransformerEncoder`.

  Args:
    memory: Each layer gets a module of its own with the fields of this one.
    positions: See `parse_positions`.
    num_layers: Layers of the encoder.

  Returns:
    The factories `ffn` and `after`.

  Example:
    >>> from jaxpapers.product_keys import ProductKeyMemory
    >>> memory = ProductKeyMemory(n_keys=8, k_dim=8, heads=2, knn=4)
    >>> ffn, after = memory_factories(memory, '1', 2)
    >>> config = EncoderConfig(100, 32, 2, 4, 64, max_len=24)
    >>> encoder = TransformerEncoder(config, ffn=ffn, after=after)
    >>> ids = jnp.array([[0, 7, 8, 2, 1]])
    >>> variables = encoder.init(jax.random.key(0), ids)
    >>> list(variables['memory'])
    ['layers_1']
  """
  inside, after = parse_positions(positions, num_layers)
  fields = {
    field.name: getattr(memory, field.name)
    for field in dataclasses.fields(memory)
    if field.init and field.name not in ('parent', 'name')
  }
  kind = type(memory)

  def factory(layers):
    def make(config, layer, name):
      del config
      if layer is None:
        if layers in (frozenset(), frozenset(range(num_layers))):
          return kind(**fields, name=name) if layers else None
        raise ValueError(
          f'memory_positions is {positions!r}; with scan_layers all layers are'
          ' one module: put a memory into every layer, or set'
          ' scan_layers=False.'
        )
      return kind(**fields, name=name) if layer in layers else None

    return make

  return factory(inside), factory(after)


class TransformerLM(nn.Module):
  """Causal language model with the transformer of XLM.

  Learned positions, GELU, and the token table as the softmax's, with a bias.

  Attributes:
    vocab_size: Number of tokens.
    num_layers: Layers.
    d_model: Width.
    num_heads: Heads of attention.
    memory_positions: See `parse_positions`.
    memory: A memory layer whose fields each position copies; None for none.
    share_values: Whether all positions have one table: Memory+.
    mlp_dim: Width inside feed-forward layers; 4 d_model by default.
    max_len: Longest sequence.
    norm: 'post' as in XLM, or 'pre'.
    dropout_rate: Of embeddings and what each block adds.
    attention_dropout_rate: Of attention.
    layer_norm_eps: Added to variances.
    pad_id: Id of padding, whose embedding begins with zero.
    dtype: Type of the computation.
    param_dtype: Type of parameters.
    remat: See `EncoderConfig`.

  Example:
    >>> from jaxpapers.product_keys import ProductKeyMemory
    >>> memory = ProductKeyMemory(n_keys=8, k_dim=8, heads=2, knn=4)
    >>> model = TransformerLM(50, 2, 16, 2, memory_positions='1', memory=memory)
    >>> tokens = jnp.array([[1, 7, 8, 3]])
    >>> variables = model.init(jax.random.key(0), tokens, train=False)
    >>> model.apply(variables, tokens, train=False).shape
    (1, 4, 50)
  """

  vocab_size: int
  num_layers: int
  d_model: int
  num_heads: int
  memory_positions: str = ''
  memory: Any = None
  share_values: bool = False
  mlp_dim: int | None = None
  max_len: int = 512
  norm: str = 'post'
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  layer_norm_eps: float = 1e-12
  pad_id: int = 2
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  remat: bool | str = False

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    *,
    mask: jax.Array | None = None,
    train: bool,
    return_hidden: bool = False,
  ) -> Any:
    """Logits of the next token at each position.

    Args:
      tokens: Ids, integers `[B, S]`.
      mask: Tokens that are not padding, bool `[B, S]`; all by default.
      train: Whether dropout is on, and batch normalisation of this batch.
      return_hidden: Whether to return what the logits are made of, too.

    Returns:
      float32 `[B, S, vocab_size]`; with `return_hidden` a pair of that and
      `[B, S, d_model]`.

    Raises:
      ValueError: If positions or sizes do not fit.
    """
    config = EncoderConfig(
      vocab_size=self.vocab_size,
      hidden_size=self.d_model,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim or 4 * self.d_model,
      max_len=self.max_len,
      pad_id=self.pad_id,
      position_offset=0,
      layer_norm_eps=self.layer_norm_eps,
      norm=self.norm,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      causal=True,
      initializer_range=self.d_model**-0.5,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      remat=self.remat,
    )
    ffn = after = None
    inputs = {}
    if self.memory is None and self.memory_positions:
      raise ValueError(
        f'memory is None and memory_positions {self.memory_positions!r};'
        ' expected a memory layer, or no positions.'
      )
    if self.memory is not None:
      ffn, after = memory_factories(
        self.memory, self.memory_positions, self.num_layers
      )
      if self.share_values:
        inputs['values'] = self._table()
    encoder = TransformerEncoder(config, ffn=ffn, after=after, name='encoder')
    if mask is None:
      mask = jnp.ones(tokens.shape, bool)
    hidden = encoder(
      tokens,
      attention_mask=mask,
      deterministic=not train,
      ffn_inputs=inputs,
    )
    bias = self.param(
      'bias', nn.initializers.zeros, (self.vocab_size,), self.param_dtype
    )
    table = encoder.token_table()
    logits = jnp.einsum(
      'bsd,vd->bsv',
      hidden.astype(self.dtype),
      table.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    logits = logits + bias.astype(jnp.float32)
    return (logits, hidden) if return_hidden else logits

  def _table(self):
    shape = (self.memory.table_rows, self.memory.v_dim or self.d_model)

    def init():
      draw = jax.random.normal(
        self.make_rng('params'), shape, self.memory.param_dtype
      )
      return draw * jnp.asarray(shape[1] ** -0.5, draw.dtype)

    return self.variable('memory', 'values', init).value


def language_model_loss(model: TransformerLM):
  """Mean cross-entropy of the next token, in nats.

  Args:
    model: The model.

  Returns:
    A loss for `training.make_train_step` and `make_memory_train_step`.
    Parameters are the collections `{'params': .., 'memory': ..}`, batches
    `{'inputs': [B, S], 'targets': [B, S]}` and, where there is padding, a bool
    'mask' `[B, S]`.
  """

  def loss_fn(params, model_state, batch, rng):
    logits, state = model.apply(
      {**params, **model_state},
      batch['inputs'],
      mask=batch.get('mask'),
      train=True,
      rngs={'dropout': rng},
      mutable=list(model_state),
    )
    loss, metrics = next_token_metrics(logits, batch)
    return loss, (dict(state), metrics)

  return loss_fn


def next_token_metrics(logits: jax.Array, batch: Any) -> tuple[jax.Array, dict]:
  """Mean cross-entropy over valid targets, and how many there are."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  nll = -jnp.take_along_axis(log_p, batch['targets'][..., None], -1)[..., 0]
  mask = batch.get('mask')
  mask = jnp.ones(nll.shape, bool) if mask is None else mask
  count = mask.sum().astype(jnp.float32)
  loss = jnp.where(mask, nll, 0).sum() / jnp.maximum(count, 1)
  return loss, {'count': count}
