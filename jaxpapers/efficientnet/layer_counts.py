"""Parameters and multiply-adds of networks given as lists of layers."""

from collections.abc import Iterable
from typing import NamedTuple

from jaxpapers.efficientnet.counts import Counts


class CountedLayer(NamedTuple):
  """A convolution or dense layer, and the size of what it writes.

  Attributes:
    kind: What `Counts.by_kind` sums.
    stage: What `Counts.by_stage` sums.
    kernel: Side of the kernel.
    inputs: Channels that come in, per group.
    outputs: Channels that go out.
    side: Pixels of a side of the output.
    bias: Whether it has a bias.
    norm: Whether batch normalisation follows.
  """

  kind: str
  stage: str
  kernel: int
  inputs: int
  outputs: int
  side: int = 1
  bias: bool = False
  norm: bool = True


def sum_params(layers: Iterable[CountedLayer]) -> int:
  """Trainable parameters, those of batch normalisation included."""
  return sum(
    x.outputs * (x.kernel**2 * x.inputs + x.bias + 2 * x.norm) for x in layers
  )


def sum_macs(layers: Iterable[CountedLayer]) -> Counts:
  """Multiply-adds for one image."""
  by_kind: dict[str, int] = {}
  by_stage: dict[str, int] = {}
  activations = 0
  for x in layers:
    written = x.side**2 * x.outputs
    macs = written * x.kernel**2 * x.inputs
    by_kind[x.kind] = by_kind.get(x.kind, 0) + macs
    by_stage[x.stage] = by_stage.get(x.stage, 0) + macs
    if x.kind != 'classifier':
      activations += written
  return Counts(sum(by_kind.values()), by_kind, by_stage, activations)
