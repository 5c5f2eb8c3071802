"""What adapters cost: a training step, its memory, and many tasks at once.

Prints one JSON object. Times are wall-clock times of this run and, as
cpu_milliseconds, processor time of all threads, which a busy machine changes
little; what is compared alternates, so that it slows all of it alike.

  python benchmarks/adapters.py                     # minutes on two cores
  python benchmarks/adapters.py --parts=flops
  python benchmarks/adapters.py --parts=step \
      --peer_python=venv/bin/python     # one with torch and `adapters` (1.3)

What is measured:
  flops: floating-point operations of the compiled training step of adapters,
    layer norms, the top layer and the head, over those of full fine-tuning; and
    bytes of optimizer state and of a task on disk.
  step: milliseconds of these steps; with --peer_python also those of AdapterHub
    in torch, adapters and full, same sizes, as many threads.
  bank: texts per second of a bank of 1, 8 and 64 tasks, mixed in each batch,
    over those of one task's own model.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time

from absl import app, flags

_PARTS = flags.DEFINE_list(
  'parts', ['flops', 'step', 'bank'], 'What to measure.'
)
_LAYERS = flags.DEFINE_integer('layers', 8, 'Layers.')
_HIDDEN = flags.DEFINE_integer('hidden', 128, 'Width of the residual stream.')
_LENGTH = flags.DEFINE_integer('length', 64, 'Tokens of a text.')
_BATCH = flags.DEFINE_integer('batch', 16, 'Texts of a batch.')
_SIZE = flags.DEFINE_integer('size', 8, 'Width of the bottleneck.')
_REPEATS = flags.DEFINE_integer('repeats', 10, 'Alternations.')
_THREADS = flags.DEFINE_integer('threads', 2, 'Threads of the peer.')
_PEER = flags.DEFINE_string(
  'peer_python', '', 'Python with torch, transformers 4.57 and adapters 1.3.'
)
_VOCAB = 1000

_PEER_CODE = r"""
import json, sys, time
import torch
import adapters
from transformers import RobertaConfig, RobertaForSequenceClassification
o = json.loads(sys.argv[1])
torch.manual_seed(0)
torch.set_num_threads(o['threads'])
def model():
  return RobertaForSequenceClassification(RobertaConfig(
    vocab_size=o['vocab'], hidden_size=o['hidden'],
    num_hidden_layers=o['layers'], num_attention_heads=o['heads'],
    intermediate_size=4 * o['hidden'], max_position_embeddings=o['length'] + 2,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    attn_implementation='sdpa', num_labels=3))
full, adapted = model(), model()
adapters.init(adapted)
adapted.add_adapter('task', config=adapters.DoubleSeqBnConfig(
  reduction_factor=o['hidden'] / o['size'], non_linearity='gelu'))
adapted.train_adapter('task')
adapted.set_active_adapters('task')
ids = torch.randint(4, o['vocab'], (o['batch'], o['length']))
labels = torch.zeros(o['batch'], dtype=torch.long)
calls = {}
for name, m in (('full', full), ('adapter', adapted)):
  m.train()
  trained = [p for p in m.parameters() if p.requires_grad]
  opt = torch.optim.AdamW(trained, lr=1e-4)
  def call(m=m, opt=opt):
    opt.zero_grad()
    m(input_ids=ids, labels=labels).loss.backward()
    opt.step()
  calls[name] = call
  call()
print('ready', flush=True)
for line in sys.stdin:
  start, cpu = time.perf_counter(), time.process_time()
  calls[line.strip()]()
  print(1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - cpu),
        flush=True)
