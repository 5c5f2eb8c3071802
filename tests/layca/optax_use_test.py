"""Layca where optimizers live: meshes, accumulation, checkpoints, maps."""

import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import layca as lib
from tests.helpers import devices, goldens

# Runs on eight devices and, for comparison, on one.
MESH_CODE = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType
from jaxpapers import layca as lib
from tests.helpers import goldens

SHAPES = {'conv/kernel': (3, 3, 16, 8), 'dense/kernel': (32, 16),
          'stack/kernel': (4, 8, 16), 'dense/bias': (16,)}
SPECS = {'conv/kernel': jax.P(None, None, 'fsdp', 'tp'),
         'dense/kernel': jax.P('fsdp', 'tp'),
         'stack/kernel': jax.P('fsdp', None, 'tp'), 'dense/bias': jax.P('tp')}
AXES = {name: 0 if 'stack' in name else None for name in SHAPES}

def draw(tag, place):
  return {name: place(name, jnp.asarray(goldens.normal(tag + name, shape),
                                        jnp.float32))
          for name, shape in SHAPES.items()}

def train(place, on_update=None):
  tx = lib.with_layca(optax.trace(0.9), 3.0**-3, layer_axes=AXES,
                      others=optax.sgd(0.1))
  params = draw('w', place)
  state = jax.jit(tx.init)(params)
  before = jax.tree.map(jax.typeof, state)
  update = jax.jit(tx.update)
  for step in range(50):
    gradient = draw(f'g{step % 7}', place)
    if step == 0 and on_update:
      on_update(update.lower(gradient, state, params).compile().as_text())
    updates, state = update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  assert jax.tree.map(jax.typeof, state) == before, (before, state)
  return {name: np.asarray(x) for name, x in params.items()}, state
"""


class MeshTest(absltest.TestCase):
  @pytest.mark.slow
  def test_eight_devices_equal_one(self):
    code = (
      MESH_CODE
      + """
one, _ = train(lambda name, x: x)
for kind in (AxisType.Auto, AxisType.Explicit):
  mesh = jax.make_mesh((4, 2), ('fsdp', 'tp'), (kind, kind))
  with jax.set_mesh(mesh):
    place = lambda name, x: jax.device_put(
        x, jax.NamedSharding(mesh, SPECS[name]))
    def no_gathering(text):
      assert 'all-reduce' in text
      for word in ('all-gather', 'reduce-scatter', 'all-to-all',
                   'collective-permute'):
        assert word not in text, word
    eight, _ = train(place, no_gathering)
  for name in SHAPES:
    error = np.abs(one[name] - eight[name]).max()
    assert error < 1e-5, (kind, name, error)
print('equal')
"""
    )
    self.assertIn('equal', devices.run(code))

  def test_shard_map_needs_the_axis_name(self):
    code = (
      MESH_CODE
      + """
mesh = jax.make_mesh((8,), ('x',), (AxisType.Auto,))
w = jnp.asarray(goldens.normal('w', (16, 6)), jnp.float32)
g = jnp.asarray(goldens.normal('g', (16, 6)), jnp.float32)
def step(axis_name):
  tx = lib.layca(0.1, axis_name=axis_name)
  def run(w, g):
    return tx.update(g, tx.init(w), w)[0]
  return run
expected = step(None)(w, g)
spec = jax.P('x')
def mapped(axis_name):
  return jax.jit(jax.shard_map(step(axis_name), mesh=mesh,
                               in_specs=(spec, spec), out_specs=spec))(w, g)
assert np.abs(mapped('x') - expected).max() < 1e-6
# Local norms are another algorithm.
assert np.abs(mapped(None) - expected).max() > 1e-2
# Norms of whole parameters, made outside of the map, are the same norms.
tx = lib.layca(0.1, axis_name='x')
whole = tx.init(w)
inside = jax.shard_map(tx.init, mesh=mesh, in_specs=(spec,),
                       out_specs=jax.P())(w)
