"""Layers that more than one paper uses."""

from jaxpapers.nn.activations import gelu, relu
from jaxpapers.nn.attention import (
  choose_implementation,
  fused_attention,
  plain_attention,
)
from jaxpapers.nn.batch_norm import BatchNorm
from jaxpapers.nn.conv import (
  Conv,
  DepthwiseConv,
  depthwise_conv,
  explicit_padding,
)
from jaxpapers.nn.dropout import dropout
from jaxpapers.nn.embeddings import Embedding
from jaxpapers.nn.pooling import avg_pool, max_pool
from jaxpapers.nn.squeeze_excite import SqueezeExcite, squeeze_excite
from jaxpapers.nn.stochastic_depth import drop_path
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
  'BatchNorm',
  'Conv',
  'DepthwiseConv',
  'SqueezeExcite',
  'avg_pool',
  'depthwise_conv',
  'drop_path',
  'explicit_padding',
  'max_pool',
  'squeeze_excite',
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
  'relu',
  'stack_layers',
  'unstack_layers',
]
