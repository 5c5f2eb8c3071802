"""Bicubic interpolation as TensorFlow 1 did it, and as Pillow does."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

METHODS = ('tf1_bicubic', 'pil_bicubic')
_STEPS = 1024  # Positions between two pixels that the kernel is tabulated at.


def resize_bicubic_tf1(image: Any, height: int, width: int) -> Any:
  """`tf.compat.v1.image.resize_bicubic`, by which EfficientNet was evaluated.

  Output pixel i lies at i * in / out of the input: without half a pixel of
  offset, so everything moves to the upper left. The kernel has A = -0.75, its
  position is rounded to 1/1024 of a pixel, and it is not widened when an image
  shrinks. Results may lie below 0 and above 255.

  Args:
    image: [height, width, channels], of NumPy, or of JAX, under jit too.
    height: Of the result.
    width: Of the result.

  Returns:
    float32 [height, width, channels].

  Raises:
    ValueError: If the image has another rank, or a size is not positive.

  Example:
    >>> image = np.full((4, 4, 1), 7, np.uint8)
    >>> resize_bicubic_tf1(image, 2, 3)[..., 0].tolist()
    [[7.0, 7.0, 7.0], [7.0, 7.0, 7.0]]
  """
  _check(image, height, width)
  rows, row_weights = _taps(image.shape[0], height)
  columns, column_weights = _taps(image.shape[1], width)
  # The axis that shrinks more comes first: what is left is less work.
  if image.shape[0] * width >= image.shape[1] * height:
    image = _mix_rows(image, rows, row_weights).swapaxes(0, 1)
    return _mix_rows(image, columns, column_weights).swapaxes(0, 1)
  image = _mix_rows(image.swapaxes(0, 1), columns, column_weights)
  return _mix_rows(image.swapaxes(0, 1), rows, row_weights)


def _mix_rows(image, indices, weights):
  """Weighted sums of four rows each, [new, width, channels]."""
  if not isinstance(image, jax.Array):
    # Whole rows are copied much faster than pixels here and there.
    image = np.ascontiguousarray(image)
  return sum(image[indices[:, k]] * weights[:, k, None, None] for k in range(4))


@functools.lru_cache(maxsize=4096)
def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
  """Indices [new, 4] of the pixels that meet, and their weights."""
  scale = np.float32(old) / np.float32(new)
  position = np.arange(new, dtype=np.float32) * scale
  base = np.floor(position)
  step = np.rint((position - base) * np.float32(_STEPS)).astype(np.int64)
  near, far = _kernel()
  weights = [far[step], near[step], near[_STEPS - step], far[_STEPS - step]]
  indices = base.astype(np.int64)[:, None] + np.arange(-1, 3)
  return np.clip(indices, 0, old - 1), np.stack(weights, 1)


@functools.cache
def _kernel() -> tuple[np.ndarray, np.ndarray]:
  """Weights at distances 0 .. 1 and 1 .. 2."""
  a = np.float32(-0.75)
  near = np.arange(_STEPS + 1, dtype=np.float32) / np.float32(_STEPS)
  far = near + np.float32(1)
  return (
    ((a + 2) * near - (a + 3)) * near * near + 1,
    ((a * far - 5 * a) * far + 8 * a) * far - 4 * a,
  )


def resize_bicubic_pil(image: Any, height: int, width: int) -> Any:
  """Pillow's bicubic interpolation, by which timm evaluates.

  Args:
    image: uint8 [height, width, 3] of NumPy, for Pillow itself; or an array of
      JAX, whose own antialiased cubic is within one grey level of it.
    height: Of the result.
    width: Of the result.

  Returns:
    float32 [height, width, channels], from 0 to 255.

  Raises:
    ValueError: If the image has another rank, or a size is not positive.
    ImportError: If Pillow is not installed.
  """
  _check(image, height, width)
  if isinstance(image, jax.Array):
    shape = (height, width, image.shape[-1])
    resized = jax.image.resize(image.astype(jnp.float32), shape, 'cubic')
    return jnp.clip(jnp.round(resized), 0, 255)
  try:
    from PIL import Image
  except ImportError as error:
    raise ImportError(
      "resizing with Pillow needs it: pip install 'jaxpapers[efficientnet]'"
    ) from error
  resized = Image.fromarray(np.asarray(image, np.uint8)).resize(
    (width, height), Image.Resampling.BICUBIC
  )
  return np.asarray(resized, np.float32)


def resize(image: Any, height: int, width: int, method: str) -> Any:
  """Resizes by the method of a name.

  Args:
    image: [height, width, 3].
    height: Of the result.
    width: Of the result.
    method: 'tf1_bicubic' or 'pil_bicubic'.

  Returns:
    float32 [height, width, 3].

  Raises:
    ValueError: If there is no such method, or an argument does not fit.
  """
  if method == 'tf1_bicubic':
    return resize_bicubic_tf1(image, height, width)
  if method == 'pil_bicubic':
    return resize_bicubic_pil(image, height, width)
  raise ValueError(f'resize is {method!r}; expected one of {METHODS}.')


def _check(image, height, width):
  if np.ndim(image) != 3 or 0 in np.shape(image):
    raise ValueError(
      f'image has shape {list(np.shape(image))}; expected [height, width,'
      ' channels] with pixels in it.'
    )
  if height < 1 or width < 1:
    raise ValueError(f'the new size is {height} x {width}; expected 1 or more.')
