"""Single blocks, gates and mixtures against torchreid's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import osnet
from jaxpapers.osnet import blocks
from tests.helpers import goldens
from tests.osnet import golden_weights


def golden_input():
  golden = goldens.load_npz('osnet', 'variants.npz')
  return jnp.asarray(golden_weights.nhwc(golden['block/x'])), golden


def init(block, x):
  """Fresh variables of a block."""
  keys = {'params': jax.random.key(0), 'gumbel': jax.random.key(1)}
  return golden_weights.fresh(lambda keys: block.init(keys, x, False), keys)


class GoldenTest(parameterized.TestCase):
  def check(self, block, prefix, name):
    x, golden = golden_input()
    variables = golden_weights.block_variables(block, prefix, x, False)
    found = jax.jit(block.apply, static_argnums=2)(variables, x, False)
    np.testing.assert_allclose(
      found, golden_weights.nhwc(golden[name]), atol=1e-5, rtol=1e-5
    )

  @parameterized.parameters(1, 2, 3, 4, 5)
  def test_streams(self, count):
    cfg = osnet.OSNetConfig(streams=tuple(range(1, count + 1)))
    block = osnet.OSBlock(64, cfg)
    self.check(block, f'T{count}/', f'block/OSBlock_T{count}')

  @parameterized.parameters(
    ('OSBlock', None),
    ('OSBlockINv1', 'inside'),
    ('OSBlockINv2', 'outside'),
    ('OSBlockINv3', 'both'),
  )
  def test_instance_norms(self, name, kind):
    block = osnet.OSBlock(64, instance_norm=kind)
    self.check(block, f'{name}/', f'block/{name}')

  @parameterized.parameters(
    ('gate_activation=relu', {'activation': 'relu'}),
    ('gate_activation=linear', {'activation': 'linear'}),
    ('layer_norm=True', {'layer_norm': True}),
    ('num_gates=1', {'num_gates': 1}),
  )
  def test_gates(self, name, options):
    x, golden = golden_input()
    gate = osnet.AggregationGate(**options)
    hidden, out = 2, options.get('num_gates', 32)

    def value(key, shape):
      return golden_weights.value(key, shape, 'gate/')

    params = {
      'fc1': {
        'kernel': value('fc1.weight', (hidden, 32, 1, 1))[:, :, 0, 0].T,
        'bias': value('fc1.bias', (hidden,)),
      },
      'fc2': {
        'kernel': value('fc2.weight', (out, hidden, 1, 1))[:, :, 0, 0].T,
        'bias': value('fc2.bias', (out,)),
      },
    }
    if options.get('layer_norm'):
      shape = (hidden, 1, 1)
      params['norm1'] = {
        'scale': value('norm1.weight', shape).ravel(),
        'bias': value('norm1.bias', shape).ravel(),
      }
    (found,) = jax.jit(gate.apply)({'params': params}, x)
    np.testing.assert_allclose(
      found, golden_weights.nhwc(golden[f'gate/{name}']), atol=1e-5, rtol=1e-5
    )


class MixtureTest(absltest.TestCase):
  def test_golden(self):
    x, golden = golden_input()
    block = osnet.MixedOSBlock(64)
    plain = osnet.OSNetConfig(affine=False)
    parts = {}
    for i, kind in enumerate(blocks.SEARCH_SPACE):
      parts[f'block{i}'] = golden_weights.block_variables(
        osnet.OSBlock(64, plain, kind), f'nas/os_block.{i}.', x, False
      )
    variables = {
      'params': {k: v['params'] for k, v in parts.items()},
      'batch_stats': {k: v['batch_stats'] for k, v in parts.items()},
    }
    variables['params']['alpha'] = golden['nas/weights']
    apply = jax.jit(block.apply, static_argnums=2)
    for temperature in ('10', '1', '0.1'):
      found = apply(
        variables, x, False, float(temperature), golden['nas/uniform']
      )
      np.testing.assert_allclose(
        found,
        golden_weights.nhwc(golden[f'nas/lmda{temperature}']),
        atol=1e-5,
        rtol=1e-5,
      )

  def test_noise_comes_from_the_key(self):
    cfg = osnet.OSNetConfig(streams=(1,), gate_reduction=4)
    block = osnet.MixedOSBlock(16, cfg, (None, 'inside'))
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 16))
    variables = init(block, x)

    @jax.jit
    def apply(key):
      return block.apply(variables, x, False, 1.0, rngs={'gumbel': key})

    a, b = apply(jax.random.key(3)), apply(jax.random.key(4))
    np.testing.assert_array_equal(a, apply(jax.random.key(3)))
    self.assertGreater(float(jnp.abs(a - b).max()), 1e-3)

  def test_weights_of_extreme_draws_are_finite(self):
    alpha = jnp.array([-1.0, 0.0, 1.0, 5.0])
    for uniform in (0.0, 0.5, 1 - 2**-24):
      w, grad = jax.value_and_grad(
        lambda a, u=uniform: blocks.mixture_weights(a, jnp.full(4, u), 0.1)[2]
      )(alpha)
      self.assertTrue(np.isfinite(w))
      self.assertTrue(np.all(np.isfinite(grad)))


class AblationTest(parameterized.TestCase):
  """What each ablation computes, from the parts of the block."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.x = jax.random.normal(jax.random.key(0), (2, 7, 5, 16))

  def fuse(self, aggregation, **changes):
    """The fused streams, the streams, the block's parameters."""
    cfg = osnet.OSNetConfig(
      streams=(1, 2), gate_reduction=4, aggregation=aggregation, **changes
    )
    block = osnet.OSBlock(32, cfg)
    variables = init(block, self.x)

    @jax.jit
    def apply(variables):
      return block.apply(
        variables,
        self.x,
        False,
        capture_intermediates=True,
        mutable=['intermediates'],
      )

    _, kept = apply(variables)
    kept = kept['intermediates']
    streams = [kept[f'stream{t}_{t}']['__call__'][0] for t in (0, 1)]
    return kept['fused'][0], streams, variables['params'], kept

  def test_add(self):
    fused, (a, b), params, _ = self.fuse('add')
    np.testing.assert_allclose(fused, a + b, atol=1e-6)
    self.assertNotIn('gate', params)

  def test_concat(self):
    fused, streams, params, _ = self.fuse('concat')
    np.testing.assert_array_equal(fused, jnp.concatenate(streams, -1))
    self.assertEqual(params['conv3']['conv']['kernel'].shape, (1, 1, 16, 32))

  def test_fixed(self):
    fused, (a, b), params, _ = self.fuse('fixed')
    g = jax.nn.sigmoid(params['gate_logits'])
    np.testing.assert_allclose(fused, g[0] * a + g[1] * b, atol=1e-6)

  def test_separate(self):
    fused, (a, b), params, kept = self.fuse('separate')
    g = [kept[f'gate{t}']['__call__'][0][0] for t in (0, 1)]
    np.testing.assert_allclose(fused, g[0] * a + g[1] * b, atol=1e-6)
    self.assertFalse(
      np.array_equal(
        params['gate0']['fc1']['kernel'], params['gate1']['fc1']['kernel']
      )
    )

  def test_streamwise(self):
    fused, (a, b), params, kept = self.fuse('streamwise')
    g = kept['gate']['__call__'][0]
    self.assertEqual(g[0].shape, (2, 1, 1, 1))
    np.testing.assert_allclose(fused, g[0] * a + g[1] * b, atol=1e-6)
    self.assertEqual(params['gate']['fc2']['kernel'].shape, (2, 1))

  def test_shared_gate_sums_gradients(self):
    gate = osnet.AggregationGate(reduction=2)
    a, b = self.x[..., :8], self.x[..., 8:]
    params = gate.init(jax.random.key(0), a)

    def loss(params, *streams):
      return sum(jnp.square(y).sum() for y in gate.apply(params, *streams))

    grad = jax.jit(jax.grad(loss))
    together = grad(params, a, b)
    apart = jax.tree.map(jnp.add, grad(params, a), grad(params, b))
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
      together,
      apart,
    )

  def test_full_convolutions(self):
    *_, params, _ = self.fuse('unified', lite=False)
    kernel = params['stream1_1']['conv']['kernel']
    self.assertEqual(kernel.shape, (3, 3, 8, 8))

  def test_receptive_fields(self):
    # What a pixel of stream t depends on is (2t + 1)^2 pixels, exactly.
    cfg = osnet.OSNetConfig(aggregation='concat')
    block = osnet.OSBlock(16, cfg)
    x = jnp.abs(jax.random.normal(jax.random.key(3), (1, 15, 15, 4)))
    variables = init(block, x)
    # Positive weights: no ReLU hides a pixel.
    variables = {
      **variables,
      'params': jax.tree.map(lambda w: jnp.abs(w) + 0.1, variables['params']),
    }

    @jax.jit
    @jax.jacrev
    def centre(x):
      _, kept = block.apply(variables, x, False, mutable=['intermediates'])
      return kept['intermediates']['fused'][0][0, 7, 7].reshape(4, 4).sum(1)

    seen = np.asarray(jnp.abs(centre(x)).sum((1, 4)) > 0)
    for stream in range(4):
      wanted = np.zeros((15, 15), bool)
      t = stream + 1
      wanted[7 - t : 8 + t, 7 - t : 8 + t] = True
      np.testing.assert_array_equal(seen[stream], wanted)


