"""Tests of correlation matrices and their levels."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import kcore
from tests.kcore import samples


def series(seed=0, shape=(12, 30)):
  return np.random.default_rng(seed).standard_normal(shape)


class CorrelationMatrixTest(absltest.TestCase):
  def test_is_numpys_upper_triangle_mirrored(self):
    x = series()
    corr = kcore.correlation_matrix(x)
    self.assertEqual(corr.dtype, np.float64)
    upper = np.triu_indices(12, 1)
    np.testing.assert_array_equal(corr[upper], np.corrcoef(x)[upper])
    np.testing.assert_array_equal(corr, corr.T)
    np.testing.assert_array_equal(np.diagonal(corr), 1.0)

  def test_golden(self):
    golden = samples.load('percolation.npz')
    corr = kcore.correlation_matrix(golden['small/X'])
    off = ~np.eye(52, dtype=bool)
    # Of one formula, but another linear algebra library may round otherwise.
    np.testing.assert_allclose(
      corr[off], golden['small/C'][off], rtol=0, atol=1e-14
    )

  def test_on_the_device(self):
    x = series()
    expected = kcore.correlation_matrix(x)
    single = kcore.correlation_matrix(x.astype(np.float32), device=True)
    self.assertEqual(single.dtype, jnp.float32)
    np.testing.assert_array_equal(single, single.T)
    np.testing.assert_allclose(single, expected, atol=2e-6)  # float32
    with jax.enable_x64(True):
      double = jax.jit(kcore.correlation_matrix)(x)
      np.testing.assert_allclose(double, expected, atol=1e-14)
      batch = jax.vmap(kcore.correlation_matrix)(np.stack([x, -x, x**3]))
      np.testing.assert_allclose(batch[0], batch[1], atol=1e-14)
      np.testing.assert_allclose(
        batch[2], kcore.correlation_matrix(x**3), atol=1e-14
      )

  def test_gradient_with_a_constant_series(self):
    x = series(1, (3, 8))
    x[1] = 2.0
    with jax.enable_x64(True):
      corr = jax.jit(kcore.correlation_matrix)(x)
      np.testing.assert_array_equal(corr[1], [0, 1, 0])

      def value(x):
        return jax.jit(kcore.correlation_matrix)(x)[0, 2]

      gradient = jax.jit(jax.grad(value))(x)
      self.assertTrue(np.isfinite(gradient).all())
      bumped = x.copy()
      bumped[0, 3] += 1e-6
      slope = (value(bumped) - value(x)) / 1e-6
      # Central would be 1e-9; one-sided differences are good to the step.
      self.assertAlmostEqual(gradient[0, 3], slope, delta=1e-5)

  def test_unusable_series_are_dropped_and_counted(self):
    x = series()
    x[2] = 3.0
    x[5, 7] = np.nan
    x[6, 1] = np.inf
    kept = kcore.usable_series(x)
    np.testing.assert_array_equal(np.flatnonzero(~kept), [2, 5, 6])
    with self.assertWarnsRegex(UserWarning, 'dropped 3 of 12'):
      corr = kcore.correlation_matrix(x)
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      np.testing.assert_array_equal(corr, kcore.correlation_matrix(x[kept]))

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, r'series has shape \(4,\)'):
      kcore.correlation_matrix(np.zeros(4))
    with self.assertRaisesRegex(ValueError, r'series has shape \(4, 1\)'):
      kcore.correlation_matrix(np.zeros((4, 1)))
    with self.assertRaisesRegex(ValueError, 'series: all 4 rows'):
      kcore.correlation_matrix(np.zeros((4, 9)))


class QuantizeLevelsTest(parameterized.TestCase):
  @parameterized.parameters(None, 0.01, 0.05, 0.005)
  def test_values_of_levels(self, step):
    corr = kcore.correlation_matrix(series())
    levels, values = kcore.quantize_levels(corr, step)
    self.assertEqual(levels.dtype, np.int32)
    self.assertEqual(values.dtype, np.float64)
    off = ~np.eye(12, dtype=bool)
    np.testing.assert_array_equal(np.diagonal(levels), -1)
    np.testing.assert_array_equal(levels, levels.T)
    self.assertTrue((np.diff(values) > 0).all())
    self.assertEqual(levels[off].min(), 0)
    self.assertEqual(levels[off].max(), len(values) - 1)
    found = values[levels[off]]
    if step is None:
      np.testing.assert_array_equal(found, corr[off])
    else:
      self.assertTrue((found <= corr[off] + 1e-9 * step).all())
      self.assertTrue((corr[off] < found + step).all())

  def test_numbers_on_the_grid_stay_there(self):
    # 0.29 / 0.01 is 28.999999999999996.
    for tick in range(-99, 100):
      corr = np.array([[1, tick / 100], [tick / 100, 1]])
      levels, values = kcore.quantize_levels(corr, 0.01)
      np.testing.assert_array_equal(levels[0, 1], 0)
      self.assertAlmostEqual(values[0], tick / 100, delta=1e-15)

  def test_single_precision_stays_on_the_grid(self):
    for tick in range(-99, 100):
      corr = np.array([[1, tick / 100], [tick / 100, 1]], np.float32)
      _, values = kcore.quantize_levels(corr, 0.01)
      self.assertAlmostEqual(values[0], tick / 100, delta=1e-15)
    # Half a tick is not one.
    _, values = kcore.quantize_levels(
      np.float32([[1, 0.295], [0.295, 1]]), 0.01
    )
    self.assertAlmostEqual(values[0], 0.29, delta=1e-15)

  def test_ties_share_a_level(self):
    corr = np.round(kcore.correlation_matrix(series()), 1)
    levels, values = kcore.quantize_levels(corr)
    self.assertLess(len(values), 21)
    same = corr[0, 1] == corr
    np.fill_diagonal(same, False)
    np.testing.assert_array_equal(levels[same], levels[0, 1])

  def test_bad_input(self):
    corr = kcore.correlation_matrix(series())
    lopsided = corr.copy()
    lopsided[3, 4] = np.nextafter(lopsided[3, 4], 2)
    hole = corr.copy()
    hole[3, 4] = hole[4, 3] = np.nan
    with self.assertRaisesRegex(ValueError, 'corr is not symmetric'):
      kcore.quantize_levels(lopsided)
    with self.assertRaisesRegex(ValueError, 'corr has 2 entries that are NaN'):
      kcore.quantize_levels(hole)
    with self.assertRaisesRegex(ValueError, 'step is 0'):
      kcore.quantize_levels(corr, 0)
    with self.assertRaisesRegex(ValueError, 'step is 1e-12'):
      kcore.quantize_levels(corr, 1e-12)


if __name__ == '__main__':
  absltest.main()
