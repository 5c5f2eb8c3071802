"""Weights of timm, torchvision, lukemelas, Keras and TensorFlow, and back.

Array by array, bit for bit, without torch or TensorFlow installed.
"""

import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxpapers import weights
from jaxpapers.data import files
from jaxpapers.efficientnet.config import ModelConfig
from jaxpapers.efficientnet.model import EfficientNet
from jaxpapers.efficientnet.pretrained_names import (
  FORMATS,
  detect_format,
  table_for,
)
from jaxpapers.weights import keras_h5, tf_bundle

_AVERAGE = '/ExponentialMovingAverage'
# Slots of optimizers, and the step.
_SLOTS = re.compile(
  r'/(RMSProp|Momentum|Adam)(_\d+)?$|^global_step$|(^|/)(beta\d_power|step)$'
)


def load_pretrained(
  path: Any,
  config: ModelConfig,
  format: str = 'auto',
  *,
  key: str | None = None,
  average: bool = True,
  in_channels: int = 3,
  new_head: jax.Array | None = None,
) -> dict[str, Any]:
  """Reads the weights in a file.

  Args:
    path: A `.safetensors` file, a `.pth` or whatever `torch.save` wrote, a
      folder with one of them; a `.h5` file of Keras; or a checkpoint of
      TensorFlow, with or without `.index`, or its folder.
    config: The network that they are for: see `config_for` and `zoo`.
    format: 'timm', 'torchvision', 'lukemelas', 'keras' or 'tf'; told from the
      names by default.
    key: Where in a training checkpoint of torch the weights are, such as
      'state_dict_ema'.
    average: Whether to prefer averaged weights in checkpoints of TensorFlow.
    in_channels: Channels of the images; see `adapt_stem`.
    new_head: Typed key: a classifier of another size in the file is replaced by
      a fresh one. Without it that is an error.

  Returns:
    `{'params', 'batch_stats'}` of NumPy arrays.

  Raises:
    FileNotFoundError: There is nothing at the path.
    CorruptFileError: A file is damaged.
    UnsafePickleError: A file asks to run code.
    WeightMismatchError: With all that is missing, unexpected or of another
      shape; a checkpoint of another network gives many.
    ValueError: The names are of no EfficientNet.

  Example:
    >>> from jaxpapers.efficientnet import config_for
    >>> config = config_for('tf_efficientnet_b0')
    >>> variables = load_pretrained('b0.pth', config)  # doctest: +SKIP
  """
  state = open_weights(path, key=key)
  return from_state_dict(
    state,
    config,
    format,
    average=average,
    in_channels=in_channels,
    new_head=new_head,
  )


def open_weights(path: Any, *, key: str | None = None) -> weights.StateDict:
  """Opens a file of any of the libraries.

  Args:
    path: As in `load_pretrained`.
    key: As there.

  Returns:
    Name -> array, under the names of the file.
  """
  path = files.as_path(path)
  if path.name.endswith(('.h5', '.hdf5', '.keras')):
    return keras_h5.open_keras(path)
  indices = path.name.endswith('.index') or (
    not path.exists() and path.with_name(f'{path.name}.index').exists()
  )
  if not indices and path.is_dir():
    indices = files.find(path, weights.state_dict.FILES) is None and any(
      child.name.endswith('.index') for child in path.iterdir()
    )
  if indices:
    return tf_bundle.open_tf_checkpoint(path)
  return weights.open_state_dict(path, key=key)


