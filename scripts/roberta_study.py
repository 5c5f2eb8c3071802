r"""Static or dynamic masks, large batches, input formats: RoBERTa, section 4.

Examples:
  # New masks in every epoch against 10, and against a single one, of each
  # sequence; 3 seeds. Vocabulary and text as for roberta_pretrain.
  python scripts/roberta_study.py --study=masking --config.corpus=train \
      --config.valid=valid --workdir=masking

  # Batches of 8, 32 and 128 over equally much text, each with the best of
  # two learning rates; whole sentences, documents, or pairs of segments.
  python scripts/roberta_study.py --study=batch ...
  python scripts/roberta_study.py --study=format ...

  # That it runs, in seconds; the paper's sizes, on accelerators, with three
  # seeds in one program:
  CONFIG=scripts/configs/roberta/study.py
  python scripts/roberta_study.py --config=$CONFIG:smoke ...
  python scripts/roberta_study.py --config=$CONFIG:base --mesh=data:8 \
      --config.members_at_once=3 ...

All runs are measured by the loss of hidden tokens in the same held-out
sequences (full sentences, one fixed mask of each). A study that was stopped
goes on with the run that it was at.

Into --workdir go results.json, summary.csv, curves.png, points.png and a folder
for each run.

Other fields of a config than below: seeds; members_at_once (seeds that train in
one program, 0 for all; they then see the text in the same order); evaluations
(how many in a run); studies, each with settings that change fields, warmup as a
share of all steps, and epochs instead of num_steps or tokens_per_batch instead
of batch_size.

"""

import _command_line
import _roberta_pretraining
import _roberta_study
import _training_command_line
from absl import flags

from jaxpapers.roberta import pretraining_recipes

__doc__ += pretraining_recipes.FIELDS

_training_command_line.define_flags('roberta/study.py', 'roberta_study')
flags.adopt_module_key_flags(_training_command_line)
_STUDY = flags.DEFINE_enum(
  'study', 'masking', ['masking', 'batch', 'format'], 'What is compared.'
)


def main() -> int:
  """Trains every setting with every seed; writes tables and figures."""
  config = _training_command_line.read_config()
  if not config.corpus or not config.valid:
    raise _command_line.UsageError(
      '--config.corpus and --config.valid: give two folders that'
      ' roberta_tokenize wrote'
    )
  tokenizer = _roberta_pretraining.load_tokenizer(config)
  plans = _roberta_study.make_plans(config, _STUDY.value, tokenizer)
  held_out = _roberta_study.held_out(config, tokenizer)
  run = _roberta_pretraining.start(
    size for plan in plans for size in plan.text.batch_sizes
  )
  laboratory = _roberta_study.Laboratory(run, config, tokenizer, held_out)
  try:
    results = [laboratory.measure(plan) for plan in plans]
  except _roberta_study.Interrupted as stop:
    return run.exit_code(stop.result)
  if run.first:
    _roberta_study.write(run.workdir, _STUDY.value, results)
  return 0


if __name__ == '__main__':
  _command_line.run(main)
