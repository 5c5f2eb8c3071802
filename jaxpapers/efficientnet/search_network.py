"""The network that the tokens of a search space stand for."""

from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp

from jaxpapers import nn
from jaxpapers.efficientnet.mobilenet import (
  classify,
  conv_init,
  depthwise_init,
)
from jaxpapers.efficientnet.search_space import Layer, SearchSpace


def layer_name(block: int, index: int) -> str:
  """Name of a layer in the parameters."""
  return f'block{block}_layer{index}'


def pool_skip(x: jax.Array, filters: int, stride: int) -> jax.Array:
  """Shortcut that always fits: averages by the stride, cuts or fills channels.

  Args:
    x: `[N, H, W, C]`.
    filters: Channels that go out.
    stride: Of the layer that it bridges.

  Returns:
    `[N, ceil(H / stride), ceil(W / stride), filters]`.
  """
  if stride > 1:
    window = (stride, stride)
    x = linen.avg_pool(x, window, window, 'SAME', count_include_pad=False)
  more = filters - x.shape[-1]
  if more <= 0:
    return x[..., :filters]
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))


class SearchNetwork(linen.Module):
  """An architecture of a search space, by itself.

  Attributes:
    space: The space.
    tokens: Its tokens, flat; a tuple, since fields of modules are hashable.
    bn_momentum: Share of the old statistics.
    bn_epsilon: Added to variances.
    dropout_rate: Before the classifier.
    depthwise_impl: As in `nn.depthwise_conv`.

  Example:
    >>> space = SearchSpace(width=0.25, num_classes=10, resolution=32)
    >>> tokens = space.reference_tokens()
    >>> model = SearchNetwork(space, tuple(tokens.ravel().tolist()))
    >>> x = jnp.ones((1, 32, 32, 3))
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> 'block0_layer0_expand_conv' in shapes['params']
    True
  """

  space: SearchSpace
  tokens: tuple[int, ...]
  bn_momentum: float = 0.9
  bn_epsilon: float = 1e-3
  dropout_rate: float = 0.0
  depthwise_impl: str = 'auto'

  @linen.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps images `[N, H, W, C]` to logits `[N, num_classes]`."""
    space = self.space
    x = self._conv(x, 'stem', space.stem_filters, 3, space.stem_stride)
    x = jax.nn.silu(self._norm(x, 'stem', train))
    for block, layers in enumerate(space.layers(list(self.tokens))):
      for index, layer in enumerate(layers):
        x = self._layer(x, layer, layer_name(block, index), train)
    x = self._conv(x, 'head', space.head_filters)
    x = jax.nn.silu(self._norm(x, 'head', train))
    return classify(x, space.num_classes, self.dropout_rate, train)

  def _layer(self, x, layer: Layer, name: str, train: bool):
    def squeeze(y, prefix):
      if not layer.squeezed:
        return y
      names = (f'{prefix}se_reduce', f'{prefix}se_expand')
      reduce, expand = (
        nn.Conv(features, use_bias=True, kernel_init=conv_init, name=label)
        for features, label in zip(
          (layer.squeezed, y.shape[-1]), names, strict=True
        )
      )
      return nn.squeeze_excite(y, reduce, expand)

    if layer.op == 'conv':
      y = self._conv(
        x, f'{name}_full', layer.filters, layer.kernel, layer.stride
      )
      y = jax.nn.silu(self._norm(y, f'{name}_full', train))
      y = squeeze(y, f'{name}_full_')
    else:
      y = x
      if layer.op != 'sepconv':
        y = self._conv(y, f'{name}_expand', layer.expanded)
        y = jax.nn.silu(self._norm(y, f'{name}_expand', train))
      y = nn.DepthwiseConv(
        layer.kernel,
        layer.stride,
        impl=self.depthwise_impl,
        kernel_init=depthwise_init,
        name=f'{name}_depthwise_conv',
      )(y)
      y = jax.nn.silu(self._norm(y, f'{name}_depthwise', train))
      y = squeeze(y, f'{name}_')
      y = self._conv(y, f'{name}_project', layer.filters)
      y = self._norm(y, f'{name}_project', train)
    if layer.skip == 'pool':
      return y + pool_skip(x, layer.filters, layer.stride)
    if (
      layer.skip == 'identity'
      and layer.stride == 1
      and layer.inputs == layer.filters
    ):
      return y + x
    return y

  def _conv(self, x, name: str, filters: int, size: int = 1, stride: int = 1):
    return nn.Conv(
      filters, size, stride, kernel_init=conv_init, name=f'{name}_conv'
    )(x)

  def _norm(self, x, name: str, train: bool) -> Any:
    return nn.BatchNorm(self.bn_momentum, self.bn_epsilon, name=f'{name}_bn')(
      x, train=train
    )
