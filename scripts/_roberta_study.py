"""Runs of a study of pre-training, and what is written of them."""

import csv
import dataclasses
import io
import json
from typing import Any

import _command_line
import _roberta_pretraining
import _training_command_line
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from jaxpapers import data, training
from jaxpapers.roberta import figures, pretraining, pretraining_data

# What a setting may say that is no field of a config.
_OWN = ('epochs', 'warmup', 'tokens_per_batch', 'settings', 'learning_rates')


class Interrupted(Exception):
  """SIGTERM came; `result` is what `training.fit` returned."""

  def __init__(self, result: training.FitResult):
    super().__init__(result.message)
    self.result = result


@dataclasses.dataclass(frozen=True)
class Plan:
  """One setting of a study.

  Attributes:
    name: Its name.
    config: Its config.
    learning_rates: Peaks of which the best for the first seed is taken.
    text: The training sequences.
    tokens: Tokens of an update that are no padding, on average.
    entropy: Unigram entropy of the training sequences in nats.
  """

  name: str
  config: Any
  learning_rates: tuple[float, ...]
  text: _roberta_pretraining.Text
  tokens: float
  entropy: float


@dataclasses.dataclass(frozen=True)
class Result:
  """What a setting gave.

  Attributes:
    plan: The setting.
    learning_rate: The peak that was taken.
    tuning: Peak -> final held-out loss of the first seed.
    curves: 'valid_step' [n], 'valid_loss', 'valid_accuracy' [seeds, n] and the
      same of 'train' and 'own' (held-out text in the setting's format).
  """

  plan: Plan
  learning_rate: float
  tuning: dict[float, float]
  curves: dict[str, np.ndarray]


def make_plans(config: Any, study: str, tokenizer: Any) -> list[Plan]:
  """The settings of a study.

  Raises:
    UsageError: If a field does not fit.
  """
  if study not in config.get('studies', ()):
    raise _command_line.UsageError(
      f'--config has no study {study!r}; expected one like roberta/study.py'
    )
  plans = [
    _make_plan(config, study, name, tokenizer)
    for name in config.studies[study].settings
  ]
  if study == 'batch':  # A ConfigDict has its fields in alphabetical order.
    plans.sort(key=lambda plan: plan.config.batch_size)
  if not plans or not config.seeds:
    raise _command_line.UsageError(
      '--config: settings and seeds need one entry or more'
    )
  return plans


def _make_plan(config, study, name, tokenizer):
  common = config.studies[study].to_dict()
  asked = _merged(common, common['settings'][name])
  changes = {k: v for k, v in asked.items() if k not in _OWN}
  plain = ml_collections.ConfigDict(config.to_dict())
  for field in (
    'studies',
    'seeds',
    'evaluations',
    'members_at_once',
  ):
    del plain[field]
  try:
    plain.update(changes)
  except (KeyError, TypeError) as error:
    raise _command_line.UsageError(
      f'--config.studies.{study}: {name!r} does not fit: {error}'
    ) from error
  text = _open(plain, tokenizer)
  counts = sum(
    pretraining_data.count_tokens(s, tokenizer.vocab_size, tokenizer.pad_id)
    for s in text.sources
  )
  per_block = counts.sum() / len(text)
  if 'tokens_per_batch' in asked:
    plain.batch_size = max(1, round(asked['tokens_per_batch'] / per_block))
    text = _open(plain, tokenizer)
  if 'epochs' in asked:
    steps = sum(
      len(source) // size
      for source, size in zip(text.sources, text.batch_sizes)
    )
    plain.num_steps = asked['epochs'] * steps
  plain.optimizer.warmup_steps = round(asked['warmup'] * plain.num_steps)
  rates = tuple(asked.get('learning_rates', ()))
  plain = ml_collections.FrozenConfigDict(plain)
  _roberta_pretraining.make_problem(plain, tokenizer)  # Refuses bad fields.
  return Plan(
    name,
    plain,
    rates or (plain.optimizer.learning_rate,),
    text,
    per_block * plain.batch_size,
    pretraining_data.unigram_entropy(counts),
  )


def _open(config, tokenizer):
  return _roberta_pretraining.open_text(
    config, 'corpus', tokenizer, most=config.max_blocks
  )


def _merged(one, other):
  """Two nested dictionaries, the second before the first."""
  merged = dict(one)
  for name, value in other.items():
    if isinstance(value, dict) and isinstance(merged.get(name), dict):
      value = _merged(merged[name], value)
    merged[name] = value
  return merged


def held_out(config: Any, tokenizer: Any) -> _roberta_pretraining.Text:
  """The sequences on which all runs are measured: full sentences."""
  return _held_out(config, config, tokenizer, 'full')


