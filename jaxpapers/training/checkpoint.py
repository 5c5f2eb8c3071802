"""Checkpoints: state and position in the data, written by orbax.

A checkpoint appears under its name only when it is complete; a process that is
killed while it writes leaves the one before it.
"""

import base64
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxpapers.training.sharding import path_name


def save(path: str | os.PathLike, tree: Any) -> None:
  """Writes a tree of arrays and returns when it is complete.

  Args:
    path: Folder to be made, local or gs://.
    tree: A TrainState, parameters or any other tree of arrays; typed keys too.
      On several processes all of them call this.

  Raises:
    ValueError: If there is something at `path`.

  Example:
    >>> save('/some/folder/params', state.params)  # doctest: +SKIP
  """
  import orbax.checkpoint as ocp

  folder = _absolute(path)
  if folder.exists():
    raise ValueError(f'{folder} exists. Remove it or choose another path.')
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, _without_keys(tree))


def restore(path: str | os.PathLike, like: Any) -> Any:
  """Reads what `save` wrote, onto the devices of another mesh if need be.

  Args:
    path: Its folder.
    like: Tree of the same structure: arrays, or ShapeDtypeStructs such as
      `abstract_state` gives. Every array comes back with the dtype, sharding
      and mesh of its counterpart.

  Returns:
    The tree.

  Raises:
    FileNotFoundError: If there is no checkpoint at `path`.
    ValueError: If tree or shapes differ from what was written.
  """
  import orbax.checkpoint as ocp

  folder = _absolute(path)
  if not folder.exists():
    raise FileNotFoundError(f'There is no checkpoint at {folder}.')
  with ocp.StandardCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(folder).item_metadata
    _check_like(like, getattr(metadata, 'tree', metadata), folder)
    tree = checkpointer.restore(folder, _abstract(like))
  return _with_keys(tree, like)


class Checkpoints:
  """The checkpoints of a run, the newest few kept, written in the background.

  Attributes:
    folder: Where they are, one subfolder per step.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 3):
    """Opens the folder, or makes it.

    Args:
      folder: Local or gs://.
      keep: How many of the newest to keep.
    """
    import orbax.checkpoint as ocp

    if keep < 1:
      raise ValueError(f'keep is {keep}; expected 1 or more.')
    self.folder = _absolute(folder)
    self._ocp = ocp
    self._manager = ocp.CheckpointManager(
      self.folder,
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'position': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=True,
        # What a killed process was writing; never a complete checkpoint.
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
      ),
    )

  def latest(self) -> int | None:
    """Step of the newest complete checkpoint, None without one."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, position: Any = None) -> None:
    """Begins to write a checkpoint.

    The arrays are copied before this returns: a step may then donate them.

    Args:
      step: Its number; one that is there already is left as it is.
      state: The state.
      position: What the data iterator's `get_state()` returned: bytes or a
        JSON tree, the same in every process.

    Raises:
      TypeError: If the position is something else.
    """
    if step in self._manager.all_steps():
      return
    position = _encode(position)
    args = self._ocp.args
    self._manager.save(
      step,
      args=args.Composite(
        state=args.StandardSave(_without_keys(state)),
        position=args.JsonSave({'position': position}),
      ),
    )

  def restore(self, like: Any, step: int | None = None) -> tuple[Any, Any]:
    """Reads a checkpoint.

    Args:
      like: The state's structure, shapes and shardings, as in `restore`.
      step: Its number; the newest by default.

    Returns:
      The state, and the position of the data iterator.

    Raises:
      FileNotFoundError: If there is none, or none of that step.
      ValueError: If the state has another structure or shapes.
    """
    steps = sorted(self._manager.all_steps())
    step = steps[-1] if step is None and steps else step
    if step not in steps:
      raise FileNotFoundError(
        f'{self.folder} holds no checkpoint of step {step}; there are'
        f' {steps or "none"}.'
      )
    args = self._ocp.args
    metadata = self._manager.item_metadata(step)['state']
    _check_like(
      like, getattr(metadata, 'tree', metadata), self.folder / str(step)
    )
    restored = self._manager.restore(
      step,
      args=args.Composite(
        state=args.StandardRestore(_abstract(like)),
        position=args.JsonRestore(),
      ),
    )
    state = _with_keys(restored['state'], like)
    return state, _decode(restored['position']['position'])

  def wait(self) -> None:
    """Returns when everything is written; raises what went wrong there."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and lets go of the folder."""
    self._manager.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _absolute(path) -> epath.Path:
  path = epath.Path(path).expanduser()
  # Orbax wants absolute paths; resolve() would spoil gs://.
  return path if '://' in str(path) else epath.Path(os.path.abspath(path))


