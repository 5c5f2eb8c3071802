"""Tests of losses, metrics and stopping rules; a run of the original code."""

import pathlib
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers import training
from jaxpapers.layca import experiments_optimizers, models, sweep, train

_TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata' / 'layca'


def draw(key, shape):
  """The goldens' deterministic numbers."""
  seed = zlib.crc32(key.encode())
  return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)


def mlp_batches(tag='mlp-pub'):
  x = draw(f'{tag}|X', (20, 32, 20))
  y = np.argmax(x.reshape(-1, 20) @ draw(f'{tag}|teacher', (20, 4)), 1)
  return x, y.reshape(20, 32).astype(np.int32)


def small_problem(examples=6):
  model = models.DeepMLP((7, 5), classes=3)
  init = train.make_init(model, jax.ShapeDtypeStruct((1, 4), jnp.float32))
  params, state = init(jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.normal(size=(examples, 4)).astype(np.float32),
    'label': rng.integers(0, 3, examples).astype(np.int32),
  }
  return model, params, state, batch


class OriginalRunTest(parameterized.TestCase):
  @parameterized.parameters(
    # Keras-exact bases: only the order of additions differs in float64.
    ('sgd', 3.0**-2.5, 1e-10),
    ('adam', 3.0**-3, 1e-10),
  )
  def test_network_loss_and_statistics(self, base, rate, tolerance):
    golden = np.load(_TESTDATA / f'train_mlp_{base}.npz')
    x, y = mlp_batches()
    np.testing.assert_array_equal(x[0, :2], golden['X0'])
    with jax.enable_x64(True):
      model = models.MnistMLP(16, 4, param_dtype=jnp.float64)
      params, state = train.make_init(
        model, jax.ShapeDtypeStruct((1, 20), jnp.float64)
      )(jax.random.key(0))
      for ours, theirs in (('dense0', 'dense0'), ('last_dense', 'densef')):
        shape = params[ours]['kernel'].shape
        params[ours]['kernel'] = jnp.asarray(
          draw(f'mlp-pub|{theirs}/kernel', shape) / np.sqrt(shape[0])
        )
      tx = experiments_optimizers.make(
        {'base': base, 'layca': True},
        lambda count: jnp.where(count < 15, rate, rate / 5),
      )
      opt_state = tx.init(params)
      loss_fn = train.make_loss_fn(model)

      @jax.jit
      def step(params, state, opt_state, batch):
        (loss, (state, _)), gradients = jax.value_and_grad(
          loss_fn, has_aux=True
        )(params, state, batch, jax.random.key(0))
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, loss

      for index in range(20):
        batch = {'image': x[index], 'label': y[index]}
        params, state, opt_state, loss = step(params, state, opt_state, batch)
        self.assertAlmostEqual(
          float(loss), float(golden['loss'][index]), delta=tolerance
        )
      np.testing.assert_allclose(
        params['dense0']['kernel'], golden['final_dense0_kernel'], atol=1e-9
      )
      np.testing.assert_array_equal(params['dense0']['bias'], 0)
      gamma, beta, mean, variance = golden['bn_gamma_beta_mean_var']
      norm, statistics = params['dense0_batch'], state['batch_stats']
      np.testing.assert_array_equal(norm['scale'], gamma)
      np.testing.assert_array_equal(norm['bias'], beta)
      np.testing.assert_allclose(
        statistics['dense0_batch']['mean'], mean, atol=1e-9
      )
      np.testing.assert_allclose(
        statistics['dense0_batch']['var'], variance, atol=1e-9
      )


