"""RoBERTa and BERT with heads.

Every model is called as `model.apply({'params': params}, ids, ...)`. Keyword
arguments that a model does not name are the encoder's: `token_type_ids`,
`position_ids`, `attention_mask`, `adapter_inputs`, `ffn_inputs`. Where
`deterministic=False`, `rngs={'dropout': key}` is needed.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.nn import input_checks, transformer
from jaxpapers.nn.encoder_config import EncoderConfig
from jaxpapers.roberta import heads

HEADS = ('classifier', 'pooler')


class _Model(nn.Module):
  """An encoder, and what its factories make.

  Attributes:
    config: The encoder's.
    ffn: Factory of feed-forward layers, see `transformer.EncoderLayer`.
    adapter: Factory of adapters.
    after: Factory of what is added after a layer.
  """

  config: EncoderConfig
  ffn: Callable[..., Any] | None = None
  adapter: Callable[..., Any] | None = None
  after: Callable[..., Any] | None = None

  def make_encoder(self) -> transformer.TransformerEncoder:
    """The encoder, a submodule of the same name."""
    return transformer.TransformerEncoder(
      self.config, self.ffn, self.adapter, self.after, name='encoder'
    )


class RobertaForMaskedLM(_Model):
  """Predicts tokens that were masked.

  Parameters: `encoder`, `lm_head` and, with `nsp`, `nsp`.

  Attributes:
    tie: Whether the output projection is the token table.
    nsp: Whether to predict, too, if the second segment follows the first: for
      the comparison with BERT's input formats (section 4.2).

  Example:
    >>> config = EncoderConfig(100, 32, 2, 4, 64, max_len=24)
    >>> model = RobertaForMaskedLM(config)
    >>> ids = jnp.array([[0, 99, 8, 2, 1]])
    >>> variables = model.init(jax.random.key(0), ids)
    >>> model.apply(variables, ids, positions=jnp.array([[1]])).shape
    (1, 1, 100)
  """

  tie: bool = True
  nsp: bool = False

  @nn.compact
  def __call__(
    self,
    ids: jax.Array,
    *,
    positions: jax.Array | None = None,
    deterministic: bool = True,
    **inputs,
  ) -> Any:
    """Logits at some positions, or at all.

    Args:
      ids: Token ids, integers `[B, S]`.
      positions: Where to predict, integers `[B, K]`: only these are projected
        to the vocabulary, which saves a quarter of the work of a step.
      deterministic: Whether dropout is off.
      **inputs: Of the encoder.

    Returns:
      Logits `[B, K, V]`, or `[B, S, V]` without positions, float32 or wider;
      with `nsp` a pair of these and `[B, 2]`: not next, next.

    Raises:
      ValueError: If ids or positions are impossible.
    """
    encoder = self.make_encoder()
    hidden = encoder(ids, deterministic=deterministic, **inputs)
    chosen = (
      hidden if positions is None else gather_positions(hidden, positions)
    )
    head = heads.MaskedLMHead(self.config, self.tie, name='lm_head')
    logits = head(chosen, encoder.token_table() if self.tie else None)
    if not self.nsp:
      return logits
    rate = self.config.dropout_rate
    follows = heads.ClassificationHead(self.config, 2, rate, name='nsp')
    return logits, follows(hidden, deterministic=deterministic)


def gather_positions(hidden: jax.Array, positions: jax.Array) -> jax.Array:
  """Rows of sequences: `out[b, k] = hidden[b, positions[b, k]]`.

  Args:
    hidden: `[B, S, H]`.
    positions: Integers `[B, K]`; out of range they give NaN under `jit`.

  Returns:
    `[B, K, H]`.

  Raises:
    ValueError: If the shape is wrong, or a position that has a value is out of
      range.
  """
  if jnp.ndim(positions) != 2 or len(positions) != len(hidden):
    raise ValueError(
      f'positions has shape {jnp.shape(positions)}; expected [batch, number]'
      f' for a batch of {len(hidden)}.'
    )
  length = hidden.shape[1]
  input_checks.check_range('positions', positions, length)
  positions = jnp.where(positions < 0, length, positions)
  rows = jnp.arange(len(hidden))[:, None]
  return hidden.at[rows, positions].get(mode='fill', fill_value=jnp.nan)


def _check_head(head: str) -> None:
  if head not in HEADS:
    raise ValueError(f'head is {head!r}; expected one of {HEADS}.')


class RobertaForSequenceClassification(_Model):
  """Classifies texts or pairs of texts, or gives them a number.

  Parameters: `encoder` and `classifier/{dense,output}`, or with the head
  'pooler' `pooler/dense` and `output`.

  Attributes:
    num_labels: Number of classes; 1 for regression.
    head_dropout_rate: Dropout of the head: 0 in fairseq, .1 in Hugging Face's
      code and in BERT's.
    head: 'classifier' is RoBERTa's; 'pooler' is BERT's, whose dense layer was
      pre-trained.
  """

  num_labels: int = 2
  head_dropout_rate: float = 0.0
  head: str = 'classifier'

  @nn.compact
  def __call__(
    self, ids: jax.Array, *, deterministic: bool = True, **inputs
  ) -> jax.Array:
    """Maps ids `[B, S]` to logits `[B, num_labels]`, float32 or wider."""
    _check_head(self.head)
    if self.num_labels < 1:
      raise ValueError(f'num_labels is {self.num_labels}; expected 1 or more.')
    hidden = self.make_encoder()(ids, deterministic=deterministic, **inputs)
    return _classify(self, hidden, self.num_labels, 'output', deterministic)


class RobertaForMultipleChoice(_Model):
  """Chooses one of several continuations: RACE, CommonsenseQA.

  Parameters: `encoder` and `classifier/{dense,output}` (fairseq), or with the
  head 'pooler' `pooler/dense` and `choice` (Hugging Face).

  Attributes:
    head_dropout_rate: Dropout of the head.
    head: 'classifier' or 'pooler'.
  """

  head_dropout_rate: float = 0.0
  head: str = 'classifier'

  @nn.compact
  def __call__(
    self, ids: jax.Array, *, deterministic: bool = True, **inputs
  ) -> jax.Array:
    """Scores choices.

    Args:
      ids: Token ids of each choice, integers `[B, C, S]`.
      deterministic: Whether dropout is off.
      **inputs: Of the encoder. Segments, positions and the mask are
        `[B, C, S]`, too.

    Returns:
      Logits `[B, C]`, float32 or wider.

    Raises:
      ValueError: If ids have another number of axes.
    """
    _check_head(self.head)
    if jnp.ndim(ids) != 3:
      raise ValueError(
        f'ids has shape {jnp.shape(ids)}; expected [batch, choices, length].'
      )
    batch, choices, length = ids.shape
    for name in ('token_type_ids', 'position_ids', 'attention_mask'):
      if inputs.get(name) is not None:
        if jnp.shape(inputs[name]) != ids.shape:
          raise ValueError(
            f'{name} has shape {jnp.shape(inputs[name])}; expected that of ids,'
            f' {ids.shape}.'
          )
        inputs[name] = inputs[name].reshape(-1, length)
    hidden = self.make_encoder()(
      ids.reshape(-1, length), deterministic=deterministic, **inputs
    )
    scores = _classify(self, hidden, 1, 'choice', deterministic)
    return scores.reshape(batch, choices)


def _classify(module, hidden, outputs, name, deterministic):
  """Outputs of the head that a model was told to have."""
  config, rate = module.config, module.head_dropout_rate
  if module.head == 'classifier':
    head = heads.ClassificationHead(config, outputs, rate, name='classifier')
    return head(hidden, deterministic=deterministic)
  x = heads.Pooler(config, name='pooler')(hidden)
  x = heads.drop(module, x, rate, deterministic)
  x = heads.dense(config, outputs, name)(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class RobertaForQuestionAnswering(_Model):
  """Finds the span of a passage that answers a question: SQuAD.

  Parameters: `encoder`, `qa` and, with `answerable`,
  `answerable/{dense,output}`.

  Attributes:
    answerable: Whether to say, too, if there is an answer (SQuAD v2).
    head_dropout_rate: Dropout of the head that says so.
  """

  answerable: bool = False
  head_dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self, ids: jax.Array, *, deterministic: bool = True, **inputs
  ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Scores where the answer starts and ends.

    Args:
      ids: Token ids, integers `[B, S]`.
      deterministic: Whether dropout is off.
      **inputs: Of the encoder.

    Returns:
      Logits of the start `[B, S]` and of the end (inclusive) `[B, S]`, and the
      logit of there being an answer `[B]`, or None; float32 or wider. Logits
      at padding mean nothing.
    """
    hidden = self.make_encoder()(ids, deterministic=deterministic, **inputs)
    span = heads.dense(self.config, 2, 'qa')(hidden)
    span = span.astype(jnp.promote_types(span.dtype, jnp.float32))
    there = None
    if self.answerable:
      head = heads.ClassificationHead(
        self.config, 1, self.head_dropout_rate, name='answerable'
      )
      there = head(hidden, deterministic=deterministic)[:, 0]
    return span[..., 0], span[..., 1], there
