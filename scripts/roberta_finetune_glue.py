r"""Fine-tunes RoBERTa on a task of GLUE, by the published recipe.

Examples:
  # One command with Hugging Face's roberta-base (config.json,
  # model.safetensors, vocab.json, merges.txt) or fairseq's (model.pt, dict.txt,
  # encoder.json, vocab.bpe) on disk; GLUE has MRPC/train.tsv and so on.
  python scripts/roberta_finetune_glue.py --task=RTE --model=roberta-base \
      --data=GLUE --workdir=rte

  # The paper's median of five seeds; a fairseq config with another value.
  python scripts/roberta_finetune_glue.py --task=MRPC --model=roberta-base \
      --data=GLUE --seeds=1,2,3,4,5 --config.learning_rate=2e-5

  # As in the paper, RTE, STS-B and MRPC from the model of MNLI:
  python scripts/roberta_finetune_glue.py --task=RTE --model=mnli/model \
      --data=GLUE --workdir=rte_from_mnli

  # How good is a model that is fine-tuned already?
  python scripts/roberta_finetune_glue.py --task=MNLI \
      --model=roberta-large-mnli --data=GLUE --config.evaluate_only

After each epoch the dev set is measured; the best parameters answer the test
set. Into --workdir go results.json (each seed, median, mean), dev.png, model/
(the best seed's, as a Hugging Face folder) and, for each seed, metrics.jsonl,
its results and the files for GLUE's server. A run that was stopped goes on
where it was.

task is one of CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI. layout is
glue, or raw for files from before GLUE: see jaxpapers.roberta.load_glue.

"""

import _command_line
import _roberta_finetuning
import _roberta_finetuning_runs
import _training_command_line
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from jaxpapers import training
from jaxpapers.roberta import finetune_data, glue, metrics, model, tasks

__doc__ += _roberta_finetuning.FIELDS

# Rows of the official training sets.
_SIZES = {
  'CoLA': 8551,
  'SST-2': 67349,
  'MRPC': 3668,
  'STS-B': 5749,
  'QQP': 363846,
  'MNLI': 392702,
  'QNLI': 104743,
  'RTE': 2490,
  'WNLI': 635,
}

_roberta_finetuning.define_flags(
  'roberta/finetune_glue.py', 'roberta_glue', ', '.join(tasks.GLUE_TASKS)
)
flags.adopt_module_key_flags(_training_command_line)
flags.adopt_module_key_flags(_roberta_finetuning)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """What a step is, without data; for scripts/compile_for_tpu.py."""
  config = _roberta_finetuning.with_flags(config)
  task = _task(config)
  base = _roberta_finetuning.load_base(config, task)
  return _roberta_finetuning.make_job(config, task, base)


def main() -> int:
  """Trains, measures, predicts."""
  config = _roberta_finetuning.read_config()
  task = _task(config)
  splits = _load(config, task.kind)
  base = _roberta_finetuning.load_base(config, task)
  if base.tokenizer is None:
    raise _command_line.UsageError(
      '--config.tokenizer is empty, and a random model has none. Give a folder'
    )
  longest = _roberta_finetuning.max_len(config, base.encoder)
  examples = {
    name: finetune_data.glue_examples(split, base.tokenizer, max_len=longest)
    for name, split in splits.items()
  }
  run = _training_command_line.start()
  return _roberta_finetuning_runs.run_task(
    run,
    task,
    base,
    examples.get('train'),
    evaluate=lambda predictor, params: _evaluate(
      predictor, params, splits, examples
    ),
    finish=lambda predictor, params, folder: _finish(
      run, predictor, params, folder, splits, examples
    ),
  )


def _task(config) -> _roberta_finetuning.Task:
  try:
    task = tasks.glue_task(config.task)
  except ValueError as error:
    raise _command_line.UsageError(f'--task: {error}') from error
  dtype = jnp.float32 if task.regression else jnp.int32
  return _roberta_finetuning.Task(
    task.name,
    task,
    task.recipe,
    lambda encoder: model.RobertaForSequenceClassification(
      encoder,
      num_labels=task.num_outputs,
      head_dropout_rate=config.head_dropout,
    ),
    task.main_metric,
    _SIZES[task.name],
    {'label': ((), dtype)},
    labels=task.labels,
  )


def _load(config, task) -> dict[str, glue.GlueSplit]:
  """Splits that there are: train and dev have to be."""
  if not config.data:
    raise _command_line.UsageError(
      f'--data is empty. Give the folder that has {task.name}/'
    )
  splits = {}
  needed = list(task.dev_splits)
  if not config.evaluate_only:
    needed.append('train')
  try:
    for name in needed:
      splits[name] = glue.load_glue(
        config.data, task, name, layout=config.layout
      )
    for name in task.test_splits if config.layout == 'glue' else ():
      try:
        splits[name] = glue.load_glue(config.data, task, name)
      except FileNotFoundError:
        _training_command_line.say(f'{task.name} has no {name} here.')
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--data: {_command_line.one_line(error)}'
    ) from error
  return splits


def _evaluate(predictor, params, splits, examples) -> dict[str, float]:
  """Metrics of the dev set; of a second one with its name before them."""
  found = {}
  for index, name in enumerate(_dev(splits)):
    split = splits[name]
    values = metrics.compute(
      split.task.metrics,
      _predict(predictor, params, splits, examples, name),
      split.labels,
    )
    prefix = f'{name}_' if index else ''
    found |= {f'{prefix}{metric}': value for metric, value in values.items()}
  return found


def _dev(splits) -> list[str]:
  return [name for name in splits if name.startswith('dev')]


def _predict(predictor, params, splits, examples, name) -> np.ndarray:
  """Class numbers, or scores."""
  outputs = predictor(params, examples[name])
  if splits[name].task.regression:
    return np.stack(outputs['score'])
  return np.stack(outputs['logits']).argmax(-1)


def _finish(run, predictor, params, folder, splits, examples):
  """Writes what GLUE's server wants."""
  written = []
  for name, split in splits.items():
    if name in split.task.test_splits:
      predictions = _predict(predictor, params, splits, examples, name)
      if run.first:
        path = glue.write_submission(
          epath.Path(folder) / 'submission', split, predictions
        )
        written.append(path.name)
  return {'submission': written} if written else {}


if __name__ == '__main__':
  _command_line.run(main)