class LossTest(parameterized.TestCase):
  def test_cross_entropy_and_accuracy(self):
    logits = np.array([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0], [1.0, 2.0, 0.0]])
    label = np.array([0, 1, 1])
    metrics = train.classification_metrics(
      jnp.asarray(logits, jnp.float32), {'label': label}
    )
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(probabilities[range(3), label])
    self.assertAlmostEqual(
      float(metrics['cross_entropy']), expected.mean(), places=6
    )
    self.assertAlmostEqual(float(metrics['accuracy']), 2 / 3, places=6)
    self.assertEqual(float(metrics['count']), 3)
    masked = train.classification_metrics(
      jnp.asarray(logits, jnp.float32).at[1].set(jnp.nan),
      {'label': label, 'mask': np.array([1, 0, 1])},
    )
    self.assertAlmostEqual(
      float(masked['cross_entropy']), expected[[0, 2]].mean(), places=6
    )
    self.assertEqual(float(masked['accuracy']), 1)
    self.assertEqual(float(masked['count']), 2)

  def test_l2_is_that_of_keras(self):
    model, params, state, batch = small_problem()
    gradients = []
    losses = []
    for l2 in (0.0, 0.1):
      loss_fn = train.make_loss_fn(model, l2=l2, l2_exclude=('last_dense',))
      (loss, (_, metrics)), gradient = jax.value_and_grad(
        loss_fn, has_aux=True
      )(params, state, batch, jax.random.key(0))
      gradients.append(gradient)
      losses.append(float(loss))
      np.testing.assert_allclose(metrics['cross_entropy'], losses[0], rtol=1e-6)
    kernels = [params[name]['kernel'] for name in ('dense0', 'dense1')]
    squares = sum(float((k**2).sum()) for k in kernels)
    self.assertAlmostEqual(losses[1] - losses[0], 0.1 * squares, places=5)
    change = jax.tree.map(jnp.subtract, *gradients[::-1])
    np.testing.assert_allclose(
      change['dense1']['kernel'], 0.2 * kernels[1], atol=1e-6
    )
    np.testing.assert_allclose(change['last_dense']['kernel'], 0, atol=1e-7)

  def test_padding_changes_neither_loss_nor_gradient(self):
    model, params, state, batch = small_problem()
    padded = {
      'image': np.concatenate([batch['image'], 100 + batch['image'][:2]]),
      'label': np.concatenate([batch['label'], batch['label'][:2]]),
      'mask': np.array([True] * 6 + [False] * 2),
    }
    loss_fn = jax.value_and_grad(train.make_loss_fn(model), has_aux=True)
    plain = loss_fn(params, state, batch, jax.random.key(0))
    masked = loss_fn(params, state, padded, jax.random.key(0))
    chex.assert_trees_all_close(masked, plain, rtol=1e-5, atol=1e-6)

  def test_augmentation_sees_the_key(self):
    model, params, state, batch = small_problem()
    seen = []

    def augment(key, image):
      seen.append(key)
      return 2 * image

    loss_fn = train.make_loss_fn(model, augment=augment)
    doubled, _ = loss_fn(params, state, batch, jax.random.key(0))
    other = {**batch, 'image': 2 * batch['image']}
    expected, _ = train.make_loss_fn(model)(
      params, state, other, jax.random.key(0)
    )
    self.assertEqual(float(doubled), float(expected))
    loss_fn(params, state, batch, jax.random.key(1))
    self.assertNotEqual(*(jax.random.key_data(key).tolist() for key in seen))

  def test_evaluation_uses_running_statistics(self):
    model, params, state, batch = small_problem()
    metrics = train.make_metric_fn(model)(params, state, batch)
    logits = model.apply({'params': params, **state}, batch['image'])
    expected = train.classification_metrics(logits, batch)
    chex.assert_trees_all_equal(metrics, expected)
    _, (_, trained) = train.make_loss_fn(model)(
      params, state, batch, jax.random.key(0)
    )
    self.assertNotEqual(
      float(metrics['cross_entropy']), float(trained['cross_entropy'])
    )

  def test_bad_input(self):
    model, *_ = small_problem()
    with self.assertRaisesRegex(ValueError, 'l2 is -1'):
      train.make_loss_fn(model, l2=-1)
    with self.assertRaisesRegex(ValueError, 'no leaf named kernel'):
      train.squared_kernels({'a': {'bias': jnp.ones(2)}})


