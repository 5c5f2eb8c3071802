"""Input formats with next-sentence prediction: SEGMENT-PAIR, SENTENCE-PAIR.

BERT's formats, which Liu et al. (2019), section 4.2, compare with their own:
`<s> A </s> B </s>`, where B follows A in half of the pairs and comes from
another document in the others. A and B lose the </s> of their lines.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

KINDS = ('segment_pairs', 'sentence_pairs')
NUM_SPECIALS = 3
# A pair in the token stream. Segments are whole lines, their </s> removed, of
# which `skip` tokens are left out in front and `size` taken.
FIELDS = (
  *('a_start', 'a_stop', 'a_skip', 'a_size'),
  *('b_start', 'b_stop', 'b_skip', 'b_size'),
  'next',
)
_DRAWS = 1 << 16


class SentencePair(NamedTuple):
  """Two segments of text.

  Attributes:
    first: int32 [m], ids.
    second: int32 [n], ids.
    is_next: whether the second follows the first.
  """

  first: np.ndarray
  second: np.ndarray
  is_next: bool


def segment_pairs(
  docs: Sequence[Sequence[Sequence[int]]],
  block_size: int,
  rng: np.random.Generator,
  *,
  short_seq_prob: float = 0.0,
) -> list[SentencePair]:
  """SEGMENT-PAIR + NSP, BERT's input format.

  Lines of a document are taken until the sequence is full, and cut between two
  lines. With probability 1/2 the rest is the second segment; else that is text
  of another document, from a random line on, and the rest is used later. The
  longer segment is shortened, one token at a time at a random end, until both
  fit. A chunk of one line has a random second segment.

  Args:
    docs: documents, each a sequence of lines, each a sequence of ids.
    block_size: most tokens of a sequence, its three specials included.
    rng: numpy's generator.
    short_seq_prob: fraction of sequences with a random smaller length. BERT has
      .1; RoBERTa, here, 0.

  Returns:
    The pairs, in the order of the text.

  Raises:
    ValueError: there are fewer than two documents, none has two lines, or an
      argument makes no sense.

  Example:
    >>> docs = [[[5, 6], [7, 8]], [[9, 10], [11, 12]]]
    >>> pair = segment_pairs(docs, 7, np.random.default_rng(0))[0]
    >>> pair.first.tolist()
    [5, 6]
  """
  return _pairs(docs, block_size, rng, 'segment_pairs', short_seq_prob)


def sentence_pairs(
  docs: Sequence[Sequence[Sequence[int]]],
  block_size: int,
  rng: np.random.Generator,
) -> list[SentencePair]:
  """SENTENCE-PAIR + NSP: as `segment_pairs`, of single lines.

  Lines have to be sentences for that. Pairs are much shorter than a sequence:
  the paper takes more of them, for about the same number of tokens a batch.

  Args:
    docs: documents, each a sequence of lines, each a sequence of ids.
    block_size: most tokens of a sequence, its three specials included.
    rng: numpy's generator.

  Returns:
    The pairs, in the order of the text.

  Raises:
    ValueError: as in `segment_pairs`.
  """
  return _pairs(docs, block_size, rng, 'sentence_pairs', 0.0)


def documents_of(sizes: np.ndarray) -> np.ndarray:
  """First line and the one after the last of every document.

  Args:
    sizes: integers [lines], tokens of each line with its </s>; 1 separates.

  Returns:
    int64 [documents, 2].
  """
  separators = np.flatnonzero(np.asarray(sizes) == 1)
  firsts = np.concatenate([[0], separators + 1])
  lasts = np.concatenate([separators, [len(sizes)]])
  documents = np.stack([firsts, lasts], axis=1).astype(np.int64)
  return documents[lasts > firsts]


def pair_rows(
  sizes: np.ndarray,
  block_size: int,
  rng: np.random.Generator,
  kind: str,
  short_seq_prob: float = 0.0,
  *,
  chunk: int = _DRAWS,
) -> Iterator[np.ndarray]:
  """Pairs of a token stream, as positions in it.

  Args:
    sizes: integers [lines], tokens of each line with its </s>; 1 separates
      documents.
    block_size: as in `segment_pairs`.
    rng: numpy's generator.
    kind: of `KINDS`.
    short_seq_prob: as in `segment_pairs`.
    chunk: rows of an array.

  Yields:
    int64 [n, len(FIELDS)].

  Raises:
    ValueError: as in `segment_pairs`.
  """
  documents = documents_of(sizes)
  _check(documents, block_size, kind, short_seq_prob)
  ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
  draw = _uniforms(rng).__next__
  plan = _segments if kind == 'segment_pairs' else _sentences
  most = block_size - NUM_SPECIALS
  rows = []
  for index, (first, last) in enumerate(documents):
    for a, b, is_next in plan(
      sizes, documents, index, first, last, most, short_seq_prob, draw
    ):
      a_size, b_size = (
        int(ends[stop] - ends[start]) - (stop - start) for start, stop in (a, b)
      )
      a_less, b_less = _excess(a_size, b_size, most)
      rows.append(
        (
          *(ends[a[0]], ends[a[1]], _front(rng, a_less), a_size - a_less),
          *(ends[b[0]], ends[b[1]], _front(rng, b_less), b_size - b_less),
          is_next,
        )
      )
      if len(rows) == chunk:
        yield np.array(rows, np.int64)
        rows = []
  if rows:
    yield np.array(rows, np.int64)


def _segments(sizes, documents, index, first, last, most, short, draw):
  """Lines of A, lines of B, whether B follows, for one document."""
  lengths = (np.asarray(sizes[first:last], np.int64) - 1).tolist()
  line, count = 0, len(lengths)
  while line < count:
    target = most
    if short and draw() < short:
      target = 2 + int(draw() * (most - 1))
    stop, total = line, 0
    while stop < count and total < target:
      total += lengths[stop]
      stop += 1
    lines = stop - line
    cut = line + 1 if lines == 1 else line + 1 + int(draw() * (lines - 1))
    a = (first + line, first + cut)
    if lines > 1 and draw() >= 0.5:
      yield a, (first + cut, first + stop), 1
      line = stop
      continue
    wanted = target - sum(lengths[line:cut])
    start, end = _other_line(documents, index, draw)
    following, got = start, 0
    while following < end and (following == start or got < wanted):
      got += int(sizes[following]) - 1
      following += 1
    yield a, (start, following), 0
    line = cut


def _sentences(sizes, documents, index, first, last, most, short, draw):
  """As `_segments`, of single lines."""
  line = first
  while line < last:
    a = (line, line + 1)
    if line + 1 < last and draw() >= 0.5:
      yield a, (line + 1, line + 2), 1
      line += 2
    else:
      start, _ = _other_line(documents, index, draw)
      yield a, (start, start + 1), 0
      line += 1


def _other_line(documents, index, draw):
  """A random line of another document, and where that document ends."""
  other = int(draw() * (len(documents) - 1))
  first, last = documents[other + (other >= index)].tolist()
  return first + int(draw() * (last - first)), last


def _excess(a, b, most):
  """Tokens to take from each: the longer one gives, and b of equal ones."""
  excess = a + b - most
  if excess <= 0:
    return 0, 0
  first = min(excess, abs(a - b))
  half = (excess - first) // 2
  rest = excess - first - half
  return (first + half, rest) if a > b else (half, first + rest)


def _front(rng, less):
  """How many of these tokens go in front, each with probability 1/2."""
  return int(rng.binomial(less, 0.5)) if less else 0


def _uniforms(rng):
  while True:  # One by one they would take most of the time.
    yield from rng.random(_DRAWS).tolist()


def _pairs(docs, block_size, rng, kind, short_seq_prob):
  lines = []
  for doc in docs:
    if lines:
      lines.append(())
    lines.extend(line for line in doc if len(line))
  sizes = np.array([len(line) + 1 for line in lines], np.int64)
  marks = [np.append(np.asarray(line, np.int32), -1) for line in lines]
  stream = np.concatenate(marks) if marks else np.zeros(0, np.int32)
  found = []
  for rows in pair_rows(sizes, block_size, rng, kind, short_seq_prob):
    for row in rows:
      first, second = read_pair(row, lambda a, b: stream[a:b], -1)
      found.append(SentencePair(first, second, bool(row[-1])))
  return found


def read_pair(
  row: np.ndarray, read: Any, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """The two segments of a row of `pair_rows`.

  Args:
    row: int64 [len(FIELDS)].
    read: `read(start, stop)`, tokens of the stream.
    eos_id: of the </s> to be removed.

  Returns:
    Ids of both.
  """
  segments = []
  for start, stop, skip, size in (row[:4].tolist(), row[4:8].tolist()):
    ids = read(start, stop)
    segments.append(ids[ids != eos_id][skip : skip + size])
  return segments[0], segments[1]


def _check(documents, block_size, kind, short_seq_prob):
  if kind not in KINDS:
    raise ValueError(f'kind is {kind!r}; expected one of {KINDS}.')
  if block_size < NUM_SPECIALS + 2:
    raise ValueError(
      f'block_size is {block_size}; expected {NUM_SPECIALS + 2} or more: 3'
      ' specials, and a token of each segment.'
    )
  if not 0 <= short_seq_prob <= 1:
    raise ValueError(
      f'short_seq_prob is {short_seq_prob}; expected a probability.'
    )
  if len(documents) < 2:
    raise ValueError(
      f'the text has {len(documents)} document(s); next-sentence prediction'
      ' takes false continuations from another one, so it needs two or more.'
    )
  if (documents[:, 1] - documents[:, 0]).max() < 2:
    raise ValueError(
      f'each of the {len(documents)} documents has one line; next-sentence'
      ' prediction needs lines that follow others. Are blank lines between all'
      " lines? Then tokenize with document_rule='heading' or 'file'."
    )


def pair_arrays(
  pairs: Iterable[tuple[np.ndarray, np.ndarray]],
  length: int,
  *,
  bos_id: int,
  pad_id: int,
  eos_id: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Sequences `<s> A </s> B </s>` and their token types.

  Args:
    pairs: ids of A and B.
    length: of the padded sequences.
    bos_id: of <s>.
    pad_id: of <pad>.
    eos_id: of </s>.

  Returns:
    Ids, int32 [n, length]; types, int32 [n, length]: 1 for B and its </s>, 0
    for the others and for padding.
  """
  pairs = list(pairs)
  ids = np.full((len(pairs), length), pad_id, np.int32)
  types = np.zeros((len(pairs), length), np.int32)
  ids[:, 0] = bos_id
  for row, kinds, (a, b) in zip(ids, types, pairs):
    middle, end = len(a) + 1, len(a) + len(b) + 2
    row[1:middle] = a
    row[middle] = row[end] = eos_id
    row[middle + 1 : end] = b
    kinds[middle + 1 : end + 1] = 1
  return ids, types
