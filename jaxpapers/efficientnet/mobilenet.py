"""MobileNetV1 and V2 with knobs for width, depth and resolution (table 3)."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

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
from jaxpapers.nn import BatchNorm, Conv, DepthwiseConv

# Expansion, filters, repeats, stride of the first layer.
_STAGES = {
  1: (
    (1, 64, 1, 1),
    (1, 128, 2, 2),
    (1, 256, 2, 2),
    (1, 512, 6, 2),
    (1, 1024, 2, 2),
  ),
  2: (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
  ),
}

conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def depthwise_init(key, shape, dtype=jnp.float32):
  """Normal with the fan-out of a depthwise kernel, kh kw."""
  scale = (2.0 / (shape[0] * shape[1])) ** 0.5
  return scale * jax.random.normal(key, shape, dtype)


class MobileLayer(NamedTuple):
  """One layer after scaling."""

  name: str
  stage: int
  expand: int
  inputs: int
  filters: int
  stride: int


@dataclasses.dataclass(frozen=True)
class MobileNetConfig:
  """A MobileNet.

  Attributes:
    version: 1 (separable convolutions) or 2 (inverted residuals).
    width: Factor of the channels. As in the original, V2's last convolution
      does not become narrower than 1280.
    depth: Factor of the layers of each stage.
    resolution: Pixels of an image's side.
    dropout_rate: Before the classifier.
    num_classes: Outputs.
    bn_momentum: Share of the old statistics.
    bn_epsilon: Added to variances.
    padding: 'SAME' or 'symmetric'.
    stem_stride: Of the first convolution; 1 for small images.
    depthwise_impl: As in `nn.depthwise_conv`.
    dtype: Type of the computation.

  Example:
    >>> MobileNetConfig(2).count_params()
    3504872
  """

  version: int = 2
  width: float = 1.0
  depth: float = 1.0
  resolution: int = 224
  dropout_rate: float = 0.2
  num_classes: int = 1000
  bn_momentum: float = 0.99
  bn_epsilon: float = 1e-3
  padding: str = 'SAME'
  stem_stride: int = 2
  depthwise_impl: str = 'auto'
  dtype: Any = None

  def __post_init__(self):
    if self.version not in _STAGES:
      raise ValueError(f'version is {self.version!r}; expected 1 or 2.')
    for name in ('width', 'depth', 'resolution', 'stem_stride', 'num_classes'):
      check_positive(name, getattr(self, name))

  def replace(self, **changes: Any) -> 'MobileNetConfig':
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)

  @property
  def stem_width(self) -> int:
    """Channels of the stem."""
    return round_filters(32, self.width)

  @property
  def head_width(self) -> int:
    """Channels of the last convolution; V1 has none, and keeps 0."""
    if self.version == 1:
      return 0
    return round_filters(1280, max(1.0, self.width))

  def scaled_layers(self) -> list[MobileLayer]:
    """All layers between stem and head, after scaling."""
    inputs, found = self.stem_width, []
    for stage, (expand, filters, repeats, stride) in enumerate(
      _STAGES[self.version]
    ):
      filters = round_filters(filters, self.width)
      for index in range(round_repeats(repeats, self.depth)):
        found.append(
          MobileLayer(
            f'stage{stage}_block{index}',
            stage,
            expand,
            inputs,
            filters,
            stride if index == 0 else 1,
          )
        )
        inputs = filters
    return found

  def _counted(self, resolution: int | None) -> Iterator[CountedLayer]:
    side = -(-(resolution or self.resolution) // self.stem_stride)
    channels = self.stem_width
    yield CountedLayer('stem', 'stem', 3, 3, channels, side)
    for layer in self.scaled_layers():
      stage, middle = f'stage{layer.stage}', layer.inputs * layer.expand
      if layer.expand != 1:
        yield CountedLayer('expand', stage, 1, layer.inputs, middle, side)
      side = -(-side // layer.stride)
      yield CountedLayer('depthwise', stage, 3, 1, middle, side)
      yield CountedLayer('project', stage, 1, middle, layer.filters, side)
      channels = layer.filters
    if self.head_width:
      yield CountedLayer('head', 'head', 1, channels, self.head_width, side)
      channels = self.head_width
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

  def build(self) -> 'MobileNet':
    """The network."""
    return MobileNet(self)


class MobileNet(nn.Module):
  """MobileNetV1 or V2.

  Attributes:
    config: Which one.

  Example:
    >>> model = MobileNet(MobileNetConfig(1, width=0.25, num_classes=10))
    >>> x = jnp.ones((2, 32, 32, 3))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> sorted(variables)
    ['batch_stats', 'params']
  """

  config: MobileNetConfig

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

    def conv(x, name, filters, size=1, strides=1):
      return Conv(
        filters,
        size,
        strides,
        config.padding,
        kernel_init=conv_init,
        dtype=config.dtype,
        name=name,
      )(x)

    def norm(x, name):
      return BatchNorm(
        config.bn_momentum, config.bn_epsilon, dtype=config.dtype, name=name
      )(x, train=train)

    relu6 = jax.nn.relu6
    x = conv(x, 'stem_conv', config.stem_width, 3, config.stem_stride)
    x = relu6(norm(x, 'stem_bn'))
    for layer in config.scaled_layers():
      y, name = x, layer.name
      if layer.expand != 1:
        y = conv(y, f'{name}_expand_conv', layer.inputs * layer.expand)
        y = relu6(norm(y, f'{name}_expand_bn'))
      y = DepthwiseConv(
        3,
        layer.stride,
        config.padding,
        config.depthwise_impl,
        depthwise_init,
        dtype=config.dtype,
        name=f'{name}_depthwise_conv',
      )(y)
      y = relu6(norm(y, f'{name}_depthwise_bn'))
      y = conv(y, f'{name}_project_conv', layer.filters)
      y = norm(y, f'{name}_project_bn')
      if config.version == 1:
        x = relu6(y)
      elif layer.stride == 1 and layer.inputs == layer.filters:
        x = x + y
      else:
        x = y
    if config.head_width:
      x = relu6(norm(conv(x, 'head_conv', config.head_width), 'head_bn'))
    return classify(x, config.num_classes, config.dropout_rate, train)


def classify(x, num_classes, dropout_rate, train):
  """Mean over pixels, dropout, dense layer; inside a compact module."""
  wide = jnp.promote_types(x.dtype, jnp.float32)
  x = x.mean((1, 2), dtype=wide)
  x = nn.Dropout(dropout_rate, deterministic=not train)(x)
  return nn.Dense(
    num_classes,
    kernel_init=nn.initializers.variance_scaling(1 / 3, 'fan_out', 'uniform'),
    name='classifier',
  )(x)
