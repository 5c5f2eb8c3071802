"""RandAugment: as many random operations as one likes, all of one strength.

Cubuk et al. (2020), arXiv:1909.13719, with the sixteen operations and the
constants of EfficientNet's code.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.efficientnet import autoaugment

TRANSLATE, CUTOUT = 100.0, 40.0


def randaugment(
  rng: Any, image: Any, num_layers: int = 2, magnitude: float = 10.0
) -> Any:
  """Applies operations drawn from the sixteen, each surely.

  Args:
    rng: Typed key for an image of JAX, which can be jitted and vmapped;
      `numpy.random.Generator` for one of NumPy.
    image: uint8 [height, width, 3].
    num_layers: How many, N in the paper; with replacement.
    magnitude: Level of all of them, M in the paper; 10 is the strongest of
      AutoAugment, and larger ones are allowed.

  Returns:
    uint8 of the same shape.

  Raises:
    ValueError: If the image or an argument does not fit.

  Example:
    >>> image = np.zeros((32, 32, 3), np.uint8)
    >>> randaugment(np.random.default_rng(0), image, 2, 9).shape
    (32, 32, 3)
  """
  image = autoaugment.check_image(rng, image)
  arguments, signed = _table(magnitude)
  if num_layers < 0:
    raise ValueError(f'num_layers is {num_layers}; expected 0 or more.')
  count = len(autoaugment.OPERATIONS)
  if not isinstance(image, jax.Array):
    operations = rng.integers(count, size=num_layers)
    for operation, uniform in zip(operations, rng.random((num_layers, 3))):
      argument = arguments[operation]
      if signed[operation] and uniform[0] < 0.5:
        argument = -argument
      image = autoaugment.apply_operation(
        image, operation, argument, uniform[1:]
      )
    return image

  def apply(image, step):
    operation, uniform = step
    argument = jnp.asarray(arguments)[operation]
    negative = jnp.asarray(signed)[operation] & (uniform[0] < 0.5)
    argument = jnp.where(negative, -argument, argument)
    image = autoaugment.apply_operation(image, operation, argument, uniform[1:])
    return image, None

  first, second = jax.random.split(rng)
  operations = jax.random.randint(first, (num_layers,), 0, count)
  uniform = jax.random.uniform(second, (num_layers, 3))
  return jax.lax.scan(apply, image, (operations, uniform))[0]


def _table(magnitude):
  """Arguments of all operations, and which of them have a sign."""
  if not 0 <= magnitude <= 1000:
    raise ValueError(
      f'magnitude is {magnitude}; expected a level from 0, 10 being the'
      ' strongest of AutoAugment.'
    )
  arguments = [
    autoaugment.level_to_argument(
      name, float(magnitude), translate=TRANSLATE, cutout=CUTOUT
    )
    for name in autoaugment.OPERATIONS
  ]
  # Beyond level 20 a posterisation would keep more bits than there are.
  index = autoaugment.OPERATIONS.index('Posterize')
  arguments[index] = min(arguments[index], 8)
  signed = [name in autoaugment.SIGNED for name in autoaugment.OPERATIONS]
  return np.array(arguments, np.float32), np.array(signed)
