"""Names, selections and prefixes of parameter trees.

A layer is addressed by its path, the keys joined by slashes as in
`'Conv_3/kernel'`. `optax.MaskedNode` and None stand for absent leaves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax


def is_absent(leaf: Any) -> bool:
  """Whether a leaf is None or masked out by `optax.masked`."""
  return leaf is None or isinstance(leaf, optax.MaskedNode)


def path_name(path: Sequence[Any]) -> str:
  """Name of a key path of `jax.tree_util`, such as `'Dense_0/kernel'`.

  The `value` attribute of Flax's boxes (`nn.Partitioned`) is left out, so that
  a boxed and an unboxed tree have the same names.
  """
  keys = [
    key
    for key in path
    if not (isinstance(key, jax.tree_util.GetAttrKey) and key.name == 'value')
  ]
  return jax.tree_util.keystr(tuple(keys), simple=True, separator='/')


def flatten(tree: Any) -> tuple[list[str], list[Any], Any]:
  """Names, leaves (absent ones too) and structure of a parameter tree."""
  flat, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_absent)
  return [path_name(path) for path, _ in flat], [x for _, x in flat], treedef


def is_kernel(path: Any, leaf: Any = None) -> bool:
  """Whether a parameter is a kernel by its name, the paper's rule.

  True if the last key contains the word kernel: `depthwise_kernel` and
  `recurrent_kernel` are kernels, `embedding`, `bias` and `scale` are not.

  Args:
    path: name of the parameter, `'Dense_0/kernel'`, or its key path.
    leaf: ignored; selections are called with it.

  Returns:
    True for kernels.

  Example:
    >>> is_kernel('Dense_0/kernel'), is_kernel('Dense_0/bias')
    (True, False)
  """
  del leaf
  name = path if isinstance(path, str) else path_name(path)
  return 'kernel' in name.rpartition('/')[2]


def per_neuron(axes: int | tuple[int, ...] = -1) -> Callable[..., Any]:
  """Layer axes that make every output unit a layer of its own.

  Args:
    axes: the axes of a kernel that index output units; the last one in Flax.

  Returns:
    A function for `layer_axes`. Leaves with fewer than two axes stay whole.

  Example:
    >>> per_neuron()('Conv_0/kernel', (3, 3, 8, 16))
    -1
  """

  def layer_axes(path, shape):
    del path
    return axes if len(shape) > 1 else None

  return layer_axes


def stacked_axes(variables: Any, name: str = 'layers') -> dict[str, Any]:
  """Finds the axes that `nn.scan` stacked, from Flax's logical axis names.

  Args:
    variables: tree with boxes (`nn.Partitioned`, `nn.LogicallyPartitioned`)
      around its leaves, as `module.init` returns it before `nn.unbox`.
    name: logical name of the stacked axis, `nn.PARTITION_NAME` of the scan.

  Returns:
    Path -> axes of that name, for `layer_axes`; None where there are none.

  Raises:
    ValueError: if no leaf has such an axis.

  Example:
    >>> import flax.linen as nn, jax.numpy as jnp
    >>> boxed = {'kernel': nn.Partitioned(jnp.ones((4, 2)), ('layers', None))}
    >>> stacked_axes(boxed)
    {'kernel': (0,)}
  """

  def is_box(leaf):
    return is_absent(leaf) or hasattr(leaf, 'names')

  flat, _ = jax.tree_util.tree_flatten_with_path(variables, is_leaf=is_box)
  found = {}
  for path, leaf in flat:
    names = getattr(leaf, 'names', ())
    axes = tuple(i for i, axis in enumerate(names) if axis == name)
    found[path_name(path)] = axes or None
  if not any(found.values()):
    raise ValueError(
      f'variables has no axis named {name!r}; expected boxes of nn.Partitioned'
      ' with that name. Give layer_axes by hand.'
    )
  return found


def match_prefix(
  tree: Any,
  names: Sequence[str],
  present: Sequence[bool],
  what: str,
  is_leaf: Callable[[Any], bool] | None = None,
) -> list[Any]:
  """Spreads a prefix tree, or a dict {path: value}, over leaves.

  Args:
    tree: the prefix. An entry covers the leaf at its path and all below it;
      a single value covers everything.
    names: names of the leaves.
    present: which of them need a value.
    what: name of the argument, for messages.
    is_leaf: what counts as a value in `tree`.

  Returns:
    One value per name; None for absent leaves that no entry covers.

  Raises:
    ValueError: a present leaf has no value, or an entry fits no leaf.
  """
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  entries = {path_name(path): value for path, value in flat}
  used = set()

  def find(name):
    while True:
      if name in entries:
        used.add(name)
        return True, entries[name]
      if not name:
        return False, None
      name = name.rpartition('/')[0]

  values = []
  for name, is_present in zip(names, present, strict=True):
    found, value = find(name)
    if not found and is_present:
      raise ValueError(
        f'{what} has no entry for {name!r}; expected a single value, or one for'
        f' every layer. It has entries for {sorted(entries)}.'
      )
    values.append(value)
  # A whole subtree may be masked by one node: entries below it are fine.
  masked = [n + '/' for n, p in zip(names, present, strict=True) if not p]
  for key in set(entries) - used:
    if not key.startswith(tuple(masked)) and names:
      raise ValueError(
        f'{what} has an entry for {key!r}, which is no layer of params;'
        f' the layers are {list(names)}.'
      )
  return values


def resolve_axes(
  layer_axes: Any,
  names: Sequence[str],
  shapes: Sequence[tuple[int, ...] | None],
) -> list[tuple[int, ...]]:
  """Axes that index independent layers, for each leaf.

  Args:
    layer_axes: as in `layca`.
    names: names of the leaves.
    shapes: their shapes; None for absent leaves.

  Returns:
    Sorted tuples of non-negative axes.

  Raises:
    TypeError: the axes are traced.
    ValueError: an axis is out of range or repeated, or all are listed.
  """
  if isinstance(layer_axes, jax.Array):
    raise TypeError(
      'layer_axes is a traced array; expected Python ints. With'
      " optax.inject_hyperparams add static_args=('layer_axes',)."
    )
  if callable(layer_axes):
    values = [
      None if shape is None else layer_axes(name, shape)
      for name, shape in zip(names, shapes, strict=True)
    ]
  else:

    def is_leaf(x):
      return x is None or (
        type(x) is tuple and all(isinstance(i, (int, np.integer)) for i in x)
      )

    present = [shape is not None for shape in shapes]
    values = match_prefix(layer_axes, names, present, 'layer_axes', is_leaf)
  resolved = []
  for name, shape, value in zip(names, shapes, values, strict=True):
    if shape is None or value is None:
      resolved.append(())
      continue
    axes = (value,) if isinstance(value, (int, np.integer)) else tuple(value)
    ndim = len(shape)
    if any(not -ndim <= axis < ndim for axis in axes):
      raise ValueError(
        f'layer_axes gives {axes} for {name!r} of shape {shape}; expected axes'
        f' from {-ndim} to {ndim - 1}.'
      )
    axes = tuple(sorted(int(axis) % ndim for axis in axes))
    if len(set(axes)) < len(axes):
      raise ValueError(f'layer_axes gives an axis of {name!r} twice: {value}.')
    if len(axes) == ndim and ndim:
      raise ValueError(
        f'layer_axes lists all axes of {name!r}, shape {shape}; expected at'
        ' least one axis that belongs to the layer itself.'
      )
    resolved.append(axes)
  return resolved
