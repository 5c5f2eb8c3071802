"""Layers that more than one paper uses."""

from jaxpapers.nn.activations import gelu
from jaxpapers.nn.attention import (
  choose_implementation,
  fused_attention,
  plain_attention,
)
from jaxpapers.nn.dropout import dropout
from jaxpapers.nn.embeddings import Embedding
from jaxpapers.nn.transformer import (
  EncoderConfig,
  EncoderLayer,
  FeedForward,
  SelfAttention,
  TransformerEncoder,
  make_position_ids,
  stack_layers,
  unstack_layers,
)

__all__ = [
  'Embedding',
  'EncoderConfig',
  'EncoderLayer',
  'FeedForward',
  'SelfAttention',
  'TransformerEncoder',
  'choose_implementation',
  'dropout',
  'fused_attention',
  'gelu',
  'make_position_ids',
  'plain_attention',
  'stack_layers',
  'unstack_layers',
]
