"""EfficientNet: the models, the scaling rule and the search behind them."""

from jaxpapers.efficientnet import nas, scaling
from jaxpapers.efficientnet.autoaugment import autoaugment_v0
from jaxpapers.efficientnet.cam import class_activation_map
from jaxpapers.efficientnet.config import (
  BlockArgs,
  ModelConfig,
  compound_coefficients,
  config_for,
  decode_block_string,
  encode_block_string,
  round_filters,
  round_repeats,
)
from jaxpapers.efficientnet.counts import (
  Counts,
  count_batch_stats,
  count_macs,
  count_params,
)
from jaxpapers.efficientnet.ema import ema_with_warmup
from jaxpapers.efficientnet.mixing import mixup
from jaxpapers.efficientnet.model import EfficientNet, MBConv
from jaxpapers.efficientnet.optimizers import (
  efficientnet_optimizer,
  rmsprop_tf,
)
from jaxpapers.efficientnet.preprocess import (
  normalize,
  preprocess_eval,
  preprocess_train,
)
from jaxpapers.efficientnet.pretrained import (
  load_pretrained,
  save_pretrained,
  to_timm_state_dict,
)
from jaxpapers.efficientnet.random_augment import randaugment
from jaxpapers.efficientnet.schedules import (
  efficientnet_schedule,
  scaled_learning_rate,
)
from jaxpapers.efficientnet.train import make_loss_fn, make_metric_fn
from jaxpapers.nn import depthwise_conv, drop_path

__all__ = [
  'class_activation_map',
  'load_pretrained',
  'save_pretrained',
  'to_timm_state_dict',
  'BlockArgs',
  'Counts',
  'EfficientNet',
  'MBConv',
  'ModelConfig',
  'autoaugment_v0',
  'compound_coefficients',
  'config_for',
  'count_batch_stats',
  'count_macs',
  'count_params',
  'decode_block_string',
  'depthwise_conv',
  'drop_path',
  'efficientnet_optimizer',
  'efficientnet_schedule',
  'ema_with_warmup',
  'encode_block_string',
  'make_loss_fn',
  'make_metric_fn',
  'mixup',
  'nas',
  'normalize',
  'preprocess_eval',
  'preprocess_train',
  'randaugment',
  'rmsprop_tf',
  'round_filters',
  'round_repeats',
  'scaled_learning_rate',
  'scaling',
]
