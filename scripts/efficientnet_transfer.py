r"""Fine-tunes a pre-trained EfficientNet on another set of images.

Examples:
  # A folder train/ and test/ with a folder for each class, from timm's weights:
  python scripts/efficientnet_transfer.py --config.data.folder=flowers \
      --config.init_from=tf_efficientnet_b0.safetensors \
      --config.model.name=tf_efficientnet_b0 --config.new_head=True \
      --workdir=flowers_b0

  # CIFAR-100 at 224 pixels, from a run of efficientnet_train:
  python scripts/efficientnet_transfer.py \
      --config=scripts/configs/efficientnet/transfer.py:cifar100 \
      --config.data.folder=~/data/cifar100 \
      --config.init_from=b0/model.safetensors --config.new_head=True \
      --workdir=cifar100_b0

Images are enlarged to the network's resolution. A classifier for other classes
is made anew only with --config.new_head; without it, weights whose classes do
not fit are refused. Files and resuming are as in efficientnet_train.

Config fields beside those of efficientnet_train (--config.NAME=VALUE):
  init_from             file of weights, of any format that efficientnet_convert
                        reads, or the folder of a run
  init_classes          how many classes it has
  new_head              whether the classifier begins at random
  auto_bn_momentum      whether momentum of batch norms follows from the number
                        of steps of an epoch s: max(1 - 10/s, .9)

"""

import json

import _command_line
import _efficientnet_training
import _training_command_line
import jax
import ml_collections
from absl import flags
from etils import epath

from jaxpapers import training
from jaxpapers.efficientnet import recipes
from jaxpapers.efficientnet import train as train_lib

__doc__ += recipes.FIELDS

_training_command_line.define_flags(
  'efficientnet/transfer.py', 'efficientnet_transfer'
)
flags.adopt_module_key_flags(_training_command_line)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """What a step is, without images; for scripts/compile_for_tpu.py."""
  return _efficientnet_training.make_problem(config).job


def main() -> int:
  """Trains, evaluates and exports."""
  config = _training_command_line.read_config()
  if not config.init_from:
    raise _command_line.UsageError(
      '--config.init_from is empty. Give a file of weights, or the folder of a'
      ' run; efficientnet_train trains from the start'
    )
  _efficientnet_training.make_problem(config)
  splits = _efficientnet_training.open_splits(
    config, epath.Path(flags.FLAGS.workdir).expanduser()
  )
  classes, examples = splits.train.num_classes, len(splits.train)
  initial = _initial(config, classes)
  tuned = _with_momentum(config, examples)
  problem = _efficientnet_training.make_problem(tuned, classes, examples)
  run = _training_command_line.start()
  variables = _fitting(config, problem, initial)
  result = _efficientnet_training.fit(run, tuned, problem, splits, variables)
  return run.exit_code(result)


def _initial(config, classes):
  """Weights to begin with, classifier and all."""
  path = epath.Path(config.init_from).expanduser()
  init_classes = config.init_classes
  if path.is_dir() and (path / 'model.safetensors').exists():
    network = path / _efficientnet_training.NETWORK
    if network.exists():
      init_classes = json.loads(network.read_text())['num_classes']
    path = path / 'model.safetensors'
  if init_classes != classes and not config.new_head:
    raise _command_line.UsageError(
      f'--config.init_from={path} has {init_classes} classes'
      f' (--config.init_classes), the images have {classes}.'
      ' --config.new_head=True gives the network a new classifier'
    )
  network = recipes.model_config(config, init_classes)
  return _efficientnet_training.load_weights(
    str(path), network, '--config.init_from'
  )


def _fitting(config, problem, variables):
  params, state = problem.job.init(jax.random.key(config.seed))
  fresh = {'params': params, 'batch_stats': state['batch_stats']}
  try:
    if config.new_head:
      return train_lib.with_new_head(variables, fresh)
    train_lib.check_same_shapes(variables, fresh)
  except ValueError as error:
    raise _command_line.UsageError(
      f'--config.init_from={config.init_from}: {error}'
    ) from error
  return variables


def _with_momentum(config, examples):
  if not config.auto_bn_momentum:
    return config
  tuned = ml_collections.ConfigDict(config)
  steps = max(1, examples // config.batch_size)
  # Kornblith et al. (2019): short epochs need statistics that follow faster.
  tuned.model.options.bn_momentum = max(1 - 10 / steps, 0.9)
  return tuned


if __name__ == '__main__':
  _command_line.run(main)
