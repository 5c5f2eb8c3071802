"""Parameters and multiply-adds of a network, in plain arithmetic.

Both are those of the paper's table: multiply-adds of convolutions (squeeze and
excitation included) and of the classifier; no normalisation, activation or
pooling. The paper calls them FLOPS.
"""

import math
import numbers
from typing import NamedTuple

from jaxpapers.efficientnet.config import BlockArgs, ModelConfig


class Counts(NamedTuple):
  """Multiply-adds for one image.

  Attributes:
    total: All of them.
    by_kind: For 'stem', 'expand', 'depthwise', 'se', 'project', 'head',
      'classifier'; fused convolutions count as 'expand'.
    by_stage: For 'stem', 'stage0' ..., 'head', 'classifier'.
    activations: Numbers that the convolutions write, a measure of memory
      traffic.
  """

  total: int
  by_kind: dict[str, int]
  by_stage: dict[str, int]
  activations: int


class _Layer(NamedTuple):
  """A convolution or dense layer: what it has and where it runs."""

  kind: str
  stage: str
  kernel: int
  inputs: int  # Per group.
  outputs: int
  stride: tuple[int, int] = (1, 1)
  bias: bool = False
  norm: bool = True
  pooled: bool = False  # Whether it sees one pixel.


def _block_layers(args: BlockArgs, channels: int, stage: str):
  """Layers of a block that gets `channels` channels."""
  middle, squeezed = args.expanded_filters, args.squeezed_filters
  kernel, strides = args.kernel_size, args.strides
  if args.fused:
    # The original's fused block convolves even with an expansion of 1.
    yield _Layer('expand', stage, kernel, channels, middle, strides)
  else:
    if args.expand_ratio != 1:
      yield _Layer('expand', stage, 1, channels, middle)
    else:
      middle = channels
    yield _Layer('depthwise', stage, kernel, 1, middle, strides)
  if squeezed:
    for inputs, outputs in ((middle, squeezed), (squeezed, middle)):
      yield _Layer(
        'se', stage, 1, inputs, outputs, bias=True, norm=False, pooled=True
      )
  yield _Layer('project', stage, 1, middle, args.output_filters)


def _layers(config: ModelConfig, in_channels: int):
  channels = config.stem_width
  stride = (config.stem_stride,) * 2
  yield _Layer('stem', 'stem', 3, in_channels, channels, stride)
  for block in config.scaled_blocks():
    yield from _block_layers(block.args, channels, f'stage{block.stage}')
    channels = block.args.output_filters
  yield _Layer('head', 'head', 1, channels, config.head_width)
  if config.num_classes:
    yield _Layer(
      'classifier',
      'classifier',
      1,
      config.head_width,
      config.num_classes,
      bias=True,
      norm=False,
      pooled=True,
    )


def count_params(config: ModelConfig, in_channels: int = 3) -> int:
  """Number of trainable parameters.

  Args:
    config: The network.
    in_channels: Channels of the images.

  Returns:
    The number, batch statistics not included.

  Example:
    >>> count_params(ModelConfig())
    5288548
  """
  total = 0
  for layer in _layers(config, in_channels):
    total += layer.kernel**2 * layer.inputs * layer.outputs
    total += layer.outputs * (layer.bias + 2 * layer.norm)
  return total


def count_batch_stats(config: ModelConfig) -> int:
  """Number of running means and variances.

  Args:
    config: The network.

  Returns:
    The number.
  """
  return sum(2 * x.outputs for x in _layers(config, 3) if x.norm)


def count_macs(
  config: ModelConfig,
  resolution: int | tuple[int, int] | None = None,
  in_channels: int = 3,
) -> Counts:
  """Multiply-adds for one image.

  Args:
    config: The network.
    resolution: Pixels of a side, or height and width; the config's by default.
    in_channels: Channels of the images.

  Returns:
    The total, and its parts.

  Raises:
    ValueError: If the resolution is not positive.

  Example:
    >>> count_macs(ModelConfig()).total
    385814752
  """
  size = config.resolution if resolution is None else resolution
  height, width = (size, size) if isinstance(size, numbers.Real) else size
  if min(height, width) < 1:
    raise ValueError(f'resolution is {resolution}; expected 1 or more.')
  by_kind = dict.fromkeys(
    ('stem', 'expand', 'depthwise', 'se', 'project', 'head', 'classifier'), 0
  )
  by_stage: dict[str, int] = {}
  activations = 0
  for layer in _layers(config, in_channels):
    # Both paddings leave ceil(n / stride) pixels.
    height = math.ceil(height / layer.stride[0])
    width = math.ceil(width / layer.stride[1])
    pixels = 1 if layer.pooled else height * width
    macs = pixels * layer.kernel**2 * layer.inputs * layer.outputs
    by_kind[layer.kind] += macs
    by_stage[layer.stage] = by_stage.get(layer.stage, 0) + macs
    if layer.kind != 'classifier':
      activations += pixels * layer.outputs
  return Counts(sum(by_kind.values()), by_kind, by_stage, activations)