class NormTest(absltest.TestCase):
  def test_batch_norm_keeps_the_unbiased_variance(self):
    norm = osnet.TorchBatchNorm()
    x = jax.random.normal(jax.random.key(0), (4, 3, 2, 5)) * 2 + 1
    variables = norm.init(jax.random.key(0), x, train=False)
    y, new = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    flat = np.asarray(x, np.float64).reshape(-1, 5)
    np.testing.assert_allclose(
      new['batch_stats']['var'], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5
    )
    np.testing.assert_allclose(
      y.reshape(-1, 5),
      (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5),
      atol=1e-5,
    )

  def test_norms_without_scale_have_no_parameters(self):
    x = jnp.ones((2, 3, 2, 5))
    for norm, options in (
      (osnet.TorchBatchNorm(affine=False), {'train': False}),
      (osnet.InstanceNorm2d(affine=False), {}),
    ):
      variables = norm.init(jax.random.key(0), x, **options)
      self.assertNotIn('params', variables)

  def test_instance_norm_is_the_same_for_each_image(self):
    x = jax.random.normal(jax.random.key(0), (3, 4, 2, 5))
    norm = osnet.InstanceNorm2d()
    variables = norm.init(jax.random.key(0), x)
    y = norm.apply(variables, x)
    np.testing.assert_allclose(norm.apply(variables, x[1:2]), y[1:2], atol=1e-6)
    flat = np.asarray(x, np.float64)
    mean, var = flat.mean((1, 2)), flat.var((1, 2))
    np.testing.assert_allclose(
      y,
      (flat - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None],
      atol=1e-5,
    )


class BadInputTest(absltest.TestCase):
  def test_gate(self):
    x = jnp.ones((1, 2, 2, 8))
    with self.assertRaisesRegex(ValueError, 'reduction is 16.*at most 8'):
      osnet.AggregationGate().init(jax.random.key(0), x)
    with self.assertRaisesRegex(ValueError, "activation is 'tanh'"):
      osnet.AggregationGate(activation='tanh').init(jax.random.key(0), x)

  def test_block(self):
    with self.assertRaisesRegex(ValueError, 'features is 2'):
      osnet.OSBlock(2).init(jax.random.key(0), jnp.ones((1, 4, 4, 8)), False)

  def test_folded_networks_do_not_train(self):
    cfg = dataclasses.replace(osnet.OSNetConfig(), folded=True)
    with self.assertRaisesRegex(ValueError, 'folded.*train=False'):
      osnet.LiteConv3x3(8, cfg).init(
        jax.random.key(0), jnp.ones((1, 4, 4, 8)), True
      )


if __name__ == '__main__':
  absltest.main()
