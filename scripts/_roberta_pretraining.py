"""What the pre-training programs share: from a config to text and step."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import _command_line
import _training_command_line
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from etils import epath

from jaxpapers import data, training
from jaxpapers.nn import transformer
from jaxpapers.roberta import (
  blocks,
  bpe,
  corpus,
  pretraining,
  pretraining_data,
  sharding,
)
from jaxpapers.roberta import model as model_lib
from jaxpapers.training import optimizers
from jaxpapers.training import sharding as sharding_lib

PAIRS = ('segment_pairs', 'sentence_pairs')
FORMATS = ('full', 'doc', 'stream', 'lines', *PAIRS)


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a config says, before there is text.

  Attributes:
    encoder: Shape of the model.
    model: The model with its masked-LM head.
    scheme: What is hidden.
    job: The training step.
    pairs: Whether the sequences are labelled pairs.
  """

  encoder: transformer.EncoderConfig
  model: Any
  scheme: pretraining.MaskingScheme
  job: training.Job
  pairs: bool


@dataclasses.dataclass(frozen=True)
class Text:
  """Sequences of a corpus.

  Attributes:
    sources: One for each length.
    batch_sizes: Sequences of a batch of each.
  """

  sources: list[Any]
  batch_sizes: list[int]

  def __len__(self) -> int:
    return sum(map(len, self.sources))


def load_tokenizer(config: Any) -> bpe.ByteLevelBPE | None:
  """The tokenizer of a config or its corpus, None where it names neither.

  Raises:
    UsageError: If it cannot be read, or does not fit the config.
  """
  name = 'tokenizer' if config.tokenizer else 'corpus'
  if not config[name]:
    return None
  folder = epath.Path(config[name]).expanduser()
  try:
    if name == 'tokenizer':
      tokenizer = bpe.ByteLevelBPE.from_directory(folder)
    else:
      tokenizer = corpus.TokenCorpus(folder).load_tokenizer()
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.{name}: {_command_line.one_line(error)}'
    ) from error
  for name, given, own in (
    ('vocab_size', config.vocab_size, tokenizer.vocab_size),
    ('mask_id', config.mask_id, tokenizer.mask_id),
  ):
    if given > (0 if name == 'vocab_size' else -1) and given != own:
      raise _command_line.UsageError(
        f'--config.{name} is {given}, the tokenizer in {folder} has'
        f' {own}. Use another tokenizer, or'
        f' --config.{name}={-1 if name == "mask_id" else 0} for its own'
      )
  return tokenizer


def make_problem(
  config: Any,
  tokenizer: bpe.ByteLevelBPE | None = None,
  *,
  encoder: transformer.EncoderConfig | None = None,
  tie: bool = True,
  own_masks: bool = False,
  population: int = 0,
) -> Problem:
  """Builds model, loss and optimizer of a config.

  Args:
    config: See `pretraining_recipes.FIELDS`.
    tokenizer: Of which the config takes sizes.
    encoder: Shape of the model, if it is that of a checkpoint.
    tie: Whether the output projection is the token table.
    own_masks: See `pretraining.make_init`.
    population: Number of members.

  Returns:
    What can be trained, or compiled.

  Raises:
    UsageError: If a field does not fit.
  """
  try:
    return _make_problem(config, tokenizer, encoder, tie, own_masks, population)
  except (TypeError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config: {_command_line.one_line(error)}'
    ) from error