def _is_key(x) -> bool:
  return jnp.issubdtype(getattr(x, 'dtype', None), jax.dtypes.prng_key)


def _without_keys(tree):
  """Typed keys as their numbers, which every version of orbax can write."""
  return jax.tree.map(
    lambda x: jax.random.key_data(x) if _is_key(x) else x, tree
  )


def _with_keys(tree, like):
  return jax.tree.map(
    lambda x, key: (
      jax.random.wrap_key_data(x, impl=jax.random.key_impl(_concrete(key)))
      if _is_key(key)
      else x
    ),
    tree,
    like,
  )


def _concrete(key):
  """A key of the same kind as a ShapeDtypeStruct of keys."""
  if isinstance(key, jax.Array):
    return key
  impl = key.dtype._impl.name  # The public API names no kind of a mere shape.
  return jax.random.key(0, impl=impl)


def _abstract(like):
  """ShapeDtypeStructs of a tree, keys as numbers, with shardings."""

  def of(x):
    sharding = getattr(x, 'sharding', None)
    if _is_key(x):
      shape = jax.eval_shape(
        jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype)
      )
      return jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=_of_key_data(sharding)
      )
    return jax.ShapeDtypeStruct(
      np.shape(x), jnp.result_type(x), sharding=sharding
    )

  return jax.tree.map(of, like)


def _of_key_data(sharding):
  """A sharding of keys as one of their numbers, which have one more axis."""
  if isinstance(sharding, jax.sharding.NamedSharding):
    return jax.sharding.NamedSharding(sharding.mesh, sharding.spec)
  return sharding


def _check_like(like, written, folder) -> None:
  """Says in words how a tree differs from the one that was written."""

  def shapes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(
      tree, is_leaf=lambda x: hasattr(x, 'shape')
    )
    return {
      path_name(path): tuple(leaf.shape)
      for path, leaf in leaves
      if hasattr(leaf, 'shape')
    }

  wanted, found = shapes(_abstract(like)), shapes(written)
  missing = [name for name in wanted if name not in found]
  extra = [name for name in found if name not in wanted]
  other = [n for n in wanted if n in found and wanted[n] != found[n]]
  if not (missing or extra or other):
    return
  parts = []
  if missing:
    parts.append(f'it lacks {_some(missing)}')
  if extra:
    parts.append(f'it has {_some(extra)}, which the state here has not')
  if other:
    parts.append(
      f'{other[0]} is {found[other[0]]} there and {wanted[other[0]]} here'
    )
  raise ValueError(
    f'The checkpoint {folder} does not fit: {"; ".join(parts)}. Use the model'
    ' and optimizer that it was written with, or another folder.'
  )


def _some(names: list[str]) -> str:
  shown = ', '.join(names[:3])
  return shown if len(names) <= 3 else f'{shown} and {len(names) - 3} more'


def _encode(position):
  """A JSON tree, bytes in it as text."""
  if isinstance(position, bytes):
    return {'base64': base64.b64encode(position).decode('ascii')}
  if isinstance(position, dict):
    return {str(key): _encode(value) for key, value in position.items()}
  if isinstance(position, (list, tuple)):
    return [_encode(value) for value in position]
  if isinstance(position, (np.ndarray, np.generic)):
    return position.tolist()
  if position is None or isinstance(position, (bool, int, float, str)):
    return position
  raise TypeError(
    f'The data iterator has {type(position).__name__} in its state, which a'
    ' checkpoint cannot hold; expected bytes or a JSON tree of numbers and'
    ' strings.'
  )


def _decode(encoded):
  if isinstance(encoded, dict):
    if set(encoded) == {'base64'}:
      return base64.b64decode(encoded['base64'])
    return {key: _decode(value) for key, value in encoded.items()}
  if isinstance(encoded, list):
    return [_decode(value) for value in encoded]
  return encoded
