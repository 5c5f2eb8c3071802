"""Monitors of rotation, and the closed-form rates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers import layca as lib
from tests.helpers import goldens


def normal(tag, shape, scale=1.0):
  return jnp.asarray(goldens.normal(tag, shape, scale), jnp.float32)


def exact_distance(a, b):
  a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
  return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)


class LayerRotationTest(parameterized.TestCase):
  def test_one_tiny_step_of_a_large_kernel(self):
    # 1 - cos would be 0 in float32: the true value is 1.0454e-7.
    w = jax.random.normal(jax.random.key(0), (3, 3, 512, 512))
    g = jax.random.normal(jax.random.key(1), w.shape)

    @jax.jit
    def distance(w, g):
      tx = lib.layca(3.0**-7)
      updates, _ = tx.update(g, tx.init(w), w)
      return lib.layer_rotation(w + updates, w)

    value = float(distance(w, g))
    self.assertAlmostEqual(value / 1.0454e-7, 1, delta=0.01)

  @parameterized.parameters(1e-30, 1e-20, 1.0, 1e19, 1e30)
  def test_any_scale(self, scale):
    a, b = normal('a', (9, 8)), normal('b', (9, 8))
    distance = lib.layer_rotation(a * scale, b)
    self.assertAlmostEqual(float(distance), exact_distance(a, b), delta=1e-6)
    self.assertEqual(float(lib.layer_rotation(a * scale, a * scale)), 0)

  def test_never_negative(self):
    for i in range(20):
      a = normal(f'{i}', (50, 3))
      self.assertGreaterEqual(float(lib.layer_rotation(a, a * 1.0000001)), 0)

  def test_zero_weights(self):
    a, zero = jnp.ones(3), jnp.zeros(3)
    params = {'moved': a, 'same': zero, 'none': None}
    distances = lib.layer_rotation(params, {**params, 'moved': zero})
    self.assertEqual(float(distances['moved']), 1)
    self.assertEqual(float(distances['same']), 0)
    self.assertIsNone(distances['none'])

  def test_stacked_layers(self):
    a, b = normal('a', (4, 5, 3)), normal('b', (4, 5, 3))
    distances = lib.layer_rotation(a, b, layer_axes=-1)
    tangents = lib.step_tangent(a, a + 0.1 * b, layer_axes=-1)
    self.assertEqual(distances.shape, (3,))
    for i in range(3):
      x, y = a[..., i], b[..., i]
      self.assertAlmostEqual(
        float(distances[i]), exact_distance(x, y), delta=1e-6
      )
      cosine = 1 - exact_distance(x, x + 0.1 * y)
      expected = np.sqrt(1 / cosine**2 - 1)
      self.assertAlmostEqual(float(tangents[i]) / expected, 1, delta=1e-4)

  def test_bad_input(self):
    a = jnp.ones((3, 2))
    with self.assertRaisesRegex(ValueError, r"reference has shape.*'a'"):
      lib.layer_rotation({'a': a}, {'a': a.T})
    with self.assertRaisesRegex(TypeError, "'a' has dtype int32"):
      lib.step_tangent({'a': jnp.ones(3, int)}, {'a': jnp.ones(3, int)})

  def test_tracking_passes_updates_and_measures_where_they_lead(self):
    params = {'kernel': normal('w', (6, 5)), 'bias': jnp.zeros(5)}
    plain = lib.layca_sgd(0.1, others=optax.sgd(0.1))
    for dtype, tolerance in ((None, 1e-6), (jnp.bfloat16, 1e-4)):
      tx = optax.chain(
        plain,
        lib.track_layer_rotation(dtype, select=lib.is_kernel),
      )
      state, plain_state, now = tx.init(params), plain.init(params), params
      self.assertEqual(float(state[1].distance['kernel']), 0)
      self.assertIsNone(state[1].distance['bias'])
      for step in range(3):
        gradient = jax.tree.map(
          lambda p, t=step: normal(f'{t}', p.shape), params
        )
        expected, plain_state = plain.update(gradient, plain_state, now)
        updates, state = jax.jit(tx.update)(gradient, state, now)
        jax.tree.map(
          functools.partial(np.testing.assert_allclose, atol=1e-7),
          updates,
          expected,
        )
        now = optax.apply_updates(now, updates)
        self.assertAlmostEqual(
          float(optax.tree.get(state, 'distance')['kernel']),
          exact_distance(now['kernel'], params['kernel']),
          delta=tolerance,
        )
    kept = optax.tree.get(state, 'reference')['kernel']
    self.assertEqual(kept.dtype, jnp.bfloat16)
    with self.assertRaisesRegex(ValueError, 'current value of param'):
      tx.update(params, state)


class NormalizeToTest(absltest.TestCase):
  def test_averaged_weights_return_to_the_sphere(self):
    params = {
      'a': {'kernel': normal('a', (3, 5, 4)), 'bias': jnp.ones(4)},
      'b': {'kernel': normal('b', (5, 4))},
    }
    tx = lib.layca_sgd(0.5, layer_axes={'a': 0, 'b': None})
    state = tx.init(params)
    gradient = jax.tree.map(lambda p: normal('g', p.shape), params)
    updates, state = tx.update(gradient, state, params)
    new = optax.apply_updates(params, updates)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, params, new)

    def norms(tree):
      return [
        *np.linalg.norm(tree['a']['kernel'].reshape(3, -1), axis=1),
        np.linalg.norm(tree['b']['kernel']),
      ]

    self.assertTrue(
      (np.asarray(norms(mean)) < 0.99 * np.asarray(norms(new))).all()
    )
    back = lib.normalize_to(mean, state)
    np.testing.assert_allclose(norms(back), norms(params), rtol=1e-6)
    np.testing.assert_array_equal(back['a']['bias'], mean['a']['bias'])
    layers = lib.layer_rotation(back, mean)
    self.assertLess(float(layers['b']['kernel']), 1e-12)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), mean)
    self.assertEqual(
      lib.normalize_to(half, state)['b']['kernel'].dtype, jnp.bfloat16
    )

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, r"shape \(2,\) at 'a'"):
      lib.normalize_to({'a': jnp.ones((3, 2))}, {'a': jnp.ones(2)})
    zero = lib.normalize_to({'a': jnp.zeros(3)}, 2.0)
    np.testing.assert_array_equal(zero['a'], 0)


class ClosedFormTest(parameterized.TestCase):
  def test_noise_curve(self):
    rho, n = 3.0**-3, 300
    curve = lib.noise_rotation_curve(rho, n)
    steps = np.arange(1, n + 1)
    expected = 1 - (1 + rho**2) ** (-steps / 2)
    np.testing.assert_allclose(curve, expected, rtol=1e-5)
    schedule = lib.keras_step_schedule(rho, 0.2, (1, 2), 100)
    table = np.repeat([rho, rho / 5, rho / 25], 100)
    a = lib.noise_rotation_curve(schedule, n)
    b = lib.noise_rotation_curve(rho_schedule=table, n=n)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(
      b, 1 - np.cumprod((1 + table**2) ** -0.5), rtol=1e-5
    )
    # Single small steps do not cancel.
    one = lib.noise_rotation_curve(3.0**-7, 1)
    np.testing.assert_allclose(one, [1.0454e-7], rtol=1e-3)
    for n, rate in ((0, 0.1), (3, np.ones(2))):
      with self.assertRaises(ValueError):
        lib.noise_rotation_curve(rate, n)

  def test_equilibrium(self):
    rate = lib.equilibrium_learning_rate('sgdm', 0.1, 5e-4, 0.9)
    self.assertAlmostEqual(rate, np.sqrt(2 * 0.1 * 5e-4 / 1.9))
    rate = lib.equilibrium_learning_rate(
      kind='adamw', lr=1e-3, wd=0.1, momentum_or_b1=0.9
    )
    self.assertAlmostEqual(rate, np.sqrt(2 * 1e-3 * 0.1 * 0.1 / 1.9))
    for args, message in (
      (('sgd', 0.1, 0.1), "kind is 'sgd'"),
      (('sgdm', -0.1, 0.1), 'lr is -0.1'),
      (('sgdm', 0.1, -1), 'wd is -1'),
      (('adamw', 0.1, 0.1, 1.0), 'momentum_or_b1 is 1.0'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        lib.equilibrium_learning_rate(*args)

  def test_equilibrium_is_where_weight_decay_leads(self):
    # Scale-invariant weights under noise: gradients tangent, of size 1 / |w|.
    lr, wd, mu = 0.05, 0.02, 0.5

    @jax.jit
    def run(w, key):
      def step(carry, key):
        w, v = carry
        g = jax.random.normal(key, w.shape)
        size = jnp.sum(w * w)
        g = (g - jnp.vdot(g, w) / size * w) / jnp.sqrt(size)
        v = mu * v + g + wd * w
        new = w - lr * v
        return (new, v), lib.step_tangent(w, new)

      return jax.lax.scan(
        step, (w, jnp.zeros_like(w)), jax.random.split(key, 4000)
      )[1]

    tangents = run(normal('w', (400,)), jax.random.key(0))
    expected = lib.equilibrium_learning_rate('sgdm', lr, wd, mu)
    # A first-order formula: its error is of the order of lr wd and mu's memory.
    measured = float(jnp.sqrt(jnp.mean(tangents[2000:] ** 2)))
    self.assertAlmostEqual(measured / expected, 1, delta=0.05)


if __name__ == '__main__':
  absltest.main()
