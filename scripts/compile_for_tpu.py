r"""Compiles a training step for TPUs, on a machine without any.

Examples:
  # Does the MNIST experiment fit on four v5e chips, and what does it cost?
  python scripts/compile_for_tpu.py --script=layca_mnist --topology=v5e:2x2

  # A wide residual network over 256 chips, another batch size, as JSON:
  python scripts/compile_for_tpu.py --script=layca_compare \
      --config=scripts/configs/layca/c100_wrn.py --config.batch_size=4096 \
      --topology=v5e:16x16 --mesh=data:-1 --json=step.json

  # Large networks: a quarter of the time, for the question whether it fits.
  JAX_OPTIMIZATION_LEVEL=O1 python scripts/compile_for_tpu.py \
      --script=efficientnet_train \
      --config=scripts/configs/efficientnet/imagenet.py:b7 \
      --config.batch_size=4096 --topology=v5e:16x16

Prints the memory of each device, floating-point operations, memory traffic and
the collectives by which the devices talk. Takes every flag of the script, its
--config above all. Needs libtpu: pip install 'jaxpapers[tpu]'; x86-64 Linux.
"""

import importlib
import json
import os
import pathlib
import sys

# The TPU compiler is asked, not a TPU: without this JAX would look for one.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import _command_line
import _training_command_line
from absl import flags
from etils import epath

from jaxpapers import data
from jaxpapers.training import aot

_SCRIPT = flags.DEFINE_string(
  'script', None, 'Name of a training script, as layca_mnist.', required=True
)
_TOPOLOGY = flags.DEFINE_string(
  'topology', 'v5e:2x2', 'TPU generation and shape: v5e:2x2 ... v5e:16x16.'
)
_JSON = flags.DEFINE_string('json', None, 'File for the numbers as JSON.')
_HLO = flags.DEFINE_string('hlo', None, 'File for the compiled program.')


def main() -> None:
  """Compiles and prints."""
  module = _module(_SCRIPT.value)
  config = _training_command_line.read_config()
  try:
    job = module.make_job(config)
    report = aot.compile_job(job, _TOPOLOGY.value, flags.FLAGS.mesh)
  except (ImportError, ValueError) as error:
    raise _command_line.UsageError(' '.join(str(error).split())) from error
  print(report)
  for path, text in (
    (_JSON.value, json.dumps(report.as_dict(), indent=2) + '\n'),
    (_HLO.value, report.compiled.as_text()),
  ):
    if path:
      data.write_file(epath.Path(path), text)


def _scripts() -> list[str]:
  """Scripts that say what they train."""
  folder = pathlib.Path(__file__).resolve().parent
  return [
    path.stem
    for path in sorted(folder.glob('*.py'))
    if '\ndef make_job(' in path.read_text('utf-8')
  ]


def _module(name: str):
  if name not in _scripts():
    raise _command_line.UsageError(
      f'--script={name}: there is no such training script. Choose from'
      f' {", ".join(_scripts())}.'
    )
  return importlib.import_module(name)


def _define_script_flags(arguments: list[str]) -> None:
  """Imports the script before the flags are parsed: it defines some of them."""
  for argument, following in zip(arguments, [*arguments[1:], '']):
    name, equals, value = argument.lstrip('-').partition('=')
    if name == 'script' and argument.startswith('-'):
      value = value if equals else following
      if value in _scripts():
        _module(value)
        return


if __name__ == '__main__':
  _define_script_flags(sys.argv[1:])
  _command_line.run(main)
