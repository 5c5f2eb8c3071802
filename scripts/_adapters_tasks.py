"""What the adapter programs share: base model, tasks as tokens, members."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import _adapters_bert
import _adapters_squad
import _command_line
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxpapers import adapters, roberta
from jaxpapers.adapters import data, wordpiece
from jaxpapers.nn import EncoderConfig
from jaxpapers.roberta import finetune, finetune_data, glue, metrics, tasks

# Tensor parallelism splits the rows of the token table.
_VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class Goal:
  """What is asked of a model, without data.

  Attributes:
    kind: 'classification', 'regression' or 'span'.
    classes: Names of the classes; () unless they are to be told apart.
    metrics: Names of the task's metrics, the main one first.
    answerable: Of 'span': whether a question may have no answer.
  """

  kind: str
  classes: tuple[str, ...]
  metrics: tuple[str, ...]
  answerable: bool = False

  @property
  def num_outputs(self) -> int:
    """Width of the head of a sentence."""
    return len(self.classes) or 1


@dataclasses.dataclass(frozen=True)
class Problem:
  """A base model and a task, read.

  Attributes:
    encoder: Shape of the model.
    params: `{'encoder': ...}` of the base, None for random weights.
    tokenizer: Its vocabulary.
    goal: What is asked.
    splits: 'train', 'valid', of MNLI 'valid_mismatched' and, unless it is
      GLUE's or SQuAD, 'test'.
    sources: Split -> what the texts were: of SQuAD questions and windows, of
      GLUE's test sets, which have no labels, the `GlueSplit`.
  """

  encoder: EncoderConfig
  params: Any
  tokenizer: Any
  goal: Goal
  splits: dict[str, finetune_data.TokenExamples]
  sources: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def measured(self) -> list[str]:
    """Splits to measure on."""
    names = ('valid', 'valid_mismatched', 'test')
    return [
      # Test sets of GLUE have no labels.
      name
      for name in names
      if name in self.splits and self.splits[name].fields
    ]

  def majority(self, split: str) -> float | None:
    """Accuracy of the training set's most frequent class, None without."""
    if self.goal.kind != 'classification':
      return None
    train = self.splits['train'].fields['label']
    best = np.bincount(train, minlength=len(self.goal.classes)).argmax()
    return float((self.splits[split].fields['label'] == best).mean())

  def scores(
    self, split: str, outputs: Mapping[str, Any], config: Any
  ) -> dict[str, float]:
    """The task's metrics of outputs, as `finetune.predict_all` gives them."""
    if self.goal.kind == 'span':
      found = _adapters_squad.scores(self.sources[split], outputs, config)
    else:
      found = metrics.compute(
        self.goal.metrics,
        predictions(self.goal, outputs),
        self.splits[split].fields['label'],
      )
    return {name: float(found[name]) for name in self.goal.metrics}


def predictions(goal: Goal, outputs: Mapping[str, Any]) -> np.ndarray:
  """Class numbers, or scores of a regression."""
  if goal.kind == 'regression':
    return np.stack(outputs['score'])
  return np.stack(outputs['logits']).argmax(-1)


def load_base(config: Any) -> tuple[EncoderConfig, Any, Any]:
  """Shape, parameters and tokenizer of the base model.

  The tokenizer is None of a random model that has none.

  Raises:
    UsageError: If they cannot be read.
  """
  if not config.model:
    raise _command_line.UsageError(
      '--config.model is empty. Give the folder of a Hugging Face or fairseq'
      " model, or WORKDIR/model of roberta_pretrain; or 'random' for a new one"
    )
  try:
    return _load_base(config)
  except (OSError, TypeError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.model: {_command_line.one_line(error)}'
    ) from error


def _load_base(config):
  changes = {
    'dtype': jnp.bfloat16 if config.bfloat16 else jnp.float32,
    'attention_impl': config.attention_impl,
    'remat': config.remat,
    'scan_layers': config.scan_layers,
  }
  if 'tensor' in config.sharding:
    changes['vocab_multiple'] = _VOCAB_MULTIPLE
  for name in ('dropout', 'attention_dropout'):
    if config[name] >= 0:
      changes[f'{name}_rate'] = config[name]
  random = config.model == 'random'
  folder = config.tokenizer or ('' if random else config.model)
  tokenizer = folder and _load_tokenizer(epath.Path(folder).expanduser())
  if random:
    fields = dict(config.architecture) | changes
    if tokenizer:
      fields |= {
        'vocab_size': tokenizer.vocab_size,
        'pad_id': tokenizer.pad_id,
      }
    return EncoderConfig(**fields), None, tokenizer or None
  encoder, params = roberta.load_pretrained(
    epath.Path(config.model).expanduser(), heads=('pooler',), **changes
  )
  params = _adapters_bert.with_pooler(params, encoder)
  if tokenizer.vocab_size != encoder.vocab_size:
    raise ValueError(
      f'the tokenizer in {folder} has {tokenizer.vocab_size} ids, the model'
      f' {encoder.vocab_size}'
    )
  return encoder, None if config.random_weights else params, tokenizer


