"""Tests of rewiring: the same as one switch after another, and uniform."""

import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import kcore
from tests.kcore import samples

# The package has a function of this name.
lib = sys.modules['jaxpapers.kcore.rewire']
SEQUENCES = tuple(samples.load('null_exact_small.json'))


def sequential_round(edges, order, flip):
  """One switch after the other, as the definition says."""
  edges = [tuple(map(int, edges[i])) for i in order]
  present = {frozenset(edge) for edge in edges}
  h = len(edges) // 2
  accepted = 0
  for t in range(h):
    (a, b), (c, d) = edges[t], edges[h + t]
    if flip[t]:
      c, d = d, c
    new = frozenset((a, d)), frozenset((c, b))
    if a == d or c == b or new[0] in present or new[1] in present:
      continue
    present -= {frozenset((a, b)), frozenset((c, d))}
    present |= set(new)
    edges[t] = a, d
    edges[h + t] = (b, c) if flip[t] else (c, b)
    accepted += 1
  return np.array(edges), accepted


def sequential(key, edges, rounds):
  """The chain of a key: (oriented edges, accepted switches)."""
  total = 0
  for index in range(rounds):
    order, flip = lib.draw_round(key, index, len(edges))
    edges, accepted = sequential_round(
      edges, np.asarray(order), np.asarray(flip)
    )
    total += accepted
  return edges, total


@functools.partial(jax.jit, static_argnums=(2, 3))
def chain(key, edges, n, rounds):
  u, v, accepted = lib.switch_rounds(key, edges[:, 0], edges[:, 1], n, rounds)
  return jnp.stack([u, v], 1), accepted


def all_graphs(degrees):
  """Every labelled simple graph with these degrees, as sorted edge tuples."""
  pairs = list(itertools.combinations(range(len(degrees)), 2))
  found = []

  def extend(start, left, chosen):
    if not any(left):
      found.append(tuple(chosen))
      return
    # Pairs are ordered by their first node: what is before stays as it is.
    for i in range(start, len(pairs)):
      u, v = pairs[i]
      if any(left[:u]):
        return
      if left[u] and left[v]:
        rest = list(left)
        rest[u] -= 1
        rest[v] -= 1
        extend(i + 1, rest, [*chosen, pairs[i]])

  extend(0, list(degrees), [])
  return found


def codes(edges, n):
  """One integer per graph from [..., m, 2] edges."""
  edges = np.asarray(edges).astype(np.int64)
  low, high = edges.min(-1), edges.max(-1)
  index = low * (2 * n - low - 1) // 2 + high - low - 1
  return np.sum(1 << index, axis=-1)


