"""What each array is called in the files of other libraries."""

import re
import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxpapers import weights
from jaxpapers.efficientnet.config import ModelConfig
from jaxpapers.weights import layouts

FORMATS = ('timm', 'torchvision', 'lukemelas', 'keras', 'tf')

# Our variables of a layer -> theirs.
_TORCH_VARIABLES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
_TF_VARIABLES = {
  'kernel': 'kernel',
  'scale': 'gamma',
  'bias': 'bias',
  'norm_bias': 'beta',
  'mean': 'moving_mean',
  'var': 'moving_variance',
}


class Part(NamedTuple):
  """A block as names depend on it.

  Attributes:
    stage: Index of its stage.
    position: Its index in the stage.
    index: Its index in the network.
    kinds: Of 'expand', 'depthwise' and 'project' those that it has, in order.
    squeezes: Whether it has squeeze-and-excitation.
  """

  stage: int
  position: int
  index: int
  kinds: tuple[str, ...]
  squeezes: bool

  @property
  def name(self) -> str:
    """Its name in the variables."""
    return f'stage{self.stage}_block{self.position}'

  @property
  def fused(self) -> bool:
    """Whether one full convolution does the work of two."""
    return 'depthwise' not in self.kinds


def parts_of(network: ModelConfig | Mapping[str, Any]) -> list[Part]:
  """The blocks of a network, in order.

  Args:
    network: Its config, or its variables `{'params': ..., ...}`.

  Returns:
    One entry per block.
  """
  if isinstance(network, ModelConfig):
    return [
      Part(block.stage, block.position, block.index, kinds, squeezes)
      for block in network.scaled_blocks()
      for kinds in (_kinds(block.args),)
      for squeezes in (block.args.squeezed_filters > 0,)
    ]
  places = sorted(
    tuple(map(int, match.groups()))
    for name in network['params']
    if (match := re.fullmatch(r'stage(\d+)_block(\d+)', name))
  )
  parts = []
  for index, (stage, position) in enumerate(places):
    layers = network['params'][f'stage{stage}_block{position}']
    kinds = tuple(
      kind
      for kind in ('expand', 'depthwise', 'project')
      if f'{kind}_conv' in layers
    )
    parts.append(Part(stage, position, index, kinds, 'se_reduce' in layers))
  return parts


def _kinds(args) -> tuple[str, ...]:
  if args.fused:
    return ('expand', 'project')
  expand = ('expand',) if args.expand_ratio != 1 else ()
  return (*expand, 'depthwise', 'project')


def table_for(
  network: ModelConfig | Mapping[str, Any], format: str
) -> weights.RenameTable:
  """The table between a network's variables and a library's names.

  Args:
    network: Its config, or its variables.
    format: One of `FORMATS`. TensorFlow's names are without the scope of the
      model and without 'ExponentialMovingAverage'; Keras' are 'layer/variable'.

  Returns:
    The table, for both directions.

  Raises:
    ValueError: If there is no such format.

  Example:
    >>> table = table_for(ModelConfig(), 'timm')
    >>> table.targets('blocks.1.0.conv_pw.weight')
    ['params/stage1_block0/expand_conv/kernel']
  """
  if format not in FORMATS:
    raise ValueError(f'format is {format!r}; expected one of {FORMATS}.')
  name_layers = _LAYERS[format]
  rules = []
  for ours, theirs in name_layers(parts_of(network)):
    rules += _variable_rules(ours, theirs, format in ('keras', 'tf'))
  return weights.RenameTable(
    rules,
    ignored=('num_batches_tracked$',)
    if format not in ('keras', 'tf')
    else ('^normalization', '^rescaling', 'global_step$'),
    renames=_RENAMES.get(format, ()),
  )


# Other spellings: graphs for GPUs, Keras 3, the first keras-applications.
_RENAMES = {
  'tf': [('(^|/)batch_normalization', r'\1tpu_batch_normalization')],
  'keras': [('^probs/', 'predictions/')],
}


def _variable_rules(ours, theirs, tensorflow) -> Iterator[weights.Rule]:
  """Lines for the variables of one layer."""
  last = ours.rpartition('/')[2]
  depthwise = last == 'depthwise_conv'
  if last.endswith('_bn'):
    variables = ('scale', 'bias', 'mean', 'var')
  elif last in ('se_reduce', 'se_expand', 'classifier'):
    variables = ('kernel', 'bias')
  else:
    variables = ('kernel',)
  for variable in variables:
    collection = 'batch_stats' if variable in ('mean', 'var') else 'params'
    target = f'{collection}/{ours}/{variable}'
    aliases: tuple[str, ...] = ()
    layout = layouts.COPY
    if tensorflow:
      key = (
        'norm_bias'
        if (variable == 'bias' and 'scale' in variables)
        else variable
      )
      name = f'{theirs}/{_TF_VARIABLES[key]}'
      if depthwise:
        aliases = (name,)
        name = f'{theirs}/depthwise_kernel'
        layout = layouts.TF_DEPTHWISE
    else:
      name = f'{theirs}.{_TORCH_VARIABLES[variable]}'
      if variable == 'kernel':
        layout = layouts.LINEAR if last == 'classifier' else layouts.CONV
    yield weights.Rule(name, target, layout, aliases)


