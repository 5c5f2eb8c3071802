"""Batches of a data source, on grain: deterministic, sharded, resumable.

Every batch is a function of the seed and the number of the step. Workers and
threads only compute it earlier, processes only their part of it, and the
position of an iterator is one integer.
"""

import contextlib
import functools
import multiprocessing
import operator
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import flags

from jaxpapers.data import arrays, randomness

_REMAINDERS = ('drop', 'pad', 'keep')


def batches(
  source: Any,
  batch_size: int,
  *,
  seed: int = 0,
  num_epochs: int | None = None,
  shuffle: bool = True,
  transform: Callable[[Any, np.random.Generator], Any] | None = None,
  batch_transform: Callable[[Any, randomness.BatchRandom], Any] | None = None,
  remainder: str = 'drop',
  process_index: int | None = None,
  process_count: int | None = None,
  num_workers: int = 0,
  num_threads: int | None = None,
  prefetch: int = 2,
) -> Iterator[Any]:
  """Iterates over batches of a source, reshuffled in each epoch.

  The same arguments give the same batches whatever `num_workers`,
  `num_threads` and `prefetch`. With several processes, each gets a contiguous
  part of the same global batch: process 0 the first `batch_size //
  process_count` examples, and so on, as
  `jax.make_array_from_process_local_data` puts them together.

  Args:
    source: mapping of arrays with a common first axis, held in memory; or any
      object with `__len__` and `__getitem__(int)` that returns an example: an
      array, or a dictionary or tuple of such, of the same shapes for every
      example after `transform`. Where a source has `take(indices)` and there
      is no `transform`, that makes the whole batch.
    batch_size: examples of the global batch, of all processes together.
    seed: of the order and of the transforms.
    num_epochs: after how many to stop; None for never.
    shuffle: whether to reorder each epoch; False keeps the source's order.
    transform: `transform(example, generator) -> example`, with a
      `numpy.random.Generator` of its own for each example and epoch.
    batch_transform: `batch_transform(batch, rng) -> batch` on this process's
      part, with a `BatchRandom` that draws a row for each example. The fast
      way for data in memory.
    remainder: what becomes of the last examples of an epoch that fill no
      batch. 'drop' leaves them out (others in each epoch), 'pad' repeats the
      last of them and adds 'mask' (bool [batch], False for a repetition) to
      every batch, so that a jitted step sees one shape; 'keep' gives a smaller
      batch.
    process_index: this process, by default `jax.process_index()`.
    process_count: by default `jax.process_count()`.
    num_workers: worker processes. 0 reads in threads of this process, which is
      right for data in memory and enough for a few hundred images a second. A
      script with workers needs `if __name__ == '__main__':`.
    num_threads: threads in this process (or in each worker) that make batches
      ahead of time, 0 for none. By default 1 for sources with `take` and
      without `transform`, else up to 8.
    prefetch: batches made ahead of time, at least one for each thread.

  Returns:
    A `grain.DatasetIterator`. `get_state()` returns a small dictionary that
    JSON can store; `set_state(state)` continues after the batch that was the
    last before `get_state()`, with any number of processes and workers.
    `close()` ends the workers. Attributes: `steps_per_epoch`, `num_examples`,
    `batch_size`, `local_batch_size`.

  Raises:
    ValueError: an argument does not fit the source or another argument.
    TypeError: `source` is no source, or 'pad' meets examples that are no
      dictionaries.
    ImportError: grain is not installed.

  Example:
    >>> data = {'x': np.arange(10), 'y': np.arange(10) % 2}
    >>> steps = batches(data, 4, seed=1, num_epochs=1, remainder='pad')
    >>> [int(batch['mask'].sum()) for batch in steps]
    [4, 4, 2]
  """
  if process_index is None or process_count is None:
    import jax

    if process_index is None:
      process_index = jax.process_index()
    if process_count is None:
      process_count = jax.process_count()
  plan = BatchPlan(
    source,
    batch_size,
    seed=seed,
    num_epochs=num_epochs,
    shuffle=shuffle,
    transform=transform,
    batch_transform=batch_transform,
    remainder=remainder,
    process_index=process_index,
    process_count=process_count,
  )
  for name, value in (
    ('num_workers', num_workers),
    ('num_threads', num_threads or 0),
    ('prefetch', prefetch),
  ):
    if value < 0:
      raise ValueError(f'{name} is {value}; expected 0 or more.')
  if num_threads is None:
    # Pillow and file systems work without the interpreter's lock; more than a
    # few threads only wait for it.
    num_threads = 1 if plan.vectorized else min(os.cpu_count() or 1, 8)
  return _iterator_class()(plan, num_workers, num_threads, prefetch)


