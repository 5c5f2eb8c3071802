"""Made BOLD series with a known core: seven regions that see a stimulus.

The recordings of the paper are private. This generator plants what it claims,
a core in the first three of seven regions, so that a pipeline can be held
against a known truth. It makes no claim about brains.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxpapers.kcore import glm

STATES = ('conscious', 'subliminal')
# Voxels of 4 mm on this grid.
SHAPE = (40, 48, 34)
VOXEL_MM = 4.0


class Region(NamedTuple):
  """One region of the generator.

  Attributes:
    name: of the anatomical region that it stands for.
    centre: voxel (i, j, k) around which it grows.
    size: number of voxels.
    coupling: rho, how much of the regional signal is the stimulus.
    loading: a0, how much of a voxel's signal is the regional signal.
  """

  name: str
  centre: tuple[int, int, int]
  size: int
  coupling: float
  loading: float


# The numbers are those of the planted truth: strong in 1-3, weak in 4-7.
REGIONS = (
  Region('fusiform L', (10, 16, 9), 140, 0.99, 0.97),
  Region('fusiform R', (29, 16, 9), 130, 0.99, 0.97),
  Region('precentral L', (9, 27, 22), 120, 0.99, 0.97),
  Region('sup. occipital L', (14, 8, 20), 60, 0.70, 0.90),
  Region('sup. occipital R', (25, 8, 20), 60, 0.70, 0.90),
  Region('premotor R', (30, 30, 23), 50, 0.70, 0.90),
  Region('SMA', (19, 29, 27), 50, 0.70, 0.90),
)
CORE_MODULES = (0, 1, 2)
# A voxel at the rim of a region loses up to this part of its loading.
_DECAY = 0.6
# Autocorrelation of the regional signals from scan to scan.
_MEMORY = 0.5


class SynthBold(NamedTuple):
  """A made recording.

  Attributes:
    series: float64[610, T], about unit variance.
    stimulus: float64[T], the expected response, mean 0 and variance 1.
    coords: int[610, 3], voxel indices on a grid of 4 mm.
    module: int[610], region 0..6 of each voxel.
  """

  series: np.ndarray
  stimulus: np.ndarray
  coords: np.ndarray
  module: np.ndarray


def synth_bold(
  seed: int,
  state: str = 'conscious',
  *,
  num_scans: int = 125,
  tr: float = 2.4,
  block: int = 10,
) -> SynthBold:
  """Makes one recording of 610 voxels in seven regions.

  Voxel i of region m follows

    x_i = a_i (rho_m s + sqrt(1 - rho_m^2) z_m) + sqrt(1 - a_i^2) e_i

  with the stimulus response s, a slow signal z_m of its region and noise of its
  own. a_i falls off from the centre of the region. In the subliminal state a_i
  is 0.55 of that in the first three regions and 0.05 of it in the others. The
  same seed gives the same numbers on every machine with the same NumPy streams.

  Args:
    seed: of the random numbers, an integer of at least 0.
    state: `'conscious'` or `'subliminal'`.
    num_scans: T.
    tr: seconds between scans.
    block: scans of rest, then scans of stimulus, and so on.

  Returns:
    The recording and its truth.

  Raises:
    ValueError: `state` is another word, or a number is out of range.

  Example:
    >>> made = synth_bold(0)
    >>> made.series.shape, np.bincount(made.module).tolist()
    ((610, 125), [140, 130, 120, 60, 60, 50, 50])
  """
  if state not in STATES:
    raise ValueError(f'state is {state!r}; expected one of {STATES}.')
  if isinstance(seed, bool) or int(seed) != seed or seed < 0:
    raise ValueError(f'seed is {seed}; expected an integer of at least 0.')
  if num_scans < block + 1 or block < 1:
    raise ValueError(
      f'num_scans is {num_scans} and block is {block}; expected at least one '
      'scan of stimulus, num_scans > block >= 1.'
    )
  if not tr > 0:
    raise ValueError(f'tr is {tr}; expected seconds, above 0.')
  coords, module, distance = _voxels()
  stimulus = _response(num_scans, tr, block)
  draw = np.random.Generator(np.random.PCG64(int(seed)))
  # The order of these three is part of what a seed means.
  regional = draw.standard_normal((len(REGIONS), num_scans))
  noise = draw.standard_normal((len(module), num_scans))
  uneven = draw.random(len(module))

  fresh = math.sqrt(1 - _MEMORY**2)
  for scan in range(1, num_scans):
    past = _MEMORY * regional[:, scan - 1]
    regional[:, scan] = past + fresh * regional[:, scan]
  mean = regional.mean(axis=1, keepdims=True)
  regional = (regional - mean) / regional.std(axis=1, keepdims=True)

  coupling = np.array([region.coupling for region in REGIONS])[module]
  loading = np.array([region.loading for region in REGIONS])
  if state == 'subliminal':
    core = np.isin(np.arange(len(REGIONS)), CORE_MODULES)
    loading = np.where(core, 0.55 * loading, 0.05 * loading)
  loading = loading[module] * (1 - _DECAY * distance * uneven)
  shared = coupling[:, None] * stimulus
  shared = shared + np.sqrt(1 - coupling**2)[:, None] * regional[module]
  own = np.sqrt(1 - loading**2)[:, None] * noise
  series = loading[:, None] * shared + own
  return SynthBold(series, stimulus, coords, module)


def _voxels():
  """Voxels nearest to each centre, their region and distance in its radius."""
  grid = np.indices(SHAPE).reshape(3, -1).T
  coords, module, distance = [], [], []
  for number, region in enumerate(REGIONS):
    square = np.sum((grid - np.array(region.centre)) ** 2, axis=1)
    nearest = np.argsort(square, kind='stable')[: region.size]
    coords.append(grid[nearest])
    module.append(np.full(region.size, number))
    distance.append(np.sqrt(square[nearest] / square[nearest[-1]]))
  return tuple(map(np.concatenate, (coords, module, distance)))


def _response(num_scans, tr, block):
  """The blocks as the haemodynamic response follows them, standardised."""
  on = (np.arange(num_scans) // block) % 2 == 1
  response = np.convolve(on.astype(float), glm.canonical_hrf(tr))[:num_scans]
  return (response - response.mean()) / response.std()
