"""Masking on the host, with fairseq's numbers.

For comparisons with runs of fairseq (`MaskTokensDataset`): the same seed, epoch
and index choose the same tokens, bit for bit, with numpy's `default_rng`.
`masking` is for training.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxpapers.roberta import masking


class MaskedItem(NamedTuple):
  """One sequence with masks.

  Attributes:
    inputs: [n], ids with masks.
    targets: [n], the ids that were there, `pad_id` where nothing was chosen.
  """

  inputs: np.ndarray
  targets: np.ndarray


def fairseq_mask(
  item: Any,
  *,
  seed: int,
  epoch: int,
  index: int,
  vocab_size: int,
  mask_id: int,
  pad_id: int = 1,
  mask_prob: float = 0.15,
  keep_prob: float = 0.1,
  random_prob: float = 0.1,
  first_random_id: int = 4,
  word_starts: Any = None,
) -> MaskedItem:
  """Masks a sequence as fairseq does.

  fairseq's generator is seeded with `hash((seed, epoch, index)) % 10**6`: of a
  thousand items, some will share it.

  Args:
    item: integers [n], with <s> and </s>, without padding.
    seed: of the run.
    epoch: fairseq counts from 1.
    index: of the item in its data set.
    vocab_size: with <mask>.
    mask_id: of <mask>.
    pad_id: fills `targets`.
    mask_prob: fraction of tokens (or words) chosen.
    keep_prob: fraction of the chosen that stay.
    random_prob: fraction of them that become random.
    first_random_id: random tokens are uniform over this id to the last.
    word_starts: bool [vocab_size] to choose whole words, or None.

  Returns:
    A `MaskedItem`.

  Raises:
    ValueError: an argument does not fit, or the item has a mask already.

  Example:
    >>> fairseq_mask([0, 5, 99, 191, 117, 254, 2], seed=1, epoch=1, index=0,
    ...              vocab_size=300, mask_id=299).targets.tolist()
    [1, 1, 1, 1, 1, 254, 1]
  """
  item = np.asarray(item)
  if item.ndim != 1 or item.dtype.kind not in 'iu':
    raise ValueError(
      f'item is {item.dtype} {list(item.shape)}; expected integers [n].'
    )
  masking.check_ids(item, vocab_size, mask_id)
  masking.check_fractions(mask_prob, keep_prob, random_prob)
  # Python's hash of a tuple of integers, which is the same in every process.
  generator = np.random.default_rng(int(hash((seed, epoch, index)) % 1e6))
  lengths = np.ones(len(item), np.int64)
  first = 0
  if word_starts is not None:
    starts = np.flatnonzero(np.asarray(word_starts, bool)[item])
    lengths = np.diff([*starts, len(item)])
    first = int(starts[0]) if len(starts) else len(item)
  units = len(lengths)
  count = int(mask_prob * units + generator.random())
  chosen = np.zeros(units, bool)
  chosen[generator.choice(units, count, replace=False)] = True

  def to_tokens(of_units):
    return np.concatenate([np.zeros(first, bool), np.repeat(of_units, lengths)])

  masked = to_tokens(chosen)
  targets = np.full(len(item), pad_id, item.dtype)
  targets[masked] = item[masked]
  keep = random = None
  other_prob = keep_prob + random_prob
  if other_prob > 0:
    other = chosen & (generator.random(units) < other_prob)
    if random_prob == 0:
      keep = other
    elif keep_prob == 0:
      random = other
    else:
      kept = generator.random(units) < keep_prob / other_prob
      keep, random = other & kept, other & ~kept
  if keep is not None:
    masked = masked & ~to_tokens(keep)
  inputs = item.copy()
  inputs[masked] = mask_id
  if random is not None:
    random = to_tokens(random)
    number = int(random.sum())
    if number:
      weights = np.ones(vocab_size)
      weights[:first_random_id] = 0
      weights /= weights.sum()
      inputs[random] = generator.choice(vocab_size, number, p=weights)
  return MaskedItem(inputs, targets)
