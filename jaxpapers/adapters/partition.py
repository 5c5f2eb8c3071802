"""Which parameters are trained: partitions of a tree of parameters."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from jaxpapers.adapters import trees
from jaxpapers.adapters.compress import decompress

MODES = ('full', 'adapter', 'layer_norm', 'top_k', 'head')

Mode = str | Callable[[str], bool]


@dataclasses.dataclass(frozen=True)
class Names:
  """How the parts of a model are called: regular expressions over paths.

  The defaults are those of `nn.TransformerEncoder` and the models on it. They
  are searched in a path such as 'encoder/layers_3/ffn_norm/scale', without
  regard to case.

  Attributes:
    adapter: Parameters of adapters.
    norm: Parameters of norms.
    body: What was pre-trained; everything else is the head.
    pooler: Dense layers in the head before its last one.
    layer: Parameters of a numbered layer; the group is its number.
    stacked: Parameters of scanned layers, which have a leading axis of layers.
    final: Parameters of the body that come after the layers.
  """

  adapter: str = r'(^|/)[^/]*adapter[^/]*/'
  norm: str = r'(^|/)[^/]*norm[^/]*/(scale|bias)$'
  body: str = r'^encoder/'
  pooler: str = r'(^|/)(pooler|dense)/'
  layer: str = r'(?:^|/)layers?_(\d+)/'
  stacked: str = r'(^|/)layers/'
  final: str = r'(^|/)final_norm/'

  def has(self, part: str, path: str) -> bool:
    """Whether a path belongs to a part."""
    return bool(re.search(getattr(self, part), path, re.IGNORECASE))


DEFAULT_NAMES = Names()


def partition_params(
  params: Mapping[str, Any],
  mode: Mode,
  *,
  k: int | None = None,
  train_embeddings: bool = False,
  train_layer_norm: bool = True,
  head: str = 'mlp',
  names: Names = DEFAULT_NAMES,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits parameters into those that are trained and those that are not.

  Differentiate with respect to the first tree only, and no gradient of a frozen
  kernel is ever computed; give the optimizer the first tree only, and it keeps
  nothing for the others. `merge_params` puts the two together again.

  Modes, each with the head:

    full         everything
    adapter      adapters and, with `train_layer_norm`, all layer norms of the
                 body, that of the embeddings included
    layer_norm   layer norms
    top_k        the `k` layers nearest the output, and what comes after them
    head         nothing else

  Of scanned layers, top_k takes rows of each leaf: a path is then in both
  trees, the rows of the lower layers in the frozen one. Gradients and optimizer
  state are as small, but a scan computes gradients of all its layers: to save
  that time, too, unroll (`nn.unstack_layers`).

  Args:
    params: Nested mappings of arrays or ShapeDtypeStructs.
    mode: One of `MODES`, or a function from a path to whether it is trained.
    k: Number of layers of the mode top_k.
    train_embeddings: Of the mode top_k: whether to train what is below the
      layers. With it and all layers it is the mode full.
    train_layer_norm: Of the mode adapter.
    head: 'mlp': all that is not in the body. 'linear': its last layer only; a
      pooler stays as it was pre-trained, as in the authors' code. Or a regular
      expression of the head's paths, for models with other names.
    names: How other parts are called.

  Returns:
    Two trees of nested dictionaries: trained, frozen.

  Raises:
    ValueError: If an argument is impossible, or nothing or everything would be
      trained.
    TypeError: If `params` are not nested mappings.

  Example:
    >>> params = {
    ...   'encoder': {'w': 1, 'norm': {'scale': 2}},
    ...   'output': {'bias': 3},
    ... }
    >>> trainable, frozen = partition_params(params, 'layer_norm')
    >>> frozen
    {'encoder': {'w': 1}}
  """
  flat = trees.flatten(params)
  chosen = _choose(
    flat, mode, k, train_embeddings, train_layer_norm, head, names
  )
  trained, frozen = {}, {}
  for path, leaf in flat.items():
    first = chosen[path]
    if first is None:
      frozen[path] = leaf
    elif first == 0:
      trained[path] = leaf
    else:
      frozen[path] = trees.rows(leaf, None, first)
      trained[path] = trees.rows(leaf, first, None)
  return trees.unflatten(trained), trees.unflatten(frozen)


