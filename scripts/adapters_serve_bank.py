r"""Answers texts of many tasks with one model, several tasks in one batch.

Examples:
  # What adapters_finetune wrote for two tasks; questions and answers as files.
  python scripts/adapters_serve_bank.py --model=roberta-base \
      --tasks=spam=spam/task_0.safetensors,mood=mood/task_1.safetensors \
      --input=questions.jsonl --output=answers.jsonl

  # From standard input to standard output:
  echo '{"task": "spam", "text": "You won a prize"}' | \
      python scripts/adapters_serve_bank.py --model=roberta-base \
      --tasks=spam=spam/task_0.safetensors

A line of the input is {"task": NAME, "text": TEXT}, with "text_b" for a pair;
all else in it is handed back. A line of the output adds "label" and
"probabilities", or "score" of a regression (STS-B), in the order of the input;
or "error" for a line that cannot be answered. The frozen model is in memory
once, each task adds its adapters, layer norms and head. Batches are filled from
whatever tasks come.

"""

import json
import sys

import _adapters_evaluation
import _adapters_tasks
import _command_line
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from jaxpapers import adapters, roberta, training
from jaxpapers.adapters import recipes, trees
from jaxpapers.roberta import finetune_data

_MODEL = flags.DEFINE_string(
  'model', None, 'Folder of the base model.', required=True
)
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', '', "Folder of its vocabulary; by default the model's."
)
_TASKS = flags.DEFINE_list(
  'tasks', None, 'NAME=FILE of each task, separated by commas.', required=True
)
_INPUT = flags.DEFINE_string('input', '-', 'JSON lines; - is standard input.')
_OUTPUT = flags.DEFINE_string(
  'output', '-', 'JSON lines; - is standard output.'
)
_BATCH = flags.DEFINE_integer(
  'batch_size', 32, 'Texts of a batch.', lower_bound=1
)
_CAPACITY = flags.DEFINE_integer(
  'capacity', 0, 'Rows of the bank, at least one for each task.', lower_bound=0
)
_BFLOAT16 = flags.DEFINE_bool('bfloat16', False, 'Compute in bfloat16.')
_FROZEN = flags.DEFINE_enum(
  'frozen',
  'float32',
  ['float32', 'bfloat16', 'int8'],
  'How the frozen model is kept.',
)
_MESH = flags.DEFINE_string('mesh', 'data:-1', 'Mesh axes, as data:-1.')
_command_line.define_machine_flags()
# Of STS-B, whose labels are divided by it.
_SCALE = 5.0
# Each of these compiles once.
_LENGTHS = (32, 64, 128, 256, 512)


