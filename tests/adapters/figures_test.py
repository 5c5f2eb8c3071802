"""The pictures: what is drawn where."""

import numpy as np
from absl.testing import absltest

from jaxpapers import adapters
from jaxpapers.adapters import figures


class FiguresTest(absltest.TestCase):
  def test_trade_off(self):
    figure = figures.trade_off(
      {
        'adapter': [(900, -0.03, -0.02, 0.0), (100, -0.1, -0.05, -0.01)],
        'head': [(50, -0.3, -0.2, -0.1)],
      }
    )
    (axes,) = figure.axes
    self.assertEqual(axes.get_xscale(), 'log')
    curve = axes.lines[0]
    # From few to many parameters, whatever order they came in.
    self.assertEqual(curve.get_xdata().tolist(), [100, 900])
    self.assertEqual(curve.get_ydata().tolist(), [-0.05, -0.02])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    self.assertEqual(labels, ['adapters', 'head only'])

  def test_removal_map(self):
    changes = np.array([[-0.01, -0.2], [np.nan, -0.05]])
    figure = figures.removal_map(changes, 'spam')
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    self.assertTrue(shown.mask[1, 0])
    np.testing.assert_allclose(shown.compressed(), [-1, -20, -5])
    texts = sorted(text.get_text() for text in axes.texts)
    self.assertEqual(texts, ['-1.0', '-20.0', '-5.0'])
    self.assertEqual(axes.get_title(), 'spam')

  def test_scales(self):
    scores = np.array([[0.8, 0.9], [0.7, np.nan]])
    figure = figures.scale_curves({'spam': ([1e-3, 1.0], scores)}, 'std')
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), [0.85, 0.7])


class SpanGatesTest(absltest.TestCase):
  def test_every_span_once(self):
    spans, gates = adapters.span_gates(4)
    self.assertLen(spans, 10)
    for (i, j), gate in zip(spans, gates):
      self.assertEqual(
        gate.tolist(), [float(not i <= k <= j) for k in range(4)]
      )

  def test_trees_and_integers(self):
    table = adapters.ablate_spans(
      lambda gates: {'n': gates.astype(int).sum(), 'x': gates[0]}, 2, sites=1
    )
    self.assertEqual(table['n'].tolist(), [[1, 0], [0, 1]])
    self.assertEqual(table['x'].shape, (2, 2, 1))

  def test_bad_arguments(self):
    for options in ({'sites': 0}, {'batch_size': -1}):
      with self.assertRaisesRegex(ValueError, 'expected 1 or more'):
        adapters.ablate_spans(lambda gates: gates.sum(), 2, **options)
    with self.assertRaisesRegex(ValueError, 'num_layers is 0'):
      adapters.span_gates(0)


if __name__ == '__main__':
  absltest.main()
