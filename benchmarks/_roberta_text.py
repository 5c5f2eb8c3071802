"""Parts of the benchmark of RoBERTa about text: tokenizer, batches."""

import pathlib
import statistics
import tempfile
import time
from typing import Any

import _side_by_side


def _texts(source):
  """Lines of the text files, or of words that are made up."""
  import numpy as np

  folder = pathlib.Path(source)
  lines = [
    line.strip()
    for path in sorted(folder.glob('wikitext*.txt'))
    for line in path.read_text('utf-8').split('\n')
    if line.strip()
  ]
  if not lines:
    rng = np.random.default_rng(0)
    letters = np.array(list('etaoinshrdlu'))
    words = [
      ''.join(rng.choice(letters, rng.integers(2, 9))) for _ in range(5000)
    ]
    rank = rng.zipf(1.3, (4000, 40)) % len(words)
    lines = [' '.join(words[i] for i in row) for row in rank]
  return lines


def _bpe(source, folder):
  """The official vocabulary, or one trained here."""
  from jaxpapers.roberta import bpe

  data = pathlib.Path(source)
  if (data / 'vocab.bpe').exists():
    return bpe.ByteLevelBPE.from_directory(data), data
  corpus = pathlib.Path(folder, 'corpus.txt')
  corpus.write_text('\n'.join(_texts(source)), 'utf-8')
  trained = bpe.ByteLevelBPE.train([corpus], 4000)
  trained.save(folder)
  return trained, pathlib.Path(folder)


def tokenizer(source: str, repeats: int) -> dict[str, Any]:
  """MB/s of ByteLevelBPE and of the library tokenizers."""
  import pickle

  with tempfile.TemporaryDirectory() as folder:
    ours, files = _bpe(source, folder)
    lines = _texts(source)
    size = sum(len(line.encode()) for line in lines) / 1e6
    # Without the words that it remembers from other texts.
    fresh = pickle.dumps(ours)
    calls = {
      'cold': lambda: pickle.loads(fresh).encode_flat(lines),
      'warm': lambda: ours.encode_flat(lines),
    }
    names = ('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe')
    pair = next(
      [str(files / name) for name in both]
      for both in names
      if (files / both[0]).exists()
    )
    if _side_by_side.has('tokenizers'):
      import tokenizers

      peer = tokenizers.ByteLevelBPETokenizer.from_file(*pair)
      calls['tokenizers'] = lambda: [e.ids for e in peer.encode_batch(lines)]
    wall, cpu, _ = _side_by_side.alternate(calls, repeats)
  speeds = {
    name: {
      'megabytes_per_second': round(1e3 * size / statistics.median(t), 2),
      'per_cpu_second': round(1e3 * size / statistics.median(cpu[name]), 2),
    }
    for name, t in wall.items()
  }
  return {'megabytes': round(size, 2), 'vocabulary': ours.vocab_size, **speeds}


def pipeline(source: str, repeats: int) -> dict[str, Any]:
  """Tokens/s from a tokenised corpus to batches in memory."""
  from jaxpapers import data
  from jaxpapers.roberta import blocks, tokenization

  with tempfile.TemporaryDirectory() as folder:
    bpe, _ = _bpe(source, folder)
    text = pathlib.Path(folder, 'text.txt')
    lines = _texts(source)
    # A document every fifty lines.
    documents = ['\n'.join(lines[i : i + 50]) for i in range(0, len(lines), 50)]
    text.write_text('\n\n'.join(documents), 'utf-8')
    start = time.perf_counter()
    corpus = tokenization.tokenize_corpus(
      text, bpe, pathlib.Path(folder, 'tokens')
    )
    seconds = time.perf_counter() - start
    result = {
      'tokens': corpus.num_tokens,
      'tokenize_corpus_tokens_per_second': round(corpus.num_tokens / seconds),
    }
    for mode in ('full', 'doc', 'segment_pairs'):
      source = blocks.BlockSource(corpus, mode, 128)
      batches = data.batches(source, 32, seed=0)
      next(batches)
      times, count = [], 200
      for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(count):
          next(batches)
        times.append(time.perf_counter() - start)
      rate = count * 32 * 128 / statistics.median(times)
      result[f'{mode}_tokens_per_second'] = round(rate)
  return result
