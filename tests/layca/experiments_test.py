"""Tests of tasks, settings, configs, optimizers and the replay."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers import layca
from jaxpapers.layca import (
  experiments,
  experiments_data,
  experiments_optimizers,
  experiments_replay,
)
from tests.helpers import repository

_CONFIGS = repository.ROOT / 'scripts' / 'configs' / 'layca'


def load_config(name, *arguments):
  spec = importlib.util.spec_from_file_location(name, _CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)


class SettingsTest(parameterized.TestCase):
  def test_layca_has_one_learning_rate_on_every_task(self):
    for task in experiments.PAPER_TASKS:
      for optimizer, exponent in (
        ('sgd_layca', 3),
        ('rmsprop_layca', 3),
        ('adagrad_layca', 3),
        ('adam_layca', 5),
        ('amom_sgd_layca', 5),
      ):
        setting = experiments.best_setting(task, optimizer)
        self.assertAlmostEqual(setting['learning_rate'], 3.0**-exponent)
        self.assertEqual(setting['l2'], 0)
        self.assertTrue(setting['layca'])

  @parameterized.parameters(
    ('C10-CNN1', 'sgd', 3**-1, 0, 100, (80, 90, 97), 0.2),
    ('C10-CNN1', 'sgd_l2', 3**-1, 1e-3, 100, (80, 90, 97), 0.2),
    ('C10-CNN1', 'rmsprop', 3**-6, 0, 100, (80, 90, 97), 0.2),
    ('C100-resnet', 'sgd_l2', 3**-1, 1e-3, 100, (70, 90, 97), 0.1),
    ('C100-resnet', 'adam', 3**-5, 0, 100, (70, 90, 97), 0.1),
    ('tiny-CNN', 'sgd', 3**-1, 0, 80, (70,), 0.2),
    ('tiny-CNN', 'sgd_l2', 3**-1, 1e-3, 100, (70, 90, 97), 0.2),
    ('tiny-CNN', 'adagrad', 3**-4, 0, 80, (70,), 0.2),
    ('C10-CNN2', 'sgd', 3**-1, 0, 250, (100, 170, 220), 0.2),
    ('C10-CNN2', 'sgd_l2', 0.5, 5e-4, 250, tuple(range(25, 250, 25)), 0.5),
    ('C10-CNN2', 'rmsprop_l2', 3e-4, 5e-4, 250, tuple(range(25, 250, 25)), 0.5),
    ('C100-WRN', 'sgd', 3**-2, 0, 250, (100, 170, 220), 0.2),
    ('C100-WRN', 'sgd_l2', 0.1, 5e-4, 200, (60, 120, 160), 0.2),
    ('C100-WRN', 'adam_l2', 3e-4, 5e-4, 200, (60, 120, 160), 0.2),
    ('C10-resnet', 'sgd_l2', 3**-1, 1e-3, 200, (60, 120, 160), 0.2),
    ('C10-resnet', 'sgd_layca', 3**-3, 0, 200, (60, 120, 160), 0.2),
  )
  def test_what_the_paper_trained_with(
    self, task, optimizer, rate, l2, epochs, drops, factor
  ):
    setting = experiments.best_setting(task, optimizer)
    self.assertAlmostEqual(setting['learning_rate'], rate)
    self.assertEqual(setting['l2'], l2)
    self.assertEqual(setting['epochs'], epochs)
    self.assertEqual(setting['drops'], drops)
    self.assertEqual(setting['factor'], factor)
    momentum = 0.9 if task == 'C100-WRN' and 'sgd' in optimizer else 0
    self.assertEqual(setting['momentum'], momentum)
    self.assertEqual(setting['nesterov'], bool(momentum))

  def test_steps_of_an_epoch(self):
    steps = {
      name: experiments_data.steps_per_epoch(
        round(
          experiments_data.NOMINAL[task.dataset][0] * (1 - task.validation)
        ),
        task.batch_size,
        task.last_batch,
      )
      for name, task in experiments.TASKS.items()
    }
    self.assertEqual(steps['C10-CNN1'], 352)  # Keras uses the last 72 examples.
    self.assertEqual(steps['C10-CNN2'], 351)
    self.assertEqual(steps['tiny-CNN'], 704)
    self.assertEqual(experiments_data.steps_per_epoch(10_000, 2048, True), 5)

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, "task is 'C10'; expected one of"):
      experiments.get_task('C10')
    with self.assertRaisesRegex(ValueError, "optimizer is 'lion'; expected"):
      experiments.best_setting('mnist', 'lion')
    with self.assertRaisesRegex(ValueError, "model.name is 'vit'"):
      experiments.make_model({'name': 'vit'})
    with self.assertRaisesRegex(ValueError, 'model.width is not an option'):
      experiments.make_model({'name': 'vgg', 'width': 3})
    with self.assertRaisesRegex(ValueError, 'hidden is 9; expected a tuple'):
      experiments.make_model({'name': 'deep_mlp', 'hidden': 9})
    with self.assertRaisesRegex(ValueError, 'dataset is'):
      experiments_data.load('svhn', '.')


class ConfigsTest(parameterized.TestCase):
  def test_every_task_has_every_experiment(self):
    tasks = (*experiments.PAPER_TASKS, 'C10-CNN1-fast', 'mnist-small')
    for task in tasks:
      for name in ('alpha', 'rho', 'speed', 'sgd', 'first_epoch'):
        config = load_config(name, task)
        self.assertEqual(config.task, task)
        experiments.make_model(config.model.to_dict())
      for name in ('weight_decay', 'adaptive', 'replay'):
        config = load_config(name, task)
        self.assertIn(config.baseline, config.settings)
        self.assertGreaterEqual(len(config.settings), 3)

  def test_grids(self):
    alpha = load_config('alpha')
    self.assertLen(alpha.alphas, 13)
    self.assertAlmostEqual(alpha.learning_rates[0], 3**-3)
    self.assertAlmostEqual(load_config('rho').learning_rates[-1], 1)
    self.assertLen(load_config('sgd').learning_rates, 5)
    self.assertFalse(load_config('sgd').optimizer.layca)
    self.assertEqual(load_config('first_epoch').rotation_every, 1)

  def test_mnist(self):
    config = load_config('mnist')
    self.assertEqual(config.drops, ((90,), (95,), (95,), ()))
    self.assertEqual(config.batch_size, 2048)
    epochs = [load_config('mnist', v).epochs for v in '567']
    self.assertEqual(epochs, [120, 300, 1000])
    with self.assertRaisesRegex(ValueError, 'variant'):
      load_config('mnist', '8')

  def test_warmup(self):
    config = load_config('warmup')
    self.assertEqual(config.model.depth, 110)
    self.assertEqual(
      {n: s.get('warmup_epochs', 0) for n, s in config.settings.items()},
      {
        'sgd_l2': 0,
        'sgd_layca': 0,
        'warmup05': 5,
        'warmup10': 10,
        'warmup15': 15,
      },
    )

  def test_replay(self):
    for task, base in (('C10-CNN1', 'sgd'), ('C100-resnet', 'amom_sgd')):
      config = load_config('replay', task)
      self.assertEqual(config.settings[config.replayed].optimizer.base, base)
      self.assertEqual(
        config.settings[config.replayed].epochs,
        config.settings[config.recorded].epochs,
      )


class OptimizersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.params = {
      'a': {'kernel': rng.normal(size=(4, 3)), 'bias': rng.normal(size=3)},
      'b': {'kernel': rng.normal(size=(3, 2))},
    }
    self.params = jax.tree.map(jnp.float32, self.params)
    self.gradients = [
      jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), self.params
      )
      for _ in range(4)
    ]

  def steps(self, tx):
    params, state = self.params, tx.init(self.params)
    for gradient in self.gradients:
      updates, state = tx.update(gradient, state, params)
      params = optax.apply_updates(params, updates)
    return params, state

  def test_keras_nesterov_has_the_rate_in_its_velocity(self):
    tx = experiments_optimizers.make(
      {'base': 'sgd', 'momentum': 0.9, 'nesterov': True},
      lambda count: jnp.where(count < 2, 0.1, 0.02),
    )
    params, _ = self.steps(tx)
    w = np.asarray(self.params['b']['kernel'], np.float64)
    v = np.zeros_like(w)
    for count, gradient in enumerate(self.gradients):
      g, rate = gradient['b']['kernel'], 0.1 if count < 2 else 0.02
      v = 0.9 * v - rate * g
      w = w + 0.9 * v - rate * g
    np.testing.assert_allclose(params['b']['kernel'], w, atol=1e-6)

  def test_normalized_sgd(self):
    tx = experiments_optimizers.make({'base': 'normalized_sgd'}, 0.1)
    params, _ = self.steps(tx)
    w = np.asarray(self.params['a']['bias'], np.float64)
    for gradient in self.gradients:
      g = gradient['a']['bias']
      w = w - 0.1 * g / np.linalg.norm(g)
    np.testing.assert_allclose(params['a']['bias'], w, atol=1e-6)

  @parameterized.parameters(*experiments_optimizers.BASES)
  def test_layca_turns_kernels_by_the_rate_and_nothing_else(self, base):
    options = {'base': base, 'layca': True}
    if base == 'amom_sgd':
      options['momentum'] = 0.9
    tx = experiments_optimizers.make(
      options, 0.05, {'a/kernel': 1.0, 'b/kernel': 0.5}
    )
    state = tx.init(self.params)
    updates, _ = tx.update(self.gradients[0], state, self.params)
    new = optax.apply_updates(self.params, updates)
    tangent = layca.step_tangent(self.params, new)
    self.assertAlmostEqual(float(tangent['a']['kernel']), 0.05, places=6)
    self.assertAlmostEqual(float(tangent['b']['kernel']), 0.025, places=6)
    np.testing.assert_array_equal(new['a']['bias'], self.params['a']['bias'])

  @parameterized.parameters('sgd', 'rmsprop', 'adam', 'adagrad')
  def test_without_layca_everything_moves(self, base):
    tx = experiments_optimizers.make(
      {'base': base}, 0.05, {'a/kernel': 1.0, 'b/kernel': 0.0}
    )
    params, _ = self.steps(tx)
    moved = jax.tree.map(
      lambda a, b: float(jnp.abs(a - b).max()), params, self.params
    )
    self.assertGreater(moved['a']['kernel'], 1e-3)
    self.assertGreater(moved['a']['bias'], 1e-3)
    self.assertEqual(moved['b']['kernel'], 0)  # Its multiplier.

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, "base is 'lion'; expected one of"):
      experiments_optimizers.direction('lion')
    with self.assertRaisesRegex(ValueError, 'expected 0 for adam'):
      experiments_optimizers.direction('adam', 0.9)

  def test_replay_turns_as_much_in_every_step(self):
    order = ['b/kernel', 'a/kernel']
    adam = optax.chain(
      experiments_optimizers.make({'base': 'adam'}, 0.03),
      experiments_replay.record_rotations(3, order),
    )
    _, state = self.steps(adam)
    table = np.asarray(experiments_replay.recorded_rotations(state))
    self.assertEqual(table.shape, (3, 2))
    self.assertGreater(table.min(), 0.01)
    # The first step by hand: Adam's is the sign of the gradient.
    w = np.asarray(self.params['a']['kernel'], np.float64)
    after = w - 0.03 * np.sign(self.gradients[0]['a']['kernel'])
    cosine = np.vdot(w, after) / np.linalg.norm(w) / np.linalg.norm(after)
    self.assertAlmostEqual(table[0, 1], math.tan(math.acos(cosine)), delta=1e-5)
    replay = optax.chain(
      experiments_optimizers.make(
        {'base': 'sgd', 'layca': True}, layca.replay_schedules(table, order)
      ),
      experiments_replay.record_rotations(4, order),
    )
    _, state = self.steps(replay)
    again = experiments_replay.recorded_rotations(state)
    np.testing.assert_allclose(again[:3], table, rtol=1e-5)
    np.testing.assert_allclose(again[3], table[2], rtol=1e-5)  # Clamped.

  def test_recorder_with_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'num_steps is 0'):
      experiments_replay.record_rotations(0, ['a/kernel'])
    recorder = experiments_replay.record_rotations(2, ['c/kernel'])
    with self.assertRaisesRegex(ValueError, "'c/kernel', which is none of"):
      recorder.init(self.params)
    recorder = experiments_replay.record_rotations(5, ['a/kernel'])
    _, state = self.steps(optax.chain(optax.sgd(0.1), recorder))
    table = experiments_replay.recorded_rotations(state)
    self.assertEqual(table.shape, (4, 1))  # No zeros for steps to come.
    with self.assertRaisesRegex(ValueError, '0 states of record_rotations'):
      experiments_replay.recorded_rotations(optax.sgd(0.1).init(self.params))


if __name__ == '__main__':
  absltest.main()