def merge_params(
  trainable: Mapping[str, Any], frozen: Mapping[str, Any]
) -> dict[str, Any]:
  """Puts together what `partition_params` split.

  Frozen leaves that `compress_frozen` made are decompressed here, inside the
  program that uses them.

  Args:
    trainable: The trained tree.
    frozen: The frozen one.

  Returns:
    The whole tree.

  Raises:
    ValueError: If a path is in both and is not one of scanned layers, or is a
      leaf in one and a folder in the other.

  Example:
    >>> merge_params({'output': {'bias': 3}}, {'encoder': {'w': 1}})
    {'encoder': {'w': 1}, 'output': {'bias': 3}}
  """
  return _merge(trainable, frozen, '')


def _merge(trainable, frozen, prefix):
  merged = {}
  for name, value in frozen.items():
    path = f'{prefix}{name}'
    folder = isinstance(value, Mapping)
    if name not in trainable:
      merged[name] = (
        _merge({}, value, f'{path}/') if folder else decompress(value)
      )
      continue
    other = trainable[name]
    if folder != isinstance(other, Mapping):
      raise ValueError(
        f'{path} is an array in one tree and a folder in the other.'
      )
    if folder:
      merged[name] = _merge(other, value, f'{path}/')
      continue
    value = decompress(value)
    shapes = trees.shape_of(value), trees.shape_of(other)
    if not re.search(Names.stacked, path) or shapes[0][1:] != shapes[1][1:]:
      raise ValueError(
        f'{path} is in both trees, of shapes {shapes[0]} and {shapes[1]}. Only'
        ' rows of scanned layers can be split over two trees; to put a task'
        ' into a whole tree, use insert_task.'
      )
    merged[name] = jnp.concatenate([value, other])
  for name, value in trainable.items():
    if name not in frozen:
      merged[name] = value
  return dict(sorted(merged.items()))


def trainable_labels(
  params: Mapping[str, Any], mode: Mode, **options: Any
) -> dict[str, Any]:
  """Labels for `optax.partition`, for loops that keep one tree.

    optax.partition({'train': tx, 'freeze': optax.set_to_zero()}, labels)

  keeps no optimizer state of frozen leaves. Their gradients are still computed
  where anything reads them, such as a clip of the norm of the whole tree: clip
  inside `tx`.

  Args:
    params: As in `partition_params`.
    mode: As in `partition_params`.
    **options: As in `partition_params`.

  Returns:
    A tree like `params` of 'train' and 'freeze'.

  Raises:
    ValueError: As in `partition_params`, and if only some rows of a leaf of
      scanned layers are trained: a leaf has one label.
  """
  flat = trees.flatten(params)
  defaults = {
    'k': None,
    'train_embeddings': False,
    'train_layer_norm': True,
    'head': 'mlp',
    'names': DEFAULT_NAMES,
  }
  unknown = sorted(set(options) - set(defaults))
  if unknown:
    raise TypeError(f'{unknown[0]!r} is no option of trainable_labels.')
  chosen = _choose(flat, mode, **defaults | options)
  for path, first in chosen.items():
    if first:
      raise ValueError(
        f'{path} is of scanned layers and only its rows from {first} on are'
        ' trained; one label cannot say that. Use partition_params, or'
        ' nn.unstack_layers.'
      )
  return trees.unflatten(
    {p: 'freeze' if first is None else 'train' for p, first in chosen.items()}
  )


