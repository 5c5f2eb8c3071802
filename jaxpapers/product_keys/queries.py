"""Query networks: from a token to one query for each head and half."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.product_keys.batch_norm import MaskedBatchNorm

__all__ = ['QueryConvolutions', 'QueryNetwork', 'shuffled_queries']

QUERY_NETS = ('one', 'per_half')


def torch_uniform(fan_in: int) -> Callable:
  """Initializer of torch's linear layers, for weights and biases."""
  bound = fan_in**-0.5

  def init(rng, shape, dtype=jnp.float32):
    return jax.random.uniform(rng, shape, dtype, -bound, bound)

  return init


class QueryNetwork(nn.Module):
  """Linear layers with ReLU between them and a norm behind each.

  Attributes:
    groups: Networks side by side, each with its own part of the result.
    features: Widths of the layers of one network, the result's last.
    train: Whether batch normalisation takes the statistics of this batch.
    batch_norm: Whether batch normalisation follows every layer, the last
      included, before the ReLU.
    use_bias: Whether layers have biases.
    momentum: Of batch normalisation.
    axis_name: See `MaskedBatchNorm`.
    kernel_init: Initializer of kernels; torch's by default.
    dtype: Type of the computation.
    param_dtype: Type of the parameters.
  """

  groups: int
  features: tuple[int, ...]
  train: bool
  batch_norm: bool = False
  use_bias: bool = True
  momentum: float = 0.1
  axis_name: Any = None
  kernel_init: Callable | None = None
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Maps `[T, d]` to `[T, groups * features[-1]]`."""
    # A single network is an ordinary dense layer; several have one kernel
    # [groups, in, out]. XLM's grouped convolutions are the same function.
    x = x.astype(self.dtype)
    for i, size in enumerate(self.features):
      fan_in = x.shape[-1]
      init = torch_uniform(fan_in)
      kernel_init = self.kernel_init or init
      if self.groups == 1:
        x = nn.Dense(
          size,
          use_bias=self.use_bias,
          dtype=self.dtype,
          param_dtype=self.param_dtype,
          kernel_init=kernel_init,
          bias_init=init,
          name=f'dense_{i}',
        )(x)
      else:
        shape = (self.groups, fan_in, size)
        kernel = self.param(
          f'kernel_{i}',
          lambda rng, shape, dtype, make=kernel_init: jax.vmap(
            lambda key: make(key, shape[1:], dtype)
          )(jax.random.split(rng, shape[0])),
          shape,
          self.param_dtype,
        )
        equation = 'td,gdf->tgf' if x.ndim == 2 else 'tgd,gdf->tgf'
        x = jnp.einsum(equation, x, kernel.astype(self.dtype))
        if self.use_bias:
          bias = self.param(
            f'bias_{i}', init, (self.groups, size), self.param_dtype
          )
          x = x + bias.astype(self.dtype)
      if self.batch_norm:
        flat = x.reshape(x.shape[0], -1)
        flat = MaskedBatchNorm(
          momentum=self.momentum,
          axis_name=self.axis_name,
          dtype=self.dtype,
          param_dtype=self.param_dtype,
          name=f'norm_{i}',
        )(flat, mask, train=self.train)
        x = flat.reshape(x.shape)
      if i + 1 < len(self.features):
        x = nn.relu(x)
    return x.reshape(x.shape[0], -1)


class QueryConvolutions(nn.Module):
  """The same with convolutions, for images.

  Padding is zero at the borders, and so are masked pixels.

  Attributes:
    groups: Networks side by side, each with its own part of the result.
    features: Widths of the layers of one network, the result's last.
    kernels: Odd size of the kernel of each layer.
    train: See `QueryNetwork`, also for what follows.
    residual: Whether layers are bottlenecks: two convolutions with the smaller
      of both widths between them, plus their input, and a ReLU; one more layer
      of single pixels then makes the result.
    batch_norm: Not behind that one.
    use_bias: Not for projections of residuals.
    momentum: Of batch normalisation.
    axis_name: Axes of batch normalisation.
    kernel_init: Initializer of kernels.
    dtype: Type of the computation.
    param_dtype: Type of the parameters.
  """

  groups: int
  features: tuple[int, ...]
  kernels: tuple[int, ...]
  train: bool
  residual: bool = False
  batch_norm: bool = False
  use_bias: bool = True
  momentum: float = 0.1
  axis_name: Any = None
  kernel_init: Callable | None = None
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Maps `[..., H, W, d]` to `[T, groups * features[-1]]`."""
    x = x.reshape(-1, *x.shape[-3:]).astype(self.dtype)
    if mask is not None:
      mask = mask.reshape(x.shape[:-1])
    fields = {
      name: getattr(self, name)
      for name in self.__dataclass_fields__
      if name not in ('parent', 'name', 'groups')
    }
    if self.groups == 1:
      y = _Convolutions(**fields, name='net')(x, mask)
    else:
      many = nn.vmap(
        _Convolutions,
        variable_axes={'params': 0, 'batch_stats': 0},
        split_rngs={'params': True},
        in_axes=None,
        out_axes=-2,
        axis_size=self.groups,
      )
      y = many(**fields, name='nets')(x, mask)
    return y.reshape(-1, self.groups * self.features[-1])


