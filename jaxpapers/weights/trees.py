"""Trees as flat dictionaries of paths, and one tree laid over another."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxpapers.weights.mismatch import Misshaped, WeightMismatchError, matches


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested mappings -> one, with paths such as 'encoder/embedding'.

  Args:
    tree: Nested mappings with string keys.

  Returns:
    Path -> leaf, in the order of the tree.

  Example:
    >>> flatten({'a': {'b': 1}, 'c': 2})
    {'a/b': 1, 'c': 2}
  """
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat.update({f'{name}/{k}': v for k, v in flatten(value).items()})
    else:
      flat[name] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The reverse of `flatten`.

  Args:
    flat: Path -> leaf.

  Returns:
    Nested dictionaries.

  Raises:
    ValueError: A path is that of a leaf and of a branch.

  Example:
    >>> unflatten({'a/b': 1, 'c': 2})
    {'a': {'b': 1}, 'c': 2}
  """
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *branches, last = path.split('/')
    node = tree
    for branch in branches:
      node = node.setdefault(branch, {})
      if not isinstance(node, dict):
        raise ValueError(f'{path} goes through a leaf.')
    if last in node:
      raise ValueError(f'{path} is a leaf and a branch.')
    node[last] = leaf
  return tree


def merge(
  params: Mapping[str, Any],
  loaded: Mapping[str, Any],
  *,
  allow_unexpected: Sequence[str] = (),
) -> dict[str, Any]:
  """Fresh parameters with those of a checkpoint in their place.

  What the checkpoint lacks, such as a new head, stays as it is.

  Args:
    params: Nested mappings of arrays, as `model.init` gives.
    loaded: Nested mappings of arrays that replace some of them; they get the
      types and, if those are arrays of JAX, the shardings of their
      counterparts.
    allow_unexpected: Patterns (searched in paths) of leaves of `loaded` that
      may be dropped where `params` has none, such as '^lm_head/'.

  Returns:
    A tree of the structure of `params`.

  Raises:
    WeightMismatchError: Leaves of `loaded` are not in `params`, or of another
      shape.

  Example:
    >>> merge({'a': np.zeros(2), 'b': np.zeros(1)}, {'a': np.ones(2)})['a']
    array([1., 1.])
  """
  fresh, new = flatten(params), flatten(loaded)
  unexpected = [
    path
    for path in new
    if path not in fresh and not matches(allow_unexpected, path)
  ]
  misshaped = [
    Misshaped(path, path, np.shape(leaf), np.shape(fresh[path]))
    for path, leaf in new.items()
    if path in fresh and np.shape(leaf) != np.shape(fresh[path])
  ]
  if unexpected or misshaped:
    raise WeightMismatchError([], unexpected, misshaped, 'The parameters')
  for path, leaf in new.items():
    if path not in fresh:
      continue
    old = fresh[path]
    leaf = leaf.astype(old.dtype)
    if isinstance(old, jax.Array):
      leaf = jax.device_put(leaf, old.sharding)
    fresh[path] = leaf
  return unflatten(fresh)
