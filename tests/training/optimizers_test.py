"""fairseq's and BERT's Adam against fairseq's numbers and the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers import training
from jaxpapers.training import optimizers
from tests.helpers import goldens


def fairseq_trajectory(make_optimizer):
  """Largest difference to fairseq's parameters over its 30 updates."""
  golden = goldens.load_npz('roberta', 'fairseq_adam.npz')
  with jax.enable_x64(True):
    tx = make_optimizer(
      optimizers.polynomial_warmup_schedule(1e-2, 6, 24, end=1e-3)
    )
    params = {'kernel': jnp.array(golden['W0']), 'bias': golden['b0']}
    state, update = tx.init(params), jax.jit(tx.update)
    largest = 0.0
    for step in range(len(golden['lr'])):
      gradients = {'kernel': golden['gW'][step], 'bias': golden['gb'][step]}
      updates, state = update(gradients, state, params)
      params = optax.apply_updates(params, updates)
      largest = max(
        largest,
        np.abs(params['kernel'] - golden['W'][step]).max(),
        np.abs(params['bias'] - golden['b'][step]).max(),
      )
  return largest


def bert_updates(gradients, param, learning_rates, *, decay, clip):
  """BERT's rule in numpy, for one array: its updates."""
  m, v, updates = 0.0, 0.0, []
  for g, rate in zip(gradients, learning_rates):
    g = g * min(1, clip / np.linalg.norm(g))
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g**2
    updates.append(-rate * (m / (np.sqrt(v) + 1e-6) + decay * param))
    param = param + updates[-1]
  return updates


class FairseqAdamTest(parameterized.TestCase):
  def test_fairseq(self):
    # Fairseq computes in float64 here; what is left is rounding.
    distance = fairseq_trajectory(optimizers.fairseq_adam)
    self.assertLess(distance, 1e-8)

  def test_optax_adamw_is_another_rule(self):
    distance = fairseq_trajectory(
      lambda rate: optax.adamw(rate, 0.9, 0.98, 1e-6, weight_decay=0.01)
    )
    self.assertGreater(distance, 1e-4)

  def test_decay_reaches_biases(self):
    distance = fairseq_trajectory(
      lambda rate: optimizers.fairseq_adam(rate, decay_mask='no_bias_ln')
    )
    self.assertGreater(distance, 1e-5)

  @parameterized.parameters(0.98, 0.999, 0.9999)
  def test_correction_in_float32(self, b2):
    # The first update is 1 but for eps, whatever the decay.
    tx = optimizers.scale_by_fairseq_adam(b2=b2, eps=0.0)
    params = jnp.ones(3)
    updates, _ = tx.update(jnp.ones(3), tx.init(params), params)
    np.testing.assert_allclose(updates, 1, atol=5e-7)

  def test_stacked_layers(self):
    # Layers along a first axis are updated as each by itself.
    one = {'ffn_norm': {'scale': jnp.ones(3), 'bias': jnp.ones(3)}}
    one |= {'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}}
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), one)
    tx = optimizers.fairseq_adam(0.1, 0.5, 'no_bias_ln')

    def step(params):
      zeros = jax.tree.map(jnp.zeros_like, params)
      return tx.update(zeros, tx.init(params), params)[0]

    together = step({'layers': stacked})['layers']
    alone = step({'layers_0': one})['layers_0']
    for got, want in zip(jax.tree.leaves(together), jax.tree.leaves(alone)):
      np.testing.assert_array_equal(got[0], want)
    self.assertGreater(np.abs(together['dense']['kernel']).min(), 0)
    for name in ('scale', 'bias'):
      self.assertEqual(np.abs(together['ffn_norm'][name]).max(), 0)

  def test_masks(self):
    params = {'encoder': {'embedding_norm': {'scale': 0, 'bias': 0}}}
    params |= {'lm_head': {'bias': 0, 'dense': {'kernel': 0, 'bias': 0}}}
    params |= {'adapter': {'biases1': 0, 'weights1': 0}}
    mask = optimizers.no_bias_or_norm(params)
    decayed = [
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, value in jax.tree_util.tree_leaves_with_path(mask)
      if value
    ]
    self.assertEqual(decayed, ['adapter/weights1', 'lm_head/dense/kernel'])
    with self.assertRaisesRegex(ValueError, "decay_mask is 'none'"):
      optimizers.fairseq_adam(0.1, decay_mask='none')

  def test_bfloat16_parameters_keep_wide_moments(self):
    params = {'kernel': jnp.ones(4, jnp.bfloat16)}
    tx = optimizers.fairseq_adam(1e-3, mu_dtype=jnp.bfloat16)
    state = tx.init(params)
    for _ in range(3):
      updates, state = tx.update(params, state, params)
    adam = optax.tree.get_all_with_path(state, 'nu')[0][1]
    self.assertEqual(adam['kernel'].dtype, jnp.float32)
    # .02 (1 + .98 + .98^2): bfloat16 would be off by 1e-3 of it.
    np.testing.assert_allclose(adam['kernel'], 1 - 0.98**3, rtol=1e-6)
    first = optax.tree.get_all_with_path(state, 'mu')[0][1]
    self.assertEqual(first['kernel'].dtype, jnp.bfloat16)
    self.assertEqual(updates['kernel'].dtype, jnp.bfloat16)

  def test_training_step_shows_the_learning_rate(self):
    schedule = optimizers.polynomial_warmup_schedule(1.0, 2, 4)
    tx = optimizers.fairseq_adam(schedule)

    def loss_fn(params, model_state, batch, rng):
      del rng
      return (params['w'] * batch).sum(), (model_state, {})

    state = training.create_state(
      lambda key: ({'w': jnp.ones(2)}, {}), tx, jax.random.key(0)
    )
    step = training.make_train_step(loss_fn, tx)
    for expected in (0.0, 0.5, 1.0, 0.5, 0.0):
      state, metrics = step(state, jnp.ones((3, 2)))
      self.assertEqual(metrics['learning_rate'], expected)


