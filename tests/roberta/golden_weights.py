"""The tiny RoBERTa of the golden file: config, and weights from their names."""

import functools
import re

import numpy as np

from jaxpapers.nn import EncoderConfig
from tests.helpers import goldens

HEADS, HEAD_DIM = 4, 8

# Part of a torch name -> the same part of ours.
_RENAMES = (
  (r'^roberta\.embeddings\.word_embeddings', 'encoder.token_embedding'),
  (r'^roberta\.embeddings\.position_embeddings', 'encoder.position_embedding'),
  (
    r'^roberta\.embeddings\.token_type_embeddings',
    'encoder.token_type_embedding',
  ),
  (r'^roberta\.embeddings\.LayerNorm', 'encoder.embedding_norm'),
  (r'^roberta\.pooler', 'pooler'),
  (r'^roberta\.encoder\.layer\.(\d+)', r'encoder.layers_\1'),
  (r'attention\.self\.', 'attention.'),
  (r'attention\.output\.dense', 'attention.output'),
  (r'attention\.output\.LayerNorm', 'attention_norm'),
  (r'intermediate\.dense', 'ffn.intermediate'),
  (r'(layers_\d+)\.output\.dense', r'\1.ffn.output'),
  (r'(layers_\d+)\.output\.LayerNorm', r'\1.ffn_norm'),
  (r'lm_head\.layer_norm', 'lm_head.norm'),
  (r'^classifier\.out_proj', 'classifier.output'),
  (r'^classifier\.(weight|bias)', r'choice.\1'),
  (r'^qa_outputs', 'qa'),
)


def spec():
  """Names, shapes and sizes of the golden model."""
  return goldens.load_json('roberta', 'roberta_tiny_spec.json')


@functools.cache
def numbers():
  """Inputs and outputs of the golden model."""
  return goldens.load_npz('roberta', 'roberta_tiny.npz')


def config(**changes):
  """The golden model's config."""
  sizes = spec()['config']
  options = {
    'max_len': sizes['max_len'],
    'type_vocab_size': 1,
    'dropout_rate': 0.0,
    'attention_dropout_rate': 0.0,
  }
  return EncoderConfig(
    sizes['vocab'],
    sizes['hidden'],
    sizes['layers'],
    sizes['heads'],
    sizes['ffn'],
    **options | changes,
  )


def torch_value(name, shape):
  """The value that the golden file defines for a parameter, float64."""
  z = goldens.normal(name, tuple(shape))
  low = name.lower()
  if 'layernorm' in low or 'layer_norm' in low:
    return 1 + 0.1 * z if name.endswith('weight') else 0.1 * z
  if name.endswith('bias'):
    return 0.1 * z
  if 'embeddings' in low:
    return 0.5 * z
  return z / np.sqrt(shape[-1])


def from_torch(name, value):
  """Path and value in our layout of what torch calls `name`."""
  for pattern, new in _RENAMES:
    name = re.sub(pattern, new, name)
  *path, leaf = name.split('.')
  if leaf == 'weight':
    leaf = 'kernel' if value.ndim == 2 else 'scale'
    if path[-1].endswith('embedding'):
      leaf = 'embedding'
    elif leaf == 'kernel':
      value = value.T
  if len(path) > 1 and path[-2] == 'attention' and path[-1] != 'output':
    value = value.reshape(*value.shape[:-1], HEADS, HEAD_DIM)
  elif path[-2:] == ['attention', 'output'] and leaf == 'kernel':
    value = value.reshape(HEADS, HEAD_DIM, -1)
  return (*path, leaf), value


def params(*extras, dtype=np.float32, head='lm_head'):
  """Parameters of a model on the golden encoder.

  Args:
    *extras: Names of further lists of the spec: 'cls_extra' and so on.
    dtype: Type of the arrays.
    head: Prefix of a head among the main parameters to keep, or ''.

  Returns:
    Nested dictionary in our layout.
  """
  listed = [
    (name, shape)
    for name, shape in spec()['parameters_mlm']
    if name.startswith('roberta') or (head and name.startswith(head))
  ]
  for extra in extras:
    listed += spec()[extra]
  tree = {}
  for name, shape in listed:
    path, value = from_torch(name, torch_value(name, shape))
    node = tree
    for part in path[:-1]:
      node = node.setdefault(part, {})
    node[path[-1]] = np.asarray(value, dtype)
  return tree


def at(tree, path):
  """The leaf at a path of keys."""
  for part in path:
    tree = tree[part]
  return tree
