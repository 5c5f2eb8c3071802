"""Tests of null ensembles."""

import pathlib
import sys
import tempfile
import warnings

import jax
import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers import kcore
from tests.helpers import devices
from tests.kcore import samples


def small():
  edges = kcore.edge_list(samples.random_graph(0))
  return jax.random.key(3), edges, 40


def folder(test):
  made = tempfile.TemporaryDirectory()
  test.addCleanup(made.cleanup)
  return pathlib.Path(made.name)


def assert_same(a, b):
  for x, y in zip(a, b):
    np.testing.assert_array_equal(x, y)


class GoldenTest(absltest.TestCase):
  def assert_matches(self, null, golden, delta):
    number, expected_number = len(null.k_max), golden['R']
    self.assertAlmostEqual(
      null.k_max.mean(), golden['null_k_max_mean'], delta=delta
    )
    mean = np.array(golden['null_mean_shell_occupancy'])
    std = np.array(golden['null_std_shell_occupancy'])
    ours = np.pad(null.occ_mean, (0, len(mean)))[: len(mean)]
    # Five standard errors of the two means together. Where igraph met a shell
    # in no null or in few, its own spread says nothing: one node in one null.
    error = std * np.sqrt(1 / number + 1 / expected_number) + 1 / number
    np.testing.assert_array_less(np.abs(ours - mean), 5 * error + 1e-4)
    self.assertEqual(null.occ_std[0], 0)
    self.assertEqual(null.occ_mean[0], mean[0])
    self.assertEqual(null.p_value(golden['real_k_max']), 1 / (1 + number))

  def test_myconnectome(self):
    golden = samples.load('null_myconnectome.json')
    edges, n = samples.network_edges('myconnectome608')
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      null = kcore.null_coreness(jax.random.key(0), edges, n, 1000)
    self.assert_matches(null, golden, delta=0.07)
    self.assertLen(null.occ_mean, golden['degree_sequence_h_index'] + 1)
    self.assertTrue(null.mixed)
    self.assertGreater(null.swaps_per_edge, 8)
    self.assertAlmostEqual(
      null.z_score(8), (8 - null.k_max.mean()) / null.k_max.std()
    )

  @pytest.mark.slow
  def test_dense_core(self):
    golden = samples.load('null_synth_seed0.json')
    edges, n = samples.network_edges('synth_seed0')
    # 82.24 with a standard error of 0.06 here and 0.03 there; what 20 rounds
    # leave of the start is within 0.3, and the warning says that they are few.
    with self.assertWarnsRegex(kcore.UnderMixedWarning, 'swaps per edge in 20'):
      null = kcore.null_coreness(jax.random.key(0), edges, n, 200)
    self.assert_matches(null, golden, delta=0.3)

  def test_dense_core_needs_its_rounds(self):
    # Under-mixed nulls have a k_max that is too high, and it is seen.
    edges, n = samples.network_edges('synth_seed0')
    mixing = kcore.null_mixing(
      jax.random.key(0), edges, n, rounds=(1, 20), num_nulls=12
    )
    early, late = mixing.mean
    self.assertGreater(early, 84)
    # 82.24 with a standard deviation of 0.73; four standard errors.
    self.assertAlmostEqual(late, 82.24, delta=4 * 0.73 / np.sqrt(12))
    change, error = mixing.drift[:, 0]
    self.assertLess(change, -3 * error)
    self.assertLess(*mixing.swaps_per_edge)


