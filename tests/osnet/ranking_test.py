"""Tests of ranking, with what torchreid and fast-reid computed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.osnet import metrics, ranking
from tests.helpers import data, devices, goldens


def _golden():
  return goldens.load_npz('osnet', 'rank.npz')


def _labels(g):
  return g['q_pids'], g['g_pids'], g['q_camids'], g['g_camids']


def _by_sorting(dist, q_pids, g_pids, q_cams, g_cams):
  """AP, INP and rank of the first match of each query, the obvious way."""
  out = []
  for row, pid, cam in zip(dist, q_pids, q_cams, strict=True):
    order = np.argsort(row, kind='stable')
    order = order[~((g_pids[order] == pid) & (g_cams[order] == cam))]
    ranks = np.flatnonzero(g_pids[order] == pid) + 1
    if len(ranks):
      n = np.arange(1, len(ranks) + 1)
      out.append((np.mean(n / ranks), n[-1] / ranks[-1], ranks[0]))
    else:
      out.append((np.nan, np.nan, 0))
  return np.array(out).T


class DistanceTest(parameterized.TestCase):
  def test_golden(self):
    g = _golden()
    euclidean = metrics.pairwise_distance(g['qf'], g['gf'])
    # float32 on both sides, sums of squares of up to 400.
    np.testing.assert_allclose(euclidean, g['dist_euclidean'], atol=1e-4)
    cosine = metrics.pairwise_distance(g['qf'][:8], g['gf'], 'cosine')
    np.testing.assert_allclose(cosine, g['dist_cosine'], atol=1e-6)

  def test_equal_features_have_no_negative_distance(self):
    x = jnp.asarray(goldens.normal('d', (40, 64), 10), jnp.float32)
    dist = metrics.pairwise_distance(x, x)
    self.assertGreaterEqual(float(dist.min()), 0)
    self.assertFalse(
      jnp.isnan(metrics.pairwise_distance(x, x, squared=False)).any()
    )

  def test_gradients_are_finite_at_zero(self):
    grad = jax.grad(lambda x: metrics.l2_normalize(x).sum())(jnp.zeros(3))
    self.assertTrue(jnp.isfinite(grad).all())

    def total(x):
      return metrics.pairwise_distance(x, x, squared=False).sum()

    self.assertTrue(jnp.isfinite(jax.grad(total)(jnp.ones((2, 3)))).all())

  def test_float16_beyond_the_range_of_its_squares(self):
    x = jnp.array([[0.0, 0.0], [3e-4, 4e-4], [300, 400]], jnp.float16)
    unit = metrics.l2_normalize(x)
    self.assertEqual(unit.dtype, jnp.float16)
    expected = [[0, 0], [0.6, 0.8], [0.6, 0.8]]
    # float16 has 11 bits, fewer for 3e-4.
    np.testing.assert_allclose(unit, expected, atol=2e-3)

  def test_16_bits_are_computed_with_as_32(self):
    x = jnp.asarray(goldens.normal('h', (5, 64)), jnp.bfloat16)
    dist = metrics.pairwise_distance(x, x)
    wide = metrics.pairwise_distance(x.astype(jnp.float32), x)
    np.testing.assert_array_equal(dist, wide)

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, r'\(2, 3\) and \(2, 4\)'):
      metrics.pairwise_distance(jnp.ones((2, 3)), jnp.ones((2, 4)))
    with self.assertRaisesRegex(ValueError, "metric is 'l1'"):
      metrics.pairwise_distance(jnp.ones((2, 3)), jnp.ones((2, 3)), 'l1')


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters('euclidean', 'cosine')
  def test_torchreid_and_fast_reid(self, metric):
    g = _golden()
    found = ranking.rank_metrics(g['qf'], g['gf'], *_labels(g), metric=metric)
    # What is stored is float32; ours float64 sums of whole numbers' ratios.
    np.testing.assert_allclose(found.cmc, g[f'{metric}/cmc'], atol=1e-6)
    np.testing.assert_allclose(found.mAP, g[f'{metric}/mAP'], atol=1e-12)
    np.testing.assert_allclose(found.mINP, g[f'{metric}/mINP'], atol=1e-12)
    self.assertEqual(found.num_valid, 67)
    self.assertEqual((~found.valid).sum(), 3)
    np.testing.assert_array_equal(np.isnan(found.ap), ~found.valid)
    for name, ours in (('AP', found.ap), ('INP', found.inp)):
      np.testing.assert_allclose(
        ours[found.valid], g[f'{metric}/{name}'], atol=1e-6
      )

  def test_from_distance_in_small_blocks(self):
    g = _golden()
    found = ranking.rank_metrics_from_distance(
      g['dist_euclidean'], *_labels(g), block=70
    )
    np.testing.assert_allclose(found.mAP, g['euclidean/mAP'], atol=1e-12)
    np.testing.assert_allclose(found.cmc, g['euclidean/cmc'], atol=1e-6)

  def test_real_labels_of_market1501(self):
    import scipy.io

    def load(name):
      path = data.require('osnet', 'market1501', f'{name}.mat')
      content = scipy.io.loadmat(path)
      (key,) = (key for key in content if not key.startswith('_'))
      return content[key].ravel().astype(int)

    q_pids, q_cams = load('queryID'), load('queryCam') - 1
    g_pids, g_cams = load('testID'), load('testCam') - 1
    kept = g_pids != -1
    # The counts that the data set is published with.
    self.assertEqual(len(q_pids), 3368)
    self.assertEqual(kept.sum(), 15913)
    self.assertEqual((~kept).sum(), 3819)
    self.assertEqual((g_pids == 0).sum(), 2798)
    self.assertLen(np.unique(q_pids), 750)
    centre = goldens.normal('market:centre', (1502, 32))
    cam = goldens.normal('market:cam', (6, 32), 0.5)

    def features(tag, pids, cams):
      noise = goldens.normal(tag, (len(pids), 32), 0.9)
      return (centre[pids] + cam[cams] + noise).astype(np.float32)

    qf = features('market:q', q_pids, q_cams)
    gf = np.zeros((len(g_pids), 32), np.float32)  # Junk is not looked at.
    gf[kept] = features('market:g', g_pids[kept], g_cams[kept])
    labels = (q_pids, g_pids, q_cams, g_cams)
    found = ranking.rank_metrics(qf, gf, *labels)
    golden = goldens.load_json('osnet', 'market1501_labels_rank.json')
    self.assertEqual(found.num_junk, 3819)
    # torchreid adds up float32.
    expected = golden['torchreid_cython_all']
    np.testing.assert_allclose(found.cmc, expected['cmc50'], atol=5e-6)
    np.testing.assert_allclose(found.mAP, expected['mAP'], atol=5e-6)
    np.testing.assert_allclose(found.cmc[0], 0.4533848, atol=1e-7)
    expected = golden['fastreid_python_first200']
    some = slice(200)
    np.testing.assert_allclose(found.ap[some].mean(), 0.25216379, atol=1e-6)
    np.testing.assert_allclose(found.inp[some].mean(), 0.03875639, atol=1e-6)
    np.testing.assert_allclose(
      np.mean(found.first_rank[some, None] <= np.arange(1, 51), axis=0),
      expected['cmc50'],
      atol=1e-6,
    )


class RulesTest(parameterized.TestCase):
  def _small(self):
    # Two queries, five images; the second keeps four of them.
    dist = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]], np.float32)
    q_pids, q_cams = np.array([1, 2]), np.array([0, 0])
    g_pids, g_cams = np.array([1, 2, 3, 4, 2]), np.array([1, 0, 1, 1, 1])
    return dist, q_pids, g_pids, q_cams, g_cams

  def test_small_gallery_holds_the_last_value(self):
    dist, *labels = self._small()
    found = ranking.rank_metrics_from_distance(dist, *labels, max_rank=7)
    np.testing.assert_allclose(found.cmc, [0.5, 0.5, 0.5, 1, 1, 1, 1])
    self.assertAlmostEqual(found.mAP, (1 + 1 / 4) / 2)

  def test_cython_remembers_the_query_before_and_we_do_not(self):
    # It keeps four images for the second query, and shows the fifth value of
    # the first.
    labels = [np.array(x) for x in ([1, 2], [3, 4, 5, 2, 1], [0, 0], [1] * 5)]
    dist = np.array([[2, 3, 4, 5, 1], [2, 3, 4, 5, 1]], np.float32)
    for order in ([0, 1], [1, 0]):
      found = ranking.rank_metrics_from_distance(
        dist[order],
        labels[0][order],
        labels[1],
        labels[2][order],
        labels[3],
        max_rank=5,
      )
      np.testing.assert_allclose(found.cmc, [0.5, 0.5, 0.5, 0.5, 1])
      self.assertAlmostEqual(found.mAP, 0.6)

  def test_collapsed_features(self):
    rng = np.random.default_rng(0)
    g_pids = rng.permutation(np.repeat(np.arange(10), 4))
    g_cams = np.tile([1, 2], 20)
    q_pids, q_cams = np.arange(10), np.ones(10, int)
    dist = np.ones((10, 40), np.float32)
    labels = (q_pids, g_pids, q_cams, g_cams)
    run = {
      ties: ranking.rank_metrics_from_distance(dist, *labels, ties=ties)
      for ties in ranking.TIES
    }
    expected = _by_sorting(dist, *labels)
    np.testing.assert_allclose(run['stable'].ap, expected[0])
    np.testing.assert_array_equal(run['stable'].first_rank, expected[2])
    self.assertLess(run['stable'].cmc[0], 1)
    self.assertEqual(run['optimistic'].mAP, 1)
    self.assertEqual(run['pessimistic'].cmc[0], 0)
    # All others of the gallery first.
    others = 36
    for row in range(10):
      if ((g_pids == row) & (g_cams != 1)).any():
        self.assertEqual(run['pessimistic'].first_rank[row], others + 1)

  @parameterized.parameters(0, 1)
  def test_equals_sorting_with_many_ties(self, seed):
    rng = np.random.default_rng(seed)
    q_pids, g_pids = rng.integers(0, 9, 30), rng.integers(0, 12, 90)
    q_cams, g_cams = rng.integers(0, 3, 30), rng.integers(0, 3, 90)
    dist = rng.integers(0, 12, (30, 90)).astype(np.float32)
    labels = (q_pids, g_pids, q_cams, g_cams)
    found = ranking.rank_metrics_from_distance(dist, *labels, block=40)
    ap, inp, first = _by_sorting(dist, *labels)
    np.testing.assert_allclose(found.ap, ap, rtol=1e-12)
    np.testing.assert_allclose(found.inp, inp, rtol=1e-12)
    np.testing.assert_array_equal(found.first_rank, first)

  def test_order_of_the_gallery_changes_nothing_without_ties(self):
    g = _golden()
    order = np.random.default_rng(0).permutation(420)
    found = ranking.rank_metrics(g['qf'], g['gf'], *_labels(g))
    moved = ranking.rank_metrics(
      g['qf'],
      g['gf'][order],
      g['q_pids'],
      g['g_pids'][order],
      g['q_camids'],
      g['g_camids'][order],
    )
    np.testing.assert_allclose(moved.ap, found.ap, rtol=1e-12)
    np.testing.assert_array_equal(moved.first_rank, found.first_rank)

  def test_lists_are_arrays(self):
    dist, *labels = self._small()
    found, expected = (
      ranking.rank_metrics_from_distance(x, *labels)
      for x in (dist.tolist(), dist)
    )
    np.testing.assert_array_equal(found.ap, expected.ap)
    found = ranking.rank_metrics(
      [[0.0]], [[1.0], [0.5]], [1], [2, 1], [0], [1, 1]
    )
    self.assertEqual(found.first_rank.tolist(), [1])

  def test_junk_is_left_out_and_counted(self):
    dist, q_pids, g_pids, q_cams, g_cams = self._small()
    found = ranking.rank_metrics_from_distance(
      np.concatenate([np.zeros((2, 3), np.float32), dist], axis=1),
      q_pids,
      np.r_[-1, -1, -1, g_pids],
      q_cams,
      np.r_[0, 1, 2, g_cams],
    )
    self.assertEqual(found.num_junk, 3)
    self.assertEqual(found.cmc[0], 0.5)

  def test_identities_that_are_missing_are_left_out_of_the_means(self):
    dist, q_pids, g_pids, q_cams, g_cams = self._small()
    q_pids = np.array([1, 77])
    found = ranking.rank_metrics_from_distance(
      dist, q_pids, g_pids, q_cams, g_cams
    )
    self.assertEqual((found.num_valid, found.mAP), (1, 1.0))
    self.assertEqual(found.valid.tolist(), [True, False])

  def test_under_vmap_and_jit(self):
    rng = np.random.default_rng(3)
    dist = jnp.asarray(rng.random((3, 4, 20)), jnp.float32)
    matches = jnp.asarray(rng.integers(0, 9, (4, 1)), jnp.int32)
    matches = jnp.concatenate([matches, matches + 9], axis=1)
    removed = jnp.full((4, 1), 19, jnp.int32)
    found = jax.vmap(ranking.count_ahead, (0, None, None))(
      dist, matches, removed
    )
    for n, q in itertools.product(range(3), range(4)):
      row = np.delete(np.asarray(dist[n, q]), 19)
      nearer = np.sort(row[np.asarray(matches[q])])
      expected = [(row < d).sum() - i for i, d in enumerate(nearer)]
      self.assertEqual(found[n, q].tolist(), expected)

  @parameterized.parameters(*ranking.TIES)
  def test_both_ways_to_count(self, ties):
    rng = np.random.default_rng(1)
    dist = jnp.asarray(rng.integers(0, 9, (5, 30)), jnp.float32)
    matches = jnp.asarray(np.argsort(rng.random((5, 30)))[:, :4], jnp.int32)
    matches = matches.at[2, 1].set(-1).at[3].set(-1)
    limit = ranking._at(dist, matches)
    for other in (None, matches[:, ::-1]):
      values = dist if other is None else ranking._at(dist, other)
      in_turn, at_once = (
        jnp.where(matches >= 0, count(values, other, limit, matches, ties), 0)
        for count in (ranking._count_in_turn, ranking._count_at_once)
      )
      np.testing.assert_array_equal(in_turn, at_once)

  def test_queries_shared_among_devices(self):
    devices.run(
      """
      import jax, numpy as np
      from jaxpapers.osnet import ranking
      rng = np.random.default_rng(0)
      qf = rng.standard_normal((37, 8)).astype(np.float32)
      gf = rng.standard_normal((90, 8)).astype(np.float32)
      labels = (rng.integers(0, 9, 37), rng.integers(0, 9, 90),
                rng.integers(0, 3, 37), rng.integers(0, 3, 90))
      one = ranking.rank_metrics(qf, gf, *labels)
      mesh = jax.make_mesh((2,), ('data',))
      two = ranking.rank_metrics(qf, gf, *labels, mesh=mesh, block=40)
      np.testing.assert_array_equal(one.first_rank, two.first_rank)
      np.testing.assert_allclose(one.ap, two.ap, rtol=1e-12)
      """,
      device_count=2,
    )


class BadInputTest(parameterized.TestCase):
  def _call(self, **changes):
    arguments = {
      'qf': np.ones((2, 3), np.float32),
      'gf': np.arange(12, dtype=np.float32).reshape(4, 3),
      'q_pids': [1, 2],
      'g_pids': [1, 2, 3, 1],
      'q_cams': [0, 0],
      'g_cams': [1, 1, 1, 1],
    }
    return ranking.rank_metrics(**{**arguments, **changes})

  @parameterized.parameters(
    ({'gf': np.ones((0, 3), np.float32)}, r'gf has shape \[0, 3\]'),
    ({'qf': np.ones((2, 4), np.float32)}, 'qf has 4 dimensions and gf 3'),
    ({'g_pids': [1, 2, 3]}, r'g_pids has shape \[3\]; expected \[4\]'),
    ({'q_pids': [1, -1]}, r'q_pids\[1\] is -1'),
    ({'g_pids': [-1] * 4}, 'all junk'),
    ({'g_cams': [0] * 4}, 'No query has a match'),
    ({'ties': 'lucky'}, "ties is 'lucky'"),
    ({'protocol': 'duke'}, "protocol is 'duke'"),
    ({'metric': 'l1'}, "metric is 'l1'"),
    ({'max_rank': 0}, 'max_rank is 0'),
    (
      {'gf': np.array([[1, 1, 1], [1, np.nan, 1], [0] * 3, [np.inf] * 3])},
      r'gf\[1\] holds NaN or infinity, as do 2 of 4 rows',
    ),
  )
  def test_value_error(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      self._call(**changes)

  @parameterized.parameters(
    ({'qf': np.ones((2, 3), np.uint8)}, 'qf is of dtype uint8'),
    ({'q_pids': [1.0, 2.0]}, 'q_pids is of dtype float64'),
  )
  def test_type_error(self, changes, message):
    with self.assertRaisesRegex(TypeError, message):
      self._call(**changes)

  def test_a_sum_that_overflows_is_no_infinity(self):
    large = np.full((4, 3), 2e38, np.float32)
    metrics.check_features(large, 'gf')


if __name__ == '__main__':
  absltest.main()