"""


def _parts():
  """Model, parameters, batch and loss of the benchmark's sizes."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from jaxpapers import adapters
  from jaxpapers.nn import EncoderConfig, TransformerEncoder

  hidden = _HIDDEN.value
  config = EncoderConfig(
    _VOCAB,
    hidden,
    _LAYERS.value,
    max(1, hidden // 32),
    4 * hidden,
    max_len=_LENGTH.value,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
  )

  class Classifier(nn.Module):
    @nn.compact
    def __call__(self, ids):
      encoder = TransformerEncoder(
        config, adapter=adapters.AdapterConfig(_SIZE.value), name='encoder'
      )
      x = encoder(ids)[:, 0]
      x = jnp.tanh(nn.Dense(hidden, name='dense')(x))
      return nn.Dense(3, name='output')(x)

  model = Classifier()
  rng = np.random.default_rng(0)
  shape = (_BATCH.value, _LENGTH.value)
  ids = jnp.asarray(rng.integers(4, _VOCAB, shape), jnp.int32)
  batch = {'ids': ids, 'labels': jnp.zeros(_BATCH.value, jnp.int32)}
  params = jax.jit(model.init)(jax.random.key(0), ids)['params']

  def loss_fn(params, model_state, batch, rng):
    del rng
    logits = model.apply({'params': params}, batch['ids'])
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['labels']
    ).mean()
    return loss, (model_state, {})

  return model, params, batch, loss_fn


_MODES = {
  'full': {'mode': 'full'},
  'adapter': {'mode': 'adapter'},
  'layer_norm': {'mode': 'layer_norm'},
  'top_1': {'mode': 'top_k', 'k': 1},
  'head': {'mode': 'head'},
}


def _steps():
  """Mode -> state, step and batch."""
  import jax

  from jaxpapers import adapters

  _, params, batch, loss_fn = _parts()
  # Full fine-tuning has no adapters.
  bare, _ = adapters.partition_params(params, lambda p: '_adapter/' not in p)
  tx = adapters.bert_adam(1e-4)
  made = {}
  for name, options in _MODES.items():
    tree = params if name == 'adapter' else bare
    if name == 'full':
      trainable, frozen = tree, {}
    else:
      trainable, frozen = adapters.partition_params(tree, **options)
    if name != 'adapter':
      # The model has adapters: removed, they cost nothing.
      loss = _without_adapters(loss_fn)
    else:
      loss = loss_fn
    state = adapters.create_finetune_state(trainable, tx, jax.random.key(0))
    made[name] = (
      state,
      adapters.make_finetune_step(loss, tx, frozen),
      batch,
    )
  return made


def _without_adapters(loss_fn):
  """The loss of the model without adapters, on its own parameters."""
  import flax.linen as nn

  from jaxpapers.adapters import BottleneckAdapter

  def skip(call_next, args, kwargs, context):
    if isinstance(context.module, BottleneckAdapter):
      return args[0]
    return call_next(*args, **kwargs)

  def loss(*args):
    with nn.intercept_methods(skip):
      return loss_fn(*args)

  return loss


def _flops():
  from jaxpapers import adapters

  out = {}
  for name, (state, step, batch) in _steps().items():
    cost = step.lower(state, batch).compile().cost_analysis()
    out[name] = {
      'flops': cost['flops'],
      'trained': adapters.count_params(state.params),
      'optimizer_bytes': adapters.tree_bytes(state.opt_state),
      'task_bytes': adapters.tree_bytes(state.params),
    }
  full = out['full']['flops']
  for numbers in out.values():
    numbers['flops_over_full'] = round(numbers['flops'] / full, 3)
  return out


