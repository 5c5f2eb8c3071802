import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.osnet import scale_probe
from jaxpapers.osnet.config import OSNetConfig
from jaxpapers.osnet.layers import LiteConv3x3


class TexturesTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    images, signs = scale_probe.make_textures(jax.random.key(0), 4000)
    cls.images, cls.signs = np.asarray(images[..., 0]), np.asarray(signs)

  def test_white_but_for_the_lags(self):
    self.assertAlmostEqual(self.images.var(), 1.0, delta=0.01)
    self.assertAlmostEqual(self.signs.mean(), 0.5, delta=0.02)
    for lag in range(1, 12):
      product = self.images[:, :, lag:] * self.images[:, :, :-lag]
      each = product.mean((1, 2))
      if lag in scale_probe.LAGS:
        sign = self.signs[:, scale_probe.LAGS.index(lag)]
        # One of four textures, and half of its variance: 1 / 8.
        for value in (0, 1):
          mean = each[sign == value].mean()
          self.assertAlmostEqual(mean, (2 * value - 1) / 8, delta=0.01)
      else:
        self.assertAlmostEqual(each.mean(), 0.0, delta=0.005)
    down = (self.images[:, 2:] * self.images[:, :-2]).mean()
    self.assertAlmostEqual(down, 0.0, delta=0.005)

  def test_a_window_as_wide_as_a_lag_sees_nothing(self):
    # Second moments within 4 columns do not depend on the sign of lag 4, and
    # the noise is Gaussian: there is nothing else.
    sign = self.signs[:, scale_probe.LAGS.index(4)] > 0
    windows = self.images[:, :, :20].reshape(len(self.images), -1, 4)

    def moments(chosen):
      return np.einsum('nwi,nwj->ij', chosen, chosen) / chosen[..., 0].size

    gap = moments(windows[sign]) - moments(windows[~sign])
    self.assertLess(np.abs(gap).max(), 0.02)


class StreamsTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3, 4)
  def test_receptive_field(self, depth):
    # What one output pixel depends on: exactly (2 t + 1)^2 pixels.
    x = jnp.asarray(
      np.random.default_rng(depth).uniform(0.5, 1, (1, 13, 13, 2))
    )
    layers = [LiteConv3x3(2, OSNetConfig()) for _ in range(depth)]

    def middle(x, variables):
      for layer, own in zip(layers, variables, strict=True):
        x = layer.apply(own, x, False)
      return x[0, 6, 6].sum()

    variables, y = [], x
    for number, layer in enumerate(layers):
      y, own = layer.init_with_output(jax.random.key(number), y, False)
      # Positive kernels: no ReLU is off, and nothing cancels.
      own = {**own, 'params': jax.tree.map(abs, own['params'])}
      y = layer.apply(own, y, False)
      variables.append(own)
    touched = np.asarray(jax.grad(middle)(x, variables))[0].any(-1)
    expected = np.zeros((13, 13), bool)
    expected[6 - depth : 7 + depth, 6 - depth : 7 + depth] = True
    np.testing.assert_array_equal(touched, expected)


class ProbeTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_few_steps(self):
    cfg = OSNetConfig(streams=(1,))
    options = {'steps': 4, 'batch': 8, 'size': 12, 'test_images': 8}
    both = scale_probe.run_probe(cfg, (3, 4), **options)
    self.assertEqual(both.accuracy.shape, (2, 4))
    self.assertEqual(both.losses.shape, (2, 4))
    self.assertTrue(np.isfinite(both.losses).all())
    again = scale_probe.run_probe(cfg, (4, 3), **options)
    np.testing.assert_allclose(both.losses[0], again.losses[1], rtol=1e-5)
    self.assertGreater(abs(both.losses[0] - both.losses[1]).max(), 1e-4)

  @parameterized.parameters(
    # Seed, steps, least and most accuracies in percent, of lags 2 4 6 8.
    ('T1', 0, 500, (97, 0, 0, 0), (100, 55, 55, 55)),
    ('T2', 0, 500, (97, 75, 0, 0), (100, 100, 55, 55)),
    ('T4', 0, 1000, (97, 97, 85, 0), (100, 100, 100, 100)),
    ('T4', 1, 1000, (97, 97, 85, 0), (100, 100, 100, 100)),
    ('T4', 2, 1000, (97, 97, 85, 0), (100, 100, 100, 100)),
    ('equal', 0, 500, (97, 0, 0, 0), (100, 55, 55, 55)),
    ('single', 1, 500, (97, 97, 85, 0), (100, 100, 100, 100)),
  )
  @pytest.mark.nightly
  def test_scales_that_a_block_sees(self, name, seed, steps, least, most):
    # Chance is 50 +- 1.1 % with 2000 images. T4 is in the middle of learning
    # lag 6 after 500 steps, with torch's blocks too: 59, 88 and 63 % with seeds
    # 0, 1 and 2; after 700 it was 90, 98 and 98 %.
    cfg = OSNetConfig(**scale_probe.VARIANTS[name])
    result = scale_probe.run_probe(cfg, (seed,), steps=steps)
    accuracy = 100 * np.asarray(result.accuracy[0])
    for lag, found, low, high in zip(
      scale_probe.LAGS, accuracy, least, most, strict=True
    ):
      self.assertBetween(found, low, high, f'{name}, lag {lag}')


if __name__ == '__main__':
  absltest.main()
