"""EfficientNet as a Linen module."""

import math
import warnings
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp

from jaxpapers.efficientnet import blocks
from jaxpapers.efficientnet.blocks import MBConv
from jaxpapers.efficientnet.config import ModelConfig

__all__ = ['EfficientNet', 'MBConv']


class EfficientNet(linen.Module):
  """The network of a config.

  Attributes:
    config: Which.

  Example:
    >>> model = EfficientNet(ModelConfig(width=0.25, depth=0.5, num_classes=10))
    >>> x = jnp.ones((1, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), x)
    >>> model.apply(variables, x).shape
    (1, 10)
  """

  config: ModelConfig = ModelConfig()

  @linen.compact
  def __call__(
    self,
    x: jax.Array,
    train: bool = False,
    features_only: bool = False,
    return_endpoints: bool = False,
  ) -> Any:
    """Runs it on images.

    In training, `apply` takes `mutable=['batch_stats']` to keep statistics, and
    `rngs={'dropout': key}` for stochastic depth and dropout.

    Args:
      x: Normalised images `[N, H, W, C]`, floating.
      train: Whether with statistics of the batch, stochastic depth, dropout.
      features_only: Whether to stop behind the last block.
      return_endpoints: Whether to return what happens in between, too.

    Returns:
      Logits `[N, K]`, float32 or wider; pooled features `[N, C]` if the config
      has no classes; the last block's output `[N, h, w, C]` if
      `features_only`. With `return_endpoints` a pair of that and a dictionary:
      'stem', 'block_0' ..., 'block_0/expansion_output' ... (what the projection
      gets), 'reduction_1' ... (the last output at each resolution, stem
      aside), 'features' and, behind the last block, 'head_1x1',
      'pooled_features', 'head'.

    Raises:
      ValueError: If the images have another rank, other channels than the
        parameters, or no pixels.
      TypeError: If they are not floating.
    """
    config = self.config
    self._check(x)
    act = blocks.ACTIVATIONS[config.activation]
    if config.dtype is not None:
      x = x.astype(config.dtype)
    endpoints: dict[str, jax.Array] = {}
    x = blocks.conv(
      config,
      config.stem_width,
      'stem_conv',
      kernel_size=3,
      strides=config.stem_stride,
    )(x)
    x = act(blocks.batch_norm(config, 'stem_bn')(x, train=train))
    endpoints['stem'] = x
    block_class = MBConv
    if config.remat:
      block_class = linen.remat(MBConv, static_argnums=(2,))
    sequence = config.scaled_blocks()
    reductions = 0
    for block, following in zip(sequence, (*sequence[1:], None), strict=True):
      x, expanded = block_class(config, block, name=block.name)(x, train)
      endpoints[f'block_{block.index}'] = x
      endpoints[f'block_{block.index}/expansion_output'] = expanded
      if following is None or max(following.args.strides) > 1:
        reductions += 1
        endpoints[f'reduction_{reductions}'] = x
    endpoints['features'] = x
    if not features_only:
      x = self._head(x, act, train, endpoints)
    return (x, endpoints) if return_endpoints else x

  def _head(self, x, act, train, endpoints):
    config = self.config
    x = blocks.conv(config, config.head_width, 'head_conv')(x)
    x = act(blocks.batch_norm(config, 'head_bn')(x, train=train))
    endpoints['head_1x1'] = x
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x = x.mean((1, 2), dtype=wide)
    endpoints['pooled_features'] = x
    if not config.num_classes:
      return x
    x = linen.Dropout(config.dropout_rate, deterministic=not train)(x)
    x = linen.Dense(
      config.num_classes,
      kernel_init=blocks.classifier_init,
      dtype=None,  # Logits in float32: they are few, and the loss needs it.
      param_dtype=jnp.dtype(config.param_dtype),
      name='classifier',
    )(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    endpoints['head'] = x
    return x

  def _check(self, x):
    if jnp.ndim(x) != 4 or 0 in jnp.shape(x)[1:]:
      raise ValueError(
        f'x has shape {jnp.shape(x)}; expected images [N, H, W, C] of at least'
        ' one pixel. Add an axis for a single image.'
      )
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise TypeError(
        f'x is {x.dtype}; expected floating images. Normalise them first, as'
        ' the weights want it.'
      )
    known = self.variables.get('params', {}).get('stem_conv', {})
    if 'kernel' in known and known['kernel'].shape[2] != x.shape[-1]:
      raise ValueError(
        f'x has {x.shape[-1]} channels; these parameters take'
        f' {known["kernel"].shape[2]}.'
      )
    stride = total_stride(self.config)
    if min(x.shape[1:3]) < stride:
      warnings.warn(
        f'images of {x.shape[1]} x {x.shape[2]} pixels are smaller than the'
        f' stride {stride} of the network; stem_stride=1 suits small ones.',
        stacklevel=2,
      )


def total_stride(config: ModelConfig) -> int:
  """Pixels of the image per pixel of the last features.

  Args:
    config: The network's.

  Returns:
    The larger of both directions.
  """
  strides = [block.strides for block in config.blocks]
  return config.stem_stride * max(
    math.prod(stride[axis] for stride in strides) for axis in (0, 1)
  )
