"""Batch normalisation that leaves padding out."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ['MaskedBatchNorm']


class MaskedBatchNorm(nn.Module):
  """Batch normalisation over tokens that are not padding.

  As `torch.nn.BatchNorm1d`: the running variance is the unbiased one, n / (n -
  1) times what normalises (flax's own is biased), and momentum is the share of
  the new. Statistics are float32 or wider.

  Attributes:
    momentum: Share of a batch in the running statistics.
    epsilon: Added to the variance.
    axis_name: Mapped axes over which statistics are those of all shards; under
      `jit` on a mesh they always are.
    dtype: Type of the result; that of x by default.
    param_dtype: Type of `scale` and `bias`.
  """

  momentum: float = 0.1
  epsilon: float = 1e-5
  axis_name: str | Sequence[str] | None = None
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array | None = None, *, train: bool
  ) -> jax.Array:
    """Normalises each channel.

    Where the mask is traced, fewer than two valid tokens cannot raise: the
    running statistics then stay as they are.

    Args:
      x: `[T, C]`.
      mask: Tokens that count, bool `[T]`; all by default. The others are
        normalised too, but change nothing.
      train: Whether with the statistics of this batch, and to keep them.

    Returns:
      `[T, C]`.

    Raises:
      ValueError: If there are fewer than two valid tokens to train with.
    """
    channels = x.shape[-1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    scale = self.param(
      'scale', nn.initializers.ones, (channels,), self.param_dtype
    )
    bias = self.param(
      'bias', nn.initializers.zeros, (channels,), self.param_dtype
    )
    running_mean = self.variable(
      'batch_stats', 'mean', lambda: jnp.zeros((channels,), jnp.float32)
    )
    running_var = self.variable(
      'batch_stats', 'var', lambda: jnp.ones((channels,), jnp.float32)
    )
    y = x.astype(wide)
    if train and not self.is_initializing():
      self._check(x, mask)
      valid = jnp.ones(x.shape[:1], bool) if mask is None else mask
      # where, not a product: padding may hold NaN.
      kept = valid[:, None]
      count = self._sum(valid.sum(dtype=jnp.int32)).astype(wide)
      size = jnp.maximum(count, 1)
      mean = self._sum(jnp.where(kept, y, 0).sum(axis=0)) / size
      squares = jnp.where(kept, jnp.square(y - mean), 0).sum(axis=0)
      var = self._sum(squares) / size
      if self.is_mutable_collection('batch_stats'):
        unbiased = var * size / jnp.maximum(count - 1, 1)
        for running, new in ((running_mean, mean), (running_var, unbiased)):
          old = running.value
          moved = old + self.momentum * (new.astype(old.dtype) - old)
          running.value = jnp.where(count > 1, moved, old)
    else:
      mean, var = running_mean.value, running_var.value
    y = (y - mean) * jax.lax.rsqrt(var + self.epsilon)
    y = y * scale.astype(wide) + bias.astype(wide)
    return y.astype(self.dtype or x.dtype)

  def _sum(self, x):
    return x if self.axis_name is None else jax.lax.psum(x, self.axis_name)

  def _check(self, x, mask):
    count = x.shape[0]
    if mask is not None and not isinstance(mask, jax.core.Tracer):
      count = int(np.sum(np.asarray(mask)))
    if count < 2 and self.axis_name is None:
      raise ValueError(
        f'mask leaves {count} valid tokens; expected 2 or more, since batch'
        ' normalisation divides by their number minus one. Train with longer'
        ' or more sequences, or another query_norm.'
      )
