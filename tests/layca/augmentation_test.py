"""Tests of random shifts and flips against scipy's affine transform."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import ndimage

from jaxpapers.layca import augmentation


class AugmentationTest(parameterized.TestCase):
  @parameterized.parameters(5, 32)
  def test_pixels_are_those_of_scipy(self, size):
    x = np.arange(float(size))
    # Not at ties: there rounding in float32 decides.
    for shift in np.linspace(-size / 2, size / 2, 41) + 0.013:
      expected = ndimage.affine_transform(
        x, np.eye(1), [shift], order=0, mode='reflect'
      )
      indices = augmentation.shifted_indices(jnp.float32(shift), size)
      np.testing.assert_array_equal(indices, expected, f'shift {shift}')

  def test_images_move_as_a_whole(self):
    images = np.random.default_rng(0).normal(size=(64, 16, 24, 3))
    out = augmentation.shift_and_flip(jax.random.key(3), images)
    self.assertEqual(out.shape, images.shape)
    found = set()
    for image, moved in zip(images.astype(np.float32), np.asarray(out)):
      candidates = {}
      for mirrored in (False, True):
        for down in range(-2, 3):
          for right in range(-3, 4):
            shifted = ndimage.affine_transform(
              image, np.eye(3), [down, right, 0], order=0, mode='reflect'
            )
            shifted = shifted[:, ::-1] if mirrored else shifted
            candidates[mirrored, down, right] = shifted
      matches = [
        key for key, value in candidates.items() if np.array_equal(value, moved)
      ]
      self.assertLen(matches, 1)
      found.add(matches[0])
    # An eighth of 16 and of 24, mirrored or not.
    self.assertSetEqual({key[0] for key in found}, {False, True})
    self.assertSetEqual({key[1] for key in found}, set(range(-2, 3)))
    self.assertSetEqual({key[2] for key in found}, set(range(-3, 4)))

  def test_options(self):
    images = np.random.default_rng(0).integers(0, 255, (8, 6, 6, 1), np.uint8)
    key = jax.random.key(0)
    same = augmentation.shift_and_flip(key, images, max_shift=0.0, flip=False)
    self.assertEqual(same.dtype, jnp.uint8)
    np.testing.assert_array_equal(same, images)
    first = jax.jit(augmentation.shift_and_flip)(key, images)
    np.testing.assert_array_equal(
      first, augmentation.shift_and_flip(key, images)
    )
    other = augmentation.shift_and_flip(jax.random.key(1), images)
    self.assertFalse(np.array_equal(first, other))

  def test_bad_input(self):
    images = np.zeros((2, 4, 4, 1))
    with self.assertRaisesRegex(ValueError, 'max_shift is 1.5'):
      augmentation.shift_and_flip(jax.random.key(0), images, max_shift=1.5)
    with self.assertRaises(AssertionError):
      augmentation.shift_and_flip(jax.random.key(0), images[0])


if __name__ == '__main__':
  absltest.main()
