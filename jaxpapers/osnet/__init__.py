"""OSNet: omni-scale features for person re-identification."""

from jaxpapers.osnet.blocks import MixedOSBlock, OSBlock
from jaxpapers.osnet.config import (
  CONFIGS,
  OSNetConfig,
  config_for,
  scaled,
  scaled_resolution,
)
from jaxpapers.osnet.layers import (
  AggregationGate,
  InstanceNorm2d,
  LiteConv3x3,
  TorchBatchNorm,
)
from jaxpapers.osnet.network import OSNet, OSNetOutput

__all__ = [
  'CONFIGS',
  'AggregationGate',
  'InstanceNorm2d',
  'LiteConv3x3',
  'MixedOSBlock',
  'OSBlock',
  'OSNet',
  'OSNetConfig',
  'OSNetOutput',
  'TorchBatchNorm',
  'config_for',
  'scaled',
  'scaled_resolution',
]
