"""Tests of populations: they equal runs one after the other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import layca, training
from jaxpapers.layca import models, sweep, train

_ORDER = ['dense0/kernel', 'dense1/kernel', 'last_dense/kernel']


def problem():
  model = models.DeepMLP((7, 5), classes=3)
  init = train.make_init(model, jax.ShapeDtypeStruct((1, 4), jnp.float32))
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.normal(size=(12, 4)).astype(np.float32),
    'label': rng.integers(0, 3, 12).astype(np.int32),
  }
  return init, train.make_loss_fn(model), batch


class PopulationTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_equals_runs_one_after_the_other(self):
    init, loss_fn, batch = problem()
    members = sweep.grid((0.1, 0.02), (0.0, -0.5))
    drops = ((1, 2), (2,))
    values = sweep.hyperparameters(members, _ORDER, drops, 0.2)
    options = {'base': 'sgd', 'layca': True}
    tx = sweep.make_optimizer(options, values, _ORDER, 2)
    keys = jnp.stack([jax.random.key(5)] * 2)
    state = sweep.assign_members(training.create_state(init, tx, keys), values)
    step = training.make_train_step(loss_fn, tx, population=True)
    losses = []
    for _ in range(7):
      state, metrics = step(state, batch)
      losses.append(metrics['loss'])
    losses = np.stack(losses, 1)
    for index, (member, epochs) in enumerate(zip(members, drops)):
      tx = layca.with_layca(
        # The paper's own functions, apart from those of the sweep.
        base=optax.identity(),
        learning_rate=layca.keras_step_schedule(
          member['learning_rate'], 0.2, epochs, 2
        ),
        multipliers=layca.depth_multipliers(_ORDER, member['alpha']),
      )
      alone = training.create_state(init, tx, keys[0])
      one = training.make_train_step(loss_fn, tx)
      for count in range(7):
        alone, metrics = one(alone, batch)
        # vmapped products add in another order.
        self.assertAlmostEqual(
          float(metrics['loss']), losses[index, count], delta=2e-5
        )
      chex.assert_trees_all_close(
        alone.params,
        jax.tree.map(lambda x, i=index: x[i], state.params),
        atol=2e-5,
      )
    self.assertGreater(np.abs(losses[0] - losses[1]).max(), 1e-3)

  def test_seeds_are_of_the_parameters(self):
    members = sweep.grid((0.1,), seeds=(0, 1))
    self.assertEqual([m['seed'] for m in members], [0, 1])
    self.assertEqual({m['learning_rate'] for m in members}, {0.1})

  @parameterized.parameters(0.0, 3.0)
  def test_schedule(self, warmup):
    schedule = sweep.member_schedule(
      0.3, 0.2, np.array([2.0, 5.0, np.inf]), 7, warmup
    )
    expected = layca.linear_warmup_from_tenth(
      layca.keras_step_schedule(0.3, 0.2, (2, 5), 7), int(warmup * 7)
    )
    for count in range(50):
      self.assertAlmostEqual(
        float(schedule(count)), float(expected(count)), places=6
      )

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, '2 learning_rates and 3 alphas'):
      sweep.grid((0.1, 0.2), (0, 0.1, 0.2))
    with self.assertRaisesRegex(ValueError, 'at least one of each'):
      sweep.grid(())
    members = sweep.grid((0.1, 0.2))
    with self.assertRaisesRegex(ValueError, '3 sequences of epochs for 2'):
      sweep.hyperparameters(members, _ORDER, ((1,), (2,), (3,)), 0.2)
    with self.assertRaisesRegex(ValueError, 'alpha is 1.5'):
      sweep.hyperparameters(sweep.grid((0.1,), (1.5,)), _ORDER, (), 0.2)
    init, _, _ = problem()
    values = sweep.hyperparameters(members, _ORDER, (), 0.2)
    tx = sweep.make_optimizer({'base': 'adam'}, values, _ORDER, 2)
    state = training.create_state(
      init, tx, jax.random.split(jax.random.key(0), 3)
    )
    with self.assertRaisesRegex(ValueError, 'different populations'):
      sweep.assign_members(state, values)
    with self.assertRaisesRegex(ValueError, 'has the hyperparameters'):
      sweep.assign_members(state, {'rate': values['rate']})


if __name__ == '__main__':
  absltest.main()
