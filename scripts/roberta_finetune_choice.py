r"""Fine-tunes RoBERTa to choose: RACE, CommonsenseQA, WSC, WinoGrande.

Examples:
  # RACE/train/middle/*.txt and so on; table 10 of the paper.
  python scripts/roberta_finetune_choice.py --task=race --model=roberta-large \
      --data=RACE --config.bfloat16 --workdir=race

  # The same as fairseq's README has it:
  python scripts/roberta_finetune_choice.py --task=race --model=roberta-large \
      --data=RACE --config.recipe=race_fairseq --workdir=race_fairseq

  # CommonsenseQA: train_rand_split.jsonl, dev_rand_split.jsonl, ...
  python scripts/roberta_finetune_choice.py --task=csqa --model=roberta-large \
      --data=CSQA --seeds=1,2,3 --workdir=csqa

  # Winograd schemas, SuperGLUE's (train.jsonl, val.jsonl, test.jsonl) and
  # WinoGrande's (train_xl.jsonl, dev.jsonl, test.jsonl):
  python scripts/roberta_finetune_choice.py --task=wsc --model=roberta-large \
      --data=WSC --workdir=wsc
  python scripts/roberta_finetune_choice.py --task=winogrande \
      --model=roberta-large --data=winogrande_1.1 --workdir=winogrande

The last two have no new head: the masked language model itself scores the
phrases that a pronoun may stand for. For WSC these are the phrases that the
file asks about, and those under "candidates" in a row: fairseq takes noun
phrases found by spaCy, see jaxpapers.roberta.wsc.load_wsc. margin=(1.0, 0.0) is
the paper's loss instead of the code's.

Into --workdir go results.json (each seed, median, mean), dev.png, model/ and,
for each seed, metrics.jsonl and the answers to the test set. A run that was
stopped goes on where it was.

"""

import json

import _command_line
import _roberta_finetuning
import _roberta_finetuning_runs
import _training_command_line
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from jaxpapers import data, training
from jaxpapers.roberta import (
  choice,
  finetune_data,
  metrics,
  model,
  tasks,
  wsc,
)

__doc__ += _roberta_finetuning.FIELDS

# Options, and examples of the official training sets.
_CHOICES = {'race': 4, 'csqa': 5}
_SIZES = {'race': 87866, 'csqa': 9741, 'wsc': 259, 'winogrande': 40398}
# Shapes when there are no data: phrases of a sentence, tokens of a phrase.
_PHRASES, _TOKENS = 5, 8
_FILES = {
  'csqa': (
    'train_rand_split.jsonl',
    'dev_rand_split.jsonl',
    'test_rand_split_no_answers.jsonl',
  ),
  'wsc': ('train.jsonl', 'val.jsonl', 'test.jsonl'),
  'winogrande': ('train_{}.jsonl', 'dev.jsonl', 'test.jsonl'),
}

