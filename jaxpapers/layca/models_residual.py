"""The paper's residual networks: ResNet v1 as in Keras' examples, WideResNet.

In a block that changes shape, the 1x1 convolution of the shortcut comes AFTER
the two 3x3 convolutions, as in Keras' topological order: the layer-wise
multipliers of `depth_multipliers` depend on it. See `models` for the calling
convention.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxpapers.layca import initializers, models


class ResNetV1Keras(nn.Module):
  """ResNet v1 for 32x32 images: tasks C100-resnet (32) and C10-resnet (110).

  Three stacks of (depth - 2) / 6 blocks; a block is conv, norm, relu, conv,
  norm, then the shortcut is added and relu follows. The second and third stack
  halve the resolution. Their first shortcut is a 1x1 convolution of stride 2
  without batch normalisation. Average pooling by 8, and a dense layer.

  Attributes:
    depth: 6 n + 2; 32 and 110 in the paper.
    classes: number of outputs.
    filters: channels of the first stack; they double with each stack.
    kernel_init: initialiser of all kernels.
    dtype: type of the computation.
    param_dtype: type of the parameters.

  Example:
    >>> import jax
    >>> x = jnp.ones((2, 32, 32, 3))
    >>> variables = ResNetV1Keras(8).init(jax.random.key(0), x)
    >>> len(variables['params'])  # 7 3x3, 2 shortcuts, 1 dense
    10
  """

  depth: int = 32
  classes: int = 10
  filters: int = 16
  kernel_init: Any = initializers.keras_he_normal()
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False, mask=None):
    if self.depth < 8 or (self.depth - 2) % 6:
      raise ValueError(
        f'depth is {self.depth}; expected 6 n + 2, such as 20, 32 or 110.'
      )
    conv = functools.partial(nn.Conv, **models.kernel_options(self))
    norm = functools.partial(models.batch_norm, self, train)
    valid = models.example_mask(mask, x)
    x = conv(self.filters, (3, 3), name='first_conv')(x)
    x = nn.relu(norm(name='first_batch')(x, mask=valid))
    for stack in range(3):
      filters = self.filters * 2**stack
      for block in range((self.depth - 2) // 6):
        name = f'{stack}_{block}'
        strides = 2 if stack and not block else 1
        y = conv(filters, (3, 3), strides=strides, name=f'{name}_1_conv')(x)
        y = nn.relu(norm(name=f'{name}_1_batch')(y, mask=valid))
        y = conv(filters, (3, 3), name=f'{name}_2_conv')(y)
        y = norm(name=f'{name}_2_batch')(y, mask=valid)
        if strides > 1:
          shortcut = f'{name}_strided_conv'
          x = conv(filters, (1, 1), strides=strides, name=shortcut)(x)
        x = nn.relu(x + y)
    x = nn.avg_pool(x, (8, 8), strides=(8, 8))
    x = x.reshape((x.shape[0], -1))
    dense = functools.partial(nn.Dense, **models.kernel_options(self))
    return dense(self.classes, name='last_dense')(x)


class WideResNet(nn.Module):
  """WideResNet for the task C100-WRN (28-10, dropout .3).

  Three stages of (depth - 4) / 6 pre-activation blocks: norm, relu, conv,
  norm, relu, dropout, conv. Where the shape changes, the shortcut is a 1x1
  convolution of the block's raw input (in other implementations, of the
  normalised one). Norm, relu, global average pooling and a dense layer follow.
  Convolutions of stride 2 are padded by 1 on every side: 'SAME' would pad on
  one side only.

  Dropout needs `rngs={'dropout': key}` when `train` is set.

  Attributes:
    depth: 6 n + 4.
    widen: factor on the channels 16, 32 and 64 of the stages.
    dropout: rate before the second convolution of each block.
    classes: number of outputs.
    kernel_init: initialiser of all kernels.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  depth: int = 28
  widen: int = 10
  dropout: float = 0.3
  classes: int = 100
  kernel_init: Any = initializers.glorot_uniform()
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False, mask=None):
    if self.depth < 10 or (self.depth - 4) % 6:
      raise ValueError(
        f'depth is {self.depth}; expected 6 n + 4, such as 16, 28 or 40.'
      )
    options = models.kernel_options(self)
    conv = functools.partial(nn.Conv, **options)
    valid = models.example_mask(mask, x)
    x = conv(16, (3, 3), padding=1, name='first_conv')(x)

    def norm_relu(name, x):
      return nn.relu(models.batch_norm(self, train, name=name)(x, mask=valid))

    for stage in range(3):
      filters = 16 * self.widen * 2**stage
      for block in range((self.depth - 4) // 6):
        strides = 2 if stage and not block else 1
        name = f'stage{stage}_block{block}'
        x = self._block(conv, norm_relu, name, x, filters, strides, train)
    x = norm_relu('last_batch', x).mean(axis=(1, 2))
    return nn.Dense(self.classes, name='last_dense', **options)(x)

  def _block(
    self,
    conv: Callable[..., nn.Module],
    norm_relu: Callable[..., Any],
    name: str,
    x: Any,
    filters: int,
    strides: int,
    train: bool,
  ):
    y = norm_relu(f'{name}_batch1', x)
    y = conv(filters, (3, 3), strides=strides, padding=1, name=f'{name}_conv1')(
      y
    )
    y = norm_relu(f'{name}_batch2', y)
    y = nn.Dropout(self.dropout, deterministic=not train)(y)
    y = conv(filters, (3, 3), padding=1, name=f'{name}_conv2')(y)
    if strides > 1 or x.shape[-1] != filters:
      x = conv(filters, (1, 1), strides=strides, name=f'{name}_shortcut')(x)
    return x + y
