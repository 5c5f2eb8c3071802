"""GLUE's metrics against scikit-learn's and scipy's numbers."""

import math

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.roberta import metrics
from tests.helpers import goldens


def golden():
  return goldens.load_json('roberta', 'metrics.json')['glue']


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters(
    ('accuracy', 'pred', 'y', 'accuracy'),
    ('f1', 'pred', 'y', 'f1'),
    ('matthews', 'pred', 'y', 'mcc'),
    ('accuracy', 'pred3', 'y3', 'accuracy3'),
    ('f1_macro', 'pred3', 'y3', 'f1_macro3'),
    ('pearson', 'sts_pred', 'sts_gold', 'pearson'),
    ('spearman', 'sts_pred', 'sts_gold', 'spearman'),
  )
  def test_equal(self, name, predictions, labels, key):
    data = golden()
    got = metrics.compute((name,), data[predictions], data[labels])[name]
    self.assertAlmostEqual(got, data[key], delta=1e-9)

  def test_constant_predictions(self):
    data = golden()
    ones = np.ones(len(data['y']), int)
    expected = data['degenerate']
    self.assertEqual(
      metrics.matthews(ones, data['y']), expected['all_one_pred_mcc']
    )
    self.assertEqual(
      metrics.f1_binary(0 * ones, data['y']), expected['all_zero_pred_f1']
    )
    self.assertEqual(metrics.f1_binary([0, 0], [0, 0]), 0.0)
    for metric in (metrics.pearson, metrics.spearman):
      # The mean of many .1 is not .1: deviations would not be 0.
      self.assertTrue(math.isnan(metric([0.1] * 1000, range(1000))))

  def test_means_that_glue_averages(self):
    data = golden()
    both = ('accuracy', 'f1', 'accuracy_and_f1')
    got = metrics.compute(both, data['pred'], data['y'])
    mean = (data['accuracy'] + data['f1']) / 2
    self.assertAlmostEqual(got['accuracy_and_f1'], mean, delta=1e-9)
    with self.assertRaisesRegex(ValueError, "metric 'auc'; expected one of"):
      metrics.compute(('auc',), [1], [1])


class StreamingTest(absltest.TestCase):
  def test_counts_add_up(self):
    data = golden()
    parts = [
      metrics.Confusion.of(data['pred3'][i : i + 30], data['y3'][i : i + 30], 3)
      for i in range(0, 200, 30)
    ]
    total = sum(parts[1:], parts[0])
    self.assertEqual(total.accuracy, data['accuracy3'])
    self.assertEqual(
      total.matthews, metrics.matthews(data['pred3'], data['y3'])
    )

  def test_matthews_beyond_64_bits(self):
    # Products of the squares of such counts leave int64.
    counts = np.array([[3, 1], [1, 3]]) * 10**10
    self.assertAlmostEqual(metrics.Confusion(counts).matthews, 0.5)

  def test_moments_add_up_far_from_zero(self):
    rng = goldens.rng('moments')
    x = 1e9 + rng.standard_normal(999)
    y = -x + rng.standard_normal(999)
    total = metrics.Moments.of([], [])
    for part in range(0, 999, 100):
      rows = slice(part, part + 100)
      total = total + metrics.Moments.of(x[rows], y[rows])
    expected = np.corrcoef(x - 1e9, y + 1e9)[0, 1]
    # The inputs themselves are rounded to 1e-7 there.
    self.assertAlmostEqual(total.pearson, expected, delta=1e-6)


class PropertiesTest(absltest.TestCase):
  def test_monotone_transforms_keep_spearman(self):
    x, y = goldens.normal('x', (50,)), goldens.normal('y', (50,))
    x[10:20] = x[0]
    self.assertEqual(
      metrics.spearman(x, y), metrics.spearman(np.exp(3 * x), y**3)
    )
    self.assertAlmostEqual(metrics.spearman(x, -x), -1)

  def test_perfect_is_one(self):
    x = goldens.normal('perfect', (31,))
    self.assertEqual(metrics.matthews([0, 2, 1, 1, 0], [0, 2, 1, 1, 0]), 1.0)
    self.assertEqual(metrics.spearman(x, x**3), 1.0)
    for scale in (1e-200, 1.0, 1e150):
      self.assertAlmostEqual(metrics.pearson(x * scale, x * scale), 1.0)

  def test_multi_class_matthews_of_two_is_the_binary(self):
    rng = goldens.rng('classes')
    y, p = rng.integers(0, 2, (2, 100))
    tp, tn = (y & p).sum(), ((1 - y) & (1 - p)).sum()
    fp, fn = ((1 - y) & p).sum(), (y & (1 - p)).sum()
    binary = (tp * tn - fp * fn) / math.sqrt(
      float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    )
    self.assertAlmostEqual(metrics.matthews(p, y), binary)


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    (metrics.accuracy, [1], [1, 0], '1 predictions and 2 labels'),
    (metrics.accuracy, [0.5], [1], 'predictions are float64'),
    (metrics.accuracy, [], [], 'predictions are empty'),
    (metrics.matthews, [1], [-1], 'labels reach down to -1'),
    (metrics.f1_binary, [2], [1], 'two classes; there are 3'),
    (metrics.pearson, [1.0, math.nan], [1, 2], r'predictions\[1\] is nan'),
    (metrics.spearman, [[1.0]], [[1.0]], r'predictions are \[1, 1\]'),
  )
  def test_refused(self, metric, predictions, labels, message):
    with self.assertRaisesRegex(ValueError, message):
      metric(predictions, labels)

  def test_class_beyond_the_number(self):
    with self.assertRaisesRegex(ValueError, 'class 3 .* which is 2'):
      metrics.Confusion.of([3], [0], 3)


if __name__ == '__main__':
  absltest.main()
