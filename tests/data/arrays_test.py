"""Tests of splits, subsets and standardisation."""

import pickle
import subprocess
import sys

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import data
from tests.helpers import repository


class SplitTest(parameterized.TestCase):
  @parameterized.parameters(5000, 0.1)
  def test_is_that_of_numpys_global_seed(self, held_out):
    np.random.seed(1)  # noqa: NPY002
    order = np.random.permutation(50000)  # noqa: NPY002
    train, validation = data.split_indices(50000, held_out, seed=1)
    np.testing.assert_array_equal(validation, np.sort(order[:5000]))
    np.testing.assert_array_equal(train, np.sort(order[5000:]))

  @parameterized.parameters(0, 10, -1, 0.0, 1.0, 0.01, 1.5)
  def test_no_empty_part(self, held_out):
    with self.assertRaisesRegex(ValueError, f'held_out is {held_out} of 10'):
      data.split_indices(10, held_out, seed=0)


class SubsetTest(absltest.TestCase):
  def test_of_arrays_is_gathered_at_once(self):
    part = data.Subset({'x': np.arange(10) ** 2}, [3, 1, 7])
    self.assertEqual(part[2]['x'], 49)
    self.assertEqual(part.take(np.array([2, 0]))['x'].tolist(), [49, 9])
    batch = next(data.batches(part, 3, shuffle=False))
    self.assertEqual(batch['x'].tolist(), [9, 1, 49])

  def test_of_single_examples(self):
    part = data.Subset([{'x': k} for k in range(5)], np.array([4, 0]))
    self.assertFalse(hasattr(part, 'take'))
    self.assertEqual(
      next(data.batches(part, 2, shuffle=False))['x'].tolist(), [4, 0]
    )

  def test_of_a_subset(self):
    part = data.Subset(data.Subset({'x': np.arange(9)}, [8, 6, 4]), [2, 0])
    self.assertEqual(part.take(np.arange(2))['x'].tolist(), [4, 8])

  def test_can_be_sent_to_workers(self):
    part = data.Subset({'x': np.arange(9)}, [8, 6, 4])
    copy = pickle.loads(pickle.dumps(part))
    self.assertEqual(copy.take(np.array([1]))['x'].tolist(), [6])

  def test_bad_indices(self):
    source = {'x': np.arange(4)}
    with self.assertRaisesRegex(ValueError, 'from -1 to 2; expected 0 to 3'):
      data.Subset(source, [2, -1])
    with self.assertRaisesRegex(ValueError, 'bool .*np.flatnonzero'):
      data.Subset(source, np.arange(4) > 1)


class StandardizeTest(parameterized.TestCase):
  @parameterized.parameters(np.uint8, np.float32, np.float64, np.int16)
  def test_statistics_are_exact(self, dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 5, 5, 3)).astype(dtype)
    mean, std = data.pixel_statistics(images)
    wide = images.astype(np.float64)
    # Rounding of float64 sums.
    self.assertAlmostEqual(mean, wide.mean(), delta=1e-11)
    self.assertAlmostEqual(std, wide.std(), delta=1e-11)

  def test_more_than_one_block(self):
    images = np.zeros(2**22 + 100, np.float32)
    images[-100:] = 1000
    mean, std = data.pixel_statistics(images)
    self.assertAlmostEqual(mean, images.mean(dtype=np.float64), delta=1e-12)
    self.assertAlmostEqual(std, images.std(dtype=np.float64), delta=1e-9)

  def test_result(self):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (50, 8, 8), np.uint8)
    original = images.copy()
    result = data.standardize(images, *data.pixel_statistics(images))
    self.assertEqual(result.dtype, np.float32)
    self.assertAlmostEqual(result.mean(dtype=np.float64), 0, delta=1e-6)
    self.assertAlmostEqual(result.std(dtype=np.float64), 1, delta=1e-6)
    np.testing.assert_array_equal(images, original)

  def test_bad_images(self):
    with self.assertRaisesRegex(ValueError, 'no pixel'):
      data.pixel_statistics(np.zeros((0, 3)))
    with self.assertRaisesRegex(ValueError, 'the variance 0.0'):
      data.pixel_statistics(np.ones((4, 3), np.uint8))
    with self.assertRaisesRegex(ValueError, 'variance nan'):
      data.pixel_statistics(np.array([1.0, np.nan]))
    with self.assertRaisesRegex(ValueError, 'std is 0; expected a positive'):
      data.standardize(np.ones(3), 1, 0)


class ImportTest(absltest.TestCase):
  def test_loads_neither_grain_nor_pillow_nor_jax(self):
    # Each worker process imports the room again.
    code = (
      'import sys, jaxpapers.data\n'
      'assert not {"grain", "PIL", "jax", "scipy"} & set(sys.modules)'
    )
    subprocess.run(
      [sys.executable, '-c', code], check=True, cwd=repository.ROOT
    )


if __name__ == '__main__':
  absltest.main()
