"""The operations of AutoAugment on one image, for NumPy and for JAX.

Each takes uint8 [height, width, channels] and gives the same. NumPy arrays are
worked on by NumPy, for input pipelines on the host; JAX arrays by JAX, where
all of them can be jitted and vmapped, their arguments traced. Both give the
bits of the original TensorFlow functions, errors included: accuracies were
published with these.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FILL = 128  # Grey, where a geometric operation has nothing to show.

# Products of every value and a weight, rounded to float32. A compiler that knew
# the factors would see that `_rounded` asks for nothing, and fuse them.
_VALUES = np.arange(256, dtype=np.float32)
_LUMA = tuple(
  (_VALUES * np.float32(1 / 255)) * np.float32(weight)
  for weight in (0.2989, 0.5870, 0.1140)
)
_THIRTEENTHS = tuple(_VALUES * np.float32(k / 13) for k in (1, 5))

Image = Any


def autocontrast(image: Image) -> Image:
  """Stretches each channel to 0 .. 255.

  Args:
    image: uint8 [height, width, channels].

  Returns:
    uint8 of the same shape; a channel of one value stays as it is.

  Example:
    >>> autocontrast(np.array([[[10], [20]]], np.uint8)).ravel().tolist()
    [0, 255]
  """
  xp = _module(image)
  low = image.min((0, 1)).astype(np.float32)
  high = image.max((0, 1)).astype(np.float32)
  flat = high <= low
  scale = np.float32(255) / xp.where(flat, np.float32(1), high - low)
  offset = _rounded(-low * scale)
  stretched = _rounded(image.astype(np.float32) * scale) + offset
  return xp.where(flat, image, _to_uint8(stretched))


def equalize(image: Image) -> Image:
  """Makes the histogram of each channel flat, in the integers of PIL.

  Args:
    image: uint8 [height, width, channels].

  Returns:
    uint8 of the same shape.
  """
  xp = _module(image)
  channels = [_equalized(image[..., c]) for c in range(image.shape[-1])]
  return xp.stack(channels, -1)


def _equalized(channel):
  xp = _module(channel)
  flat = channel.reshape(-1).astype(np.int32)
  if xp is np:
    histogram = np.bincount(flat, minlength=256).astype(np.int32)
  else:
    histogram = jnp.zeros(256, jnp.int32).at[flat].add(1)
  # Without the brightest value that occurs.
  step = (flat.size - histogram[flat.max()]) // 255
  divisor = xp.maximum(step, 1)
  table = (xp.cumsum(histogram) + step // 2) // divisor
  table = xp.concatenate([xp.zeros(1, np.int32), table[:-1].astype(np.int32)])
  table = xp.clip(table, 0, 255).astype(np.uint8)
  return xp.where(step == 0, channel, table[channel.astype(np.int32)])


def invert(image: Image) -> Image:
  """255 - x.

  Args:
    image: uint8 [height, width, channels].

  Returns:
    uint8 of the same shape.
  """
  return (np.uint8(255) - image).astype(np.uint8)


def posterize(image: Image, bits: Any) -> Image:
  """Keeps the highest bits.

  Args:
    image: uint8 [height, width, channels].
    bits: How many, 0 .. 8; 0 is as 1, since a shift by 8 was undefined.

  Returns:
    uint8 of the same shape.

  Example:
    >>> posterize(np.array([[[200]]], np.uint8), 1).item()
    128
  """
  xp = _module(image)
  shift = xp.minimum(8 - xp.asarray(bits, np.int32), 7).astype(np.uint8)
  return (image >> shift) << shift


def solarize(image: Image, threshold: Any) -> Image:
  """Inverts the values of at least a threshold.

  Args:
    image: uint8 [height, width, channels].
    threshold: 0 .. 256; 256 became 0 in the original, so all is inverted.

  Returns:
    uint8 of the same shape.
  """
  xp = _module(image)
  threshold = (xp.asarray(threshold, np.int32) % 256).astype(np.uint8)
  return xp.where(image < threshold, image, np.uint8(255) - image)


def solarize_add(image: Image, addition: Any) -> Image:
  """Adds to the values below 128.

  Args:
    image: uint8 [height, width, channels].
    addition: What is added.

  Returns:
    uint8 of the same shape.
  """
  xp = _module(image)
  brighter = image.astype(np.int32) + xp.asarray(addition, np.int32)
  brighter = xp.clip(brighter, 0, 255).astype(np.uint8)
  return xp.where(image < 128, brighter, image)


def blend(first: Image, second: Image, factor: Any) -> Image:
  """First + factor (second - first), rounded down and clipped.

  Args:
    first: uint8 [height, width, channels].
    second: uint8 of the same shape.
    factor: 0 gives the first, 1 the second, more than 1 goes beyond it.

  Returns:
    uint8 of the same shape.
  """
  xp = _module(second)
  first = first.astype(np.float32)
  difference = second.astype(np.float32) - first
  return _to_uint8(
    first + _rounded(xp.asarray(factor, np.float32) * difference)
  )


def color(image: Image, factor: Any) -> Image:
  """Between grey (0) and the image (1), or beyond.

  Args:
    image: uint8 [height, width, 3].
    factor: See `blend`.

  Returns:
    uint8 of the same shape.
  """
  xp = _module(image)
  grey = xp.broadcast_to(_grey(image)[..., None], image.shape)
  return blend(grey, image, factor)


def _grey(image):
  """Luma as TensorFlow computes it for uint8: through numbers of 0 .. 1."""
  red, green, blue = (
    _module(image).asarray(table)[image[..., c].astype(np.int32)]
    for c, table in enumerate(_LUMA)
  )
  return _to_uint8(((red + green) + blue) * np.float32(255.5))


def contrast(image: Image, factor: Any) -> Image:
  """Between a constant (0) and the image (1), or beyond.

  The constant is the number of pixels / 256, at most 255: the original took
  the mean of the histogram's counts for that of the image.

  Args:
    image: uint8 [height, width, channels].
    factor: See `blend`.

  Returns:
    uint8 of the same shape.
  """
  xp = _module(image)
  constant = int(min(255, image.shape[0] * image.shape[1] / 256))
  return blend(xp.full(image.shape, constant, np.uint8), image, factor)


def brightness(image: Image, factor: Any) -> Image:
  """Between black (0) and the image (1), or beyond.

  Args:
    image: uint8 [height, width, channels].
    factor: See `blend`.

  Returns:
    uint8 of the same shape.
  """
  return blend(_module(image).zeros_like(image), image, factor)


def sharpness(image: Image, factor: Any) -> Image:
  """Between smoothed (0) and the image (1), or beyond.

  Smoothed with the weights [1 1 1; 1 5 1; 1 1 1] / 13; the border is not.

  Args:
    image: uint8 [height, width, channels], at least 3 x 3.
    factor: See `blend`.

  Returns:
    uint8 of the same shape.
  """
  xp = _module(image)
  height, width = image.shape[:2]
  once, five = (xp.asarray(t)[image.astype(np.int32)] for t in _THIRTEENTHS)
  total = np.float32(0)
  for i in range(3):
    for j in range(3):
      weighted = five if i == j == 1 else once
      total = total + weighted[i : height - 2 + i, j : width - 2 + j]
  inner = xp.pad(_to_uint8(total), ((1, 1), (1, 1), (0, 0)))
  rows = np.arange(height)[:, None, None]
  columns = np.arange(width)[None, :, None]
  border = (rows % (height - 1) == 0) | (columns % (width - 1) == 0)
  return blend(xp.where(border, image, inner), image, factor)


def shear_x(image: Image, level: Any) -> Image:
  """Shifts row y by `level` y to the left.

  Args:
    image: uint8 [height, width, channels].
    level: Pixels for each row.

  Returns:
    uint8 of the same shape.
  """
  return _affine(image, 1.0, level, 0.0, 0.0, 1.0, 0.0)


def shear_y(image: Image, level: Any) -> Image:
  """Shifts column x by `level` x upwards.

  Args:
    image: uint8 [height, width, channels].
    level: Pixels for each column.

  Returns:
    uint8 of the same shape.
  """
  return _affine(image, 1.0, 0.0, 0.0, level, 1.0, 0.0)


def translate_x(image: Image, pixels: Any) -> Image:
  """Shifts to the left.

  Args:
    image: uint8 [height, width, channels].
    pixels: How far.

  Returns:
    uint8 of the same shape.
  """
  return _affine(image, 1.0, 0.0, pixels, 0.0, 1.0, 0.0)


def translate_y(image: Image, pixels: Any) -> Image:
  """Shifts upwards.

  Args:
    image: uint8 [height, width, channels].
    pixels: How far.

  Returns:
    uint8 of the same shape.
  """
  return _affine(image, 1.0, 0.0, 0.0, 0.0, 1.0, pixels)


def rotate(image: Image, degrees: Any) -> Image:
  """Turns counter-clockwise about the centre.

  Args:
    image: uint8 [height, width, channels].
    degrees: How far.

  Returns:
    uint8 of the same shape.
  """
  xp = _module(image)
  radians = xp.asarray(degrees, np.float32) * np.float32(math.pi / 180)
  cos, sin = xp.cos(radians), xp.sin(radians)
  height, width = np.float32(image.shape[0] - 1), np.float32(image.shape[1] - 1)
  half = np.float32(2)
  x = (width - (_rounded(cos * width) - _rounded(sin * height))) / half
  y = (height - (_rounded(sin * width) + _rounded(cos * height))) / half
  return _affine(image, cos, -sin, x, sin, cos, y)


def cutout(image: Image, size: Any, row: Any, column: Any) -> Image:
  """Covers a square with grey, where it lies in the image.

  Args:
    image: uint8 [height, width, channels].
    size: Half the side.
    row: Of the centre.
    column: Of the centre.

  Returns:
    uint8 of the same shape.
  """
  xp = _module(image)
  rows = np.arange(image.shape[0])[:, None, None]
  columns = np.arange(image.shape[1])[None, :, None]
  covered = (rows >= row - size) & (rows < row + size)
  covered = covered & (columns >= column - size) & (columns < column + size)
  return xp.where(covered, np.uint8(FILL), image)


def _affine(image, a, b, c, d, e, f):
  """out[y, x] = in[d x + e y + f, a x + b y + c], nearest, grey outside."""
  xp = _module(image)
  height, width = image.shape[:2]
  x = np.arange(width, dtype=np.float32)[None, :]
  y = np.arange(height, dtype=np.float32)[:, None]
  a, b, c, d, e, f = (xp.asarray(v, np.float32) for v in (a, b, c, d, e, f))
  source_x = _nearest(_rounded(a * x) + _rounded(b * y) + c)
  source_y = _nearest(_rounded(d * x) + _rounded(e * y) + f)
  inside = (source_x >= 0) & (source_x < width)
  inside = inside & (source_y >= 0) & (source_y < height)
  found = image[
    xp.clip(source_y, 0, height - 1), xp.clip(source_x, 0, width - 1)
  ]
  return xp.where(inside[..., None], found, np.uint8(FILL))


def _nearest(position):
  """Rounded to an integer, halves away from zero."""
  xp = _module(position)
  # Not floor(|x| + .5): the sum of .49999997 and .5 is 1 in float32.
  whole = xp.trunc(position)
  away = xp.abs(position - whole) >= np.float32(0.5)
  whole = whole + xp.where(away, xp.sign(position), np.float32(0))
  return whole.astype(np.int32)


def _to_uint8(values):
  """Clipped and cut to an integer."""
  xp = _module(values)
  return xp.clip(values, 0, 255).astype(np.uint8)


def _rounded(product):
  """A product that is rounded to float32 before anything is added to it.

  A compiler may fuse both into one operation with one rounding, after which
  what should be 5 is 4.9999995, and cut to 4. What keeps it from that is a
  question about the product; XLA drops an optimization barrier too early.
  """
  if isinstance(product, jax.Array):
    return jnp.where(jnp.isnan(product), 0, product)
  return product


def _module(image):
  return jnp if isinstance(image, jax.Array) else np
