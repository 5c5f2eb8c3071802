"""The adapter itself, its config, and how many parameters it has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import adapters
from jaxpapers.nn import EncoderConfig, TransformerEncoder
from tests.helpers import goldens


def tiny(num_layers=2, **changes):
  fields = {
    'max_len': 24,
    'dropout_rate': 0.0,
    'attention_dropout_rate': 0.0,
  }
  return EncoderConfig(97, 32, num_layers, 4, 48, **fields | changes)


IDS = jnp.asarray([[0, 5, 6, 7, 2], [0, 9, 2, 1, 1]])


class BottleneckAdapterTest(parameterized.TestCase):
  @parameterized.parameters(1, 70)
  def test_formula_for_all_sizes(self, m):
    d = 32
    x = goldens.normal('x', (3, 5, d)).astype(np.float32)
    adapter = adapters.BottleneckAdapter(m)
    shapes = jax.eval_shape(adapter.init, jax.random.key(0), x)['params']
    params = jax.tree.map(
      lambda p: goldens.normal(str(p.shape), p.shape).astype(np.float32) * 0.3,
      shapes,
    )
    down, up = params['down'], params['up']
    hidden = jax.nn.gelu(x @ down['kernel'] + down['bias'], approximate=True)
    wanted = x + hidden @ up['kernel'] + up['bias']
    found = adapter.apply({'params': params}, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    self.assertEqual(adapters.count_params(params), 2 * m * d + m + d)

  def test_no_adapter(self):
    x = jnp.ones((2, 4))
    found, variables = adapters.BottleneckAdapter(0).init_with_output(
      jax.random.key(0), x
    )
    self.assertIs(found, x)
    self.assertEmpty(variables)

  def test_zero_std_is_the_identity(self):
    x = goldens.normal('x', (3, 32)).astype(np.float32)
    adapter = adapters.BottleneckAdapter(8, init_std=0.0)
    found, _ = adapter.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(found, x)

  def test_depth(self):
    x = jnp.ones((2, 32))
    adapter = adapters.BottleneckAdapter(8, depth=3)
    params = jax.eval_shape(adapter.init, jax.random.key(0), x)['params']
    self.assertSameElements(params, ['down', 'middle_1', 'middle_2', 'up'])
    self.assertEqual(
      adapters.count_params(params),
      adapters.adapter_param_count(1, 32, 8, sites=1, depth=3),
    )

  def test_law_of_the_initialisation(self):
    # Spec: cut at two standard deviations, not rescaled.
    for std in (1e-2, 1e-3):
      adapter = adapters.BottleneckAdapter(1000, init_std=std)
      params = adapter.init(jax.random.key(1), jnp.ones((1, 1000)))['params']
      for name in ('down', 'up'):
        kernel = np.asarray(params[name]['kernel'], np.float64)
        self.assertEqual(kernel.size, 10**6)
        self.assertLessEqual(np.abs(kernel).max(), 2 * std)
        # The standard error of a deviation of 1e6 numbers is .06 %.
        self.assertAlmostEqual(kernel.std() / (0.8796 * std), 1, delta=5e-3)
        self.assertFalse(params[name]['bias'].any())

  def test_gates(self):
    x = goldens.normal('x', (3, 5, 32)).astype(np.float32)
    adapter = adapters.BottleneckAdapter(8, init_std=0.3)
    variables = adapter.init(jax.random.key(0), x)
    full = adapter.apply(variables, x)
    run = jax.jit(functools.partial(adapter.apply, variables))
    np.testing.assert_array_equal(run(x, gate=0.0), x)
    np.testing.assert_allclose(run(x, gate=1.0), full, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
      run(x, gate=0.5), (x + full) / 2, rtol=1e-5, atol=1e-5
    )
    some = run(x, gate=jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(some[1], x[1])
    np.testing.assert_allclose(some[::2], full[::2], rtol=1e-6, atol=1e-6)

  def test_removed_even_if_it_overflows(self):
    x = jnp.ones((2, 4))
    adapter = adapters.BottleneckAdapter(2, activation='identity')
    params = adapter.init(jax.random.key(0), x)['params']
    params['up']['bias'] = jnp.full(4, jnp.inf)
    found = adapter.apply({'params': params}, x, gate=0.0)
    np.testing.assert_array_equal(found, x)

  def test_gate_of_another_shape(self):
    adapter = adapters.BottleneckAdapter(2)
    x = jnp.ones((2, 3, 4))
    shapes = jax.eval_shape(adapter.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda p: np.ones(p.shape), shapes)
    for gate in (jnp.ones(3), jnp.ones((2, 3, 4))):
      with self.assertRaisesRegex(ValueError, 'gate has shape'):
        adapter.apply(variables, x, gate=gate)

  def test_small_updates_survive_bfloat16(self):
    x = jnp.full((1, 32), 1.0, jnp.bfloat16)
    adapter = adapters.BottleneckAdapter(8, init_std=1e-2, dtype=jnp.bfloat16)
    found, _ = adapter.init_with_output(jax.random.key(3), x)
    self.assertEqual(found.dtype, jnp.float32)
    self.assertGreater(np.abs(found - 1).max(), 0)
    self.assertFalse((found.astype(jnp.bfloat16) - x).any())

  @parameterized.parameters(
    ({'size': -1}, 'size is -1'),
    ({'size': 2.5}, 'size is 2.5'),
    ({'activation': 'sin'}, "activation is 'sin'"),
    ({'initializer': 'lecun'}, "initializer is 'lecun'"),
    ({'init_std': -1.0}, 'init_std is -1'),
    ({'init_std': float('nan')}, 'init_std is nan'),
    ({'depth': 0}, 'depth is 0'),
  )
  def test_bad_attributes(self, fields, words):
    with self.assertRaisesRegex(ValueError, words):
      adapters.AdapterConfig(**fields)
    with self.assertRaisesRegex(ValueError, words):
      adapters.BottleneckAdapter(**fields).init(
        jax.random.key(0), jnp.ones((1, 4))
      )


class AdapterConfigTest(parameterized.TestCase):
  def test_presets(self):
    paper = adapters.AdapterConfig.preset('houlsby2019_paper')
    code = adapters.AdapterConfig.preset('houlsby2019_code', size=8)
    hub = adapters.AdapterConfig.preset('adapterhub_houlsby')
    self.assertEqual((paper.init_std, paper.size), (1e-2, 64))
    self.assertEqual((code.init_std, code.size), (1e-3, 8))
    self.assertEqual(
      (hub.activation, hub.initializer, hub.init_std, hub.train_layer_norm),
      ('swish', 'normal', 0.02, False),
    )
    with self.assertRaisesRegex(ValueError, 'houlsby2019_paper'):
      adapters.AdapterConfig.preset('pfeiffer')

  @parameterized.parameters(
    ({'size': ()}, 'size is empty'),
    ({'size': (1, (2, 3, 4))}, 'a pair'),
    ({'size': (1, -2)}, 'size is -2'),
    ({'sites': ()}, 'sites is'),
    ({'sites': ('mlp',)}, 'sites is'),
  )
  def test_bad_sizes_and_sites(self, fields, words):
    with self.assertRaisesRegex(ValueError, words):
      adapters.AdapterConfig(**fields)

  def test_sizes_per_layer_and_place(self):
    config = adapters.AdapterConfig(size=[0, [3, 0]])
    encoder = TransformerEncoder(tiny(), adapter=config)
    params = jax.eval_shape(encoder.init, jax.random.key(0), IDS)['params']
    names = [
      f'{layer}/{name}'
      for layer in ('layers_0', 'layers_1')
      for name in params[layer]
      if name.endswith('_adapter')
    ]
    self.assertEqual(names, ['layers_1/attention_adapter'])
    kernel = params['layers_1']['attention_adapter']['down']['kernel']
    self.assertEqual(kernel.shape, (32, 3))
    self.assertEqual(config.sizes(2), ((0, 0), (3, 0)))

  @parameterized.parameters(
    ({'size': (1, 2, 3)}, False, 'size has 3 entries; the encoder has 2'),
    ({'size': (1, 2)}, True, 'layers'),
    ({'parallel': True}, False, 'add_adapters'),
  )
  def test_configs_that_an_encoder_cannot_have(self, fields, scan, words):
    encoder = TransformerEncoder(
      tiny(scan_layers=scan), adapter=adapters.AdapterConfig(**fields)
    )
    with self.assertRaisesRegex(ValueError, words):
      jax.eval_shape(encoder.init, jax.random.key(0), IDS)

  def near_identity(self, num_layers, stds, run):
    """Change of the output by adapters of 64, relative to its largest entry."""
    config = tiny(num_layers=num_layers)
    plain = TransformerEncoder(config)
    shapes = jax.eval_shape(plain.init, jax.random.key(0), IDS)['params']
    base = jax.tree_util.tree_map_with_path(
      # Unit-scale activations through post-LN layers.
      lambda path, x: (
        jnp.asarray(
          float('scale' in str(path[-1]))
          if 'norm' in str(path) or 'bias' in str(path[-1])
          else 0.16 * goldens.normal(str(path), x.shape),
          jnp.float32,
        )
        * jnp.ones(x.shape)
      ),
      shapes,
    )
    wanted = run(plain.apply)({'params': base}, IDS)
    adapted = TransformerEncoder(config, adapter=adapters.AdapterConfig(64))
    apply = run(adapted.apply)
    for std in stds:
      model = adapted.clone(adapter=adapters.AdapterConfig(64, init_std=std))
      params = adapters.init_adapters(jax.random.key(1), model, base, IDS)
      found = apply({'params': params}, IDS)
      yield np.abs(found - wanted).max() / np.abs(wanted).max()

  def test_near_identity(self):
    # Spec H7.
    gaps = list(self.near_identity(2, (1e-2, 1e-3), jax.jit))
    self.assertBetween(gaps[0], 1e-6, 1e-2)
    self.assertBetween(gaps[1], 1e-8, 1e-4)

  @pytest.mark.slow
  def test_identity(self):
    # Exact: one operation at a time, fused programs round differently.
    self.assertEqual(list(self.near_identity(1, (0.0,), lambda f: f)), [0])


class CountsTest(parameterized.TestCase):
  SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
  BERT_BASE = (
    55_320,
    92_208,
    165_984,
    313_536,
    608_640,
    1_198_848,
    2_379_264,
    4_740_096,
    9_461_760,
    18_905_088,
  )
  BERT_LARGE = (
    147_504,
    245_856,
    442_560,
    835_968,
    1_622_784,
    3_196_416,
    6_343_680,
    12_638_208,
    25_227_264,
    50_405_376,
  )

  def test_table(self):
    for layers, width, column, norms in (
      (12, 768, self.BERT_BASE, 38_400),
      (24, 1024, self.BERT_LARGE, 100_352),
    ):
      for m, wanted in zip(self.SIZES, column, strict=True):
        self.assertEqual(adapters.adapter_param_count(layers, width, m), wanted)
      self.assertEqual(adapters.layer_norm_param_count(layers, width), norms)

  @parameterized.parameters(
    # Base models as the table counts them: BERT with its pooler, RoBERTa
    # without; percent for m = 1, 64, 512, without and with layer norms.
    (
      'bert',
      12,
      768,
      109_482_240,
      (0.051, 2.173, 17.27),
      (0.086, 2.208, 17.30),
    ),
    (
      'bert',
      24,
      1024,
      335_141_888,
      (0.044, 1.893, 15.04),
      (0.074, 1.923, 15.07),
    ),
    (
      'roberta',
      12,
      768,
      124_055_040,
      (0.045, 1.918, 15.24),
      (0.076, 1.949, 15.27),
    ),
    ('roberta', 24, 1024, None, None, None),
  )
  def test_models(self, kind, layers, width, total, bare, with_norms):
    config = EncoderConfig(
      30_522 if kind == 'bert' else 50_265,
      width,
      layers,
      width // 64,
      4 * width,
      pad_id=0 if kind == 'bert' else 1,
      position_offset=0 if kind == 'bert' else 'pad',
      type_vocab_size=2 if kind == 'bert' else 1,
      scan_layers=True,  # Traced once, not 24 times.
    )
    for m in (1, 64, 512) if total else (8,):
      encoder = TransformerEncoder(config, adapter=adapters.AdapterConfig(m))
      params = jax.eval_shape(encoder.init, jax.random.key(0), IDS)['params']
      params = {'encoder': params, 'output': {'bias': jnp.zeros(2)}}
      trained, frozen = adapters.partition_params(params, 'adapter')
      own = adapters.count_params(trained['encoder'])
      norms = adapters.layer_norm_param_count(layers, width)
      count = adapters.adapter_param_count(layers, width, m)
      self.assertEqual(own, count + norms)
      if total is None:
        continue
      pooler = width * width + width if kind == 'bert' else 0
      base = adapters.count_params(frozen['encoder']) + norms + pooler
      self.assertEqual(base, total)
      index = (1, 64, 512).index(m)
      digits = 2 if m == 512 else 3
      self.assertEqual(round(100 * count / base, digits), bare[index])
      self.assertEqual(round(100 * own / base, digits), with_norms[index])

  def test_many_tasks(self):
    # Table 1: nine tasks of GLUE at m = 64 on BERT-large.
    per_task = adapters.adapter_param_count(24, 1024, 64) + 100_352
    ratio = adapters.total_size_ratio(335_141_888, per_task, 9)
    self.assertAlmostEqual(ratio, 1.173, places=3)

  def test_bad_sizes(self):
    with self.assertRaisesRegex(ValueError, 'm has 2 entries'):
      adapters.adapter_param_count(3, 8, (1, 2))
    with self.assertRaisesRegex(ValueError, 'size is -1'):
      adapters.adapter_param_count(1, 8, -1)
    self.assertEqual(
      adapters.adapter_param_count(3, 8, (0, 1, 2)),
      2 * (17 + 8) + 2 * (34 + 8),
    )


if __name__ == '__main__':
  absltest.main()
