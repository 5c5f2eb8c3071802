"""Stages of a network: their notation, and how their sizes are scaled."""

import dataclasses
import math
import numbers
import re
from typing import Any


def check_positive(name: str, value: Any) -> None:
  """Refuses what is no positive number, under the argument's name."""
  # Those of NumPy are numbers, too.
  if not (isinstance(value, numbers.Real) and 0 < value < math.inf):
    raise ValueError(f'{name} is {value}; expected a positive number.')


@dataclasses.dataclass(frozen=True)
class BlockArgs:
  """A stage: one MBConv block, repeated.

  Attributes:
    kernel_size: Of the depthwise convolution.
    num_repeat: Blocks of the stage; only the first one strides.
    input_filters: Channels that come in, and that the expansion and the
      squeeze count in.
    output_filters: Channels that go out.
    expand_ratio: Channels inside over channels that come in; 1 leaves the
      expansion out.
    strides: Of the first block, vertical and horizontal; one number is both.
    se_ratio: Channels of the squeeze over `input_filters`; 0 or None is no
      squeeze-and-excitation.
    id_skip: Whether the input is added where shapes allow it.
    fused: Whether one full convolution replaces expansion and depthwise
      convolution (EfficientNet-EdgeTPU).

  Raises:
    ValueError: If a value is impossible.

  Example:
    >>> encode_block_string(BlockArgs(3, 2, 16, 24, 6, 2))
    'r2_k3_s22_e6_i16_o24_se0.25'
  """

  kernel_size: int
  num_repeat: int
  input_filters: int
  output_filters: int
  expand_ratio: int
  strides: int | tuple[int, int]
  se_ratio: float | None = 0.25
  id_skip: bool = True
  fused: bool = False

  def __post_init__(self):
    strides = self.strides
    pair = (strides, strides) if isinstance(strides, int) else tuple(strides)
    object.__setattr__(self, 'strides', pair)
    if len(pair) != 2 or min(pair) < 1:
      raise ValueError(
        f'strides is {strides}; expected a positive number or two of them.'
      )
    for name in ('kernel_size', 'num_repeat', 'input_filters'):
      check_positive(name, getattr(self, name))
    check_positive('output_filters', self.output_filters)
    if self.kernel_size % 2 == 0:
      raise ValueError(f'kernel_size is {self.kernel_size}; expected it odd.')
    if self.expand_ratio <= 0:
      raise ValueError(
        f'expand_ratio is {self.expand_ratio}; expected more than 0.'
      )
    if not 0 <= (self.se_ratio or 0) <= 1:
      raise ValueError(f'se_ratio is {self.se_ratio}; expected 0 to 1.')

  @property
  def expanded_filters(self) -> int:
    """Channels inside the block."""
    return int(self.input_filters * self.expand_ratio)

  @property
  def squeezed_filters(self) -> int:
    """Channels of the squeeze, from those that come in; 0 if there is none."""
    if not self.se_ratio:
      return 0
    return max(1, int(self.input_filters * self.se_ratio))

  @property
  def has_skip(self) -> bool:
    """Whether the input is added to the output."""
    return (
      self.id_skip
      and self.strides == (1, 1)
      and self.input_filters == self.output_filters
    )


