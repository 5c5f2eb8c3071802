"""Augmentation of pedestrian images on the device: pure functions of a key.

torchreid changes one PIL image after the other in the workers that read. These
change a batch inside the jitted training step, with the same distributions:

  resize (on the host) -> flip -> translate -> patch -> jitter -> normalize
  -> erase

Images are [batch, height, width, channels]; up to `normalize` with values of
0 .. 255, uint8 or floating. Each image of a batch draws its own numbers, so a
batch that is spread over a mesh gives those of one device.
"""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Of the luma that contrast and saturation refer to (ITU-R 601).
_LUMA = (0.299, 0.587, 0.114)


def normalize(
  images: jax.Array,
  mean: Sequence[float] = MEAN,
  std: Sequence[float] = STD,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """(images / 255 - mean) / std, as the networks expect their images.

  Args:
    images: [..., channels] of 0 .. 255.
    mean: Of each channel, of values up to 1; by default ImageNet's.
    std: Likewise.
    dtype: Of the result.

  Returns:
    An array of the same shape.

  Example:
    >>> float(normalize(jnp.full((1, 1, 1), 127.5), [0.5], [0.5])[0, 0, 0])
    0.0
  """
  mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
  scaled = images.astype(jnp.float32) / 255
  return ((scaled - mean) / std).astype(dtype)


def random_flip(
  key: jax.Array, images: jax.Array, probability: float = 0.5
) -> jax.Array:
  """Mirrors each image left to right, or not.

  Args:
    key: Typed key.
    images: [batch, height, width, channels].
    probability: Of being mirrored.

  Returns:
    An array of the same shape and type.
  """
  _check(images, probability)
  flipped = _coins(key, images, probability)
  return jnp.where(_wide(flipped), images[:, :, ::-1], images)


def random_translate(
  key: jax.Array,
  images: jax.Array,
  probability: float = 0.5,
  enlarge: float = 1.125,
) -> jax.Array:
  """Enlarges each image by an eighth and cuts a part of the old size out of it.

  torchreid's `random_crop` (Random2DTranslation). Offsets are rounded uniform
  numbers, so the first and the last have half the probability of the others.

  Args:
    key: Typed key.
    images: [batch, height, width, channels].
    probability: Of being moved.
    enlarge: Factor of the size; the new one is rounded.

  Returns:
    An array of the same shape and type.
  """
  _check(images, probability)
  if enlarge < 1:
    raise ValueError(f'enlarge is {enlarge}; expected 1 or more.')
  batch, height, width, channels = images.shape
  tall, wide = round(height * enlarge), round(width * enlarge)
  coin_key, offset_key = jax.random.split(key)
  moved = _coins(coin_key, images, probability)
  spare = jnp.asarray([tall - height, wide - width])
  offsets = jnp.round(jax.random.uniform(offset_key, (batch, 2)) * spare)
  offsets = offsets.astype(jnp.int32)
  large = jax.image.resize(
    images.astype(jnp.promote_types(images.dtype, jnp.float32)),
    (batch, tall, wide, channels),
    'bilinear',
  )
  large = _like(large, images.dtype)

  def cut(image, offset):
    start = (offset[0], offset[1], 0)
    return jax.lax.dynamic_slice(image, start, (height, width, channels))

  return jnp.where(_wide(moved), jax.vmap(cut)(large, offsets), images)


def random_erase(
  key: jax.Array,
  images: jax.Array,
  probability: float = 0.5,
  area: tuple[float, float] = (0.02, 0.4),
  aspect: tuple[float, float] = (0.3, 1 / 0.3),
  fill: float | Sequence[float] | str = 0.0,
  attempts: int = 100,
) -> jax.Array:
  """Paints a box of each image over (random erasing, Zhong et al. 2017).

  The share of the area and the ratio of height to width are uniform, and boxes
  that do not fit are drawn again.

  Args:
    key: Typed key.
    images: [batch, height, width, channels], normalised.
    probability: Of an image being erased.
    area: Least and largest share.
    aspect: Least and largest height / width.
    fill: The colour. 0 is the mean of normalised images; 'torchreid' the
      number that torchreid puts there, (.485, .456, .406), which is the mean of
      images that are not normalised yet.
    attempts: Draws, after which an image stays as it is.

  Returns:
    An array of the same shape and type.
  """
  _check(images, probability)
  batch, height, width, _ = images.shape
  coin_key, box_key = jax.random.split(key)
  erased = _coins(coin_key, images, probability)
  boxes = jax.vmap(
    lambda k: _random_box(k, height, width, area, aspect, attempts)
  )(jax.random.split(box_key, batch))
  inside = _inside(boxes, height, width)
  fill = MEAN if isinstance(fill, str) and fill == 'torchreid' else fill
  if isinstance(fill, str):
    raise ValueError(
      f'fill is {fill!r}; expected a number, one for each channel, or'
      " 'torchreid'."
    )
  fill = jnp.asarray(fill, images.dtype)
  return jnp.where((inside & _wide(erased)[..., 0])[..., None], fill, images)


def color_jitter(
  key: jax.Array,
  images: jax.Array,
  brightness: float = 0.2,
  contrast: float = 0.15,
  saturation: float = 0.0,
  hue: float = 0.0,
) -> jax.Array:
  """Changes brightness, contrast, saturation and hue of each image.

  A factor is uniform in 1 - amount .. 1 + amount. They come in this order;
  torchvision shuffles them, which matters only where values are clipped.

  Args:
    key: Typed key.
    images: [batch, height, width, 3] of 0 .. 255.
    brightness: Amount; the image is mixed with black.
    contrast: Amount; mixed with the mean of its luma.
    saturation: Amount; mixed with its luma.
    hue: Largest turn of the hue, up to 0.5, in whole turns.

  Returns:
    An array of the same shape and type.
  """
  _check(images, 0.0)
  if images.shape[-1] != 3:
    raise ValueError(
      f'images has shape {images.shape}; expected three channels: R, G, B.'
    )
  check_jitter(brightness, contrast, saturation, hue)
  x = images.astype(jnp.promote_types(images.dtype, jnp.float32))
  amounts = jnp.asarray([brightness, contrast, saturation, hue], x.dtype)
  unit = jax.random.uniform(
    key, (images.shape[0], 4), x.dtype, minval=-1.0, maxval=1.0
  )
  draws = (unit * amounts)[:, :, None, None, None]
  luma_of = jnp.asarray(_LUMA, x.dtype)

  def mix(x, other, factor):
    return jnp.clip(other + (1 + factor) * (x - other), 0, 255)

  if brightness:
    x = mix(x, 0.0, draws[:, 0])
  if contrast:
    x = mix(x, (x @ luma_of).mean((1, 2))[:, None, None, None], draws[:, 1])
  if saturation:
    x = mix(x, (x @ luma_of)[..., None], draws[:, 2])
  if hue:
    x = 255 * _to_rgb(_turn(_to_hsv(x / 255), draws[:, 3, ..., 0]))
  return _like(x, images.dtype)


def check_jitter(
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
) -> None:
  """Refuses amounts that `color_jitter` does not take.

  Args:
    brightness: As of `color_jitter`, like the others.
    contrast: Amount.
    saturation: Amount.
    hue: Amount.

  Raises:
    ValueError: If one is no number in its range.
  """
  for name, value, most in (
    ('brightness', brightness, 1),
    ('contrast', contrast, 1),
    ('saturation', saturation, 1),
    ('hue', hue, 0.5),
  ):
    if not (isinstance(value, numbers.Real) and 0 <= value <= most):
      raise ValueError(f'{name} is {value!r}; expected 0 to {most}.')


@flax.struct.dataclass
class PatchPoolState:
  """The patches of a `RandomPatchPool`.

  Attributes:
    patches: [slots, height, width, channels], each in its upper left corner.
    sizes: int32 [slots, 2], height and width of each.
    count: int32 [], patches that were ever put in.
  """

  patches: jax.Array
  sizes: jax.Array
  count: jax.Array


@dataclasses.dataclass(frozen=True)
class RandomPatchPool:
  """Pastes parts of other images, as torchreid's `random_patch`.

  Each image first gives a patch of itself to the pool, then gets one of the
  newest `capacity` patches, mirrored with probability 0.5 and turned by up to
  10 degrees with probability 0.5 (its corners become black), at a random place.
  Images stay as they are until there are `warm_up` patches.

  The pool is a value, not a hidden state: a run that resumes, and every worker,
  knows what is in it. torchreid's capacity is 50,000 patches of their own
  sizes; here each takes the room of an image (98 kB at 256 x 128), so the
  default keeps the newest thousand.

  Attributes:
    capacity: Patches to choose from.
    warm_up: Patches before the first is pasted.
    probability: Of an image getting one.
    area: Least and largest share of a patch.
    aspect: Least and largest height / width.
    flip_probability: Of a patch being mirrored.
    rotate_probability: Of a patch being turned.
    degrees: Largest angle; angles are whole numbers.
    attempts: Draws of a size before an image gives no patch.

  Example:
    >>> pool = RandomPatchPool(capacity=8, warm_up=4)
    >>> images = jnp.zeros((4, 16, 8, 3), jnp.uint8)
    >>> state = pool.init(images.shape, images.dtype)
    >>> state, images = pool(state, jax.random.key(0), images)
    >>> int(state.count)
    4
  """

  capacity: int = 1000
  warm_up: int = 100
  probability: float = 0.5
  area: tuple[float, float] = (0.01, 0.5)
  aspect: tuple[float, float] = (0.1, 10.0)
  flip_probability: float = 0.5
  rotate_probability: float = 0.5
  degrees: int = 10
  attempts: int = 100

  def __post_init__(self):
    if not 1 <= self.warm_up <= self.capacity:
      raise ValueError(
        f'warm_up is {self.warm_up}; expected 1 to capacity, {self.capacity}.'
      )

  def init(self, shape: tuple[int, ...], dtype: Any) -> PatchPoolState:
    """An empty pool for batches of this shape.

    Args:
      shape: (batch, height, width, channels).
      dtype: Of the images.

    Returns:
      The state.
    """
    # The patches of later images of the same batch may not push out what
    # earlier ones can still choose.
    slots = self.capacity + shape[0]
    return PatchPoolState(
      jnp.zeros((slots, *shape[1:]), dtype),
      jnp.ones((slots, 2), jnp.int32),
      jnp.zeros((), jnp.int32),
    )

  def __call__(
    self, state: PatchPoolState, key: jax.Array, images: jax.Array
  ) -> tuple[PatchPoolState, jax.Array]:
    """Takes patches from images and pastes others into them.

    Args:
      state: From `init`, or from the last call.
      key: Typed key.
      images: [batch, height, width, channels], as `init` was told.

    Returns:
      The next state, and images of the same shape and type.

    Raises:
      ValueError: If the images are not those of the state.
    """
    _check(images, self.probability)
    batch, height, width, channels = images.shape
    slots = self.capacity + batch
    if state.patches.shape != (slots, height, width, channels):
      raise ValueError(
        f'the pool has {list(state.patches.shape)}; images of'
        f' {list(images.shape)} need {[slots, height, width, channels]}. Make'
        ' the state with init(images.shape, images.dtype).'
      )
    give_key, take_key = jax.random.split(key)
    boxes = jax.vmap(
      lambda k: _random_box(
        k, height, width, self.area, self.aspect, self.attempts
      )
    )(jax.random.split(give_key, batch))
    given = boxes[:, 2] > 0
    after = state.count + jnp.cumsum(given)  # Patches with that of the image.
    # An image without a patch writes to no slot.
    slot = jnp.where(given, (after - 1) % slots, slots)
    cut = jax.vmap(
      lambda image, box: jnp.roll(image, (-box[0], -box[1]), (0, 1))
    )(images, boxes)
    state = PatchPoolState(
      state.patches.at[slot].set(cut.astype(state.patches.dtype), mode='drop'),
      state.sizes.at[slot].set(boxes[:, 2:], mode='drop'),
      after[-1].astype(jnp.int32),
    )
    keys = jax.random.split(take_key, batch)
    images = jax.vmap(self._paste, (None, 0, 0, 0))(state, keys, images, after)
    return state, images

  def _paste(self, state, key, image, count):
    """One image with a patch of the `count` that there were at its turn."""
    coin, choice, place, flip, turn, angle = jax.random.split(key, 6)
    height, width, _ = image.shape
    slots = state.sizes.shape[0]
    age = jax.random.randint(
      choice, (), 0, jnp.clip(count, 1, self.capacity), jnp.int32
    )
    slot = (count - 1 - age) % slots
    h, w = state.sizes[slot]
    top, left = jax.random.randint(
      place, (2,), 0, jnp.asarray([height, width]) - state.sizes[slot] + 1
    )
    degrees = jax.random.randint(angle, (), -self.degrees, self.degrees + 1)
    degrees *= jax.random.bernoulli(turn, self.rotate_probability)
    radians = degrees * (np.pi / 180)
    rows = jnp.arange(height)[:, None] - top
    columns = jnp.arange(width)[None] - left
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    # Where each pixel of the turned patch comes from, pixels being squares.
    y, x = rows + 0.5 - h / 2, columns + 0.5 - w / 2
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    i = jnp.floor(cos * y + sin * x + h / 2).astype(jnp.int32)
    j = jnp.floor(cos * x - sin * y + w / 2).astype(jnp.int32)
    known = (i >= 0) & (i < h) & (j >= 0) & (j < w)
    j = jnp.where(
      jax.random.bernoulli(flip, self.flip_probability), w - 1 - j, j
    )
    patch = state.patches[
      slot, jnp.clip(i, 0, height - 1), jnp.clip(j, 0, width - 1)
    ]
    patch = jnp.where(known[..., None], patch, 0).astype(image.dtype)
    pasted = jax.random.bernoulli(coin, self.probability)
    pasted &= count >= self.warm_up
    return jnp.where((inside & pasted)[..., None], patch, image)


def _random_box(key, height, width, area, aspect, attempts):
  """int32 [4]: top, left, height, width of a box; of size 0 if none fits."""
  size_key, place_key = jax.random.split(key)
  low = jnp.asarray([area[0] * height * width, aspect[0]])
  high = jnp.asarray([area[1] * height * width, aspect[1]])
  draws = jax.random.uniform(size_key, (attempts, 2), minval=low, maxval=high)
  heights = jnp.round(jnp.sqrt(draws[:, 0] * draws[:, 1])).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(draws[:, 0] / draws[:, 1])).astype(jnp.int32)
  fits = (heights < height) & (widths < width)
  first = jnp.argmax(fits)
  size = jnp.where(fits[first], jnp.stack([heights[first], widths[first]]), 0)
  spare = jnp.asarray([height, width], jnp.int32) - size
  return jnp.concatenate(
    [jax.random.randint(place_key, (2,), 0, spare + 1, jnp.int32), size]
  )


