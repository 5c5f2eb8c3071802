"""Sequences of a tokenised corpus, as a data source for `data.batches`.

Where each sequence begins and ends is found once, kept in a file beside the
corpus and mapped, so that neither the text nor this table has to fit in memory.
"""

import os
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxpapers.roberta import corpus as corpus_lib
from jaxpapers.roberta import formats, pairs

MODES = ('full', 'doc', 'stream', 'lines', *pairs.KINDS)


class BlockSource:
  """Padded sequences of a corpus: any of them at any time.

  Examples are dictionaries of

    ids             int32 [block_size]: <s>, the tokens, <pad> to the end
    example_id      int32, number of the sequence; masks depend on it
    token_type_ids  int32 [block_size], of pairs: 1 for the second segment
    next            int32, of pairs: whether the second follows the first

  Attributes:
    corpus: the `TokenCorpus`.
    mode, block_size: as given.

  Example:
    >>> source = BlockSource('tokens', 'full', 512)     # doctest: +SKIP
    >>> steps = data.batches(source, 256, seed=1)       # doctest: +SKIP
    >>> next(steps)['ids'].shape                        # doctest: +SKIP
    (256, 512)
  """

  def __init__(
    self,
    corpus: Any,
    mode: str = 'full',
    block_size: int = 512,
    *,
    long_lines: str = 'split',
    seed: int = 0,
    short_seq_prob: float = 0.0,
    cache: bool = True,
  ):
    """Finds the sequences, or reads where they are.

    Args:
      corpus: a `TokenCorpus` or its folder.
      mode: the format (Liu et al., section 4.2): 'full' and 'doc' sentences, a
        'stream' cut anywhere, single 'lines', 'segment_pairs' and
        'sentence_pairs' with next-sentence prediction.
      block_size: of a sequence, its specials included.
      long_lines: what becomes of a line that is longer than a sequence: 'split'
        makes several, 'truncate' keeps the beginning, 'drop' leaves it out.
      seed: of the choices of pairs.
      short_seq_prob: of segment pairs, see `segment_pairs`.
      cache: whether to keep the table in the corpus' folder. Where that cannot
        be written to, the table is in memory.

    Raises:
      FileNotFoundError: the folder holds no complete corpus.
      ValueError: an argument makes no sense, or there is no sequence.
    """
    if mode not in MODES:
      raise ValueError(f'mode is {mode!r}; expected one of {MODES}.')
    if block_size < 3:
      raise ValueError(
        f'block_size is {block_size}; expected 3 or more: <s> and two tokens.'
      )
    if long_lines not in formats.LONG_LINES:
      raise ValueError(
        f'long_lines is {long_lines!r}; expected one of {formats.LONG_LINES}.'
      )
    if not isinstance(corpus, corpus_lib.TokenCorpus):
      corpus = corpus_lib.TokenCorpus(corpus)
    self.corpus, self.mode, self.block_size = corpus, mode, int(block_size)
    self.pairs = mode in pairs.KINDS
    self._width = len(pairs.FIELDS) if self.pairs else 2
    self._options = (long_lines, int(seed), float(short_seq_prob))
    self._path = self._table = None
    if mode == 'stream':
      self._length = -(-corpus.num_tokens // (self.block_size - 1))
    else:
      self._open_table(cache)
      self._length = len(self._rows())
    if not self._length:
      raise ValueError(
        f'{corpus.folder} has no sequence of the mode {mode!r}: long_lines is'
        f' {long_lines!r}, and all lines are longer than {block_size - 1}.'
      )
    if self._length >= 2**31:
      raise ValueError(
        f'{self._length} sequences have no int32 numbers; divide the corpus.'
      )

  def __len__(self) -> int:
    return self._length

  def __repr__(self) -> str:
    return (
      f'BlockSource({len(self):,} sequences of {self.block_size}, {self.mode})'
    )

  def __getstate__(self):
    # Workers map the file themselves; only a table in memory is sent.
    table = self._table if self._path is None else None
    return {**self.__dict__, '_table': table}

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    batch = self.take(np.array([range(len(self))[index]]))
    return {name: value[0] for name, value in batch.items()}

  def take(
    self, indices: np.ndarray, length: int | None = None
  ) -> dict[str, np.ndarray]:
    """The sequences of some numbers.

    Args:
      indices: integers [n].
      length: of the arrays, instead of `block_size`; no sequence may be longer.

    Returns:
      The dictionary of arrays [n, ...].
    """
    indices = np.asarray(indices)
    length = length or self.block_size
    corpus = self.corpus
    if self.pairs:
      rows = self._rows()[indices]
      ids, types = pairs.pair_arrays(
        (pairs.read_pair(row, corpus.tokens, corpus.eos_id) for row in rows),
        length,
        bos_id=corpus.bos_id,
        pad_id=corpus.pad_id,
        eos_id=corpus.eos_id,
      )
      extra = {'token_type_ids': types, 'next': rows[:, -1].astype(np.int32)}
    else:
      ids = np.full((len(indices), length), corpus.pad_id, np.int32)
      ids[:, 0] = corpus.bos_id
      for row, (start, stop) in zip(ids, self._slices(indices).tolist()):
        row[1 : 1 + stop - start] = corpus.tokens(start, stop)
      extra = {}
    return {'ids': ids, 'example_id': indices.astype(np.int32), **extra}

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of every sequence, specials included, without padding: int32."""
    if self.pairs:
      rows = self._rows()
      sizes = rows[:, 3] + rows[:, 7] + pairs.NUM_SPECIALS
    else:
      slices = self._slices(np.arange(len(self)))
      sizes = slices[:, 1] - slices[:, 0] + 1
    return sizes.astype(np.int32)

  def buckets(self, lengths: Sequence[int] = (64, 128, 256, 512)) -> list[Any]:
    """A source for each of a few lengths, see `bucket_by_length`.

    Examples keep their `example_id`.

    Args:
      lengths: increasing; the last is `block_size` or more.

    Returns:
      Sources with the attribute `block_size`; those without sequences are left
      out.

    Raises:
      ValueError: a sequence is longer than all of them.
    """
    found = formats.bucket_by_length(self.lengths, lengths)
    return [_Bucket(self, length, indices) for length, indices in found.items()]

  def _slices(self, indices):
    if self.mode != 'stream':
      return self._rows()[indices]
    size = self.block_size - 1
    starts = indices.astype(np.int64) * size
    stops = np.minimum(starts + size, self.corpus.num_tokens)
    return np.stack([starts, stops], axis=1)

  def _rows(self):
    if self._table is None:
      array = corpus_lib.open_array(self._path, np.dtype('<i8'))
      self._table = array.reshape(-1, self._width)
    return self._table

  def _open_table(self, cache):
    """Maps the table, made now if it is not there."""
    long_lines, seed, short = self._options
    options = f'{seed}-{short:g}' if self.pairs else long_lines
    name = f'{self.mode}-{self.block_size}-{options}'
    folder = self.corpus.folder / 'blocks'
    path = folder / f'{name}-{self.corpus.fingerprint[:16]}.table'
    if cache and path.exists():
      self._path = path
      return
    if cache and '://' not in str(path):
      try:
        folder.mkdir(exist_ok=True)
        temporary = folder / f'.{path.name}.{secrets.token_hex(4)}'
        file = temporary.open('wb')
      except OSError:
        pass  # A corpus of somebody else, or on a disk that is read only.
      else:
        try:
          with file:
            for rows in self._make_rows():
              file.write(rows.astype('<i8').tobytes())
          os.replace(temporary, path)
        except BaseException:
          temporary.unlink()
          raise
        self._path = path
        return
    self._table = np.concatenate(list(self._make_rows()))

  def _make_rows(self) -> Iterator[np.ndarray]:
    long_lines, seed, short = self._options
    corpus, most = self.corpus, self.block_size - 1
    if self.pairs:
      generator = np.random.default_rng(seed)
      yield from pairs.pair_rows(
        corpus.line_sizes(), self.block_size, generator, self.mode, short
      )
      return
    chunks = corpus.line_size_chunks()
    if self.mode == 'lines':
      slices = _line_chunks(chunks)
    else:
      documents = self.mode == 'doc'
      slices = formats.packed_chunks(chunks, most, documents=documents)
    for chunk in slices:
      chunk = formats.limit_slices(chunk, most, long_lines)
      # A lone </s>: an empty line, or what is left of one that was split.
      yield chunk[chunk[:, 1] - chunk[:, 0] > 1]


class _Bucket:
  """The sequences of a source that fit a length."""

  def __init__(self, source, length, indices):
    self._source, self._indices = source, indices
    self.block_size, self.corpus = length, source.corpus

  def __len__(self):
    return len(self._indices)

  def __repr__(self):
    return f'{len(self):,} sequences up to {self.block_size} of {self._source}'

  def __getitem__(self, index):
    batch = self.take(np.array([range(len(self))[index]]))
    return {name: value[0] for name, value in batch.items()}

  def take(self, indices):
    return self._source.take(self._indices[indices], self.block_size)


def _line_chunks(chunks):
  offset = 0
  for sizes in chunks:
    slices = formats.pack_lines(sizes) + offset
    offset = int(slices[-1, 1])
    yield slices
