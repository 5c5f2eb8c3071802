"""Packing of lines into sequences, against fairseq and against loops."""

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.roberta import formats
from tests.helpers import goldens


def _greedy(sizes, block_size, documents):
  """The rule, one line after the other."""
  slices, start, position = [], 0, 0
  for size in sizes:
    separator = documents and size == 1
    full = position > start and position + size - start > block_size
    if full or (separator and position > start):
      slices.append([start, position])
      start = position
    position += size
    if separator:
      start = position
  if position > start:
    slices.append([start, position])
  return slices


def _sizes(tag, lines):
  rng = goldens.rng(f'roberta/formats/{tag}')
  sizes = rng.integers(2, 40, lines)
  return np.where(rng.random(lines) < 0.1, 1, sizes)


class PackTest(parameterized.TestCase):
  @parameterized.parameters(
    ('complete', formats.pack_full_sentences),
    ('complete_doc', formats.pack_doc_sentences),
    ('none', formats.pack_stream),
    ('eos', lambda sizes, block_size: formats.pack_lines(sizes)),
  )
  def test_as_fairseq(self, mode, pack):
    golden = goldens.load_json('roberta', 'fairseq_data.json')
    for sizes in (golden['sizes'], np.array(golden['sizes'], np.int32)):
      slices = pack(sizes, golden['block_size'])
      self.assertEqual(slices.tolist(), golden[f'slices_{mode}'])
      self.assertEqual(slices.dtype, np.int64)

  @parameterized.product(documents=(False, True), chunk=(1, 2, 7, 64, 10**6))
  def test_chunks_change_nothing(self, documents, chunk):
    for block_size in (2, 11, 60, 1000):
      sizes = _sizes(f'{documents}{block_size}', 400)
      chunks = [sizes[i : i + chunk] for i in range(0, len(sizes), chunk)]
      found = np.concatenate(
        list(formats.packed_chunks(chunks, block_size, documents=documents))
      )
      self.assertEqual(
        found.tolist(), _greedy(sizes.tolist(), block_size, documents)
      )

  def test_full_sentences_lose_nothing(self):
    sizes = _sizes('all', 1000)
    slices = formats.pack_full_sentences(sizes, 50)
    np.testing.assert_array_equal(slices[1:, 0], slices[:-1, 1])
    self.assertEqual(slices[-1, 1], sizes.sum())
    lengths = slices[:, 1] - slices[:, 0]
    self.assertLessEqual(lengths.max(), 50)
    # Each next line would not have fitted.
    ends = np.cumsum(sizes)
    following = sizes[np.searchsorted(ends, slices[:-1, 1]) + 1]
    self.assertTrue((lengths[:-1] + following > 50).all())

  def test_stream_of_a_number(self):
    self.assertEqual(
      formats.pack_stream(7, 3).tolist(), [[0, 3], [3, 6], [6, 7]]
    )

  def test_long_lines(self):
    slices = np.array([[0, 3], [3, 13], [13, 17], [17, 25]])
    for rule, expected in (
      ('split', [(0, 3), (3, 7), (7, 11), (11, 13), (13, 17), (17, 21),
                 (21, 25)]),
      ('truncate', [(0, 3), (3, 7), (13, 17), (17, 21)]),
      ('drop', [(0, 3), (13, 17)]),
    ):  # fmt: skip
      found = formats.limit_slices(slices, 4, rule)
      self.assertEqual([tuple(row) for row in found.tolist()], expected)
    self.assertIs(formats.limit_slices(slices, 10), slices)

  def test_buckets(self):
    lengths = goldens.rng('roberta/buckets').integers(1, 513, 300)
    buckets = formats.bucket_by_length(lengths)
    self.assertEqual(list(buckets), [64, 128, 256, 512])
    together = np.sort(np.concatenate(list(buckets.values())))
    self.assertEqual(together.tolist(), list(range(300)))
    for low, high in ((0, 64), (64, 128), (128, 256), (256, 512)):
      inside = lengths[buckets[high]]
      self.assertTrue(((inside > low) & (inside <= high)).all())
    self.assertEqual(list(formats.bucket_by_length([3, 500])), [64, 512])

  @parameterized.parameters(
    (lambda: formats.pack_full_sentences([], 5), 'sizes is empty'),
    (lambda: formats.pack_doc_sentences([3, 0], 5), 'reaches down to 0'),
    (lambda: formats.pack_lines([0.5]), 'sizes is float64'),
    (lambda: formats.pack_lines([[1]]), r'sizes is int64 \[1, 1\]'),
    (lambda: formats.pack_stream([3], 1), 'block_size is 1'),
    (lambda: formats.pack_full_sentences([3], 0), 'block_size is 0'),
    (lambda: formats.limit_slices(np.zeros((1, 2)), 1, 'cut'), "is 'cut'"),
    (lambda: formats.bucket_by_length([5], (9, 9)), r'buckets is \(9, 9\)'),
    (lambda: formats.bucket_by_length([600]), 'lengths has 600'),
  )
  def test_bad(self, call, message):
    with self.assertRaisesRegex(ValueError, message):
      call()


if __name__ == '__main__':
  absltest.main()
