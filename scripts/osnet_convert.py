r"""Converts OSNet weights between torchreid and safetensors, or describes them.

Examples:
  # What is in a file of torchreid's model zoo, without writing anything.
  python scripts/osnet_convert.py --model=osnet_x1_0 \
      --weights=osnet_x1_0_imagenet.pth

  # A training file, without its classifier, as safetensors.
  python scripts/osnet_convert.py --model=osnet_ain_x1_0 \
      --weights=model.pth.tar-60 --num_classes=0 --output=ain.safetensors

  # Back to a file that torch.load and torchreid read.
  python scripts/osnet_convert.py --model=osnet_ain_x1_0 \
      --weights=ain.safetensors --output=ain.pth

  # Batch norms folded into the convolutions, for inference with ours.
  python scripts/osnet_convert.py --model=osnet_x1_0 \
      --weights=osnet_x1_0_market.pth --fold --output=folded.safetensors

Files of torch are read without torch, and nothing in them is run. Names stay
torchreid's, in both formats; numbers are copied bit for bit. A weight that is
missing, unexpected or of another shape is an error that lists all of them.
Folded weights have names of ours, since torchreid has no such network.
"""

import os

import _command_line
from absl import flags
from etils import epath

from jaxpapers import osnet, weights
from jaxpapers.osnet import exchange

_MODEL = flags.DEFINE_enum(
  'model', None, list(osnet.CONFIGS), 'Network of the file.', required=True
)
_WEIGHTS = flags.DEFINE_string('weights', None, 'The file.', required=True)
_OUTPUT = flags.DEFINE_string(
  'output',
  '',
  'File to write: .safetensors, or for torch .pth or .pth.tar. Empty only looks'
  ' at the input.',
)
_KEY = flags.DEFINE_string(
  'key', '', 'Where in a training file the weights are, if several entries do.'
)
_CLASSES = flags.DEFINE_integer(
  'num_classes',
  None,
  'Outputs of the classifier; those of the file by default, 0 leaves it out.',
  lower_bound=0,
)
_NAMING = flags.DEFINE_enum(
  'naming',
  'auto',
  ('auto', *exchange.NAMINGS),
  'Names of the output: of osnet.py or of osnet_ain.py of torchreid.',
)
_FOLD = flags.DEFINE_bool('fold', False, 'Fold batch norms.')
_SUFFIXES = ('.safetensors', '.pth', '.pth.tar', '.pt', '.bin')


def main() -> None:
  """Reads, reports, writes."""
  output = _OUTPUT.value
  if output and not output.endswith(_SUFFIXES):
    raise _command_line.UsageError(
      f'--output: {output} ends in none of {", ".join(_SUFFIXES)}'
    )
  if _FOLD.value and output and not output.endswith('.safetensors'):
    raise _command_line.UsageError(
      f'--fold: {output} would be for torch, which has no such network; write'
      ' a .safetensors file'
    )
  cfg = osnet.CONFIGS[_MODEL.value]
  path = epath.Path(_WEIGHTS.value).expanduser()
  try:
    state = osnet.load_torch_checkpoint(path, _KEY.value or None)
    variables = osnet.from_torch_state_dict(
      state, cfg, num_classes=_CLASSES.value
    )
  except (OSError, ValueError) as error:
    text = _command_line.one_line(error)
    raise _command_line.UsageError(f'--weights: {text}') from error
  head = variables['params'].get('classifier')
  classes = 0 if head is None else head['bias'].shape[0]
  counted = osnet.complexity(cfg, num_classes=classes)
  print(f'{path}: {len(state)} arrays')
  print(
    f'{_MODEL.value}: {counted.params:,} parameters, of which'
    f' {counted.params - osnet.complexity(cfg).params:,} classify'
    f' {classes} identities; {counted.mult_adds:,} multiply-adds at 256 x 128'
  )
  if output:
    _write(output, cfg, variables)


def _write(output, cfg, variables):
  path = epath.Path(os.fspath(output)).expanduser()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if _FOLD.value:
      tree = osnet.fold_batch_norm(variables)
      written = dict(weights.flatten(tree))
    else:
      written = osnet.to_torch_state_dict(variables, cfg, _NAMING.value)
    if output.endswith('.safetensors'):
      weights.write_safetensors(path, written)
    else:
      osnet.save_torch_checkpoint(path, written)
  except (OSError, ValueError) as error:
    text = _command_line.one_line(error)
    raise _command_line.UsageError(f'--output: {text}') from error
  print(f'{path}: {len(written)} arrays written')


if __name__ == '__main__':
  _command_line.run(main)
