"""Weights that follow from the names in timm's state dict, and the inputs."""

import functools
import re

import jax
import numpy as np

from jaxpapers import efficientnet
from jaxpapers.efficientnet import pretrained, pretrained_names
from tests.helpers import goldens

# The last normalisation of a block with a skip.
_LAST = re.compile(r'blocks\.(0\.[1-9]\d*\.bn2|[1-6]\.[1-9]\d*\.bn3)\.weight$')


def tiny(**changes):
  """The network of width 0.25 and depth 0.5 for 10 classes."""
  fields = {'width': 0.25, 'depth': 0.5, 'num_classes': 10}
  return efficientnet.ModelConfig(**fields | changes)


def small(**changes):
  """Three blocks, one with a skip: compiles in a fraction of the time."""
  first, _, third, *_ = efficientnet.config_for('b0').blocks
  return tiny(**{'depth': 1.0, 'blocks': (first, third)} | changes)


def value(name, shape):
  """The array of that name, as testdata/efficientnet/README.md says."""
  z = goldens.normal(name, shape)
  layer, _, leaf = name.rpartition('.')
  del layer
  if leaf == 'num_batches_tracked':
    return np.zeros((), np.int64)
  if leaf == 'running_mean' or leaf == 'bias':
    z = 0.1 * z
  elif leaf == 'running_var':
    z = np.exp(0.2 * z)
  elif len(shape) == 1:
    z = (1 + 0.1 * z) * (0.25 if _LAST.match(name) else 1)
  else:
    z = z * np.sqrt(2 / np.prod(shape[1:]))
  return z.astype(np.float32)


def timm_shapes(config):
  """Name -> shape of timm's state dict, from the shapes of our variables."""
  table = pretrained_names.table_for(config, 'timm')
  blank = jax.tree.map(
    # Without memory, whatever the shape.
    lambda leaf: np.broadcast_to(np.zeros((), np.float32), leaf.shape),
    shapes(config),
  )
  return {k: v.shape for k, v in table.to_state_dict(blank).items()}


def shapes(config):
  """Shapes of the variables."""
  return pretrained.expected(config)


def state_dict(config):
  """The whole state dict of timm, counters aside."""
  return {k: value(k, shape) for k, shape in timm_shapes(config).items()}


@functools.lru_cache(maxsize=4)
def _variables(config):
  table = pretrained_names.table_for(config, 'timm')
  return table.to_tree(state_dict(config), shapes(config))


def variables(config):
  """Our variables."""
  return jax.tree.map(lambda leaf: leaf, _variables(config))


def images(tag, *shape):
  """A batch of images."""
  return goldens.normal(f'input/{tag}', shape).astype(np.float32)
