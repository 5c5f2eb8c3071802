"""Layca's cost: beside other optimizers, in sweeps, and in a training step.

Prints one JSON object. Every number is a wall-clock time of this run; peers and
ours alternate, so that a busy machine slows all of them alike. Ratios are of
medians and of minima.

  python benchmarks/layca.py                  # everything, several minutes
  python benchmarks/layca.py --parts=update --repeats=30
  python benchmarks/layca.py --parts=wide_resnet --batch=16

What is measured:
  update: update and apply_updates of one jitted, donated step on the 15 kernels
    (15.0M parameters) of the network C10-CNN2 against optax's fromage (the
    nearest relative: norms, but no projection), lars, sgd and adam.
  compilations: programs made while a schedule runs through 100 steps.
  sweep: eight learning rates of the MNIST network as one vmapped program,
    against a loop over eight runs that share one compiled step, and against
    eight runs that each compile theirs.
  wide_resnet: a whole training step of WRN-28-10 with and without Layca.
"""

import functools
import json
import os
import platform
import statistics
import sys
import time

from absl import app, flags

_PARTS = flags.DEFINE_list(
  'parts',
  ['update', 'compilations', 'sweep', 'wide_resnet'],
  'What to measure.',
)
_REPEATS = flags.DEFINE_integer('repeats', 20, 'Alternations of the updates.')
_BATCH = flags.DEFINE_integer('batch', 8, 'Images in a step of the WRN-28-10.')
_STEPS = flags.DEFINE_integer('steps', 20, 'Steps of each run of the sweep.')

# The kernels of C10-CNN2 (convolutions height, width, in, out).
_CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, *(512,) * 6)
_SHAPES = (
  *((3, 3, a, b) for a, b in zip(_CHANNELS, _CHANNELS[1:])),
  (512, 512),
  (512, 10),
)
_RATE = 3.0**-3


def _tree(seed):
  import jax

  key = jax.random.key(seed)
  return {
    f'layer{i:02d}': {
      'kernel': 0.05 * jax.random.normal(jax.random.fold_in(key, i), shape)
    }
    for i, shape in enumerate(_SHAPES)
  }


def _alternate(calls, repeats):
  """Milliseconds of each call, in turns."""
  times = {name: [] for name in calls}
  for call in calls.values():
    call()  # Compiles.
  for _ in range(repeats):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      times[name].append(1e3 * (time.perf_counter() - start))
  return times


def _summary(times, against=()):
  out = {
    'milliseconds_median': {
      name: round(statistics.median(t), 2) for name, t in times.items()
    },
    'milliseconds_min': {name: round(min(t), 2) for name, t in times.items()},
  }
  for ours, peer in against:
    out[f'{ours}_over_{peer}'] = {
      'median': round(
        statistics.median(times[ours]) / statistics.median(times[peer]), 3
      ),
      'min': round(min(times[ours]) / min(times[peer]), 3),
    }
  return out


def _stepper(tx, params, gradients):
  """A call that makes one donated update, keeping its parameters."""
  import jax
  import jax.numpy as jnp
  import optax

  params = jax.tree.map(jnp.copy, params)
  held = [params, tx.init(params)]

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, gradients):
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  def call():
    held[:] = step(*held, gradients)
    jax.block_until_ready(held)

  return call


def _update():
  import jax
  import optax

  from jaxpapers import layca

  gradients = _tree(1)
  optimizers = {
    'sgd': optax.sgd(_RATE),
    'adam': optax.adam(1e-3),
    'lars': optax.lars(_RATE),
    'fromage': optax.fromage(_RATE),
    'layca': layca.layca(_RATE),
    'hyperball': layca.hyperball(_RATE),
    'adam_layca': optax.chain(optax.scale_by_adam(), layca.layca(_RATE)),
  }
  calls = {
    name: _stepper(tx, _tree(0), gradients) for name, tx in optimizers.items()
  }
  times = _alternate(calls, _REPEATS.value)
  pairs = [
    ('layca', 'fromage'),
    ('layca', 'lars'),
    ('layca', 'adam'),
    ('adam_layca', 'adam'),
  ]
  state = jax.eval_shape(optimizers['layca'].init, _tree(0))
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  return {
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(gradients)),
    'kernels': len(_SHAPES),
    'repeats': _REPEATS.value,
    'state_bytes_per_layer': round(size / len(_SHAPES), 2),
    **_summary(times, pairs),
  }


def _compilations():
  import jax
  import jax.numpy as jnp
  import optax

  from jaxpapers import layca

  schedule = layca.keras_step_schedule(_RATE, 0.2, (5, 7, 9), 10)
  tx = layca.with_layca(optax.trace(0.9), schedule)
  params = {'kernel': jnp.ones((64, 32)), 'bias': jnp.zeros(32)}
  traces = []

  @jax.jit
  def step(params, state, gradients):
    traces.append(None)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for i in range(100):
    gradients = jax.tree.map(lambda p, i=i: p + i, params)
    params, state = step(params, state, gradients)
  return {
    'steps': 100,
    'drops': 3,
    'traces': len(traces),
    'programs': step._cache_size(),
  }


