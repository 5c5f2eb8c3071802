"""Speed of OSNet, of ranking and of re-ranking, side by side with the peers.

Prints one JSON object. What is compared alternates in one process. `cpu` times
count all threads.

  python benchmarks/osnet.py --parts=forward,train
  python benchmarks/osnet.py --parts=forward --batches=8,64 --repeats=3
  python benchmarks/osnet.py --parts=rank,rerank

What is measured:
  forward: features of a batch at 256 x 128, our network as it is trained, and
    with its batch norms folded; torch in its own layout and in channels_last,
    if it is installed.
  train: a step with labels smoothed and AMSGrad.
  rank: CMC and mAP of 3,368 queries against 15,913 images.
  rerank: k-reciprocal re-ranking against the formulas in NumPy.
  large: ranking at the size of MSMT17, and the memory of it.
  depthwise: the depthwise convolutions of the network alone, with gradients.
  search: the closest of a million images for each query.

`--dtype=bfloat16` computes in half precision (torch: autocast). On a GPU both
run there, with cuDNN's search for the fastest convolutions on, and
`compiled` can be put to `--peers`. What is measured is printed as it comes.
"""

import dataclasses
import json
import sys
import time

import _side_by_side
from absl import app, flags

_PARTS = flags.DEFINE_list(
  'parts', ['forward', 'train', 'rank', 'rerank'], 'What to measure.'
)
_MODELS = flags.DEFINE_list('models', ['osnet_x1_0'], 'Networks.')
_BATCHES = flags.DEFINE_list('batches', ['8'], 'Images of a batch.')
_TRAIN_BATCHES = flags.DEFINE_list(
  'train_batches', [], 'Of training; those of --batches by default.'
)
_PEERS = flags.DEFINE_list(
  'peers',
  ['nchw', 'channels_last'],
  "torch's layouts; or compiled: by torch.compile, in channels_last.",
)
_SIZE = flags.DEFINE_list('size', ['256', '128'], 'Height and width.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Alternations.', lower_bound=1)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'Type of the computation.'
)
_IMPLEMENTATIONS = flags.DEFINE_list(
  'depthwise', ['auto'], 'Depthwise convolutions: auto, lax, shift, shift_vjp.'
)
_CLASSES = 751


def _setting(model, batch):
  """Config, variables, images and labels."""
  import jax
  import numpy as np

  from jaxpapers import osnet

  cfg = osnet.config_for(
    model, dtype=None if _DTYPE.value == 'float32' else _DTYPE.value
  )
  rng = np.random.default_rng(0)
  size = (batch, *map(int, _SIZE.value), 3)
  x = rng.standard_normal(size).astype(np.float32)
  labels = rng.integers(0, _CLASSES, batch)
  init = jax.jit(osnet.OSNet(cfg, _CLASSES).init)
  variables = init(jax.random.key(0), x[:1])
  return cfg, variables, x, labels


def _peers(cfg, variables, x, labels):
  """Torch in both layouts, with our weights; none for instance norms."""
  if not _side_by_side.has('torch') or any(cfg.instance_norm):
    return {}
  import _osnet_torch
  import jax
  import torch

  torch.backends.cudnn.benchmark = True

  from jaxpapers import osnet

  _side_by_side.use_threads()
  on_gpu = jax.default_backend() == 'gpu' and torch.cuda.is_available()
  state = osnet.to_torch_state_dict(variables, cfg)
  return {
    f'torch_{layout}': _osnet_torch.Calls(
      cfg,
      _CLASSES,
      state,
      x,
      labels,
      layout,
      _DTYPE.value,
      'cuda' if on_gpu else 'cpu',
    )
    for layout in _PEERS.value
  }


def _row(model, batch, calls, ours):
  wall, cpu, first = _side_by_side.alternate(calls, _REPEATS.value)
  row = {
    'model': model,
    'batch': batch,
    'size': _SIZE.value,
    'dtype': _DTYPE.value,
  }
  for layout in _PEERS.value:
    row |= _side_by_side.summary(wall, cpu, ours, f'torch_{layout}')
  row['images_per_second'] = {
    name: float(f'{1e3 * batch / milliseconds:.4g}')
    for name, milliseconds in row['wall_milliseconds_median'].items()
  }
  row['mebibytes'] = {
    name: call.mebibytes
    for name, call in calls.items()
    if getattr(call, 'mebibytes', None)
  }
  return row, first


def _show(row):
  print(json.dumps(row), file=sys.stderr, flush=True)
  return row


def _forward():
  import jax
  import numpy as np

  from jaxpapers import osnet

  rows = []
  for model in _MODELS.value:
    for batch in map(int, _BATCHES.value):
      cfg, variables, x, labels = _setting(model, batch)
      x_there = jax.device_put(x)
      calls = {}
      for impl in _IMPLEMENTATIONS.value:
        own = dataclasses.replace(cfg, depthwise=impl)
        calls[f'ours_{impl}'] = _Features(own, variables, x_there)
      folded = osnet.fold_batch_norm(variables)
      own = dataclasses.replace(cfg, folded=True)
      calls['ours_folded'] = _Features(own, folded, x_there)
      for name, peer in _peers(cfg, variables, x, labels).items():
        calls[name] = peer.forward_call()
      ours = f'ours_{_IMPLEMENTATIONS.value[0]}'
      row, first = _row(model, batch, calls, ours)
      scale = float(np.abs(first[ours]).max())
      row['largest_relative_difference'] = {
        name: float(np.abs(np.asarray(value) - first[ours]).max() / scale)
        for name, value in first.items()
        if name != ours
      }
      rows.append(_show(row))
  return rows


