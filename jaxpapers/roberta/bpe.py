"""Byte-level byte-pair encoding: GPT-2's, RoBERTa's, or one's own.

Radford et al. (2019); used unchanged by Liu et al. (2019), section 4.4. A text
is cut by a regular expression into words with the space before them, each word
is UTF-8 encoded, and pairs of neighbours are merged, best first. No text is
unknown, and `decode` gives back the exact text.

The work is done by the library `tokenizers`.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxpapers.data import files as data_files
from jaxpapers.roberta import bpe_files, bpe_words, text_files

_TRUNCATIONS = ('tail', 'longest_first')


class ByteLevelBPE:
  r"""A vocabulary and its merges: text to ids and back.

  Make one with `from_files`, `from_directory` or `train`. Instances can be
  pickled, for worker processes.

  Attributes:
    vocab_size: number of ids, those that no text produces included.
    bos_id, pad_id, eos_id, unk_id, mask_id: of <s>, <pad>, </s>, <unk>, <mask>.

  Example:
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> size = (folder / 'a.txt').write_text('low lower lowest\n' * 9)
    >>> bpe = ByteLevelBPE.train([folder / 'a.txt'], 270)
    >>> bpe.decode(bpe.encode('lower, höher'))
    'lower, höher'
    >>> bpe.encode_single('')
    [0, 2]
  """

  def __init__(
    self, vocabulary: dict[str, int], merges: Iterable[tuple[str, str]]
  ):
    """Args: token -> id, with the five specials; pairs, best first.

    Raises:
      ValueError: a special or the token of a merge is missing.
      ImportError: the library tokenizers is not installed.
    """
    lacking = [s for s in bpe_files.SPECIALS if s not in vocabulary]
    if lacking:
      raise ValueError(
        f'vocabulary lacks {", ".join(lacking)}; expected <s>, <pad>, </s>,'
        ' <unk> and <mask> among its tokens.'
      )
    self._vocabulary = dict(vocabulary)
    self._merges = list(merges)
    tokenizers = _tokenizers()
    try:
      model = tokenizers.models.BPE(self._vocabulary, self._merges)
    except Exception as error:  # The library raises no other class.
      raise ValueError(
        f'vocabulary and merges do not fit: {error}. Are both of one model?'
      ) from error
    self._tokenizer = tokenizers.Tokenizer(model)
    self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False
    )
    self._words = bpe_words.Words(
      lambda text: self._tokenizer.encode(text, add_special_tokens=False).ids
    )
    self.vocab_size = max(self._vocabulary.values()) + 1
    self.bos_id, self.pad_id, self.eos_id, self.unk_id, self.mask_id = (
      self._vocabulary[special] for special in bpe_files.SPECIALS
    )
    self._bytes = bpe_files.token_bytes(self._vocabulary, self.vocab_size)
    self._names = {index: name for name, index in self._vocabulary.items()}

  def __reduce__(self):
    return type(self), (self._vocabulary, self._merges)

  def __repr__(self) -> str:
    return f'ByteLevelBPE({self.vocab_size} ids, {len(self._merges)} merges)'

  @classmethod
  def from_files(
    cls, encoder_json: Any, vocab_bpe: Any, dict_txt: Any = None
  ) -> 'ByteLevelBPE':
    """Reads GPT-2's files, with fairseq's ids if its dictionary is given.

    fairseq's id is 4 + the line number of GPT-2's id in `dict.txt`, after
    <s> 0, <pad> 1, </s> 2 and <unk> 3; <mask> comes last. RoBERTa's has 50265.

    Args:
      encoder_json: token -> id.
      vocab_bpe: the merges.
      dict_txt: fairseq's dictionary. Without it a vocabulary that has the five
        specials is taken as it is, as HF's `vocab.json`; in one without them,
        the ids are 4 more than in the file, with the specials as fairseq has
        them.

    Returns:
      The tokenizer.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: one is damaged, or they do not belong together.
    """
    vocabulary = bpe_files.read_vocabulary(encoder_json)
    merges = bpe_files.read_merges(vocab_bpe)
    if dict_txt is not None:
      words = bpe_files.read_fairseq_dictionary(dict_txt)
      vocabulary = bpe_files.fairseq_vocabulary(
        vocabulary, words, str(dict_txt)
      )
    elif not any(s in vocabulary for s in bpe_files.SPECIALS):
      words = [str(index) for index in sorted(vocabulary.values())]
      vocabulary = bpe_files.fairseq_vocabulary(
        vocabulary, words, str(encoder_json)
      )
    return cls(vocabulary, merges)

  @classmethod
  def from_directory(cls, folder: Any) -> 'ByteLevelBPE':
    """Reads the tokenizer of a folder, whoever wrote it.

    Args:
      folder: local or a URL, with `vocab.json` and `merges.txt` (`save`, HF);
        or `encoder.json`, `vocab.bpe` and `dict.txt` (fairseq); or HF's
        `tokenizer.json`; or a corpus of `tokenize_corpus`.

    Returns:
      The tokenizer.

    Raises:
      FileNotFoundError: none of these is there.
      ValueError: they are damaged or do not belong together.
    """
    folder = data_files.as_path(folder)
    dictionary = data_files.find(folder, ['dict.txt'])
    for vocabulary, merges in (
      ('vocab.json', 'merges.txt'),
      ('encoder.json', 'vocab.bpe'),
    ):
      if (folder / vocabulary).exists() and (folder / merges).exists():
        return cls.from_files(
          folder / vocabulary,
          folder / merges,
          # An HF folder may keep fairseq's dictionary; its ids are mapped.
          dictionary if vocabulary == 'encoder.json' else None,
        )
    if (folder / 'tokenizer.json').exists():
      return cls(*bpe_files.read_tokenizer_json(folder / 'tokenizer.json'))
    if (folder / 'tokenizer').exists():
      return cls.from_directory(folder / 'tokenizer')
    raise data_files.missing(
      'A byte-level BPE',
      folder,
      '  vocab.json, merges.txt               (jaxpapers, HF)\n'
      '  encoder.json, vocab.bpe, dict.txt    (GPT-2, fairseq)\n'
      '  tokenizer.json                       (HF)',
    )

  @classmethod
  def train(
    cls,
    files: Any,
    vocab_size: int,
    min_frequency: int = 2,
    *,
    text_field: str = 'text',
    progress: bool = False,
  ) -> 'ByteLevelBPE':
    """Learns merges from text; the same files give the same merges.

    Args:
      files: one or several of text, JSON lines or Parquet, as for
        `tokenize_corpus`. Their order does not matter.
      vocab_size: of ids: 5 specials, 256 bytes and the merges. A text with
        fewer frequent pairs gives fewer; see `vocab_size` of the result.
      min_frequency: of a pair, to be merged.
      text_field: of JSON lines and Parquet.
      progress: whether to show bars.

    Returns:
      The tokenizer; <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> 4.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: the text is empty or not UTF-8, or a size is too small.
    """
    smallest = len(bpe_files.SPECIALS) + 256
    if vocab_size < smallest:
      raise ValueError(
        f'vocab_size is {vocab_size}; expected {smallest} or more: 5 specials'
        ' and 256 bytes come before the first merge.'
      )
    if min_frequency < 1:
      raise ValueError(f'min_frequency is {min_frequency}; expected >= 1.')
    paths = text_files.as_files(files)
    tokenizers = _tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False
    )
    trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=vocab_size,
      min_frequency=min_frequency,
      show_progress=progress,
      special_tokens=list(bpe_files.SPECIALS),
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = text_files.texts(paths, text_field=text_field)
    first = next((text for text in texts if text.strip()), None)
    if first is None:
      raise ValueError(
        f'files hold no text: {", ".join(map(str, paths[:3]))} are empty or'
        ' blank.'
      )
    tokenizer.train_from_iterator(itertools.chain([first], texts), trainer)
    model = json.loads(tokenizer.to_str())['model']
    return cls(model['vocab'], [tuple(pair) for pair in model['merges']])

  def save(self, folder: Any) -> None:
    """Writes `vocab.json`, `merges.txt` and `tokenizer_config.json`.

    `from_directory` reads them back, and so does HF's RobertaTokenizer.

    Args:
      folder: local or a URL; made if it is not there.
    """
    bpe_files.write_vocabulary(folder, self._vocabulary, self._merges)

  def fingerprint(self) -> str:
    """SHA-256 of ids and merges: equal for tokenizers that do the same."""
    content = hashlib.sha256()
    for token, index in sorted(self._vocabulary.items()):
      content.update(f'{index} {token}\n'.encode())
    for first, second in self._merges:
      content.update(f'{first} {second}\n'.encode())
    return content.hexdigest()

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without specials; '<s>' in it is text like any other.

    Args:
      text: any string that UTF-8 can encode.

    Returns:
      The ids, none for an empty text.

    Raises:
      ValueError: the text has a lone surrogate.
    """
    try:
      return self._words.encode(text)
    except (AttributeError, TypeError):
      bpe_words.check_text(text, 'text')
      raise

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of several texts.

    Args:
      texts: strings that UTF-8 can encode.

    Returns:
      A list of ids for each.

    Raises:
      ValueError: a text has a lone surrogate.
    """
    texts = list(texts)
    try:
      return [self._words.encode(text) for text in texts]
    except (AttributeError, TypeError):
      for number, text in enumerate(texts):
        bpe_words.check_text(text, f'texts[{number}]')
      raise

  def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of several texts, one after the other.

    Args:
      texts: strings that UTF-8 can encode.

    Returns:
      Ids, int32 [sum(sizes)]; how many of each text, int32 [len(texts)].

    Raises:
      ValueError: a text has a lone surrogate.
    """
    ids = self.encode_batch(texts)
    sizes = np.fromiter(map(len, ids), np.int32, len(ids))
    flat = itertools.chain.from_iterable(ids)
    return np.fromiter(flat, np.int32, int(sizes.sum())), sizes

  def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a text, and where in the text each comes from.

    Args:
      text: any string that UTF-8 can encode.

    Returns:
      Ids, int32 [n]; start and end, int32 [n, 2], counted in code points as
      Python and SQuAD do, such that `text[start:end]` is the token without the
      blanks before and after it. Tokens that are parts of one character have
      the span of that character; blank ones have an empty span at their end.

    Raises:
      ValueError: the text has a lone surrogate.
    """
    try:
      encoding = self._tokenizer.encode(text, add_special_tokens=False)
    except TypeError:
      bpe_words.check_text(text, 'text')
      raise
    spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    for span in spans:
      start, end = span
      while end > start and text[end - 1].isspace():
        end -= 1
      if start == end:
        span[0] = span[1]
        continue
      while text[start].isspace():
        start += 1
      span[:] = start, end
    return np.array(encoding.ids, np.int32), spans

  def encode_single(
    self, text: str, max_len: int | None = None, *, truncate: str = 'tail'
  ) -> list[int]:
    """Ids of `<s> text </s>`.

    Args:
      text: any string that UTF-8 can encode.
      max_len: most ids; None for no limit.
      truncate: 'tail' cuts the end off, `</s>` first, as fairseq does;
        'longest_first' shortens the text and keeps `</s>`, as BERT and HF do.

    Returns:
      The ids.

    Raises:
      ValueError: the text has a lone surrogate, or an argument does not fit.
    """
    return self._assemble([self.encode(text)], max_len, truncate)

  def encode_pair(
    self,
    first: str,
    second: str,
    max_len: int | None = None,
    *,
    truncate: str = 'tail',
  ) -> list[int]:
    """Ids of `<s> first </s> </s> second </s>`.

    Args:
      first: any string that UTF-8 can encode.
      second: the same.
      max_len: most ids; None for no limit.
      truncate: as in `encode_single`; 'longest_first' takes tokens from the
        end of the longer text, one at a time, from the second of equal ones.

    Returns:
      The ids.

    Raises:
      ValueError: a text has a lone surrogate, or an argument does not fit.
    """
    parts = self.encode_batch([first, second])
    return self._assemble(parts, max_len, truncate)

  def _assemble(self, parts, max_len, truncate):
    if truncate not in _TRUNCATIONS:
      raise ValueError(
        f'truncate is {truncate!r}; expected one of {_TRUNCATIONS}.'
      )
    specials = 2 * len(parts)
    if max_len is not None:
      if max_len < (1 if truncate == 'tail' else specials):
        raise ValueError(
          f'max_len is {max_len}; {specials} specials alone do not fit.'
        )
      if truncate == 'longest_first':
        excess = sum(map(len, parts)) + specials - max_len
        for _ in range(excess):
          max(reversed(parts), key=len).pop()
    ids = [self.bos_id, *parts[0], self.eos_id]
    for part in parts[1:]:
      ids += [self.eos_id, *part, self.eos_id]
    return ids[:max_len]

  def encode_masked(self, text: str) -> list[int]:
    """Ids of `<s> text </s>`, where '<mask>' in the text is the mask.

    The mask takes the place of a word and the space before it, as in fairseq's
    `fill_mask`.

    Args:
      text: a string with '<mask>' any number of times.

    Returns:
      The ids.

    Raises:
      ValueError: the text has a lone surrogate.
    """
    parts = text.split(bpe_files.MASK)
    parts = [part.rstrip() for part in parts[:-1]] + parts[-1:]
    ids = [self.bos_id]
    for part in self.encode_batch(parts):
      ids += [*part, self.mask_id]
    return [*ids[:-1], self.eos_id]

  def decode(self, ids: Iterable[int], *, keep_specials: bool = False) -> str:
    """Text of ids; bytes that are no UTF-8 become U+FFFD.

    Args:
      ids: integers in 0 .. vocab_size - 1.
      keep_specials: whether '<s>', '<mask>' and the like are shown; otherwise
        they are left out.

    Returns:
      The text.

    Raises:
      ValueError: an id is out of range.
    """
    parts = []
    for index in map(int, ids):
      part = self.token(index)
      if isinstance(part, bytes):
        parts.append(part)
      elif keep_specials:
        parts.append(part.encode('utf-8'))
    return b''.join(parts).decode('utf-8', errors='replace')

  def token(self, index: int) -> bytes | str:
    """The bytes of a token, or the name of a special.

    Args:
      index: an id.

    Returns:
      Bytes, part of a text; or such as '<mask>' and 'madeupword0000'.

    Raises:
      ValueError: the id is out of range.
    """
    if not 0 <= index < self.vocab_size:
      raise ValueError(
        f'id is {index}; expected 0 to vocab_size - 1, which is'
        f' {self.vocab_size - 1}.'
      )
    token = self._bytes[index]
    return self._names.get(index, '') if token is None else token

  def word_start_mask(self) -> np.ndarray:
    """Which ids begin a word, for whole-word masking.

    Those are specials and made-up words, and tokens that begin with a space.
    The first word of a line has none: it belongs to the special before it, as
    in fairseq.

    Returns:
      bool [vocab_size].
    """
    starts = [part is None or part.startswith(b' ') for part in self._bytes]
    return np.array(starts)


def _tokenizers():
  try:
    import tokenizers
  except ImportError as error:
    raise ImportError(
      'ByteLevelBPE needs the library tokenizers:'
      " pip install 'jaxpapers[roberta]'"
    ) from error
  return tokenizers
