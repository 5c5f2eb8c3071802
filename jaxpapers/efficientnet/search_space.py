"""The factorised search space of MnasNet, from which EfficientNet-B0 came.

Seven blocks, each of equal layers; six choices for a block. With three kinds
of layers, one of them at two expansions, a block has 4*2*2*3*3*3 = 432 forms,
the number that the paper states. An architecture is an array of integers.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxpapers.efficientnet.block_args import round_filters

OPS = ('conv', 'sepconv', 'mbconv3', 'mbconv6')
KERNELS = (3, 5)
SE_RATIOS = (0.0, 0.25)
SKIPS = ('none', 'identity', 'pool')
FILTER_FACTORS = (0.75, 1.0, 1.25)
LAYER_CHANGES = (-1, 0, 1)
# Names and numbers of choices, in the order of the tokens of a block.
DIMENSIONS = ('op', 'kernel', 'se', 'skip', 'filters', 'layers')
OPTIONS = tuple(
  map(len, (OPS, KERNELS, SE_RATIOS, SKIPS, FILTER_FACTORS, LAYER_CHANGES))
)
EXPANSIONS = {'conv': 1, 'sepconv': 1, 'mbconv3': 3, 'mbconv6': 6}

# Filters and layers of each block, around which the space lies.
REFERENCES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
  'mobilenet_v2': ((16, 24, 32, 64, 96, 160, 320), (1, 2, 3, 4, 3, 3, 1)),
  'efficientnet_b0': ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
}
_STRIDES = (1, 2, 2, 2, 1, 2, 1)


@dataclasses.dataclass(frozen=True)
class SearchBlock:
  """One block of an architecture.

  Attributes:
    op: Kind of layers, one of `OPS`.
    kernel: Size of the spatial kernel.
    se_ratio: Squeeze-and-excitation; 0 for none. It has `se_ratio` times the
      layer's input channels inside.
    skip: 'none', 'identity' (only where a layer keeps its shape) or 'pool'
      (average pooling by the stride; channels cut off or filled with zeros).
    filters: Output channels.
    layers: Number of layers; the first one has the stride.
    stride: Of the first layer.
  """

  op: str
  kernel: int
  se_ratio: float
  skip: str
  filters: int
  layers: int
  stride: int


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer of an architecture: what a network has to build.

  Attributes:
    op: One of `OPS`.
    kernel: Size of the spatial kernel.
    se_ratio: As in `SearchBlock`.
    skip: As in `SearchBlock`.
    inputs: Input channels.
    filters: Output channels.
    stride: Of this layer.
  """

  op: str
  kernel: int
  se_ratio: float
  skip: str
  inputs: int
  filters: int
  stride: int

  @property
  def expanded(self) -> int:
    """Channels between expansion and projection."""
    return self.inputs * EXPANSIONS[self.op]

  @property
  def squeezed(self) -> int:
    """Channels inside squeeze-and-excitation; 0 without."""
    return max(1, int(self.inputs * self.se_ratio)) if self.se_ratio else 0

  @property
  def gated(self) -> int:
    """Channels that squeeze-and-excitation weighs."""
    return self.filters if self.op == 'conv' else self.expanded


