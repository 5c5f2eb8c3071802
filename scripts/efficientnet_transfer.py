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
  new_head              whether the classifier begins at random
  auto_bn_momentum      whether momentum of batch norms follows from the number
                        of steps of an epoch s: max(1 - 10/s, .9), unless
                        model.options.bn_momentum says it

"""

import _command_line
import _efficientnet_training
import _training_command_line
import jax
import ml_collections
from absl import flags
from etils import epath

from jaxpapers import training
from jaxpapers.efficientnet import pretrained, recipes

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
  tuned = _with_momentum(config, len(splits.train))
  problem = _efficientnet_training.make_problem(
    tuned, splits.train.num_classes, len(splits.train)
  )
  variables = _initial(config, problem)
  run = _training_command_line.start()
  result = _efficientnet_training.fit(run, tuned, problem, splits, variables)
  return run.exit_code(result)


def _initial(config, problem):
  """Weights to begin with, classifier and all."""
  path = epath.Path(config.init_from).expanduser()
  if (path / _efficientnet_training.WEIGHTS).exists():
    path = path / _efficientnet_training.WEIGHTS
  key = jax.random.key(config.seed)
  try:
    variables = _efficientnet_training.load_weights(
      str(path),
      problem.network,
      '--config.init_from',
      new_head=key if config.new_head else None,
    )
  except _command_line.UsageError as error:
    if config.new_head:
      raise
    raise _command_line.UsageError(
      f'{error}. The images have {problem.network.num_classes} classes;'
      ' --config.new_head=True gives the network a new classifier'
    ) from error
  if config.new_head:
    # Of the same size, too: these are other classes.
    head = pretrained.fresh_head(key, problem.network)
    variables['params'] = {**variables['params'], 'classifier': head}
  return variables


def _with_momentum(config, examples):
  chosen = config.model.options.bn_momentum is not None
  if chosen or not config.auto_bn_momentum:
    return config
  tuned = ml_collections.ConfigDict(config)
  steps = max(1, examples // config.batch_size)
  # Kornblith et al. (2019): short epochs need statistics that follow faster.
  tuned.model.options.bn_momentum = max(1 - 10 / steps, 0.9)
  return tuned


if __name__ == '__main__':
  _command_line.run(main)
