"""Adapters in modules that know nothing of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import adapters
from jaxpapers.adapters import trees
from jaxpapers.nn import EncoderConfig, TransformerEncoder, transformer
from tests.helpers import goldens

WIDTH = 16


class Mlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    hidden = nn.gelu(nn.Dense(24)(x))
    return nn.Dense(x.shape[-1])(hidden)


class Block(nn.Module):
  """A post-LN layer of Flax's own attention and a perceptron."""

  @nn.compact
  def __call__(self, x):
    y = nn.MultiHeadDotProductAttention(num_heads=2)(x)
    x = nn.LayerNorm()(x + y)
    return nn.LayerNorm()(x + Mlp()(x))


class FlaxEncoder(nn.Module):
  """Blocks in a row, as Flax's examples write them."""

  blocks: int = 2

  @nn.compact
  def __call__(self, x):
    for i in range(self.blocks):
      x = Block(name=f'block_{i}')(x)
    return x


class ScannedBlock(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return Block(name='block')(x), None


class ScannedEncoder(nn.Module):
  remat: bool = False

  @nn.compact
  def __call__(self, x):
    block = nn.remat(ScannedBlock) if self.remat else ScannedBlock
    scan = nn.scan(
      block, variable_axes={'params': 0}, split_rngs={'params': True}, length=2
    )
    return scan(name='layers')(x, None)[0]


class Vit(nn.Module):
  """A vision transformer whose parts are made in setup."""

  num_classes: int = 5
  blocks: int = 2

  def setup(self):
    self.patches = nn.Conv(WIDTH, (4, 4), (4, 4))
    self.positions = self.param(
      'positions', nn.initializers.normal(0.02), (1, 4, WIDTH)
    )
    self.norms = [nn.LayerNorm() for _ in range(2 * self.blocks)]
    self.attentions = [
      nn.MultiHeadDotProductAttention(num_heads=2) for _ in range(self.blocks)
    ]
    self.mlps = [Mlp() for _ in range(self.blocks)]
    self.head = nn.Dense(self.num_classes)

  def __call__(self, images):
    x = self.patches(images)
    x = x.reshape(x.shape[0], -1, WIDTH) + self.positions
    for i in range(self.blocks):
      x = x + self.attentions[i](self.norms[2 * i](x))
      x = x + self.mlps[i](self.norms[2 * i + 1](x))
    return self.head(x.mean(1))


WHERE = (nn.MultiHeadDotProductAttention, Mlp)
X = jnp.asarray(goldens.normal('x', (2, 5, WIDTH)), jnp.float32)
IMAGES = jnp.asarray(goldens.normal('images', (3, 8, 8, 3)), jnp.float32)


def config(std=0.1, **fields):
  return adapters.AdapterConfig(**{'size': 4, 'init_std': std} | fields)


class AddAdaptersTest(parameterized.TestCase):
  @parameterized.parameters((FlaxEncoder, X), (Vit, IMAGES))
  def test_base_parameters_keep_their_paths(self, make, inputs):
    model = make(blocks=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)['params']
    rng = np.random.default_rng(0)
    base = jax.tree.map(
      lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes
    )
    adapted = adapters.add_adapters(model, WHERE, config())
    params = adapters.init_adapters(jax.random.key(1), adapted, base, inputs)
    new = set(trees.flatten(params)) - set(trees.flatten(base))
    self.assertLen(new, 2 * 4)
    self.assertTrue(all('/bottleneck_adapter/' in path for path in new))
    self.assertEmpty(set(trees.flatten(base)) - set(trees.flatten(params)))
    self.assertEqual(
      adapters.count_params(params) - adapters.count_params(base),
      adapters.adapter_param_count(1, WIDTH, 4),
    )
    run = jax.jit(adapted.apply)
    out = run({'params': params}, inputs, adapter_gates=1.0)
    plain = jax.jit(model.apply)({'params': base}, inputs)
    self.assertGreater(np.abs(out - plain).max(), 1e-4)
    removed = run({'params': params}, inputs, adapter_gates=0.0)
    # Another program, fused otherwise.
    np.testing.assert_allclose(removed, plain, rtol=0, atol=2e-6)

  @pytest.mark.slow
  def test_as_written_by_hand(self):
    """The first block with adapters where the paper has them."""
    adapted = adapters.add_adapters(Block(), WHERE, config())
    params = jax.jit(adapted.init)(jax.random.key(0), X)['params']
    attention = dict(params['MultiHeadDotProductAttention_0'])
    mlp = dict(params['Mlp_0'])
    first = attention.pop('bottleneck_adapter')
    second = mlp.pop('bottleneck_adapter')

    def adapt(p, x):
      hidden = jax.nn.gelu(x @ p['down']['kernel'] + p['down']['bias'])
      return x + hidden @ p['up']['kernel'] + p['up']['bias']

    y = nn.MultiHeadDotProductAttention(num_heads=2).apply(
      {'params': attention}, X
    )
    x = nn.LayerNorm().apply(
      {'params': params['LayerNorm_0']}, X + adapt(first, y)
    )
    y = adapt(second, Mlp().apply({'params': mlp}, x))
    wanted = nn.LayerNorm().apply({'params': params['LayerNorm_1']}, x + y)
    found = adapted.apply({'params': params}, X)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)

  @parameterized.parameters(False, True)
  @pytest.mark.slow
  def test_scanned_layers(self, remat):
    adapted = adapters.add_adapters(ScannedEncoder(remat), WHERE, config())
    params = jax.jit(adapted.init)(jax.random.key(0), X)['params']
    flat = trees.flatten(params)
    path = 'layers/block/Mlp_0/bottleneck_adapter/down/kernel'
    self.assertEqual(flat[path].shape, (2, WIDTH, 4))
    # Layers are initialised apart.
    self.assertTrue((flat[path][0] != flat[path][1]).any())
    apart = adapters.add_adapters(FlaxEncoder(), WHERE, config())
    unrolled = {
      f'block_{i}': jax.tree.map(lambda x, i=i: x[i], params['layers']['block'])
      for i in range(2)
    }
    np.testing.assert_allclose(
      adapted.apply({'params': params}, X),
      apart.apply({'params': unrolled}, X),
      rtol=1e-5,
      atol=1e-5,
    )

  @pytest.mark.slow
  def test_lifted_modules_get_one_adapter(self):
    class Rematted(nn.Module):
      @nn.compact
      def __call__(self, x):
        return nn.remat(Mlp)(name='mlp')(x)

    adapted = adapters.add_adapters(Rematted(), Mlp, config())
    params = jax.jit(adapted.init)(jax.random.key(0), X)['params']
    plain = adapters.add_adapters(Mlp(), r'Dense_1$', config())
    other = {
      **{k: v for k, v in params['mlp'].items() if k != 'bottleneck_adapter'}
    }
    other['Dense_1'] = {
      **other['Dense_1'],
      'bottleneck_adapter': params['mlp']['bottleneck_adapter'],
    }
    self.assertEqual(adapters.find_sites(adapted, X), ['mlp'])
    np.testing.assert_allclose(
      adapted.apply({'params': params}, X),
      plain.apply({'params': other}, X),
      rtol=1e-6,
      atol=1e-6,
    )

  @pytest.mark.slow
  def test_our_encoder_gives_the_same(self):
    encoder = EncoderConfig(
      50, 16, 2, 2, 24, dropout_rate=0.0, attention_dropout_rate=0.0
    )
    ids = jnp.asarray([[0, 5, 6, 2]])
    built_in = TransformerEncoder(encoder, adapter=config())
    params = built_in.init(jax.random.key(0), ids)['params']
    moved = {}
    for path, leaf in trees.flatten(params).items():
      for place in ('attention', 'ffn'):
        path = path.replace(f'{place}_adapter/', f'{place}/bottleneck_adapter/')
      moved[path] = leaf
    injected = adapters.add_adapters(
      TransformerEncoder(encoder),
      (transformer.SelfAttention, transformer.FeedForward),
      config(),
    )
    np.testing.assert_allclose(
      injected.apply({'params': trees.unflatten(moved)}, ids),
      built_in.apply({'params': params}, ids),
      rtol=1e-5,
      atol=1e-5,
    )

  @pytest.mark.slow
  def test_only_adapters_norms_and_head_are_trained(self):
    adapted = adapters.add_adapters(Vit(), WHERE, config())
    params = jax.jit(adapted.init)(jax.random.key(0), IMAGES)['params']
    trainable, frozen = adapters.partition_params(
      params, 'adapter', head='^head/'
    )
    names = {path.split('/')[0] for path in trees.flatten(trainable)}
    self.assertEqual(
      names,
      {f'norms_{i}' for i in range(4)}
      | {f'attentions_{i}' for i in range(2)}
      | {f'mlps_{i}' for i in range(2)}
      | {'head'},
    )

    @jax.jit
    def step(trainable):
      def loss(trainable):
        merged = adapters.merge_params(trainable, frozen)
        logits = adapted.apply({'params': merged}, IMAGES)
        return -jax.nn.log_softmax(logits)[jnp.arange(3), jnp.arange(3)].mean()

      value, gradients = jax.value_and_grad(loss)(trainable)
      new = jax.tree.map(lambda p, g: p - 0.3 * g, trainable, gradients)
      return value, gradients, new

    first, gradients, trainable = step(trainable)
    self.assertEqual(
      jax.tree.structure(gradients), jax.tree.structure(trainable)
    )
    self.assertTrue(
      all(bool(jnp.any(g)) for g in jax.tree.leaves(gradients['mlps_0']))
    )
    for _ in range(30):
      last, _, trainable = step(trainable)
    self.assertLess(last, first / 3)

  @pytest.mark.slow
  def test_gates_by_site(self):
    adapted = adapters.add_adapters(FlaxEncoder(), WHERE, config())
    params = jax.jit(adapted.init)(jax.random.key(0), X)['params']
    sites = adapters.find_sites(adapted, X)
    self.assertEqual(
      sites,
      [
        f'block_{i}/{name}'
        for i in range(2)
        for name in ('MultiHeadDotProductAttention_0', 'Mlp_0')
      ],
    )

    def run(gates):
      gates = gates.reshape(-1)
      return adapted.apply(
        {'params': params},
        X,
        adapter_gates=dict(zip(sites, gates, strict=True)),
      )

    table = jax.jit(lambda: adapters.ablate_spans(run, 2))()
    changed = jax.tree.map(lambda x: x, params)
    changed['block_1']['Mlp_0']['bottleneck_adapter']['up'] = jax.tree.map(
      jnp.zeros_like, changed['block_1']['Mlp_0']['bottleneck_adapter']['up']
    )
    one = dict.fromkeys(sites, 1.0) | {sites[3]: 0.0}
    np.testing.assert_allclose(
      adapted.apply({'params': params}, X, adapter_gates=one),
      adapted.apply({'params': changed}, X),
      rtol=1e-6,
      atol=1e-6,
    )
    np.testing.assert_allclose(
      table[0, 1],
      adapted.apply({'params': params}, X, adapter_gates=0.0),
      rtol=1e-5,
      atol=1e-5,
    )
    with self.assertRaisesRegex(ValueError, "adapter_gates has 'block_7'"):
      adapted.apply({'params': params}, X, adapter_gates={'block_7': 0.0})

  def test_parallel(self):
    adapted = adapters.add_adapters(Mlp(), r'Dense_1$', config(parallel=True))
    params = jax.jit(adapted.init)(jax.random.key(0), X)['params']
    own = params['Dense_1']['bottleneck_adapter']
    # It reads what Dense_1 reads, 24 wide.
    self.assertEqual(own['down']['kernel'].shape, (24, 4))
    dense = params['Dense_0']
    hidden = nn.gelu(X @ dense['kernel'] + dense['bias'])
    inner = jax.nn.gelu(hidden @ own['down']['kernel'] + own['down']['bias'])
    base = adapted.apply({'params': params}, X, adapter_gates=0.0)
    np.testing.assert_allclose(
      adapted.apply({'params': params}, X),
      base + inner @ own['up']['kernel'] + own['up']['bias'],
      rtol=1e-5,
      atol=1e-5,
    )

  @pytest.mark.slow
  def test_sizes_from_a_function(self):
    def where(module):
      if not isinstance(module, Mlp):
        return 0
      return 3 if 'block_0' in module.path else 6

    adapted = adapters.add_adapters(FlaxEncoder(), where, config())
    params = jax.jit(adapted.init)(jax.random.key(0), X)['params']
    for i, size in enumerate((3, 6)):
      kernel = params[f'block_{i}']['Mlp_0']['bottleneck_adapter']['down'][
        'kernel'
      ]
      self.assertEqual(kernel.shape, (WIDTH, size))

  def test_bad_arguments(self):
    with self.assertRaisesRegex(TypeError, 'where is'):
      adapters.add_adapters(Mlp(), [1, 2])
    with self.assertRaisesRegex(ValueError, 'config.size is'):
      adapters.add_adapters(Mlp(), 'Dense', config(size=(1, 2)))
    nothing = adapters.add_adapters(FlaxEncoder(), r'mlp_7$', config())
    with self.assertRaisesRegex(ValueError, "where='mlp_7.' matches no"):
      jax.eval_shape(nothing.init, jax.random.key(0), X)


if __name__ == '__main__':
  absltest.main()
