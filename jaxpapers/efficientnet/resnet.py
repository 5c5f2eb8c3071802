"""ResNet-50 with knobs for width, depth and resolution (table 3)."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxpapers.efficientnet.block_args import (
  check_positive,
  round_filters,
  round_repeats,
)
from jaxpapers.efficientnet.counts import Counts
from jaxpapers.efficientnet.layer_counts import (
  CountedLayer,
  sum_macs,
  sum_params,
)
from jaxpapers.efficientnet.mobilenet import classify, conv_init
from jaxpapers.nn import BatchNorm, Conv

_REPEATS = (3, 4, 6, 3)
_EXPANSION = 4


class Bottleneck(NamedTuple):
  """One bottleneck block after scaling."""

  name: str
  stage: int
  inputs: int
  middle: int
  filters: int
  stride: int
  projected: bool  # Whether the shortcut is a convolution.


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """A ResNet of bottleneck blocks.

  Attributes:
    width: Factor of the channels.
    depth: Factor of the blocks of each stage.
    resolution: Pixels of an image's side.
    stride_in: '3x3' is v1.5, whose 4.089e9 multiply-adds are the paper's 4.1B;
      '1x1' is the original's 3.86e9.
    dropout_rate: Before the classifier.
    num_classes: Outputs.
    bn_momentum: Share of the old statistics.
    bn_epsilon: Added to variances.
    stem_stride: 2 has the 7x7 convolution and max-pooling; 1 a 3x3 convolution
      alone, for small images.
    repeats: Blocks of each stage before scaling.
    dtype: Type of the computation.

  Example:
    >>> ResNetConfig().count_params()
    25557032
  """

  width: float = 1.0
  depth: float = 1.0
  resolution: int = 224
  stride_in: str = '3x3'
  dropout_rate: float = 0.0
  num_classes: int = 1000
  bn_momentum: float = 0.9
  bn_epsilon: float = 1e-5
  stem_stride: int = 2
  repeats: tuple[int, ...] = _REPEATS
  dtype: Any = None

  def __post_init__(self):
    for name in ('width', 'depth', 'resolution', 'num_classes'):
      check_positive(name, getattr(self, name))
    if self.stem_stride not in (1, 2):
      raise ValueError(f'stem_stride is {self.stem_stride}; expected 1 or 2.')
    if self.stride_in not in ('3x3', '1x1'):
      raise ValueError(
        f"stride_in is {self.stride_in!r}; expected '3x3' or '1x1'."
      )

  def replace(self, **changes: Any) -> 'ResNetConfig':
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)

  @property
  def stem_width(self) -> int:
    """Channels of the stem."""
    return round_filters(64, self.width)

  def scaled_blocks(self) -> list[Bottleneck]:
    """All blocks, after scaling."""
    inputs, found = self.stem_width, []
    for stage, repeats in enumerate(self.repeats):
      middle = round_filters(64 * 2**stage, self.width)
      filters = _EXPANSION * middle
      for index in range(round_repeats(repeats, self.depth)):
        stride = 2 if stage and index == 0 else 1
        found.append(
          Bottleneck(
            f'stage{stage}_block{index}',
            stage,
            inputs,
            middle,
            filters,
            stride,
            stride > 1 or inputs != filters,
          )
        )
        inputs = filters
    return found

  def _counted(self, resolution: int | None) -> Iterator[CountedLayer]:
    side = -(-(resolution or self.resolution) // self.stem_stride)
    kernel = 7 if self.stem_stride == 2 else 3
    yield CountedLayer('stem', 'stem', kernel, 3, self.stem_width, side)
    if self.stem_stride == 2:
      side = -(-side // 2)
    channels = self.stem_width
    for block in self.scaled_blocks():
      stage, before = f'stage{block.stage}', side
      side = -(-side // block.stride)
      first = before if self.stride_in == '3x3' else side
      yield CountedLayer('1x1', stage, 1, block.inputs, block.middle, first)
      yield CountedLayer('3x3', stage, 3, block.middle, block.middle, side)
      yield CountedLayer('1x1', stage, 1, block.middle, block.filters, side)
      if block.projected:
        yield CountedLayer(
          'shortcut', stage, 1, block.inputs, block.filters, side
        )
      channels = block.filters
    yield CountedLayer(
      'classifier',
      'classifier',
      1,
      channels,
      self.num_classes,
      bias=True,
      norm=False,
    )

  def count_macs(self, resolution: int | None = None) -> Counts:
    """Multiply-adds for one image, as `counts.count_macs`."""
    return sum_macs(self._counted(resolution))

  def count_params(self) -> int:
    """Trainable parameters."""
    return sum_params(self._counted(None))

  def build(self) -> 'ResNet':
    """The network."""
    return ResNet(self)


class ResNet(nn.Module):
  """A ResNet of bottleneck blocks, with the paddings of torch.

  Attributes:
    config: Which one.
  """

  config: ResNetConfig

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images `[N, H, W, 3]` to logits `[N, num_classes]`.

    Args:
      x: Normalised images.
      train: Whether to normalise by this batch and drop out.

    Returns:
      Logits, float32 at least.
    """
    config = self.config

    def conv(x, name, filters, size, strides=1, scale=nn.initializers.ones):
      x = Conv(
        filters,
        size,
        strides,
        'symmetric',
        kernel_init=conv_init,
        dtype=config.dtype,
        name=f'{name}_conv',
      )(x)
      return BatchNorm(
        config.bn_momentum,
        config.bn_epsilon,
        dtype=config.dtype,
        scale_init=scale,
        name=f'{name}_bn',
      )(x, train=train)

    relu = jax.nn.relu
    if config.stem_stride == 2:
      x = relu(conv(x, 'stem', config.stem_width, 7, 2))
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    else:
      x = relu(conv(x, 'stem', config.stem_width, 3))
    for block in config.scaled_blocks():
      name = block.name
      inner = config.stride_in == '3x3'
      first, second = (1, block.stride) if inner else (block.stride, 1)
      y = relu(conv(x, f'{name}_1', block.middle, 1, first))
      y = relu(conv(y, f'{name}_2', block.middle, 3, second))
      y = conv(y, f'{name}_3', block.filters, 1)
      if block.projected:
        x = conv(x, f'{name}_shortcut', block.filters, 1, block.stride)
      x = relu(x + y)
    return classify(x, config.num_classes, config.dropout_rate, train)
