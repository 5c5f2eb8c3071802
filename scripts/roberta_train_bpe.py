r"""Learns a byte-level BPE vocabulary from text of one's own.

Examples:
  # 8,000 tokens from the text of a folder:
  python scripts/roberta_train_bpe.py --files='corpus/*.txt' --vocab_size=8000 \
      --output=vocabulary

  # RoBERTa's size, from JSON lines such as {"text": "...", "url": "..."}:
  python scripts/roberta_train_bpe.py --files=part1.jsonl,part2.jsonl \
      --vocab_size=50265 --output=vocabulary

The vocabulary has <s>, <pad>, </s>, <unk> and <mask> (0 to 4), the 256 bytes,
and the most useful merges: no text is unknown, whatever its language. The same
text gives the same vocabulary, in whatever order the files are named. Memory
grows with the number of different words, not with the text.

Into --output go vocab.json, merges.txt and tokenizer_config.json, which
roberta_tokenize, roberta_pretrain and HF's RobertaTokenizer read. To use
RoBERTa's own vocabulary no training is needed: give the other programs a folder
with its files.
"""

import sys
import time

import _command_line
from absl import flags
from etils import epath

_FILES = flags.DEFINE_list(
  'files',
  None,
  'Text to learn from: files or quoted patterns, separated by commas. Plain'
  ' text, JSON lines (.jsonl) or Parquet (.parquet); .gz is read as it is.',
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder for the vocabulary, local or gs://.'
)
_VOCAB_SIZE = flags.DEFINE_integer(
  'vocab_size', 30000, 'Tokens, specials included.', lower_bound=261
)
_MIN_FREQUENCY = flags.DEFINE_integer(
  'min_frequency', 2, 'How often a pair has to occur.', lower_bound=1
)
_TEXT_FIELD = flags.DEFINE_string(
  'text_field', 'text', 'Field with the text, of JSON lines and Parquet.'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace a vocabulary that is there.'
)


def main() -> int:
  """Learns the vocabulary; returns the exit code."""
  for name in ('files', 'output'):
    if not flags.FLAGS[name].value:
      raise _command_line.UsageError(f'--{name} is missing')
  from jaxpapers.roberta import bpe as bpe_lib

  folder = epath.Path(_OUTPUT.value).expanduser()
  if (folder / 'vocab.json').exists() and not _OVERWRITE.value:
    raise _command_line.UsageError(
      f'--output: {folder} holds a vocabulary already; --overwrite replaces'
      ' it. What was tokenised with the old one would be lost'
    )
  began = time.perf_counter()
  try:
    bpe = bpe_lib.ByteLevelBPE.train(
      _FILES.value,
      _VOCAB_SIZE.value,
      _MIN_FREQUENCY.value,
      text_field=_TEXT_FIELD.value,
      progress=sys.stderr.isatty(),
    )
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(_one_line('files', error)) from error
  bpe.save(folder)
  seconds = time.perf_counter() - began
  print(f'{bpe.vocab_size} tokens in {folder}, {seconds:.1f} s')
  if bpe.vocab_size < _VOCAB_SIZE.value:
    print(
      f'Fewer than --vocab_size={_VOCAB_SIZE.value}: no other pair occurs'
      f' {_MIN_FREQUENCY.value} times. More text would help.',
      file=sys.stderr,
    )
  sample = 'The quick brown fox'
  parts = [_show(bpe.token(i)) for i in bpe.encode(sample)]
  print(f'{sample!r} becomes {" ".join(parts)}')
  return 0


def _one_line(flag, error):
  message = ' '.join(str(error).removeprefix(f'{flag}: ').split())
  return f'--{flag}: {message}'


def _show(token):
  return '[' + token.decode('utf-8', errors='backslashreplace') + ']'


if __name__ == '__main__':
  _command_line.run(main)
