"""Checkpoints of torchreid, read and written without torch.

Names are those of torchreid's `osnet.py` ('torchreid') and `osnet_ain.py`
('ain'); they differ in how streams and transitions are called.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers import weights
from jaxpapers.osnet import torch_writer
from jaxpapers.osnet.config import OSNetConfig
from jaxpapers.osnet.network import OSNet, smallest_side
from jaxpapers.weights import Rule, layouts

NAMINGS = ('torchreid', 'ain')

# Of a layer norm over (C, 1, 1).
_CHANNELS = layouts.Layout(
  'channels', lambda x: x.reshape(-1), lambda x: x[:, None, None]
)


def load_torch_checkpoint(
  path: Any, key: str | None = None
) -> dict[str, np.ndarray]:
  """Reads the weights of a file that torch wrote: nothing in it is run.

  Zip archives (since torch 1.6) and the older streams; bare state dicts, and
  torchreid's training files, which hold one. A leading 'module.' is taken off.

  Args:
    path: The file, .pth, .pth.tar or whatever its name is; or .safetensors.
    key: Which entry holds the weights, if several do.

  Returns:
    Name -> array, as they are in the file.

  Raises:
    UnsafePickleError: The file asks to run code.
    ValueError: It is damaged or holds no weights.

  Example:
    >>> state = load_torch_checkpoint('osnet_x1_0.pth')  # doctest: +SKIP
  """
  state = weights.open_state_dict(path, key=key)
  return {name: state[name] for name in state}


def save_torch_checkpoint(
  path: Any,
  state: Mapping[str, np.ndarray],
  *,
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Writes weights as a file that torch reads (a zip archive).

  Args:
    path: Where; written as a whole or not at all.
    state: Name -> array, as of `to_torch_state_dict`.
    extra: Plain values to put beside them, as torchreid does: {'epoch': 150}.
      The weights then are under 'state_dict'.

  Raises:
    TypeError: A value is neither plain nor an array.

  Example:
    >>> save_torch_checkpoint('x.pth', {'a': np.ones(2)})  # doctest: +SKIP
  """
  tree: Mapping[str, Any] = state
  if extra is not None:
    tree = {'state_dict': state, **extra}
  torch_writer.write_torch(path, tree)


def from_torch_state_dict(
  state: Mapping[str, Any],
  cfg: OSNetConfig,
  *,
  allow_missing: Sequence[str] = ('classifier',),
  num_classes: int | None = None,
) -> dict[str, Any]:
  """Puts the weights of torchreid into the tree of an `OSNet`.

  Args:
    state: Name -> array, of `load_torch_checkpoint`.
    cfg: The network.
    allow_missing: Patterns of paths that may be missing and then are left out.
    num_classes: Outputs of the classifier; those of the file by default, 0
      leaves it out.

  Returns:
    {'params', 'batch_stats'} of NumPy arrays.

  Raises:
    WeightMismatchError: With all that is missing, unexpected, or of another
      shape.
    ValueError: If the network has no such names.

  Example:
    >>> cfg = OSNetConfig(channels=(8, 64), blocks_per_stage=(1,))
    >>> x = jnp.ones((1, 32, 32, 3))
    >>> variables = OSNet(cfg).init(jax.random.key(0), x)
    >>> state = to_torch_state_dict(variables, cfg)
    >>> state['conv2.0.conv2d.3.conv2.weight'].shape
    (16, 1, 3, 3)
    >>> sorted(from_torch_state_dict(state, cfg))
    ['batch_stats', 'params']
  """
  own = getattr(state, 'path', 'The checkpoint')
  state = {k: state[k] for k in state if not k.endswith('num_batches_tracked')}
  bias = state.get('classifier.bias')
  if num_classes is None:
    num_classes = 0 if bias is None else len(bias)
  elif num_classes == 0:
    state = {k: x for k, x in state.items() if not k.startswith('classifier.')}
  naming = 'ain' if any('.layers.' in name for name in state) else 'torchreid'
  if naming == 'torchreid' and not _has_plain_names(cfg):
    naming = 'ain'
  try:
    tree = table_for(cfg, naming).to_tree(
      state, expected(cfg, num_classes), allow_missing=allow_missing
    )
  except weights.WeightMismatchError as error:
    raise weights.WeightMismatchError(
      error.missing,
      error.unexpected,
      error.misshaped,
      own,
      'Is it a file of another network of CONFIGS? num_classes=0 leaves a'
      ' classifier out.',
    ) from None
  tree.setdefault('batch_stats', {})
  return tree


