"""The networks against timm, TensorFlow's original, Keras and torchvision."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import efficientnet
from jaxpapers.efficientnet import (
  blocks,
  model,
  pretrained_names,
  traced_counts,
)
from tests.efficientnet import golden_weights
from tests.helpers import devices, goldens


@functools.cache
def tiny_variables():
  return golden_weights.variables(golden_weights.tiny())


@functools.cache
def small_variables():
  return golden_weights.variables(golden_weights.small())


def run(config, variables, x, **options):
  """Applies a network in one compiled program."""
  apply = functools.partial(efficientnet.EfficientNet(config).apply, **options)
  return jax.jit(apply)(variables, x)


def features(endpoints, config):
  """What the golden files call stem, stage0 ... and head."""
  found = {'stem': endpoints['stem'], 'head': endpoints['head_1x1']}
  for block in config.scaled_blocks():
    found[f'stage{block.stage}'] = endpoints[f'block_{block.index}']
  return found


class GoldenTest(parameterized.TestCase):
  def check(self, name, config, shape, variables=None):
    golden = goldens.load_npz('efficientnet', f'{name}.npz')
    if variables is None:
      variables = golden_weights.variables(config)
    x = golden_weights.images(name, *shape)
    logits, endpoints = run(config, variables, x, return_endpoints=True)
    # Float32 noise is 1e-6; another epsilon gives 1e-3, other padding 1e-2.
    np.testing.assert_allclose(logits, golden['logits'], atol=2e-5)
    for key, value in features(endpoints, config).items():
      value = np.asarray(value, np.float64)
      self.assertEqual(value.shape, tuple(golden[f'{key}_shape']))
      for statistic in ('mean', 'std'):
        found = getattr(value, statistic)((1, 2))
        expected = golden[f'{key}_{statistic}_c']
        np.testing.assert_allclose(
          found.reshape(expected.shape), expected, atol=1e-4, err_msg=key
        )
      for part, expected in (
        (value, golden.get(key)),
        (value[:, :2, :2, :8], golden.get(f'{key}_corner')),
        (value[:, -2:, -2:, :8], golden.get(f'{key}_corner_br')),
      ):
        if expected is not None:
          np.testing.assert_allclose(part, expected, atol=1e-4, err_msg=key)

  def test_tiny(self):
    self.check(
      'tf_tiny_w025_d05_64',
      golden_weights.tiny(),
      (2, 64, 64, 3),
      tiny_variables(),
    )

  def test_b0_of_torch(self):
    config = efficientnet.config_for('efficientnet_b0')
    self.check('pt_b0_64', config, (1, 64, 64, 3))

  @parameterized.parameters(
    ('tf_b0_224', 'tf_efficientnet_b0', (1, 224, 224, 3)),
    ('tf_b0_odd_65x97', 'efficientnet-b0', (1, 65, 97, 3)),
    ('tf_b3_96', 'efficientnet-b3', (1, 96, 96, 3)),
  )
  @pytest.mark.slow
  def test_larger(self, name, model_name, shape):
    self.check(name, efficientnet.config_for(model_name), shape)

  @parameterized.parameters(
    'tf_efficientnet_lite0',
    'efficientnet_lite0',
    'tf_efficientnet_es',
    'efficientnet_es',
  )
  @pytest.mark.slow
  def test_lite_and_edge_tpu(self, name):
    """In both worlds of padding and epsilon."""
    golden = goldens.load_npz('efficientnet', 'timm_lite_es_64.npz')[name]
    config = efficientnet.config_for(name)
    x = golden_weights.images(name, 2, 64, 64, 3)
    logits = run(config, golden_weights.variables(config), x)
    np.testing.assert_allclose(
      logits, golden, rtol=0, atol=4e-6 * np.abs(golden).max()
    )

  def test_shapes_of_timm(self):
    for name, config in (
      ('timm_keys_b0.json', efficientnet.ModelConfig()),
      ('timm_keys_tiny_w025_d05.json', golden_weights.tiny()),
    ):
      rows = goldens.load_json('efficientnet', name)
      expected = {k: tuple(s) for k, s in rows if 'num_batches' not in k}
      self.assertEqual(golden_weights.timm_shapes(config), expected)


class TrainingTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_gradients_and_statistics_in_float64(self):
    self.check_gradients('auto')

  @parameterized.parameters('lax', 'shift')
  @pytest.mark.nightly
  def test_gradients_of_other_forms(self, impl):
    self.check_gradients(impl)

  def check_gradients(self, impl):
    golden = goldens.load_npz('efficientnet', 'train_tf_tiny_w025_d05_64.npz')
    config = golden_weights.tiny(
      depthwise_impl=impl,
      survival_prob=None,
      dropout_rate=0.0,
      bn_variance='unbiased',
      param_dtype='float64',
    )
    x = golden_weights.images('train_tf_tiny_w025_d05_64', 4, 64, 64, 3)
    with jax.enable_x64(True):
      variables = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float64), tiny_variables()
      )
      net = efficientnet.EfficientNet(config)
      targets = 0.9 * np.eye(10)[:4] + 0.01

      def loss(params):
        logits, new = net.apply(
          {**variables, 'params': params},
          jnp.asarray(x, jnp.float64),
          train=True,
          mutable=['batch_stats'],
        )
        log_p = jax.nn.log_softmax(logits)
        return -(targets * log_p).sum(-1).mean(), (logits, new)

      (value, (logits, new)), grads = jax.jit(
        jax.value_and_grad(loss, has_aux=True)
      )(variables['params'])
    table = pretrained_names.table_for(config, 'timm')
    found = table.to_state_dict({'params': grads, **new})
    np.testing.assert_allclose(value, golden['loss'], rtol=1e-7)
    np.testing.assert_allclose(logits, golden['logits'], atol=1e-6)
    checked = 0
    for key, expected in golden.items():
      kind, _, name = key.partition('/')
      if kind == 'grad':
        # The file is float32.
        scale = max(np.abs(expected).max(), 1e-6)
        np.testing.assert_allclose(
          found[name], expected, atol=1e-6 * scale, err_msg=name
        )
      elif kind == 'after':
        atol = 1e-7 if 'mean' in name else 1e-6
        np.testing.assert_allclose(
          found[name], expected, atol=atol, err_msg=name
        )
      checked += kind in ('grad', 'after')
    self.assertGreater(checked, 20)
    norms = dict(
      zip(golden['grad_norm_names'], golden['grad_norms'], strict=True)
    )
    for name, expected in norms.items():
      norm = np.linalg.norm(found[str(name)])
      self.assertAlmostEqual(norm, expected, delta=1e-6 * expected + 1e-12)

  @pytest.mark.nightly
  def test_remat_gives_the_same_gradients(self):
    x = golden_weights.images('remat', 4, 16, 16, 3)
    found = []
    for remat in (False, True):
      net = efficientnet.EfficientNet(golden_weights.small(remat=remat))

      def loss(params, net=net):
        logits, _ = net.apply(
          {**small_variables(), 'params': params},
          x,
          train=True,
          mutable=['batch_stats'],
          rngs={'dropout': jax.random.key(1)},
        )
        return (logits**2).sum()

      params = small_variables()['params']
      names = [
        equation.primitive.name
        for equation in jax.make_jaxpr(loss)(params).jaxpr.eqns
      ]
      wrapped = [n for n in names if 'checkpoint' in n or 'remat' in n]
      # Each of the three blocks is one piece that is computed again.
      self.assertLen(wrapped, 3 if remat else 0)
      found.append(jax.jit(jax.grad(loss))(params))
    for a, b in zip(
      jax.tree.leaves(found[1]), jax.tree.leaves(found[0]), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)

  @pytest.mark.slow
  def test_examples_under_vmap_equal_the_loop(self):
    config = golden_weights.small()
    net = efficientnet.EfficientNet(config)
    x = golden_weights.images('vmap', 3, 16, 16, 3)

    def loss(params, image):
      variables = {**small_variables(), 'params': params}
      return jax.nn.logsumexp(net.apply(variables, image[None]))

    grad = jax.grad(loss)
    params = small_variables()['params']
    mapped = jax.jit(jax.vmap(grad, (None, 0)))(params, x)
    single = jax.jit(grad)
    for i in range(3):
      for a, b in zip(
        jax.tree.leaves(mapped),
        jax.tree.leaves(single(params, x[i])),
        strict=True,
      ):
        scale = max(np.abs(b).max(), 1)
        np.testing.assert_allclose(a[i], b, atol=1e-5 * scale)

  def test_one_trace_per_shape(self):
    net = efficientnet.EfficientNet(golden_weights.small())
    traces = []

    @jax.jit
    def apply(variables, x):
      traces.append(x.shape)
      return net.apply(variables, x)

    for size in (32, 32, 48, 32):
      apply(small_variables(), np.zeros((1, size, size, 3), np.float32))
    self.assertLen(traces, 2)

  @pytest.mark.slow
  def test_data_parallel_equals_one_device(self):
    devices.run(
      """
      import functools
      import jax, jax.numpy as jnp, numpy as np
      from jaxpapers import efficientnet
      from tests.efficientnet import golden_weights

      P = jax.P
      config = golden_weights.small(survival_prob=None, dropout_rate=0.0)
      variables = golden_weights.variables(config)
      x = golden_weights.images('sharded', 8, 32, 32, 3)

      def step(config, axis, variables, x):
        def loss(params):
          logits, new = efficientnet.EfficientNet(config).apply(
            {**variables, 'params': params}, x, train=True,
            mutable=['batch_stats'])
          value = (jax.nn.logsumexp(logits, -1)).mean()
          return (value if axis is None else jax.lax.pmean(value, axis)), new
        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(
          variables['params'])
        return value, new, grads

      one = jax.jit(functools.partial(step, config, None))(variables, x)
      mesh = jax.make_mesh((4,), ('data',), (jax.sharding.AxisType.Auto,))
      sharded = jax.device_put(x, jax.NamedSharding(mesh, P('data')))
      whole = jax.device_put(variables, jax.NamedSharding(mesh, P()))
      # jit on a mesh, and named shards.
      by_jit = jax.jit(functools.partial(step, config, None))(whole, sharded)
      named = config.replace(bn_axis_name='data')
      by_name = jax.jit(jax.shard_map(
        functools.partial(step, named, 'data'), mesh=mesh,
        in_specs=(P(), P('data')), out_specs=P()))(whole, sharded)
      for other in (by_jit, by_name):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
          scale = max(float(jnp.abs(a).max()), 1.0)
          np.testing.assert_allclose(a, b, atol=1e-5 * scale)
      """,
      device_count=4,
    )


class BehaviourTest(parameterized.TestCase):
  def test_drop_path_differs_by_block_and_example(self):
    blocks = (efficientnet.BlockArgs(3, 9, 32, 32, 1, 1),)
    config = golden_weights.small(
      survival_prob=0.5, blocks=blocks, dropout_rate=0.0, stem_stride=1
    )
    variables = golden_weights.variables(config)
    x = golden_weights.images('drop', 64, 4, 4, 3)
    apply = jax.jit(
      functools.partial(
        efficientnet.EfficientNet(config).apply,
        train=True,
        mutable=['batch_stats'],
        return_endpoints=True,
      )
    )
    (_, ends), _ = apply(variables, x, rngs={'dropout': jax.random.key(0)})
    # An example whose branch was dropped leaves the block as it came.
    masks = np.array(
      [
        np.all(ends[f'block_{i - 1}'] == ends[f'block_{i}'], (1, 2, 3))
        for i in range(1, 9)
      ]
    )
    self.assertLen(np.unique(masks, axis=0), 8)
    # Mean of 0.5 i / 9 for i from 1: 0.25; 512 draws, four deviations.
    self.assertAlmostEqual(masks.mean(), 0.25, delta=0.08)
    self.assertLess(masks[0].mean(), masks[-1].mean())
    (_, again), _ = apply(variables, x, rngs={'dropout': jax.random.key(0)})
    np.testing.assert_array_equal(ends['head'], again['head'])
    (_, other), _ = apply(variables, x, rngs={'dropout': jax.random.key(1)})
    self.assertGreater(np.abs(ends['head'] - other['head']).max(), 1e-3)

  def test_endpoints_of_b0(self):
    net = efficientnet.EfficientNet(efficientnet.ModelConfig())
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), 'float32')
    init = functools.partial(net.init_with_output, return_endpoints=True)
    (logits, ends), variables = jax.eval_shape(init, jax.random.key(0), x)
    self.assertEqual(logits.shape, (1, 1000))
    expected = [
      (112, 112, 16),
      (56, 56, 24),
      (28, 28, 40),
      (14, 14, 112),
      (7, 7, 320),
    ]
    for i, shape in enumerate(expected):
      self.assertEqual(ends[f'reduction_{i + 1}'].shape[1:], shape)
    self.assertNotIn('reduction_6', ends)
    self.assertEqual(ends['block_1/expansion_output'].shape[1:], (56, 56, 96))
    self.assertEqual(ends['pooled_features'].shape, (1, 1280))
    self.assertLen(jax.tree.leaves(variables), 311)

  def test_features(self):
    config = golden_weights.small()
    x = golden_weights.images('features', 1, 32, 32, 3)
    expected, ends = run(config, small_variables(), x, return_endpoints=True)
    found = run(config, small_variables(), x, features_only=True)
    np.testing.assert_allclose(found, ends['features'], atol=1e-5)
    headless = config.replace(num_classes=0)
    params = dict(small_variables()['params'])
    classifier = params.pop('classifier')
    pooled = run(headless, {**small_variables(), 'params': params}, x)
    logits = pooled @ classifier['kernel'] + classifier['bias']
    np.testing.assert_allclose(logits, expected, atol=1e-5)

  def test_bfloat16(self):
    config = golden_weights.tiny(dtype='bfloat16')
    x = golden_weights.images('bfloat16', 2, 64, 64, 3)
    logits = run(config, tiny_variables(), x)
    self.assertEqual(logits.dtype, jnp.float32)
    expected = run(golden_weights.tiny(), tiny_variables(), x)
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    self.assertLess(error, 3e-2)

  @parameterized.parameters('lite0', 'edgetpu-s')
  def test_variants_count_as_said(self, variant):
    config = efficientnet.config_for(f'efficientnet-{variant}')
    shapes = golden_weights.shapes(config)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
    self.assertEqual(total, efficientnet.count_params(config))

  @parameterized.parameters('b0', 'b3')
  def test_as_many_parameters_as_counted(self, variant):
    config = efficientnet.config_for(f'efficientnet-{variant}')
    shapes = golden_weights.shapes(config)
    for name, count in (
      ('params', efficientnet.count_params(config)),
      ('batch_stats', efficientnet.count_batch_stats(config)),
    ):
      total = sum(leaf.size for leaf in jax.tree.leaves(shapes[name]))
      self.assertEqual(total, count)

  @parameterized.parameters('b0', 'b4')
  def test_multiply_adds_as_traced(self, variant):
    config = efficientnet.config_for(variant, depthwise_impl='lax')
    net = efficientnet.EfficientNet(config)
    size = config.resolution
    x = jax.ShapeDtypeStruct((1, size, size, 3), 'float32')
    found = traced_counts.traced_macs(
      net.apply, golden_weights.shapes(config), x
    )
    self.assertEqual(found, efficientnet.count_macs(config).total)

  def test_traced_counts_of_loops_and_branches(self):
    w = jnp.ones((4, 4))

    def scanned(x):
      return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]

    def branched(x):
      return jax.lax.cond(x[0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

    def looped(x):
      return jax.lax.while_loop(lambda x: x[0] > 0, lambda x: x @ w, x)

    x = jnp.ones(4)
    self.assertEqual(traced_counts.traced_macs(scanned, x), 80)
    self.assertEqual(traced_counts.traced_macs(branched, x), 32)
    self.assertEqual(traced_counts.traced_macs(jax.jit(scanned), x), 80)
    with self.assertRaisesRegex(ValueError, 'while loop'):
      traced_counts.traced_macs(looped, x)

  def test_multiply_adds_as_compiled(self):
    config = golden_weights.tiny()
    net = efficientnet.EfficientNet(config.replace(depthwise_impl='lax'))
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), 'float32')
    lowered = jax.jit(net.apply).lower(golden_weights.shapes(config), x)
    flops = lowered.cost_analysis()['flops']
    macs = efficientnet.count_macs(config, 64).total
    # Two per multiply-add, and the elementwise work of so narrow a network;
    # XLA leaves out what would multiply the padding.
    self.assertBetween(flops / (2 * macs), 0.95, 1.35)

  def test_images_of_any_size(self):
    config = golden_weights.tiny()
    net = efficientnet.EfficientNet(config)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      for shape in ((1, 1, 1, 3), (2, 31, 57, 3)):
        x = jax.ShapeDtypeStruct(shape, 'float32')
        logits = jax.eval_shape(net.apply, golden_weights.shapes(config), x)
        self.assertEqual(logits.shape, (shape[0], 10))
    with self.assertWarnsRegex(UserWarning, 'smaller than the stride 32'):
      x = jax.ShapeDtypeStruct((1, 16, 16, 3), 'float32')
      jax.eval_shape(net.apply, golden_weights.shapes(config), x)
    self.assertEqual(model.total_stride(config.replace(stem_stride=1)), 16)

  def test_refuses(self):
    net = efficientnet.EfficientNet(golden_weights.tiny())
    for x, error, message in (
      (np.zeros((32, 32, 3), np.float32), ValueError, r'\[N, H, W, C\]'),
      (np.zeros((1, 0, 32, 3), np.float32), ValueError, 'one pixel'),
      (np.zeros((1, 32, 32, 3), np.uint8), TypeError, 'uint8'),
      (np.zeros((1, 32, 32, 1), np.float32), ValueError, '1 channels'),
    ):
      with self.assertRaisesRegex(error, message):
        net.apply(tiny_variables(), x)


class InitialisationTest(absltest.TestCase):
  def test_standard_deviations(self):
    key = jax.random.key(0)
    for init, shape, expected in (
      (blocks.depthwise_init, (3, 3, 1, 4096), 0.4714),
      (blocks.depthwise_init, (5, 5, 1, 2048), 0.2828),
      (blocks.conv_init, (1, 1, 512, 96), 0.1443),
      (blocks.classifier_init, (512, 1000), 1 / np.sqrt(3 * 1000)),
    ):
      value = np.asarray(init(key, shape, jnp.float32))
      self.assertAlmostEqual(value.std(), expected, delta=0.02 * expected)
      # Four standard deviations of the mean.
      self.assertLess(abs(value.mean()), 4 * expected / np.sqrt(value.size))
    bound = 1 / np.sqrt(1000)
    self.assertBetween(np.abs(value).max(), 0.999 * bound, bound)
    # Not cut at two standard deviations.
    value = blocks.conv_init(key, (1, 1, 512, 96), jnp.float32)
    self.assertGreater(np.abs(value).max(), 3.5 * 0.1443)

  @pytest.mark.slow
  def test_of_the_network(self):
    config = golden_weights.tiny()
    net = efficientnet.EfficientNet(config)
    variables = jax.jit(net.init)(
      jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)
    )
    params = variables['params']
    block = params['stage2_block0']
    for name, value in (('scale', 1), ('bias', 0)):
      np.testing.assert_array_equal(block['project_bn'][name], value)
    for name in ('se_reduce', 'se_expand'):
      np.testing.assert_array_equal(block[name]['bias'], 0)
    np.testing.assert_array_equal(params['classifier']['bias'], 0)
    self.assertAlmostEqual(
      np.std(block['depthwise_conv']['kernel']), 0.2828, delta=0.03
    )
    self.assertLess(np.abs(params['classifier']['kernel']).max(), 10**-0.5)


if __name__ == '__main__':
  absltest.main()