class _Features:
  """Features of a batch by our network.

  Attributes:
    mebibytes: What the program needs beside its arguments.
  """

  def __init__(self, cfg, variables, x):
    import jax

    from jaxpapers import osnet

    net = osnet.OSNet(cfg, _CLASSES)

    def apply(variables, x):
      return net.apply(variables, x).features

    self._arguments = jax.device_put(variables), x
    self._apply, self.mebibytes = _compiled(jax.jit(apply), *self._arguments)

  def __call__(self):
    import numpy as np

    return np.asarray(self._apply(*self._arguments), np.float32)


def _compiled(function, *arguments):
  """The program, and the mebibytes of its temporary arrays."""
  start = time.perf_counter()
  program = function.lower(*arguments).compile()
  print(f'compiled in {time.perf_counter() - start:.1f} s', file=sys.stderr)
  memory = program.memory_analysis()
  return program, memory and memory.temp_size_in_bytes >> 20


def _train():
  import jax

  rows = []
  for model in _MODELS.value:
    for batch in map(int, _TRAIN_BATCHES.value or _BATCHES.value):
      cfg, variables, x, labels = _setting(model, batch)
      x_there = jax.device_put(x)
      calls = {}
      for impl in _IMPLEMENTATIONS.value:
        own = dataclasses.replace(cfg, depthwise=impl)
        calls[f'ours_{impl}'] = _Step(own, variables, x_there, labels)
      for name, peer in _peers(cfg, variables, x, labels).items():
        calls[name] = peer.step_call()
      ours = f'ours_{_IMPLEMENTATIONS.value[0]}'
      row, first = _row(model, batch, calls, ours)
      row['first_loss'] = first
      rows.append(_show(row))
  return rows


class _Step:
  """Steps of our training, one at each call.

  Attributes:
    mebibytes: What the program needs beside its arguments.
  """

  def __init__(self, cfg, variables, x, labels):
    import jax
    import optax

    from jaxpapers import osnet

    net = osnet.OSNet(cfg, _CLASSES)
    tx, _ = osnet.osnet_finetune(150, 200, fixed_epochs=0)
    # A copy: the first step gives its buffers away.
    variables = jax.tree.map(lambda leaf: leaf + 0, variables)
    self._state = variables, tx.init(variables['params'])
    self._batch = x, jax.device_put(labels)

    def step(state, x, labels):
      variables, state = state

      def loss(params):
        out, new = net.apply(
          {**variables, 'params': params}, x, True, mutable=['batch_stats']
        )
        return osnet.cross_entropy_label_smoothing(out.logits, labels), new

      (value, new), grads = jax.value_and_grad(loss, has_aux=True)(
        variables['params']
      )
      updates, state = tx.update(grads, state, variables['params'])
      params = optax.apply_updates(variables['params'], updates)
      return ({'params': params, **new}, state), value

    self._step, self.mebibytes = _compiled(
      jax.jit(step, donate_argnums=0), self._state, *self._batch
    )

  def __call__(self):
    import jax

    out = self._step(self._state, *self._batch)
    self._state, value = jax.block_until_ready(out)
    return float(value)


def _depthwise():
  import jax
  import jax.numpy as jnp

  from jaxpapers.nn import conv

  batch = int(_BATCHES.value[0])
  rows = []
  for shape in ((64, 32, 64), (32, 16, 96), (16, 8, 128)):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, *shape), _DTYPE.value)
    kernel = jax.random.normal(keys[1], (3, 3, 1, shape[-1]), _DTYPE.value)
    dy = jax.random.normal(keys[2], x.shape, _DTYPE.value)
    calls = {}
    for impl in _IMPLEMENTATIONS.value:

      def forward(x, kernel, impl=impl):
        return conv.depthwise_conv(x, kernel, 1, 'symmetric', impl)

      def both(x, kernel, dy, forward=forward):
        return jax.vjp(forward, x, kernel)[1](dy)

      calls[f'{impl}_forward'] = _ten(jax.jit(forward), x, kernel)
      calls[f'{impl}_gradients'] = _ten(jax.jit(both), x, kernel, dy)
    wall, cpu, _ = _side_by_side.alternate(calls, _REPEATS.value)
    found = _side_by_side.summary(wall, cpu, '', '')
    del x, kernel, dy
    rows.append(
      _show(
        {
          'shape': [batch, *shape],
          'dtype': jnp.dtype(_DTYPE.value).name,
          'milliseconds_of_ten': found['wall_milliseconds_median'],
        }
      )
    )
  return rows


def _ten(function, *arguments):
  """Ten calls without waiting in between, so that starting them is hidden."""
  import jax

  def call():
    out = [function(*arguments) for _ in range(10)]
    jax.block_until_ready(out)

  return call


def _rank():
  import _osnet_ranking

  return _osnet_ranking.rank(_REPEATS.value)


def _rerank():
  import _osnet_ranking

  return _osnet_ranking.rerank(_REPEATS.value)


def _large():
  import _osnet_ranking

  return _osnet_ranking.large()


def _search():
  import _osnet_ranking

  return _osnet_ranking.search(_REPEATS.value)


def main(argv):
  """Measures and prints."""
  del argv
  _side_by_side.report(
    _PARTS.value,
    {
      'forward': _forward,
      'train': _train,
      'rank': _rank,
      'rerank': _rerank,
      'large': _large,
      'depthwise': _depthwise,
      'search': _search,
    },
  )


if __name__ == '__main__':
  app.run(main)