def _sweep():
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from jaxpapers import layca
  from jaxpapers.layca import models

  model, batch, members = models.MnistMLP(), 256, 8
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.standard_normal((batch, 28, 28, 1)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 10, batch))
  rates = 3.0 ** -jnp.linspace(2, 5, members)
  variables = model.init(jax.random.key(0), images, train=False)
  rest = {k: v for k, v in variables.items() if k != 'params'}

  def loss(params):
    logits, _ = model.apply(
      {'params': params, **rest}, images, train=True, mutable=list(rest)
    )
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return entropy.mean()

  def step(params, state, rate):
    tx = layca.layca_sgd(rate)
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  params = variables['params']
  state = layca.layca_sgd(_RATE).init(params)
  # As a script starts: every run has its own copy.
  many = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (members, *jnp.shape(x))), (params, state)
  )

  def run(function, start, rate):
    for _ in range(_STEPS.value):
      start = function(*start, rate)
    jax.block_until_ready(start)

  together = jax.jit(jax.vmap(step))
  shared = jax.jit(step)

  def loop():
    for rate in rates:
      run(shared, (params, state), rate)

  def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

  def each_compiles():
    for rate in rates.tolist():
      one = jax.jit(functools.partial(step, rate=rate))
      run(lambda p, s, _, one=one: one(p, s), (params, state), None)

  vmapped = functools.partial(run, together, many, rates)
  first = {
    'vmapped': seconds(vmapped),
    'loop_sharing_one_program': seconds(loop),
    'loop_compiling_each': seconds(each_compiles),
  }
  times = _alternate({'vmapped': vmapped, 'loop': loop}, 5)
  return {
    'network': 'MNIST MLP',
    'members': members,
    'batch': batch,
    'steps': _STEPS.value,
    'seconds_with_compilation': {k: round(t, 2) for k, t in first.items()},
    'speedup_with_compilation': round(
      first['loop_compiling_each'] / first['vmapped'], 2
    ),
    **_summary(times, [('loop', 'vmapped')]),
  }


def _wide_resnet():
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from jaxpapers import layca
  from jaxpapers.layca import models_residual

  model = models_residual.WideResNet()
  rng = np.random.default_rng(0)
  shape = (_BATCH.value, 32, 32, 3)
  images = jnp.asarray(rng.standard_normal(shape), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 100, _BATCH.value))
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), images
  )
  rest = {k: v for k, v in variables.items() if k != 'params'}

  def loss(params):
    logits, _ = model.apply(
      {'params': params, **rest},
      images,
      train=True,
      mutable=list(rest),
      rngs={'dropout': jax.random.key(1)},
    )
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return entropy.mean()

  def stepper(tx):
    held = [variables['params'], tx.init(variables['params'])]

    @jax.jit
    def step(params, state):
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return optax.apply_updates(params, updates), state

    def call():
      held[:] = step(*held)
      jax.block_until_ready(held)

    return call

  optimizers = {'sgd': optax.sgd(_RATE), 'layca': layca.layca_sgd(_RATE)}
  # A full step varies by more than Layca costs: the updates alone, too.
  gradients = jax.tree.map(jnp.sin, variables['params'])
  alone = _alternate(
    {
      n: _stepper(tx, variables['params'], gradients)
      for n, tx in optimizers.items()
    },
    _REPEATS.value,
  )
  steps = _alternate({n: stepper(tx) for n, tx in optimizers.items()}, 5)
  extra = statistics.median(alone['layca']) - statistics.median(alone['sgd'])
  base = statistics.median(steps['sgd'])
  leaves = jax.tree.leaves(variables['params'])
  return {
    'parameters': sum(leaf.size for leaf in leaves),
    'batch': _BATCH.value,
    'step': _summary(steps, [('layca', 'sgd')]),
    'update_alone': _summary(alone),
    'overhead_percent_of_step': {
      'from_whole_steps': round(
        100 * (statistics.median(steps['layca']) / base - 1), 1
      ),
      'from_updates_alone': round(100 * extra / base, 1),
    },
  }


def main(argv):
  """Runs the chosen parts and prints one JSON object."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  parts = {
    'update': _update,
    'compilations': _compilations,
    'sweep': _sweep,
    'wide_resnet': _wide_resnet,
  }
  unknown = set(_PARTS.value) - set(parts)
  if unknown:
    raise app.UsageError(f'--parts: {sorted(unknown)}; choose of {list(parts)}')
  import jax

  result = {
    'machine': f'{platform.processor() or platform.machine()},'
    f' {os.cpu_count()} cores, {jax.default_backend()}',
    'jax': jax.__version__,
  }
  for part in _PARTS.value:
    result[part] = parts[part]()
    print(json.dumps({part: result[part]}), file=sys.stderr)
  print(json.dumps(result, indent=2))


if __name__ == '__main__':
  app.run(main)
