r"""Converts EfficientNet weights between libraries.

Examples:
  # The original checkpoint of TensorFlow, its averages, for timm.
  python scripts/efficientnet_convert.py --model=efficientnet-b0 \
      --weights=efficientnet-b0/model.ckpt --output=b0.safetensors

  # torchvision's file under the names of lukemelas' package.
  python scripts/efficientnet_convert.py --model=torchvision_efficientnet_b0 \
      --weights=efficientnet_b0_rwightman-7f5810bc.pth \
      --to=lukemelas --output=b0_lukemelas.safetensors

  # What is in a file, without writing anything.
  python scripts/efficientnet_convert.py --model=efficientnet-b0 \
      --weights=efficientnetb0.h5

--weights is a file of timm, torchvision or lukemelas (.safetensors, .pth), of
Keras (.h5) or a checkpoint of TensorFlow; which one is told from the names.
Nothing but numpy, h5py and safetensors is needed. Arrays are copied bit for
bit; a weight that is missing, unexpected or of another shape is an error that
lists all of them.
"""

import os

import _command_line
from absl import flags
from etils import epath

from jaxpapers import weights
from jaxpapers.efficientnet import config as config_lib
from jaxpapers.efficientnet import counts, pretrained, pretrained_names

_MODEL = flags.DEFINE_string(
  'model',
  None,
  'Network of the file, such as efficientnet-b0, tf_efficientnet_b4_ns,'
  ' torchvision_efficientnet_b0.',
  required=True,
)
_WEIGHTS = flags.DEFINE_string(
  'weights', None, 'The file, folder or checkpoint.', required=True
)
_OUTPUT = flags.DEFINE_string(
  'output', '', 'Safetensors file to write; empty only looks at the input.'
)
_FROM = flags.DEFINE_enum(
  'from', 'auto', ('auto', *pretrained_names.FORMATS), 'Whose names it has.'
)
_TO = flags.DEFINE_enum(
  'to',
  'timm',
  ('timm', 'torchvision', 'lukemelas'),
  'Whose names the output gets.',
)
_KEY = flags.DEFINE_string(
  'key', '', 'Where in a checkpoint of torch the weights are: state_dict_ema.'
)
_CLASSES = flags.DEFINE_integer(
  'num_classes', 1000, 'Classes of the file; 0 leaves out its classifier.'
)
_AVERAGE = flags.DEFINE_bool(
  'average', True, 'Prefer averaged weights in checkpoints of TensorFlow.'
)
_CHANNELS = flags.DEFINE_integer(
  'in_channels', 3, 'Channels that the output takes.', lower_bound=1
)


def main() -> None:
  """Reads, reports, writes."""
  try:
    config = config_lib.config_for(_MODEL.value, num_classes=_CLASSES.value)
  except ValueError as error:
    raise _command_line.UsageError(f'--model: {error}') from error
  path = epath.Path(_WEIGHTS.value).expanduser()
  try:
    state = pretrained.open_weights(path, key=_KEY.value or None)
    variables = pretrained.from_state_dict(
      state,
      config,
      flags.FLAGS['from'].value,
      average=_AVERAGE.value,
      in_channels=_CHANNELS.value,
    )
  except (OSError, ValueError) as error:
    text = _command_line.one_line(error)
    raise _command_line.UsageError(f'--weights: {text}') from error
  print(f'{path}: {len(state)} arrays')
  print(
    f'{_MODEL.value}: {counts.count_params(config, _CHANNELS.value):,}'
    f' parameters, {counts.count_macs(config).total:,} multiply-adds at'
    f' {config.resolution} pixels; padding {config.padding}, epsilon'
    f' {config.bn_epsilon:g}'
  )
  if not _OUTPUT.value:
    return
  output = epath.Path(os.fspath(_OUTPUT.value)).expanduser()
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    pretrained.save_pretrained(output, variables, _TO.value)
  except (OSError, ValueError, weights.WeightMismatchError) as error:
    text = _command_line.one_line(error)
    raise _command_line.UsageError(f'--output: {text}') from error
  print(f'{output}: written under the names of {_TO.value}')


if __name__ == '__main__':
  _command_line.run(main)
