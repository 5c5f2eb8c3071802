"""The paper's scaling experiments: which networks, and what it reports."""

import dataclasses
from typing import Any

from jaxpapers.efficientnet.config import ModelConfig, config_for
from jaxpapers.efficientnet.mobilenet import MobileNetConfig
from jaxpapers.efficientnet.resnet import ResNetConfig
from jaxpapers.efficientnet.scaling import (
  count_macs,
  count_params,
  multiply,
  scale,
)

# Factors of figure 3.
WIDTHS = (1.0, 1.4, 1.8, 2.6, 3.8, 5.0)
DEPTHS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
RESOLUTIONS = (1.0, 1.3, 1.5, 1.7, 1.9, 2.2, 2.5)
# Depth and resolution at which figure 4 sweeps the width.
FIGURE4 = ((1.0, 1.0), (1.0, 1.3), (2.0, 1.0), (2.0, 1.3))

# Top-1 and top-5 (arXiv v5), published parameters and multiply-adds.
TABLE2 = {
  'b0': (77.1, 93.3, '5.3M', '0.39B'),
  'b1': (79.1, 94.4, '7.8M', '0.70B'),
  'b2': (80.1, 94.9, '9.2M', '1.0B'),
  'b3': (81.6, 95.7, '12M', '1.8B'),
  'b4': (82.9, 96.4, '19M', '4.2B'),
  'b5': (83.6, 96.7, '30M', '9.9B'),
  'b6': (84.0, 96.8, '43M', '19B'),
  'b7': (84.3, 97.0, '66M', '37B'),
}


@dataclasses.dataclass(frozen=True)
class PaperRow:
  """A network of the paper.

  Attributes:
    name: What it is.
    config: The network.
    published_macs: As printed in the paper; empty where it gives none.
    published_top1: Percent; None where it gives none.
    published_params: As printed in the paper; empty where it gives none.
  """

  name: str
  config: Any
  published_macs: str = ''
  published_top1: float | None = None
  published_params: str = ''

  def row(self) -> dict[str, Any]:
    """As a line of a table, with exact counts."""
    config = self.config
    return {
      'network': self.name,
      'width': config.width,
      'depth': config.depth,
      'resolution': config.resolution,
      'params': count_params(config),
      'macs': count_macs(config),
      'paper_params': self.published_params,
      'paper_macs': self.published_macs,
      'paper_top1': self.published_top1,
    }


def table2() -> list[PaperRow]:
  """B0 to B7, and the larger ones that came later."""
  rows = []
  for name in ('b0', 'b1', 'b2', 'b3', 'b4', 'b5', 'b6', 'b7', 'b8', 'l2'):
    top1, _, params, macs = TABLE2.get(name, (None, None, '', ''))
    config = config_for(f'efficientnet-{name}')
    rows.append(PaperRow(name, config, macs, top1, params))
  return rows


def table3() -> list[PaperRow]:
  """MobileNets and ResNet-50 scaled in one and in all dimensions."""
  v1, v2, resnet = MobileNetConfig(1), MobileNetConfig(2), ResNetConfig()
  return [
    PaperRow('MobileNetV1', v1, '0.6B', 70.6),
    PaperRow('V1 width 2', multiply(v1, width=2), '2.2B', 74.2),
    PaperRow('V1 resolution 2', multiply(v1, resolution=2), '2.2B', 72.7),
    PaperRow('V1 compound', multiply(v1, 1.4, 1.2, 1.3), '2.3B', 75.6),
    PaperRow('MobileNetV2', v2, '0.3B', 72.0),
    PaperRow('V2 depth 4', multiply(v2, depth=4), '1.2B', 76.8),
    PaperRow('V2 width 2', multiply(v2, width=2), '1.1B', 76.4),
    PaperRow('V2 resolution 2', multiply(v2, resolution=2), '1.2B', 74.8),
    # The paper does not say which phi.
    PaperRow('V2 compound, phi 1.8', scale(1.8, base=v2), '1.3B', 77.4),
    PaperRow('ResNet-50', resnet, '4.1B', 76.0),
    PaperRow('R50 depth 4', multiply(resnet, depth=4), '16.2B', 78.1),
    PaperRow('R50 width 2', multiply(resnet, width=2), '14.7B', 77.7),
    PaperRow('R50 resolution 2', multiply(resnet, resolution=2), '16.4B', 77.5),
    PaperRow('R50 compound, phi 2.1', scale(2.1, base=resnet), '16.7B', 78.8),
  ]


def table7() -> list[PaperRow]:
  """B0 scaled four ways."""
  base = ModelConfig()
  return [
    PaperRow('baseline', base, '0.4B', 77.3),
    PaperRow('depth 4', multiply(base, depth=4), '1.8B', 79.0),
    PaperRow('width 2', multiply(base, width=2), '1.8B', 78.9),
    PaperRow('resolution 2', multiply(base, resolution=2), '1.9B', 79.1),
    PaperRow('compound', multiply(base, 1.4, 1.2, 1.3), '1.8B', 81.1),
  ]


def figure3() -> list[PaperRow]:
  """B0 with one knob turned."""
  base, rows = ModelConfig(), []
  for knob, factors in (
    ('width', WIDTHS),
    ('depth', DEPTHS),
    ('resolution', RESOLUTIONS),
  ):
    for factor in factors:
      config = multiply(base, **{knob: factor})
      rows.append(PaperRow(f'{knob} {factor:g}', config))
  return rows


def figure4() -> list[PaperRow]:
  """Widths at four depths and resolutions."""
  rows = []
  for depth, resolution in FIGURE4:
    for width in WIDTHS:
      config = multiply(ModelConfig(), depth, width, resolution)
      name = f'width {width:g} at depth {depth:g}, resolution {resolution:g}'
      rows.append(PaperRow(name, config))
  return rows


TABLES = {
  'table2': table2,
  'table3': table3,
  'table7': table7,
  'figure3': figure3,
  'figure4': figure4,
}
