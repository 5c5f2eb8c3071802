"""Tests of percolation curves and merge thresholds."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import kcore
from tests.kcore import samples


def component_labels(adj):
  """Label of the component of each node, by closure of the matrix."""
  n = len(adj)
  reach = adj | np.eye(n, dtype=bool)
  while True:
    wider = (reach.astype(int) @ reach) > 0
    if np.array_equal(wider, reach):
      return np.argmax(reach, axis=1)
    reach = wider


def random_levels(seed, n=14, high=12):
  """Few levels, so many ties; -1 is no link."""
  levels = np.random.default_rng(seed).integers(-1, high, (n, n))
  levels = np.triu(levels, 1)
  return (levels + levels.T - np.eye(n, dtype=int)).astype(np.int32)


def distinct(curve):
  """(levels, S1, S2), one entry per distinct level, descending."""
  level, index = np.unique(-np.asarray(curve.level), return_index=True)
  return -level, np.asarray(curve.giant)[index], np.asarray(curve.second)[index]


class PercolationCurveTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_golden_exact(self, x64):
    golden = samples.load('percolation.npz')
    levels, values = kcore.quantize_levels(golden['small/C'])
    with jax.enable_x64(x64):
      curve = kcore.percolation_curve(levels)
    level, giant, second = distinct(curve)
    np.testing.assert_array_equal(values[level], golden['small/levels'])
    np.testing.assert_array_equal(giant, golden['small/S1'])
    np.testing.assert_array_equal(second, golden['small/S2'])
    self.assertEqual(curve.giant.dtype, np.int32)

  @parameterized.parameters(
    'small', 'synth_seed0', 'synth_seed1', 'myconnectome608'
  )
  def test_golden_grid(self, name):
    golden = samples.load('percolation.npz')
    if name == 'small':
      corr = golden['small/C']
    elif name == 'myconnectome608':
      corr, _ = samples.myconnectome()
    else:
      made = kcore.synth_bold(int(name[-1]))
      corr = kcore.correlation_matrix(made.series)
    levels, values = kcore.quantize_levels(corr, 0.01)
    thresholds = golden['small/grid_lambda']
    self.assertLen(thresholds, 100)
    index = np.round((thresholds - values[0]) / 0.01).astype(np.int32)
    giant = kcore.giant_at(kcore.percolation_curve(levels), index)
    np.testing.assert_array_equal(giant, golden[f'{name}/grid_S1'])

  @parameterized.parameters(0, 1, 2)
  def test_ties_and_missing_links_against_brute_force(self, seed):
    levels = random_levels(seed)
    curve = kcore.percolation_curve(levels)
    for level, giant, second in zip(curve.level, curve.giant, curve.second):
      label = component_labels(levels >= level)
      sizes = np.append(np.sort(np.bincount(label))[::-1], 0)
      self.assertEqual(int(giant), sizes[0])
      self.assertEqual(int(second), sizes[1])
    for level in range(14):
      label = component_labels(levels >= level)
      self.assertEqual(kcore.giant_at(curve, level), np.bincount(label).max())

  def test_tree_has_the_weight_of_the_maximum_spanning_tree(self):
    from scipy.sparse import csgraph

    weights = np.random.default_rng(3).random((30, 30)).astype(np.float32)
    weights = np.triu(weights, 1) + np.triu(weights, 1).T
    curve = kcore.percolation_curve(weights)
    tree = csgraph.minimum_spanning_tree(2.0 - np.triu(weights, 1))
    expected = np.sort(2.0 - tree.data)[::-1]
    # Float weights are levels as they are.
    np.testing.assert_allclose(curve.level, expected, atol=1e-6)
    u, v = np.asarray(curve.mst_edges).T
    np.testing.assert_array_equal(curve.level, weights[u, v])

  def test_jit_and_vmap(self):
    batch = np.stack([random_levels(seed) for seed in range(4)])
    together = jax.jit(jax.vmap(kcore.percolation_curve))(batch)
    for lane, levels in enumerate(batch):
      single = kcore.percolation_curve(levels)
      for a, b in zip(together, single):
        np.testing.assert_array_equal(a[lane], b)

  def test_one_node(self):
    curve = kcore.percolation_curve(np.zeros((1, 1), np.int32))
    self.assertEqual(curve.giant.shape, (0,))
    self.assertEqual(kcore.giant_at(curve, 3), 1)

  def test_bad_input(self):
    levels = random_levels(0)
    with self.assertRaisesRegex(ValueError, 'levels has shape'):
      kcore.percolation_curve(levels[:3])
    levels[0, 1] += 1
    with self.assertRaisesRegex(ValueError, 'levels is not symmetric'):
      kcore.percolation_curve(levels)


def brute_thresholds(levels, module, num_modules, quorum):
  size = np.bincount(module, minlength=num_modules)
  out = np.full((num_modules, num_modules), -1)
  for level in range(levels.max(), -1, -1):
    for component in (lab := component_labels(levels >= level)):
      count = np.bincount(module[lab == component], minlength=num_modules)
      there = count > quorum * size
      out[there[:, None] & there[None] & (out < 0)] = level
  return out


class HeldByJaxTest(absltest.TestCase):
  def test_weights_that_would_become_one(self):
    weights = np.array([[0, 0.5, 0.2], [0.5, 0, 0.5], [0.2, 0.5, 0]])
    weights[0, 1] = weights[1, 0] = np.nextafter(0.5, 1)
    with self.assertRaisesRegex(ValueError, 'levels has dtype float64'):
      kcore.percolation_curve(weights)
    with self.assertRaisesRegex(ValueError, 'levels has dtype int64'):
      kcore.percolation_curve(np.array([[0, 2**40], [2**40, 0]]))
    with jax.enable_x64(True):
      giant = np.asarray(kcore.percolation_curve(weights).giant)
    np.testing.assert_array_equal(giant, [2, 3])
    levels, _ = kcore.quantize_levels(weights)
    np.testing.assert_array_equal(kcore.percolation_curve(levels).giant, giant)

  def test_thresholds_under_jit_with_a_quorum(self):
    levels = random_levels(3)
    module = np.arange(14) % 2
    merge = kcore.module_merge_thresholds
    found = jax.jit(merge, static_argnums=2)(levels, module, 2, 0.5)
    for a, b in zip(found, merge(levels, module, 2, 0.5), strict=True):
      np.testing.assert_array_equal(a, b)


class ModuleMergeTest(parameterized.TestCase):
  @parameterized.product(seed=(0, 1), quorum=(0.0, 0.3, 0.5, 0.7))
  def test_against_brute_force(self, seed, quorum):
    levels = random_levels(seed)
    module = np.random.default_rng(seed).permutation(np.arange(14) % 3)
    expected = brute_thresholds(levels, module, 3, quorum)
    inside, between = kcore.module_merge_thresholds(levels, module, 3, quorum)
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_array_equal(np.asarray(between)[off], expected[off])
    first = np.where(off, expected, -1).max(1)
    np.testing.assert_array_equal(inside, np.where(first < 0, -1, first + 1))
    if quorum:  # With quorum 0 one node is enough of its own module.
      np.testing.assert_array_equal(np.diagonal(between), np.diag(expected))

  def test_jit_vmap_and_x64(self):
    batch = np.stack([random_levels(seed) for seed in range(3)])
    module = np.arange(14) % 3
    single = [kcore.module_merge_thresholds(x, module, 3) for x in batch]

    def merge(levels, module):
      return kcore.module_merge_thresholds(levels, module, 3)

    for x64 in (False, True):
      with jax.enable_x64(x64):
        inside, between = jax.jit(jax.vmap(merge, (0, None)))(batch, module)
      np.testing.assert_array_equal(inside, [s[0] for s in single])
      np.testing.assert_array_equal(between, [s[1] for s in single])

  def test_modules_that_never_merge(self):
    levels = np.full((4, 4), -1, np.int32)
    levels[0, 1] = levels[1, 0] = 5
    inside, between = kcore.module_merge_thresholds(levels, [0, 0, 1, 1], 2)
    np.testing.assert_array_equal(inside, [-1, -1])
    np.testing.assert_array_equal(between, [[5, -1], [-1, -1]])

  def test_bad_input(self):
    levels = random_levels(0)
    module = np.arange(14) % 3
    merge = kcore.module_merge_thresholds
    for args, message in (
      ((levels, module[:5], 3), r'module has shape \(5,\)'),
      ((levels, module * 1.0, 3), 'module has dtype float64'),
      ((levels, module - 1, 3), r'module holds labels in \[-1, 1\]'),
      ((levels, module, 4), r'module: no node has label \[3\]'),
      ((levels, None, 3), 'module is None'),
      ((levels, module, 3, 1.0), 'quorum is 1.0'),
      ((levels * 1.0, module, 3), 'levels has dtype float'),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        merge(*args)


if __name__ == '__main__':
  absltest.main()
