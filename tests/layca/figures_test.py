"""Tests of what the figures show."""

import io

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.layca import figures


def png_size(figure):
  import PIL.Image

  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=50)
  with PIL.Image.open(buffer) as image:
    return image.size


class FiguresTest(parameterized.TestCase):
  def test_layers_from_dark_to_bright(self):
    epochs = np.arange(5)
    distances = np.linspace(0, 0.9, 5)[:, None] * np.array([1, 0.5, 0.2])
    panels = [(f'run {i}', epochs, distances) for i in range(3)]
    figure = figures.layer_rotation_panels(panels, columns=2)
    axes = figure.axes[:3]
    self.assertEqual([ax.get_title() for ax in axes], [p[0] for p in panels])
    lines = axes[0].lines
    self.assertLen(lines, 3)
    np.testing.assert_array_equal(lines[1].get_ydata(), distances[:, 1])
    brightness = [sum(line.get_color()[:3]) for line in lines]
    self.assertEqual(brightness, sorted(brightness))
    # Two columns and two rows of panels.
    width, height = png_size(figure)
    self.assertBetween(width / height, 1.0, 2.0)

  def test_published_and_expected_curves(self):
    epochs = np.arange(4.0)
    figure = figures.rotation_by_setting(
      [('a', epochs, epochs / 4), ('b', epochs, epochs / 8)],
      reference={'a': epochs / 5},
      expected={'b': epochs / 9},
      title='rotation',
    )
    (ax,) = figure.axes
    drawn = {tuple(line.get_ydata()) for line in ax.lines}
    for values in (epochs / 4, epochs / 8, epochs / 5, epochs / 9):
      self.assertIn(tuple(values), drawn)
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    self.assertEqual(words, ['a', 'b', 'paper, digitised', 'random gradients'])

  def test_every_unit_has_its_own_scale(self):
    images = np.random.default_rng(0).normal(size=(2, 6, 6))
    images[1] *= 100
    figure = figures.feature_rows(
      [('before', images), ('after', images)], [3, 8]
    )
    self.assertLen(figure.axes, 4)
    for ax, image in zip(figure.axes, np.concatenate([images, images])):
      np.testing.assert_array_equal(ax.images[0].get_array(), image)
      self.assertEqual(ax.images[0].get_clim()[1], np.abs(image).max())
    self.assertEqual(figure.axes[1].get_title(), 'unit 8')
    self.assertEqual([t.get_text() for t in figure.texts], ['before', 'after'])

  def test_learning_curves_show_where_runs_end(self):
    run = {
      'epochs': np.arange(1, 5),
      'train_loss': np.array([2, 1, 0.5, 0.0]),
      'test_epochs': np.arange(1, 5),
      'test_accuracy': np.array([0.1, 0.5, 0.9, 0.95]),
    }
    other = {**run, 'test_accuracy': np.array([0.1, 0.4, 0.8, 0.9])}
    figure = figures.learning_curves([('one', run), ('two', other)])
    left, right = figure.axes
    self.assertEqual(left.get_yscale(), 'log')
    self.assertGreater(min(left.lines[0].get_ydata()), 0)
    low, high = right.get_ylim()
    self.assertBetween(low, 80, 90)
    self.assertBetween(high, 95, 101)

  def test_accuracy_over_a_setting(self):
    rates = 3.0 ** np.array([-3, -2])
    figure = figures.accuracy_by_setting(
      [('here', rates, [0.9, 0.8])],
      xlabel='rate',
      logarithmic=True,
      reference=('paper', rates, [0.5, 0.4]),
    )
    ours, theirs = figure.axes
    np.testing.assert_allclose(ours.lines[0].get_ydata(), [90, 80])
    np.testing.assert_allclose(theirs.lines[0].get_ydata(), [50, 40])
    self.assertEqual(ours.get_xscale(), 'log')

  def test_rotation_of_steps(self):
    tangents = np.abs(np.random.default_rng(0).normal(size=(250, 2)))
    figure = figures.step_rotation(np.arange(250) / 50, tangents)
    lines = figure.axes[0].lines
    self.assertLen(lines, 4)
    medians = np.median(tangents[:, 1].reshape(-1, 2), 1)
    np.testing.assert_allclose(lines[3].get_ydata(), medians)

  def test_nothing_to_draw(self):
    with self.assertRaisesRegex(ValueError, 'nothing to draw'):
      figures.layer_rotation_panels([])


if __name__ == '__main__':
  absltest.main()
