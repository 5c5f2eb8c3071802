"""The search that found OSNet-AIN: where instance norms help (TPAMI 2021)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as linen
import jax
import numpy as np

from jaxpapers.osnet.blocks import SEARCH_SPACE, MixedOSBlock
from jaxpapers.osnet.config import OSNetConfig
from jaxpapers.osnet.network import Children, OSNet, OSNetOutput


class SearchOSNet(OSNet):
  """OSNet with a mixture of all candidates in the place of each block.

  Norms have no scales and biases. Weights and the choices `alpha` are trained
  together, on the same batches.

  Attributes:
    cfg: The network's; its `instance_norm` is what is looked for.
    num_classes: Identities of the training set.

  Example:
    >>> net = SearchOSNet(OSNetConfig(channels=(8, 64, 64, 64)), 10)
    >>> keys = {'params': jax.random.key(0), 'gumbel': jax.random.key(1)}
    >>> x = jax.numpy.ones((1, 64, 32, 3))
    >>> variables = jax.eval_shape(net.init, keys, x)
    >>> variables['params']['conv2_0']['alpha'].shape
    (4,)
  """

  @linen.compact
  def __call__(
    self,
    x: jax.Array,
    train: bool = False,
    temperature: jax.typing.ArrayLike = 1.0,
    uniform: jax.Array | None = None,
  ) -> OSNetOutput:
    """Runs a sample of the mixtures on images.

    Args:
      x: Normalised images `[B, H, W, 3]`.
      train: Whether with statistics of the batch.
      temperature: lambda, as of `temperature_at`.
      uniform: Numbers in [0, 1) for the noise of every block, `[candidates]`;
        by default from the random stream 'gumbel', others in each block.

    Returns:
      Features, logits and the last feature map.
    """
    # The norms outside of blocks have no scales either.
    cfg = dataclasses.replace(self.cfg, affine=False)
    block_class = MixedOSBlock
    if cfg.remat:
      block_class = linen.remat(MixedOSBlock, static_argnums=(2,))

    def block(features, index, name):
      del index
      return block_class(features, cfg, name=name)

    children = Children(train, None)
    return self._run(cfg, x, children, block, temperature, uniform)


def temperature_at(
  epoch: int,
  start: float = 10.0,
  factor: float = 0.5,
  every: int = 20,
  least: float = 1.0,
) -> float:
  """Lambda of an epoch: from soft mixtures to harder choices.

  Args:
    epoch: From 0.
    start: The first.
    factor: What it is multiplied by ...
    every: ... after so many epochs.
    least: Where it stays.

  Returns:
    The temperature.

  Raises:
    ValueError: If a number is not positive.

  Example:
    >>> [temperature_at(epoch) for epoch in (0, 19, 20, 40, 60, 80, 119)]
    [10.0, 10.0, 5.0, 2.5, 1.25, 1.0, 1.0]
  """
  if epoch < 0 or every < 1 or min(start, factor, least) <= 0:
    raise ValueError(
      f'epoch is {epoch}, start {start}, factor {factor}, every {every}, least'
      f' {least}; expected positive numbers, and an epoch of 0 or more.'
    )
  return max(least, start * factor ** (epoch // every))


def architecture_weights(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Alpha of each block.

  Args:
    params: Parameters of a `SearchOSNet`.

  Returns:
    Name of the block -> `[candidates]`, in the order of the network.

  Raises:
    ValueError: If there are none.
  """
  found = {
    name: np.asarray(params[name]['alpha'])
    for name in sorted(params, key=_place)
    if 'alpha' in params[name]
  }
  if not found:
    raise ValueError(
      'params has no blocks with alpha; expected those of a SearchOSNet.'
    )
  return found


def child_config(
  params: Mapping[str, Any],
  cfg: OSNetConfig,
  search_space: tuple[str | None, ...] = SEARCH_SPACE,
) -> OSNetConfig:
  """The network that a search has found: the largest alpha of each block.

  Args:
    params: Parameters of a `SearchOSNet`.
    cfg: Its config.
    search_space: Its candidates.

  Returns:
    The config of an `OSNet`, whose norms have scales and biases.

  Raises:
    ValueError: If there are no choices, or not as many as blocks.

  Example:
    >>> alpha = {'alpha': np.array([0.1, 2.0, 1.0, 0.5])}
    >>> params = {'conv2_0': alpha}
    >>> cfg = OSNetConfig(channels=(8, 64), blocks_per_stage=(1,))
    >>> child_config(params, cfg).instance_norm
    ('inside',)
  """
  weights = architecture_weights(params)
  if len(weights) != cfg.num_blocks:
    raise ValueError(
      f'params has choices for {list(weights)}; expected {cfg.num_blocks}'
      ' blocks, as the config has.'
    )
  chosen = tuple(search_space[int(w.argmax())] for w in weights.values())
  return dataclasses.replace(cfg, instance_norm=chosen, affine=True)


def _place(name):
  """Stage and block of 'conv2_0'; what is no block comes last."""
  stage, _, block = name.removeprefix('conv').partition('_')
  if stage.isdigit() and block.isdigit():
    return int(stage), int(block)
  return (10**6, 0)
