"""BERT's WordPiece vocabulary: the paper's models are BERT's."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpapers.data import files

_SPECIALS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')


class WordPiece:
  """A vocabulary of BERT, used as `roberta.ByteLevelBPE` is.

  Needs the package `tokenizers`.

  Attributes:
    vocab_size: Number of ids.
    pad_id: Of [PAD].
    bos_id: Of [CLS].
    eos_id: Of [SEP].

  Example:
    >>> words = WordPiece.from_directory('bert-base')  # doctest: +SKIP
    >>> words.encode_pair('a cat', 'sat')  # doctest: +SKIP
    [101, 1037, 4937, 102, 2938, 102]
  """

  def __init__(self, vocab: dict[str, int], lowercase: bool = True):
    """Makes it from a vocabulary.

    Args:
      vocab: Token -> id, with [PAD], [UNK], [CLS] and [SEP]; '##' begins what
        goes on with a word.
      lowercase: Whether texts are lowered and accents taken off: the uncased
        models.

    Raises:
      ValueError: If a special token is missing.
    """
    for name in _SPECIALS:
      if name not in vocab:
        raise ValueError(f'vocab has no {name}; expected a vocabulary of BERT.')
    self._tokenizer = _tokenizer(vocab, lowercase)
    self.vocab_size = max(vocab.values()) + 1
    self.pad_id, _, self.bos_id, self.eos_id = (vocab[n] for n in _SPECIALS)

  @classmethod
  def from_directory(cls, folder: Any) -> 'WordPiece':
    """Reads vocab.txt and, where there is one, tokenizer_config.json.

    Args:
      folder: Of a BERT, as Hugging Face and Google distribute it.

    Returns:
      The vocabulary.

    Raises:
      FileNotFoundError: If there is no vocab.txt.
      CorruptFileError: If it is not a vocabulary of BERT.
    """
    folder = files.as_path(folder)
    path = folder / 'vocab.txt'
    if not path.exists():
      raise FileNotFoundError(f'There is no {path}, the vocabulary of a BERT.')
    lines = files.read_bytes(path).decode('utf-8').split('\n')
    lines = [line.rstrip('\r') for line in lines]
    if not lines[-1]:
      lines.pop()
    settings = folder / 'tokenizer_config.json'
    lowercase = True
    try:
      if settings.exists():
        lowercase = json.loads(settings.read_text()).get('do_lower_case', True)
      return cls({word: i for i, word in enumerate(lines)}, bool(lowercase))
    except (ValueError, AttributeError) as error:
      raise files.CorruptFileError(f'{path}: {error}') from error

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without special ones."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of several texts, without special ones."""
    found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in found]

  def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a text, and where in the text each comes from.

    Args:
      text: The text.

    Returns:
      Ids, int32 `[n]`; start and end in code points, int32 `[n, 2]`.
    """
    found = self._tokenizer.encode(text, add_special_tokens=False)
    spans = np.array(found.offsets, np.int32).reshape(-1, 2)
    return np.array(found.ids, np.int32), spans

  def encode_single(
    self, text: str, max_len: int | None = None, *, truncate: str = ''
  ) -> list[int]:
    """Ids of `[CLS] text [SEP]`.

    Args:
      text: The text.
      max_len: Most ids; None for no limit. The text loses its end.
      truncate: Ignored: it is what BERT does.

    Returns:
      The ids.
    """
    del truncate
    ids = self.encode(text)
    if max_len is not None:
      ids = ids[: max(max_len - 2, 0)]
    return [self.bos_id, *ids, self.eos_id]

  def encode_pair(
    self,
    first: str,
    second: str,
    max_len: int | None = None,
    *,
    truncate: str = '',
  ) -> list[int]:
    """Ids of `[CLS] first [SEP] second [SEP]`.

    Args:
      first: The first text.
      second: The second one.
      max_len: Most ids; the longer text loses its last, one after the other.
      truncate: Ignored: it is what BERT does.

    Returns:
      The ids.
    """
    del truncate
    first, second = self.encode_batch([first, second])
    if max_len is not None:
      room = max(max_len - 3, 0)
      while len(first) + len(second) > room:
        # Of equally long texts the second, as in the authors' code.
        (first if len(first) > len(second) else second).pop()
    return [self.bos_id, *first, self.eos_id, *second, self.eos_id]


def _tokenizer(vocab, lowercase):
  try:
    import tokenizers
  except ImportError as error:
    raise ImportError(
      "BERT's vocabulary needs tokenizers: pip install 'jaxpapers[adapters]'."
    ) from error
  made = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(vocab, unk_token='[UNK]')
  )
  made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
  made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  # A word in brackets in a text is no special token.
  return made
