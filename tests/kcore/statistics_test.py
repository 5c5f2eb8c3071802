"""Tests of the statistics of cores."""

import math

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from jaxpapers.kcore import glm, statistics
from tests.helpers import goldens


class ClusterFrequencyTest(parameterized.TestCase):
  def test_golden(self):
    golden = goldens.load_json('kcore', 'statistics.json')
    test = statistics.cluster_frequency(golden['membership'])
    self.assertEqual(test.count.tolist(), golden['count'])
    for actual, name in (
      (test.frequency, 'frequency'),
      (test.random_level, 'random_level'),
      (test.p_binomial, 'binomial_p_greater'),
      (test.p_exact, 'poisson_binomial_p_greater'),
    ):
      np.testing.assert_allclose(actual, golden[name], rtol=1e-12)

  def test_exact_law_by_enumeration(self):
    # Two networks over three modules, with cores in 1 and 2 of them: a module
    # is held twice with probability 1/3 2/3, at least once with 1 - 2/3 1/3.
    test = statistics.cluster_frequency([[1, 0, 0], [1, 1, 0]])
    np.testing.assert_allclose(test.p_exact, [2 / 9, 7 / 9, 1.0], rtol=1e-14)

  def test_networks_without_core_count(self):
    test = statistics.cluster_frequency([[1, 1], [0, 0]])
    self.assertEqual(test.random_level, 0.5)
    np.testing.assert_allclose(test.p_exact, [1.0, 1.0])

  @parameterized.parameters(([],), ([[]],), ([[0.5, 1]],), ([1, 0],))
  def test_refuses(self, membership):
    with self.assertRaisesRegex(ValueError, 'membership'):
      statistics.cluster_frequency(membership)


class CoreOverlapTest(parameterized.TestCase):
  def _sets(self, total, marked, drawn, shared):
    core, other = np.zeros(total, bool), np.zeros(total, bool)
    core[:drawn] = True
    other[drawn - shared : drawn - shared + marked] = True
    return core, other

  def test_golden(self):
    for case in goldens.load_json('kcore', 'statistics.json')['overlap']:
      sets = self._sets(case['N'], case['K'], case['n_k'], case['n_x'])
      test = statistics.core_overlap(*sets)
      self.assertEqual(test.num_shared, case['n_x'])
      for actual, name in (
        (test.mean, 'mean'),
        (test.std, 'std'),
        (test.p, 'p_greater'),
        (test.z, 'z'),
      ):
        np.testing.assert_allclose(actual, case[name], rtol=1e-12)

  def test_paper_method_finds_anything_significant(self):
    # 3 shared where 2.5 are expected: nothing, and yet p < 1e-5.
    core, other = self._sets(20, 5, 10, 3)
    exact = statistics.core_overlap(core, other)
    paper = statistics.core_overlap(core, other, method='paper')
    self.assertGreater(exact.p, 0.4)
    self.assertLess(paper.p, 1e-5)
    # 5 standard errors of the mean over 1e5 draws.
    self.assertAlmostEqual(paper.mean, exact.mean, delta=5 * exact.std / 316)
    self.assertAlmostEqual(paper.std, exact.std, delta=0.02)

  def test_nothing_to_draw(self):
    test = statistics.core_overlap(np.zeros(5), np.ones(5))
    self.assertEqual((test.p, test.z, test.num_shared), (1.0, 0.0, 0))

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'core has shape'):
      statistics.core_overlap(np.ones(3), np.ones(4))
    with self.assertRaisesRegex(ValueError, 'method is'):
      statistics.core_overlap(np.ones(3), np.ones(3), method='t')
    with self.assertRaisesRegex(ValueError, 'num_draws'):
      statistics.core_overlap(
        np.ones(3), np.ones(3), method='paper', num_draws=1
      )


class ShapeTest(parameterized.TestCase):
  def test_thirds_are_those_of_array_split(self):
    for stream in goldens.load_json('kcore', 'synth_pipeline.json')['streams']:
      outer, middle, inner = stream['tercile_occupancy']
      # Any occupancy with these sums; shell 0 must not matter.
      occupancy = np.zeros(stream['k_max'] + 1)
      occupancy[0] = stream['isolated']
      ends = np.cumsum(
        [len(x) for x in np.array_split(np.arange(stream['k_max']), 3)]
      )
      occupancy[ends] = outer, middle, inner
      thirds = statistics.shell_thirds(occupancy)
      self.assertEqual(thirds.tolist(), stream['tercile_occupancy'])
      self.assertAlmostEqual(
        statistics.u_shape_index(occupancy), 1 - middle / min(outer, inner)
      )

  @parameterized.parameters(
    ([3, 5, 1, 4], 0.75),
    ([3, 1, 5, 4], -4.0),
    ([3, 5, 0, 4], 1.0),
    ([3, 0, 5, 4], -math.inf),
  )
  def test_index(self, occupancy, expected):
    self.assertEqual(statistics.u_shape_index(occupancy), expected)

  def test_too_few_shells(self):
    self.assertTrue(math.isnan(statistics.u_shape_index([4, 3, 2])))
    self.assertTrue(math.isnan(statistics.u_shape_index([4])))

  def test_refuses(self):
    for bad in ([], [[1, 2]], [1, -2]):
      with self.assertRaisesRegex(ValueError, 'occupancy'):
        statistics.u_shape_index(bad)


class MaskTest(absltest.TestCase):
  def test_numbers_of_nodes_are_no_mask(self):
    mask = np.arange(4) < 2
    with self.assertRaisesRegex(ValueError, 'core holds other values'):
      statistics.core_overlap(np.array([0, 3, 5, 7]), mask)
    with self.assertRaisesRegex(ValueError, 'other holds other values'):
      statistics.core_overlap(mask, np.array([0.0, 1.0, np.nan, 1.0]))


class ConsensusTest(parameterized.TestCase):
  def test_golden(self):
    golden = goldens.load_json('kcore', 'statistics.json')['consensus_map']
    maps = np.array(golden['maps'])
    np.testing.assert_array_equal(
      glm.consensus_map(maps, 0.8), np.array(golden['active'], bool)
    )

  def test_fraction_that_rounds(self):
    # 0.07 * 100 is 7.000000000000001 in floating point; seven are enough.
    maps = np.zeros((100, 1))
    maps[:7] = 1
    self.assertTrue(bool(glm.consensus_map(maps, 0.07)[0]))

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'maps'):
      glm.consensus_map(np.ones(3))
    with self.assertRaisesRegex(ValueError, 'fraction'):
      glm.consensus_map(np.ones((2, 3)), 0.0)

  def test_active_voxels_against_scipy(self):
    t = np.linspace(-3, 8, 500)
    for dof, p in ((20, 0.01), (115, 1e-6)):
      np.testing.assert_array_equal(
        glm.active_voxels(t, dof, p), stats.t.sf(t, dof) < p
      )


if __name__ == '__main__':
  absltest.main()
