"""Weights that follow from torchreid's names, and the images of the goldens.

The rules are in testdata/osnet/README.md.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers import osnet
from jaxpapers.osnet import exchange
from tests.helpers import goldens

TAG = 'public:'
CLASSES = 13
# Compiles in a second.
TINY = osnet.OSNetConfig(
  channels=(8, 32),
  blocks_per_stage=(1,),
  streams=(1, 2),
  gate_reduction=4,
  feature_dim=16,
)


def value(name, shape, prefix=''):
  """The array of that name."""
  shape = tuple(shape)
  if name.endswith('num_batches_tracked'):
    return np.zeros((), np.int64)
  z = goldens.normal(f'{TAG}{prefix}{name}', shape)
  if name.endswith('running_var'):
    z = np.exp(0.2 * z)
  elif name.endswith('running_mean'):
    z = 0.1 * z
  elif len(shape) == 1:
    z = 0.1 * z + name.endswith('weight')
  else:
    z = z / np.sqrt(np.prod(shape[1:]))
  return z.astype(np.float32)


def images(name, batch, height, width):
  """Images [B, H, W, 3] of a name."""
  g = goldens.rng(f'{TAG}x/{name}')
  x = g.standard_normal((batch, 3, height, width))
  x = x + g.standard_normal((batch, 3, 1, 1))
  x = x + g.standard_normal((batch, 3, height, 1))
  return nhwc(x.astype(np.float32))


def nhwc(x):
  """From torch's order of axes."""
  return np.moveaxis(np.asarray(x), 1, -1)


def state(cfg, classes=CLASSES, naming='auto', prefix=''):
  """A network's whole state dict."""
  shapes = exchange.expected(cfg, classes)
  blank = jax.tree.map(
    # Without memory, whatever the shape.
    lambda leaf: np.broadcast_to(np.zeros((), np.float32), leaf.shape),
    {'batch_stats': {}, **shapes},
  )
  found = osnet.to_torch_state_dict(blank, cfg, naming)
  return {k: value(k, x.shape, prefix) for k, x in found.items()}


@functools.cache
def variables(cfg, classes=CLASSES, naming='auto'):
  """A network's parameters and statistics."""
  return osnet.from_torch_state_dict(state(cfg, classes, naming), cfg)


def wide(tree):
  """In float64, for the inside of `jax.enable_x64(True)`."""
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def block_variables(block, prefix, *inputs):
  """Parameters and statistics of an `OSBlock` whose names have a prefix."""
  like = jax.eval_shape(lambda key: block.init(key, *inputs), jax.random.key(0))
  # A block is the whole of its stage in the table of names.
  cfg = dataclasses.replace(
    block.cfg,
    channels=(4, block.features),
    blocks_per_stage=(1,),
    instance_norm=(block.instance_norm,),
    affine=True,
  )
  table = exchange.table_for(cfg, 'ain')
  like = {kind: {'conv2_0': tree} for kind, tree in like.items()}
  blank = jax.tree.map(
    lambda leaf: np.broadcast_to(np.zeros((), np.float32), leaf.shape), like
  )
  found = {
    name: value(name.removeprefix('conv2.0.'), array.shape, prefix)
    for name, array in table.to_state_dict(blank).items()
  }
  tree = table.to_tree(found, like)
  return {kind: tree[kind]['conv2_0'] for kind in tree}


def fresh(init, *inputs):
  """Random variables without the compilation that random keys would cost."""
  like = jax.eval_shape(init, *inputs)
  g = np.random.default_rng(0)

  def fill(path, leaf):
    if path[-1].key in ('scale', 'var', 'alpha'):
      return jnp.ones(leaf.shape, leaf.dtype)
    return jnp.asarray(0.3 * g.standard_normal(leaf.shape), leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, like)