def _make_problem(config, tokenizer, encoder, tie, own_masks, population):
  check(config)
  pairs = config.format in PAIRS
  vocab_size = config.vocab_size or (tokenizer and tokenizer.vocab_size)
  mask_id = config.mask_id
  if mask_id < 0 and tokenizer:
    mask_id = tokenizer.mask_id
  if not vocab_size or mask_id < 0:
    raise ValueError(
      f'vocab_size is {config.vocab_size} and mask_id {config.mask_id}, and'
      ' there is no tokenizer to take them from. Give tokenizer, or both.'
    )
  pad_id = tokenizer.pad_id if tokenizer else 1
  if encoder is None:
    encoder = transformer.EncoderConfig(
      vocab_size=vocab_size,
      pad_id=pad_id,
      type_vocab_size=2 if pairs else 0,
      dtype=dtype_of(config),
      **config.model.to_dict(),
    )
  _check_encoder(config, encoder, vocab_size, pad_id)
  model = model_lib.RobertaForMaskedLM(encoder, tie=tie, nsp=pairs)
  masking = config.masking
  word_starts = None
  if masking.whole_words:
    if tokenizer is None:
      raise ValueError('masking.whole_words is True; give tokenizer, too.')
    word_starts = tokenizer.word_start_mask()
  specials = ()
  if not masking.specials:
    if tokenizer is None:
      raise ValueError('masking.specials is False; give tokenizer, too.')
    specials = (tokenizer.bos_id, tokenizer.eos_id)
  scheme = pretraining.MaskingScheme(
    vocab_size,
    mask_id,
    pad_id,
    num_masks=masking.num_masks,
    mask_prob=masking.mask_prob,
    keep_prob=masking.keep_prob,
    random_prob=masking.random_prob,
    never=specials,
    word_starts=word_starts,
  )
  job = training.Job(
    pretraining.make_init(model, scheme, own_masks=own_masks),
    pretraining.make_pretrain_loss(model, scheme, seed=config.seed),
    make_optimizer(config),
    pretraining.abstract_batch(
      config.batch_size, config.block_size, pairs=pairs
    ),
    rules=sharding.encoder_rules(config.sharding),
    accumulate=config.accumulate,
    compute_dtype=jnp.bfloat16 if config.bfloat16 else None,
    population=population,
    gather_axis='fsdp',
  )
  return Problem(encoder, model, scheme, job, pairs)


def make_optimizer(config: Any) -> optax.GradientTransformation:
  """Adam and schedule as fairseq has them."""
  options = config.optimizer
  schedule = optimizers.polynomial_warmup_schedule(
    options.learning_rate,
    options.warmup_steps,
    config.num_steps,
    options.end_learning_rate,
    options.power,
  )
  return optimizers.fairseq_adam(
    schedule,
    options.weight_decay,
    options.decay,
    b1=options.b1,
    b2=options.b2,
    eps=options.eps,
    clip_norm=options.clip_norm or None,
  )


def check(config: Any) -> None:
  """Raises ValueError for fields that make no sense."""
  for name in ('batch_size', 'accumulate', 'num_steps', 'evaluate_every'):
    if config[name] < 1:
      raise ValueError(f'{name} is {config[name]}; expected 1 or more.')
  if config.format not in FORMATS:
    raise ValueError(
      f'format is {config.format!r}; expected one of {", ".join(FORMATS)}.'
    )
  if config.batch_size % config.accumulate:
    raise ValueError(
      f'batch_size is {config.batch_size}; accumulate, {config.accumulate},'
      ' does not divide it.'
    )
  if config.max_blocks < 0:
    raise ValueError(f'max_blocks is {config.max_blocks}; expected 0 or more.')
  buckets = tuple(config.buckets)
  if buckets:
    if config.format != 'doc':
      raise ValueError(
        f'buckets is {buckets} and format {config.format!r}; only doc has'
        ' sequences of many lengths.'
      )
    if list(buckets) != sorted(set(buckets)) or buckets[-1] != (
      config.block_size
    ):
      raise ValueError(
        f'buckets is {buckets}; expected growing lengths of which the last is'
        f' block_size, {config.block_size}.'
      )


def _check_encoder(config, encoder, vocab_size, pad_id) -> None:
  if not 2 <= config.block_size <= encoder.max_len:
    raise ValueError(
      f'block_size is {config.block_size}; expected 2 to the length of the'
      f' model, {encoder.max_len}.'
    )
  if (encoder.vocab_size, encoder.pad_id) != (vocab_size, pad_id):
    raise ValueError(
      f'init_from has a vocabulary of {encoder.vocab_size} with padding'
      f' {encoder.pad_id}; the tokenizer has {vocab_size} and {pad_id}.'
    )
  if config.format in PAIRS and encoder.type_vocab_size < 2:
    raise ValueError(
      f'format is {config.format!r}, which needs a model of two segments;'
      f' init_from has type_vocab_size {encoder.type_vocab_size}.'
    )


def dtype_of(config: Any) -> Any:
  """Type of the computation."""
  return jnp.bfloat16 if config.bfloat16 else jnp.float32


