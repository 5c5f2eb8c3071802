"""Sizes of the released models."""

from jaxpapers.nn.encoder_config import EncoderConfig


def roberta_base(**changes) -> EncoderConfig:
  """RoBERTa-base: 12 layers of 768, byte-level vocabulary of 50,265.

  Args:
    **changes: Fields of `EncoderConfig` to set otherwise. Checkpoints of
      Hugging Face have a table of one segment: `type_vocab_size=1`.

  Returns:
    The config.

  Example:
    >>> roberta_base(dropout_rate=0.0).num_layers
    12
  """
  return EncoderConfig(**_BASE | {'vocab_size': 50265} | changes)


def roberta_large(**changes) -> EncoderConfig:
  """RoBERTa-large: 24 layers of 1024, byte-level vocabulary of 50,265.

  Args:
    **changes: Fields of `EncoderConfig` to set otherwise.

  Returns:
    The config.
  """
  return EncoderConfig(**_LARGE | {'vocab_size': 50265} | changes)


def bert_base(**changes) -> EncoderConfig:
  """BERT-base, uncased, as Google's code has it.

  Args:
    **changes: Fields of `EncoderConfig` to set otherwise.

  Returns:
    The config: two segments, positions from 0, tanh-GELU, epsilon 1e-12.
  """
  return EncoderConfig(**_BASE | _BERT | changes)


def bert_large(**changes) -> EncoderConfig:
  """BERT-large, uncased, as Google's code has it.

  Args:
    **changes: Fields of `EncoderConfig` to set otherwise.

  Returns:
    The config: two segments, positions from 0, tanh-GELU, epsilon 1e-12.
  """
  return EncoderConfig(**_LARGE | _BERT | changes)


_BASE = {
  'hidden_size': 768,
  'num_layers': 12,
  'num_heads': 12,
  'mlp_dim': 3072,
}
_LARGE = {
  'hidden_size': 1024,
  'num_layers': 24,
  'num_heads': 16,
  'mlp_dim': 4096,
}
_BERT = {
  'vocab_size': 30522,
  'pad_id': 0,
  'position_offset': 0,
  'type_vocab_size': 2,
  'layer_norm_eps': 1e-12,
  'gelu': 'tanh',
  'initializer': 'truncated_normal',
}
