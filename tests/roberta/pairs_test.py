"""Formats with next-sentence prediction."""

import collections

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.roberta import pairs
from tests.helpers import goldens


def _docs(count=60, tag='docs', longest=30):
  """Documents whose tokens say where they are: no two are equal."""
  rng = goldens.rng(f'roberta/pairs/{tag}')
  docs, token = [], 10
  for _ in range(count):
    doc = []
    for _ in range(rng.integers(1, 12)):
      size = int(rng.integers(1, longest))
      doc.append(list(range(token, token + size)))
      token += size
    docs.append(doc)
  return docs


class PairsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.docs = _docs()
    # Token -> (document, line).
    self.where = {
      token: (d, line)
      for d, doc in enumerate(self.docs)
      for line, tokens in enumerate(doc)
      for token in tokens
    }

  def make(self, kind, block_size=64, seed=0, **options):
    function = getattr(pairs, kind)
    rng = np.random.default_rng(seed)
    return function(self.docs, block_size, rng, **options)

  @parameterized.parameters(*pairs.KINDS)
  def test_segments_are_text(self, kind):
    found = self.make(kind)
    self.assertGreater(len(found), 100)
    for pair in found:
      self.assertLessEqual(len(pair.first) + len(pair.second) + 3, 64)
      for ids in (pair.first, pair.second):
        self.assertNotEmpty(ids)
        # Consecutive text of one document.
        self.assertTrue((np.diff(ids) == 1).all())
        self.assertLen({self.where[int(i)][0] for i in ids}, 1)
      a, b = self.where[int(pair.first[-1])], self.where[int(pair.second[0])]
      if pair.is_next:
        self.assertEqual(a[0], b[0])
        # Lines between them may have been cut off.
        self.assertLess(a[1], b[1])
      else:
        self.assertNotEqual(a[0], b[0])

  @parameterized.parameters(*pairs.KINDS)
  def test_labels_and_coverage(self, kind):
    found = self.make(kind, block_size=4096)
    # Nothing is cut off: every line is in exactly one pair, unless it was the
    # second segment of a random pair.
    counts = collections.Counter()
    for pair in found:
      counts.update(pair.first.tolist())
      if pair.is_next:
        counts.update(pair.second.tolist())
        self.assertEqual(pair.first[-1] + 1, pair.second[0])
    self.assertEqual(set(counts), set(self.where))
    self.assertEqual(set(counts.values()), {1})

  def test_half_are_next(self):
    self.docs = [doc for doc in _docs(600, 'half') if len(doc) > 1]
    found = self.make('segment_pairs', block_size=24)
    # A chunk of one line is never next; others are in half of the cases.
    self.assertGreater(len(found), 1000)
    share = np.mean([pair.is_next for pair in found])
    self.assertBetween(share, 0.2, 0.5)
    self.docs = [[[10 * d], [10 * d + 1]] for d in range(2000)]
    found = self.make('segment_pairs')
    # Either one pair that is next, or two that are not: a third.
    share = np.mean([pair.is_next for pair in found])
    self.assertAlmostEqual(share, 1 / 3, delta=0.03)

  def test_one_line_documents_are_never_next(self):
    self.docs = [[[10, 11]], [[20], [21]], [[30, 31, 32]]]
    for seed in range(30):
      for pair in self.make('segment_pairs', seed=seed):
        if pair.is_next:
          self.assertEqual((pair.first[0], pair.second[0]), (20, 21))

  def test_longer_segment_is_shortened_at_both_ends(self):
    self.docs = [[list(range(100, 200)), [5, 6]], [[7], [8]]]
    fronts = set()
    for seed in range(40):
      for pair in self.make('segment_pairs', 20, seed):
        if pair.first[0] >= 100:
          self.assertEqual(len(pair.first) + len(pair.second), 17)
          self.assertLessEqual(len(pair.second), 2)
          fronts.add(int(pair.first[0]))
    # 85 of 100 are cut: in front a number like 42, never 0 or all.
    self.assertGreater(len(fronts), 5)
    self.assertBetween(np.mean(list(fronts)), 132, 152)

  def test_short_sequences(self):
    def lengths(**options):
      found = self.make('segment_pairs', **options)
      return np.array([len(p.first) + len(p.second) for p in found])

    self.assertLess(lengths(short_seq_prob=1.0).mean(), lengths().mean() - 5)

  @parameterized.parameters(*pairs.KINDS)
  def test_deterministic(self, kind):
    first, again, other = (self.make(kind, seed=s) for s in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
      np.testing.assert_array_equal(a.first, b.first)
      np.testing.assert_array_equal(a.second, b.second)
    self.assertNotEqual(
      [p.is_next for p in first][:50], [p.is_next for p in other][:50]
    )

  def test_arrays(self):
    ids, types = pairs.pair_arrays(
      [(np.array([7, 8]), np.array([9])), (np.array([7]), np.array([9, 8]))],
      8,
      bos_id=0,
      pad_id=1,
      eos_id=2,
    )
    self.assertEqual(
      ids.tolist(), [[0, 7, 8, 2, 9, 2, 1, 1], [0, 7, 2, 9, 8, 2, 1, 1]]
    )
    self.assertEqual(
      types.tolist(), [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0]]
    )

  @parameterized.parameters(
    ([], {}, 'has 0 document'),
    ([[[5], [6]]], {}, 'has 1 document'),
    ([[[5]], [[6]]], {}, 'each of the 2 documents has one line'),
    ([[[5], [6]], [[7]]], {'block_size': 4}, 'block_size is 4; expected 5'),
    ([[[5], [6]], [[7]]], {'short_seq_prob': 2.0}, 'short_seq_prob is 2.0'),
  )
  def test_bad(self, docs, changes, message):
    options = {'block_size': 64, **changes}
    with self.assertRaisesRegex(ValueError, message):
      pairs.segment_pairs(docs, rng=np.random.default_rng(0), **options)


if __name__ == '__main__':
  absltest.main()
