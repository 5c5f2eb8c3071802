r"""How evenly a trained memory is used: usage, KL, pictures of each head.

Examples:
  # A language model that product_keys_train_lm trained, on held-out text.
  python scripts/product_keys_usage.py --run=memory --text=valid.txt \
      --workdir=memory_usage

  # A memory of product_keys_cmudict, on the words it was not trained on.
  python scripts/product_keys_usage.py --run=cmudict/memory_128/seed_0 \
      --text=cmudict.dict --workdir=cmudict_usage

  # A table that lies on four devices; the first 1000 batches.
  python scripts/product_keys_usage.py --run=memory --text=valid.txt \
      --mesh=data:1,mem:4 --batches=1000 --workdir=memory_usage

With z the share of a slot in the weights of all reads (section 4.2 of the
paper): usage is the percentage of slots with z > 0, and KL is ln N plus the sum
of z ln z, 0 where all slots are used alike and ln N where one is. gini, and
top50, top90 and top99 (how many slots hold that percentage of all weight) come
with them, from weights (_w) and from numbers of reads (_u). The model is in its
evaluation mode. Text is streamed: what is kept are a few numbers for each slot
and head.

Into --workdir go usage.json, usage.md, usage.npz (weight and reads of every
slot by head) and usage.png.
"""

import io
import itertools
import json

import _command_line
import _training_command_line
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from jaxpapers import data, training
from jaxpapers.product_keys import data as product_keys_data
from jaxpapers.product_keys import figures, recipes, spelling, usage

_RUN = flags.DEFINE_string(
  'run', None, 'Folder of a run, with its checkpoints.', required=True
)
_TEXT = flags.DEFINE_list(
  'text', None, 'Text files, or cmudict.dict for a run on it.', required=True
)
_BATCHES = flags.DEFINE_integer(
  'batches', 0, 'Batches to read; 0 for all of the text.', lower_bound=0
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 0, "Of a batch; 0 for the run's.", lower_bound=0
)
_STEP = flags.DEFINE_integer(
  'step', -1, 'Step of the checkpoint; -1 for the newest.', lower_bound=-1
)
_WORKDIR = flags.DEFINE_string(
  'workdir', 'product_keys_usage', 'Folder for the results.'
)
_MESH = flags.DEFINE_string(
  'mesh', 'data:-1', 'Mesh axes and their sizes, as data:1,mem:4.'
)
flags.DEFINE_string(
  'compilation_cache',
  'default',
  'Where JAX keeps compiled programs between runs: a folder, "default" or empty'
  ' for nowhere.',
)

_SHOWN = ('usage', 'kl_w', 'gini_w', 'top50_w', 'top90_w', 'top99_w')


def main() -> None:
  """Restores, reads, writes."""
  _command_line.use_compilation_cache(flags.FLAGS.compilation_cache)
  run = epath.Path(_RUN.value).expanduser()
  config = _config(run)
  try:
    mesh = training.make_mesh(_MESH.value)
    read = _spelling if 'dictionary' in config else _language_model
    job, reads_of, batches, memory = read(run, config, mesh)
    if memory is None:
      raise ValueError(f'{run} has no memory')
    state = _restore(run, job, mesh)
  except (OSError, UnicodeDecodeError, ValueError) as error:
    text = _command_line.one_line(error)
    raise _command_line.UsageError(text) from error
  if _BATCHES.value:
    batches = itertools.islice(batches, _BATCHES.value)
  found = usage.measure_usage(
    reads_of,
    {**state.params, **state.model_state},
    (training.put_batch(batch, mesh) for batch in batches),
    memory.table_rows,
    memory.heads,
  )
  if config.get('share_values') and len(found) > 1:
    found['all layers'] = usage.sum_usage(found.values())
  _write(epath.Path(_WORKDIR.value).expanduser(), found, int(state.step))