np.testing.assert_allclose(whole.target_norm, inside.target_norm, rtol=1e-6)
print('mapped')
"""
    )
    self.assertIn('mapped', devices.run(code))


def make_tree():
  return {
    'a': {'kernel': jnp.asarray(goldens.normal('a', (6, 5)), jnp.float32)},
    'b': {
      'kernel': jnp.asarray(goldens.normal('b', (3, 4)), jnp.float32),
      'bias': jnp.zeros(4),
    },
  }


def make_gradient(step):
  return jax.tree.map(
    lambda p: jnp.asarray(
      goldens.normal(f'{step}{p.shape}', p.shape), jnp.float32
    ),
    make_tree(),
  )


def train(tx, params, state, steps):
  update = jax.jit(tx.update)
  for step in steps:
    updates, state = update(make_gradient(step), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


class OptaxTest(parameterized.TestCase):
  def test_accumulation_is_a_step_on_the_mean(self):
    tx = lib.layca_sgd(0.1, 0.9)
    accumulated = optax.MultiSteps(tx, 4)
    params = make_tree()
    got, _ = train(accumulated, params, accumulated.init(params), range(8))
    state = tx.init(params)
    for first in (0, 4):
      mean = jax.tree.map(
        lambda *g: sum(g) / 4, *map(make_gradient, range(first, first + 4))
      )
      updates, state = tx.update(mean, state, params)
      params = optax.apply_updates(params, updates)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6),
      got,
      params,
    )

  def test_injected_hyperparameters_stay_float32(self):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_tree())
    tx = optax.inject_hyperparams(lib.layca_sgd, hyperparam_dtype=jnp.float32)(
      learning_rate=0.1
    )
    state = tx.init(params)
    gradient = jax.tree.map(lambda g: g.astype(jnp.bfloat16), make_gradient(0))
    updates, state = jax.jit(tx.update)(gradient, state, params)
    for value in jax.tree.leaves(state.hyperparams):
      self.assertEqual(value.dtype, jnp.float32)
    for leaf in jax.tree.leaves(updates):
      self.assertEqual(leaf.dtype, jnp.bfloat16)
    for norm in jax.tree.leaves(optax.tree.get(state, 'target_norm')):
      self.assertEqual(norm.dtype, jnp.float32)
    # Layca itself, whose dtype must not be taken for a schedule.
    kernel = {'kernel': params['a']['kernel']}
    for options in ({}, {'compute_dtype': jnp.float32}):
      tx = optax.inject_hyperparams(lib.layca)(0.1, **options)
      updates, _ = tx.update(kernel, tx.init(kernel), kernel)
      self.assertEqual(updates['kernel'].dtype, jnp.bfloat16)

  def test_state_without_values(self):
    tx = lib.layca_adam(0.1)
    params = make_tree()
    shapes = jax.eval_shape(lambda: params)
    real = tx.init(params)
    # Traced, or given shapes by hand.
    for abstract in (jax.eval_shape(tx.init, params), tx.init(shapes)):
      self.assertEqual(
        jax.tree.map(lambda x: (x.shape, x.dtype), abstract),
        jax.tree.map(lambda x: (x.shape, x.dtype), real),
      )
    # From shapes by hand, the norms are filled in by the first update.
    late, state = train(tx, params, tx.init(shapes), range(3))
    expected, expected_state = train(tx, params, real, range(3))
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-6),
      (late, optax.tree.get(state, 'target_norm')),
      (expected, optax.tree.get(expected_state, 'target_norm')),
    )

  def test_a_schedule_is_one_program(self):
    traces = []
    tx = lib.layca_sgd(lib.keras_step_schedule(0.1, 0.2, (3, 5), 10))

    @jax.jit
    def step(params, state, gradient):
      traces.append(None)
      updates, state = tx.update(gradient, state, params)
      return optax.apply_updates(params, updates), state

    params = make_tree()
    state = tx.init(params)
    for _ in range(100):
      params, state = step(params, state, make_gradient(0))
    self.assertLen(traces, 1)
    self.assertEqual(step._cache_size(), 1)

  def test_eight_bytes_per_layer(self):
    params = {f'{i}': {'kernel': jnp.ones((5, 4))} for i in range(20)}
    for options, limit in (
      ({}, 4),
      ({'target_norm': 'current'}, 4),
      ({'normalize': ('ema', 0.9)}, 8),
    ):
      leaves = jax.tree.leaves(lib.layca(0.1, **options).init(params))
      size = sum(leaf.nbytes for leaf in leaves) - 4  # the count
      self.assertEqual(size / 20, limit)

  def test_seeds_rates_and_alphas_under_vmap(self):
    order = ['a/kernel', 'b/kernel']

    def run(seed, rate, alpha):
      params = jax.tree.map(lambda p: p + seed * jnp.ones_like(p), make_tree())
      factors = lib.depth_multipliers(order, alpha)
      tx = lib.layca_sgd(rate, 0.9, multipliers=factors)
      return train(tx, params, tx.init(params), range(2))[0]

    grid = (
      jnp.asarray([0.0, 0.5, 1.0]),
      jnp.asarray([0.1, 0.3, 0.01]),
      jnp.asarray([-0.5, 0.0, 0.8]),
    )
    together = jax.jit(jax.vmap(run))(*grid)
    for i, member in enumerate(zip(*grid)):
      jax.tree.map(
        lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-6),
        together,
        run(*member),
      )


CHECKPOINT_CODE = """
import jax, jax.numpy as jnp, numpy as np, optax, orbax.checkpoint as ocp
from jaxpapers import layca as lib
from tests.layca import optax_use_test as test

