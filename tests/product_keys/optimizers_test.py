"""Tests of the optimizers of value tables."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers.product_keys import lazy_rows, optimizers
from jaxpapers.product_keys.row_sparse import RowSparse, row_sparse_sum
from tests.helpers import goldens

META = goldens.load_json('product_keys', 'pub_meta.json')


def golden_gradient(golden, step):
  """The gradient of a step, rows with equal ids summed."""
  ids = jnp.asarray(golden['idx'][step])
  rows = goldens.normal(f'pub_opt/rows/{step}', (10, 12)).astype(np.float32)
  return row_sparse_sum([(ids[:, None], jnp.ones((10, 1)), rows)], 64)


def initial():
  w = goldens.normal('pub_opt/values', (64, 12), 12**-0.5)
  return jnp.asarray(w, jnp.float32)


def steps(tx, params, gradients):
  state = tx.init(params)
  update = jax.jit(tx.update)
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters('rows', 'masked', 'auto')
  def test_sparse_adam(self, formulation):
    golden = goldens.load_npz('product_keys', 'pub_opt.npz')
    tx = optimizers.lazy_adam(1e-3, formulation=formulation)
    gradients = [golden_gradient(golden, step) for step in range(6)]
    for count in (3, 6):
      values, state = steps(tx, initial(), gradients[:count])
      # Four ulps of values near 1.
      np.testing.assert_allclose(
        values, golden[f'sparse_adam_after{count}'], rtol=0, atol=5e-7
      )
    np.testing.assert_allclose(
      state[0].mu, golden['sparse_adam_exp_avg'], rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(
      state[0].nu, golden['sparse_adam_exp_avg_sq'], rtol=0, atol=1e-6
    )

  @parameterized.parameters(True, False)
  def test_xlm_adam(self, sparse):
    golden = goldens.load_npz('product_keys', 'pub_opt.npz')
    gradients = [golden_gradient(golden, step) for step in range(6)]
    if not sparse:
      gradients = [g.dense(64) for g in gradients]
    for count in (3, 6):
      values, _ = steps(optimizers.xlm_adam(1e-3), initial(), gradients[:count])
      np.testing.assert_allclose(
        values, golden[f'dense_adam_after{count}'], rtol=0, atol=5e-7
      )

  def test_inverse_sqrt(self):
    schedule = optimizers.inverse_sqrt_schedule(2.5e-4, 4000, 1e-7)
    for step, rate in META['inverse_sqrt_lr'].items():
      np.testing.assert_allclose(schedule(int(step)), rate, rtol=1e-6)
      np.testing.assert_allclose(jax.jit(schedule)(int(step)), rate, rtol=1e-6)


class LazyAdamTest(parameterized.TestCase):
  @parameterized.parameters('rows', 'masked')
  def test_rows_that_were_not_read_keep_every_bit(self, formulation):
    tx = optimizers.lazy_adam(
      1e-2, formulation=formulation, skip_correction=True
    )
    params = initial()
    state = tx.init(params)
    rng = np.random.default_rng(0)
    for _ in range(4):
      ids = np.sort(rng.choice(64, 5, replace=False)).astype(np.int32)
      rows = rng.standard_normal((5, 12)).astype(np.float32)
      gradient = RowSparse(jnp.asarray(ids), jnp.asarray(rows))
      updates, new = jax.jit(tx.update)(gradient, state, params)
      moved = optax.apply_updates(params, updates)
      others = np.setdiff1d(np.arange(64), ids)
      for before, after in zip(
        (params, state[0].mu, state[0].nu, state[0].last),
        (moved, new[0].mu, new[0].nu, new[0].last),
      ):
        np.testing.assert_array_equal(before[others], after[others])
        self.assertTrue((np.asarray(before[ids]) != after[ids]).any(-1).all())
      params, state = moved, new

  def test_formulations_agree(self):
    golden = goldens.load_npz('product_keys', 'pub_opt.npz')
    gradients = [golden_gradient(golden, step) for step in range(6)]
    for correction in (False, True):
      rows, masked = (
        steps(
          optimizers.lazy_adam(1e-3, formulation=f, skip_correction=correction),
          initial(),
          gradients,
        )
        for f in ('rows', 'masked')
      )
      for a, b in zip(jax.tree.leaves(rows), jax.tree.leaves(masked)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)

  @parameterized.parameters(1, 24, 36)
  def test_rows_a_few_at_a_time_are_the_same(self, chunk):
    # 10 rows of 12: one, two or three at a time, the last time fewer.
    golden = goldens.load_npz('product_keys', 'pub_opt.npz')
    gradients = [golden_gradient(golden, step) for step in range(3)]
    results = []
    for size in (lazy_rows._CHUNK, chunk):
      with mock.patch.object(lazy_rows, '_CHUNK', size):
        tx = optimizers.lazy_adam(
          1e-3, formulation='rows', skip_correction=True
        )
        results.append(steps(tx, initial(), gradients))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
      *results,
    )

  def test_skip_correction_is_decay_by_zero_gradients(self):
    lazy = optimizers.lazy_adam(1e-2, skip_correction=True)
    dense = optimizers.xlm_adam(1e-2)
    read = RowSparse(jnp.array([2]), jnp.ones((1, 12)))
    other = RowSparse(jnp.array([5]), jnp.ones((1, 12)))
    gradients = [read, other, other, other, read]
    _, state = steps(lazy, initial(), gradients)
    _, wanted = steps(dense, initial(), gradients)
    for name in ('mu', 'nu'):
      np.testing.assert_allclose(
        getattr(state[0], name)[2], getattr(wanted[1], name)[2], rtol=1e-5
      )

  def test_where_eps_is_added(self):
    for mode, expected in (('torch', 0.24), ('optax', 0.91)):
      tx = optimizers.lazy_adam(1.0, eps_mode=mode, formulation='rows')
      gradient = RowSparse(jnp.array([0]), jnp.full((1, 2), 1e-7))
      updates, _ = tx.update(gradient, tx.init(jnp.zeros((3, 2))))
      np.testing.assert_allclose(-updates.rows, expected, atol=5e-3)
    ours = steps(
      optimizers.lazy_adam(0.1, eps_mode='optax'), initial(), [initial()] * 3
    )
    theirs = steps(optax.adam(0.1), initial(), [initial()] * 3)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, "eps_mode is 'tf'"):
      optimizers.lazy_adam(0.1, eps_mode='tf')
    with self.assertRaisesRegex(ValueError, "formulation is 'x'"):
      optimizers.lazy_adam(0.1, formulation='x')
    with self.assertRaisesRegex(ValueError, "mode is 'sparse'"):
      optimizers.memory_optimizer(optax.sgd(0.1), mode='sparse')
    with self.assertRaisesRegex(ValueError, 'max_norm is 0'):
      optimizers.clip_by_row_norm(0)
    with self.assertRaisesRegex(ValueError, 'warmup is 0'):
      optimizers.inverse_sqrt_schedule(1.0, 0)
    tx = optimizers.xlm_adam(0.1)
    gradient = RowSparse(jnp.array([0]), jnp.ones((1, 2)))
    with self.assertRaisesRegex(ValueError, 'params is None'):
      tx.update(gradient, tx.init(jnp.zeros((3, 2))))


class MemoryOptimizerTest(parameterized.TestCase):
  def test_clipping_looks_at_rows_alone_and_at_groups_apart(self):
    rows = jnp.array([[3.0, 4.0]])
    gradient = {
      'memory': {'values': RowSparse(jnp.array([50]), rows)},
      'model': {'w': jnp.array([0.3, 0.4])},
    }
    tx = optimizers.clip_by_row_norm(1.0)
    clipped, _ = tx.update(gradient['memory'], tx.init(None))
    np.testing.assert_allclose(clipped['values'].rows, rows / 5, rtol=1e-6)
    self.assertEqual(clipped['values'].ids.tolist(), [50])
    same, _ = tx.update(gradient['model'], tx.init(None))
    np.testing.assert_array_equal(same['w'], gradient['model']['w'])

  @parameterized.parameters('auto', 'lazy', 'dense')
  def test_rates_and_rows(self, mode):
    schedule = optimizers.inverse_sqrt_schedule(2.5e-4)
    tx = optimizers.memory_optimizer(
      optax.scale_by_learning_rate(schedule), mode=mode
    )
    params = {
      'memory': {'layer': {'values': jnp.ones((40, 2))}},
      'model': {'w': jnp.ones(3)},
    }
    gradient = {
      'memory': {
        'layer': {'values': RowSparse(jnp.array([3]), jnp.ones((1, 2)))}
      },
      'model': {'w': jnp.ones(3)},
    }
    state = tx.init(params)

    def at(step):
      return jax.tree.map(
        lambda x: (
          jnp.full_like(x, step)
          if jnp.ndim(x) == 0 and x.dtype == jnp.int32
          else x
        ),
        state,
      )

    for step in (1, 4000, 100000):
      updates, _ = tx.update(gradient, at(step), params)
      np.testing.assert_allclose(
        updates['model']['w'], -schedule(step), rtol=1e-5
      )
      # From empty moments; the corrections are those of the step.
      count = step + 1
      direction = (
        np.sqrt(1 - 0.999**count) / (1 - 0.9**count) * (0.1 / np.sqrt(0.001))
      )
      moved = optax.apply_updates(params, updates)
      change = moved['memory']['layer']['values'] - 1.0
      np.testing.assert_allclose(change[3], -1e-3 * direction, rtol=1e-3)
      others = np.delete(np.asarray(change), 3, axis=0)
      np.testing.assert_array_equal(others, 0)

  def test_modes_differ_in_rows_that_were_read_before(self):
    params = {'values': jnp.ones((40, 2))}
    gradients = [
      {'values': RowSparse(jnp.array([i]), jnp.ones((1, 2)))} for i in (3, 5)
    ]
    first = {}
    for mode in ('auto', 'lazy', 'dense'):
      tx = optimizers.memory_optimizer(optax.sgd(0.1), mode=mode)
      once, _ = steps(tx, params, gradients[:1])
      twice, _ = steps(tx, params, gradients)
      self.assertEqual(
        bool((once['values'][3] == twice['values'][3]).all()), mode != 'dense'
      )
      first[mode] = twice
    np.testing.assert_allclose(
      first['auto']['values'], first['lazy']['values'], rtol=1e-7
    )


if __name__ == '__main__':
  absltest.main()
