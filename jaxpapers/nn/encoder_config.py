"""What shapes a transformer encoder: RoBERTa's, BERT's, or one's own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

_CHOICES = {
  'gelu': ('erf', 'tanh'),
  'norm': ('post', 'pre'),
  'attention_impl': ('plain', 'auto', 'xla', 'cudnn'),
  'padding': ('any', 'right'),
  'initializer': ('normal', 'truncated_normal'),
}
_SIZES = ('vocab_size', 'hidden_size', 'num_layers', 'num_heads', 'mlp_dim')


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Sizes and choices of `transformer.TransformerEncoder`.

  The defaults are RoBERTa's (Liu et al. 2019, table 9, and fairseq's code).

  Attributes:
    vocab_size: Number of token ids.
    hidden_size: Width of the residual stream.
    num_layers: Layers.
    num_heads: Heads; it divides `hidden_size`.
    mlp_dim: Width inside the feed-forward layer.
    max_len: Longest sequence, special tokens included.
    pad_id: Id of padding.
    position_offset: 'pad' counts the tokens that are not padding and starts at
      `pad_id + 1`, as fairseq does: the table has `max_len + pad_id + 1` rows.
      A number k gives the j-th token of a row position j + k whatever is
      padding, as BERT does with k = 0: the table has `max_len + k` rows.
    type_vocab_size: Segments that are told apart; 0 for no such table.
    layer_norm_eps: Added to the variance. 1e-5 in fairseq, 1e-12 in BERT.
    gelu: 'erf', the exact one, or 'tanh', the approximation of Google's BERT.
    norm: 'post' normalises after each residual sum; 'pre' before each block,
      once more at the end, and not the embeddings.
    dropout_rate: Of the embeddings and of each block's output.
    attention_dropout_rate: Of the attention's probabilities.
    activation_dropout_rate: Inside the feed-forward layer, after the GELU.
    attention_impl: 'plain' (our own products and softmax, with dropout of the
      probabilities), 'xla' or 'cudnn' (`jax.nn.dot_product_attention`), or
      'auto': cuDNN where it can be used, else plain. See
      `attention.choose_implementation`.
    padding: 'right' promises that padding only follows the tokens of a row:
      fused attention then gets lengths and reads no mask. Rows that break the
      promise come out as NaN. 'any' promises nothing.
    causal: Whether tokens see only themselves and what is before them.
    initializer: 'normal' as in fairseq, where the pad rows of the tables are
      zero, or 'truncated_normal' (at two standard deviations, without
      rescaling) as in Google's BERT, where they are not.
    initializer_range: Standard deviation (before truncation).
    vocab_multiple: The token table and the logits get rows up to a multiple of
      this, for tensor parallelism and matrix units. The extra logits are -inf.
    dtype: Type of the computation. Norms, softmax and logits are at least
      float32.
    param_dtype: Type of the parameters.
    remat: Whether a layer's activations are recomputed for its gradient, or the
      name of a `jax.checkpoint_policies` member that says which are kept.
    scan_layers: Whether the layers are one scanned layer: it compiles in the
      time of one. Parameters then have a leading axis of layers.
    dropout_bits: Random bits per element of a dropout mask, 8, 16 or 32. The
      rate is rounded to a multiple of 2^-bits and the scale follows it, so
      that the mean stays exact. 16: within 8e-6 of the rate.

  Raises:
    ValueError: If a size or a choice is impossible.

  Example:
    >>> EncoderConfig(100, 32, 2, 4, 64, max_len=24).position_rows
    26
  """

  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  max_len: int = 512
  pad_id: int = 1
  position_offset: str | int = 'pad'
  type_vocab_size: int = 0
  layer_norm_eps: float = 1e-5
  gelu: str = 'erf'
  norm: str = 'post'
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.1
  activation_dropout_rate: float = 0.0
  attention_impl: str = 'plain'
  padding: str = 'any'
  causal: bool = False
  initializer: str = 'normal'
  initializer_range: float = 0.02
  vocab_multiple: int = 1
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  remat: bool | str = False
  scan_layers: bool = False
  dropout_bits: int = 16

  def __post_init__(self):
    for name in (*_SIZES, 'max_len', 'vocab_multiple'):
      _expect(self, name, getattr(self, name) >= 1, '1 or more')
    for name, choices in _CHOICES.items():
      wanted = 'one of ' + ', '.join(map(repr, choices))
      _expect(self, name, getattr(self, name) in choices, wanted)
    for name in ('dropout', 'attention_dropout', 'activation_dropout'):
      rate = getattr(self, f'{name}_rate')
      _expect(self, f'{name}_rate', 0 <= rate < 1, 'at least 0 and below 1')
    _expect(
      self,
      'num_heads',
      self.hidden_size % self.num_heads == 0,
      f'a divisor of hidden_size {self.hidden_size}',
    )
    _expect(self, 'type_vocab_size', self.type_vocab_size >= 0, '0 or more')
    _expect(
      self,
      'pad_id',
      0 <= self.pad_id < self.vocab_size,
      f'an id below vocab_size {self.vocab_size}',
    )
    offset = self.position_offset
    number = isinstance(offset, int) and not isinstance(offset, bool)
    _expect(
      self,
      'position_offset',
      offset == 'pad' or (number and offset >= 0),
      "'pad' or a number of 0 or more",
    )
    _expect(self, 'layer_norm_eps', self.layer_norm_eps > 0, 'more than 0')
    _expect(self, 'dropout_bits', self.dropout_bits in (8, 16, 32), '8, 16, 32')
    if isinstance(self.remat, str):
      _expect(
        self,
        'remat',
        hasattr(jax.checkpoint_policies, self.remat),
        'a bool, or the name of a member of jax.checkpoint_policies',
      )

  @property
  def head_dim(self) -> int:
    """Width of a head."""
    return self.hidden_size // self.num_heads

  @property
  def position_rows(self) -> int:
    """Rows of the position table."""
    return self.max_len + self.first_position

  @property
  def first_position(self) -> int:
    """Row of the position table that the first token of a text gets."""
    if self.position_offset == 'pad':
      return self.pad_id + 1
    return self.position_offset

  @property
  def vocab_rows(self) -> int:
    """Rows of the token table, a multiple of `vocab_multiple`."""
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

  def replace(self, **changes) -> 'EncoderConfig':
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)

  def kernel_init(self):
    """Initializer of kernels and tables."""
    make = getattr(jax.nn.initializers, self.initializer)
    return make(self.initializer_range)


def _expect(config: EncoderConfig, name: str, fine: bool, wanted: str):
  if not fine:
    raise ValueError(f'{name} is {getattr(config, name)!r}; expected {wanted}.')
