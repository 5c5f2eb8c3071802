"""Batch normalisation in the conventions of TensorFlow and of torch."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.nn.varying import vary_alike


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last.

  y = scale (x - mean) / sqrt(var + epsilon) + bias

  Statistics are float32 or wider. As in Flax, momentum is the share of the old:
  0.99 here is TensorFlow's 0.99 and torch's 0.01.

  The gradient is written by hand, with two sums over the batch where automatic
  differentiation makes four; so there is no forward-mode derivative
  (`jax.jvp`, Hessians) in training unless `axis_name` is set.

  Attributes:
    momentum: Share of the old running statistics.
    epsilon: Added to the variance.
    variance: 'biased' keeps the variance that normalises, as TensorFlow and
      Flax; 'unbiased' keeps n / (n - 1) times it, as torch.
    axis_name: Mapped axes (`vmap`, `shard_map`) over which statistics are those
      of all shards. Under `jit` on a mesh they always are.
    axis_index_groups: Groups of devices of that axis that share statistics, of
      one size; all by default.
    dtype: Type of the result; that of x and the parameters by default.
    param_dtype: Type of `scale` and `bias`.
    scale_init: Initialiser of `scale`.
    bias_init: Initialiser of `bias`.

  Example:
    >>> norm = BatchNorm()
    >>> x = jnp.arange(8.0).reshape(4, 2)
    >>> variables = norm.init(jax.random.key(0), x, train=False)
    >>> y, _ = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    >>> round(float(y.std()), 3)
    1.0
  """

  momentum: float = 0.99
  epsilon: float = 1e-3
  variance: str = 'biased'
  axis_name: str | Sequence[str] | None = None
  axis_index_groups: Any = None
  dtype: Any = None
  param_dtype: Any = jnp.float32
  scale_init: Any = nn.initializers.ones
  bias_init: Any = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Normalises each channel.

    Args:
      x: `[..., C]`, floating.
      train: Whether with the statistics of this batch. They are kept if
        `batch_stats` is mutable.

    Returns:
      An array of the shape of x.

    Raises:
      ValueError: If 'unbiased' meets a single value per channel, as in torch,
        or the kind of variance is unknown.
    """
    if self.variance not in ('biased', 'unbiased'):
      raise ValueError(
        f"variance is {self.variance!r}; expected 'biased' or 'unbiased'."
      )
    shape = (x.shape[-1],)
    scale = self.param('scale', self.scale_init, shape, self.param_dtype)
    bias = self.param('bias', self.bias_init, shape, self.param_dtype)
    kept = jnp.promote_types(self.param_dtype, jnp.float32)
    running_mean = self.variable(
      'batch_stats', 'mean', lambda: jnp.zeros(shape, kept)
    )
    running_var = self.variable(
      'batch_stats', 'var', lambda: jnp.ones(shape, kept)
    )
    dtype = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
    if train and not self.is_initializing():
      count = self._count(x)
      if self.axis_name is None:
        scale, bias, x = vary_alike(scale, bias, x)
        y, mean, var = _normalize_batch(x, scale, bias, self.epsilon, dtype)
      else:
        mean, var = self._moments(_wide(x))
        y = _normalize(x, mean, var, scale, bias, self.epsilon, dtype)
      if self.is_mutable_collection('batch_stats'):
        self._keep(running_mean, mean)
        self._keep(running_var, var * self._correction(count))
      return y
    mean, var = running_mean.value, running_var.value
    return _normalize(x, mean, var, scale, bias, self.epsilon, dtype)

  def _moments(self, x):
    mean, var = _moments(x)
    whole = self._mean(mean)
    # Not the mean of squares: where means are large that loses digits.
    return whole, self._mean(var + jnp.square(mean - whole))

  def _mean(self, x):
    if self.axis_name is None:
      return x
    return jax.lax.pmean(
      x, self.axis_name, axis_index_groups=self.axis_index_groups
    )

  def _count(self, x) -> Any:
    """Values per channel, of all shards."""
    count = int(np.prod(x.shape[:-1]))
    if self.axis_index_groups is not None:
      return count * len(self.axis_index_groups[0])
    if self.axis_name is not None:
      return jax.lax.psum(count, self.axis_name)
    return count

  def _correction(self, count):
    if self.variance == 'biased':
      return 1.0
    if isinstance(count, int) and count < 2:
      raise ValueError(
        f'{self.name or "BatchNorm"} has {count} value per channel to train'
        ' with; expected 2 or more, since the unbiased variance divides by one'
        ' less. Use more or larger images, or train=False.'
      )
    return count / (count - 1)

  def _keep(self, running, new):
    old = running.value
    new = new.astype(old.dtype)
    running.value = self.momentum * old + (1 - self.momentum) * new


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _moments(x):
  axes = tuple(range(x.ndim - 1))
  mean = x.mean(axes)
  # Not x - mean: what is wanted several times, here, for the result and for the
  # gradient, the compiler computes once and writes to memory.
  return mean, jnp.square(mean - x).mean(axes)


def _normalize(x, mean, var, scale, bias, epsilon, dtype):
  x = x.astype(jnp.promote_types(_wide(x).dtype, scale.dtype))
  factor = scale.astype(x.dtype) * jax.lax.rsqrt(var + epsilon).astype(x.dtype)
  y = (x - mean.astype(x.dtype)) * factor + bias.astype(x.dtype)
  return y.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize_batch(x, scale, bias, epsilon, dtype):
  """Normalised x, and the mean and biased variance that did it."""
  mean, var = _moments(_wide(x))
  return _normalize(x, mean, var, scale, bias, epsilon, dtype), mean, var


def _forward(x, scale, bias, epsilon, dtype):
  y, mean, var = _normalize_batch(x, scale, bias, epsilon, dtype)
  # x and no copy of it: what is normalised is computed again.
  return (y, mean, var), (x, scale, bias, mean, var)


def _backward(epsilon, dtype, residuals, cotangents):
  del dtype
  x, scale, bias, mean, var = residuals
  dy, dmean, dvar = cotangents
  axes = tuple(range(x.ndim - 1))
  count = x.size // x.shape[-1]
  inverse = jax.lax.rsqrt(var + epsilon)
  centred = _wide(x) - mean
  dy = dy.astype(centred.dtype)
  dbias = dy.sum(axes)
  # As in `_moments`, something else to the compiler, and the same number.
  other = _wide(x) - (mean + 0 * var)
  dscale = (dy * (other * inverse)).sum(axes)
  factor = scale.astype(inverse.dtype) * inverse
  # In brackets what varies by channel alone.
  dx = dy * factor - (factor * dbias - dmean) / count
  dx = dx - centred * ((factor * inverse * dscale - 2 * dvar) / count)
  return (
    dx.astype(x.dtype),
    dscale.astype(scale.dtype),
    dbias.astype(bias.dtype),
  )


_normalize_batch.defvjp(_forward, _backward)
