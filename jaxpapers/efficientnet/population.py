"""Many architectures in one program: a largest network under masks.

The architecture is an array, not a shape: choices become masks on one network
that contains all of them. `vmap` over weights and tokens together trains any
number of architectures side by side, after a single compilation, and each does
exactly what the network by itself would do.
"""

import dataclasses
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers import nn
from jaxpapers.efficientnet.mobilenet import classify
from jaxpapers.efficientnet.search_network import layer_name, pool_skip
from jaxpapers.efficientnet.search_space import (
  EXPANSIONS,
  KERNELS,
  OPS,
  SE_RATIOS,
  SKIPS,
  SearchSpace,
)

_LARGEST = max(KERNELS)
_MOST = max(EXPANSIONS.values())
# Added to the products of channels and ratios, which float32 rounds.
_HALF = 1e-3


class _Kernel(linen.Module):
  """A kernel whose scale may depend on the architecture."""

  shape: tuple[int, ...]

  @linen.compact
  def __call__(self, deviation: Any) -> jax.Array:
    return self.param(
      'kernel', lambda key: jax.random.normal(key, self.shape) * deviation
    )


class _Dense(linen.Module):
  """1x1 convolution as a product, with or without bias.

  A convolution with a kernel for each member is a grouped one, which XLA runs
  slowly on CPUs; a product with a matrix for each is a batched product.
  """

  features: int
  use_bias: bool = False

  @linen.compact
  def __call__(self, x: jax.Array, deviation: Any) -> jax.Array:
    shape = (1, 1, x.shape[-1], self.features)
    kernel = self.param(
      'kernel', lambda key: jax.random.normal(key, shape) * deviation
    )
    y = jnp.einsum('nhwc,cd->nhwd', x, kernel[0, 0])
    if self.use_bias:
      y += self.param('bias', linen.initializers.zeros, (self.features,))
    return y


