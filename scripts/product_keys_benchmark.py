r"""What a memory costs against its size, beside flat keys and a dense layer.

Examples:
  # 4,096 to 262,144 slots, on whatever device JAX finds.
  python scripts/product_keys_benchmark.py --workdir=cost

  # Up to a million slots of 1024 on an accelerator, bfloat16, more tokens.
  python scripts/product_keys_benchmark.py --n_keys=256,512,1024 \
      --width=1024 --k_dim=512 --tokens=8192 --bfloat16 --workdir=cost

For each number of slots: milliseconds of the search among product keys and
among as many flat keys, of a whole layer with either (forward), and of a
training step of a layer with product keys, whose table has lazy Adam of the
rows that were read (auto and lazy) or Adam of all of it (dense); beside them a
feed-forward layer, width -> 4 width -> width. What is compared alternates.
With them go floating-point operations of a token, from the formulas.

Into --workdir go benchmark.json, benchmark.md and scaling.png.
"""

import functools
import io
import itertools
import json
import statistics
import time

import _command_line
import _training_command_line
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from absl import flags
from etils import epath

from jaxpapers import data, training
from jaxpapers import product_keys as pk
from jaxpapers.product_keys import figures

_N_KEYS = flags.DEFINE_list(
  'n_keys', ['64', '128', '256', '512'], 'Keys of a half; slots are squares.'
)
_FLAT_LIMIT = flags.DEFINE_integer(
  'flat_limit', 2**18, 'Most slots to search among flat keys.', lower_bound=0
)
_TOKENS = flags.DEFINE_integer('tokens', 256, 'Of a batch.', lower_bound=2)
_WIDTH = flags.DEFINE_integer('width', 256, 'Of layers.', lower_bound=1)
_K_DIM = flags.DEFINE_integer('k_dim', 128, 'Of queries.', lower_bound=2)
_HEADS = flags.DEFINE_integer('heads', 4, 'Heads.', lower_bound=1)
_KNN = flags.DEFINE_integer('knn', 32, 'Slots a head reads.', lower_bound=1)
_MODES = flags.DEFINE_list(
  'modes', ['auto', 'lazy', 'dense'], 'Optimizers of training steps, or none.'
)
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Alternations.', lower_bound=1)
_BFLOAT16 = flags.DEFINE_bool('bfloat16', False, 'Layers in bfloat16.')
_WORKDIR = flags.DEFINE_string(
  'workdir', 'product_keys_benchmark', 'Folder for the results.'
)
flags.DEFINE_string(
  'compilation_cache',
  'default',
  'Where JAX keeps compiled programs between runs: a folder, "default" or empty'
  ' for nowhere.',
)


# What is drawn.
_KINDS = {'search': 'search alone', 'forward': 'layer'}


def main() -> None:
  """Measures, writes."""
  _command_line.use_compilation_cache(flags.FLAGS.compilation_cache)
  try:
    sizes = sorted({int(n) for n in _N_KEYS.value})
    for n in sizes:
      jax.eval_shape(_layer(pk.ProductKeyMemory(**_options(n))).init, *_init())
    for mode in _MODES.value:
      pk.memory_optimizer(optax.sgd(1.0), mode=mode)
  except ValueError as error:
    raise _command_line.UsageError(_command_line.one_line(error)) from error
  if not sizes:
    raise _command_line.UsageError('--n_keys is empty; expected numbers')
  folder = epath.Path(_WORKDIR.value).expanduser()
  dense = _dense()
  rows = []
  for n in sizes:
    rows.append(_row(n, dense))
    _training_command_line.say(json.dumps(rows[-1]))
    _write(folder, rows)
  _training_command_line.say(_table(rows))


def _options(n: int) -> dict:
  return {
    'n_keys': n,
    'k_dim': _K_DIM.value,
    'heads': _HEADS.value,
    'knn': _KNN.value,
    'param_dtype': _dtype(),
  }


def _dtype():
  return jnp.bfloat16 if _BFLOAT16.value else jnp.float32


def _init():
  x = jax.random.normal(jax.random.key(1), (_TOKENS.value, _WIDTH.value))
  return jax.random.key(0), x.astype(_dtype())


class _Block(nn.Module):
  """A memory in training mode, with the face of a dense layer."""

  memory: nn.Module

  @nn.compact
  def __call__(self, x):
    return self.memory(x, train=not self.is_initializing())


def _layer(memory: nn.Module) -> nn.Module:
  return _Block(memory)


def _dense():
  """The feed-forward layer."""
  width = _WIDTH.value
  options = {'dtype': _dtype(), 'param_dtype': _dtype()}
  return nn.Sequential(
    [nn.Dense(4 * width, **options), nn.gelu, nn.Dense(width, **options)]
  )


def _row(n: int, dense: nn.Module) -> dict:
  """All numbers of one size."""
  slots = n * n
  row = {'n_keys': n, 'slots': slots, 'megaflop_per_token': _flops(n)}
  product = pk.ProductKeyMemory(**_options(n))
  flat = None
  if slots <= _FLAT_LIMIT.value:
    flat = pk.FlatMemory(**_options(n) | {'n_keys': slots})
  searches = {'product_search': _search(n)}
  forwards = {
    'product_forward': _forward(_layer(product)),
    'dense_forward': _forward(dense),
  }
  if flat is not None:
    searches['flat_search'] = _flat_search(slots)
    forwards['flat_forward'] = _forward(_layer(flat))
  row |= _alternate(searches) | _alternate(forwards)
  del searches, forwards
  steps = {
    f'{mode}_step': _step(_layer(product), mode) for mode in _MODES.value
  }
  if steps:
    row |= _alternate(steps | {'dense_layer_step': _step(dense, None)})
  return row


