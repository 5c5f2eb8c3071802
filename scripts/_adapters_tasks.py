"""What the adapter programs share: base model, tasks as tokens, members."""

import dataclasses
from typing import Any

import _command_line
import jax.numpy as jnp
import numpy as np

from jaxpapers import adapters, roberta
from jaxpapers.adapters import data
from jaxpapers.nn import EncoderConfig
from jaxpapers.roberta import finetune_data, metrics, tasks


@dataclasses.dataclass(frozen=True)
class Problem:
  """A base model and a task, read.

  Attributes:
    encoder: Shape of the model.
    params: `{'encoder': ...}` of the base, None for random weights.
    tokenizer: Its vocabulary.
    splits: 'train', 'valid' and, unless it is GLUE, 'test'.
    classes: Names of the classes.
    metrics: Names of the task's metrics, the main one first.
  """

  encoder: EncoderConfig
  params: Any
  tokenizer: Any
  splits: dict[str, finetune_data.TokenExamples]
  classes: tuple[str, ...]
  metrics: tuple[str, ...]

  def majority(self, split: str) -> float:
    """Accuracy of the most frequent class of the training set."""
    train = self.splits['train'].fields['label']
    best = np.bincount(train, minlength=len(self.classes)).argmax()
    return float((self.splits[split].fields['label'] == best).mean())

  def scores(self, split: str, logits: np.ndarray) -> dict[str, float]:
    """The task's metrics of some logits."""
    labels = self.splits[split].fields['label']
    return metrics.compute(self.metrics, logits.argmax(-1), labels)


def load_base(config: Any) -> tuple[EncoderConfig, Any, Any]:
  """Shape, parameters and tokenizer of the base model.

  Raises:
    UsageError: If they cannot be read.
  """
  if not config.model:
    raise _command_line.UsageError(
      '--config.model is empty. Give the folder of a Hugging Face or fairseq'
      ' model, or WORKDIR/model of roberta_pretrain'
    )
  try:
    encoder, params = roberta.load_pretrained(
      config.model,
      heads=(),
      dtype=jnp.bfloat16 if config.bfloat16 else jnp.float32,
    )
    tokenizer = roberta.ByteLevelBPE.from_directory(
      config.tokenizer or config.model
    )
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.model: {" ".join(str(error).split())}'
    ) from error
  return encoder, None if config.random_weights else params, tokenizer


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
  try:
    if config.task in tasks.GLUE_TASKS:
      splits, classes, names = _load_glue(config, tokenizer, encoder)
    else:
      splits, classes, names = _load_texts(config, tokenizer, encoder)
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.data={config.data}: {" ".join(str(error).split())}'
    ) from error
  if config.train_examples:
    splits['train'] = splits['train'].first(config.train_examples)
  return Problem(encoder, params, tokenizer, splits, classes, names)


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
  return splits, task.classes, ('accuracy',)


def _read_texts(config) -> data.TextTask:
  if config.task in data.TASKS:
    return data.load_task_texts(config.data, config.task)
  return data.load_tsv(config.data, config.task)


def _load_glue(config, tokenizer, encoder):
  task = tasks.glue_task(config.task)
  if task.regression:
    raise ValueError(
      f'task {config.task} is a regression; use roberta_finetune'
    )
  splits = {}
  for name, split in (('train', 'train'), ('valid', task.dev_splits[0])):
    splits[name] = finetune_data.glue_examples(
      roberta.load_glue(config.data, config.task, split),
      tokenizer,
      max_len=max_len(config, encoder),
    )
  names = (task.main_metric, *task.metrics, 'accuracy')
  return splits, tuple(task.labels), tuple(dict.fromkeys(names))


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
  if fields.get('init_std', 0) < 0:
    del fields['init_std']
  try:
    return adapters.AdapterConfig.preset(preset, **fields)
  except (TypeError, ValueError) as error:
    raise _command_line.UsageError(f'--config.adapter: {error}') from error


def make_model(
  config: Any, encoder: EncoderConfig, num_labels: int
) -> roberta.RobertaForSequenceClassification:
  """The classifier of a config."""
  return roberta.RobertaForSequenceClassification(
    encoder,
    adapter=adapter_config(config),
    num_labels=num_labels,
    head_dropout_rate=config.head_dropout,
  )
