"""Random shifts and flips, as Keras' ImageDataGenerator makes them.

The tasks with data augmentation (paper, table 1) shift images by up to an
eighth of their side, by a continuous distance, and mirror half of them. Here
this runs on the device, inside the jitted step.
"""

import chex
import jax
import jax.numpy as jnp


def shift_and_flip(
  key: jax.Array,
  images: jax.Array,
  *,
  max_shift: float = 0.125,
  flip: bool = True,
) -> jax.Array:
  """Shifts and mirrors every image of a batch at random.

  Both shifts are uniform in [-max_shift, max_shift] times the side. A pixel
  takes the value of the nearest one at its shifted place, `floor(i + t + 1/2)`;
  beyond the border the image is reflected, its outermost pixels included, as
  scipy's `affine_transform` does with order 0 and mode 'reflect'.

  Args:
    key: typed key.
    images: [batch, height, width, channels], any type.
    max_shift: largest shift as a fraction of the side, in [0, 1).
    flip: whether images are mirrored left to right with probability 1/2.

  Returns:
    Images of the same shape and type.

  Raises:
    ValueError: if `max_shift` is not in [0, 1).

  Example:
    >>> images = jnp.ones((2, 8, 8, 3))
    >>> shift_and_flip(jax.random.key(0), images).shape
    (2, 8, 8, 3)
  """
  chex.assert_rank(images, 4)
  if not 0 <= max_shift < 1:
    raise ValueError(f'max_shift is {max_shift}; expected 0 <= max_shift < 1.')
  batch, height, width, _ = images.shape
  shift_key, flip_key = jax.random.split(key)
  shifts = jax.random.uniform(
    shift_key, (batch, 2), minval=-max_shift, maxval=max_shift
  )
  if flip:
    mirrored = jax.random.bernoulli(flip_key, 0.5, (batch,))
  else:
    mirrored = jnp.zeros((batch,), bool)

  def one(image, shift, mirror):
    rows = shifted_indices(shift[0] * height, height)
    columns = shifted_indices(shift[1] * width, width)
    columns = jnp.where(mirror, columns[::-1], columns)
    return image[rows[:, None], columns]

  return jax.vmap(one)(images, shifts, mirrored)


def shifted_indices(shift: jax.Array, size: int) -> jax.Array:
  """Index of the pixel that each place along an axis shows.

  Args:
    shift: distance in pixels, a scalar in (-size, size).
    size: length of the axis.

  Returns:
    int32 [size], in 0 .. size - 1.
  """
  places = jnp.floor(jnp.arange(size) + shift + 0.5).astype(jnp.int32)
  places = jnp.where(places < 0, -1 - places, places)
  return jnp.where(places >= size, 2 * size - 1 - places, places)
