"""Tests of usage metrics."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxpapers.product_keys import usage
from tests.helpers import goldens

META = goldens.load_json('product_keys', 'pub_meta.json')


class UsageTest(absltest.TestCase):
  def test_golden_in_batches(self):
    golden = goldens.load_npz('product_keys', 'pub_pk_medium.npz')
    state = usage.memory_usage_init(64 * 64)
    update = jax.jit(usage.memory_usage_update)
    for part in np.split(np.arange(64), 4):
      state = update(state, golden['indices'][part], golden['weights'][part])
    report = usage.memory_usage_report(state)
    expected = META['usage_of_pub_pk_medium']
    self.assertEqual(report['usage'], expected['x_mem_used'])
    for name, value in report.items():
      if name != 'usage':
        tolerance = 1e-5 if name[:3] != 'top' else 0
        # The original sums in float32.
        np.testing.assert_allclose(
          value, expected[f'x_mem_{name}'], atol=tolerance, err_msg=name
        )

  def test_padding_and_shards(self):
    ids = jnp.array([[0, 1], [2, 4], [3, 3]])
    weights = jnp.array([[0.5, 0.5], [0.25, 0.75], [0.1, 0.2]])
    mask = jnp.array([True, True, False])
    empty = usage.memory_usage_init(4)
    whole = usage.memory_usage_update(empty, ids, weights, mask)
    self.assertEqual(whole.counts.tolist(), [1, 1, 1, 0])
    np.testing.assert_allclose(whole.mass, [0.5, 0.5, 0.25, 0], rtol=1e-6)
    parts = [
      usage.memory_usage_update(empty, ids[i : i + 1], weights[i : i + 1])
      for i in range(2)
    ]
    total = jax.tree.map(jnp.add, *parts)
    jax.tree.map(np.testing.assert_array_equal, total, whole)

  def test_by_head(self):
    random = np.random.default_rng(0)
    ids = jnp.asarray(random.integers(0, 20, (6, 2, 3)), jnp.int32)
    weights = jnp.asarray(random.random((6, 2, 3)), jnp.float32)
    state = usage.memory_usage_update(
      usage.memory_usage_init(20, heads=2),
      ids.reshape(6, 6),
      weights.reshape(6, 6),
    )
    whole = usage.memory_usage_init(20)
    reports = usage.memory_usage_by_head(state)
    for head in range(2):
      one = usage.memory_usage_update(whole, ids[:, head], weights[:, head])
      self.assertEqual(reports[head], usage.memory_usage_report(one))
    both = usage.memory_usage_report(
      usage.memory_usage_update(whole, ids, weights)
    )
    for name, value in usage.memory_usage_report(state).items():
      self.assertAlmostEqual(value, both[name], places=5, msg=name)
    with self.assertRaisesRegex(ValueError, 'multiple of the 2 heads'):
      usage.memory_usage_update(
        state, jnp.zeros((4, 3), jnp.int32), jnp.ones((4, 3))
      )

  def test_measure(self):
    # A model of two layers whose reads the batch itself says.
    def reads_of(variables, batch):
      read = {'ids': batch, 'weights': variables * jnp.ones(batch.shape)}
      return {
        'first': {'values': read},
        'block': {'second': {'down': read, 'up': {'ids': batch}}},
      }

    batches = [jnp.array([[0, 1]]), jnp.array([[1, 3], [1, 4]])]
    found = usage.measure_usage(reads_of, jnp.float32(0.5), batches, 4)
    self.assertEqual(list(found), ['block/second', 'first'])
    for state in found.values():
      self.assertEqual(state.counts.tolist(), [1, 3, 0, 1])
      self.assertEqual(state.mass.tolist(), [0.5, 1.5, 0, 0.5])
    total = usage.sum_usage(found.values())
    self.assertEqual(total.counts.tolist(), [2, 6, 0, 2])
    self.assertEqual(total.mass.tolist(), [1, 3, 0, 1])
    with self.assertRaisesRegex(ValueError, 'batches is empty'):
      usage.measure_usage(reads_of, 1.0, [], 4)
    with self.assertRaisesRegex(ValueError, 'leaves no reads'):
      usage.measure_usage(lambda v, b: {}, 1.0, batches, 4)

  def test_goes_on_beyond_2_to_the_24(self):
    state = usage.memory_usage_init(2)._replace(
      mass=jnp.full((2,), 2.0**24), counts=jnp.full((2,), 2**24, jnp.uint32)
    )
    update = jax.jit(usage.memory_usage_update)
    for _ in range(6):
      state = update(state, jnp.array([[0]]), jnp.array([[1.0]]))
    self.assertEqual(state.counts.tolist(), [2**24 + 6, 2**24])
    self.assertEqual(
      float(np.float64(state.mass[0]) + state.lost[0]), 2**24 + 6
    )

  def test_extremes(self):
    even = usage.memory_usage_update(
      usage.memory_usage_init(8), jnp.arange(8)[None], jnp.ones((1, 8))
    )
    report = usage.memory_usage_report(even)
    self.assertEqual(report['usage'], 100)
    self.assertAlmostEqual(report['kl_w'], 0, places=6)
    one = usage.memory_usage_update(
      usage.memory_usage_init(8), jnp.array([[5]]), jnp.ones((1, 1))
    )
    report = usage.memory_usage_report(one)
    self.assertEqual(report['usage'], 12.5)
    self.assertAlmostEqual(report['kl_w'], np.log(8), places=6)
    self.assertEqual(report['top99_w'], 1)

  def test_bad_input(self):
    state = usage.memory_usage_init(4)
    ids = jnp.zeros((2, 3), jnp.int32)
    with self.assertRaisesRegex(ValueError, 'num_slots is 0'):
      usage.memory_usage_init(0)
    with self.assertRaisesRegex(ValueError, 'heads is 0'):
      usage.memory_usage_init(4, heads=0)
    with self.assertRaisesRegex(ValueError, 'weights has shape'):
      usage.memory_usage_update(state, ids, jnp.ones((3, 2)))
    with self.assertRaisesRegex(ValueError, 'mask has shape'):
      usage.memory_usage_update(
        state, ids, jnp.ones((2, 3)), jnp.ones((3,), bool)
      )
    with self.assertRaisesRegex(ValueError, 'state has no reads'):
      usage.memory_usage_report(state)


if __name__ == '__main__':
  absltest.main()