tx = lib.layca_adam(3.0**-3, others=optax.adam(1e-2))
mesh = jax.make_mesh((1, 2), ('fsdp', 'tp'), devices=jax.devices()[:2])
place = lambda x: jax.NamedSharding(
    mesh, jax.P(*[None] * (x.ndim - 1), 'tp') if x.ndim and x.shape[-1] == 4
    else jax.P())
params = test.make_tree()
like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)),
    jax.eval_shape(lambda: (params, tx.init(params))))
with ocp.StandardCheckpointer() as saver:
  restored = saver.restore(PATH, like)
assert len(restored[0]['b']['kernel'].sharding.device_set) == 2
end, _ = test.train(tx, *restored, range(50, 100))
expected = np.load(PATH + '.npz')
for name, x in (('a', end['a']['kernel']), ('b', end['b']['kernel'])):
  assert np.abs(expected[name] - np.asarray(x)).max() < 1e-5
print('restored')
"""


class CheckpointTest(absltest.TestCase):
  def test_resumed_training_is_bit_identical(self):
    import orbax.checkpoint as ocp

    tx = lib.layca_adam(3.0**-3, others=optax.adam(1e-2))
    params = make_tree()
    half = train(tx, params, tx.init(params), range(50))
    straight, _ = train(tx, *half, range(50, 100))
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'state'
      with ocp.StandardCheckpointer() as saver:
        saver.save(path, half)
        saver.wait_until_finished()
        restored = saver.restore(path, jax.eval_shape(lambda: half))
      self.assertEqual(jax.tree.structure(restored), jax.tree.structure(half))
      resumed, _ = train(tx, *restored, range(50, 100))
      jax.tree.map(np.testing.assert_array_equal, resumed, straight)
      # Onto a mesh of two devices.
      np.savez(
        f'{path}.npz',
        a=straight['a']['kernel'],
        b=straight['b']['kernel'],
      )
      code = f'PATH = {str(path)!r}\n' + CHECKPOINT_CODE
      self.assertIn('restored', devices.run(code, device_count=2))


if __name__ == '__main__':
  absltest.main()
