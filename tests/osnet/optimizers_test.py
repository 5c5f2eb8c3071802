"""Optimizers and schedules against torch's, and a whole short training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import osnet
from tests.helpers import goldens
from tests.osnet import golden_weights


def walk(tx, rename=lambda w: w):
  """Weights after each step of the golden gradients."""
  golden = goldens.load_npz('osnet', 'optimizer.npz')
  params = rename(jnp.asarray(golden['w0']))
  state, found = tx.init(params), []

  @jax.jit
  def step(grads, state, params):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for grad in golden['grads']:
    params, state = step(rename(jnp.asarray(grad)), state, params)
    found.append(jax.tree.leaves(params)[0])
  return np.stack(found), golden


class GoldenTest(parameterized.TestCase):
  def test_amsgrad(self):
    with jax.enable_x64(True):
      tx, _ = osnet.osnet_finetune(150, 100, fixed_epochs=0)
      found, golden = walk(tx)
      wanted = golden['amsgrad/frozen0/w']
      np.testing.assert_allclose(found, wanted, atol=1e-12, rtol=0)
      # What optax has is something else.
      other = optax.chain(
        optax.add_decayed_weights(5e-4),
        optax.scale_by_amsgrad(),
        optax.scale(-1.5e-3),
      )
      self.assertGreater(np.abs(walk(other)[0] - wanted).max(), 1e-4)

  def test_amsgrad_of_layers_that_were_frozen(self):
    with jax.enable_x64(True):
      tx, _ = osnet.osnet_finetune(150, 2, fixed_epochs=2, open_layers=('fc',))
      found, golden = walk(tx, lambda w: {'conv': w, 'fc': w})
      np.testing.assert_allclose(
        found, golden['amsgrad/frozen4/w'], atol=1e-12, rtol=0
      )

  def test_sgd(self):
    with jax.enable_x64(True):
      tx, _ = osnet.osnet_from_scratch(350, 100)
      found, golden = walk(tx)
      np.testing.assert_allclose(
        found, golden['sgd/frozen0/w'], atol=1e-12, rtol=0
      )

  def test_adam_of_optax_is_that_of_torch(self):
    with jax.enable_x64(True):
      tx = optax.chain(
        optax.add_decayed_weights(5e-4), optax.adam(1.5e-3, eps=1e-8)
      )
      found, golden = walk(tx)
      np.testing.assert_allclose(
        found, golden['adam/frozen0/w'], atol=1e-12, rtol=0
      )

  @parameterized.parameters(
    ('single_step_60', lambda: osnet.step_schedule(1.0, 60, 7), 150),
    (
      'multi_150_225_300',
      lambda: osnet.osnet_from_scratch(350, 7, learning_rate=1.0)[1],
      350,
    ),
    (
      'cosine_250',
      lambda: osnet.osnet_finetune(
        250, 7, learning_rate=1.0, schedule='cosine'
      )[1],
      250,
    ),
  )
  def test_schedules(self, name, make, epochs):
    golden = goldens.load_json('osnet', 'lr_schedules.json')[name]
    with jax.enable_x64(True):
      first = jax.vmap(make())(7 * jnp.arange(epochs))
      last = jax.vmap(make())(7 * jnp.arange(epochs) + 6)
      np.testing.assert_allclose(first, golden[:epochs], atol=1e-12, rtol=0)
      np.testing.assert_array_equal(first, last)


class TrajectoryTest(parameterized.TestCase):
  def train(self, tx, fixed):
    """Losses of six steps and features afterwards, in float64."""
    cfg = osnet.config_for('osnet_x0_25', param_dtype='float64')
    net = osnet.OSNet(cfg, golden_weights.CLASSES)
    plain = osnet.CONFIGS['osnet_x0_25']
    variables = golden_weights.wide(golden_weights.variables(plain))
    params, stats = variables['params'], variables['batch_stats']
    labels = jnp.arange(8) % 4
    state = tx.init(params)

    @functools.partial(jax.jit, static_argnames='open_layers')
    def step(params, stats, state, x, open_layers):
      def loss(params):
        out, new = net.apply(
          {'params': params, 'batch_stats': stats},
          x,
          True,
          open_layers=open_layers,
          mutable=['batch_stats'],
        )
        return osnet.cross_entropy_label_smoothing(out.logits, labels), new

      (loss, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
      updates, state = tx.update(grads, state, params)
      params = optax.apply_updates(params, updates)
      return params, new['batch_stats'], state, loss

    found = []
    for i in range(6):
      x = jnp.asarray(golden_weights.images(f'traj/{i}', 8, 32, 16), float)
      open_layers = ('classifier',) if i < fixed else None
      params, stats, state, loss = step(params, stats, state, x, open_layers)
      found.append(float(loss))
    x = jnp.asarray(golden_weights.images('traj/eval', 2, 32, 16), float)
    variables = {'params': params, 'batch_stats': stats}
    return np.array(found), jax.jit(net.apply)(variables, x).features

  @pytest.mark.nightly
  def test_amsgrad_with_a_frozen_base(self):
    golden = goldens.load_json('osnet', 'trajectory.json')
    golden = golden['osnet_x0_25/amsgrad/fix2']
    with jax.enable_x64(True):
      tx, rate = osnet.osnet_finetune(
        6, 1, 3e-4, schedule='cosine', fixed_epochs=2
      )
      np.testing.assert_allclose(
        jax.vmap(rate)(jnp.arange(6)), golden['lr'], atol=1e-12
      )
      found, features = self.train(tx, 2)
      np.testing.assert_allclose(found, golden['loss_f64'], atol=1e-6, rtol=0)
      np.testing.assert_allclose(
        features.ravel()[:16],
        golden['final_feat_f64_first16'],
        atol=1e-6,
        rtol=0,
      )
      np.testing.assert_allclose(
        np.linalg.norm(features, axis=1), golden['final_feat_l2'], atol=1e-6
      )

  @pytest.mark.nightly
  def test_sgd(self):
    golden = goldens.load_json('osnet', 'trajectory.json')
    golden = golden['osnet_x0_25/sgd/fix0']
    with jax.enable_x64(True):
      tx, _ = osnet.osnet_from_scratch(6, 1, 6.5e-4, schedule='cosine')
      found, _ = self.train(tx, 0)
      # Chaotic: torch's own float32 is .27 away at the fourth step.
      np.testing.assert_allclose(found[:3], golden['loss_f64'][:3], atol=1e-6)
      np.testing.assert_allclose(found[3:], golden['loss_f64'][3:], atol=1e-2)


class FreezeTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.params = {
      'conv4_0': {'w': jnp.ones(3)},
      'conv4_1': {'w': jnp.ones(3)},
      'fc': {'w': jnp.ones(3)},
    }
    self.grads = jax.tree.map(lambda p: 0.5 * p, self.params)

  def test_base_begins_as_if_it_were_the_first_step(self):
    core = osnet.scale_by_amsgrad_torch()
    tx = osnet.freeze_base(core, ('fc',), until_step=3)
    state, plain = tx.init(self.params), core.init(self.params)
    first, _ = core.update(self.grads, plain)
    update = jax.jit(tx.update)
    for _ in range(3):
      updates, state = update(self.grads, state)
      self.assertFalse(np.any(updates['conv4_0']['w']))
      self.assertTrue(np.all(updates['fc']['w']))
    updates, _ = update(self.grads, state)
    np.testing.assert_allclose(
      updates['conv4_0']['w'], first['conv4_0']['w'], rtol=1e-6
    )

  def test_stages_by_their_name(self):
    tx = osnet.freeze_base(optax.sgd(1.0), 'conv4', until_step=1)
    updates, _ = tx.update(self.grads, tx.init(self.params))
    self.assertTrue(np.all(updates['conv4_1']['w']))
    self.assertFalse(np.any(updates['fc']['w']))

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'until_step is -1'):
      osnet.freeze_base(optax.sgd(1.0), until_step=-1)
    with self.assertRaisesRegex(ValueError, 'open has no names'):
      osnet.freeze_base(optax.sgd(1.0), ())
    with self.assertRaisesRegex(ValueError, "'head'.*conv4_0"):
      osnet.freeze_base(optax.sgd(1.0), ('head',)).init(self.params)
    with self.assertRaisesRegex(ValueError, "schedule is 'linear'"):
      osnet.osnet_finetune(schedule='linear')
    with self.assertRaisesRegex(ValueError, 'fixed_epochs is -1'):
      osnet.osnet_finetune(fixed_epochs=-1)
    with self.assertRaisesRegex(ValueError, 'steps_per_epoch is 0'):
      osnet.osnet_from_scratch(steps_per_epoch=0)
    with self.assertRaisesRegex(ValueError, 'epochs is 0'):
      osnet.cosine_schedule(1.0, 0, 1)


if __name__ == '__main__':
  absltest.main()
