"""The pickles inside PyTorch files, read without torch, run without effect.

A pickle is a program. Of what it may name, only the functions that put tensors
together are known here, and they are replaced by records that hold numbers;
configurations that lie beside the weights become `Opaque` objects, which do
nothing; anything else is refused by name.
"""

import collections
import pickle
import pickletools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpapers.data import files, restricted_pickle

# What training scripts put beside the weights: settings, without use for us
# but no reason to refuse the file. A name that ends with a dot is a prefix.
OPAQUE = (
  'argparse.Namespace',
  'fairseq.',
  'omegaconf.',
  'pathlib.',
  'typing.',
)


class UnsafePickleError(files.CorruptFileError):
  """A file asks for more than tensors and plain data, and was not read.

  Attributes:
    name: The global that it asks for, such as 'os.system'.
  """

  def __init__(self, message: str, name: str):
    super().__init__(message)
    self.name = name


class Storage(NamedTuple):
  """A stretch of numbers that tensors look at.

  Attributes:
    key: Its name in the file.
    dtype: Name of the type of its numbers; 'bytes' if tensors say it.
    size: How many numbers there are in the whole storage.
    start: Where in it this view begins; 0 but in old files.
    length: How many numbers belong to the view; `size` but in old files.
  """

  key: str
  dtype: str
  size: int
  start: int
  length: int


class Tensor(NamedTuple):
  """A tensor before its numbers are read.

  Attributes:
    storage: Where they are.
    dtype: Name of their type.
    offset: Index of the first one in the storage.
    shape: Its shape.
    strides: Steps between neighbours along each axis, in numbers.
    conjugate: Whether the conjugate of each number is meant.
    negative: Whether the negative is meant.
  """

  storage: Storage
  dtype: str
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  conjugate: bool = False
  negative: bool = False


class _Frozen(type):
  """Classes whose attributes a pickle cannot write."""

  def __setattr__(cls, name, value):
    raise AttributeError(f'{cls.__name__} is fixed')


class Opaque(metaclass=_Frozen):
  """An object of a class that is not known here, as plain data.

  Nothing of the class runs: what the pickle would have passed to it is kept.

  Attributes:
    type_name: Module and name of the class, such as 'argparse.Namespace'.
    args: What it would have been called with.
    state: Its attributes: a dictionary for ordinary classes.
    items: Elements of a list or pairs of a dictionary, if it is one of these.
  """

  type_name = ''

  def __new__(cls, *args, **kwargs):
    self = super().__new__(cls)
    self.args = (*args, *([kwargs] if kwargs else []))
    self.state = None
    self.items = []
    return self

  def __init__(self, *args, **kwargs):
    del args, kwargs

  def __setstate__(self, state):
    self.state = state

  def __setitem__(self, key, value):
    self.items.append((key, value))

  def append(self, value):
    """Takes an element of a list."""
    self.items.append(value)

  def extend(self, values):
    """Takes elements of a list."""
    self.items.extend(values)

  def __repr__(self):
    return f'<Opaque {self.type_name}>'


class Name(NamedTuple):
  """A type under its name: 'float32' for `torch.float32`, 'int' for `int`."""

  name: str


class _StorageType(NamedTuple):
  """`torch.FloatStorage` and the like."""

  dtype: str


# Names of torch's types -> ours.
DTYPES = {
  'bool': np.dtype(np.bool_),
  'uint8': np.dtype(np.uint8),
  'uint16': np.dtype(np.uint16),
  'uint32': np.dtype(np.uint32),
  'uint64': np.dtype(np.uint64),
  'int8': np.dtype(np.int8),
  'int16': np.dtype(np.int16),
  'int32': np.dtype(np.int32),
  'int64': np.dtype(np.int64),
  'float16': np.dtype(np.float16),
  'bfloat16': np.dtype(jnp.bfloat16),
  'float32': np.dtype(np.float32),
  'float64': np.dtype(np.float64),
  'complex64': np.dtype(np.complex64),
  'complex128': np.dtype(np.complex128),
  'float8_e4m3fn': np.dtype(jnp.float8_e4m3fn),
  'float8_e4m3fnuz': np.dtype(jnp.float8_e4m3fnuz),
  'float8_e5m2': np.dtype(jnp.float8_e5m2),
  'float8_e5m2fnuz': np.dtype(jnp.float8_e5m2fnuz),
}
_STORAGES = {
  'BoolStorage': 'bool',
  'ByteStorage': 'uint8',
  'CharStorage': 'int8',
  'ShortStorage': 'int16',
  'IntStorage': 'int32',
  'LongStorage': 'int64',
  'HalfStorage': 'float16',
  'BFloat16Storage': 'bfloat16',
  'FloatStorage': 'float32',
  'DoubleStorage': 'float64',
  'ComplexFloatStorage': 'complex64',
  'ComplexDoubleStorage': 'complex128',
}


