"""Tables that say which array of a checkpoint is which leaf of a tree.

One table serves both directions.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.weights import layouts, trees
from jaxpapers.weights.mismatch import Misshaped, WeightMismatchError, matches

_FIELD = re.compile(r'\{([a-z]+)([+-]\d+)?(:word)?\}')


@dataclasses.dataclass(frozen=True)
class Rule:
  """One line of a table.

  Names are templates: `{i}` stands for a number, the same on both sides;
  `{i+1}` for one more, `{n:word}` for a word without dots and slashes. A number
  that the target lacks becomes a leading axis of the leaf: the line
  'layer.{i}.weight' -> 'layers/kernel' stacks the layers.

  Attributes:
    source: Name in the checkpoint.
    target: Path in the tree; several if the array holds several leaves, one
      after another along its first axis.
    layout: How the axes change.
    aliases: Other names of the array. They are read, never written.
  """

  source: str
  target: str | tuple[str, ...]
  layout: layouts.Layout = layouts.COPY
  aliases: tuple[str, ...] = ()

  @property
  def targets(self) -> tuple[str, ...]:
    """The target, or several, as a tuple."""
    return (self.target,) if isinstance(self.target, str) else self.target

  @property
  def stacked(self) -> str | None:
    """Name of the number that is a leading axis of the leaf, if any."""
    extra = _fields(self.source) - _fields(self.targets[0])
    if len(extra) > 1:
      raise ValueError(
        f'{self.source} has numbers {sorted(extra)} that {self.target} lacks;'
        ' expected one at most.'
      )
    return next(iter(extra), None)


class _Piece(NamedTuple):
  """What a rule takes of an array for a leaf."""

  name: str
  rule: Rule
  part: int
  index: int | None

  def read(self, array: np.ndarray) -> np.ndarray:
    parts = len(self.rule.targets)
    if parts > 1:
      if array.ndim == 0 or len(array) % parts:
        raise ValueError(f'{array.shape} cannot be split into {parts}')
      size = len(array) // parts
      array = array[self.part * size : (self.part + 1) * size]
    return self.rule.layout.read(array)

  def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape that an array should have for a leaf."""
    # Without memory, whatever the shape.
    blank = np.broadcast_to(np.zeros((), np.bool_), leaf)
    try:
      shape = self.rule.layout.write(blank).shape
    except (ValueError, IndexError):
      return None
    return (len(self.rule.targets) * shape[0], *shape[1:]) if shape else shape


