"""Batch normalisation, stochastic depth, squeeze-and-excitation."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import nn
from tests.helpers import devices, goldens


def batch(*shape):
  return 3 * goldens.normal('x', shape) + 5


class BatchNormTest(parameterized.TestCase):
  @parameterized.parameters(
    ('biased', 0.99, 1e-3, 1.0), ('unbiased', 0.9, 1e-5, 24 / 23)
  )
  def test_statistics_and_output(self, variance, momentum, epsilon, factor):
    x = batch(2, 3, 4, 5)
    with jax.enable_x64(True):
      norm = nn.BatchNorm(
        momentum, epsilon, variance=variance, param_dtype='float64'
      )
      variables = norm.init(jax.random.key(0), x, train=True)
      scale, bias = goldens.normal('scale', (5,)), goldens.normal('bias', (5,))
      variables = {**variables, 'params': {'scale': scale, 'bias': bias}}
      y, new = norm.apply(variables, x, train=True, mutable=['batch_stats'])
      mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
      expected = (x - mean) / np.sqrt(var + epsilon) * scale + bias
      np.testing.assert_allclose(y, expected, atol=1e-12)
      stats = new['batch_stats']
      np.testing.assert_allclose(
        stats['mean'], (1 - momentum) * mean, rtol=1e-12
      )
      np.testing.assert_allclose(
        stats['var'], momentum + (1 - momentum) * var * factor, rtol=1e-12
      )
      again = {**variables, **new}
      y = norm.apply(again, x, train=False)
      expected = (x - stats['mean']) / np.sqrt(stats['var'] + epsilon)
      np.testing.assert_allclose(y, expected * scale + bias, atol=1e-10)

  def test_init_takes_no_batch(self):
    norm = nn.BatchNorm()
    x = batch(4, 3).astype('float32')
    variables = norm.init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables['batch_stats']['mean'], np.zeros(3))
    np.testing.assert_array_equal(variables['batch_stats']['var'], np.ones(3))

  def test_statistics_stay_where_they_are_not_mutable(self):
    norm = nn.BatchNorm()
    x = batch(4, 3).astype('float32')
    variables = norm.init(jax.random.key(0), x, train=True)
    y = norm.apply(variables, x, train=True)
    np.testing.assert_allclose(y.mean(0), np.zeros(3), atol=1e-5)

  def test_large_means_lose_no_digits(self):
    # In float32, E[x^2] - E[x]^2 would be 0 or worse here.
    x = (goldens.normal('x', (64, 2)) + 1e4).astype(np.float32)
    norm = nn.BatchNorm(0.0)
    variables = norm.init(jax.random.key(0), x, train=True)
    _, new = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    expected = x.astype(np.float64).var(0)
    np.testing.assert_allclose(new['batch_stats']['var'], expected, rtol=1e-3)

  def test_bfloat16_has_statistics_in_float32(self):
    x = jnp.asarray(batch(512, 2), jnp.bfloat16)
    norm = nn.BatchNorm(0.0, dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, train=True)
    y, new = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    self.assertEqual(y.dtype, jnp.bfloat16)
    stats = new['batch_stats']
    self.assertEqual(stats['mean'].dtype, jnp.float32)
    expected = np.asarray(x, np.float64).mean(0)
    np.testing.assert_allclose(stats['mean'], expected, rtol=1e-5)

  def test_gradient_is_that_of_the_formula(self):
    x = batch(6, 4)
    seed = goldens.normal('seed', (6, 4))
    with jax.enable_x64(True):
      norm = nn.BatchNorm(param_dtype='float64')
      variables = norm.init(jax.random.key(0), x, train=True)

      def loss(params, x):
        y = norm.apply({**variables, 'params': params}, x, train=True)
        return (y * seed).sum()

      grads = jax.grad(loss, (0, 1))(variables['params'], x)
      hat = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
      dx = seed - seed.mean(0) - hat * (seed * hat).mean(0)
      expected = dx / np.sqrt(x.var(0) + 1e-3)
      np.testing.assert_allclose(grads[1], expected, atol=1e-12)
      np.testing.assert_allclose(grads[0]['bias'], seed.sum(0), atol=1e-12)
      np.testing.assert_allclose(
        grads[0]['scale'], (seed * hat).sum(0), atol=1e-12
      )

  def test_gradient_through_the_statistics(self):
    # Mean and variance are outputs too; so is their gradient.
    x = batch(6, 4)
    with jax.enable_x64(True):
      norm = nn.BatchNorm(0.5, param_dtype='float64')
      variables = norm.init(jax.random.key(0), x, train=True)

      def loss(x):
        y, new = norm.apply(variables, x, train=True, mutable=['batch_stats'])
        stats = new['batch_stats']
        return (y**3).sum() + (stats['mean'] ** 2 + stats['var'] ** 3).sum()

      def plain(x):
        mean, var = x.mean(0), x.var(0)
        y = (x - mean) / jnp.sqrt(var + 1e-3)
        kept = (0.5 * mean) ** 2 + (0.5 + 0.5 * var) ** 3
        return (y**3).sum() + kept.sum()

      np.testing.assert_allclose(
        jax.grad(loss)(x), jax.grad(plain)(x), rtol=1e-9, atol=1e-9
      )

  @parameterized.parameters('biased', 'unbiased')
  def test_mapped_axis_is_the_whole_batch(self, variance):
    x = batch(4, 6, 3).astype('float32')
    whole = nn.BatchNorm(0.5, variance=variance)
    parts = nn.BatchNorm(0.5, variance=variance, axis_name='i')
    variables = whole.init(jax.random.key(0), x, train=True)

    def run(norm, x):
      return norm.apply(variables, x, train=True, mutable=['batch_stats'])

    y, new = run(whole, x)
    ys, news = jax.vmap(lambda x: run(parts, x), axis_name='i')(x)
    np.testing.assert_allclose(ys, y, atol=1e-5)
    for name in ('mean', 'var'):
      for i in range(4):
        np.testing.assert_allclose(
          news['batch_stats'][name][i], new['batch_stats'][name], rtol=1e-5
        )

  def test_groups_of_devices_and_global_batches(self):
    devices.run(
      """
      import jax, numpy as np
      from jaxpapers import nn
      from tests.helpers import goldens

      x = (goldens.normal('x', (8, 3, 4)) * 3 + 5).astype('float32')
      def moments(norm, x):
        variables = norm.init(jax.random.key(0), x, train=True)
        y, new = norm.apply(variables, x, train=True, mutable=['batch_stats'])
        return y, new['batch_stats']

      mesh = jax.make_mesh((4,), ('i',), (jax.sharding.AxisType.Auto,))
      groups = ((0, 1), (2, 3))
      norm = nn.BatchNorm(
        0.5, variance='unbiased', axis_name='i', axis_index_groups=groups
      )
      P = jax.P
      y, stats = jax.jit(jax.shard_map(
        lambda x: jax.tree.map(lambda s: s[None], moments(norm, x)),
        mesh=mesh, in_specs=P('i'), out_specs=P('i'), check_vma=False,
      ))(x)
      y = y.reshape(x.shape)
      for k, half in enumerate((x[:4], x[4:])):
        expected, whole = moments(nn.BatchNorm(0.5, variance='unbiased'), half)
        np.testing.assert_allclose(y[4 * k : 4 * k + 4], expected, atol=1e-5)
        for name in ('mean', 'var'):
          np.testing.assert_allclose(
            stats[name][2 * k], whole[name], rtol=1e-5
          )
      # Under jit on a mesh no axis is named.
      sharded = jax.device_put(x, jax.NamedSharding(mesh, P('i')))
      plain = nn.BatchNorm(0.5, variance='unbiased')
      with jax.set_mesh(mesh):
        y, stats = jax.jit(lambda x: moments(plain, x))(sharded)
      expected, whole = moments(plain, x)
      np.testing.assert_allclose(y, expected, atol=1e-5)
      np.testing.assert_allclose(stats['var'], whole['var'], rtol=1e-5)
      # Gradients of shards add up to those of the whole, without a name for
      # the axis as well: scale is the same everywhere, x is not.
      def loss(scale, x):
        norm = nn.BatchNorm(0.5)
        variables = {
          'params': {'scale': scale, 'bias': 0 * scale},
          'batch_stats': {'mean': 0 * scale, 'var': 0 * scale + 1},
        }
        return (norm.apply(variables, x, train=True) ** 3).sum()

      scale = np.ones(4, 'float32')
      found = jax.jit(jax.shard_map(
        jax.grad(loss), mesh=mesh, in_specs=(P(), P('i')), out_specs=P(),
      ))(scale, x)
      parts = x.reshape(4, 2, 3, 4)
      expected = sum(jax.grad(loss)(scale, part) for part in parts)
      np.testing.assert_allclose(found, expected, rtol=1e-4)
      """,
      device_count=4,
    )

  def test_refuses(self):
    x = jnp.ones((1, 1, 1, 3))
    norm = nn.BatchNorm(variance='unbiased')
    variables = norm.init(jax.random.key(0), x, train=True)
    with self.assertRaisesRegex(ValueError, '1 value per channel'):
      norm.apply(variables, x, train=True, mutable=['batch_stats'])
    with self.assertRaisesRegex(ValueError, "variance is 'torch'"):
      nn.BatchNorm(variance='torch').init(jax.random.key(0), x, train=True)


class DropPathTest(absltest.TestCase):
  def test_frequency_and_mean(self):
    # 20,000 draws: three standard deviations are 0.8 %.
    x = jnp.ones((20_000, 2, 1))
    y = np.asarray(nn.drop_path(jax.random.key(1), x, 0.8125))
    kept = y[:, 0, 0] > 0
    self.assertAlmostEqual(kept.mean(), 0.8125, delta=0.01)
    self.assertAlmostEqual(y.mean(), 1.0, delta=0.01)
    # Per example: all of it or nothing.
    np.testing.assert_array_equal(y[:, 0], y[:, 1])
    np.testing.assert_allclose(y[kept], 1 / 0.8125, rtol=1e-6)

  def test_nothing_is_drawn_where_nothing_can_be_dropped(self):
    x = jnp.ones((4, 2))
    for survival, deterministic in ((None, False), (1.0, False), (0.5, True)):
      y = nn.drop_path(None, x, survival, deterministic)
      np.testing.assert_array_equal(y, x)

  def test_refuses(self):
    for survival in (0.0, 1.1, -1.0):
      with self.assertRaisesRegex(ValueError, 'survival_prob'):
        nn.drop_path(jax.random.key(0), jnp.ones((2, 2)), survival)


class SqueezeExciteTest(absltest.TestCase):
  def test_formula(self):
    x = goldens.normal('x', (2, 3, 4, 6))
    with jax.enable_x64(True):
      module = nn.SqueezeExcite(2, param_dtype='float64')
      variables = module.init(jax.random.key(0), x)
      y = module.apply(variables, x)
    params = jax.tree.map(np.asarray, variables['params'])
    self.assertEqual(params['reduce']['kernel'].shape, (1, 1, 6, 2))
    z = x.mean((1, 2)) @ params['reduce']['kernel'][0, 0]
    z = z / (1 + np.exp(-z)) @ params['expand']['kernel'][0, 0]
    expected = x / (1 + np.exp(-z))[:, None, None]
    np.testing.assert_allclose(y, expected, atol=1e-12)

  def test_bfloat16_mean_is_summed_in_float32(self):
    x = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    y = nn.squeeze_excite(x, lambda z: z, lambda z: z, lambda z: z)
    self.assertAlmostEqual(float(y[0, 0, 0, 0]), 0.731, delta=0.004)


if __name__ == '__main__':
  absltest.main()
