"""Tokenised corpora: what is in them, whoever wrote them and however often."""

import gzip
import hashlib
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import tempfile

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.roberta import corpus as corpus_lib
from jaxpapers.roberta import tokenization
from jaxpapers.roberta.bpe import ByteLevelBPE
from tests.helpers import goldens

_WORDS = ('the', 'fox', 'jumps', 'over', 'lazy', 'dogs', 'naïve', '日本', '42')


def _text(tag, lines, blank=0.2):
  """Lines of words; some are blank, some have blanks around them."""
  rng = goldens.rng(f'roberta/tokenization/{tag}')
  result = []
  for _ in range(lines):
    words = rng.choice(_WORDS, rng.integers(1, 12))
    line = ' ' * int(rng.integers(2)) + ' '.join(words)
    result.append(' ' if rng.random() < blank else line)
  return '\n'.join(result) + '\n'


def _content(folder):
  """Name -> hash of every file below a folder."""
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


class CorpusTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'a.txt')
      path.write_text(_text('train', 100), 'utf-8')
      cls.bpe = ByteLevelBPE.train(path, 300)

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.out = self.folder / 'out'

  def write(self, name, content):
    path = self.folder / name
    if isinstance(content, str):
      content = content.encode('utf-8')
    path.write_bytes(content)
    return path

  def tokenize(self, files, out=None, **options):
    return tokenization.tokenize_corpus(
      files, self.bpe, out or self.out, **{'num_workers': 0, **options}
    )

  def stream(self, lines):
    """Ids of lines, each with </s>; None is an empty one."""
    ids = [self.bpe.encode(line or '') for line in lines]
    sizes = [len(line) + 1 for line in ids]
    return [i for line in ids for i in (*line, self.bpe.eos_id)], sizes

  def check(self, corpus, lines):
    stream, sizes = self.stream(lines)
    self.assertEqual(corpus.tokens(0, corpus.num_tokens).tolist(), stream)
    self.assertEqual(corpus.line_sizes().tolist(), sizes)
    self.assertEqual(corpus.num_tokens, len(stream))
    self.assertEqual(corpus.num_lines, len(sizes))
    documents = [
      [self.bpe.decode(line) for line in doc] for doc in corpus.documents()
    ]
    expected, fresh = [], True
    for line in lines:
      if line is None:
        fresh = True
        continue
      if fresh:
        expected.append([])
      expected[-1].append(line)
      fresh = False
    self.assertEqual(documents, expected)
    self.assertEqual(corpus.num_documents, len(expected))

  @parameterized.parameters(1, 7, 64, 1000, 10**6)
  def test_as_fairseq_whatever_the_pieces(self, shard_bytes):
    text = _text('fairseq', 60)
    # No newline at the end, and characters that splitlines() would split at.
    text += 'a\x85b\u2028c\x0bd\r\nlast one'
    path = self.write('a.txt', text)
    corpus = self.tokenize(path, shard_bytes=shard_bytes)
    lines = [line.strip() or None for line in text.split('\n')]
    self.check(corpus, lines)
    self.assertLen(
      list(self.out.glob('shard-*.tokens')),
      -(-len(text.encode('utf-8')) // shard_bytes),
    )

  def test_rules_of_documents(self):
    wiki = ' = One = \n \n a b \n = = Part = = \n c \n \n = Two = \n \n d \n'
    paths = [self.write('a.txt', wiki), self.write('b.txt', 'e\n\nf\n')]
    one = ['= One =', 'a b', '= = Part = =', 'c']
    for rule, lines in (
      ('heading', [*one, None, '= Two =', 'd', None, 'e', 'f']),
      ('file', [*one, '= Two =', 'd', None, 'e', 'f']),
      ('blank', [one[0], None, *one[1:], None, '= Two =', None, 'd', None,
                 'e', None, 'f']),
    ):  # fmt: skip
      for shard_bytes in (5, 1000):
        corpus = self.tokenize(
          paths,
          self.folder / f'{rule}{shard_bytes}',
          document_rule=rule,
          shard_bytes=shard_bytes,
        )
        self.check(corpus, lines)

  def test_records(self):
    texts = ['one\n\ntwo ', '', ' \n', 'three 日本', 'four\nfive\nsix']
    lines = ['one', 'two', None, 'three 日本', None, 'four', 'five', 'six']
    records = ''.join(
      json.dumps({'body': text, 'n': i}, ensure_ascii=bool(i % 2)) + '\n'
      for i, text in enumerate(texts)
    )
    plain = self.write('a.jsonl', records)
    packed = self.write('b.jsonl.gz', gzip.compress(records.encode('utf-8')))
    for name, path in (('plain', plain), ('packed', packed)):
      for shard_bytes in (10, 10**6):
        corpus = self.tokenize(
          path,
          self.folder / f'{name}{shard_bytes}',
          text_field='body',
          shard_bytes=shard_bytes,
        )
        self.check(corpus, lines)

  def test_parquet(self):
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    texts = ['one\ntwo', 'three', '', 'four', 'five\nsix']
    table = pyarrow.table({'text': texts, 'n': range(5)})
    path = self.folder / 'a.parquet'
    parquet.write_table(table, path, row_group_size=2)
    lines = ['one', 'two', None, 'three', None, 'four', None, 'five', 'six']
    for shard_bytes, shards in ((1, 3), (10**6, 1)):
      out = self.folder / f'out{shard_bytes}'
      corpus = self.tokenize(path, out, shard_bytes=shard_bytes)
      self.check(corpus, lines)
      self.assertLen(list(out.glob('shard-*.tokens')), shards)
    with self.assertRaisesRegex(ValueError, "no column 'body'; it has text, n"):
      self.tokenize(path, self.folder / 'other', text_field='body')
    parquet.write_table(pyarrow.table({'text': ['a', None]}), path)
    with self.assertRaisesRegex(ValueError, 'a.parquet, row 2: .* NoneType'):
      self.tokenize(path, self.folder / 'other')
    path.write_bytes(b'none')
    with self.assertRaisesRegex(ValueError, 'no Parquet file'):
      self.tokenize(path, self.folder / 'other')

  def test_compressed_text(self):
    text = _text('gzip', 30)
    path = self.write('a.txt.gz', gzip.compress(text.encode('utf-8')))
    corpus = self.tokenize(path, shard_bytes=10)
    self.check(corpus, [x.strip() or None for x in text.split('\n')[:-1]])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with self.assertRaisesRegex(ValueError, 'damaged or cut short'):
      self.tokenize(path, self.folder / 'other')

  def test_byte_order_mark(self):
    corpus = self.tokenize(self.write('a.txt', b'\xef\xbb\xbfthe fox\n'))
    self.check(corpus, ['the fox'])

  def test_workers_change_nothing(self):
    paths = [self.write(f'{i}.txt', _text(f'workers{i}', 60)) for i in range(2)]
    one = self.tokenize(paths, shard_bytes=500)
    two = self.tokenize(
      str(self.folder / '*.txt'),
      self.folder / 'two',
      shard_bytes=500,
      num_workers=2,
    )
    self.assertEqual(_content(self.out), _content(self.folder / 'two'))
    self.assertEqual(one.fingerprint, two.fingerprint)

  def test_killed_worker(self):
    path = self.write('a.txt', _text('worker', 200))

    def kill(*progress):
      del progress
      for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)

    with self.assertRaisesRegex(RuntimeError, 'a worker process was killed'):
      self.tokenize(path, shard_bytes=100, num_workers=2, progress=kill)
    self.assertFalse((self.out / 'index.json').exists())
    self.tokenize(path, shard_bytes=100)
    self.tokenize(path, self.folder / 'whole', shard_bytes=100)
    self.assertEqual(_content(self.out), _content(self.folder / 'whole'))

  def test_what_is_there_is_not_done_again(self):
    path = self.write('a.txt', _text('resume', 60))
    self.tokenize(path, shard_bytes=300)
    expected = _content(self.out)
    # As if killed: an index is missing, a shard is not there, one has no mark,
    # one is cut short, and a file was being written.
    (self.out / 'index.json').unlink()
    (self.out / 'shard-00000.tokens').unlink()
    (self.out / 'shard-00001.json').unlink()
    with (self.out / 'shard-00002.lines').open('r+b') as file:
      file.truncate(4)
    (self.out / '.shard-00001.tokens.99').write_bytes(b'..')
    kept = self.out / 'shard-00003.tokens'
    before = kept.stat().st_mtime_ns
    with self.assertRaisesRegex(FileNotFoundError, 'has not come to its end'):
      corpus_lib.TokenCorpus(self.out)
    calls = []
    self.tokenize(
      path, shard_bytes=300, progress=lambda *args: calls.append(args)
    )
    self.assertEqual(_content(self.out), expected)
    self.assertEqual(kept.stat().st_mtime_ns, before)
    done, total, tokens = calls[-1]
    self.assertEqual(done, total)
    self.assertEqual(total, path.stat().st_size)
    self.assertEqual(tokens, corpus_lib.TokenCorpus(self.out).num_tokens)

  def test_changed_text_is_done_again(self):
    path = self.write('a.txt', _text('old', 40))
    self.tokenize(path, shard_bytes=200)
    text = _text('new', 40)
    self.write('a.txt', text)
    with self.assertRaisesRegex(ValueError, 'holds another corpus'):
      self.tokenize(path, shard_bytes=200)
    with self.assertRaisesRegex(ValueError, 'holds another corpus'):
      self.tokenize(path, shard_bytes=100, document_rule='file')
    corpus = self.tokenize(path, shard_bytes=5000, overwrite=True)
    self.check(corpus, [x.strip() or None for x in text.split('\n')[:-1]])
    self.assertLen(list(self.out.glob('shard-*')), 3)

  def test_reading_across_shards(self):
    path = self.write('a.txt', _text('across', 50))
    corpus = self.tokenize(path, shard_bytes=100)
    whole = corpus.tokens(0, corpus.num_tokens)
    sizes = corpus.line_sizes()
    rng = goldens.rng('roberta/tokenization/ranges')
    copy = pickle.loads(pickle.dumps(corpus))
    for _ in range(200):
      start, stop = np.sort(rng.integers(0, len(whole) + 1, 2))
      np.testing.assert_array_equal(copy.tokens(start, stop), whole[start:stop])
      start, stop = np.sort(rng.integers(0, len(sizes) + 1, 2))
      np.testing.assert_array_equal(
        corpus.line_sizes(start, stop), sizes[start:stop]
      )
    self.assertEqual(whole.dtype, np.int32)
    with self.assertRaisesRegex(IndexError, 'tokens 5 to 99999 are out of'):
      corpus.tokens(5, 99999)
    with self.assertRaisesRegex(IndexError, 'lines -1 to 3 are out of range'):
      corpus.line_sizes(-1, 3)
    chunks = np.concatenate(list(corpus.line_size_chunks(7)))
    np.testing.assert_array_equal(chunks, sizes)
    for tokenizer in (
      corpus.load_tokenizer(),
      ByteLevelBPE.from_directory(self.out),
    ):
      self.assertEqual(tokenizer.fingerprint(), self.bpe.fingerprint())

  def test_large_vocabulary_takes_four_bytes(self):
    vocabulary = dict(self.bpe._vocabulary)
    vocabulary['madeupword0000'] = 70_000
    large = ByteLevelBPE(vocabulary, self.bpe._merges)
    path = self.write('a.txt', _text('large', 20))
    corpus = tokenization.tokenize_corpus(path, large, self.out, num_workers=0)
    small = self.tokenize(path, self.folder / 'small')
    self.assertEqual(
      (self.out / 'shard-00000.tokens').stat().st_size, 4 * corpus.num_tokens
    )
    np.testing.assert_array_equal(
      corpus.tokens(0, corpus.num_tokens), small.tokens(0, small.num_tokens)
    )

  @parameterized.named_parameters(
    ('utf8', 'a.txt', b'fine\nbad \xff\n', 'a.txt, line 2: no UTF-8'),
    ('json', 'a.jsonl', b'{"text": "a"}\n\n{"text": \n', 'line 3: no JSON'),
    ('list', 'a.jsonl', b'["a"]\n', r"line 1: expected an object with .*'a'"),
    ('field', 'a.jsonl', b'{"text": "a"}\n{"t": "a"}\n', r"line 2: .*\['t'\]"),
    ('number', 'a.jsonl', b'{"text": 3}\n', 'line 1: expected an object'),
    ('half', 'a.jsonl', b'{"text": "\\ud800"}\n', 'line 1: .* lone surrogate'),
    ('empty', 'a.txt', b'', 'files hold no text'),
    ('blank', 'a.txt', b' \n\t\n\n', 'files hold no text'),
  )
  def test_bad_text(self, name, content, message):
    good = self.write('good.txt', 'the fox\n' * 20)
    path = self.write(name, content)
    files = [path] if 'hold no' in message else [good, path]
    for shard_bytes in (9, 1000):
      for workers in (0, 2) if name == 'a.txt' and shard_bytes == 9 else (0,):
        with self.assertRaisesRegex(ValueError, message):
          self.tokenize(files, shard_bytes=shard_bytes, num_workers=workers)
        # What is there cannot be taken for a corpus.
        with self.assertRaises(FileNotFoundError):
          corpus_lib.TokenCorpus(self.out)
    if len(files) == 1:
      self.assertFalse(self.out.exists())

  def test_bad_arguments(self):
    path = self.write('a.txt', 'the fox\n')
    for options, message in (
      ({'document_rule': 'page'}, "document_rule is 'page'"),
      ({'shard_bytes': 0}, 'shard_bytes is 0'),
      ({'num_workers': -1}, 'num_workers is -1'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        self.tokenize(path, **options)
    for files, error, message in (
      (self.folder / 'none.txt', FileNotFoundError, 'none.txt was not found'),
      ([path, 'nothing*.txt'], FileNotFoundError, 'nothing.*was not found'),
      (self.folder, ValueError, 'is a folder'),
      ([], ValueError, 'files is empty'),
      ([path, path], ValueError, 'comes 2 times'),
    ):
      with self.assertRaisesRegex(error, message):
        self.tokenize(files)
    self.assertFalse(self.out.exists())

  def test_damaged_corpus(self):
    path = self.write('a.txt', _text('damaged', 20))
    self.tokenize(path)
    tokens = self.out / 'shard-00000.tokens'
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-2])
    with self.assertRaisesRegex(ValueError, 'tokens has .* Is the copy'):
      corpus_lib.TokenCorpus(self.out)
    tokens.unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'which index.json lists'):
      corpus_lib.TokenCorpus(self.out)
    tokens.write_bytes(whole)
    (self.out / 'index.json').write_text('{}')
    with self.assertRaisesRegex(ValueError, 'is no index'):
      corpus_lib.TokenCorpus(self.out)
    (self.out / 'index.json').write_text('{"format": 99}')
    with self.assertRaisesRegex(ValueError, 'has the format 99'):
      corpus_lib.TokenCorpus(self.out)
    with self.assertRaisesRegex(FileNotFoundError, 'Write one with'):
      corpus_lib.TokenCorpus(self.folder / 'none')


if __name__ == '__main__':
  absltest.main()
