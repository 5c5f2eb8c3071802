"""Text in streams, and CMUdict: what the experiments read."""

import collections
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from etils import epath

__all__ = [
  'StreamBatches',
  'encode_lines',
  'read_bytes',
  'read_cmudict',
  'read_vocabulary',
  'tokenizer',
]

EOS, UNKNOWN = 1, 3
# <s> </s> <pad> <unk> and ten words that XLM keeps free.
SPECIAL = 14
LETTERS = "abcdefghijklmnopqrstuvwxyz'"


def read_bytes(paths: list[str | os.PathLike]) -> np.ndarray:
  """The bytes of files, one after the other, as ids below 256.

  Raises:
    ValueError: If they hold nothing.
  """
  text = b''.join(epath.Path(path).read_bytes() for path in paths)
  if not text:
    raise ValueError(f'paths {[str(p) for p in paths]} hold no text.')
  return np.frombuffer(text, np.uint8)


def read_vocabulary(path: str | os.PathLike) -> dict[str, int]:
  """Ids of tokens, from lines "token count" in XLM's format.

  Ids 0 to 13 are `<s>`, `</s>`, `<pad>`, `<unk>` and special words; the file's
  tokens follow in its order.

  Args:
    path: UTF-8 file.

  Returns:
    Token -> id, without the special ones.

  Raises:
    ValueError: If a line is not a token and a count.
  """
  ids: dict[str, int] = {}
  text = epath.Path(path).read_text(encoding='utf-8')
  for number, line in enumerate(text.split('\n'), 1):
    if not line:
      continue
    token, _, count = line.rpartition(' ')
    if not token or not count.isdecimal() or token in ids:
      raise ValueError(
        f'{path}, line {number} is {line!r}; expected a new token, a space and'
        ' its count.'
      )
    ids[token] = SPECIAL + len(ids)
  return ids


def encode_lines(
  paths: list[str | os.PathLike], vocabulary: Mapping[str, int]
) -> np.ndarray:
  """Ids of sentences, one a line, tokens with spaces between them.

  Each sentence ends with `</s>`; tokens that are not in the vocabulary are
  `<unk>`.

  Args:
    paths: UTF-8 files.
    vocabulary: Token -> id.

  Returns:
    uint16 where all ids fit, else int32.

  Raises:
    ValueError: If the files hold no token.
  """
  ids: list[int] = []
  for path in paths:
    for line in epath.Path(path).read_text(encoding='utf-8').split('\n'):
      tokens = line.split()
      if tokens:
        ids.extend(vocabulary.get(token, UNKNOWN) for token in tokens)
        ids.append(EOS)
  if not ids:
    raise ValueError(f'paths {[str(p) for p in paths]} hold no text.')
  largest = max(vocabulary.values(), default=SPECIAL)
  return np.asarray(ids, np.uint16 if largest < 2**16 else np.int32)


def tokenizer(
  vocabulary: str | os.PathLike,
) -> tuple[int, int, Callable[[list[str | os.PathLike]], np.ndarray]]:
  """How text becomes ids.

  Args:
    vocabulary: 'bytes', or a file for `read_vocabulary`.

  Returns:
    Number of tokens; id that fills up streams, the end of a sentence, which in
    bytes is a line break; and a function from files to ids.

  Example:
    >>> tokenizer('bytes')[:2]
    (256, 10)
  """
  if vocabulary == 'bytes':
    return 256, ord('\n'), read_bytes
  words = read_vocabulary(vocabulary)
  read = functools.partial(encode_lines, vocabulary=words)
  return SPECIAL + len(words), EOS, read


