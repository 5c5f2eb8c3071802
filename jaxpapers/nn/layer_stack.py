"""Parameters of layers side by side, and of one scanned layer."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_NUMBERED = re.compile(r'layers_(\d+)')


def stack_layers(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Turns `layers_0`, `layers_1` ... into `layers`, with a leading axis.

  Wherever a mapping below has such entries: parameters, batch statistics,
  gradients.

  Args:
    tree: Nested mappings of arrays.

  Returns:
    The tree that a model with `scan_layers=True` has. Numpy arrays stay numpy.

  Raises:
    ValueError: If a layer is missing, or layers differ.

  Example:
    >>> tree = {'layers_0': {'w': np.ones(3)}, 'layers_1': {'w': np.ones(3)}}
    >>> stack_layers(tree)['layers']['w'].shape
    (2, 3)
  """
  found, out = {}, {}
  for name, value in tree.items():
    match = _NUMBERED.fullmatch(name)
    if match:
      found[int(match.group(1))] = value
    else:
      out[name] = stack_layers(value) if isinstance(value, Mapping) else value
  if not found:
    return out
  if sorted(found) != list(range(len(found))):
    raise ValueError(
      f'tree has layers {sorted(found)}; expected 0 to {len(found) - 1} without'
      ' gaps.'
    )
  layers = [found[i] for i in range(len(found))]
  for i, layer in enumerate(layers):
    if _signature(layer) != _signature(layers[0]):
      raise ValueError(
        f'layers_{i} differs from layers_0 in names or shapes: only layers that'
        ' are alike can be scanned.'
      )
  out['layers'] = jax.tree.map(_stack, *layers)
  return out


def unstack_layers(tree: Mapping[str, Any]) -> dict[str, Any]:
  """The reverse of `stack_layers`.

  Args:
    tree: Nested mappings of arrays; each `layers` with a leading axis.

  Returns:
    The tree that a model with `scan_layers=False` has.

  Raises:
    ValueError: If the leading axes below a `layers` differ.

  Example:
    >>> sorted(unstack_layers({'layers': {'w': np.ones((2, 3))}}))
    ['layers_0', 'layers_1']
  """
  out = {}
  for name, value in tree.items():
    if name != 'layers':
      out[name] = unstack_layers(value) if isinstance(value, Mapping) else value
      continue
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(value)}
    if len(lengths) != 1 or lengths == {()}:
      raise ValueError(
        f'leading axes of layers have sizes {sorted(lengths)}; expected one'
        ' size, the number of layers.'
      )
    for i in range(lengths.pop()[0]):
      out[f'layers_{i}'] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
  return out


def _signature(layer):
  leaves, structure = jax.tree.flatten(layer)
  return structure, [(np.shape(leaf), leaf.dtype) for leaf in leaves]


def _stack(*leaves):
  on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
  return (np if on_host else jnp).stack(leaves)
