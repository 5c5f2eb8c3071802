"""config.json of Hugging Face and fairseq's arguments, as an EncoderConfig."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxpapers.nn.encoder_config import EncoderConfig
from jaxpapers.weights import Opaque

# What the classes there assume where config.json says nothing.
_ROBERTA = {
  'vocab_size': 50265,
  'hidden_size': 768,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'intermediate_size': 3072,
  'hidden_act': 'gelu',
  'hidden_dropout_prob': 0.1,
  'attention_probs_dropout_prob': 0.1,
  'max_position_embeddings': 512,
  'type_vocab_size': 2,
  'initializer_range': 0.02,
  # Not the 1e-5 of the released models, which say so.
  'layer_norm_eps': 1e-12,
  'pad_token_id': 1,
}
_DEFAULTS = {
  'roberta': _ROBERTA,
  'xlm-roberta': _ROBERTA,
  'camembert': _ROBERTA,
  'bert': {**_ROBERTA, 'vocab_size': 30522, 'pad_token_id': 0},
}
_GELU = {
  'gelu': 'erf',
  'gelu_python': 'erf',
  'gelu_new': 'tanh',
  'gelu_pytorch_tanh': 'tanh',
  # fairseq's.
  'gelu_accurate': 'tanh',
  'gelu_fast': 'tanh',
}
# Ours, which is written where theirs cannot say what ours does.
OWN_TYPE = 'jaxpapers-encoder'
# What belongs to a run and not to a model.
_RUN = (
  'attention_impl',
  'dropout_bits',
  'dtype',
  'padding',
  'param_dtype',
  'remat',
  'scan_layers',
  'vocab_multiple',
)


def config_from_hf(
  config: Mapping[str, Any], **overrides: Any
) -> EncoderConfig:
  """The encoder that a config.json describes.

  Args:
    config: Its content; a model of type roberta, xlm-roberta, camembert or
      bert, or one that `config_to_hf` wrote.
    **overrides: Fields of `EncoderConfig` to set otherwise: `dtype`,
      `scan_layers`, rates of dropout.

  Returns:
    The config.

  Raises:
    ValueError: The model is of another type or has something that this encoder
      does not; the message names it.

  Example:
    >>> config_from_hf({'model_type': 'bert', 'hidden_act': 'gelu'}).gelu
    'erf'
  """
  kind = config.get('model_type')
  own = config.get('jaxpapers', {})
  if kind == 'roberta-prelayernorm':
    raise ValueError(
      "model_type is 'roberta-prelayernorm', which normalises the embeddings,"
      " too; this encoder does not with norm='pre'."
    )
  if kind not in (*_DEFAULTS, OWN_TYPE):
    raise ValueError(
      f'model_type is {kind!r}; expected one of {", ".join(_DEFAULTS)}.'
    )
  values = {**_DEFAULTS.get(kind, _ROBERTA), **config}
  if values.get('position_embedding_type', 'absolute') != 'absolute':
    raise ValueError(
      f'position_embedding_type is {values["position_embedding_type"]!r};'
      " expected 'absolute'."
    )
  offset = 0 if kind == 'bert' else 'pad'
  pad_id = values['pad_token_id'] or 0
  fields = {
    'vocab_size': values['vocab_size'],
    'hidden_size': values['hidden_size'],
    'num_layers': values['num_hidden_layers'],
    'num_heads': values['num_attention_heads'],
    'mlp_dim': values['intermediate_size'],
    'max_len': values['max_position_embeddings']
    - (pad_id + 1 if offset == 'pad' else 0),
    'pad_id': pad_id,
    'position_offset': offset,
    'type_vocab_size': values['type_vocab_size'],
    'layer_norm_eps': values['layer_norm_eps'],
    'gelu': _gelu(values['hidden_act'], 'hidden_act'),
    'dropout_rate': values['hidden_dropout_prob'],
    'attention_dropout_rate': values['attention_probs_dropout_prob'],
    'initializer_range': values['initializer_range'],
    'causal': bool(values.get('is_decoder', False)),
  }
  return EncoderConfig(**{**fields, **own, **overrides})


def config_to_hf(
  config: EncoderConfig,
  params: Mapping[str, Any] | None = None,
  *,
  labels: Sequence[str] = (),
  head_dropout_rate: float | None = None,
) -> dict[str, Any]:
  """The content of config.json for an encoder.

  Args:
    config: The encoder's.
    params: Its parameters: they say which heads there are.
    labels: Names of the classes, in the order of the head's outputs; () for
      LABEL_0 and so on.
    head_dropout_rate: Of the head; None if it is the encoder's.

  Returns:
    A dictionary for JSON: model type bert if positions start at 0, roberta if
    they follow the padding. What Hugging Face has no word for is under the key
    'jaxpapers', and the model type is then one that it refuses, unless it is
    about training alone.

  Raises:
    ValueError: If there are not as many labels as outputs.
  """
  params = params or {}
  kind = 'bert' if config.position_offset == 0 else 'roberta'
  hf = {
    'architectures': [_architecture(kind, params)],
    'model_type': kind,
    'vocab_size': config.vocab_size,
    'hidden_size': config.hidden_size,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'intermediate_size': config.mlp_dim,
    'hidden_act': {'erf': 'gelu', 'tanh': 'gelu_new'}[config.gelu],
    'hidden_dropout_prob': config.dropout_rate,
    'attention_probs_dropout_prob': config.attention_dropout_rate,
    'max_position_embeddings': config.position_rows,
    # Their models always have a table; ours is then a row of zeros.
    'type_vocab_size': config.type_vocab_size or 1,
    'initializer_range': config.initializer_range,
    'layer_norm_eps': config.layer_norm_eps,
    'pad_token_id': config.pad_id,
    'is_decoder': config.causal,
    'tie_word_embeddings': 'decoder' not in params.get('lm_head', {}),
    'torch_dtype': jnp.dtype(config.param_dtype).name,
  }
  if kind == 'roberta':
    # Their order in every vocabulary of fairseq and of ours.
    hf.update(bos_token_id=0, eos_token_id=2)
  outputs = _num_labels(params)
  if labels and len(labels) != outputs:
    raise ValueError(
      f'labels are {", ".join(labels)}; expected {outputs or "none"}: the'
      ' outputs of the head.'
    )
  if outputs is not None:
    names = labels or [f'LABEL_{i}' for i in range(outputs)]
    hf['id2label'] = {str(i): name for i, name in enumerate(names)}
    hf['label2id'] = {name: i for i, name in enumerate(names)}
    if outputs == 1:
      hf['problem_type'] = 'regression'
  if head_dropout_rate is not None:
    hf['classifier_dropout'] = head_dropout_rate
  understood = dataclasses.asdict(config_from_hf(hf))
  own = {
    name: value
    for name, value in dataclasses.asdict(config).items()
    if name not in _RUN and understood[name] != value
  }
  if own:
    hf['jaxpapers'] = own
  training = {'activation_dropout_rate', 'initializer', 'type_vocab_size'}
  other_head = 'output' if kind == 'roberta' else 'classifier'
  if own.keys() - training or other_head in params:
    hf['model_type'] = OWN_TYPE
    # Their meaning of a type that they do not know is no help.
    own['position_offset'] = config.position_offset
    hf['jaxpapers'] = {**own, 'max_len': config.max_len}
  return hf


def labels_from_hf(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Names of the classes in a config.json, in the order of the outputs.

  Args:
    config: Its content.

  Returns:
    The names; () if it gives none or only LABEL_0 and so on.

  Raises:
    ValueError: If `id2label` is damaged.

  Example:
    >>> labels_from_hf({'id2label': {'1': 'yes', '0': 'no'}})
    ('no', 'yes')
  """
  found = config.get('id2label') or {}
  try:
    names = {int(index): str(name) for index, name in found.items()}
    labels = tuple(names[index] for index in range(len(names)))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f'id2label is {found!r}; expected a name for each of 0, 1, ...'
    ) from error
  return () if all(re.fullmatch(r'LABEL_\d+', n) for n in labels) else labels


