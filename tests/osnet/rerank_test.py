"""Tests of re-ranking and query expansion, and of the search they use."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.osnet import metrics, ranking, rerank, retrieval
from tests.helpers import goldens


def _features(queries=15, gallery=60):
  x = goldens.normal('centres', (12, 16), 2)[np.arange(75) % 12]
  x = x + goldens.normal('noise', (75, 16))
  x = x.astype(np.float32)
  return x[:queries], x[queries : queries + gallery]


def _distances(qf, gf):
  pairs = ((qf, qf), (qf, gf), (gf, gf))
  return [metrics.pairwise_distance(a, b) for a, b in pairs]


class RerankTest(parameterized.TestCase):
  @parameterized.parameters((20, 6, 0.3), (5, 1, 0.5), (7, 3, 0.0))
  def test_golden(self, k1, k2, lam):
    g = goldens.load_npz('osnet', 'rerank.npz')
    found = rerank.k_reciprocal_rerank(
      g['q_q'], g['q_g'], g['g_g'], k1=k1, k2=k2, lam=lam
    )
    expected = g[f'final_k1={k1}_k2={k2}_l={lam}']
    # float32 on both sides, entries of at most 1.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)

  @parameterized.parameters(('euclidean', True, 2), ('cosine', False, 1))
  def test_from_features_equals_from_distances(self, metric, squared, k2):
    qf, gf = _features()
    pairs = ((qf, qf), (qf, gf), (gf, gf))
    dense = rerank.k_reciprocal_rerank(
      *(metrics.pairwise_distance(a, b, metric) for a, b in pairs),
      k1=6,
      k2=k2,
      squared_input=squared,
    )
    dist, index = rerank.k_reciprocal_rerank_features(
      qf, gf, k1=6, k2=k2, metric=metric, squared_input=squared, block=20
    )
    np.testing.assert_allclose(
      dist, np.take_along_axis(dense, index, axis=1), atol=2e-6
    )
    np.testing.assert_array_equal(
      np.sort(index), np.tile(np.arange(60), (15, 1))
    )
    self.assertTrue((np.diff(dist) >= 0).all())

  @parameterized.parameters(('euclidean', True, 2), ('cosine', False, 1))
  def test_rows_equal_the_dense_ones(self, metric, squared, k2):
    qf, gf = _features()
    pairs = ((qf, qf), (qf, gf), (gf, gf))
    options = {'k1': 6, 'k2': k2, 'squared_input': squared}
    dense = rerank.k_reciprocal_rerank(
      *(metrics.pairwise_distance(a, b, metric) for a, b in pairs), **options
    )
    rows = rerank.k_reciprocal_rows(qf, gf, metric=metric, block=20, **options)
    chosen = np.array([3, 14, 3])
    np.testing.assert_allclose(rows(chosen), dense[chosen], atol=2e-6)
    np.testing.assert_array_equal(rows(2), rows([2]))
    labels = (np.arange(15) % 12, (np.arange(60) + 3) % 12)
    cameras = (np.zeros(15, int), np.ones(60, int))
    found, expected = (
      ranking.rank_metrics_from_distance(dist, *labels, *cameras, block=8)
      for dist in (rows, rows(slice(None)))
    )
    np.testing.assert_array_equal(found.ap, expected.ap)
    np.testing.assert_array_equal(found.cmc, expected.cmc)

  def test_rows_of_another_shape(self):
    with self.assertRaisesRegex(
      ValueError, r'shape \[2, 1\]; expected \[2, 2\]'
    ):
      ranking.rank_metrics_from_distance(
        lambda chosen: np.ones((len(chosen), 1), np.float32),
        *([0, 1], [0, 1], [0, 0], [1, 1]),
      )

  def test_first_candidates_keep_their_distances(self):
    qf, gf = _features()
    all_dist, all_index = rerank.k_reciprocal_rerank_features(
      qf, gf, k1=6, k2=2
    )
    dist, index = rerank.k_reciprocal_rerank_features(
      qf, gf, k1=6, k2=2, candidates=10
    )
    self.assertEqual(dist.shape, (15, 10))
    _, near = retrieval.nearest(qf, gf, 10)
    for row in range(len(qf)):
      self.assertSameElements(index[row].tolist(), near[row].tolist())
      expected = dict(zip(all_index[row].tolist(), all_dist[row], strict=True))
      np.testing.assert_allclose(
        dist[row], [expected[i] for i in index[row].tolist()], atol=1e-6
      )

  def test_all_images_equal(self):
    same = [np.ones_like(x) for x in _features()]
    new = rerank.k_reciprocal_rerank(*_distances(*same), k1=6, k2=2)
    self.assertTrue(np.isfinite(new).all())

  @parameterized.parameters(1, 3)
  def test_more_equal_images_than_neighbours(self, k2):
    qf, gf = _features()
    gf[:20] = 0
    new = rerank.k_reciprocal_rerank(*_distances(qf, gf), k1=6, k2=k2)
    self.assertTrue(np.isfinite(new).all())
    dist, index = rerank.k_reciprocal_rerank_features(qf, gf, k1=6, k2=k2)
    np.testing.assert_allclose(
      dist, np.take_along_axis(new, index, axis=1), atol=2e-6
    )

  def test_features_of_two_networks(self):
    qf, gf = _features()
    for call in (
      rerank.k_reciprocal_rerank_features,
      rerank.alpha_query_expansion,
    ):
      with self.assertRaisesRegex(ValueError, 'qf has 15 dimensions and gf 16'):
        call(qf[:, 1:], gf)

  @parameterized.parameters(
    ({'k1': 75}, 'k1 is 75; expected 1 to 74'),
    ({'k1': 4, 'k2': 6}, 'k2 is 6; expected 1 to k1'),
    ({'lam': 1.5}, 'lam is 1.5'),
    ({'candidates': 0}, 'candidates is 0'),
    ({'metric': 'l1'}, "metric is 'l1'"),
  )
  def test_bad_parameters(self, changes, message):
    qf, gf = _features()
    with self.assertRaisesRegex(ValueError, message):
      rerank.k_reciprocal_rerank_features(qf, gf, **changes)

  def test_bad_distances(self):
    qq, qg, gg = _distances(*_features())
    with self.assertRaisesRegex(ValueError, r'expected \[Q, Q\], \[Q, G\]'):
      rerank.k_reciprocal_rerank(gg, qg, qq)
    with self.assertRaisesRegex(ValueError, r'qg\[1\] holds NaN'):
      rerank.k_reciprocal_rerank(qq, qg.at[1, 2].set(jnp.nan), gg)


class QueryExpansionTest(parameterized.TestCase):
  def test_golden(self):
    g = goldens.load_npz('osnet', 'rank.npz')
    q, gallery = rerank.alpha_query_expansion(g['qf'], g['gf'], k=5, alpha=3)
    np.testing.assert_allclose(q, g['aqe/k5a3/q'], atol=1e-5)
    np.testing.assert_allclose(gallery, g['aqe/k5a3/g'], atol=1e-5)

  def test_one_neighbour_changes_nothing(self):
    qf, gf = _features()
    q, g = rerank.alpha_query_expansion(qf, gf, k=1)
    np.testing.assert_allclose(q, qf, rtol=2e-6)
    np.testing.assert_allclose(g, gf, rtol=2e-6)

  def test_under_jit(self):
    qf, gf = _features()
    found = jax.jit(rerank.alpha_query_expansion)(qf, gf)
    expected = rerank.alpha_query_expansion(qf, gf)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)

  def test_nan(self):
    qf, gf = _features()
    gf[2, 1] = np.nan
    with self.assertRaisesRegex(ValueError, r'gf\[2\] holds NaN'):
      rerank.alpha_query_expansion(qf, gf)

  def test_bad_k(self):
    qf, gf = _features()
    with self.assertRaisesRegex(ValueError, 'k is 76; expected 1 to 75'):
      rerank.alpha_query_expansion(qf, gf, k=76)


class NearestTest(parameterized.TestCase):
  @parameterized.parameters((7, 4), (60, 100))
  def test_equals_sorting(self, block, query_block):
    rng = np.random.default_rng(0)
    qf = rng.integers(0, 4, (15, 3)).astype(np.float32)
    gf = rng.integers(0, 4, (60, 3)).astype(np.float32)  # Many ties.
    dist = np.asarray(metrics.pairwise_distance(qf, gf))
    order = np.argsort(dist, axis=1, kind='stable')[:, :9]
    found, index = retrieval.nearest(
      qf, gf, 9, block=block, query_block=query_block
    )
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(
      found, np.take_along_axis(dist, order, axis=1)
    )
    on_device = retrieval.nearest(
      jnp.asarray(qf),
      jnp.asarray(gf),
      9,
      block=block,
      query_block=query_block,
    )
    np.testing.assert_array_equal(on_device[1], order)
    np.testing.assert_array_equal(on_device[0], found)

  @parameterized.parameters((61, 3), (100, 2), (100, 1), (17, 1), (9, 9))
  def test_groups_find_what_sorting_finds(self, number, k):
    # What GPUs and TPUs use. Few values, so many ties.
    rng = np.random.default_rng(number)
    dist = rng.integers(0, 4, (50, number)).astype(np.float32)
    dist[dist == 3] = np.inf  # As of what was seen before.
    found, index = retrieval.smallest(jnp.asarray(dist), k)
    order = np.argsort(dist, axis=1, kind='stable')[:, :k]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(
      found, np.take_along_axis(dist, order, axis=1)
    )

  def test_reads_a_gallery_in_a_file(self):
    qf, gf = _features()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    path = f'{folder.name}/gallery.npy'
    np.save(path, gf)
    mapped = np.load(path, mmap_mode='r')
    _, index = retrieval.nearest(qf, mapped, 5, metric='cosine', block=13)
    expected = retrieval.nearest(qf, gf, 5, metric='cosine')[1]
    np.testing.assert_array_equal(index, expected)

  @parameterized.parameters(0, 61)
  def test_bad_k(self, k):
    with self.assertRaisesRegex(ValueError, f'k is {k}; expected 1 to 60'):
      retrieval.nearest(*_features(), k)

  @parameterized.parameters(np.asarray, jnp.asarray)
  def test_integers(self, of):
    qf, gf = _features()
    with self.assertRaisesRegex(ValueError, 'gf is of dtype int32'):
      retrieval.nearest(qf, of(gf.astype(np.int32)), 2)

  @parameterized.parameters(0, 9)
  def test_bad_k_of_a_row(self, k):
    with self.assertRaisesRegex(ValueError, f'k is {k}; expected 1 to 8'):
      retrieval.smallest(jnp.ones((2, 8)), k)

  def test_out_of_range(self):
    large = np.array([[3e20], [-3e20]], np.float32)
    with self.assertRaisesRegex(ValueError, 'too large for float32'):
      retrieval.nearest(large, large, 2)
    with self.assertRaisesRegex(ValueError, r'gf has shape \[0, 1\]'):
      retrieval.nearest(large, large[:0], 1)

  @parameterized.parameters(np.asarray, jnp.asarray)
  def test_nan_in_the_gallery(self, of):
    qf, gf = _features()
    gf[3, 2] = np.nan
    with self.assertRaisesRegex(ValueError, r'gf\[3\] holds NaN'):
      retrieval.nearest(qf, of(gf), 5)


if __name__ == '__main__':
  absltest.main()
