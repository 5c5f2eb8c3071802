"""Tests of losses, schedules and TensorFlow's RMSProp."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.recsys import neural_losses, tf1_optimizers


def _reference(g, s, m, rate=0.01, decay=0.9, momentum=0.8, eps=1e-10):
  """One step of the formula, in float64."""
  s = decay * s + (1 - decay) * g**2
  m = momentum * m + rate * g / np.sqrt(s + eps)
  return -m, s, m


class RmspropTest(parameterized.TestCase):
  def test_formula_with_a_schedule(self):
    rates = [0.01, 0.03, 0.02]
    tx = tf1_optimizers.rmsprop_tf1(
      lambda count: jnp.array(rates)[count], momentum=0.8
    )
    rng = np.random.default_rng(0)
    state = tx.init(jnp.zeros(4))
    s, m = np.ones(4), np.zeros(4)
    for rate in rates:
      g = rng.standard_normal(4)
      step, s, m = _reference(g, s, m, rate)
      updates, state = tx.update(jnp.asarray(g, jnp.float32), state)
      np.testing.assert_allclose(updates, step, rtol=1e-5)
    self.assertEqual(state.count, 3)

  def test_clips_each_tensor_by_itself(self):
    long, short = np.array([30.0, 40.0]), np.array([0.3, 0.4])
    tx = tf1_optimizers.rmsprop_tf1(0.01, clip_per_tensor=5.0)
    plain = tf1_optimizers.rmsprop_tf1(0.01)
    found, _ = tx.update((long, short), tx.init((long, short)))
    expected, _ = plain.update((long / 10, short), plain.init((long, short)))
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-6)

  def test_untouched_rows_rest(self):
    tx = tf1_optimizers.rmsprop_tf1(0.01, momentum=0.8, lazy=('table',))
    params = {'table': jnp.ones((3, 2)), 'w': jnp.ones((3, 2))}
    gradients = [np.zeros((3, 2)), np.zeros((3, 2))]
    gradients[0][0] = gradients[1][2] = 1.0
    state = tx.init(params)
    for g in gradients:
      g = jnp.asarray(g, jnp.float32)
      updates, state = tx.update({'table': g, 'w': g}, state)
    # Momentum moves row 0 of what is no table in the second step, too.
    self.assertLess(float(updates['w'][0, 0]), 0)
    np.testing.assert_array_equal(updates['table'][:2], 0)
    once, s, _ = _reference(1.0, 1.0, 0.0)
    np.testing.assert_allclose(updates['table'][2], once, rtol=1e-6)
    np.testing.assert_allclose(state.mean_square['table'][0], s, rtol=1e-6)
    np.testing.assert_array_equal(state.mean_square['table'][1], 1)

  def test_touched_rows_with_zero_gradient(self):
    tx = tf1_optimizers.rmsprop_tf1(0.01, momentum=0.8, lazy=True)
    table = jnp.zeros((2, 2))
    state = tx.init(table)
    touched = jnp.array([True, False])
    _, state = jax.jit(tx.update)(table, state, touched=touched)
    np.testing.assert_allclose(state.mean_square[:, 0], [0.9, 1.0])


class LossesTest(parameterized.TestCase):
  def test_elbo_is_a_sum_over_items_and_a_mean_over_users(self):
    rng = np.random.default_rng(0)
    logits, x = rng.standard_normal((3, 5)), rng.random((3, 5)) < 0.5
    mean, log_variance = rng.standard_normal((2, 3, 2))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    likelihood = -(np.log(p) * x).sum(1)
    variance = np.exp(log_variance)
    divergence = ((variance + mean**2 - 1) / 2 - np.log(variance) / 2).sum(1)
    weights = np.array([1.0, 1.0, 0.0])
    found = neural_losses.multinomial_elbo(
      logits, x, mean, log_variance, 0.3, weights
    )
    expected = (likelihood + 0.3 * divergence)[:2].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = neural_losses.multinomial_elbo(logits, x)
    np.testing.assert_allclose(found, likelihood.mean(), rtol=1e-5)

  def test_bpr_far_from_zero(self):
    # Exact where the sigmoid underflows; with eps the loss is bounded.
    self.assertAlmostEqual(float(neural_losses.bpr_loss(0.0, 200.0)), 200.0)
    bounded = neural_losses.bpr_loss(0.0, 200.0, eps=1e-12)
    self.assertAlmostEqual(float(bounded), -np.log(1e-12), places=4)
    values = np.array([0.5, -1.0]), np.array([0.0, 1.0])
    found = neural_losses.bpr_loss(*values, weights=np.array([0.0, 1.0]))
    self.assertAlmostEqual(float(found), np.log(1 + np.exp(2.0)), places=5)

  def test_bce(self):
    logits, labels = np.array([2.0, -1.0, 9.0]), np.array([1.0, 1.0, 0.0])
    p = 1 / (1 + np.exp(-logits))
    each = -np.log(np.where(labels == 1, p, 1 - p))
    found = neural_losses.bce(logits, labels, np.array([1, 1, 0]))
    np.testing.assert_allclose(found, each[:2].mean(), rtol=1e-5)
    np.testing.assert_allclose(
      neural_losses.bce(logits, labels), each.mean(), rtol=1e-5
    )

  def test_linear_to(self):
    beta = tf1_optimizers.linear_to(0.2, 200_000)
    found = [float(beta(step)) for step in (0, 22_230, 40_000, 10**6)]
    np.testing.assert_allclose(found, [0, 0.11115, 0.2, 0.2], rtol=1e-6)
    with self.assertRaisesRegex(ValueError, 'steps is 0'):
      tf1_optimizers.linear_to(0.2, 0)

  def test_sum_of_squares(self):
    tree = {'a': jnp.array([1.0, 2.0]), 'b': jnp.array(3.0)}
    self.assertEqual(float(neural_losses.sum_of_squares(tree)), 14.0)


if __name__ == '__main__':
  absltest.main()