class BatchPlan:
  """Which examples make which batch, and the making: a source of batches.

  `plan[step]` is this process's part of the batch of a step, the same at any
  time and in any process. The arguments are those of `batches`.
  """

  def __init__(
    self,
    source: Any,
    batch_size: int,
    *,
    seed: int,
    num_epochs: int | None,
    shuffle: bool,
    transform: Callable[..., Any] | None,
    batch_transform: Callable[..., Any] | None,
    remainder: str,
    process_index: int,
    process_count: int,
  ):
    self.source = arrays.as_source(source)
    self.num_examples = len(self.source)
    self.batch_size = batch_size = operator.index(batch_size)
    self.seed = operator.index(seed)
    self.shuffle = bool(shuffle)
    self.remainder = remainder
    self.transform = transform
    self.batch_transform = batch_transform
    self.vectorized = transform is None and hasattr(self.source, 'take')
    self.process_index = process_index
    self.process_count = process_count
    self._check(num_epochs)
    full, rest = divmod(self.num_examples, batch_size)
    self.steps_per_epoch = full + (rest > 0 and remainder != 'drop')
    epochs = sys.maxsize // self.steps_per_epoch
    self._length = self.steps_per_epoch * (
      epochs if num_epochs is None else min(epochs, num_epochs)
    )
    self._orders = {}
    self._lock = threading.Lock()

  def _check(self, num_epochs):
    count, index = self.process_count, self.process_index
    size, examples = self.batch_size, self.num_examples
    if not 0 <= index < count:
      raise ValueError(
        f'process_index is {index}; expected 0 to process_count - 1, which is'
        f' {count - 1}.'
      )
    if size < 1 or size % count:
      raise ValueError(
        f'batch_size is {size}; expected a positive multiple of the number of'
        f' processes, {count}: it counts the examples of all of them.'
      )
    if self.remainder not in _REMAINDERS:
      raise ValueError(
        f'remainder is {self.remainder!r}; expected one of {_REMAINDERS}.'
      )
    if num_epochs is not None and num_epochs < 0:
      raise ValueError(f'num_epochs is {num_epochs}; expected None or >= 0.')
    if not examples:
      raise ValueError('source is empty; expected one or more examples.')
    if self.remainder == 'drop' and examples < size:
      raise ValueError(
        f"remainder is 'drop' and source has {examples} examples, fewer than"
        f" batch_size, {size}: there would be no batch. Use 'pad' or a smaller"
        ' batch.'
      )
    if self.remainder == 'keep' and examples % size % count:
      raise ValueError(
        f"remainder is 'keep' and the last batch has {examples % size} examples"
        f", which {count} processes cannot share. Use 'pad' or 'drop'."
      )

  def __len__(self) -> int:
    return self._length

  def __repr__(self) -> str:
    return f'BatchPlan({self.num_examples} examples, {self.batch_size} a step)'

  def __getstate__(self):
    return {**self.__dict__, '_lock': None, '_orders': {}}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._lock = threading.Lock()

  def fingerprint(self) -> dict[str, Any]:
    """What has to be equal for a stored position to mean the same."""
    return {
      'seed': self.seed,
      'shuffle': self.shuffle,
      'remainder': self.remainder,
      'batch_size': self.batch_size,
      'num_examples': self.num_examples,
    }

  def _order(self, epoch):
    with self._lock:
      if epoch not in self._orders:
        # Two: batches of neighbouring epochs are made at the same time.
        for old in sorted(self._orders)[:-1]:
          del self._orders[old]
        self._orders[epoch] = randomness.permutation(
          self.num_examples, self.seed, epoch
        )
      return self._orders[epoch]

  def indices(self, step: int) -> tuple[int, np.ndarray, np.ndarray]:
    """(epoch, indices, mask) of this process's part of a step's batch.

    Args:
      step: counted from 0 over all epochs.

    Returns:
      The epoch; int64 [local batch]; bool [local batch], False for padding.
    """
    epoch, position = divmod(step, self.steps_per_epoch)
    start = position * self.batch_size
    stop = min(start + self.batch_size, self.num_examples)
    size = self.batch_size if self.remainder == 'pad' else stop - start
    local = size // self.process_count
    first = start + self.process_index * local
    positions = np.arange(first, first + local)
    mask = positions < stop
    positions = np.minimum(positions, stop - 1)
    if self.shuffle:
      positions = self._order(epoch)[positions]
    return epoch, positions, mask

  def __getitem__(self, step: int) -> Any:
    epoch, indices, mask = self.indices(step)
    if self.vectorized:
      batch = self.source.take(indices)
    else:
      batch = _stack([self._example(epoch, int(i)) for i in indices], indices)
    if self.remainder == 'pad':
      if not isinstance(batch, Mapping):
        raise TypeError(
          "remainder is 'pad', which adds 'mask' to a dictionary; the examples"
          f' are {type(batch).__name__}.'
        )
      if 'mask' in batch:
        raise ValueError(
          "remainder is 'pad', which adds 'mask', but the examples have a"
          " 'mask' of their own. Give it another name."
        )
      batch = {**batch, 'mask': mask}
    if self.batch_transform is not None:
      rng = randomness.BatchRandom(self.seed, epoch, indices)
      batch = self.batch_transform(batch, rng)
    return batch

  def _example(self, epoch, index):
    example = self.source[index]
    if self.transform is None:
      return example
    generator = randomness.example_generator(self.seed, epoch, index)
    return self.transform(example, generator)


