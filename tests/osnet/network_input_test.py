"""How networks begin, and which images and configs they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import osnet
from jaxpapers.osnet import exchange, network
from tests.osnet import golden_weights

TINY = golden_weights.TINY


class InitialisationTest(absltest.TestCase):
  @pytest.mark.slow
  def test_deviations(self):
    cfg = osnet.OSNetConfig(
      channels=(32, 256), blocks_per_stage=(1,), streams=(1,)
    )
    shapes = (1, 16, 8, 3)
    params = jax.jit(osnet.OSNet(cfg, 50).init)(
      jax.random.key(0), jnp.ones(shapes)
    )['params']
    block = params['conv2_0']
    middle = 64
    for kernel, deviation in (
      (params['conv1']['conv']['kernel'], np.sqrt(2 / (49 * 32))),
      (block['conv3']['conv']['kernel'], np.sqrt(2 / 256)),
      # By all channels that go out, of which each kernel makes one.
      (block['stream0_0']['depthwise']['kernel'], np.sqrt(2 / (9 * middle))),
      (block['gate']['fc1']['kernel'], np.sqrt(2 / 4)),
      (params['fc']['linear']['kernel'], 0.01),
      (params['classifier']['kernel'], 0.01),
    ):
      # Five deviations of the estimate.
      np.testing.assert_allclose(
        np.std(kernel), deviation, rtol=5 / np.sqrt(2 * kernel.size)
      )
    # Not truncated at two deviations.
    kernel = np.asarray(params['conv5']['conv']['kernel'])
    self.assertGreater(np.abs(kernel).max(), 3.5 * np.sqrt(2 / 256))
    self.assertFalse(np.any(params['classifier']['bias']))
    self.assertTrue(np.all(params['fc']['norm']['scale'] == 1))


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    ((32, 16, 3), 'float32', ValueError, r'\(32, 16, 3\).*Add an axis'),
    ((1, 32, 16, 3), 'uint8', TypeError, 'uint8.*scaled to'),
    ((1, 12, 64, 3), 'float32', ValueError, '12 x 64 pixels.*13 or'),
    ((0, 32, 16, 3), 'float32', ValueError, r'\(0, 32, 16, 3\)'),
  )
  def test_images(self, shape, dtype, error, words):
    net = osnet.OSNet(osnet.CONFIGS['osnet_x0_25'])
    with self.assertRaisesRegex(error, words):
      jax.eval_shape(
        net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype)
      )

  def test_other_channels_than_the_parameters(self):
    net = osnet.OSNet(TINY)
    x = jax.ShapeDtypeStruct((1, 16, 8, 3), 'float32')
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    with self.assertRaisesRegex(ValueError, 'expected 3 channels'):
      jax.eval_shape(
        net.apply, variables, jax.ShapeDtypeStruct((1, 16, 8, 1), 'float32')
      )

  def test_one_pixel_for_instance_norm(self):
    cfg = dataclasses.replace(TINY, instance_norm=('inside',))
    with self.assertRaisesRegex(ValueError, 'one pixel'):
      jax.eval_shape(
        osnet.OSNet(cfg).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 2, 2, 3), 'float32'),
      )

  def test_open_layers_that_are_not_there(self):
    net = osnet.OSNet(TINY, 5)
    x = jax.ShapeDtypeStruct((1, 16, 8, 3), 'float32')
    with self.assertRaisesRegex(ValueError, "'head'.*'classifier'"):
      jax.eval_shape(
        lambda x: net.init(jax.random.key(0), x, open_layers=['head']), x
      )

  def test_names_of_children(self):
    for cfg in (TINY, osnet.CONFIGS['osnet_x0_25']):
      children = list(exchange.expected(cfg, 3)['params'])
      network.check_children(cfg, [*children, 'conv2'])
      found = []
      for name in (*children, 'fc'):
        other = dataclasses.replace(
          cfg, blocks_per_stage=(1,), channels=(16, 64), feature_dim=None
        )
        try:
          network.check_children(other, name)
        except ValueError:
          found.append(name)
      rest = {'conv1', 'conv2_0', 'conv5', 'classifier'}
      self.assertEqual(set(found), set(children) - rest | {'fc'})

  def test_number_of_classes(self):
    x = jax.ShapeDtypeStruct((1, 16, 8, 3), 'float32')
    with self.assertRaisesRegex(ValueError, 'num_classes is -1'):
      jax.eval_shape(osnet.OSNet(TINY, -1).init, jax.random.key(0), x)

  @parameterized.parameters(
    ({'channels': (64, 256)}, 'one more than blocks_per_stage'),
    ({'streams': ()}, 'streams is'),
    ({'streams': (0,)}, 'streams is'),
    ({'streams': 4}, 'streams is 4; expected a tuple'),
    ({'aggregation': 'sum'}, "aggregation is 'sum'.*unified"),
    ({'instance_norm': ('inside',)}, '1 entries.*6 blocks'),
    ({'instance_norm': ('IN',) * 6}, 'instance_norm is'),
    ({'reduction': 0}, 'reduction is 0'),
    ({'gate_reduction': 65}, 'gate_reduction is 65; expected 1 to 64'),
    ({'feature_dim': [64, 32]}, 'feature_dim is'),
    ({'feature_dim': -1}, 'feature_dim is -1'),
    ({'stem': 'resnet'}, "stem is 'resnet'"),
  )
  def test_configs(self, changes, words):
    with self.assertRaisesRegex(ValueError, words):
      osnet.OSNetConfig(**changes)

  def test_names_of_configs(self):
    with self.assertRaisesRegex(ValueError, "'osnet_x2_0'.*osnet_x1_0"):
      osnet.config_for('osnet_x2_0')
    with self.assertRaisesRegex(ValueError, 'no such fields'):
      osnet.config_for('osnet_x1_0', width=2)
    with self.assertRaisesRegex(ValueError, 'multiplier is 0'):
      osnet.scaled_resolution(0)


if __name__ == '__main__':
  absltest.main()
