import json
import pickle

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import data
from jaxpapers.osnet import samplers
from tests.helpers import goldens

STATISTICS = json.loads(
  (goldens.TESTDATA / 'osnet' / 'augmentation_stats.json').read_text()
)['random_identity_sampler']


class PKSamplerTest(parameterized.TestCase):
  def test_as_the_original(self):
    counts = STATISTICS['counts_per_pid']
    pids = np.repeat(np.arange(len(counts)), counts)
    K = STATISTICS['K']
    P = STATISTICS['batch'] // K
    lengths = []
    for seed in range(100):
      batches = samplers.pk_sampler(pids, P, K, seed)
      lengths.append(batches.size)
      identities = pids[batches].reshape(-1, P, K)
      self.assertTrue((identities == identities[..., :1]).all())
      self.assertTrue(
        all(len(set(row)) == P for row in identities[..., 0].tolist())
      )
      # No image twice, but those of identities with fewer than K.
      used = np.bincount(batches.ravel(), minlength=len(pids))
      enough = np.repeat(np.array(counts) >= K, counts)
      self.assertLessEqual(used[enough].max(), 1)
    # One epoch of the original; ours differ from seed to seed around it.
    self.assertIn(STATISTICS['actual_len'], lengths)
    self.assertLessEqual(max(lengths), STATISTICS['declared_len'])
    self.assertLess(
      abs(np.mean(lengths) - STATISTICS['actual_len']), STATISTICS['batch']
    )

  def test_every_image_gets_its_turn(self):
    pids = np.repeat(np.arange(12), 5)
    used = np.zeros(len(pids))
    for seed in range(200):
      np.add.at(used, samplers.pk_sampler(pids, 4, 2, seed).ravel(), 1)
    self.assertLess(used.max() / used.min(), 1.6)

  def test_same_seed_same_batches(self):
    pids = np.repeat([3, 9, 17, 4, 5], 6)
    first = samplers.pk_sampler(pids, 2, 3, 1)
    np.testing.assert_array_equal(first, samplers.pk_sampler(pids, 2, 3, 1))
    self.assertFalse(np.array_equal(first, samplers.pk_sampler(pids, 2, 3, 2)))

  @parameterized.parameters(
    ([1, 1, 2], 3, 1, 'P is 3, but pids has 2 identities'),
    ([1, 1, 2], 1, 0, 'K is 0'),
    ([], 1, 1, 'expected integers'),
    ([0.5], 1, 1, 'expected integers'),
  )
  def test_bad_input(self, pids, P, K, message):
    with self.assertRaisesRegex(ValueError, message):
      samplers.pk_sampler(pids, P, K, 0)


class DomainSamplerTest(parameterized.TestCase):
  def test_equal_shares(self):
    cameras = np.repeat(np.arange(6), [20, 30, 25, 40, 22, 21])
    batches = samplers.domain_sampler(cameras, 3, 4, 0)
    for batch in cameras[batches]:
      names, counts = np.unique(batch, return_counts=True)
      self.assertLen(names, 3)
      self.assertEqual(set(counts), {4})
    self.assertLen(np.unique(batches), batches.size)
    self.assertLen(np.unique(cameras[batches]), 6)
    everything = samplers.domain_sampler(cameras, 0, 4, 0)
    self.assertEqual(everything.shape, (5, 24))

  @parameterized.parameters(
    (7, 1, 'num_domains is 7; expected 0 .all. to 2'),
    (2, 4, 'per_domain is 4; expected 1 to 3'),
  )
  def test_bad_input(self, count, per, message):
    with self.assertRaisesRegex(ValueError, message):
      samplers.domain_sampler([0, 0, 0, 1, 1, 1, 1], count, per, 0)


class SampledSourceTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.pids = np.repeat(np.arange(9), [5, 4, 6, 4, 8, 4, 7, 4, 9])
    self.source = samplers.SampledSource(
      {'pid': self.pids, 'index': np.arange(len(self.pids))},
      lambda rng: samplers.pk_sampler(self.pids, 3, 2, rng),
      seed=3,
      steps=40,
    )

  def batches(self, source):
    return data.batches(source, 6, shuffle=False, num_epochs=1)

  def test_epochs_follow_each_other(self):
    found = np.stack([b['index'] for b in self.batches(self.source)])
    self.assertEqual(found.shape, (40, 6))
    start = 0
    for epoch in range(3):
      key = np.array([3, epoch], np.uint64)
      rng = np.random.Generator(np.random.Philox(key=key))
      wanted = samplers.pk_sampler(self.pids, 3, 2, rng)
      part = found[start : start + len(wanted)]
      np.testing.assert_array_equal(part, wanted[: len(part)])
      start += len(wanted)
    one = [self.source[i]['index'] for i in range(12)]
    np.testing.assert_array_equal(one, found[:2].ravel())

  def test_resumes_anywhere(self):
    straight = [b['index'] for b in self.batches(self.source)]
    iterator = self.batches(self.source)
    for _ in range(25):
      next(iterator)
    position = iterator.get_state()
    # Another process: nothing of the epochs before is known there.
    again = self.batches(pickle.loads(pickle.dumps(self.fresh())))
    again.set_state(position)
    np.testing.assert_array_equal(next(again)['index'], straight[25])

  def fresh(self):
    return samplers.SampledSource(
      {'pid': self.pids, 'index': np.arange(len(self.pids))},
      _Sampler(self.pids),
      seed=3,
      steps=40,
    )


class _Sampler:
  """One that can be sent to workers."""

  def __init__(self, pids):
    self.pids = pids

  def __call__(self, rng):
    return samplers.pk_sampler(self.pids, 3, 2, rng)


if __name__ == '__main__':
  absltest.main()
