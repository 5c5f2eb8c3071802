"""Pickles that want more than tensors."""

import pathlib
import pickle

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import weights
from jaxpapers.data import CorruptFileError
from tests.weights import containers
from tests.weights.containers import called, finished, named, opcodes

CONTAINERS = ('zip', 'stream')


class MaliciousTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = containers.folder(self)
    self.path = self.folder / 'model.pt'
    self.mark = self.folder / 'mark'

  @parameterized.product(container=CONTAINERS, protocol=(0, 2, 4, 5))
  def test_code_is_refused_by_name_and_not_run(self, container, protocol):
    mark = str(self.mark)

    class Malicious:
      def __reduce__(self):
        return pathlib.os.mkdir, (mark,)

    pickled = pickle.dumps({'state_dict': [Malicious()]}, protocol)
    with self.subTest('the pickle does run code'):
      pickle.loads(pickled)
      self.assertTrue(self.mark.is_dir())
      self.mark.rmdir()
    containers.write(container, self.path, pickled)
    for read in (weights.read_torch, weights.open_state_dict):
      with self.assertRaisesRegex(
        weights.UnsafePickleError, r'asks for (posix|nt)\.mkdir'
      ) as caught:
        read(self.path)
      self.assertIn(str(self.path), str(caught.exception))
      self.assertEndsWith(caught.exception.name, '.mkdir')
    self.assertFalse(self.mark.exists())

  @parameterized.parameters(
    ('builtins', 'eval'),
    ('builtins', 'getattr'),
    ('__builtin__', 'eval'),
    ('os', 'system'),
    ('subprocess', 'Popen'),
    ('torch', 'load'),
    ('torch.hub', 'load'),
    ('torch._utils', '_rebuild_sparse_tensor'),
    ('torch.nn.modules.linear', 'Linear'),
    ('numpy', 'load'),
    ('numpy', 'memmap'),
    ('argparse', 'FileType'),
    ('argparse.Namespace', 'x'),
    ('fairseqx', 'f'),
    ('collections', 'OrderedDict.clear'),
  )
  def test_names_that_are_refused(self, module, name):
    for container in CONTAINERS:
      containers.write(container, self.path, finished(named(module, name)))
      with self.assertRaises(weights.UnsafePickleError) as caught:
        weights.read_torch(self.path)
      self.assertEqual(caught.exception.name, f'{module}.{name}')

  def test_opaque_objects_do_nothing(self):
    # As functions and as classes, with attributes and elements.
    mark = opcodes(str(self.mark))
    parts = [
      called(named('fairseq.tasks', 'setup'), mark),
      named('omegaconf.dictconfig', 'DictConfig') + b')\x81' + b'}' + b'b',
      named('fairseq.data', 'List') + b')\x81' + b'(K\x01K\x02e',
      named('fairseq.data', 'Map') + b')\x81' + opcodes('k') + b'K\x01s',
    ]
    containers.write('zip', self.path, finished(b'(' + b''.join(parts) + b't'))
    call, config, listed, mapped = weights.read_torch(self.path)
    self.assertEqual(call.type_name, 'fairseq.tasks.setup')
    self.assertEqual(call.args, (str(self.mark),))
    self.assertEqual(config.state, {})
    self.assertEqual(listed.items, [1, 2])
    self.assertEqual(mapped.items, [('k', 1)])
    self.assertFalse(self.mark.exists())

  def test_names_that_the_user_allows_stay_inert(self):
    pickled = finished(called(named('os', 'mkdir'), opcodes(str(self.mark))))
    containers.write('zip', self.path, pickled)
    found = weights.read_torch(self.path, opaque=('os.mkdir',))
    self.assertEqual(found.args, (str(self.mark),))
    self.assertFalse(self.mark.exists())
    with self.assertRaises(weights.UnsafePickleError):
      weights.read_torch(self.path, opaque=('os.mkdi', 'os', 'posix.'))

  def test_weights_beside_opaque_objects(self):
    numbers = np.arange(4, dtype='<f4').tobytes()
    tensor = containers.tensor('0', 4, (2, 2), (2, 1))
    held = named('argparse', 'Namespace') + b')\x81'
    held += containers.dictionary(w=tensor) + b'b'
    containers.write('stream', self.path, finished(held), [('0', 4, numbers)])
    found = weights.read_torch(self.path)
    np.testing.assert_array_equal(found.state['w'], [[0, 1], [2, 3]])

  @parameterized.parameters(
    # The class of opaque objects, what stands for functions, and types.
    (named('argparse', 'Namespace'),),
    (named('torch._utils', '_rebuild_tensor_v2'),),
    (named('torch', 'FloatStorage'),),
    (named('torch', 'float32'),),
    (named('collections', 'OrderedDict'),),
    (named('builtins', 'set'),),
    (named('numpy', 'ndarray'),),
    (containers.tensor('0', 4, (4,), (1,)),),
  )
  def test_attributes_of_ours_cannot_be_written(self, target):
    for state in (opcodes({'x': 1}), opcodes((None, {'x': 1}))):
      containers.write('zip', self.path, finished(target + state + b'b'))
      with self.assertRaises(CorruptFileError):
        weights.read_torch(self.path)

  @parameterized.parameters(
    # Tensors of strange arguments.
    (containers.tensor('0', 4, (2, 2), (1,)), 'with strides'),
    (containers.tensor('0', 4, (-1,), (1,)), 'shape'),
    (containers.tensor('0', 4, (2,), (-1,)), 'strides'),
    (containers.tensor('0', 4, (2.0,), (1,)), 'float where'),
    (containers.tensor('0', 'x', (2,), (1,)), 'str where'),
    (containers.tensor('0', 4, 7, (1,)), 'int'),
    (containers.tensor('0', 4, (2,), (1,), view=(('9', 3, 4),)), 'a view out'),
    (
      containers.tensor('0', 4, (2,), (1,)) + containers.tensor('0', 5, (), ()),
      'storage 0 of two kinds',
    ),
    (called(named('torch._utils', '_rebuild_tensor_v2')), 'argument'),
    (
      called(
        named('torch._utils', '_rebuild_tensor_v2'),
        *map(opcodes, (1, 0, (), (), False, None)),
      ),
      'without storage',
    ),
    (
      called(
        named('torch._tensor', '_rebuild_from_type_v2'),
        *map(opcodes, ('f', 't', (), None)),
      ),
      'a tensor made by',
    ),
    (b'(' + opcodes('storage') + b'tQ', 'a reference to'),
    (b'(' + opcodes('module') + b'NNNNtQ', 'a reference to'),
    # A memo of 4 billion places.
    (b'Nr\xff\xff\xff\xff0N', 'memo number 4294967295'),
    (b'Np4294967295\n0N', 'memo number 4294967295'),
    (b'\x8d\xff\xff\xff\xff\xff\xff\xff\x7f', ''),
  )
  def test_nonsense(self, stack, pattern):
    for container in CONTAINERS:
      containers.write(container, self.path, finished(stack))
      with self.assertRaisesRegex(CorruptFileError, pattern):
        weights.read_torch(self.path)

  def test_containers_within_themselves(self):
    containers.write('zip', self.path, finished(b']q\x00h\x00a'))
    found = weights.read_torch(self.path)
    self.assertIs(found[0], found)
    deep = b']' * 100_000 + b'a' * 99_999
    containers.write('zip', self.path, finished(deep))
    with self.assertRaisesRegex(CorruptFileError, 'Recursion'):
      weights.read_torch(self.path)

  def test_strings_of_python_2(self):
    # SHORT_BINSTRING, not ASCII: read as Latin-1.
    pickled = finished(b'}U\x03na\xefU\x01xs')
    containers.write('stream', self.path, pickled)
    self.assertEqual(weights.read_torch(self.path), {'na\xef': 'x'})

  def test_plain_types_of_python(self):
    factory = called(
      named('collections', 'defaultdict'), named('builtins', 'int')
    )
    counter = called(named('collections', 'Counter'), opcodes({'a': 2}))
    pickled = finished(b'(' + factory + counter + opcodes(1 + 2j) + b't')
    containers.write('zip', self.path, pickled)
    self.assertEqual(weights.read_torch(self.path), ({}, {'a': 2}, 1 + 2j))
    for protocol in (2, 5):  # The first has Python 2's names.
      kinds = (int, str, float, bool, list, dict)
      containers.write('zip', self.path, pickle.dumps(kinds, protocol))
      self.assertEqual(
        weights.read_torch(self.path),
        ('int', 'str', 'float', 'bool', 'list', 'dict'),
      )


if __name__ == '__main__':
  absltest.main()