def itemsize(dtype: str) -> int:
  """Bytes of a number in a storage."""
  return 1 if dtype == 'bytes' else DTYPES[dtype].itemsize


def _integer(value) -> int:
  if type(value) is not int:
    raise pickle.UnpicklingError(
      f'{type(value).__name__} where a tensor needs an integer'
    )
  return value


def _tensor(storage, offset, shape, strides, dtype=None, metadata=None):
  if not isinstance(storage, Storage):
    raise pickle.UnpicklingError(f'a tensor without storage: {storage!r}')
  shape = tuple(map(_integer, shape))
  strides = tuple(map(_integer, strides))
  if len(shape) != len(strides) or min((*shape, *strides, 0)) < 0:
    raise pickle.UnpicklingError(
      f'a tensor of shape {shape} with strides {strides}'
    )
  bits = metadata if isinstance(metadata, dict) else {}
  return Tensor(
    storage,
    dtype or storage.dtype,
    _integer(offset),
    shape,
    strides,
    bool(bits.get('conj')),
    bool(bits.get('neg')),
  )


def _rebuild_v2(
  storage, offset, shape, strides, requires_grad=False, hooks=None, bits=None
):
  del requires_grad, hooks
  return _tensor(storage, offset, shape, strides, metadata=bits)


def _rebuild_v3(
  storage, offset, shape, strides, requires_grad, hooks, dtype, bits=None
):
  del requires_grad, hooks
  if not isinstance(dtype, Name):
    raise pickle.UnpicklingError(f'a tensor of type {dtype!r}')
  return _tensor(storage, offset, shape, strides, dtype.name, bits)


def _first(data, *_):
  """Parameters: their numbers without gradient, hooks and attributes."""
  return data


def _rebuild_from_type(function, kind, args, state):
  """A tensor with attributes: the tensor."""
  del kind, state
  if not isinstance(function, restricted_pickle.Call):
    raise pickle.UnpicklingError(f'a tensor made by {function!r}')
  return function(*args)


def _default_dict(factory=None, *_):
  # Missing keys have no meaning in a file that has been read.
  del factory
  return collections.OrderedDict()


def _counter(counts=()):
  return collections.OrderedDict(counts)


def _allowed() -> dict[tuple[str, str], Any]:
  names = dict(restricted_pickle.numpy_globals())
  names.update(
    {
      ('collections', 'OrderedDict'): collections.OrderedDict,
      ('collections', 'defaultdict'): restricted_pickle.Call(_default_dict),
      ('collections', 'Counter'): restricted_pickle.Call(_counter),
      ('torch', 'Size'): restricted_pickle.Call(tuple),
      ('torch', 'device'): restricted_pickle.Call(
        lambda *args: ':'.join(map(str, args))
      ),
      ('torch', 'Tensor'): Name('tensor'),
      ('torch.nn.parameter', 'Parameter'): Name('parameter'),
      ('torch._utils', '_rebuild_tensor'): restricted_pickle.Call(_tensor),
      ('torch._utils', '_rebuild_tensor_v2'): restricted_pickle.Call(
        _rebuild_v2
      ),
      ('torch._utils', '_rebuild_tensor_v3'): restricted_pickle.Call(
        _rebuild_v3
      ),
      ('torch._utils', '_rebuild_parameter'): restricted_pickle.Call(_first),
      ('torch._utils', '_rebuild_parameter_with_state'): restricted_pickle.Call(
        _first
      ),
      ('torch._tensor', '_rebuild_from_type_v2'): restricted_pickle.Call(
        _rebuild_from_type
      ),
      ('torch.storage', 'UntypedStorage'): _StorageType('bytes'),
      ('torch.storage', '_UntypedStorage'): _StorageType('bytes'),
      ('torch', 'UntypedStorage'): _StorageType('bytes'),
    }
  )
  for module in ('builtins', '__builtin__'):  # Python 3's name and Python 2's
    for name in ('dict', 'int', 'list', 'float', 'str', 'bool', 'tuple'):
      # As the factory of a defaultdict or the type of a setting.
      names[module, name] = Name(name)
    for kind in (set, frozenset, complex, slice):
      names[module, kind.__name__] = restricted_pickle.Call(kind)
  # What Python 3 writes for its int and str in a pickle of protocol 2.
  names['__builtin__', 'long'] = Name('int')
  names['__builtin__', 'unicode'] = Name('str')
  for name, dtype in _STORAGES.items():
    for module in ('torch', 'torch.cuda'):
      names[module, name] = _StorageType(dtype)
  for name in DTYPES:
    names['torch', name] = Name(name)
  return names


