"""Vocabularies of byte-level BPE on disk: GPT-2's, fairseq's and HF's files."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpapers.data import files

BOS, PAD, EOS, UNK, MASK = '<s>', '<pad>', '</s>', '<unk>', '<mask>'
# In the order of the ids that a vocabulary of one's own gives them.
SPECIALS = (BOS, PAD, EOS, UNK, MASK)


def byte_alphabet() -> dict[str, int]:
  """Character -> byte, for the characters in which BPE files write bytes.

  Printable bytes stand for themselves; the other 68, in increasing order, are
  U+0100 and on, so that a space is 'Ġ' and a newline 'Ċ'.

  Returns:
    256 entries.

  Example:
    >>> byte_alphabet()['Ġ']
    32
  """
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = [byte for byte in range(256) if byte not in printable]
  alphabet = {chr(byte): byte for byte in sorted(printable)}
  alphabet.update({chr(0x100 + n): byte for n, byte in enumerate(others)})
  return alphabet


def read_vocabulary(path: Any) -> dict[str, int]:
  """Token -> id of an `encoder.json` or `vocab.json`.

  Args:
    path: file, local or a URL.

  Returns:
    The mapping; ids are distinct and not negative.

  Raises:
    FileNotFoundError: there is no such file.
    CorruptFileError: it is no JSON object of distinct ids.
  """
  vocabulary = _json(path)
  return check_vocabulary(vocabulary, str(path))


def check_vocabulary(vocabulary: Any, name: str) -> dict[str, int]:
  """The vocabulary, if it is a mapping to distinct ids.

  Raises:
    CorruptFileError: it is not.
  """
  if not isinstance(vocabulary, dict) or not vocabulary:
    raise files.CorruptFileError(
      f'{name}: expected a JSON object that maps tokens to ids.'
    )
  for token, index in vocabulary.items():
    if type(index) is not int or index < 0:
      raise files.CorruptFileError(
        f'{name}: token {token!r} has the id {index!r}; expected an integer'
        ' that is not negative.'
      )
  if len(set(vocabulary.values())) != len(vocabulary):
    raise files.CorruptFileError(f'{name}: several tokens share an id.')
  return vocabulary


def read_merges(path: Any) -> list[tuple[str, str]]:
  """Merges of a `vocab.bpe` or `merges.txt`, best first.

  Args:
    path: file, local or a URL. A first line that begins with '#version' is a
      header, and blank lines at the end do not count.

  Returns:
    Pairs of tokens.

  Raises:
    FileNotFoundError: there is no such file.
    CorruptFileError: a line is no pair.
  """
  lines = files.as_path(path).read_bytes().decode('utf-8').split('\n')
  first = 1 if lines[0].startswith('#version') else 0
  while lines and not lines[-1].strip():
    lines.pop()
  merges = []
  for number, line in enumerate(lines[first:], first + 1):
    pair = tuple(line.rstrip('\r').split(' '))
    if len(pair) != 2 or not all(pair):
      raise files.CorruptFileError(
        f'{path}, line {number}: {line!r}; expected two tokens and one space'
        ' between them.'
      )
    merges.append(pair)
  return merges


def read_fairseq_dictionary(path: Any) -> list[str]:
  """Words of fairseq's `dict.txt`, in the order of their ids.

  fairseq counts from 4, after <s>, <pad>, </s> and <unk>.

  Args:
    path: file, local or a URL, of lines `<word> <count>`.

  Returns:
    The words: ids of GPT-2 as text, and madeupword0000 and so on.

  Raises:
    FileNotFoundError: there is no such file.
    CorruptFileError: a line is not of that form, or a word comes twice.
  """
  words = []
  text = files.as_path(path).read_bytes().decode('utf-8')
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    fields = line.split()
    if len(fields) == 3 and fields[2] == '#fairseq:overwrite':
      fields.pop()
    if len(fields) != 2 or not fields[1].lstrip('-').isdigit():
      raise files.CorruptFileError(
        f'{path}, line {number}: {line!r}; expected a word and its count.'
      )
    words.append(fields[0])
  if len(set(words)) != len(words) or not words:
    raise files.CorruptFileError(
      f'{path}: {len(words)} words, {len(set(words))} different ones; expected'
      ' one line for each.'
    )
  return words


def fairseq_vocabulary(
  gpt2: Mapping[str, int], words: Sequence[str], name: str
) -> dict[str, int]:
  """Token -> fairseq's id, from GPT-2's ids and fairseq's dictionary.

  Args:
    gpt2: token -> GPT-2's id, of encoder.json.
    words: of `read_fairseq_dictionary`.
    name: of the dictionary, for errors.

  Returns:
    The four specials first, then a token for each word, <mask> last.

  Raises:
    CorruptFileError: the two do not fit.
  """
  tokens = {index: token for token, index in gpt2.items()}
  vocabulary = {token: i for i, token in enumerate(SPECIALS[:4])}
  for position, word in enumerate(words):
    token = tokens.get(int(word)) if word.isdigit() else word
    if token is None:
      raise files.CorruptFileError(
        f'{name}: entry {position + 1} is the id {word}, which the vocabulary'
        f' of {len(gpt2)} tokens does not have. Are both of the same model?'
      )
    vocabulary[token] = len(SPECIALS) - 1 + position
  missing = [token for token in gpt2 if token not in vocabulary]
  if missing:
    raise files.CorruptFileError(
      f'{name} lacks {len(missing)} of the {len(gpt2)} tokens, for example'
      f' {missing[0]!r}. Are both of the same model?'
    )
  vocabulary[MASK] = len(vocabulary)
  return vocabulary


def read_tokenizer_json(path: Any) -> tuple[dict[str, int], list]:
  """Vocabulary and merges of HF's `tokenizer.json`.

  Args:
    path: file, local or a URL.

  Returns:
    (token -> id, pairs).

  Raises:
    CorruptFileError: it holds another kind of tokenizer.
  """
  content = _json(path)
  model = content.get('model', {}) if isinstance(content, dict) else {}
  words = json.dumps(content.get('pre_tokenizer')) if model else ''
  if 'vocab' not in model or 'merges' not in model or 'ByteLevel' not in words:
    raise files.CorruptFileError(
      f'{path}: expected a byte-level BPE, with a vocabulary and merges.'
    )
  if '"add_prefix_space": true' in words:
    raise files.CorruptFileError(
      f'{path} puts a space before every text (add_prefix_space), which'
      " RoBERTa's does not: the ids would differ. Set it to false to read it."
    )
  vocabulary = dict(model['vocab'])
  for added in content.get('added_tokens', ()):
    vocabulary.setdefault(added['content'], added['id'])
  merges = [
    tuple(m.split(' ')) if isinstance(m, str) else tuple(m)
    for m in model['merges']
  ]
  return check_vocabulary(vocabulary, str(path)), merges


def write_vocabulary(
  folder: Any,
  vocabulary: Mapping[str, int],
  merges: Sequence[tuple[str, str]],
) -> None:
  """Writes `vocab.json`, `merges.txt` and `tokenizer_config.json`.

  Args:
    folder: local or a URL; made if it is not there.
    vocabulary: token -> id.
    merges: pairs, best first.
  """
  folder = files.as_path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
  lines = ['#version: 0.2', *(f'{a} {b}' for a, b in merges), '']
  config = {
    'tokenizer_class': 'RobertaTokenizer',
    'add_prefix_space': False,
    'bos_token': BOS,
    'eos_token': EOS,
    'sep_token': EOS,
    'cls_token': BOS,
    'unk_token': UNK,
    'pad_token': PAD,
    'mask_token': MASK,
  }
  files.write_file(
    folder / 'tokenizer_config.json', json.dumps(config, indent=2) + '\n'
  )
  files.write_file(folder / 'merges.txt', '\n'.join(lines))
  # Last: a folder with it is complete.
  files.write_file(
    folder / 'vocab.json', json.dumps(ordered, ensure_ascii=False)
  )


def token_bytes(vocabulary: Mapping[str, int], size: int) -> np.ndarray:
  """The bytes of every token; None for specials and ids that are not used.

  Args:
    vocabulary: token -> id.
    size: number of ids.

  Returns:
    object [size].
  """
  alphabet = byte_alphabet()
  result = np.full(size, None, object)
  for token, index in vocabulary.items():
    special = token in SPECIALS or token.startswith('madeupword')
    if not special and all(character in alphabet for character in token):
      result[index] = bytes(alphabet[character] for character in token)
  return result


def _json(path):
  content = files.as_path(path).read_bytes()
  try:
    return json.loads(content.decode('utf-8'))
  except ValueError as error:
    raise files.CorruptFileError(f'{path}: no JSON ({error}).') from error