class RoundTest(parameterized.TestCase):
  @parameterized.parameters(('myconnectome608', 0), ('synth_seed0', 0))
  def test_equals_one_switch_after_another(self, name, seed):
    self.check_sequential(name, seed)

  @parameterized.product(name=('myconnectome608', 'synth_seed0'), seed=(1, 2))
  @pytest.mark.nightly
  def test_equals_one_switch_after_another_for_more_keys(self, name, seed):
    self.check_sequential(name, seed)

  def check_sequential(self, name, seed):
    edges, n = samples.network_edges(name)
    key = jax.random.key(seed)
    expected, count = sequential(key, edges, 3)
    found, accepted = chain(key, edges, n, 3)
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(accepted, count)
    self.assertBetween(count, 1, 3 * (len(edges) // 2) - 1)
    # And the public function, whose edges are turned.
    result = kcore.rewire(key, edges, n, rounds=3)
    np.testing.assert_array_equal(result.edges, np.sort(expected, axis=1))
    self.assertEqual(result.accepted, count)

  @parameterized.parameters(*range(8))
  def test_dense_small_graphs_with_long_dependencies(self, seed):
    # Most targets are edges, so what is legal hangs on earlier switches.
    adj = samples.random_graph(seed, n=9 + seed, p=0.6)
    edges, n = kcore.edge_list(adj), len(adj)
    expected, count = sequential(jax.random.key(seed), edges, 5)
    found, accepted = chain(jax.random.key(seed), edges, n, 5)
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(accepted, count)

  def test_numbering_by_sorting_is_the_same(self):
    edges, n = samples.network_edges('myconnectome608')
    u, v = jnp.asarray(edges.T)
    _, flip = lib.draw_round(jax.random.key(4), 0, len(edges))
    step = jax.jit(lib.switch_round, static_argnums=3)
    by_table = step(u, v, flip, n, lib.scratch_table(n))
    by_sorting = step(u, v, flip, n, None)
    for a, b in zip(by_table[:3], by_sorting[:3]):
      np.testing.assert_array_equal(a, b)
    self.assertIsNone(by_sorting[3])
    self.assertIsNone(lib.scratch_table(4096))

  def test_order_is_a_permutation_whatever_the_number(self):
    for m in (2, 3, 5, 8, 1000, 70_000):
      order, flip = lib.draw_round(jax.random.key(1), 3, m)
      np.testing.assert_array_equal(np.sort(order), np.arange(m))
      self.assertEqual(flip.shape, (m // 2,))
      if m >= 1000:
        # Eight standard deviations of a fair coin.
        self.assertAlmostEqual(np.mean(flip), 0.5, delta=4 / np.sqrt(m // 2))
        self.assertLess(np.sum(np.asarray(order) == np.arange(m)), 12)

  @parameterized.parameters('3,2,2,2,3', '1,1,1,1,1,1,1,1')
  def test_law_is_uniform_by_enumeration(self, name):
    # Every graph, every order, every coin: the matrix of transitions is
    # symmetric in whole numbers, so the uniform law is stationary.
    degrees = [int(d) for d in name.split(',')]
    n, m = len(degrees), sum(degrees) // 2
    graphs = all_graphs(degrees)
    expected = samples.load('null_exact_small.json')[name]
    self.assertLen(graphs, expected['n_graphs'])
    orders = np.array(list(itertools.permutations(range(m))))
    coins = np.array(list(itertools.product([False, True], repeat=m // 2)))

    @jax.jit
    def after(edges):
      def one(order, flip):
        u, v = edges[order].T
        u, v, legal, _ = lib.switch_round(u, v, flip, n, lib.scratch_table(n))
        return jnp.stack([u, v], 1), jnp.sum(legal)

      return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(orders, coins)

    index = {int(code): i for i, code in enumerate(codes(graphs, n))}
    counts = np.zeros((len(graphs), len(graphs)), np.int64)
    for i, graph in enumerate(graphs):
      edges, legal = after(jnp.array(graph, jnp.int32))
      found, number = np.unique(codes(edges, n), return_counts=True)
      counts[i, [index[int(code)] for code in found]] = number
      self.assertGreater(np.max(legal), 0)
    np.testing.assert_array_equal(counts, counts.T)
    np.testing.assert_array_equal(counts.sum(1), len(orders) * len(coins))
    # And from each graph to each other in a few rounds.
    reach = np.linalg.matrix_power((counts > 0).astype(float), 4)
    self.assertTrue((reach > 0).all())


class RewireTest(parameterized.TestCase):
  @parameterized.parameters('myconnectome608', 'synth_seed0')
  def test_keeps_degrees_and_stays_simple(self, name):
    edges, n = samples.network_edges(name)
    degrees = np.bincount(edges.ravel(), minlength=n)
    results = []
    for x64 in (False, True):
      with jax.enable_x64(x64):
        new = kcore.rewire(jax.random.key(7), edges, n)
        self.assertEqual(new.edges.dtype, jnp.int32)
        self.assertEqual(new.accepted.dtype, jnp.int32)
      np.testing.assert_array_equal(new.adj.sum(0), degrees)
      np.testing.assert_array_equal(new.adj, new.adj.T)
      self.assertFalse(np.diagonal(new.adj).any())
      self.assertLen(np.unique(new.edges, axis=0), len(edges))
      results.append(np.asarray(new.edges))
    np.testing.assert_array_equal(*results)

  def test_jit_and_vmap_lanes(self):
    edges, n = samples.network_edges('myconnectome608')
    keys = jax.random.split(jax.random.key(0), 3)
    single = [kcore.rewire(key, edges, n, 2) for key in keys]
    lanes = jax.vmap(lambda key: kcore.rewire(key, edges, n, 2))(keys)
    for field in kcore.RewireResult._fields:
      np.testing.assert_array_equal(
        getattr(lanes, field), [getattr(s, field) for s in single]
      )
    jitted = jax.jit(lambda key, e: kcore.rewire(key, e, n, 2))(keys[1], edges)
    for a, b in zip(jitted, single[1]):
      np.testing.assert_array_equal(a, b)

  def test_no_jit(self):
    edges = kcore.edge_list(samples.random_graph(5, n=20, p=0.3))
    expected = kcore.rewire(jax.random.key(0), edges, 20, 2)
    with jax.disable_jit():
      plain = kcore.rewire(jax.random.key(0), edges, 20, 2)
    for a, b in zip(plain, expected):
      np.testing.assert_array_equal(a, b)

  @parameterized.parameters(*SEQUENCES[::2])
  def test_samples_are_uniform(self, name):
    self.check_uniform(name)

  @parameterized.parameters(*SEQUENCES[1::2])
  @pytest.mark.nightly
  def test_more_samples_are_uniform(self, name):
    self.check_uniform(name)

  def check_uniform(self, name):
    from scipy import stats

    case = samples.load('null_exact_small.json')[name]
    degrees = np.array([int(d) for d in name.split(',')])
    n, start = len(degrees), np.array(case['start_edges'])
    keys = jax.random.split(jax.random.key(11), 20_000)
    edges = jax.jit(
      jax.vmap(lambda key: kcore.rewire(key, start, n, 12).edges)
    )(keys)
    ends = np.asarray(edges).reshape(len(keys), -1)
    found = np.sum(ends[:, :, None] == np.arange(n), axis=1)
    np.testing.assert_array_equal(found, np.tile(degrees, (len(keys), 1)))
    self.assertTrue(
      (np.asarray(edges[..., 0]) < np.asarray(edges[..., 1])).all()
    )
    graph = codes(edges, n)
    # A double edge would carry into another bit.
    bits = np.array([int(code).bit_count() for code in graph])
    np.testing.assert_array_equal(bits, len(start))
    _, counts = np.unique(graph, return_counts=True)
    self.assertLen(counts, case['n_graphs'])
    self.assertGreater(stats.chisquare(counts).pvalue, 1e-4)

  def test_padding_stays_and_the_rest_is_rewired(self):
    edges = kcore.edge_list(samples.random_graph(2))
    padded = np.concatenate([edges, np.full((7, 2), 40)])
    new = kcore.rewire(jax.random.key(0), padded, 40, 20)
    pad = np.all(np.asarray(new.edges) == 40, axis=1)
    self.assertEqual(pad.sum(), 7)
    np.testing.assert_array_equal(
      new.adj.sum(0), np.bincount(edges.ravel(), minlength=40)
    )
    self.assertGreater(new.accepted, 3 * len(edges))

  @parameterized.parameters(0, 1)
  def test_fewer_than_two_edges_come_back(self, m):
    edges = np.array([[0, 2]])[:m].reshape(m, 2)
    new = kcore.rewire(jax.random.key(0), edges, 3)
    np.testing.assert_array_equal(new.edges, edges)
    self.assertEqual(new.accepted, 0)
    self.assertEqual(new.adj.sum(), 2 * m)

  def test_complete_graph_has_no_other(self):
    edges = kcore.edge_list(1 - np.eye(6))
    new = kcore.rewire(jax.random.key(0), edges, 6)
    self.assertEqual(new.accepted, 0)

  @pytest.mark.nightly
  def test_a_graph_too_large_for_the_table(self):
    rng = np.random.default_rng(0)
    pairs = np.unique(np.sort(rng.integers(0, 70_000, (90_000, 2)), 1), axis=0)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    key = jax.random.key(0)
    expected, count = sequential(key, pairs, 1)
    found, accepted = chain(key, pairs.astype(np.int32), 70_000, 1)
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(accepted, count)

  def test_bad_input(self):
    key = jax.random.key(0)
    good = np.array([[0, 1], [2, 3]])
    for args, message in (
      ((np.array([[0, 0]]), 3), 'edges holds 1 self-loops'),
      ((np.array([[0, 1], [1, 0]]), 3), 'edges holds 1 edges more than once'),
      ((good, 3), r'edges holds node numbers in \[0, 3\]; expected 0..2'),
      ((good.ravel(), 4), r'edges has shape \(4,\)'),
      ((good, -1), 'num_nodes is -1'),
      ((good, 4, -2), 'rounds is -2'),
      ((good, 4, 1.5), 'rounds is 1.5'),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        kcore.rewire(key, *args)


if __name__ == '__main__':
  absltest.main()
