"""Speed of EfficientNet against timm, and of the depthwise convolutions.

Prints one JSON object. What is compared alternates in one run, so that a busy
machine slows all of it alike. Times are wall-clock milliseconds and, as cpu_ms,
those that the process spent on all its threads.

  python benchmarks/efficientnet.py                     # minutes on one core
  python benchmarks/efficientnet.py --parts=depthwise
  python benchmarks/efficientnet.py --parts=inference,training \
      --models=b0,b1 --peer_python=venv/bin/python   # one with torch and timm

What is measured:
  depthwise: forward, and forward with both gradients, of each formulation at
    the shapes of B0.
  inference: logits of a batch at the model's resolution; with --peer_python
    also those of timm, in NCHW and in channels_last.
  training: a step with labels smoothed, RMSProp, statistics of the batch; timm
    in channels_last, without its optimizer's own overhead: the same rule.

On a GPU the peer runs there too, in channels_last: --dtype=bfloat16 is autocast
for it, and --compile has it compiled as well. share_of_peak counts two
operations for each of macs_per_image, in training three times as many.
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
  'parts', ['depthwise', 'inference', 'training'], 'What to measure.'
)
_MODELS = flags.DEFINE_list('models', ['b0'], 'Networks.')
_BATCH = flags.DEFINE_integer('batch', 8, 'Images of a batch.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Alternations.')
_THREADS = flags.DEFINE_integer(
  'threads', len(os.sched_getaffinity(0)), 'Threads of the peer.'
)
_DTYPE = flags.DEFINE_string(
  'dtype', '', 'Type of the computation: empty for float32, or bfloat16.'
)
_REMAT = flags.DEFINE_bool('remat', False, 'Compute blocks again in training.')
_COMPILE = flags.DEFINE_bool('compile', False, 'Measure torch.compile, too.')
_PEER = flags.DEFINE_string('peer_python', '', 'Python with torch and timm.')

# Height, channels, kernel, stride.
_SHAPES = (
  (112, 32, 3, 1),
  (112, 96, 3, 2),
  (56, 144, 3, 1),
  (56, 144, 5, 2),
  (28, 240, 5, 1),
  (14, 672, 5, 1),
  (7, 1152, 5, 1),
)

_PEER_CODE = r"""
import contextlib, json, sys, time
import torch
import timm
o = json.loads(sys.argv[1])
torch.manual_seed(0)
torch.set_num_threads(o['threads'])
size = o['resolution']
cuda = o['device'] == 'gpu' and torch.cuda.is_available()
device = 'cuda' if cuda else 'cpu'
wait = torch.cuda.synchronize if cuda else lambda: None
if o['dtype'] == 'bfloat16':
  half = lambda: torch.autocast(device, torch.bfloat16)
else:
  half = contextlib.nullcontext
calls, errors, peaks = {}, {}, {}
kinds = ['channels_last', 'compiled'] if o['compile'] else ['channels_last']
if o['part'] == 'inference' and not cuda:
  kinds.insert(0, 'contiguous')
for kind in kinds:
  memory = torch.channels_last
  if kind == 'contiguous':
    memory = torch.contiguous_format
  net = timm.create_model('efficientnet_' + o['model'], pretrained=False)
  net = net.to(device, memory_format=memory)
  x = torch.randn(o['batch'], 3, size, size, device=device)
  x = x.to(memory_format=memory)
  net.train(o['part'] == 'training')
  run = torch.compile(net) if kind == 'compiled' else net
  if o['part'] == 'inference':
    def call(run=run, x=x):
      with torch.inference_mode(), half():
        run(x)
  else:
    labels = torch.zeros(o['batch'], dtype=torch.long, device=device)
    opt = torch.optim.RMSprop(
      net.parameters(), lr=1e-3, alpha=.9, eps=1e-3, momentum=.9)
    loss_fn = torch.nn.CrossEntropyLoss(label_smoothing=.1)
    def call(run=run, x=x, opt=opt, labels=labels):
      opt.zero_grad()
      with half():
        loss = loss_fn(run(x), labels)
      loss.backward()
      opt.step()
  if cuda:
    torch.cuda.reset_peak_memory_stats()
  try:
    call()
    wait()
  except Exception as error:
    errors['timm_' + kind] = ' '.join(str(error).split())[:200]
    continue
  if cuda:
    peaks['timm_' + kind] = torch.cuda.max_memory_allocated()
  calls['timm_' + kind] = call
