r"""Trains a causal language model with product-key memories on any text.

Examples:
  # Bytes of a text, three layers, 16,384 slots; with and without the memory.
  python scripts/product_keys_train_lm.py --config.train=train.txt \
      --config.valid=valid.txt --workdir=memory
  python scripts/product_keys_train_lm.py --config.train=train.txt \
      --config.valid=valid.txt --config.memory_positions= --workdir=none

  # Ablations: no batch normalisation of queries, fewer heads, flat keys.
  python scripts/product_keys_train_lm.py --config.train=train.txt \
      --config.query_norm=none --workdir=no_norm
  python scripts/product_keys_train_lm.py --config.train=train.txt \
      --config.heads=1 --config.knn=64 --workdir=one_head

  # The paper's 12 layers on a pod; tables are split over the axis 'mem'.
  python scripts/product_keys_train_lm.py \
      --config=scripts/configs/product_keys/lm_paper.py --distributed \
      --config.train=gs://bucket/train.bpe --config.vocabulary=vocab.txt \
      --mesh=data:64,mem:4 --workdir=gs://bucket/memory

  # Does that step fit, and what does it cost? No TPU is needed.
  python scripts/compile_for_tpu.py --script=product_keys_train_lm \
      --config=scripts/configs/product_keys/lm_paper.py \
      --config.batch_size=64 --topology=v5e:4x4 --mesh=data:4,mem:4

A run that was stopped goes on where it was, tables and their moments included,
also on another mesh. Held-out losses are in nats per token, with the running
statistics of batch normalisation.

"""

import functools

import _command_line
import _training_command_line
import jax
import ml_collections
from absl import flags

from jaxpapers import training
from jaxpapers.product_keys import data, recipes

__doc__ += recipes.FIELDS

_training_command_line.define_flags(
  'product_keys/lm_tiny.py', 'product_keys_lm'
)
flags.adopt_module_key_flags(_training_command_line)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """What a step is, without text; for scripts/compile_for_tpu.py."""
  vocab_size, _, _ = data.tokenizer(config.vocabulary)
  return recipes.language_model_job(config, vocab_size)


def _read(config, name: str, read):
  paths = [path for path in getattr(config, name).split(',') if path]
  try:
    return read(paths)
  except (OSError, UnicodeDecodeError, ValueError) as error:
    raise _command_line.UsageError(f'--config.{name}: {error}') from error


def main() -> int:
  """Trains."""
  config = _training_command_line.read_config()
  if not config.train:
    raise _command_line.UsageError(
      '--config.train is empty; expected text files, with commas between them'
    )
  try:
    vocab_size, fill, read = data.tokenizer(config.vocabulary)
    job = recipes.language_model_job(config, vocab_size)
    job.abstract()
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(f'--config: {error}') from error
  text = _read(config, 'train', read)
  held_out = _read(config, 'valid', read) if config.valid else None
  run = _training_command_line.start()
  stream = functools.partial(
    data.StreamBatches,
    batch_size=config.batch_size,
    length=config.length,
    fill=fill,
    share=training.batch_share(run.mesh),
  )
  batches = stream(text, seed=config.seed)
  evaluations = []
  if held_out is not None:
    evaluations = [
      recipes.make_evaluation(
        config, vocab_size, lambda: stream(held_out), run.mesh
      )
    ]
  _training_command_line.say(
    f'{len(text)} tokens, {batches.steps_per_epoch} steps an epoch.'
  )
  try:
    result = training.fit(
      job.state(jax.random.key(config.seed), run.mesh),
      job.step(run.mesh),
      batches,
      num_steps=config.num_steps,
      workdir=run.workdir,
      mesh=run.mesh,
      evaluations=evaluations,
      log_every=config.log_every,
      checkpoint_every=config.checkpoint_every,
      console=run.console,
      examples_per_step=config.batch_size * config.length,
    )
  except training.NonFiniteLossError as error:
    raise _command_line.UsageError(str(error)) from error
  return run.exit_code(result)


if __name__ == '__main__':
  _command_line.run(main)
