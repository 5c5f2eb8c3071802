"""A trained network, from flags: for the programs that look at images."""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import _command_line
import numpy as np
from absl import flags

from jaxpapers.data import files
from jaxpapers.osnet import config as config_lib
from jaxpapers.osnet import exchange, features, network


# Without eq: it is a key of compiled programs, its weights cannot be.
@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A network with its weights.

  Attributes:
    name: Of the network.
    weights: The file of the weights.
    config: The network's.
    variables: Its weights.
    hw: Height and width of its images.
    metric: How its features are compared, unless a flag says otherwise.
    trained_on: Names of data sets, if known.
  """

  name: str
  weights: str
  config: config_lib.OSNetConfig
  variables: Any
  hw: tuple[int, int]
  metric: str
  trained_on: str

  def output(self, variables, images) -> network.OSNetOutput:
    """All that the network says of normalised images."""
    return network.OSNet(self.config).apply(variables, images)

  def apply(self, variables, images):
    """Features of normalised images."""
    return self.output(variables, images).features


def define_flags() -> None:
  """Defines the flags of a network and of reading images."""
  flags.DEFINE_string(
    'weights',
    None,
    'A file of torchreid or of osnet_train (.pth, .pth.tar, .safetensors), or a'
    ' workdir of osnet_train.',
    required=True,
  )
  flags.DEFINE_string(
    'model',
    '',
    'Network, such as osnet_x1_0; by default what network.json beside the'
    ' weights says.',
  )
  flags.DEFINE_integer(
    'height', None, 'Of images; 256 unless network.json says.', lower_bound=1
  )
  flags.DEFINE_integer(
    'width', None, 'Of images; 128 unless network.json says.', lower_bound=1
  )
  flags.DEFINE_enum(
    'metric',
    'auto',
    ('auto', 'euclidean', 'cosine'),
    'How features are compared; auto: as in training, or euclidean.',
  )
  flags.DEFINE_integer('batch_size', 64, 'Images at once.', lower_bound=1)
  flags.DEFINE_enum(
    'dtype', 'float32', ('float32', 'bfloat16'), 'Of the computation.'
  )
  flags.DEFINE_bool('flip', False, 'Add the features of the mirrored image.')
  flags.DEFINE_bool(
    'skip_unreadable', False, 'Leave out images that cannot be read.'
  )
  flags.DEFINE_integer(
    'threads', None, 'That read images; all processors by default.'
  )
  flags.DEFINE_string(
    'cache',
    'default',
    'Folder for features, computed once for the same weights and files;'
    " 'default' is in the user's cache folder, empty for nowhere.",
  )
  flags.DEFINE_string(
    'compilation_cache',
    'default',
    'Where JAX keeps compiled programs between runs: a folder, "default" or'
    ' empty for nowhere.',
  )


def load() -> Model:
  """The network that the flags name.

  Returns:
    It.

  Raises:
    UsageError: If there is no such network or file, or they do not fit.
  """
  values = flags.FLAGS
  path = files.as_path(values.weights)
  if path.is_dir():
    path = path / 'model.pth'
  if not path.exists():
    raise _command_line.UsageError(f'--weights: there is no file {path}')
  try:
    about = json.loads((path.parent / 'network.json').read_text('utf-8'))
  except OSError:
    about = {}
  except ValueError as error:
    raise _command_line.UsageError(
      f'{path.parent / "network.json"}: {error}'
    ) from error
  try:
    if values.model:
      name, config = values.model, config_lib.config_for(values.model)
    elif about:
      fields = {
        key: value
        for key, value in about['network'].items()
        if key not in ('dtype', 'param_dtype', 'axis_name')
      }
      name, config = about['model'], config_lib.OSNetConfig(**fields)
    else:
      raise _command_line.UsageError(
        f'--model: there is no network.json beside {path}; give the name of'
        f' the network, one of {", ".join(config_lib.CONFIGS)}'
      )
    variables = exchange.from_torch_state_dict(
      exchange.load_torch_checkpoint(path), config, num_classes=0
    )
  except (ValueError, KeyError, TypeError) as error:
    flag = 'model' if values.model not in ('', *config_lib.CONFIGS) else None
    raise _command_line.UsageError(
      f'--{flag or "weights"}: {_command_line.one_line(error)}'
    ) from error
  if values.dtype != 'float32':
    config = dataclasses.replace(config, dtype=values.dtype)
  metric = values.metric
  if metric == 'auto':
    metric = about.get('metric', 'euclidean')
  return Model(
    name=name,
    weights=str(path),
    config=config,
    variables=variables,
    hw=(
      values.height or about.get('height', 256),
      values.width or about.get('width', 128),
    ),
    metric=metric,
    trained_on=str(about.get('trained_on', '')),
  )


def embed(
  model: Model,
  paths: Sequence[str],
  what: str,
  *,
  normalize: bool = False,
  say: Callable[[str], None] = print,
) -> tuple[np.ndarray, dict[int, str]]:
  """Features of images.

  Args:
    model: The network.
    paths: Of the files.
    what: What to call them.
    normalize: Whether to divide features by their norm.
    say: Takes a line for the user.

  Returns:
    float32 [n, D], and the messages of images that could not be read, whose
    features are NaN.

  Raises:
    UsageError: If one cannot be read and --skip_unreadable is not set.
  """
  values = flags.FLAGS
  lost: dict[int, str] = {}

  def unreadable(index, error):
    if not values.skip_unreadable:
      raise error
    lost[index] = f'{paths[index]}: {_command_line.one_line(error)}'

  options = {
    'hw': model.hw,
    'flip': values.flip,
    'normalize': normalize,
    'batch_size': values.batch_size,
    'num_threads': values.threads,
    'unreadable': unreadable,
    'progress': sys.stderr.isatty(),
  }
  try:
    if cache := _cache_folder(values.cache):
      found, there = features.cached_features(
        cache,
        model.apply,
        model.variables,
        paths,
        network=repr(model.config),
        **options,
      )
    else:
      there = False
      found = features.extract_features(
        model.apply, model.variables, paths, **options
      )
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'{what}: {_command_line.one_line(error)} --skip_unreadable leaves such'
      ' images out.'
    ) from error
  if len(lost) == len(paths):
    raise _command_line.UsageError(f'{what}: no image can be read')
  note = ', kept from before' if there else ''
  say(f'{what}: features of {len(paths) - len(lost):,} images{note}')
  for message in lost.values():
    say(f'  left out: {message}')
  return found, lost


def _cache_folder(flag):
  if flag != 'default':
    return flag
  root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(root).expanduser() / 'jaxpapers' / 'osnet'
