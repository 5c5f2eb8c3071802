"""Class activation maps: the golden one, and that they sum to the logit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers import efficientnet
from jaxpapers.efficientnet import cam
from tests.efficientnet import golden_weights
from tests.helpers import goldens


class CamTest(absltest.TestCase):
  @pytest.mark.nightly
  def test_mean_and_bias_are_the_logit(self):
    config = golden_weights.tiny()
    variables = golden_weights.variables(config)
    x = golden_weights.images('cam', 2, 64, 96, 3)
    classes = np.tile(np.arange(10), (2, 1))
    maps = cam.class_activation_map(config, variables, x, classes, None)
    self.assertEqual(maps.shape, (2, 10, 2, 3))
    logits = jax.jit(efficientnet.EfficientNet(config).apply)(variables, x)
    bias = variables['params']['classifier']['bias']
    np.testing.assert_allclose(maps.mean((2, 3)) + bias, logits, atol=1e-5)
    # One class each, the largest by default, at the images' size.
    best = cam.class_activation_map(config, variables, x)
    self.assertEqual(best.shape, (2, 64, 96))
    top = logits.argmax(-1)
    expected = cam.class_activation_map(config, variables, x, top)
    np.testing.assert_array_equal(best, expected)

  @pytest.mark.slow
  def test_golden(self):
    golden = goldens.load_npz('efficientnet', 'cam_tf_b0_224.npz')
    config = efficientnet.config_for('efficientnet-b0')
    variables = golden_weights.variables(config)
    x = golden_weights.images('tf_b0_224', 1, 224, 224, 3)
    classes = golden['classes'][None]
    maps = cam.class_activation_map(config, variables, x, classes, None)
    np.testing.assert_allclose(maps[0], golden['cam'], atol=1e-4)
    found = maps[0].mean((1, 2)) + golden['bias']
    np.testing.assert_allclose(found, golden['logits_top'], atol=1e-4)

  def test_rescaled(self):
    maps = jnp.stack([jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3))])
    found = cam.rescale_map(maps)
    np.testing.assert_allclose(found[0], maps[0] / 5)
    np.testing.assert_array_equal(found[1], 0)

  def test_refuses(self):
    config = golden_weights.tiny()
    x = golden_weights.images('cam', 2, 32, 32, 3)

    def run(classes, config=config, upsample=None):
      return cam.class_activation_map(config, {}, x, classes, upsample)

    with self.assertRaisesRegex(ValueError, 'class_ids has shape'):
      run(np.zeros(3, int))
    with self.assertRaisesRegex(ValueError, '0 to 9'):
      run(np.array([0, 10]))
    with self.assertRaisesRegex(TypeError, 'float64|float32'):
      run(np.zeros(2))
    with self.assertRaisesRegex(ValueError, 'upsample'):
      run(None, upsample='area')
    with self.assertRaisesRegex(ValueError, 'no classes'):
      run(None, config.replace(num_classes=0))


if __name__ == '__main__':
  absltest.main()