def _choose(
  flat, mode, k, train_embeddings, train_layer_norm, head, names
) -> dict[str, int | None]:
  """First trained row of each leaf: 0 for all of it, None for nothing."""
  if mode != 'top_k' and (k is not None or train_embeddings):
    raise ValueError(
      f'k is {k} and train_embeddings {train_embeddings}, but mode is {mode!r};'
      " they belong to the mode 'top_k'."
    )
  if callable(mode):
    return _checked({p: 0 if mode(p) else None for p in flat}, mode, head)
  if mode not in MODES:
    raise ValueError(
      f'mode is {mode!r}; expected one of {MODES}, or a function of a path.'
    )
  if mode == 'full':
    return dict.fromkeys(flat, 0)
  of_head = _head_paths(flat, head, names)
  in_body = [path for path in flat if path not in of_head[0]]
  parts = {'adapter': ('adapter',), 'layer_norm': ('norm',), 'head': ()}
  if mode == 'top_k':
    body = _top_rows(flat, in_body, k, train_embeddings, names)
  else:
    wanted = parts[mode]
    if mode == 'adapter' and train_layer_norm:
      wanted = ('adapter', 'norm')
    body = {
      path: 0
      for path in in_body
      if any(names.has(part, path) for part in wanted)
    }
    if wanted and not any(names.has(wanted[0], path) for path in body):
      raise ValueError(
        f'mode is {mode!r}, but no path of params has a part that matches'
        f' {getattr(names, wanted[0])!r}. Make the model with adapters first'
        ' (init_adapters), or say what they are called: names=Names(...).'
        if mode == 'adapter'
        else f'mode is {mode!r}, but no path of params matches {names.norm!r}.'
        ' Say what norms are called: names=Names(norm=...).'
      )
  chosen = {path: body.get(path) for path in flat}
  chosen |= dict.fromkeys(of_head[1], 0)
  return _checked(chosen, mode, head)


def _checked(chosen, mode, head):
  """Refuses partitions with an empty side."""
  trained = [path for path, first in chosen.items() if first is not None]
  whole = all(first == 0 for first in chosen.values())
  if trained and not whole:
    return chosen
  what = 'everything' if trained else 'nothing'
  raise ValueError(
    f'mode {mode!r} with head={head!r} would train {what} of {len(chosen)}'
    f' leaves, the first of which is {next(iter(chosen), None)!r}. In models'
    ' with other names give head a regular expression of its paths, or names;'
    " mode 'full' trains everything."
    if what == 'everything' and mode != 'top_k'
    else f'mode {mode!r} would train {what} of {len(chosen)} leaves.'
    + (" That is mode 'full'." if trained else '')
  )


def _head_paths(flat, head, names):
  """Paths of the head, and those of them that are trained."""
  if head in ('mlp', 'linear'):
    every = [path for path in flat if not names.has('body', path)]
    trained = [
      path for path in every if head == 'mlp' or not names.has('pooler', path)
    ]
    if len(every) == len(flat):
      raise ValueError(
        f'no path of params matches {names.body!r}, so everything would be head'
        f' and trained; the first path is {next(iter(flat), None)!r}. Give head'
        ' a regular expression of its paths, or names=Names(body=...).'
      )
  else:
    every = trained = [path for path in flat if re.search(head, path)]
  if not trained:
    raise ValueError(
      f'head={head!r} matches no path of params, the last of which is'
      f' {list(flat)[-1:]}: no new layer would be trained. Initialise the model'
      ' with its head first (init_adapters), or change head.'
    )
  return set(every), trained


def _top_rows(flat, in_body, k, train_embeddings, names):
  """First trained row of the leaves of the body, those that have any."""
  numbers, stacked = {}, {}
  for path in in_body:
    match = re.search(names.layer, path, re.IGNORECASE)
    if match:
      numbers[path] = int(match.group(1))
    elif names.has('stacked', path):
      stacked[path] = trees.shape_of(flat[path])[:1]
  sizes = set(stacked.values())
  if (numbers and stacked) or len(sizes) > 1 or not (numbers or stacked):
    raise ValueError(
      f"mode is 'top_k', but params have {len(numbers)} leaves of numbered"
      f' layers and {len(stacked)} of scanned ones, of {sorted(sizes)} layers;'
      ' expected one stack of layers. Say what they are called: names=Names('
      'layer=..., stacked=...).'
    )
  count = max(numbers.values()) + 1 if numbers else sizes.pop()[0]
  if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= count:
    raise ValueError(
      f"k is {k!r}; mode 'top_k' expects a number of layers from 1 to {count}."
      " No layer at all is mode 'head'."
    )
  first = count - k
  chosen = {path: 0 for path, number in numbers.items() if number >= first}
  chosen |= dict.fromkeys(stacked, first)
  for path in in_body:
    if path in numbers or path in stacked:
      continue
    if train_embeddings or names.has('final', path):
      chosen[path] = 0
  return chosen