def label_order(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
  """Which outputs of somebody's head are the classes, in our order.

  Upper case, blanks, hyphens and underscores make no difference.

  Args:
    theirs: Names of the outputs, of `labels_from_hf`.
    ours: Names of the classes.

  Returns:
    Indices of outputs, or None if theirs are other words, or none.

  Raises:
    ValueError: If there are not as many, or only some are the same.

  Example:
    >>> label_order(('YES', 'NO'), ('no', 'yes'))
    [1, 0]
  """
  if not theirs:
    return None
  plain = [
    [re.sub(r'[\s_-]', '', name.lower()) for name in names]
    for names in (theirs, ours)
  ]
  shared = set(plain[0]) & set(plain[1])
  if len(theirs) != len(ours) or len(shared) not in (0, len(ours)):
    raise ValueError(
      f'the labels of the model are {", ".join(theirs)}; expected'
      f' {", ".join(ours)}, in any order.'
    )
  return [plain[0].index(name) for name in plain[1]] if shared else None


def config_from_fairseq(
  args: Any, shapes: Mapping[str, tuple[int, ...]], **overrides: Any
) -> EncoderConfig:
  """The encoder of a fairseq checkpoint.

  Args:
    args: Its `args` or `cfg['model']`, as `weights.read_torch` gives it, or
      None. Sizes are those of the weights whatever it says.
    shapes: Shape of each weight under fairseq's names of today.
    **overrides: Fields of `EncoderConfig` to set otherwise. `num_heads` has to
      be given if `args` does not say it.

  Returns:
    The config.

  Raises:
    ValueError: The weights are not those of RoBERTa, or the number of heads is
      not known.
  """
  settings = settings_of(args)
  before = 'encoder.sentence_encoder.'
  try:
    vocab_size, hidden_size = shapes[f'{before}embed_tokens.weight']
    position_rows = shapes[f'{before}embed_positions.weight'][0]
    mlp_dim = shapes[f'{before}layers.0.fc1.weight'][0]
  except KeyError as error:
    raise ValueError(
      f'the checkpoint lacks {error}: not a RoBERTa of fairseq.'
    ) from None
  heads = settings.get('encoder_attention_heads')
  if heads is None and 'num_heads' not in overrides:
    raise ValueError(
      'the checkpoint does not say how many attention heads it has; give'
      ' num_heads (12 for base, 16 for large).'
    )
  pad_id = 1  # Fixed by the order of fairseq's special symbols.
  segments = shapes.get(f'{before}segment_embeddings.weight', (0,))[0]
  fields = {
    'vocab_size': vocab_size,
    'hidden_size': hidden_size,
    'num_layers': 1
    + max(int(n.split('.')[3]) for n in shapes if '.layers.' in n),
    'num_heads': heads,
    'mlp_dim': mlp_dim,
    'max_len': position_rows - pad_id - 1,
    'type_vocab_size': segments,
    'norm': 'pre' if f'{before}layer_norm.weight' in shapes else 'post',
    'gelu': _gelu(settings.get('activation_fn', 'gelu'), 'activation_fn'),
    'dropout_rate': settings.get('dropout', 0.1),
    'attention_dropout_rate': settings.get('attention_dropout', 0.1),
    'activation_dropout_rate': settings.get('activation_dropout', 0.0),
  }
  return EncoderConfig(**{**fields, **overrides})


def settings_of(value: Any) -> dict[str, Any]:
  """Settings saved by argparse or omegaconf, as a dictionary.

  Args:
    value: A dictionary, an `Opaque` namespace, or None.

  Returns:
    Name -> value.
  """
  if isinstance(value, Opaque):
    state = value.state if isinstance(value.state, dict) else {}
    # omegaconf keeps the entries in _content, each in a node with _val.
    value = _plain(state['_content']) if '_content' in state else state
  return dict(value) if isinstance(value, Mapping) else {}


def _plain(x: Any) -> Any:
  if isinstance(x, Opaque) and isinstance(x.state, dict):
    return _plain(x.state.get('_content', x.state.get('_val')))
  if isinstance(x, Mapping):
    return {name: _plain(value) for name, value in x.items()}
  return x


def _gelu(name: str, argument: str) -> str:
  if name not in _GELU:
    raise ValueError(
      f'{argument} is {name!r}; expected one of {", ".join(_GELU)}.'
    )
  return _GELU[name]


def _num_labels(params: Mapping[str, Any]) -> int | None:
  head = params.get('classifier', params)
  if 'output' not in head:
    return None
  return head['output']['bias'].shape[0]


def _architecture(kind: str, params: Mapping[str, Any]) -> str:
  name = {'roberta': 'Roberta', 'bert': 'Bert'}[kind]
  for heads, what in (
    (('lm_head',), 'ForMaskedLM'),
    (('choice',), 'ForMultipleChoice'),
    (('qa',), 'ForQuestionAnswering'),
    (('classifier', 'output'), 'ForSequenceClassification'),
  ):
    if any(head in params for head in heads):
      return name + what
  return f'{name}Model'
