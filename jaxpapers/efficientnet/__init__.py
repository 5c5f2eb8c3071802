"""EfficientNet: the models, the scaling rule and the search behind them."""

from jaxpapers.efficientnet.config import (
  BlockArgs,
  ModelConfig,
  compound_coefficients,
  config_for,
  decode_block_string,
  encode_block_string,
  round_filters,
  round_repeats,
)
from jaxpapers.efficientnet.counts import (
  Counts,
  count_batch_stats,
  count_macs,
  count_params,
)
from jaxpapers.efficientnet.model import EfficientNet, MBConv

__all__ = [
  'BlockArgs',
  'Counts',
  'EfficientNet',
  'MBConv',
  'ModelConfig',
  'compound_coefficients',
  'config_for',
  'count_batch_stats',
  'count_macs',
  'count_params',
  'decode_block_string',
  'encode_block_string',
  'round_filters',
  'round_repeats',
]