class TensorUnpickler(pickle.Unpickler):
  """Reads one pickle; tensors become `Tensor` records.

  Attributes:
    storages: Key -> the storage as the pickle first describes it.
  """

  _names = _allowed()

  def __init__(self, file: Any, opaque: Sequence[str] = ()):
    # Latin-1 keeps the bytes of strings that Python 2 wrote.
    super().__init__(file, encoding='latin1')
    self.storages: dict[str, Storage] = {}
    self._opaque = (*OPAQUE, *opaque)
    self._classes: dict[str, type] = {}

  def find_class(self, module, name):
    known = self._names.get((module, name))
    if known is not None:
      return known
    full = f'{module}.{name}'
    if not any(
      full.startswith(entry) if entry.endswith('.') else full == entry
      for entry in self._opaque
    ):
      raise UnsafePickleError(full, full)
    if full not in self._classes:
      self._classes[full] = _Frozen('Opaque', (Opaque,), {'type_name': full})
    return self._classes[full]

  def persistent_load(self, pid):
    if (
      not isinstance(pid, tuple)
      or len(pid) not in (5, 6)
      or pid[0] != 'storage'
      or not isinstance(pid[1], _StorageType)
      or not isinstance(pid[2], str)
    ):
      raise pickle.UnpicklingError(f'a reference to {pid!r:.100}')
    _, kind, key, _, size, *view = pid
    whole = Storage(key, kind.dtype, _integer(size), 0, size)
    known = self.storages.setdefault(key, whole)
    if known != whole:
      raise pickle.UnpicklingError(f'storage {key} of two kinds')
    if view and view[0] is not None:
      _, start, length = view[0]
      start, length = _integer(start), _integer(length)
      if not 0 <= start <= start + length <= size:
        raise pickle.UnpicklingError(f'a view outside of storage {key}')
      whole = whole._replace(start=start, length=length)
    return whole


def load(file: Any, name: Any, opaque: Sequence[str] = ()) -> Any:
  """Reads the pickle at a file's position, and stops behind it.

  Args:
    file: Open for reading, with `tell` and `seek`.
    name: What to call it in errors.
    opaque: Further names, or prefixes that end with a dot, that become
      `Opaque` objects instead of being refused.

  Returns:
    The object, and the storages that it refers to.

  Raises:
    UnsafePickleError: It asks for a global that is not known.
    CorruptFileError: It is damaged or cut short.
  """
  start = file.tell()
  try:
    _check_memo(file)
    file.seek(start)
    unpickler = TensorUnpickler(file, opaque)
    return unpickler.load(), unpickler.storages
  except UnsafePickleError as error:
    raise UnsafePickleError(
      f'{name}: refused: its pickle asks for {error.name}, which is neither a'
      ' tensor nor plain data; such a file could run code. Nothing of it was'
      ' run. If that is only a setting saved beside the weights, name it in'
      f" opaque=('{error.name}',): it is then read as an inert object.",
      error.name,
    ) from None
  except Exception as error:  # a damaged pickle raises nearly anything
    raise files.CorruptFileError(
      f'{name}: the pickle at byte {start:,} is damaged or cut short:'
      f' {type(error).__name__}: {error}.'
    ) from error


def _check_memo(file) -> None:
  """Refuses memo numbers that no writer uses.

  The memo is an array: a number of ten digits would take tens of gigabytes.
  """
  for count, (code, argument, _) in enumerate(pickletools.genops(file)):
    if 'PUT' in code.name and argument > count + 1:
      raise pickle.UnpicklingError(
        f'memo number {argument} in operation {count}'
      )
