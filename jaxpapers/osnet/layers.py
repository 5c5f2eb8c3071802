"""The parts of omni-scale blocks: Lite 3x3, gates, norms as torch has them."""

from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp

from jaxpapers import nn
from jaxpapers.osnet.config import GATE_ACTIVATIONS, OSNetConfig

# torch's kaiming_normal_(mode='fan_out'): not truncated, and of depthwise
# kernels the outputs are all channels.
conv_init = linen.initializers.variance_scaling(2.0, 'fan_out', 'normal')
dense_init = linen.initializers.normal(0.01)


class TorchBatchNorm(nn.BatchNorm):
  """`jaxpapers.nn.BatchNorm` with the numbers of torch.

  Momentum 0.9 is torch's 0.1, and what is kept is the unbiased variance.

  Attributes:
    affine: Whether there are a scale and a bias.

  Example:
    >>> norm = TorchBatchNorm()
    >>> x = jnp.array([[1.0], [3.0]])
    >>> variables = norm.init(jax.random.key(0), x, train=False)
    >>> _, new = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    >>> round(float(new['batch_stats']['var'][0]), 3)  # 0.9 + 0.1 * 2
    1.1
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  variance: str = 'unbiased'
  affine: bool = True

  def param(self, name, init_fn, *init_args, **kwargs):
    """The parameter; without `affine` the constant that it starts as."""
    if self.affine:
      return super().param(name, init_fn, *init_args, **kwargs)
    return init_fn(jax.random.key(0), *init_args)


class InstanceNorm2d(linen.Module):
  """Normalises each channel of each image by its own mean and variance.

  y = scale (x - mean) / sqrt(var + epsilon) + bias, in training as afterwards.

  Attributes:
    epsilon: Added to the variance; torch's, Flax has 1e-6.
    affine: Whether there are a scale and a bias.
    dtype: Type of the result; that of x and the parameters by default.
    param_dtype: Type of `scale` and `bias`.

  Example:
    >>> x = jnp.arange(8.0).reshape(1, 2, 2, 2)
    >>> y, _ = InstanceNorm2d().init_with_output(jax.random.key(0), x)
    >>> [round(float(v), 3) for v in y[0, :, :, 1].ravel()]
    [-1.342, -0.447, 0.447, 1.342]
  """

  epsilon: float = 1e-5
  affine: bool = True
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @linen.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises `[B, H, W, C]`.

    Raises:
      ValueError: If there is but one pixel, of which nothing would be left.
    """
    if x.shape[1] * x.shape[2] < 2:
      raise ValueError(
        f'{self.name or "InstanceNorm2d"} got {x.shape}: of one pixel it would'
        ' leave only its bias. Use larger images.'
      )
    dtype = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean((1, 2), keepdims=True)
    x = x - mean
    x = x * jax.lax.rsqrt(
      jnp.square(x).mean((1, 2), keepdims=True) + self.epsilon
    )
    if self.affine:
      shape = (x.shape[-1],)
      scale = self.param('scale', linen.initializers.ones, shape, self._stored)
      bias = self.param('bias', linen.initializers.zeros, shape, self._stored)
      x = x * scale + bias
    return x.astype(dtype)

  @property
  def _stored(self):
    return jnp.dtype(self.param_dtype)


class FoldedNorm(linen.Module):
  """The bias that is left of a batch norm once its convolution has the rest.

  Attributes:
    dtype: Type of the result.
    param_dtype: Type of `bias`.
  """

  dtype: Any = None
  param_dtype: Any = jnp.float32

  @linen.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Adds it to the last axis."""
    bias = self.param(
      'bias', linen.initializers.zeros, x.shape[-1:], self.param_dtype
    )
    return x + bias.astype(x.dtype)


def batch_norm(cfg: OSNetConfig, x: jax.Array, train: bool) -> jax.Array:
  """Batch norm `norm` of the module that calls this, as the config wants it.

  Args:
    cfg: The network's.
    x: `[..., C]`.
    train: Whether with the statistics of this batch.

  Returns:
    An array of the shape of x.
  """
  dtype, stored = compute_type(cfg, x), jnp.dtype(cfg.param_dtype)
  if cfg.folded:
    if train:
      raise ValueError(
        'the batch norms of this network are folded; expected train=False.'
      )
    return FoldedNorm(dtype, stored, name='norm')(x)
  return TorchBatchNorm(
    affine=cfg.affine,
    axis_name=cfg.axis_name,
    dtype=dtype,
    param_dtype=stored,
    name='norm',
  )(x, train=train)


def compute_type(cfg: OSNetConfig, x: jax.Array) -> Any:
  """Type in which layers compute: the config's, or that of their input."""
  return jnp.dtype(cfg.dtype) if cfg.dtype is not None else x.dtype


