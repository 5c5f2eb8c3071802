"""GELU, dropout, embeddings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.test_util import check_grads

from jaxpapers import nn


class GeluTest(parameterized.TestCase):
  @parameterized.parameters('erf', 'tanh')
  def test_like_jax(self, kind):
    x = jnp.linspace(-8, 8, 1001)
    approximate = kind == 'tanh'
    np.testing.assert_allclose(
      nn.gelu(x, kind), jax.nn.gelu(x, approximate), atol=1e-6
    )
    slope = jax.vmap(jax.grad(lambda x: nn.gelu(x, kind)))(x)
    wanted = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate)))(x)
    np.testing.assert_allclose(slope, wanted, atol=2e-6)

  def test_exact(self):
    with jax.enable_x64(True):
      for x in (-3.0, -0.5, 0.0, 1.0, 4.0):
        wanted = x * 0.5 * (1 + math.erf(x / math.sqrt(2)))
        self.assertAlmostEqual(float(nn.gelu(jnp.float64(x))), wanted, 14)

  @parameterized.parameters('erf', 'tanh')
  def test_derivatives(self, kind):
    with jax.enable_x64(True):
      x = jnp.linspace(-3, 3, 7, dtype=jnp.float64)
      check_grads(lambda x: nn.gelu(x, kind), (x,), order=2)

  def test_bfloat16(self):
    x = jnp.linspace(-4, 4, 257, dtype=jnp.bfloat16)
    y = nn.gelu(x)
    self.assertEqual(y.dtype, jnp.bfloat16)
    # Computed in float32 and rounded once.
    wanted = nn.gelu(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y.astype(float), wanted.astype(float))

  def test_unknown(self):
    with self.assertRaisesRegex(ValueError, "kind is 'quick'"):
      nn.gelu(jnp.ones(1), 'quick')


class DropoutTest(parameterized.TestCase):
  @parameterized.parameters(8, 16, 32)
  def test_rate_and_mean(self, bits):
    x = jnp.full((1000, 1000), 3.0)
    y = nn.dropout(jax.random.key(0), x, 0.1, bits)
    kept = np.asarray(y != 0).mean()
    # Five standard errors of sqrt(.09 / 1e6), and what rounding may add.
    self.assertAlmostEqual(kept, 0.9, delta=0.0015 + 2.0 ** -(bits + 1))
    self.assertAlmostEqual(float(y.mean()), 3.0, delta=0.005)
    # One scale, the reciprocal of the rounded probability.
    probability = round(0.9 * 2**bits) / 2**bits
    np.testing.assert_allclose(y[y != 0], 3 / probability, rtol=1e-6)

  def test_extremes(self):
    x = jnp.ones(5)
    key = jax.random.key(0)
    np.testing.assert_array_equal(nn.dropout(key, x, 0.0), x)
    np.testing.assert_array_equal(nn.dropout(key, x, 1e-9), x)
    np.testing.assert_array_equal(nn.dropout(key, x, 1 - 1e-9), 0 * x)

  def test_no_gradient_where_dropped(self):
    x = jnp.full(100, jnp.inf)
    gradient = jax.grad(lambda x: nn.dropout(jax.random.key(0), x, 0.5).sum())(
      jnp.ones(100)
    )
    self.assertEqual(set(gradient.tolist()), {0.0, 2.0})
    y = nn.dropout(jax.random.key(0), x, 0.5)
    # A product with a 0-1 mask would give NaN.
    self.assertFalse(np.isnan(y).any())


class EmbeddingTest(absltest.TestCase):
  def test_rows(self):
    table = nn.Embedding(4, 3, jax.nn.initializers.normal(1.0))
    variables = table.init(jax.random.key(0), jnp.zeros(1, int))
    weights = variables['params']['embedding']
    ids = jnp.array([[2, 0], [3, 3]])
    np.testing.assert_array_equal(table.apply(variables, ids), weights[ids])
    self.assertTrue(np.isnan(table.apply(variables, jnp.array([4, -1]))).all())
    np.testing.assert_array_equal(
      table.apply(variables, method='table'), weights
    )

  def test_gradient(self):
    table = nn.Embedding(4, 3, jax.nn.initializers.normal(1.0))
    variables = table.init(jax.random.key(0), jnp.zeros(1, int))
    gradient = jax.grad(
      lambda v: table.apply(v, jnp.array([2, 2, 0, -1, 9])).sum()
    )(variables)['params']['embedding']
    # What is out of range touches no row.
    np.testing.assert_array_equal(gradient[:, 0], [1, 0, 2, 0])


if __name__ == '__main__':
  absltest.main()
