"""The bottleneck adapter (Houlsby et al. 2019, section 2.1)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.nn import gelu

ACTIVATIONS = {
  'gelu_tanh': lambda x: gelu(x, 'tanh'),
  'gelu': lambda x: gelu(x, 'erf'),
  'swish': nn.swish,
  'relu': nn.relu,
  'tanh': jnp.tanh,
  'identity': lambda x: x,
}
INITIALIZERS = {
  'truncated_normal': nn.initializers.truncated_normal,
  'normal': nn.initializers.normal,
}


class BottleneckAdapter(nn.Module):
  """`x + up(act(down(x)))`, the identity but for a little at initialisation.

  Parameters: `down` (kernel `[d, m]`), `up` (kernel `[m, d]`) and their biases,
  `2 m d + m + d` in all.

  Attributes:
    size: Width m of the bottleneck; 0 is the identity, without parameters.
    activation: A key of `ACTIVATIONS`.
    initializer: 'truncated_normal' or 'normal': the law of the kernels.
    init_std: Its standard deviation, before truncation at two of it.
    depth: Activations between the projections.
    dtype: Type of the products; by default that of input and parameters.
    param_dtype: Type of the parameters.

  Example:
    >>> adapter = BottleneckAdapter(size=8)
    >>> x = jnp.ones((2, 5, 32))
    >>> y, variables = adapter.init_with_output(jax.random.key(0), x)
    >>> bool(jnp.abs(y - x).max() < 1e-2)
    True
  """

  size: int = 64
  activation: str = 'gelu_tanh'
  initializer: str = 'truncated_normal'
  init_std: float = 1e-2
  depth: int = 1
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    gate: jax.Array | float | None = None,
    source: jax.Array | None = None,
  ) -> jax.Array:
    """Applies the adapter.

    Args:
      x: What a block adds to the residual stream, `[..., d]`.
      gate: Factor of what the adapter adds: 1 leaves it, 0 removes it. Of the
        shape of some leading axes of `x`: a scalar, `[B]`, `[B, S]`.
      source: What the adapter reads, `[..., d']`, where that is not `x`: the
        parallel adapter.

    Returns:
      `[..., d]` in float32 or wider: at initialisation the adapter adds a
      thousandth or less, which bfloat16 would round away.

    Raises:
      ValueError: If an attribute or the shape of `gate` is impossible.
    """
    check_size(self.size)
    check_choices(self.activation, self.initializer, self.init_std, self.depth)
    if not self.size:
      return x
    activation = ACTIVATIONS[self.activation]

    def dense(features, name):
      return nn.Dense(
        features,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        kernel_init=INITIALIZERS[self.initializer](self.init_std),
        name=name,
      )

    hidden = x if source is None else source
    hidden = activation(dense(self.size, 'down')(hidden))
    for i in range(1, self.depth):
      hidden = activation(dense(self.size, f'middle_{i}')(hidden))
    delta = dense(x.shape[-1], 'up')(hidden)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    delta = delta.astype(wide)
    if gate is not None:
      gate = jnp.asarray(gate, wide)
      if gate.ndim >= x.ndim or any(
        g not in (1, n) for g, n in zip(gate.shape, x.shape)
      ):
        raise ValueError(
          f'gate has shape {gate.shape}; expected leading axes of x, whose'
          f' shape is {x.shape}, without the last.'
        )
      gate = gate.reshape(gate.shape + (1,) * (x.ndim - gate.ndim))
      # Removed is removed, even if the adapter had overflown.
      delta = jnp.where(gate == 0, 0, delta) * gate
    return x.astype(wide) + delta


def check_size(size: Any) -> None:
  """Refuses impossible widths of a bottleneck.

  Raises:
    ValueError: If it is not an integer of 0 or more.
  """
  if isinstance(size, bool) or not isinstance(size, int) or size < 0:
    raise ValueError(
      f'size is {size!r}; expected an integer, 0 (no adapter) or more.'
    )


def check_choices(
  activation: str, initializer: str, init_std: float, depth: int
) -> None:
  """Refuses impossible attributes of an adapter.

  Raises:
    ValueError: Says which one, and what is possible.
  """
  if activation not in ACTIVATIONS:
    raise ValueError(
      f'activation is {activation!r}; expected one of {list(ACTIVATIONS)}.'
    )
  if initializer not in INITIALIZERS:
    raise ValueError(
      f'initializer is {initializer!r}; expected one of {list(INITIALIZERS)}.'
    )
  if not (math.isfinite(init_std) and init_std >= 0):
    raise ValueError(f'init_std is {init_std}; expected a number of 0 or more.')
  if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
    raise ValueError(f'depth is {depth!r}; expected an integer of 1 or more.')
