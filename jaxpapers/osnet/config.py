"""Which OSNet: widths, streams, gates, norms, stem and head."""

import dataclasses
import math
from typing import Any

AGGREGATIONS = ('unified', 'separate', 'streamwise', 'fixed', 'add', 'concat')
GATE_ACTIVATIONS = ('sigmoid', 'relu', 'linear')
INSTANCE_NORMS = (None, 'inside', 'outside', 'both')
STEMS = ('imagenet', 'cifar', 'cifar_pool')
DEPTHWISE = ('auto', 'lax', 'shift', 'shift_vjp')


@dataclasses.dataclass(frozen=True)
class OSNetConfig:
  """A network of the paper, one of its ablations, or a mixture of them.

  Attributes:
    channels: Of the stem, and of each stage.
    blocks_per_stage: Omni-scale blocks of each stage.
    streams: Number of Lite 3x3 layers of each stream of a block; a stream of t
      layers sees 2t + 1 pixels. (1, 1, 1, 1) has streams of one scale, (4,) is
      one deep stream.
    reduction: What a block divides its channels by.
    gate_reduction: What a gate divides those by.
    gate_activation: 'sigmoid', 'relu' or 'linear'.
    gate_norm: Whether gates have a layer norm.
    aggregation: How streams become one. 'unified': a gate per channel, by one
      small network that all streams share. 'separate': a network for each
      stream. 'streamwise': a shared one that gives a single number per stream.
      'fixed': learned gates that do not depend on the image. 'add', 'concat':
      no gates.
    lite: Whether streams have Lite 3x3 layers; full convolutions if not.
    stem: 'imagenet': 7x7 with stride 2, and max-pooling. 'cifar': 3x3, nothing
      else. 'cifar_pool': 3x3 and max-pooling.
    stem_norm: 'batch' or 'instance'.
    instance_norm: For each block None, 'inside' (on the residual, instead of
      its batch norm), 'outside' (behind the sum) or 'both'. Empty: None.
    feature_dim: Length of the features; None leaves their layer out.
    pool: 'avg' or 'max', over all pixels.
    depthwise: As `impl` of `jaxpapers.nn.depthwise_conv`.
    affine: Whether norms have scales and biases; not in architecture search.
    folded: Whether batch norms are biases, see `fold_batch_norm`.
    remat: Whether blocks are computed again for their gradient.
    dtype: Type of the computation, such as 'bfloat16'; that of the images by
      default. Norms, pooling and logits are float32 or wider.
    param_dtype: Type of the parameters.
    axis_name: Mapped axes over which batch norms share statistics.

  Raises:
    ValueError: If a field is none of these.

  Example:
    >>> config = OSNetConfig(streams=(1, 2), aggregation='add')
    >>> config.num_blocks
    6
  """

  channels: tuple[int, ...] = (64, 256, 384, 512)
  blocks_per_stage: tuple[int, ...] = (2, 2, 2)
  streams: tuple[int, ...] = (1, 2, 3, 4)
  reduction: int = 4
  gate_reduction: int = 16
  gate_activation: str = 'sigmoid'
  gate_norm: bool = False
  aggregation: str = 'unified'
  lite: bool = True
  stem: str = 'imagenet'
  stem_norm: str = 'batch'
  instance_norm: tuple[str | None, ...] = ()
  feature_dim: int | None = 512
  pool: str = 'avg'
  depthwise: str = 'auto'
  affine: bool = True
  folded: bool = False
  remat: bool = False
  dtype: Any = None
  param_dtype: Any = 'float32'
  axis_name: Any = None

  def __post_init__(self):
    """Checks the fields; lists become tuples, so that configs can be keys."""
    for name in ('channels', 'blocks_per_stage', 'streams', 'instance_norm'):
      value = getattr(self, name)
      if isinstance(value, (int, str)):
        raise ValueError(f'{name} is {value!r}; expected a tuple.')
      object.__setattr__(self, name, tuple(value))
    for name in ('channels', 'blocks_per_stage', 'streams'):
      value = getattr(self, name)
      if not value or any(not isinstance(n, int) or n < 1 for n in value):
        raise ValueError(
          f'{name} is {value}; expected whole numbers of 1 or more.'
        )
    if len(self.channels) != len(self.blocks_per_stage) + 1:
      raise ValueError(
        f'channels is {self.channels}; expected one more than blocks_per_stage,'
        f' {self.blocks_per_stage}: of the stem, and of each stage.'
      )
    choices = {
      'aggregation': AGGREGATIONS,
      'gate_activation': GATE_ACTIVATIONS,
      'stem': STEMS,
      'stem_norm': ('batch', 'instance'),
      'pool': ('avg', 'max'),
      'depthwise': DEPTHWISE,
    }
    for name, known in choices.items():
      if getattr(self, name) not in known:
        raise ValueError(
          f'{name} is {getattr(self, name)!r}; expected one of {known}.'
        )
    if self.instance_norm and len(self.instance_norm) != self.num_blocks:
      raise ValueError(
        f'instance_norm has {len(self.instance_norm)} entries; expected one for'
        f' each of {self.num_blocks} blocks, or none.'
      )
    if any(kind not in INSTANCE_NORMS for kind in self.instance_norm):
      raise ValueError(
        f'instance_norm is {self.instance_norm}; expected of {INSTANCE_NORMS}.'
      )
    narrow = min(self.channels[1:]) // max(self.reduction, 1)
    if self.reduction < 1 or narrow < 1:
      raise ValueError(
        f'reduction is {self.reduction}; expected 1 to {min(self.channels[1:])}'
        ', the channels of the narrowest block.'
      )
    gated = self.aggregation in ('unified', 'separate', 'streamwise')
    if gated and not 1 <= self.gate_reduction <= narrow:
      raise ValueError(
        f'gate_reduction is {self.gate_reduction}; expected 1 to {narrow}, the'
        ' channels of the narrowest stream.'
      )
    # torchreid drops the layer for negative numbers, too.
    if self.feature_dim is not None and (
      not isinstance(self.feature_dim, int) or self.feature_dim < 1
    ):
      raise ValueError(
        f'feature_dim is {self.feature_dim!r}; expected a number of 1 or more,'
        ' or None for no such layer.'
      )

  @property
  def num_blocks(self) -> int:
    """Omni-scale blocks of all stages."""
    return sum(self.blocks_per_stage)

  @property
  def num_features(self) -> int:
    """Length of the features of an image."""
    return self.feature_dim or self.channels[-1]

  def block_norm(self, index: int) -> str | None:
    """Instance norm of a block, counted over all stages."""
    return self.instance_norm[index] if self.instance_norm else None