_roberta_finetuning.define_flags(
  'roberta/finetune_choice.py', 'roberta_choice', ', '.join(_SIZES)
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
  """Trains, measures, answers."""
  config = _roberta_finetuning.read_config()
  task = _task(config)
  splits = _load(config)
  base = _roberta_finetuning.load_base(config, task)
  if base.tokenizer is None:
    raise _command_line.UsageError(
      '--config.tokenizer is empty, and a random model has none. Give a folder'
    )
  longest = _roberta_finetuning.max_len(config, base.encoder)
  try:
    examples = {
      name: _encode(config, name, split, base.tokenizer, longest)
      for name, split in splits.items()
    }
  except ValueError as error:
    raise _command_line.UsageError(
      f'--data: {_command_line.one_line(error)}'
    ) from error
  run = _training_command_line.start()
  return _roberta_finetuning_runs.run_task(
    run,
    task,
    base,
    examples.get('train'),
    evaluate=lambda predictor, params: _evaluate(
      _answers(task, predictor, params, examples['dev']), splits['dev']
    ),
    finish=lambda predictor, params, folder: _finish(
      run, task, predictor, params, epath.Path(folder), splits, examples
    ),
  )


def _task(config) -> _roberta_finetuning.Task:
  name, margin = config.task, tuple(config.margin)
  if name not in _SIZES:
    raise _command_line.UsageError(
      f'--task is {name!r}; expected one of {", ".join(_SIZES)}'
    )
  recipe = tasks.CHOICE_RECIPES.get(config.recipe or name)
  if recipe is None:
    raise _command_line.UsageError(
      f'--config.recipe is {config.recipe!r}; expected one of'
      f' {", ".join(tasks.CHOICE_RECIPES)}'
    )
  if len(margin) not in (0, 2):
    raise _command_line.UsageError(
      f'--config.margin is {margin}; expected alpha and beta, or ()'
    )
  if name in _CHOICES:
    return _roberta_finetuning.Task(
      name,
      'choice',
      recipe,
      lambda encoder: model.RobertaForMultipleChoice(
        encoder, head_dropout_rate=config.head_dropout
      ),
      'accuracy',
      _SIZES[name],
      {'label': ((), jnp.int32)},
      _CHOICES[name],
    )
  phrases = 2 if name == 'winogrande' else _PHRASES
  tokens = (phrases, _TOKENS)
  return _roberta_finetuning.Task(
    name,
    'wsc',
    recipe,
    model.RobertaForMaskedLM,
    'accuracy',
    _SIZES[name],
    {
      'positions': (tokens, jnp.int32),
      'targets': (tokens, jnp.int32),
      'weights': (tokens, jnp.float32),
      'candidates': ((phrases - 1,), jnp.bool_),
    },
    phrases,
    heads=('lm_head',),
    margin=margin or None,
  )


def _load(config):
  """Split -> examples: dev, train unless nothing is trained, test if there."""
  if not config.data:
    raise _command_line.UsageError('--data is empty. Give the folder')
  folder = epath.Path(config.data).expanduser()
  try:
    splits = {'dev': _read(config, folder, 1)}
    if not config.evaluate_only:
      splits['train'] = _read(config, folder, 0)
    try:
      splits['test'] = _read(config, folder, 2)
    except FileNotFoundError:
      _training_command_line.say(f'{config.task} has no test set here.')
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(
      f'--data: {_command_line.one_line(error)}'
    ) from error
  for name in ('train', 'dev'):
    if any(example.label is None for example in splits.get(name, ())):
      raise _command_line.UsageError(f'--data: {name} has no labels')
  if config.task == 'wsc':
    for name, split in splits.items():
      _say_lone(name, split)
  if config.task in ('wsc', 'winogrande') and 'train' in splits:
    positive = wsc.positive_examples(splits['train'])
    if not positive:
      raise _command_line.UsageError(
        '--data: no example of train has candidates to compare with'
      )
    splits['train'] = positive
  return splits


def _say_lone(name, split) -> None:
  """Says how many sentences show nothing of what the model knows."""
  lone = sum(not example.candidates for example in split)
  if lone:
    what = 'nothing to learn' if name == 'train' else 'the query wins'
    _training_command_line.say(
      f'{name}: {lone} of {len(split)} rows have no candidates to compare the'
      f' query with: {what}.'
    )


def _read(config, folder, index):
  if config.task == 'race':
    return choice.load_race(folder, ('train', 'dev', 'test')[index])
  load = {
    'csqa': choice.load_csqa,
    'wsc': wsc.load_wsc,
    'winogrande': wsc.load_winogrande,
  }[config.task]
  name = _FILES[config.task][index].format(config.winogrande_size)
  return load(folder / name)


def _encode(config, name, split, tokenizer, longest):
  if config.task in _CHOICES:
    if config.task == 'race':
      ids = choice.encode_race(
        split,
        tokenizer,
        max_option_len=config.max_option_len,
        max_len=longest,
      )
    else:
      ids = choice.encode_csqa(split, tokenizer, max_len=longest)
    labels = choice.choice_labels(split)
    fields = {} if labels is None else {'label': labels}
  else:
    tokens = wsc.encode_wsc(
      split,
      tokenizer,
      # Fewer save memory in training, and would make a query win on dev.
      max_candidates=config.max_candidates if name == 'train' else None,
      max_len=longest,
    )
    ids, fields = tokens.ids, tokens.fields
  return finetune_data.TokenExamples(ids, fields, tokenizer.pad_id)


def _answers(task, predictor, params, examples) -> np.ndarray:
  """Numbers of the choices; of WSC whether the query wins."""
  outputs = predictor(params, examples)
  if task.kind == 'choice':
    return np.stack(outputs['logits']).argmax(-1)
  scores = np.stack(outputs['scores'])
  return wsc.query_wins(
    scores[:, 0], scores[:, 1:], examples.fields['candidates']
  )


def _evaluate(answers, split) -> dict[str, float]:
  labels = np.array([int(example.label) for example in split])
  answers = answers.astype(int)
  found = {'accuracy': metrics.accuracy(answers, labels)}
  for level in ('middle', 'high'):
    # RACE names its examples by their folder.
    chosen = [i for i, e in enumerate(split) if f'/{level}/' in e.index]
    if chosen:
      found[f'accuracy_{level}'] = metrics.accuracy(
        answers[chosen], labels[chosen]
      )
  return found


def _finish(run, task, predictor, params, folder, splits, examples):
  """Writes answers to the test set; its accuracy where it has labels."""
  split = splits.get('test')
  if split is None:
    return {}
  answers = _answers(task, predictor, params, examples['test'])
  lines = [
    json.dumps(_row(task.name, example, answer))
    for example, answer in zip(split, answers)
  ]
  if run.first:
    data.write_file(folder / 'test_predictions.jsonl', '\n'.join(lines) + '\n')
  if any(example.label is None for example in split):
    return {}
  return {'test': _evaluate(answers, split)}


def _row(name, example, answer):
  """An answer in the words of the data set."""
  if name == 'wsc':
    return {'idx': int(example.index), 'label': str(bool(answer))}
  if name == 'winogrande':
    return {'qID': example.index, 'answer': '1' if answer else '2'}
  return {'id': example.index, 'answer': 'ABCDE'[int(answer)]}


if __name__ == '__main__':
  _command_line.run(main)