def to_torch_state_dict(
  variables: Mapping[str, Any], cfg: OSNetConfig, naming: str = 'auto'
) -> dict[str, np.ndarray]:
  """Writes the tree of an `OSNet` under torchreid's names.

  Args:
    variables: 'params' and 'batch_stats'.
    cfg: The network.
    naming: 'torchreid' for `osnet.py`, 'ain' for `osnet_ain.py`; by default
      the first where it can name all of the network.

  Returns:
    Name -> array, with `num_batches_tracked` of every batch norm, 0.

  Raises:
    ValueError: If the naming is unknown or has no names for the network, or
      params or batch_stats are missing.
    WeightMismatchError: If the tree is of another network.
  """
  if cfg.folded or not cfg.affine:
    raise ValueError(
      'cfg has folded or non-affine norms, for which torchreid has no names;'
      ' expected the network as it is trained.'
    )
  if naming == 'auto':
    naming = 'torchreid' if _has_plain_names(cfg) else 'ain'
  elif naming not in NAMINGS:
    raise ValueError(f'naming is {naming!r}; expected auto or of {NAMINGS}.')
  kept = {name: variables.get(name) for name in ('params', 'batch_stats')}
  if None in kept.values():
    raise ValueError(
      f'variables has {sorted(variables)}; expected params and batch_stats.'
    )
  state = table_for(cfg, naming).to_state_dict(kept)
  out: dict[str, np.ndarray] = {}
  for name, array in state.items():
    out[name] = np.ascontiguousarray(array)
    if name.endswith('running_var'):
      counter = f'{name.removesuffix("running_var")}num_batches_tracked'
      out[counter] = np.zeros((), np.int64)
  return out


@functools.lru_cache(32)
def expected(cfg: OSNetConfig, num_classes: int = 0) -> dict[str, Any]:
  """Shapes and types of a network's variables.

  Args:
    cfg: The network.
    num_classes: Outputs of its classifier.

  Returns:
    Tree of ShapeDtypeStructs; not to be changed, since it is kept.
  """
  # Two pixels are left at the end, which instance norms need.
  side = max(64, 4 * smallest_side(cfg))
  x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  net = OSNet(cfg, num_classes)
  return dict(jax.eval_shape(net.init, jax.random.key(0), x))


def table_for(cfg: OSNetConfig, naming: str) -> weights.RenameTable:
  """Which array of torchreid is which leaf.

  Args:
    cfg: The network.
    naming: Of `NAMINGS`.

  Returns:
    The table.

  Raises:
    ValueError: If 'torchreid' has no names for its streams.
  """
  if naming == 'torchreid' and not _has_plain_names(cfg):
    raise ValueError(
      f'naming is {naming!r}, which has no names for streams {cfg.streams} and'
      f' instance norms {cfg.instance_norm}; expected ain.'
    )
  block = 'conv{s}.{b}', 'conv{s}_{b}'
  rules = [
    *_unit('conv1', 'conv1'),
    *_unit(f'{block[0]}.conv1', f'{block[1]}/conv1'),
    *_streams(naming),
    *_gates(),
    *_unit(f'{block[0]}.conv3', f'{block[1]}/conv3'),
    *_unit(f'{block[0]}.downsample', f'{block[1]}/downsample'),
    *_instance_norms(cfg),
    *_transitions(cfg, naming),
    *_unit('conv5', 'conv5'),
    Rule('fc.0.weight', 'params/fc/linear/kernel', layouts.LINEAR),
    Rule('fc.0.bias', 'params/fc/linear/bias'),
    *_norm('fc.1', 'fc/norm'),
    Rule('classifier.weight', 'params/classifier/kernel', layouts.LINEAR),
    Rule('classifier.bias', 'params/classifier/bias'),
  ]
  return weights.RenameTable(rules)


