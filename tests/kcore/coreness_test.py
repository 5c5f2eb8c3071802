"""Tests of coreness and what is read off it."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import kcore
from tests.kcore import samples

METHODS = ('peel', 'allk', 'hindex')
GOLDEN = samples.load('coreness.npz')
NAMES = sorted({key.split('/')[0] for key in GOLDEN})


def golden_graph(name):
  n = int(GOLDEN[f'{name}/n'])
  return kcore.Edges(GOLDEN[f'{name}/edges'].reshape(-1, 2), n)


def padded_graph(name):
  """With isolated nodes and padding: three shapes, so three compilations."""
  graph = golden_graph(name)
  n, m = next(
    (n, m)
    for n, m in ((64, 128), (512, 3400), (1000, 10_000))
    if n >= graph.num_nodes and m >= len(graph.pairs)
  )
  missing = m - len(graph.pairs)
  pairs = np.pad(graph.pairs, ((0, missing), (0, 0)), constant_values=n)
  return kcore.Edges(pairs, n)


def random_edges(n, m, seed):
  """A uniform graph of m edges: pairs drawn until m are different."""
  rng = np.random.default_rng(seed)
  pairs = np.sort(rng.integers(0, n, (2 * m, 2)), axis=1)
  pairs = pairs[pairs[:, 0] < pairs[:, 1]]
  codes, first = np.unique(pairs @ [n, 1], return_index=True)
  del codes
  return pairs[np.sort(first)][:m]


class CorenessTest(parameterized.TestCase):
  @parameterized.product(method=METHODS, x64=(False, True))
  def test_goldens_dense_and_edges(self, method, x64):
    with jax.enable_x64(x64):
      for name in NAMES:
        edges, expected = padded_graph(name), GOLDEN[f'{name}/coreness']
        for graph in (edges, np.asarray(kcore.adjacency_matrix(edges))):
          with self.subTest(name=name, form=type(graph).__name__):
            # A path of 500 nodes would need no larger bound than this.
            core = kcore.coreness(graph, method=method, k_bound=30)
            self.assertEqual(core.dtype, jnp.int32)
            np.testing.assert_array_equal(core[: len(expected)], expected)
            self.assertFalse(core[len(expected) :].any())

  @parameterized.parameters(*METHODS)
  def test_jit_and_vmap_over_graphs(self, method):
    batch = np.stack([samples.random_graph(seed) for seed in range(5)])
    single = [kcore.coreness(adj, method=method) for adj in batch]
    together = jax.jit(
      jax.vmap(lambda adj: kcore.coreness(adj, method=method))
    )(batch)
    np.testing.assert_array_equal(together, single)
    # As edge lists, padded to the longest.
    pairs = [kcore.edge_list(adj) for adj in batch]
    longest = max(map(len, pairs)) + 3
    padded = np.stack(
      [
        np.pad(p, ((0, longest - len(p)), (0, 0)), constant_values=40)
        for p in pairs
      ]
    )
    together = jax.vmap(
      lambda p: kcore.coreness(kcore.Edges(p, 40), method=method)
    )(padded)
    np.testing.assert_array_equal(together, single)

  def test_bound_of_allk_clips(self):
    adj = 1 - np.eye(6, dtype=int)
    np.testing.assert_array_equal(kcore.coreness(adj, method='allk'), 5)
    core = kcore.coreness(adj, method='allk', k_bound=3)
    np.testing.assert_array_equal(core, 3)

  def test_k_core_mask_is_the_level_set_of_coreness(self):
    for name in ('karate', 'er200_m800', 'planted_core300', 'path50'):
      edges, core = golden_graph(name), GOLDEN[f'{name}/coreness']
      for k in range(core.max() + 2):
        mask = kcore.k_core_mask(edges, k)
        np.testing.assert_array_equal(mask, core >= k)

  def test_occupancy_and_bound(self):
    core = GOLDEN['er200_m800/coreness']
    occupancy = kcore.shell_occupancy(core)
    np.testing.assert_array_equal(occupancy, np.bincount(core))
    longer = jax.jit(lambda c: kcore.shell_occupancy(c, 9))(core)
    np.testing.assert_array_equal(longer, np.bincount(core, minlength=10))
    for name in NAMES:
      edges = golden_graph(name)
      degrees = np.bincount(edges.pairs.ravel(), minlength=edges.num_nodes)
      bound = kcore.degeneracy_bound(degrees)
      self.assertGreaterEqual(bound, GOLDEN[f'{name}/coreness'].max())
      expected = max(
        h for h in range(len(degrees) + 1) if np.sum(degrees >= h) >= h
      )
      self.assertEqual(bound, expected)
      self.assertEqual(jax.jit(kcore.degeneracy_bound)(degrees), expected)

  def test_random_graphs_against_theory(self):
    theory = samples.load('er_kcore_theory.json')
    predicted = theory['predicted_core_fraction_infinite_n']
    n = 20_000
    # mean degree -> {k: tolerance}; a wider one where the core has just come.
    cases = {3: {3: 0.0}, 4: {3: 0.02}, 6: {4: 0.02, 5: 0.0}}
    for c, wanted in cases.items():
      pairs = random_edges(n, c * n // 2, seed=c)
      self.assertLen(pairs, c * n // 2)
      core = np.asarray(kcore.coreness(kcore.Edges(pairs, n)))
      for k, tolerance in wanted.items():
        with self.subTest(c=c, k=k):
          fraction = np.mean(core >= k)
          expected = predicted[f'c={c}.0,k={k}']
          self.assertAlmostEqual(fraction, expected, delta=tolerance)

  def test_weights_do_not_count(self):
    adj = samples.random_graph(3)
    expected = kcore.coreness(adj)
    np.testing.assert_array_equal(kcore.coreness(adj * 0.3), expected)

  def test_no_nodes_and_no_edges(self):
    for method in METHODS:
      self.assertEqual(kcore.coreness(np.zeros((0, 0)), method=method).size, 0)
      empty = kcore.Edges(np.zeros((0, 2), int), 4)
      core = kcore.coreness(empty, method=method)
      np.testing.assert_array_equal(core, np.zeros(4))

  def test_fraction_of_a_neighbour(self):
    adj = samples.random_graph(5)
    core = np.asarray(kcore.coreness(adj))
    self.assertGreater(core.max(), 3)
    for k in (-1.5, 0.0, 2.5, np.float32(1.2), 3.0, np.inf, -np.inf, 7):
      np.testing.assert_array_equal(kcore.k_core_mask(adj, k), core >= k)
    mask = jax.jit(kcore.k_core_mask)(adj, 2.5)
    np.testing.assert_array_equal(mask, core >= 3)
    with self.assertRaisesRegex(ValueError, 'k is nan'):
      kcore.k_core_mask(adj, np.nan)
    with self.assertRaisesRegex(ValueError, 'k has shape'):
      kcore.k_core_mask(adj, np.arange(3))
    with self.assertRaisesRegex(ValueError, 'coreness has a negative entry'):
      kcore.shell_occupancy(np.array([2, -1]))

  def test_bad_input(self):
    good = samples.random_graph(0)
    directed = good.copy()
    directed[0, 1] ^= True
    loop = good.astype(float)
    loop[2, 2] = 1
    hole = good.astype(float)
    hole[0, 1] = hole[1, 0] = np.nan
    edges = kcore.Edges
    for graph, message in (
      (directed, 'adj is not symmetric'),
      (loop, 'adj has 1 self-loops'),
      (hole, 'adj has 2 entries that are NaN'),
      (good[:3], r'adj has shape \(3, 40\)'),
      (edges(np.array([[0, 0]]), 3), 'edges holds 1 self-loops'),
      (edges(np.array([[0, 1], [1, 0]]), 3), 'edges holds 1 edges more than'),
      (edges(np.array([[0, 3], [0, 1]]), 3), r'node numbers in \[0, 3\]'),
      (edges(np.array([[0, -1]]), 3), r'node numbers in \[-1, 0\]'),
      (edges(np.array([0, 1]), 3), r'edges has shape \(2,\)'),
      (edges(np.array([[0.0, 1.0]]), 3), 'edges has dtype float64'),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        kcore.coreness(graph)
      with self.assertRaisesRegex(ValueError, message):
        kcore.k_core_mask(graph, 2)
    with self.assertRaisesRegex(ValueError, "method is 'fast'"):
      kcore.coreness(good, method='fast')
    with self.assertRaisesRegex(ValueError, 'k_bound is -1'):
      kcore.coreness(good, method='allk', k_bound=-1)
    with self.assertRaisesRegex(ValueError, 'k_max is 1 but coreness goes'):
      kcore.shell_occupancy(np.array([2, 1]), 1)
    with self.assertRaisesRegex(ValueError, 'k_max is needed under jit'):
      jax.jit(kcore.shell_occupancy)(np.array([2, 1]))
    with self.assertRaisesRegex(ValueError, 'degrees has a negative entry'):
      kcore.degeneracy_bound([-1, 2])


if __name__ == '__main__':
  absltest.main()