class StoppingTest(parameterized.TestCase):
  def run_epochs(self, rule, losses, accuracies, steps=5):
    """First epoch after which the rule ends the run, and its words."""
    for epoch, (loss, accuracy) in enumerate(zip(losses, accuracies)):
      metrics = {'loss': loss, 'accuracy': accuracy}
      self.assertIsNone(rule(steps * (epoch + 1), 'test', metrics))
      self.assertIsNone(rule(steps * epoch + 1, 'train', metrics))
      reason = rule(steps * (epoch + 1), 'train', metrics)
      if reason:
        return epoch, reason
    return None, ''

  def test_each_reason(self):
    falling = 1 / np.arange(1.0, 11)
    good = np.full(10, 0.9)
    cases = (
      ({}, falling, good, None, ''),
      ({'hopeless': (0.2, 3)}, falling, good, None, ''),
      ({'hopeless': (0.2, 3)}, falling, np.full(10, 0.2), 3, 'accuracy <= 0.2'),
      ({'finished_loss': 0.25}, falling, good, 3, 'reached 0.25'),
      (
        {'unchanged_epochs': 3},
        np.array([2, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        good,
        7,
        'did not change for 3',
      ),
      ({}, np.array([1, np.nan]), good, 1, 'not finite'),
    )
    for options, losses, accuracies, epoch, words in cases:
      rule = train.stopping_rule(5, **options)
      ended, reason = self.run_epochs(rule, losses, accuracies)
      self.assertEqual(ended, epoch, options)
      self.assertIn(words, reason)

  def test_a_population_goes_on_until_all_have_ended(self):
    rule = train.stopping_rule(5, finished_loss=0.3, hopeless=(0.2, 1))
    losses = np.array([[1, 1], [1, 0.9], [0.9, 0.6], [0.8, 0.2], [0.7, 0.1]])
    accuracies = np.array([[0.1, 0.5]] * 5)
    ended, reason = self.run_epochs(rule, losses, accuracies)
    self.assertEqual(ended, 3)
    self.assertIn('accuracy', reason)
    self.assertIn('reached', reason)

  def test_a_resumed_run_remembers(self):
    options = {'unchanged_epochs': 3}
    past = {
      'step': np.array([5, 10, 15, 20]),
      'loss': np.array([1.0, 1.0, 1.0, 1.0]),
      'accuracy': np.ones(4),
    }
    metrics = {'loss': 1.0, 'accuracy': 1.0}
    rule = train.stopping_rule(5, past=past, **options)
    # It had gone to step 20, and goes on from a checkpoint of step 10.
    self.assertIsNone(rule(15, 'train', metrics))
    self.assertIn('did not change', rule(20, 'train', metrics))
    fresh = train.stopping_rule(5, **options)
    self.assertIsNone(fresh(20, 'train', metrics))


class WholeStepTest(parameterized.TestCase):
  @parameterized.parameters(None, 'data:1')
  def test_compiles_once_for_padded_and_full_batches(self, axes):
    mesh = axes and training.make_mesh(axes, jax.devices()[:1])
    model, _, _, batch = small_problem()
    order = ['dense0/kernel', 'dense1/kernel', 'last_dense/kernel']
    values = sweep.hyperparameters(sweep.grid((0.1, 0.01)), order, (1, 2), 0.2)
    tx = sweep.make_optimizer({'base': 'sgd', 'layca': True}, values, order, 2)
    init = train.make_init(model, jax.ShapeDtypeStruct((1, 4), jnp.float32))
    keys = jnp.stack([jax.random.key(0)] * 2)
    state = training.create_state(init, tx, keys, mesh=mesh)
    state = sweep.assign_members(state, values)
    step = training.make_train_step(
      train.make_loss_fn(model), tx, population=True, mesh=mesh
    )
    for padding in (0, 2, 0, 1, 0):
      mask = np.arange(6) < 6 - padding
      padded = training.put_batch({**batch, 'mask': mask}, mesh)
      state, metrics = step(state, padded)
    self.assertEqual(step._cache_size(), 1)
    self.assertEqual(metrics['loss'].shape, (2,))


if __name__ == '__main__':
  absltest.main()
