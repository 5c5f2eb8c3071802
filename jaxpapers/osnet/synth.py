"""Procedural pedestrians: re-identification that every machine can train.

People are drawn from a few cues of different size: a 5 x 5 logo on the chest
and the colour of the shoes (fine), stripes of the garment (mid), bag and
silhouette (coarse), and colours. They come in groups of four that share all
colours: a base, and three siblings that differ from it in the cues of one size
only. Whoever confuses siblings has missed that size, so errors can be sorted
by scale. Six cameras differ in gain, gamma and background; images are moved,
scaled, mirrored, occluded and noisy.

Nothing here claims to look like people: it is a test of a training program,
and of what a network can tell apart.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

# What a sibling differs in from the base of its group.
KINDS = ('base', 'fine', 'mid', 'coarse')
NUM_CAMERAS = 6
_HEIGHT, _WIDTH = 64.0, 32.0  # Canonical pixels, in which all sizes are given.
_PERIODS = (2.0, 4.0, 8.0)


@dataclasses.dataclass(frozen=True)
class Population:
  """Who there is; every array has one row for each identity.

  Attributes:
    group: int [n], who shares its colours.
    kind: int [n], index into `KINDS`.
    skin: float [n, 3], colours from 0 to 1, as the others.
    torso: float [n, 3].
    legs: float [n, 3].
    stripes: float [n, 3], second colour of the pattern.
    pattern: int [n], 0 none, 1-3 horizontal and 4-6 vertical stripes of period
      2, 4 and 8 pixels.
    logo: bool [n, 5, 5].
    logo_side: int [n], 0 left or 1 right.
    shoes: float [n, 3].
    bag: int [n], 0 none, 1 at the left hand, 2 at the right hand, 3 backpack.
    skirt: bool [n], silhouette of the legs.
  """

  group: np.ndarray
  kind: np.ndarray
  skin: np.ndarray
  torso: np.ndarray
  legs: np.ndarray
  stripes: np.ndarray
  pattern: np.ndarray
  logo: np.ndarray
  logo_side: np.ndarray
  shoes: np.ndarray
  bag: np.ndarray
  skirt: np.ndarray

  def __len__(self) -> int:
    return len(self.group)


def make_population(
  num_identities: int, rng: int | np.random.Generator = 0
) -> Population:
  """Draws identities, in groups of a base and three siblings.

  Args:
    num_identities: How many; a multiple of 4.
    rng: Generator, or a seed for one.

  Returns:
    The population.

  Raises:
    ValueError: If it is no positive multiple of 4.

  Example:
    >>> people = make_population(8, 0)
    >>> people.group.tolist()
    [0, 0, 0, 0, 1, 1, 1, 1]
  """
  if num_identities < 4 or num_identities % 4:
    raise ValueError(
      f'num_identities is {num_identities}; expected a positive multiple of 4:'
      ' a base and three siblings.'
    )
  rng = np.random.default_rng(rng)
  groups = num_identities // 4

  def repeat(values):
    return np.repeat(values, 4, axis=0)

  def other(values, count):
    """Another value than each of these."""
    return (values + rng.integers(1, count, len(values))) % count

  skin = np.array([0.95, 0.76, 0.6]) * rng.uniform(0.4, 1, (groups, 1))
  torso, legs, stripes = rng.uniform(0.05, 0.95, (3, groups, 3))
  shoes = repeat(rng.uniform(0.05, 0.95, (groups, 3)))
  pattern = repeat(rng.integers(0, 7, groups))
  logo = repeat(rng.random((groups, 5, 5)) < 0.5)
  logo_side = repeat(rng.integers(0, 2, groups))
  bag = repeat(rng.integers(0, 4, groups))
  skirt = repeat(rng.random(groups) < 0.5)
  kind = np.tile(np.arange(4), groups)
  fine, mid, coarse = (kind == k for k in (1, 2, 3))
  logo[fine] = rng.random((groups, 5, 5)) < 0.5
  logo_side[fine] = 1 - logo_side[fine]
  shoes[fine] = rng.uniform(0.05, 0.95, (groups, 3))
  pattern[mid] = other(pattern[mid], 7)
  bag[coarse] = other(bag[coarse], 4)
  skirt[coarse] = ~skirt[coarse]
  return Population(
    group=np.repeat(np.arange(groups), 4),
    kind=kind,
    skin=repeat(skin),
    torso=repeat(torso),
    legs=repeat(legs),
    # Far enough from the ground to be seen.
    stripes=repeat((torso + 0.35 + 0.3 * stripes) % 1),
    pattern=pattern,
    logo=logo,
    logo_side=logo_side,
    shoes=shoes,
    bag=bag,
    skirt=skirt,
  )


def render(
  people: Population,
  identity: int,
  camera: int,
  rng: int | np.random.Generator,
  size: tuple[int, int] = (64, 32),
) -> np.ndarray:
  """One image of a person.

  Args:
    people: The population.
    identity: Row of it.
    camera: 0 to 5; the same in every population.
    rng: Generator, or a seed for one: place, size, occlusion, noise.
    size: Height and width.

  Returns:
    uint8 [height, width, 3].

  Raises:
    ValueError: If there is no such identity or camera.
  """
  if not 0 <= identity < len(people):
    raise ValueError(
      f'identity is {identity}; expected 0 to {len(people) - 1}.'
    )
  if not 0 <= camera < NUM_CAMERAS:
    raise ValueError(f'camera is {camera}; expected 0 to {NUM_CAMERAS - 1}.')
  rng = np.random.default_rng(rng)
  look = np.random.default_rng([7, camera])
  gain, gamma = look.uniform(0.75, 1.2, 3), look.uniform(0.75, 1.35)
  palette = look.uniform(0.1, 0.9, (2, 3))

  # Where each of 2 x 2 samples of a pixel lies in the canonical picture.
  height, width = size
  rows = (np.arange(2 * height) + 0.5)[:, None] / (2 * height) * _HEIGHT
  columns = (np.arange(2 * width) + 0.5)[None] / (2 * width) * _WIDTH
  scale = rng.uniform(0.9, 1.1)
  down, right = rng.uniform(-3, 3, 2)
  y = (rows - _HEIGHT / 2 - down) / scale + _HEIGHT / 2
  x = (columns - _WIDTH / 2 - right) / scale + _WIDTH / 2
  if rng.random() < 0.5:
    x = _WIDTH - x

  image = _background(rows, columns, palette, rng)
  for where, colour in _person(people, identity, y, x):
    image = np.where(where[..., None], colour, image)
  if rng.random() < 0.2:  # Something stands before the person.
    top, left = rng.uniform(0, _HEIGHT - 16), rng.uniform(-4, _WIDTH - 8)
    tall, wide = rng.uniform(10, 24), rng.uniform(6, 16)
    where = (rows > top) & (rows < top + tall)
    where = where & (columns > left) & (columns < left + wide)
    image = np.where(where[..., None], rng.uniform(0, 1, 3), image)
  image = image.reshape(height, 2, width, 2, 3).mean((1, 3))
  image = np.clip(image * gain, 0, 1) ** gamma
  image = image + rng.normal(0, 0.02, image.shape)
  return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _background(y, x, palette, rng):
  """Wall and floor of a camera, with a slope and a post somewhere."""
  horizon = 38 + rng.uniform(-6, 6)
  image = np.where((y < horizon)[..., None], palette[0], palette[1])
  slope = (x / _WIDTH - 0.5) * rng.uniform(-0.2, 0.2)
  image = image + np.broadcast_to(slope, y.shape[:1] + x.shape[1:])[..., None]
  post = rng.uniform(0, _WIDTH)
  where = (np.abs(x - post) < 1.5) & (y < horizon)
  return np.where(where[..., None], 0.6 * palette[1], image)


def _person(people, i, y, x):
  """Yields (where, colour) of the parts, from back to front."""
  middle = _WIDTH / 2
  off = np.abs(x - middle)
  bag_colour = 0.5 * people.legs[i] + 0.1
  bag = people.bag[i]
  if bag == 3:
    yield (y > 17) & (y < 33) & (off < 9.5), bag_colour
  # Legs, or a skirt that widens, then the shoes.
  if people.skirt[i]:
    yield (y > 36) & (y < 58) & (off > 1) & (off < 4), people.skin[i]
    yield (y > 35) & (y < 49) & (off < 4.5 + (y - 35) * 0.3), people.legs[i]
  else:
    yield (y > 35) & (y < 58) & (off > 0.6) & (off < 5), people.legs[i]
  yield (y > 57) & (y < 61) & (off > 0.6) & (off < 5.5), people.shoes[i]
  arms = (y > 16) & (y < 36) & (off > 6) & (off < 8.2)
  yield arms, 0.8 * people.torso[i]
  yield (y > 34) & (y < 38) & (off > 6) & (off < 8.2), people.skin[i]
  torso = (y > 15) & (y < 37) & (off < 6.5)
  yield torso, people.torso[i]
  pattern = people.pattern[i]
  if pattern:
    along = y if pattern < 4 else x
    period = _PERIODS[(pattern - 1) % 3]
    yield torso & (along % period < period / 2), people.stripes[i]
  # The logo: black and white, so that it shows on every ground.
  left = middle - 5.5 if people.logo_side[i] == 0 else middle + 0.5
  row = np.floor(y - 18).astype(int)
  column = np.floor(x - left).astype(int)
  inside = (row >= 0) & (row < 5) & (column >= 0) & (column < 5)
  on = people.logo[i][np.clip(row, 0, 4), np.clip(column, 0, 4)]
  yield inside, np.zeros(3)
  yield inside & on, np.ones(3)
  yield ((y - 9) / 5.5) ** 2 + (off / 4) ** 2 < 1, people.skin[i]
  yield ((y - 6.5) / 3.5) ** 2 + (off / 4.3) ** 2 < 1, 0.25 * people.skin[i]
  if bag in (1, 2):
    side = middle - 9.5 if bag == 1 else middle + 9.5
    yield (y > 34) & (y < 45) & (np.abs(x - side) < 3.2), bag_colour


@dataclasses.dataclass(frozen=True)
class Images:
  """Images of people.

  Attributes:
    images: uint8 [n, height, width, 3].
    pids: int32 [n], rows of the population.
    camids: int32 [n], from 0.
  """

  images: np.ndarray
  pids: np.ndarray
  camids: np.ndarray

  def __len__(self) -> int:
    return len(self.pids)


def make_images(
  people: Population,
  per_camera: int,
  seed: int,
  size: tuple[int, int] = (64, 32),
) -> Images:
  """Every identity `per_camera` times in each camera.

  Args:
    people: The population.
    per_camera: Images of an identity in a camera.
    seed: Of places, occlusions and noise.
    size: Height and width.

  Returns:
    The images, by identity, then camera.
  """
  images, pids, camids = [], [], []
  for identity in range(len(people)):
    for camera in range(NUM_CAMERAS):
      for number in range(per_camera):
        rng = np.random.default_rng([seed, identity, camera, number])
        images.append(render(people, identity, camera, rng, size))
        pids.append(identity)
        camids.append(camera)
  return Images(
    np.stack(images), np.array(pids, np.int32), np.array(camids, np.int32)
  )


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A data set to train and test on, of different people.

  Attributes:
    train: Of the people that are trained on.
    query: Of others.
    gallery: Of the same as the queries, in the same cameras.
    people: Those of query and gallery.
  """

  train: Images
  query: Images
  gallery: Images
  people: Population


