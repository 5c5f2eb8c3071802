"""Tests of features of images in files, and of what is kept of them."""

import os
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from PIL import Image

from jaxpapers.data import CorruptFileError
from jaxpapers.osnet import features
from tests.helpers import devices, goldens

_WEIGHTS = {'w': goldens.normal('features', (8 * 4 * 3, 5)).astype(np.float32)}


def _apply(variables, x):
  return x.reshape(len(x), -1) @ variables['w']


class FeaturesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    rng = np.random.default_rng(0)
    self.paths = []
    for i in range(7):
      self.paths.append(self.folder / f'{i}.png')
      pixels = rng.integers(0, 256, (8, 4, 3)).astype(np.uint8)
      Image.fromarray(pixels).save(self.paths[-1])

  def _extract(self, **options):
    return features.extract_features(
      _apply, _WEIGHTS, self.paths, hw=(8, 4), **options
    )

  @parameterized.parameters(3, 7, 64)
  def test_batches_change_nothing(self, batch_size):
    expected = np.stack(
      [
        np.asarray(_apply(_WEIGHTS, features.load_image(path, (8, 4))[None]))[0]
        for path in self.paths
      ]
    )
    found = self._extract(batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    unit = self._extract(batch_size=batch_size, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)

  def test_images_are_normalised_and_resized(self):
    white = self.folder / 'white.png'
    Image.new('RGB', (30, 40), (255, 255, 255)).save(white)
    image = features.load_image(white, (8, 4))
    self.assertEqual(image.shape, (8, 4, 3))
    mean, std = np.array([0.485, 0.456, 0.406]), [0.229, 0.224, 0.225]
    np.testing.assert_allclose(image[0, 0], (1 - mean) / std, rtol=1e-5)

  def test_mirrored_images(self):
    found = self._extract(flip=True)
    for path in self.paths:
      with Image.open(path) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    np.testing.assert_allclose(self._extract(flip=True), found, atol=1e-4)

  def test_unreadable_images(self):
    self.paths[4].write_bytes(b'no image')
    self.paths[5].unlink()
    with self.assertRaisesRegex(CorruptFileError, '4.png'):
      self._extract(batch_size=3)
    lost = []
    found = self._extract(
      batch_size=3, unreadable=lambda i, error: lost.append((i, str(error)))
    )
    self.assertEqual([i for i, _ in lost], [4, 5])
    self.assertIn('5.png', lost[1][1])
    np.testing.assert_array_equal(
      np.flatnonzero(np.isnan(found).all(axis=1)), [4, 5]
    )
    self.assertFalse(np.isnan(found[[0, 1, 2, 3, 6]]).any())

  def test_kept_until_something_changes(self):
    cache = self.folder / 'cache'

    def get(weights=_WEIGHTS, **options):
      return features.cached_features(
        cache, _apply, weights, self.paths, hw=(8, 4), **options
      )

    first, there = get()
    self.assertFalse(there)
    again, there = get()
    self.assertTrue(there)
    np.testing.assert_array_equal(again, first)
    self.assertTrue(get(normalize=True)[1])
    self.assertFalse(get({'w': _WEIGHTS['w'] + 1})[1])
    self.assertFalse(get(flip=True)[1])
    self.assertFalse(get(network='another')[1])
    os.utime(self.paths[0], (1, 1))
    self.assertFalse(get()[1])
    self.assertTrue(get()[1])
    # A file that was cut short is computed again.
    for path in cache.iterdir():
      path.write_bytes(path.read_bytes()[:40])
    recovered, there = get()
    self.assertFalse(there)
    np.testing.assert_array_equal(recovered, first)

  def test_unreadable_images_are_told_again(self):
    self.paths[2].write_bytes(b'no image')
    cache = self.folder / 'cache'
    lost = []

    def get(**options):
      return features.cached_features(
        cache, _apply, _WEIGHTS, self.paths, hw=(8, 4), **options
      )

    for expected in (False, True):
      found, there = get(unreadable=lambda i, _: lost.append(i))
      self.assertEqual(there, expected)
      self.assertTrue(np.isnan(found[2]).all())
    self.assertEqual(lost, [2, 2])
    with self.assertRaisesRegex(CorruptFileError, '2.png'):
      get()
    self.paths[3].unlink()
    for expected in (False, True):
      found, there = get(unreadable=lambda i, _: lost.append(i))
      self.assertEqual(there, expected)
    self.assertEqual(lost[2:], [2, 3, 2, 3])

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'paths is empty'):
      features.extract_features(_apply, _WEIGHTS, [])
    with self.assertRaisesRegex(ValueError, r'expected \[B, D\]'):
      features.extract_features(
        lambda v, x: jnp.sum(x, axis=(1, 2, 3)), _WEIGHTS, self.paths
      )

  @pytest.mark.slow
  def test_on_a_mesh(self):
    np.save(self.folder / 'expected.npy', self._extract())
    devices.run(
      f"""
      import jax, numpy as np
      from tests.osnet import features_test as t
      from jaxpapers.osnet import features
      paths = [r'{self.folder}/' + f'{{i}}.png' for i in range(7)]
      mesh = jax.make_mesh((2,), ('data',))
      found = features.extract_features(
        t._apply, t._WEIGHTS, paths, hw=(8, 4), batch_size=3, mesh=mesh)
      expected = np.load(r'{self.folder}/expected.npy')
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
      """,
      device_count=2,
    )


if __name__ == '__main__':
  absltest.main()
