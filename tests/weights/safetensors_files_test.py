"""Safetensors: written whole or not at all, read one by one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from etils import epath

from jaxpapers import weights
from jaxpapers.data import CorruptFileError
from tests.weights import containers

KINDS = (
  'bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16'
  ' float32 float64 complex64'
).split()


class SafetensorsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = containers.folder(self)
    self.path = self.folder / 'model.safetensors'

  def files(self):
    return sorted(path.name for path in self.folder.iterdir())

  @parameterized.parameters(((),), (('float8_e4m3fn', 'float8_e5m2'),))
  def test_types(self, more):
    kinds = (*KINDS, *more)
    tensors = {kind: np.arange(6).astype(jnp.dtype(kind)) for kind in kinds}
    weights.write_safetensors(self.path, tensors)
    found = weights.open_state_dict(self.path)
    self.assertCountEqual(found, tensors)
    for kind, array in tensors.items():
      self.assertEqual(found[kind].dtype, jnp.dtype(kind))
      self.assertEqual(found[kind].tobytes(), array.tobytes())

  def test_any_memory_layout(self):
    # The library itself writes the memory as it lies.
    base = np.arange(24.0).reshape(4, 6)
    tensors = {
      'transposed': base.T,
      'every_other': base[::2, ::-3],
      'repeated': np.broadcast_to(base[0], (3, 6)),
      'big_endian': base.astype('>f4'),
      'scalar': np.float32(7),
      'empty': np.zeros((0, 3)),
      'jax': jnp.arange(3),
    }
    weights.write_safetensors(self.path, tensors)
    found = weights.open_state_dict(self.path)
    for name, array in tensors.items():
      self.assertEqual(found[name].shape, array.shape)
      np.testing.assert_array_equal(found[name], array)

  def test_header(self):
    # Other libraries look for the format.
    weights.write_safetensors(self.path, {'a': np.ones(2)})
    content = self.path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
    self.assertEqual(header['__metadata__'], {'format': 'pt'})
    # Others may read it if they may read other new files.
    (self.folder / 'plain').touch()
    mode = (self.folder / 'plain').stat().st_mode
    (self.folder / 'plain').unlink()
    self.assertEqual(self.path.stat().st_mode, mode)
    self.assertEqual(self.files(), ['model.safetensors'])

  def test_path_of_etils(self):
    weights.write_safetensors(epath.Path(self.path), {'a': np.ones(3)})
    self.assertEqual(self.files(), ['model.safetensors'])
    np.testing.assert_array_equal(
      weights.open_state_dict(epath.Path(self.path))['a'], np.ones(3)
    )

  def test_several_files(self):
    tensors = {f't{i}': np.full(10, i, np.float32) for i in range(5)}
    paths = weights.write_safetensors(self.path, tensors, max_shard_bytes=90)
    names = [f'model-0000{k}-of-00003.safetensors' for k in (1, 2, 3)]
    index = 'model.safetensors.index.json'
    self.assertEqual([path.name for path in paths], [*names, index])
    self.assertEqual(self.files(), [*names, index])
    content = json.loads((self.folder / index).read_text())
    self.assertEqual(content['metadata'], {'total_size': 200})
    self.assertEqual(content['weight_map']['t2'], names[1])
    for path in (self.folder, self.folder / index):
      found = weights.open_state_dict(path)
      self.assertCountEqual(found, tensors)
      for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)

  def test_an_array_may_be_larger_than_a_file(self):
    tensors = {'a': np.ones(100), 'b': np.ones(1), 'c': np.ones(1)}
    paths = weights.write_safetensors(self.path, tensors, max_shard_bytes=16)
    self.assertLen(paths, 3)

  def test_what_was_there_before_goes(self):
    many = {f't{i}': np.zeros(10) for i in range(5)}
    weights.write_safetensors(self.path, {'old': np.zeros(1)})
    weights.write_safetensors(self.path, many, max_shard_bytes=90)
    self.assertCountEqual(weights.open_state_dict(self.folder), many)
    weights.write_safetensors(self.path, many, max_shard_bytes=200)
    self.assertLen(self.files(), 4)
    weights.write_safetensors(self.path, {'new': np.zeros(1)})
    self.assertEqual(self.files(), ['model.safetensors'])
    self.assertEqual(list(weights.open_state_dict(self.folder)), ['new'])

  def test_a_failure_leaves_what_was_there(self):
    weights.write_safetensors(self.path, {'a': np.ones(2)})
    before = self.path.read_bytes()

    class Breaks(dict):
      def __getitem__(self, name):
        if name == 'b':
          raise OSError('the disk is full')
        return super().__getitem__(name)

    tensors = Breaks(a=np.zeros(10), b=np.zeros(10))
    for limit in (None, 90):
      with self.assertRaisesRegex(OSError, 'full'):
        weights.write_safetensors(self.path, tensors, max_shard_bytes=limit)
      self.assertEqual(self.files(), ['model.safetensors'])
      self.assertEqual(self.path.read_bytes(), before)

  def test_refused(self):
    with self.assertRaisesRegex(TypeError, 'z is complex128.*complex64'):
      weights.write_safetensors(self.path, {'z': np.zeros(1, complex)})
    with self.assertRaisesRegex(TypeError, 'f is float,'):
      weights.write_safetensors(self.path, {'f': 1.0})
    with self.assertRaisesRegex(TypeError, '3 is no name'):
      weights.write_safetensors(self.path, {3: np.zeros(1)})
    with self.assertRaisesRegex(ValueError, 'expected a name in .safetensors'):
      weights.write_safetensors(self.folder / 'model.bin', {})
    with self.assertRaisesRegex(ValueError, 'max_shard_bytes is 0'):
      weights.write_safetensors(self.path, {}, max_shard_bytes=0)
    key = jax.random.key(0)
    with self.assertRaisesRegex(TypeError, 'key'):
      weights.write_safetensors(self.path, {'key': key})
    self.assertEqual(self.files(), [])

  @parameterized.parameters(0, 4, 9, 40, 150)
  def test_cut_files(self, length):
    weights.write_safetensors(self.path, {'a': np.ones(20), 'b': np.ones(2)})
    self.path.write_bytes(self.path.read_bytes()[:length])
    with self.assertRaisesRegex(
      CorruptFileError, f'model.safetensors.* It has {length} bytes'
    ):
      weights.open_state_dict(self.path)

  @parameterized.parameters(
    ('{', 'not an index'),
    ('{"a": 1}', 'weight_map'),
    ('{"weight_map": 3}', 'not an index'),
    ('{"weight_map": {"a": "../model.safetensors"}}', 'expected a file beside'),
    ('{"weight_map": {"a": "/etc/passwd"}}', 'expected a file beside'),
    ('{"weight_map": {"a": ".."}}', "a is in '..'"),
    ('{"weight_map": {"a": 1}}', 'a is in 1'),
    ('{"weight_map": {"x": "model.safetensors"}}', 'does not hold x'),
  )
  def test_bad_index(self, content, pattern):
    weights.write_safetensors(self.path, {'a': np.ones(2)})
    index = self.folder / 'other.index.json'
    index.write_text(content)
    with self.assertRaisesRegex(CorruptFileError, pattern):
      weights.open_state_dict(index)

  def test_missing_file_of_an_index(self):
    tensors = {'a': np.ones(2), 'b': np.ones(2)}
    first, *_ = weights.write_safetensors(self.path, tensors, max_shard_bytes=8)
    first.unlink()
    with self.assertRaisesRegex(FileNotFoundError, f'refers to {first.name}'):
      weights.open_state_dict(self.folder)


if __name__ == '__main__':
  absltest.main()