class _Convolutions(nn.Module):
  """One network of `QueryConvolutions`, with its fields."""

  features: tuple[int, ...]
  kernels: tuple[int, ...]
  train: bool
  residual: bool
  batch_norm: bool
  use_bias: bool
  momentum: float
  axis_name: Any
  kernel_init: Callable | None
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, x, mask):
    last = len(self.features) - 1
    for i, (size, kernel) in enumerate(zip(self.features, self.kernels)):
      if self.residual:
        y = self._layer(x, mask, min(x.shape[-1], size), kernel, f'{i}_in')
        y = self._layer(nn.relu(y), mask, size, kernel, f'{i}_out')
        if x.shape[-1] != size:
          x = self._convolve(x, mask, size, 1, f'residual_{i}', use_bias=False)
        x = nn.relu(x + y)
      else:
        x = self._layer(x, mask, size, kernel, f'{i}')
        x = nn.relu(x) if i < last else x
    if self.residual:
      x = self._convolve(x, mask, self.features[-1], 1, 'last', self.use_bias)
    return x

  def _layer(self, x, mask, size, kernel, name):
    x = self._convolve(x, mask, size, kernel, f'conv_{name}', self.use_bias)
    if not self.batch_norm:
      return x
    flat = MaskedBatchNorm(
      momentum=self.momentum,
      axis_name=self.axis_name,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name=f'norm_{name}',
    )(
      x.reshape(-1, size),
      None if mask is None else mask.reshape(-1),
      train=self.train,
    )
    return flat.reshape(x.shape)

  def _convolve(self, x, mask, size, kernel, name, use_bias):
    if mask is not None:
      x = jnp.where(mask[..., None], x, 0)
    init = torch_uniform(x.shape[-1] * kernel**2)
    return nn.Conv(
      size,
      (kernel, kernel),
      use_bias=use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=self.kernel_init or init,
      bias_init=init,
      name=name,
    )(x)


def shuffled_queries(x: jax.Array, heads: int) -> jax.Array:
  """Queries without a network: the token itself, its blocks reordered.

  Head 0 gets x; head h >= 1 gets x cut into blocks of d / 2^(h + 1), first all
  of even number, then all of odd number.

  Args:
    x: `[T, d]`, d divisible by 2^heads.
    heads: Number of heads.

  Returns:
    `[T, heads, d]`.

  Raises:
    ValueError: If 2^heads does not divide d.

  Example:
    >>> shuffled_queries(jnp.arange(4)[None], 2).tolist()
    [[[0, 1, 2, 3], [0, 2, 1, 3]]]
  """
  dim = x.shape[-1]
  if dim % 2**heads:
    raise ValueError(
      f'shuffle_query with {heads} heads needs a width divisible by'
      f' {2**heads}; x has shape {x.shape}.'
    )
  queries = [x]
  for h in range(1, heads):
    blocks = x.reshape(x.shape[0], -1, dim // 2 ** (h + 1))
    order = jnp.concatenate([blocks[:, ::2], blocks[:, 1::2]], axis=1)
    queries.append(order.reshape(x.shape))
  return jnp.stack(queries, axis=1)