_WIDTHS = {
  'x1_0': (64, 256, 384, 512),
  'x0_75': (48, 192, 288, 384),
  'x0_5': (32, 128, 192, 256),
  'x0_25': (16, 64, 96, 128),
}
_IBN = ('outside', 'outside', None, None, None, None)
# What the search of the journal paper found.
_AIN = ('inside', 'inside', None, 'inside', 'inside', None)

CONFIGS: dict[str, OSNetConfig] = {
  **{f'osnet_{w}': OSNetConfig(channels=c) for w, c in _WIDTHS.items()},
  'osnet_ibn_x1_0': OSNetConfig(stem_norm='instance', instance_norm=_IBN),
  **{
    f'osnet_ain_{w}': OSNetConfig(
      channels=c, stem_norm='instance', instance_norm=_AIN
    )
    for w, c in _WIDTHS.items()
  },
  'osnet_attribute': OSNetConfig(pool='max'),
  'osnet_cifar': OSNetConfig(stem='cifar'),
}


def config_for(name: str, **changes: Any) -> OSNetConfig:
  """A network of `CONFIGS` with some fields changed.

  Args:
    name: Its name, such as 'osnet_x0_25'.
    **changes: Fields.

  Returns:
    The config.

  Raises:
    ValueError: If there is no such network or field.

  Example:
    >>> config_for('osnet_x0_25', streams=(1, 2)).channels
    (16, 64, 96, 128)
  """
  if name not in CONFIGS:
    raise ValueError(
      f'{name!r} is no network; expected one of {list(CONFIGS)}.'
    )
  known = [field.name for field in dataclasses.fields(OSNetConfig)]
  unknown = sorted(set(changes) - set(known))
  if unknown:
    raise ValueError(f'{unknown}: no such fields; expected of {known}.')
  return dataclasses.replace(CONFIGS[name], **changes)


def scaled(width: float = 1.0, **changes: Any) -> OSNetConfig:
  """OSNet with its channels multiplied: the beta of the paper.

  Args:
    width: Factor; 0.75, 0.5 and 0.25 are in the paper.
    **changes: Other fields.

  Returns:
    The config.

  Raises:
    ValueError: If a width leaves no channels.

  Example:
    >>> scaled(0.5) == CONFIGS['osnet_x0_5']
    True
  """
  channels = tuple(int(c * width) for c in _WIDTHS['x1_0'])
  return OSNetConfig(channels=channels, **changes)


def scaled_resolution(
  multiplier: float = 1.0, base: tuple[int, int] = (256, 128)
) -> tuple[int, int]:
  """Height and width of images at a resolution multiplier, the paper's gamma.

  Args:
    multiplier: Factor; 0.75, 0.5 and 0.25 are in the paper.
    base: Height and width at 1.

  Returns:
    Height and width, rounded down.

  Raises:
    ValueError: If nothing is left of a side.

  Example:
    >>> scaled_resolution(0.75)
    (192, 96)
  """
  height, width = (math.floor(side * multiplier) for side in base)
  if min(height, width) < 1:
    raise ValueError(
      f'multiplier is {multiplier}; expected one that leaves a pixel of {base}.'
    )
  return height, width
