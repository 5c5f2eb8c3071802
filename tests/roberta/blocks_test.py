"""Sequences of a corpus: what is in them, and batches of them."""

import functools
import pathlib
import pickle
import shutil
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import data
from jaxpapers.roberta import blocks, formats, tokenization
from jaxpapers.roberta import corpus as corpus_lib
from jaxpapers.roberta.bpe import ByteLevelBPE
from tests.helpers import data as real_data
from tests.helpers import goldens

_WORDS = 'the fox jumps over lazy dogs and sleeps under a tree'.split()


def _text():
  """Documents of some lines, of which a few are very long."""
  rng = goldens.rng('roberta/blocks')
  lines = []
  for _ in range(60):
    for _ in range(rng.integers(1, 9)):
      words = 60 if rng.random() < 0.05 else rng.integers(1, 12)
      lines.append(' '.join(rng.choice(_WORDS, words)))
    lines.append('')
  return '\n'.join(lines) + '\n'


@functools.cache
def _folder():
  """A folder with a corpus of 300 ids in several shards."""
  folder = tempfile.TemporaryDirectory()
  path = pathlib.Path(folder.name)
  (path / 'a.txt').write_text(_text(), 'utf-8')
  bpe = ByteLevelBPE.train(path / 'a.txt', 300)
  tokenization.tokenize_corpus(
    path / 'a.txt', bpe, path / 'out', num_workers=0, shard_bytes=3000
  )
  return folder


class BlocksTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(_folder().name, 'out')
    self.corpus = corpus_lib.TokenCorpus(self.folder)

  def source(self, mode, block_size=32, **options):
    return blocks.BlockSource(self.corpus, mode, block_size, **options)

  def contents(self, source):
    """Tokens of every sequence, without padding."""
    batch = source.take(np.arange(len(source)))
    self.assertEqual(batch['ids'].dtype, np.int32)
    np.testing.assert_array_equal(batch['example_id'], np.arange(len(source)))
    valid = batch['ids'] != self.corpus.pad_id
    np.testing.assert_array_equal(valid.sum(1), source.lengths)
    # Padding is at the end.
    self.assertTrue((np.diff(valid.astype(int), axis=1) <= 0).all())
    return [row[ok].tolist() for row, ok in zip(batch['ids'], valid)]

  @parameterized.parameters('full', 'doc', 'stream', 'lines')
  def test_sequences_are_slices(self, mode):
    sizes = self.corpus.line_sizes()
    slices = {
      'full': lambda: formats.pack_full_sentences(sizes, 31),
      'doc': lambda: formats.pack_doc_sentences(sizes, 31),
      'stream': lambda: formats.pack_stream(sizes, 31),
      'lines': lambda: formats.pack_lines(sizes),
    }[mode]()
    whole = self.corpus.tokens(0, self.corpus.num_tokens)
    for long_lines in formats.LONG_LINES:
      expected = [
        [self.corpus.bos_id, *whole[start:stop]]
        for start, stop in formats.limit_slices(slices, 31, long_lines)
        if stop - start > 1
      ]
      found = self.contents(self.source(mode, long_lines=long_lines))
      self.assertEqual(found, expected)
    if mode != 'stream':
      self.assertGreater((slices[:, 1] - slices[:, 0]).max(), 31)

  @parameterized.parameters('segment_pairs', 'sentence_pairs')
  def test_pairs(self, mode):
    source = self.source(mode, 40)
    batch = source.take(np.arange(len(source)))
    corpus = self.corpus
    text = {tuple(line.tolist()) for doc in corpus.documents() for line in doc}
    self.contents(source)
    for ids, types in zip(batch['ids'], batch['token_type_ids']):
      first, second = np.flatnonzero(ids == corpus.eos_id)
      self.assertEqual(ids[0], corpus.bos_id)
      np.testing.assert_array_equal(np.flatnonzero(types), np.arange(
        first + 1, second + 1
      ))  # fmt: skip
      self.assertTrue((ids[second + 1 :] == corpus.pad_id).all())
      if mode == 'sentence_pairs' and second < 39:
        self.assertIn(tuple(ids[1:first].tolist()), text)
        self.assertIn(tuple(ids[first + 1 : second].tolist()), text)
    self.assertBetween(batch['next'].mean(), 0.2, 0.6)
    self.assertEqual(batch['next'].dtype, np.int32)
    again = self.source(mode, 40, cache=False)
    other = self.source(mode, 40, seed=1)
    np.testing.assert_array_equal(
      again.take(np.arange(20))['ids'], batch['ids'][:20]
    )
    self.assertFalse(
      (other.take(np.arange(20))['ids'] == batch['ids'][:20]).all()
    )

  @parameterized.parameters(*blocks.MODES)
  def test_one_copied_or_kept_in_memory(self, mode):
    source = self.source(mode)
    expected = source.take(np.array([7, 3, 5]))
    for other in (
      pickle.loads(pickle.dumps(source)),
      pickle.loads(pickle.dumps(self.source(mode, cache=False))),
      blocks.BlockSource(str(self.folder), mode, 32),
    ):
      found = other.take(np.array([7, 3, 5]))
      for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    self.assertLess(len(pickle.dumps(source)), 5000)
    for name, value in source[3].items():
      np.testing.assert_array_equal(value, expected[name][1])
    last = source[-1]
    self.assertEqual(last['example_id'], len(source) - 1)
    with self.assertRaises(IndexError):
      source[len(source)]

  def test_table_is_found_again(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    shutil.copytree(self.folder, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / 'blocks', ignore_errors=True)
    before = blocks.BlockSource(folder, 'doc', 32)[5]['ids']
    (table,) = (folder / 'blocks').iterdir()
    written = table.stat().st_mtime_ns
    after = blocks.BlockSource(folder, 'doc', 32)[5]['ids']
    np.testing.assert_array_equal(before, after)
    self.assertEqual(table.stat().st_mtime_ns, written)
    blocks.BlockSource(folder, 'doc', 32, long_lines='drop')
    blocks.BlockSource(folder, 'doc', 33)
    self.assertLen(list((folder / 'blocks').iterdir()), 3)

  def test_batches(self):
    source = self.source('full')
    options = dict(seed=4, num_epochs=2)
    whole = list(data.batches(source, 8, **options))
    self.assertLen(whole, 2 * (len(source) // 8))
    self.assertEqual(whole[0]['ids'].shape, (8, 32))
    # Two processes see halves; and a reader goes on where another stopped.
    parts = [
      data.batches(source, 8, process_index=i, process_count=2, **options)
      for i in range(2)
    ]
    for batch, *halves in zip(whole[:5], *parts):
      together = np.concatenate([half['ids'] for half in halves])
      np.testing.assert_array_equal(together, batch['ids'])
    steps = data.batches(source, 8, **options)
    for _ in range(3):
      next(steps)
    state = steps.get_state()
    later = data.batches(self.source('full'), 8, **options)
    later.set_state(state)
    np.testing.assert_array_equal(next(later)['ids'], whole[3]['ids'])

  def test_buckets(self):
    source = self.source('doc')
    buckets = source.buckets((8, 16, 32))
    self.assertEqual([bucket.block_size for bucket in buckets], [8, 16, 32])
    self.assertEqual(sum(map(len, buckets)), len(source))
    seen = []
    for bucket in buckets:
      batch = bucket.take(np.arange(len(bucket)))
      self.assertEqual(batch['ids'].shape, (len(bucket), bucket.block_size))
      seen += batch['example_id'].tolist()
      whole = source.take(batch['example_id'])['ids']
      np.testing.assert_array_equal(whole[:, : bucket.block_size], batch['ids'])
      np.testing.assert_array_equal(bucket[2]['ids'], batch['ids'][2])
    self.assertCountEqual(seen, range(len(source)))

  @parameterized.parameters(
    ({'mode': 'page'}, "mode is 'page'"),
    ({'block_size': 2}, 'block_size is 2; expected 3 or more'),
    ({'mode': 'segment_pairs', 'block_size': 4}, 'expected 5 or more'),
    ({'long_lines': 'cut'}, "long_lines is 'cut'"),
  )
  def test_bad(self, changes, message):
    arguments = {'mode': 'full', 'block_size': 32, **changes}
    with self.assertRaisesRegex(ValueError, message):
      blocks.BlockSource(self.corpus, **arguments)
    with self.assertRaises(FileNotFoundError):
      blocks.BlockSource(self.folder / 'none')

  def test_nothing_but_long_lines(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / 'a.txt').write_text('a long line\n' * 5)
    bpe = self.corpus.load_tokenizer()
    corpus = tokenization.tokenize_corpus(
      folder / 'a.txt', bpe, folder / 'out', num_workers=0
    )
    with self.assertRaisesRegex(ValueError, "no sequence of the mode 'lines'"):
      blocks.BlockSource(corpus, 'lines', 3, long_lines='drop')
    self.assertLen(blocks.BlockSource(corpus, 'lines', 99), 5)


class WikitextTest(absltest.TestCase):
  def test_heading_rule(self):
    path = real_data.require('roberta', 'wikitext2_valid.txt')
    bpe = ByteLevelBPE.from_directory(real_data.require('roberta', '.'))
    out = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    corpus = tokenization.tokenize_corpus(
      path, bpe, out, num_workers=0, document_rule='heading',
      shard_bytes=200_000,
    )  # fmt: skip
    # WikiText-2 has 60 articles for validation.
    self.assertEqual(corpus.num_documents, 60)
    titles = [bpe.decode(doc[0]) for doc in corpus.documents()]
    self.assertEqual(titles[0], '= Homarus gammarus =')
    for title in titles:
      self.assertRegex(title, '^= [^=].* =$')
    source = blocks.BlockSource(corpus, 'full', 512)
    lengths = source.lengths
    self.assertLessEqual(lengths.max(), 512)
    # The line that does not fit is met in proportion to its length, and on
    # average half of it would have fitted.
    sizes = np.minimum(corpus.line_sizes(), 511).astype(float)
    missing = (sizes**2).mean() / sizes.mean() / 2
    self.assertAlmostEqual(lengths.mean(), 512 - missing, delta=20)


if __name__ == '__main__':
  absltest.main()
