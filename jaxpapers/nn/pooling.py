"""Pooling of images, with gradients that are fast on CPUs.

XLA's gradient of a maximum over windows writes down the index of every pixel
there, four arrays of it, and scatters. Here a pixel collects from the few
windows that see it.
"""

import functools

import jax
import jax.numpy as jnp

from jaxpapers.nn import phases
from jaxpapers.nn.conv import Padding, explicit_padding

_Pair = tuple[int, int]


def max_pool(
  x: jax.Array,
  window: _Pair,
  strides: _Pair | None = None,
  padding: Padding = 'VALID',
) -> jax.Array:
  """The largest number of each channel in each window.

  Of equal numbers the first has the gradient, as in torch.

  Args:
    x: `[N, H, W, C]`, floating.
    window: Height and width.
    strides: Vertical and horizontal; the window's by default.
    padding: As in `explicit_padding`; what is added is never the largest.

  Returns:
    `[N, H', W', C]`. There is no forward-mode derivative (`jax.jvp`, Hessians).

  Raises:
    ValueError: If shapes do not fit.

  Example:
    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_pool(x, (2, 2))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
  """
  strides = strides or window
  return _max_pool(x, window, strides, _pads(x, window, strides, padding))


def avg_pool(x: jax.Array, window: _Pair) -> jax.Array:
  """Means of windows side by side; what is left over is dropped.

  Args:
    x: `[N, H, W, C]`, floating.
    window: Height and width, and the strides too.

  Returns:
    `[N, H // h, W // w, C]`.

  Raises:
    ValueError: If shapes do not fit.

  Example:
    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> avg_pool(x, (2, 2))[0, :, :, 0].tolist()
    [[2.5, 4.5], [10.5, 12.5]]
  """
  _pads(x, window, window, 'VALID')
  return _avg_pool(x, window)


def _pads(x, window, strides, padding):
  if jnp.ndim(x) != 4:
    raise ValueError(f'x has shape {jnp.shape(x)}; expected [N, H, W, C].')
  pads = explicit_padding(x.shape[1:3], window, strides, padding)
  for size, length, pad in zip(x.shape[1:3], window, pads, strict=True):
    if size + sum(pad) < length or max(pad) >= length:
      raise ValueError(
        f'x has shape {x.shape}, padding is {padding!r}; expected less padding'
        f' than the window {window}, and images at least as large.'
      )
  return pads


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, strides, pads):
  return _reduce_max(x, window, strides, pads)


def _reduce_max(x, window, strides, pads):
  return jax.lax.reduce_window(
    x,
    -jnp.inf,
    jax.lax.max,
    (1, *window, 1),
    (1, *strides, 1),
    ((0, 0), *pads, (0, 0)),
  )


def _max_forward(x, window, strides, pads):
  y = _max_pool(x, window, strides, pads)
  return y, (x, y)


def _max_backward(window, strides, pads, residuals, dy):
  def collect(x, y, dy):
    return _collect(x, y, dy, window, strides, pads)

  def lax(x, y, dy):
    del y
    pool = functools.partial(
      _reduce_max, window=window, strides=strides, pads=pads
    )
    return jax.vjp(pool, x)[1](dy)[0]

  x, y = residuals
  return (jax.lax.platform_dependent(x, y, dy, cpu=collect, default=lax),)


_max_pool.defvjp(_max_forward, _max_backward)


def _collect(x, y, dy, window, strides, pads):
  """Gradient of the input: what each pixel gets from windows that chose it."""
  padded = jax.lax.pad(
    x,
    jnp.array(-jnp.inf, x.dtype),
    ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)),
  )
  height, width = y.shape[1:3]
  chosen = jnp.full(y.shape, window[0] * window[1], jnp.int32)
  for tap in reversed(range(window[0] * window[1])):
    i, j = divmod(tap, window[1])
    seen = padded[
      :,
      i : i + (height - 1) * strides[0] + 1 : strides[0],
      j : j + (width - 1) * strides[1] + 1 : strides[1],
    ]
    chosen = jnp.where(seen == y, tap, chosen)

  def part(row, column):
    edges = (0, 0, 0), (*row.pads, 0), (*column.pads, 0), (0, 0, 0)
    # Beyond the edges no tap is chosen.
    choice = jax.lax.pad(chosen, jnp.int32(window[0] * window[1]), edges)
    seed = jax.lax.pad(dy, jnp.zeros((), dy.dtype), edges)
    total = jnp.zeros((x.shape[0], row.size, column.size, x.shape[3]), dy.dtype)
    for i, start_i in row.taps:
      for j, start_j in column.taps:
        at = (
          slice(None),
          slice(start_i, start_i + row.size),
          slice(start_j, start_j + column.size),
        )
        total += jnp.where(choice[at] == i * window[1] + j, seed[at], 0)
    return total

  return phases.join(part, x.shape[1:3], (height, width), window, strides, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _avg_pool(x, window):
  height, width = (n // k for n, k in zip(x.shape[1:3], window, strict=True))
  wide = jnp.promote_types(x.dtype, jnp.float32)
  total = sum(
    x[
      :, i : height * window[0] : window[0], j : width * window[1] : window[1]
    ].astype(wide)
    for i in range(window[0])
    for j in range(window[1])
  )
  return (total / (window[0] * window[1])).astype(x.dtype)


def _avg_forward(x, window):
  return _avg_pool(x, window), x.shape[1:3]


def _avg_backward(window, size, dy):
  share = dy / (window[0] * window[1])
  dx = jnp.repeat(jnp.repeat(share, window[0], 1), window[1], 2)
  rest = [(0, n - k) for n, k in zip(size, dx.shape[1:3], strict=True)]
  return (jnp.pad(dx, ((0, 0), *rest, (0, 0))),)


_avg_pool.defvjp(_avg_forward, _avg_backward)