def _load_tokenizer(folder: epath.Path) -> Any:
  """BERT's vocabulary where there is one, else byte-level BPE."""
  if (folder / 'vocab.txt').exists():
    return wordpiece.WordPiece.from_directory(folder)
  return roberta.ByteLevelBPE.from_directory(folder)


def load_goal(config: Any) -> Goal:
  """What the task of a config asks; of a task of one's own this reads it.

  Raises:
    UsageError: If it cannot be read.
  """
  name = config.task
  if name in _adapters_squad.TASKS:
    return Goal(
      'span',
      (),
      ('f1', 'exact'),
      answerable=_adapters_squad.TASKS[name].answerable,
    )
  if name in tasks.GLUE_TASKS:
    task = tasks.glue_task(name)
    names = (task.main_metric, *task.metrics)
    if not task.regression:
      names += ('accuracy',)
    return Goal(
      finetune.kind_of(task), tuple(task.labels), tuple(dict.fromkeys(names))
    )
  if name in data.TASKS:
    return Goal('classification', data.classes_of(name), ('accuracy',))
  return Goal('classification', _read_texts(config).classes, ('accuracy',))


def load_problem(config: Any, base: Any = None) -> Problem:
  """Reads the base model and a task.

  Args:
    config: The config.
    base: What `load_base` returned, if it was read already.

  Raises:
    UsageError: If something cannot be read.
  """
  check(config)
  encoder, params, tokenizer = base or load_base(config)
  if tokenizer is None:
    raise _command_line.UsageError(
      '--config.tokenizer is empty, and a random model has none. Give a folder'
    )
  goal = load_goal(config)
  load = _load_texts
  if goal.kind == 'span':
    load = _load_squad
  elif config.task in tasks.GLUE_TASKS:
    load = _load_glue
  try:
    splits, sources = load(config, tokenizer, encoder)
    if goal.kind == 'classification':
      for examples in splits.values():
        if 'label' in examples.fields:
          data.check_labels(examples.fields['label'], len(goal.classes))
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.data={config.data}: {_command_line.one_line(error)}'
    ) from error
  if config.train_examples:
    splits['train'] = splits['train'].first(config.train_examples)
  return Problem(encoder, params, tokenizer, goal, splits, sources)


def max_len(config: Any, encoder: EncoderConfig) -> int:
  """Most tokens of an example."""
  return min(config.max_len, encoder.max_len)


def encode(texts, tokenizer, length) -> list[list[int]]:
  """Texts, or pairs of them, as ids."""
  return [
    # As BERT cuts: from the longer text, and </s> stays.
    tokenizer.encode_single(text, length, truncate='longest_first')
    if isinstance(text, str)
    else tokenizer.encode_pair(*text, length, truncate='longest_first')
    for text in texts
  ]


def _load_texts(config, tokenizer, encoder):
  task = _read_texts(config)
  parts = data.split_80_10_10(len(task), config.split_seed)
  length = max_len(config, encoder)
  splits = {}
  for name, rows in zip(('train', 'valid', 'test'), parts, strict=True):
    part = task.subset(rows)
    splits[name] = finetune_data.TokenExamples(
      encode(part.texts, tokenizer, length),
      {'label': part.labels},
      tokenizer.pad_id,
    )
  return splits, {}


def _read_texts(config) -> data.TextTask:
  try:
    if config.task in data.TASKS:
      return data.load_task_texts(config.data, config.task)
    return data.load_tsv(config.data, config.task)
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.data={config.data}: {_command_line.one_line(error)}'
    ) from error