def _stack(examples, indices, name=''):
  """Stacks examples leaf by leaf; `name` leads to the leaf, for errors."""
  first = examples[0]
  if isinstance(first, Mapping):
    return {
      key: _stack([e[key] for e in examples], indices, f'{name}[{key!r}]')
      for key in first
    }
  if isinstance(first, tuple):
    return tuple(
      _stack(list(column), indices, f'{name}[{i}]')
      for i, column in enumerate(zip(*examples, strict=True))
    )
  leaves = [np.asarray(leaf) for leaf in examples]
  for index, leaf in zip(indices, leaves):
    if leaf.shape != leaves[0].shape:
      raise ValueError(
        f'example{name} has shape {list(leaf.shape)} for index {index} and'
        f' {list(leaves[0].shape)} for index {indices[0]}; expected one shape'
        ' in a batch. Give a transform that crops or resizes.'
      )
  return np.stack(leaves)


class _From:
  """The batches of a plan from a step on, as a source for grain."""

  def __init__(self, plan, start):
    self._plan, self._start = plan, start

  def __setstate__(self, state):
    self.__dict__.update(state)
    if multiprocessing.parent_process() is not None:
      # In a worker. A signal to the whole group is for the main process, which
      # still wants the batches of the step that it will stop after.
      with contextlib.suppress(ValueError):  # Not in the main thread.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

  def __len__(self):
    return len(self._plan) - self._start

  def __getitem__(self, index):
    return self._plan[self._start + int(index)]


@functools.cache
def _iterator_class():
  """The class of the iterators; made when grain is first needed."""
  try:
    import grain
  except ImportError as error:
    raise ImportError(
      'jaxpapers.data.batches needs grain: pip install grain'
    ) from error

  class BatchIterator(grain.DatasetIterator):
    """Reads the batches of a `BatchPlan` ahead, in threads or processes."""

    def __init__(self, plan, num_workers, num_threads, prefetch):
      super().__init__()
      self._plan = plan
      self._num_workers = num_workers
      self._num_threads = num_threads if prefetch or num_workers else 0
      self._prefetch = prefetch
      self._step = 0
      self._reader = None
      self.steps_per_epoch = plan.steps_per_epoch
      self.num_examples = plan.num_examples
      self.batch_size = plan.batch_size
      self.local_batch_size = plan.batch_size // plan.process_count

    def _open(self):
      """Starts reading at the current step."""
      source = grain.MapDataset.source(_From(self._plan, self._step))
      threads = self._num_threads
      dataset = source.to_iter_dataset(
        grain.ReadOptions(
          num_threads=threads,
          prefetch_buffer_size=max(threads, self._prefetch) if threads else 0,
        )
      )
      if self._num_workers:
        if not flags.FLAGS.is_parsed():
          # A notebook or a test: grain's workers read absl flags, and no
          # program will have parsed them.
          flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
          grain.MultiprocessingOptions(
            num_workers=self._num_workers,
            per_worker_buffer_size=max(
              1, -(-self._prefetch // self._num_workers)
            ),
          )
        )
      return iter(dataset)

    def __next__(self):
      self._assert_not_closed()
      if self._step >= len(self._plan):
        self._release()
        raise StopIteration
      if self._reader is None:
        self._reader = self._open()
      try:
        batch = next(self._reader)
      except StopIteration as error:
        # Otherwise a loop would end early and look finished.
        raise RuntimeError(
          f'the reader ended at step {self._step} of {len(self._plan)}'
        ) from error
      except BaseException:
        # The reader has lost its place: who catches this, a file system that
        # was away for example, and asks again gets the same step.
        self._release()
        raise
      self._step += 1
      return batch

    def start_prefetch(self):
      if self._reader is None and self._step < len(self._plan):
        self._reader = self._open()
      if self._reader is not None:
        self._reader.start_prefetch()

    def get_state(self):
      return {'step': self._step, **self._plan.fingerprint()}

    def set_state(self, state):
      expected = self._plan.fingerprint()
      for name, value in expected.items():
        if name not in state or state[name] != value:
          raise ValueError(
            f'state has {name} = {state.get(name)!r}; this iterator has'
            f' {value!r}, so the position means other examples. Make it with'
            ' the arguments of the run that is resumed.'
          )
      step = int(state['step'])
      if not 0 <= step <= len(self._plan):
        raise ValueError(
          f'state has step = {step}; expected 0 to {len(self._plan)}. Is'
          ' num_epochs smaller than in the run that is resumed?'
        )
      self._release()
      self._step = step

    def _get_next_index(self):
      return self._step

    def _set_next_index(self, index):
      self.set_state({**self.get_state(), 'step': index})

    def _release(self):
      if self._reader is not None:
        self._reader.close()
        self._reader = None

    def close(self):
      if not getattr(self, '_closed', True):
        self._release()
      super().close()

    def __str__(self):
      return f'BatchIterator({self._plan})'

  return BatchIterator
