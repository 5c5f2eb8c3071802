"""What the hidden units of the first layer look at (paper, section 6)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def incoming_images(
  kernel: jax.Array,
  units: Sequence[int] = (5, 6, 7, 8, 9),
  shape: tuple[int, int] = (28, 28),
) -> jax.Array:
  """The incoming weights of hidden units, as images.

  Args:
    kernel: [height * width, units], the first kernel of a perceptron.
    units: which columns; the paper shows 5 to 9.
    shape: (height, width) of the input images.

  Returns:
    [len(units), height, width].

  Raises:
    ValueError: if the kernel has no such rows or columns.

  Example:
    >>> incoming_images(jnp.zeros((784, 20))).shape
    (5, 28, 28)
  """
  height, width = shape
  if kernel.ndim != 2 or kernel.shape[0] != height * width:
    raise ValueError(
      f'kernel has shape {tuple(kernel.shape)}; expected'
      f' ({height} * {width}, units).'
    )
  units = list(units)
  if not units or min(units) < 0 or max(units) >= kernel.shape[1]:
    raise ValueError(
      f'units is {units}; expected numbers from 0 to {kernel.shape[1] - 1}.'
    )
  chosen = kernel[:, jnp.asarray(units)]
  return jnp.moveaxis(chosen.reshape(height, width, -1), -1, 0)


def neighbour_correlation(images: jax.Array) -> jax.Array:
  """Correlation of vertically and horizontally adjacent pixels.

  Zero for white noise, which initial weights are, and near one for smooth
  strokes: a number for what the pictures of features show.

  Args:
    images: [..., height, width].

  Returns:
    One number for each image [...], the mean over both directions.

  Example:
    >>> ramp = jnp.broadcast_to(jnp.arange(8.0), (8, 8))
    >>> float(neighbour_correlation(ramp)) > 0.95
    True
  """
  images = jnp.asarray(images)

  def correlation(a, b):
    axes = (-2, -1)
    a = a - a.mean(axes, keepdims=True)
    b = b - b.mean(axes, keepdims=True)
    norms = jnp.sqrt((a**2).sum(axes) * (b**2).sum(axes))
    return (a * b).sum(axes) / jnp.where(norms > 0, norms, 1)

  rows = correlation(images[..., 1:, :], images[..., :-1, :])
  columns = correlation(images[..., 1:], images[..., :-1])
  return (rows + columns) / 2