def from_state_dict(
  state: Mapping[str, Any],
  config: ModelConfig,
  format: str = 'auto',
  *,
  average: bool = True,
  in_channels: int = 3,
  new_head: jax.Array | None = None,
) -> dict[str, Any]:
  """Variables from arrays under the names of another library.

  Args:
    state: Name -> array.
    config: The network.
    format: As in `load_pretrained`, as all that follow.
    average: See there.
    in_channels: See there.
    new_head: See there.

  Returns:
    `{'params', 'batch_stats'}` of NumPy arrays.

  Raises:
    WeightMismatchError: See `load_pretrained`.
    ValueError: The names are of no EfficientNet.
  """
  if format not in ('auto', *FORMATS):
    raise ValueError(
      f"format is {format!r}; expected 'auto' or one of {FORMATS}."
    )
  origin = getattr(state, 'path', 'the checkpoint')
  state = _as_state(state, origin)
  if format in ('auto', 'tf'):
    state = _without_scope(state, average)
  found = detect_format(state)
  if format not in ('auto', found):
    raise ValueError(
      f'{origin} has the names of {found!r}; format is {format!r}.'
    )
  _check_world(config, found)
  like = expected(config)
  table = table_for(config, found)
  heads = [name for name in state if _is_head(table, name)]
  if not config.num_classes:
    heads_left_out: Sequence[str] = [f'^{re.escape(n)}$' for n in heads]
  else:
    heads_left_out = ()
  keep_head = True
  if config.num_classes and new_head is not None:
    keep_head = _same_head(state, table, heads, config)
    if not keep_head:
      heads_left_out = [f'^{re.escape(n)}$' for n in heads]
      del like['params']['classifier']
  try:
    tree = table.to_tree(state, like, allow_unexpected=heads_left_out)
  except weights.WeightMismatchError as error:
    raise _about(error, origin, config, table) from None
  if not keep_head:
    tree['params']['classifier'] = fresh_head(new_head, config)
  return adapt_stem(tree, in_channels)


def expected(config: ModelConfig, in_channels: int = 3) -> dict[str, Any]:
  """Shapes and types of a network's variables.

  Args:
    config: The network.
    in_channels: Channels of the images.

  Returns:
    `{'params', 'batch_stats'}` of ShapeDtypeStructs.
  """
  return jax.tree.map(lambda leaf: leaf, _expected(config, in_channels))


@functools.lru_cache(maxsize=16)
def _expected(config, in_channels):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Of small images: none is looked at.
    return jax.eval_shape(
      EfficientNet(config).init,
      jax.random.key(0),
      jax.ShapeDtypeStruct((1, 32, 32, in_channels), 'float32'),
    )


def fresh_head(key: jax.Array, config: ModelConfig) -> dict[str, np.ndarray]:
  """A new classifier as at the start of training.

  Args:
    key: Typed key.
    config: The network.

  Returns:
    'kernel' and 'bias'.
  """
  from jaxpapers.efficientnet import blocks

  shape = (config.head_width, config.num_classes)
  kernel = blocks.classifier_init(key, shape, np.dtype(config.param_dtype))
  return {
    'kernel': np.asarray(kernel),
    'bias': np.zeros(shape[1:], config.param_dtype),
  }


