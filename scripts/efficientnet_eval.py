r"""Measures top-1 and top-5 accuracy of an EfficientNet on a set of images.

Examples:
  # A run of efficientnet_train or efficientnet_transfer, on its own test split:
  python scripts/efficientnet_eval.py --weights=cifar

  # Weights of timm, on the validation set of ImageNet, as timm evaluates them:
  python scripts/efficientnet_eval.py --weights=tf_efficientnet_b0.safetensors \
      --model=tf_efficientnet_b0 --data_folder=/data/imagenet \
      --resize=pil_bicubic

  # A checkpoint of the original code (averages are taken), on TFRecords:
  python scripts/efficientnet_eval.py --weights=efficientnet-b0/model.ckpt \
      --model=efficientnet-b0 --data_kind=tfrecord --data_folder=/data/tfrecords

--weights is a folder that a training program wrote (its newest checkpoint, its
config and data are taken), or a file of weights of any format that
efficientnet_convert reads. Prints one line, and with --json writes the numbers.
"""

import json

import _command_line
import _efficientnet_training
import _results
import _training_command_line
import jax
import ml_collections
from absl import flags
from etils import epath

from jaxpapers import training
from jaxpapers.efficientnet import data, recipes, resize
from jaxpapers.efficientnet import train as train_lib

_WEIGHTS = flags.DEFINE_string(
  'weights', None, 'Folder of a run, or file of weights.', required=True
)
_MODEL = flags.DEFINE_string(
  'model', 'efficientnet-b0', 'Network of a file of weights.'
)
_NUM_CLASSES = flags.DEFINE_integer(
  'num_classes', 1000, 'Classes of a file of weights.', lower_bound=1
)
_KIND = flags.DEFINE_enum(
  'data_kind', None, data.FORMATS, 'By default that of the run, or imagenet.'
)
_FOLDER = flags.DEFINE_string(
  'data_folder', None, 'Where the images are. By default as in the run.'
)
_LABEL_OFFSET = flags.DEFINE_integer(
  'label_offset', None, 'Of TFRecords: label of the first class.'
)
_RESOLUTION = flags.DEFINE_integer(
  'resolution', None, "By default the network's.", lower_bound=1
)
_CROP_PADDING = flags.DEFINE_integer(
  'crop_padding', None, 'Around the central crop; 32 by default.', lower_bound=0
)
_RESIZE = flags.DEFINE_enum(
  'resize', None, resize.METHODS, 'tf1_bicubic by default, as the original.'
)
_NORMALIZATION = flags.DEFINE_enum(
  'normalization',
  None,
  ('imagenet', 'advprop', 'lite', 'none'),
  'Of the pixels; imagenet by default.',
)
_AVERAGES = flags.DEFINE_bool(
  'averages', True, 'Whether to take the averaged weights of a run.'
)
_CORRUPT = flags.DEFINE_enum(
  'corrupt', None, ('refuse', 'skip'), 'What to do about corrupt images.'
)
_WORKERS = flags.DEFINE_integer(
  'workers', None, 'Processes that read images.', lower_bound=0
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', None, 'Images at once.', lower_bound=1
)
_BFLOAT16 = flags.DEFINE_bool('bfloat16', False, 'Whether to compute in it.')
_JSON = flags.DEFINE_string('json', None, 'File for the numbers.')
_command_line.define_machine_flags()
flags.adopt_module_key_flags(_command_line)


def main() -> None:
  """Evaluates, and prints."""
  weights = epath.Path(_WEIGHTS.value).expanduser()
  is_run = (weights / _efficientnet_training.NETWORK).exists()
  config, network = _config(weights, is_run)
  problem = _efficientnet_training.make_problem(
    config,
    network['num_classes'],
    # A batch may be larger here than all that was trained on.
    max(network['train_examples'], config.batch_size),
  )
  splits = _efficientnet_training.open_splits(
    config, None, only_test=True, class_names=network.get('class_names', ())
  )
  if splits.test.num_classes != network['num_classes']:
    raise _command_line.UsageError(
      f'--weights={weights} has {network["num_classes"]} classes, the images in'
      f' {config.data.folder} have {splits.test.num_classes}. Train a new head:'
      ' efficientnet_transfer --config.new_head=True'
    )
  _command_line.use_compilation_cache(flags.FLAGS.compilation_cache)
  _command_line.join_processes()
  mesh = training.make_mesh('data:-1')
  if is_run:
    state = _restored(weights, problem, mesh)
    if not _AVERAGES.value:
      state = _without_averages(state)
  else:
    state = _loaded(weights, problem, mesh)
  step = _efficientnet_training.make_eval_step(config, problem, mesh)
  numbers = _efficientnet_training.evaluate(
    config, problem, splits.test, state, step, mesh
  )
  numbers = {name: float(value) for name, value in numbers.items()}
  numbers['images'] = int(numbers.pop('count'))
  numbers['corrupt'] = len(splits.test) - numbers['images']
  _show(weights, problem, numbers)


