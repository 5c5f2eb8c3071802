"""Tests of the IDX format and of MNIST: tiny files, and the real ones."""

import gzip
import pathlib
import struct
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import data
from tests.helpers import data as data_files

# Published: how often each digit is in the official test set.
_T10K_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
# Of the first 10,000 of the official training set (README of the data).
_FIRST_10K_COUNTS = [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]


def _idx(code, shape, content):
  return (
    struct.pack(f'>HBB{len(shape)}I', 0, code, len(shape), *shape) + content
  )


def _pixels(count):
  return (np.arange(count * 784) % 251).astype(np.uint8).reshape(-1, 28, 28)


class IdxTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.parameters(
    (0x08, 'B', [0, 200, 255], np.uint8),
    (0x09, 'b', [-128, 0, 127], np.int8),
    (0x0B, 'h', [-30000, 1, 258], np.int16),
    (0x0C, 'i', [-(2**31), 1, 66051], np.int32),
    (0x0D, 'f', [-1.5, 0.0, 3e7], np.float32),
    (0x0E, 'd', [-1.5, 1e-300, 3e7], np.float64),
  )
  def test_reads_every_type(self, code, letter, values, dtype):
    path = self.folder / 'some-idx'
    path.write_bytes(_idx(code, (3, 1), struct.pack(f'>3{letter}', *values)))
    array = data.read_idx(path)
    self.assertEqual(array.dtype, dtype)
    self.assertTrue(array.dtype.isnative)
    self.assertEqual(array[:, 0].tolist(), values)
    self.assertEqual(array.shape, (3, 1))

  def test_header_is_big_endian(self):
    path = self.folder / 'labels-idx1-ubyte'
    data.write_idx(path, np.zeros(258, np.uint8))
    self.assertEqual(path.read_bytes()[:8].hex(), '0000080100000102')

  @parameterized.parameters('a-idx', 'a-idx.gz')
  def test_written_is_what_is_read(self, name):
    rng = np.random.default_rng(0)
    for dtype in ('u1', 'i1', 'i2', '>i4', 'f4', 'f8'):
      array = (100 * rng.random((2, 3, 4))).astype(dtype)
      data.write_idx(self.folder / name, array)
      np.testing.assert_array_equal(data.read_idx(self.folder / name), array)
    self.assertLen(list(self.folder.iterdir()), 1)  # no temporary file left
    compressed = (self.folder / name).read_bytes()[:2] == b'\x1f\x8b'
    self.assertEqual(compressed, name.endswith('.gz'))

  def test_gzip_is_seen_by_content_not_name(self):
    path = self.folder / 'a-idx'
    path.write_bytes(gzip.compress(_idx(8, (2,), b'\x03\x04')))
    self.assertEqual(data.read_idx(path).tolist(), [3, 4])

  def test_refuses_to_write_other_types(self):
    with self.assertRaisesRegex(ValueError, 'array is int64; IDX stores one'):
      data.write_idx(self.folder / 'a', np.zeros(3, np.int64))

  @parameterized.named_parameters(
    ('cut', _idx(8, (2, 3), b'12345'), r'expected 18 bytes .*\(2, 3\).*got 17'),
    ('long', _idx(8, (2,), b'123'), 'expected 10 bytes .* got 11'),
    ('empty', b'', '0 bytes; an IDX file starts'),
    ('header', _idx(8, (2, 3), b'')[:7], '7 bytes; the header of 2 .* has 12'),
    ('type', _idx(0x0A, (1,), b'1'), 'magic number is 0x00000a01'),
    ('text', b'<html>not found', 'magic number is 0x3c68746d'),
    ('gzip', gzip.compress(bytes(1000))[:-9], 'gzip data are damaged or cut'),
  )
  def test_damaged(self, content, message):
    path = self.folder / 'bad-idx3-ubyte'
    path.write_bytes(content)
    with self.assertRaisesRegex(
      data.CorruptFileError, f'bad-idx3-ubyte: .*{message}'
    ):
      data.read_idx(path)


class MnistTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.product(
    name=['{}-{}-idx{}-ubyte', '{}-{}.idx{}-ubyte'], end=['', '.gz']
  )
  def test_official_names(self, name, end):
    images, labels = _pixels(3), np.array([7, 0, 9], np.uint8)
    for part, count in (('train', 3), ('t10k', 2)):
      path = self.folder / (name.format(part, 'images', 3) + end)
      data.write_idx(path, images[:count])
      path = self.folder / (name.format(part, 'labels', 1) + end)
      data.write_idx(path, labels[:count])
    train, test = (data.load_mnist(self.folder, s) for s in ('train', 'test'))
    np.testing.assert_array_equal(train['image'], images)
    self.assertEqual(train['label'].tolist(), [7, 0, 9])
    self.assertEqual(train['label'].dtype, np.int32)
    self.assertEqual(test['image'].shape, (2, 28, 28))

  def test_npz_with_both_splits(self):
    np.savez(
      self.folder / 'mnist.npz',
      x_train=_pixels(3),
      y_train=np.array([1, 2, 3], np.uint8),
      x_test=_pixels(1),
      y_test=np.array([4], np.uint8),
    )
    self.assertEqual(data.load_mnist(self.folder)['label'].tolist(), [1, 2, 3])
    self.assertEqual(
      data.load_mnist(self.folder, 'test')['label'].tolist(), [4]
    )

  def test_missing_says_what_to_put_where(self):
    with self.assertRaises(FileNotFoundError) as caught:
      data.load_mnist(self.folder, 'train')
    message = str(caught.exception)
    self.assertIn(str(self.folder), message)
    self.assertIn('train-images-idx3-ubyte.gz   9,912,422 bytes', message)
    self.assertIn('Nothing is downloaded', message)
    with self.assertRaisesRegex(FileNotFoundError, 'nowhere does not exist'):
      data.load_mnist(self.folder / 'nowhere', 'test')

  def test_images_without_labels_are_missing(self):
    data.write_idx(self.folder / 'train-images-idx3-ubyte', _pixels(2))
    with self.assertRaisesRegex(FileNotFoundError, 'train-labels-idx1'):
      data.load_mnist(self.folder)

  def test_other_lengths(self):
    data.write_idx(self.folder / 'train-images-idx3-ubyte', _pixels(2))
    labels = self.folder / 'train-labels-idx1-ubyte'
    data.write_idx(labels, np.zeros(3, np.uint8))
    with self.assertRaisesRegex(
      data.CorruptFileError, r'train-labels-idx1-ubyte: expected 2 labels'
    ):
      data.load_mnist(self.folder)

  def test_labels_under_the_name_of_images(self):
    data.write_idx(self.folder / 'train-images-idx3-ubyte', np.zeros(3, 'u1'))
    data.write_idx(self.folder / 'train-labels-idx1-ubyte', np.zeros(3, 'u1'))
    with self.assertRaisesRegex(data.CorruptFileError, r'got uint8 \[3\]'):
      data.load_mnist(self.folder)

  def test_damaged_npz(self):
    path = self.folder / 'mnist_train_part.npz'
    path.write_bytes(b'PK\x03\x04 and no more')
    with self.assertRaisesRegex(data.CorruptFileError, 'mnist_train_part.npz'):
      data.load_mnist(self.folder)

  def test_npz_of_objects_runs_nothing(self):
    np.savez(self.folder / 'mnist_train.npz', images=[{}], labels=[0])
    with self.assertRaisesRegex(data.CorruptFileError, 'allow_pickle'):
      data.load_mnist(self.folder)

  def test_split(self):
    with self.assertRaisesRegex(ValueError, "split is 'val'; expected 'train'"):
      data.load_mnist(self.folder, 'val')


class RealMnistTest(absltest.TestCase):
  def test_official_test_set(self):
    path = data_files.require('layca', 't10k-images-idx3-ubyte.gz')
    test = data.load_mnist(path.parent, 'test')
    self.assertEqual(test['image'].shape, (10000, 28, 28))
    self.assertEqual(np.bincount(test['label']).tolist(), _T10K_COUNTS)
    self.assertEqual(test['label'][:5].tolist(), [7, 2, 1, 0, 4])
    self.assertEqual((test['image'].min(), test['image'].max()), (0, 255))

  def test_first_part_of_the_training_set(self):
    path = data_files.require('layca', 'mnist_train_first10k.npz')
    train = data.load_mnist(path.parent, 'train')
    self.assertEqual(np.bincount(train['label']).tolist(), _FIRST_10K_COUNTS)
    self.assertEqual(int(train['image'][0].sum()), 27525)
    self.assertEqual(train['label'][:5].tolist(), [5, 0, 4, 1, 9])

  def test_truncated_official_file(self):
    path = data_files.require('layca', 't10k-labels-idx1-ubyte.gz')
    cut = (
      pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / path.name
    )
    cut.write_bytes(path.read_bytes()[:4000])
    with self.assertRaisesRegex(data.CorruptFileError, 'has 4,000 bytes'):
      data.read_idx(cut)


if __name__ == '__main__':
  absltest.main()
