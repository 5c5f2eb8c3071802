"""Resizing and cropping against TensorFlow and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.efficientnet import preprocess, resize
from tests.helpers import goldens

_RESIZE = goldens.load_npz('efficientnet', 'recipe', 'resize_tf.npz')


class ResizeTest(parameterized.TestCase):
  @parameterized.parameters(32, 48, 64, 100)
  def test_equals_tensorflow(self, size):
    image, expected = _RESIZE['image'], _RESIZE[f'bicubic_tf1_{size}']
    result = resize.resize_bicubic_tf1(image, size, size)
    self.assertEqual(result.dtype, np.float32)
    # Of 255; TensorFlow sums sixteen products in another order.
    np.testing.assert_allclose(result, expected, atol=1e-3)
    traced = jax.jit(lambda x: resize.resize_bicubic_tf1(x, size, size))(image)
    np.testing.assert_allclose(traced, expected, atol=1e-3)
    other = np.abs(resize.resize_bicubic_pil(image, size, size) - expected)
    self.assertGreater(other.max(), 5)  # It is not what everybody else has.

  def test_order_of_axes_does_not_matter(self):
    image = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    once = resize.resize_bicubic_tf1(image, 30, 10)
    flipped = resize.resize_bicubic_tf1(image.swapaxes(0, 1), 10, 30)
    np.testing.assert_allclose(once, flipped.swapaxes(0, 1), atol=1e-3)
    same = resize.resize_bicubic_tf1(image, 20, 50)
    np.testing.assert_array_equal(same, image)

  def test_jax_is_close_to_pillow(self):
    image = _RESIZE['image']
    for size in (32, 100):
      pil = resize.resize_bicubic_pil(image, size, size)
      other = resize.resize_bicubic_pil(jnp.asarray(image), size, size)
      self.assertLessEqual(np.abs(pil - other).max(), 1)

  def test_bad_input(self):
    image = _RESIZE['image']
    for words, arguments in (
      (r'\[61, 83\]', (image[..., 0], 4, 4, 'tf1_bicubic')),
      ('0 x 4', (image, 0, 4, 'tf1_bicubic')),
      ("'nearest'.*tf1_bicubic", (image, 4, 4, 'nearest')),
    ):
      with self.assertRaisesRegex(ValueError, words):
        resize.resize(*arguments)


class EvaluationTest(absltest.TestCase):
  def test_crop_geometry(self):
    rows = _RESIZE['geometry_h_w_size_padding_crop_offy_offx']
    self.assertLen(rows, 42)
    for height, width, size, padding, side, top, left in rows.tolist():
      self.assertEqual(
        preprocess.crop_geometry(height, width, size, padding),
        (side, top, left),
      )

  def test_equals_tensorflow(self):
    golden = goldens.load_npz(
      'efficientnet', 'recipe', 'preprocess_eval_tf.npz'
    )
    result = preprocess.preprocess_eval(golden['decoded'], 48, 7)
    np.testing.assert_allclose(result, golden['out'], atol=1e-3)
    pillow = preprocess.preprocess_eval(
      golden['decoded'], 48, crop_padding=7, resize='pil_bicubic'
    )
    self.assertGreater(np.abs(pillow - golden['out']).max(), 1)
    other = preprocess.preprocess_eval(golden['decoded'], 48, 32)
    self.assertGreater(np.abs(other - golden['out']).max(), 50)

  def test_normalize(self):
    image = np.array([[124, 116, 104]], np.uint8)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(
      preprocess.normalize(image, 'imagenet'), expected, atol=1e-6
    )
    traced = jax.jit(lambda x: preprocess.normalize(x, 'lite'))(image)
    np.testing.assert_allclose(traced, [[-3 / 128, -11 / 128, -23 / 128]])
    np.testing.assert_array_equal(preprocess.normalize(image, 'none'), image)
    with self.assertRaisesRegex(ValueError, "'torch'.*advprop"):
      preprocess.normalize(image, 'torch')

  def test_bad_input(self):
    image = np.zeros((8, 8, 3), np.uint8)
    for words, bad in (
      (r'\[8, 8\]', image[..., 0]),
      (r'\[8, 8, 4\]', np.zeros((8, 8, 4), np.uint8)),
      ('float32', image.astype(np.float32)),
    ):
      with self.assertRaisesRegex(ValueError, words):
        preprocess.preprocess_eval(bad, 4)
    with self.assertRaisesRegex(ValueError, 'no pixel at size 2'):
      preprocess.preprocess_eval(image[:1, :1], 2)


class TrainingTest(absltest.TestCase):
  def test_boxes(self):
    rng = np.random.default_rng(0)
    boxes = np.array([preprocess.random_box(rng, 120, 90) for _ in range(4000)])
    top, left, height, width = boxes.T
    self.assertGreaterEqual(min(top.min(), left.min()), 0)
    self.assertLessEqual((top + height).max(), 120)
    self.assertLessEqual((left + width).max(), 90)
    share = height * width / (120 * 90)
    self.assertBetween(share.min(), 0.1, 0.12)  # Not .08: see `random_box`.
    self.assertLessEqual(share.max(), 1)
    ratio = width / height
    self.assertBetween(ratio.min(), 0.72, 0.76)  # Widths are whole.
    self.assertBetween(ratio.max(), 1.31, 1.37)
    # Heights are uniform for a ratio: their median is half way.
    square = height[abs(ratio - 1) < 0.05]
    self.assertAlmostEqual(np.median(square), (33 + 90) / 2, delta=5)

  def test_impossible_box(self):
    rng = np.random.default_rng(0)
    self.assertIsNone(preprocess.random_box(rng, 10, 1000))
    image = np.random.default_rng(1).integers(0, 256, (10, 400, 3), np.uint8)
    result = preprocess.preprocess_train(rng, image, 8, None, flip=False)
    np.testing.assert_array_equal(result, preprocess.preprocess_eval(image, 8))

  def test_train(self):
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)

    def make(seed, *args, **options):
      rng = np.random.default_rng(seed)
      return preprocess.preprocess_train(rng, image, 24, *args, **options)

    for augment, dtype in (
      ('autoaugment', np.uint8),
      ('randaugment', np.uint8),
      (None, np.float32),
    ):
      result = make(0, augment)
      self.assertEqual((result.shape, result.dtype), ((24, 24, 3), dtype))
      np.testing.assert_array_equal(result, make(0, augment))
      self.assertGreater(np.abs(result - make(1, augment) * 1.0).max(), 0)
    whole = resize.resize_bicubic_tf1(image, 24, 24)
    flips = [
      not np.array_equal(make(seed, None, crop=None), whole)
      for seed in range(100)
    ]
    self.assertBetween(sum(flips), 30, 70)
    np.testing.assert_array_equal(
      make(int(np.argmax(flips)), None, crop=None), whole[:, ::-1]
    )
    moved = make(0, None, crop='pad', flip=False)
    self.assertGreater(np.abs(moved - whole).max(), 0)
    with self.assertRaisesRegex(ValueError, "augment is 'cutmix'"):
      make(0, 'cutmix')
    with self.assertRaisesRegex(ValueError, "crop is 'random'"):
      make(0, crop='random')


if __name__ == '__main__':
  absltest.main()
