"""Training steps: the original's trajectory, groups, averages, masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest
from flax import linen

from jaxpapers import training
from jaxpapers.efficientnet import ema, optimizers, train
from jaxpapers.efficientnet.config import ModelConfig
from jaxpapers.efficientnet.model import EfficientNet
from tests.efficientnet import recipe_weights
from tests.helpers import goldens


class TinyNet(linen.Module):
  """Small, with all that a loss has to take care of."""

  classes: int = 10

  @linen.compact
  def __call__(self, x, train=False):
    x = linen.Conv(8, (3, 3), 2, name='conv')(x)
    x = linen.BatchNorm(use_running_average=not train, momentum=0.9, name='bn')(
      x
    )
    x = jax.nn.relu(x).mean((1, 2))
    x = linen.Dropout(0.5, deterministic=not train)(x)
    return linen.Dense(self.classes, name='classifier')(x)


def batch_of(size, classes=10, pixels=8):
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (size, pixels, pixels, 3), np.uint8),
    'label': rng.integers(0, classes, size).astype(np.int32),
  }


class TrajectoryTest(absltest.TestCase):
  @pytest.mark.slow
  def test_five_steps_of_the_original(self):
    golden = goldens.load_npz(
      'efficientnet', 'recipe', 'tf_train5_tiny_w025_d05_32.npz'
    )
    names = goldens.load_json(
      'efficientnet', 'recipe', 'timm_keys_tiny_w025_d05.json'
    )
    variables = recipe_weights.variables(names)
    model = EfficientNet(
      ModelConfig(
        width=0.25,
        depth=0.5,
        num_classes=10,
        dropout_rate=0.0,
        survival_prob=None,
      )
    )
    average = 0.9999
    loss_fn = train.make_loss_fn(
      model, normalization='none', ema=average, weight_decay=1e-5
    )
    # A peak of .016 * 64 / 256, one step an epoch.
    tx = optimizers.efficientnet_optimizer(64, 1, warmup_epochs=2)
    decayed = optimizers.is_decayed(variables['params'])
    self.assertEqual(
      sum(jax.tree.leaves(decayed)), len(golden['decayed_names'])
    )

    def init(key):
      del key
      params, stats = jax.tree.map(
        jnp.asarray, (variables['params'], variables['batch_stats'])
      )
      return params, {
        'batch_stats': stats,
        'average': ema.init_stats_average(stats),
      }

    state = training.create_state(init, tx, jax.random.key(0), ema=True)
    step = training.make_train_step(
      loss_fn, tx, ema=ema.ema_with_warmup(average)
    )
    for k in range(5):
      image = goldens.normal(f'input/tf_train5_tiny/{k}', (8, 32, 32, 3))
      batch = {
        'image': image.astype(np.float32),
        'label': ((np.arange(8) * 3 + k) % 10).astype(np.int32),
      }
      state, metrics = step(state, batch)
      np.testing.assert_allclose(metrics['loss'], golden['ce'][k], rtol=5e-6)
      total = metrics['loss'] + metrics['l2']
      np.testing.assert_allclose(total, golden['loss'][k], rtol=5e-6)
      np.testing.assert_allclose(
        metrics['learning_rate'], golden['lr'][k], rtol=1e-6
      )
    now = {
      'params': state.params,
      'batch_stats': state.model_state['batch_stats'],
    }
    averaged = {
      'params': state.ema_params,
      'batch_stats': state.model_state['average']['batch_stats'],
    }
    for kind, tree in (('var', now), ('ema', averaged)):
      norms = golden[f'{kind}_norms']
      self.assertLen(norms, 197)
      for name, expected in zip(golden['var_norms_names'], norms):
        norm = np.linalg.norm(recipe_weights.lookup(tree, str(name)).ravel())
        # Float32 sums in another order; .01 % would be a wrong constant.
        np.testing.assert_allclose(norm, expected, rtol=1e-5, err_msg=name)
      stored = [n for n in golden if n.startswith(f'{kind}/')]
      self.assertNotEmpty(stored)
      for name in stored:
        array = recipe_weights.lookup(tree, name.partition('/')[2])
        scale = np.abs(golden[name]).max()
        np.testing.assert_allclose(
          array, golden[name], atol=1e-5 * scale, err_msg=name
        )


class LossTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.model = TinyNet()
    self.batch = batch_of(8)

  def state(self, average=False):
    init = train.make_init(self.model, 8, average=average)
    return jax.jit(init)(jax.random.key(1))

  def test_smoothed_cross_entropy(self):
    params, model_state = self.state()
    loss_fn = train.make_loss_fn(self.model, label_smoothing=0.1)
    rng = jax.random.key(2)
    loss, (new, metrics) = jax.jit(loss_fn)(
      params, model_state, self.batch, rng
    )
    images = (self.batch['image'] / 255 - [0.485, 0.456, 0.406]) / [
      0.229,
      0.224,
      0.225,
    ]
    logits, _ = self.model.apply(
      {'params': params, **model_state},
      jnp.asarray(images, jnp.float32),
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.split(rng)[0]},
    )
    log_p = np.asarray(jax.nn.log_softmax(logits))
    own = log_p[np.arange(8), self.batch['label']]
    expected = -(0.9 * own + 0.1 * log_p.mean(-1)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    self.assertEqual(set(metrics), {'accuracy'})
    before = model_state['batch_stats']['bn']['mean']
    after = new['batch_stats']['bn']['mean']
    self.assertGreater(float(jnp.abs(after - before).max()), 0)

  def test_mixup_and_replaced_images(self):
    params, model_state = self.state()
    batch = self.batch | {'sound': np.arange(8) > 1}
    options = {'label_smoothing': 0.1}

    def run(alpha):
      loss_fn = train.make_loss_fn(self.model, mixup_alpha=alpha, **options)
      return jax.jit(loss_fn)(params, model_state, batch, jax.random.key(0))

    plain, mixed = run(0.0), run(0.2)
    self.assertNotAlmostEqual(float(plain[0]), float(mixed[0]))
    self.assertTrue(np.isfinite(mixed[0]))
    self.assertAlmostEqual(float(plain[1][1]['replaced']), 0.25)

  def test_groups_of_batch_norm(self):
    params, model_state = self.state()

    class NoDropout(TinyNet):
      @linen.compact
      def __call__(self, x, train=False):
        x = linen.Conv(8, (3, 3), 2, name='conv')(x)
        x = linen.BatchNorm(not train, momentum=0.9, name='bn')(x)
        return linen.Dense(10, name='classifier')(x.mean((1, 2)))

    model = NoDropout()

    def loss_of(size):
      loss_fn = train.make_loss_fn(
        model, bn_batch_size=size, normalization='none'
      )
      return jax.jit(loss_fn)(
        params, model_state, self.batch, jax.random.key(0)
      )

    loss, (new, _) = loss_of(4)
    parts = []
    for half in (slice(0, 4), slice(4, 8)):
      part = jax.tree.map(lambda x, half=half: x[half], self.batch)
      one = train.make_loss_fn(model, normalization='none')
      parts.append(jax.jit(one)(params, model_state, part, jax.random.key(0)))
    np.testing.assert_allclose(loss, (parts[0][0] + parts[1][0]) / 2, rtol=1e-5)
    means = [p[1][0]['batch_stats']['bn']['mean'] for p in parts]
    np.testing.assert_allclose(
      new['batch_stats']['bn']['mean'], (means[0] + means[1]) / 2, rtol=1e-4
    )
    self.assertGreater(abs(float(loss - loss_of(0)[0])), 1e-6)
    with self.assertRaisesRegex(ValueError, 'bn_batch_size is 3'):
      loss_of(3)

  def test_microbatches_keep_the_average_in_step(self):
    # What the average of the statistics does must not depend on accumulate.
    tx = optax.sgd(0.1)
    results = []
    for accumulate in (1, 2):
      loss_fn = train.make_loss_fn(
        self.model, ema=0.9999, accumulate=accumulate
      )
      init = train.make_init(self.model, 8, average=True)
      state = training.create_state(init, tx, jax.random.key(0), ema=True)
      step = training.make_train_step(
        loss_fn,
        tx,
        accumulate=accumulate,
        ema=ema.ema_with_warmup(0.9999),
      )
      for _ in range(3):
        state, _ = step(state, self.batch)
      results.append(state)
    counts = [int(s.model_state['average']['count']) for s in results]
    self.assertEqual(counts, [3, 6])
    # By hand for the second: statistics after both microbatches.
    state = results[1]
    average = state.model_state['average']['batch_stats']['bn']['mean']
    self.assertGreater(float(jnp.abs(average).max()), 0)

  def test_evaluation(self):
    params, model_state = self.state(average=True)
    model_state['average']['batch_stats'] = jax.tree.map(
      lambda x: x + 1, model_state['batch_stats']
    )
    batch = self.batch | {
      'mask': np.arange(8) < 6,
      'sound': np.arange(8) != 0,
    }
    metrics = {
      average: train.make_metric_fn(self.model, average=average)(
        params, model_state, batch
      )
      for average in (True, False)
    }
    self.assertEqual(float(metrics[True]['count']), 5)
    self.assertGreater(
      abs(metrics[True]['cross_entropy'] - metrics[False]['cross_entropy']),
      1e-4,
    )
    images = (self.batch['image'] / 255 - [0.485, 0.456, 0.406]) / [
      0.229,
      0.224,
      0.225,
    ]
    logits = self.model.apply(
      {'params': params, 'batch_stats': model_state['batch_stats']},
      jnp.asarray(images, jnp.float32),
    )
    order = np.argsort(-np.asarray(logits), -1)[1:6]
    labels = self.batch['label'][1:6, None]
    self.assertAlmostEqual(
      float(metrics[False]['accuracy']), (order[:, :1] == labels).sum() / 5
    )
    self.assertAlmostEqual(
      float(metrics[False]['top5']), (order[:, :5] == labels).sum() / 5
    )

  def test_nan_is_never_right(self):
    params, model_state = self.state()
    params = jax.tree.map(lambda x: x * jnp.nan, params)
    metrics = train.make_metric_fn(self.model)(params, model_state, self.batch)
    self.assertEqual(float(metrics['accuracy']), 0)
    self.assertEqual(float(metrics['top5']), 0)

  def test_weights_of_another_network(self):
    def variables(classes):
      init = train.make_init(TinyNet(classes), 8)
      params, state = jax.eval_shape(init, jax.random.key(0))
      return {'params': params, **state}

    ours, other = variables(10), variables(3)
    train.check_same_shapes(ours, variables(10))
    with self.assertRaisesRegex(
      ValueError, r'params/classifier/bias.*\(10,\).*\(3,\)'
    ):
      train.check_same_shapes(ours, other)
    del ours['params']['bn']
    with self.assertRaisesRegex(ValueError, 'params/bn/bias.*missing'):
      train.check_same_shapes(ours, variables(10))

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'label_smoothing is 1'):
      train.make_loss_fn(self.model, label_smoothing=1)
    with self.assertRaisesRegex(ValueError, 'bn_batch_size is -1'):
      train.make_loss_fn(self.model, bn_batch_size=-1)


class SmokeTest(absltest.TestCase):
  @pytest.mark.slow
  def test_bfloat16_batch_stays_finite(self):
    # Statistics and losses stay float32.
    model = EfficientNet(
      ModelConfig(
        blocks=('r1_k3_s11_e1_i16_o8_se0.25', 'r2_k3_s22_e2_i8_o16_se0.25'),
        stem_filters=16,
        head_filters=32,
        num_classes=10,
        dtype='bfloat16',
      )
    )
    init = train.make_init(model, 16, average=True)
    tx = optimizers.efficientnet_optimizer(8, 2, warmup_epochs=1)
    state = training.create_state(init, tx, jax.random.key(0), ema=True)
    step = training.make_train_step(
      train.make_loss_fn(model, ema=0.99),
      tx,
      ema=ema.ema_with_warmup(0.99),
    )
    batch = batch_of(8, pixels=16)
    step = functools.partial(step)
    for _ in range(3):
      state, metrics = step(state, batch)
    self.assertTrue(np.isfinite(metrics['loss']))
    self.assertEqual(metrics['loss'].dtype, jnp.float32)
    types = {x.dtype.name for x in jax.tree.leaves(state.params)}
    types |= {x.dtype.name for x in jax.tree.leaves(state.ema_params)}
    self.assertEqual(types, {'float32'})


if __name__ == '__main__':
  absltest.main()
