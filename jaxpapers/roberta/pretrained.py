"""Weights of RoBERTa and BERT from Hugging Face and fairseq, and back.

Leaf by leaf and bit for bit; no torch is needed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers import weights
from jaxpapers.data import files
from jaxpapers.nn.encoder_config import EncoderConfig
from jaxpapers.roberta import pretrained_config, pretrained_names
from jaxpapers.roberta.model import RobertaForMaskedLM
from jaxpapers.training import shard_rules
from jaxpapers.weights import safetensors_files, torch_files

_TYPES = 'embeddings.token_type_embeddings.weight'
_SEGMENTS = 'encoder.sentence_encoder.segment_embeddings.weight'
_WORDS = 'embeddings.word_embeddings.weight'
# Where fairseq's checkpoints keep the weights and the settings.
_FAIRSEQ_FILES = ('model.pt', 'checkpoint_best.pt', 'checkpoint_last.pt')


def params_from_hf(
  state_dict: Mapping[str, Any],
  config: EncoderConfig,
  *,
  heads: Sequence[str] | None = None,
  tie: bool | None = None,
  choice: bool | None = None,
  shardings: Any = None,
  strict: bool = True,
) -> dict[str, Any]:
  """Parameters from weights under the names of Hugging Face.

  Args:
    state_dict: Name -> array: of a RoBERTa or BERT with any head or none, old
      names (gamma, beta) included. `weights.open_state_dict` reads one.
    config: The encoder's; `vocab_multiple` and `scan_layers` change the tree.
    heads: Which heads to return, such as `('lm_head',)`; all by default.
    tie: Whether the masked-LM head shares the token table. By default it does
      unless there is another table.
    choice: Whether a linear layer on the pooler scores choices (leaf `choice`)
      or classes (leaf `output`); by default the former if it has one output.
    shardings: A Sharding for all, or a tree of them as `shard_rules` makes of
      `expected_params`; by default everything is on the default device.
    strict: Whether anything missing or unexpected is an error.

  Returns:
    `{'encoder': ..., 'lm_head': ..., ...}`, the parameters of the models in
    `jaxpapers.roberta`, of type `config.param_dtype`.

  Raises:
    WeightMismatchError: With all that is missing, unexpected or mis-shaped, by
      path and with both shapes.

  Example:
    >>> state = weights.open_state_dict('roberta-base')  # doctest: +SKIP
    >>> config = roberta_base(type_vocab_size=1)  # doctest: +SKIP
    >>> params = params_from_hf(state, config)  # doctest: +SKIP
  """
  table = pretrained_names.hf_table(config)
  names = _canonical(state_dict, table)
  drop = set()
  if config.type_vocab_size == 0 and _TYPES in names:
    # What `params_to_hf` wrote: it adds nothing.
    if not np.any(np.asarray(state_dict[names[_TYPES]])):
      drop.add(names[_TYPES])
  tied, same = _tied(state_dict, names, _WORDS, 'lm_head.decoder.weight', tie)
  drop |= same
  if not tied:
    # Untied, a model there has two biases, and uses the decoder's.
    biases = {n for n in state_dict if table.canonical(n) == 'lm_head.bias'}
    used = {n for n in biases if n.endswith('decoder.bias')}
    drop |= biases - used if used else set()
  like = expected_params(
    config, tie='lm_head.decoder.weight' not in names or tied
  )
  if not any(name.startswith('lm_head.') for name in names):
    del like['lm_head']
  linear = names.get('classifier.weight')
  if linear is not None and choice is None:
    choice = np.shape(state_dict[linear])[0] == 1
  groups = {
    'classifier': 'classifier.out_proj',
    'choice' if choice else 'output': 'classifier',
    'qa': 'qa_outputs',
    'answerable': 'answerable.out_proj',
    'nsp': 'cls.seq_relationship',
    'pooler': 'pooler.dense',
  }
  _add_heads(like, config, state_dict, names, groups)
  try:
    return _convert(
      table, state_dict, like, config, heads, drop, shardings, strict
    )
  except weights.WeightMismatchError as error:
    raise _about_segments(error, state_dict, names.get(_TYPES)) from None


def params_from_fairseq(
  state_dict: Mapping[str, Any],
  config: EncoderConfig,
  *,
  heads: Sequence[str] | None = None,
  head_name: str | None = None,
  tie: bool | None = None,
  shardings: Any = None,
  strict: bool = True,
) -> dict[str, Any]:
  """Parameters from weights under the names of fairseq.

  Args:
    state_dict: Name -> array, of today's or an old version: names that begin
      with `decoder.`, `emb_layer_norm`, the fused `in_proj_weight`.
    config: As for `params_from_hf`.
    heads: As for `params_from_hf`.
    head_name: Which classification head becomes `classifier`; needed if there
      are several.
    tie: As for `params_from_hf`.
    shardings: As for `params_from_hf`.
    strict: As for `params_from_hf`.

  Returns:
    As `params_from_hf`.

  Raises:
    WeightMismatchError: As `params_from_hf`.
    ValueError: There are several classification heads, or not the named one.
  """
  found = sorted(
    {
      name.split('.')[1]
      for name in state_dict
      if name.startswith('classification_heads.')
    }
  )
  if head_name is None and len(found) == 1:
    head_name = found[0]
  wanted = heads is None or 'classifier' in heads
  if head_name not in (found or [None]) and wanted:
    raise ValueError(
      f'head_name is {head_name!r}; expected one of the classification heads of'
      f' the checkpoint: {", ".join(found) or "it has none"}.'
    )
  table = pretrained_names.fairseq_table(config, head_name)
  names = _canonical(state_dict, table)
  words = 'encoder.sentence_encoder.embed_tokens.weight'
  decoder = 'encoder.lm_head.weight'
  tied, drop = _tied(state_dict, names, words, decoder, tie)
  for name in state_dict:
    parts = name.split('.')
    if parts[0] == 'classification_heads' and parts[1] != head_name:
      drop.add(name)
  like = expected_params(config, tie=decoder not in names or tied)
  if not any(name.startswith('encoder.lm_head.') for name in names):
    del like['lm_head']
  groups = {'classifier': f'classification_heads.{head_name}.out_proj'}
  _add_heads(like, config, state_dict, names, groups)
  try:
    return _convert(
      table, state_dict, like, config, heads, drop, shardings, strict
    )
  except weights.WeightMismatchError as error:
    raise _about_segments(error, state_dict, names.get(_SEGMENTS)) from None


def params_to_hf(
  params: Mapping[str, Any], config: EncoderConfig
) -> dict[str, np.ndarray]:
  """Weights under the names of Hugging Face, the reverse of `params_from_hf`.

  Args:
    params: Parameters, scanned or not, with the heads that they have.
    config: The encoder's. Positions from 0 mean BERT's names, else RoBERTa's.

  Returns:
    Name -> array, without the rows that `vocab_multiple` adds. Without a table
    of segments there is one of a single row of zeros: models there have one.

  Raises:
    WeightMismatchError: A leaf has no name there, such as an adapter's.
  """
  state = pretrained_names.hf_table(config).to_state_dict(params)
  base = 'bert' if config.position_offset == 0 else 'roberta'
  if 'lm_head.decoder.weight' in state:
    state['lm_head.decoder.bias'] = state['lm_head.bias']
  renamed = {}
  for name, array in state.items():
    if name.startswith(('embeddings.', 'encoder.', 'pooler.')):
      name = f'{base}.{name}'
    if base == 'bert':
      for ours, theirs in pretrained_names.BERT_HEAD:
        if name.startswith(ours):
          name = theirs + name.removeprefix(ours)
    renamed[name] = array
  if config.type_vocab_size == 0:
    shape, dtype = (1, config.hidden_size), state[_WORDS].dtype
    renamed[f'{base}.{_TYPES}'] = np.zeros(shape, dtype)
  return renamed


def params_to_fairseq(
  params: Mapping[str, Any],
  config: EncoderConfig,
  *,
  head_name: str = 'sentence_classification_head',
) -> dict[str, np.ndarray]:
  """Weights under the names of fairseq, as its `model` entry has them.

  Args:
    params: Parameters with the heads that fairseq has: `lm_head`, `classifier`.
    config: The encoder's.
    head_name: Name of the classification head there.

  Returns:
    Name -> array.

  Raises:
    WeightMismatchError: A leaf has no name there.
  """
  table = pretrained_names.fairseq_table(config, head_name)
  state = table.to_state_dict(params)
  if 'lm_head' in params:
    words = state['encoder.sentence_encoder.embed_tokens.weight']
    state.setdefault('encoder.lm_head.weight', words)
  return state


def expected_params(config: EncoderConfig, tie: bool = True) -> dict[str, Any]:
  """Shapes of the parameters of `RobertaForMaskedLM`.

  Args:
    config: The encoder's.
    tie: Whether the head shares the token table.

  Returns:
    `{'encoder': ..., 'lm_head': ...}` of ShapeDtypeStructs.
  """
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  init = RobertaForMaskedLM(config, tie=tie).init
  return dict(jax.eval_shape(init, jax.random.key(0), ids)['params'])


def load_pretrained(
  path: Any,
  *,
  heads: Sequence[str] | None = ('lm_head',),
  head_name: str | None = None,
  mesh: jax.sharding.Mesh | None = None,
  rules: Sequence[Any] = (),
  opaque: Sequence[str] = (),
  **overrides: Any,
) -> tuple[EncoderConfig, dict[str, Any]]:
  """Reads a model that somebody trained.

  Args:
    path: A folder of Hugging Face (config.json and model.safetensors, or
      several, or pytorch_model.bin) or of fairseq (model.pt), or a file of
      fairseq. Local or gs://.
    heads: Which heads to return where the model has them; None for all.
    head_name: As for `params_from_fairseq`.
    mesh: Where given, each device gets its part of each array as it is read.
    rules: How arrays lie on the mesh, as for `training.shard_rules`.
    opaque: As for `weights.read_torch`.
    **overrides: Fields of the config to set otherwise: `dtype`, `param_dtype`,
      `scan_layers`, `vocab_multiple`, `dropout_rate`, ...

  Returns:
    The config and the parameters, `{'encoder': ..., 'lm_head': ...}`.

  Raises:
    FileNotFoundError: Neither kind of model is there.
    ValueError: config.json or a file is damaged, or the two do not fit each
      other: see `params_from_hf`, `weights.open_state_dict`.

  Example:
    >>> config, params = load_pretrained('roberta-base')  # doctest: +SKIP
    >>> model = RobertaForMaskedLM(config)  # doctest: +SKIP
    >>> logits = model.apply({'params': params}, ids)  # doctest: +SKIP
  """
  path = files.as_path(path)
  if not path.exists():
    raise FileNotFoundError(f'There is no {path}.')
  options: dict[str, Any] = {'heads': heads}
  if path.is_dir() and (path / 'config.json').exists():
    content = _read_config(path / 'config.json')
    config = pretrained_config.config_from_hf(content, **overrides)
    state = weights.open_state_dict(path, opaque=opaque)
    convert = params_from_hf
    if content.get('tie_word_embeddings') is False:
      options['tie'] = False
    _check_vocabulary(state, config, path)
  else:
    file = files.find(path, _FAIRSEQ_FILES) if path.is_dir() else path
    if file is None:
      raise FileNotFoundError(
        f'{path} has neither config.json (Hugging Face) nor one of'
        f' {", ".join(_FAIRSEQ_FILES)} (fairseq).'
      )
    state = weights.open_state_dict(file, opaque=opaque)
    config = _fairseq_config(file, state, opaque, overrides)
    convert = params_from_fairseq
    options['head_name'] = head_name
  if mesh is not None:
    # A head that is not there needs no rule; one that is gets the default.
    options['shardings'] = lambda like: shard_rules(like, rules, mesh)
  return config, convert(state, config, **options)


def save_pretrained(
  path: Any,
  config: EncoderConfig,
  params: Mapping[str, Any],
  *,
  max_shard_bytes: int | None = None,
  **head: Any,
) -> None:
  """Writes config.json and model.safetensors, as Hugging Face has them.

  Every file appears when it is complete; config.json is the last.

  Args:
    path: Folder, local or gs://; made if need be. Other files in it, such as
      the tokenizer's, are left.
    config: The encoder's.
    params: Parameters with the heads that they have.
    max_shard_bytes: As for `weights.write_safetensors`.
    **head: `labels` and `head_dropout_rate` of `config_to_hf`.

  Raises:
    WeightMismatchError: A leaf has no name there, such as an adapter's.

  Example:
    >>> save_pretrained('my-model', config, params)  # doctest: +SKIP
  """
  path = files.as_path(path)
  state = params_to_hf(params, config)
  content = pretrained_config.config_to_hf(config, params, **head)
  path.mkdir(parents=True, exist_ok=True)
  weights.write_safetensors(
    path / 'model.safetensors', state, max_shard_bytes=max_shard_bytes
  )
  text = json.dumps(content, indent=2, sort_keys=True) + '\n'
  safetensors_files.write_text(path / 'config.json', text)


def _canonical(state_dict, table) -> dict[str, str]:
  """Name after the renames -> name in the checkpoint."""
  names: dict[str, str] = {}
  for name in state_dict:
    canonical = table.canonical(name)
    if canonical is not None:
      names.setdefault(canonical, name)
  return names


def _tied(state_dict, names, words, decoder, tie) -> tuple[bool, set[str]]:
  """Whether the output table is the token table, and names to leave out."""
  if decoder not in names or words not in names:
    return bool(tie), set()
  if tie is None:
    tie = np.array_equal(state_dict[names[decoder]], state_dict[names[words]])
  return tie, {names[decoder]} if tie else set()


def _add_heads(like, config, state_dict, names, groups) -> None:
  """Adds to the expected tree the heads of which something is there."""
  width, dtype = config.hidden_size, config.param_dtype

  def dense(outputs):
    return {
      'kernel': jax.ShapeDtypeStruct((width, outputs), dtype),
      'bias': jax.ShapeDtypeStruct((outputs,), dtype),
    }

  for head, name in groups.items():
    array = names.get(f'{name}.weight', names.get(f'{name}.bias'))
    if array is None:
      continue
    outputs = np.shape(state_dict[array])[0]
    if head in ('output', 'choice', 'qa'):
      like[head] = dense(outputs)
    elif head == 'pooler':
      like[head] = {'dense': dense(width)}
    else:
      like[head] = {'dense': dense(width), 'output': dense(outputs)}


def _convert(
  table, state_dict, like, config, heads, drop, shardings, strict
) -> dict[str, Any]:
  left_out = set(drop)
  if heads is not None:
    for head in set(like) - {'encoder', *heads}:
      del like[head]
    left_out |= {
      name
      for name in state_dict
      if (paths := table.targets(name))
      and all(path.split('/')[0] not in like for path in paths)
    }
  kept = _Without(state_dict, left_out)
  if callable(shardings):
    shardings = shardings(like)
  elif isinstance(shardings, Mapping):
    shardings = {head: shardings.get(head) for head in like}
  elif shardings is None:
    shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return table.to_tree(
    kept, like, dtype=config.param_dtype, shardings=shardings, strict=strict
  )


def _about_segments(error, state_dict, name):
  """The error, with a hint where a table of segments is what is too much."""
  if name not in error.unexpected:
    return error
  return weights.WeightMismatchError(
    error.missing,
    error.unexpected,
    error.misshaped,
    getattr(state_dict, 'path', 'The checkpoint'),
    f'Set type_vocab_size={np.shape(state_dict[name])[0]} in the config: it is'
    ' 0, and the checkpoint has a table of segments.',
  )


class _Without(Mapping):
  """A state dict without some names; reads nothing by itself."""

  def __init__(self, state_dict, left_out):
    self.path = getattr(state_dict, 'path', 'The checkpoint')
    self._state_dict = state_dict
    self._names = [name for name in state_dict if name not in left_out]

  def __getitem__(self, name):
    return self._state_dict[name]

  def __iter__(self):
    return iter(self._names)

  def __len__(self):
    return len(self._names)


def _read_config(path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise files.CorruptFileError(f'{path} is no JSON: {error}.') from error
  if not isinstance(content, dict):
    raise files.CorruptFileError(f'{path} is no JSON object.')
  return content


def _check_vocabulary(state, config, path) -> None:
  """Says in one line what would else be a list of shapes."""
  for name in state:
    if name.endswith(_WORDS):
      rows = np.shape(state[name])[0]
      if rows != config.vocab_size:
        raise ValueError(
          f'{path}: config.json has vocab_size {config.vocab_size}, but {name}'
          f' (encoder/token_embedding/embedding) has {rows} rows. Correct'
          ' config.json, or pass vocab_size.'
        )


def _fairseq_config(file, state, opaque, overrides) -> EncoderConfig:
  tree: Any = torch_files.TorchFile(file, opaque=opaque).tree
  tree = tree if isinstance(tree, dict) else {}
  settings = tree.get('args')
  if settings is None:
    cfg = pretrained_config.settings_of(tree.get('cfg'))
    settings = cfg.get('model')
  names = pretrained_names.fairseq_table(
    EncoderConfig(2, 1, 1, 1, 1, pad_id=0), None
  )
  shapes = {
    names.canonical(name): np.shape(state[name])
    for name in state
    if names.canonical(name) is not None
  }
  return pretrained_config.config_from_fairseq(settings, shapes, **overrides)
