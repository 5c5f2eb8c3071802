"""A tokenised corpus on disk: memory-mapped tokens, and where lines end.

`tokenization.tokenize_corpus` writes the folder:

  index.json         what it is; written last, so a folder with it is complete
  shard-00000.tokens ids of the shard's lines, each line with </s> at its end
  shard-00000.lines  tokens of each line, uint32; 1 separates documents
  shard-00000.json   what it was made from; a shard with it is complete
  tokenizer/         vocab.json, merges.txt
  blocks/            where sequences begin and end, see `blocks`

Tokens are little-endian uint16, or uint32 where the vocabulary is larger.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxpapers.data import files as data_files

INDEX = 'index.json'
FORMAT = 1


class TokenCorpus:
  """The tokens of a corpus, as one stream.

  Nothing but the index is read before it is needed, and pages that are read are
  the system's to forget: a corpus can be larger than the memory. Instances can
  be pickled, for worker processes.

  Attributes:
    folder: where it is.
    fingerprint: equal for equal content.
    num_tokens, num_lines, num_documents: of all shards.
    vocab_size, bos_id, pad_id, eos_id, mask_id: of the tokenizer.

  Example:
    >>> corpus = TokenCorpus('wikitext_tokens')    # doctest: +SKIP
    >>> corpus.tokens(0, 5)                        # doctest: +SKIP
    array([ 5457,  1957, 24214,  5457,     2], dtype=int32)
  """

  def __init__(self, folder: Any):
    """Opens the folder that `tokenize_corpus` wrote.

    Raises:
      FileNotFoundError: it is not there, or not complete.
      CorruptFileError: a file is damaged or does not fit the index.
    """
    self.folder = data_files.as_path(folder)
    index = _read_index(self.folder)
    self.index = index
    self.fingerprint = index['fingerprint']
    for name in ('vocab_size', 'bos_id', 'pad_id', 'eos_id', 'mask_id'):
      setattr(self, name, index['tokenizer'][name])
    for name in ('num_tokens', 'num_lines', 'num_documents'):
      setattr(self, name, index[name])
    self._dtype = np.dtype(index['dtype'])
    self._names = [shard['name'] for shard in index['shards']]
    # First token and first line of each shard, and the ends.
    self._tokens_at = _starts(index['shards'], 'tokens')
    self._lines_at = _starts(index['shards'], 'lines')
    self._arrays = {}
    for shard in index['shards']:
      self._check(shard)

  def _check(self, shard):
    for suffix, count, width in (
      ('tokens', shard['tokens'], self._dtype.itemsize),
      ('lines', shard['lines'], 4),
    ):
      path = self.folder / f'{shard["name"]}.{suffix}'
      if not path.exists():
        raise FileNotFoundError(
          f'{path} was not found, which {INDEX} lists. Copy the whole folder.'
        )
      if data_files.size(path) != count * width:
        raise data_files.CorruptFileError(
          f'{path} has {data_files.size(path):,} bytes; expected'
          f' {count * width:,}. Is the copy complete?'
        )

  def __getstate__(self):
    return {**self.__dict__, '_arrays': {}}

  def __repr__(self) -> str:
    return (
      f'TokenCorpus({str(self.folder)!r}: {self.num_tokens:,} tokens,'
      f' {self.num_lines:,} lines, {self.num_documents:,} documents)'
    )

  def load_tokenizer(self) -> Any:
    """The `ByteLevelBPE` that it was tokenised with."""
    from jaxpapers.roberta import bpe

    return bpe.ByteLevelBPE.from_directory(self.folder / 'tokenizer')

  def tokens(self, start: int, stop: int) -> np.ndarray:
    """Part of the stream of tokens.

    Args:
      start: first token, 0 .. num_tokens.
      stop: the one after the last.

    Returns:
      int32 [stop - start].

    Raises:
      IndexError: the range is not in the corpus.
    """
    if not 0 <= start <= stop <= self.num_tokens:
      raise IndexError(
        f'tokens {start} to {stop} are out of range: the corpus has'
        f' {self.num_tokens}.'
      )
    return self._read('tokens', self._tokens_at, start, stop)

  def line_sizes(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Number of tokens of lines, each with its </s>; 1 separates documents.

    Args:
      start: first line.
      stop: the one after the last, by default of all.

    Returns:
      int32 [lines].

    Raises:
      IndexError: the range is not in the corpus.
    """
    stop = self.num_lines if stop is None else stop
    if not 0 <= start <= stop <= self.num_lines:
      raise IndexError(
        f'lines {start} to {stop} are out of range: the corpus has'
        f' {self.num_lines}.'
      )
    return self._read('lines', self._lines_at, start, stop)

  def line_size_chunks(self, lines: int = 1 << 20) -> Iterator[np.ndarray]:
    """`line_sizes` of all lines, so many at a time."""
    for start in range(0, self.num_lines, lines):
      yield self.line_sizes(start, min(start + lines, self.num_lines))

  def documents(self) -> Iterator[list[np.ndarray]]:
    """The documents, each a list of lines.

    Yields:
      List of int32 arrays, ids without </s>.
    """
    start, document = 0, []
    for sizes in self.line_size_chunks(1 << 16):
      ends = start + np.cumsum(sizes, dtype=np.int64)
      ids = self.tokens(start, int(ends[-1]))
      for line in np.split(ids, ends[:-1] - start):
        if len(line) > 1:
          document.append(line[:-1])
        elif document:
          yield document
          document = []
      start = int(ends[-1])
    if document:
      yield document

  def _read(self, kind, starts, start, stop):
    shard = int(np.searchsorted(starts, start, side='right')) - 1
    shard = min(shard, len(self._names) - 1)
    parts = []
    while True:
      first = int(starts[shard])
      array = self._array(shard, kind)
      parts.append(array[start - first : stop - first])
      start = min(stop, int(starts[shard + 1]))
      if start == stop:
        break
      shard += 1
    if len(parts) == 1:
      return parts[0].astype(np.int32)
    return np.concatenate(parts).astype(np.int32)

  def _array(self, shard, kind):
    found = self._arrays.get((shard, kind))
    if found is None:
      path = self.folder / f'{self._names[shard]}.{kind}'
      dtype = self._dtype if kind == 'tokens' else np.dtype('<u4')
      found = self._arrays[shard, kind] = open_array(path, dtype)
    return found


