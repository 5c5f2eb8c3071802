"""From a decoded image to what the network sees, for training and evaluation.

All on the host, in NumPy: every image has another size.
"""

from typing import Any

import numpy as np

from jaxpapers.efficientnet import autoaugment, random_augment
from jaxpapers.efficientnet import resize as resize_lib

AUGMENTATIONS = ('autoaugment', 'randaugment', None)
CROPS = ('box', 'pad', None)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def crop_geometry(
  height: int, width: int, size: int, crop_padding: int = 32
) -> tuple[int, int, int]:
  """The central square that is evaluated.

  Args:
    height: Of the image.
    width: Of the image.
    size: Resolution of the network.
    crop_padding: The square is size / (size + crop_padding) of the shorter
      side. 32 in the published models.

  Returns:
    Side, first row and first column.

  Raises:
    ValueError: If nothing would be left.

  Example:
    >>> crop_geometry(480, 640, 224)
    (420, 30, 110)
  """
  if min(height, width, size) < 1 or crop_padding < 0:
    raise ValueError(
      f'image of {height} x {width}, size {size}, crop_padding {crop_padding};'
      ' expected sides of 1 or more and a padding of 0 or more.'
    )
  # In float32, as the original: in float64 some sides would differ by one.
  share = np.float32(size / (size + crop_padding))
  side = int(share * np.float32(min(height, width)))
  if side < 1:
    raise ValueError(
      f'an image of {height} x {width} leaves no pixel at size {size} with'
      f' crop_padding {crop_padding}; leave it out, or lower crop_padding.'
    )
  return side, (height - side + 1) // 2, (width - side + 1) // 2


def preprocess_eval(
  image: Any,
  size: int,
  crop_padding: int = 32,
  resize: str = 'tf1_bicubic',
) -> np.ndarray:
  """Crops the centre and resizes it, as the published models are evaluated.

  Args:
    image: uint8 [height, width, 3].
    size: Resolution of the network.
    crop_padding: See `crop_geometry`.
    resize: 'tf1_bicubic' as the original, or 'pil_bicubic' as timm.

  Returns:
    float32 [size, size, 3] around 0 .. 255; not clipped, as in the original,
    and not normalised: see `normalize`.

  Raises:
    ValueError: If an argument does not fit.

  Example:
    >>> preprocess_eval(np.zeros((97, 131, 3), np.uint8), 48).shape
    (48, 48, 3)
  """
  check_decoded(image)
  side, top, left = crop_geometry(*image.shape[:2], size, crop_padding)
  crop = image[top : top + side, left : left + side]
  return resize_lib.resize(crop, size, size, resize)


