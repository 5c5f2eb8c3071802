"""Where logits come from: a convolutional network, or the pixels themselves.

Hoyer et al. (2019, arXiv:1909.04240) optimize the weights of an untrained
network, and its input, instead of the design. A module here takes no input:
`design.apply(variables)` returns logits for `density.physical_density`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# Filters of the deepest network that `dynamic_depth` builds.
_DYNAMIC_FILTERS = (512, 256, 128, 64, 32, 16, 8, 1)


# Up to this many filters the matrix product beats XLA's convolutions on CPU by
# a factor of 2 to 10, forward and backward; beyond, they are about equal and
# the convolution compiles faster.
_NARROW = 16


class CNNDesign(nn.Module):
  """Logits as the image of a trainable latent vector under a small CNN.

  The latent vector passes a dense layer, is reshaped to
  `(nely / R, nelx / R, dense_channels)` with R the product of `resizes`, and
  then runs through blocks of, in this order: tanh; bilinear upsampling;
  normalisation over all positions and channels together, without parameters;
  convolution with bias; and a trainable offset for every position and channel,
  multiplied by `offset_scale`. That factor is no cosmetic: it makes the
  gradient of the offsets ten times larger, and so their share in a step.

  Normalisation and logits are computed in at least float32.

  Attributes:
    nely: elements along y, divisible by the product of `resizes`.
    nelx: elements along x, divisible likewise.
    latent_size: length of the latent vector.
    dense_channels: channels of the first image.
    resizes: integer upsampling factor of each block.
    conv_filters: output channels of each block; the last must be 1.
    offset_scale: factor of the offsets; 0 leaves them out.
    kernel_size: size of the convolutions.
    latent_scale: standard deviation of the initial latent vector.
    dense_init_scale: gain of the dense layer's orthogonal initialiser, on top
      of the square root of its widening.
    dtype: type of the computation, by default that of the parameters.
    param_dtype: type of the parameters.
    conv_method: `'convolution'`, `'matmul'` (see `convolve_by_matmul`) or
      `'auto'`, which takes matmul on CPU where there are few filters.
    precision: `jax.lax.Precision` of the products.

  Raises:
    ValueError: if the sides are not divisible or the lists do not match.

  Example:
    >>> design = CNNDesign(nely=32, nelx=96)
    >>> variables = design.init(jax.random.key(0))
    >>> design.apply(variables).shape
    (32, 96)
  """

  nely: int
  nelx: int
  latent_size: int = 128
  dense_channels: int = 32
  resizes: Sequence[int] = (1, 2, 2, 2, 1)
  conv_filters: Sequence[int] = (128, 64, 32, 16, 1)
  offset_scale: float = 10.0
  kernel_size: tuple[int, int] = (5, 5)
  latent_scale: float = 1.0
  dense_init_scale: float = 1.0
  dtype: Any = None
  param_dtype: Any = jnp.float32
  conv_method: str = 'auto'
  precision: Any = None

  @nn.compact
  def __call__(self):
    height, width = self._first_shape()
    latent = self.param(
      'latent',
      nn.initializers.normal(self.latent_scale),
      (self.latent_size,),
      self.param_dtype,
    )
    features = height * width * self.dense_channels
    gain = math.sqrt(max(features / self.latent_size, 1))
    x = nn.Dense(
      features,
      kernel_init=nn.initializers.orthogonal(self.dense_init_scale * gain),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      precision=self.precision,
      name='dense',
    )(latent)
    x = x.reshape(height, width, self.dense_channels)
    for i, (factor, filters) in enumerate(zip(self.resizes, self.conv_filters)):
      x = upsample(nn.tanh(x), factor)
      x = normalize(x)
      x = _Convolution(
        filters,
        self.kernel_size,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        method=self.conv_method,
        precision=self.precision,
        name=f'conv{i}',
      )(x)
      if self.offset_scale:
        offset = self.param(
          f'offset{i}', nn.initializers.zeros, x.shape, self.param_dtype
        )
        x = x + (self.offset_scale * offset).astype(x.dtype)
    return x[..., 0].astype(_at_least_float32(x.dtype))

  def _first_shape(self) -> tuple[int, int]:
    """Checks the architecture; returns the size of the first image."""
    if len(self.resizes) != len(self.conv_filters):
      raise ValueError(
        f'resizes has {len(self.resizes)} entries and conv_filters '
        f'{len(self.conv_filters)}; both need one for each block.'
      )
    if not self.conv_filters or self.conv_filters[-1] != 1:
      raise ValueError(
        f'conv_filters must end in 1, the channel of the logits, got '
        f'{tuple(self.conv_filters)}.'
      )
    if min(self.resizes) < 1:
      raise ValueError(
        f'resizes must be positive integers, got {tuple(self.resizes)}.'
      )
    total = math.prod(self.resizes)
    for name, side in (('nely', self.nely), ('nelx', self.nelx)):
      if side < 1 or side % total:
        raise ValueError(
          f'{name}={side} is not divisible by {total}, the product of '
          f'resizes={tuple(self.resizes)}. Take resizes whose product divides '
          f'gcd(nely, nelx) = {math.gcd(self.nely, self.nelx)} (replace a 2 '
          'by a 1, or see dynamic_depth), or change the size of the problem.'
        )
    return self.nely // total, self.nelx // total


class PixelDesign(nn.Module):
  """Logits as parameters, one for each element: no reparameterization.

  Attributes:
    nely: elements along y.
    nelx: elements along x.
    initial_logits: a number, an array `(nely, nelx)`, or an initialiser
      `(key, shape, dtype) -> array`.
    param_dtype: type of the parameters and the logits.

  Raises:
    ValueError: if `initial_logits` is an array of another shape.

  Example:
    >>> design = PixelDesign(nely=4, nelx=6)
    >>> design.apply(design.init(jax.random.key(0))).shape
    (4, 6)
  """

  nely: int
  nelx: int
  initial_logits: Callable | float | Any = 0.0
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self):
    return self.param(
      'logits', self._initial, (self.nely, self.nelx), self.param_dtype
    )

  def _initial(self, key, shape, dtype):
    if callable(self.initial_logits):
      return self.initial_logits(key, shape, dtype)
    value = jnp.asarray(self.initial_logits, dtype)
    if value.ndim and value.shape != shape:
      raise ValueError(
        f'initial_logits has shape {value.shape}; expected (nely, nelx) = '
        f'{shape}, a number or an initialiser.'
      )
    return jnp.broadcast_to(value, shape)


class _Convolution(nn.Module):
  """Convolution with 'SAME' padding, unit stride and bias, unbatched.

  `nn.Conv` cannot be told how to compute, which on CPU costs a factor.
  """

  filters: int
  kernel_size: tuple[int, int]
  dtype: Any
  param_dtype: Any
  method: str
  precision: Any

  @nn.compact
  def __call__(self, x):
    kernel = self.param(
      'kernel',
      nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal'),
      (*self.kernel_size, x.shape[-1], self.filters),
      self.param_dtype,
    )
    bias = self.param(
      'bias', nn.initializers.zeros, (self.filters,), self.param_dtype
    )
    dtype = self.dtype or kernel.dtype
    x, kernel, bias = (value.astype(dtype) for value in (x, kernel, bias))
    return convolve(x, kernel, self.method, self.precision) + bias


def convolve(x, kernel, method: str = 'auto', precision=None):
  """Correlates an image with a kernel, padding with zeros to the same size.

  Args:
    x: `(height, width, channels)`.
    kernel: `(kernel_height, kernel_width, channels, filters)`.
    method: `'convolution'` or `'matmul'`; `'auto'` takes the latter on CPU for
      few filters.
    precision: `jax.lax.Precision` of the products.

  Returns:
    `(height, width, filters)`.

  Raises:
    ValueError: if `method` is unknown.
  """
  if method == 'auto':
    narrow = kernel.shape[-1] <= _NARROW
    on_cpu = jax.default_backend() == 'cpu'
    method = 'matmul' if on_cpu and narrow else 'convolution'
  if method == 'matmul':
    return convolve_by_matmul(x, kernel, precision)
  if method != 'convolution':
    raise ValueError(
      "method must be 'auto', 'convolution' or 'matmul', got "
      f'{method!r} (conv_method of CNNDesign).'
    )
  return jax.lax.conv_general_dilated(
    x[None],
    kernel,
    window_strides=(1, 1),
    padding='SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=precision,
  )[0]


def convolve_by_matmul(x, kernel, precision=None):
  """The convolution as one matrix product and a sum of shifted parts.

  Every position is multiplied by the whole kernel at once, and each tap's part
  of the result is moved to where it belongs. XLA's convolutions on CPU take a
  slow path for the kernel's derivative of large images with few channels; here
  all derivatives are matrix products too, and a batch of networks is a batched
  product rather than a grouped convolution. The parts are split off, not
  sliced, because a slice's transpose writes an array as large as the whole.
  Needs memory for `kernel_height * kernel_width` outputs.

  Args:
    x: `(height, width, channels)`.
    kernel: `(kernel_height, kernel_width, channels, filters)`.
    precision: `jax.lax.Precision` of the product.

  Returns:
    `(height, width, filters)`.
  """
  height, width, channels = x.shape
  rows, columns, _, filters = kernel.shape
  products = jnp.matmul(
    x.reshape(-1, channels),
    kernel.transpose(2, 0, 1, 3).reshape(channels, -1),
    precision=precision,
  ).reshape(height, width, -1)
  taps = jax.lax.split(products, [filters] * (rows * columns), axis=2)
  zero = jnp.zeros((), products.dtype)
  total = 0
  for tap, part in enumerate(taps):
    down = (rows - 1) // 2 - tap // columns
    right = (columns - 1) // 2 - tap % columns
    shift = ((down, -down, 0), (right, -right, 0), (0, 0, 0))
    total = total + jax.lax.pad(part, zero, shift)
  return total


def upsample(x, factor: int):
  """Enlarges an image bilinearly by an integer factor.

  Pixels are squares: output pixel k has its centre at (k + 1/2) / factor - 1/2
  in input pixels (half-pixel centres). Beyond the outermost centres the image
  is constant.

  Args:
    x: `(height, width, channels)`.
    factor: integer, at least 1.

  Returns:
    `(factor * height, factor * width, channels)`, dtype of `x`.

  Raises:
    ValueError: if `factor` is not a positive integer.
  """
  if factor != int(factor) or factor < 1:
    raise ValueError(f'factor must be a positive integer, got {factor}.')
  if factor == 1:
    return x
  for axis in (0, 1):
    x = _upsample_axis(x, int(factor), axis)
  return x


def _upsample_axis(x, factor, axis):
  """Interpolates between neighbours with the weights of each phase."""
  size = x.shape[axis]
  first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
  last = jax.lax.slice_in_dim(x, size - 1, size, axis=axis)
  padded = jnp.concatenate([first, x, last], axis)
  before = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
  after = jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)
  phases = []
  for phase in range(factor):
    shift = (phase + 0.5) / factor - 0.5
    neighbour = before if shift < 0 else after
    phases.append((1 - abs(shift)) * x + abs(shift) * neighbour)
  shape = list(x.shape)
  shape[axis] *= factor
  return jnp.stack(phases, axis + 1).reshape(shape)


def normalize(x, epsilon: float = 1e-6):
  """Shifts and scales an image to mean 0 and variance 1 over all its entries.

  `(x - mean) / sqrt(variance + epsilon)` with the population variance over
  positions and channels together, in at least float32.

  Args:
    x: image, any shape.
    epsilon: keeps a constant image finite.

  Returns:
    Shape and dtype of `x`.
  """
  wide = x.astype(_at_least_float32(x.dtype))
  centered = wide - wide.mean()
  variance = jnp.square(centered).mean()
  return (centered * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def _at_least_float32(dtype):
  return np.promote_types(dtype, np.float32)


def dynamic_depth(width: int, height: int):
  """An architecture for `CNNDesign` whose depth grows with the domain.

  Doubles the image `floor(log2(min(gcd(width, height),
  round(sqrt(width * height) / 4))))` times, so that the first image keeps about
  16 elements; fewer times if a side is not divisible so often, and six at most.
  One block without enlargement comes before and one after.

  Args:
    width: elements along x.
    height: elements along y.

  Returns:
    `(resizes, conv_filters, dense_channels)`.

  Raises:
    ValueError: if a side is not a positive integer.

  Example:
    >>> dynamic_depth(96, 32)
    ((1, 2, 2, 2, 1), (64, 32, 16, 8, 1), 32)
  """
  for name, side in (('width', width), ('height', height)):
    if side != int(side) or side < 1:
      raise ValueError(f'{name} must be a positive integer, got {side!r}.')
  common = math.gcd(width, height)
  largest = max(1, min(common, round(math.sqrt(width * height) / 4)))
  doublings = min(largest.bit_length() - 1, len(_DYNAMIC_FILTERS) - 2)
  while common % 2**doublings:
    doublings -= 1
  resizes = (1,) + (2,) * doublings + (1,)
  filters = _DYNAMIC_FILTERS[-len(resizes) :]
  return resizes, filters, filters[0] // 2
