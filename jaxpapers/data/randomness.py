"""Random numbers that depend on a seed, an epoch and an example, on no state.

So every process and worker can draw its own part of them, in any order, and a
run that resumes needs no more than the number of the step. The numbers are
those of a fixed integer hash, not of `numpy.random.Generator.permutation`,
whose stream may change with numpy: a checkpoint has to continue the same order
on another machine.
"""

import functools
import math

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WORD = 2**64 - 1
# Separate uses of the same seed.
ORDER, EXAMPLE, BATCH = 1, 2, 3


def hash64(*words: int | np.ndarray) -> np.ndarray:
  """Hashes integers to 64 bits: the finaliser of SplitMix64, word by word.

  Args:
    *words: integers (modulo 2**64) or uint64 arrays that broadcast.

  Returns:
    uint64 array of the broadcast shape (0-d arrays become [1]).
  """
  state = np.zeros(1, np.uint64)
  for word in words:
    if isinstance(word, (int, np.integer)):
      word = np.uint64(int(word) & _WORD)
    state = (state ^ word) + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = state ^ (state >> np.uint64(31))
  return state


def permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  """The order of one epoch: argsort of a hash of every index.

  Args:
    num_examples: length.
    seed: any integer.
    epoch: 0, 1, ...

  Returns:
    int64 [num_examples], each index once.
  """
  keys = hash64(seed, ORDER, epoch, np.arange(num_examples, dtype=np.uint64))
  return np.argsort(keys, kind='stable')


def example_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
  """Generator for the transform of one example in one epoch.

  Args:
    seed: any integer.
    epoch: 0, 1, ...
    index: of the example in its source.

  Returns:
    A numpy generator whose stream no other example or epoch shares.
  """
  key = np.array([_epoch_key(seed, epoch), index], np.uint64)
  return np.random.Generator(np.random.Philox(key=key))


@functools.lru_cache(maxsize=8)
def _epoch_key(seed, epoch):
  # The same for a whole epoch, and slower than all the rest.
  return int(hash64(seed, EXAMPLE, epoch)[0])


class BatchRandom:
  """Random numbers for a whole batch at once, one row for each example.

  A row depends on the seed, the epoch and the example, so it is the same
  however the batch is divided among processes. Successive calls give
  independent numbers.

  Example:
    >>> rng = BatchRandom(seed=0, epoch=0, indices=np.array([3, 1]))
    >>> rng.uniform().shape, rng.integers(10, (2,)).shape
    ((2,), (2, 2))
  """

  def __init__(self, seed: int, epoch: int, indices: np.ndarray):
    """Args as for `example_generator`; indices [batch]."""
    self._row_keys = hash64(seed, BATCH, epoch, indices.astype(np.uint64))
    self._used = 0

  def _bits(self, shape):
    count = math.prod(shape)
    columns = np.arange(self._used, self._used + count, dtype=np.uint64)
    self._used += count
    return hash64(self._row_keys[:, None], columns).reshape(-1, *shape)

  def uniform(
    self, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0
  ) -> np.ndarray:
    """Uniform numbers in [low, high): float64 [batch, *shape]."""
    unit = (self._bits(shape) >> np.uint64(11)) * 2.0**-53
    return low + (high - low) * unit

  def integers(self, high: int, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Uniform integers in 0 .. high - 1: int64 [batch, *shape]."""
    # The product of 53 random bits; its bias is below high / 2**53.
    return np.floor(self.uniform(shape) * high).astype(np.int64)
