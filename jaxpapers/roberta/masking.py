"""Masking for the masked language model, on the device, inside jit.

Liu et al. (2019), sections 2.3 and 4.1. Of a sequence, 15 % of the tokens are
chosen; of these, 80 % become <mask>, 10 % a random token and 10 % stay. All
chosen ones are predicted. The choice is a function of a key, an epoch and the
number of the example, whatever batch or device the example is in, so a run that
resumes needs no state for it.

`masking_host` has the same on the host, number for number as fairseq draws it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Widths of static slots, in standard deviations of the number chosen.
_SIGMAS = 6.0
# Words differ in their number of tokens, so with whole words the number of
# tokens chosen varies more than that of independent tokens: by this factor in
# variance. Measured on English text, an exact number of words: 0.3 (RoBERTa's
# vocabulary) to 2.9 (300 to 4000 ids); words independent: 1.4 to 7.5.
_WORD_FACTOR = {True: 4.0, False: 8.0}
_THREEFRY = 'threefry2x32'
_LAST = np.uint32(1 << 31)


class MaskedBatch(NamedTuple):
  """A batch with masks, and what was under them.

  `weights` is 0 in slots that are not used; there `positions` and `targets`
  are valid but without meaning.

  Attributes:
    inputs: int32 [B, S], ids with masks.
    targets: int32 [B, K], the ids that were there.
    weights: float32 [B, K], 1 where there is something to predict.
    positions: int32 [B, K], where it is.
    overflow: int32 [B], tokens chosen beyond the K slots. They are neither
      masked nor predicted. Always 0 with an exact number of tokens.
  """

  inputs: jax.Array
  targets: jax.Array
  weights: jax.Array
  positions: jax.Array
  overflow: jax.Array


def example_keys(
  key: jax.Array,
  epoch: Any,
  example_ids: jax.Array,
  *,
  num_masks: int | None = None,
) -> jax.Array:
  """A key for each example of a batch, for `mask_tokens`.

  Args:
    key: typed key of the run.
    epoch: int scalar or [B]. Another epoch gives another mask: dynamic masking.
    example_ids: int [B], which example of the data each is.
    num_masks: for static masking, how many masks each example has: those of
      epoch modulo this number (the paper's BERT replication has 10). None for
      dynamic masking.

  Returns:
    Typed keys [B].

  Raises:
    ValueError: a shape or `num_masks` does not fit.

  Example:
    >>> ids = jnp.arange(3)
    >>> a, b, c = (example_keys(jax.random.key(0), e, ids, num_masks=10)
    ...            for e in (2, 12, 13))
    >>> bool((a == b).all()), bool((a == c).any())
    (True, False)
  """
  example_ids, epoch = jnp.asarray(example_ids), jnp.asarray(epoch)
  if example_ids.ndim != 1 or epoch.shape not in ((), example_ids.shape):
    raise ValueError(
      f'example_ids has shape {list(example_ids.shape)} and epoch'
      f' {list(epoch.shape)}; expected [B], and a scalar or [B].'
    )
  if num_masks is not None:
    if num_masks < 1:
      raise ValueError(f'num_masks is {num_masks}; expected None or >= 1.')
    epoch = epoch % num_masks
  key = _threefry(key)

  def fold(epoch, example):
    return jax.random.fold_in(jax.random.fold_in(key, epoch), example)

  return jax.vmap(fold, (0 if epoch.ndim else None, 0))(epoch, example_ids)


def num_slots(
  length: int,
  mask_prob: float = 0.15,
  *,
  exact: bool = True,
  whole_words: bool = False,
) -> int:
  """How many slots K `mask_tokens` has for a length, by default.

  An exact choice needs `ceil(mask_prob * length)`: 77 of 512. Where the number
  varies, six standard deviations are added (126 of 512 without whole words).

  Args:
    length: S.
    mask_prob: fraction of tokens.
    exact: as in `mask_tokens`.
    whole_words: whether `word_starts` is given.

  Returns:
    K, at most `length`.
  """
  # Not the next integer where the product is one, but for rounding.
  mean = mask_prob * length
  slots = math.ceil(mean - 1e-6)
  if whole_words or not exact:
    factor = _WORD_FACTOR[exact] if whole_words else 1.0
    variance = mean * (1 - mask_prob) * factor
    slots = math.ceil(mean + _SIGMAS * math.sqrt(variance) - 1e-6)
  return max(1, min(slots, length))


def mask_tokens(
  key: jax.Array,
  ids: jax.Array,
  valid: jax.Array,
  *,
  vocab_size: int,
  mask_id: int,
  mask_prob: float = 0.15,
  keep_prob: float = 0.1,
  random_prob: float = 0.1,
  first_random_id: int = 4,
  maskable: jax.Array | None = None,
  word_starts: jax.Array | None = None,
  exact: bool = True,
  max_masked: int | None = None,
) -> MaskedBatch:
  """Chooses tokens, masks them, and says what to predict where.

  By default as fairseq does: exactly `floor(mask_prob * n + u)` of the n tokens
  of a sequence, u uniform in [0, 1), without replacement, <s> and </s>
  included. HF's collator is `maskable=` all but specials, `exact=False` and
  `first_random_id=0`.

  Args:
    key: typed key, or one for each example [B], see `example_keys`.
    ids: int [B, S], without masks.
    valid: bool [B, S], False for padding, which is never chosen.
    vocab_size: of the tokenizer; random tokens are below it.
    mask_id: of <mask>.
    mask_prob: fraction chosen, in (0, 1).
    keep_prob: fraction of the chosen tokens that stay.
    random_prob: fraction of them that become random tokens.
    first_random_id: random tokens are uniform over this id to `vocab_size - 1`,
      <mask> included, as in fairseq.
    maskable: bool [B, S], what may be chosen; all valid ones by default.
    word_starts: bool [vocab_size], see `ByteLevelBPE.word_start_mask`. If
      given, whole words are chosen, and masked, kept or replaced as a whole.
      What follows a token that may not be chosen begins a word, too.
    exact: False chooses each token (or word) independently.
    max_masked: the slots K; by default `num_slots`.

  Returns:
    A `MaskedBatch`.

  Raises:
    ValueError: an argument does not fit; or, outside jit, an id is out of
      range or <mask> already.

  Example:
    >>> ids = jnp.arange(10, 30).reshape(1, 20)
    >>> masked = mask_tokens(
    ...   jax.random.key(0), ids, ids > 0, vocab_size=50, mask_id=49,
    ...   keep_prob=0.0, random_prob=0.0,
    ... )
    >>> int((masked.inputs == 49).sum()), int(masked.weights.sum())
    (3, 3)
    >>> bool((ids[0, masked.positions[0]] == masked.targets[0]).all())
    True
  """
  ids, valid = jnp.asarray(ids), jnp.asarray(valid)
  if not jnp.issubdtype(getattr(key, 'dtype', None), jax.dtypes.prng_key):
    raise ValueError('key is no typed key; make it with jax.random.key(seed).')
  _check(ids, valid, maskable, word_starts, vocab_size, mask_id)
  check_fractions(mask_prob, keep_prob, random_prob)
  if not 0 <= first_random_id < vocab_size:
    raise ValueError(
      f'first_random_id is {first_random_id}; expected 0 to {vocab_size - 1}.'
    )
  length = ids.shape[1]
  if max_masked is None:
    max_masked = num_slots(
      length, mask_prob, exact=exact, whole_words=word_starts is not None
    )
  if not 1 <= max_masked <= length:
    raise ValueError(f'max_masked is {max_masked}; expected 1 to {length}.')
  if not key.shape:
    key = jax.random.split(_threefry(key), ids.shape[0])
  elif jax.random.key_impl(key) != _THREEFRY:
    raise ValueError(
      f'key has one {jax.random.key_impl(key)} key for each example, whose'
      ' numbers would depend on the whole batch; make them with example_keys.'
    )
  elif key.shape != ids.shape[:1]:
    raise ValueError(
      f'key has shape {list(key.shape)}; expected a single key or one for each'
      f' of the {ids.shape[0]} examples.'
    )
  candidates = valid.astype(bool)
  if maskable is not None:
    candidates &= maskable
  options = dict(
    vocab_size=vocab_size,
    mask_id=mask_id,
    mask_prob=mask_prob,
    keep_prob=keep_prob,
    random_prob=random_prob,
    first_random_id=first_random_id,
    exact=exact,
    slots=max_masked,
  )
  ids = ids.astype(jnp.int32)
  if word_starts is None:
    return jax.vmap(lambda *row: _mask_row(*row, **options))(
      key, ids, candidates
    )
  # What follows something that may not be chosen begins a word, too: the first
  # word of a line, whose text has no space before it.
  before = jnp.pad(candidates, ((0, 0), (1, 0)))[:, :-1]
  starts = (jnp.asarray(word_starts)[ids] | ~before) & candidates
  return jax.vmap(lambda *row: _mask_words(*row, **options))(
    key, ids, candidates, starts
  )


def _mask_row(key, ids, candidates, *, mask_prob, exact, slots, **options):
  """`mask_tokens` of one sequence [S]."""
  length = len(ids)
  # All the random numbers of a sequence in one go.
  bits = _bits(key, length + 1 + 2 * slots)
  choice, bits = bits[:length], bits[length:]
  if exact:
    count = _draw_count(bits[0], candidates, mask_prob, slots)
    positions = _smallest(choice, candidates, slots)
    overflow = jnp.int32(0)
  else:
    chosen = candidates & (_uniform(choice) < mask_prob)
    positions, count, overflow = _compact(chosen, slots)
  return _replace(
    ids, positions, count, overflow, bits[1 : 1 + slots], bits[1 + slots :],
    **options,
  )  # fmt: skip


def _mask_words(
  key, ids, candidates, starts, *, mask_prob, exact, slots, **options
):
  """`mask_tokens` of one sequence [S], by whole words."""
  length = len(ids)
  bits = _bits(key, 2 * length + 1 + slots)
  choice, bits = bits[:length], bits[length:]
  word = jnp.cumsum(starts) - 1  # -1 before the first.
  exists = jnp.arange(length) <= word[-1]
  if exact:
    count = _draw_count(bits[0], exists, mask_prob, length)
    order = _smallest(choice, exists, length)
    chosen = jnp.zeros(length, bool).at[order].set(jnp.arange(length) < count)
  else:
    chosen = exists & (_uniform(choice) < mask_prob)
  chosen = chosen[word] & candidates & (word >= 0)
  positions, count, overflow = _compact(chosen, slots)
  return _replace(
    ids, positions, count, overflow, bits[1 : 1 + length][word[positions]],
    bits[1 + length :], **options,
  )  # fmt: skip


def _draw_count(bits, candidates, mask_prob, most):
  """floor(mask_prob * n + u), and never more than there are."""
  total = jnp.sum(candidates, dtype=jnp.int32)
  # float32 under x64 too, for the same masks.
  mean = np.float32(mask_prob) * total.astype(jnp.float32)
  count = jnp.floor(mean + _uniform(bits)).astype(jnp.int32)
  return jnp.minimum(count, jnp.minimum(total, most))


def _smallest(bits, candidates, slots):
  """Positions of the smallest bits among candidates, [slots], smallest first.

  One sort of plain integers, which every backend has a fast program for: random
  bits above, the position below. Candidates come before all others.
  """
  length = len(bits)
  low = (1 << max(1, (length - 1).bit_length())) - 1
  positions = jnp.arange(length, dtype=jnp.uint32)
  packed = (bits >> 1) & np.uint32(0xFFFFFFFF ^ low) | positions
  packed = jnp.sort(jnp.where(candidates, packed, packed | _LAST))
  return (packed[:slots] & np.uint32(low)).astype(jnp.int32)


def _compact(chosen, slots):
  """Positions of what is chosen, its number, and how many do not fit."""
  positions = _smallest(jnp.zeros(chosen.shape, jnp.uint32), chosen, slots)
  total = jnp.sum(chosen, dtype=jnp.int32)
  count = jnp.minimum(total, slots)
  return positions, count, total - count


def _replace(
  ids, positions, count, overflow, action_bits, random_bits, *,
  vocab_size, mask_id, keep_prob, random_prob, first_random_id,
):  # fmt: skip
  """Masks the first `count` of the positions."""
  used = jnp.arange(len(positions)) < count
  targets = ids[positions]
  action = _uniform(action_bits)
  # The bias of a remainder of 32 bits is below vocab_size / 2**32.
  span = np.uint32(vocab_size - first_random_id)
  replacement = (random_bits % span).astype(jnp.int32) + first_random_id
  new = jnp.where(action < keep_prob + random_prob, replacement, mask_id)
  new = jnp.where(action < keep_prob, targets, new)
  # Slots that are not used write nowhere.
  where = jnp.where(used, positions, len(ids))
  inputs = ids.at[where].set(new, mode='drop', unique_indices=False)
  weights = used.astype(jnp.float32)
  return MaskedBatch(inputs, targets, weights, positions, overflow)


def _threefry(key):
  """A key whose numbers are the same under vmap, which those of rbg are not."""
  if jax.random.key_impl(key) == _THREEFRY:
    return key
  seed = jax.random.bits(key, (2,), jnp.uint32)
  return jax.random.wrap_key_data(seed, impl=_THREEFRY)


def _bits(key, count):
  return jax.random.bits(key, (count,), jnp.uint32)  # Wider under x64, else.


def _uniform(bits):
  """Uniform in [0, 1), of 24 bits: exact in float32, and never 1."""
  return (bits >> 8).astype(jnp.float32) * np.float32(2.0**-24)


def check_fractions(
  mask_prob: float, keep_prob: float, random_prob: float
) -> None:
  """Checks the fractions of `mask_tokens`.

  Raises:
    ValueError: one is out of range.
  """
  if not 0 < mask_prob < 1:
    raise ValueError(f'mask_prob is {mask_prob}; expected 0 < mask_prob < 1.')
  if not (keep_prob >= 0 and random_prob >= 0 and keep_prob + random_prob <= 1):
    raise ValueError(
      f'keep_prob is {keep_prob} and random_prob {random_prob}; expected'
      ' fractions of what is chosen, with a sum of at most 1.'
    )


def _check(ids, valid, maskable, word_starts, vocab_size, mask_id):
  if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
    raise ValueError(
      f'ids is {ids.dtype} {list(ids.shape)}; expected integers [B, S].'
    )
  masks = {'valid': valid}
  if maskable is not None:
    masks['maskable'] = jnp.asarray(maskable)
  for name, mask in masks.items():
    if mask.shape != ids.shape or mask.dtype != bool:
      raise ValueError(
        f'{name} is {mask.dtype} {list(mask.shape)}; expected bool'
        f' {list(ids.shape)}, the shape of ids.'
      )
  if not 0 <= mask_id < vocab_size:
    raise ValueError(
      f'mask_id is {mask_id}; expected 0 to vocab_size - 1 = {vocab_size - 1}.'
    )
  if word_starts is not None:
    starts = jnp.asarray(word_starts)
    if starts.shape != (vocab_size,) or starts.dtype != bool:
      raise ValueError(
        f'word_starts is {starts.dtype} {list(starts.shape)}; expected bool'
        f' [vocab_size] = [{vocab_size}].'
      )
  if isinstance(ids, jax.core.Tracer) or isinstance(valid, jax.core.Tracer):
    return  # Values are not known under jit.
  check_ids(np.asarray(ids)[np.asarray(valid)], vocab_size, mask_id)


def check_ids(ids: np.ndarray, vocab_size: int, mask_id: int) -> None:
  """Checks on the host that ids can be masked.

  A device clamps or wraps what is out of range, silently.

  Args:
    ids: integers of any shape, without padding.
    vocab_size: of the tokenizer.
    mask_id: of <mask>.

  Raises:
    ValueError: an id is out of range, or <mask> already.
  """
  ids = np.asarray(ids)
  if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
    raise ValueError(
      f'ids reach from {ids.min()} to {ids.max()}; expected 0 to vocab_size - 1'
      f' = {vocab_size - 1}. Do tokenizer and model belong together?'
    )
  if (ids == mask_id).any():
    raise ValueError(
      f'ids contain <mask>, {mask_id}, before anything is masked. Is the batch'
      ' masked twice?'
    )
