"""Tests of the force-directed layout."""

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.kcore import layout


def _two_cliques(size=8):
  edges = [(i, j) for i in range(size) for j in range(i)]
  edges += [(i + size, j + size) for i, j in edges]
  # A chain that hangs on the first clique.
  edges += [(0, 2 * size), (2 * size, 2 * size + 1)]
  coreness = [size - 1] * (2 * size) + [1, 1]
  return np.array(edges), np.array(coreness)


class LayoutTest(parameterized.TestCase):
  def test_shells_are_nested_and_discs_keep_apart(self):
    edges, coreness = _two_cliques()
    place = layout.shell_layout(edges, coreness, steps=400)
    radius = np.linalg.norm(place, axis=1)
    # Rings: 16 of 18 nodes, then the last two; springs pull them in a little.
    inner = 1.1 * np.sqrt(18 / np.pi) * np.sqrt(16 / 18)
    self.assertLess(radius[coreness > 1].max(), inner + 0.4)
    self.assertGreater(radius[coreness == 1].min(), inner - 0.4)
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    self.assertGreater(distance.min(), 0.6)

  def test_links_pull(self):
    # Compared with the same nodes without links, neighbours come nearer.
    edges, coreness = _two_cliques()
    place = layout.shell_layout(edges, coreness, steps=400)
    free = layout.shell_layout(np.zeros((0, 2), int), coreness, steps=400)

    def length(x):
      return np.linalg.norm(x[edges[:, 0]] - x[edges[:, 1]], axis=1).mean()

    self.assertLess(length(place), 0.95 * length(free))

  def test_seeds(self):
    edges, coreness = _two_cliques(4)
    first, again, other = (
      layout.shell_layout(edges, coreness, steps=20, seed=s) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    self.assertFalse(np.allclose(first, other))

  def test_modules_become_sectors(self):
    module = np.repeat([0, 1, 2], 20)
    place = layout.shell_layout(
      np.zeros((0, 2), int), np.ones(60, int), module=module, steps=0
    )
    angle = np.arctan2(place[:, 1], place[:, 0]) % (2 * np.pi)
    np.testing.assert_array_equal(angle // (2 * np.pi / 3), module)

  def test_small_and_refused(self):
    self.assertEqual(layout.shell_layout([], []).shape, (0, 2))
    alone = layout.shell_layout([], [0], steps=3)
    self.assertTrue(np.isfinite(alone).all())
    with self.assertRaisesRegex(ValueError, 'edges go up to node 5'):
      layout.shell_layout([[0, 5]], [1, 1])
    with self.assertRaisesRegex(ValueError, 'module has shape'):
      layout.shell_layout([[0, 1]], [1, 1], module=[0])


if __name__ == '__main__':
  absltest.main()
