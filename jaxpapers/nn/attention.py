"""Self-attention of a transformer, plain or fused."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.nn.dropout import dropout
from jaxpapers.nn.encoder_config import EncoderConfig


def choose_implementation(config: EncoderConfig, training: bool) -> str:
  """Which attention a config gets, where it is traced now.

  'plain', 'xla' and 'cudnn' are taken at their word. 'auto' is cuDNN's flash
  attention on a GPU of the Ampere generation or newer for float16 and bfloat16
  and heads that are a multiple of 8 and at most 128 wide, unless the
  probabilities have dropout: there, and on CPU and TPU, it is plain.

  Args:
    config: The encoder's.
    training: Whether dropout is on.

  Returns:
    'plain', 'xla' or 'cudnn'.

  Raises:
    ValueError: If a fused implementation is asked for and there is dropout.
  """
  drops = training and config.attention_dropout_rate > 0
  wanted = config.attention_impl
  if wanted in ('xla', 'cudnn') and drops:
    raise ValueError(
      f'attention_impl is {wanted!r} and attention_dropout_rate is'
      f' {config.attention_dropout_rate}: fused attention cannot drop'
      " probabilities. Set attention_dropout_rate=0, or attention_impl='plain'."
    )
  if wanted != 'auto':
    return wanted
  fits = jnp.dtype(config.dtype) in (jnp.float16, jnp.bfloat16) and (
    config.head_dim % 8 == 0 and config.head_dim <= 128
  )
  on_gpu = jax.default_backend() in ('gpu', 'cuda')
  flash = on_gpu and fits and not drops and _is_ampere_or_newer()
  return 'cudnn' if flash else 'plain'


def _is_ampere_or_newer() -> bool:
  """Whether cuDNN has flash attention for the GPU at hand."""
  capability = getattr(jax.local_devices()[0], 'compute_capability', '8.0')
  try:
    return float(capability) >= 8.0
  except ValueError:  # AMD's are names.
    return False


def plain_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | None = None,
  *,
  causal: bool = False,
  dropout_rate: float = 0.0,
  dropout_key: jax.Array | None = None,
  dropout_bits: int = 16,
) -> jax.Array:
  """softmax(q k^T / sqrt(D)) v, with a softmax in float32 or wider.

  A row of which no key may be seen gives the mean of the values: finite.

  Args:
    query: `[B, S, A, D]`.
    key: `[B, T, A, D]`.
    value: `[B, T, A, D]`.
    mask: Keys that may be seen, bool `[B, T]`; all by default.
    causal: Whether query i sees only keys up to i.
    dropout_rate: Of the probabilities, where there is a `dropout_key`.
    dropout_key: Typed key, or None for no dropout.
    dropout_bits: See `dropout`.

  Returns:
    `[B, S, A, D]`, of the query's type.
  """
  wide = jnp.promote_types(query.dtype, jnp.float32)
  query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
  scores = jnp.einsum(
    'bsad,btad->bast', query, key, preferred_element_type=wide
  )
  seen = None if mask is None else mask[:, None, None, :]
  if causal:
    before = jnp.tri(query.shape[1], key.shape[1], dtype=bool)
    seen = before if seen is None else seen & before
  if seen is not None:
    scores = jnp.where(seen, scores, 0.5 * jnp.finfo(wide).min)
  probabilities = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
  if dropout_key is not None:
    probabilities = dropout(
      dropout_key, probabilities, dropout_rate, dropout_bits
    )
  return jnp.einsum('bast,btad->bsad', probabilities, value)


def fused_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | None = None,
  *,
  causal: bool = False,
  right_padding: bool = False,
  implementation: str = 'xla',
) -> jax.Array:
  """The same through `jax.nn.dot_product_attention`, without dropout.

  Args:
    query: `[B, S, A, D]`.
    key: `[B, T, A, D]`.
    value: `[B, T, A, D]`.
    mask: Keys that may be seen, bool `[B, T]`; all by default.
    causal: Whether query i sees only keys up to i.
    right_padding: Whether the seen keys of a row come first: their number is
      then all that is read. A row of none counts as a row of one.
    implementation: 'xla' or 'cudnn'.

  Returns:
    `[B, S, A, D]`.
  """
  lengths = None
  if mask is not None and right_padding:
    lengths = jnp.maximum(mask.sum(-1, dtype=jnp.int32), 1)
    mask = None
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    mask=None if mask is None else mask[:, None, None, :],
    key_value_seq_lengths=lengths,
    is_causal=causal,
    implementation=implementation,
  )


class SelfAttention(nn.Module):
  """Multi-head self-attention with its output projection.

  Parameters: `query`, `key`, `value` (kernels `[H, A, D]`) and `output`
  (kernel `[A, D, H]`).

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
    """Lets every token look at the others.

    Args:
      x: `[B, S, H]`.
      mask: Tokens that may be looked at, bool `[B, S]`; all by default.
      deterministic: Whether dropout is off.

    Returns:
      `[B, S, H]`.
    """
    config = self.config
    options = {
      'dtype': config.dtype,
      'param_dtype': config.param_dtype,
      'kernel_init': config.kernel_init(),
    }
    heads = (config.num_heads, config.head_dim)
    query, key, value = (
      nn.DenseGeneral(heads, name=name, **options)(x)
      for name in ('query', 'key', 'value')
    )
    chosen = choose_implementation(config, not deterministic)
    if chosen == 'plain':
      drops = not deterministic and config.attention_dropout_rate > 0
      mixed = plain_attention(
        query,
        key,
        value,
        mask,
        causal=config.causal,
        dropout_rate=config.attention_dropout_rate,
        dropout_key=self.make_rng('dropout') if drops else None,
        dropout_bits=config.dropout_bits,
      )
    else:
      mixed = fused_attention(
        query,
        key,
        value,
        mask,
        causal=config.causal,
        right_padding=config.padding == 'right',
        implementation=chosen,
      )
    output = nn.DenseGeneral(
      config.hidden_size, axis=(-2, -1), name='output', **options
    )
    return output(mixed)
