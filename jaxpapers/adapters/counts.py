"""How many parameters a task needs."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxpapers.adapters import model


def adapter_param_count(
  num_layers: int,
  d: int,
  m: int | Sequence[int],
  sites: int = 2,
  depth: int = 1,
) -> int:
  """Parameters of all adapters of a transformer: `2 m d + m + d` for each.

  Args:
    num_layers: Layers.
    d: Width of the residual stream.
    m: Width of the bottleneck, or one for each layer; 0 is no adapter.
    sites: Adapters in a layer.
    depth: Of the adapters; above 1 each has `m^2 + m` more for each step.

  Returns:
    Their number.

  Raises:
    ValueError: If `m` has another length than `num_layers`, or a number is
      negative.

  Example:
    >>> adapter_param_count(12, 768, 64)
    2379264
  """
  sizes = [m] * num_layers if isinstance(m, int) else list(m)
  if len(sizes) != num_layers:
    raise ValueError(
      f'm has {len(sizes)} entries; expected one for each of {num_layers}'
      ' layers.'
    )
  total = 0
  for size in sizes:
    model.check_size(size)
    if size:
      middle = (depth - 1) * (size * size + size)
      total += sites * (2 * size * d + size + d + middle)
  return total


def layer_norm_param_count(num_layers: int, d: int) -> int:
  """Scales and biases of a post-LN encoder, that of the embeddings included.

  A pre-LN encoder has as many: its last norm stands for that of the embeddings.

  Example:
    >>> layer_norm_param_count(12, 768)
    38400
  """
  return 2 * d * (2 * num_layers + 1)


def count_params(tree: Any) -> int:
  """Number of entries of all arrays of a tree, or of their shapes."""
  return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(tree))


def total_size_ratio(base: int, per_task: int, num_tasks: int) -> float:
  """Parameters that many tasks need together, in units of the base model.

  Args:
    base: Parameters of the base model, shared by all tasks.
    per_task: Parameters that each task has of its own.
    num_tasks: Number of tasks.

  Returns:
    `1 + num_tasks * per_task / base`. Fine-tuning everything has `num_tasks`.

  Example:
    >>> round(total_size_ratio(335_141_888, 6_444_032, 9), 2)
    1.17
  """
  return 1 + num_tasks * per_task / base