@dataclasses.dataclass(frozen=True)
class SearchSpace:
  """Architectures around a reference network.

  Attributes:
    reference: 'mobilenet_v2' (the paper's), 'efficientnet_b0', whose filters
      are not on the paper's grid, or `(filters, layers)` of one's own.
    strides: Of the first layer of each block.
    width: Factor of all filters before the choices, for small problems.
    divisor: Filters are multiples of it.
    stem: Filters of the first convolution, before `width`.
    stem_stride: Its stride.
    head: Filters of the last 1x1 convolution, before `width`.
    num_classes: Outputs.
    resolution: Side of the images that `macs` counts for.
    channels: Of the images.

  Example:
    >>> space = SearchSpace()
    >>> space.size == 432**7
    True
    >>> space.decode(space.reference_tokens())[1].filters
    24
  """

  reference: str | tuple[tuple[int, ...], tuple[int, ...]] = 'mobilenet_v2'
  strides: tuple[int, ...] = _STRIDES
  width: float = 1.0
  divisor: int = 8
  stem: int = 32
  stem_stride: int = 2
  head: int = 1280
  num_classes: int = 1000
  resolution: int = 224
  channels: int = 3

  def __post_init__(self):
    if isinstance(self.reference, str) and self.reference not in REFERENCES:
      raise ValueError(
        f'reference is {self.reference!r}; expected one of'
        f' {sorted(REFERENCES)} or (filters, layers).'
      )
    filters, layers = self.blocks_reference
    if not len(filters) == len(layers) == len(self.strides):
      raise ValueError(
        f'reference has {len(filters)} filters and {len(layers)} layers for'
        f' {len(self.strides)} strides; expected one of each for every block.'
      )
    for name in (
      'width',
      'divisor',
      'stem',
      'stem_stride',
      'head',
      'num_classes',
      'channels',
    ):
      if getattr(self, name) <= 0:
        raise ValueError(
          f'{name} is {getattr(self, name)}; expected more than 0.'
        )
    if min(*filters, *layers, *self.strides) < 1:
      raise ValueError(
        f'reference is {self.reference}, strides {self.strides}; expected'
        ' numbers of 1 or more.'
      )
    if self.resolution < 1:
      raise ValueError(
        f'resolution is {self.resolution}; expected 1 or more pixels.'
      )

  @property
  def blocks_reference(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Filters and layers of the reference."""
    if isinstance(self.reference, str):
      return REFERENCES[self.reference]
    return self.reference

  @property
  def num_blocks(self) -> int:
    """Number of blocks."""
    return len(self.strides)

  @property
  def shape(self) -> tuple[int, int]:
    """Shape of the tokens, `(blocks, 6)`."""
    return self.num_blocks, len(DIMENSIONS)

  @property
  def size(self) -> int:
    """How many token arrays there are."""
    return int(np.prod(OPTIONS)) ** self.num_blocks

  @property
  def stem_filters(self) -> int:
    """Filters of the first convolution."""
    return round_filters(self.stem, self.width, self.divisor)

  @property
  def head_filters(self) -> int:
    """Filters of the last convolution."""
    return round_filters(self.head, self.width, self.divisor)

  def filters_of(self, block: int) -> tuple[int, ...]:
    """The filters between which a block chooses."""
    reference = self.blocks_reference[0][block]
    return tuple(
      round_filters(reference, self.width * factor, self.divisor)
      for factor in FILTER_FACTORS
    )

  def layers_of(self, block: int) -> tuple[int, ...]:
    """The numbers of layers between which a block chooses."""
    reference = self.blocks_reference[1][block]
    return tuple(max(1, reference + change) for change in LAYER_CHANGES)

  def reference_tokens(self, op: str = 'mbconv6') -> np.ndarray:
    """Tokens with the reference's filters and layers.

    Args:
      op: Of all blocks; the rest is 3x3, no squeeze-and-excitation, identity.

    Returns:
      int32 `[blocks, 6]`.
    """
    return np.array([[OPS.index(op), 0, 0, 1, 1, 1]] * self.num_blocks, 'int32')

  def sample(self, rng: Any, count: int | None = None) -> np.ndarray:
    """Draws architectures uniformly.

    Args:
      rng: A typed key, a seed, or a generator of numpy.
      count: How many; None for one without a leading axis.

    Returns:
      int32 `[blocks, 6]` or `[count, blocks, 6]`.
    """
    shape = self.shape if count is None else (count, *self.shape)
    return generator(rng).integers(0, OPTIONS, shape).astype(np.int32)

  def check(self, tokens: Any) -> np.ndarray:
    """Tokens `[blocks, 6]` as int32.

    Args:
      tokens: Integers, flat or in rows.

    Returns:
      int32 `[blocks, 6]`.

    Raises:
      ValueError: If there are too many or too few, or one is out of range.
    """
    array = np.asarray(tokens)
    if array.size != np.prod(self.shape) or array.dtype.kind not in 'iu':
      raise ValueError(
        f'tokens are {array.dtype} {list(array.shape)}; expected integers'
        f' {list(self.shape)}: {", ".join(DIMENSIONS)} of each block.'
      )
    array = array.reshape(self.shape).astype(np.int32)
    wrong = np.argwhere((array < 0) | (array >= OPTIONS))
    if len(wrong):
      block, dimension = wrong[0]
      raise ValueError(
        f'token {DIMENSIONS[dimension]!r} of block {block} is'
        f' {array[block, dimension]}; expected 0 to {OPTIONS[dimension] - 1}.'
      )
    return array

  def decode(self, tokens: Any) -> tuple[SearchBlock, ...]:
    """What tokens stand for.

    Args:
      tokens: Integers, `[blocks, 6]` or flat.

    Returns:
      One description for each block.

    Raises:
      ValueError: As in `check`.
    """
    return tuple(
      SearchBlock(
        OPS[op],
        KERNELS[kernel],
        SE_RATIOS[se],
        SKIPS[skip],
        self.filters_of(block)[filters],
        self.layers_of(block)[layers],
        self.strides[block],
      )
      for block, (op, kernel, se, skip, filters, layers) in enumerate(
        self.check(tokens).tolist()
      )
    )

  def encode(self, blocks: Sequence[SearchBlock]) -> np.ndarray:
    """The tokens of an architecture.

    Two choices may mean the same, as one layer less than one; the first one is
    returned, so that `decode(encode(x)) == x` but not the other way round.

    Args:
      blocks: Of `decode`.

    Returns:
      int32 `[blocks, 6]`.

    Raises:
      ValueError: If the architecture is not in this space.
    """
    if len(blocks) != self.num_blocks:
      raise ValueError(
        f'blocks has {len(blocks)} entries; expected {self.num_blocks}.'
      )
    rows = []
    for index, block in enumerate(blocks):
      choices = {
        'op': OPS,
        'kernel': KERNELS,
        'se_ratio': SE_RATIOS,
        'skip': SKIPS,
        'filters': self.filters_of(index),
        'layers': self.layers_of(index),
      }
      row = []
      for name, values in choices.items():
        value = getattr(block, name)
        if value not in values:
          raise ValueError(
            f'block {index} has {name} {value!r}; this space has'
            f' {", ".join(map(repr, dict.fromkeys(values)))}.'
          )
        row.append(values.index(value))
      if block.stride != self.strides[index]:
        raise ValueError(
          f'block {index} has stride {block.stride}; this space has'
          f' {self.strides[index]}.'
        )
      rows.append(row)
    return np.array(rows, np.int32)

  def layers(self, tokens: Any) -> tuple[tuple[Layer, ...], ...]:
    """The layers of each block, with their input channels and strides."""
    inputs, found = self.stem_filters, []
    for block in self.decode(tokens):
      rows = []
      for index in range(block.layers):
        rows.append(
          Layer(
            block.op,
            block.kernel,
            block.se_ratio,
            block.skip,
            inputs,
            block.filters,
            block.stride if index == 0 else 1,
          )
        )
        inputs = block.filters
      found.append(tuple(rows))
    return tuple(found)

  def macs(self, tokens: Any) -> int:
    """Multiply-adds of convolutions and dense layers for one image.

    Args:
      tokens: Integers, `[blocks, 6]` or flat.

    Returns:
      Their number; the paper calls it FLOPS.
    """
    tokens = self.check(tokens).tolist()
    total, previous = _fixed_macs(self, tokens[-1][4]), 1
    for block, row in enumerate(tokens):
      op, kernel, se, _, filters, layers = row
      total += _block_macs(
        self, block, previous, op, kernel, se, filters, layers
      )
      previous = filters
    return total

  def params(self, tokens: Any) -> int:
    """Number of parameters, batch normalisation included."""
    total = self.channels * 9 * self.stem_filters + 2 * self.stem_filters
    for layers in self.layers(tokens):
      total += sum(map(_layer_params, layers))
    last = self.layers(tokens)[-1][-1].filters
    head = self.head_filters
    return total + last * head + 2 * head + (head + 1) * self.num_classes


def layer_macs(layer: Layer, side: int) -> int:
  """Multiply-adds of a layer for input of `side` x `side` pixels."""
  area_in, area = side**2, (-(-side // layer.stride)) ** 2
  squares = layer.kernel**2
  if layer.op == 'conv':
    total = area * squares * layer.inputs * layer.filters
  else:
    total = area * layer.expanded * (squares + layer.filters)
    if layer.op != 'sepconv':
      total += area_in * layer.inputs * layer.expanded
  return total + 2 * layer.gated * layer.squeezed


def _layer_params(layer: Layer) -> int:
  squares = layer.kernel**2
  if layer.op == 'conv':
    total = squares * layer.inputs * layer.filters + 2 * layer.filters
  else:
    mid = layer.expanded
    total = mid * (squares + 2) + mid * layer.filters + 2 * layer.filters
    if layer.op != 'sepconv':
      total += layer.inputs * mid + 2 * mid
  squeezed, gated = layer.squeezed, layer.gated
  return total + (2 * squeezed * gated + squeezed + gated if squeezed else 0)


@functools.cache
def _sides(space: SearchSpace) -> tuple[int, ...]:
  """Side of the input of each block, and of the last output."""
  sides = [-(-space.resolution // space.stem_stride)]
  for stride in space.strides:
    sides.append(-(-sides[-1] // stride))
  return tuple(sides)


@functools.cache
def _fixed_macs(space: SearchSpace, last: int) -> int:
  """Multiply-adds of stem, head and classifier."""
  sides = _sides(space)
  filters = space.filters_of(space.num_blocks - 1)[last]
  stem = sides[0] ** 2 * 9 * space.channels * space.stem_filters
  head = sides[-1] ** 2 * filters * space.head_filters
  return stem + head + space.head_filters * space.num_classes


@functools.cache
def _block_macs(space, block, previous, op, kernel, se, filters, layers) -> int:
  """Of a block, whose input has the previous block's choice of filters."""
  side = _sides(space)[block]
  inputs = space.stem_filters
  if block:
    inputs = space.filters_of(block - 1)[previous]
  outputs, total = space.filters_of(block)[filters], 0
  for index in range(space.layers_of(block)[layers]):
    stride = space.strides[block] if index == 0 else 1
    layer = Layer(
      OPS[op], KERNELS[kernel], SE_RATIOS[se], 'none', inputs, outputs, stride
    )
    total += layer_macs(layer, side)
    side, inputs = -(-side // stride), outputs
  return total


def generator(rng: Any) -> np.random.Generator:
  """A generator of numpy from a typed key, a seed, or such a generator.

  Args:
    rng: A scalar key of `jax.random.key`, an integer, a sequence of them, or a
      generator, which is returned as it is.

  Returns:
    The generator.

  Raises:
    TypeError: If it is something else.
  """
  if isinstance(rng, np.random.Generator):
    return rng
  if isinstance(rng, jax.Array) and jax.dtypes.issubdtype(
    rng.dtype, jax.dtypes.prng_key
  ):
    rng = np.asarray(jax.random.key_data(rng)).ravel().tolist()
  if isinstance(rng, bool) or not isinstance(rng, (int, list, tuple)):
    raise TypeError(
      f'rng is {type(rng).__name__}; expected a typed key, an integer seed or a'
      ' numpy Generator.'
    )
  return np.random.Generator(np.random.PCG64(rng))
