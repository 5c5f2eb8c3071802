"""Depth: what it is, and the learning rates that depend on it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import layca as lib
from tests.helpers import goldens


class DepthMultipliersTest(parameterized.TestCase):
  def test_the_original_s(self):
    for task, network in goldens.load_json(
      'layca', 'architectures.json'
    ).items():
      names = [name for name, _ in network['kernels']]
      self.assertNotEmpty(network['alpha'], task)
      for alpha, expected in network['alpha'].items():
        factors = lib.depth_multipliers(names, float(alpha))
        self.assertEqual(list(factors), names)
        np.testing.assert_allclose(
          list(factors.values()), expected, rtol=0, atol=1e-12
        )

  @parameterized.parameters(-0.6, 0.0, 0.8)
  def test_ends(self, alpha):
    values = list(lib.depth_multipliers(['a', 'b', 'c'], alpha).values())
    ends = sorted([values[0], values[-1]])
    np.testing.assert_allclose(ends, [(1 - abs(alpha)) ** 5, 1], atol=1e-15)
    self.assertEqual(values[-1] == 1, alpha >= 0)
    self.assertEqual(lib.depth_multipliers(['a'], alpha), {'a': 1.0})

  def test_traced_alpha(self):
    order = ['a', 'b', 'c', 'd']
    alphas = [-0.8, -0.1, 0.0, 0.3, 0.6]
    together = jax.vmap(lambda a: lib.depth_multipliers(order, a))(
      jnp.asarray(alphas)
    )
    for i, alpha in enumerate(alphas):
      for path, value in lib.depth_multipliers(order, alpha).items():
        self.assertAlmostEqual(float(together[path][i]), value, delta=1e-6)
    single = jax.jit(lambda a: lib.depth_multipliers(['a'], a))(0.5)
    self.assertEqual(float(single['a']), 1.0)
    slope = jax.grad(lambda a: lib.depth_multipliers(order, a)['a'])(0.5)
    self.assertAlmostEqual(float(slope), -5 * 0.5**4, delta=1e-5)

  def test_bad_input(self):
    for alpha in (-1, 1, 1.5, np.nan):
      with self.assertRaisesRegex(ValueError, 'alpha is'):
        lib.depth_multipliers(['a', 'b'], alpha)
    for order in ([], ['a', 'a']):
      with self.assertRaisesRegex(ValueError, 'layer_order is'):
        lib.depth_multipliers(order, 0.1)


class Deep(nn.Module):
  """Twelve layers, so that Dense_10 sorts before Dense_2."""

  @nn.compact
  def __call__(self, x, train=False):
    for _ in range(12):
      x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
      x = nn.Dropout(0.5, deterministic=not train)(x)
    return x


class Residual(nn.Module):
  """Shortcut computed last, and an embedding that is no kernel."""

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(5, 4)(tokens)
    y = nn.relu(nn.Dense(4, name='z_first')(x))
    y = nn.remat(nn.Dense)(4, name='m_second')(y)
    return y + nn.Dense(4, name='a_shortcut')(x)


class Backwards(nn.Module):
  """Submodules are made in another order than they are called."""

  def setup(self):
    self.head = nn.Dense(2)
    self.body = nn.scan(
      Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=3
    )()
    self.unused = nn.Dense(7)

  def __call__(self, x):
    x, _ = self.body(x, None)
    return self.head(x)

  def both(self, x):
    return self.unused(self(x))


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return nn.Dense(4)(x.astype(jnp.bfloat16)).astype(x.dtype), None


class LayerOrderTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_order_of_calls(self, train):
    order = lib.layer_order(Deep(), jnp.ones((2, 4)), train=train)
    self.assertEqual(order, [f'Dense_{i}/kernel' for i in range(12)])

  def test_shortcut(self):
    tokens = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    expected = ['z_first/kernel', 'm_second/kernel', 'a_shortcut/kernel']
    self.assertEqual(lib.layer_order(Residual(), tokens), expected)
    everything = lib.layer_order(Residual(), tokens, select=lambda *_: True)
    self.assertEqual(everything[0], 'Embed_0/embedding')

  def test_scan_and_setup(self):
    x = jnp.ones((2, 4))
    expected = ['body/Dense_0/kernel', 'head/kernel']
    self.assertEqual(lib.layer_order(Backwards(), x), expected)
    self.assertEqual(
      lib.layer_order(Backwards(), x, method='both'),
      [*expected, 'unused/kernel'],
    )

  def test_casting_all_parameters_first_is_no_use(self):
    class Cast(nn.Module):
      @nn.compact
      def __call__(self, x):
        shape = (4, 4)
        init = nn.initializers.lecun_normal()
        a = self.param('a_kernel', init, shape).astype(jnp.bfloat16)
        b = self.param('b_kernel', init, shape).astype(jnp.bfloat16)
        return x @ b @ a

    order = lib.layer_order(Cast(), jnp.ones((2, 4), jnp.bfloat16))
    self.assertEqual(order, ['b_kernel', 'a_kernel'])

  def test_flags_by_position(self):
    class Flags(nn.Module):
      @nn.compact
      def __call__(self, x, train, kind, mask, scale):
        first, second = nn.Dense(4, name='z'), nn.Dense(4, name='a')
        if not train:
          first, second = second, first
        if kind == 'once' and mask is None:
          return first(x) * scale
        return second(nn.BatchNorm(use_running_average=not train)(first(x)))

    x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    for inputs, expected in (
      ((x, True, 'twice', None, 2.0), ['z/kernel', 'a/kernel']),
      ((x, False, 'twice', None, 2.0), ['a/kernel', 'z/kernel']),
      ((x, False, 'once', None, 2.0), ['a/kernel']),
    ):
      self.assertEqual(lib.layer_order(Flags(), *inputs), expected)

  def test_bad_input(self):
    with self.assertRaisesRegex(TypeError, 'module is a function'):
      lib.layer_order(lambda x: x, jnp.ones(3))
    with self.assertRaisesRegex(ValueError, 'select chooses none'):
      lib.layer_order(nn.Dense(2), jnp.ones(3), select=lambda *_: False)


if __name__ == '__main__':
  absltest.main()
