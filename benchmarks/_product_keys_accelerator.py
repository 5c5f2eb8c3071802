"""Parts of `product_keys.py` for GPUs and TPUs: sums of rows, whole models."""

import dataclasses
import functools
import gc
import json
import statistics
import sys
import time

import _side_by_side

# Of the paper: 4 heads of 32 reads, rows as wide as its models.
_WIDTH, _READS = 1024, 128


def milliseconds(calls, repeats, inner=10):
  """Medians of calls in turns; each queues `inner` and waits for the last.

  Args:
    calls: Name -> a pair: the call, and what waits for its result.
    repeats: How often each is measured, after once that is not.
    inner: Calls that are queued together, so that the host is not measured.

  Returns:
    Milliseconds of one call for each name.
  """
  times = {name: [] for name in calls}
  for call, wait in calls.values():
    wait(call())
  for _ in range(repeats):
    for name, (call, wait) in calls.items():
      start = time.perf_counter()
      for _ in range(inner):
        result = call()
      wait(result)
      times[name].append(1e3 * (time.perf_counter() - start) / inner)
  return {name: statistics.median(rows) for name, rows in times.items()}


def _ours(function, *arguments):
  import jax

  return functools.partial(function, *arguments), jax.block_until_ready


def _copy_speed(elements, repeats):
  """Bytes read and written per second."""
  import jax
  import jax.numpy as jnp

  big = jnp.ones((elements,), jnp.float32)
  times = milliseconds(
    {'copy': _ours(jax.jit(lambda x: x + 1), big)}, repeats, 5
  )
  return 2 * big.nbytes / (1e-3 * times['copy'])


def _torch_bag(ids, n, dtype):
  """Torch's sum of rows on the same device, or nothing."""
  if not _side_by_side.has('torch'):
    return {}
  import numpy as np
  import torch

  if not torch.cuda.is_available():
    return {}
  cuda = {'device': 'cuda'}
  table = torch.randn(n * n, _WIDTH, dtype=getattr(torch, dtype), **cuda)
  places = torch.as_tensor(np.asarray(ids), **cuda).long()
  weights = torch.softmax(torch.randn(ids.shape, **cuda), 1).to(table.dtype)

  def forward():
    return torch.nn.functional.embedding_bag(
      places, table, per_sample_weights=weights, mode='sum'
    )

  return {'forward torch': (forward, lambda y: torch.cuda.synchronize())}


def bag(sizes, tokens, repeats, dtype='bfloat16'):
  """Sums of rows and gradients of weights, each as a share of a copy's speed.

  Counted are the rows alone, each read once for each time it is named.
  """
  import jax
  import jax.numpy as jnp

  from jaxpapers import product_keys as pk

  on_cpu = jax.default_backend() == 'cpu'
  speed = _copy_speed(2**22 if on_cpu else 2**28, repeats)
  result = {
    'device': jax.devices()[0].device_kind,
    'copy_gigabytes_per_second': round(speed / 1e9),
    'tokens': tokens,
  }
  keys = jax.random.split(jax.random.key(0), 4)
  for n in sizes:
    table = jax.random.normal(keys[0], (n * n, _WIDTH), dtype)
    ids = jax.random.randint(keys[1], (tokens, _READS), 0, n * n)
    weights = jax.nn.softmax(jax.random.normal(keys[2], (tokens, _READS)))
    g = jax.random.normal(keys[3], (tokens, _WIDTH))
    moved = tokens * _READS * _WIDTH * table.dtype.itemsize
    calls, error = {}, {}
    want = None
    for impl in ('gather', 'scan', 'pallas'):
      sum_rows = functools.partial(pk.embedding_bag, impl=impl)

      def weights_of(table, ids, weights, g, sum_rows=sum_rows):
        back = jax.vjp(lambda w: sum_rows(table, ids, w), weights)[1]
        return back(g)[0]

      found = []
      for name, function, arguments in (
        ('forward', sum_rows, (table, ids, weights)),
        ('gradient_of_weights', weights_of, (table, ids, weights, g)),
      ):
        try:
          call = jax.jit(function).lower(*arguments).compile()
          found.append(call(*arguments))
        except Exception as problem:
          # A formulation that a device has not is a result, too.
          error[f'{name} {impl}'] = ' '.join(str(problem).split())[:200]
          continue
        calls[f'{name} {impl}'] = _ours(call, *arguments)
      if impl == 'gather':
        want = found
      elif len(found) == 2:
        error[f'largest difference {impl}'] = [
          float(jnp.abs(a - b).max()) for a, b in zip(found, want, strict=True)
        ]
    calls |= _torch_bag(ids, n, dtype)
    times = milliseconds(calls, repeats)
    result[f'n{n}'] = error | {
      name: {
        'milliseconds': round(value, 3),
        'share_of_copy': round(moved / (1e-3 * value) / speed, 3),
      }
      for name, value in times.items()
    }
    _say(result[f'n{n}'])
    del calls, table, want, found
    gc.collect()
  return result