def adapt_stem(variables: Mapping[str, Any], channels: int) -> dict[str, Any]:
  """Makes the first convolution take other than three channels.

  For one channel its kernel is summed over colours: gray images then give what
  they gave as RGB. For others colours repeat, scaled by 3 / channels.

  Args:
    variables: `{'params', ...}` for RGB images.
    channels: Of the images.

  Returns:
    The variables with another kernel.

  Raises:
    ValueError: If there is no channel, or the stem is not for RGB.
  """
  kernel = np.asarray(variables['params']['stem_conv']['kernel'])
  if channels == kernel.shape[2]:
    return dict(variables)
  if channels < 1 or kernel.shape[2] != 3:
    raise ValueError(
      f'in_channels is {channels}, the stem takes {kernel.shape[2]}; expected 1'
      ' or more channels from a stem for 3.'
    )
  if channels == 1:
    kernel = kernel.sum(2, keepdims=True)
  else:
    tiles = -(-channels // 3)
    kernel = np.tile(kernel, (1, 1, tiles, 1))[:, :, :channels]
    kernel = kernel * np.asarray(3 / channels, kernel.dtype)
  params = {**variables['params'], 'stem_conv': {'kernel': kernel}}
  return {**variables, 'params': params}


def to_timm_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Variables under the names of timm, counters of batches included.

  Args:
    variables: `{'params', 'batch_stats'}`.

  Returns:
    Name -> NumPy array, as `load_state_dict` of timm's model takes it.

  Raises:
    WeightMismatchError: If they are not those of an EfficientNet.
  """
  return to_state_dict(variables, 'timm')


def to_state_dict(
  variables: Mapping[str, Any], format: str
) -> dict[str, np.ndarray]:
  """Variables under the names of another library.

  Args:
    variables: `{'params', 'batch_stats'}`.
    format: As in `load_pretrained`.

  Returns:
    Name -> NumPy array, in the layout of that library.

  Raises:
    WeightMismatchError: If they are not those of an EfficientNet.
    ValueError: If there is no such format.
  """
  wanted = {name: variables[name] for name in ('params', 'batch_stats')}
  state = table_for(wanted, format).to_state_dict(wanted)
  if format in ('keras', 'tf'):
    return state
  counted = {}
  for name, array in state.items():
    counted[name] = array
    if name.endswith('.running_var'):
      counter = name.removesuffix('running_var') + 'num_batches_tracked'
      counted[counter] = np.zeros((), np.int64)
  return counted


def save_pretrained(
  path: Any, variables: Mapping[str, Any], format: str = 'timm'
) -> None:
  """Writes a `.safetensors` file that timm and others load.

  Args:
    path: Of the file; it appears only when it is complete.
    variables: `{'params', 'batch_stats'}`.
    format: 'timm', 'torchvision' or 'lukemelas'.

  Raises:
    ValueError: If the library does not read such files.
  """
  if format not in ('timm', 'torchvision', 'lukemelas'):
    raise ValueError(
      f"format is {format!r}; expected 'timm', 'torchvision' or 'lukemelas'."
    )
  weights.write_safetensors(path, to_state_dict(variables, format))


def _as_state(state, path) -> weights.StateDict:
  if isinstance(state, weights.StateDict):
    return state
  readers = {name: (lambda name=name: state[name]) for name in state}
  prefix = 'module.'
  if readers and all(name.startswith(prefix) for name in readers):
    readers = {name[len(prefix) :]: read for name, read in readers.items()}
  return weights.StateDict(path, readers)


def _without_scope(state, average):
  """Names of TensorFlow without the model's scope, averages in their place."""
  stem = '/stem/conv2d/kernel'
  scopes = {n[: -len(stem)] for n in state if n.endswith(stem)}
  names = [n for n in state if not _SLOTS.search(n)]
  if not scopes and 'stem/conv2d/kernel' not in state:
    return state
  prefix = f'{scopes.pop()}/' if scopes else ''
  averaged = {n.removesuffix(_AVERAGE) for n in names if n.endswith(_AVERAGE)}
  readers = {}
  for name in names:
    if name.endswith(_AVERAGE):
      continue
    source = name + _AVERAGE if average and name in averaged else name
    readers[name.removeprefix(prefix)] = lambda s=source: state[s]
  return weights.StateDict(state.path, readers)


def _check_world(config, format):
  """Warns of settings that the weights of a library never go with."""
  padding = {'torchvision': 'symmetric', 'timm': config.padding}
  wanted = padding.get(format, 'SAME')
  if config.padding != wanted:
    warnings.warn(
      f'weights of {format} are for padding {wanted!r}; the config has'
      f' {config.padding!r}. See config_for and zoo.',
      stacklevel=3,
    )


def _is_head(table, name):
  return any('/classifier/' in target for target in table.targets(name))


def _same_head(state, table, heads, config):
  for name in heads:
    for target in table.targets(name):
      if target.endswith('/bias'):
        return np.shape(state[name]) == (config.num_classes,)
  return False


def _about(error, origin, config, table):
  """The error with what may help."""
  advice = ''
  order = [target for rule in table.rules for target in rule.targets]
  wrong = {x.path: str(x) for x in error.misshaped}
  wrong |= {path: f'{path} is missing' for path in error.missing}
  first = next((wrong[path] for path in order if path in wrong), '')
  others = [
    x for x in error.misshaped if not x.path.startswith('params/classifier')
  ]
  if error.missing or error.unexpected or others:
    advice = (
      f'Is it of another network? The config has width {config.width}, depth'
      f' {config.depth}.'
      + (f' The first difference: {first}.' if first else '')
    )
  elif error.misshaped:
    advice = (
      f'The classifier in the file is for other than {config.num_classes}'
      ' classes: change num_classes, or pass new_head=jax.random.key(0) for a'
      ' fresh one.'
    )
  return weights.WeightMismatchError(
    error.missing, error.unexpected, error.misshaped, origin, advice
  )
