"""Tests of studies: from recordings and matrices to nodes and modules."""

import numpy as np
import scipy.ndimage
from absl.testing import absltest, parameterized

from jaxpapers.kcore import correlation, glm, study
from tests.helpers import goldens

_TR = 2.0
_SCANS = 80


def make_runs(number=2, other=False):
  """Two cubes of active voxels in a volume of noise; the second state in one.

  Returns:
    Runs, coordinates, and the voxels of the two cubes.
  """
  volume = np.zeros((10, 5, 4), bool)
  volume[1:4, 1:4, 1:3] = True
  volume[6:9, 1:4, 1:3] = True
  coords = np.argwhere(np.ones_like(volume))
  inside = volume[tuple(coords.T)]
  left = inside & (coords[:, 0] < 5)
  stimulus = (np.arange(_SCANS) // 8 % 2).astype(float)
  second = stimulus * (np.arange(_SCANS) < 40)
  runs = []
  for r in range(number):
    noise = goldens.normal(f'kcore/study{r}', (len(coords), _SCANS))
    shared = goldens.normal(f'kcore/study_shared{r}', (2, _SCANS))
    first = glm.design_matrix(stimulus - second, _TR)[:, 0]
    response = glm.design_matrix(second, _TR)[:, 0]
    series = 0.15 * noise + np.outer(inside, first) + np.outer(left, response)
    series += 0.15 * inside[:, None] * shared[np.where(left, 0, 1)]
    runs.append(
      study.Run(f'run {r}', series, stimulus, second if other else None)
    )
  return runs, coords, inside, left


class BoldStudyTest(parameterized.TestCase):
  def test_finds_the_planted_cubes(self):
    runs, coords, inside, left = make_runs()
    made = study.bold_study(runs, coords, _TR, p=1e-6)
    self.assertLen(made.corr, 2)
    self.assertEqual(made.names, ['run 0', 'run 1'])
    np.testing.assert_array_equal(made.coords, coords[inside])
    np.testing.assert_array_equal(made.module, np.where(left[inside], 0, 1))
    residual = glm.residual_series(
      runs[0].series[inside], glm.nuisance_columns(_SCANS, _TR)
    )
    np.testing.assert_allclose(made.corr[0], np.corrcoef(residual), atol=1e-12)
    self.assertIsNone(made.other)

  @parameterized.parameters((None,), (1.0,))
  def test_second_state(self, fraction):
    runs, coords, inside, left = make_runs(other=True)
    made = study.bold_study(
      runs, coords, _TR, p=1e-6, p_other=1e-4, fraction=fraction
    )
    # Where the second stimulus is part of the first one, its own effect.
    np.testing.assert_array_equal(made.other, left[inside])

  def test_affine_and_atlas(self):
    runs, coords, inside, _ = make_runs(1)
    labels = np.where(coords[:, 1] < 2, 3, 8)
    affine = np.array(
      [[2, 0, 0, -1], [0, 3, 0, 0], [0, 0, 4, 5], [0, 0, 0, 1.0]]
    )
    made = study.bold_study(
      runs,
      coords,
      _TR,
      affine=affine,
      labels=labels,
      label_names={8: 'front'},
    )
    self.assertEqual(made.module_names, ['region 3', 'front'])
    np.testing.assert_array_equal(
      made.module, np.where(coords[inside][:, 1] < 2, 0, 1)
    )
    np.testing.assert_array_equal(
      made.coords, coords[inside] * [2.0, 3.0, 4.0] + [-1, 0, 5]
    )

  def test_modules_are_scipys_clusters(self):
    runs, coords, _, _ = make_runs()
    made = study.bold_study(runs, coords, _TR, p=0.01, min_size=1)
    volume = np.zeros((10, 5, 4), bool)
    volume[tuple(made.coords.astype(int).T)] = True
    labels, count = scipy.ndimage.label(volume, np.ones((3, 3, 3)))
    self.assertLen(made.module_names, count)
    np.testing.assert_array_equal(
      labels[tuple(made.coords.astype(int).T)] - 1, made.module
    )

  def test_drops_constant_voxels_with_their_labels(self):
    runs, coords, inside, left = make_runs(2)
    gone = np.flatnonzero(inside)[[0, -1]]
    runs[0].series[gone[0]] = 1000.1
    runs[1].series[gone[1], 3] = np.nan
    labels = np.where(left, 1, 2)
    with self.assertWarnsRegex(UserWarning, 'dropped 2 of 200 voxels'):
      made = study.bold_study(runs, coords, _TR, labels=labels)
    kept = inside.copy()
    kept[gone] = False
    np.testing.assert_array_equal(made.coords, coords[kept])
    np.testing.assert_array_equal(made.module, np.where(left[kept], 0, 1))
    self.assertEqual(made.corr[0].shape, (34, 34))
    dead = [run._replace(series=np.ones((200, _SCANS))) for run in runs]
    with self.assertRaisesRegex(ValueError, 'all 200 voxels'):
      study.bold_study(dead, coords, _TR)
    with self.assertRaisesRegex(ValueError, 'labels has shape'):
      study.bold_study(runs, coords, _TR, labels=labels[1:])

  def test_refuses(self):
    runs, coords, _, _ = make_runs(1)
    with self.assertRaisesRegex(ValueError, 'runs is empty'):
      study.bold_study([], coords, _TR)
    with self.assertRaisesRegex(ValueError, 'one row per voxel'):
      study.bold_study(runs, coords[:-1], _TR)
    with self.assertRaisesRegex(ValueError, 'needs two|two or more'):
      study.bold_study(runs, coords, _TR, min_size=30)
    silent = runs[0]._replace(stimulus=np.zeros(_SCANS))
    with self.assertRaisesRegex(ValueError, 'stimulus is zero'):
      study.bold_study([silent], coords, _TR)
    uneven = runs[0]._replace(other=np.zeros(3))
    with self.assertRaisesRegex(ValueError, 'same number'):
      study.bold_study([uneven], coords, _TR)


class OtherStudiesTest(parameterized.TestCase):
  def test_upper_triangle(self):
    corr = np.corrcoef(goldens.normal('kcore/matrix', (6, 20)))
    corr = np.triu(corr, 1) + np.triu(corr, 1).T + np.eye(6)
    module = [0, 0, 0, 1, 1, 1]
    upper = study.matrix_study(corr[np.triu_indices(6, 1)], module)
    square = study.matrix_study(corr, module)
    np.testing.assert_array_equal(upper.corr[0], square.corr[0])

  def test_single_precision_stays(self):
    # quantize_levels rounds by the type: 0.29 is on a grid of 0.01.
    upper = np.array([0.29, 0.28, 0.27])
    made = study.matrix_study(upper.astype(np.float32), [0, 0, 1])
    _, values = correlation.quantize_levels(made.corr[0], 0.01)
    np.testing.assert_allclose(values, upper[::-1], atol=1e-15)

  def test_matrix_refuses(self):
    with self.assertRaisesRegex(ValueError, 'corr has 4 entries'):
      study.matrix_study(np.ones(4), [0, 1, 1])
    with self.assertRaisesRegex(ValueError, 'module has shape'):
      study.matrix_study(np.eye(3), [0, 1])
    with self.assertRaisesRegex(ValueError, 'coords has shape'):
      study.matrix_study(np.eye(3), [0, 1, 1], coords=np.ones((3, 2)))

  def test_synthetic(self):
    made = study.synthetic_study(1, seed=3)
    self.assertEqual(made.names, ['stream 3'])
    self.assertEqual(made.corr[0].shape, (610, 610))
    np.testing.assert_array_equal(made.corr[0], made.corr[0].T)
    with self.assertRaisesRegex(ValueError, 'num_streams is 0'):
      study.synthetic_study(0)


if __name__ == '__main__':
  absltest.main()
