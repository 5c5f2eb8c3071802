r"""Capacity at fixed compute: memories against a dense layer, on CMUdict.

Examples:
  # Five blocks, three seeds, five epochs each.
  python scripts/product_keys_cmudict.py \
      --config.dictionary=cmudict.dict --workdir=cmudict

  # Two of them, one seed, the rows that were read by lazy Adam.
  python scripts/product_keys_cmudict.py \
      --config.dictionary=cmudict.dict --config.seeds='(0,)' \
      --config.variants="('dense','memory_128')" \
      --config.value_optimizer=auto --workdir=short

A model of one block says a word from its letters: the words that are right in
every place are counted. Variants are dense (a feed-forward layer of four times
the width), memory_32, memory_128 and memory_256 (as many keys in each half)
and memory_128_no_norm, without batch normalisation of queries.

Into --workdir go results.json, results.md, with mean and spread over seeds,
usage and KL of the test words' reads, capacity.png and a folder for each run. A
run that was stopped goes on where it was. cmudict.dict is in
github.com/cmusphinx/cmudict.
"""

import io
import json

import _command_line
import _training_command_line
import jax
import numpy as np
from absl import flags

from jaxpapers import data as files
from jaxpapers import training
from jaxpapers.product_keys import data, figures, spelling, usage

_training_command_line.define_flags(
  'product_keys/cmudict.py', 'product_keys_cmudict'
)
flags.adopt_module_key_flags(_training_command_line)

_COLUMNS = (
  'train_loss',
  'train_accuracy',
  'test_loss',
  'test_accuracy',
  'usage',
  'kl_w',
)


class _Batches:
  """Batches of words in a new order in every epoch; the rest is left out."""

  def __init__(self, words, size: int, seed: int):
    self._words, self._size, self._seed, self._step = words, size, seed, 0
    self.steps_per_epoch = len(words['letters']) // size

  def __iter__(self):
    return self

  def __next__(self):
    epoch, place = divmod(self._step, self.steps_per_epoch)
    random = np.random.default_rng((self._seed, epoch))
    order = random.permutation(len(self._words['letters']))
    part = order[place * self._size : (place + 1) * self._size]
    self._step += 1
    return {name: values[part] for name, values in self._words.items()}

  def get_state(self):
    return {'step': self._step}

  def set_state(self, state):
    self._step = int(state['step'])


def _parts(words, size: int):
  """All words in order; the last batch may be smaller."""
  for start in range(0, len(words['letters']), size):
    yield {name: values[start : start + size] for name, values in words.items()}


def _measure(model, state, words, size: int) -> dict[str, float]:
  """Loss and accuracy of words."""
  step = training.make_eval_step(spelling.spelling_metrics(model))
  return {
    name: float(value)
    for name, value in training.evaluate(
      state, step, _parts(words, size)
    ).items()
    if name != 'count'
  }


def _run(run, variant: str, seed: int, train, test, kinds: int):
  """Trains one model; its numbers, or None where it was interrupted."""
  config = run.config
  shapes = (train['letters'].shape[1], train['phones'].shape[1], kinds)
  model, job = spelling.spelling_job(config, variant, shapes)
  batches = _Batches(train, config.batch_size, seed)
  result = training.fit(
    job.state(jax.random.key(seed), run.mesh),
    job.step(run.mesh),
    batches,
    num_steps=config.epochs * batches.steps_per_epoch,
    workdir=run.workdir / variant / f'seed_{seed}',
    mesh=run.mesh,
    log_every=batches.steps_per_epoch,
    checkpoint_every=batches.steps_per_epoch,
    keep=1,
    console=run.console,
    tensorboard=False,
    examples_per_step=config.batch_size,
  )
  if not result.finished:
    return result, None
  state = result.state
  some = {name: values[: config.train_words] for name, values in train.items()}
  row = {
    'variant': variant,
    'seed': seed,
    'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
  }
  for name, words in (('train', some), ('test', test)):
    numbers = _measure(model, state, words, config.batch_size)
    row |= {f'{name}_{key}': value for key, value in numbers.items()}
  if model.block is not None:
    read = usage.measure_usage(
      spelling.spelling_reads(model),
      {**state.params, **state.model_state},
      _parts(test, config.batch_size),
      model.block.num_slots,
    )
    row |= usage.memory_usage_report(read['block'])
  return result, row


def table(rows) -> str:
  """Mean and spread (standard deviation over seeds) in Markdown."""
  lines = [
    '| variant | parameters | ' + ' | '.join(_COLUMNS) + ' |',
    '|---|---|' + '---|' * len(_COLUMNS),
  ]
  for variant in dict.fromkeys(row['variant'] for row in rows):
    mine = [row for row in rows if row['variant'] == variant]
    cells = [variant, f'{mine[0]["parameters"]:,}']
    for name in _COLUMNS:
      values = [row[name] for row in mine if name in row]
      if not values:
        cells.append('')
        continue
      spread = f' ± {np.std(values, ddof=1):.4f}' if len(values) > 1 else ''
      cells.append(f'{np.mean(values):.4f}{spread}')
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def _picture(rows) -> bytes:
  """Accuracy against slots; models that are no memory are levels."""
  memories, levels = {}, {}
  for row in rows:
    n_keys, norm = spelling.VARIANTS[row['variant']]
    if n_keys:
      name = 'memory' if norm else 'memory, queries not normalised'
      points = memories.setdefault(name, {})
      points.setdefault(n_keys**2, []).append(row['test_accuracy'])
    else:
      levels.setdefault(row['variant'], []).append(row['test_accuracy'])
  figure = figures.capacity_curve(
    memories,
    levels=levels,
    ylabel='test words right in every place',
  )
  picture = io.BytesIO()
  figure.savefig(picture, format='png', dpi=130)
  return picture.getvalue()


def main() -> int:
  """Trains all variants with all seeds."""
  config = _training_command_line.read_config()
  if not config.dictionary:
    raise _command_line.UsageError(
      '--config.dictionary is empty; expected the file cmudict.dict'
    )
  try:
    train, test, phones = data.read_cmudict(config.dictionary)
    for variant in config.variants:
      spelling.spelling_job(config, variant, (1, 1, 1))
  except (OSError, ValueError) as error:
    raise _command_line.UsageError(f'--config: {error}') from error
  if config.batch_size > len(train['letters']):
    raise _command_line.UsageError(
      f'--config.batch_size is {config.batch_size}; expected'
      f' {len(train["letters"])} words at most'
    )
  run = _training_command_line.start()
  rows = []
  for seed in config.seeds:
    for variant in config.variants:
      result, row = _run(run, variant, seed, train, test, len(phones) + 1)
      if row is None:
        return run.exit_code(result)
      rows.append(row)
      if run.first:
        numbers = json.dumps(rows, indent=2) + '\n'
        files.write_file(run.workdir / 'results.json', numbers)
        files.write_file(run.workdir / 'results.md', table(rows))
  if run.first and any(spelling.VARIANTS[name][0] for name in config.variants):
    files.write_file(run.workdir / 'capacity.png', _picture(rows))
  _training_command_line.say(table(rows))
  return 0


if __name__ == '__main__':
  _command_line.run(main)
