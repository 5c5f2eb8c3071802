"""Controlling the rotation of layers during training.

Carbonnelle and De Vleeschouwer (2018), arXiv:1806.01603.
"""

from jaxpapers.layca.aliases import (
  layca_adagrad,
  layca_adam,
  layca_amom_sgd,
  layca_rmsprop,
  layca_sgd,
)
from jaxpapers.layca.bases import normalized_sgd
from jaxpapers.layca.equilibrium import (
  equilibrium_learning_rate,
  noise_rotation_curve,
)
from jaxpapers.layca.initializers import keras_he_normal
from jaxpapers.layca.models import MnistMLP, TorchBlogVGG, VGGLayca
from jaxpapers.layca.models_residual import ResNetV1Keras, WideResNet
from jaxpapers.layca.multipliers import depth_multipliers, layer_order
from jaxpapers.layca.rates import (
  keras_step_schedule,
  linear_warmup_from_tenth,
  replay_schedule,
  replay_schedules,
)
from jaxpapers.layca.rotation import (
  LayerRotationState,
  layer_rotation,
  normalize_to,
  step_tangent,
  track_layer_rotation,
)
from jaxpapers.layca.transform import LaycaState, hyperball, layca
from jaxpapers.layca.trees import is_kernel, per_neuron, stacked_axes
from jaxpapers.layca.wrappers import check_chain, with_layca

__all__ = [
  'check_chain',
  'depth_multipliers',
  'equilibrium_learning_rate',
  'hyperball',
  'is_kernel',
  'keras_he_normal',
  'keras_step_schedule',
  'layca',
  'layca_adagrad',
  'layca_adam',
  'layca_amom_sgd',
  'layca_rmsprop',
  'layca_sgd',
  'LaycaState',
  'layer_order',
  'layer_rotation',
  'LayerRotationState',
  'linear_warmup_from_tenth',
  'MnistMLP',
  'noise_rotation_curve',
  'normalize_to',
  'normalized_sgd',
  'per_neuron',
  'replay_schedule',
  'replay_schedules',
  'ResNetV1Keras',
  'stacked_axes',
  'step_tangent',
  'TorchBlogVGG',
  'track_layer_rotation',
  'VGGLayca',
  'WideResNet',
  'with_layca',
]