class ConvNorm(linen.Module):
  """Convolution without bias, norm, ReLU.

  Attributes:
    features: Channels that go out.
    cfg: The network's.
    kernel_size: Side of the kernel.
    strides: Vertical and horizontal stride.
    norm: 'batch', 'instance' or None.
    relu: Whether negative numbers become zero.
  """

  features: int
  cfg: OSNetConfig = OSNetConfig()
  kernel_size: int = 1
  strides: int = 1
  norm: str | None = 'batch'
  relu: bool = True

  @linen.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[B, H, W, C]` to `[B, H', W', features]`."""
    cfg = self.cfg
    stored = jnp.dtype(cfg.param_dtype)
    x = nn.Conv(
      self.features,
      self.kernel_size,
      self.strides,
      padding='symmetric',
      kernel_init=conv_init,
      dtype=cfg.dtype,
      param_dtype=stored,
      name='conv',
    )(x)
    if self.norm == 'batch':
      x = batch_norm(cfg, x, train)
    elif self.norm == 'instance':
      dtype = compute_type(cfg, x)
      x = InstanceNorm2d(
        affine=cfg.affine, dtype=dtype, param_dtype=stored, name='norm'
      )(x)
    return nn.relu(x) if self.relu else x


class LiteConv3x3(linen.Module):
  """Pointwise, then depthwise 3x3 convolution, batch norm, ReLU (figure 3b).

  The order is the reverse of MobileNet's, with nothing in between. With
  `lite=False` in the config it is a full 3x3 convolution.

  Attributes:
    features: Channels that go out.
    cfg: The network's.

  Example:
    >>> layer, x = LiteConv3x3(8), jnp.ones((1, 5, 5, 4))
    >>> y, _ = layer.init_with_output(jax.random.key(0), x, False)
    >>> y.shape
    (1, 5, 5, 8)
  """

  features: int
  cfg: OSNetConfig = OSNetConfig()

  @linen.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[B, H, W, C]` to `[B, H, W, features]`."""
    cfg = self.cfg
    types = {'dtype': cfg.dtype, 'param_dtype': jnp.dtype(cfg.param_dtype)}
    kinds = {'padding': 'symmetric', 'kernel_init': conv_init, **types}
    if cfg.lite:
      x = nn.Conv(self.features, name='pointwise', **kinds)(x)
      x = nn.DepthwiseConv(3, impl=cfg.depthwise, name='depthwise', **kinds)(x)
    else:
      x = nn.Conv(self.features, 3, name='conv', **kinds)(x)
    return nn.relu(batch_norm(cfg, x, train))


class AggregationGate(linen.Module):
  """Weighs the channels of each stream by what the stream itself holds.

    g = sigmoid(W2 relu(W1 mean(x) + b1) + b2),   y = g x     (equation 2)

  One small network is shared by all streams that it is called with, so that
  their gradients meet in it.

  Attributes:
    reduction: What the hidden layer divides the channels by.
    num_gates: None for a gate per channel, 1 for one per stream.
    activation: 'sigmoid', 'relu' or 'linear'.
    layer_norm: Whether the hidden layer is normalised.
    return_gates: Whether to return g instead of g x.
    dtype: Type of the computation.
    param_dtype: Type of the parameters.

  Example:
    >>> gate = AggregationGate(reduction=2)
    >>> streams = jnp.ones((1, 4, 4, 8)), jnp.zeros((1, 4, 4, 8))
    >>> (a, b), _ = gate.init_with_output(jax.random.key(0), *streams)
    >>> a.shape, float(abs(b).max())
    ((1, 4, 4, 8), 0.0)
  """

  reduction: int = 16
  num_gates: int | None = None
  activation: str = 'sigmoid'
  layer_norm: bool = False
  return_gates: bool = False
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @linen.compact
  def __call__(self, *streams: jax.Array) -> tuple[jax.Array, ...]:
    """Gates streams of one shape.

    Args:
      *streams: `[B, H, W, C]` each.

    Returns:
      As many of the same shape; with `return_gates` `[B, 1, 1, C or 1]`.

    Raises:
      ValueError: If the hidden layer has no channels, or the activation is
        unknown.
    """
    if self.activation not in GATE_ACTIVATIONS:
      raise ValueError(
        f'activation is {self.activation!r}; expected one of'
        f' {GATE_ACTIVATIONS}.'
      )
    channels = streams[0].shape[-1]
    hidden = channels // self.reduction
    if hidden < 1:
      raise ValueError(
        f'reduction is {self.reduction}; expected at most {channels}, the'
        ' channels of a stream.'
      )
    kinds = {
      'kernel_init': conv_init,
      'dtype': self.dtype,
      'param_dtype': jnp.dtype(self.param_dtype),
    }
    # All streams at once: two products of matrices, not two for each.
    g = jnp.stack([pool_average(x) for x in streams])
    g = linen.Dense(hidden, name='fc1', **kinds)(g)
    if self.layer_norm:
      g = linen.LayerNorm(
        1e-5,
        dtype=self.dtype,
        param_dtype=kinds['param_dtype'],
        use_fast_variance=False,
        name='norm1',
      )(g)
    g = nn.relu(g)
    g = linen.Dense(self.num_gates or channels, name='fc2', **kinds)(g)
    if self.activation != 'linear':
      g = getattr(linen, self.activation)(g)
    g = g[:, :, None, None]
    if self.return_gates:
      return tuple(g)
    return tuple(x * gate for x, gate in zip(streams, g, strict=True))


def pool_average(x: jax.Array) -> jax.Array:
  """Mean over the pixels of `[B, H, W, C]`, in float32 or wider inside."""
  wide = jnp.promote_types(x.dtype, jnp.float32)
  return x.mean((1, 2), dtype=wide).astype(x.dtype)
