"""The training step: accumulation, averages, types, populations, errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import training
from tests.training import toy


def make(loss_fn=toy.loss_fn, init=toy.init, tx=None, rng=None, **options):
  tx = tx or optax.adam(1e-2)
  rng = jax.random.key(0) if rng is None else rng
  state = training.create_state(
    init, tx, rng, ema=options.get('ema') is not None
  )
  step = training.make_train_step(loss_fn, tx, **options)
  return state, step


plain = functools.partial(make, toy.plain_loss_fn, toy.plain_init)


class StepTest(parameterized.TestCase):
  def test_is_the_textbook_update(self):
    state, step = plain(tx=optax.sgd(0.5), donate=False)
    batch = toy.example_batch(0)
    gradients = jax.grad(lambda p: toy.plain_loss_fn(p, {}, batch, None)[0])(
      state.params
    )
    new, metrics = step(state, batch)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, gradients)
    chex.assert_trees_all_close(new.params, expected, rtol=1e-6)
    self.assertEqual(int(new.step), 1)
    np.testing.assert_allclose(
      metrics['grad_norm'], optax.tree.norm(gradients), rtol=1e-6
    )
    np.testing.assert_allclose(metrics['twice'], 2 * metrics['loss'])

  def test_loss_falls_and_statistics_move(self):
    state, step = make()
    before = jax.device_get(state.model_state)
    losses = []
    for index in range(60):
      state, metrics = step(state, toy.example_batch(index))
      losses.append(float(metrics['loss']))
    self.assertLess(np.mean(losses[-10:]), 0.7 * np.mean(losses[:10]))
    before, after = (
      s['batch_stats']['BatchNorm_0']['mean']
      for s in (before, state.model_state)
    )
    self.assertGreater(np.abs(before - after).max(), 1e-3)
    self.assertEqual(step._cache_size(), 1)

  def test_random_numbers_follow_key_and_step(self):
    batch = toy.example_batch(0)

    def losses(seed):
      state, step = make(rng=jax.random.key(seed), tx=optax.set_to_zero())
      state = state.replace(params=toy.init(jax.random.key(5))[0])
      found = []
      for _ in range(2):
        state, metrics = step(state, batch)
        found.append(float(metrics['loss']))
      return found

    first = losses(0)
    self.assertEqual(first, losses(0))
    # Nothing but the dropout mask differs, between steps and between keys.
    self.assertNotEqual(first[0], first[1])
    self.assertNotEqual(first[0], losses(1)[0])

  @parameterized.parameters(2, 4, 8)
  def test_accumulation_is_exact_for_unequal_counts(self, parts):
    batch = toy.example_batch(3)
    weight = (np.arange(32) % 5 < 2).astype(np.float32)
    weight[::parts] = 0  # One microbatch has nothing to count: 0 / 0 there.
    batch['weight'] = weight
    whole, step = plain(tx=optax.sgd(1.0))
    whole, expected = step(whole, batch)
    cut, step = plain(tx=optax.sgd(1.0), accumulate=parts)
    cut, metrics = step(cut, batch)
    # Sums in another order, in float32.
    chex.assert_trees_all_close(cut.params, whole.params, atol=1e-6)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)
    self.assertEqual(float(metrics['count']), weight.sum())

  def test_unweighted_accumulation_would_differ(self):
    # The test above can fail: means of means are another gradient.
    batch = toy.example_batch(3)
    batch['weight'] = (np.arange(32) % 5 < 2).astype(np.float32)

    def uncounted(*args):
      loss, (state, metrics) = toy.plain_loss_fn(*args)
      return loss, (state, {'twice': metrics['twice']})

    results = []
    for loss_fn in (toy.plain_loss_fn, uncounted):
      state, step = plain(tx=optax.sgd(1.0), accumulate=4)
      step = training.make_train_step(loss_fn, optax.sgd(1.0), accumulate=4)
      results.append(step(state, batch)[0].params)
    difference = jax.tree.map(lambda a, b: abs(a - b).max(), *results)
    self.assertGreater(max(jax.tree.leaves(difference)), 1e-3)

  def test_accumulation_in_float64(self):
    with jax.enable_x64(True):
      batch = jax.tree.map(
        lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
        toy.example_batch(0),
      )
      results = []
      for parts in (1, 4):
        state = training.create_state(
          lambda key: (
            jax.tree.map(
              lambda x: x.astype(jnp.float64), toy.plain_init(key)[0]
            ),
            {},
          ),
          optax.sgd(0.1),
          jax.random.key(0),
        )
        step = training.make_train_step(
          toy.plain_loss_fn, optax.sgd(0.1), accumulate=parts
        )
        results.append(step(state, batch))
      self.assertEqual(results[1][1]['loss'].dtype, jnp.float64)
      chex.assert_trees_all_close(
        results[0][0].params, results[1][0].params, atol=1e-14
      )

  def test_moving_average(self):
    decay = 0.75
    state, step = plain(ema=decay)
    average = jax.device_get(state.params)
    for index in range(5):
      state, _ = step(state, toy.example_batch(index))
      average = jax.tree.map(
        lambda a, p: decay * a + (1 - decay) * p,
        average,
        jax.device_get(state.params),
      )
    chex.assert_trees_all_close(state.ema_params, average, rtol=1e-5)
    self.assertIs(state.eval_params, state.ema_params)

  def test_moving_average_with_schedule(self):
    state, step = plain(ema=lambda step: jnp.where(step < 2, 0.0, 1.0))
    for index in range(4):
      state, _ = step(state, toy.example_batch(index))
      if index == 1:
        frozen = jax.device_get(state.params)
    chex.assert_trees_all_close(state.ema_params, frozen)

  def test_compute_dtype(self):
    seen = []

    def loss_fn(params, model_state, batch, rng):
      seen.append(params['w'].dtype)
      return toy.plain_loss_fn(params, model_state, batch, rng)

    tx = optax.sgd(0.1)
    state = training.create_state(toy.plain_init, tx, jax.random.key(0))
    full, _ = training.make_train_step(loss_fn, tx, donate=False)(
      state, toy.example_batch(0)
    )
    half, metrics = training.make_train_step(
      loss_fn, tx, compute_dtype=jnp.bfloat16
    )(state, toy.example_batch(0))
    self.assertEqual(seen[-1], jnp.bfloat16)
    self.assertEqual(half.params['w'].dtype, jnp.float32)
    self.assertTrue(np.isfinite(metrics['loss']))
    difference = abs(half.params['w'] - full.params['w']).max()
    self.assertBetween(float(difference), 1e-7, 2e-2)

  @pytest.mark.slow
  def test_population_equals_a_loop(self):
    keys = jax.random.split(jax.random.key(1), 3)
    # SGD: Adam would blow up rounding where a bias comes before batch norm.
    make_sgd = functools.partial(make, tx=optax.sgd(0.1))
    state, step = make_sgd(rng=keys, population=True)
    self.assertEqual(state.step.shape, (3,))
    alone = [make_sgd(rng=key) for key in keys]
    for index in range(3):
      batch = toy.example_batch(index)
      state, metrics = step(state, batch)
      losses = []
      for member, (single, single_step) in enumerate(alone):
        single, m = single_step(single, batch)
        alone[member] = (single, single_step)
        losses.append(m['loss'])
      np.testing.assert_allclose(metrics['loss'], losses, rtol=1e-5)
    for member, (single, _) in enumerate(alone):
      chex.assert_trees_all_close(
        jax.tree.map(lambda x, m=member: x[m], state.params),
        single.params,
        atol=1e-5,
      )

  def test_population_with_hyperparameters(self):
    rates = np.array([0.0, 0.1, 0.3], np.float32)
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    keys = jnp.broadcast_to(jax.random.key(0), (3,))
    state = training.create_state(toy.plain_init, tx, keys)
    state = state.replace(
      opt_state=optax.tree.set(
        state.opt_state, learning_rate=jnp.asarray(rates)
      )
    )
    start = jax.device_get(state.params['w'])
    np.testing.assert_array_equal(start[0], start[2])
    step = training.make_train_step(toy.plain_loss_fn, tx, population=True)
    state, metrics = step(state, toy.example_batch(0))
    np.testing.assert_allclose(metrics['learning_rate'], rates)
    moved = np.abs(state.params['w'] - start).max((1, 2))
    self.assertEqual(moved[0], 0)
    np.testing.assert_allclose(moved[2] / moved[1], 3, rtol=1e-4)

  def test_donates_unless_told(self):
    state, step = plain()
    step(state, toy.example_batch(0))
    self.assertTrue(state.params['w'].is_deleted())
    state, step = plain(donate=False)
    step(state, toy.example_batch(0))
    self.assertFalse(state.params['w'].is_deleted())

  def test_average_of_half_precision_moves(self):
    def init(key):
      params, state = toy.plain_init(key)
      return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), state

    state, step = make(
      toy.plain_loss_fn, init, tx=optax.sgd(1.0), ema=0.999, donate=False
    )
    self.assertEqual(state.ema_params['w'].dtype, jnp.float32)
    new, _ = step(state, toy.example_batch(0))
    # A thousandth of the step is below the last digit of bfloat16. Inside the
    # program the new parameters have more digits than what comes out.
    np.testing.assert_allclose(
      new.ema_params['w'] - state.ema_params['w'],
      0.001 * (new.params['w'] - state.params['w']).astype(np.float32),
      atol=1e-5,
    )
    self.assertGreater(abs(new.params['w'] - state.params['w']).max(), 0.05)

  def test_states_of_another_step(self):
    batch = toy.example_batch(0)
    averaged, _ = plain(ema=0.9)
    _, without = plain()
    with self.assertRaisesRegex(ValueError, 'keeps a moving average'):
      without(averaged, batch)
    keys = jax.random.split(jax.random.key(0), 3)
    many, step = plain(rng=keys, population=True)
    single, _ = plain()
    with self.assertRaisesRegex(ValueError, r'False, but step has shape \(3,'):
      without(many, batch)
    with self.assertRaisesRegex(ValueError, r'True, but step has shape \(\)'):
      step(single, batch)

  @parameterized.parameters(
    (lambda *a: toy.plain_loss_fn(*a)[0], 'expected .loss, .model_state'),
    (
      lambda *a: (toy.plain_loss_fn(*a)[0], {'twice': 1, 'count': 2}),
      'expected .loss, .model_state',
    ),
    (
      lambda *a: (toy.plain_loss_fn(*a)[0], ({'new': jnp.ones(())}, {})),
      'model_state of another structure',
    ),
  )
  def test_losses_of_another_form(self, loss_fn, words):
    state, step = plain()
    step = training.make_train_step(loss_fn, optax.sgd(1))
    state = state.replace(opt_state=optax.sgd(1).init(state.params))
    with self.assertRaisesRegex(TypeError, words):
      step(state, toy.example_batch(0))

  def test_nothing_to_count(self):
    batch = toy.example_batch(0) | {'weight': np.zeros(32, np.float32)}
    for accumulate in (1, 4):
      state, step = plain(accumulate=accumulate)
      _, metrics = step(state, batch)
      self.assertTrue(np.isnan(metrics['loss']))

  def test_bad_input(self):
    for ema in (True, 1.0, -0.1):
      with self.assertRaisesRegex(ValueError, f'ema is {ema}'):
        training.make_train_step(toy.loss_fn, optax.sgd(1), ema=ema)
    with self.assertRaisesRegex(TypeError, 'init returned a dict'):
      training.create_state(
        lambda key: toy.plain_init(key)[0], optax.sgd(1), jax.random.key(0)
      )
    with self.assertRaisesRegex(ValueError, 'accumulate is 0'):
      training.make_train_step(toy.loss_fn, optax.sgd(1), accumulate=0)
    state, step = plain(accumulate=5)
    with self.assertRaisesRegex(ValueError, "'x' has 32 examples.*=5"):
      step(state, toy.example_batch(0))
    state, _ = plain()
    step = training.make_train_step(toy.plain_loss_fn, optax.adam(1), ema=0.9)
    with self.assertRaisesRegex(ValueError, 'create_state.*ema=True'):
      step(state, toy.example_batch(0))
    with self.assertRaisesRegex(TypeError, 'typed key'):
      training.create_state(toy.init, optax.sgd(1), jax.random.PRNGKey(0))


class EvaluateTest(parameterized.TestCase):
  @staticmethod
  def metric_fn(params, model_state, batch):
    loss, (_, metrics) = toy.plain_loss_fn(params, model_state, batch, None)
    return {'loss': loss, 'count': metrics['count']}

  def test_weights_batches_by_their_counts(self):
    state, _ = plain()
    batches = []
    for index in range(4):
      batch = toy.example_batch(index)
      # The last has nothing but padding: 0 / 0.
      batch['weight'] = (np.arange(32) < [32, 7, 19, 0][index]).astype(float)
      batches.append(batch)
    whole = {
      name: np.concatenate([b[name] for b in batches]) for name in batches[0]
    }
    expected = self.metric_fn(state.params, {}, whole)['loss']
    found = training.evaluate(
      state, training.make_eval_step(self.metric_fn), batches
    )
    np.testing.assert_allclose(found['loss'], expected, rtol=1e-6)
    self.assertEqual(found['count'], 58)

  def test_without_counts_each_example_counts_once(self):
    state, _ = plain()
    step = training.make_eval_step(
      lambda p, s, b: {'mean': (b['x'] ** 2).mean()}
    )
    sizes = (32, 8)
    batches = [toy.example_batch(i, n) for i, n in enumerate(sizes)]
    found = training.evaluate(state, step, batches)
    total = np.concatenate([b['x'] for b in batches])
    np.testing.assert_allclose(found['mean'], (total**2).mean(), rtol=1e-6)

  def test_takes_averaged_parameters(self):
    state, _ = plain(ema=0.5)
    state = state.replace(ema_params=jax.tree.map(jnp.zeros_like, state.params))
    step = training.make_eval_step(lambda p, s, b: {'norm': abs(p['w']).sum()})
    found = training.evaluate(state, step, [toy.example_batch(0)])
    self.assertEqual(found['norm'], 0)

  def test_population(self):
    keys = jax.random.split(jax.random.key(0), 2)
    state = training.create_state(toy.plain_init, optax.sgd(1), keys)
    step = training.make_eval_step(self.metric_fn, population=True)
    found = training.evaluate(state, step, [toy.example_batch(0)] * 2)
    self.assertEqual(found['loss'].shape, (2,))
    self.assertNotEqual(found['loss'][0], found['loss'][1])

  def test_vectors_as_long_as_there_are_batches(self):
    state, _ = plain()
    step = training.make_eval_step(
      lambda p, s, b: {'mean': (b['x'][:, :2] ** 2).mean(0)}
    )
    batches = [toy.example_batch(0, 32), toy.example_batch(1, 8)]
    found = training.evaluate(state, step, batches)
    total = np.concatenate([b['x'][:, :2] for b in batches])
    np.testing.assert_allclose(found['mean'], (total**2).mean(0), rtol=1e-6)

  def test_no_batches(self):
    state, _ = plain()
    with self.assertRaisesRegex(ValueError, 'no batches'):
      training.evaluate(state, training.make_eval_step(self.metric_fn), [])


if __name__ == '__main__':
  absltest.main()
