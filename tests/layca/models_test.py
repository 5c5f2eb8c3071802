"""Tests of the networks against the original Keras models."""

import functools
import json
import pathlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import layca
from jaxpapers.layca import initializers
from jaxpapers.layca import models as models_lib
from jaxpapers.layca import models_residual as residual

_TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata' / 'layca'
_GOLDEN = json.loads((_TESTDATA / 'architectures.json').read_text())

_NETWORKS = {
  'C10-CNN1': models_lib.VGGLayca(),
  'C10-CNN1-fast': models_lib.VGGLayca((3,) * 4, (16, 32, 64, 128)),
  'tiny-CNN': models_lib.VGGLayca(
    (2,) * 5, (32, 64, 128, 256, 512), 200, momentum=0.9
  ),
  'C100-resnet': residual.ResNetV1Keras(32, 100),
  'C10-resnet': residual.ResNetV1Keras(110),
  'C10-CNN2': models_lib.TorchBlogVGG(),
  'C100-WRN': residual.WideResNet(),
}


def call_order(model, x):
  """Names of the modules with a kernel, in the order of their first call."""
  names = []

  def record(next_function, args, kwargs, context):
    module = context.module
    if isinstance(module, nn.Conv | nn.Dense) and module.name not in names:
      names.append(module.name)
    return next_function(*args, **kwargs)

  with nn.intercept_methods(record):
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
  return names, variables


def small_networks():
  return {
    'vgg': (models_lib.VGGLayca((1, 2), (4, 6)), (8, 8, 3)),
    'torch_blog': (models_lib.TorchBlogVGG((1, 1), (4, 6), 5), (8, 8, 3)),
    'resnet': (residual.ResNetV1Keras(8, filters=4), (32, 32, 3)),
    'wide': (residual.WideResNet(10, 1, classes=7), (8, 8, 3)),
    'mnist': (models_lib.MnistMLP(12), (28, 28)),
    'deep': (models_lib.DeepMLP((9, 8)), (20,)),
  }


class ArchitectureTest(parameterized.TestCase):
  def test_networks_are_public(self):
    for name in ('VGGLayca', 'ResNetV1Keras', 'TorchBlogVGG', 'WideResNet'):
      self.assertIs(getattr(layca, name), getattr(layca.models, name))
    self.assertIs(layca.MnistMLP, layca.models.MnistMLP)
    kernel = layca.keras_he_normal()(jax.random.key(0), (200, 50))
    # Keras cut the normal distribution off at two standard deviations.
    self.assertAlmostEqual(float(kernel.std()), 0.1 * 0.8796, delta=3e-3)
    self.assertFalse(hasattr(layca.models, 'LeNet'))

  @parameterized.parameters(*_NETWORKS)
  def test_kernels_and_counts(self, task):
    golden = _GOLDEN[task]
    side = 64 if task == 'tiny-CNN' else 32
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    names, variables = call_order(_NETWORKS[task], x)
    params = variables['params']
    self.assertLen(jax.tree.leaves(params), golden['n_kernels'])
    self.assertEqual(
      [tuple(params[name]['kernel'].shape) for name in names],
      [tuple(shape) for _, shape in golden['kernels']],
    )
    if task != 'C100-WRN':  # Keras numbered the layers of that one.
      self.assertEqual(names, [name for name, _ in golden['kernels']])
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    self.assertEqual(count, golden['trainable'])
    statistics = jax.tree.leaves(variables['batch_stats'])
    self.assertEqual(
      sum(leaf.size for leaf in statistics), golden['non_trainable']
    )
    out = jax.eval_shape(_NETWORKS[task].apply, variables, x)
    self.assertEqual(out.shape, (2, golden['output'][1]))

  def test_mnist_network(self):
    x = jnp.zeros((2, 28, 28))
    names, variables = call_order(models_lib.MnistMLP(), x)
    self.assertEqual(names, ['dense0', 'last_dense'])
    count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    self.assertEqual(count, 784 * 784 + 784 + 2 * 784 + 784 * 10 + 10)

  def test_bad_shapes(self):
    x = jnp.zeros((2, 32, 32, 3))
    for model, words in (
      (models_lib.VGGLayca((1, 1), (4,)), 'one number of filters for each'),
      (residual.ResNetV1Keras(33), 'depth is 33; expected 6 n'),
      (residual.WideResNet(27), 'depth is 27; expected 6 n'),
    ):
      with self.assertRaisesRegex(ValueError, words):
        jax.eval_shape(model.init, jax.random.key(0), x)


