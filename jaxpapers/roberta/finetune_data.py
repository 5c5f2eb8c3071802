"""Texts of any length as batches of a few lengths, so that little compiles."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpapers.data.pipeline import BatchPlan
from jaxpapers.roberta import glue
from jaxpapers.roberta.bpe import ByteLevelBPE

# Each costs one compilation. Most of GLUE is shorter than 128.
LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)


@dataclasses.dataclass(frozen=True)
class TokenExamples:
  """Examples of a task as tokens.

  Attributes:
    ids: Token ids of each example; or of each choice of each example, with as
      many choices in all of them.
    fields: Name -> array [n, ...] of what else a batch has, such as 'label'.
    pad_id: Fills rows up.
  """

  ids: Sequence[Any]
  fields: Mapping[str, np.ndarray]
  pad_id: int = 1

  def __post_init__(self):
    if not len(self.ids):
      raise ValueError('ids are empty; expected one example or more.')
    for name, values in self.fields.items():
      if len(values) != len(self.ids):
        raise ValueError(
          f'{name} has {len(values)} entries for {len(self.ids)} examples.'
        )

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def choices(self) -> int:
    """Number of choices of an example; 0 where there is one text."""
    first = self.ids[0]
    return len(first) if len(first) and not np.isscalar(first[0]) else 0

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each example, of its longest choice, int64 [n]."""
    if not self.choices:
      return np.array([len(row) for row in self.ids])
    return np.array([max(map(len, rows)) for rows in self.ids])

  def first(self, count: int) -> 'TokenExamples':
    """The first examples, or all if there are fewer."""
    fields = {name: values[:count] for name, values in self.fields.items()}
    return TokenExamples(self.ids[:count], fields, self.pad_id)

  def rows(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """Some examples as arrays.

    Args:
      indices: Of the examples, [B].
      length: Tokens of a row.

    Returns:
      'ids' int32 [B, length] or [B, choices, length], padded on the right, and
      the fields.
    """
    choices = self.choices
    texts = [self.ids[i] for i in indices]
    if choices:
      texts = [row for rows in texts for row in rows]
    ids = np.full((len(texts), length), self.pad_id, np.int32)
    for row, text in zip(ids, texts):
      row[: len(text)] = text
    if choices:
      ids = ids.reshape(-1, choices, length)
    return {
      'ids': ids,
      **{name: values[indices] for name, values in self.fields.items()},
    }


class TokenBatches:
  """Endless batches for training, reshuffled in each epoch.

  The last batch of an epoch is filled up; 'mask' says with what. A batch is as
  long as the first of a few lengths that fits its longest text, the same one in
  every process. The order does not depend on lengths, nor on the number of
  processes.

  Example:
    >>> examples = TokenExamples([[0, 5, 2], [0, 2]], {'label': np.arange(2)})
    >>> batch = next(TokenBatches(examples, 2, seed=0, lengths=(8, 16)))
    >>> batch['ids'].shape, batch['mask'].tolist()
    ((2, 8), [True, True])
  """

  def __init__(
    self,
    examples: TokenExamples,
    batch_size: int,
    *,
    seed: int,
    lengths: Sequence[int] = LENGTHS,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Plans batches.

    Args:
      examples: What to train on.
      batch_size: Examples of a batch, of all processes.
      seed: Of the order.
      lengths: Lengths of batches; longer texts get a multiple of the last.
      process_index: This process, see `training.batch_share`.
      process_count: How many share a batch.

    Raises:
      ValueError: If the batch size cannot be shared.
    """
    # The plan is that of one process: all have to see a batch's longest text.
    self._plan = BatchPlan(
      {'index': np.arange(len(examples))},
      batch_size,
      seed=seed,
      num_epochs=None,
      shuffle=True,
      transform=None,
      batch_transform=None,
      remainder='pad',
      process_index=0,
      process_count=1,
    )
    if batch_size % process_count:
      raise ValueError(
        f'batch_size is {batch_size}; expected a multiple of the number of'
        f' processes that share a batch, {process_count}.'
      )
    local = batch_size // process_count
    self._part = slice(process_index * local, (process_index + 1) * local)
    self._examples = examples
    self._sizes = examples.lengths
    self._lengths = lengths
    self._step = 0
    self.steps_per_epoch = self._plan.steps_per_epoch

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    _, indices, mask = self._plan.indices(self._step)
    self._step += 1
    length = fitting_length(self._sizes[indices].max(), self._lengths)
    batch = self._examples.rows(indices[self._part], length)
    return {**batch, 'mask': mask[self._part]}

  def get_state(self) -> dict[str, Any]:
    """Position, as JSON can store it."""
    return {'step': self._step, **self._plan.fingerprint()}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes on at a position.

    Raises:
      ValueError: If it is one of other examples.
    """
    for name, value in self._plan.fingerprint().items():
      if state.get(name) != value:
        raise ValueError(
          f'state has {name} = {state.get(name)!r}; these batches have'
          f' {value!r}. Resume with the data and config of the run.'
        )
    self._step = int(state['step'])


def ordered_batches(
  examples: TokenExamples,
  batch_size: int,
  *,
  lengths: Sequence[int] = LENGTHS,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
  """Every example once, short ones first, for predictions.

  Args:
    examples: What to look at.
    batch_size: Examples of a batch, of all processes.
    lengths: As for `TokenBatches`.
    process_index: As for `TokenBatches`.
    process_count: As for `TokenBatches`.

  Yields:
    Numbers of the examples of the whole batch, and this process's part of it;
    the last batch is filled up with examples whose number comes twice.
  """
  sizes = examples.lengths
  order = np.argsort(sizes, kind='stable')
  local = batch_size // process_count
  part = slice(process_index * local, (process_index + 1) * local)
  for start in range(0, len(order), batch_size):
    indices = order[start : start + batch_size]
    more = np.full(batch_size - len(indices), indices[-1])
    indices = np.concatenate([indices, more])
    length = fitting_length(sizes[indices].max(), lengths)
    yield indices, examples.rows(indices[part], length)


def fitting_length(size: int, lengths: Sequence[int]) -> int:
  """The first of some lengths that is not below `size`.

  Args:
    size: Tokens.
    lengths: Increasing.

  Returns:
    One of them, or a multiple of the last.

  Example:
    >>> [fitting_length(n, (32, 64)) for n in (5, 32, 33, 65)]
    [32, 32, 64, 128]
  """
  for length in lengths:
    if size <= length:
      return int(length)
  return int(-(-size // lengths[-1]) * lengths[-1])


def glue_examples(
  split: glue.GlueSplit, bpe: ByteLevelBPE, *, max_len: int = 512
) -> TokenExamples:
  """A split of GLUE as tokens: `<s> a </s>` or `<s> a </s> </s> b </s>`.

  What is longer than `max_len` loses its end, `</s>` too, as in fairseq.

  Args:
    split: Of `load_glue`.
    bpe: The tokenizer.
    max_len: Most tokens.

  Returns:
    The examples, with 'label' if the split has labels.
  """
  first = bpe.encode_batch(split.first)
  ids = [[bpe.bos_id, *row, bpe.eos_id] for row in first]
  if split.second is not None:
    second = bpe.encode_batch(split.second)
    ids = [[*a, bpe.eos_id, *b, bpe.eos_id] for a, b in zip(ids, second)]
  fields = {} if split.labels is None else {'label': split.labels}
  return TokenExamples([row[:max_len] for row in ids], fields, bpe.pad_id)
