"""The inverted bottleneck block, and how its kernels start."""

import functools
import math
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp

from jaxpapers import nn
from jaxpapers.efficientnet.config import ModelConfig, ScaledBlock

ACTIVATIONS = {
  'swish': jax.nn.silu,
  'relu6': jax.nn.relu6,
  'relu': jax.nn.relu,
}
# Normal and not truncated, of variance 2 / (kh kw outputs).
conv_init = jax.nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def depthwise_init(key: jax.Array, shape: tuple[int, ...], dtype: Any):
  """Normal of standard deviation sqrt(2) / k.

  Each input has k^2 outputs here; `conv_init` would count those of all
  channels, and start sqrt(C) times too small.

  Args:
    key: Typed key.
    shape: `[kh, kw, 1, C]`.
    dtype: Type of the result.

  Returns:
    The kernel.
  """
  std = math.sqrt(2 / (shape[0] * shape[1]))
  return std * jax.random.normal(key, shape, dtype)


def classifier_init(key: jax.Array, shape: tuple[int, ...], dtype: Any):
  """Uniform within 1 / sqrt(number of classes).

  Args:
    key: Typed key.
    shape: `[C, K]`.
    dtype: Type of the result.

  Returns:
    The kernel.
  """
  bound = 1 / math.sqrt(shape[-1])
  return jax.random.uniform(key, shape, dtype, -bound, bound)


def conv(config: ModelConfig, features: int, name: str, **options: Any):
  """A convolution in the network's types and padding.

  Args:
    config: The network's.
    features: Channels that go out.
    name: In the parameters.
    **options: Further fields of `nn.Conv`.

  Returns:
    The module.
  """
  return nn.Conv(
    features,
    padding=config.padding,
    kernel_init=conv_init,
    dtype=config.dtype,
    param_dtype=jnp.dtype(config.param_dtype),
    name=name,
    **options,
  )


def batch_norm(config: ModelConfig, name: str) -> nn.BatchNorm:
  """Batch normalisation in the network's convention.

  Args:
    config: The network's.
    name: In the parameters.

  Returns:
    The module.
  """
  return nn.BatchNorm(
    momentum=config.bn_momentum,
    epsilon=config.bn_epsilon,
    variance=config.bn_variance,
    axis_name=config.bn_axis_name,
    axis_index_groups=config.bn_axis_index_groups,
    dtype=config.dtype,
    param_dtype=jnp.dtype(config.param_dtype),
    name=name,
  )


class MBConv(linen.Module):
  """Mobile inverted bottleneck with squeeze-and-excitation.

  Expansion by a 1x1 convolution (none where the ratio is 1), depthwise
  convolution, squeeze-and-excitation, projection by a 1x1 convolution without
  activation, and the input added where stride and channels allow it; in
  training the branch is then dropped for some examples.

  Attributes:
    config: The network's.
    block: The block.

  Example:
    >>> config = ModelConfig()
    >>> block = config.scaled_blocks()[2]
    >>> x = jnp.ones((1, 8, 8, block.args.input_filters))
    >>> variables = MBConv(config, block).init(jax.random.key(0), x, False)
    >>> sorted(variables['params'])[:3]
    ['depthwise_bn', 'depthwise_conv', 'expand_bn']
  """

  config: ModelConfig
  block: ScaledBlock

  @linen.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """Runs the block.

    Args:
      x: `[N, H, W, C]`.
      train: Whether with statistics of the batch, and stochastic depth (key
        'dropout').

    Returns:
      Output `[N, H', W', K]`, and what enters the projection.
    """
    config, args = self.config, self.block.args
    act = ACTIVATIONS[config.activation]
    make = functools.partial(conv, config)
    norm = functools.partial(batch_norm, config)
    y = x
    if args.fused:
      y = make(
        args.expanded_filters,
        'expand_conv',
        kernel_size=args.kernel_size,
        strides=args.strides,
      )(y)
      y = act(norm('expand_bn')(y, train=train))
    else:
      if args.expand_ratio != 1:
        y = make(args.expanded_filters, 'expand_conv')(y)
        y = act(norm('expand_bn')(y, train=train))
      y = nn.DepthwiseConv(
        args.kernel_size,
        args.strides,
        config.padding,
        config.depthwise_impl,
        depthwise_init,
        config.dtype,
        jnp.dtype(config.param_dtype),
        name='depthwise_conv',
      )(y)
      y = act(norm('depthwise_bn')(y, train=train))
    if args.squeezed_filters:
      reduce = make(args.squeezed_filters, 'se_reduce', use_bias=True)
      expand = make(y.shape[-1], 'se_expand', use_bias=True)
      y = nn.squeeze_excite(y, reduce, expand, act)
    expanded = y
    y = make(args.output_filters, 'project_conv')(y)
    y = norm('project_bn')(y, train=train)
    if args.has_skip and x.shape == y.shape:
      survival = self.block.survival_prob
      key = None
      if train and survival is not None and survival < 1:
        key = self.make_rng('dropout')
      y = x + nn.drop_path(key, y, survival, deterministic=not train)
    return y, expanded
