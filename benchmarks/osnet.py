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
  search: the closest of a million images for each query.

`--dtype=bfloat16` computes in half precision (torch: autocast). On a GPU both
run there.
"""

import dataclasses

import _side_by_side
from absl import app, flags

_PARTS = flags.DEFINE_list(
  'parts', ['forward', 'train', 'rank', 'rerank'], 'What to measure.'
)
_MODELS = flags.DEFINE_list('models', ['osnet_x1_0'], 'Networks.')
_BATCHES = flags.DEFINE_list('batches', ['8'], 'Images of a batch.')
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
    for layout in ('nchw', 'channels_last')
  }


def _row(model, batch, calls, ours):
  wall, cpu, first = _side_by_side.alternate(calls, _REPEATS.value)
  row = {
    'model': model,
    'batch': batch,
    'size': _SIZE.value,
    'dtype': _DTYPE.value,
  }
  row |= _side_by_side.summary(wall, cpu, ours, 'torch_nchw')
  if 'torch_channels_last' in wall:
    both = _side_by_side.summary(wall, cpu, ours, 'torch_channels_last')
    name = f'{ours}_over_torch_channels_last'
    row[name] = both[name]
  return row, first


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
        calls[f'ours_{impl}'] = _features(own, variables, x_there)
      folded = osnet.fold_batch_norm(variables)
      own = dataclasses.replace(cfg, folded=True)
      calls['ours_folded'] = _features(own, folded, x_there)
      for name, peer in _peers(cfg, variables, x, labels).items():
        calls[name] = peer.forward
      ours = f'ours_{_IMPLEMENTATIONS.value[0]}'
      row, first = _row(model, batch, calls, ours)
      scale = float(np.abs(first[ours]).max())
      row['largest_relative_difference'] = {
        name: float(np.abs(np.asarray(value) - first[ours]).max() / scale)
        for name, value in first.items()
        if name != ours
      }
      seconds = row['wall_milliseconds_median'][ours] / 1e3
      row['images_per_second'] = float(f'{batch / seconds:.4g}')
      rows.append(row)
  return rows


def _features(cfg, variables, x):
  import jax
  import numpy as np

  from jaxpapers import osnet

  net = osnet.OSNet(cfg, _CLASSES)
  apply = jax.jit(lambda variables, x: net.apply(variables, x).features)
  return lambda: np.asarray(apply(variables, x))


def _train():
  import jax

  rows = []
  for model in _MODELS.value:
    for batch in map(int, _BATCHES.value):
      cfg, variables, x, labels = _setting(model, batch)
      x_there = jax.device_put(x)
      calls = {}
      for impl in _IMPLEMENTATIONS.value:
        own = dataclasses.replace(cfg, depthwise=impl)
        calls[f'ours_{impl}'] = _Step(own, variables, x_there, labels)
      for name, peer in _peers(cfg, variables, x, labels).items():
        calls[name] = peer.step
      ours = f'ours_{_IMPLEMENTATIONS.value[0]}'
      row, first = _row(model, batch, calls, ours)
      row['first_loss'] = first
      seconds = row['wall_milliseconds_median'][ours] / 1e3
      row['images_per_second'] = float(f'{batch / seconds:.4g}')
      rows.append(row)
  return rows


class _Step:
  """Steps of our training, one at each call."""

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

    self._step = jax.jit(step, donate_argnums=0)

  def __call__(self):
    self._state, value = self._step(self._state, *self._batch)
    return float(value)


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
      'search': _search,
    },
  )


if __name__ == '__main__':
  app.run(main)
