"""Losses against torchreid's, in float64, and where they have no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import osnet
from tests.helpers import goldens


def golden():
  return goldens.load_npz('osnet', 'losses.npz')


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters(('ls1', 0.1), ('ls0', 0.0))
  def test_cross_entropy(self, name, eps):
    g = golden()
    with jax.enable_x64(True):
      loss, grad = jax.jit(
        jax.value_and_grad(osnet.cross_entropy_label_smoothing)
      )(jnp.asarray(g['ce/logits']), jnp.asarray(g['ce/labels']), eps)
      # The constants in the original's labels are float32.
      np.testing.assert_allclose(loss, g[f'ce/{name}/loss'], rtol=1e-7)
      np.testing.assert_allclose(grad, g[f'ce/{name}/grad'], atol=1e-8)

  @parameterized.parameters(0.0, 0.3, 1.5)
  def test_triplet(self, margin):
    g = golden()
    with jax.enable_x64(True):
      loss, grad = jax.jit(jax.value_and_grad(osnet.batch_hard_triplet))(
        jnp.asarray(g['triplet/feats']),
        jnp.asarray(g['triplet/labels']),
        margin,
      )
      np.testing.assert_allclose(loss, g[f'triplet/m{margin}/loss'], rtol=1e-10)
      np.testing.assert_allclose(grad, g[f'triplet/m{margin}/grad'], atol=1e-10)

  def test_triplet_of_identical_images(self):
    g = golden()
    with jax.enable_x64(True):
      labels = g['triplet/labels']
      loss, grad = jax.value_and_grad(osnet.batch_hard_triplet)(
        jnp.asarray(g['triplet_dup/feats']), jnp.asarray(labels)
      )
      np.testing.assert_allclose(loss, g['triplet_dup/loss'], rtol=1e-10)
      self.assertTrue(np.all(np.isfinite(grad)))
      # Which of identical images is the hardest is anybody's choice: compare
      # what all of them get.
      wanted = np.array(g['triplet_dup/grad'])
      found = np.array(grad)
      same = labels == 3
      for part in (found, wanted):
        part[same] = part[same].sum(0)
      np.testing.assert_allclose(found, wanted, atol=1e-10)

  def test_mutual_learning(self):
    g = golden()
    with jax.enable_x64(True):
      p, q = jnp.asarray(g['dml/p']), jnp.asarray(g['dml/q'])
      loss, (to_teacher, to_student) = jax.value_and_grad(
        osnet.mutual_learning, (0, 1)
      )(p, q)
      np.testing.assert_allclose(loss, g['dml/loss'], rtol=1e-10)
      self.assertFalse(np.any(to_teacher))
      self.assertTrue(np.any(to_student))


class FormulaTest(absltest.TestCase):
  def test_soft_margin(self):
    x = jax.random.normal(jax.random.key(0), (6, 3))
    labels = jnp.array([0, 0, 1, 1, 2, 2])
    found = osnet.batch_hard_triplet(x, labels, 'soft')
    flat = np.asarray(x, np.float64)
    d = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    terms = []
    for a in range(6):
      same = np.asarray(labels == labels[a])
      gap = d[a, same].max() - d[a, ~same].min()
      terms.append(np.log1p(np.exp(gap)))
    np.testing.assert_allclose(found, np.mean(terms), rtol=1e-5)

  def test_single_identity_under_jit_is_zero_with_zero_gradient(self):
    x = jax.random.normal(jax.random.key(0), (4, 3))
    for loss in (osnet.batch_hard_triplet, osnet.circle):
      value, grad = jax.jit(jax.value_and_grad(loss))(
        x, jnp.zeros(4, jnp.int32)
      )
      self.assertEqual(value, 0)
      self.assertFalse(np.any(grad))

  def test_circle(self):
    x = np.random.default_rng(0).standard_normal((6, 4))
    labels = np.array([0, 0, 1, 1, 1, 2])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    s, m, scale = unit @ unit.T, 0.25, 8.0
    terms = []
    for a in range(6):
      p = [j for j in range(6) if labels[j] == labels[a] and j != a]
      n = [j for j in range(6) if labels[j] != labels[a]]
      if not p:
        terms.append(0.0)
        continue
      towards = sum(
        np.exp(scale * max(1 + m - s[a, j], 0) * (1 - m - s[a, j])) for j in p
      )
      away = sum(np.exp(scale * max(s[a, j] + m, 0) * (s[a, j] - m)) for j in n)
      terms.append(np.log1p(towards * away))
    found = osnet.circle(jnp.asarray(x), jnp.asarray(labels), m, scale)
    np.testing.assert_allclose(found, np.mean(terms), rtol=1e-5)
    grad = jax.grad(osnet.circle)(jnp.asarray(x), jnp.asarray(labels))
    self.assertTrue(np.all(np.isfinite(grad)))

  def test_weighted_bce(self):
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((5, 3)) * 3, rng.integers(0, 2, (5, 3))
    w = osnet.attribute_weights(y)
    np.testing.assert_allclose(w, np.exp(-y.mean(0)), rtol=1e-6)
    p = 1 / (1 + np.exp(-z))
    wanted = -w * (y * np.log(p) + (1 - y) * np.log(1 - p))
    found = osnet.weighted_bce(jnp.asarray(z), jnp.asarray(y), jnp.asarray(w))
    np.testing.assert_allclose(found, wanted.mean(), rtol=1e-5)
    # Sure and wrong: no overflow.
    self.assertEqual(
      osnet.weighted_bce(jnp.full((1, 1), 1e4), jnp.zeros((1, 1))), 1e4
    )

  def test_what_is_not_a_number_is_not_hidden(self):
    x = jnp.array([[jnp.nan], [0.0], [1.0], [2.0]])
    labels = jnp.array([0, 0, 1, 1])
    for loss in (osnet.batch_hard_triplet, osnet.circle):
      self.assertTrue(np.isnan(loss(x, labels)))
    for label in (-1, 2):
      loss = jax.jit(osnet.cross_entropy_label_smoothing)(
        jnp.zeros((2, 2)), jnp.array([0, label])
      )
      self.assertTrue(np.isnan(loss))

  def test_lists(self):
    rows, labels = [[0.5, 0.0], [0.0, 2.0]], [0, 1]
    for loss in (osnet.cross_entropy_label_smoothing, osnet.batch_hard_triplet):
      np.testing.assert_array_equal(
        loss(rows, labels), loss(jnp.asarray(rows), jnp.asarray(labels))
      )
    np.testing.assert_array_equal(
      osnet.weighted_bce(rows, [[0, 1], [1, 0]], [0.5, 2.0]),
      osnet.weighted_bce(
        jnp.asarray(rows), jnp.asarray([[0, 1], [1, 0]]), jnp.array([0.5, 2.0])
      ),
    )

  def test_half_precision_is_widened(self):
    logits = jnp.ones((2, 3), jnp.bfloat16)
    labels = jnp.array([0, 1])
    for loss in (osnet.cross_entropy_label_smoothing, osnet.batch_hard_triplet):
      self.assertEqual(loss(logits, labels).dtype, jnp.float32)


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    ((2, 3), [0, 3], {}, 'values from 0 to 3; expected 0 to 2'),
    ((2, 3), [-1, 0], {}, 'values from -1'),
    ((2, 3), [0], {}, r'shape \(1,\)'),
    ((3,), [0, 1, 2], {}, r'logits has shape \(3,\)'),
    ((2, 3), [0, 1], {'eps': 1.5}, 'eps is 1.5'),
  )
  def test_cross_entropy(self, shape, labels, options, words):
    with self.assertRaisesRegex(ValueError, words):
      osnet.cross_entropy_label_smoothing(
        jnp.zeros(shape), jnp.array(labels), **options
      )

  def test_triplet(self):
    x = jnp.zeros((2, 3))
    with self.assertRaisesRegex(ValueError, 'a single identity'):
      osnet.batch_hard_triplet(x, jnp.array([4, 4]))
    with self.assertRaisesRegex(ValueError, "margin is 'hard'"):
      osnet.batch_hard_triplet(x, jnp.array([0, 1]), 'hard')
    with self.assertRaisesRegex(TypeError, 'labels is float32'):
      osnet.batch_hard_triplet(x, jnp.array([0.0, 1.0]))

  def test_others(self):
    with self.assertRaisesRegex(ValueError, r'student has shape \(2, 4\)'):
      osnet.mutual_learning(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
    with self.assertRaisesRegex(ValueError, 'weights has shape'):
      osnet.weighted_bce(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.ones(2))
    with self.assertRaisesRegex(ValueError, 'labels has shape'):
      osnet.attribute_weights(np.zeros((0, 3)))


if __name__ == '__main__':
  absltest.main()