def open_array(path: Any, dtype: Any) -> np.ndarray:
  """The numbers of a file, [n]: mapped if it is local, else read."""
  if not data_files.size(path):
    return np.zeros(0, dtype)  # Nothing cannot be mapped.
  if '://' in str(path):
    return np.frombuffer(path.read_bytes(), dtype)
  # A plain array: slices of np.memmap are slow to make.
  return np.asarray(np.memmap(path, dtype, mode='r'))


def _starts(shards, kind):
  counts = [shard[kind] for shard in shards]
  return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _read_index(folder):
  path = folder / INDEX
  if not path.exists():
    started = folder.exists() and any(folder.glob('shard-*'))
    raise FileNotFoundError(
      f'{folder} holds no tokenised corpus: {INDEX} is missing. '
      + (
        'Tokenising it has not come to its end; the same command goes on.'
        if started
        else 'Write one with roberta_tokenize or tokenize_corpus.'
      )
    )
  try:
    index = json.loads(path.read_text())
    version = index['format']
  except (ValueError, KeyError, TypeError) as error:
    raise data_files.CorruptFileError(
      f'{path} is no index of a tokenised corpus ({error!r}).'
    ) from error
  if version != FORMAT:
    raise data_files.CorruptFileError(
      f'{path} has the format {version}; this version reads {FORMAT}. Tokenize'
      ' again.'
    )
  return index
