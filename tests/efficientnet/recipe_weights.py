"""Weights that follow from timm's names, for golden files of training.

Apart from `jaxpapers.efficientnet`'s own reader of such files, so that one can
be wrong without the other.
"""

import re
from typing import Any

import numpy as np

from tests.helpers import goldens

# The last batch norm of a block with a skip connection.
_DAMPED = re.compile(r'blocks\.(0\.[1-9]\d*\.bn2|[1-6]\.[1-9]\d*\.bn3)\.weight')


def value(name: str, shape: list[int]) -> np.ndarray:
  """The array that a name of timm stands for, in torch's layout."""
  z = goldens.normal(name, tuple(shape))
  kind = name.rpartition('.')[2]
  if kind == 'running_mean' or kind == 'bias':
    z = 0.1 * z
  elif kind == 'running_var':
    z = np.exp(0.2 * z)
  elif len(shape) == 1:
    z = (1 + 0.1 * z) * (0.25 if _DAMPED.fullmatch(name) else 1)
  else:
    z = z * np.sqrt(2 / np.prod(shape[1:]))
  return z.astype(np.float32)


def path_of(name: str) -> tuple[str, ...]:
  """Where an array of timm's name is in our variables."""
  module, _, kind = name.rpartition('.')
  first_stage = name.startswith('blocks.0.')
  inner = {
    'conv_pw': 'project_conv' if first_stage else 'expand_conv',
    'conv_pwl': 'project_conv',
    'conv_dw': 'depthwise_conv',
    'bn1': 'depthwise_bn' if first_stage else 'expand_bn',
    'bn2': 'project_bn' if first_stage else 'depthwise_bn',
    'bn3': 'project_bn',
    'se.conv_reduce': 'se_reduce',
    'se.conv_expand': 'se_expand',
  }
  outer = {
    'conv_stem': 'stem_conv',
    'bn1': 'stem_bn',
    'conv_head': 'head_conv',
    'bn2': 'head_bn',
    'classifier': 'classifier',
  }
  match = re.fullmatch(r'blocks\.(\d+)\.(\d+)\.(.+)', module)
  if match:
    place = (f'stage{match[1]}_block{match[2]}', inner[match[3]])
  else:
    place = (outer[module],)
  if kind in ('running_mean', 'running_var'):
    return ('batch_stats', *place, kind.removeprefix('running_'))
  if kind == 'weight':
    kind = 'scale' if 'bn' in module.rpartition('.')[2] else 'kernel'
  return ('params', *place, kind)


def variables(names: list[Any]) -> dict[str, Any]:
  """Variables of a network, from the list [name, shape] of its arrays."""
  tree: dict[str, Any] = {}
  for name, shape in names:
    if name.endswith('num_batches_tracked'):
      continue
    array = value(name, shape)
    if array.ndim == 4:
      array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
      array = array.T
    *path, leaf = path_of(name)
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = array
  return tree


def lookup(tree: Any, name: str) -> np.ndarray:
  """Our array of timm's name, in TensorFlow's layout."""
  for part in path_of(name):
    tree = tree[part]
  array = np.asarray(tree)
  if 'conv_dw' in name:
    array = array.transpose(0, 1, 3, 2)
  return array
