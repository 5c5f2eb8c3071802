"""Counts to the last digit, and networks without batch norms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import osnet
from jaxpapers.osnet import exchange
from tests.helpers import goldens
from tests.osnet import golden_weights


class ComplexityTest(parameterized.TestCase):
  def test_golden(self):
    golden = goldens.load_json('osnet', 'complexity.json')
    self.assertLen(golden, 7)
    for model, numbers in golden.items():
      cfg = osnet.CONFIGS[model]
      self.assertEqual(
        osnet.torchreid_params(cfg), numbers['torchreid_reported_params']
      )
      for size, mult_adds in numbers['mult_adds'].items():
        found = osnet.complexity(cfg, tuple(map(int, size.split('x'))))
        self.assertEqual(
          (found.params, found.mult_adds),
          (numbers['true_params_without_classifier'], mult_adds),
          (model, size),
        )

  @parameterized.parameters(
    {},
    {'streams': (2, 2, 1)},
    {'aggregation': 'separate', 'gate_norm': True},
    {'aggregation': 'streamwise'},
    {'aggregation': 'fixed'},
    {'aggregation': 'concat', 'lite': False},
    {'aggregation': 'add', 'feature_dim': None, 'stem': 'cifar'},
    {
      'stem_norm': 'instance',
      'instance_norm': ('inside', 'outside', 'both', None, None, None),
    },
    {'affine': False, 'stem': 'cifar_pool'},
    {'folded': True},
    {
      'folded': True,
      'stem_norm': 'instance',
      'instance_norm': ('inside', 'outside', 'both', None, None, None),
    },
  )
  @pytest.mark.slow
  def test_parameters_are_those_of_the_network(self, **changes):
    cfg = dataclasses.replace(osnet.CONFIGS['osnet_x0_25'], **changes)
    like = exchange.expected(cfg, 7)['params']
    counted = osnet.complexity(cfg, (64, 64), 7)
    self.assertEqual(counted.params, sum(x.size for x in jax.tree.leaves(like)))
    # Layer by layer, too, but for instance norms, which lie inside.
    for layer in counted.per_layer:
      if 'norm' in layer.name or 'conv3' in layer.name:
        continue
      tree = like
      for name in layer.name.split('/'):
        if name in ('pointwise', 'depthwise'):
          break
        tree = tree[name]
      else:
        size = sum(x.size for x in jax.tree.leaves(tree))
        self.assertEqual(layer.params, size, layer.name)

  def test_small_images(self):
    with self.assertRaisesRegex(ValueError, r'hw is \(12, 64\).*13 pixels'):
      osnet.complexity(osnet.OSNetConfig(), (12, 64))
    with self.assertRaisesRegex(ValueError, r'hw is \(256,\)'):
      osnet.complexity(osnet.OSNetConfig(), (256,))


class FoldingTest(parameterized.TestCase):
  @parameterized.parameters(
    {},
    {'instance_norm': ('inside',), 'stem_norm': 'instance'},
    {'lite': False, 'affine': False},
  )
  def test_folded_network_says_the_same(self, **changes):
    cfg = osnet.OSNetConfig(
      channels=(8, 32),
      blocks_per_stage=(1,),
      streams=(1, 2),
      gate_reduction=4,
      feature_dim=16,
      **changes,
    )
    like = exchange.expected(cfg, 3)
    flat = jax.tree_util.tree_map_with_path(
      lambda path, leaf: golden_weights.value(
        jax.tree_util.keystr(path)
        + ('running_var' if path[-1].key == 'var' else ''),
        leaf.shape,
      ),
      like,
    )
    x = jax.random.normal(jax.random.key(0), (2, 32, 16, 3))
    folded = osnet.fold_batch_norm(flat)
    small = dataclasses.replace(cfg, folded=True)
    wanted = jax.jit(osnet.OSNet(cfg, 3).apply)(flat, x)
    found = jax.jit(osnet.OSNet(small, 3).apply)(folded, x)
    self.assertEqual(
      jax.tree.map(jnp.shape, folded),
      jax.tree.map(jnp.shape, exchange.expected(small, 3)),
    )
    for a, b in zip(found, wanted, strict=True):
      np.testing.assert_allclose(
        a, b, atol=2e-6 * max(1.0, float(jnp.abs(b).max())), rtol=1e-5
      )

  def test_nothing_to_fold(self):
    with self.assertRaisesRegex(ValueError, "has \\['params'\\]"):
      osnet.fold_batch_norm({'params': {}})


if __name__ == '__main__':
  absltest.main()
