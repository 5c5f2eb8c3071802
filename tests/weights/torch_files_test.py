"""Files that torch wrote, and damaged ones."""

import random
import zipfile

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import weights
from jaxpapers.data import CorruptFileError
from tests.weights import containers

CONTAINERS = ('zip', 'legacy')
KINDS = (
  'bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64'
  ' complex64 complex128'
).split()


class TorchWroteTest(parameterized.TestCase):
  @parameterized.parameters(*CONTAINERS)
  def test_types(self, container):
    found = weights.read_torch(
      containers.testdata(f'everything_{container}.pt')
    )
    for kind in KINDS:
      array = found[f'dtype.{kind}']
      self.assertEqual(array.dtype, jnp.dtype(kind))
      numbers = np.arange(6) % 2 if kind == 'bool' else np.arange(6)
      np.testing.assert_array_equal(
        array, numbers.reshape(2, 3).astype(jnp.dtype(kind))
      )

  @parameterized.parameters(*CONTAINERS)
  def test_views(self, container):
    found = weights.read_torch(
      containers.testdata(f'everything_{container}.pt')
    )
    base = np.arange(24, dtype=np.float32)
    expected = {
      'whole': base.reshape(4, 6),
      'transposed': base.reshape(4, 6).T,
      'slice': base.reshape(4, 6)[1:3, 2::2],
      'expanded': np.full((3, 4), 5, np.float32),
      'permuted': base.reshape(2, 3, 4).transpose(2, 0, 1),
      'scalar': np.int64(7),
      'empty': np.zeros((0, 3), np.float32),
      'empty_middle': np.zeros((2, 0, 4), np.float16),
      'conjugate': np.array([1 - 2j, 3 + 4j], np.complex64),
      'negative': np.array([-2, 4], np.float32),
      'parameter': np.full((2, 2), 0.5, np.float32),
    }
    kinds = {f'dtype.{kind}' for kind in KINDS}
    self.assertSetEqual(set(found), set(expected) | kinds)
    for name, value in expected.items():
      with self.subTest(name):
        self.assertIsInstance(found[name], np.ndarray)
        self.assertEqual(found[name].dtype, value.dtype)
        np.testing.assert_array_equal(
          found[name], value, strict=name != 'scalar'
        )
    self.assertTrue(np.shares_memory(found['whole'], found['transposed']))
    self.assertFalse(np.shares_memory(found['whole'], found['parameter']))
    with self.assertRaises(ValueError):
      found['whole'][0] = 1  # It is the file.

  @parameterized.parameters(*CONTAINERS)
  def test_training_checkpoint(self, container):
    path = containers.testdata(f'training_{container}.pth.tar')
    found = weights.read_torch(path)
    self.assertEqual(found['epoch'], 250)
    self.assertEqual(found['rank1'], 0.5)
    self.assertEqual(found['betas'], (0.9, 0.98))
    self.assertEqual(found['seen'], {1, 2})
    np.testing.assert_array_equal(found['history'], np.arange(3.0))
    self.assertIsInstance(found['args'], weights.Opaque)
    self.assertEqual(found['args'].type_name, 'argparse.Namespace')
    self.assertEqual(found['args'].state, {'arch': 'tiny', 'lr': 0.25})
    kernel = np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3) / 8
    state = found['state_dict']
    self.assertIs(type(state), dict)
    np.testing.assert_array_equal(state['module.0.weight'], kernel)
    self.assertEqual(state['module.1.num_batches_tracked'].shape, ())
    momentum = found['optimizer']['state'][0]['momentum_buffer']
    np.testing.assert_array_equal(momentum, 4 * kernel)
    self.assertEqual(found['optimizer']['param_groups'][0]['lr'], 0.25)

  def test_newer_types(self):
    found = weights.read_torch(containers.testdata('newer_zip.pt'))
    for kind in ('uint16', 'float8_e4m3fn', 'float8_e5m2'):
      self.assertEqual(found[kind].dtype, jnp.dtype(kind))
      np.testing.assert_array_equal(found[kind].astype(np.float32), range(5))
    self.assertEqual(
      found['untyped'].tobytes(), np.arange(4, dtype='<i4').tobytes()
    )
    self.assertEqual(found['size'], (2, 3))
    self.assertEqual((found['device'], found['dtype']), ('cpu', 'bfloat16'))

  def test_big_endian(self):
    # What a machine of the other byte order writes.
    path = containers.folder(self) / 'big.pt'
    parts = {
      'f': ('FloatStorage', '>f4', 4),
      'z': ('ComplexDoubleStorage', '>c16', 4),
      'b': ('ByteStorage', 'u1', 4),
    }
    tensors, storages = {}, {}
    for key, (kind, dtype, size) in parts.items():
      tensors[key] = containers.tensor(key, size, (2, 2), (1, 2), kind=kind)
      numbers = np.arange(size) * (1 + 2j if 'c' in dtype else 1)
      storages[key] = numbers.astype(dtype).tobytes()
    bfloat = (
      np.arange(4).astype(jnp.bfloat16).view('u2').astype('>u2').tobytes()
    )
    tensors['h'] = containers.tensor('h', 4, (4,), (1,), kind='BFloat16Storage')
    containers.write_zip(
      path,
      containers.finished(containers.dictionary(**tensors)),
      {**storages, 'h': bfloat},
      members={'byteorder': b'big'},
    )
    found = weights.read_torch(path)
    expected = np.array([[0, 2], [1, 3]])
    np.testing.assert_array_equal(found['f'], expected)
    np.testing.assert_array_equal(found['z'], expected * (1 + 2j))
    np.testing.assert_array_equal(found['b'], expected)
    np.testing.assert_array_equal(found['h'].astype(np.float32), range(4))
    self.assertTrue(found['f'].dtype.isnative)

  def test_views_of_a_storage_in_the_stream(self):
    # Before 0.4 a storage could be a view of another.
    path = containers.folder(self) / 'old.pt'
    pickled = containers.finished(
      containers.tensor('1', 6, (2,), (1,), 1, view=(('9', 2, 3),))
    )
    containers.write_stream(
      path, pickled, [('1', 6, np.arange(6, dtype='<f4').tobytes())]
    )
    np.testing.assert_array_equal(weights.read_torch(path), [3, 4])

  def test_compressed_archive(self):
    path = containers.folder(self) / 'packed.pt'
    containers.write_zip(
      path,
      containers.finished(containers.tensor('0', 4, (4,), (1,))),
      {'0': np.ones(4, '<f4').tobytes()},
      compression=zipfile.ZIP_DEFLATED,
    )
    np.testing.assert_array_equal(weights.read_torch(path), np.ones(4))

  def test_numbers_are_read_when_they_are_asked_for(self):
    # The optimizer's numbers are damaged; the weights are not.
    path = containers.folder(self) / 'training.pth.tar'
    source = containers.testdata('training_zip.pth.tar')
    content = bytearray(source.read_bytes())
    momentum = np.arange(108, dtype='<f4') / 2
    content[content.index(momentum.tobytes())] ^= 1
    path.write_bytes(content)
    self.assertLen(dict(weights.open_state_dict(path)), 8)
    with self.assertRaisesRegex(CorruptFileError, 'checksum'):
      weights.read_torch(path)
    weights.read_torch(path, verify=False)


class DamagedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = containers.folder(self) / 'model.pt'

  def refused(self, pattern, content=None):
    if content is not None:
      self.path.write_bytes(content)
    with self.assertRaisesRegex(CorruptFileError, pattern) as caught:
      weights.read_torch(self.path)
    self.assertIn(str(self.path), str(caught.exception))

  @parameterized.parameters(
    (b'', 'is empty'),
    (b'version https://git-lfs', 'Git LFS pointer'),
    (b'<!DOCTYPE html>', 'a page of a web server'),
    (b'\x00' * 257 + b'ustar' + b'\x00' * 250, 'a tar archive'),
    (b'nothing', 'it begins with b'),
    (b'\x80\x02K\x01.', 'does not begin with its magic number but with int'),
    (b'\x80\x02}q\x00', 'damaged or cut short'),
  )
  def test_other_files(self, content, pattern):
    self.refused(pattern, content)

  def test_no_file(self):
    with self.assertRaisesRegex(FileNotFoundError, 'model.pt'):
      weights.read_torch(self.path)
    with self.assertRaises(IsADirectoryError):
      weights.read_torch(self.path.parent)

  @parameterized.parameters(0.1, 0.5, 0.9, 0.99)
  def test_cut_archive(self, share):
    content = containers.testdata('everything_zip.pt').read_bytes()
    self.refused('cut short', content[: int(share * len(content))])

  @parameterized.parameters(0.1, 0.5, 0.9, 0.99)
  def test_cut_stream(self, share):
    content = containers.testdata('everything_legacy.pt').read_bytes()
    self.refused('cut short', content[: int(share * len(content))])

  def test_foreign_archives(self):
    with zipfile.ZipFile(self.path, 'w') as archive:
      archive.writestr('a.npy', b'')
    self.refused('without data.pkl.*a.npy')
    containers.write_zip(
      self.path, b'', members={'constants.pkl': b'', 'version': b'3'}
    )
    self.refused('a TorchScript program, not weights')

  def test_archive_without_numbers(self):
    pickled = containers.finished(containers.tensor('0', 4, (4,), (1,)))
    containers.write_zip(self.path, pickled)
    self.refused('the archive lacks archive/data/0')
    containers.write_zip(self.path, pickled, {'0': bytes(12)})
    self.refused('data/0 has 12 bytes; its pickle says 16')
    containers.write_zip(
      self.path, pickled, {'0': bytes(16)}, members={'byteorder': b'middle'}
    )
    self.refused("byte order 'middle'")

  def test_stream_without_numbers(self):
    pickled = containers.finished(containers.tensor('0', 4, (4,), (1,)))
    containers.write_stream(self.path, pickled)
    self.refused('no numbers for storage 0')
    containers.write_stream(self.path, pickled, [('0', 3, bytes(12))])
    self.refused('storage 0 has 3 numbers .* its tensors say 4')
    containers.write_stream(self.path, pickled, [('1', 4, bytes(16))])
    self.refused("storage '1' is not the one of any tensor")
    containers.write_stream(self.path, pickled, version=1000)
    self.refused('version 1000 of the format')

  @parameterized.parameters(
    ((5,), (1,), 0),
    ((2, 2), (2, 2), 0),
    ((4,), (1,), 1),
    ((1,), (1,), 4),
    ((1,), (1,), -1),
    ((2,), (2**61,), 0),
    ((2**62,), (1,), 0),
  )
  def test_tensor_outside_of_its_storage(self, shape, strides, offset):
    containers.write_zip(
      self.path,
      containers.finished(containers.tensor('0', 4, shape, strides, offset)),
      {'0': bytes(16)},
    )
    self.refused('does not fit its storage of 4 numbers')

  @parameterized.parameters(*CONTAINERS)
  def test_random_damage_is_one_kind_of_error(self, container):
    # Seeded: cut files, and up to 20 bytes overwritten.
    draw = random.Random(0)
    source = containers.testdata(f'training_{container}.pth.tar').read_bytes()
    refused = 0
    for trial in range(150):
      content = bytearray(source[: draw.choice([None, draw.randrange(6439)])])
      for _ in range(draw.choice([1, 2, 20]) if content else 0):
        content[draw.randrange(len(content))] = draw.randrange(256)
      self.path.write_bytes(content)
      try:
        weights.read_torch(self.path, verify=bool(trial % 2))
      except CorruptFileError:
        refused += 1
    self.assertGreater(refused, 75)


if __name__ == '__main__':
  absltest.main()
