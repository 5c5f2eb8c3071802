"""What the fine-tuning programs share: config, model and training step."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import _command_line
import _training_command_line
import jax
import jax.numpy as jnp
import ml_collections
from absl import flags
from etils import epath

from jaxpapers import training
from jaxpapers.nn import transformer
from jaxpapers.roberta import (
  bpe,
  finetune,
  finetune_data,
  pretrained,
  pretrained_config,
  sharding,
  tasks,
)
from jaxpapers.training import optimizers

FIELDS = """\
Fields of a config (change one by --config.FIELD=VALUE):
  model            Folder of a model, Hugging Face's or fairseq's, or of
                   roberta_pretrain (WORKDIR/model); or 'random'. --model.
  tokenizer        Folder of its vocabulary; by default the model's.
  architecture     Of 'random': fields of nn.transformer.EncoderConfig.
  random_weights   Use shape and vocabulary of the model, not its weights.
  data             Folder of the data. --data.
  seeds            One run from each, one after the other. --seeds=1,2,3.
  learning_rate, batch_size, weight_decay, warmup: -1 for the recipe's.
  updates, epochs  Duration; 0 for the recipe's.
  b2, eps, clip_norm, decay: of fairseq's Adam; decay is all or no_bias_ln.
  dropout, attention_dropout: -1 for the model's own.
  head_dropout     Of the new head; 0 in fairseq.
  max_len          Most tokens of an example; 0 for the model's.
  lengths          Lengths of batches, each of which compiles; () for steps of a
                   third to a half.
  train_examples   Use only the first so many; 0 for all.
  accumulate       Microbatches of an update.
  eval_batch_size  Examples of a batch of predictions.
  evaluate_every   Updates between two evaluations; 0 for an epoch.
  patience         Stop after so many evaluations that are no better; 0: never.
  evaluate_only    Train nothing; the model has to have the head.
  keep_head        Start from the model's head, too.
  export           Write the best model as a Hugging Face folder.
  bfloat16         Compute in bfloat16; parameters and optimizer stay float32.
  sharding         data, fsdp, tensor or fsdp+tensor; on axes of --mesh.
  attention_impl, remat, scan_layers: see nn.transformer.EncoderConfig.
  log_every        Updates between two rows of training numbers.\
