"""Convolutions of images, with the paddings of TensorFlow and of torch.

XLA runs grouped convolutions on CPUs a tap at a time, in scalar code. There the
depthwise convolution is a sum of shifted images instead, which fuses into one
loop, and its gradient is written by hand.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.nn import phases
from jaxpapers.nn.varying import vary_alike

IMPLEMENTATIONS = ('auto', 'lax', 'shift', 'shift_vjp')

Padding = str | int | Sequence[tuple[int, int]]


def explicit_padding(
  size: Sequence[int],
  kernel: Sequence[int],
  strides: Sequence[int],
  padding: Padding,
) -> tuple[tuple[int, int], ...]:
  """Pixels that a padding adds before and after each axis.

  Args:
    size: Height and width of the image.
    kernel: Height and width of the kernel.
    strides: Vertical and horizontal stride.
    padding: 'SAME' as TensorFlow: as many pixels as leave ceil(size / stride),
      the odd one at the end. 'symmetric' as torch's models: (kernel - 1) // 2
      on either side. 'VALID': none. A number: on all sides. Pairs: as they are.

  Returns:
    A pair per axis.

  Raises:
    ValueError: If the padding is none of these.

  Example:
    >>> explicit_padding((224, 224), (3, 3), (2, 2), 'SAME')
    ((0, 1), (0, 1))
  """
  if isinstance(padding, int) and not isinstance(padding, bool):
    return tuple((padding, padding) for _ in size)
  if padding == 'VALID':
    return tuple((0, 0) for _ in size)
  if padding == 'symmetric':
    return tuple(((k - 1) // 2, (k - 1) // 2) for k in kernel)
  if padding == 'SAME':
    totals = (
      max((-(-n // s) - 1) * s + k - n, 0)
      for n, k, s in zip(size, kernel, strides, strict=True)
    )
    return tuple((total // 2, total - total // 2) for total in totals)
  if isinstance(padding, str) or len(padding) != len(size):
    raise ValueError(
      f"padding is {padding!r}; expected 'SAME', 'symmetric', 'VALID', a number"
      ' or a pair for each axis.'
    )
  return tuple((int(low), int(high)) for low, high in padding)


def depthwise_conv(
  x: jax.Array,
  kernel: jax.Array,
  strides: int | tuple[int, int] = 1,
  padding: Padding = 'SAME',
  impl: str = 'auto',
) -> jax.Array:
  """Convolves each channel with its own kernel.

  y[n, h, w, c] = sum_ij x[n, s h + i, s w + j, c] kernel[i, j, 0, c]

  Args:
    x: `[N, H, W, C]`, floating.
    kernel: `[kh, kw, 1, C]`.
    strides: One number, or vertical and horizontal.
    padding: As in `explicit_padding`.
    impl: 'lax' is XLA's grouped convolution, fast on GPUs and TPUs. 'shift'
      adds shifted images. 'shift_vjp' does too, and sums the gradient of the
      kernel row by row. 'auto' is 'shift_vjp' on CPUs and 'lax' elsewhere,
      decided when the program is lowered. Of 'auto' and 'shift_vjp' there is no
      forward-mode derivative (`jax.jvp`, Hessians).

  Returns:
    `[N, H', W', C]` in the type to which both are promoted.

  Raises:
    ValueError: If shapes do not fit, or there is no such implementation.

  Example:
    >>> y = depthwise_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2)), 2)
    >>> y.shape, float(y[0, 0, 0, 0])
    ((1, 2, 2, 2), 9.0)
  """
  if jnp.ndim(x) != 4 or jnp.ndim(kernel) != 4:
    raise ValueError(
      f'x has shape {jnp.shape(x)}, kernel {jnp.shape(kernel)}; expected'
      ' [N, H, W, C] and [kh, kw, 1, C].'
    )
  if kernel.shape[2:] != (1, x.shape[-1]):
    raise ValueError(
      f'kernel has shape {kernel.shape}; expected [kh, kw, 1, {x.shape[-1]}]'
      f' for x of shape {x.shape}.'
    )
  if impl not in IMPLEMENTATIONS:
    raise ValueError(f'impl is {impl!r}; expected one of {IMPLEMENTATIONS}.')
  strides = (strides, strides) if isinstance(strides, int) else tuple(strides)
  pads = explicit_padding(x.shape[1:3], kernel.shape[:2], strides, padding)
  for size, length, pad in zip(x.shape[1:3], kernel.shape, pads, strict=False):
    if size + sum(pad) < length:
      raise ValueError(
        f'x has shape {x.shape}, which padding {padding!r} leaves smaller than'
        f' the kernel {kernel.shape[:2]}; expected images at least as large.'
      )
  dtype = jnp.promote_types(x.dtype, kernel.dtype)
  x, kernel = x.astype(dtype), kernel.astype(dtype)
  if impl == 'lax':
    return _lax(x, kernel, strides, pads)
  if impl == 'shift':
    return _shift(x, kernel, strides, pads)
  x, kernel = vary_alike(x, kernel)
  return _with_gradient(x, kernel, strides, pads, impl == 'auto')


def _lax(x, kernel, strides, pads):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    strides,
    pads,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


def _shift(x, kernel, strides, pads):
  # Half types are summed in float32, as convolutions do.
  wide = jnp.promote_types(x.dtype, jnp.float32)
  padded = jnp.pad(x, ((0, 0), *pads, (0, 0))).astype(wide)
  weights = kernel.astype(wide)
  height, width = (
    (padded.shape[a + 1] - kernel.shape[a]) // strides[a] + 1 for a in (0, 1)
  )
  total = None
  for i in range(kernel.shape[0]):
    for j in range(kernel.shape[1]):
      tap = _window(padded, i, j, height, width, strides) * weights[i, j, 0]
      total = tap if total is None else total + tap
  return total.astype(x.dtype)


def _window(padded, i, j, height, width, strides):
  """What one tap of the kernel sees."""
  return padded[
    :,
    i : i + (height - 1) * strides[0] + 1 : strides[0],
    j : j + (width - 1) * strides[1] + 1 : strides[1],
  ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _with_gradient(x, kernel, strides, pads, by_platform):
  shift = functools.partial(_shift, strides=strides, pads=pads)
  if not by_platform:
    return shift(x, kernel)
  lax = functools.partial(_lax, strides=strides, pads=pads)
  return jax.lax.platform_dependent(x, kernel, cpu=shift, default=lax)


def _forward(x, kernel, strides, pads, by_platform):
  return _with_gradient(x, kernel, strides, pads, by_platform), (x, kernel)


def _backward(strides, pads, by_platform, residuals, dy):
  x, kernel = residuals

  def shift(x, kernel, dy):
    dx = _shift_to_input(dy, kernel, strides, pads, x.shape)
    return dx, _shift_to_kernel(x, dy, strides, pads, kernel)

  def lax(x, kernel, dy):
    conv = functools.partial(_lax, strides=strides, pads=pads)
    return jax.vjp(conv, x, kernel)[1](dy)

  if not by_platform:
    return shift(x, kernel, dy)
  return jax.lax.platform_dependent(x, kernel, dy, cpu=shift, default=lax)


_with_gradient.defvjp(_forward, _backward)


def _shift_to_input(dy, kernel, strides, pads, shape):
  """Gradient of the input: the flipped kernel over the dilated cotangent."""
  wide = jnp.promote_types(dy.dtype, jnp.float32)
  weights = kernel.astype(wide)

  def part(row, column):
    padded = jax.lax.pad(
      dy.astype(wide),
      jnp.zeros((), wide),
      ((0, 0, 0), (*row.pads, 0), (*column.pads, 0), (0, 0, 0)),
    )
    total = jnp.zeros((shape[0], row.size, column.size, shape[3]), wide)
    for i, start_i in row.taps:
      for j, start_j in column.taps:
        seen = padded[
          :, start_i : start_i + row.size, start_j : start_j + column.size
        ]
        total = total + seen * weights[i, j, 0]
    return total.astype(dy.dtype)

  taps = kernel.shape[:2]
  return phases.join(part, shape[1:3], dy.shape[1:3], taps, strides, pads)


def _shift_to_kernel(x, dy, strides, pads, kernel):
  """Gradient of the kernel."""
  if strides == (1, 1):
    return _blocks_to_kernel(x, dy, pads, kernel)
  return _rows_to_kernel(x, dy, strides, pads, kernel)


def _blocks_to_kernel(x, dy, pads, kernel):
  """A few rows of an image at a time, which stay in the cache.

  Rows are one axis of pixels and channels: a tap to the right is a slice that
  starts later, and each tap adds up a whole row of the image, in loops over
  neighbours in memory. The sum over the pixels of a row comes last.
  """
  wide = jnp.promote_types(x.dtype, jnp.float32)
  taps = kernel.shape[:2]
  number, height, width, channels = dy.shape
  # As many rows as the compiler makes fast loops of: not more than 8.
  blocks = -(-height // 8)
  rows = -(-height // blocks)
  below = blocks * rows - height
  (top, bottom), (left, right) = pads
  padded = jax.lax.pad(
    x.reshape(number, x.shape[1], -1),
    jnp.zeros((), x.dtype),
    (
      (0, 0, 0),
      (top, bottom + below, 0),
      (left * channels, right * channels, 0),
    ),
  )
  dy = dy.reshape(number, height, -1)
  if below:
    dy = jnp.pad(dy, ((0, 0), (0, below), (0, 0)))

  def cut(index):
    start = index // blocks, index % blocks * rows, 0
    sizes = rows + taps[0] - 1, padded.shape[2]
    return (
      jax.lax.dynamic_slice(padded, start, (1, *sizes))[0].astype(wide),
      jax.lax.dynamic_slice(dy, start, (1, rows, dy.shape[2]))[0].astype(wide),
    )

  def step(carry, index):
    totals, (seen, seed) = carry
    new = []
    for tap, total in enumerate(totals):
      i, j = divmod(tap, taps[1])
      first = j * channels
      for row in range(rows):
        line = seen[i + row, first : first + width * channels]
        total = total + line * seed[row]
      new.append(total)
    # The next slices are carried, and so are copied once: the compiler would
    # take them anew for each tap otherwise, in slow loops.
    return (tuple(new), cut(index + 1)), None

  first = cut(0)
  zero = jnp.zeros(width * channels, wide)
  zero, _, _ = vary_alike(zero, *first)
  totals, _ = jax.lax.scan(
    step, ((zero,) * (taps[0] * taps[1]), first), jnp.arange(number * blocks)
  )[0]
  sums = [total.reshape(width, channels).sum(0) for total in totals]
  return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


def _rows_to_kernel(x, dy, strides, pads, kernel):
  """Gradient of the kernel, output row by output row.

  A sum over whole images for each tap would read them again and again; the rows
  of one step stay in the cache.
  """
  wide = jnp.promote_types(x.dtype, jnp.float32)
  taps = kernel.shape[:2]
  padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  height, width = dy.shape[1:3]
  last = (width - 1) * strides[1] + 1

  def row(index):
    seen = jax.lax.dynamic_slice_in_dim(
      padded, index * strides[0], taps[0], axis=1
    ).astype(wide)
    seed = jax.lax.dynamic_index_in_dim(dy, index, 1, False).astype(wide)
    return jnp.stack(
      [
        (seen[:, i, j : j + last : strides[1]] * seed).sum((0, 1))
        for i in range(taps[0])
        for j in range(taps[1])
      ]
    )

  # From the first row on, not from zeros: under shard_map these would not vary
  # over the devices as the sum does.
  total, _ = jax.lax.scan(
    lambda total, index: (total + row(index), None),
    row(0),
    jnp.arange(1, height),
  )
  return total.reshape(kernel.shape).astype(kernel.dtype)


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 1x1 convolution, as the product of two matrices.

  XLA's gradient of such a convolution takes up to 14 times longer on CPUs, and
  under `vmap` over kernels it would be a grouped one.

  Args:
    x: `[N, H, W, C]`.
    kernel: `[1, 1, C, K]`.

  Returns:
    `[N, H, W, K]`.
  """
  # One matrix: a product over three leading axes has a slower gradient.
  rows = x.reshape(-1, x.shape[-1])
  return (rows @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


class Conv(nn.Module):
  """Convolution of images, in the paddings of both worlds.

  Attributes:
    features: Channels that go out.
    kernel_size: One number, or height and width.
    strides: One number, or vertical and horizontal.
    padding: As in `explicit_padding`.
    use_bias: Whether a bias is added.
    kernel_init: Initialiser of `kernel`, `[kh, kw, C, features]`.
    bias_init: Initialiser of `bias`.
    dtype: Type of the computation; what x and the kernel give by default.
    param_dtype: Type of the parameters.

  Example:
    >>> conv = Conv(8, 3, strides=2, padding='symmetric')
    >>> x = jnp.ones((1, 32, 32, 3))
    >>> conv.init_with_output(jax.random.key(0), x)[0].shape
    (1, 16, 16, 8)
  """

  features: int
  kernel_size: int | tuple[int, int] = 1
  strides: int | tuple[int, int] = 1
  padding: Any = 'SAME'
  use_bias: bool = False
  kernel_init: Any = nn.initializers.lecun_normal()
  bias_init: Any = nn.initializers.zeros
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves `[N, H, W, C]` into `[N, H', W', features]`."""
    size, strides = _pair(self.kernel_size), _pair(self.strides)
    kernel = self.param(
      'kernel',
      self.kernel_init,
      (*size, x.shape[-1], self.features),
      self.param_dtype,
    )
    bias = None
    if self.use_bias:
      bias = self.param(
        'bias', self.bias_init, (self.features,), self.param_dtype
      )
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    pads = explicit_padding(x.shape[1:3], size, strides, self.padding)
    if size == strides == (1, 1) and not any(map(any, pads)):
      y = pointwise(x, kernel)
    else:
      y = jax.lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
    return y if bias is None else y + bias


class DepthwiseConv(nn.Module):
  """`depthwise_conv` with its kernel.

  Attributes:
    kernel_size: One number, or height and width.
    strides: One number, or vertical and horizontal.
    padding: As in `explicit_padding`.
    impl: As in `depthwise_conv`.
    kernel_init: Initialiser of `kernel`, `[kh, kw, 1, C]`. Flax's by fan-out
      count kh kw C outputs per input, of which there are kh kw.
    dtype: Type of the computation; what x and the kernel give by default.
    param_dtype: Type of the kernel.
  """

  kernel_size: int | tuple[int, int] = 3
  strides: int | tuple[int, int] = 1
  padding: Any = 'SAME'
  impl: str = 'auto'
  kernel_init: Any = nn.initializers.lecun_normal()
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolves `[N, H, W, C]` into `[N, H', W', C]`."""
    kernel = self.param(
      'kernel',
      self.kernel_init,
      (*_pair(self.kernel_size), 1, x.shape[-1]),
      self.param_dtype,
    )
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    return depthwise_conv(x, kernel, self.strides, self.padding, self.impl)


def _pair(value):
  return (value, value) if isinstance(value, int) else tuple(value)