def _config(weights, is_run):
  """The config of a run, or one for a file, with the flags in it."""
  if is_run:
    try:
      stored = json.loads((weights / 'config.json').read_text())
      network = json.loads(
        (weights / _efficientnet_training.NETWORK).read_text()
      )
    except (OSError, ValueError) as error:
      raise _command_line.UsageError(
        f'--weights={weights}: cannot read config.json and'
        f' {_efficientnet_training.NETWORK} in it ({error})'
      ) from error
    config = ml_collections.ConfigDict(stored)
  elif weights.is_dir() and (weights / 'checkpoints').exists():
    raise _command_line.UsageError(
      f'--weights={weights} has checkpoints but no'
      f' {_efficientnet_training.NETWORK}: it is no run of efficientnet_train'
      ' or efficientnet_transfer'
    )
  else:
    config = recipes.train_config()
    config.model.name = _MODEL.value
    config.ema, config.batch_size = 0.0, 64
    config.data.num_classes = _NUM_CLASSES.value
    network = {'num_classes': _NUM_CLASSES.value, 'train_examples': 10**6}
  config.evaluate_on = 'test'
  config.bfloat16 = _BFLOAT16.value
  for flag, place, name in (
    (_KIND, config.data, 'kind'),
    (_FOLDER, config.data, 'folder'),
    (_LABEL_OFFSET, config.data, 'label_offset'),
    (_CORRUPT, config.data, 'corrupt'),
    (_WORKERS, config.data, 'workers'),
    (_RESOLUTION, config.model.options, 'resolution'),
    (_CROP_PADDING, config, 'crop_padding'),
    (_RESIZE, config, 'resize'),
    (_NORMALIZATION, config, 'normalization'),
    (_BATCH_SIZE, config, 'batch_size'),
  ):
    if flag.value is not None:
      place[name] = flag.value
  config.accumulate, config.bn_batch_size = 1, 0
  return config, network


def _restored(workdir, problem, mesh):
  """The newest state of a run."""
  like, _ = problem.job.abstract(mesh)
  checkpoints = training.Checkpoints(workdir / 'checkpoints')
  try:
    if checkpoints.latest() is None:
      raise _command_line.UsageError(
        f'--weights={workdir} holds no checkpoint yet'
      )
    state, _ = checkpoints.restore(like)
  except ValueError as error:
    raise _command_line.UsageError(
      f'--weights={workdir}: {_command_line.one_line(error)}'
    ) from error
  finally:
    checkpoints.close()
  return state


def _without_averages(state):
  model_state = dict(state.model_state)
  model_state.pop('average', None)
  return state.replace(ema_params=None, model_state=model_state)


def _loaded(path, problem, mesh):
  """A state with the weights of a file."""
  variables = _efficientnet_training.load_weights(
    str(path), problem.network, '--weights'
  )
  state = problem.job.state(jax.random.key(0), mesh)
  expected = {
    'params': state.params,
    'batch_stats': state.model_state['batch_stats'],
  }
  try:
    train_lib.check_same_shapes(variables, expected)
  except ValueError as error:
    raise _command_line.UsageError(f'--weights={path}: {error}') from error
  return train_lib.with_variables(state, variables)


def _show(weights, problem, numbers):
  top5 = f', top-5 {100 * numbers["top5"]:.2f} %' if 'top5' in numbers else ''
  corrupt = numbers['corrupt']
  left_out = f'; {corrupt} corrupt ones left out' if corrupt else ''
  _training_command_line.say(
    f'{weights} at {problem.network.resolution} pixels: top-1'
    f' {100 * numbers["accuracy"]:.2f} %{top5}, cross entropy'
    f' {numbers["cross_entropy"]:.4f} ({numbers["images"]} images{left_out}).'
  )
  if _JSON.value and jax.process_index() == 0:
    _results.write_json(epath.Path(_JSON.value).expanduser(), numbers)


if __name__ == '__main__':
  _command_line.run(main)
