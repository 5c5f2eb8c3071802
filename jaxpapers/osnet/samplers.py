"""Which images make a batch: identities, cameras or data sets in equal shares.

A sampler makes the batches of one epoch at once, as an array of indices.
`SampledSource` then reads them, epoch after epoch, through
`jaxpapers.data.batches`: resumable, shared among processes, ahead of time.
"""

import bisect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxpapers.data import arrays


def pk_sampler(
  pids: Any, P: int, K: int, rng: int | np.random.Generator
) -> np.ndarray:
  """Batches of P identities with K images each: what a triplet loss needs.

  The images of an identity are shuffled and cut into groups of K; what is left
  over rests in this epoch. An identity with fewer than K images repeats some.
  Batches take a group of P different identities until fewer than P have one.

  Args:
    pids: Integers [n], the identity of each image.
    P: Identities in a batch.
    K: Images of each.
    rng: Generator, or a seed for one.

  Returns:
    int64 [batches, P * K], indices of images; those of an identity are
    neighbours. How many batches there are depends a little on chance.

  Raises:
    ValueError: If there are fewer than P identities.

  Example:
    >>> pids = np.repeat(np.arange(6), 4)
    >>> batches = pk_sampler(pids, P=3, K=2, rng=0)
    >>> pids[batches[0]].reshape(3, 2).std(1).max()
    np.float64(0.0)
  """
  pids = _labels(pids, 'pids')
  rng = np.random.default_rng(rng)
  if P < 1 or K < 1:
    raise ValueError(f'P is {P} and K is {K}; expected 1 or more.')
  names, identity = np.unique(pids, return_inverse=True)
  if len(names) < P:
    raise ValueError(
      f'P is {P}, but pids has {len(names)} identities; expected P or more.'
    )
  groups = []
  for members in _members(identity, len(names)):
    members = _shuffled(members, rng)
    if len(members) < K:
      members = members[(rng.random(K) * len(members)).astype(np.int64)]
    groups.append(members[: len(members) // K * K].reshape(-1, K))
  used = np.zeros(len(names), np.int64)
  left = np.arange(len(names))
  sizes = np.array([len(group) for group in groups])
  batches = []
  while len(left) >= P:
    chosen = _shuffled(left, rng)[:P]
    batches.append(np.concatenate([groups[i][used[i]] for i in chosen]))
    used[chosen] += 1
    left = left[used[left] < sizes[left]]
  return np.stack(batches)


def domain_sampler(
  domains: Any,
  num_domains: int,
  per_domain: int,
  rng: int | np.random.Generator,
) -> np.ndarray:
  """Batches with equally many images of several cameras, or of data sets.

  The epoch ends when one of the domains has too few images left.

  Args:
    domains: Integers [n], the camera (or the data set) of each image.
    num_domains: Different ones in a batch; 0 for all there are.
    per_domain: Images of each.
    rng: Generator, or a seed for one.

  Returns:
    int64 [batches, num_domains * per_domain], indices of images.

  Raises:
    ValueError: If there are too few domains, or one has too few images.

  Example:
    >>> domain_sampler([0, 0, 0, 1, 1, 1], 2, 2, rng=0).shape
    (1, 4)
  """
  domains = _labels(domains, 'domains')
  rng = np.random.default_rng(rng)
  names, domain = np.unique(domains, return_inverse=True)
  num_domains = num_domains or len(names)
  if not 1 <= num_domains <= len(names):
    raise ValueError(
      f'num_domains is {num_domains}; expected 0 (all) to {len(names)}, as'
      ' there are in domains.'
    )
  members = [_shuffled(found, rng) for found in _members(domain, len(names))]
  sizes = np.array([len(found) for found in members])
  if per_domain < 1 or sizes.min() < per_domain:
    raise ValueError(
      f'per_domain is {per_domain}; expected 1 to {sizes.min()}, the images of'
      f' domain {names[sizes.argmin()]}.'
    )
  used = np.zeros(len(names), np.int64)
  batches = []
  while (sizes - used).min() >= per_domain:
    chosen = _shuffled(np.arange(len(names)), rng)[:num_domains]
    batches.append(
      np.concatenate(
        [members[i][used[i] : used[i] + per_domain] for i in chosen]
      )
    )
    used[chosen] += per_domain
  return np.stack(batches)


class SampledSource:
  """A source for `jaxpapers.data.batches` in the order of a sampler.

  Example i of it is example `order[i]` of the source, where the order is that
  of epoch after epoch; so it is read with `shuffle=False` and the batch size of
  the sampler. Epochs may differ in length.

  Example:
    >>> pids = np.repeat(np.arange(6), 4)
    >>> source = SampledSource(
    ...   {'pid': pids}, lambda rng: pk_sampler(pids, 3, 2, rng), 0, steps=100
    ... )
    >>> len(source), source.batch_size
    (600, 6)
  """

  def __init__(
    self,
    source: Any,
    sampler: Callable[[np.random.Generator], np.ndarray],
    seed: int,
    steps: int,
  ):
    """Args below.

    Args:
      source: Mapping of arrays, or anything with `len` and `[i]`.
      sampler: From a generator to int64 [batches, batch], those of an epoch.
      seed: Of the generators: each epoch has one of its own.
      steps: Batches that will be read in all.
    """
    self._source = arrays.as_source(source)
    self._sampler, self._seed = sampler, int(seed)
    self._ends, self._orders = [], {}
    self._lock = threading.Lock()
    first = self._order(0)
    self.batch_size = first.shape[1]
    self.steps_per_epoch = first.shape[0]
    self._length = int(steps) * self.batch_size
    if hasattr(self._source, 'take'):
      self.take = self._take

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Any:
    return self._source[int(self.positions([index])[0])]

  def _take(self, indices: np.ndarray) -> Any:
    return self._source.take(self.positions(indices))

  def positions(self, indices: Any) -> np.ndarray:
    """Indices into the source, of indices into this: int64 [n]."""
    found = []
    for index in np.asarray(indices, np.int64):
      step, column = divmod(int(index), self.batch_size)
      # Lengths of epochs are known once they were made, in their order.
      while step >= self._ends[-1]:
        self._order(len(self._ends))
      epoch = bisect.bisect_right(self._ends, step)
      start = self._ends[epoch - 1] if epoch else 0
      found.append(self._order(epoch)[step - start, column])
    return np.asarray(found, np.int64)

  def _order(self, epoch):
    with self._lock:
      if epoch not in self._orders:
        key = np.array([self._seed & (2**64 - 1), epoch], np.uint64)
        order = self._sampler(np.random.Generator(np.random.Philox(key=key)))
        # Two: batches of neighbouring epochs are made at the same time.
        for old in sorted(self._orders)[:-1]:
          del self._orders[old]
        self._orders[epoch] = order
        if epoch == len(self._ends):
          before = self._ends[-1] if self._ends else 0
          self._ends.append(before + len(order))
      return self._orders[epoch]

  def __getstate__(self):
    state = {**self.__dict__, '_lock': None, '_orders': {}}
    state.pop('take', None)
    return state

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._lock = threading.Lock()
    if hasattr(self._source, 'take'):
      self.take = self._take


def _labels(values, name):
  values = np.asarray(values)
  if values.ndim != 1 or not len(values) or values.dtype.kind not in 'iu':
    raise ValueError(
      f'{name} is {values.dtype} {list(values.shape)}; expected integers [n],'
      ' one or more.'
    )
  return values


def _members(identity, count):
  """Indices of the images of each identity."""
  order = np.argsort(identity, kind='stable')
  return np.split(order, np.cumsum(np.bincount(identity, minlength=count))[:-1])


def _shuffled(values, rng):
  # Not `permutation`: its stream may change with numpy.
  return values[np.argsort(rng.random(len(values)), kind='stable')]