def _has_plain_names(cfg) -> bool:
  depth = len(cfg.streams)
  plain = (None, 'outside')
  return (
    cfg.streams == tuple(range(1, depth + 1))
    and depth <= 4
    and all(kind in plain for kind in cfg.instance_norm)
  )


def _norm(source, target):
  return [
    Rule(f'{source}.weight', f'params/{target}/scale'),
    Rule(f'{source}.bias', f'params/{target}/bias'),
    Rule(f'{source}.running_mean', f'batch_stats/{target}/mean'),
    Rule(f'{source}.running_var', f'batch_stats/{target}/var'),
  ]


def _unit(source, target):
  return [
    Rule(f'{source}.conv.weight', f'params/{target}/conv/kernel', layouts.CONV),
    *_norm(f'{source}.bn', f'{target}/norm'),
  ]


def _streams(naming):
  """Layers of streams; full convolutions of the ablation have names of ours."""
  if naming == 'ain':
    places = [('conv2.{t}.layers.{j}', 'stream{t}_{j}')]
  else:
    places = [('conv2a', 'stream0_0')]
    places += [
      (f'conv2{letter}.{{j}}', f'stream{t}_{{j}}')
      for t, letter in enumerate('abcd')
      if t
    ]
  rules = []
  for source, target in places:
    source, target = f'conv{{s}}.{{b}}.{source}', f'conv{{s}}_{{b}}/{target}'
    kernels = (('conv1', 'pointwise'), ('conv2', 'depthwise'), ('conv', 'conv'))
    rules += [
      Rule(f'{source}.{a}.weight', f'params/{target}/{b}/kernel', layouts.CONV)
      for a, b in kernels
    ]
    rules += _norm(f'{source}.bn', f'{target}/norm')
  return rules


def _gates():
  """The shared gate, and those of the ablations."""
  rules = []
  for source, target in (('gate', 'gate'), ('gates.{t}', 'gate{t}')):
    source = f'conv{{s}}.{{b}}.{source}'
    target = f'params/conv{{s}}_{{b}}/{target}'
    for layer in ('fc1', 'fc2'):
      rules += [
        Rule(
          f'{source}.{layer}.weight',
          f'{target}/{layer}/kernel',
          layouts.POINTWISE,
        ),
        Rule(f'{source}.{layer}.bias', f'{target}/{layer}/bias'),
      ]
    rules += [
      Rule(f'{source}.norm1.weight', f'{target}/norm1/scale', _CHANNELS),
      Rule(f'{source}.norm1.bias', f'{target}/norm1/bias', _CHANNELS),
    ]
  rules.append(
    Rule('conv{s}.{b}.gate_logits', 'params/conv{s}_{b}/gate_logits')
  )
  return rules


def _instance_norms(cfg):
  rules = []
  places = [
    (s + 2, b) for s, n in enumerate(cfg.blocks_per_stage) for b in range(n)
  ]
  for index, (s, b) in enumerate(places):
    kind = cfg.block_norm(index)
    names = {'inside': 'IN', 'outside': 'IN'}
    if kind == 'both':
      names = {'inside': 'IN_in', 'outside': 'IN_out'}
    elif kind is not None:
      names = {kind: 'IN'}
    else:
      continue
    for where, name in names.items():
      rules += _norm(
        f'conv{s}.{b}.{name}', f'conv{s}_{b}/instance_norm_{where}'
      )
  return rules


def _transitions(cfg, naming):
  rules = []
  for s, count in enumerate(cfg.blocks_per_stage[:-1], 2):
    source = f'pool{s}.0' if naming == 'ain' else f'conv{s}.{count}.0'
    rules += _unit(source, f'conv{s}_transition')
  return rules
