"""Files of torch put together by hand, honest ones and others."""

import io
import pathlib
import pickle
import struct
import tempfile
import zipfile

from tests.helpers import goldens

_MAGIC = 0x1950A86A20F9469CFC6C


def folder(case):
  """A folder that goes with the test."""
  return pathlib.Path(case.enterContext(tempfile.TemporaryDirectory()))


def testdata(name):
  """Path of a file that torch wrote."""
  return goldens.path('weights', name)


def opcodes(value):
  """What puts a plain value on the stack of a pickle."""
  return pickle.dumps(value, 2)[2:-1]


def named(module, name):
  """What puts a global on the stack."""
  return f'c{module}\n{name}\n'.encode()


def called(function, *arguments):
  """What calls a global with arguments that are on the stack."""
  return function + b'(' + b''.join(arguments) + b'tR'


def finished(*parts):
  """A pickle of protocol 2 of what is on the stack."""
  return b'\x80\x02' + b''.join(parts) + b'.'


def storage(key, size, kind='FloatStorage', *view):
  """What puts a storage on the stack."""
  parts = [opcodes('storage'), named('torch', kind), opcodes(key)]
  parts += [opcodes('cpu'), opcodes(size), *map(opcodes, view)]
  return b'(' + b''.join(parts) + b'tQ'


def tensor(key, size, shape, strides, offset=0, kind='FloatStorage', view=()):
  """What puts a tensor on the stack."""
  return called(
    named('torch._utils', '_rebuild_tensor_v2'),
    storage(key, size, kind, *view),
    opcodes(offset),
    opcodes(shape),
    opcodes(strides),
    opcodes(False),
    called(named('collections', 'OrderedDict')),
  )


def dictionary(**values):
  """What puts a dictionary on the stack, of values that are opcodes."""
  pairs = b''.join(opcodes(name) + value for name, value in values.items())
  return b'}(' + pairs + b'u'


def write_zip(path, pickled, storages=None, *, root='archive', **options):
  """A zip container.

  Args:
    path: The file.
    pickled: Content of data.pkl.
    storages: Key -> bytes.
    root: Folder in the archive.
    **options: `members`, further ones; `compression` of zipfile.
  """
  compression = options.pop('compression', zipfile.ZIP_STORED)
  members = {'data.pkl': pickled, **options.pop('members', {})}
  for key, content in (storages or {}).items():
    members[f'data/{key}'] = content
  with zipfile.ZipFile(path, 'w', compression) as archive:
    for name, content in members.items():
      archive.writestr(f'{root}/{name}', content)


def write_stream(path, pickled, storages=(), *, magic=_MAGIC, version=1001):
  """A container of before 1.6.

  Args:
    path: The file.
    pickled: The pickle of the saved object.
    storages: Triples of key, number of elements, bytes.
    magic: The number that the file begins with.
    version: The one after that.
  """
  stream = io.BytesIO()
  for value in (magic, version, {'little_endian': True}):
    stream.write(pickle.dumps(value, 2))
  stream.write(pickled)
  stream.write(pickle.dumps([key for key, _, _ in storages], 2))
  for _, size, content in storages:
    stream.write(struct.pack('<q', size) + content)
  path.write_bytes(stream.getvalue())


def write(container, path, pickled, storages=()):
  """Either: 'zip' or 'stream'."""
  if container == 'zip':
    write_zip(path, pickled, {key: content for key, _, content in storages})
  else:
    write_stream(path, pickled, storages)