def _inside(boxes, height, width):
  """Bool [batch, height, width]: what lies in the box of each image."""
  top, left, h, w = boxes.T[:, :, None, None]
  rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
  inside = (rows >= top) & (rows < top + h)
  return inside & (columns >= left) & (columns < left + w)


def _coins(key, images, probability):
  return jax.random.bernoulli(key, probability, (images.shape[0],))


def _wide(per_image):
  return per_image[:, None, None, None]


def _like(x, dtype):
  """Floating numbers of 0 .. 255 in the type of the images."""
  if jnp.issubdtype(dtype, jnp.integer):
    x = jnp.clip(jnp.round(x), 0, 255)
  return x.astype(dtype)


def _check(images, probability):
  if jnp.ndim(images) != 4:
    raise ValueError(
      f'images has shape {jnp.shape(images)}; expected [batch, height, width,'
      ' channels]. Add an axis for a single image.'
    )
  if not 0 <= probability <= 1:
    raise ValueError(f'probability is {probability}; expected 0 to 1.')


def _to_hsv(rgb):
  high, low = rgb.max(-1), rgb.min(-1)
  spread = high - low
  safe = jnp.where(spread > 0, spread, 1)
  r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
  hue = jnp.where(
    high == r,
    (g - b) / safe % 6,
    jnp.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4),
  )
  saturation = jnp.where(high > 0, spread / jnp.where(high > 0, high, 1), 0)
  return jnp.where(spread > 0, hue / 6, 0), saturation, high


def _turn(hsv, amount):
  hue, saturation, value = hsv
  return (hue + amount) % 1, saturation, value


def _to_rgb(hsv):
  hue, saturation, value = (x[..., None] for x in hsv)
  sector = (hue * 6 + jnp.asarray([5.0, 3.0, 1.0], hue.dtype)) % 6
  ramp = jnp.clip(jnp.minimum(sector, 4 - sector), 0, 1)
  return value - value * saturation * ramp