class Server:
  """A bank on a model, and what its answers mean."""

  def __init__(self, config, paths, mesh):
    """Reads model and tasks.

    Args:
      config: Of `recipes.base_config`, with the model.
      paths: Name of the task -> file.
      mesh: Where it runs.
    """
    encoder, params, self.tokenizer = _adapters_tasks.load_base(config)
    self.max_len = encoder.max_len
    self.mesh = mesh
    self.classes, tasks, kinds = {}, {}, {}
    for name, path in paths.items():
      tasks[name] = adapters.load_task(path)
      about = _adapters_evaluation.read_metadata(path)
      if about['kind'] == 'span':
        raise ValueError(
          f'{path}: task {about["config"]["task"]} marks words of a text; this'
          ' program answers with classes and scores.'
        )
      self.classes[name] = about['classes']
      if about['mode'] not in ('adapter', 'layer_norm', 'head'):
        raise ValueError(
          f'{path}: mode {about["mode"]} trained layers of the model itself; a'
          ' bank holds adapters, layer norms and heads.'
        )
      kinds[name] = ml_collections.ConfigDict(about['config'])
    self.bank = adapters.AdapterBank.create(
      tasks, base=params, capacity=_CAPACITY.value
    )
    trained = set(trees.flatten(self.bank.params))
    frozen, _ = adapters.partition_params(
      params, lambda path: path not in trained
    )
    if _FROZEN.value != 'float32':
      frozen = adapters.compress_frozen(frozen, _FROZEN.value)
    widest = max(len(classes) or 1 for classes in self.classes.values())
    adapter = self._adapter(kinds, encoder.num_layers)
    goal = _adapters_tasks.Goal('classification', ('',) * widest, ())
    model = _adapters_tasks.classifier(
      encoder, goal, self.tokenizer, adapter=adapter
    )
    self.predict = self.bank.predictor(
      lambda params, ids: model.apply({'params': params}, ids),
      frozen,
      mesh=mesh,
      rules=roberta.encoder_rules('data'),
    )

  def _adapter(self, kinds, num_layers):
    """The adapters that all tasks fit into, None without any."""
    found = {
      name: _adapters_tasks.adapter_config(kind)
      for name, kind in kinds.items()
      if kind.mode == 'adapter'
    }
    if not found:
      return None
    shapes = {
      (a.activation, a.depth, a.sites, a.parallel) for a in found.values()
    }
    if len(shapes) > 1:
      raise ValueError(
        'the tasks have adapters of different kinds,'
        f' {sorted(map(str, shapes))}; a bank needs one activation, depth and'
        ' set of sites.'
      )
    first = next(iter(found.values()))
    # Padded with zeros: the widest bottleneck of each place.
    flat = trees.flatten(self.bank.params)

    def width(layer, site):
      path = f'encoder/layers_{layer}/{site}_adapter/down/kernel'
      return flat[path].shape[-1] if path in flat else 0

    return first.replace(
      size=tuple(
        (width(i, 'attention'), width(i, 'ffn')) for i in range(num_layers)
      )
    )

  def answer(self, requests):
    """Answers of some requests, in their order."""
    answers = [dict(request) for request in requests]
    rows, ids, names = [], [], []
    for i, request in enumerate(requests):
      error = self._problem(request)
      if error:
        answers[i]['error'] = error
        continue
      text = request['text']
      if 'text_b' in request:
        text = (text, request['text_b'])
      rows.append(i)
      names.append(request['task'])
      ids += _adapters_tasks.encode([text], self.tokenizer, self.max_len)
    if not rows:
      return answers
    size = _BATCH.value
    parts = self.mesh.size
    size = -(-size // parts) * parts
    length = finetune_data.fitting_length(max(map(len, ids)), _LENGTHS)
    length = min(length, self.max_len)
    batch = np.full((size, length), self.tokenizer.pad_id, np.int32)
    for row, one in zip(batch, ids):
      row[: len(one)] = one
    batch[len(ids) :] = batch[0]
    task_ids = self.bank.ids(names + names[:1] * (size - len(ids)))
    logits = self.predict(self.bank, task_ids, jnp.asarray(batch))
    logits = np.asarray(logits, np.float64)
    for row, i, name in zip(logits, rows, names):
      classes = self.classes[name]
      if not classes:
        answers[i]['score'] = round(_SCALE * float(row[0]), 6)
        continue
      row = np.exp(row[: len(classes)] - row[: len(classes)].max())
      row = row / row.sum()
      answers[i]['label'] = classes[int(row.argmax())]
      answers[i]['probabilities'] = {
        c: round(float(p), 6) for c, p in zip(classes, row)
      }
    return answers

  def _problem(self, request):
    if not isinstance(request.get('text'), str):
      return 'there is no "text"'
    if not isinstance(request.get('text_b', ''), str):
      return '"text_b" is no text'
    if request.get('task') not in self.classes:
      return (
        f'task {request.get("task")!r} is not in the bank, which has'
        f' {sorted(self.classes)}'
      )
    return None


def main() -> None:
  """Reads, answers, writes."""
  _command_line.use_compilation_cache(flags.FLAGS.compilation_cache)
  paths = _paths(_TASKS.value)
  config = recipes.base_config()
  config.model, config.tokenizer = _MODEL.value, _TOKENIZER.value
  config.bfloat16 = _BFLOAT16.value
  try:
    mesh = training.make_mesh(_MESH.value)
    server = Server(config, paths, mesh)
  except (OSError, ValueError, KeyError) as error:
    raise _command_line.UsageError(_command_line.one_line(error)) from error
  source = sys.stdin
  if _INPUT.value != '-':
    try:
      source = epath.Path(_INPUT.value).expanduser().open()
    except OSError as error:
      raise _command_line.UsageError(f'--input: {error}') from error
  if _OUTPUT.value == '-':
    _serve(server, source, sys.stdout)
    return
  path = epath.Path(_OUTPUT.value).expanduser()
  temporary = path.parent / f'{path.name}.partial'
  with temporary.open('w') as out:
    _serve(server, source, out)
  temporary.replace(path)


def _serve(server, source, out) -> None:
  """Batches of lines in, as many lines out."""
  waiting = []
  for line in source:
    if not line.strip():
      continue
    try:
      request = json.loads(line)
      if not isinstance(request, dict):
        raise ValueError('expected an object')
    except ValueError as error:
      request = {'line': line.strip()[:200], 'text': None, 'bad': str(error)}
    waiting.append(request)
    if len(waiting) == _BATCH.value:
      _flush(server, waiting, out)
      waiting = []
  if waiting:
    _flush(server, waiting, out)


def _flush(server, requests, out) -> None:
  for answer in server.answer(requests):
    if 'bad' in answer and answer.get('text') is None:
      answer = {
        'line': answer['line'],
        'error': f'not JSON: {answer["bad"]}',
      }
    out.write(json.dumps(answer) + '\n')
  out.flush()


def _paths(pairs) -> dict[str, str]:
  paths = {}
  for pair in pairs:
    name, equals, path = pair.partition('=')
    if not equals or not name or not path or name in paths:
      raise _command_line.UsageError(
        f'--tasks: {pair!r}; expected NAME=FILE, each name once'
      )
    paths[name] = path
  return paths


if __name__ == '__main__':
  _command_line.run(main)