def _load_glue(config, tokenizer, encoder):
  task = tasks.glue_task(config.task)
  names = dict(zip(('valid', 'valid_mismatched'), task.dev_splits))
  if config.layout == 'raw':
    names = {'valid': 'dev'}
  length = max_len(config, encoder)
  splits, sources = {}, {}
  for name, split in {'train': 'train', **names}.items():
    found = glue.load_glue(config.data, task, split, layout=config.layout)
    splits[name] = _glue_examples(found, tokenizer, length)
  for name in task.test_splits if config.layout == 'glue' else ():
    try:
      sources[name] = glue.load_glue(config.data, task, name)
    except FileNotFoundError:
      continue  # What the server measures need not be there.
    splits[name] = _glue_examples(sources[name], tokenizer, length)
  return splits, sources


def _glue_examples(split, tokenizer, length):
  texts = split.first
  if split.second is not None:
    texts = list(zip(split.first, split.second))
  fields = {} if split.labels is None else {'label': split.labels}
  return finetune_data.TokenExamples(
    encode(texts, tokenizer, length), fields, tokenizer.pad_id
  )


def _load_squad(config, tokenizer, encoder):
  sources = _adapters_squad.load(config, tokenizer, max_len(config, encoder))
  splits = {
    name: finetune_data.TokenExamples(
      windows.ids, windows.fields, tokenizer.pad_id
    )
    for name, (_, windows) in sources.items()
  }
  return splits, sources


def check(config: Any) -> None:
  """Raises UsageError for fields that make no sense."""
  for name, fine, wanted in (
    ('epochs', config.epochs >= 1, '1 or more'),
    ('batch_size', config.batch_size >= 1, '1 or more'),
    ('max_len', config.max_len >= 3, '3 or more'),
    ('train_examples', config.train_examples >= 0, '0 or more'),
    ('warmup', 0 <= config.warmup <= 1, 'from 0 to 1'),
    (
      'seeds',
      len(config.seeds) and len(set(config.seeds)) == len(config.seeds),
      'different numbers',
    ),
    (
      'mode',
      config.mode in ('adapter', 'layer_norm', 'top_k', 'head', 'full'),
      'adapter, layer_norm, top_k, head or full',
    ),
    (
      'frozen',
      config.frozen in ('float32', 'bfloat16', 'int8'),
      'float32, bfloat16 or int8',
    ),
    ('layout', config.layout in ('glue', 'raw'), 'glue or raw'),
  ):
    if not fine:
      raise _command_line.UsageError(
        f'--config.{name} is {config[name]!r}; expected {wanted}'
      )


def adapter_config(config: Any) -> adapters.AdapterConfig | None:
  """The adapters of a config, None in other modes.

  Raises:
    UsageError: If they are impossible.
  """
  if config.mode != 'adapter':
    return None
  fields = dict(config.adapter)
  preset = fields.pop('preset')
  sizes = fields.pop('layer_sizes', ())
  if sizes:
    fields['size'] = tuple(sizes)
  if fields.get('init_std', 0) < 0:
    del fields['init_std']
  try:
    return adapters.AdapterConfig.preset(preset, **fields)
  except (TypeError, ValueError) as error:
    raise _command_line.UsageError(f'--config.adapter: {error}') from error


def make_model(
  config: Any, encoder: EncoderConfig, goal: Goal, tokenizer: Any = None
) -> Any:
  """The model of a config: a head for what is asked.

  Args:
    config: The config.
    encoder: Shape of the model.
    goal: What is asked.
    tokenizer: Its vocabulary, for BERT's segments.
  """
  options = {
    'adapter': adapter_config(config),
    'head_dropout_rate': config.head_dropout,
  }
  return classifier(encoder, goal, tokenizer, **options)


def classifier(
  encoder: EncoderConfig, goal: Goal, tokenizer: Any, **options: Any
) -> Any:
  """A model with a head for what is asked, RoBERTa's or BERT's kind."""
  if goal.kind == 'span':
    made = roberta.RobertaForQuestionAnswering, {'answerable': goal.answerable}
  else:
    made = (
      roberta.RobertaForSequenceClassification,
      {'num_labels': goal.num_outputs},
    )
  make, own = made
  if _adapters_bert.is_bert(encoder):
    make = {
      roberta.RobertaForQuestionAnswering: (
        _adapters_bert.BertForQuestionAnswering
      ),
      roberta.RobertaForSequenceClassification: (
        _adapters_bert.BertForSequenceClassification
      ),
    }[make]
    if tokenizer is not None:
      own['sep_id'] = tokenizer.eos_id
  return make(encoder, **own, **options)
