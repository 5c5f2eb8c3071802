"""The error for weights that do not fit a tree: all that is wrong, at once."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_SHOWN = 20


class Misshaped(NamedTuple):
  """A leaf whose array has another shape.

  Attributes:
    path: The leaf, such as 'encoder/embedding'.
    name: The array of the checkpoint.
    found: Its shape there.
    expected: The shape that it should have there, or None if the leaf's shape
      cannot be told in the terms of the checkpoint.
    leaf: Shape of the leaf, if it differs in layout from the array.
  """

  path: str
  name: str
  found: tuple[int, ...]
  expected: tuple[int, ...] | None
  leaf: tuple[int, ...] | None = None

  def __str__(self) -> str:
    text = f'{self.path}: {self.name} is {self.found}'
    if self.expected is not None:
      text += f', expected {self.expected}'
    if self.leaf is not None and self.leaf != self.expected:
      text += f' for {self.leaf} in the tree'
    return text


class WeightMismatchError(ValueError):
  """A checkpoint and a tree do not fit.

  Attributes:
    missing: Paths of leaves for which the checkpoint has nothing.
    unexpected: Names of arrays that have no place.
    misshaped: Leaves of another shape.
  """

  def __init__(
    self,
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshaped: Sequence[Misshaped],
    source: object = 'The checkpoint',
    advice: str = '',
  ):
    """Args: the three lists, what the weights come from, what can be done."""
    self.missing = list(missing)
    self.unexpected = list(unexpected)
    self.misshaped = list(misshaped)
    parts = [f'{source} does not fit.']
    for what, entries in (
      ('missing', self.missing),
      ('unexpected', self.unexpected),
      ('of another shape', self.misshaped),
    ):
      if entries:
        shown = [f'  {entry}' for entry in entries[:_SHOWN]]
        if len(entries) > _SHOWN:
          shown.append(f'  and {len(entries) - _SHOWN} more')
        parts.append('\n'.join([f'{len(entries)} {what}:', *shown]))
    super().__init__('\n'.join([*parts, *([advice] if advice else [])]))


def matches(patterns: Iterable[str], text: str) -> bool:
  """Whether one of several regular expressions is found in a text."""
  return any(re.search(pattern, text) for pattern in patterns)