class MaskedNetwork(linen.Module):
  """All architectures of a space, one at a time.

  Attributes:
    space: The space.
    bn_momentum: Share of the old statistics.
    bn_epsilon: Added to variances.
    dropout_rate: Before the classifier.
    depthwise_impl: As in `nn.depthwise_conv`.
  """

  space: SearchSpace
  bn_momentum: float = 0.9
  bn_epsilon: float = 1e-3
  dropout_rate: float = 0.0
  depthwise_impl: str = 'auto'

  @linen.compact
  def __call__(
    self, x: jax.Array, tokens: jax.Array, train: bool = False
  ) -> jax.Array:
    """Maps images to logits, as the architecture would.

    Args:
      x: Normalised images `[N, H, W, C]`.
      tokens: int32 `[blocks, 6]`; may be traced.
      train: Whether with the statistics of this batch.

    Returns:
      Logits `[N, num_classes]`.
    """
    space = self.space
    # All members see the same stem: their kernels still differ.
    x = self._full(x, 'stem', space.stem_filters, 3, space.stem_stride, None)
    x = jax.nn.silu(self._norm(x, 'stem', train))
    channels = jnp.int32(space.stem_filters)
    for block in range(space.num_blocks):
      x, channels = self._block(x, channels, block, tokens[block], train)
    x = _Dense(space.head_filters, name='head_conv')(
      x, np.sqrt(2 / space.head_filters)
    )
    x = jax.nn.silu(self._norm(x, 'head', train))
    return classify(x, space.num_classes, self.dropout_rate, train)

  def _block(self, x, channels, block, tokens, train):
    space = self.space
    filters = jnp.array(space.filters_of(block))[tokens[4]]
    layers = jnp.array(space.layers_of(block))[tokens[5]]
    most = max(space.filters_of(block))
    for index in range(max(space.layers_of(block))):
      stride = space.strides[block] if index == 0 else 1
      name = layer_name(block, index)
      y = self._layer(x, channels, filters, most, stride, name, tokens, train)
      x = jnp.where(index < layers, y, x) if index else y
      channels = filters
    return x, channels

  def _layer(self, x, inputs, filters, most, stride, name, tokens, train):
    """One layer of any kind; masked channels come in and go out as zeros."""
    op, kernel, se, skip = tokens[0], tokens[1], tokens[2], tokens[3]
    small = kernel == KERNELS.index(min(KERNELS))
    squeezed = jnp.maximum(
      1, jnp.floor(inputs * max(SE_RATIOS) + _HALF)
    ).astype(jnp.int32)
    widest = max(1, int(x.shape[-1] * max(SE_RATIOS)))

    # A plain convolution.
    full = self._full(x, f'{name}_full', most, _LARGEST, stride, small, filters)
    full = jax.nn.silu(self._norm(full, f'{name}_full', train))
    full = _mask(full, filters)
    full = self._squeeze(
      full, f'{name}_full_', filters, squeezed, widest, se > 0
    )

    # Depthwise, after an expansion or none.
    expansions = jnp.array([EXPANSIONS[o] for o in OPS])
    middle = inputs * expansions[op]
    width = x.shape[-1] * _MOST
    y = _Dense(width, name=f'{name}_expand_conv')(x, jnp.sqrt(2 / middle))
    y = jax.nn.silu(self._norm(y, f'{name}_expand', train))
    plain = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))
    y = jnp.where(op == OPS.index('sepconv'), plain, _mask(y, middle))
    side = jnp.where(small, min(KERNELS), _LARGEST)
    weights = _Kernel(
      (_LARGEST, _LARGEST, 1, width), name=f'{name}_depthwise_conv'
    )(jnp.sqrt(2.0) / side)
    y = nn.depthwise_conv(
      y,
      weights * _ring(small)[..., None, None],
      stride,
      impl=self.depthwise_impl,
    )
    y = jax.nn.silu(self._norm(y, f'{name}_depthwise', train))
    y = _mask(y, middle)
    y = self._squeeze(y, f'{name}_', middle, squeezed, widest, se > 0)
    y = _Dense(most, name=f'{name}_project_conv')(y, jnp.sqrt(2 / filters))
    y = _mask(self._norm(y, f'{name}_project', train), filters)

    y = jnp.where(op == OPS.index('conv'), full, y)
    bridge = _mask(pool_skip(x, most, stride), filters)
    wanted = skip == SKIPS.index('pool')
    if stride == 1:
      same = (skip == SKIPS.index('identity')) & (inputs == filters)
      wanted = wanted | same
    return y + jnp.where(wanted, bridge, 0)

  def _squeeze(self, x, prefix, channels, squeezed, widest, wanted):
    """Squeeze-and-excitation whose gate is 1 where it is not wanted."""
    pooled = x.mean((1, 2), keepdims=True)
    y = _Dense(widest, True, name=f'{prefix}se_reduce')(
      pooled, jnp.sqrt(2 / squeezed)
    )
    y = _mask(jax.nn.silu(y), squeezed)
    y = _Dense(x.shape[-1], True, name=f'{prefix}se_expand')(
      y, jnp.sqrt(2 / channels)
    )
    return x * jnp.where(wanted, jax.nn.sigmoid(y), 1.0)

  def _full(self, x, name, filters, size, stride, small, true_filters=None):
    """A convolution as a product of patches and kernel."""
    side, outputs = size, filters
    if small is not None:
      side = jnp.where(small, min(KERNELS), size)
      outputs = true_filters
    kernel = _Kernel((size, size, x.shape[-1], filters), name=f'{name}_conv')(
      jnp.sqrt(2 / (side * side * outputs))
    )
    if small is not None:
      kernel = kernel * _ring(small)[..., None, None]
    pads = nn.explicit_padding(
      x.shape[1:3], (size, size), (stride, stride), 'SAME'
    )
    height, width = (-(-n // stride) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    patches = [
      x[
        :,
        i : i + (height - 1) * stride + 1 : stride,
        j : j + (width - 1) * stride + 1 : stride,
      ]
      for i in range(size)
      for j in range(size)
    ]
    patches = jnp.concatenate(patches, -1)
    return jnp.einsum('nhwc,cd->nhwd', patches, kernel.reshape(-1, filters))

  def _norm(self, x, name, train):
    return nn.BatchNorm(self.bn_momentum, self.bn_epsilon, name=f'{name}_bn')(
      x, train=train
    )


def _mask(x: jax.Array, channels: Any) -> jax.Array:
  """Zeros from a channel on."""
  return jnp.where(jnp.arange(x.shape[-1]) < channels, x, 0)


def _ring(small: Any) -> jax.Array:
  """Which taps of the largest kernel count, `[5, 5]`."""
  border = (_LARGEST - min(KERNELS)) // 2
  inside = np.zeros((_LARGEST, _LARGEST), bool)
  inside[border:-border, border:-border] = True
  return jnp.where(small, inside, True).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class MaskedPopulation:
  """Architectures side by side.

  Attributes:
    space: The space.
    members: How many at once.
    bn_momentum: Share of the old statistics.
    dropout_rate: Before the classifier.
    depthwise_impl: As in `nn.depthwise_conv`.

  Example:
    >>> space = SearchSpace(((8,), (1,)), (2,), stem=8, head=16, num_classes=2)
    >>> population = MaskedPopulation(space, 3)
    >>> tokens = space.sample(0, 3)
    >>> x = jnp.ones((2, 8, 8, 3))
    >>> variables = population.init(jax.random.key(0), x, tokens)
    >>> population.apply(variables, x, tokens).shape
    (3, 2, 2)
  """

  space: SearchSpace
  members: int
  bn_momentum: float = 0.9
  dropout_rate: float = 0.0
  depthwise_impl: str = 'auto'

  @property
  def module(self) -> MaskedNetwork:
    """The network of one member."""
    return MaskedNetwork(
      self.space,
      bn_momentum=self.bn_momentum,
      dropout_rate=self.dropout_rate,
      depthwise_impl=self.depthwise_impl,
    )

  def check(self, tokens: Any) -> np.ndarray:
    """Tokens `[members, blocks, 6]` as int32.

    Raises:
      ValueError: If there are other than `members`, or one is out of range.
    """
    if np.shape(tokens)[:1] != (self.members,):
      raise ValueError(
        f'tokens have shape {list(np.shape(tokens))}; expected'
        f' {[self.members, *self.space.shape]}.'
      )
    return np.stack([self.space.check(row) for row in np.asarray(tokens)])

  def init(self, key: jax.Array, x: jax.Array, tokens: Any) -> Any:
    """Parameters and statistics of all members.

    Args:
      key: Typed key, or one for each member.
      x: Images `[N, H, W, C]`, for their shape.
      tokens: int32 `[members, blocks, 6]`.

    Returns:
      {'params', 'batch_stats'} with a leading axis of members.
    """
    tokens = self.check(tokens)
    keys = jax.random.split(key, self.members) if key.ndim == 0 else key
    init = jax.vmap(lambda k, t: self.module.init(k, x, t))
    return jax.jit(init)(keys, tokens)

  def apply(
    self, variables: Any, x: jax.Array, tokens: jax.Array, train: bool = False
  ) -> Any:
    """Logits of all members for the same images.

    Args:
      variables: Of `init`.
      x: Images `[N, H, W, C]`.
      tokens: int32 `[members, blocks, 6]`.
      train: Whether with the statistics of this batch.

    Returns:
      Logits `[members, N, num_classes]`; in training a pair of these and
      {'batch_stats'}.
    """

    def one(variables, tokens):
      if not train:
        return self.module.apply(variables, x, tokens)
      return self.module.apply(
        variables, x, tokens, train=True, mutable=['batch_stats']
      )

    return jax.vmap(one)(variables, jnp.asarray(tokens))


def extract(space: SearchSpace, variables: Any, tokens: Any) -> Any:
  """Weights of one member for its network by itself, `SearchNetwork`.

  Args:
    space: The space.
    variables: {'params', 'batch_stats'} of one member, without leading axis.
    tokens: Its tokens.

  Returns:
    {'params', 'batch_stats'} of the `SearchNetwork` of these tokens.
  """
  sizes: dict[str, tuple[int, int, int]] = {}  # Kernel, inputs, outputs.
  for block, layers in enumerate(space.layers(tokens)):
    for index, layer in enumerate(layers):
      name, middle = layer_name(block, index), layer.expanded
      prefix = f'{name}_'
      if layer.op == 'conv':
        prefix, full = f'{name}_full_', (layer.inputs, layer.filters)
        sizes[f'{name}_full'] = (layer.kernel, *full)
      else:
        if layer.op != 'sepconv':
          sizes[f'{name}_expand'] = 1, layer.inputs, middle
        sizes[f'{name}_depthwise'] = layer.kernel, 1, middle
        sizes[f'{name}_project'] = 1, middle, layer.filters
      if layer.squeezed:
        sizes[f'{prefix}se_reduce'] = 1, layer.gated, layer.squeezed
        sizes[f'{prefix}se_expand'] = 1, layer.squeezed, layer.gated
      last = layer.filters
  sizes['stem'] = 3, space.channels, space.stem_filters
  sizes['head'] = 1, last, space.head_filters

  def cut(tree):
    found = {}
    for name, leaves in tree.items():
      if name == 'classifier':
        found[name] = dict(leaves)
        continue
      size = sizes.get(name.removesuffix('_conv').removesuffix('_bn'))
      if size is not None:
        found[name] = {k: _cut(v, *size) for k, v in leaves.items()}
    return found

  return {kind: cut(tree) for kind, tree in variables.items()}


def _cut(x, kernel, inputs, outputs):
  """The part of a leaf that a smaller layer has."""
  if x.ndim == 1:
    return x[:outputs]
  border = (x.shape[0] - kernel) // 2
  inner = slice(border, border + kernel)
  return x[inner, inner, :inputs, :outputs]
