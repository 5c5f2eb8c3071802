"""Pickled arrays are built from checked records."""

import pickle

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.data import CorruptFileError, restricted_pickle


def load(content):
  return restricted_pickle.load(content, 'a file')


class RestrictedPickleTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2, 3, 4, 5)
  def test_arrays(self, protocol):
    base = np.arange(24.0).reshape(2, 3, 4)
    values = {
      'plain': base,
      'fortran': base.T,
      'other_axes': base.transpose(1, 0, 2),
      'big_endian': np.arange(3, dtype='>i2'),
      'text': np.array(['ab', 'c']),
      'bytes': np.array([b'ab', b'c']),
      'scalar': np.array(4),
      'number': np.float32(3),
      'empty': np.zeros((0, 3)),
      'bool': np.array([True, False]),
      'complex': np.array([1 + 2j]),
    }
    same = [values['plain']] * 2
    everything = (values, same, base.dtype)
    found, again, dtype = load(pickle.dumps(everything, protocol))
    for name, value in values.items():
      self.assertEqual(found[name].dtype, value.dtype)
      np.testing.assert_array_equal(found[name], value, strict=True)
    self.assertIsInstance(found['number'], np.float32)
    self.assertIs(again[0], again[1])
    self.assertEqual(dtype, np.float64)
    found['plain'][0] = 1  # It can be written.

  @parameterized.parameters(
    # Each would make numpy read memory that is not the file's.
    (
      b'cnumpy\nndarray\n(K\x01\x85X\x01\x00\x00\x00OC\x08AAAAAAAAtR',
      'not callable',
    ),
    (
      b'cnumpy.core.numeric\n_frombuffer\n(C\x08AAAAAAAAX\x01\x00\x00\x00O'
      b'K\x01\x85X\x01\x00\x00\x00CtR',
      "no attribute 'dtype'",
    ),
    (b'cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R', 'an array of objects'),
    (b'cnumpy\ndtype\nX\x02\x00\x00\x00V8\x85R', 'objects or structures'),
    (b'cnumpy\ndtype\nX\x02\x00\x00\x00M8\x85R', 'an array of dates'),
    (
      b'cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R(K\x03X\x01\x00\x00\x00<NX\x01'
      b'\x00\x00\x00a}K\x04K\x01K\x00tb',
      'objects or structures',
    ),
    # An array that never got numbers, and one whose numbers are too few.
    (b'cnumpy.core.multiarray\n_reconstruct\n)R', 'without numbers'),
    (
      b'cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x05\x85cnumpy\ndtype\n'
      b'X\x02\x00\x00\x00u1\x85R\x89C\x01AtbN0',
      'cannot reshape',
    ),
  )
  def test_bytes_taken_for_pointers(self, stack, pattern):
    with self.assertRaisesRegex(CorruptFileError, pattern):
      load(b'\x80\x02' + stack + b'.')


if __name__ == '__main__':
  absltest.main()
