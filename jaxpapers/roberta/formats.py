"""Input formats of pre-training: which tokens make a sequence.

Liu et al. (2019), section 4.2. Text is a stream of lines, each with </s> at its
end; a line of nothing but </s> (size 1) separates documents. The functions here
cut the stream into slices, as fairseq's `TokenBlockDataset` does; `pairs` has
the two formats with next-sentence prediction.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

# Lines are packed so many at a time: memory stays small for any corpus.
_CHUNK = 1 << 20
LONG_LINES = ('split', 'truncate', 'drop')


def pack_full_sentences(sizes: Any, block_size: int) -> np.ndarray:
  """FULL-SENTENCES: whole lines, as many as fit, across documents.

  fairseq's `complete`. A line longer than a block is a block by itself; see
  `limit_slices`.

  Args:
    sizes: integers [lines], tokens of each line with its </s>. 1 is a line that
      separates documents; it stays in the stream.
    block_size: most tokens of a slice, without the <s> that comes before it:
      511 for sequences of 512.

  Returns:
    int64 [n, 2], first token and the one after the last, in the stream.

  Raises:
    ValueError: `sizes` or `block_size` makes no sense.

  Example:
    >>> pack_full_sentences([5, 6, 1, 20, 3], 12).tolist()
    [[0, 12], [12, 32], [32, 35]]
  """
  return _pack(sizes, block_size, documents=False)


def pack_doc_sentences(sizes: Any, block_size: int) -> np.ndarray:
  """DOC-SENTENCES: whole lines of one document, as many as fit.

  fairseq's `complete_doc`: as FULL-SENTENCES, but a slice ends with its
  document, and lines that separate documents are left out.

  Args:
    sizes: as in `pack_full_sentences`.
    block_size: the same.

  Returns:
    int64 [n, 2], the same.

  Raises:
    ValueError: `sizes` or `block_size` makes no sense.

  Example:
    >>> pack_doc_sentences([5, 6, 1, 20, 3], 12).tolist()
    [[0, 11], [12, 32], [32, 35]]
  """
  return _pack(sizes, block_size, documents=True)


def pack_stream(sizes: Any, block_size: int) -> np.ndarray:
  """Slices of a fixed number of tokens, whatever the lines: fairseq's `none`.

  Args:
    sizes: as in `pack_full_sentences`, or the number of all tokens.
    block_size: the same.

  Returns:
    int64 [n, 2], the same; the last slice may be shorter.

  Raises:
    ValueError: `sizes` or `block_size` makes no sense.

  Example:
    >>> pack_stream([5, 6, 1], 5).tolist()
    [[0, 5], [5, 10], [10, 12]]
  """
  _check_block_size(block_size)
  if np.ndim(sizes):
    sizes = _check_sizes(sizes).sum(dtype=np.int64)
  total = int(sizes)
  starts = np.arange(0, total, block_size, dtype=np.int64)
  return np.stack([starts, np.minimum(starts + block_size, total)], axis=1)


def pack_lines(sizes: Any) -> np.ndarray:
  """One slice for each line: fairseq's `eos`.

  Args:
    sizes: as in `pack_full_sentences`.

  Returns:
    int64 [lines, 2].

  Raises:
    ValueError: `sizes` makes no sense.

  Example:
    >>> pack_lines([5, 6, 1]).tolist()
    [[0, 5], [5, 11], [11, 12]]
  """
  stops = np.cumsum(_check_sizes(sizes), dtype=np.int64)
  return np.stack([np.append(np.int64(0), stops[:-1]), stops], axis=1)


def limit_slices(
  slices: np.ndarray, block_size: int, rule: str = 'split'
) -> np.ndarray:
  """Sees to it that no slice is longer than a block.

  Args:
    slices: int64 [n, 2], of a pack function.
    block_size: most tokens.
    rule: for longer ones. 'split' makes several, all of `block_size` but the
      last; 'truncate' keeps the beginning; 'drop' leaves them out.

  Returns:
    int64 [m, 2].

  Raises:
    ValueError: the rule is unknown.

  Example:
    >>> limit_slices(np.array([[0, 12], [12, 37]]), 12).tolist()
    [[0, 12], [12, 24], [24, 36], [36, 37]]
  """
  if rule not in LONG_LINES:
    raise ValueError(f'long_lines is {rule!r}; expected one of {LONG_LINES}.')
  lengths = slices[:, 1] - slices[:, 0]
  if not (lengths > block_size).any():
    return slices
  if rule == 'drop':
    return slices[lengths <= block_size]
  if rule == 'truncate':
    stops = slices[:, 0] + np.minimum(lengths, block_size)
    return np.stack([slices[:, 0], stops], axis=1)
  parts = -(-lengths // block_size)
  owner = np.repeat(np.arange(len(slices)), parts)
  within = np.arange(len(owner)) - (np.cumsum(parts) - parts)[owner]
  starts = slices[owner, 0] + within * block_size
  stops = np.minimum(starts + block_size, slices[owner, 1])
  return np.stack([starts, stops], axis=1)


def packed_chunks(
  sizes: Iterable[np.ndarray], block_size: int, *, documents: bool
) -> Iterator[np.ndarray]:
  """FULL- or DOC-SENTENCES of lines that come in chunks.

  A slice starts where the one before ends, so one decides about the next. But
  where a slice from a line would end is known for all lines at once, by one
  search in their cumulative sizes; what is left to do in turn is to follow
  these ends.

  Args:
    sizes: integers [lines of the chunk], any number of chunks.
    block_size: as in `pack_full_sentences`.
    documents: whether slices end with their document.

  Yields:
    int64 [n, 2], the slices that are complete after each chunk.
  """
  rest, offset = np.zeros(0, np.int64), 0
  for chunk in sizes:
    known = np.concatenate([rest, chunk.astype(np.int64, copy=False)])
    ends, follow, lines = _slice_ends(known, block_size, documents)
    slices, first = _follow(ends, follow, lines, last=False)
    yield _emit(slices, ends, follow, documents, offset)
    offset += int(ends[first])
    rest = known[first:]
  ends, follow, lines = _slice_ends(rest, block_size, documents)
  slices, _ = _follow(ends, follow, lines, last=True)
  yield _emit(slices, ends, follow, documents, offset)


def bucket_by_length(
  lengths: Any, buckets: Sequence[int] = (64, 128, 256, 512)
) -> dict[int, np.ndarray]:
  """Sorts sequences into a few lengths, so that little is padding.

  A jitted step compiles once for each; with `tokens // length` sequences of
  each length in a batch, all batches have about the same number of tokens.

  Args:
    lengths: integers [n], tokens of each sequence with its specials.
    buckets: padded lengths, increasing.

  Returns:
    Bucket -> int64 indices of the sequences of at most that length which fit no
    smaller one, increasing. Empty buckets are left out.

  Raises:
    ValueError: a sequence is longer than the last bucket, or these do not
      increase.

  Example:
    >>> {k: v.tolist() for k, v in bucket_by_length([3, 70, 64]).items()}
    {64: [0, 2], 128: [1]}
  """
  lengths, limits = np.asarray(lengths), np.asarray(buckets)
  if limits.ndim != 1 or not len(limits) or (np.diff(limits) <= 0).any():
    raise ValueError(f'buckets is {buckets}; expected increasing lengths.')
  if lengths.size and lengths.max() > limits[-1]:
    raise ValueError(
      f'lengths has {lengths.max()}; the longest of the buckets is'
      f' {limits[-1]}.'
    )
  which = np.searchsorted(limits, lengths)
  found = {int(b): np.flatnonzero(which == i) for i, b in enumerate(limits)}
  return {bucket: indices for bucket, indices in found.items() if len(indices)}


def _pack(sizes, block_size, documents):
  _check_block_size(block_size)
  sizes = _check_sizes(sizes)
  chunks = (sizes[i : i + _CHUNK] for i in range(0, len(sizes), _CHUNK))
  return np.concatenate(
    list(packed_chunks(chunks, block_size, documents=documents))
  )


def _slice_ends(sizes, block_size, documents):
  """Token offsets of lines, and the line after a slice from each line."""
  lines = len(sizes)
  ends = np.concatenate([[0], np.cumsum(sizes)])
  follow = np.searchsorted(ends, ends[:-1] + block_size, side='right') - 1
  # A line that does not fit is a slice by itself.
  follow = np.maximum(follow, np.arange(1, lines + 1))
  if documents:
    separator = sizes == 1
    there = np.where(separator, np.arange(lines), lines)
    following = np.minimum.accumulate(there[::-1])[::-1]
    follow = np.where(
      separator, np.arange(1, lines + 1), np.minimum(follow, following)
    )
  return ends, follow, lines


def _follow(ends, follow, lines, last):
  """First lines of the slices; and of the one that is not complete."""
  follow = follow.tolist()  # Much faster to index, one by one.
  firsts, line = [], 0
  while line < lines:
    end = follow[line]
    if end >= lines and not last:
      break  # Lines of the next chunk may belong to it.
    firsts.append(line)
    line = end
  return np.array(firsts, np.int64), line


def _emit(firsts, ends, follow, documents, offset):
  slices = np.stack([ends[firsts], ends[follow[firsts]]], axis=1)
  if documents:
    # Separators, and whatever has no more than an end.
    slices = slices[slices[:, 1] - slices[:, 0] > 1]
  return slices + offset


def _check_sizes(sizes):
  sizes = np.asarray(sizes)
  if sizes.size and (sizes.ndim != 1 or sizes.dtype.kind not in 'iu'):
    raise ValueError(
      f'sizes is {sizes.dtype} {list(sizes.shape)}; expected integers [lines].'
    )
  if not sizes.size or sizes.min() < 1:
    found = f'reaches down to {sizes.min()}' if sizes.size else 'is empty'
    raise ValueError(
      f'sizes {found}; expected one or more lines, of 1 token (their </s>) or'
      ' more.'
    )
  return sizes


def _check_block_size(block_size):
  if block_size < 2:
    raise ValueError(f'block_size is {block_size}; expected 2 or more.')
