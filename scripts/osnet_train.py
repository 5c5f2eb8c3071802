r"""Trains an OSNet: re-identification, attributes of pedestrians, or classes.

Examples:
  # People that are drawn, in minutes and on any machine:
  python scripts/osnet_train.py \
      --config=scripts/configs/osnet/synthetic.py --workdir=synthetic

  # Market-1501 from scratch, by the recipe of the paper:
  python scripts/osnet_train.py \
      --config=scripts/configs/osnet/scratch.py \
      --config.data.folder=/data --workdir=market

  # From torchreid's weights of ImageNet, evaluated on another data set, too:
  python scripts/osnet_train.py \
      --config=scripts/configs/osnet/finetune.py:cosine \
      --config.weights=osnet_x1_0_imagenet.pth --config.data.folder=/data \
      --config.data.targets=market1501,dukemtmc --workdir=finetuned

  # What generalises: instance norms, jitter, several data sets:
  python scripts/osnet_train.py \
      --config=scripts/configs/osnet/cross_domain.py:multi_source \
      --config.weights=osnet_ain_x1_0_imagenet.pth \
      --config.data.folder=/data --workdir=ain

  # Eight chips; the same command on every host:
  python scripts/osnet_train.py \
      --config=scripts/configs/osnet/scratch.py --config.batch_size=512 \
      --config.optimizer.learning_rate=0.52 --config.data.folder=/data \
      --config.data.workers=16 --mesh=data:-1 --distributed --workdir=gs://...

Into --workdir go metrics.jsonl (split train, and one for each target),
TensorBoard files, checkpoints, config.json, network.json and at the end
model.pth: the weights under torchreid's names, for osnet_eval.py and for torch.
A run that was stopped, by SIGTERM or by force, goes on where it was with the
same command, to the same numbers.

"""

import _command_line
import _osnet_data
import _osnet_training
import _training_command_line
import ml_collections
from absl import flags

from jaxpapers import training
from jaxpapers.osnet import recipes

__doc__ += recipes.FIELDS

_training_command_line.define_flags('osnet/synthetic.py', 'osnet')
flags.adopt_module_key_flags(_training_command_line)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """What a step is, without images; for scripts/compile_for_tpu.py."""
  return _osnet_training.make_problem(config).job


def main() -> int:
  """Trains, evaluates and exports."""
  config = _training_command_line.read_config()
  # Before anything is written: a command that cannot work leaves no folder.
  _osnet_training.make_problem(config)
  data, tests = _osnet_data.open_data(config)
  problem = _osnet_training.make_problem(config, data)
  _osnet_training.read_weights(config, problem)
  run = _training_command_line.start()
  result = _osnet_training.fit(run, config, problem, data, tests)
  return run.exit_code(result)


if __name__ == '__main__':
  _command_line.run(main)
