r"""Fills <mask> in texts with a pre-trained RoBERTa.

Examples:
  python scripts/roberta_fill_mask.py --model=roberta-base \
      --text='The capital of France is <mask>.'

  # A file of texts, one a line, in batches; JSON lines out.
  python scripts/roberta_fill_mask.py --model=roberta-base --json \
      --batch_size=64 < texts.txt > filled.jsonl

--model is a folder: Hugging Face's (config.json, model.safetensors, vocab.json,
merges.txt), fairseq's (model.pt, dict.txt, encoder.json, vocab.bpe), or that of
roberta_pretrain (WORKDIR/model). A text may have several masks; each is filled
on its own. <mask> takes the place of a word and the space before it.
"""

import itertools
import json
import sys

import _command_line
import jax.numpy as jnp
from absl import flags
from etils import epath

from jaxpapers.roberta import bpe, fill_mask, model, pretrained

_MODEL = flags.DEFINE_string(
  'model', None, 'Folder of a pre-trained model.', required=True
)
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', '', "Folder of its vocabulary; by default the model's."
)
_TEXT = flags.DEFINE_multi_string(
  'text',
  None,
  'Text with <mask>; several times for several. Without it the'
  ' lines of standard input.',
)
_TOP_K = flags.DEFINE_integer(
  'top_k', 5, 'Candidates for each mask.', lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 32, 'Texts that go through the model together.', lower_bound=1
)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object for each text.')
_BFLOAT16 = flags.DEFINE_bool('bfloat16', False, 'Compute in bfloat16.')
flags.DEFINE_string(
  'compilation_cache',
  'default',
  'Where JAX keeps compiled programs between runs: a folder, "default" or empty'
  ' for nowhere.',
)


def main() -> None:
  """Reads, fills, prints."""
  _command_line.use_compilation_cache(flags.FLAGS.compilation_cache)
  filler = _load()
  texts = enumerate(_texts(), 1)
  for part in iter(
    lambda: list(itertools.islice(texts, _BATCH_SIZE.value)), []
  ):
    try:
      found = filler(
        [text for _, text in part],
        top_k=_TOP_K.value,
        batch_size=_BATCH_SIZE.value,
      )
    except ValueError as error:
      first, last = part[0][0], part[-1][0]
      where = f'lines {first} to {last}: ' if _TEXT.value is None else ''
      raise _command_line.UsageError(f'{where}{error}') from error
    for (_, text), masks in zip(part, found):
      print(_shown(text, masks), flush=True)


def _load() -> fill_mask.MaskFiller:
  folder = epath.Path(_MODEL.value).expanduser()
  vocabulary = epath.Path(_TOKENIZER.value or folder).expanduser()
  try:
    config, params = pretrained.load_pretrained(
      folder,
      dtype=jnp.bfloat16 if _BFLOAT16.value else jnp.float32,
      padding='right',
    )
    tokenizer = bpe.ByteLevelBPE.from_directory(vocabulary)
    tied = 'decoder' not in params.get('lm_head', {})
    return fill_mask.MaskFiller(
      model.RobertaForMaskedLM(config, tie=tied), params, tokenizer
    )
  except (OSError, ValueError) as error:
    text = ' '.join(str(error).split())
    raise _command_line.UsageError(f'--model: {text}') from error


def _texts():
  """Texts of the flags, else lines of standard input that are not blank."""
  if _TEXT.value is not None:
    yield from _TEXT.value
    return
  for line in sys.stdin:
    if line.strip():
      yield line.strip()


def _shown(text, masks) -> str:
  if _JSON.value:
    rows = [
      [
        {'token': f.token, 'probability': f.probability, 'text': f.text}
        for f in fillings
      ]
      for fillings in masks
    ]
    return json.dumps({'text': text, 'masks': rows}, ensure_ascii=False)
  lines = [text]
  for number, fillings in enumerate(masks, 1):
    if len(masks) > 1:
      lines.append(f'  mask {number}')
    lines += [f'  {f.probability:.4f} {f.token!r}  {f.text}' for f in fillings]
  return '\n'.join(lines)


if __name__ == '__main__':
  _command_line.run(main)
