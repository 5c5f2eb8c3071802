"""Tests of verification, attributes, activation maps and pictures."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jaxpapers.osnet import attributes, metrics, verification, visualize
from tests.helpers import goldens


class VerificationTest(parameterized.TestCase):
  def test_golden(self):
    g = goldens.load_npz('osnet', 'rank.npz')
    found = verification.verification_roc(
      metrics.pairwise_distance(g['qf'], g['gf'], 'cosine'),
      g['q_pids'],
      g['g_pids'],
      g['q_camids'],
      g['g_camids'],
    )
    self.assertEqual(
      [found.num_positive, found.num_negative], g['roc/n_pos_neg'].tolist()
    )
    # float32 distances: a pair or two of 21 million change places.
    np.testing.assert_allclose(found.auc, g['roc/auc'], atol=1e-6)
    # Theirs is at a point of the curve, ours between two.
    np.testing.assert_allclose(found.eer, g['roc/eer'], atol=2e-3)
    np.testing.assert_allclose(
      found.eer_threshold, g['roc/eer_threshold'], atol=2e-3
    )
    rates = [verification.tpr_at_fpr(found, f) for f in (1e-3, 1e-2, 1e-1)]
    np.testing.assert_allclose(rates, g['roc/tpr_at_fpr'], atol=2e-3)

  @parameterized.parameters(0, 1)
  def test_equals_all_thresholds(self, seed):
    rng = np.random.default_rng(seed)
    dist = rng.integers(0, 12, (8, 20)).astype(np.float32)
    q_pids, g_pids = rng.integers(0, 4, 8), rng.integers(-1, 4, 20)
    q_cams, g_cams = rng.integers(0, 3, 8), rng.integers(0, 3, 20)
    found = verification.verification_roc(dist, q_pids, g_pids, q_cams, g_cams)
    same = q_pids[:, None] == g_pids
    junk = (g_pids == -1)[None] | (same & (q_cams[:, None] == g_cams))
    positive, negative = dist[same & ~junk], dist[~same & ~junk]
    # The area is the chance that a pair of the same person is nearer.
    pairs = positive[:, None] - negative
    self.assertAlmostEqual(
      found.auc, np.mean((pairs < 0) + 0.5 * (pairs == 0)), places=12
    )
    for level in range(-1, 13):
      at = np.flatnonzero(found.thresholds <= level)[-1]
      # Between corners only the false positive rate moves on.
      self.assertAlmostEqual(found.tpr[at], np.mean(positive <= level))
      self.assertLessEqual(found.fpr[at], np.mean(negative <= level) + 1e-12)
    for rate in (0, 0.1, 0.5, 1):
      limit = verification.threshold_at_fpr(found, rate)
      self.assertLessEqual(np.mean(negative <= limit), rate)
      self.assertAlmostEqual(
        np.mean(positive <= limit), verification.tpr_at_fpr(found, rate)
      )

  def test_unpacks_to_curve_and_rates(self):
    found = verification.verification_roc(
      np.array([[1.0, 2, 3, 4]]), [1], [1, 2, 1, 2], [0], [1, 1, 1, 1]
    )
    fpr, tpr, thresholds, eer, auc = found
    self.assertEqual(len(fpr), len(tpr), len(thresholds))
    self.assertEqual((eer, auc), (0.5, 0.75))

  def test_nothing_to_compare(self):
    with self.assertRaisesRegex(ValueError, '0 pairs of the same person'):
      verification.verification_roc(np.ones((1, 1)), [1], [2], [0], [0])


class AttributesTest(parameterized.TestCase):
  def test_golden(self):
    g = goldens.load_npz('osnet', 'attribute_metrics.npz')
    found = jax.jit(attributes.attribute_metrics)(g['prob'], g['label'])
    for ours, theirs in (
      ('mA', 'mA'),
      ('accuracy', 'accuracy'),
      ('precision', 'precision'),
      ('recall', 'recall'),
      ('F1', 'f1'),
    ):
      np.testing.assert_allclose(
        getattr(found, ours), g[theirs], atol=1e-6, err_msg=ours
      )

  def test_no_division_by_zero(self):
    # The first attribute is never there; the first image has none.
    label = np.array([[0, 0, 0], [0, 1, 1]])
    prob = np.array([[0.1, 0.1, 0.1], [0.1, 0.9, 0.2]])
    found = attributes.attribute_metrics(prob, label)
    self.assertTrue(np.isnan(found.per_attribute[0]))
    self.assertAlmostEqual(float(found.mA), (1 + 0.5) / 2)
    self.assertAlmostEqual(float(found.precision), 0.5)
    self.assertAlmostEqual(float(found.recall), 0.25)
    self.assertAlmostEqual(float(found.accuracy), 0.25)
    nothing = attributes.attribute_metrics(0 * prob, label)
    self.assertEqual(float(nothing.F1), 0)

  @parameterized.parameters(
    ([[0.5]], [[1, 0]], 'have shapes'),
    ([[np.nan]], [[1]], 'outside'),
    ([[-3.0]], [[1]], 'apply a sigmoid'),
    ([[0.5]], [[2]], 'label has other values'),
  )
  def test_bad_input(self, prob, label, message):
    with self.assertRaisesRegex(ValueError, message):
      attributes.attribute_metrics(prob, label)


class PicturesTest(parameterized.TestCase):
  def test_activation_map_golden(self):
    g = goldens.load_npz('osnet', 'block_internals.npz')
    found = visualize.activation_map(g['conv5'].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found, g['actmap'], atol=1e-6)

  def test_activation_map_of_an_image_size(self):
    x = jnp.asarray(goldens.normal('map', (2, 4, 2, 5)))
    found = visualize.activation_map(x, (16, 8))
    self.assertEqual(found.shape, (2, 16, 8))
    np.testing.assert_allclose(found.min((1, 2)), 0, atol=1e-7)
    np.testing.assert_allclose(found.max((1, 2)), 1, atol=1e-6)
    # As OpenCV: corners beyond the outer centres are flat.
    np.testing.assert_allclose(found[:, 0, 0], found[:, 1, 1], atol=1e-6)
    flat = visualize.activation_map(jnp.zeros((1, 2, 2, 3)), (4, 4))
    self.assertTrue((flat == 0).all())
    with self.assertRaisesRegex(ValueError, r'expected \[B, h, w, C\]'):
      visualize.activation_map(jnp.ones((2, 2, 2)))

  def test_ranked_list(self):
    images = [np.full((8, 4, 3), 10 * i, np.uint8) for i in range(4)]
    picture = visualize.ranked_list(images[0], images[1:], [True, False, None])
    starts = [0, 12 + 12, 2 * 12 + 18, 3 * 12 + 24]
    frames = [visualize.PLAIN, visualize.RIGHT, visualize.WRONG]
    for i, start in enumerate(starts):
      self.assertEqual(
        tuple(picture[0, start].tolist()), (frames + frames[:1])[i]
      )
      np.testing.assert_array_equal(
        picture[4:12, start + 4 : start + 8], images[i]
      )
    content = visualize.encode_image(picture)
    np.testing.assert_array_equal(Image.open(io.BytesIO(content)), picture)
    with self.assertRaisesRegex(ValueError, 'several shapes'):
      visualize.ranked_list(images[0], [images[1][:4]], [True])
    with self.assertRaisesRegex(ValueError, '1 images and 2 of right'):
      visualize.ranked_list(images[0], images[1:2], [True, True])


if __name__ == '__main__':
  absltest.main()