def open_text(
  config: Any,
  name: str,
  tokenizer: bpe.ByteLevelBPE,
  *,
  format: str = '',
  most: int = 0,
) -> Text:
  """Sequences of the corpus that a field of the config names.

  Args:
    config: See `pretraining_recipes.FIELDS`.
    name: 'corpus' or 'valid'.
    tokenizer: The one with which it was tokenised.
    format: Instead of the config's.
    most: How many sequences, evenly spread; 0 for all.

  Returns:
    The sequences.

  Raises:
    UsageError: If there is no such corpus, or it does not fit.
  """
  folder = config[name]
  if not folder:
    raise _command_line.UsageError(
      f'--config.{name} is empty. Give a folder that roberta_tokenize wrote'
    )
  try:
    return _open_text(config, folder, tokenizer, format or config.format, most)
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--config.{name}: {_command_line.one_line(error)}'
    ) from error


def _open_text(config, folder, tokenizer, format, most):
  source = blocks.BlockSource(
    corpus.TokenCorpus(folder), format, config.block_size, seed=config.seed
  )
  for name in ('vocab_size', 'pad_id', 'mask_id'):
    own = getattr(source.corpus, name)
    if own != getattr(tokenizer, name):
      raise ValueError(
        f'{folder} was tokenised with {name} {own}, the tokenizer has'
        f' {getattr(tokenizer, name)}. Tokenize again with the same one.'
      )
  size = config.batch_size
  if not config.buckets or format != 'doc':
    return Text([_some(source, most)], [size])
  sources = source.buckets(tuple(config.buckets))
  # As many tokens in every batch, whatever the length.
  sizes = [
    size
    * config.block_size
    // part.block_size
    // config.accumulate
    * config.accumulate
    for part in sources
  ]
  return Text(
    [_some(part, -(-most * len(part) // len(source))) for part in sources],
    sizes,
  )


def _some(source, most):
  if not most or most >= len(source):
    return source
  indices = np.linspace(0, len(source) - 1, most).round().astype(np.int64)
  return data.Subset(source, indices)


def start(sizes: Iterable[int]) -> _training_command_line.Run:
  """Makes mesh and folder, for batches that fit the mesh.

  Args:
    sizes: Sequences of a microbatch, of each kind of batch.

  Returns:
    What the program needs.

  Raises:
    UsageError: If a flag does not fit, or the devices cannot share a batch.
  """
  path = epath.Path(flags.FLAGS.workdir).expanduser() / 'config.json'
  before = path.exists()
  run = _training_command_line.start()
  parts = math.prod(
    size
    for name, size in run.mesh.shape.items()
    if name in sharding_lib.BATCH_AXES
  )
  unfit = next((size for size in sizes if size % parts or not size), None)
  if unfit is not None:
    if run.first and not before:
      path.unlink(missing_ok=True)
      if not list(path.parent.iterdir()):
        path.parent.rmdir()
    raise _command_line.UsageError(
      f'--mesh={flags.FLAGS.mesh}: a microbatch has {unfit} sequences'
      f' (batch_size / accumulate), which {parts} devices cannot share evenly.'
      f' Choose a multiple of {parts}, or fewer devices for it: --mesh=data:1'
    )
  return run


def evaluation(
  problem: Problem, text: Text, config: Any, mesh: Any, name: str = 'valid'
) -> training.Evaluation:
  """Measures held-out text now and then.

  Args:
    problem: What is trained.
    text: The held-out sequences.
    config: See `pretraining_recipes.FIELDS`.
    mesh: Where the model lies.
    name: Of the split.

  Returns:
    For `training.fit`.
  """
  many = bool(problem.job.population)
  eval_step = training.make_eval_step(
    pretraining.make_held_out_metrics(problem.model, problem.scheme),
    mesh=mesh,
    population=many,
  )
  index, count = training.batch_share(mesh)

  def measure(state):
    batches = pretraining_data.held_out_batches(
      text.sources,
      [size // config.accumulate for size in text.batch_sizes],
      process_index=index,
      process_count=count,
    )
    return pretraining.with_perplexity(
      training.evaluate(state, eval_step, batches, mesh=mesh)
    )

  return training.Evaluation(
    name, measure, every=config.evaluate_every, at_start=True, at_end=True
  )


def training_batches(text: Text, mesh: Any, seed: int):
  """This process's share of endless batches of a corpus."""
  index, count = training.batch_share(mesh)
  return pretraining_data.training_batches(
    text.sources,
    text.batch_sizes,
    seed=seed,
    process_index=index,
    process_count=count,
  )