def _config(run: epath.Path) -> ml_collections.ConfigDict:
  """Of the run's folder, or of the nearest around it."""
  for folder in (run, *list(run.parents)[:2]):
    if (folder / 'config.json').exists():
      fields = json.loads((folder / 'config.json').read_text())
      return ml_collections.ConfigDict(fields)
  raise _command_line.UsageError(
    f'--run={run} has no config.json; expected a folder that'
    ' product_keys_train_lm or product_keys_cmudict wrote'
  )


def _language_model(run, config, mesh):
  """Job, what it reads, batches of the text, and its memory."""
  del run
  if 'memory_positions' not in config or 'vocabulary' not in config:
    raise ValueError('--run is a run of another program.')
  vocab_size, fill, read = product_keys_data.tokenizer(config.vocabulary)
  model = recipes.make_model(config, vocab_size, recipes.bag_for(config, mesh))
  batches = product_keys_data.StreamBatches(
    read(_TEXT.value),
    _BATCH_SIZE.value or config.batch_size,
    config.length,
    fill=fill,
  )
  job = recipes.language_model_job(config, vocab_size)
  return job, recipes.language_model_reads(model), batches, model.memory


def _spelling(run, config, mesh):
  train, test, phones = product_keys_data.read_cmudict(_TEXT.value[0])
  shapes = (train['letters'].shape[1], train['phones'].shape[1])
  model, job = spelling.spelling_job(
    config, run.parent.name, (*shapes, len(phones) + 1)
  )
  size = _BATCH_SIZE.value or config.batch_size
  words = test['letters']
  # What is left over is read where the devices divide it.
  if len(words) % size % mesh.shape.get('data', 1):
    words = words[: len(words) // size * size]
  batches = (
    {'letters': words[i : i + size]} for i in range(0, len(words), size)
  )
  return job, spelling.spelling_reads(model), batches, model.block


def _restore(run: epath.Path, job: training.Job, mesh) -> training.TrainState:
  folder = run / 'checkpoints'
  if not folder.exists():
    raise FileNotFoundError(f'--run={run} has no checkpoints.')
  like, _ = job.abstract(mesh)
  with training.Checkpoints(folder) as checkpoints:
    step = None if _STEP.value < 0 else _STEP.value
    return checkpoints.restore(like, step)[0]


def _write(folder: epath.Path, found, step: int) -> None:
  reports = {
    name or 'memory': {
      **usage.memory_usage_report(state),
      'slots': state.counts.shape[1],
      'reads': int(np.asarray(state.counts, np.uint64).sum()),
      'heads': usage.memory_usage_by_head(state),
    }
    for name, state in found.items()
  }
  table = _table(reports)
  figure = figures.usage_panels(found)
  picture = io.BytesIO()
  figure.savefig(picture, format='png', dpi=130)
  arrays = io.BytesIO()
  np.savez_compressed(
    arrays,
    **{
      f'{name or "memory"}/{kind}': values
      for name, state in found.items()
      for kind, values in (
        ('weight', usage.slot_mass(state)),
        ('reads', np.asarray(state.counts)),
      )
    },
  )
  text = json.dumps({'step': step, 'memories': reports}, indent=2) + '\n'
  for name, content in (
    ('usage.npz', arrays.getvalue()),
    ('usage.png', picture.getvalue()),
    ('usage.md', table),
    ('usage.json', text),
  ):
    data.write_file(folder / name, content)
  _training_command_line.say(table)


def _table(reports) -> str:
  lines = [
    '| memory | head | ' + ' | '.join(_SHOWN) + ' |',
    '|---|---|' + '---|' * len(_SHOWN),
  ]
  for name, report in reports.items():
    rows = [('all', report)]
    if len(report['heads']) > 1:
      rows += list(enumerate(report['heads']))
    for head, numbers in rows:
      cells = [
        f'{numbers[key]:,}'
        if isinstance(numbers[key], int)
        else f'{numbers[key]:.3f}'
        for key in _SHOWN
      ]
      lines.append(f'| {name} | {head} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  _command_line.run(main)
