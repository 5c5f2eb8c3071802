"""Batches for pre-training: with their epoch, of one length or of several."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpapers import data
from jaxpapers.data import randomness


def training_batches(
  sources: Sequence[Any],
  batch_sizes: Sequence[int],
  *,
  seed: int,
  process_index: int | None = None,
  process_count: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Endless batches of blocks, each with the number of its epoch.

  Args:
    sources: One source of examples, or several of different lengths.
    batch_sizes: Sequences in a global batch of each.
    seed: Of the order.
    process_index: See `data.batches`.
    process_count: See `data.batches`.

  Returns:
    An iterator of batches with 'epoch' [B] int32, whose `get_state` and
    `set_state` give and take its position.

  Raises:
    ValueError: If a source has fewer examples than its batch.
  """
  parts = [
    Epochs(
      data.batches(
        source,
        size,
        seed=seed + index,
        process_index=process_index,
        process_count=process_count,
      )
    )
    for index, (source, size) in enumerate(
      zip(sources, batch_sizes, strict=True)
    )
  ]
  return parts[0] if len(parts) == 1 else Interleaved(parts, seed)


def held_out_batches(
  sources: Sequence[Any],
  batch_sizes: Sequence[int],
  *,
  process_index: int | None = None,
  process_count: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Every example once, in order; the last batch of a source is filled up.

  Args:
    sources: As in `training_batches`.
    batch_sizes: As in `training_batches`.
    process_index: See `data.batches`.
    process_count: See `data.batches`.

  Returns:
    An iterator of batches with 'mask' [B] bool, False where an example fills
    up.
  """
  for source, size in zip(sources, batch_sizes, strict=True):
    yield from data.batches(
      source,
      size,
      num_epochs=1,
      shuffle=False,
      remainder='pad',
      process_index=process_index,
      process_count=process_count,
    )


class Epochs:
  """Batches of `data.batches` with the number of their epoch.

  Example:
    >>> steps = Epochs(data.batches({'x': np.arange(4)}, 2))
    >>> [int(next(steps)['epoch'][0]) for _ in range(5)]
    [0, 0, 1, 1, 2]
  """

  def __init__(self, batches: Any):
    """Wraps an iterator that `data.batches` made."""
    self._batches = batches
    self.steps_per_epoch = batches.steps_per_epoch

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    epoch = self._batches.get_state()['step'] // self.steps_per_epoch
    batch = next(self._batches)
    size = len(next(iter(batch.values())))
    return {**batch, 'epoch': np.full(size, epoch, np.int32)}

  def get_state(self) -> dict[str, Any]:
    """Position, as JSON can store it."""
    return self._batches.get_state()

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes on at a position."""
    self._batches.set_state(dict(state))

  def close(self) -> None:
    """Ends what reads ahead."""
    self._batches.close()


class Interleaved:
  """Batches of several iterators in a random order, each as often as it lasts.

  In as many steps as the iterators' epochs have together each of them gives one
  epoch. Batches of different lengths so come as often as there is text for
  them, and a jitted step compiles once for each length.
  """

  def __init__(self, parts: Sequence[Epochs], seed: int):
    """Iterators with `steps_per_epoch`, and the seed of their order."""
    self._parts, self._seed = list(parts), seed
    self._steps = [part.steps_per_epoch for part in self._parts]
    self.steps_per_epoch = sum(self._steps)
    self._step = 0
    self._order = (-1, np.zeros(0, int))

  def __iter__(self):
    return self

  def _part(self, step: int) -> int:
    epoch, position = divmod(step, self.steps_per_epoch)
    if self._order[0] != epoch:
      order = randomness.permutation(self.steps_per_epoch, self._seed, epoch)
      owners = np.repeat(np.arange(len(self._parts)), self._steps)
      self._order = (epoch, owners[order])
    return int(self._order[1][position])

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._parts[self._part(self._step)])
    self._step += 1
    return batch

  def get_state(self) -> dict[str, Any]:
    """Position, as JSON can store it."""
    return {
      'step': self._step,
      'parts': [part.get_state() for part in self._parts],
    }

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes on at a position.

    Raises:
      ValueError: If it is the position of other iterators.
    """
    if len(state.get('parts', ())) != len(self._parts):
      raise ValueError(
        f'state has {len(state.get("parts", ()))} iterators; expected'
        f' {len(self._parts)}. Make it with the buckets of the run that is'
        ' resumed.'
      )
    for part, position in zip(self._parts, state['parts']):
      part.set_state(position)
    self._step = int(state['step'])

  def close(self) -> None:
    """Ends what reads ahead."""
    for part in self._parts:
      part.close()


def unigram_entropy(counts: Any) -> float:
  """Entropy in nats of tokens drawn by their frequency.

  A model that ignores the context has at best this loss: what is below it has
  been read off the neighbours.

  Args:
    counts: How often each token occurs, [V].

  Returns:
    `-sum p log p`.

  Raises:
    ValueError: If nothing was counted.

  Example:
    >>> round(unigram_entropy([2, 1, 1]), 4)
    1.0397
  """
  counts = np.asarray(counts, np.float64)
  if counts.ndim != 1 or (counts < 0).any() or not counts.sum() > 0:
    raise ValueError(
      f'counts has shape {list(counts.shape)} and the sum {counts.sum():g};'
      ' expected [vocabulary] numbers of tokens, some of them above 0.'
    )
  shares = counts[counts > 0] / counts.sum()
  return float(-(shares * np.log(shares)).sum())


def count_tokens(source: Any, vocab_size: int, pad_id: int) -> np.ndarray:
  """How often each token occurs in the blocks of a source.

  Args:
    source: Source of examples with 'ids' [S].
    vocab_size: Size of the vocabulary.
    pad_id: Id that is not counted.

  Returns:
    int64 [vocab_size].
  """
  counts = np.zeros(vocab_size, np.int64)
  for start in range(0, len(source), 256):
    indices = np.arange(start, min(start + 256, len(source)))
    if hasattr(source, 'take'):
      ids = source.take(indices)['ids']
    else:
      ids = np.stack([source[int(i)]['ids'] for i in indices])
    counts += np.bincount(ids.ravel(), minlength=vocab_size)
  counts[pad_id] = 0
  return counts