print(json.dumps({'names': list(calls), 'versions':
  {'torch': torch.__version__, 'timm': timm.__version__, 'peer_errors': errors,
   'peer_peak_bytes': peaks}}), flush=True)
for line in sys.stdin:
  wall, cpu = time.perf_counter(), time.process_time()
  calls[line.strip()]()
  wait()
  print(json.dumps([1e3 * (time.perf_counter() - wall),
                    1e3 * (time.process_time() - cpu)]), flush=True)
"""


class _Peer:
  """Another Python that measures timm when it is told to."""

  def __init__(self, part, model, resolution):
    import jax

    options = {
      'device': jax.default_backend(),
      'dtype': _DTYPE.value,
      'compile': _COMPILE.value,
      'part': part,
      'model': model,
      'resolution': resolution,
      'batch': _BATCH.value,
      'threads': _THREADS.value,
    }
    self._process = subprocess.Popen(
      [_PEER.value, '-c', _PEER_CODE, json.dumps(options)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      # Its threads would go on spinning while it is our turn.
      env={'OMP_WAIT_POLICY': 'PASSIVE', 'KMP_BLOCKTIME': '0', **os.environ},
    )
    self.about = json.loads(self._process.stdout.readline())

  def call(self, name):
    """Milliseconds of wall clock and of the processor."""
    print(name, file=self._process.stdin, flush=True)
    return json.loads(self._process.stdout.readline())

  def close(self):
    """Ends it."""
    self._process.stdin.close()
    self._process.wait()


def _timed(compiled, *args):
  import jax

  def call():
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(compiled(*args))
    return [
      1e3 * (time.perf_counter() - wall),
      1e3 * (time.process_time() - cpu),
    ]

  call()
  return call


def _alternate(calls):
  """Medians of each, taken in turn."""
  found = {name: [] for name in calls}
  for _ in range(_REPEATS.value):
    for name, call in calls.items():
      found[name].append(call())
  return {
    name: {
      'ms': round(statistics.median(wall for wall, _ in rows), 2),
      'cpu_ms': round(statistics.median(cpu for _, cpu in rows), 2),
    }
    for name, rows in found.items()
  }


def _depthwise():
  import jax
  import jax.numpy as jnp

  from jaxpapers import nn

  rows = []
  for height, channels, kernel, stride in _SHAPES:
    key = jax.random.key(0)
    dtype = _DTYPE.value or 'float32'
    size = (_BATCH.value, height, height, channels)
    x = jax.random.normal(key, size, dtype)
    w = jax.random.normal(key, (kernel, kernel, 1, channels), dtype)
    calls = {}
    for impl in ('lax', 'shift', 'shift_vjp', 'auto'):

      def forward(x, w, impl=impl, stride=stride):
        return nn.depthwise_conv(x, w, stride, 'SAME', impl)

      def both(x, w, forward=forward):
        y, back = jax.vjp(forward, x, w)
        return y, back(jnp.ones_like(y))

      for name, f in (('forward', forward), ('with_gradients', both)):
        compiled = jax.jit(f).lower(x, w).compile()
        calls[f'{impl} {name}'] = _timed(compiled, x, w)
    row = {
      'height': height,
      'channels': channels,
      'kernel': kernel,
      'stride': stride,
    }
    times = _alternate(calls)
    for name in ('forward', 'with_gradients'):
      slow, fast = times[f'lax {name}'], times[f'auto {name}']
      kind = 'cpu_ms' if jax.default_backend() == 'cpu' else 'ms'
      row[f'lax_over_auto_{name}'] = round(slow[kind] / fast[kind], 2)
    rows.append(row | times)
  return rows


def _network(model, part):
  """Our compiled program, and what it takes."""
  import jax
  import jax.numpy as jnp
  import optax

  from jaxpapers import efficientnet

  config = efficientnet.config_for(
    f'efficientnet-{model}',
    dtype=_DTYPE.value or None,
    remat=_REMAT.value,
    # As timm's defaults, which are compared.
    survival_prob=None,
    dropout_rate=0.0,
  )
  net = efficientnet.EfficientNet(config)
  size = (_BATCH.value, config.resolution, config.resolution, 3)
  x = jax.random.normal(jax.random.key(0), size)
  variables = jax.jit(net.init)(jax.random.key(0), x[:1])
  if part == 'inference':
    compiled = jax.jit(net.apply).lower(variables, x).compile()
    return config, compiled, (variables, x)
  tx = optax.rmsprop(
    1e-3, 0.9, 1e-3, initial_scale=1.0, eps_in_sqrt=True, momentum=0.9
  )
  labels = jnp.zeros(_BATCH.value, jnp.int32)
  targets = optax.smooth_labels(jax.nn.one_hot(labels, 1000), 0.1)

  def step(variables, state, x):
    def loss_fn(params):
      logits, new = net.apply(
        {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
      )
      return optax.softmax_cross_entropy(logits, targets).mean(), new

    (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      variables['params']
    )
    updates, state = tx.update(grads, state, variables['params'])
    params = optax.apply_updates(variables['params'], updates)
    return {'params': params, **new}, state, loss

  state = tx.init(variables['params'])
  compiled = jax.jit(step).lower(variables, state, x).compile()
  return config, compiled, (variables, state, x)


def _compare(part):
  import jax

  from jaxpapers import efficientnet, training

  rows = []
  for model in _MODELS.value:
    start = time.perf_counter()
    config, compiled, args = _network(model, part)
    row = {
      'model': model,
      'resolution': config.resolution,
      'batch': _BATCH.value,
      'compile_s': round(time.perf_counter() - start, 1),
      'macs_per_image': efficientnet.count_macs(config).total,
      'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
    }
    calls = {'ours': _timed(compiled, *args)}
    peer = None
    if _PEER.value:
      peer = _Peer(part, model, config.resolution)
      row |= peer.about['versions']
      for name in peer.about['names']:
        calls[name] = lambda name=name, peer=peer: peer.call(name)
    times = _alternate(calls)
    if peer:
      peer.close()
    for name in times:
      # On an accelerator the processor only waits.
      kind = 'cpu_ms' if jax.default_backend() == 'cpu' else 'ms'
      if name != 'ours':
        row[f'ours_over_{name}'] = round(
          times['ours'][kind] / times[name][kind], 3
        )
    ours = times['ours']['ms']
    row['images_per_s'] = round(1e3 * _BATCH.value / ours, 2)
    peak = training.peak_flops()
    if peak:
      # Both gradients of a product take as long as the product.
      flops = 2 * row['macs_per_image'] * (3 if part == 'training' else 1)
      row['share_of_peak'] = round(row['images_per_s'] * flops / peak, 4)
    rows.append(row | times)
    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
  return rows


def main(argv):
  """Measures and prints."""
  del argv
  import jax

  device = jax.devices()[0]
  found = {
    'machine': platform.machine(),
    'cores': len(os.sched_getaffinity(0)),
    'device': f'{device.platform} {device.device_kind}',
    'jax': jax.__version__,
    'dtype': _DTYPE.value or 'float32',
  }
  for part in _PARTS.value:
    if part == 'depthwise':
      found[part] = _depthwise()
    elif part in ('inference', 'training'):
      found[part] = _compare(part)
    else:
      sys.exit(f'--parts: {part!r} is none of depthwise, inference, training.')
  print(json.dumps(found, indent=2))


if __name__ == '__main__':
  app.run(main)