class RenameTable:
  """Lines, and what is done to the names of a checkpoint before.

  Attributes:
    rules: The lines. For a leaf with several, all that a checkpoint has must
      agree; the first is used for writing.
    renames: Pairs of a regular expression and its replacement, applied in
      order to the names of a checkpoint (`re.sub`) before the lines are.
    ignored: Regular expressions; arrays in whose (new) name one is found are
      left out.

  Example:
    >>> table = RenameTable([Rule('fc.weight', 'fc/kernel', layouts.LINEAR)])
    >>> like = {'fc': {'kernel': jax.ShapeDtypeStruct((3, 2), 'float32')}}
    >>> tree = table.to_tree({'fc.weight': np.ones((2, 3), 'float32')}, like)
    >>> tree['fc']['kernel'].shape, list(table.to_state_dict(tree))
    ((3, 2), ['fc.weight'])
  """

  def __init__(
    self,
    rules: Sequence[Rule],
    *,
    renames: Sequence[tuple[str, str]] = (),
    ignored: Sequence[str] = (),
  ):
    """Args: see the attributes."""
    self.rules = tuple(rules)
    self.renames = tuple((re.compile(p), to) for p, to in renames)
    self.ignored = tuple(ignored)
    self._sources = [
      (rule, _Pattern(name))
      for rule in self.rules
      for name in (rule.source, *rule.aliases)
    ]

  def canonical(self, name: str) -> str | None:
    """Name of a checkpoint's array after the renames; None if it is ignored."""
    for pattern, replacement in self.renames:
      name = pattern.sub(replacement, name)
    return None if matches(self.ignored, name) else name

  def targets(self, name: str) -> list[str]:
    """Paths of the leaves that an array of the checkpoint is, or is part of."""
    name = self.canonical(name)
    return [] if name is None else [path for path, _ in self._pieces(name)]

  def to_tree(
    self,
    state: Mapping[str, Any],
    like: Mapping[str, Any],
    *,
    dtype: Any = None,
    shardings: Any = None,
    strict: bool = True,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
  ) -> dict[str, Any]:
    """Reads a checkpoint into a tree.

    Args:
      state: Name -> array; `open_state_dict` gives one that reads array by
        array.
      like: Nested mappings of ShapeDtypeStructs (`jax.eval_shape` of `init`) or
        arrays, the tree that is wanted.
      dtype: Type of floating-point leaves; those of `like` by default.
      shardings: A Sharding for all leaves, or a tree of them: each process then
        puts its part of each leaf on its devices at once. By default the
        leaves are NumPy arrays, maybe read-only views of the file.
      strict: Whether anything missing or unexpected is an error; if not, they
        are left out. Other shapes always are errors.
      allow_missing: Patterns of paths that may be missing: these leaves are
        left out of the result.
      allow_unexpected: Patterns of names that may have no place.

    Returns:
      Nested dictionaries.

    Raises:
      WeightMismatchError: With everything that is missing, unexpected or of
        another shape.
      ValueError: Two arrays for one leaf differ, or have another kind of type.
    """
    wanted = trees.flatten(like)
    pieces, unexpected = self._assign(state, wanted)
    missing = [
      path
      for path in wanted
      if not self._complete(pieces.get(path), wanted[path])
    ]
    leaves = [path for path in wanted if path not in missing]
    if not strict:
      missing, unexpected = [], []
    missing = [p for p in missing if not matches(allow_missing, p)]
    unexpected = [n for n in unexpected if not matches(allow_unexpected, n)]
    misshaped: list[Misshaped] = []
    placed = {}
    targets = _shardings(shardings, like)
    for path in leaves:
      leaf = _read_leaf(
        state, pieces[path], path, wanted[path].shape, misshaped
      )
      if not (missing or unexpected or misshaped):
        leaf = _cast(
          leaf, dtype, wanted[path].dtype, path, pieces[path][0].name
        )
        placed[path] = _place(leaf, targets.get(path))
    if missing or unexpected or misshaped:
      raise WeightMismatchError(
        missing,
        unexpected,
        misshaped,
        getattr(state, 'path', 'The checkpoint'),
      )
    return trees.unflatten(placed)

  def to_state_dict(self, tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Writes a tree under the names of the checkpoint.

    Args:
      tree: Nested mappings of arrays.

    Returns:
      Name -> NumPy array, in the order of the rules.

    Raises:
      WeightMismatchError: No line speaks of some leaf, or only a part of an
        array is there.
      ValueError: Two leaves that are one array differ.
    """
    flat = trees.flatten(tree)
    state: dict[str, np.ndarray] = {}
    claimed: set[str] = set()
    missing: list[str] = []
    for rule in self.rules:
      patterns = [_Pattern(target) for target in rule.targets]
      found: dict[tuple, dict[int, str]] = {}
      for path in flat:
        for part, pattern in enumerate(patterns):
          values = pattern.values(path)
          if values is not None and path not in claimed:
            key = tuple(sorted(values.items()))
            found.setdefault(key, {})[part] = path
      for key, parts in found.items():
        if len(parts) < len(patterns):
          filled = [_fill(target, dict(key)) for target in rule.targets]
          missing += [p for k, p in enumerate(filled) if k not in parts]
          continue
        claimed.update(parts.values())
        arrays = [_to_host(flat[parts[k]], parts[k]) for k in sorted(parts)]
        _write(state, rule, dict(key), arrays)
    left = [path for path in flat if path not in claimed]
    if missing or left:
      raise WeightMismatchError(missing, left, [], 'The tree')
    return state

  def _pieces(self, name: str) -> list[tuple[str, _Piece]]:
    found = []
    for rule, pattern in self._sources:
      values = pattern.values(name)
      if values is None:
        continue
      stacked = rule.stacked
      index = None if stacked is None else int(values[stacked])
      for part, target in enumerate(rule.targets):
        path = _fill(target, values)
        found.append((path, _Piece(name, rule, part, index)))
    return found

  def _assign(self, state, wanted):
    """Pieces of each leaf, and names without a place."""
    pieces: dict[str, list[_Piece]] = {}
    unexpected = []
    for name in state:
      canonical = self.canonical(name)
      if canonical is None:
        continue
      used = False
      for path, piece in self._pieces(canonical):
        if path in wanted and (
          piece.index is None or piece.index < (*wanted[path].shape, 0)[0]
        ):
          pieces.setdefault(path, []).append(piece._replace(name=name))
          used = True
      if not used:
        unexpected.append(name)
    return pieces, unexpected

  @staticmethod
  def _complete(pieces, leaf) -> bool:
    if not pieces:
      return False
    indices = {piece.index for piece in pieces}
    return indices == {None} or len(indices) == (*leaf.shape, 0)[0]


class _Pattern:
  """A template as a regular expression."""

  def __init__(self, template: str):
    text, end, self._offsets = '', 0, {}
    for match in _FIELD.finditer(template):
      name, offset, word = match.groups()
      text += re.escape(template[end : match.start()])
      if name in self._offsets:
        text += f'(?P={name})'
      else:
        text += f'(?P<{name}>{"[^./]+" if word else "[0-9]+"})'
      self._offsets[name] = int(offset or 0)
      end = match.end()
    self._regex = re.compile(text + re.escape(template[end:]))

  def values(self, text: str) -> dict[str, str] | None:
    """What stands for each field in a text, or None if it does not match."""
    match = self._regex.fullmatch(text)
    if match is None:
      return None
    return {
      name: str(int(value) - self._offsets[name])
      if self._offsets[name]
      else value
      for name, value in match.groupdict().items()
    }


def _fields(template: str) -> set[str]:
  return {match.group(1) for match in _FIELD.finditer(template)}


def _fill(template: str, values: Mapping[str, str]) -> str:
  def value(match):
    name, offset, _ = match.groups()
    return str(int(values[name]) + int(offset)) if offset else values[name]

  return _FIELD.sub(value, template)


def _read_leaf(state, pieces, path, shape, misshaped):
  """The array of a leaf in the tree's layout; notes what has another shape."""
  stacked = pieces[0].index is not None
  inner = tuple(shape[1:]) if stacked else tuple(shape)
  by_index: dict[int | None, np.ndarray] = {}
  names: dict[int | None, str] = {}
  for piece in pieces:
    array = np.asarray(state[piece.name])
    try:
      leaf = piece.read(array)
      fits = leaf.shape == inner
    except (ValueError, IndexError):
      fits = False
    if not fits:
      expected = piece.shape(inner)
      misshaped.append(
        Misshaped(path, piece.name, array.shape, expected, tuple(shape))
      )
      continue
    other = by_index.setdefault(piece.index, leaf)
    first = names.setdefault(piece.index, piece.name)
    if other is not leaf and not np.array_equal(other, leaf, equal_nan=True):
      raise ValueError(
        f'{first} and {piece.name} are both {path}, but differ. Remove the one'
        ' that is not meant.'
      )
  if not stacked:
    return by_index.get(None)
  if len(by_index) < shape[0]:
    return None
  return np.stack([by_index[i] for i in range(shape[0])])


def _cast(array, dtype, own, path, name):
  floating = jnp.issubdtype(own, jnp.floating)
  dtype = np.dtype(dtype if dtype is not None and floating else own)
  if array.dtype == dtype:
    return array
  if floating != jnp.issubdtype(array.dtype, jnp.floating):
    raise ValueError(
      f'{path}: {name} is {array.dtype}; expected a type of the kind of'
      f' {dtype}. Quantized weights are not read.'
    )
  return array.astype(dtype)


def _shardings(shardings, like) -> dict[str, Any]:
  if shardings is None:
    return {}
  if isinstance(shardings, jax.sharding.Sharding):
    return dict.fromkeys(trees.flatten(like), shardings)
  return trees.flatten(shardings)


def _place(array, sharding):
  if sharding is None:
    return array
  # Copied: on a CPU the result would else lie on the mapped file.
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: np.array(array[index])
  )


def _to_host(leaf, path) -> np.ndarray:
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    raise ValueError(
      f'{path} lies on devices of other processes too. Gather it first, as with'
      ' jax.experimental.multihost_utils.process_allgather.'
    )
  return np.asarray(leaf)


def _write(state, rule, values, arrays) -> None:
  """Adds what a rule makes of leaves to a state dict."""
  stacked = rule.stacked
  if stacked is None:
    entries = [(values, arrays)]
  else:
    entries = [
      ({**values, stacked: str(i)}, [array[i] for array in arrays])
      for i in range(len(arrays[0]))
    ]
  for fields, parts in entries:
    written = [rule.layout.write(part) for part in parts]
    array = written[0] if len(written) == 1 else np.concatenate(written)
    name = _fill(rule.source, fields)
    if name in state and not np.array_equal(state[name], array, equal_nan=True):
      raise ValueError(
        f'{rule.target} and another leaf are both {name}, but differ.'
      )
    state[name] = array
