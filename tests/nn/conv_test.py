"""Convolutions against plain loops, and the forms of the depthwise one."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import nn
from jaxpapers.nn import conv as conv_lib
from tests.helpers import goldens


def naive_depthwise(x, kernel, stride, pads):
  """Loops over outputs, in float64."""
  x = np.pad(x, ((0, 0), *pads, (0, 0)))
  kh, kw = kernel.shape[:2]
  height = (x.shape[1] - kh) // stride + 1
  width = (x.shape[2] - kw) // stride + 1
  y = np.zeros((x.shape[0], height, width, x.shape[3]))
  for h in range(height):
    for w in range(width):
      top, left = h * stride, w * stride
      seen = x[:, top : top + kh, left : left + kw]
      y[:, h, w] = (seen * kernel[:, :, 0]).sum((1, 2))
  return y


class PaddingTest(parameterized.TestCase):
  @parameterized.product(kernel=(3, 5), stride=(1, 2))
  def test_shapes_at_all_sizes_and_values_at_some(self, kernel, stride):
    weights = goldens.normal('kernel', (kernel, kernel, 1, 2))
    with jax.enable_x64(True):
      for size in range(1, 41):
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + kernel - size, 0)
        same = ((total // 2, total - total // 2),) * 2
        symmetric = (((kernel - 1) // 2,) * 2,) * 2
        for padding, pads in (('SAME', same), ('symmetric', symmetric)):
          found = conv_lib.explicit_padding(
            (size, size), (kernel, kernel), (stride, stride), padding
          )
          self.assertEqual(found, pads)
          run = jax.jit(
            lambda x, padding=padding: nn.depthwise_conv(
              x, weights, stride, padding, 'shift'
            )
          )
          x = goldens.normal(f'x{size}', (1, size, size, 2))
          shape = jax.eval_shape(run, x).shape
          self.assertEqual(shape[1:3], (outputs, outputs))
          if size in (1, 2, 8):
            expected = naive_depthwise(x, weights, stride, pads)
            np.testing.assert_allclose(run(x), expected, atol=1e-12)

  def test_both_agree_where_all_strided_sizes_are_odd(self):
    for size in (65, 97):
      for kernel in (3, 5):
        found = {
          conv_lib.explicit_padding((size,), (kernel,), (2,), padding)
          for padding in ('SAME', 'symmetric')
        }
        self.assertLen(found, 1)

  def test_other_paddings(self):
    pad = conv_lib.explicit_padding
    self.assertEqual(pad((8, 9), (3, 3), (1, 1), 'VALID'), ((0, 0), (0, 0)))
    self.assertEqual(pad((8, 9), (7, 7), (2, 2), 3), ((3, 3), (3, 3)))
    pairs = ((0, 1), (2, 3))
    self.assertEqual(pad((8, 9), (3, 3), (1, 1), pairs), pairs)
    for wrong in ('same', ((1, 1),)):
      with self.assertRaisesRegex(ValueError, 'padding is'):
        pad((8, 9), (3, 3), (1, 1), wrong)


class DepthwiseTest(parameterized.TestCase):
  @parameterized.parameters(
    (3, 1, (7, 8), 'SAME'),
    # Two blocks of five rows, one of which is added; one block.
    (3, 1, (9, 6), 'symmetric'),
    (5, 1, (12, 5), 'VALID'),
    (3, 2, (7, 8), 'SAME'),
    (3, 2, (7, 8), 'symmetric'),
    (5, 2, (2, 1), 'SAME'),
    (5, 2, (9, 12), 'VALID'),
    (3, 3, (9, 11), 'symmetric'),
    (1, 2, (5, 4), 'SAME'),
  )
  def test_forms_and_their_gradients_agree(self, kernel, stride, size, padding):
    with jax.enable_x64(True):
      x = goldens.normal('x', (2, *size, 3))
      weights = goldens.normal('w', (kernel, kernel, 1, 3))

      def loss(x, w, impl):
        y = nn.depthwise_conv(x, w, stride, padding, impl)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

      @jax.jit
      def run(x, w):
        return {
          impl: jax.grad(loss, (0, 1), has_aux=True)(x, w, impl)
          for impl in conv_lib.IMPLEMENTATIONS
        }

      results = run(x, weights)
      for impl, result in results.items():
        for a, b in zip(
          jax.tree.leaves(result), jax.tree.leaves(results['lax']), strict=True
        ):
          # 25 products and up to 200 pixels, in float64.
          np.testing.assert_allclose(a, b, atol=1e-12, err_msg=impl)

  def test_strides_and_kernels_may_differ_by_axis(self):
    x = goldens.normal('x', (1, 8, 9, 2)).astype(np.float32)
    weights = goldens.normal('w', (3, 5, 1, 2)).astype(np.float32)

    def loss(w, impl):
      return (nn.depthwise_conv(x, w, (2, 1), 'SAME', impl) ** 2).sum()

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    expected, found = run(weights, 'lax'), run(weights, 'auto')
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

  @parameterized.product(
    impl=('auto', 'shift', 'shift_vjp', 'lax'), stride=(1, 2)
  )
  def test_vmap_over_kernels_and_gradients(self, impl, stride):
    x = jnp.asarray(goldens.normal('x', (4, 2, 6, 6, 3)), jnp.float32)
    weights = jnp.asarray(goldens.normal('w', (4, 3, 3, 1, 3)), jnp.float32)

    def loss(w, x):
      return (nn.depthwise_conv(x, w, stride, 'SAME', impl) ** 2).sum()

    found = jax.jit(jax.vmap(jax.grad(loss)))(weights, x)
    one = jax.jit(jax.grad(loss))
    for i in range(4):
      expected = one(weights[i], x[i])
      np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-4)

  def test_forward_mode_where_promised(self):
    x = jnp.asarray(goldens.normal('x', (1, 6, 6, 3)), jnp.float32)
    weights = jnp.asarray(goldens.normal('w', (3, 3, 1, 3)), jnp.float32)
    for impl in ('shift', 'lax'):
      y, dy = jax.jvp(
        lambda w, impl=impl: nn.depthwise_conv(x, w, impl=impl),
        (weights,),
        (weights,),
      )
      np.testing.assert_allclose(y, dy, rtol=1e-5)

  def test_half_types_are_summed_in_float32(self):
    x = jnp.ones((1, 9, 9, 1), jnp.bfloat16)
    # 1 + 24 / 256 needs more bits than the partial sums of bfloat16 keep.
    weights = jnp.full((5, 5, 1, 1), 1 / 256, jnp.bfloat16).at[0, 0].set(1)
    y = nn.depthwise_conv(x, weights, impl='shift')
    self.assertEqual(y.dtype, jnp.bfloat16)
    self.assertEqual(y[0, 4, 4, 0], jnp.bfloat16(1 + 24 / 256))

  def test_refuses(self):
    x = jnp.ones((1, 8, 8, 3))
    with self.assertRaisesRegex(ValueError, r'expected \[kh, kw, 1, 3\]'):
      nn.depthwise_conv(x, jnp.ones((3, 3, 1, 4)))
    with self.assertRaisesRegex(ValueError, r'\[N, H, W, C\]'):
      nn.depthwise_conv(x[0], jnp.ones((3, 3, 1, 3)))
    with self.assertRaisesRegex(ValueError, 'smaller than the kernel'):
      nn.depthwise_conv(x[:, :, :2], jnp.ones((3, 3, 1, 3)), padding='VALID')
    with self.assertRaisesRegex(ValueError, "impl is 'cudnn'"):
      nn.depthwise_conv(x, jnp.ones((3, 3, 1, 3)), impl='cudnn')

  def test_auto_is_the_grouped_convolution_off_the_cpu(self):
    # Lowered for a TPU without one: the platform decides, not the host.
    def loss(x, w):
      return nn.depthwise_conv(x, w).sum()

    x, w = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 1, 4))
    traced = jax.jit(jax.grad(loss, 1)).trace(x, w)
    tpu = traced.lower(lowering_platforms=('tpu',)).as_text()
    cpu = traced.lower(lowering_platforms=('cpu',)).as_text()
    self.assertIn('stablehlo.convolution', tpu)
    self.assertNotIn('stablehlo.convolution', cpu)


class ConvTest(parameterized.TestCase):
  @parameterized.parameters((1, 1), (3, 2), (7, 2))
  def test_equals_a_sum_of_products(self, kernel, stride):
    x = goldens.normal('x', (2, 9, 8, 3))
    with jax.enable_x64(True):
      conv = nn.Conv(
        4, kernel, stride, 'symmetric', use_bias=True, param_dtype='float64'
      )
      variables = conv.init(jax.random.key(0), x)
      y = conv.apply(variables, x)
    weights = np.asarray(variables['params']['kernel'])
    self.assertEqual(weights.shape, (kernel, kernel, 3, 4))
    pad = (kernel - 1) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for n, h, w in ((0, 0, 0), (1, 2, 1), (1, y.shape[1] - 1, 2)):
      top, left = h * stride, w * stride
      seen = padded[n, top : top + kernel, left : left + kernel]
      expected = np.einsum('ijc,ijco->o', seen, weights)
      np.testing.assert_allclose(y[n, h, w], expected, atol=1e-12)

  def test_types(self):
    conv = nn.Conv(4, 3, dtype=jnp.bfloat16)
    y, variables = conv.init_with_output(
      jax.random.key(0), jnp.ones((1, 8, 8, 3))
    )
    self.assertEqual(y.dtype, jnp.bfloat16)
    self.assertEqual(variables['params']['kernel'].dtype, jnp.float32)

  def test_depthwise_module(self):
    conv = nn.DepthwiseConv(5, 2, 'symmetric')
    x = jnp.ones((1, 8, 8, 6))
    y, variables = conv.init_with_output(jax.random.key(0), x)
    kernel = variables['params']['kernel']
    self.assertEqual(kernel.shape, (5, 5, 1, 6))
    expected = nn.depthwise_conv(x, kernel, 2, 'symmetric', 'lax')
    np.testing.assert_allclose(y, expected, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
