"""A small model with all that a step has to carry, for the tests of training.

As a program it is a training run that can be killed:

  python -m tests.training.toy --workdir=... --num_steps=40
"""

import argparse
import functools
import os
import signal
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpapers import data, training

CLASSES = 4
FEATURES = 8


class Model(nn.Module):
  """Two dense layers with batch normalisation and dropout between them."""

  dropout: float = 0.25

  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.Dense(16)(x)
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
    return nn.Dense(CLASSES)(x)


def init(key):
  """Parameters and batch statistics."""
  variables = Model().init(key, jnp.zeros((1, FEATURES)), train=False)
  return variables['params'], {'batch_stats': variables['batch_stats']}


def loss_fn(params, model_state, batch, rng, dropout=0.25):
  """Mean cross-entropy of the examples whose weight is 1."""
  logits, updates = Model(dropout).apply(
    {'params': params, **model_state},
    batch['x'],
    train=True,
    mutable=['batch_stats'],
    rngs={'dropout': rng},
  )
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])
  weight = batch.get('weight', jnp.ones_like(losses))
  count = weight.sum()
  hits = (logits.argmax(-1) == batch['y']) * weight
  metrics = {'accuracy': hits.sum() / count, 'count': count}
  return (losses * weight).sum() / count, (updates, metrics)


def plain_loss_fn(params, model_state, batch, rng):
  """Without dropout and batch normalisation: additive over examples."""
  del rng
  hidden = jnp.tanh(batch['x'] @ params['w'])
  losses = optax.softmax_cross_entropy_with_integer_labels(
    hidden @ params['v'], batch['y']
  )
  weight = batch.get('weight', jnp.ones_like(losses))
  count = weight.sum()
  loss = (losses * weight).sum() / count
  return loss, (model_state, {'count': count, 'twice': 2 * loss})


def plain_init(key):
  """Parameters of `plain_loss_fn`."""
  w, v = jax.random.split(key)
  params = {
    'w': jax.random.normal(w, (FEATURES, 16)),
    'v': jax.random.normal(v, (16, CLASSES)),
  }
  return params, {}


def example_batch(index: int, size: int = 32) -> dict[str, np.ndarray]:
  """Batch number `index`, always the same."""
  rng = np.random.default_rng(index)
  x = rng.normal(size=(size, FEATURES)).astype(np.float32)
  teacher = np.random.default_rng(99).normal(size=(FEATURES, CLASSES))
  return {'x': x, 'y': (x @ teacher).argmax(1).astype(np.int32)}


class Batches:
  """Endless batches with a position, as grain's iterators have."""

  def __init__(self, size: int = 32, share: slice = slice(None), pause=0.0):
    self._next, self._size, self._share = 0, size, share
    self._pause = pause

  def __iter__(self):
    return self

  def __next__(self):
    time.sleep(self._pause)
    batch = example_batch(self._next, self._size)
    self._next += 1
    return {name: x[self._share] for name, x in batch.items()}

  def get_state(self):
    return {'next_index': self._next}

  def set_state(self, state):
    self._next = state['next_index']


@functools.cache
def _start(mesh, members=0):
  """State and step, compiled once for all tests of a process."""
  tx = optax.adam(1e-2)
  rng = jax.random.key(0)
  if members:
    rng = jax.random.split(rng, members)
  state = training.create_state(init, tx, rng, mesh=mesh, ema=True)
  step = training.make_train_step(
    loss_fn, tx, mesh=mesh, ema=0.9, population=bool(members)
  )
  return state, step


def run(
  workdir,
  num_steps,
  pause=0.0,
  mesh=None,
  kill_at=None,
  members=0,
  num_workers=0,
  **options,
):
  """Trains the model; returns what `fit` returns."""
  state, step = _start(mesh, members)
  index, count = training.batch_share(mesh)
  size = 32 // count
  batches = Batches(share=slice(index * size, (index + 1) * size), pause=pause)
  if num_workers:
    examples = [
      {name: x[i] for name, x in example_batch(0).items()} for i in range(32)
    ]
    batches = data.batches(examples, 8, num_workers=num_workers)

  def kill(step, split, metrics):
    del split, metrics
    if step == kill_at:
      os.kill(os.getpid(), signal.SIGKILL)

  return training.fit(
    jax.tree.map(jnp.copy, state),  # The step takes its memory.
    step,
    batches,
    num_steps=num_steps,
    workdir=workdir,
    mesh=mesh,
    log_every=4,
    checkpoint_every=10,
    stop_when=kill,
    **options,
  )


def main() -> int:
  """The program."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--num_steps', type=int, default=40)
  parser.add_argument('--pause', type=float, default=0.0)
  parser.add_argument('--kill_at', type=int)
  parser.add_argument('--mesh', default='data:-1')
  parser.add_argument('--members', type=int, default=0)
  parser.add_argument('--num_workers', type=int, default=0)
  parser.add_argument('--coordinator')
  parser.add_argument('--num_processes', type=int)
  parser.add_argument('--process_id', type=int)
  flags = parser.parse_args()
  training.initialize_distributed(
    flags.coordinator, flags.num_processes, flags.process_id
  )
  result = run(
    flags.workdir,
    flags.num_steps,
    flags.pause,
    training.make_mesh(flags.mesh),
    flags.kill_at,
    flags.members,
    flags.num_workers,
  )
  print(f'{result.reason} at {result.step}', flush=True)
  return 0


if __name__ == '__main__':
  sys.exit(main())