class StreamBatches:
  """Blocks of a text that was cut into parallel streams, as XLM does.

  The text is filled up in front with end-of-sentence to whole blocks, and cut
  into `batch_size` streams; block i holds the same places of each. Targets are
  the tokens that follow; the first block begins with an end-of-sentence.
  Training draws blocks in an order that is new in every epoch.
  """

  def __init__(
    self,
    tokens: np.ndarray,
    batch_size: int,
    length: int,
    *,
    seed: int | None = None,
    fill: int = EOS,
    share: tuple[int, int] = (0, 1),
  ):
    """Cuts the text.

    Args:
      tokens: Ids `[n]`.
      batch_size: Streams, over all processes.
      length: Tokens of a block in each stream.
      seed: Of the order; None goes through the blocks once, in order.
      fill: Id to fill up with.
      share: This process's number, and how many there are.

    Raises:
      ValueError: If there are no tokens, sizes are below 1, or processes do not
        divide the batch.
    """
    for name, value in (('batch_size', batch_size), ('length', length)):
      if value < 1:
        raise ValueError(f'{name} is {value}; expected 1 or more.')
    if not len(tokens):
      raise ValueError('tokens is empty; expected one id or more.')
    index, processes = share
    if batch_size % processes:
      raise ValueError(
        f'batch_size is {batch_size}; expected a multiple of the {processes}'
        ' processes.'
      )
    size = batch_size * length
    self.steps_per_epoch = -(-len(tokens) // size)
    filled = np.full(self.steps_per_epoch * size, fill, tokens.dtype)
    filled[len(filled) - len(tokens) :] = tokens
    streams = filled.reshape(batch_size, -1)
    part = batch_size // processes
    streams = streams[index * part : (index + 1) * part]
    first = np.full((part, 1), fill, tokens.dtype)
    self._streams = np.concatenate([first, streams], axis=1)
    self._length = length
    self._seed = seed
    self._step = 0

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    epoch, place = divmod(self._step, self.steps_per_epoch)
    if self._seed is None:
      if epoch:
        raise StopIteration
    else:
      random = np.random.default_rng((self._seed, epoch))
      place = random.permutation(self.steps_per_epoch)[place]
    self._step += 1
    start = place * self._length
    block = self._streams[:, start : start + self._length + 1].astype(np.int32)
    return {'inputs': block[:, :-1], 'targets': block[:, 1:]}

  def get_state(self) -> dict[str, int]:
    """Where it is, for a checkpoint."""
    return {'step': self._step}

  def set_state(self, state: Mapping[str, int]) -> None:
    """Goes on from there."""
    self._step = int(state['step'])


def read_cmudict(
  path: str | os.PathLike,
  *,
  letters: int = 16,
  phones: int = 12,
  test_share: float = 0.1,
  seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
  """Spellings and pronunciations of words, split at random.

  Lines whose word is not of the letters a-z and ' are left out, which are the
  second pronunciations, "word(2)", among others; so are long ones. Stress is
  stripped from vowels.

  Args:
    path: `cmudict.dict`.
    letters: Longest word.
    phones: Longest pronunciation.
    test_share: Share of words that is held out.
    seed: Of the split.

  Returns:
    Training and test words, each `{'letters': int32 [n, letters],
    'phones': int32 [n, phones]}`, filled up with the id behind the last letter
    or phone; and the phones in the order of their ids.

  Raises:
    ValueError: If no line is a word and its phones.
  """
  found = []
  text = epath.Path(path).read_text(encoding='utf-8')
  for line in text.splitlines():
    word, *sounds = line.partition('#')[0].split() or ['']
    if not sounds or not re.fullmatch("[a-z']+", word):
      continue
    if len(word) <= letters and len(sounds) <= phones:
      found.append((word, [sound.rstrip('012') for sound in sounds]))
  if not found:
    raise ValueError(
      f'{path} has no line of a word and its phones; expected cmudict.dict.'
    )
  counts = collections.Counter(p for _, sounds in found for p in sounds)
  names = sorted(counts)
  ids = {name: i for i, name in enumerate(names)}
  spelled = np.full((len(found), letters), len(LETTERS), np.int32)
  spoken = np.full((len(found), phones), len(names), np.int32)
  for row, (word, sounds) in enumerate(found):
    spelled[row, : len(word)] = [LETTERS.index(c) for c in word]
    spoken[row, : len(sounds)] = [ids[p] for p in sounds]
  order = np.random.default_rng(seed).permutation(len(found))
  held = len(found) - int(len(found) * (1 - test_share))
  parts = order[: len(found) - held], order[len(found) - held :]
  train, test = (
    {'letters': spelled[part], 'phones': spoken[part]} for part in parts
  )
  return train, test, names
