r"""Pre-trains a RoBERTa on tokenised text; writes a Hugging Face folder.

Examples:
  # A tiny model on two processor cores, in minutes: a vocabulary, the text as
  # tokens, the model.
  python scripts/roberta_train_bpe.py --files=train.txt --vocab_size=2000 \
      --output=vocabulary
  python scripts/roberta_tokenize.py --tokenizer=vocabulary --files=train.txt \
      --output=train
  python scripts/roberta_tokenize.py --tokenizer=vocabulary --files=valid.txt \
      --output=valid
  python scripts/roberta_pretrain.py --config.corpus=train \
      --config.valid=valid --workdir=tiny

  # The paper's large model, 8192 x 512 tokens an update, on 256 chips; the same
  # command on every host. The corpus was tokenised with GPT-2's vocabulary.
  python scripts/roberta_pretrain.py \
      --config=scripts/configs/roberta/pretrain_large.py \
      --config.corpus=gs://bucket/books --mesh=data:16,fsdp:16 --distributed \
      --workdir=gs://bucket/large

  # Does that step fit, and what does it cost? No TPU is needed.
  python scripts/compile_for_tpu.py --script=roberta_pretrain \
      --config=scripts/configs/roberta/pretrain_large.py \
      --topology=v5e:16x16 --mesh=data:16,fsdp:16

Tokens are hidden on the device, inside the step: which ones depends on the
seed, the epoch and the sequence. Held-out text has fixed masks; its perplexity
is over all hidden tokens together. A run that was stopped goes on where it was,
to the same numbers.

Into --workdir go metrics.jsonl, TensorBoard files, checkpoints, config.json and
at the end model/: config.json, model.safetensors and the tokenizer's files, as
Hugging Face and the other roberta programs (--model=WORKDIR/model) read them.

"""

import _command_line
import _roberta_exchange
import _roberta_pretraining
import _training_command_line
import jax
import ml_collections
from absl import flags

from jaxpapers import training
from jaxpapers.roberta import pretraining_recipes

__doc__ += pretraining_recipes.FIELDS

_training_command_line.define_flags('roberta/pretrain_tiny.py', 'roberta')
flags.adopt_module_key_flags(_training_command_line)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """What a step is, without text; for scripts/compile_for_tpu.py."""
  tokenizer = _roberta_pretraining.load_tokenizer(config)
  encoder, initial = _roberta_exchange.load_initial(config) or (None, None)
  return _roberta_pretraining.make_problem(
    config,
    tokenizer,
    encoder=encoder,
    tie=_roberta_exchange.is_tied(initial),
  ).job


def main() -> int:
  """Trains, and exports."""
  config = _training_command_line.read_config()
  try:
    _roberta_pretraining.check(config)
  except ValueError as error:
    raise _command_line.UsageError(f'--config: {error}') from error
  tokenizer = _roberta_pretraining.load_tokenizer(config)
  text = _roberta_pretraining.open_text(
    config, 'corpus', tokenizer, most=config.max_blocks
  )
  for source, size in zip(text.sources, text.batch_sizes):
    if size > len(source):
      raise _command_line.UsageError(
        f'--config.batch_size: the corpus has {len(source)} sequences, fewer'
        f' than a batch of {size}'
      )
  valid = None
  if config.valid:
    valid = _roberta_pretraining.open_text(
      config, 'valid', tokenizer, most=config.valid_blocks
    )
  encoder, initial = _roberta_exchange.load_initial(config) or (None, None)
  problem = _roberta_pretraining.make_problem(
    config,
    tokenizer,
    encoder=encoder,
    tie=_roberta_exchange.is_tied(initial),
  )
  run = _roberta_pretraining.start(
    size // config.accumulate for size in text.batch_sizes
  )
  job = problem.job
  state = job.state(jax.random.key(config.seed), run.mesh)
  if initial is not None:
    state = _roberta_exchange.with_params(state, initial)
  batches = _roberta_pretraining.training_batches(text, run.mesh, config.seed)
  _training_command_line.say(
    f'{len(text)} sequences, {batches.steps_per_epoch} steps an epoch.'
  )
  evaluations = []
  if valid is not None:
    evaluations = [
      _roberta_pretraining.evaluation(problem, valid, config, run.mesh)
    ]
  try:
    result = training.fit(
      state,
      job.step(run.mesh),
      batches,
      num_steps=config.num_steps,
      workdir=run.workdir,
      mesh=run.mesh,
      evaluations=evaluations,
      log_every=config.log_every,
      checkpoint_every=config.checkpoint_every,
      console=run.console,
      examples_per_step=config.batch_size,
    )
  except training.NonFiniteLossError as error:
    raise _command_line.UsageError(str(error)) from error
  if result.finished:
    _roberta_exchange.export(
      run, problem, result.state.params, tokenizer, run.workdir / 'model'
    )
  return run.exit_code(result)


if __name__ == '__main__':
  _command_line.run(main)
