"""Parameters and multiply-adds of a network, from its config alone."""

from typing import NamedTuple

from jaxpapers.osnet.config import OSNetConfig
from jaxpapers.osnet.network import smallest_side


class LayerCount(NamedTuple):
  """A layer with parameters.

  Attributes:
    name: Its place in the network, as of its parameters.
    params: Trainable numbers, those of the norm behind it included.
    mult_adds: Multiplications with additions for one image, biases included;
      norms not.
    output: Height, width and channels of what it writes.
  """

  name: str
  params: int
  mult_adds: int
  output: tuple[int, int, int]


class Complexity(NamedTuple):
  """What `complexity` counts.

  Attributes:
    params: Trainable parameters.
    mult_adds: Of one image.
    per_layer: The layers that they are the sums of.
  """

  params: int
  mult_adds: int
  per_layer: tuple[LayerCount, ...]


def complexity(
  cfg: OSNetConfig, hw: tuple[int, int] = (256, 128), num_classes: int = 0
) -> Complexity:
  """Counts parameters and multiply-adds as the paper does.

  A gate that streams share has its parameters once and its work for each of
  them. (torchreid's counter has the parameters for each, too: see
  `torchreid_params`.)

  Args:
    cfg: The network.
    hw: Height and width of an image.
    num_classes: Outputs of the classifier; the paper counts none.

  Returns:
    Both sums and the layers.

  Raises:
    ValueError: If hw is no pair, or images are too small.

  Example:
    >>> params, mult_adds, layers = complexity(OSNetConfig())
    >>> params, mult_adds, layers[0].name
    (2169508, 978878352, 'conv1')
  """
  if len(hw) != 2 or min(hw) < smallest_side(cfg):
    raise ValueError(
      f'hw is {hw}; expected height and width, {smallest_side(cfg)} pixels or'
      ' more each.'
    )
  counter = _Counter(cfg, tuple(hw))
  counter.network(num_classes)
  layers = tuple(counter.layers)
  return Complexity(
    sum(layer.params for layer in layers),
    sum(layer.mult_adds for layer in layers),
    layers,
  )


def torchreid_params(cfg: OSNetConfig) -> int:
  """Parameters as torchreid reports them: a shared gate once for each stream.

  Args:
    cfg: The network.

  Returns:
    The number, 24,108 more than there are for OSNet x1.0.

  Example:
    >>> torchreid_params(OSNetConfig())
    2193616
  """
  layers = complexity(cfg, (max(64, smallest_side(cfg)),) * 2).per_layer
  total = sum(layer.params for layer in layers)
  if cfg.aggregation in ('unified', 'streamwise'):
    gates = (x.params for x in layers if x.name.split('/')[1:2] == ['gate'])
    total += (len(cfg.streams) - 1) * sum(gates)
  return total


class _Counter:
  """Walks through the network as `OSNet` does."""

  def __init__(self, cfg, hw):
    self.cfg = cfg
    self.hw = hw
    self.channels = 3
    self.layers: list[LayerCount] = []

  def network(self, num_classes):
    cfg = self.cfg
    kernel, stride = (7, 2) if cfg.stem == 'imagenet' else (3, 1)
    self.hw = _halve(self.hw, stride)
    instance = cfg.stem_norm == 'instance'
    self.conv('conv1', cfg.channels[0], kernel, instance=instance)
    if cfg.stem != 'cifar':
      self.hw = _halve(self.hw, 2)
    index, stages = 0, len(cfg.blocks_per_stage)
    for s, count in enumerate(cfg.blocks_per_stage):
      for b in range(count):
        name, features = f'conv{s + 2}_{b}', cfg.channels[s + 1]
        self.block(name, features, cfg.block_norm(index))
        index += 1
      if s + 1 < stages:
        self.conv(f'conv{s + 2}_transition', self.channels)
        self.hw = self.hw[0] // 2, self.hw[1] // 2
    self.conv('conv5', self.channels)
    self.hw = (1, 1)
    if cfg.feature_dim is not None:
      self.conv('fc', cfg.feature_dim, bias=True)
    if num_classes:
      self.conv('classifier', num_classes, bias=True, norms=0)

  def block(self, name, features, instance_norm):
    cfg = self.cfg
    channels = self.channels
    middle = features // cfg.reduction
    self.conv(f'{name}/conv1', middle)
    for t, depth in enumerate(cfg.streams):
      for j in range(depth):
        self.stream_layer(f'{name}/stream{t}_{j}', middle)
    self.gates(name, middle)
    if cfg.aggregation == 'concat':
      self.channels = middle * len(cfg.streams)
    # Inside there is an instance norm in the place of the batch norm.
    inside = instance_norm in ('inside', 'both')
    self.conv(f'{name}/conv3', features, instance=inside)
    if instance_norm in ('outside', 'both'):
      params = self.norm_params(features, instance=True)
      self.add(f'{name}/instance_norm', params, 0, features)
    if channels != features:
      self.channels = channels
      self.conv(f'{name}/downsample', features)

  def stream_layer(self, name, middle):
    if self.cfg.lite:
      self.conv(f'{name}/pointwise', middle, norms=0)
      self.conv(f'{name}/depthwise', middle, 3, groups=middle)
    else:
      self.conv(name, middle, 3)

  def gates(self, name, middle):
    cfg = self.cfg
    count = len(cfg.streams)
    if cfg.aggregation == 'fixed':
      self.add(f'{name}/gate_logits', count * middle, 0, middle)
    if cfg.aggregation not in ('unified', 'separate', 'streamwise'):
      return
    hidden = middle // cfg.gate_reduction
    out = 1 if cfg.aggregation == 'streamwise' else middle
    first, second = hidden * (middle + 1), out * (hidden + 1)
    params = first + second + 2 * hidden * cfg.gate_norm
    if cfg.aggregation == 'separate':
      for t in range(count):
        self.add(f'{name}/gate{t}', params, first + second, out)
    else:
      self.add(f'{name}/gate', params, count * (first + second), out)

  def conv(
    self,
    name,
    features,
    kernel=1,
    groups=1,
    bias=False,
    norms=1,
    instance=False,
  ):
    weights = features * (kernel**2 * self.channels // groups + bias)
    params = weights + norms * self.norm_params(features, instance)
    self.channels = features
    self.add(name, params, weights * self.hw[0] * self.hw[1], features)

  def norm_params(self, features, instance=False):
    if self.cfg.folded and not instance:
      return features  # Instance norms are not folded.
    return 2 * features if self.cfg.affine else 0

  def add(self, name, params, mult_adds, features):
    self.layers.append(
      LayerCount(name, params, mult_adds, (*self.hw, features))
    )


def _halve(hw, stride):
  """Of a window with half of its side as padding."""
  return tuple((n - 1) // stride + 1 for n in hw)
