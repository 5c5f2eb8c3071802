import functools

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import nn


def _both(pool, x, dy):
  """What a pooling gives, and its gradient."""

  def run(x, dy):
    y, pull = jax.vjp(pool, x)
    return y, pull(dy)[0]

  return jax.jit(run)(x, dy)


class PoolingTest(parameterized.TestCase):
  @parameterized.parameters(
    ((3, 3), (2, 2), ((1, 1), (1, 1)), (8, 6)),
    ((3, 3), (2, 2), ((1, 1), (1, 1)), (7, 5)),
    ((3, 3), (2, 2), ((0, 1), (0, 1)), (8, 8)),
    ((2, 3), (1, 2), ((1, 0), (0, 0)), (5, 9)),
    ((2, 2), (3, 3), ((0, 0), (0, 0)), (8, 9)),
  )
  def test_maximum_and_its_gradient(self, window, strides, pads, size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    lax = functools.partial(
      linen.max_pool, window_shape=window, strides=strides, padding=pads
    )
    ours = functools.partial(
      nn.max_pool, window=window, strides=strides, padding=pads
    )
    dy = jax.random.normal(jax.random.key(1), lax(x).shape)
    expected, found = _both(lax, x, dy), _both(ours, x, dy)
    np.testing.assert_array_equal(found[0], expected[0])
    # At most 9 numbers are added, in another order.
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)

  def test_first_of_equal_numbers_has_the_gradient(self):
    x = jnp.array([[1.0, 3.0, 3.0], [3.0, 0.0, 3.0], [2.0, 3.0, 1.0]])
    gradient = jax.grad(
      lambda x: nn.max_pool(x[None, ..., None], (3, 3), padding=1)[0, 0, 0, 0]
    )(x)
    np.testing.assert_array_equal(gradient, [[0, 1, 0], [0, 0, 0], [0, 0, 0]])

  @parameterized.parameters(((2, 2), (6, 8)), ((2, 3), (7, 8)))
  def test_mean_and_its_gradient(self, window, size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    lax = functools.partial(linen.avg_pool, window_shape=window, strides=window)
    dy = jax.random.normal(jax.random.key(1), lax(x).shape)
    found = _both(lambda x: nn.avg_pool(x, window), x, dy)
    for ours, theirs in zip(found, _both(lax, x, dy), strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-6)

  def test_half_precision_is_summed_in_single(self):
    x = jnp.array([256, 1, 1, 1], jnp.bfloat16).reshape(1, 2, 2, 1)
    # In bfloat16 256 + 1 is 256.
    self.assertEqual(nn.avg_pool(x, (2, 2))[0, 0, 0, 0], jnp.bfloat16(64.75))

  def test_bad_input(self):
    x = jnp.zeros((1, 4, 4, 2))
    with self.assertRaisesRegex(ValueError, r'shape \(4, 4, 2\)'):
      nn.max_pool(x[0], (2, 2))
    with self.assertRaisesRegex(ValueError, 'at least as large'):
      nn.avg_pool(x, (5, 2))
    with self.assertRaisesRegex(ValueError, 'less padding'):
      nn.max_pool(x, (2, 2), padding=2)


class ReluTest(absltest.TestCase):
  def test_as_in_jax(self):
    x = jnp.array([-2.0, -0.0, 0.0, 1.5, jnp.inf])
    for derive in (lambda f: f, lambda f: jax.vmap(jax.grad(f))):
      np.testing.assert_array_equal(derive(nn.relu)(x), derive(jax.nn.relu)(x))
    y, dy = jax.jvp(nn.relu, (x,), (2 * jnp.ones_like(x),))
    np.testing.assert_array_equal(y, jax.nn.relu(x))
    np.testing.assert_array_equal(dy, [0, 0, 0, 2, 2])

  def test_what_is_kept(self):
    # The result, or whether it is positive; not what went in.
    _, pull = jax.vjp(nn.relu, jnp.arange(-3.0, 3.0))
    kept = [np.asarray(leaf) for leaf in jax.tree.leaves(pull)]
    for leaf in kept:
      self.assertGreaterEqual(leaf.min(), 0)


if __name__ == '__main__':
  absltest.main()
