"""Tests of the first-level activation maps."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.kcore import glm, io
from tests.helpers import data, goldens

_TR = 2.5


def _noise(voxels=6, scans=121):
  design = glm.design_matrix(np.arange(scans) // 9 % 2, _TR)
  series = goldens.normal('kcore/glm', (voxels, scans))
  return series + np.outer(np.arange(voxels), design[:, 0]), design


class DesignTest(parameterized.TestCase):
  def test_golden_columns(self):
    golden = goldens.load_npz('kcore', 'glm_haxby_run0.npz')['design']
    # The nuisance columns do not depend on the stimulus.
    np.testing.assert_allclose(
      glm.nuisance_columns(121, _TR), golden[:, 1:], atol=1e-14
    )

  def test_drifts_are_orthonormal(self):
    columns = glm.nuisance_columns(200, 2.0)
    self.assertEqual(columns.shape, (200, 1 + 6))
    cosines = columns[:, 1:]
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(columns[:, 0] @ cosines, 0, atol=1e-12)

  def test_response_is_a_causal_convolution(self):
    # An impulse at scan 4 gives the response itself, summed over one scan.
    stimulus = np.zeros(40)
    stimulus[4] = 1
    response = glm.design_matrix(stimulus, 2.0)[:, 0]
    fine = glm.canonical_hrf(2.0 / 25)
    expected = np.zeros(40)
    for scan in range(4, 40):
      lag = 25 * (scan - 4) - np.arange(25)
      lag = lag[(lag >= 0) & (lag < fine.size)]
      expected[scan] = fine[lag].sum()
    np.testing.assert_allclose(response, expected, atol=1e-15)

  def test_hrf(self):
    hrf = glm.canonical_hrf(0.1)
    self.assertLen(hrf, 320)
    self.assertAlmostEqual(hrf.sum(), 1.0, places=12)
    self.assertAlmostEqual(np.argmax(hrf) * 0.1, 5.0, delta=0.11)
    # The undershoot comes some ten seconds after the peak.
    self.assertAlmostEqual(np.argmin(hrf) * 0.1, 15.7, delta=0.5)
    self.assertLess(hrf.min(), 0)

  def test_events_equal_labels(self):
    box = np.repeat([0.0, 1.0, 0.0], [4, 3, 5])
    fine = glm.event_boxcar([4 * 2.4], [3 * 2.4], 12, 2.4)
    np.testing.assert_array_equal(fine, np.repeat(box, 25))
    np.testing.assert_array_equal(
      glm.design_matrix(fine, 2.4, num_scans=12), glm.design_matrix(box, 2.4)
    )

  def test_impulse_event(self):
    self.assertEqual(glm.event_boxcar([1.0], [0.0], 3, 2.0).sum(), 1)

  def test_pooled(self):
    designs = [glm.design_matrix(np.arange(t) % 2, 2.0) for t in (70, 100)]
    pooled = glm.pooled_design(designs)
    self.assertEqual(pooled.shape, (170, 1 + 3 + 4))
    np.testing.assert_array_equal(pooled[:70, 1:4], designs[0][:, 1:])
    np.testing.assert_array_equal(pooled[70:, 4:], designs[1][:, 1:])
    self.assertFalse(pooled[:70, 4:].any() or pooled[70:, 1:4].any())

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'dt is'):
      glm.canonical_hrf(0.0)
    with self.assertRaisesRegex(ValueError, 'stimulus'):
      glm.design_matrix([0.0, np.nan], 2.0)
    with self.assertRaisesRegex(ValueError, 'tr is'):
      glm.design_matrix(np.ones(9), -1.0)
    with self.assertRaisesRegex(ValueError, 'num_scans'):
      glm.design_matrix(np.ones(9), 2.0, num_scans=4)
    with self.assertRaisesRegex(ValueError, 'designs is empty'):
      glm.pooled_design([])
    with self.assertRaisesRegex(ValueError, 'duration'):
      glm.event_boxcar([0.0], [-1.0], 3, 2.0)
    with self.assertRaisesRegex(ValueError, 'onset has shape'):
      glm.event_boxcar([0.0], [1.0, 2.0], 3, 2.0)


class TMapTest(parameterized.TestCase):
  def test_against_normal_equations(self):
    series, design = _noise()
    inverse = np.linalg.inv(design.T @ design)
    beta = series @ design @ inverse
    square = ((series - beta @ design.T) ** 2).sum(1) / (121 - 6)
    expected = beta[:, 0] / np.sqrt(square * inverse[0, 0])
    with jax.enable_x64(True):
      t, dof = glm.glm_tmap(series, design)
      self.assertEqual((t.dtype, int(dof)), (jnp.float64, 115))
      np.testing.assert_allclose(t, expected, rtol=1e-10)
    single, _ = glm.glm_tmap(series, design)
    self.assertEqual(single.dtype, jnp.float32)
    np.testing.assert_allclose(single, expected, atol=1e-3)

  @parameterized.parameters(False, True)
  def test_constant_voxels_are_not_active(self, x64):
    _, design = _noise()
    values = np.array([7.0, 0.0, 1000.1, -3.3e-5, 812.7, 1e4 / 3])
    series = np.repeat(values[:, None], 121, axis=1)
    # A small fluctuation over a large baseline still counts.
    series = np.concatenate([series, 1000 + _noise(3)[0][2:]])
    with jax.enable_x64(x64):
      t, _ = glm.glm_tmap(series, design)
    np.testing.assert_array_equal(t[:-1], 0)
    self.assertGreater(t[-1], 3)

  @parameterized.parameters((0, 1e-6), (1, 1e5), (2, 1e-5))
  def test_scale_of_a_column_in_float32(self, column, scale):
    series, design = _noise()
    expected, _ = glm.glm_tmap(series, design)
    design[:, column] *= scale
    t, dof = glm.glm_tmap(series, design)
    self.assertEqual(int(dof), 115)
    np.testing.assert_allclose(t, expected, atol=1e-3)

  def test_large_baseline_in_float32(self):
    # Raw scans sit at thousands, their changes are of order one: the residual
    # keeps three digits only because it is projected twice.
    series, design = _noise()
    with jax.enable_x64(True):
      expected, _ = glm.glm_tmap(series, design)
      expected = np.asarray(expected)
    t, _ = glm.glm_tmap(np.float32(series) + np.float32(2000), design)
    # Storing 2000 + x in float32 already moves x by 6e-5.
    np.testing.assert_allclose(t, expected, atol=5e-3)

  def test_rank_deficient_design(self):
    series, design = _noise()
    doubled = np.column_stack([design, design[:, 1]])
    with jax.enable_x64(True):
      expected, dof = glm.glm_tmap(series, design)
      t, same = glm.glm_tmap(series, doubled)
      np.testing.assert_allclose(t, expected, rtol=1e-9)
      self.assertEqual(int(dof), int(same))

  def test_contrast_and_batches(self):
    series, design = _noise()
    contrast = np.eye(6)[1]
    with jax.enable_x64(True):
      flipped, _ = glm.glm_tmap(series, design[:, [1, 0, 2, 3, 4, 5]])
      t, _ = glm.glm_tmap(series, design, contrast)
      np.testing.assert_allclose(t, flipped, rtol=1e-9)
      batch, _ = jax.jit(glm.glm_tmap)(series.reshape(2, 3, 121), design)
      mapped, _ = jax.vmap(lambda s: glm.glm_tmap(s, design))(series[:, None])
      plain, _ = glm.glm_tmap(series, design)
      np.testing.assert_allclose(batch.ravel(), plain, rtol=1e-10)
      np.testing.assert_allclose(mapped.ravel(), plain, rtol=1e-10)

  def test_constant_voxel_is_not_active(self):
    _, design = _noise()
    t, dof = glm.glm_tmap(np.zeros((1, 121)), design)
    self.assertEqual(float(t[0]), 0.0)
    self.assertFalse(bool(glm.active_voxels(t, int(dof), 0.01)[0]))

  def test_residual_series(self):
    series, design = _noise()
    residual = glm.residual_series(series, design[:, 1:])
    np.testing.assert_allclose(residual @ design[:, 1:], 0, atol=1e-9)
    again = glm.residual_series(residual, design[:, 1:])
    np.testing.assert_allclose(again, residual, atol=1e-12)

  def test_refuses(self):
    series, design = _noise()
    with self.assertRaisesRegex(ValueError, 'series has shape'):
      glm.glm_tmap(series[:, :-1], design)
    with self.assertRaisesRegex(ValueError, 'more scans'):
      glm.glm_tmap(series[:, :6], design[:6])
    with self.assertRaisesRegex(ValueError, 'contrast'):
      glm.glm_tmap(series, design, np.ones(3))
    with self.assertRaisesRegex(ValueError, 'p is 0'):
      glm.active_voxels(np.ones(3), 10, 0.0)
    with self.assertRaisesRegex(ValueError, 'dof is 0'):
      glm.active_voxels(np.ones(3), 0, 0.1)
    with self.assertRaisesRegex(ValueError, 'nuisance'):
      glm.residual_series(series, design[:3])

  def test_golden_haxby(self):
    folder = data.require('kcore', 'haxby_slice')
    golden = goldens.load_npz('kcore', 'glm_haxby_run0.npz')
    bold = io.load_bold(folder / 'bold.nii.gz', folder / 'mask.nii.gz')
    self.assertEqual((bold.series.shape, bold.tr), ((530, 1452), _TR))
    lines = (folder / 'attributes_literal.txt').read_text().split('\n')[:121]
    stimulus = np.array([not line.startswith('rest') for line in lines])
    design = glm.design_matrix(stimulus, _TR)
    np.testing.assert_allclose(design, golden['design'], atol=1e-14)
    series = bold.series[:, :121]
    with jax.enable_x64(True):
      t, dof = glm.glm_tmap(series, design)
      self.assertEqual(int(dof), int(golden['dof']))
      np.testing.assert_allclose(t, golden['t_nilearn'], rtol=0, atol=1e-6)
      active = glm.active_voxels(t, int(dof), 0.01)
      np.testing.assert_array_equal(active, golden['active_p01'])
    single, _ = glm.glm_tmap(series, design)
    np.testing.assert_allclose(single, golden['t_nilearn'], rtol=0, atol=1e-3)


if __name__ == '__main__':
  absltest.main()
