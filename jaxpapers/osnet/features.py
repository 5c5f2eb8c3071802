"""Features of many images: read in threads, computed in batches, kept."""

import collections
import functools
import hashlib
import io
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.data import files, images
from jaxpapers.osnet import augment, sources

# Part of the name of a kept file: changes when what is computed does.
_VERSION = 1


def load_pixels(path: Any, hw: tuple[int, int] = (256, 128)) -> np.ndarray:
  """Reads an image in the size of the network's input.

  Args:
    path: Of the file.
    hw: Height and width (Pillow has them the other way round).

  Returns:
    uint8 [height, width, 3], RGB.

  Raises:
    CorruptFileError: It cannot be decoded.
    OSError: There is no such file.

  Example:
    >>> load_pixels('a.jpg').shape  # doctest: +SKIP
    (256, 128, 3)
  """
  content = files.as_path(path).read_bytes()
  return sources.resize(images.decode_image(content, path), *hw)


def load_image(path: Any, hw: tuple[int, int] = (256, 128)) -> np.ndarray:
  """Reads an image as the network wants it.

  Args:
    path: Of the file.
    hw: Height and width.

  Returns:
    float32 [height, width, 3], normalised by the statistics of ImageNet.

  Raises:
    CorruptFileError: It cannot be decoded.
    OSError: There is no such file.

  Example:
    >>> load_image('a.jpg').dtype  # doctest: +SKIP
    dtype('float32')
  """
  return np.asarray(augment.normalize(load_pixels(path, hw)))


