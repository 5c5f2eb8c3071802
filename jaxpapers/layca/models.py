"""The paper's plain networks: VGG-like stacks and multilayer perceptrons.

Kernels are created in the order in which Keras sorts them topologically, which
is the order of the layer-wise multipliers (paper, section 4.1). Convolutional
kernels are (height, width, in, out), images [batch, height, width, channels].
The networks of the five tasks have neither biases nor scales and centres in
their batch normalisation, so that kernels are all that is trained.

All networks are called with `train`, which selects batch statistics, and with
`mask` [batch], zero for examples that only fill up a batch: these enter no
statistic. Statistics are computed in float32 whatever `dtype` is.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxpapers.layca import initializers


def batch_norm(module: nn.Module, train: bool, **options: Any) -> nn.BatchNorm:
  """Batch normalisation with Keras' constants.

  Args:
    module: the network, for its `dtype`, `param_dtype` and `momentum`.
    train: whether batch statistics are used.
    **options: more for `nn.BatchNorm`, `name` among them.

  Returns:
    The layer: epsilon 1e-3, no scale and no centre by default.
  """
  defaults = {'use_bias': False, 'use_scale': False, 'epsilon': 1e-3}
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=getattr(module, 'momentum', 0.99),
    dtype=module.dtype,
    param_dtype=module.param_dtype,
    **{**defaults, **options},
  )


def example_mask(mask: jax.Array | None, x: jax.Array) -> jax.Array | None:
  """Shapes a mask [batch] so that it broadcasts against activations.

  Args:
    mask: booleans or numbers, nonzero for real examples, or None.
    x: activations [batch, ...].

  Returns:
    Booleans [batch, 1, ...] of as many axes as x, or None.

  Raises:
    ValueError: if mask is not of shape [batch].
  """
  if mask is None:
    return None
  if mask.shape != x.shape[:1]:
    raise ValueError(
      f'mask has shape {mask.shape}; expected one entry for each of the'
      f' {x.shape[0]} examples.'
    )
  return (mask != 0).reshape(mask.shape + (1,) * (x.ndim - 1))


def kernel_options(module: nn.Module) -> dict[str, Any]:
  """What all convolutions and dense layers of a network share: no biases."""
  return {
    'use_bias': False,
    'kernel_init': module.kernel_init,
    'dtype': module.dtype,
    'param_dtype': module.param_dtype,
  }


class VGGLayca(nn.Module):
  """The VGG-like network of the tasks C10-CNN1 and tiny-CNN.

  Stages of 3x3 convolutions, each followed by relu and then batch
  normalisation, halved by max pooling between the stages (not after the last),
  global average pooling, and one dense layer. The defaults are the 25 kernels
  of C10-CNN1; `VGGLayca((3,) * 4, (16, 32, 64, 128))` is its fast variant and
  `VGGLayca((2,) * 5, (32, 64, 128, 256, 512), 200, momentum=0.9)` tiny-CNN.

  Attributes:
    stages: convolutions of each stage.
    filters: channels of each stage.
    classes: number of outputs.
    kernel_init: initialiser of all kernels.
    momentum: of the running statistics.
    dtype: type of the computation.
    param_dtype: type of the parameters.

  Example:
    >>> x = jnp.ones((2, 32, 32, 3))
    >>> model = VGGLayca((1, 1), (4, 8))
    >>> variables = model.init(jax.random.key(0), x)
    >>> model.apply(variables, x).shape
    (2, 10)
  """

  stages: Sequence[int] = (6, 6, 6, 6)
  filters: Sequence[int] = (32, 64, 128, 256)
  classes: int = 10
  kernel_init: Any = initializers.he_uniform()
  momentum: float = 0.99
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False, mask=None):
    _check_stages(self.stages, self.filters)
    options = kernel_options(self)
    valid = example_mask(mask, x)
    for stage, (layers, filters) in enumerate(zip(self.stages, self.filters)):
      if stage:
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
      for layer in range(layers):
        name = f'stage{stage}_layer{layer}'
        x = nn.Conv(filters, (3, 3), name=f'{name}_conv', **options)(x)
        x = nn.relu(x)
        x = batch_norm(self, train, name=f'{name}_batch')(x, mask=valid)
    x = x.mean(axis=(1, 2))
    return nn.Dense(self.classes, name='last_dense', **options)(x)


class TorchBlogVGG(nn.Module):
  """The VGG-like network of the task C10-CNN2, without its dropout.

  Stages of 3x3 convolutions, each followed by batch normalisation and relu,
  with max pooling after every stage; then one dense layer of 512 units with
  batch normalisation and relu, and one dense layer.

  Attributes:
    stages: convolutions of each stage.
    filters: channels of each stage.
    hidden: units of the first dense layer.
    classes: number of outputs.
    kernel_init: initialiser of all kernels.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  stages: Sequence[int] = (2, 2, 3, 3, 3)
  filters: Sequence[int] = (64, 128, 256, 512, 512)
  hidden: int = 512
  classes: int = 10
  kernel_init: Any = initializers.keras_he_normal()
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False, mask=None):
    _check_stages(self.stages, self.filters)
    options = kernel_options(self)
    norm = functools.partial(batch_norm, self, train)
    valid = example_mask(mask, x)
    for stage, (layers, filters) in enumerate(zip(self.stages, self.filters)):
      for layer in range(layers):
        name = f'stage{stage}_layer{layer}'
        x = nn.Conv(filters, (3, 3), name=f'{name}_conv', **options)(x)
        x = nn.relu(norm(name=f'{name}_batch')(x, mask=valid))
      x = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = x.reshape((x.shape[0], -1))
    x = nn.Dense(self.hidden, name='dense1', **options)(x)
    x = nn.relu(norm(name='dense1_batch')(x, mask=example_mask(mask, x)))
    return nn.Dense(self.classes, name='last_dense', **options)(x)


