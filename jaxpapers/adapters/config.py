"""What adapters are: sizes, places, initialisation, and three presets."""

import dataclasses
from typing import Any

import flax.linen as nn

from jaxpapers.adapters import model
from jaxpapers.nn import EncoderConfig

PRESETS = {
  'houlsby2019_paper': {},
  'houlsby2019_code': {'init_std': 1e-3},
  'adapterhub_houlsby': {
    'activation': 'swish',
    'initializer': 'normal',
    'init_std': 0.02,
    'train_layer_norm': False,
  },
}
SITES = ('attention', 'ffn')

Sizes = int | tuple[int | tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """Sizes and choices of the adapters of a transformer.

  It is also the factory that `nn.TransformerEncoder` and the models on it take:
  `TransformerEncoder(config, adapter=AdapterConfig(64))`.

  Attributes:
    size: Width m of the bottleneck: one number, one per layer, or per layer a
      pair (after attention, after the feed-forward layer). 0 is no adapter.
    activation: 'gelu_tanh' as the authors' code, 'gelu' (exact), 'swish',
      'relu', 'tanh' or 'identity'.
    initializer: 'truncated_normal' (at two standard deviations, without
      rescaling) or 'normal'; biases are 0.
    init_std: Standard deviation before truncation: 1e-2 in the paper, 1e-3 in
      the authors' code.
    sites: Behind which blocks: 'attention', 'ffn' or both.
    parallel: Whether an adapter reads the input of its block rather than its
      output. Only through `add_adapters`, whose interceptor sees both.
    depth: Activations between the two projections; above 1 there are dense
      layers m -> m.
    train_layer_norm: Whether layer norms are trained with the adapters, as in
      the paper; AdapterHub leaves them frozen.

  Raises:
    ValueError: If a value is impossible.

  Example:
    >>> AdapterConfig.preset('houlsby2019_code', size=8).init_std
    0.001
  """

  size: Sizes = 64
  activation: str = 'gelu_tanh'
  initializer: str = 'truncated_normal'
  init_std: float = 1e-2
  sites: tuple[str, ...] = SITES
  parallel: bool = False
  depth: int = 1
  train_layer_norm: bool = True

  def __post_init__(self):
    def tuples(x):
      return tuple(map(tuples, x)) if isinstance(x, (tuple, list)) else x

    # Lists, as configs have them, could not be hashed.
    object.__setattr__(self, 'size', tuples(self.size))
    sites = self.sites
    object.__setattr__(
      self, 'sites', (sites,) if isinstance(sites, str) else tuple(sites)
    )
    layers = self.size if isinstance(self.size, tuple) else (self.size,)
    if not layers:
      raise ValueError('size is empty; expected a number for each layer.')
    for entry in layers:
      pair = entry if isinstance(entry, tuple) else (entry,)
      if isinstance(entry, tuple) and len(entry) != 2:
        raise ValueError(
          f'size has the entry {entry}; expected a number, or a pair: after'
          ' attention, after the feed-forward layer.'
        )
      for number in pair:
        model.check_size(number)
    if not self.sites or set(self.sites) - set(SITES):
      raise ValueError(f'sites is {self.sites}; expected some of {SITES}.')
    model.check_choices(
      self.activation, self.initializer, self.init_std, self.depth
    )

  @classmethod
  def preset(cls, name: str, **changes: Any) -> 'AdapterConfig':
    """One of three published settings.

    Args:
      name: 'houlsby2019_paper'; 'houlsby2019_code', which differs by a ten
        times smaller initialisation; or 'adapterhub_houlsby' (swish,
        normal(0, .02), layer norms frozen; its size is a 16th of the width).
      **changes: Other fields.

    Returns:
      The config.

    Raises:
      ValueError: If there is no such preset.
    """
    if name not in PRESETS:
      raise ValueError(f'name is {name!r}; expected one of {list(PRESETS)}.')
    return cls(**PRESETS[name] | changes)

  def replace(self, **changes: Any) -> 'AdapterConfig':
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)

  def size_at(self, num_layers: int, layer: int | None, site: str) -> int:
    """Width of one adapter.

    Args:
      num_layers: Layers of the encoder.
      layer: Number of the layer; None for all of them, when they are scanned.
      site: 'attention' or 'ffn'.

    Returns:
      The width; 0 where there is no adapter.

    Raises:
      ValueError: If the number of sizes is not that of the layers, or the
        layers differ and `layer` is None.
    """
    if site not in self.sites:
      return 0
    if not isinstance(self.size, tuple):
      return self.size
    if len(self.size) != num_layers:
      raise ValueError(
        f'size has {len(self.size)} entries; the encoder has {num_layers}'
        ' layers. Give one for each, or one number for all.'
      )
    if layer is None and len(set(self.size)) > 1:
      raise ValueError(
        f'size is {self.size}: scanned layers are one module and need one size.'
        ' Set scan_layers=False, or give one number.'
      )
    entry = self.size[layer or 0]
    return entry[SITES.index(site)] if isinstance(entry, tuple) else entry

  def sizes(self, num_layers: int) -> tuple[tuple[int, ...], ...]:
    """Widths of all adapters: for each layer those of `sites`, in order."""
    return tuple(
      tuple(self.size_at(num_layers, i, site) for site in self.sites)
      for i in range(num_layers)
    )

  def make(
    self, size: int, name: str | None = None, **options: Any
  ) -> model.BottleneckAdapter:
    """An adapter of these choices.

    Args:
      size: Width of its bottleneck.
      name: Name of the module.
      **options: Other attributes: `dtype`, `param_dtype`, `parent`.
    """
    return model.BottleneckAdapter(
      size=size,
      activation=self.activation,
      initializer=self.initializer,
      init_std=self.init_std,
      depth=self.depth,
      name=name,
      **options,
    )

  def __call__(
    self, encoder: EncoderConfig, layer: int | None, place: str, name: str
  ) -> nn.Module | None:
    """The adapter of a place in the encoder, None where there is none."""
    if self.parallel:
      raise ValueError(
        'parallel=True: in the encoder an adapter sees only what its block put'
        ' out. Use add_adapters(encoder, where=[nn.SelfAttention,'
        ' nn.FeedForward], config=config).'
      )
    size = self.size_at(encoder.num_layers, layer, place)
    if not size:
      return None
    return self.make(
      size, name, dtype=encoder.dtype, param_dtype=encoder.param_dtype
    )
