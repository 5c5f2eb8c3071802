"""Finding the weights in files and folders."""

import shutil
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import weights
from tests.weights import containers
from tests.weights.containers import dictionary, finished, tensor

NUMBERS = np.arange(4, dtype='<f4').tobytes()


class Remote:
  """A path as `etils.epath` has it: a URL, without a file of the system."""

  def __init__(self, path):
    self._path = path

  def __str__(self):
    return f'memory://{self._path}'

  def __truediv__(self, name):
    return Remote(self._path / name)

  def __getattr__(self, name):
    if name in ('__fspath__', '_path'):
      raise AttributeError(name)
    return getattr(self._path, name)

  def __eq__(self, other):
    return self._path == other._path

  def __hash__(self):
    return hash(self._path)

  @property
  def parent(self):
    return Remote(self._path.parent)

  def with_name(self, name):
    return Remote(self._path.with_name(name))

  def replace(self, target):
    self._path.replace(target._path)


class StateDictTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = containers.folder(self)
    self.path = self.folder / 'checkpoint.pth.tar'

  def write(self, **entries):
    containers.write(
      'stream', self.path, finished(dictionary(**entries)), [('0', 4, NUMBERS)]
    )

  @parameterized.parameters('zip', 'legacy')
  def test_training_checkpoint(self, container):
    # Below 'state_dict', and without what DataParallel adds.
    path = containers.testdata(f'training_{container}.pth.tar')
    state = weights.open_state_dict(path)
    self.assertEqual(state.path, path)
    self.assertEqual(
      list(state),
      [
        '0.weight',
        '1.weight',
        '1.bias',
        '1.running_mean',
        '1.running_var',
        '1.num_batches_tracked',
        '2.weight',
        '2.bias',
      ],
    )
    np.testing.assert_array_equal(state['2.bias'], [0, 0.125])
    self.assertIn('2.bias', state)
    self.assertNotIn('module.2.bias', state)
    with self.assertRaises(KeyError):
      state['module.2.bias']

  def test_weights_alone(self):
    state = weights.open_state_dict(containers.testdata('everything_zip.pt'))
    self.assertLen(state, 23)

  def test_which_entry(self):
    weight = dictionary(w=tensor('0', 4, (2, 2), (2, 1)))
    average = dictionary(w=tensor('0', 4, (2, 2), (1, 2)))
    nested = dictionary(ema=average)
    self.write(state_dict=weight, state_dict_ema=average, deep=nested)
    with self.assertRaisesRegex(
      ValueError, "under 'state_dict' and 'state_dict_ema'; say which"
    ):
      weights.open_state_dict(self.path)
    for key, expected in (
      ('state_dict', [[0, 1], [2, 3]]),
      ('state_dict_ema', [[0, 2], [1, 3]]),
      ('deep.ema', [[0, 2], [1, 3]]),
    ):
      state = weights.open_state_dict(self.path, key=key)
      np.testing.assert_array_equal(state['w'], expected)
    with self.assertRaisesRegex(ValueError, "under key 'model'; it .*deep"):
      weights.open_state_dict(self.path, key='model')

  def test_no_weights(self):
    containers.write('zip', self.path, finished(dictionary(epoch=b'K\x03')))
    with self.assertRaisesRegex(ValueError, "no weights; it holds 'epoch'"):
      weights.open_state_dict(self.path)

  def test_wrappers_come_off_only_if_all_have_them(self):
    one = tensor('0', 4, (4,), (1,))
    names = {
      ('a', 'module.b'): ['a', 'module.b'],
      ('module.a', 'module.b'): ['a', 'b'],
      ('_orig_mod.a',): ['a'],
      ('module._orig_mod.a',): ['a'],
    }
    for before, after in names.items():
      self.write(**dict.fromkeys(before, one))
      self.assertEqual(list(weights.open_state_dict(self.path)), after)

  def test_folders(self):
    with self.assertRaisesRegex(FileNotFoundError, 'expected one of model'):
      weights.open_state_dict(self.folder)
    source = containers.testdata('everything_zip.pt')
    shutil.copy(source, self.folder / 'pytorch_model.bin')
    self.assertIn('slice', weights.open_state_dict(self.folder))
    weights.write_safetensors(
      self.folder / 'model.safetensors', {'newer': np.ones(1)}
    )
    self.assertEqual(list(weights.open_state_dict(self.folder)), ['newer'])
    with self.assertRaisesRegex(FileNotFoundError, 'no file .*other'):
      weights.open_state_dict(self.folder / 'other')

  def test_several_files_of_torch(self):
    for name in ('a', 'b'):
      containers.write_zip(
        self.folder / f'{name}.bin',
        finished(dictionary(**{name: tensor('0', 4, (4,), (1,))})),
        {'0': NUMBERS},
      )
    index = self.folder / 'pytorch_model.bin.index.json'
    index.write_text('{"weight_map": {"a": "a.bin", "b": "b.bin"}}')
    state = weights.open_state_dict(self.folder)
    np.testing.assert_array_equal(state['b'], range(4))

  def test_torch_to_safetensors(self):
    # All of a file, one array at a time.
    state = weights.open_state_dict(containers.testdata('training_zip.pth.tar'))
    path = self.folder / 'model.safetensors'
    weights.write_safetensors(path, state)
    again = weights.open_state_dict(path)
    self.assertCountEqual(again, state)
    for name in state:
      np.testing.assert_array_equal(again[name], state[name], strict=True)

  def test_urls(self):
    self.enterContext(
      mock.patch.object(weights.state_dict.files, 'as_path', lambda path: path)
    )
    folder = Remote(self.folder)
    for kind in ('everything_zip.pt', 'everything_legacy.pt'):
      state = weights.open_state_dict(Remote(containers.testdata(kind)))
      tensors = {n: x for n, x in state.items() if n != 'dtype.complex128'}
      self.assertLen(tensors, 22)
      for limit in (None, 100):
        path = folder / 'model.safetensors'
        weights.write_safetensors(path, tensors, max_shard_bytes=limit)
        again = weights.open_state_dict(folder)
        self.assertCountEqual(again, tensors)
        for name, array in tensors.items():
          np.testing.assert_array_equal(again[name], array, strict=True)

  def test_rename(self):
    self.write(a=tensor('0', 4, (4,), (1,)), b=tensor('0', 4, (), ()))
    state = weights.open_state_dict(self.path)
    self.assertEqual(list(state.rename(str.upper)), ['A', 'B'])
    with self.assertRaisesRegex(ValueError, 'two arrays are called x'):
      state.rename(lambda _: 'x')


if __name__ == '__main__':
  absltest.main()
