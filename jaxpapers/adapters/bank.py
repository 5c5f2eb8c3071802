"""Many tasks on one frozen model, mixed in one batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxpapers import training
from jaxpapers.adapters import partition, trees
from jaxpapers.adapters.train import put_frozen


@struct.dataclass
class AdapterBank:
  """The parameters of many tasks, stacked.

  What tasks have in different sizes is padded with zeros: bottlenecks, where
  that changes nothing, and the outputs of heads, whose extra logits become
  -inf. A task without an adapter somewhere has one of zeros there.

  A bank is a value: `add` and `remove` return another one, in which the rows of
  the other tasks are the same bits.

  Attributes:
    params: Tree of a task, leaves `[rows, ...]`.
    num_outputs: Outputs of each row's head, int32 `[rows]`; 0 if heads are all
      alike and nothing has to be masked.
    names: Task of each row, '' for a free one.
    shapes: For each row its leaves' paths and shapes before padding.
    parts: How adapters are called, and the body.

  Example:
    >>> task = {'output': {'kernel': jnp.ones((3, 2)), 'bias': jnp.zeros(2)}}
    >>> bank = AdapterBank.create({'spam': task, 'mood': task})
    >>> bank.ids(['mood', 'spam']).tolist()
    [1, 0]
  """

  params: Any
  num_outputs: jax.Array
  names: tuple[str, ...] = struct.field(pytree_node=False)
  shapes: tuple[Any, ...] = struct.field(pytree_node=False)
  parts: partition.Names = struct.field(pytree_node=False)

  @classmethod
  def create(
    cls,
    tasks: Mapping[str, Mapping[str, Any]],
    *,
    base: Mapping[str, Any] | None = None,
    capacity: int = 0,
    names: partition.Names = partition.DEFAULT_NAMES,
  ) -> 'AdapterBank':
    """Stacks tasks.

    Args:
      tasks: Parameters by name of the task, as `extract_task` gives them.
      base: Parameters of the base model. Where some tasks have trained an array
        (a layer norm) and others have not, these take that of the base.
      capacity: Rows to make room for. A program compiled for a bank runs for
        every bank of the same rows and sizes: with room, adding a task compiles
        nothing. Free rows are zero.
      names: How adapters are called, and the body.

    Returns:
      The bank.

    Raises:
      ValueError: If there is no task, or tasks do not fit each other; names
        the path.
    """
    if not tasks:
      raise ValueError('tasks is empty; expected one task or more.')
    for name in tasks:
      _check_name(name)
    rows = [(name, trees.flatten(task)) for name, task in tasks.items()]
    rows += [('', {})] * (capacity - len(rows))
    return _stacked(rows, trees.flatten(base or {}), names, {})

  def __len__(self) -> int:
    return sum(bool(name) for name in self.names)

  def ids(self, names: Sequence[str]) -> np.ndarray:
    """Rows of tasks, for the examples of a batch.

    Args:
      names: A task for each example.

    Returns:
      int32 `[batch]`.

    Raises:
      ValueError: If a task is not in the bank.
    """
    rows = {name: i for i, name in enumerate(self.names) if name}
    for name in names:
      if name not in rows:
        raise ValueError(
          f'task {name!r} is not in the bank; there are {sorted(rows)}.'
        )
    return np.array([rows[name] for name in names], np.int32)

  def task(self, name: str) -> dict[str, Any]:
    """The parameters of a task, as they were put in."""
    row = int(self.ids([name])[0])
    flat = trees.flatten(self.params)
    return trees.unflatten(
      {
        path: flat[path][(row, *(slice(n) for n in shape))]
        for path, shape in self.shapes[row]
      }
    )

  def add(
    self,
    name: str,
    task: Mapping[str, Any],
    *,
    base: Mapping[str, Any] | None = None,
  ) -> 'AdapterBank':
    """A bank with one more task.

    If it fits into a free row (see `capacity`), no other number changes, and
    none of their predictions. Otherwise rows or widths grow.

    Args:
      name: Its name.
      task: Its parameters.
      base: As in `create`.

    Returns:
      The new bank.

    Raises:
      ValueError: If there is a task of that name, or this one does not fit.
    """
    _check_name(name)
    if name in self.names:
      raise ValueError(
        f'task {name!r} is in the bank already. Remove it first, or choose'
        ' another name.'
      )
    rows = [(n, trees.flatten(self.task(n)) if n else {}) for n in self.names]
    row = (name, trees.flatten(task))
    if '' in self.names:
      rows[self.names.index('')] = row
    else:
      rows.append(row)
    widths = {
      path: leaf.shape[1:] for path, leaf in trees.flatten(self.params).items()
    }
    return _stacked(rows, trees.flatten(base or {}), self.parts, widths)

  def remove(self, name: str) -> 'AdapterBank':
    """A bank in which the row of a task is free and zero."""
    row = int(self.ids([name])[0])

    def replaced(items, value):
      return tuple(value if i == row else x for i, x in enumerate(items))

    return self.replace(
      params=jax.tree.map(lambda x: x.at[row].set(0), self.params),
      num_outputs=self.num_outputs.at[row].set(0),
      names=replaced(self.names, ''),
      shapes=replaced(self.shapes, ()),
    )

  def predictor(
    self,
    function: Callable[..., jax.Array],
    frozen: Mapping[str, Any],
    *,
    mesh: jax.sharding.Mesh | None = None,
    rules: Any = (),
  ) -> Callable[..., jax.Array]:
    """Compiles the model for batches of mixed tasks.

    Args:
      function: Maps `(params, *inputs)` of the whole model to outputs
        `[batch, ...]`. Each example is computed as a batch of one, all of them
        in one program: products with frozen kernels are those of the whole
        batch, those with a task's are batched.
      frozen: The frozen tree; one copy, whatever the number of tasks.
      mesh: Where it runs: the batch over the axes 'data' and 'fsdp', the bank
        on every device. None for the default device.
      rules: How the frozen tree lies on the mesh.

    Returns:
      A function `(bank, task_ids, *inputs) -> outputs`, task_ids int32
      `[batch]`. It compiles once for each shape, and takes banks that tasks
      were added to.
    """
    frozen = put_frozen(frozen, mesh, rules)

    @jax.jit
    def run(params, num_outputs, frozen, task_ids, *inputs):
      if mesh is not None:
        sharding = training.batch_sharding(mesh)
        task_ids, inputs = jax.lax.with_sharding_constraint(
          (task_ids, inputs), sharding
        )
      return route(function, params, num_outputs, frozen, task_ids, *inputs)

    def predict(bank, task_ids, *inputs):
      _check_ids(bank, task_ids)
      return run(bank.params, bank.num_outputs, frozen, task_ids, *inputs)

    return predict


def route(
  function: Callable[..., jax.Array],
  bank_params: Any,
  num_outputs: jax.Array,
  frozen: Mapping[str, Any],
  task_ids: jax.Array,
  *inputs: Any,
) -> jax.Array:
  """One forward pass in which every example has the parameters of its task.

  Args:
    function: Maps `(params, *inputs)` to outputs `[batch, ...]`.
    bank_params: Stacked parameters of the tasks, leaves `[rows, ...]`.
    num_outputs: `[rows]`; 0 where nothing is masked.
    frozen: The frozen tree.
    task_ids: Row of each example, int32 `[batch]`; out of range gives NaN.
    *inputs: Trees of arrays `[batch, ...]`.

  Returns:
    Outputs `[batch, ...]`.
  """

  def gather(leaf):
    ids = jnp.where(task_ids < 0, leaf.shape[0], task_ids)
    return leaf.at[ids].get(mode='fill', fill_value=jnp.nan)

  def one(task, count, inputs):
    params = partition.merge_params(task, frozen)
    outputs = function(params, *jax.tree.map(lambda x: x[None], inputs))[0]
    unused = (count > 0) & (jnp.arange(outputs.shape[-1]) >= count)
    return jnp.where(unused, -jnp.inf, outputs)

  counts = num_outputs[task_ids]
  return jax.vmap(one)(jax.tree.map(gather, bank_params), counts, inputs)


def _check_name(name: Any) -> None:
  if not isinstance(name, str) or not name:
    raise ValueError(f'{name!r} is no name of a task; expected a text.')


def _check_ids(bank: AdapterBank, task_ids: Any) -> None:
  if isinstance(task_ids, jax.core.Tracer):
    return
  for row in np.unique(np.asarray(task_ids)):
    if not 0 <= row < len(bank.names) or not bank.names[row]:
      raise ValueError(
        f'task_ids has {row}; the bank of {len(bank.names)} rows has no task'
        ' there. Use bank.ids(names).'
      )


def _stacked(rows, base, parts, widths) -> AdapterBank:
  """A bank of (name, flat task); of no name for a free row.

  Leaves are padded to the widest of them, and to `widths` at least.
  """
  flat = _fill({name: task for name, task in rows if name}, base, parts)
  shapes = {
    name: tuple(
      (path, trees.shape_of(leaf))
      for path, leaf in flat[name].items()
      # Zeros that stand for no adapter are not part of the task.
      if path in task or not parts.has('adapter', path)
    )
    for name, task in rows
    if name
  }
  params = {}
  for path, size in _common_sizes(flat, parts).items():
    size = tuple(map(max, size, widths.get(path, size)))
    dtype = next(iter(flat.values()))[path].dtype
    params[path] = jnp.stack(
      [
        _pad(jnp.asarray(flat[name][path], dtype), size)
        if name
        else jnp.zeros(size, dtype)
        for name, _ in rows
      ]
    )
  outputs = _outputs(flat, parts, params)
  return AdapterBank(
    params=trees.unflatten(params),
    num_outputs=jnp.asarray([outputs.get(n, 0) for n, _ in rows], jnp.int32),
    names=tuple(name for name, _ in rows),
    shapes=tuple(shapes.get(name, ()) for name, _ in rows),
    parts=parts,
  )


def _fill(flat, base, names):
  """Tasks with all paths that any of them has."""
  paths = list(dict.fromkeys(path for task in flat.values() for path in task))
  filled = {}
  for name, task in flat.items():
    filled[name] = {}
    for path in paths:
      other = next(t[path] for t in flat.values() if path in t)
      if path in task:
        filled[name][path] = task[path]
      elif names.has('adapter', path):
        filled[name][path] = jnp.zeros_like(other)
      elif path in base:
        filled[name][path] = base[path]
      else:
        raise ValueError(
          f'task {name!r} has no {path}, which others have trained. Give base,'
          ' the parameters of the base model.'
        )
  return filled


def _common_sizes(filled, names):
  """Path -> the shape that every task's array is padded to."""
  sizes = {}
  for path in next(iter(filled.values())):
    shapes = {n: trees.shape_of(task[path]) for n, task in filled.items()}
    size = next(iter(shapes.values()))
    for name, shape in shapes.items():
      ragged = names.has('adapter', path) or not names.has('body', path)
      if len(shape) != len(size) or (shape != size and not ragged):
        first = next(iter(shapes))
        raise ValueError(
          f'{path} has shape {shape} in task {name!r} and {shapes[first]} in'
          f' {first!r}: these tasks belong to different models.'
        )
      size = tuple(map(max, size, shape))
    sizes[path] = size
  # What is padded must be a bottleneck or outputs, not the model's width.
  for path, size in sizes.items():
    for name, task in filled.items():
      shape = trees.shape_of(task[path])
      differs = [i for i, (a, b) in enumerate(zip(shape, size)) if a != b]
      allowed = {len(size) - 1}
      if names.has('adapter', path):
        allowed = {len(size) - 1, len(size) - 2}
        if path.endswith('up/bias'):
          allowed = set()
      if set(differs) - allowed:
        raise ValueError(
          f'{path} has shape {shape} in task {name!r}, and another has {size}:'
          ' these tasks belong to different models.'
        )
  return sizes


def _outputs(filled, names, params):
  """Outputs of each task's head; nothing where no head was padded."""
  counts = {}
  for name, task in filled.items():
    widths = {
      task[path].shape[-1]
      for path, leaf in params.items()
      if not names.has('adapter', path)
      and any(t[path].shape != leaf.shape[1:] for t in filled.values())
    }
    if len(widths) > 1:
      raise ValueError(
        f'the head of task {name!r} differs from others in several layers;'
        ' only its outputs may.'
      )
    if widths:
      counts[name] = widths.pop()
  return counts


def _pad(leaf, size):
  widths = [(0, n - m) for m, n in zip(leaf.shape, size)]
  return jnp.pad(leaf, widths) if any(w for _, w in widths) else leaf
