r"""Fine-tunes a RoBERTa on a task through adapters, or a part of its layers.

Examples:
  # A task of the paper (the folder holds SMSSpamCollection), adapters of 64,
  # three seeds in one program:
  python scripts/adapters_finetune.py --config.model=roberta-base \
      --config.data=~/data/crowdflower --config.task=sms_spam --workdir=spam

  # The authors' example, MRPC with adapters of 64:
  python scripts/adapters_finetune.py --config.model=bert-base-uncased \
      --config.data=~/data/glue --config.task=MRPC --config.epochs=5 \
      --config.adapter.preset=houlsby2019_code --config.head=linear \
      --workdir=mrpc

  # SQuAD v1.1 (train-v1.1.json, dev-v1.1.json) with the paper's setting:
  python scripts/adapters_finetune.py --config.model=roberta-base \
      --config=scripts/configs/adapters/squad.py --config.data=~/data/squad \
      --workdir=squad

  # The baselines: layer norms only, the top layer, the head, everything.
  python scripts/adapters_finetune.py --config.mode=top_k --config.k=1 \
      --config.model=roberta-base --config.data=~/data/crowdflower

Only adapters, layer norms and the head are trained, and only they have
gradients and optimizer state. A run that was stopped goes on where it was. What
a step needs of a TPU says compile_for_tpu --script=adapters_finetune.

Into --workdir go task_SEED.safetensors (what the task owns, for
adapters_ablate and adapters_serve_bank), results.json, config.json,
metrics.jsonl, TensorBoard files and checkpoints; and answers_SEED, what the
official script of SQuAD or GLUE's server (where the test files are there)
reads.

"""

import _adapters_evaluation
import _adapters_results
import _adapters_tasks
import _adapters_training
import _command_line
import _results
import _training_command_line
import ml_collections
from absl import flags

from jaxpapers import training
from jaxpapers.adapters import recipes

__doc__ += recipes.FIELDS

_training_command_line.define_flags('adapters/finetune.py', 'adapters_finetune')
flags.adopt_module_key_flags(_training_command_line)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """What a step is, without data; for scripts/compile_for_tpu.py."""
  return _adapters_training.make_job(config)


def main() -> int:
  """Trains, evaluates, writes."""
  config = _training_command_line.read_config()
  problem = _adapters_tasks.load_problem(config)
  run = _training_command_line.start()
  try:
    trained = _adapters_training.train(
      config, problem, workdir=run.workdir, mesh=run.mesh, console=run.console
    )
  except _adapters_training.Interrupted as stop:
    return run.exit_code(stop.result)
  rows = _adapters_evaluation.evaluate(
    trained, config, problem, folder=run.workdir
  )
  if run.first:
    _results.show(rows)
    for split in problem.measured:
      share = problem.majority(split)
      if share is not None:
        print(f'The most frequent class: {split} accuracy {share:.4f}.')
    _adapters_results.save_tasks(run.workdir, config, problem, trained, rows)
    _results.write_json(run.workdir / 'results.json', rows)
    print(f'Parameters of each seed are in {run.workdir}.')
  return 0


if __name__ == '__main__':
  _command_line.run(main)
