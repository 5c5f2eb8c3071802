"""Which network: scaling of width, depth and resolution, and presets."""

import dataclasses
import math
import numbers
import re
from typing import Any, NamedTuple

from jaxpapers.efficientnet.block_args import (
  B0_BLOCKS,
  EDGETPU_BLOCKS,
  BlockArgs,
  check_positive,
  decode_block_string,
  encode_block_string,
  round_filters,
  round_repeats,
)

__all__ = [
  'B0_BLOCKS',
  'COEFFICIENTS',
  'BlockArgs',
  'ModelConfig',
  'ScaledBlock',
  'compound_coefficients',
  'config_for',
  'decode_block_string',
  'encode_block_string',
  'round_filters',
  'round_repeats',
]

PADDINGS = ('SAME', 'symmetric')
VARIANCES = ('biased', 'unbiased')
ACTIVATIONS = ('swish', 'relu6', 'relu')


def compound_coefficients(
  phi: float,
  alpha: float = 1.2,
  beta: float = 1.1,
  gamma: float = 1.15,
  base_resolution: int = 224,
) -> tuple[float, float, int]:
  """Compound scaling: depth alpha^phi, width beta^phi, resolution gamma^phi.

  Multiply-adds grow by about (alpha beta^2 gamma^2)^phi. The published B1 to B7
  were rounded by hand, and do not follow from any phi: see `config_for`.

  Args:
    phi: How many times more resources, as a power; below 0 is a smaller
      network.
    alpha: Base of the depth.
    beta: Base of the width.
    gamma: Base of the resolution.
    base_resolution: Pixels at phi 0.

  Returns:
    Width, depth, and resolution in whole pixels.

  Raises:
    ValueError: If phi is beyond -20 to 20, or a base is not positive.

  Example:
    >>> compound_coefficients(1)
    (1.1, 1.2, 258)
  """
  if not (isinstance(phi, numbers.Real) and -20 <= phi <= 20):
    raise ValueError(
      f'phi is {phi}; expected a number from -20 to 20: B7 is near 7, L2 near'
      ' 15.'
    )
  for name, value in (('alpha', alpha), ('beta', beta), ('gamma', gamma)):
    if not (math.isfinite(value) and value > 0):
      raise ValueError(f'{name} is {value}; expected a positive number.')
  resolution = round(base_resolution * gamma**phi)
  if resolution < 1:
    raise ValueError(
      f'phi {phi} with gamma {gamma} makes images of {base_resolution} pixels'
      ' vanish; use a larger phi.'
    )
  return beta**phi, alpha**phi, resolution


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A network. The defaults are B0 as in the paper.

  Attributes:
    width: Factor of the channels.
    depth: Factor of the blocks.
    resolution: Pixels of an image's side that it is made for; any other works.
    dropout_rate: Before the classifier.
    survival_prob: Probability that the last block stays (stochastic depth); the
      first always does, and between it is linear. None keeps all.
    num_classes: Outputs; 0 has no classifier and returns pooled features.
    padding: 'SAME' as TensorFlow, or 'symmetric' as torch.
    bn_momentum: Share of the old statistics; torch's momentum is 1 minus it.
    bn_epsilon: Added to variances: 1e-3, or 1e-5 in most weights of torch.
    bn_variance: 'biased' running variance as the original, or 'unbiased' as
      torch. Evaluation does not depend on it.
    blocks: The stages before scaling.
    dtype: Type of the computation; what inputs and parameters give by default.
      Logits are float32 at least.
    param_dtype: Type of the parameters.
    depthwise_impl: As in `nn.depthwise_conv`.
    stem_stride: Stride of the first convolution; 1 for images of 32 pixels.
    remat: Whether the backward pass computes the inside of blocks again rather
      than keeping it.
    bn_axis_name: Mapped axis over which batch statistics are averaged.
    bn_axis_index_groups: Groups of devices of that axis, or None for all.
    activation: 'swish', 'relu6' (Lite) or 'relu' (EdgeTPU).
    stem_filters: Channels of the stem before scaling.
    head_filters: Channels of the head before scaling.
    depth_divisor: What channels are multiples of.
    min_depth: Least channels; `depth_divisor` by default.
    fix_head_stem: Whether stem, head, and repeats of the first and last stage
      are not scaled (Lite).

  Raises:
    ValueError: If a value is impossible.

  Example:
    >>> ModelConfig(width=1.2, depth=1.4).stem_width
    40
  """

  width: float = 1.0
  depth: float = 1.0
  resolution: int = 224
  dropout_rate: float = 0.2
  survival_prob: float | None = 0.8
  num_classes: int = 1000
  padding: str = 'SAME'
  bn_momentum: float = 0.99
  bn_epsilon: float = 1e-3
  bn_variance: str = 'biased'
  blocks: tuple[BlockArgs, ...] = B0_BLOCKS
  dtype: Any = None
  param_dtype: Any = 'float32'
  depthwise_impl: str = 'auto'
  stem_stride: int = 2
  remat: bool = False
  bn_axis_name: str | tuple[str, ...] | None = None
  bn_axis_index_groups: tuple[tuple[int, ...], ...] | None = None
  activation: str = 'swish'
  stem_filters: int = 32
  head_filters: int = 1280
  depth_divisor: int = 8
  min_depth: int | None = None
  fix_head_stem: bool = False

  def __post_init__(self):
    blocks = tuple(
      decode_block_string(block) if isinstance(block, str) else block
      for block in self.blocks
    )
    object.__setattr__(self, 'blocks', blocks)
    if not blocks:
      raise ValueError('blocks is empty; expected one stage at least.')
    for name in ('width', 'depth', 'resolution', 'stem_stride'):
      check_positive(name, getattr(self, name))
    for name in ('stem_filters', 'head_filters', 'depth_divisor'):
      check_positive(name, getattr(self, name))
    if self.num_classes < 0:
      raise ValueError(
        f'num_classes is {self.num_classes}; expected 1 or more, or 0 for no'
        ' classifier.'
      )
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(
        f'dropout_rate is {self.dropout_rate}; expected 0 to below 1.'
      )
    if self.survival_prob is not None and not 0 < self.survival_prob <= 1:
      raise ValueError(
        f'survival_prob is {self.survival_prob}; expected more than 0, up to 1,'
        ' or None.'
      )
    if not 0 <= self.bn_momentum <= 1:
      raise ValueError(
        f'bn_momentum is {self.bn_momentum}; expected 0 to 1: the share of the'
        ' old statistics, 0.99 in the paper.'
      )
    for name, choices in (
      ('padding', PADDINGS),
      ('bn_variance', VARIANCES),
      ('activation', ACTIVATIONS),
    ):
      if getattr(self, name) not in choices:
        raise ValueError(
          f'{name} is {getattr(self, name)!r}; expected one of {choices}.'
        )

  def replace(self, **changes: Any) -> 'ModelConfig':
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)

  @property
  def stem_width(self) -> int:
    """Channels of the stem."""
    if self.fix_head_stem:
      return self.stem_filters
    return self._round(self.stem_filters)

  @property
  def head_width(self) -> int:
    """Channels of the head, and of pooled features."""
    if self.fix_head_stem:
      return self.head_filters
    return self._round(self.head_filters)

  def _round(self, filters: int) -> int:
    return round_filters(
      filters, self.width, self.depth_divisor, self.min_depth
    )

  def _repeats(self, stage: int) -> int:
    repeats = self.blocks[stage].num_repeat
    if self.fix_head_stem and stage in (0, len(self.blocks) - 1):
      return repeats
    return round_repeats(repeats, self.depth)

  def scaled_blocks(self) -> tuple['ScaledBlock', ...]:
    """All blocks of the network in their order, after scaling.

    Returns:
      One entry per block.

    Example:
      >>> blocks = ModelConfig().scaled_blocks()
      >>> len(blocks), blocks[1].name, blocks[-1].survival_prob
      (16, 'stage1_block0', 0.8125)
    """
    total = sum(map(self._repeats, range(len(self.blocks))))
    found: list[ScaledBlock] = []
    for stage, block in enumerate(self.blocks):
      filters = self._round(block.output_filters)
      for position in range(self._repeats(stage)):
        first = position == 0
        args = dataclasses.replace(
          block,
          num_repeat=1,
          input_filters=self._round(block.input_filters) if first else filters,
          output_filters=filters,
          strides=block.strides if first else 1,
        )
        survival = None
        if self.survival_prob is not None:
          survival = 1 - (1 - self.survival_prob) * len(found) / total
        found.append(ScaledBlock(stage, position, len(found), args, survival))
    return tuple(found)


class ScaledBlock(NamedTuple):
  """A block and its place in the network.

  Attributes:
    stage: Index of its stage, from 0.
    position: Its index in the stage.
    index: Its index in the whole network.
    args: Its channels and strides after scaling; `num_repeat` is 1.
    survival_prob: That it stays in training, None without stochastic depth.
  """

  stage: int
  position: int
  index: int
  args: BlockArgs
  survival_prob: float | None

  @property
  def name(self) -> str:
    """Its name in the parameters."""
    return f'stage{self.stage}_block{self.position}'


# Width, depth, resolution, dropout rate.
COEFFICIENTS = {
  'b0': (1.0, 1.0, 224, 0.2),
  'b1': (1.0, 1.1, 240, 0.2),
  'b2': (1.1, 1.2, 260, 0.3),
  'b3': (1.2, 1.4, 300, 0.3),
  'b4': (1.4, 1.8, 380, 0.4),
  'b5': (1.6, 2.2, 456, 0.4),
  'b6': (1.8, 2.6, 528, 0.5),
  'b7': (2.0, 3.1, 600, 0.5),
  'b8': (2.2, 3.6, 672, 0.5),
  'l2': (4.3, 5.3, 800, 0.5),
  'lite0': (1.0, 1.0, 224, 0.2),
  'lite1': (1.0, 1.1, 240, 0.2),
  'lite2': (1.1, 1.2, 260, 0.3),
  'lite3': (1.2, 1.4, 280, 0.3),
  'lite4': (1.4, 1.8, 300, 0.3),
  'edgetpu-s': (1.0, 1.0, 224, 0.2),
  'edgetpu-m': (1.0, 1.1, 240, 0.2),
  'edgetpu-l': (1.2, 1.4, 300, 0.3),
}
# timm's names that differ by more than the prefix.
_ALIASES = {'es': 'edgetpu-s', 'em': 'edgetpu-m', 'el': 'edgetpu-l'}
# torch counts with the unbiased variance.
_TORCH = {'padding': 'symmetric', 'bn_epsilon': 1e-5, 'bn_variance': 'unbiased'}
_WORLDS = {
  'efficientnet-': {},
  # timm's weights from TensorFlow; it leaves torch's momentum.
  'tf_efficientnet_': {'bn_momentum': 0.9, 'bn_variance': 'unbiased'},
  'efficientnet_': {**_TORCH, 'bn_momentum': 0.9},
  'torchvision_efficientnet_': {**_TORCH, 'bn_momentum': 0.9},
  '': {},
}


def config_for(name: str, **overrides: Any) -> ModelConfig:
  """The config of a published network.

  Args:
    name: 'efficientnet-b0' to '-b8', '-l2', '-lite0' to '-lite4', '-edgetpu-s',
      '-edgetpu-m', '-edgetpu-l' as in the original; a name of timm,
      'tf_efficientnet_b0' or 'efficientnet_b0', whatever follows such as
      '.ns_jft_in1k' or '_ns'; or 'torchvision_efficientnet_b0'. They differ in
      padding and batch normalisation.
    **overrides: Other fields.

  Returns:
    The config.

  Raises:
    ValueError: If there is no such network.

  Example:
    >>> config_for('efficientnet-b3', num_classes=10).resolution
    300
  """
  if not isinstance(name, str):
    raise TypeError(f'name is a {type(name).__name__}; expected a string.')
  base = name.partition('.')[0]
  for prefix, fields in _WORLDS.items():
    if not base.startswith(prefix):
      continue
    rest = re.sub('_(ap|ns|aa|475|ns_475|in21k)$', '', base[len(prefix) :])
    rest = _ALIASES.get(rest, rest) if '_' in prefix else rest
    if rest in COEFFICIENTS:
      fields = dict(fields)
      if prefix.startswith('torchvision') and rest in ('b5', 'b6', 'b7'):
        fields.update(bn_epsilon=1e-3, bn_momentum=0.99)
      if name.endswith('_475'):
        fields['resolution'] = 475
      return ModelConfig(**_variant(rest) | fields | overrides)
  raise ValueError(
    f'name is {name!r}; expected efficientnet-, tf_efficientnet_, efficientnet_'
    f' or torchvision_efficientnet_ and one of {", ".join(COEFFICIENTS)}.'
  )


def _variant(variant: str) -> dict[str, Any]:
  """Fields of a network in its original form."""
  fields: dict[str, Any] = dict(
    zip(
      ('width', 'depth', 'resolution', 'dropout_rate'),
      COEFFICIENTS[variant],
      strict=True,
    )
  )
  if variant.startswith('lite'):
    blocks = tuple(dataclasses.replace(b, se_ratio=None) for b in B0_BLOCKS)
    fields.update(blocks=blocks, activation='relu6', fix_head_stem=True)
  if variant.startswith('edgetpu'):
    fields.update(blocks=EDGETPU_BLOCKS, activation='relu')
  return fields
