"""How an array of a checkpoint lies in the tree: both directions as a pair."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
  """A change of axes between a checkpoint and the tree.

  Attributes:
    name: What it does, for messages.
    read: From the checkpoint's array to the tree's.
    write: Back.
  """

  name: str
  read: Callable[[np.ndarray], np.ndarray]
  write: Callable[[np.ndarray], np.ndarray]


def _same(x):
  return x


def _axes(x, axes):
  if x.ndim != len(axes):
    raise ValueError(f'{x.ndim} axes where {len(axes)} are expected')
  return np.transpose(x, axes)


def _conv_read(x):
  # (out, in, *window) -> (*window, in, out); depthwise (C, 1, k, k) becomes
  # (k, k, 1, C) by the same move.
  return _axes(x, (*range(2, x.ndim), 1, 0))


def _conv_write(x):
  return _axes(x, (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2)))


def _point_read(x):
  if x.ndim != 4 or x.shape[2:] != (1, 1):
    raise ValueError(f'{x.shape} is no 1 x 1 convolution')
  return x[:, :, 0, 0].T


# As it is.
COPY = Layout('copy', _same, _same)
# torch.nn.Linear, (out, in) -> a Dense kernel, (in, out).
LINEAR = Layout(
  'linear', lambda x: _axes(x, (1, 0)), lambda x: _axes(x, (1, 0))
)
# torch.nn.Conv*d, (out, in / groups, *window) -> (*window, in / groups, out).
CONV = Layout('conv', _conv_read, _conv_write)
# A 1 x 1 convolution, (out, in, 1, 1) -> a Dense kernel, (in, out).
POINTWISE = Layout(
  'pointwise', _point_read, lambda x: _axes(x, (1, 0))[:, :, None, None]
)
# TensorFlow's depthwise kernel, (*window, C, 1) -> (*window, 1, C).
TF_DEPTHWISE = Layout(
  'tf_depthwise',
  lambda x: _axes(x, (0, 1, 3, 2)),
  lambda x: _axes(x, (0, 1, 3, 2)),
)


def heads_out(num_heads: int) -> Layout:
  """Query, key or value: (heads * size, in) -> (in, heads, size).

  Its bias, (heads * size,) -> (heads, size), takes the same layout.
  """

  def read(x):
    if x.shape[0] % num_heads:
      raise ValueError(f'{x.shape[0]} rows for {num_heads} heads')
    return x.T.reshape(*x.shape[1:], num_heads, -1)

  def write(x):
    return x.reshape(*x.shape[:-2], -1).T

  return Layout(f'heads_out({num_heads})', read, write)


def heads_in(num_heads: int) -> Layout:
  """Attention's output: (out, heads * size) -> (heads, size, out)."""

  def read(x):
    if x.ndim != 2 or x.shape[1] % num_heads:
      raise ValueError(f'{x.shape} for {num_heads} heads')
    return x.T.reshape(num_heads, -1, x.shape[0])

  def write(x):
    return x.reshape(-1, x.shape[-1]).T

  return Layout(f'heads_in({num_heads})', read, write)


def padded_rows(rows: int, padded: int) -> Layout:
  """A table of `rows` rows, filled up with zeros in the tree."""

  def read(x):
    if x.shape[0] != rows:
      raise ValueError(f'{x.shape[0]} rows where {rows} are expected')
    return np.pad(x, [(0, padded - rows)] + [(0, 0)] * (x.ndim - 1))

  return Layout(f'padded_rows({rows}, {padded})', read, lambda x: x[:rows])
