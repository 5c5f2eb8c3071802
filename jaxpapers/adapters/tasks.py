"""What one task has of its own: taken out, put in, saved and loaded."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.adapters import partition, trees
from jaxpapers.data import CorruptFileError
from jaxpapers.weights.safetensors_files import (
  read_safetensors,
  write_safetensors,
)

_FORMAT = 'jaxpapers.adapters.task'


def extract_task(
  params: Mapping[str, Any], mode: partition.Mode = 'adapter', **options: Any
) -> dict[str, Any]:
  """The parameters of a task: what `partition_params` says is trained.

  Args:
    params: Parameters of the model.
    mode: As in `partition_params`.
    **options: As in `partition_params`.

  Returns:
    Nested dictionaries of the task's parameters.

  Raises:
    ValueError: As in `partition_params`.
  """
  return partition.partition_params(params, mode, **options)[0]


def insert_task(
  params: Mapping[str, Any], task: Mapping[str, Any]
) -> dict[str, Any]:
  """Parameters of the model with those of a task in their places.

  Args:
    params: Parameters of the model. They are not changed, and what the task
      does not have is shared, not copied.
    task: What `extract_task` or `load_task` gave. Of scanned layers it may have
      the last rows only.

  Returns:
    The parameters of the model for this task.

  Raises:
    ValueError: Names the first path that the model does not have, or has in
      another shape.
  """
  flat = trees.flatten(params)
  for path, leaf in trees.flatten(task).items():
    if path not in flat:
      raise ValueError(
        f'{path} of the task is not in the model, whose paths begin with'
        f' {next(iter(flat), None)!r}. Make the model with the adapters and the'
        ' head of the task.'
      )
    there, own = trees.shape_of(flat[path]), trees.shape_of(leaf)
    if there == own:
      flat[path] = leaf
    elif (
      partition.Names().has('stacked', path)
      and there[1:] == own[1:]
      and own[0] < there[0]
    ):
      flat[path] = jnp.concatenate([flat[path][: -own[0]], leaf])
    else:
      raise ValueError(
        f'{path} has shape {own} in the task and {there} in the model: the task'
        ' was trained with another width, bottleneck, number of layers or of'
        ' classes.'
      )
  return trees.unflatten(flat)


def save_task(
  path: Any,
  task: Mapping[str, Any],
  *,
  metadata: Mapping[str, Any] | None = None,
) -> None:
  """Writes the parameters of a task as a safetensors file.

  The file appears under its name only when it is complete.

  Args:
    path: The file, local or gs://, 'folder/task.safetensors'.
    task: What `extract_task` gave.
    metadata: What else is needed to use it, as JSON: names of labels, the
      adapter's config, the score.

  Raises:
    ValueError: If the task is empty, or the name has another ending.
  """
  flat = trees.flatten(task)
  if not flat:
    raise ValueError('task has no parameters.')
  flat = jax.device_get(flat)
  # One entry: safetensors writes several in any order, and files of the same
  # task would differ.
  about = {'version': 1, 'metadata': dict(metadata or {})}
  header = {_FORMAT: json.dumps(about)}
  arrays = {path: np.asarray(x) for path, x in flat.items()}
  write_safetensors(os.fspath(path), arrays, metadata=header)


def load_task(
  path: Any, like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Reads the parameters of a task.

  Args:
    path: A file of `save_task`.
    like: Parameters of the model, or their shapes: the task is checked against
      them, so that a task of another model is refused here.

  Returns:
    Nested dictionaries of NumPy arrays, bit for bit what was saved.

  Raises:
    FileNotFoundError: If there is no file.
    CorruptFileError: If it is damaged.
    ValueError: If it does not fit `like`; names the path.
  """
  try:
    flat = {
      name: read() for name, read in read_safetensors(os.fspath(path)).items()
    }
    task = trees.unflatten(flat)
    if like is not None:
      shapes = jax.tree.map(
        lambda x: np.broadcast_to(np.zeros((), x.dtype), np.shape(x)), like
      )
      jax.eval_shape(insert_task, shapes, task)
  except ValueError as error:
    if isinstance(error, CorruptFileError):
      raise
    raise ValueError(f'{path}: {error}') from error
  return task


def load_task_metadata(path: Any) -> dict[str, Any]:
  """Reads what `save_task` was told besides the parameters.

  Args:
    path: A file of `save_task`.

  Returns:
    The metadata.

  Raises:
    FileNotFoundError: If there is no file.
    CorruptFileError: If it is no file of a task.
  """
  from etils import epath

  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'There is no file {path}.')
  with path.open('rb') as file:
    size = int.from_bytes(file.read(8), 'little')
    # A header is a few kilobytes; do not read what may be anything.
    text = file.read(min(size, 2**27))
  try:
    header = json.loads(text)['__metadata__']
    return json.loads(header[_FORMAT])['metadata']
  except (ValueError, KeyError, TypeError) as error:
    raise CorruptFileError(
      f'{path}: not a task that save_task wrote: {error!r}.'
    ) from error
