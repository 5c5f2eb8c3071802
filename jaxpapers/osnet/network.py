"""OSNet as a Linen module: from images to features and logits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp

from jaxpapers import nn
from jaxpapers.osnet.blocks import OSBlock
from jaxpapers.osnet.config import OSNetConfig
from jaxpapers.osnet.layers import (
  ConvNorm,
  batch_norm,
  compute_type,
  dense_init,
  pool_average,
)


class OSNetOutput(NamedTuple):
  """What the network says of images.

  Attributes:
    features: `[B, D]`, float32 or wider, not normalised. Non-negative.
    logits: Of the classes, `[B, K]`, float32 or wider; None without classes.
    feature_map: What is pooled, `[B, h, w, C]`, for activation maps.
  """

  features: jax.Array
  logits: jax.Array | None
  feature_map: jax.Array


class OSNet(linen.Module):
  """The omni-scale network of a config.

  Attributes:
    cfg: Which.
    num_classes: Identities of the training set, or attributes; 0 for none.

  Example:
    >>> net = OSNet(OSNetConfig(channels=(16, 64, 96, 128)), num_classes=10)
    >>> x = jnp.ones((1, 64, 32, 3))
    >>> variables = net.init(jax.random.key(0), x)
    >>> out = net.apply(variables, x)
    >>> out.features.shape, out.logits.shape, out.feature_map.shape
    ((1, 512), (1, 10), (1, 4, 2, 128))
  """

  cfg: OSNetConfig = OSNetConfig()
  num_classes: int = 0

  @linen.compact
  def __call__(
    self,
    x: jax.Array,
    train: bool = False,
    *,
    open_layers: Sequence[str] | None = None,
  ) -> OSNetOutput:
    """Runs it on images.

    In training, `apply` takes `mutable=['batch_stats']` to keep statistics.

    Args:
      x: Normalised images `[B, H, W, 3]`, floating.
      train: Whether with statistics of the batch.
      open_layers: Children that train, such as `('classifier',)`; all by
        default. The others use their kept statistics, and those in front of
        the first open one get no gradient, which is not computed either.

    Returns:
      Features, logits and the last feature map.

    Raises:
      ValueError: If the images have another rank, other channels than the
        parameters, or too few pixels; or if there is no such child.
      TypeError: If they are not floating.
    """
    cfg = self.cfg

    def block(features, index, name):
      cls = linen.remat(OSBlock, static_argnums=(2,)) if cfg.remat else OSBlock
      return cls(features, cfg, cfg.block_norm(index), name=name)

    return self._run(cfg, x, Children(train, open_layers), block)

  def _run(self, cfg, x, children, block, *inputs):
    """The network with a maker of blocks, and what their calls get."""
    check_images(self, x)
    if self.num_classes < 0:
      raise ValueError(
        f'num_classes is {self.num_classes}; expected 0 (none) or more.'
      )
    if cfg.dtype is not None:
      x = x.astype(cfg.dtype)
    x = self._stem(cfg, x, children)
    index = 0
    stages = list(zip(cfg.channels[1:], cfg.blocks_per_stage, strict=True))
    for s, (features, count) in enumerate(stages):
      for b in range(count):
        name = f'conv{s + 2}_{b}'
        module = block(features, index, name)
        x = children.pass_on(
          name, lambda x, train, m=module: m(x, train, *inputs), x
        )
        index += 1
      if s + 1 < len(stages):
        name = f'conv{s + 2}_transition'
        x = children.pass_on(name, ConvNorm(features, cfg, name=name), x)
        x = nn.avg_pool(x, (2, 2))
    # A convolution behind the last stage, whatever their number.
    x = children.pass_on('conv5', ConvNorm(x.shape[-1], cfg, name='conv5'), x)
    feature_map = x
    x = pool_average(x) if cfg.pool == 'avg' else x.max((1, 2))
    if cfg.feature_dim is not None:
      head = FeatureLayer(cfg.feature_dim, cfg, name='fc')
      x = children.pass_on('fc', head, x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    logits = None
    if self.num_classes:
      logits = linen.Dense(
        self.num_classes,
        kernel_init=dense_init,
        param_dtype=jnp.dtype(cfg.param_dtype),
        name='classifier',
      )(x)
      children.pass_on('classifier', lambda y, _: y, logits)
    children.check()
    return OSNetOutput(x, logits, feature_map)

  def _stem(self, cfg, x, children):
    kernel, stride = (7, 2) if cfg.stem == 'imagenet' else (3, 1)
    conv = ConvNorm(
      cfg.channels[0], cfg, kernel, stride, norm=cfg.stem_norm, name='conv1'
    )
    x = children.pass_on('conv1', conv, x)
    if cfg.stem != 'cifar':
      x = nn.max_pool(x, (3, 3), (2, 2), 'symmetric')
    return x


class FeatureLayer(linen.Module):
  """Dense layer with a bias, batch norm, ReLU.

  Attributes:
    features: Numbers that go out.
    cfg: The network's.
  """

  features: int
  cfg: OSNetConfig = OSNetConfig()

  @linen.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[B, C]` to `[B, features]`."""
    x = linen.Dense(
      self.features,
      kernel_init=dense_init,
      dtype=compute_type(self.cfg, x),
      param_dtype=jnp.dtype(self.cfg.param_dtype),
      name='linear',
    )(x)
    return nn.relu(batch_norm(self.cfg, x, train))


