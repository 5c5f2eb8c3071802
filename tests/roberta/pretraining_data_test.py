"""Batches with epochs, of several lengths, held out; unigram entropy."""

import collections
import json
import math

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import data
from jaxpapers.roberta import pretraining_data


def blocks(count, length, start=0):
  """A source of numbered blocks."""
  return data.ArraySource(
    {
      'ids': np.full((count, length), 7, np.int32),
      'example_id': np.arange(start, start + count, dtype=np.int32),
    }
  )


def drawn(batches, steps):
  return [next(batches) for _ in range(steps)]


class TrainingBatchesTest(parameterized.TestCase):
  def make(self, several):
    if not several:
      return pretraining_data.training_batches([blocks(10, 4)], [4], seed=3)
    sources = [blocks(9, 4), blocks(8, 8, start=100)]
    return pretraining_data.training_batches(sources, [4, 2], seed=3)

  def test_epochs(self):
    batches = self.make(False)
    self.assertEqual(batches.steps_per_epoch, 2)
    epochs = [batch['epoch'] for batch in drawn(batches, 5)]
    np.testing.assert_array_equal(epochs, np.repeat([[0, 0, 1, 1, 2]], 4, 0).T)
    self.assertEqual(epochs[0].dtype, np.int32)

  def test_lengths_are_interleaved_as_often_as_they_last(self):
    batches = self.make(True)
    self.assertEqual(batches.steps_per_epoch, 2 + 4)
    orders = []
    for epoch in range(3):
      seen = drawn(batches, 6)
      shapes = [batch['ids'].shape for batch in seen]
      self.assertEqual(
        collections.Counter(shapes), {(4, 4): 2, (2, 8): 4}, shapes
      )
      for batch in seen:
        np.testing.assert_array_equal(batch['epoch'], epoch)
      longer = [b['example_id'] for b in seen if b['ids'].shape[1] == 8]
      # Every block of the second source once in each epoch.
      self.assertSameElements(np.concatenate(longer), range(100, 108))
      orders.append(tuple(shapes))
    self.assertGreater(len(set(orders)), 1)

  @parameterized.parameters(False, True)
  def test_position(self, several):
    straight = drawn(self.make(several), 20)
    batches = self.make(several)
    drawn(batches, 9)
    state = json.loads(json.dumps(batches.get_state()))
    resumed = self.make(several)
    resumed.set_state(state)
    for batch, expected in zip(drawn(resumed, 11), straight[9:]):
      for name, value in expected.items():
        np.testing.assert_array_equal(batch[name], value, name)

  def test_position_of_other_lengths(self):
    state = self.make(False).get_state()
    with self.assertRaisesRegex(ValueError, '0 iterators; expected 2.*bucket'):
      self.make(True).set_state(state)

  def test_share_of_a_process(self):
    whole = drawn(self.make(False), 3)
    parts = [
      drawn(
        pretraining_data.training_batches(
          [blocks(10, 4)], [4], seed=3, process_index=i, process_count=2
        ),
        3,
      )
      for i in range(2)
    ]
    for batch, first, second in zip(whole, *parts):
      together = np.concatenate([first['example_id'], second['example_id']])
      np.testing.assert_array_equal(together, batch['example_id'])

  def test_too_few(self):
    with self.assertRaisesRegex(ValueError, '3 examples, fewer than'):
      pretraining_data.training_batches([blocks(3, 4)], [4], seed=0)


class HeldOutTest(absltest.TestCase):
  def test_each_once(self):
    batches = pretraining_data.held_out_batches(
      [blocks(5, 4), blocks(2, 8, start=50)], [4, 2]
    )
    seen = []
    for batch in batches:
      self.assertIn(batch['ids'].shape, ((4, 4), (2, 8)))
      seen.extend(batch['example_id'][batch['mask']])
    self.assertEqual(seen, [0, 1, 2, 3, 4, 50, 51])


class EntropyTest(absltest.TestCase):
  def test_closed_forms(self):
    entropy = pretraining_data.unigram_entropy
    self.assertAlmostEqual(entropy([5, 5, 5, 0, 5]), math.log(4))
    self.assertEqual(entropy([0, 9, 0]), 0)
    self.assertAlmostEqual(
      entropy([3, 1]), -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    )
    for bad in ([0, 0], [[1, 2]], [-1, 2]):
      with self.assertRaisesRegex(ValueError, 'counts'):
        entropy(bad)

  def test_counts(self):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 9, (600, 5))
    expected = np.array([(ids == i).sum() for i in range(9)])
    expected[1] = 0
    for source in (
      data.ArraySource({'ids': ids}),
      [{'ids': row} for row in ids],  # Without take.
    ):
      counts = pretraining_data.count_tokens(source, 9, pad_id=1)
      np.testing.assert_array_equal(counts, expected)


if __name__ == '__main__':
  absltest.main()
