"""Omni-scale residual blocks, and mixtures of them for architecture search."""

import dataclasses

import flax.linen as linen
import jax
import jax.numpy as jnp

from jaxpapers import nn
from jaxpapers.osnet.config import OSNetConfig
from jaxpapers.osnet.layers import (
  AggregationGate,
  ConvNorm,
  InstanceNorm2d,
  LiteConv3x3,
  compute_type,
)

# Candidates of the search, in torchreid's order: OSBlock, OSBlockINv1 .. INv3.
SEARCH_SPACE = (None, 'inside', 'outside', 'both')


class OSBlock(linen.Module):
  """Residual block with streams of several receptive fields (figure 4b).

    x1 = relu(norm(W1 x))
    x2 = sum_t gate(stream_t(x1)) stream_t(x1)
    y  = relu(norm(W3 x2) + x)

  where stream t stacks `streams[t]` Lite 3x3 layers, and x is projected where
  its channels differ.

  Attributes:
    features: Channels that go out.
    cfg: The network's: streams, reduction, aggregation ...
    instance_norm: None, 'inside', 'outside' or 'both'.

  Example:
    >>> block = OSBlock(64, OSNetConfig(streams=(1, 2)))
    >>> x = jnp.ones((1, 8, 8, 32))
    >>> y, variables = block.init_with_output(jax.random.key(0), x, False)
    >>> y.shape, sorted(variables['params'])[-3:]
    ((1, 8, 8, 64), ['stream0_0', 'stream1_0', 'stream1_1'])
  """

  features: int
  cfg: OSNetConfig = OSNetConfig()
  instance_norm: str | None = None

  @linen.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps `[B, H, W, C]` to `[B, H, W, features]`.

    Args:
      x: Images or features.
      train: Whether batch norms use the statistics of this batch.

    Returns:
      Non-negative features. `capture_intermediates` shows the outputs of
      streams and gates; `fused` is what the gates make of them.
    """
    cfg = self.cfg
    if self.features < cfg.reduction:
      raise ValueError(
        f'features is {self.features}; expected {cfg.reduction} or more, the'
        ' reduction.'
      )
    inside = self.instance_norm in ('inside', 'both')
    outside = self.instance_norm in ('outside', 'both')
    middle = self.features // cfg.reduction
    first = ConvNorm(middle, cfg, name='conv1')(x, train)
    streams = []
    for t, depth in enumerate(cfg.streams):
      y = first
      for j in range(depth):
        y = LiteConv3x3(middle, cfg, name=f'stream{t}_{j}')(y, train)
      streams.append(y)
    y = self._fuse(streams)
    self.sow('intermediates', 'fused', y)
    y = ConvNorm(
      self.features,
      cfg,
      norm=None if inside else 'batch',
      relu=False,
      name='conv3',
    )(y, train)
    if inside:
      y = self._instance_norm(y, 'instance_norm_inside')
    if x.shape[-1] != self.features:
      x = ConvNorm(self.features, cfg, relu=False, name='downsample')(x, train)
    y = y + x.astype(y.dtype)
    if outside:
      y = self._instance_norm(y, 'instance_norm_outside')
    return nn.relu(y)

  def _instance_norm(self, x, name):
    cfg = self.cfg
    return InstanceNorm2d(
      affine=cfg.affine,
      dtype=compute_type(cfg, x),
      param_dtype=jnp.dtype(cfg.param_dtype),
      name=name,
    )(x)

  def _fuse(self, streams):
    """One array of all streams, `[B, H, W, C]` or, of 'concat', more."""
    cfg = self.cfg
    if cfg.aggregation == 'concat':
      return jnp.concatenate(streams, -1)
    if cfg.aggregation == 'add':
      return sum(streams)
    if cfg.aggregation == 'fixed':
      logits = self.param(
        'gate_logits',
        linen.initializers.zeros,
        (len(streams), streams[0].shape[-1]),
        jnp.dtype(cfg.param_dtype),
      )
      gates = linen.sigmoid(logits).astype(streams[0].dtype)
    elif cfg.aggregation == 'separate':
      gates = [self._gate(f'gate{t}')(y)[0] for t, y in enumerate(streams)]
    else:
      gates = self._gate('gate')(*streams)
    return sum(g * y for g, y in zip(gates, streams, strict=True))

  def _gate(self, name):
    cfg = self.cfg
    return AggregationGate(
      cfg.gate_reduction,
      num_gates=1 if cfg.aggregation == 'streamwise' else None,
      activation=cfg.gate_activation,
      layer_norm=cfg.gate_norm,
      return_gates=True,
      dtype=cfg.dtype,
      param_dtype=cfg.param_dtype,
      name=name,
    )


class MixedOSBlock(linen.Module):
  """Blocks of a search space, weighed by a relaxed choice of one of them.

    w = softmax((log(relu(alpha) + 1e-12) + gumbel) / temperature)
    y = sum_i w_i block_i(x)

  alpha is learned with the weights. Norms have no scales and biases, so that
  candidates are compared by where they normalise.

  Attributes:
    features: Channels that go out.
    cfg: The network's.
    search_space: Instance norms of the candidates.

  Example:
    >>> block, x = MixedOSBlock(64), jnp.ones((1, 8, 8, 32))
    >>> keys = {'params': jax.random.key(0), 'gumbel': jax.random.key(1)}
    >>> y, variables = block.init_with_output(keys, x, False, 10.0)
    >>> y.shape, variables['params']['alpha'].tolist()
    ((1, 8, 8, 64), [1.0, 1.0, 1.0, 1.0])
  """

  features: int
  cfg: OSNetConfig = OSNetConfig()
  search_space: tuple[str | None, ...] = SEARCH_SPACE

  @linen.compact
  def __call__(
    self,
    x: jax.Array,
    train: bool,
    temperature: jax.typing.ArrayLike = 1.0,
    uniform: jax.Array | None = None,
  ) -> jax.Array:
    """Maps `[B, H, W, C]` to `[B, H, W, features]`.

    Args:
      x: Images or features.
      train: Whether batch norms use the statistics of this batch.
      temperature: lambda; small ones make the choice hard.
      uniform: Numbers in [0, 1) behind the Gumbel noise, `[candidates]`. By
        default drawn from the random stream 'gumbel'.

    Returns:
      The mixture.
    """
    cfg = dataclasses.replace(self.cfg, affine=False)
    shape = (len(self.search_space),)
    alpha = self.param(
      'alpha', linen.initializers.ones, shape, jnp.dtype(cfg.param_dtype)
    )
    if uniform is None:
      uniform = jax.random.uniform(self.make_rng('gumbel'), shape, alpha.dtype)
    weights = mixture_weights(alpha, uniform, temperature)
    y = 0
    for i, kind in enumerate(self.search_space):
      out = OSBlock(self.features, cfg, kind, name=f'block{i}')(x, train)
      y = y + weights[i].astype(out.dtype) * out
    return y


def mixture_weights(
  alpha: jax.Array, uniform: jax.Array, temperature: jax.typing.ArrayLike
) -> jax.Array:
  """Weights of candidates, a sample of the Gumbel-softmax distribution.

  Args:
    alpha: What is learned, `[candidates]`; negative ones count as zero.
    uniform: Numbers in [0, 1), `[candidates]`.
    temperature: A positive number.

  Returns:
    Positive numbers that sum to one, `[candidates]`.

  Example:
    >>> w = mixture_weights(jnp.ones(2), jnp.array([0.5, 0.5]), 1.0)
    >>> w.tolist()
    [0.5, 0.5]
  """
  gumbel = -jnp.log(-jnp.log(uniform + 1e-12) + 1e-12)
  logits = jnp.log(linen.relu(alpha) + 1e-12) + gumbel
  return jax.nn.softmax(logits / temperature)
