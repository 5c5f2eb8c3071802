"""Designs as greyscale images, PNG files and animations.

Material is black and void white. A wall with rollers along all of it is a
symmetry plane, so the design continues beyond it as its mirror image; as in
Hoyer et al. (2019), pictures show it that way.
"""

import io
import os
import uuid
from collections.abc import Sequence

import numpy as np

from jaxpapers.structopt import domain


def mirrored(x, problem: domain.Problem | None) -> np.ndarray:
  """Continues an element field beyond the task's symmetry planes.

  Args:
    x: field `(..., nely, nelx)`.
    problem: the task; None mirrors nothing.

  Returns:
    The field, twice as wide for each of the walls that is a symmetry plane.
  """
  x = np.asarray(x)
  if problem is None:
    return x
  if problem.mirror_left:
    x = np.concatenate([x[..., ::-1], x], -1)
  if problem.mirror_right:
    x = np.concatenate([x, x[..., ::-1]], -1)
  return x


def to_image(
  x, problem: domain.Problem | None = None, *, scale: int = 1
) -> np.ndarray:
  """Turns densities into a greyscale image.

  Args:
    x: physical densities `(nely, nelx)`; values outside [0, 1] are clipped.
    problem: the task, whose symmetry planes are mirrored; None mirrors nothing.
    scale: pixels along each side of an element.

  Returns:
    uint8 `(height, width)`, 0 where there is material and 255 in the void.

  Raises:
    ValueError: if the densities are not a finite 2-D field that fits the task,
      or `scale` is not a positive integer.

  Example:
    >>> to_image(np.array([[0.0, 1.0]])).tolist()
    [[255, 0]]
  """
  x = np.asarray(x, np.float64)
  if x.ndim != 2:
    raise ValueError(f'x has shape {x.shape}; expected (nely, nelx).')
  if problem is not None:
    check_fits(x, problem)
  if not np.isfinite(x).all():
    raise ValueError('x has entries that are NaN or infinite.')
  if scale != int(scale) or scale < 1:
    raise ValueError(f'scale must be a positive integer, got {scale}.')
  x = mirrored(np.clip(x, 0, 1), problem)
  image = np.round(255 * (1 - x)).astype(np.uint8)
  return np.kron(image, np.ones((int(scale), int(scale)), np.uint8))


def check_fits(x, problem: domain.Problem) -> None:
  """Raises ValueError unless an element field has the task's shape."""
  if np.shape(x) != (problem.nely, problem.nelx):
    raise ValueError(
      f'x has shape {np.shape(x)}; expected (nely, nelx) = '
      f'({problem.nely}, {problem.nelx}) of problem {problem.name!r}.'
    )


def save_png(path, image) -> None:
  """Writes a greyscale or colour image, whole or not at all.

  Args:
    path: local or on any file system that etils.epath knows, such as gs://.
      Its folder is created.
    image: uint8 `(height, width)` or `(height, width, 3)`.

  Raises:
    ValueError: if the image is of another type or shape.
  """
  buffer = io.BytesIO()
  _pillow_image(image).save(buffer, format='PNG', optimize=True)
  write_bytes(path, buffer.getvalue())


def save_gif(
  path, images: Sequence, *, milliseconds: int = 80, hold: int = 1500
) -> None:
  """Writes an animation that repeats forever, whole or not at all.

  Args:
    path: local or on any file system that etils.epath knows.
    images: uint8 images of one shape, in order.
    milliseconds: how long each is shown.
    hold: how long the last one is shown.

  Raises:
    ValueError: if there is no image or their shapes differ.
  """
  images = [np.asarray(image) for image in images]
  if not images:
    raise ValueError('images is empty; an animation needs at least one.')
  shapes = sorted({image.shape for image in images})
  if len(shapes) > 1:
    raise ValueError(f'images must all have one shape, got {shapes}.')
  first, *rest = [_pillow_image(image) for image in images]
  buffer = io.BytesIO()
  options = {}
  if rest:
    durations = [milliseconds] * len(rest) + [hold]
    options = {
      'save_all': True,
      'append_images': rest,
      'duration': durations,
      'loop': 0,
    }
  first.save(buffer, format='GIF', **options)
  write_bytes(path, buffer.getvalue())


def write_bytes(path, content: bytes) -> None:
  """Writes a file under another name and renames it when it is complete.

  A process that is killed leaves at most a hidden temporary file behind, never
  half a result.

  Args:
    path: local or on any file system that etils.epath knows.
    content: what to write.
  """
  try:
    from etils import epath
  except ImportError as error:
    raise _missing('etils[epath]', 'writing files') from error
  path = epath.Path(os.fspath(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex}'
  try:
    temporary.write_bytes(content)
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def _pillow_image(image):
  """A Pillow image that shares the array's pixels."""
  try:
    import PIL.Image
  except ImportError as error:
    raise _missing('pillow', 'PNG and GIF files') from error
  image = np.ascontiguousarray(image)
  colour = image.ndim == 3 and image.shape[2] == 3
  if image.dtype != np.uint8 or not (image.ndim == 2 or colour):
    raise ValueError(
      f'image has dtype {image.dtype} and shape {image.shape}; expected uint8 '
      '(height, width) or (height, width, 3). See to_image.'
    )
  return PIL.Image.fromarray(image)


def _missing(package: str, purpose: str) -> ImportError:
  return ImportError(
    f'{purpose} need {package}: pip install jaxpapers[structopt]'
  )