def _step():
  import jax

  calls = {}
  for name, (state, step, batch) in _steps().items():
    held = [state]

    def call(held=held, step=step, batch=batch):
      held[0], _ = step(held[0], batch)
      jax.block_until_ready(held[0])

    calls[name] = _timed(call)
  peer = None
  if _PEER.value:
    options = {
      'vocab': _VOCAB,
      'hidden': _HIDDEN.value,
      'layers': _LAYERS.value,
      'heads': max(1, _HIDDEN.value // 32),
      'length': _LENGTH.value,
      'batch': _BATCH.value,
      'size': _SIZE.value,
      'threads': _THREADS.value,
    }
    peer = subprocess.Popen(
      [_PEER.value, '-c', _PEER_CODE, json.dumps(options)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      # Its threads would go on spinning while it is our turn.
      env={'OMP_WAIT_POLICY': 'PASSIVE', 'KMP_BLOCKTIME': '0', **os.environ},
    )
    if peer.stdout.readline().strip() != 'ready':
      raise RuntimeError('the peer did not start; see its message above')

    def ask(name):
      peer.stdin.write(f'{name}\n')
      peer.stdin.flush()
      return tuple(map(float, peer.stdout.readline().split()))

    calls['adapterhub_adapter'] = lambda: ask('adapter')
    calls['adapterhub_full'] = lambda: ask('full')
  times = _alternate(calls)
  if peer is not None:
    peer.stdin.close()
    peer.wait()
  out = _summary(times)
  for kind in ('milliseconds_median', 'cpu_milliseconds_median'):
    found = out[kind]
    out[kind.replace('milliseconds_median', 'over_full')] = {
      name: round(value / found['full'], 3) for name, value in found.items()
    }
    if peer is not None:
      out[kind.replace('milliseconds_median', 'over_adapterhub')] = {
        name: round(found[name] / found[f'adapterhub_{name}'], 3)
        for name in ('adapter', 'full')
      }
  return out


def _bank():
  import jax
  import numpy as np

  from jaxpapers import adapters

  model, params, batch, _ = _parts()
  task, frozen = adapters.partition_params(params, 'adapter')

  def apply(params, ids):
    return model.apply({'params': params}, ids)

  single = jax.jit(
    lambda task, frozen, ids: apply(adapters.merge_params(task, frozen), ids)
  )
  ids = batch['ids']
  calls = {'one_model': lambda: single(task, frozen, ids)}
  for count in (1, 8, 64):
    bank = adapters.AdapterBank.create({f'task{i}': task for i in range(count)})
    predict = bank.predictor(apply, frozen)
    rows = np.arange(len(ids), dtype=np.int32) % count
    calls[f'bank_{count}'] = lambda b=bank, p=predict, r=rows: p(b, r, ids)

  times = _alternate(
    {
      name: _timed(lambda call=call: jax.block_until_ready(call()))
      for name, call in calls.items()
    }
  )
  out = _summary(times)
  medians = out['milliseconds_median']
  out['texts_per_second'] = {
    name: round(1e3 * _BATCH.value / t) for name, t in medians.items()
  }
  for kind in ('milliseconds_median', 'cpu_milliseconds_median'):
    one = out[kind]['one_model']
    name = kind.replace('milliseconds_median', 'throughput_over_one_model')
    out[name] = {key: round(one / t, 3) for key, t in out[kind].items()}
  return out


def _timed(call):
  """Function that calls another: milliseconds by the clock, and of CPUs."""

  def run():
    start, cpu = time.perf_counter(), time.process_time()
    call()
    return (
      1e3 * (time.perf_counter() - start),
      1e3 * (time.process_time() - cpu),
    )

  return run


def _alternate(calls):
  """Milliseconds of each call, by the clock and of CPUs, in turns."""
  times = {name: [] for name in calls}
  for call in calls.values():
    call()  # Compiles.
  for _ in range(_REPEATS.value):
    for name, call in calls.items():
      times[name].append(call())
  return times


def _summary(times):
  out = {}
  for i, kind in enumerate(('milliseconds', 'cpu_milliseconds')):
    for name, pick in (('median', statistics.median), ('min', min)):
      out[f'{kind}_{name}'] = {
        key: round(pick([pair[i] for pair in pairs]), 2)
        for key, pairs in times.items()
      }
  return out


def main(argv):
  """Measures, prints."""
  del argv
  import jax

  parts = {'flops': _flops, 'step': _step, 'bank': _bank}
  unknown = set(_PARTS.value) - set(parts)
  if unknown:
    raise app.UsageError(f'--parts: {sorted(unknown)}; of {sorted(parts)}')
  result = {
    'jax': jax.__version__,
    'device': jax.devices()[0].device_kind,
    'cpus': os.cpu_count(),
    'load_of_the_machine': os.getloadavg()[0],
    'machine': platform.machine(),
    'sizes': {
      name: flags.FLAGS[name].value
      for name in ('layers', 'hidden', 'length', 'batch', 'size')
    },
  }
  for name in _PARTS.value:
    result[name] = parts[name]()
  json.dump(result, sys.stdout, indent=2)
  print()


if __name__ == '__main__':
  app.run(main)