class Children:
  """Which children train, as the network is walked through."""

  def __init__(self, train: bool, open_layers: Sequence[str] | None):
    if isinstance(open_layers, str):
      open_layers = (open_layers,)
    self._train = train
    self._open = open_layers
    self._found: set[str] = set()

  def pass_on(self, name: str, call: Any, x: jax.Array) -> jax.Array:
    """The output of a child; without gradient in front of the first open."""
    if self._open is None:
      return call(x, self._train)
    matched = [o for o in self._open if is_child(name, o)]
    self._found.update(matched)
    y = call(x, self._train and bool(matched))
    return y if self._found else jax.lax.stop_gradient(y)

  def check(self) -> None:
    """Refuses names that no child has."""
    _refuse(sorted(set(self._open or ()) - self._found))


def check_children(cfg: OSNetConfig, names: Sequence[str]) -> None:
  """Refuses names that no child of a network with a classifier has.

  Args:
    cfg: The network's.
    names: Such as `open_layers`.

  Raises:
    ValueError: With those that are none.
  """
  children = ['conv1', 'conv5', 'classifier']
  children += ['fc'] * (cfg.feature_dim is not None)
  for stage, count in enumerate(cfg.blocks_per_stage, 2):
    children += [f'conv{stage}_{block}' for block in range(count)]
    if stage <= len(cfg.blocks_per_stage):
      children.append(f'conv{stage}_transition')
  names = (names,) if isinstance(names, str) else names
  _refuse(sorted(n for n in names if not any(is_child(c, n) for c in children)))


def _refuse(unknown):
  if unknown:
    raise ValueError(
      f'open_layers has {unknown}; expected names of children, such as'
      " 'classifier', 'fc', 'conv5', 'conv4', 'conv2_0'."
    )


def is_child(name: str, prefix: str) -> bool:
  """Whether a child has a name, or is of the stage of that name.

  Args:
    name: A key of the parameters, such as 'conv4_0'.
    prefix: 'conv4_0', or 'conv4' for all of that stage.

  Returns:
    Whether it fits.
  """
  return name == prefix or name.startswith(f'{prefix}_')


def smallest_side(cfg: OSNetConfig) -> int:
  """Pixels that a side of an image must have for one to be left at the end.

  Args:
    cfg: The network's.

  Returns:
    The number.

  Example:
    >>> smallest_side(OSNetConfig())
    13
  """
  side = 1
  # Average pooling drops what is left over, the stem's strides do not.
  side *= 2 ** (len(cfg.blocks_per_stage) - 1)
  for _ in range({'imagenet': 2, 'cifar': 0, 'cifar_pool': 1}[cfg.stem]):
    side = 2 * side - 1
  return side


def check_images(module: linen.Module, x: Any) -> None:
  """Refuses what are no images for a network.

  Args:
    module: Has `cfg`, and maybe parameters.
    x: Of any kind.

  Raises:
    ValueError: If shapes do not fit.
    TypeError: If x is not floating.
  """
  shape = jnp.shape(x)
  if len(shape) != 4 or 0 in shape:
    raise ValueError(
      f'x has shape {shape}; expected images [B, H, W, 3]. Add an axis for a'
      ' single image.'
    )
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(
      f'x is {x.dtype}; expected floating images: scaled to [0, 1], then'
      ' normalised by mean and deviation of ImageNet.'
    )
  known = module.variables.get('params', {}).get('conv1', {}).get('conv', {})
  wanted = known['kernel'].shape[2] if 'kernel' in known else shape[-1]
  if wanted != shape[-1]:
    raise ValueError(
      f'x has shape {shape}; expected {wanted} channels in the last axis, as'
      ' the parameters have it.'
    )
  least = smallest_side(module.cfg)
  if min(shape[1:3]) < least:
    raise ValueError(
      f'x has images of {shape[1]} x {shape[2]} pixels; expected {least} or'
      ' more each way, of which one is left at the end.'
    )
