r"""Fine-tunes RoBERTa on SQuAD, or answers a file of questions.

Examples:
  # SQuAD v1.1; the folder holds train-v1.1.json and dev-v1.1.json.
  python scripts/roberta_finetune_squad.py --model=roberta-base \
      --data=squad --workdir=squad1

  # v2.0, where a question may have no answer: a second head says so.
  python scripts/roberta_finetune_squad.py \
      --config=scripts/configs/roberta/finetune_squad.py:2.0 \
      --model=roberta-base --data=squad --workdir=squad2

  # Answers of the trained model to any file in SQuAD's format:
  python scripts/roberta_finetune_squad.py --config.evaluate_only \
      --model=squad1/model --data=. --config.dev_file=questions.json \
      --workdir=answers

Into --workdir go results.json (each seed, median, mean), dev.png, model/ and,
for each seed, metrics.jsonl and what the official script reads:
predictions.json and, of v2.0, na_prob.json; nbest.json has the runners-up. A
run that was stopped goes on where it was.

version 2.0 adds the classifier of answerable questions; a span is predicted if
the probability of no answer is at most na_threshold. doc_stride, n_best,
max_question_len and max_answer_len are BERT's; the paper names none.

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
from jaxpapers.roberta import (
  finetune_data,
  model,
  squad,
  squad_scores,
  tasks,
)

__doc__ += _roberta_finetuning.FIELDS

# Windows of the official training set are more: the passages overlap.
_QUESTIONS = {'1.1': 87599, '2.0': 130319}

_roberta_finetuning.define_flags('roberta/finetune_squad.py', 'roberta_squad')
flags.adopt_module_key_flags(_training_command_line)
flags.adopt_module_key_flags(_roberta_finetuning)


def make_job(config: ml_collections.ConfigDict) -> training.Job:
  """What a step is, without data; for scripts/compile_for_tpu.py."""
  config = _roberta_finetuning.with_flags(config)
  task = _task(config)
  base = _roberta_finetuning.load_base(config, task)
  return _roberta_finetuning.make_job(config, task, base)


def main() -> int:
  """Trains, measures, answers."""
  config = _roberta_finetuning.read_config()
  task = _task(config)
  questions = _load(config)
  base = _roberta_finetuning.load_base(config, task)
  if base.tokenizer is None:
    raise _command_line.UsageError(
      '--config.tokenizer is empty, and a random model has none. Give a folder'
    )
  features = _features(config, base, questions)
  examples = {
    name: finetune_data.TokenExamples(
      found.ids, found.fields, base.tokenizer.pad_id
    )
    for name, found in features.items()
  }
  run = _training_command_line.start()

  def answers(predictor, params):
    outputs = predictor(params, examples['dev'])
    return squad.squad_answers(
      questions['dev'],
      features['dev'],
      outputs['start'],
      outputs['end'],
      np.array(outputs['answerable']) if 'answerable' in outputs else None,
      n_best=config.n_best,
      max_answer_len=config.max_answer_len,
    )

  def evaluate(predictor, params):
    found = answers(predictor, params)
    scores = squad_scores.squad_metrics(
      questions['dev'], found.best, found.na_probs, config.na_threshold
    )
    return {name: float(value) for name, value in scores.items()}

  def finish(predictor, params, folder):
    found = answers(predictor, params)
    if run.first:
      squad.write_answers(epath.Path(folder), found, config.na_threshold)
    return {}

  return _roberta_finetuning_runs.run_task(
    run, task, base, examples.get('train'), evaluate, finish
  )


def _task(config) -> _roberta_finetuning.Task:
  version = str(config.version)
  if version not in _QUESTIONS:
    raise _command_line.UsageError(
      f'--config.version is {config.version!r}; expected 1.1 or 2.0'
    )
  answerable = version == '2.0'
  names = ('start', 'end') + ('answerable',) * answerable
  return _roberta_finetuning.Task(
    f'SQuAD {version}',
    'span',
    tasks.SQUAD_RECIPE,
    lambda encoder: model.RobertaForQuestionAnswering(
      encoder,
      answerable=answerable,
      head_dropout_rate=config.head_dropout,
    ),
    'f1',
    _QUESTIONS[version],
    {name: ((), jnp.int32) for name in names},
  )


def _load(config) -> dict[str, list[squad.SquadQuestion]]:
  if not config.data:
    raise _command_line.UsageError(
      f'--data is empty. Give the folder that has {config.dev_file}'
    )
  folder = epath.Path(config.data).expanduser()
  names = {'dev': config.dev_file}
  if not config.evaluate_only:
    names['train'] = config.train_file
  try:
    found = {name: squad.load_squad(folder / f) for name, f in names.items()}
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--data: {_command_line.one_line(error)}'
    ) from error
  if 'train' in found and str(config.version) == '1.1':
    empty = sum(not question.answers for question in found['train'])
    if empty:
      raise _command_line.UsageError(
        f'--data: {empty} questions of {config.train_file} have no answer:'
        ' this is v2.0. Use --config=scripts/configs/roberta/'
        'finetune_squad.py:2.0'
      )
  return found


def _features(config, base, questions) -> dict[str, squad.SquadFeatures]:
  try:
    features = {
      name: squad.squad_features(
        found,
        base.tokenizer,
        max_len=_roberta_finetuning.max_len(config, base.encoder),
        doc_stride=config.doc_stride,
        max_question_len=config.max_question_len,
      )
      for name, found in questions.items()
    }
  except ValueError as error:
    raise _command_line.UsageError(f'--config: {error}') from error
  for name, found in features.items():
    lost = f'; {len(found.lost)} answers are not in their passage'
    _training_command_line.say(
      f'{name}: {len(questions[name])} questions, {len(found)} windows'
      f'{lost if found.lost else ""}.'
    )
  return features


if __name__ == '__main__':
  _command_line.run(main)
