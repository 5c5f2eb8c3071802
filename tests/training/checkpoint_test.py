"""Checkpoints: what comes back, onto which mesh, and what does not fit."""

import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers import training
from tests.helpers import devices
from tests.training import toy


class CheckpointTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def state(self, tx=None, init=toy.init, **options):
    return training.create_state(
      init, tx or optax.adam(1e-2), jax.random.key(3), **options
    )

  def test_round_trip_is_exact(self):
    state = self.state(ema=True)
    step = training.make_train_step(toy.loss_fn, optax.adam(1e-2), ema=0.9)
    for index in range(3):
      state, _ = step(state, toy.example_batch(index))
    training.save(self.folder / 'state', state)
    for like in (
      state,
      training.abstract_state(
        toy.init, optax.adam(1e-2), jax.random.key(3), ema=True
      ),
    ):
      found = training.restore(self.folder / 'state', like)
      self.assertEqual(found.rng.dtype, state.rng.dtype)
      chex.assert_trees_all_equal(
        found.replace(rng=jax.random.key_data(found.rng)),
        state.replace(rng=jax.random.key_data(state.rng)),
      )
      # Stays a state: one more step takes it.
      _, a = step(jax.tree.map(jnp.copy, found), toy.example_batch(9))
      _, b = step(jax.tree.map(jnp.copy, state), toy.example_batch(9))
      self.assertEqual(float(a['loss']), float(b['loss']))

  def test_other_types_and_keys(self):
    tree = {
      'half': jnp.arange(4, dtype=jnp.bfloat16),
      'keys': jax.random.split(jax.random.key(1, impl='rbg'), 2),
      'flag': jnp.array(True),
      'list': [np.arange(3), ()],
    }
    training.save(self.folder / 'tree', tree)
    found = training.restore(self.folder / 'tree', tree)
    np.testing.assert_array_equal(
      jax.random.key_data(found['keys']), jax.random.key_data(tree['keys'])
    )
    self.assertEqual(found['keys'].dtype, tree['keys'].dtype)
    self.assertEqual(found['half'].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(found['list'][0], tree['list'][0])

  def test_says_what_does_not_fit(self):
    training.save(self.folder / 'state', self.state())
    cases = (
      (self.state(optax.sgd(1)), 'has opt_state/0/count'),
      (self.state(ema=True), 'lacks ema_params/.* and 3 more'),
      (self.state(init=toy.plain_init), r'lacks .*/v,? .*has .*which'),
      (
        self.state().replace(
          params=jax.tree.map(
            lambda x: jnp.zeros((*x.shape, 2)), self.state().params
          )
        ),
        r'params/BatchNorm_0/bias is \(16,\) there and \(16, 2\) here',
      ),
    )
    for like, words in cases:
      with self.assertRaisesRegex(ValueError, words):
        training.restore(self.folder / 'state', like)

  def test_missing_and_occupied(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no checkpoint at'):
      training.restore(self.folder / 'nothing', self.state())
    training.save(self.folder / 'state', self.state())
    with self.assertRaisesRegex(ValueError, 'exists'):
      training.save(self.folder / 'state', self.state())

  def test_keeps_the_newest(self):
    state = self.state()
    with training.Checkpoints(self.folder / 'run', keep=2) as checkpoints:
      self.assertIsNone(checkpoints.latest())
      with self.assertRaisesRegex(FileNotFoundError, 'there are none'):
        checkpoints.restore(state)
      for step in (1, 2, 3):
        checkpoints.save(step, state, {'next': step, 'blob': b'\x00\xff'})
      checkpoints.wait()
      self.assertEqual(checkpoints.latest(), 3)
      _, position = checkpoints.restore(state, 2)
      self.assertEqual(position, {'next': 2, 'blob': b'\x00\xff'})
      with self.assertRaisesRegex(FileNotFoundError, r'step 1; .*\[2, 3\]'):
        checkpoints.restore(state, 1)

  def test_positions(self):
    state = {'a': jnp.zeros(())}
    positions = [None, b'\x80\x00', {'a': [1, 2.5, 'x', None, True]}, 7]
    with training.Checkpoints(self.folder / 'run', keep=9) as checkpoints:
      for step, position in enumerate(positions):
        checkpoints.save(step, state, position)
      checkpoints.wait()
      for step, position in enumerate(positions):
        self.assertEqual(checkpoints.restore(state, step)[1], position)
      with self.assertRaisesRegex(TypeError, 'set in its state'):
        checkpoints.save(99, state, {'seen': {1, 2}})

  def test_half_written_checkpoint_is_none(self):
    state = self.state()
    with training.Checkpoints(self.folder) as checkpoints:
      checkpoints.save(5, state)
    # What orbax leaves behind when it is killed while writing step 9.
    left = self.folder / '9.orbax-checkpoint-tmp-1234'
    left.mkdir()
    (left / 'state').mkdir()
    with training.Checkpoints(self.folder) as checkpoints:
      self.assertEqual(checkpoints.latest(), 5)
      checkpoints.restore(state)

  def test_onto_another_mesh(self):
    path = self.folder / 'state'
    code = """
      import jax, numpy as np, optax
      from jax.sharding import PartitionSpec as P
      from jaxpapers import training
      from tests.training import toy
      mesh = training.make_mesh({axes!r})
      rules = [('kernel', P(None, 'model'))]
      tx = optax.adam(1e-2)
      if {first}:
        state = training.create_state(
          toy.init, tx, jax.random.key(3), mesh=mesh, rules=rules)
        training.save({path!r}, state)
      else:
        like = training.abstract_state(toy.init, tx, mesh=mesh, rules=rules)
        state = training.restore({path!r}, like)
      kernel = state.params['Dense_0']['kernel']
      print(kernel.sharding.shard_shape(kernel.shape))
      print(float(abs(kernel).sum()))
    """
    texts = []
    for first, axes, count in (
      (True, 'data:4,model:2', 8),
      (False, 'data:2,model:4', 8),
      (False, 'data:1,model:1', 1),
    ):
      out = devices.run(
        code.format(first=first, axes=axes, path=str(path)), device_count=count
      )
      texts.append(out.splitlines()[-2:])
    self.assertEqual(
      [shape for shape, _ in texts], ['(8, 8)', '(8, 4)', '(8, 16)']
    )
    self.assertLen({total for _, total in texts}, 1)


if __name__ == '__main__':
  absltest.main()
