"""The helpers in tests/helpers."""

import os
import pathlib
import tempfile
import unittest
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests.helpers import data, devices, goldens


class DevicesTest(parameterized.TestCase):
  @parameterized.parameters(1, 8)
  def test_device_count(self, count):
    out = devices.run(
      """
      import jax
      x = jax.numpy.arange(8.0)
      mesh = jax.make_mesh((jax.device_count(),), ('x',))
      x = jax.device_put(x, jax.NamedSharding(mesh, jax.P('x')))
      print(jax.default_backend(), len(x.addressable_shards), float(x.sum()))
      """,
      device_count=count,
    )
    self.assertEqual(out, f'cpu {count} 28.0\n')

  def test_failure_shows_all_output(self):
    with self.assertRaisesRegex(AssertionError, r'(?s)before.*ValueError: why'):
      devices.run("print('before')\nraise ValueError('why')")


class GoldensTest(absltest.TestCase):
  def test_first_numbers_of_a_name(self):
    # crc32('name') = 0x5E237E06; the numbers are numpy's, fixed by its
    # compatibility promise for PCG64 streams.
    expected = np.random.Generator(np.random.PCG64(0x5E237E06))
    np.testing.assert_array_equal(
      goldens.normal('name', (2, 3), 2.0),
      2.0 * expected.standard_normal((2, 3)),
    )

  def test_names_give_different_numbers(self):
    first, second = goldens.normal('a', (4,)), goldens.normal('b', (4,))
    self.assertFalse(np.any(first == second))

  def test_files(self):
    with tempfile.TemporaryDirectory() as folder:
      root = pathlib.Path(folder)
      (root / 'toy').mkdir()
      (root / 'toy' / 'a.json').write_text('{"x": [1]}')
      np.savez(root / 'toy' / 'b.npz', y=np.arange(3))
      with mock.patch.object(goldens, 'TESTDATA', root):
        self.assertEqual(goldens.load_json('toy', 'a.json'), {'x': [1]})
        loaded = goldens.load_npz('toy', 'b.npz')
        np.testing.assert_array_equal(loaded['y'], [0, 1, 2])
        with self.assertRaisesRegex(FileNotFoundError, 'a.json, b.npz'):
          goldens.path('toy', 'c.json')


class DataTest(absltest.TestCase):
  def test_skips_without_the_variable(self):
    with mock.patch.dict(os.environ):
      os.environ.pop(data.VARIABLE, None)
      with self.assertRaisesRegex(
        unittest.SkipTest, 'JAXPAPERS_DATA is not set.*kcore/x.*Source: there'
      ):
        data.require('kcore', 'x', source='there')

  def test_returns_what_exists(self):
    with tempfile.TemporaryDirectory() as folder:
      (pathlib.Path(folder) / 'kcore').mkdir()
      with mock.patch.dict(os.environ, {data.VARIABLE: folder}):
        self.assertTrue(data.require('kcore').is_dir())
        with self.assertRaisesRegex(unittest.SkipTest, 'holds no kcore/x'):
          data.require('kcore', 'x')


if __name__ == '__main__':
  absltest.main()