def decode_block_string(text: str) -> BlockArgs:
  """Reads the notation of the original code.

  Args:
    text: Such as 'r2_k5_s22_e6_i24_o40_se0.25'; `noskip` and `c1` (fused) may
      follow.

  Returns:
    The stage.

  Raises:
    ValueError: If an entry is unknown, missing or there twice.

  Example:
    >>> decode_block_string('r1_k3_s11_e1_i32_o16_se0.25').output_filters
    16
  """
  if not isinstance(text, str):
    raise TypeError(f'text is a {type(text).__name__}; expected a string.')
  found: dict[str, str] = {}
  for part in text.split('_'):
    if part == 'noskip':
      name, value = part, ''
    else:
      match = re.fullmatch(r'([a-z]+)([0-9.]+)', part)
      name, value = match.groups() if match else (part, '')
    if name not in ('r', 'k', 's', 'e', 'i', 'o', 'se', 'c', 'noskip'):
      raise ValueError(
        f'block {text!r} has the entry {part!r}; expected r, k, s, e, i, o, se,'
        ' c with a number each, or noskip.'
      )
    if name in found:
      raise ValueError(f'block {text!r} has {name!r} twice.')
    found[name] = value
  missing = [name for name in 'rkseio' if name not in found]
  if missing:
    raise ValueError(f'block {text!r} lacks {", ".join(missing)}.')
  if len(found['s']) != 2:
    raise ValueError(
      f'block {text!r} has strides {found["s"]!r}; expected two digits.'
    )
  ratio = float(found['e'])
  return BlockArgs(
    kernel_size=int(found['k']),
    num_repeat=int(found['r']),
    input_filters=int(found['i']),
    output_filters=int(found['o']),
    expand_ratio=int(ratio) if ratio.is_integer() else ratio,
    strides=(int(found['s'][0]), int(found['s'][1])),
    se_ratio=float(found['se']) if 'se' in found else None,
    id_skip='noskip' not in found,
    fused=found.get('c', '0') == '1',
  )


def encode_block_string(args: BlockArgs) -> str:
  """Writes a stage in the notation of the original code.

  Args:
    args: The stage.

  Returns:
    The text that `decode_block_string` reads.
  """
  parts = [
    f'r{args.num_repeat}',
    f'k{args.kernel_size}',
    f's{args.strides[0]}{args.strides[1]}',
    f'e{args.expand_ratio}',
    f'i{args.input_filters}',
    f'o{args.output_filters}',
  ]
  parts += [f'se{args.se_ratio}'] if args.se_ratio else []
  parts += ['c1'] if args.fused else []
  parts += [] if args.id_skip else ['noskip']
  return '_'.join(parts)


B0_BLOCKS = tuple(
  map(
    decode_block_string,
    (
      'r1_k3_s11_e1_i32_o16_se0.25',
      'r2_k3_s22_e6_i16_o24_se0.25',
      'r2_k5_s22_e6_i24_o40_se0.25',
      'r3_k3_s22_e6_i40_o80_se0.25',
      'r3_k5_s11_e6_i80_o112_se0.25',
      'r4_k5_s22_e6_i112_o192_se0.25',
      'r1_k3_s11_e6_i192_o320_se0.25',
    ),
  )
)
EDGETPU_BLOCKS = tuple(
  map(
    decode_block_string,
    (
      'r1_k3_s11_e4_i24_o24_c1_noskip',
      'r2_k3_s22_e8_i24_o32_c1',
      'r4_k3_s22_e8_i32_o48_c1',
      'r5_k5_s22_e8_i48_o96',
      'r4_k5_s11_e8_i96_o144',
      'r2_k5_s22_e8_i144_o192',
    ),
  )
)


def round_filters(
  filters: int,
  width: float | None,
  divisor: int = 8,
  min_depth: int | None = None,
) -> int:
  """Scales a number of channels, to a multiple of `divisor`.

  It never ends up below 90 % of the exact product.

  Args:
    filters: Channels of the base network.
    width: Factor; None or 0 leaves them as they are.
    divisor: What the result is a multiple of.
    min_depth: Smallest result; the divisor by default.

  Returns:
    The channels.

  Example:
    >>> round_filters(32, 1.4), round_filters(40, 1.1)
    (48, 48)
  """
  if not width:
    return filters
  exact = filters * width
  rounded = max(
    min_depth or divisor, int(exact + divisor / 2) // divisor * divisor
  )
  return int(rounded + divisor if rounded < 0.9 * exact else rounded)


def round_repeats(repeats: int, depth: float | None) -> int:
  """Scales a number of blocks, and rounds it up.

  Args:
    repeats: Blocks of the base network.
    depth: Factor; None or 0 leaves them as they are.

  Returns:
    The blocks.
  """
  return int(math.ceil(depth * repeats)) if depth else repeats
