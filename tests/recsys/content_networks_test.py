"""Tests of CVAE and CDL, and of the regression that they share."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import recsys
from jaxpapers.recsys import cdl_network, content_nets, ctr, cvae_network
from tests.helpers import goldens

_GOLDEN = goldens.load_npz('recsys', 'neural_keras.npz')
_NAMES = {
  'kernel_0': 'inference/W1:0',
  'bias_0': 'inference/b1:0',
  'kernel_1': 'inference/W2:0',
  'bias_1': 'inference/b2:0',
  'mean_kernel': 'inference/W_z_mean:0',
  'mean_bias': 'inference/b_z_mean:0',
  'variance_kernel': 'inference/W_z_log_sigma:0',
  'variance_bias': 'inference/b_z_log_sigma:0',
  'code_kernel': 'generation/W2:0',
  'code_bias': 'generation/b2:0',
  'visible_bias': 'generation/b_x:0',
}


def _float32(name, shape, scale):
  return goldens.normal(name, shape, scale).astype(np.float32)


class RegressionTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.x = recsys.from_dense(_GOLDEN['pmf/R'].astype(np.float32))
    self.u, self.v, self.theta = (
      _float32(f'cvae/{name}', shape, 0.1).astype(np.float64)
      for name, shape in (('U', (12, 6)), ('V', (15, 6)), ('theta', (15, 6)))
    )
    self.weights = ctr.Weights()

  def test_golden(self):
    with jax.enable_x64(True):
      plan = ctr.make_plan(self.x, 6)
      u, v = self.u, self.v
      for sweep in (1, 2):
        u, v = recsys.ctr_sweep(u, v, self.theta, plan, self.weights)
        np.testing.assert_allclose(
          u, _GOLDEN[f'pmf/U_after_{sweep}'], atol=1e-12
        )
        np.testing.assert_allclose(
          v, _GOLDEN[f'pmf/V_after_{sweep}'], atol=1e-12
        )
        if sweep == 1:
          found = recsys.ctr_log_likelihood(
            u, v, self.theta, self.x, self.weights
          )
          np.testing.assert_allclose(
            found, _GOLDEN['pmf/likelihood'], rtol=1e-12
          )

  def test_cold_rows(self):
    self.assertEqual(self.x.user_counts()[11], 0)
    self.assertEqual(self.x.item_counts()[14], 0)
    plan = ctr.make_plan(self.x, 6)
    u, v = ctr.ctr_sweep(self.u, self.v, self.theta, plan, self.weights)
    np.testing.assert_allclose(u[11], self.u[11], rtol=1e-6)
    # An item that nobody has is what its content says, nearly.
    np.testing.assert_allclose(v[14], self.theta[14], atol=1e-2)
    self.assertGreater(np.abs(v[14] - self.v[14]).max(), 0.05)

  def test_sweeps_go_up(self):
    plan = ctr.make_plan(self.x, 6)
    u, v = self.u, self.v
    likelihood = functools.partial(
      recsys.ctr_log_likelihood,
      theta=self.theta,
      train=self.x,
      weights=self.weights,
    )
    values = [likelihood(u, v)]
    for _ in range(5):
      u, v = ctr.ctr_sweep(u, v, self.theta, plan, self.weights)
      values.append(likelihood(u, v))
    self.assertTrue((np.diff(values) >= -1e-5).all(), values)
    self.assertGreater(values[-1] - values[0], 1)

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, 'a above b'):
      ctr.check_weights(ctr.Weights(0.01, 1.0))
    with self.assertRaisesRegex(ValueError, 'lambda_v is 0'):
      ctr.check_weights(ctr.Weights(items=0))


class CvaeGoldenTest(absltest.TestCase):
  def test_golden(self):
    params = {
      ours: jnp.asarray(
        _float32(f'cvae/{name}', _GOLDEN[f'cvae/grad/{name}'].shape, 0.3)
      )
      for ours, name in _NAMES.items()
    }
    module = cvae_network.CVAE(20, (10, 8), 6)
    x, v, noise = (_GOLDEN[f'cvae/{name}'] for name in ('x', 'v', 'eps'))

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
      parts = cvae_network.cvae_losses(module, params, x, v, noise, 10.0)
      _, _, mean, variance = module.apply({'params': params}, x, noise)
      return parts['total'], (parts, mean, variance)

    (_, (parts, mean, variance)), gradients = jax.jit(loss)(params)
    for ours, name in (
      ('total', 'loss'),
      ('content', 'gen_loss'),
      ('divergence', 'latent_loss'),
      ('factors', 'v_loss'),
    ):
      np.testing.assert_allclose(
        parts[ours], _GOLDEN[f'cvae/{name}'], rtol=1e-6
      )
    np.testing.assert_allclose(mean, _GOLDEN['cvae/z_mean'], atol=1e-6)
    np.testing.assert_allclose(
      variance, _GOLDEN['cvae/z_log_sigma_sq'], atol=1e-6
    )
    for ours, name in _NAMES.items():
      expected = _GOLDEN[f'cvae/grad/{name}']
      np.testing.assert_allclose(
        gradients[ours], expected, atol=1e-5 * np.abs(expected).max()
      )


def _random(rng, shapes):
  return jax.tree.map(lambda s: 0.4 * rng.standard_normal(s.shape), shapes)


class CdlTest(parameterized.TestCase):
  def test_gradients(self):
    # The original is Matlab, and was not run: numbers of two sides instead.
    module = cdl_network.CDL(7, (5,), 3)
    rng = np.random.default_rng(0)
    x, v = rng.random((4, 7)), rng.random((4, 3))
    noisy = x * (rng.random(x.shape) < 0.7)
    with jax.enable_x64(True):
      shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
      params = jax.tree.map(
        lambda s: 0.4 * rng.standard_normal(s.shape), shapes
      )

      def loss(params):
        return cdl_network.cdl_losses(
          module, params, noisy, x, v, 0.7, 0.1, jax.random.key(1)
        )['total']

      jax.test_util.check_grads(jax.jit(loss), (params,), 1, modes=['rev'])

  def test_formulas(self):
    module = cdl_network.CDL(6, (4,), 2, dropout=0.0)
    rng = np.random.default_rng(0)
    x, v = rng.random((3, 6)), rng.random((3, 2))
    noisy = x * (rng.random(x.shape) < 0.7)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)['params']
    params = _random(rng, shapes)
    parts = cdl_network.cdl_losses(module, params, noisy, x, v, 0.7, 0.1)

    def sigmoid(z):
      return 1 / (1 + np.exp(-z))

    w0, w1 = params['kernel_0'], params['kernel_1']
    code = sigmoid(
      sigmoid(noisy @ w0 + params['bias_0']) @ w1 + params['bias_1']
    )
    hidden = sigmoid(code @ w1.T + params['visible_bias_1'])
    out = sigmoid(hidden @ w0.T + params['visible_bias_0'])
    entropy = -(x * np.log(out) + (1 - x) * np.log(1 - out)).sum(1).mean()
    np.testing.assert_allclose(parts['content'], entropy, rtol=1e-5)
    pull = 0.35 * ((code - v) ** 2).sum(1).mean()
    np.testing.assert_allclose(parts['factors'], pull, rtol=1e-5)
    decay = 0.05 * ((w0**2).sum() + (w1**2).sum())
    np.testing.assert_allclose(parts['weights'], decay, rtol=1e-5)
    # The pull moves the encoder only.
    gradients = jax.jit(
      jax.grad(
        lambda p: cdl_network.cdl_losses(module, p, noisy, x, v, 0.7, 0.0)[
          'factors'
        ]
      )
    )(params)
    self.assertEqual(float(np.abs(gradients['visible_bias_0']).max()), 0)
    self.assertGreater(float(np.abs(gradients['kernel_0']).max()), 1e-3)


class ContentTest(parameterized.TestCase):
  def test_rows_are_dense_again(self):
    rng = np.random.default_rng(0)
    dense = rng.random((5, 9)) * (rng.random((5, 9)) < 0.4)
    dense[3] = 0
    data, width = content_nets.put_content(dense, 5)
    self.assertEqual(width, 9)
    rows = content_nets.take(data, jnp.array([4, 3, 0]), 9)
    np.testing.assert_allclose(rows, dense[[4, 3, 0]], rtol=1e-6)
    doubled = content_nets.map_rows(_Double(), 2.0, data, 9, 2)
    np.testing.assert_allclose(doubled, 2 * dense, rtol=1e-6)

  def test_batches_of_the_code_leave_items_out(self):
    key = jax.random.key(0)
    anew = content_nets.draw_batches(key, 1000, 100, 10, False)
    self.assertEqual(anew.shape, (10, 100))
    for batch in np.asarray(anew):
      self.assertLen(set(batch.tolist()), 100)
    # (1 - 1/10)^10 = .35 of them are in no batch of an "epoch"; the deviation
    # of the share is below .01.
    left = 1 - len(np.unique(anew)) / 1000
    self.assertBetween(left, 0.31, 0.39)
    covering = content_nets.draw_batches(key, 950, 100, 10, True)
    self.assertLen(np.unique(covering), 950)

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, 'have 2 rows; expected 3'):
      content_nets.put_content(np.eye(2), 3)
    with self.assertRaisesRegex(ValueError, 'values\n? ?from 0 to 1'):
      content_nets.put_content(2 * np.eye(2), 2)


class _Double:
  def __call__(self, params, x):
    return params * x


class OneInteractionTest(parameterized.TestCase):
  """P=1: what the study's tables 15 and 17 are made of."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # Four subjects of ten items; words of a subject, some noise; each user has
    # one item for training and eight of the same subject for test.
    rng = np.random.default_rng(0)
    subject = np.arange(40) % 4
    words = np.arange(24) % 4
    share = np.where(subject[:, None] == words, 0.6, 0.05)
    cls.features = (rng.random((40, 24)) < share).astype(np.float32)
    train, test = np.zeros((32, 40)), np.zeros((32, 40))
    for user in range(32):
      own = rng.permutation(np.flatnonzero(subject == user % 4))
      train[user, own[0]] = 1
      test[user, own[1:9]] = 1
    cls.train, cls.test = recsys.from_dense(train), recsys.from_dense(test)

  def recall(self, model, ties='expected'):
    result = recsys.evaluate_model(
      model, self.train, self.test, (8,), metrics=('recall',), ties=ties
    )
    return result.mean('recall', 8)

  def test_interactions_alone_say_nothing(self):
    model = recsys.fit('ItemKNN CF cosine', self.train, {'shrink': 0})
    scores = recsys.score(model, self.train, np.arange(32))
    unseen = scores[self.train.to_dense() == 0]
    # No item goes with another: all scores are equal, and the metric is what
    # the order of equal scores makes of it.
    self.assertEqual(np.abs(unseen).max(), 0)
    self.assertAlmostEqual(self.recall(model), 8 / 39, places=6)
    self.assertEqual(self.recall(model, 'pessimistic'), 0)
    self.assertEqual(self.recall(model, 'optimistic'), 1)

  @parameterized.parameters(
    (
      'CVAE',
      {'layer_epochs': 50, 'latent_epochs': 50, 'whole_epochs': 200},
      10,
    ),
    # AdaDelta begins slowly; there are two batches in an epoch here.
    ('CDL', {'layer_epochs': 60, 'learning_rate': 30.0}, 60),
  )
  @pytest.mark.slow
  def test_content_says_something(self, name, parameters, count):
    epochs = []

    def monitor(epoch, model):
      epochs.append((epoch, model.items.copy()))
      return False

    model = recsys.fit(
      name,
      self.train,
      {
        'factors': 4,
        'hidden': (12,),
        'batch_size': 20,
        'epochs': count,
        **parameters,
      },
      features=self.features,
      monitor=monitor,
    )
    self.assertLen(epochs, count)
    self.assertEqual(model.items.shape, (40, 4))
    self.assertTrue(np.isfinite(model.items).all())
    # Chance is .205; neighbours by content have .73.
    self.assertGreater(self.recall(model), 0.5)
    # No two scores are equal: nothing is left to the order of ids.
    self.assertAlmostEqual(
      self.recall(model, 'pessimistic'),
      self.recall(model, 'optimistic'),
      places=6,
    )

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, 'needs features'):
      recsys.fit('CVAE', self.train)
    with self.assertRaisesRegex(ValueError, 'last_sweeps is 0'):
      recsys.cdl(self.train, self.features, last_sweeps=0)
    with self.assertRaisesRegex(ValueError, 'epochs is 0'):
      recsys.cvae(self.train, self.features, epochs=0)


if __name__ == '__main__':
  absltest.main()
