"""The network against torchreid: stages, features, logits, gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import osnet
from jaxpapers.osnet import losses, network
from tests.helpers import devices, goldens
from tests.osnet import golden_weights

TINY = golden_weights.TINY


def children(module, name):
  del name
  return len(module.path) == 1


def run(cfg, variables, x, classes=golden_weights.CLASSES):
  """Output and what each child gave, compiled once."""

  @jax.jit
  def apply(variables, x):
    out, kept = osnet.OSNet(cfg, classes).apply(
      variables, x, capture_intermediates=children, mutable=['intermediates']
    )
    kept = kept['intermediates']
    return out, {name: kept[name]['__call__'][0] for name in kept}

  return apply(variables, x)


def pooled(x):
  return (
    jax.lax.reduce_window(
      x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
    )
    / 4
  )


class GoldenTest(parameterized.TestCase):
  def check(self, model, batch, height, width):
    cfg = osnet.CONFIGS[model]
    name = f'{model}/{batch}x{height}x{width}'
    golden = goldens.load_npz('osnet', 'net_eval.npz')
    x = golden_weights.images(name, batch, height, width)
    out, kept = run(cfg, golden_weights.variables(cfg), x)
    # torch's own float32 and float64 differ by 8e-7; the smallest usual bug,
    # another epsilon of instance norms, gives 6e-4.
    for what in ('features', 'logits'):
      np.testing.assert_allclose(
        getattr(out, what), golden[f'{name}/{what}'], atol=1e-5, rtol=0
      )
    ain = f'{name}/pool2/mean' in golden
    stages = {
      'conv1': kept['conv1'],
      'conv2': kept['conv2_1'] if ain else pooled(kept['conv2_transition']),
      'conv3': kept['conv3_1'] if ain else pooled(kept['conv3_transition']),
      'conv4': kept['conv4_1'],
      'conv5': out.feature_map,
    }
    if ain:
      stages['pool2'] = pooled(kept['conv2_transition'])
      stages['pool3'] = pooled(kept['conv3_transition'])
    for stage, found in stages.items():
      found = np.asarray(found, np.float64)
      shape = golden[f'{name}/{stage}/shape']
      self.assertEqual(found.shape, tuple(shape[[0, 2, 3, 1]]))
      for power, key in ((1, 'mean'), (2, 'meansq')):
        np.testing.assert_allclose(
          (found**power).mean((1, 2)),
          golden[f'{name}/{stage}/{key}'],
          atol=1e-5,
          rtol=1e-5,
        )

  @pytest.mark.slow
  def test_widest_on_odd_images(self):
    self.check('osnet_x1_0', 1, 70, 34)

  def test_narrowest_with_instance_norms_on_odd_images(self):
    self.check('osnet_ain_x0_25', 2, 78, 42)

  @parameterized.parameters(
    ('osnet_x1_0', 2, 64, 32),
    ('osnet_x1_0', 1, 256, 128),
    ('osnet_x0_25', 2, 64, 32),
    ('osnet_ibn_x1_0', 2, 64, 32),
    ('osnet_ain_x1_0', 2, 64, 32),
  )
  @pytest.mark.slow
  def test_all(self, model, batch, height, width):
    self.check(model, batch, height, width)

  @pytest.mark.slow
  def test_internals(self):
    cfg = osnet.CONFIGS['osnet_x0_25']
    golden = goldens.load_npz('osnet', 'block_internals.npz')
    x = golden_weights.images('internals', 1, 32, 16)

    @jax.jit
    def apply(variables, x):
      return osnet.OSNet(cfg, golden_weights.CLASSES).apply(
        variables, x, capture_intermediates=True, mutable=['intermediates']
      )

    _, kept = apply(golden_weights.variables(cfg), x)
    kept = kept['intermediates']
    checked = 0

    def check(name, found):
      nonlocal checked
      np.testing.assert_allclose(
        found,
        golden_weights.nhwc(golden[name]),
        atol=1e-5,
        rtol=1e-5,
        err_msg=name,
      )
      checked += 1

    check('conv1', kept['conv1']['__call__'][0])
    for s in (2, 3, 4):
      for b in (0, 1):
        block, name = kept[f'conv{s}_{b}'], f'conv{s}.{b}'
        check(f'{name}/x1', block['conv1']['__call__'][0])
        gates = block['gate']['__call__'][0]
        for t, letter in enumerate('abcd'):
          stream = block[f'stream{t}_{t}']['__call__'][0]
          check(f'{name}/stream_{letter}', stream)
          check(f'{name}/gate_{letter}', gates[t])
        check(f'{name}/fused', block['fused'][0])
        check(f'{name}/residual', block['conv3']['__call__'][0])
        check(f'{name}/out', block['__call__'][0])
      if s < 4:
        transition = kept[f'conv{s}_transition']['__call__'][0]
        check(f'conv{s}.2/out', pooled(transition))
    check('conv5', kept['conv5']['__call__'][0])
    self.assertEqual(checked, len(golden) - 2)  # All but maxpool and actmap.


class VariantTest(parameterized.TestCase):
  @parameterized.parameters(
    (1,),
    (2,),
  )
  @pytest.mark.slow
  def test_number_of_streams(self, count):
    self.check_streams(count)

  @pytest.mark.nightly
  def test_three_streams(self):
    self.check_streams(3)

  def check_streams(self, count):
    cfg = dataclasses.replace(
      osnet.CONFIGS['osnet_x0_25'], streams=tuple(range(1, count + 1))
    )
    golden = goldens.load_npz('osnet', 'variants.npz')
    variables = golden_weights.variables(cfg, naming='ain')
    x = golden_weights.images('T', 2, 64, 32)
    out, _ = run(cfg, variables, x)
    np.testing.assert_allclose(
      out.features, golden[f'net_T{count}/features'], atol=1e-5, rtol=0
    )

  @pytest.mark.slow
  def test_without_feature_layer(self):
    cfg = dataclasses.replace(
      osnet.CONFIGS['osnet_x0_25'],
      blocks_per_stage=(1, 2, 1),
      feature_dim=None,
    )
    golden = goldens.load_npz('osnet', 'variants.npz')['net_nofc/features']
    x = golden_weights.images('nofc', 2, 64, 32)
    out, _ = run(cfg, golden_weights.variables(cfg), x)
    np.testing.assert_allclose(out.features, golden, atol=1e-5, rtol=1e-5)

  @pytest.mark.slow
  def test_attributes(self):
    cfg = osnet.CONFIGS['osnet_attribute']
    golden = goldens.load_npz('osnet', 'variants.npz')
    x = golden_weights.images('attr', 2, 64, 32)
    out, _ = run(cfg, golden_weights.variables(cfg, 26), x, 26)
    np.testing.assert_allclose(
      jax.nn.sigmoid(out.logits),
      golden['attr/osnet_maxpool_sigmoid'],
      atol=1e-5,
      rtol=0,
    )


class TrainingGoldenTest(parameterized.TestCase):
  def check(self, model):
    name = f'{model}/4x64x32'
    arrays = goldens.load_npz('osnet', 'net_train.npz')
    numbers = goldens.load_json('osnet', 'net_train.json')[name]
    cfg = osnet.config_for(model, param_dtype='float64')
    net = osnet.OSNet(cfg, golden_weights.CLASSES)
    with jax.enable_x64(True):
      variables = golden_weights.wide(
        golden_weights.variables(osnet.CONFIGS[model])
      )
      x = golden_weights.images(f'train/{name}', 4, 64, 32)
      x = jnp.asarray(x, jnp.float64)
      labels = jnp.array([0, 0, 5, 5])

      @jax.jit
      @functools.partial(jax.value_and_grad, has_aux=True)
      def step(params):
        out, new = net.apply(
          {**variables, 'params': params}, x, True, mutable=['batch_stats']
        )
        cross = losses.cross_entropy_label_smoothing(out.logits, labels)
        triplet = losses.batch_hard_triplet(out.features, labels)
        return cross + triplet, (cross, triplet, out, new)

      (_, (cross, triplet, out, new)), grads = step(variables['params'])
      kept = {'params': grads, **new}
      found = osnet.to_torch_state_dict(kept, cfg)
      # The label constants of the original are float32.
      np.testing.assert_allclose(cross, numbers['ce_label_smooth'], rtol=1e-7)
      np.testing.assert_allclose(
        triplet, numbers['hard_triplet_m0.3'], rtol=1e-9
      )
      for what in ('logits', 'features'):
        golden = arrays[f'{name}/{what}']
        np.testing.assert_allclose(
          getattr(out, what), golden, atol=1e-6, rtol=1e-6
        )
      self.assertGreater(len(numbers['grad_l2']), 180)
      for key, norm in numbers['grad_l2'].items():
        np.testing.assert_allclose(
          np.linalg.norm(found[key]), norm, rtol=1e-5, atol=1e-9, err_msg=key
        )
      for key in arrays:
        if key.startswith(f'{name}/'):
          kind, _, leaf = key.removeprefix(f'{name}/').partition('/')
          if kind in ('grad', 'buf'):
            np.testing.assert_allclose(
              found[leaf], arrays[key], rtol=1e-5, atol=1e-6, err_msg=key
            )
      for key, norm in numbers['buffer_l2'].items():
        buffer = np.asarray(found[key])
        mean = numbers['buffer_mean'][key]
        np.testing.assert_allclose(np.linalg.norm(buffer), norm, rtol=1e-6)
        np.testing.assert_allclose(buffer.mean(), mean, rtol=1e-6, atol=1e-8)

  @pytest.mark.slow
  def test_narrowest(self):
    self.check('osnet_x0_25')

  @parameterized.parameters('osnet_x1_0', 'osnet_ain_x0_25')
  @pytest.mark.nightly
  def test_others(self, model):
    self.check(model)


class TransformationTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.net = osnet.OSNet(TINY, 5)
    cls.x = jax.random.normal(jax.random.key(1), (4, 16, 8, 3))
    keys = jax.random.split(jax.random.key(0), 3)
    cls.seeds = jax.jit(jax.vmap(cls.net.init, (0, None)))(keys, cls.x)

  def test_vmap_over_seeds_is_the_loop(self):
    many = jax.jit(jax.vmap(self.net.apply, (0, None)))(self.seeds, self.x)
    one = jax.jit(self.net.apply)
    for i in range(3):
      out = one(jax.tree.map(lambda leaf, i=i: leaf[i], self.seeds), self.x)
      np.testing.assert_allclose(many.features[i], out.features, atol=1e-5)
      np.testing.assert_allclose(many.logits[i], out.logits, atol=1e-5)

  def test_a_step_is_compiled_once(self):
    variables = jax.tree.map(lambda leaf: leaf[0], self.seeds)

    @jax.jit
    def step(variables, x):
      return self.net.apply(variables, x, True, mutable=['batch_stats'])

    for seed in range(3):
      x = jax.random.normal(jax.random.key(seed), self.x.shape)
      _, new = step(variables, x)
      variables = {**variables, **new}
    self.assertEqual(step._cache_size(), 1)

  def test_frozen_children_neither_learn_nor_keep_statistics(self):
    variables = jax.tree.map(lambda leaf: leaf[0], self.seeds)

    def loss(params, open_layers):
      out, new = self.net.apply(
        {**variables, 'params': params},
        self.x,
        True,
        open_layers=open_layers,
        mutable=['batch_stats'],
      )
      labels = jnp.array([0, 1, 2, 3])
      return losses.cross_entropy_label_smoothing(out.logits, labels), new

    step = jax.jit(
      jax.grad(loss, has_aux=True), static_argnames=('open_layers',)
    )
    for open_layers, learn in (
      (('classifier',), {'classifier'}),
      (('fc', 'classifier'), {'fc', 'classifier'}),
      (('conv2', 'classifier'), {'conv2_0', 'conv5', 'fc', 'classifier'}),
    ):
      grads, new = step(variables['params'], open_layers)
      moved = {
        name
        for name, tree in grads.items()
        if any(np.any(leaf) for leaf in jax.tree.leaves(tree))
      }
      self.assertEqual(moved, learn)
      for name, tree in new['batch_stats'].items():
        same = jax.tree.map(
          np.array_equal, tree, variables['batch_stats'][name]
        )
        frozen = all(jax.tree.leaves(same))
        opened = any(network.is_child(name, o) for o in open_layers)
        self.assertEqual(frozen, not opened, name)

  def test_half_precision_keeps_wide_features(self):
    cfg = dataclasses.replace(TINY, dtype='bfloat16')
    variables = jax.tree.map(lambda leaf: leaf[0], self.seeds)
    half = jax.jit(osnet.OSNet(cfg, 5).apply)(variables, self.x)
    full = jax.jit(self.net.apply)(variables, self.x)
    self.assertEqual(half.features.dtype, jnp.float32)
    self.assertEqual(half.logits.dtype, jnp.float32)
    self.assertEqual(half.feature_map.dtype, jnp.bfloat16)
    # bfloat16 has eight bits.
    scale = float(jnp.abs(full.features).max())
    np.testing.assert_allclose(half.features, full.features, atol=0.05 * scale)

  @pytest.mark.slow
  def test_remat_changes_nothing(self):
    variables = jax.tree.map(lambda leaf: leaf[0], self.seeds)

    def loss(params, cfg):
      out, _ = osnet.OSNet(cfg, 5).apply(
        {**variables, 'params': params}, self.x, True, mutable=['batch_stats']
      )
      return jnp.square(out.logits).mean()

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    plain = grad(variables['params'], TINY)
    again = grad(variables['params'], dataclasses.replace(TINY, remat=True))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, again
    )

  @pytest.mark.slow
  def test_two_devices_give_the_numbers_of_one(self):
    printed = devices.run(
      """
      import dataclasses
      import jax, jax.numpy as jnp, numpy as np
      from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
      from jaxpapers import osnet
      from tests.osnet import network_test

      x = jax.random.normal(jax.random.key(1), (8, 16, 8, 3))
      labels = jnp.arange(8) % 4
      net = osnet.OSNet(network_test.TINY, 5)
      variables = jax.jit(net.init)(jax.random.key(0), x)
      synced = dataclasses.replace(network_test.TINY, axis_name='data')

      def loss(params, x, labels, cfg, axis=None):
        out, new = osnet.OSNet(cfg, 5).apply(
          {**variables, 'params': params}, x, True, mutable=['batch_stats'])
        loss = osnet.cross_entropy_label_smoothing(out.logits, labels)
        if axis is not None:
          loss = jax.lax.pmean(loss, axis)
        return loss, new['batch_stats']

      both = jax.value_and_grad(loss, has_aux=True)
      one = jax.jit(both, static_argnums=3)(
          variables['params'], x, labels, network_test.TINY)
      mesh = Mesh(np.array(jax.devices()), ('data',))
      # By jit: statistics are those of the whole batch without more ado.
      rows = NamedSharding(mesh, P('data'))
      two = jax.jit(both, static_argnums=3)(
          variables['params'], jax.device_put(x, rows),
          jax.device_put(labels, rows), network_test.TINY)
      # By shard_map: with the name of the axis.
      mapped = jax.shard_map(
          lambda p, x, y: loss(p, x, y, synced, 'data'), mesh=mesh,
          in_specs=(P(), P('data'), P('data')), out_specs=(P(), P()))
      three = jax.jit(jax.value_and_grad(mapped, has_aux=True))(
          variables['params'], x, labels)
      for other in (two, three):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(
            a, b, atol=1e-5, rtol=1e-4), one, other)
      print('same')
      """,
      device_count=2,
    )
    self.assertIn('same', printed)


if __name__ == '__main__':
  absltest.main()