def make_benchmark(
  seed: int = 0,
  train_identities: int = 180,
  test_identities: int = 80,
  size: tuple[int, int] = (64, 32),
) -> Benchmark:
  """Training images of some people, queries and gallery of unseen ones.

  Two images of each person in each camera to train on; one query and two of the
  gallery. Identities of the training images begin at 0, those of the test at
  `train_identities`.

  Args:
    seed: Of people and images.
    train_identities: A multiple of 4.
    test_identities: Likewise.
    size: Height and width.

  Returns:
    The data set.
  """
  trained = make_population(train_identities, np.random.default_rng([seed, 0]))
  tested = make_population(test_identities, np.random.default_rng([seed, 1]))
  train = make_images(trained, 2, 10 * seed + 1, size)
  both = make_images(tested, 3, 10 * seed + 2, size)
  pids = both.pids + train_identities
  is_query = np.arange(len(both)) % 3 == 0

  def part(mask):
    return Images(both.images[mask], pids[mask], both.camids[mask])

  return Benchmark(train, part(is_query), part(~is_query), tested)


def error_scales(
  people: Population, pids: Any, matches: Any, first: int = 0
) -> dict[str, float]:
  """Sorts wrong first matches by what was confused.

  Args:
    people: The population.
    pids: int [n], identity of each query.
    matches: int [n], identity of its first match.
    first: Identity of row 0 of the population.

  Returns:
    Shares of all queries, which add up to 1: 'right'; 'fine', 'mid' and
    'coarse' for a base and its sibling of that kind, whichever was the query;
    'two' for two siblings, which differ in cues of two sizes; 'stranger' for
    another group.

  Example:
    >>> people = make_population(8, 0)
    >>> error_scales(people, [0, 0, 1, 1], [0, 1, 3, 5])['fine']
    0.25
  """
  pids = np.asarray(pids) - first
  matches = np.asarray(matches) - first
  kind, other = people.kind[pids], people.kind[matches]
  same_group = people.group[pids] == people.group[matches]
  right = pids == matches
  shares = {'right': right.mean()}
  siblings = same_group & ~right
  for k in (1, 2, 3):
    pair = (np.minimum(kind, other) == 0) & (np.maximum(kind, other) == k)
    shares[KINDS[k]] = (siblings & pair).mean()
  shares['two'] = (siblings & (kind > 0) & (other > 0)).mean()
  shares['stranger'] = (~same_group).mean()
  return {name: float(share) for name, share in shares.items()}


def write_market_folder(folder: Any, benchmark: Benchmark) -> pathlib.Path:
  """Writes the images as Market-1501 lies on a disk.

  Args:
    folder: Where `bounding_box_train`, `query` and `bounding_box_test` go.
    benchmark: From `make_benchmark`.

  Returns:
    The folder.

  Raises:
    ImportError: Pillow is not installed.
  """
  try:
    from PIL import Image
  except ImportError as error:
    raise ImportError(
      "writing images needs Pillow: pip install 'jaxpapers[osnet]'"
    ) from error
  folder = pathlib.Path(folder).expanduser()
  number = 0
  for name, part in (
    ('bounding_box_train', benchmark.train),
    ('query', benchmark.query),
    ('bounding_box_test', benchmark.gallery),
  ):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for image, pid, camera in zip(part.images, part.pids, part.camids):
      # Identity 0 means a distractor in this format.
      stem = f'{pid + 1:04d}_c{camera + 1}s1_{number:06d}_00'
      number += 1
      path = folder / name / f'{stem}.jpg'
      temporary = path.with_suffix('.partial')
      Image.fromarray(image).save(temporary, 'JPEG', quality=95)
      temporary.replace(path)
  return folder
