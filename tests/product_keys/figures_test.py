"""Pictures hold what they were given, and refuse what they cannot draw."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxpapers.product_keys import figures, usage


def lines(ax):
  """Label -> heights of the lines of a panel."""
  return {
    line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.lines
  }


class FiguresTest(absltest.TestCase):
  def test_usage(self):
    state = usage.memory_usage_init(16, heads=2)
    # The first head reads slots 0 and 1, the second slot 5 only.
    ids = jnp.array([[0, 1, 5, 5], [0, 0, 5, 5]])
    weights = jnp.array([[0.75, 0.25, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])
    state = usage.memory_usage_update(state, ids, weights)
    figure = figures.usage_panels({'layer': state})
    left, middle, right = figure.axes[:3]
    found = lines(left)
    np.testing.assert_allclose(found['head 0'], [0.875, 0.125])
    np.testing.assert_allclose(found['head 1'], [1.0])
    np.testing.assert_allclose(found['all heads'], [0.5, 0.4375, 0.0625])
    self.assertIn('usage 18.8%', left.get_title())
    heights = [bar.get_height() for bar in middle.patches]
    np.testing.assert_allclose(heights, [12.5, 6.25])
    shown = right.images[0].get_array()
    self.assertEqual(shown.shape, (4, 4))
    np.testing.assert_allclose(shown[1, 1], np.log10(0.5), rtol=1e-6)
    self.assertTrue(np.ma.is_masked(shown[3, 3]))

  def test_many_slots_are_shown_in_blocks(self):
    side = 300
    ids = jnp.arange(side * side)[None]
    state = usage.memory_usage_update(
      usage.memory_usage_init(side * side), ids, jnp.ones(ids.shape)
    )
    shown = figures.usage_panels({'layer': state}).axes[2].images[0].get_array()
    self.assertEqual(shown.shape, (150, 150))
    np.testing.assert_allclose(10.0**shown, 4 / side**2, rtol=1e-5)

  def test_slots_that_are_no_pairs_have_no_map(self):
    state = usage.memory_usage_update(
      usage.memory_usage_init(5), jnp.array([[0, 3]]), jnp.ones((1, 2))
    )
    figure = figures.usage_panels({'flat': state})
    self.assertFalse(figure.axes[2].axison)

  def test_curves(self):
    figure = figures.scaling(
      {'flat': ([4, 16], [1.0, 4.0]), 'product': ([4, 16], [1.0, 2.0])},
      levels={'dense': 3.0},
    )
    found = lines(figure.axes[0])
    np.testing.assert_array_equal(found['flat'], [1, 4])
    np.testing.assert_array_equal(found['product'], [1, 2])
    figure = figures.capacity_curve(
      {'memory': {4: [0.1, 0.3], 16: [0.5]}},
      levels={'dense': [0.2, 0.4]},
      ylabel='accuracy',
    )
    means = figure.axes[0].containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(np.asarray(means, float), [0.2, 0.5])
    np.testing.assert_allclose(lines(figure.axes[0])['dense'], [0.3, 0.3])
    figure = figures.loss_curves({'a': ([1, 2], [3.0, 2.0])})
    np.testing.assert_array_equal(lines(figure.axes[0])['a'], [3, 2])

  def test_bad_input(self):
    for function, arguments, words in (
      (figures.usage_panels, ({},), 'memories is empty'),
      (figures.scaling, ({},), 'curves is empty'),
      (figures.scaling, ({'a': ([1], [])},), '1 slots and 0 costs'),
      (figures.loss_curves, ({},), 'runs is empty'),
    ):
      with self.assertRaisesRegex(ValueError, words):
        function(*arguments)
    with self.assertRaisesRegex(ValueError, 'memories is empty'):
      figures.capacity_curve({}, ylabel='')


if __name__ == '__main__':
  absltest.main()