"""


# Tensor parallelism splits the rows of the token table; what is exported has
# those of the vocabulary.
_VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class Task:
  """What is to be learned, without data.

  Attributes:
    name: For titles and files.
    kind: A task of GLUE, or one of `finetune.KINDS`.
    recipe: What the config leaves open.
    make_model: Maps an encoder's config to a model.
    main_metric: By which the best evaluation is chosen.
    num_examples: Size of the official training set.
    fields: Name -> shape after the batch, and dtype, of what a batch has
      besides ids and mask.
    choices: Texts of an example; 0 for one.
    heads: What is taken from the model besides its encoder.
    margin: See `wsc.wsc_loss`.
    labels: Names of the classes, in the order of the head's outputs.
  """

  name: str
  kind: Any
  recipe: tasks.Recipe
  make_model: Callable[[transformer.EncoderConfig], Any]
  main_metric: str
  num_examples: int
  fields: Mapping[str, tuple[tuple[int, ...], Any]]
  choices: int = 0
  heads: tuple[str, ...] = ()
  margin: tuple[float, float] | None = None
  labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Base:
  """What fine-tuning starts from.

  Attributes:
    encoder: Shape of the model.
    params: Its parameters, None for random ones.
    tokenizer: Its vocabulary; None if there is none.
  """

  encoder: transformer.EncoderConfig
  params: Any
  tokenizer: bpe.ByteLevelBPE | None


def define_flags(default_config: str, workdir: str, tasks_: str = '') -> None:
  """Defines the flags of a program; call before flags are parsed.

  Args:
    default_config: Config file, relative to `scripts/configs/`.
    workdir: Folder for results.
    tasks_: Names of tasks, where the program has several.
  """
  _training_command_line.define_flags(default_config, workdir)
  if tasks_:
    flags.DEFINE_string('task', None, f'Task: {tasks_}. As --config.task.')
  flags.DEFINE_string(
    'model',
    None,
    "Folder of a Hugging Face or fairseq model, or 'random'. As"
    ' --config.model.',
  )
  flags.DEFINE_string('data', None, 'Folder of the data. As --config.data.')
  flags.DEFINE_list('seeds', None, 'Seeds, as 1,2,3. As --config.seeds.')


def read_config() -> Any:
  """The config, with what the short flags say; checked.

  The flags are changed, so that config.json shows what was done.

  Raises:
    UsageError: If a field does not fit.
  """
  values = flags.FLAGS
  for name, value in _short_flags().items():
    values.config[name] = value
  config = _training_command_line.read_config()
  check(config)
  return config


def with_flags(config: Any) -> Any:
  """A config with what the short flags say, for scripts/compile_for_tpu.py.

  Raises:
    UsageError: If a field does not fit.
  """
  config = ml_collections.ConfigDict(config)
  if flags.FLAGS.is_parsed():
    for name, value in _short_flags().items():
      config[name] = value
  check(config)
  return ml_collections.FrozenConfigDict(config)


def _short_flags() -> dict[str, Any]:
  """Field -> value of the short flags that were given."""
  values = flags.FLAGS
  given = {
    name: values[name].value
    for name in ('task', 'model', 'data', 'seeds')
    if name in values and values[name].value is not None
  }
  if 'seeds' in given:
    try:
      given['seeds'] = tuple(int(seed) for seed in given['seeds'])
    except ValueError as error:
      raise _command_line.UsageError(
        f'--seeds is {",".join(given["seeds"])}; expected integers, as 1,2,3'
      ) from error
  return given


def check(config: Any) -> None:
  """Raises UsageError for fields that make no sense."""
  for name in ('updates', 'epochs', 'train_examples', 'patience'):
    if config[name] < 0:
      raise _command_line.UsageError(
        f'--config.{name} is {config[name]}; expected 0 or more'
      )
  for name in ('accumulate', 'eval_batch_size', 'log_every'):
    if config[name] < 1:
      raise _command_line.UsageError(
        f'--config.{name} is {config[name]}; expected 1 or more'
      )
  if not len(config.seeds) or len(set(config.seeds)) < len(config.seeds):
    raise _command_line.UsageError(
      f'--seeds: {tuple(config.seeds)}; expected different numbers'
    )


def load_base(config: Any, task: Task) -> Base:
  """Reads the model and its vocabulary.

  Raises:
    UsageError: If they cannot be read, or a field does not fit.
  """
  try:
    return _load_base(config, task)
  except (OSError, TypeError, ValueError) as error:
    raise _command_line.UsageError(
      f'--model: {_command_line.one_line(error)}'
    ) from error


def _load_base(config, task):
  if not config.model:
    raise ValueError(
      'it is empty. Give the folder of a Hugging Face or fairseq model, or'
      " 'random' for a new one"
    )
  changes = {
    'dtype': jnp.bfloat16 if config.bfloat16 else jnp.float32,
    'attention_impl': config.attention_impl,
    'padding': 'right',
    'remat': config.remat,
    'scan_layers': config.scan_layers,
  }
  if 'tensor' in config.sharding:
    # 50265 rows cannot be split over any even number of devices.
    changes['vocab_multiple'] = _VOCAB_MULTIPLE
  for name in ('dropout', 'attention_dropout'):
    if config[name] >= 0:
      changes[f'{name}_rate'] = config[name]
  tokenizer, params = None, None
  folder = config.tokenizer
  if config.model != 'random':
    folder = folder or config.model
  if folder:
    tokenizer = bpe.ByteLevelBPE.from_directory(epath.Path(folder).expanduser())
  if config.model == 'random':
    fields = config.architecture.to_dict() | changes
    if tokenizer is not None:
      fields |= {
        'vocab_size': tokenizer.vocab_size,
        'pad_id': tokenizer.pad_id,
      }
    encoder = transformer.EncoderConfig(**{'vocab_size': 50265} | fields)
  else:
    heads = None if _wants_head(config) else task.heads
    encoder, params = pretrained.load_pretrained(
      epath.Path(config.model).expanduser(), heads=heads, **changes
    )
    if tokenizer.vocab_size != encoder.vocab_size:
      raise ValueError(
        f'the tokenizer in {folder} has {tokenizer.vocab_size} ids, the model'
        f' {encoder.vocab_size}'
      )
  if config.random_weights:
    params = None
  if config.evaluate_only and params is None:
    raise ValueError('evaluate_only needs a trained model, and this is random')
  if params is not None:
    params = _fitting(params, encoder, task, config)
  return Base(encoder, params, tokenizer)


def _wants_head(config) -> bool:
  return config.keep_head or config.evaluate_only


def make_model(
  task: Task, encoder: transformer.EncoderConfig, params: Any
) -> Any:
  """The model of a task, its masked-LM head tied unless that of params is not.

  Args:
    task: The task.
    encoder: Shape of the model.
    params: What it starts from, None for random ones.

  Returns:
    The model.
  """
  found = task.make_model(encoder)
  if 'lm_head' not in task.heads:
    return found
  return found.clone(tie='decoder' not in (params or {}).get('lm_head', {}))


def _fitting(params, encoder, task, config):
  """The parts of a model that the task's has, too."""
  ids = jnp.zeros((1, *([task.choices] * bool(task.choices)), 4), jnp.int32)
  if task.kind == 'wsc':
    ids = ids[:, 0]
  model = make_model(task, encoder, params)
  wanted = jax.eval_shape(model.init, jax.random.key(0), ids)['params']
  lacking = sorted(set(wanted) - set(params))
  if _wants_head(config) and lacking:
    raise ValueError(
      f'{config.model} has no {", ".join(lacking)}; keep_head and evaluate_only'
      ' need a model that was fine-tuned'
    )
  if _wants_head(config) and task.labels:
    params = _in_our_order(params, config, task)
  return {name: params[name] for name in wanted if name in params}


