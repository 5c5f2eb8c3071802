"""Squeeze-and-excitation: channels weighted by what the whole image shows."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.nn.conv import Conv


def squeeze_excite(
  x: jax.Array,
  reduce: Callable[[jax.Array], jax.Array],
  expand: Callable[[jax.Array], jax.Array],
  activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
) -> jax.Array:
  """X sigmoid(expand(activation(reduce(mean of x over the image)))).

  Args:
    x: `[N, H, W, C]`.
    reduce: From `[N, 1, 1, C]` to `[N, 1, 1, r]`.
    expand: Back.
    activation: Between them.

  Returns:
    An array like x.

  Example:
    >>> y = squeeze_excite(jnp.ones((1, 2, 2, 3)), jnp.zeros_like, lambda z: z)
    >>> float(y[0, 0, 0, 0])
    0.5
  """
  # Summed in float32: of a bfloat16 sum over many pixels little is left.
  wide = jnp.promote_types(x.dtype, jnp.float32)
  pooled = x.mean((1, 2), keepdims=True, dtype=wide).astype(x.dtype)
  gate = jax.nn.sigmoid(expand(activation(reduce(pooled))))
  return x * gate.astype(x.dtype)


class SqueezeExcite(nn.Module):
  """`squeeze_excite` with two 1x1 convolutions.

  Attributes:
    squeezed: Channels in between.
    activation: In between.
    names: Of the two layers in the parameters.
    kernel_init: Initialiser of both kernels, `[1, 1, in, out]`.
    dtype: Type of the computation.
    param_dtype: Type of the parameters.
  """

  squeezed: int
  activation: Callable[[jax.Array], jax.Array] = jax.nn.silu
  names: tuple[str, str] = ('reduce', 'expand')
  kernel_init: Any = nn.initializers.lecun_normal()
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Weights the channels of `[N, H, W, C]`."""
    reduce, expand = (
      Conv(
        features,
        use_bias=True,
        kernel_init=self.kernel_init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name=name,
      )
      for features, name in zip(
        (self.squeezed, x.shape[-1]), self.names, strict=True
      )
    )
    return squeeze_excite(x, reduce, expand, self.activation)