def preprocess_train(
  rng: np.random.Generator,
  image: Any,
  size: int,
  augment: str | None = 'autoaugment',
  *,
  crop: str | None = 'box',
  flip: bool = True,
  randaugment_layers: int = 2,
  randaugment_magnitude: float = 10.0,
  crop_padding: int = 32,
  resize: str = 'tf1_bicubic',
) -> np.ndarray:
  """Crops at random, flips and augments.

  Args:
    rng: Generator of this image and epoch.
    image: uint8 [height, width, 3].
    size: Resolution of the network.
    augment: 'autoaugment', 'randaugment' or None.
    crop: 'box', a random part of the image, see `random_box`; 'pad', the
      resized image moved by up to an eighth, for small images; None, all of it.
    flip: Whether to mirror half of the images.
    randaugment_layers: See `randaugment`.
    randaugment_magnitude: See `randaugment`.
    crop_padding: See `crop_geometry`; for images without a random box.
    resize: 'tf1_bicubic' or 'pil_bicubic'.

  Returns:
    [size, size, 3]: uint8 after an augmentation, for which values were clipped
    and cut to integers; float32 without one, unclipped.

  Raises:
    ValueError: If an argument does not fit.

  Example:
    >>> image = np.zeros((60, 80, 3), np.uint8)
    >>> preprocess_train(np.random.default_rng(0), image, 32).shape
    (32, 32, 3)
  """
  check_decoded(image)
  if augment not in AUGMENTATIONS:
    raise ValueError(
      f'augment is {augment!r}; expected one of {AUGMENTATIONS}.'
    )
  if crop == 'box':
    image = _random_crop(rng, image, size, crop_padding, resize)
  elif crop in ('pad', None):
    if image.shape[:2] != (size, size):
      image = resize_lib.resize(image, size, size, resize)
    if crop == 'pad':
      image = _shifted(rng, image, size // 8)
  else:
    raise ValueError(f'crop is {crop!r}; expected one of {CROPS}.')
  if flip and rng.random() < 0.5:
    image = image[:, ::-1]
  if augment is None:
    return np.ascontiguousarray(image, np.float32)
  image = np.clip(image, 0, 255).astype(np.uint8)
  if augment == 'autoaugment':
    image = autoaugment.autoaugment_v0(rng, image)
  else:
    image = random_augment.randaugment(
      rng, image, randaugment_layers, randaugment_magnitude
    )
  return np.ascontiguousarray(image)


def _random_crop(rng, image, size, crop_padding, method):
  box = random_box(rng, *image.shape[:2])
  if box is None or box[2:] == image.shape[:2]:
    return preprocess_eval(image, size, crop_padding, method)
  top, left, height, width = box
  crop = image[top : top + height, left : left + width]
  return resize_lib.resize(crop, size, size, method)


def _shifted(rng, image, most):
  padded = np.pad(image, ((most, most), (most, most), (0, 0)))
  top, left = rng.integers(2 * most + 1, size=2)
  height, width = image.shape[:2]
  return padded[top : top + height, left : left + width]


def random_box(
  rng: np.random.Generator,
  height: int,
  width: int,
  *,
  area: tuple[float, float] = (0.08, 1.0),
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
  covered: float = 0.1,
  attempts: int = 10,
) -> tuple[int, int, int, int] | None:
  """A random part of an image, by the distribution of TensorFlow's op.

  The aspect ratio is uniform, then the height is, among those whose area fits
  (not the area itself, as in torchvision).

  Args:
    rng: Generator.
    height: Of the image.
    width: Of the image.
    area: Least and largest share of the image.
    aspect: Least and largest width / height.
    covered: Least share again. The original asks for .08 of the image and
      then refuses what covers less than .1 of it.
    attempts: After how many failures to give up.

  Returns:
    Top, left, height, width; None after the last attempt.

  Example:
    >>> random_box(np.random.default_rng(0), 60, 80) is not None
    True
  """
  least, most = area[0] * height * width, area[1] * height * width
  for _ in range(attempts):
    ratio = rng.uniform(*aspect)
    low = round((least / ratio) ** 0.5)
    high = round((most / ratio) ** 0.5)
    if round(high * ratio) > width:
      high = int((width + 0.5 - 1e-7) / ratio)
      if round(high * ratio) > width:
        high -= 1
    high = min(high, height)
    low = min(low, high)
    tall = low + (int(rng.integers(high - low + 1)) if high > low else 0)
    wide = round(tall * ratio)
    # Rounding may have left the interval by a row.
    if tall * wide < least:
      tall += 1
      wide = round(tall * ratio)
    if tall * wide > most:
      tall -= 1
      wide = round(tall * ratio)
    share = tall * wide
    if not (0 < tall <= height and 0 < wide <= width):
      continue
    if not max(least, covered * height * width) <= share <= most:
      continue
    top = int(rng.integers(height - tall)) if tall < height else 0
    left = int(rng.integers(width - wide)) if wide < width else 0
    return top, left, tall, wide
  return None


def normalize(images: Any, kind: str = 'imagenet') -> Any:
  """Shifts and scales pixels of 0 .. 255 to what the weights were trained on.

  Args:
    images: [..., 3], of NumPy or JAX, integers or floats.
    kind: 'imagenet' by mean and deviation of the channels; 'advprop' to
      -1 .. 1; 'lite' by 127 and 128; 'none' not at all.

  Returns:
    float32 of the same shape.

  Raises:
    ValueError: If there is no such kind.

  Example:
    >>> normalize(np.array([[0, 255, 255]], np.uint8), 'advprop').tolist()
    [[-1.0, 1.0, 1.0]]
  """
  images = images.astype(np.float32)
  if kind == 'imagenet':
    return (images - 255 * MEAN) / (255 * STD)
  if kind == 'advprop':
    return images * np.float32(2 / 255) - np.float32(1)
  if kind == 'lite':
    return (images - np.float32(127)) / np.float32(128)
  if kind == 'none':
    return images
  raise ValueError(
    f"kind is {kind!r}; expected 'imagenet', 'advprop', 'lite' or 'none'."
  )


def check_decoded(image: Any) -> None:
  """Refuses what is no decoded RGB image.

  Raises:
    ValueError: If shape or type do not fit.
  """
  shape = np.shape(image)
  if len(shape) != 3 or shape[-1] != 3 or 0 in shape:
    raise ValueError(
      f'image has shape {list(shape)}; expected [height, width, 3]. Grey images'
      ' become RGB by jaxpapers.data.decode_image, or np.repeat(x, 3, -1).'
    )
  if image.dtype != np.uint8:
    raise ValueError(f'image is {image.dtype}; expected uint8, 0 to 255.')