def _in_our_order(params, config, task):
  """Parameters whose head has its outputs in the order of the task's labels."""
  outputs = len(params['classifier']['output']['bias'])
  if outputs != len(task.labels):
    raise ValueError(
      f'the head of {config.model} has {outputs} outputs; {task.name} has the'
      f' labels {", ".join(task.labels)}'
    )
  path = epath.Path(config.model).expanduser() / 'config.json'
  if not path.exists():  # fairseq's, which has no names.
    return params
  theirs = pretrained_config.labels_from_hf(json.loads(path.read_text()))
  order = pretrained_config.label_order(theirs, task.labels)
  if order is None:
    if theirs:
      _training_command_line.say(
        f'The labels of the model, {", ".join(theirs)}, are taken as'
        f' {", ".join(task.labels)}, in this order.'
      )
    return params
  output = jax.tree.map(
    lambda x: x[..., jnp.array(order)], params['classifier']['output']
  )
  return params | {'classifier': params['classifier'] | {'output': output}}


def max_len(config: Any, encoder: transformer.EncoderConfig) -> int:
  """Most tokens of an example.

  Raises:
    UsageError: If the model cannot take so many.
  """
  if not 0 <= config.max_len <= encoder.max_len:
    raise _command_line.UsageError(
      f'--config.max_len is {config.max_len}; the model takes at most'
      f' {encoder.max_len} tokens'
    )
  return config.max_len or encoder.max_len


def lengths(config: Any, encoder: transformer.EncoderConfig) -> tuple[int, ...]:
  """Lengths of batches, the last that of the longest example."""
  longest = max_len(config, encoder)
  chosen = tuple(config.lengths) or finetune_data.LENGTHS
  return (*(n for n in chosen if n < longest), longest)


def batch_size(config: Any, task: Task) -> int:
  """Examples of an update."""
  return task.recipe.batch_size if config.batch_size < 0 else config.batch_size


def num_updates(config: Any, task: Task, examples: int) -> int:
  """Duration."""
  per_epoch = -(-examples // batch_size(config, task))
  if config.updates:
    return config.updates
  if config.epochs:
    return config.epochs * per_epoch
  if task.recipe.num_updates is not None:
    return task.recipe.num_updates
  return task.recipe.num_epochs * per_epoch


def make_job(
  config: Any, task: Task, base: Base, examples: int | None = None
) -> training.Job:
  """The training step of a task.

  Args:
    config: See `FIELDS`.
    task: The task.
    base: The model.
    examples: Size of the training set; by default that of the official one.

  Returns:
    What can be trained, or compiled.

  Raises:
    UsageError: If a field does not fit.
  """
  try:
    return _make_job(config, task, base, examples or task.num_examples)
  except (TypeError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config: {_command_line.one_line(error)}'
    ) from error


def _make_job(config, task, base, examples):
  size, recipe = batch_size(config, task), task.recipe
  if size < 1 or size % config.accumulate:
    raise ValueError(
      f'batch_size is {size} and accumulate {config.accumulate}; expected a'
      ' positive multiple of it'
    )
  total = num_updates(config, task, examples)
  peak = config.learning_rate
  peak = recipe.learning_rate if peak < 0 else peak
  decay = config.weight_decay
  decay = recipe.weight_decay if decay < 0 else decay
  warmup = recipe.warmup(total) if config.warmup < 0 else config.warmup
  schedule = optimizers.polynomial_warmup_schedule(
    peak, warmup, total, end=0.0 if recipe.decay else peak
  )
  tx = optimizers.fairseq_adam(
    schedule,
    decay,
    config.decay,
    b2=config.b2,
    eps=config.eps,
    clip_norm=config.clip_norm or None,
  )
  model = make_model(task, base.encoder, base.params)
  longest = max_len(config, base.encoder)
  rows = (size, task.choices) if task.choices else (size,)
  batch = {
    'ids': jax.ShapeDtypeStruct((*rows, longest), jnp.int32),
    'mask': jax.ShapeDtypeStruct((size,), jnp.bool_),
  }
  for name, (shape, dtype) in task.fields.items():
    batch[name] = jax.ShapeDtypeStruct((size, *shape), dtype)

  def init(key):
    shape = (1, 8) if task.kind == 'wsc' else (1, *rows[1:], 8)
    return model.init(key, jnp.zeros(shape, jnp.int32))['params'], {}

  # Also gathers parameters where FSDP has spread them.
  return training.Job(
    init,
    finetune.make_finetune_loss(model, task.kind, margin=task.margin),
    tx,
    batch,
    rules=sharding.encoder_rules(config.sharding),
    accumulate=config.accumulate,
    compute_dtype=jnp.bfloat16 if config.bfloat16 else None,
    gather_axis='fsdp',
  )
