"""Tests of spatial clusters."""

import numpy as np
from absl.testing import absltest, parameterized
from scipy import ndimage

from jaxpapers.kcore import clusters
from tests.helpers import goldens

_STRUCTURE = {
  6: ndimage.generate_binary_structure(3, 1),
  18: ndimage.generate_binary_structure(3, 2),
  26: ndimage.generate_binary_structure(3, 3),
}


class SpatialClustersTest(parameterized.TestCase):
  @parameterized.parameters((6, 221), (18, 79), (26, 41))
  def test_golden(self, connectivity, number):
    golden = goldens.load_npz('kcore', 'spatial_clusters.npz')
    volume = golden['vol']
    coords = np.argwhere(volume)
    label = clusters.spatial_clusters(coords, connectivity, 1)
    self.assertEqual(label.max() + 1, number)
    # Not only the partition: both number clusters by their first voxel.
    expected = golden[f'labels{connectivity}'][volume]
    np.testing.assert_array_equal(label + 1, expected)

  def test_order_of_voxels_does_not_matter(self):
    volume = goldens.load_npz('kcore', 'spatial_clusters.npz')['vol']
    coords = np.argwhere(volume)
    label = clusters.spatial_clusters(coords, 18, 3)
    order = np.random.default_rng(0).permutation(len(coords))
    # Far from the origin, and beyond it.
    moved = clusters.spatial_clusters(coords[order] - [50, -300, 7], 18, 3)
    np.testing.assert_array_equal(moved, label[order])

  def test_small_clusters_are_dropped(self):
    volume = goldens.load_npz('kcore', 'spatial_clusters.npz')['vol']
    coords = np.argwhere(volume)
    label = clusters.spatial_clusters(coords, 26, 6)
    expected, _ = ndimage.label(volume, _STRUCTURE[26])
    expected = expected[volume]
    large = np.bincount(expected)[expected] >= 6
    np.testing.assert_array_equal(label >= 0, large)
    self.assertEqual(
      np.unique(label[large]).tolist(), list(range(label.max() + 1))
    )

  def test_long_snake(self):
    # A cluster of large diameter, where labels have a long way to go.
    coords = []
    for y in range(0, 30, 2):
      row = [(x, y, 0) for x in range(30)]
      coords += row if y % 4 == 0 else row[::-1]
      coords.append((29 if y % 4 == 0 else 0, y + 1, 0))
    label = clusters.spatial_clusters(np.array(coords), 6, 1)
    self.assertEqual(np.unique(label).tolist(), [0])

  @parameterized.parameters(
    ([[0, 0, 0]], [0]),
    ([[0, 0, 0], [1, 0, 0]], [0, 0]),
    ([[0, 0, 0], [2, 0, 0]], [0, 1]),
  )
  def test_few_voxels(self, coords, expected):
    label = clusters.spatial_clusters(np.array(coords), min_size=1)
    self.assertEqual(label.tolist(), expected)

  def test_no_voxel(self):
    self.assertEmpty(clusters.spatial_clusters(np.zeros((0, 3), int)))

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'connectivity is 8'):
      clusters.spatial_clusters([[0, 0, 0]], 8)
    with self.assertRaisesRegex(ValueError, 'min_size'):
      clusters.spatial_clusters([[0, 0, 0]], min_size=0)
    with self.assertRaisesRegex(ValueError, 'coords has shape'):
      clusters.spatial_clusters([[0, 0]])
    with self.assertRaisesRegex(ValueError, 'no integers'):
      clusters.spatial_clusters([[0.5, 0, 0]])
    with self.assertRaisesRegex(ValueError, 'twice'):
      clusters.spatial_clusters([[0, 0, 0], [0, 0, 0]])


if __name__ == '__main__':
  absltest.main()
