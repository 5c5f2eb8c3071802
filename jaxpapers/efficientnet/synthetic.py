"""A benchmark of architecture search that trains nothing.

A closed formula stands for the accuracy: more multiply-adds help, less and
less; each choice of each block has an effect of its own; operator and kernel of
neighbouring blocks interact. All effects follow from names, so that everybody
gets the same numbers. It compares search algorithms, not networks.
"""

import functools
import zlib
from typing import Any

import numpy as np

from jaxpapers.efficientnet.search_space import SearchSpace


class SyntheticBenchmark:
  """Accuracy of an architecture by formula.

  `.60 + .12 (1 - exp(-MACs / 4e8)) + sum .004 u(choice) + sum .006 u(pair)`,
  where `u(name)` is a standard normal number that follows from the name.

  Example:
    >>> evaluate = SyntheticBenchmark()
    >>> tokens = evaluate.space.reference_tokens()
    >>> 0.5 < evaluate(tokens) < 0.9
    True
  """

  def __init__(self, space: SearchSpace | None = None):
    """Keeps the space; the paper's by default."""
    self.space = space or SearchSpace()

  def __call__(self, tokens: Any) -> float:
    """Accuracy.

    Args:
      tokens: Integers `[blocks, 6]` or flat.

    Returns:
      The accuracy, between .4 and 1.
    """
    rows = self.space.check(tokens).tolist()
    macs = self.space.macs(tokens)
    accuracy = 0.60 + 0.12 * (1 - np.exp(-macs / 4e8))
    for block, row in enumerate(rows):
      for dimension, value in enumerate(row):
        accuracy += 0.004 * _effect(f'b{block}d{dimension}v{value}')
      if block:
        before = rows[block - 1]
        pair = f'{before[0]}{before[1]}{row[0]}{row[1]}'
        accuracy += 0.006 * _effect(f'pair{block}:{pair}')
    return float(accuracy)


@functools.cache
def _effect(name: str) -> float:
  """A standard normal number that follows from a name."""
  bits = np.random.PCG64(zlib.crc32(name.encode()))
  return float(np.random.Generator(bits).standard_normal())