def extract_features(
  apply: Callable[[Any, jax.Array], jax.Array],
  variables: Any,
  paths: Sequence[Any],
  *,
  hw: tuple[int, int] = (256, 128),
  batch_size: int = 64,
  flip: bool = False,
  normalize: bool = False,
  mesh: jax.sharding.Mesh | None = None,
  num_threads: int | None = None,
  unreadable: Callable[[int, Exception], None] | None = None,
  progress: bool = False,
) -> np.ndarray:
  """Features of images in files.

  Args:
    apply: `apply(variables, images [B, H, W, 3]) -> features [B, D]`, such as
      `lambda v, x: net.apply(v, x).features`. Hashable: the same function is
      compiled once.
    variables: Of the network.
    paths: Of the files, [n].
    hw: Height and width that they are resized to.
    batch_size: Images at once; the last batch is filled up, so that one program
      is compiled.
    flip: Adds the features of the mirrored image and halves the sum.
    normalize: Divides features by their Euclidean norm.
    mesh: Shares each batch among the devices of the first axis of a mesh.
    num_threads: That read; by default one for each processor.
    unreadable: Called with the number of an image that cannot be read and the
      error; its features are NaN then. Without, the error is raised.
    progress: Whether to show a progress bar.

  Returns:
    float32 [n, D].

  Raises:
    ValueError: There are no paths, or `apply` returns another shape.
    CorruptFileError: An image cannot be decoded.
    OSError: There is no such file.

  Example:
    >>> extract_features(apply, variables, ['a.jpg'])  # doctest: +SKIP
  """
  if not len(paths):
    raise ValueError('paths is empty; expected at least one image.')
  if batch_size < 1:
    raise ValueError(f'batch_size is {batch_size}; expected 1 or more.')
  shards = 1 if mesh is None else mesh.shape[mesh.axis_names[0]]
  size = -(-min(batch_size, len(paths)) // shards) * shards
  place = jnp.asarray
  if mesh is not None:
    spec = jax.sharding.PartitionSpec
    variables = jax.device_put(
      variables, jax.sharding.NamedSharding(mesh, spec())
    )
    rows = jax.sharding.NamedSharding(mesh, spec(mesh.axis_names[0]))
    place = functools.partial(jax.device_put, device=rows)
  out: list[Any] = []
  lost: list[int] = []
  import tqdm

  with tqdm.tqdm(
    total=len(paths), desc='features', disable=not progress, leave=False
  ) as bar:
    for start, pixels, errors in _batches(paths, hw, size, num_threads):
      for index, error in errors:
        if unreadable is None:
          raise error
        unreadable(index, error)
        lost.append(index)
      out.append(_features(apply, variables, place(pixels), flip))
      if len(out) > 2:  # Two batches ahead, not all of them.
        jax.block_until_ready(out[-3])
      bar.update(min(size, len(paths) - start))
  features = np.concatenate([np.asarray(x, np.float32) for x in out])
  features = features[: len(paths)]
  if features.ndim != 2:
    raise ValueError(
      f'apply returned features of shape {out[0].shape}; expected [B, D].'
    )
  if normalize:
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    features = features / np.maximum(norm, 1e-12)
  features[lost] = np.nan
  return features


@functools.partial(jax.jit, static_argnums=(0, 3))
def _features(apply, variables, pixels, flip):
  x = augment.normalize(pixels)
  out = apply(variables, x)
  if flip:
    out = (out + apply(variables, x[:, :, ::-1])) / 2
  return out.astype(jnp.float32)


def _batches(paths, hw, size, num_threads):
  """Yields (start, uint8 [size, H, W, 3], [(index, error)])."""

  def read(index):
    try:
      return load_pixels(paths[index], hw), None
    except (files.CorruptFileError, OSError) as error:
      return np.zeros((*hw, 3), np.uint8), (index, error)

  ahead = 3 * size
  waiting: collections.deque = collections.deque()
  with futures.ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
    numbers = iter(range(len(paths)))
    for index in itertools.islice(numbers, ahead):
      waiting.append(pool.submit(read, index))
    for start in range(0, len(paths), size):
      pixels = np.zeros((size, *hw, 3), np.uint8)
      errors = []
      for row in range(min(size, len(paths) - start)):
        pixels[row], error = waiting.popleft().result()
        if error is not None:
          errors.append(error)
        for index in itertools.islice(numbers, 1):
          waiting.append(pool.submit(read, index))
      yield start, pixels, errors


def weights_fingerprint(variables: Any) -> str:
  """A text that changes with any number of a tree of arrays.

  Args:
    variables: The tree.

  Returns:
    64 hexadecimal digits.

  Example:
    >>> a, b = ({'w': np.array([x])} for x in (1.0, 2.0))
    >>> weights_fingerprint(a) == weights_fingerprint(b)
    False
  """
  digest = hashlib.sha256()
  leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
  for path, leaf in leaves:
    array = np.asarray(leaf)
    name = jax.tree_util.keystr(path)
    digest.update(f'{name} {array.dtype} {array.shape} '.encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def images_fingerprint(paths: Sequence[Any]) -> str:
  """A text that changes when files do: their names, sizes or times.

  Args:
    paths: Of the files.

  Returns:
    64 hexadecimal digits; files that are not there have a size of their own.
  """
  digest = hashlib.sha256()
  for path in paths:
    try:
      stat = files.as_path(path).stat()
    except OSError:
      digest.update(f'{path}\0missing\n'.encode())
      continue
    size = stat.st_size if hasattr(stat, 'st_size') else stat.length
    time = getattr(stat, 'st_mtime_ns', getattr(stat, 'mtime', 0))
    digest.update(f'{path}\0{size}\0{time}\n'.encode())
  return digest.hexdigest()


def cached_features(
  folder: Any,
  apply: Callable[[Any, jax.Array], jax.Array],
  variables: Any,
  paths: Sequence[Any],
  *,
  network: str = '',
  hw: tuple[int, int] = (256, 128),
  flip: bool = False,
  normalize: bool = False,
  **options: Any,
) -> tuple[np.ndarray, bool]:
  """As `extract_features`, computed once for the same weights and files.

  Args:
    folder: Where features are kept, one file for each set of images.
    apply: See `extract_features`.
    variables: See there.
    paths: See there.
    network: What `apply` is: a text that changes when it does, such as the
      `repr` of a config.
    hw: See there.
    flip: See there.
    normalize: See there; what is kept is not divided.
    **options: Others of `extract_features`.

  Returns:
    float32 [n, D], and whether they were there.

  Raises:
    ValueError: As `extract_features`.
    OSError: There is no such file.

  Example:
    >>> cached_features('cache', apply, variables, paths)  # doctest: +SKIP
  """
  parts = (
    _VERSION,
    network,
    tuple(hw),
    flip,
    weights_fingerprint(variables),
    images_fingerprint(paths),
  )
  key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
  path = files.as_path(folder) / f'features-{key}.npy'
  features = _read(path, len(paths))
  there = features is not None
  if there:
    report = options.get('unreadable')
    for index in np.flatnonzero(np.isnan(features).any(axis=1)):
      try:  # Has it become readable?
        load_pixels(paths[index], hw)
      except (files.CorruptFileError, OSError) as error:
        if report is None:
          raise
        report(int(index), error)
      else:
        there = False
  if not there:
    features = extract_features(
      apply, variables, paths, hw=hw, flip=flip, **options
    )
    stream = io.BytesIO()
    np.save(stream, features)
    files.write_file(path, stream.getvalue())
  if normalize:
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    features = features / np.maximum(norm, 1e-12)
  return features, there


def _read(path, number):
  """Features of a file, or None if it is not there or damaged."""
  try:
    features = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
  except (OSError, ValueError, EOFError):
    return None
  if features.ndim != 2 or len(features) != number:
    return None
  return features
