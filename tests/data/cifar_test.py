"""Tests of CIFAR-10 and CIFAR-100 in their four published forms."""

import io
import os
import pathlib
import pickle
import struct
import tarfile
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import data

_PER_FILE = 4


class _Python2Pickler(pickle._Pickler):
  """Writes bytes as Python 2 wrote its strings, as the official files have."""

  dispatch = dict(pickle._Pickler.dispatch)

  def _save_string(self, value):
    if len(value) < 256:
      self.write(b'U' + bytes([len(value)]) + value)
    else:
      self.write(b'T' + struct.pack('<i', len(value)) + value)
    self.memoize(value)

  dispatch[bytes] = _save_string


def _python2(value):
  stream = io.BytesIO()
  _Python2Pickler(stream, 2).dump(value)
  # The name of the module in the numpy of 2009.
  content = stream.getvalue()
  return content.replace(
    b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n'
  )


def _rows(start, labels_of_each, classes):
  """(pixels uint8 [n, 3072], labels) whose values tell where they belong."""
  rng = np.random.default_rng(start)
  pixels = rng.integers(0, 256, (_PER_FILE, 3072), np.uint8)
  labels = [
    [int(k) for k in rng.integers(0, classes[i], _PER_FILE)]
    for i in range(labels_of_each)
  ]
  return pixels, labels


def _expected_images(pixels):
  """Written out: red, green and blue planes, each row by row."""
  images = np.empty((len(pixels), 32, 32, 3), np.uint8)
  for n, row in enumerate(pixels):
    for c in range(3):
      images[n, :, :, c] = row[1024 * c : 1024 * (c + 1)].reshape(32, 32)
  return images


def _cifar10(form):
  """File name -> content of a tiny CIFAR-10, and its rows in order."""
  names = [f'data_batch_{k}' for k in range(1, 6)] + ['test_batch']
  contents, rows = {}, []
  for number, name in enumerate(names):
    pixels, (labels,) = _rows(number, 1, [10])
    rows.append((pixels, labels))
    if form == 'python':
      batch = {b'data': pixels, b'labels': labels, b'batch_label': b'batch'}
      contents[name] = _python2(batch)
    else:
      records = [bytes([k]) + row.tobytes() for k, row in zip(labels, pixels)]
      contents[f'{name}.bin'] = b''.join(records)
  words = [f'class{k}' for k in range(10)]
  if form == 'python':
    meta = {b'label_names': [word.encode() for word in words]}
    contents['batches.meta'] = _python2(meta)
  else:
    contents['batches.meta.txt'] = ('\n'.join(words) + '\n\n').encode()
  return contents, rows


def _cifar100(form):
  contents, rows = {}, []
  for number, name in enumerate(['train', 'test']):
    pixels, (coarse, fine) = _rows(number, 2, [20, 100])
    rows.append((pixels, coarse, fine))
    if form == 'python':
      batch = {
        b'data': pixels,
        b'fine_labels': fine,
        b'coarse_labels': coarse,
        b'filenames': [b'some.png'] * _PER_FILE,
      }
      contents[name] = _python2(batch)
    else:
      contents[f'{name}.bin'] = b''.join(
        bytes([c, f]) + row.tobytes() for c, f, row in zip(coarse, fine, pixels)
      )
  words = [f'fine{k}' for k in range(100)]
  if form == 'python':
    meta = {b'fine_label_names': [word.encode() for word in words]}
    contents['meta'] = _python2(meta)
  else:
    contents['fine_label_names.txt'] = '\n'.join(words).encode()
  return contents, rows


_FOLDERS = {
  (10, 'python'): 'cifar-10-batches-py',
  (10, 'binary'): 'cifar-10-batches-bin',
  (100, 'python'): 'cifar-100-python',
  (100, 'binary'): 'cifar-100-binary',
}


def _put(root, contents, folder, archive=None):
  """Writes files into root/folder, or into an archive as the official one."""
  if archive is None:
    (root / folder).mkdir(parents=True)
    for name, content in contents.items():
      (root / folder / name).write_bytes(content)
    return
  with tarfile.open(root / archive, 'w:gz') as tar:
    for name, content in contents.items():
      info = tarfile.TarInfo(f'{folder}/{name}')
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


class CifarTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.product(
    classes=[10, 100],
    form=['python', 'binary'],
    place=['folder', 'parent', 'archive', 'parent of archive'],
  )
  def test_each_form_in_each_place(self, classes, form, place):
    make = _cifar10 if classes == 10 else _cifar100
    load = data.load_cifar10 if classes == 10 else data.load_cifar100
    contents, rows = make(form)
    folder, archive = _FOLDERS[classes, form], f'cifar-{classes}-{form}.tar.gz'
    _put(self.root, contents, folder, archive if 'archive' in place else None)
    path = {'folder': self.root / folder, 'archive': self.root / archive}
    path = path.get(place, self.root)

    for split, part in (('train', rows[:-1]), ('test', rows[-1:])):
      loaded = load(path, split)
      pixels = np.concatenate([row[0] for row in part])
      np.testing.assert_array_equal(loaded['image'], _expected_images(pixels))
      labels = np.concatenate([row[-1] for row in part])
      np.testing.assert_array_equal(loaded['label'], labels)
      self.assertEqual(loaded['label'].dtype, np.int32)
      if classes == 100:
        coarse = np.concatenate([row[1] for row in part])
        np.testing.assert_array_equal(loaded['coarse_label'], coarse)
    names = data.cifar_class_names(path)
    self.assertLen(names, classes)
    self.assertEndsWith(names[3], 's3' if classes == 10 else 'fine3')

  @parameterized.parameters(0, 2, 4, 5)
  def test_pickles_of_python_3(self, protocol):
    contents, rows = _cifar10('python')
    pixels, labels = rows[-1]
    batch = {'data': pixels, 'labels': np.array(labels)}
    contents['test_batch'] = pickle.dumps(batch, protocol)
    _put(self.root, contents, 'cifar-10-batches-py')
    loaded = data.load_cifar10(self.root, 'test')
    np.testing.assert_array_equal(loaded['image'], _expected_images(pixels))
    self.assertEqual(loaded['label'].tolist(), labels)

  def test_binary_files_in_a_folder_of_another_name(self):
    contents, rows = _cifar10('binary')
    _put(self.root, contents, 'mine')
    loaded = data.load_cifar10(self.root / 'mine', 'test')
    self.assertEqual(loaded['label'].tolist(), rows[-1][1])

  def test_missing_says_what_to_put_where(self):
    with self.assertRaises(FileNotFoundError) as caught:
      data.load_cifar10(self.root)
    message = str(caught.exception)
    self.assertIn('cifar-10-python.tar.gz   170,498,071 bytes', message)
    self.assertIn('cifar-10-batches-bin/ with data_batch_1.bin', message)
    with self.assertRaisesRegex(FileNotFoundError, 'cifar-100-python.tar.gz'):
      data.load_cifar100(self.root / 'nowhere')

  def test_one_file_missing(self):
    contents, _ = _cifar10('binary')
    del contents['data_batch_4.bin']
    _put(self.root, contents, 'cifar-10-batches-bin')
    with self.assertRaisesRegex(FileNotFoundError, r'data_batch_4\.bin'):
      data.load_cifar10(self.root)

  def test_split(self):
    with self.assertRaisesRegex(ValueError, "split is 'valid'; expected"):
      data.load_cifar100(self.root, 'valid')


class DamagedCifarTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _assert_refused(self, content, message, name='test_batch'):
    contents, _ = _cifar10('python')
    contents[name] = content
    root = pathlib.Path(tempfile.mkdtemp(dir=self.root))
    _put(root, contents, 'cifar-10-batches-py')
    with self.assertRaisesRegex(data.CorruptFileError, f'{name}: .*{message}'):
      data.load_cifar10(root, 'test')

  @parameterized.parameters(0, 2, 4)
  def test_pickle_that_runs_code_is_refused_and_runs_none(self, protocol):
    witness = self.root / 'it_ran'

    class Malicious:
      def __reduce__(self):
        return os.mkdir, (str(witness),)

    bad = pickle.dumps({'data': Malicious()}, protocol)
    with self.subTest('the pickle does run code'):
      pickle.loads(bad)
      self.assertTrue(witness.exists())
      witness.rmdir()
    self._assert_refused(bad, 'asks for (posix|nt).mkdir')
    self.assertFalse(witness.exists())

  @parameterized.parameters(
    (b'cbuiltins\neval\n(S"1"\ntR.', 'asks for builtins.eval'),
    (b'c__builtin__\ngetattr\n.', 'asks for __builtin__.getattr'),
    (b'cnumpy\nload\n.', 'asks for numpy.load'),
    (b'cnumpy.core.multiarray\nfromfile\n.', 'multiarray.fromfile'),
    (b'\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.', 'ndarray.dumps'),
    (b'Pother\n.', 'refers to an object outside'),
  )
  def test_other_ways_out(self, content, message):
    self._assert_refused(content, message)

  @parameterized.parameters(2, 4)
  def test_arrays_of_objects(self, protocol):
    # Their bytes would be taken for pointers.
    array = np.array([1, 'two'], object)
    self._assert_refused(
      pickle.dumps({'data': array}, protocol), 'an array of object'
    )
    record = np.zeros(2, [('a', object), ('b', int)])
    self._assert_refused(pickle.dumps(record, protocol), 'an array of object')

  def test_nothing_of_the_program_is_written(self):
    # BUILD sets the attributes of the function that decodes bytes.
    build = b'}X\x0c\x00\x00\x00__defaults__X\x05\x00\x00\x00utf-8\x85s'
    self._assert_refused(
      b'\x80\x02c_codecs\nencode\nN' + build + b'\x86b.', 'refused or damaged'
    )
    contents, rows = _cifar10('python')
    _put(self.root, contents, 'cifar-10-batches-py')
    found = data.load_cifar10(self.root, 'test')['label']
    self.assertEqual(found.tolist(), rows[-1][1])

  def test_cut_pickle(self):
    contents, _ = _cifar10('python')
    self._assert_refused(
      contents['test_batch'][:500], 'damaged pickle of 500 bytes'
    )

  @parameterized.named_parameters(
    ('list', [1], 'expected a pickled dictionary, got list'),
    ('no_data', {b'labels': []}, "b'data' to be uint8 .* got NoneType"),
    (
      'shape',
      {b'data': np.zeros((2, 5), np.uint8)},
      r'uint8 \[n, 3072\], got uint8 \[2, 5\]',
    ),
    (
      'no_labels',
      {b'data': np.zeros((2, 3072), np.uint8)},
      "has no b'labels'; it has",
    ),
    (
      'few_labels',
      {b'data': np.zeros((2, 3072), np.uint8), b'labels': [1]},
      r'expected 2 labels, .* got shape \[1\]',
    ),
    (
      'large_labels',
      {b'data': np.zeros((1, 3072), np.uint8), b'labels': [10]},
      'labels from 10 to 10; expected 0 to 9',
    ),
    (
      'words',
      {b'data': np.zeros((1, 3072), np.uint8), b'labels': ['cat']},
      'not a list of integers',
    ),
  )
  def test_pickle_of_something_else(self, value, message):
    self._assert_refused(_python2(value), message)

  def test_cut_binary_file(self):
    contents, _ = _cifar10('binary')
    contents['test_batch.bin'] = contents['test_batch.bin'][:-5]
    _put(self.root, contents, 'cifar-10-batches-bin')
    with self.assertRaisesRegex(
      data.CorruptFileError, 'got 12,287 bytes; expected a multiple of 3073'
    ):
      data.load_cifar10(self.root, 'test')

  def test_cut_archive(self):
    contents, _ = _cifar10('python')
    name = 'cifar-10-python.tar.gz'
    _put(self.root, contents, 'cifar-10-batches-py', name)
    whole = (self.root / name).read_bytes()
    (self.root / name).write_bytes(whole[:-20000])
    with self.assertRaisesRegex(
      data.CorruptFileError,
      f'{name}: .*expected 170,498,071 bytes, got {len(whole) - 20000:,}',
    ):
      data.load_cifar10(self.root, 'test')

  def test_archive_of_something_else(self):
    _put(self.root, {'readme': b'hello'}, 'x', 'cifar-100-binary.tar.gz')
    with self.assertRaisesRegex(data.CorruptFileError, r'holds no test\.bin'):
      data.load_cifar100(self.root, 'test')


if __name__ == '__main__':
  absltest.main()
