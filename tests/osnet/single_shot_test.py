"""Tests of the CMC curve of one gallery image per identity."""

import itertools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.osnet import ranking, single_shot
from tests.helpers import goldens


def _golden():
  g = goldens.load_npz('osnet', 'rank.npz')
  labels = (g['q_pids'], g['g_pids'], g['q_camids'], g['g_camids'])
  return g, labels


def _all_galleries(row, pid, cam, g_pids, g_cams, max_rank):
  """The mean curve over every gallery that can be drawn."""
  kept = ~((g_pids == pid) & (g_cams == cam))
  choices = [
    np.flatnonzero(kept & (g_pids == other)) for other in np.unique(g_pids)
  ]
  curves = []
  for gallery in itertools.product(*(c for c in choices if len(c))):
    gallery = np.sort(gallery)
    order = gallery[np.argsort(row[gallery], kind='stable')]
    rank = int(np.flatnonzero(g_pids[order] == pid)[0])
    curves.append(np.arange(max_rank) >= rank)
  return np.mean(curves, axis=0)


class SingleShotTest(parameterized.TestCase):
  def test_expectation_equals_a_thousand_draws_of_torchreid(self):
    g, labels = _golden()
    q_pids, g_pids, q_cams, g_cams = labels
    found = single_shot.single_shot_cmc(
      g['dist_euclidean'][:20], q_pids[:20], g_pids, q_cams[:20], g_cams
    )
    # Four standard errors of the thousand.
    np.testing.assert_allclose(
      found, g['cuhk03/cmc20_first20_1000rep'], atol=0.012
    )
    found = single_shot.single_shot_cmc(g['dist_euclidean'], *labels)
    np.testing.assert_allclose(found, g['cuhk03/cmc20_seed1_10rep'], atol=0.03)

  @parameterized.parameters(0, 1, 2)
  def test_equals_all_galleries_of_a_toy(self, seed):
    rng = np.random.default_rng(seed)
    g_pids = np.array([1, 1, 1, 2, 2, 2, 3, 3, 3, 3])
    g_cams = np.array([0, 1, 2, 1, 2, 0, 2, 1, 1, 0])
    q_pids, q_cams = np.array([1, 2, 3]), np.array([0, 1, 5])
    dist = rng.integers(0, 8, (3, 10)).astype(np.float32)  # With ties.
    expected = [
      _all_galleries(dist[i], q_pids[i], q_cams[i], g_pids, g_cams, 4)
      for i in range(3)
    ]
    found = single_shot.single_shot_cmc(
      dist, q_pids, g_pids, q_cams, g_cams, max_rank=4
    )
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-12)

  def test_draws_are_reproducible_and_agree_with_the_expectation(self):
    g, labels = _golden()

    def draw(seed, repeats=10):
      return single_shot.single_shot_cmc(
        g['dist_euclidean'],
        *labels,
        exact=False,
        key=jax.random.key(seed),
        repeats=repeats,
      )

    np.testing.assert_array_equal(draw(0), draw(0))
    self.assertTrue((draw(0) != draw(1)).any())
    exact = single_shot.single_shot_cmc(g['dist_euclidean'], *labels)
    # 67 queries, 300 draws: a standard error of at most .5 / sqrt(67 * 300).
    np.testing.assert_allclose(draw(2, 300), exact, atol=0.015)

  def test_as_a_protocol_of_rank_metrics(self):
    g, labels = _golden()
    found = ranking.rank_metrics(
      g['qf'], g['gf'], *labels, protocol='cuhk03', max_rank=20, block=100
    )
    exact = single_shot.single_shot_cmc(g['dist_euclidean'], *labels)
    # float32 distances can swap two images of the 28,461 pairs.
    np.testing.assert_allclose(found.cmc, exact, atol=1e-3)
    np.testing.assert_allclose(found.mAP, g['cuhk03/mAP'], atol=1e-6)
    drawn = [
      ranking.rank_metrics_from_distance(
        g['dist_euclidean'],
        *labels,
        protocol='cuhk03',
        key=jax.random.key(0),
        max_rank=20,
      ).cmc
      for _ in range(2)
    ]
    np.testing.assert_array_equal(*drawn)
    np.testing.assert_allclose(drawn[0], exact, atol=0.05)

  def test_collapsed_features(self):
    labels = ([1], [2, 2, 3, 1], [0], [1, 1, 1, 1])
    dist = np.ones((1, 4), np.float32)
    curve = {
      ties: single_shot.single_shot_cmc(dist, *labels, ties=ties, max_rank=3)
      for ties in ranking.TIES
    }
    np.testing.assert_array_equal(curve['stable'], [0, 0, 1])
    np.testing.assert_array_equal(curve['optimistic'], [1, 1, 1])
    np.testing.assert_array_equal(curve['pessimistic'], [0, 0, 1])

  def test_bad_input(self):
    dist = np.ones((1, 2), np.float32)
    with self.assertRaisesRegex(ValueError, 'expected a key'):
      single_shot.single_shot_cmc(dist, [1], [1, 2], [0], [1, 1], exact=False)
    with self.assertRaisesRegex(ValueError, "ties is 'lucky'"):
      single_shot.single_shot_cmc(dist, [1], [1, 2], [0], [1, 1], ties='lucky')
    with self.assertRaisesRegex(ValueError, 'No query has a match'):
      single_shot.single_shot_cmc(dist, [9], [1, 2], [0], [1, 1])


if __name__ == '__main__':
  absltest.main()
