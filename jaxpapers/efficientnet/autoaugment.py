"""AutoAugment's policy v0 for ImageNet, as EfficientNet was trained with it.

Cubuk et al. (2019), arXiv:1805.09501: one of 25 sub-policies is drawn for each
image; its two operations are applied one after the other, each with its own
probability.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.efficientnet import image_ops

# In this order in `apply_operation`.
OPERATIONS = (
  'AutoContrast',
  'Equalize',
  'Invert',
  'Rotate',
  'Posterize',
  'Solarize',
  'Color',
  'Contrast',
  'Brightness',
  'Sharpness',
  'ShearX',
  'ShearY',
  'TranslateX',
  'TranslateY',
  'Cutout',
  'SolarizeAdd',
)
# Those whose argument is negated with probability 1/2.
SIGNED = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')
MAX_LEVEL = 10

# Two of (operation, probability, level).
POLICY_V0 = (
  (('Equalize', 0.8, 1), ('ShearY', 0.8, 4)),
  (('Color', 0.4, 9), ('Equalize', 0.6, 3)),
  (('Color', 0.4, 1), ('Rotate', 0.6, 8)),
  (('Solarize', 0.8, 3), ('Equalize', 0.4, 7)),
  (('Solarize', 0.4, 2), ('Solarize', 0.6, 2)),
  (('Color', 0.2, 0), ('Equalize', 0.8, 8)),
  (('Equalize', 0.4, 8), ('SolarizeAdd', 0.8, 3)),
  (('ShearX', 0.2, 9), ('Rotate', 0.6, 8)),
  (('Color', 0.6, 1), ('Equalize', 1.0, 2)),
  (('Invert', 0.4, 9), ('Rotate', 0.6, 0)),
  (('Equalize', 1.0, 9), ('ShearY', 0.6, 3)),
  (('Color', 0.4, 7), ('Equalize', 0.6, 0)),
  (('Posterize', 0.4, 6), ('AutoContrast', 0.4, 7)),
  (('Solarize', 0.6, 8), ('Color', 0.6, 9)),
  (('Solarize', 0.2, 4), ('Rotate', 0.8, 9)),
  (('Rotate', 1.0, 7), ('TranslateY', 0.8, 9)),
  (('ShearX', 0.0, 0), ('Solarize', 0.8, 4)),
  (('ShearY', 0.8, 0), ('Color', 0.6, 4)),
  (('Color', 1.0, 0), ('Rotate', 0.6, 2)),
  (('Equalize', 0.8, 4), ('Equalize', 0.0, 8)),
  (('Equalize', 1.0, 4), ('AutoContrast', 0.6, 2)),
  (('ShearY', 0.4, 7), ('SolarizeAdd', 0.6, 7)),
  (('Posterize', 0.8, 2), ('Solarize', 0.6, 10)),
  (('Solarize', 0.6, 8), ('Equalize', 0.6, 1)),
  (('Color', 0.8, 6), ('Rotate', 0.4, 5)),
)


def level_to_argument(
  operation: str,
  level: float,
  *,
  translate: float = 250.0,
  cutout: float = 100.0,
) -> float:
  """The argument of an operation at a level, before any change of sign.

  Args:
    operation: One of `OPERATIONS`.
    level: 0 .. 10; RandAugment goes beyond.
    translate: Pixels of a translation at level 10.
    cutout: Half the side of a cutout at level 10.

  Returns:
    Degrees, pixels, bits, ...; 0 for operations without an argument.

  Raises:
    ValueError: If there is no such operation.

  Example:
    >>> level_to_argument('Rotate', 5), level_to_argument('Posterize', 6)
    (15.0, 2)
  """
  share = level / MAX_LEVEL
  match operation:
    case 'AutoContrast' | 'Equalize' | 'Invert':
      return 0
    case 'Rotate':
      return share * 30.0
    case 'Posterize':
      return int(share * 4)
    case 'Solarize':
      return int(share * 256)
    case 'SolarizeAdd':
      return int(share * 110)
    case 'Color' | 'Contrast' | 'Brightness' | 'Sharpness':
      return share * 1.8 + 0.1
    case 'ShearX' | 'ShearY':
      return share * 0.3
    case 'TranslateX' | 'TranslateY':
      return share * translate
    case 'Cutout':
      return int(share * cutout)
  raise ValueError(
    f'operation is {operation!r}; expected one of {", ".join(OPERATIONS)}.'
  )


def apply_operation(
  image: Any, operation: Any, argument: Any, center: Any = (0, 0)
) -> Any:
  """Applies the operation of an index.

  Args:
    image: uint8 [height, width, 3], of NumPy or JAX.
    operation: Index into `OPERATIONS`; traced where the image is JAX's.
    argument: Its argument, sign included; a number.
    center: Row and column of a cutout's centre, as fractions of the image's
      sides.

  Returns:
    uint8 of the same shape.
  """
  if not isinstance(image, jax.Array):
    return _BRANCHES[int(operation)](image, argument, center)
  argument = jnp.asarray(argument, jnp.float32)
  center = jnp.asarray(center, jnp.float32)
  return jax.lax.switch(operation, _BRANCHES, image, argument, center)


def _cutout(image, size, center):
  rows, columns = image.shape[:2]
  # The fraction is below 1, its product with the size not always.
  module = jnp if isinstance(image, jax.Array) else np
  row = module.minimum(module.floor(center[0] * rows), rows - 1)
  column = module.minimum(module.floor(center[1] * columns), columns - 1)
  return image_ops.cutout(image, size, row, column)


def _plain(function):
  return lambda image, argument, center: function(image)


def _with_argument(function):
  return lambda image, argument, center: function(image, argument)


_BRANCHES = (
  _plain(image_ops.autocontrast),
  _plain(image_ops.equalize),
  _plain(image_ops.invert),
  _with_argument(image_ops.rotate),
  _with_argument(image_ops.posterize),
  _with_argument(image_ops.solarize),
  _with_argument(image_ops.color),
  _with_argument(image_ops.contrast),
  _with_argument(image_ops.brightness),
  _with_argument(image_ops.sharpness),
  _with_argument(image_ops.shear_x),
  _with_argument(image_ops.shear_y),
  _with_argument(image_ops.translate_x),
  _with_argument(image_ops.translate_y),
  _cutout,
  _with_argument(image_ops.solarize_add),
)

_TABLE = {
  'operation': np.array(
    [[OPERATIONS.index(name) for name, _, _ in pair] for pair in POLICY_V0],
    np.int32,
  ),
  'probability': np.array(
    [[p for _, p, _ in pair] for pair in POLICY_V0], np.float32
  ),
  'argument': np.array(
    [[level_to_argument(n, level) for n, _, level in p] for p in POLICY_V0],
    np.float32,
  ),
  'signed': np.array([[n in SIGNED for n, _, _ in p] for p in POLICY_V0]),
}


def draw_v0(rng: Any) -> dict[str, Any]:
  """What is to be done to one image.

  Args:
    rng: Typed key, or a `numpy.random.Generator`.

  Returns:
    'policy': Index of the sub-policy, scalar. Of its two operations, each [2]:
    'operation', indices into `OPERATIONS`; 'argument', signs included;
    'applied', whether at all.
  """
  if isinstance(rng, np.random.Generator):
    xp, policy = np, int(rng.integers(len(POLICY_V0)))
    applied, sign = rng.random((2, 2))
  else:
    xp = jnp
    first, second = jax.random.split(rng)
    policy = jax.random.randint(first, (), 0, len(POLICY_V0))
    applied, sign = jax.random.uniform(second, (2, 2))
  row = {name: xp.asarray(table)[policy] for name, table in _TABLE.items()}
  negative = row['signed'] & (sign < 0.5)
  return {
    'policy': policy,
    'operation': row['operation'],
    'argument': xp.where(negative, -row['argument'], row['argument']),
    'applied': applied < row['probability'],
  }


def autoaugment_v0(rng: Any, image: Any) -> Any:
  """Augments one image by AutoAugment's policy v0.

  Args:
    rng: Typed key for an image of JAX, `numpy.random.Generator` for one of
      NumPy. In JAX it can be jitted, and vmapped over keys and images: all
      operations are then computed for every image.
    image: uint8 [height, width, 3].

  Returns:
    uint8 of the same shape.

  Raises:
    ValueError: If the image is something else, or `rng` is of the other kind.

  Example:
    >>> image = np.zeros((32, 32, 3), np.uint8)
    >>> autoaugment_v0(np.random.default_rng(0), image).shape
    (32, 32, 3)
  """
  image = check_image(rng, image)
  drawn = draw_v0(rng)
  if isinstance(image, jax.Array):

    def apply(image, step):
      changed = apply_operation(image, step['operation'], step['argument'])
      return jnp.where(step['applied'], changed, image), None

    drawn.pop('policy')
    return jax.lax.scan(apply, image, drawn)[0]
  for k in range(2):
    if drawn['applied'][k]:
      image = apply_operation(
        image, drawn['operation'][k], drawn['argument'][k]
      )
  return image


def check_image(rng: Any, image: Any) -> Any:
  """The image, as JAX's if `rng` is a key; refuses what is no image.

  Raises:
    ValueError: See `autoaugment_v0`.
  """
  host = isinstance(rng, np.random.Generator)
  if host and isinstance(image, jax.Array):
    raise ValueError(
      'rng is a numpy.random.Generator but image is an array of JAX. Give a'
      ' typed key, jax.random.key(seed), or np.asarray(image).'
    )
  if not hasattr(image, 'dtype') or image.dtype != np.uint8:
    raise ValueError(
      f'image is {getattr(image, "dtype", type(image).__name__)}; expected'
      ' uint8. Clip and cast it first: image.clip(0, 255).astype(np.uint8).'
    )
  if image.ndim != 3 or image.shape[-1] != 3 or min(image.shape[:2]) < 3:
    raise ValueError(
      f'image has shape {list(image.shape)}; expected [height, width, 3], at'
      ' least 3 x 3. Use jax.vmap for a batch.'
    )
  return image if host else jnp.asarray(image)
