"""Gradients of strided windows, taken apart by position modulo the strides.

A cotangent that is dilated by the strides would be mostly zeros. Input pixels
whose positions leave the same remainders are seen by the same taps of the
windows, so each remainder is computed densely, and the results are woven
together.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

_Pair = tuple[int, int]


class Phase:
  """Input positions p, p + stride ... along one axis, and their taps.

  Attributes:
    size: How many outputs per phase, the same for all.
    pads: What is added to the cotangent before and after.
    taps: Pairs of a tap of the kernel and where its slice starts.
  """

  def __init__(
    self,
    phase: int,
    size: int,
    outputs: int,
    kernel: int,
    stride: int,
    pad: _Pair,
  ):
    self.size = -(-size // stride)
    # Input p + stride t meets output o by tap i if p + stride t + pad = stride
    # o + i, so o = t + (p + pad - i) / stride.
    offsets = [
      (i, (phase + pad[0] - i) // stride)
      for i in range(kernel)
      if (phase + pad[0] - i) % stride == 0
    ]
    before = max([-offset for _, offset in offsets], default=0)
    after = max([offset for _, offset in offsets], default=0)
    before, after = max(before, 0), after + self.size - outputs
    self.pads = before, after
    self.taps = [(i, offset + before) for i, offset in offsets]


def join(
  part: Callable[[Phase, Phase], jax.Array],
  size: Sequence[int],
  outputs: Sequence[int],
  kernel: Sequence[int],
  strides: Sequence[int],
  pads: Sequence[_Pair],
) -> jax.Array:
  """The gradient of the input from those of its phases.

  Args:
    part: Of a phase of rows and one of columns to `[N, row.size, column.size,
      C]`.
    size: Height and width of the input.
    outputs: Of the output.
    kernel: Of the window.
    strides: Vertical and horizontal.
    pads: Pixels added before and after each axis.

  Returns:
    `[N, H, W, C]`.
  """
  rows, columns = (
    [
      Phase(p, size[a], outputs[a], kernel[a], strides[a], pads[a])
      for p in range(strides[a])
    ]
    for a in (0, 1)
  )
  lines = [
    _interleave([part(row, column) for column in columns], 2, size[1])
    for row in rows
  ]
  return _interleave(lines, 1, size[0])


def _interleave(parts, axis, size):
  """The reverse of taking every stride-th slice along an axis."""
  if len(parts) == 1:
    return parts[0]
  stacked = jnp.stack(parts, axis + 1)
  shape = list(parts[0].shape)
  shape[axis] *= len(parts)
  joined = stacked.reshape(shape)
  return jax.lax.slice_in_dim(joined, 0, size, axis=axis)
