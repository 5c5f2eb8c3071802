"""A memory layer beside the original one in torch, and a feed-forward layer.

Prints one JSON object. Every number is of this run; peers and ours alternate,
see `_side_by_side.py`. Ratios are ours over the peer's.

  python benchmarks/product_keys.py                 # CPU, several minutes
  python benchmarks/product_keys.py --parts=layer --n_keys=128 --tokens=256
  python benchmarks/product_keys.py --parts=bag,update,model  # a GPU or TPU

What is measured:
  layer: a layer of n^2 slots (width 512, 4 heads, 32 reads, queries of 256 with
    batch normalisation, float32) in training mode: forward; forward and
    backward, gradients of the table as rows; and a whole training step, lazy
    Adam of the rows that were read. The peer is the formulation of the paper's
    code in torch: EmbeddingBag(sparse=True) and SparseAdam, with our weights.
    `optimizer` is what comes behind the backward pass alone. Ours has the
    duplicate rows summed before it, torch sums them in it.
  ffn: a feed-forward layer of the same width, 512 -> 2048 -> 512, in both.
  search: the 32 best of N flat keys and of as many product keys, one head,
    queries of 128, 128 tokens; and the sum of 128 rows of 128 of tables of N.
  memory: temporaries that the compiler counts for the sum of rows and its
    gradients at 1024 tokens, 128 reads of 262,144 rows of 512.
  bag: with a GPU or a TPU: sums of rows and their gradients as a share of the
    bandwidth of a copy, bfloat16, 262,144 and 1,048,576 rows of 1024, beside
    torch's where it sees the GPU.
  update: with a GPU or a TPU: a training step of a layer of that size.
  model: with a GPU or a TPU: words per second of the paper's 12 layers of width
    1024 with a memory of 512 x 512 slots, without it, and of 24 layers.

Gradients have 32 to 256 MiB. For such arrays the GNU C library asks the system
for pages at each call, which takes longer than to fill them, or it finds a hole
that earlier calls left: for one of both and not for the other, and not in the
next run. So it is told to keep all memory that is freed, as other allocators
do; --nokeep_memory leaves it as it is.

The peer needs `pip install torch`; without it ours is measured alone.
"""

import ctypes
import functools
import gc
import json
import sys

import _product_keys_accelerator
import _product_keys_torch
import _side_by_side
from absl import app, flags

