"""Optimizer, schedules, averages and mixup against TensorFlow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers.efficientnet import ema, mixing, optimizers, schedules
from tests.helpers import goldens


def golden(name):
  return goldens.load_npz('efficientnet', 'recipe', f'{name}.npz')


class OptimizerTest(absltest.TestCase):
  def test_rmsprop_equals_tensorflow(self):
    file = golden('rmsprop_tf')
    rate = float(file['lr'])
    usual = optax.rmsprop(rate, 0.9, 1e-3, momentum=0.9)
    for make, fits in (
      (optimizers.rmsprop_tf(rate), True),
      (optimizers.rmsprop_tf(lambda count: rate), True),
      (usual, False),  # The test can fail.
    ):
      value = jnp.asarray(file['v0'])
      state, worst = make.init(value), 0
      for gradient, expected in zip(file['grads'], file['traj']):
        updates, state = make.update(jnp.asarray(gradient), state, value)
        value = value + updates
        worst = max(worst, np.abs(value - expected).max())
      if fits:
        self.assertLess(worst, 1e-6)
      else:
        self.assertGreater(worst, 0.1)

  def test_the_state_shows_the_rate(self):
    tx = optimizers.efficientnet_optimizer(256, 10, warmup_epochs=1)
    params = {'w': jnp.ones(3)}
    state = tx.init(params)
    for step in range(3):
      _, state = tx.update(params, state, params)
      shown = optax.tree.get(state, 'learning_rate')
      self.assertAlmostEqual(float(shown), 0.016 * step / 10, places=8)

  def test_what_is_decayed(self):
    params = {
      'stem_conv': {'kernel': jnp.ones(2)},
      'stem_bn': {'scale': jnp.ones(2), 'bias': jnp.ones(2)},
      'stage0_block0': {
        'project_bn': {'bias': jnp.ones(2)},
        'se_reduce': {'kernel': jnp.ones(2), 'bias': jnp.ones(2)},
      },
      'BatchNorm_0': {'scale': jnp.ones(2)},
      'subnet': {'kernel': jnp.ones(2)},
    }
    mask = optimizers.is_decayed(params)
    self.assertEqual(
      mask,
      {
        'stem_conv': {'kernel': True},
        'stem_bn': {'scale': False, 'bias': False},
        'stage0_block0': {
          'project_bn': {'bias': False},
          'se_reduce': {'kernel': True, 'bias': True},
        },
        'BatchNorm_0': {'scale': False},
        'subnet': {'kernel': True},
      },
    )
    self.assertAlmostEqual(float(optimizers.l2_loss(params, 0.1)), 0.4)
    gradient = jax.grad(optimizers.l2_loss)(params, 0.1)
    np.testing.assert_allclose(gradient['stem_conv']['kernel'], 0.1)
    np.testing.assert_allclose(gradient['stem_bn']['scale'], 0)

  def test_l2_is_coupled(self):
    # The same as the gradient of the loss with the term in it.
    params = {'w': jnp.array([3.0, -1.0]), 'bn': {'scale': jnp.ones(2)}}
    gradient = jax.tree.map(jnp.ones_like, params)
    options = {'schedule': 'constant', 'warmup_epochs': 0}
    tx = optimizers.efficientnet_optimizer(256, 1, 0.5, **options)
    bare = optimizers.efficientnet_optimizer(256, 1, 0, **options)
    total = jax.tree.map(
      jnp.add, gradient, jax.grad(optimizers.l2_loss)(params, 0.5)
    )
    with_term, _ = bare.update(total, bare.init(params), params)
    coupled, _ = tx.update(gradient, tx.init(params), params)
    jax.tree.map(np.testing.assert_allclose, coupled, with_term)

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'batch_size is 0'):
      optimizers.efficientnet_optimizer(0, 10)


class SchedulesTest(parameterized.TestCase):
  @parameterized.parameters('exponential', 'cosine')
  def test_equals_tensorflow(self, kind):
    file = golden(f'lr_{kind}')
    schedule = schedules.efficientnet_schedule(
      float(file['lr']),
      int(file['spe']),
      kind,
      total_steps=int(file['total']),
      warmup_epochs=int(file['warm']),
    )
    values = jax.jit(schedule)(jnp.asarray(file['steps']))
    np.testing.assert_allclose(values, file['value'], atol=1e-7, rtol=1e-6)

  def test_no_whole_number_of_steps(self):
    # 1,281,167 / 2048 is not whole; the published run had 218,949 steps.
    schedule = schedules.efficientnet_schedule(0.128, 1281167 / 2048)
    self.assertEqual(float(schedule(0)), 0)
    end = schedule(218_949 - 1)
    self.assertAlmostEqual(float(end) / 0.128, 0.97**145, places=6)

  def test_bad_input(self):
    for words, arguments, options in (
      ("kind is 'step'", (1, 1, 'step'), {}),
      ('total_steps is None', (1, 1, 'cosine'), {}),
      ('steps_per_epoch is 0', (1, 0), {}),
      ('warmup_epochs is -1', (1, 1), {'warmup_epochs': -1}),
    ):
      with self.assertRaisesRegex(ValueError, words):
        schedules.efficientnet_schedule(*arguments, **options)


class AverageTest(absltest.TestCase):
  def test_equals_tensorflow(self):
    file = golden('ema_tf')
    decay = ema.ema_with_warmup(float(file['decay']))
    average = jnp.zeros(())
    for step, (value, expected) in enumerate(zip(file['values'], file['ema'])):
      average = ema.update_average(average, jnp.asarray(value), decay(step))
      np.testing.assert_allclose(average, expected, rtol=1e-6)

  def test_statistics_move_once_an_update(self):
    decay = ema.ema_with_warmup(0.9999)
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    start = {'mean': jnp.zeros(3)}
    straight = ema.init_stats_average(start)
    for value in values[1::2]:
      straight = ema.update_stats_average(straight, {'mean': value}, decay)
    cut = ema.init_stats_average(start)
    for value in values:
      cut = ema.update_stats_average(cut, {'mean': value}, decay, accumulate=2)
    np.testing.assert_allclose(
      cut['batch_stats']['mean'], straight['batch_stats']['mean'], rtol=1e-6
    )

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'decay is 1'):
      ema.ema_with_warmup(1)


class MixupTest(absltest.TestCase):
  def test_mixes_with_the_mirrored_example(self):
    images = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 2, 2, 3))
    labels = jnp.eye(4)
    mixed, targets = mixing.mixup(jax.random.key(0), images, labels, 0.5)
    share = np.diagonal(targets)
    self.assertGreaterEqual(share.min(), 0.5)
    self.assertGreater(len(set(share.tolist())), 1)
    for i in range(4):
      np.testing.assert_allclose(
        mixed[i], share[i] * i + (1 - share[i]) * (3 - i), rtol=1e-6
      )
      self.assertAlmostEqual(float(targets[i, 3 - i]), 1 - share[i], places=6)

  def test_types_and_bad_input(self):
    images, labels = jnp.ones((2, 2, 2, 3), jnp.uint8), jnp.eye(2)
    mixed, _ = mixing.mixup(jax.random.key(0), images, labels)
    self.assertEqual(mixed.dtype, jnp.float32)
    same, _ = mixing.mixup(jax.random.key(0), images, labels, 0)
    self.assertIs(same, images)
    with self.assertRaisesRegex(ValueError, 'one_hot'):
      mixing.mixup(jax.random.key(0), images, jnp.arange(2))
    with self.assertRaisesRegex(ValueError, 'alpha is -1'):
      mixing.mixup(jax.random.key(0), images, labels, -1)


if __name__ == '__main__':
  absltest.main()
