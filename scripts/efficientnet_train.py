r"""Trains an EfficientNet by the paper's recipe on folders, TFRecords, CIFAR.

Examples:
  # A small network on CIFAR-10, in the official files, on any machine:
  python scripts/efficientnet_train.py \
      --config=scripts/configs/efficientnet/cifar.py \
      --config.data.folder=~/data/cifar10 --workdir=cifar

  # B0 on ImageNet by the recipe of the paper, from folders:
  python scripts/efficientnet_train.py \
      --config=scripts/configs/efficientnet/imagenet.py:b0 \
      --config.data.folder=/data/imagenet --config.data.workers=32 \
      --workdir=gs://bucket/b0

  # B7 on 256 chips, from TFRecords; the same command on every host:
  python scripts/efficientnet_train.py \
      --config=scripts/configs/efficientnet/imagenet.py:b7 \
      --config.data.kind=tfrecord --config.data.folder=gs://bucket/imagenet \
      --config.batch_size=4096 --distributed --workdir=gs://bucket/b7

  # Does that step fit, and what does it cost? No TPU is needed.
  python scripts/compile_for_tpu.py --script=efficientnet_train \
      --config=scripts/configs/efficientnet/imagenet.py:b7 \
      --config.batch_size=4096 --topology=v5e:16x16

Into --workdir go metrics.jsonl (splits train and test), TensorBoard files,
checkpoints, config.json, network.json and at the end model.safetensors: the
averaged weights under timm's names. A run that was stopped, by SIGTERM or by
force, goes on where it was with the same command, to the same numbers.

"""

import _command_line
import _efficientnet_training
import _training_command_line
import ml_collections
from absl import flags
from etils import epath

from jaxpapers import training
from jaxpapers.efficientnet import recipes

__doc__ += recipes.FIELDS

_training_command_line.define_flags('efficientnet/cifar.py', 'efficientnet')
flags.adopt_module_key_flags(_training_command_line)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """What a step is, without images; for scripts/compile_for_tpu.py."""
  return _efficientnet_training.make_problem(config).job


def main() -> int:
  """Trains, evaluates and exports."""
  config = _training_command_line.read_config()
  # Before anything is written: a command that cannot work leaves no folder.
  _efficientnet_training.make_problem(config)
  splits = _efficientnet_training.open_splits(
    config, epath.Path(flags.FLAGS.workdir).expanduser()
  )
  problem = _efficientnet_training.make_problem(
    config, splits.train.num_classes, len(splits.train)
  )
  run = _training_command_line.start()
  result = _efficientnet_training.fit(run, config, problem, splits)
  return run.exit_code(result)


if __name__ == '__main__':
  _command_line.run(main)
