r"""Removes the adapters of every span of layers, without training again.

Examples:
  # What adapters_finetune wrote, on its validation split:
  python scripts/adapters_ablate.py --run=spam

  # On the test split, four spans at a time:
  python scripts/adapters_ablate.py --run=spam --split=test --spans_at_once=4

The heat map of the paper (figure 6, left and centre): entry i, j is the change
of accuracy when the adapters of layers i to j are removed and nothing is
trained again; layer norms and head stay as they were trained. All spans are one
program, vmapped over gates. Means over the seeds of the run. Of STS-B and SQuAD
it is the change of their own metric, span by span.

Into the folder go removal.png, removal.csv and removal.json.

"""

import json

import _adapters_evaluation
import _adapters_tasks
import _adapters_training
import _command_line
import _results
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from jaxpapers import adapters
from jaxpapers.adapters import figures, recipes
from jaxpapers.roberta import finetune_data

_RUN = flags.DEFINE_string(
  'run', None, 'Folder of adapters_finetune.', required=True
)
_SPLIT = flags.DEFINE_enum(
  'split', 'valid', ['valid', 'test'], 'What to measure on.'
)
_SPANS = flags.DEFINE_integer(
  'spans_at_once', 0, 'Spans that run side by side; 0 for all.', lower_bound=0
)
_command_line.define_machine_flags()


def main() -> None:
  """Measures, draws."""
  _command_line.use_compilation_cache(flags.FLAGS.compilation_cache)
  folder = epath.Path(_RUN.value).expanduser()
  config, paths = read_run(folder)
  problem = _adapters_tasks.load_problem(config)
  if _SPLIT.value not in problem.measured:
    raise _command_line.UsageError(
      f'--split={_SPLIT.value}: task {config.task} has {problem.measured}'
    )
  try:
    trained = _adapters_evaluation.load_members(folder, config, problem)
  except ValueError as error:
    raise _command_line.UsageError(_command_line.one_line(error)) from error
  if problem.goal.kind == 'classification':
    name, measure = 'accuracy', _accuracies
  else:
    name, measure = problem.goal.metrics[0], _scores
  tables = measure(config, problem, trained)
  majority = problem.majority(_SPLIT.value)
  mean = tables.mean(0)
  full = mean[1]
  changes = mean[0] - full
  layers = len(changes)
  single = changes[np.arange(layers), np.arange(layers)]
  print(f'With all adapters: {full[0, 0]:.4f}')
  print('Without those of one layer: ' + ', '.join(f'{x:+.4f}' for x in single))
  without = f'Without any: {mean[0][0, -1]:.4f}'
  if majority is not None:
    without += f'; most frequent class {majority:.4f}'
  print(without)
  _results.write_json(
    folder / 'removal.json',
    {
      'split': _SPLIT.value,
      'runs': [path.name for path in paths],
      name: tables[:, 1, 0, 0],
      'without_span': tables[:, 0],
      'majority': majority,
    },
  )
  rows = [
    {'first': i, 'last': j, name: mean[0][i, j], 'change': changes[i, j]}
    for i in range(layers)
    for j in range(i, layers)
  ]
  _results.write_csv(folder / 'removal.csv', rows)
  title = f'{config.task}: {name} {100 * full[0, 0]:.1f} % with all adapters'
  _results.save_figure(
    folder / 'removal.png', figures.removal_map(changes, title)
  )
  print(f'removal.png, removal.csv and removal.json are in {folder}.')


def read_run(folder: epath.Path):
  """The config of a run, and the files of its members.

  Raises:
    UsageError: If there is none, or it has no adapters.
  """
  try:
    content = json.loads((folder / 'config.json').read_text())
    config = recipes.base_config()
    config.unlock()
    config.update(content)
    config = ml_collections.FrozenConfigDict(config)
    paths = sorted(folder.glob('task_*.safetensors'))
    mode = config.mode
  except (OSError, ValueError, AttributeError) as error:
    raise _command_line.UsageError(
      f'--run={folder} is no folder of adapters_finetune: {error}'
    ) from error
  if not paths:
    raise _command_line.UsageError(
      f'--run={folder} has no task_SEED.safetensors: the run is not finished'
    )
  if mode != 'adapter':
    raise _command_line.UsageError(
      f'--run={folder} trained mode {mode}: it has no adapters to remove'
    )
  return config, paths


def _accuracies(config, problem, trained) -> np.ndarray:
  """Without each span, and with all adapters, `[members, 2, L, L]`."""
  model, layers = trained.model, problem.encoder.num_layers
  examples = problem.splits[_SPLIT.value]

  @jax.jit
  def correct(task, frozen, ids, labels, new):
    params = adapters.merge_params(task, frozen)

    def count(gates):
      logits = model.apply(
        {'params': params}, ids, adapter_inputs={'gate': gates}
      )
      return ((logits.argmax(-1) == labels) & new).sum().astype(jnp.float32)

    spans = adapters.ablate_spans(
      count, layers, batch_size=_SPANS.value or None
    )
    return spans, count(jnp.ones((layers, 2)))

  tables = []
  for member in range(len(trained.members)):
    task = trained.of(member)
    total, whole = 0.0, 0.0
    seen = np.zeros(len(examples), bool)
    for rows, batch in finetune_data.ordered_batches(
      examples,
      config.eval_batch_size,
      lengths=_adapters_training.lengths(config, problem.encoder),
    ):
      # The last batch is filled up with an example that comes twice.
      new = ~seen[rows] & (np.arange(len(rows)) == _first(rows))
      seen[rows] = True
      spans, all_of_them = correct(
        task, trained.frozen, batch['ids'], batch['label'], new
      )
      total, whole = total + np.asarray(spans), whole + float(all_of_them)
    tables.append(np.stack([total, np.full_like(total, whole)]))
  return np.stack(tables) / len(examples)


def _scores(config, problem, trained) -> np.ndarray:
  """The same of a task whose metric is no sum over examples."""
  predictor = _adapters_evaluation.Predictor(trained, config, problem)
  layers = problem.encoder.num_layers

  def measure(gates):
    gates = jnp.asarray(np.repeat(gates[:, None], 2, axis=1), jnp.float32)
    return [
      problem.scores(_SPLIT.value, outputs, config)[problem.goal.metrics[0]]
      for outputs in predictor(_SPLIT.value, gates)
    ]

  tables = np.full((len(trained.members), 2, layers, layers), np.nan)
  tables[:, 1] = np.asarray(measure(np.ones(layers)))[:, None, None]
  for (i, j), gates in zip(*adapters.span_gates(layers)):
    tables[:, 0, i, j] = measure(gates)
  return tables


def _first(rows):
  """Position at which each entry comes for the first time."""
  _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
  return first[inverse]


if __name__ == '__main__':
  _command_line.run(main)
