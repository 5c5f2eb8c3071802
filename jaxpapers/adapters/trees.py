"""Parameter trees as mappings from paths to leaves."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Leaves of nested mappings by their path, 'encoder/layers_0/...'.

  Args:
    tree: Nested mappings. Whatever is not a mapping is a leaf.
    prefix: Put before every path.

  Returns:
    Path -> leaf, in the order of the tree.

  Raises:
    TypeError: If `tree` is no mapping, or has lists in it.
    ValueError: If a name has a slash in it.
  """
  if not isinstance(tree, Mapping):
    raise TypeError(
      f'params is a {type(tree).__name__}; expected nested mappings of arrays,'
      " as variables['params'] of a Linen module."
    )
  flat = {}
  for name, value in tree.items():
    if not isinstance(name, str) or '/' in name:
      raise ValueError(f'{name!r} in params: expected names without slashes.')
    path = f'{prefix}{name}'
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{path}/')
    elif isinstance(value, (list, tuple)):
      raise TypeError(
        f'{path} is a {type(value).__name__}; expected mappings and arrays.'
      )
    else:
      flat[path] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The reverse of `flatten`: nested dictionaries."""
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def shape_of(leaf: Any) -> tuple[int, ...]:
  """Shape of an array, a ShapeDtypeStruct or a number."""
  return tuple(np.shape(leaf))


def rows(leaf: Any, start: int | None, stop: int | None) -> Any:
  """Some rows of an array, or of the shape of one."""
  if isinstance(leaf, jax.ShapeDtypeStruct):
    count = len(range(*slice(start, stop).indices(leaf.shape[0])))
    return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)
  return leaf[start:stop]
