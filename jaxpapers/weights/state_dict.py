"""The weights in a file or folder, whatever library wrote it, by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpapers.data import files, restricted_pickle
from jaxpapers.weights import safetensors_files, torch_files, torch_pickle

# What a folder may hold, the first found is read.
FILES = (
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
  'model.pt',
)
# Wrappers of torch put these before every name.
WRAPPERS = ('module.', '_orig_mod.')


class StateDict(Mapping[str, np.ndarray]):
  """Arrays by name, each read from its file when it is asked for.

  A second look reads it again, so keep what is used often.

  Attributes:
    path: Where they come from, for messages.
  """

  def __init__(self, path: Any, readers: Mapping[str, Callable[[], Any]]):
    """Args: the path, and name -> function that reads the array."""
    self.path = path
    self._readers = dict(readers)

  def __getitem__(self, name: str) -> np.ndarray:
    return self._readers[name]()

  def __contains__(self, name: object) -> bool:
    return name in self._readers  # Mapping's own reads the array.

  def __iter__(self) -> Iterator[str]:
    return iter(self._readers)

  def __len__(self) -> int:
    return len(self._readers)

  def __repr__(self) -> str:
    return f'<StateDict of {len(self)} arrays from {self.path}>'

  def rename(self, rename: Callable[[str], str]) -> 'StateDict':
    """The same arrays under other names.

    Args:
      rename: From old to new name.

    Returns:
      The new mapping.

    Raises:
      ValueError: Two arrays would have the same name.
    """
    renamed: dict[str, Callable[[], Any]] = {}
    for name, reader in self._readers.items():
      if rename(name) in renamed:
        raise ValueError(f'{self.path}: two arrays are called {rename(name)}.')
      renamed[rename(name)] = reader
    return StateDict(self.path, renamed)


def open_state_dict(
  path: Any,
  *,
  key: str | None = None,
  opaque: Sequence[str] = (),
  verify: bool = True,
) -> StateDict:
  """Opens the weights in a file or folder of PyTorch or safetensors.

  Args:
    path: A .safetensors file, an index of several (.index.json), a file that
      torch.save wrote under whatever name, or a folder with one of them under
      the names that Hugging Face and fairseq use. Local or gs://.
    key: Where in a training checkpoint the weights are: 'state_dict_ema', or
      with dots for deeper ones. Found without it if only one entry holds
      arrays.
    opaque: As in `read_torch`.
    verify: As in `read_torch`.

  Returns:
    Name -> array; arrays are read one by one when they are asked for. What
    `DataParallel` and `torch.compile` put before every name is taken off.

  Raises:
    FileNotFoundError: There is nothing at the path, or a file is missing.
    UnsafePickleError: A file asks to run code.
    CorruptFileError: A file is damaged.
    ValueError: It is not clear which entry holds the weights.

  Example:
    >>> state = open_state_dict('model.pth.tar')  # doctest: +SKIP
    >>> state['conv1.weight'].shape  # doctest: +SKIP
    (64, 3, 7, 7)
  """
  path = files.as_path(path)
  if path.is_dir():
    found = files.find(path, FILES)
    if found is None:
      raise FileNotFoundError(
        f'{path} holds no weights; expected one of {", ".join(FILES)}.'
      )
    path = found
  if not path.exists():
    raise FileNotFoundError(f'There is no file {path}.')
  if path.name.endswith('.json'):
    return _open_shards(path, opaque, verify)
  state = _open_file(path, key, opaque, verify)
  return _unwrap(state)


def _open_file(path, key, opaque, verify) -> StateDict:
  with path.open('rb') as file:
    start = file.read(9)
  # Eight bytes of length, then the JSON header; or by its name, to say what is
  # wrong with it.
  if start[8:] == b'{' or path.name.endswith('.safetensors'):
    return StateDict(path, safetensors_files.read_safetensors(path))
  file = torch_files.TorchFile(path, opaque=opaque, verify=verify)
  weights = _find(file.tree, key, path)

  def reader(record):
    return lambda: np.asarray(file.numbers(record))

  return StateDict(
    path,
    {name: reader(x) for name, x in dict.items(weights) if _is_array(x)},
  )


def _open_shards(index, opaque, verify) -> StateDict:
  weight_map = safetensors_files.read_index(index)
  shards = {}
  for file in sorted(set(weight_map.values())):
    if not (index.parent / file).exists():
      raise FileNotFoundError(
        f'{index} refers to {file}, which is not beside it.'
      )
    shards[file] = _open_file(index.parent / file, None, opaque, verify)
  for name, file in weight_map.items():
    if name not in shards[file]:
      raise files.CorruptFileError(f'{index}: {file} does not hold {name}.')

  def reader(name, shard):
    return lambda: shard[name]

  readers = {name: reader(name, shards[f]) for name, f in weight_map.items()}
  return _unwrap(StateDict(index, readers))


def _unwrap(state: StateDict) -> StateDict:
  for prefix in WRAPPERS:
    if state and all(name.startswith(prefix) for name in state):
      state = state.rename(lambda name, prefix=prefix: name[len(prefix) :])
  return state


def _is_array(x) -> bool:
  return isinstance(x, torch_pickle.Tensor | restricted_pickle.Array)


def _holds_arrays(x) -> bool:
  return isinstance(x, dict) and any(
    isinstance(value, torch_pickle.Tensor) for value in dict.values(x)
  )


def _find(tree, key, path) -> dict:
  """The dictionary of a training checkpoint that holds the weights."""
  if key is not None:
    found = tree
    for part in (
      [key] if isinstance(tree, dict) and key in tree else key.split('.')
    ):
      found = found.get(part) if isinstance(found, dict) else None
    if not _holds_arrays(found):
      raise ValueError(
        f'{path}: there are no weights under key {key!r}; {_content(tree)}.'
      )
    return found
  if _holds_arrays(tree):
    return tree
  entries = dict.items(tree) if isinstance(tree, dict) else ()
  candidates = [name for name, x in entries if _holds_arrays(x)]
  if len(candidates) == 1:
    return tree[candidates[0]]
  if candidates:
    raise ValueError(
      f'{path} holds weights under {" and ".join(map(repr, candidates))}; say'
      f' which, as in key={candidates[0]!r}.'
    )
  raise ValueError(f'{path} holds no weights; {_content(tree)}.')


def _content(tree) -> str:
  if not isinstance(tree, dict):
    return f'it is {type(tree).__name__}'
  return f'it holds {", ".join(map(repr, list(tree)[:8])) or "nothing"}'