class NullCorenessTest(absltest.TestCase):
  def test_is_coreness_of_rewired_graphs(self):
    key, edges, n = small()
    null = kcore.null_coreness(key, edges, n, 6)
    occupancy = []
    for i in range(6):
      new = kcore.rewire(jax.random.fold_in(key, i), edges, n)
      core = np.asarray(kcore.coreness(new.adj))
      self.assertEqual(null.k_max[i], core.max())
      self.assertEqual(null.accepted[i], new.accepted)
      occupancy.append(np.bincount(core, minlength=len(null.occ_mean)))
    np.testing.assert_allclose(null.occ_mean, np.mean(occupancy, 0), rtol=1e-15)
    np.testing.assert_allclose(null.occ_std, np.std(occupancy, 0), rtol=1e-12)

  def test_chunks_and_x64_change_nothing(self):
    key, edges, n = small()
    expected = kcore.null_coreness(key, edges, n, 10)
    assert_same(kcore.null_coreness(key, edges, n, 10, chunk=3), expected)
    with jax.enable_x64(True):
      assert_same(kcore.null_coreness(key, edges, n, 10), expected)

  def test_lanes_change_nothing(self):
    # What an accelerator does: several nulls at once, by vmap.
    lib = sys.modules['jaxpapers.kcore.null']
    key, edges, n = small()
    index = np.arange(7, dtype=np.int32)
    args = (key, index, edges.astype(np.int32), n, 5, 9, None)
    assert_same(lib._ensemble(*args, 4), lib._ensemble(*args, 1))
    self.assertEqual(lib._lanes(608, 256, 'cpu'), 1)
    self.assertEqual(lib._lanes(608, 256, 'gpu'), 256)
    self.assertEqual(lib._lanes(4000, 256, 'gpu'), 16)
    self.assertEqual(lib._lanes(10_000, 256, 'gpu'), 256)

  def test_resumes_to_the_same_numbers(self):
    key, edges, n = small()
    expected = kcore.null_coreness(key, edges, n, 9, chunk=4)
    states = []
    kcore.null_coreness(key, edges, n, 6, chunk=4, on_chunk=states.append)
    self.assertEqual([state.done for state in states], [4, 6])
    path = folder(self) / 'new' / 'null.npz'
    for state in states:
      kcore.save_null_state(path, state)
      self.assertEqual([p.name for p in path.parent.iterdir()], ['null.npz'])
      loaded = kcore.load_null_state(path)
      assert_same(loaded, state)
      again = kcore.null_coreness(key, edges, n, 9, chunk=5, state=loaded)
      assert_same(again, expected)
    complete = kcore.null_coreness(key, edges, n, 6, state=states[-1])
    np.testing.assert_array_equal(complete.k_max, expected.k_max[:6])

  def test_state_of_another_run_is_refused(self):
    key, edges, n = small()
    state = next(kcore.null_chunks(key, edges, n, 4))
    for change in (
      {'key': jax.random.key(9)},
      {'edges': edges[1:]},
      {'num_nodes': 41},
      {'rounds': 21},
    ):
      args = {'key': key, 'edges': edges, 'num_nodes': n} | change
      with self.assertRaisesRegex(ValueError, 'state belongs to another run'):
        kcore.null_coreness(num_nulls=4, state=state, **args)
    with self.assertRaisesRegex(ValueError, 'state holds 4 nulls already'):
      kcore.null_coreness(key, edges, n, 3, state=state)

  def test_other_files_are_refused(self):
    path = folder(self) / 'other.npz'
    np.savez(path, x=1)
    with self.assertRaisesRegex(ValueError, 'is no state of a null ensemble'):
      kcore.load_null_state(path)

  def test_under_mixed_is_said_with_the_number(self):
    key, edges, n = small()
    with self.assertWarnsRegex(
      kcore.UnderMixedWarning, r'0\.\d\d accepted swaps per edge in 1 rounds'
    ):
      null = kcore.null_coreness(key, edges, n, 4, rounds=1)
    self.assertFalse(null.mixed)
    # Enough rounds, but nothing can be switched.
    complete = kcore.edge_list(1 - np.eye(5))
    with self.assertWarnsRegex(kcore.UnderMixedWarning, r'0\.00 accepted'):
      null = kcore.null_coreness(key, complete, 5, 2)
    self.assertEqual(null.p_value(4), 1.0)
    self.assertEqual(null.z_score(4), 0.0)
    self.assertEqual(null.z_score(5), np.inf)

  def test_mixing_follows_the_chains_of_the_ensemble(self):
    key, edges, n = small()
    null = kcore.null_coreness(key, edges, n, 5)
    mixing = kcore.null_mixing(key, edges, n, rounds=(3, 20), num_nulls=5)
    np.testing.assert_array_equal(mixing.k_max[:, 1], null.k_max)
    self.assertAlmostEqual(mixing.swaps_per_edge[1], null.swaps_per_edge)

  def test_padding_is_left_out(self):
    key, edges, n = small()
    padded = np.concatenate([edges, np.full((5, 2), n)])
    expected = kcore.null_coreness(key, edges, n, 3)
    assert_same(kcore.null_coreness(key, padded, n, 3), expected)

  @pytest.mark.slow
  def test_eight_devices_are_one_device(self):
    key, edges, n = small()
    expected = kcore.null_coreness(key, edges, n, 20, chunk=5)
    mixing = kcore.null_mixing(key, edges, n, rounds=(2, 4), num_nulls=9)
    out = devices.run("""
      import jax, numpy as np
      from jaxpapers import kcore
      from tests.kcore import null_test
      key, edges, n = null_test.small()
      kinds = jax.sharding.AxisType
      for kind in (kinds.Auto, kinds.Explicit):
        mesh = jax.make_mesh((4, 2), ('a', 'b'), (kind, kind))
        seen = []
        null = kcore.null_coreness(
          key, edges, n, 20, chunk=5, mesh=mesh,
          on_chunk=lambda state: seen.append(state.done))
        assert seen == [8, 16, 20], seen
      mixing = kcore.null_mixing(
        key, edges, n, rounds=(2, 4), num_nulls=9, mesh=mesh)
      print(null.k_max.tolist(), null.accepted.tolist(), mixing.k_max.tolist())
    """)
    found = [
      null_list
      for null_list in (
        expected.k_max.tolist(),
        expected.accepted.tolist(),
        mixing.k_max.tolist(),
      )
    ]
    self.assertEqual(out.strip(), ' '.join(map(str, found)))

  def test_number_of_nodes_from_a_file(self):
    key, edges, n = small()
    number = np.asarray(n)
    np.testing.assert_array_equal(
      kcore.null_coreness(key, edges, number, 3).k_max,
      kcore.null_coreness(key, edges, n, 3).k_max,
    )
    mixing = kcore.null_mixing(key, edges, number, rounds=(1, 2), num_nulls=3)
    self.assertEqual(mixing.k_max.shape, (3, 2))

  def test_bad_input(self):
    key, edges, n = small()
    null = kcore.null_coreness
    for call, message in (
      (lambda: null(key, edges, n, 0), 'num_nulls is 0'),
      (lambda: null(key, edges, n, 2.5), 'num_nulls is 2.5'),
      (lambda: null(key, edges, n, 2, chunk=0), 'chunk is 0'),
      (lambda: null(key, edges, n, 2, rounds=-1), 'rounds is -1'),
      (lambda: null(key, edges, n, 2, rounds=2**31), 'not fit into 32 bits'),
      (lambda: null(key, edges, 4, 2), 'edges holds node numbers'),
      (lambda: null(key, edges[:, ::2], n, 2), r'edges has shape'),
      (
        lambda: kcore.null_mixing(key, edges, n, rounds=(5, 5)),
        r'rounds is \(5, 5\)',
      ),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        call()
    empty = next(kcore.null_chunks(key, edges, n, 1))._replace(done=0)
    with self.assertRaisesRegex(ValueError, 'state holds no null'):
      kcore.summarize(empty, 3, 20)


if __name__ == '__main__':
  absltest.main()