def _timm(parts):
  yield 'stem_conv', 'conv_stem'
  yield 'stem_bn', 'bn1'
  for block in parts:
    theirs = f'blocks.{block.stage}.{block.position}'
    kinds = block.kinds
    names = {
      'expand': 'conv_exp' if block.fused else 'conv_pw',
      'depthwise': 'conv_dw',
      # Where nothing is expanded, conv_pw is the projection.
      'project': 'conv_pwl' if 'expand' in kinds else 'conv_pw',
    }
    for i, kind in enumerate(kinds):
      yield f'{block.name}/{kind}_conv', f'{theirs}.{names[kind]}'
      yield f'{block.name}/{kind}_bn', f'{theirs}.bn{i + 1}'
    if block.squeezes:
      yield f'{block.name}/se_reduce', f'{theirs}.se.conv_reduce'
      yield f'{block.name}/se_expand', f'{theirs}.se.conv_expand'
  yield 'head_conv', 'conv_head'
  yield 'head_bn', 'bn2'
  yield 'classifier', 'classifier'


def _torchvision(parts):
  yield 'stem_conv', 'features.0.0'
  yield 'stem_bn', 'features.0.1'
  for block in parts:
    theirs = f'features.{block.stage + 1}.{block.position}.block'
    place = 0
    for kind in block.kinds:
      if kind == 'project' and block.squeezes:
        yield f'{block.name}/se_reduce', f'{theirs}.{place}.fc1'
        yield f'{block.name}/se_expand', f'{theirs}.{place}.fc2'
        place += 1
      yield f'{block.name}/{kind}_conv', f'{theirs}.{place}.0'
      yield f'{block.name}/{kind}_bn', f'{theirs}.{place}.1'
      place += 1
  last = parts[-1].stage + 2
  yield 'head_conv', f'features.{last}.0'
  yield 'head_bn', f'features.{last}.1'
  yield 'classifier', 'classifier.1'


def _lukemelas(parts):
  yield 'stem_conv', '_conv_stem'
  yield 'stem_bn', '_bn0'
  numbers = {'expand': 0, 'depthwise': 1, 'project': 2}
  for block in parts:
    theirs = f'_blocks.{block.index}'
    for kind in block.kinds:
      yield f'{block.name}/{kind}_conv', f'{theirs}._{kind}_conv'
      yield f'{block.name}/{kind}_bn', f'{theirs}._bn{numbers[kind]}'
    if block.squeezes:
      yield f'{block.name}/se_reduce', f'{theirs}._se_reduce'
      yield f'{block.name}/se_expand', f'{theirs}._se_expand'
  yield 'head_conv', '_conv_head'
  yield 'head_bn', '_bn1'
  yield 'classifier', '_fc'


def _keras(parts):
  yield 'stem_conv', 'stem_conv'
  yield 'stem_bn', 'stem_bn'
  for block in parts:
    letter = string.ascii_letters[block.position]
    theirs = f'block{block.stage + 1}{letter}'
    for kind in block.kinds:
      if kind == 'depthwise':
        yield f'{block.name}/depthwise_conv', f'{theirs}_dwconv'
        yield f'{block.name}/depthwise_bn', f'{theirs}_bn'
      else:
        yield f'{block.name}/{kind}_conv', f'{theirs}_{kind}_conv'
        yield f'{block.name}/{kind}_bn', f'{theirs}_{kind}_bn'
    if block.squeezes:
      yield f'{block.name}/se_reduce', f'{theirs}_se_reduce'
      yield f'{block.name}/se_expand', f'{theirs}_se_expand'
  yield 'head_conv', 'top_conv'
  yield 'head_bn', 'top_bn'
  yield 'classifier', 'predictions'


def _tf(parts):
  def numbered(name, number):
    return f'{name}_{number}' if number else name

  yield 'stem_conv', 'stem/conv2d'
  yield 'stem_bn', 'stem/tpu_batch_normalization'
  for block in parts:
    theirs = f'blocks_{block.index}'
    kinds = block.kinds
    convs = 0
    for i, kind in enumerate(kinds):
      name = 'depthwise_conv2d'
      if kind != 'depthwise':
        name = numbered('conv2d', convs)
        convs += 1
      yield f'{block.name}/{kind}_conv', f'{theirs}/{name}'
      norm = numbered('tpu_batch_normalization', i)
      yield f'{block.name}/{kind}_bn', f'{theirs}/{norm}'
    if block.squeezes:
      yield f'{block.name}/se_reduce', f'{theirs}/se/conv2d'
      yield f'{block.name}/se_expand', f'{theirs}/se/conv2d_1'
  yield 'head_conv', 'head/conv2d'
  yield 'head_bn', 'head/tpu_batch_normalization'
  yield 'classifier', 'head/dense'


_LAYERS: Mapping[str, Callable[[list[Part]], Iterator[tuple[str, str]]]] = {
  'timm': _timm,
  'torchvision': _torchvision,
  'lukemelas': _lukemelas,
  'keras': _keras,
  'tf': _tf,
}


def detect_format(names: Any) -> str:
  """Which library's names these are.

  Args:
    names: Of a checkpoint's arrays.

  Returns:
    One of `FORMATS`.

  Raises:
    ValueError: If they are of none.

  Example:
    >>> detect_format(['features.0.0.weight'])
    'torchvision'
  """
  signs = {
    'conv_stem.weight': 'timm',
    'features.0.0.weight': 'torchvision',
    '_conv_stem.weight': 'lukemelas',
    'stem_conv/kernel': 'keras',
    'stem/conv2d/kernel': 'tf',
  }
  names = list(names)
  for sign, found in signs.items():
    if sign in names:
      return found
  raise ValueError(
    f'the names {", ".join(names[:4]) or "(none)"} ... are not those of an'
    f' EfficientNet in {", ".join(FORMATS)}: none is {" or ".join(signs)}.'
  )