def _held_out(study_config, config, tokenizer, format):
  plain = ml_collections.ConfigDict(config.to_dict())
  plain.batch_size = 32  # Of evaluations; they need no gradients.
  return _roberta_pretraining.open_text(
    plain, 'valid', tokenizer, format=format, most=study_config.valid_blocks
  )


class Laboratory:
  """Trains settings; those of equal shapes share their compiled programs."""

  def __init__(self, run, config, tokenizer, valid):
    """Flags, the study's config, the tokenizer and the held-out sequences."""
    self._run, self._config, self._tokenizer = run, config, tokenizer
    self._valid = valid
    self._compiled = {}

  def measure(self, plan: Plan) -> Result:
    """Trains a setting with every seed, with the best of its rates.

    Raises:
      Interrupted: After a SIGTERM.
    """
    tuning, rate = {}, plan.learning_rates[0]
    first = self._config.seeds[0]
    if len(plan.learning_rates) > 1:
      for candidate in plan.learning_rates:
        curves = self._train(plan, candidate, (first,))
        tuning[candidate] = float(curves['valid_loss'][0, -1])
      rate = min(tuning, key=lambda r: (np.isnan(tuning[r]), tuning[r]))
    seeds = list(self._config.seeds)
    size = self._config.members_at_once or len(seeds)
    parts = [
      self._train(plan, rate, tuple(seeds[i : i + size]))
      for i in range(0, len(seeds), size)
    ]
    curves = {
      name: value
      if name.endswith('_step')
      else np.concatenate([part[name] for part in parts])
      for name, value in parts[0].items()
    }
    return Result(plan, rate, tuning, curves)

  def _train(self, plan, rate, seeds):
    """Curves of some seeds, trained now or before."""
    name = f'{plan.name} {rate:g} {" ".join(map(str, seeds))}'
    workdir = self._run.workdir / name.replace(' ', '_')
    path = workdir / 'curves.json'
    if path.exists():
      return {k: np.array(v) for k, v in json.loads(path.read_text()).items()}
    _training_command_line.say(f'{name}: {plan.config.num_steps} steps.')
    problem, step, measures = self._programs(plan, rate, len(seeds))
    # Rounded up: the last row of training is then a mean over as many steps as
    # the others, or nearly.
    every = -(-plan.config.num_steps // self._config.evaluations)
    evaluations = [
      training.Evaluation(split, function, every, at_start=True, at_end=True)
      for split, function in measures.items()
    ]
    result = training.fit(
      self._state(problem, plan, seeds),
      step,
      _roberta_pretraining.training_batches(
        plan.text, self._run.mesh, seeds[0]
      ),
      num_steps=plan.config.num_steps,
      workdir=workdir,
      mesh=self._run.mesh,
      evaluations=evaluations,
      log_every=every,
      checkpoint_every=max(1, plan.config.num_steps // 4),
      keep=1,
      tensorboard=False,
      console=self._run.console,
      examples_per_step=plan.config.batch_size,
    )
    if not result.finished:
      raise Interrupted(result)
    curves = _curves(workdir, ['train', *measures], len(seeds))
    if self._run.first:
      data.write_file(
        path, json.dumps({k: v.tolist() for k, v in curves.items()})
      )
    return curves

  def _state(self, problem, plan, seeds):
    keys = [jax.random.key(seed) for seed in seeds]
    keys = jnp.stack(keys) if len(keys) > 1 else keys[0]
    state = problem.job.state(keys, self._run.mesh)
    masking = dict(state.model_state[pretraining.MASKING])
    number = masking['num_masks']
    masking['num_masks'] = jax.device_put(
      np.full(number.shape, plan.config.masking.num_masks, np.int32),
      number.sharding,
    )
    model_state = {**state.model_state, pretraining.MASKING: masking}
    return state.replace(model_state=model_state)

  def _programs(self, plan, rate, members):
    """Model, step and measurements of a setting."""
    config = ml_collections.ConfigDict(plan.config.to_dict())
    config.optimizer.learning_rate = rate
    # An array of the state: runs that differ in it share a program.
    config.masking.num_masks = 0
    key = (config.to_json(sort_keys=True), members)
    if key not in self._compiled:
      problem = _roberta_pretraining.make_problem(
        config,
        self._tokenizer,
        own_masks=True,
        population=members if members > 1 else 0,
      )
      texts = {'valid': self._valid}
      if plan.config.format != 'full':
        texts['own'] = _held_out(
          self._config, plan.config, self._tokenizer, plan.config.format
        )
      measures = {
        split: _roberta_pretraining.evaluation(
          problem, text, config, self._run.mesh
        ).function
        for split, text in texts.items()
      }
      # The programs of one setting at a time are enough.
      self._compiled = {
        key: (problem, problem.job.step(self._run.mesh), measures)
      }
    return self._compiled[key]


def _curves(workdir, splits, members):
  """What `fit` wrote, seeds first."""
  curves = {}
  for split in splits:
    rows = training.read_metrics(workdir, split)
    _, first = np.unique(rows['step'], return_index=True)
    curves[f'{split}_step'] = rows['step'][first]
    for name in ('loss', 'mlm_loss', 'accuracy', 'nsp_accuracy'):
      if name in rows:
        values = rows[name][first].reshape(len(first), members)
        curves[f'{split}_{name}'] = values.T
  return curves


def write(folder: epath.Path, study: str, results: list[Result]) -> None:
  """Writes results.json, summary.csv and figures; prints the table."""
  table = [_row(result) for result in results]
  _print_table(table)
  out = io.StringIO()
  writer = csv.DictWriter(out, list(table[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(table)
  data.write_file(folder / 'summary.csv', out.getvalue())
  about = {
    'study': study,
    'unigram_entropy': {r.plan.name: r.plan.entropy for r in results},
    'settings': {
      r.plan.name: {
        'batch_size': r.plan.config.batch_size,
        'num_steps': r.plan.config.num_steps,
        'tokens_per_step': r.plan.tokens,
        'learning_rate': r.learning_rate,
        'tuning': {f'{rate:g}': loss for rate, loss in r.tuning.items()},
        'curves': {k: v.tolist() for k, v in r.curves.items()},
      }
      for r in results
    },
  }
  data.write_file(folder / 'results.json', json.dumps(about, indent=1) + '\n')
  _save_figure(folder / 'curves.png', _curve_figure(study, results))
  _save_figure(
    folder / 'points.png',
    figures.seed_points(
      [r.plan.name for r in results],
      [r.curves['valid_loss'][:, -1] for r in results],
      ylabel='held-out loss of hidden tokens (nats)',
    ),
  )
  print(f'Table, curves and figures are in {folder}.')


def _curve_figure(study, results):
  def positions(result, split):
    steps = result.curves[f'{split}_step']
    if study == 'masking':
      blocks = sum(map(len, result.plan.text.sources))
      return steps * result.plan.config.batch_size / blocks
    return steps * result.plan.tokens / 1e6

  def panel(split, name):
    return [
      (r.plan.name, positions(r, split), r.curves[f'{split}_{name}'])
      for r in results
    ]

  panels = [('held-out text', panel('valid', 'loss'))]
  if study != 'format':  # With pairs the loss has a second part.
    panels.append(('training', panel('train', 'loss')))
  return figures.seed_curves(
    panels,
    xlabel='epochs' if study == 'masking' else 'million tokens',
    ylabel='loss of hidden tokens (nats)',
    reference=('unigram entropy', results[0].plan.entropy),
  )


def _row(result) -> dict[str, Any]:
  """One line of the table."""
  plan, curves = result.plan, result.curves
  final = curves['valid_loss'][:, -1]
  train = curves.get('train_mlm_loss', curves['train_loss'])[:, -1]
  steps = plan.config.num_steps
  row = {
    'setting': plan.name,
    'batch': plan.config.batch_size,
    'steps': steps,
    'rate': f'{result.learning_rate:g}',
    'million tokens': f'{steps * plan.tokens / 1e6:.2f}',
    'train loss': f'{train.mean():.3f}',
    'held-out loss': f'{final.mean():.3f}',
    'lowest, highest': f'{final.min():.3f}, {final.max():.3f}',
    'perplexity': f'{np.exp(final.mean()):.1f}',
    'best': f'{curves["valid_loss"].min(1).mean():.3f}',
    'accuracy %': f'{100 * curves["valid_accuracy"][:, -1].mean():.1f}',
  }
  own = curves.get('own_mlm_loss', curves.get('own_loss', final[:, None]))
  row['own format'] = f'{own[:, -1].mean():.3f}'
  pairs = curves.get('own_nsp_accuracy')
  row['pairs %'] = '' if pairs is None else f'{100 * pairs[:, -1].mean():.1f}'
  return row


def _print_table(table) -> None:
  rows = [list(table[0]), *[[str(v) for v in row.values()] for row in table]]
  widths = [max(map(len, column)) for column in zip(*rows)]
  for row in rows:
    cells = [row[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
    print('  '.join(cells).rstrip())


def _save_figure(path: epath.Path, figure: Any) -> None:
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=130)
  data.write_file(path, buffer.getvalue())