def _flops(n: int) -> dict[str, float]:
  """Multiplications and additions of a token, forward, in millions."""
  d, q = _WIDTH.value, _HEADS.value * _K_DIM.value
  rest = 2 * d * q + 2 * _HEADS.value * _KNN.value * d
  return {
    'product': (rest + 2 * n * q) / 1e6,
    'flat': (rest + 2 * n * n * q) / 1e6,
    'dense': 16 * d * d / 1e6,
  }


def _blocking(function, *arguments):
  return lambda: jax.block_until_ready(function(*arguments))


def _queries(*shape):
  return jax.random.normal(
    jax.random.key(2), (_TOKENS.value, _HEADS.value, *shape)
  )


def _search(n: int):
  half = _K_DIM.value // 2
  keys = jax.random.normal(jax.random.key(3), (_HEADS.value, 2, n, half))
  search = jax.jit(functools.partial(pk.product_key_topk, k=_KNN.value))
  return _blocking(search, _queries(2, half), keys)


def _flat_search(slots: int):
  shape = (_HEADS.value, slots, _K_DIM.value)
  keys = jax.random.normal(jax.random.key(3), shape)
  search = jax.jit(functools.partial(pk.flat_key_topk, k=_KNN.value))
  return _blocking(search, _queries(_K_DIM.value), keys)


def _forward(layer: nn.Module):
  key, x = _init()
  variables = jax.jit(layer.init)(key, x)
  names = [name for name in variables if name == 'batch_stats']
  apply = jax.jit(lambda v, x: layer.apply(v, x, mutable=names))
  return _blocking(apply, variables, x)


def _step(layer: nn.Module, mode: str | None):
  """A training step; the state is held, and donated."""
  key, x = _init()

  def init(key):
    variables = dict(layer.init(key, x))
    names = [n for n in ('params', 'memory') if n in variables]
    return {n: variables.pop(n) for n in names}, variables

  def loss_fn(params, model_state, batch, rng):
    del rng
    y, state = layer.apply(
      {**params, **model_state}, batch['x'], mutable=list(model_state)
    )
    return jnp.square(y.astype(jnp.float32) - 1).mean(), (dict(state), {})

  tx = optax.adam(1e-3)
  make = training.make_train_step
  if mode is not None:
    tx, make = pk.memory_optimizer(tx, mode=mode), pk.make_memory_train_step
  held = [training.create_state(init, tx, key)]
  step = make(loss_fn, tx)

  def call():
    held[0], _ = step(held[0], {'x': x})
    jax.block_until_ready(held[0])

  return call


def _alternate(calls) -> dict[str, float]:
  """Median milliseconds of each call, in turns."""
  times = {name: [] for name in calls}
  for call in calls.values():
    call()  # Compiles.
  for _ in range(_REPEATS.value):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      times[name].append(1e3 * (time.perf_counter() - start))
  return {
    f'{name}_milliseconds': round(statistics.median(t), 3)
    for name, t in times.items()
  }


def _table(rows) -> str:
  names = [
    name.removesuffix('_milliseconds')
    for name in dict.fromkeys(name for row in rows for name in row)
    if name.endswith('_milliseconds')
  ]
  lines = [
    '| slots | ' + ' | '.join(n.replace('_', ' ') for n in names) + ' |',
    '|---|' + '---|' * len(names),
  ]
  for row in rows:
    cells = [f'{row["slots"]:,}']
    for name in names:
      value = row.get(f'{name}_milliseconds')
      cells.append('' if value is None else f'{value:.4g}')
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def _write(folder: epath.Path, rows) -> None:
  device = jax.devices()[0]
  text = json.dumps(
    {
      'device': device.device_kind,
      'jax': jax.__version__,
      'tokens': _TOKENS.value,
      'width': _WIDTH.value,
      'k_dim': _K_DIM.value,
      'heads': _HEADS.value,
      'knn': _KNN.value,
      'dtype': _dtype().__name__,
      'rows': rows,
    },
    indent=2,
  )
  curves = {}
  for keys, kind in itertools.product(('flat', 'product'), _KINDS):
    key = f'{keys}_{kind}_milliseconds'
    some = [row for row in rows if key in row]
    if some:
      label = f'{keys} keys, {_KINDS[kind]}'
      curves[label] = [r['slots'] for r in some], [r[key] for r in some]
  level = statistics.median(row['dense_forward_milliseconds'] for row in rows)
  figure = figures.scaling(
    curves,
    levels={'dense layer': level},
    ylabel=f'milliseconds for {_TOKENS.value} tokens',
  )
  picture = io.BytesIO()
  figure.savefig(picture, format='png', dpi=130)
  data.write_file(folder / 'scaling.png', picture.getvalue())
  data.write_file(folder / 'benchmark.md', _table(rows))
  data.write_file(folder / 'benchmark.json', text + '\n')


if __name__ == '__main__':
  _command_line.run(main)