class MnistMLP(nn.Module):
  """The perceptron of the paper's MNIST experiment (section 6).

  Dense, batch normalisation with scale and centre, relu, dense. Biases, scales
  and centres exist, and stay at their initial values under Layca.

  Attributes:
    hidden: units of the hidden layer.
    classes: number of outputs.
    kernel_init: initialiser of both kernels.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  hidden: int = 784
  classes: int = 10
  kernel_init: Any = initializers.glorot_uniform()
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False, mask=None):
    options = {**kernel_options(self), 'use_bias': True}
    x = x.reshape((x.shape[0], -1))
    x = nn.Dense(self.hidden, name='dense0', **options)(x)
    norm = batch_norm(
      self, train, name='dense0_batch', use_bias=True, use_scale=True
    )
    x = nn.relu(norm(x, mask=example_mask(mask, x)))
    return nn.Dense(self.classes, name='last_dense', **options)(x)


class DeepMLP(nn.Module):
  """A deeper perceptron: the paper's tasks in miniature.

  Dense layers without biases, each followed by relu and then by batch
  normalisation without scale and centre, as in `VGGLayca`, and a last dense
  layer. Not in the paper: it makes the comparisons of sections 4 and 5 cheap
  enough for two CPU cores.

  Attributes:
    hidden: units of each hidden layer.
    classes: number of outputs.
    kernel_init: initialiser of all kernels.
    momentum: of the running statistics.
    dtype: type of the computation.
    param_dtype: type of the parameters.
  """

  hidden: Sequence[int] = (200, 200, 200, 200, 200)
  classes: int = 10
  kernel_init: Any = initializers.he_uniform()
  momentum: float = 0.99
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False, mask=None):
    options = kernel_options(self)
    x = x.reshape((x.shape[0], -1))
    valid = example_mask(mask, x)
    for layer, units in enumerate(self.hidden):
      x = nn.relu(nn.Dense(units, name=f'dense{layer}', **options)(x))
      x = batch_norm(self, train, name=f'dense{layer}_batch')(x, mask=valid)
    return nn.Dense(self.classes, name='last_dense', **options)(x)


def _check_stages(stages: Sequence[int], filters: Sequence[int]) -> None:
  if not stages or len(stages) != len(filters):
    raise ValueError(
      f'stages is {tuple(stages)} and filters {tuple(filters)}; expected one'
      ' number of filters for each stage, and at least one stage.'
    )


def __getattr__(name: str) -> Any:
  """The residual networks, too; their file needs this one first."""
  if name in ('ResNetV1Keras', 'WideResNet'):
    from jaxpapers.layca import models_residual

    return getattr(models_residual, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