_PARTS = flags.DEFINE_list(
  'parts', ['layer', 'ffn', 'search', 'memory'], 'What to measure.'
)
_N_KEYS = flags.DEFINE_list('n_keys', ['128', '256', '512'], 'Keys of a half.')
_TOKENS = flags.DEFINE_list('tokens', ['256', '1024'], 'Tokens of a batch.')
_KINDS = flags.DEFINE_list(
  'kinds', ['forward', 'backward', 'optimizer', 'step'], 'Of layer and ffn.'
)
_MODE = flags.DEFINE_enum(
  'mode', 'auto', ['auto', 'lazy', 'dense'], 'Optimizer of our tables.'
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Alternations.')
_KEEP_MEMORY = flags.DEFINE_bool(
  'keep_memory', True, 'Whether the C library keeps what is freed, for both.'
)

_WIDTH, _HEADS, _KNN, _QUERY = 512, 4, 32, 256


def _compare(calls, ours='jaxpapers', peer='torch'):
  wall, cpu, _ = _side_by_side.alternate(calls, _REPEATS.value)
  return _side_by_side.summary(wall, cpu, ours, peer)


def _blocking(function, *arguments):
  """A call that returns when the result is there."""
  import jax

  return lambda: jax.block_until_ready(function(*arguments))


class _Ours:
  """A layer, its gradients and its training step, jitted."""

  def __init__(self, layer, x, cotangent, mode, sparse):
    import jax
    import optax

    from jaxpapers import product_keys as pk
    from jaxpapers import training

    self.x, self.batch = x, {'x': x, 'cotangent': cotangent}
    variables = dict(jax.jit(layer.init)(jax.random.key(0), x))
    names = [name for name in ('params', 'memory') if name in variables]
    self.params = {name: variables.pop(name) for name in names}
    self.state = variables
    self.sparse = sparse
    rate = 1e-3
    self.tx = optax.adam(rate)
    if sparse:
      self.tx = pk.memory_optimizer(self.tx, rate, mode, clip_norm=None)

    def apply(params, state, batch):
      y, state = layer.apply(
        {**params, **state}, batch['x'], mutable=list(state)
      )
      return y, dict(state)

    def loss_fn(params, state, batch, rng):
      del rng
      y, state = apply(params, state, batch)
      return (y * batch['cotangent']).sum(), (state, {})

    self._forward = jax.jit(apply)
    gradients = jax.value_and_grad(loss_fn, has_aux=True)
    if sparse:
      gradients = pk.sparse_value_and_grad(loss_fn)
    self._gradients = jax.jit(gradients)

    # In the order of the results: buffers of equal shape are paired in order.
    def update(params, opt_state, gradients):
      updates, opt_state = self.tx.update(gradients, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    self._update = jax.jit(update, donate_argnums=(0, 1, 2))
    make = pk.make_memory_train_step if sparse else training.make_train_step
    self._step = make(loss_fn, self.tx)

  def forward(self):
    """Output of a batch."""
    return _blocking(self._forward, self.params, self.state, self.batch)

  def backward(self):
    """Output and gradients; those of the table are rows."""
    import jax

    key = jax.random.key(0)
    return _blocking(self._gradients, self.params, self.state, self.batch, key)

  def optimizer(self):
    """From gradients, which it may write over, to new parameters."""
    import jax

    gradients = self.backward()()[1]
    held = [self._copy(), jax.jit(self.tx.init)(self.params)]
    given = []

    def prepare():
      copy = jax.tree.map(lambda x: x + 0, gradients)
      given[:] = [jax.block_until_ready(copy)]

    def call():
      held[:] = self._update(*held, given.pop())
      jax.block_until_ready(held)

    call.prepare = prepare
    return call

  def step(self):
    """All of it, the state donated."""
    import jax

    from jaxpapers import training

    held = [
      training.create_state(
        lambda key: (self._copy(), self.state), self.tx, jax.random.key(0)
      )
    ]

    def call():
      held[0], _ = self._step(held[0], self.batch)
      jax.block_until_ready(held[0])

    return call

  def _copy(self):
    import jax

    return jax.tree.map(lambda x: x + 0, self.params)


def _memory(n_keys):
  """Our layer; the training mode is its default here."""
  from jaxpapers import product_keys as pk

  layer = pk.ProductKeyMemory(
    n_keys=n_keys, k_dim=_QUERY, heads=_HEADS, knn=_KNN
  )
  return _Training(layer)


class _Training:
  """A memory layer in training mode, with the face of other layers."""

  def __init__(self, layer):
    self._layer = layer

  def init(self, key, x):
    """Variables."""
    return self._layer.init(key, x, train=False)

  def apply(self, variables, x, mutable):
    """Output, and what changed."""
    return self._layer.apply(variables, x, train=True, mutable=mutable)


def _feed_forward():
  import flax.linen as nn

  return nn.Sequential(
    [
      nn.Dense(4 * _WIDTH),
      functools.partial(nn.gelu, approximate=False),
      nn.Dense(_WIDTH),
    ]
  )


def _batch(tokens):
  import jax
  import jax.numpy as jnp
  import numpy as np

  random = np.random.default_rng(0)
  x, cotangent = random.standard_normal((2, tokens, _WIDTH))
  return jax.device_put(jnp.float32(x)), jax.device_put(jnp.float32(cotangent))


def _layer():
  import jax
  import numpy as np

  _side_by_side.use_threads()
  result = {}
  for n_keys in map(int, _N_KEYS.value):
    for tokens in map(int, _TOKENS.value):
      x, cotangent = _batch(tokens)
      ours = _Ours(_memory(n_keys), x, cotangent, _MODE.value, sparse=True)
      found = {'tokens': tokens, 'slots': n_keys**2}
      peers = {'jaxpapers': ours}
      if _side_by_side.has('torch'):
        import torch

        params = jax.device_get(ours.params['params'])
        values = jax.device_get(ours.params['memory']['values'])
        peers['torch'] = _product_keys_torch.memory(
          (n_keys, _WIDTH, _HEADS, _KNN, _QUERY), params, values, x, cotangent
        )
        with torch.no_grad():
          expected = peers['torch'].module(peers['torch'].x).numpy()
        y = np.asarray(ours.forward()()[0])
        found['largest_difference'] = float(np.abs(y - expected).max())
        del params, values
      for kind in _KINDS.value:
        calls = {name: getattr(peer, kind)() for name, peer in peers.items()}
        found[kind] = _compare(calls)
        del calls
        gc.collect()
      result[f'n{n_keys}_t{tokens}'] = found
      print(json.dumps({f'n{n_keys}_t{tokens}': found}), file=sys.stderr)
      del ours, peers
      gc.collect()
  return result


def _ffn():
  _side_by_side.use_threads()
  result = {}
  for tokens in map(int, _TOKENS.value):
    x, cotangent = _batch(tokens)

    class Layer:
      layer = _feed_forward()

      def init(self, key, x):
        return self.layer.init(key, x)

      def apply(self, variables, x, mutable):
        del mutable
        return self.layer.apply(variables, x), {}

    peers = {'jaxpapers': _Ours(Layer(), x, cotangent, '', sparse=False)}
    if _side_by_side.has('torch'):
      peers['torch'] = _product_keys_torch.feed_forward(x, cotangent)
    result[f't{tokens}'] = {
      kind: _compare({name: getattr(p, kind)() for name, p in peers.items()})
      for kind in _KINDS.value
    }
  return result


def _search():
  import jax
  import jax.numpy as jnp

  from jaxpapers import product_keys as pk

  tokens, width, reads = 128, 128, 128
  result = {'search': {}, 'read': {}}
  keys = jax.random.split(jax.random.key(0), 3)
  query = jax.random.normal(keys[0], (tokens, 1, width))
  flat = jax.jit(functools.partial(pk.flat_key_topk, k=_KNN))
  product = jax.jit(functools.partial(pk.product_key_topk, k=_KNN))
  bag = jax.jit(pk.embedding_bag)
  reading = {}
  for n in (128, 256, 512, 1024):
    codebooks = jax.random.normal(keys[1], (1, 2, n, width // 2))
    halves = query.reshape(tokens, 1, 2, -1)
    calls = {'product': _blocking(product, halves, codebooks)}
    if n <= 512:  # Keys of 1024^2 slots take 0.5 GB, and minutes.
      every = jax.random.normal(keys[2], (1, n * n, width))
      calls['flat'] = _blocking(flat, query, every)
    result['search'][n * n] = _compare(calls, 'product', 'flat')
    table = jax.random.normal(keys[2], (n * n, width))
    ids = jax.random.randint(keys[0], (tokens, reads), 0, n * n)
    weights = jnp.ones((tokens, reads))
    reading[n * n] = _blocking(bag, table, ids, weights)
    result['read'][n * n] = _compare({'sum': reading[n * n]})
  few, many = 256**2, 1024**2
  for name, calls in (('search', 'product'), ('read', 'sum')):
    times = [
      result[name][slots]['cpu_milliseconds_median'][calls]
      for slots in (few, many)
    ]
    result[f'{name}_{many}_over_{few}'] = round(times[1] / times[0], 2)
  return result


def _temporaries():
  import jax
  import jax.numpy as jnp

  from jaxpapers import product_keys as pk

  tokens, reads, rows = 1024, 128, 2**18
  table = jax.ShapeDtypeStruct((rows, _WIDTH), jnp.float32)
  ids = jax.ShapeDtypeStruct((tokens, reads), jnp.int32)
  weights = jax.ShapeDtypeStruct((tokens, reads), jnp.float32)
  g = jax.ShapeDtypeStruct((tokens, _WIDTH), jnp.float32)

  def gradient(table, ids, weights, g):
    return jax.vjp(lambda w: pk.embedding_bag(table, ids, w), weights)[1](g)

  def rows_of(ids, weights, g):
    return pk.row_sparse_sum([(ids, weights, g)], rows)

  programs = {
    'forward': (pk.embedding_bag, (table, ids, weights)),
    'gradient_of_weights': (gradient, (table, ids, weights, g)),
    'gradient_rows': (rows_of, (ids, weights, g)),
  }
  result = {}
  for name, (function, arguments) in programs.items():
    found = jax.jit(function).lower(*arguments).compile().memory_analysis()
    result[name] = {
      'temporary_mebibytes': round(found.temp_size_in_bytes / 2**20, 2),
      'output_mebibytes': round(found.output_size_in_bytes / 2**20, 2),
    }
  return result


def _tiny():
  """Whether to try the parts for accelerators on a processor, in small."""
  import jax

  return jax.default_backend() == 'cpu'


def _bag():
  sizes, tokens = ((64,), 16) if _tiny() else ((512, 1024), 8192)
  return _product_keys_accelerator.bag(sizes, tokens, _REPEATS.value)


def _update():
  sizes, tokens = ((64,), 16) if _tiny() else ((512, 1024), 8192)
  return _product_keys_accelerator.update(sizes, tokens, _REPEATS.value)


def _model():
  layers = (
    (12, '', ''),
    (12, '5', 'gather'),
    (12, '5', 'pallas'),
    (24, '', ''),
  )
  if _tiny():
    layers = ((2, '', ''), (2, '1', 'gather'))
  batch = 1 if _tiny() else 32
  return _product_keys_accelerator.model(
    layers, batch, _REPEATS.value, small=_tiny()
  )


def _keep_memory():
  """Has the GNU C library ask the system for memory once, and keep it."""
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # From malloc.h.
    mallopt(trim_threshold, -1)
    mallopt(mmap_max, 0)
    mallopt(arena_max, 1)


def main(argv):
  """Runs the chosen parts and prints one JSON object."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if _KEEP_MEMORY.value:
    _keep_memory()
  parts = {
    'layer': _layer,
    'ffn': _ffn,
    'search': _search,
    'memory': _temporaries,
    'bag': _bag,
    'update': _update,
    'model': _model,
  }
  _side_by_side.report(_PARTS.value, parts)


if __name__ == '__main__':
  app.run(main)