def update(sizes, tokens, repeats):
  """A training step of a layer of width 1024, tables and moments of float32."""
  import jax
  import jax.numpy as jnp
  import optax

  from jaxpapers import product_keys as pk

  result = {'tokens': tokens}
  for n in sizes:
    for mode in ('lazy', 'dense'):
      if mode == 'dense' and n > 512:
        continue  # Its gradients and moments would be written whole.
      layer = pk.ProductKeyMemory(n_keys=n, k_dim=256, heads=4, knn=32)
      x = jax.random.normal(jax.random.key(1), (tokens, _WIDTH))
      variables = dict(
        jax.jit(functools.partial(layer.init, train=False))(
          jax.random.key(0), x[:8]
        )
      )
      params = {name: variables.pop(name) for name in ('params', 'memory')}
      tx = pk.memory_optimizer(optax.adam(1e-3), 1e-3, mode)

      def loss_fn(params, state, batch, rng, layer=layer):
        del rng
        y, state = layer.apply(
          {**params, **state}, batch, train=True, mutable=list(state)
        )
        return jnp.square(y).mean(), (dict(state), {})

      gradients = pk.sparse_value_and_grad(loss_fn)

      @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
      def step(params, state, opt_state, x, tx=tx, gradients=gradients):
        (loss, (state, _)), grads = gradients(params, state, x, None)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, loss

      held = [params, variables, jax.jit(tx.init)(params)]
      del params, variables

      def call(held=held, step=step, x=x):
        *held[:], loss = step(*held, x)
        return loss

      times = milliseconds({'step': (call, jax.block_until_ready)}, repeats)
      row = {'milliseconds': round(times['step'], 3), **_peak()}
      result[f'n{n} {mode}'] = row
      _say({f'n{n} {mode}': row})
      del held, call
      gc.collect()
  return result


def model(layers, batch, repeats, small=False):
  """Words per second of the paper's 12 layers with a memory, and of others.

  Args:
    layers: Pairs of a number of layers and where memories are.
    batch: Sequences of 256 tokens.
    repeats: How often each is measured.
    small: Whether to try it with a small model, on a processor.

  Returns:
    Of each model: words per second of inference and of training.
  """
  import jax

  from jaxpapers import product_keys as pk
  from jaxpapers.product_keys import recipes

  result = {'batch': batch, 'length': 256, 'vocabulary': 60_000}
  tokens = jax.random.randint(jax.random.key(0), (batch, 256), 3, 60_000)
  for number, positions, bag_impl in layers:
    config = recipes.language_model_config('paper')
    config.num_layers, config.memory_positions = number, positions
    config.batch_size, config.remat = batch, False
    if small:
      config.d_model, config.k_dim, config.n_keys = 64, 16, 32
    name = f'{number} layers'
    if positions:
      name += f', memory in {positions}, {bag_impl}'
    sum_rows = functools.partial(pk.embedding_bag, impl=bag_impl)
    net = recipes.make_model(config, 60_000, sum_rows)
    job = dataclasses.replace(
      recipes.language_model_job(config, 60_000),
      loss_for=lambda mesh, net=net: pk.language_model_loss(net),
    )
    state = job.state(jax.random.key(0))
    forward = jax.jit(functools.partial(net.apply, train=False))
    variables = {**state.params, **state.model_state}
    times = milliseconds(
      {'inference': _ours(forward, variables, tokens)}, repeats, 5
    )
    del variables
    step, held = job.step(), [state]
    del state
    data = {'inputs': tokens, 'targets': tokens}

    def call(held=held, step=step, data=data):
      held[0], metrics = step(held[0], data)
      return metrics

    times |= milliseconds(
      {'training': (call, jax.block_until_ready)}, repeats, 5
    )
    row = {'milliseconds': {k: round(v, 3) for k, v in times.items()}} | {
      f'{kind}_words_per_second': round(tokens.size / (1e-3 * value))
      for kind, value in times.items()
    }
    result[name] = row | _peak()
    _say({name: result[name]})
    del held, call
    gc.collect()
  return result


def _peak():
  """The most memory that was in use so far, where the device counts it."""
  import jax

  found = jax.devices()[0].memory_stats() or {}
  peak = found.get('peak_bytes_in_use')
  return {'peak_gigabytes_so_far': round(peak / 1e9, 2)} if peak else {}


def _say(row):
  print(json.dumps(row), file=sys.stderr, flush=True)