class BertAdamTest(absltest.TestCase):
  def test_formula(self):
    gradients = [goldens.normal(f'bert{i}', (3, 2), 4) for i in range(8)]
    start = goldens.normal('bert', (3, 2))
    rates = [5e-3 * t / 4 if t < 4 else 5e-3 * (1 - t / 20) for t in range(8)]
    schedule = optimizers.bert_schedule(5e-3, 4, 20)
    for name, decay in (('kernel', 0.01), ('bias', 0.0)):
      expected = bert_updates(gradients, start, rates, decay=decay, clip=1.0)
      with jax.enable_x64(True):
        params = {name: jnp.array(start)}
        tx = optimizers.bert_adam(schedule)
        state = tx.init(params)
        for gradient, want in zip(gradients, expected):
          updates, state = tx.update({name: gradient}, state, params)
          params = optax.apply_updates(params, updates)
          # Rounding, and that of numbers which the rule takes from another.
          np.testing.assert_allclose(updates[name], want, rtol=0, atol=1e-14)

  def test_clips_over_the_trained_subset(self):
    params = {'frozen': jnp.full(4, 100.0), 'kernel': jnp.array([3.0, 4.0])}
    mask = {'frozen': False, 'kernel': True}

    def moment(tx):
      _, state = tx.update(params, tx.init(params), params)
      return optax.tree.get_all_with_path(state, 'mu')[0][1]['kernel']

    tx = optimizers.bert_adam(0.1)
    np.testing.assert_allclose(
      moment(optax.masked(tx, mask)), [0.06, 0.08], rtol=1e-6
    )
    self.assertLess(moment(tx)[1], 0.01)


class ScheduleTest(parameterized.TestCase):
  def test_fairseq(self):
    golden = goldens.load_npz('roberta', 'fairseq_adam.npz')
    with jax.enable_x64(True):
      schedule = optimizers.polynomial_warmup_schedule(1e-2, 6, 24, end=1e-3)
      rates = np.asarray(schedule(jnp.arange(30, dtype=jnp.int32)))
    np.testing.assert_allclose(rates, golden['lr'], rtol=0, atol=1e-12)
    self.assertEqual(rates[0], 0)
    self.assertEqual(rates[6], 1e-2)
    np.testing.assert_array_equal(rates[24:], 1e-3)

  def test_bert_is_not_rebased(self):
    schedule = optimizers.bert_schedule(2.0, 10, 100)
    rates = jax.jit(jax.vmap(schedule))(jnp.array([0, 9, 10, 100, 120]))
    np.testing.assert_allclose(rates, [0, 1.8, 1.8, 0, 0], rtol=1e-6)

  @parameterized.parameters(
    optimizers.polynomial_warmup_schedule, optimizers.bert_schedule
  )
  def test_edges(self, make):
    for warmup, total in ((0, 4), (4, 4), (0, 1)):
      rates = np.asarray(make(1.0, warmup, total, power=2.0)(jnp.arange(6)))
      self.assertTrue(np.isfinite(rates).all())
      self.assertEqual(rates[0], 0 if warmup else 1)
      self.assertEqual(rates[5], 0)
    with self.assertRaisesRegex(ValueError, 'warmup is 5; .* total'):
      make(1.0, 5, 4)
    with self.assertRaisesRegex(ValueError, 'total is 0'):
      make(1.0, 0, 0)

  def test_traced_arguments(self):
    # A sweep over peaks and durations in one program.
    rates = jax.vmap(
      lambda peak, total: optimizers.polynomial_warmup_schedule(peak, 2, total)(
        jnp.int32(4)
      )
    )(jnp.array([1.0, 2.0]), jnp.array([6, 10]))
    np.testing.assert_allclose(rates, [0.5, 1.5])


if __name__ == '__main__':
  absltest.main()