class BehaviourTest(parameterized.TestCase):
  @parameterized.parameters(*small_networks())
  @pytest.mark.nightly
  def test_padding_enters_nothing(self, name):
    model, shape = small_networks()[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, *shape)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(1), x)
    padded = np.concatenate([x, 1e3 + x[:2]])
    mask = np.array([1.0] * 6 + [0.0] * 2)

    @jax.jit
    def train(x, mask):
      return model.apply(
        variables,
        x,
        train=True,
        mask=mask,
        mutable='batch_stats',
        rngs={'dropout': jax.random.key(2)},
      )

    logits, state = train(x, None)
    masked_logits, masked_state = train(padded, mask)
    if name != 'wide':  # Its dropout draws by the shape of the batch.
      np.testing.assert_allclose(
        masked_logits[:6], logits, rtol=1e-4, atol=1e-4
      )
      chex.assert_trees_all_close(masked_state, state, rtol=1e-4, atol=1e-5)
    _, unmasked_state = train(padded, np.ones(8))
    gap = jax.tree.map(
      lambda a, b: jnp.abs(a - b).max(), masked_state, unmasked_state
    )
    self.assertGreater(max(jax.tree.leaves(gap)), 1e-2)
    with self.assertRaisesRegex(ValueError, r'mask has shape \(3,\)'):
      train(padded, mask[:3])

  def test_statistics_are_those_of_keras(self):
    # momentum .99, epsilon 1e-3, population variance, relu before the norm.
    model = models_lib.VGGLayca((1,), (5,), 3)
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    kernel = variables['params']['stage0_layer0_conv']['kernel']
    h = jax.nn.relu(
      jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
    )
    mean, variance = h.mean((0, 1, 2)), h.var((0, 1, 2))
    expected = ((h - mean) / jnp.sqrt(variance + 1e-3)).mean((1, 2))
    expected = expected @ variables['params']['last_dense']['kernel']
    logits, state = model.apply(variables, x, train=True, mutable='batch_stats')
    # float32 with another order of additions.
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    running = state['batch_stats']['stage0_layer0_batch']
    np.testing.assert_allclose(running['mean'], 0.01 * mean, rtol=1e-4)
    np.testing.assert_allclose(
      running['var'], 0.99 + 0.01 * variance, rtol=1e-5
    )

  def test_wide_resnet_pads_by_one_on_every_side(self):
    # 'SAME' of stride 2 would see one row less on top: a pixel in the corner
    # reaches the output of a strided convolution through its padding.
    model = residual.WideResNet(10, 1, 0.0, 3)
    x = jnp.zeros((1, 8, 8, 3)).at[0, 0, 0].set(1.0)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    _, state = model.apply(
      variables, x, capture_intermediates=True, mutable='intermediates'
    )
    seen = state['intermediates']['stage1_block0_conv1']['__call__'][0]
    self.assertEqual(seen.shape, (1, 4, 4, 32))
    h = state['intermediates']['stage1_block0_batch1']['__call__'][0]
    kernel = variables['params']['stage1_block0_conv1']['kernel']
    padded = np.pad(nn.relu(h), ((0, 0), (1, 1), (1, 1), (0, 0)))
    corner = np.einsum('hwi,hwio->o', padded[0, :3, :3], kernel)
    np.testing.assert_allclose(seen[0, 0, 0], corner, atol=1e-5)

  def test_dropout_is_active_in_training_only(self):
    model = residual.WideResNet(10, 1, 0.5, 3)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    @functools.partial(jax.jit, static_argnums=1)
    def logits(seed, train):
      rngs = {'dropout': jax.random.key(seed)}
      return model.apply(
        variables, x, train=train, mutable='batch_stats', rngs=rngs
      )[0]

    self.assertFalse(np.allclose(logits(0, True), logits(1, True)))
    np.testing.assert_array_equal(logits(0, False), logits(1, False))

  @parameterized.parameters(*small_networks())
  def test_types(self, name):
    model, shape = small_networks()[name]
    model = model.clone(dtype=jnp.bfloat16)
    x = jnp.zeros((2, *shape))
    out, variables = jax.eval_shape(
      model.init_with_output, jax.random.key(0), x
    )
    for leaf in jax.tree.leaves(variables):
      self.assertEqual(leaf.dtype, jnp.float32)
    self.assertEqual(out.dtype, jnp.bfloat16)


class InitializerTest(parameterized.TestCase):
  def test_he_normal_is_not_corrected_for_truncation(self):
    shape = (3, 3, 100, 400)
    kernel = np.asarray(
      initializers.keras_he_normal()(jax.random.key(0), shape)
    )
    sigma = np.sqrt(2 / 900)
    self.assertLessEqual(np.abs(kernel).max(), 2 * sigma * (1 + 1e-6))
    # Standard deviation of a normal cut at two of them; 360,000 samples leave
    # it uncertain by .1 %.
    self.assertAlmostEqual(kernel.std() / sigma, 0.87963, delta=0.004)
    corrected = jax.nn.initializers.he_normal()(jax.random.key(0), shape)
    self.assertAlmostEqual(
      float(corrected.std() / kernel.std()), 1.137, delta=0.003
    )

  def test_limits_of_the_uniform_ones(self):
    for name, limit in (
      ('he_uniform', np.sqrt(6 / 900)),
      ('glorot_uniform', np.sqrt(6 / (900 + 3600))),
    ):
      init = initializers.by_name(name)
      kernel = np.abs(init(jax.random.key(0), (3, 3, 100, 400)))
      self.assertLess(kernel.max(), limit * (1 + 1e-6))
      self.assertGreater(kernel.max(), 0.999 * limit)

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, "'he' *; expected one of"):
      initializers.by_name('he')
    with self.assertRaisesRegex(ValueError, 'at least two axes'):
      initializers.keras_he_normal()(jax.random.key(0), (3,))


if __name__ == '__main__':
  absltest.main()
