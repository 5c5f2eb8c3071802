r"""Tokenises text once, into a folder that training reads; goes on if killed.

Examples:
  # Plain text, where blank lines separate documents:
  python scripts/roberta_tokenize.py --files='corpus/*.txt' \
      --tokenizer=vocabulary --output=tokens

  # WikiText, whose documents begin with a title:
  python scripts/roberta_tokenize.py --files=wiki.train.raw \
      --document_rule=heading --tokenizer=vocabulary --output=wiki_tokens

  # With RoBERTa's vocabulary (encoder.json, vocab.bpe, dict.txt or HF's files):
  python scripts/roberta_tokenize.py --files='cc_news/*.jsonl.gz' \
      --tokenizer=roberta-base --output=news_tokens --num_workers=64

Every line is encoded and gets </s>, as in fairseq's preprocessing; documents
are kept apart. Records of JSON lines and Parquet are documents.

Start the same command again after an interruption: shards that are complete are
not made again, and the result is the same, byte for byte, with any number of
workers. Until the last shard is there the folder cannot be opened, so nothing
is ever trained on half a corpus.

Into --output go shards of 2 bytes for each token (4 if the vocabulary has
more than 65,536), the ends of lines, index.json and the tokenizer. How text is
cut into sequences is decided later, by roberta_pretrain --config.format.
"""

import sys

import _command_line
from absl import flags
from etils import epath

_FILES = flags.DEFINE_list(
  'files',
  None,
  'Text: files or quoted patterns, separated by commas. Plain text, JSON lines'
  ' (.jsonl) or Parquet (.parquet); .gz is read as it is, but by one worker'
  ' each.',
)
_TOKENIZER = flags.DEFINE_string(
  'tokenizer',
  None,
  'Folder of roberta_train_bpe, or one with vocab.json and merges.txt, with'
  " encoder.json, vocab.bpe and dict.txt, or with HF's tokenizer.json.",
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder for the tokens, local or mounted.'
)
_DOCUMENT_RULE = flags.DEFINE_enum(
  'document_rule',
  'blank',
  ['blank', 'heading', 'file'],
  'Where documents of plain text begin: after a blank line, at a title such as'
  ' " = Title = ", or with a file. The last two leave blank lines out.',
)
_TEXT_FIELD = flags.DEFINE_string(
  'text_field', 'text', 'Field with the text, of JSON lines and Parquet.'
)
_NUM_WORKERS = flags.DEFINE_integer(
  'num_workers',
  None,
  'Processes; by default one for each processor. 0 works in this one.',
  lower_bound=0,
)
_SHARD_MB = flags.DEFINE_float(
  'shard_mb', 32.0, 'Text of a shard, in MB.', lower_bound=0.001
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace another corpus in the folder.'
)


def main() -> int:
  """Tokenises; returns the exit code."""
  for name in ('files', 'tokenizer', 'output'):
    if not flags.FLAGS[name].value:
      raise _command_line.UsageError(f'--{name} is missing')
  from jaxpapers.roberta import bpe as bpe_lib
  from jaxpapers.roberta import tokenization

  try:
    bpe = bpe_lib.ByteLevelBPE.from_directory(
      epath.Path(_TOKENIZER.value).expanduser()
    )
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(_one_line('tokenizer', error)) from error
  with _Bar() as bar:
    try:
      corpus = tokenization.tokenize_corpus(
        _FILES.value,
        bpe,
        epath.Path(_OUTPUT.value).expanduser(),
        num_workers=_NUM_WORKERS.value,
        document_rule=_DOCUMENT_RULE.value,
        text_field=_TEXT_FIELD.value,
        shard_bytes=int(_SHARD_MB.value * 1e6),
        overwrite=_OVERWRITE.value,
        progress=bar,
      )
    except (FileNotFoundError, ValueError) as error:
      flag = 'output' if str(error).startswith('out_dir: ') else 'files'
      raise _command_line.UsageError(_one_line(flag, error)) from error
    except RuntimeError as error:  # A worker was killed.
      print(error, file=sys.stderr)
      return 1
  print(
    f'{corpus.num_tokens:,} tokens, {corpus.num_lines:,} lines,'
    f' {corpus.num_documents:,} documents in {corpus.folder}'
  )
  return 0


class _Bar:
  """A progress bar of the bytes of text that are done."""

  def __init__(self):
    self._bar = None

  def __enter__(self):
    return self

  def __call__(self, done, total, tokens):
    from tqdm import tqdm

    if self._bar is None:
      self._bar = tqdm(
        total=total,
        unit='B',
        unit_scale=True,
        dynamic_ncols=True,
        # What an earlier run made is not this one's speed.
        initial=done,
      )
    self._bar.update(done - self._bar.n)
    self._bar.set_postfix_str(f'{tokens:,} tokens', refresh=False)

  def __exit__(self, *error):
    if self._bar is not None:
      self._bar.close()


def _one_line(flag, error):
  """An error of the library, after the flag that it is about."""
  message = ' '.join(str(error).split()).removeprefix(f'{flag}: ')
  message = message.removeprefix('out_dir: ')
  return f'--{flag}: {message}'


if __name__ == '__main__':
  _command_line.run(main)
