"""What the network looks at, and pictures of ranked lists."""

import functools
import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RIGHT, WRONG, PLAIN = (26, 152, 80), (215, 48, 39), (120, 120, 120)


@functools.partial(jax.jit, static_argnames=('hw',))
def activation_map(
  feature_map: Any, hw: tuple[int, int] | None = None
) -> jax.Array:
  """Where the last feature map is active.

    a = sum_c x_c^2,  a / |a|_2 over all places

  Args:
    feature_map: `OSNetOutput.feature_map`, [B, h, w, C].
    hw: Height and width to enlarge it to, bilinearly; it then is moved to fill
      the range from 0 to 1.

  Returns:
    [B, h, w] of the norm 1, or [B, *hw] in [0, 1].

  Raises:
    ValueError: It has another rank.

  Example:
    >>> activation_map(jnp.ones((1, 2, 2, 3))).tolist()
    [[[0.5, 0.5], [0.5, 0.5]]]
  """
  x = jnp.asarray(feature_map)
  if x.ndim != 4:
    raise ValueError(f'feature_map has shape {x.shape}; expected [B, h, w, C].')
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  energy = jnp.sum(x * x, axis=-1)
  square = jnp.sum(energy * energy, axis=(1, 2), keepdims=True)
  energy = energy * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
  if hw is None:
    return energy
  energy = jax.image.resize(
    energy, (len(energy), *hw), 'bilinear', antialias=False
  )
  low = jnp.min(energy, axis=(1, 2), keepdims=True)
  high = jnp.max(energy, axis=(1, 2), keepdims=True)
  return (energy - low) / jnp.where(high > low, high - low, 1)


def heat(values: Any) -> np.ndarray:
  """Colours from blue over green and yellow to red.

  Args:
    values: In [0, 1], of any shape.

  Returns:
    uint8 [..., 3].

  Example:
    >>> heat(0.0).tolist(), heat(1.0).tolist()
    ([0, 0, 128], [128, 0, 0])
  """
  x = np.clip(np.asarray(values, np.float64), 0, 1)
  # Each primary is a trapezium of the width 1, around its own centre.
  channels = [
    np.clip(1.5 - np.abs(4 * x - centre), 0, 1) for centre in (3, 2, 1)
  ]
  return (255 * np.stack(channels, axis=-1)).round().astype(np.uint8)


def overlay(image: Any, values: Any, strength: float = 0.7) -> np.ndarray:
  """Lays a map over an image.

  Args:
    image: uint8 [H, W, 3].
    values: In [0, 1], [H, W].
    strength: Weight of the map; torchreid's.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: Sizes differ.

  Example:
    >>> overlay(np.zeros((1, 1, 3), np.uint8), [[1.0]]).tolist()
    [[[90, 0, 0]]]
  """
  if np.shape(image)[:2] != np.shape(values):
    raise ValueError(
      f'image has shape {np.shape(image)} and values {np.shape(values)};'
      ' expected the same height and width.'
    )
  mixed = (1 - strength) * np.asarray(image) + strength * heat(values)
  return mixed.round().astype(np.uint8)


def framed(image: Any, colour: Sequence[int], width: int = 4) -> np.ndarray:
  """An image with a frame around it.

  Args:
    image: uint8 [H, W, 3].
    colour: Three numbers, 0 to 255.
    width: Pixels.

  Returns:
    uint8 [H + 2 width, W + 2 width, 3].

  Example:
    >>> framed(np.zeros((2, 1, 3), np.uint8), RIGHT, 3).shape
    (8, 7, 3)
  """
  height, breadth = np.shape(image)[:2]
  out = np.empty((height + 2 * width, breadth + 2 * width, 3), np.uint8)
  out[:] = colour
  out[width : width + height, width : width + breadth] = image
  return out


def ranked_list(
  query: Any,
  found: Sequence[Any],
  right: Sequence[bool | None],
  *,
  gap: int = 6,
) -> np.ndarray:
  """A query and what was found, side by side.

  Args:
    query: uint8 [H, W, 3].
    found: Images of the same size, the nearest first.
    right: Of each, whether it is the same person; None if nobody knows.
    gap: Pixels between images; twice as many after the query.

  Returns:
    uint8 [H', W', 3]: green frames are right, red ones wrong.

  Raises:
    ValueError: Numbers or sizes differ.

  Example:
    >>> image = np.zeros((8, 4, 3), np.uint8)
    >>> ranked_list(image, [image], [True]).shape
    (16, 36, 3)
  """
  if len(found) != len(right):
    raise ValueError(
      f'{len(found)} images and {len(right)} of right; expected as many.'
    )
  shapes = {np.shape(image) for image in (query, *found)}
  if len(shapes) > 1:
    raise ValueError(f'The images have several shapes: {sorted(shapes)}.')
  colours = {None: PLAIN, True: RIGHT, False: WRONG}
  parts = [framed(query, PLAIN)]
  for i, (image, same) in enumerate(zip(found, right, strict=True)):
    blank = np.full((len(parts[0]), gap * (2 if i == 0 else 1), 3), 255)
    colour = colours[None if same is None else bool(same)]
    parts += [blank.astype(np.uint8), framed(image, colour)]
  return np.concatenate(parts, axis=1)


def encode_image(image: Any, form: str = 'PNG', **options: Any) -> bytes:
  """The bytes of a file with this image.

  Args:
    image: uint8 [H, W, 3].
    form: As Pillow calls it: PNG, JPEG.
    **options: Of Pillow, such as quality.

  Returns:
    Them.

  Raises:
    ImportError: Pillow is not installed.

  Example:
    >>> encode_image(np.zeros((2, 2, 3), np.uint8))[1:4]
    b'PNG'
  """
  try:
    from PIL import Image
  except ImportError as error:
    raise ImportError(
      "writing images needs Pillow: pip install 'jaxpapers[osnet]'"
    ) from error
  stream = io.BytesIO()
  Image.fromarray(np.asarray(image, np.uint8)).save(stream, form, **options)
  return stream.getvalue()
