"""Tests of pictures of hidden units."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxpapers.layca import features


class FeaturesTest(absltest.TestCase):
  def test_columns_become_images(self):
    kernel = np.random.default_rng(0).normal(size=(6 * 4, 9))
    images = features.incoming_images(kernel, (2, 7), (6, 4))
    self.assertEqual(images.shape, (2, 6, 4))
    for image, unit in zip(images, (2, 7)):
      for row in range(6):
        np.testing.assert_allclose(
          image[row], kernel[4 * row : 4 * row + 4, unit], rtol=1e-6
        )

  def test_correlation_of_neighbours(self):
    noise = np.random.default_rng(0).normal(size=(20, 28, 28))
    # Standard error of one correlation of 756 pairs is .036, of 40 .006.
    self.assertLess(abs(features.neighbour_correlation(noise).mean()), 0.025)
    smooth = sum(
      np.roll(noise, (i, j), (-2, -1)) for i in range(5) for j in range(5)
    )
    # A moving average over 5 has a correlation of 4/5 at distance 1.
    self.assertAlmostEqual(
      float(features.neighbour_correlation(smooth).mean()), 0.8, delta=0.03
    )
    image = noise[0]
    rows = np.corrcoef(image[1:].ravel(), image[:-1].ravel())[0, 1]
    columns = np.corrcoef(image[:, 1:].ravel(), image[:, :-1].ravel())[0, 1]
    np.testing.assert_allclose(
      features.neighbour_correlation(image), (rows + columns) / 2, atol=1e-6
    )
    np.testing.assert_array_equal(
      features.neighbour_correlation(jnp.ones((4, 4))), 0
    )

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, r'expected \(28 \* 28, units\)'):
      features.incoming_images(jnp.zeros((100, 10)))
    with self.assertRaisesRegex(ValueError, 'expected numbers from 0 to 8'):
      features.incoming_images(jnp.zeros((784, 9)))


if __name__ == '__main__':
  absltest.main()
