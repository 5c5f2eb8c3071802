"""Selections, frozen parameters, and chains that are put together wrongly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers import layca as lib
from jaxpapers.layca import wrappers
from tests.helpers import goldens


def make_params():
  return {
    'Dense_0': {
      'kernel': jnp.asarray(goldens.normal('w', (8, 4)), jnp.float32),
      'bias': jnp.zeros(4),
    },
    'scale': jnp.ones(()),
  }


def make_gradient(step=0):
  return jax.tree.map(
    lambda p: jnp.asarray(
      goldens.normal(f'g{step}{p.shape}', p.shape), jnp.float32
    ),
    make_params(),
  )


def train(tx, steps=3):
  params = make_params()
  state, update = tx.init(params), jax.jit(tx.update)
  for step in range(steps):
    updates, state = update(make_gradient(step), state, params)
    params = optax.apply_updates(params, updates)
  return params


def assert_trees_equal(a, b, atol=0.0):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=atol), a, b
  )


class WithLaycaTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    wrappers.warn_of_frozen.cache_clear()

  def test_kernels_turn_and_the_rest_is_frozen_and_named_once(self):
    tx = lib.with_layca(optax.trace(0.9), 0.1)
    with self.assertLogs('absl', 'WARNING') as logs:
      params = train(tx)
      tx.init(make_params())
      lib.layca_sgd(0.1).init(make_params())
    self.assertLen(logs.output, 1)
    self.assertRegex(logs.output[0], 'frozen.*: Dense_0/bias, scale$')
    start = make_params()
    np.testing.assert_array_equal(
      params['Dense_0']['bias'], start['Dense_0']['bias']
    )
    np.testing.assert_array_equal(params['scale'], start['scale'])
    kernel = {'kernel': start['Dense_0']['kernel']}
    alone = optax.chain(optax.trace(0.9), lib.layca(0.1))
    state = alone.init(kernel)
    for step in range(3):
      gradient = {'kernel': make_gradient(step)['Dense_0']['kernel']}
      updates, state = alone.update(gradient, state, kernel)
      kernel = optax.apply_updates(kernel, updates)
    assert_trees_equal(params['Dense_0']['kernel'], kernel['kernel'], 1e-6)

  def test_others_are_trained(self):
    with self.assertNoLogs('absl', 'INFO'):
      params = train(
        lib.with_layca(optax.identity(), 0.1, others=optax.adam(1e-2))
      )
    adam = train(optax.adam(1e-2))
    assert_trees_equal(params['scale'], adam['scale'], 1e-7)
    assert_trees_equal(params['Dense_0']['bias'], adam['Dense_0']['bias'], 1e-7)

  @parameterized.parameters(
    (lambda: optax.set_to_zero(),), (lambda: optax.scale(0.0),)
  )
  def test_others_that_freeze_are_named_too(self, others):
    with self.assertLogs('absl', 'WARNING') as logs:
      lib.layca_adam(0.1, others=others()).init(make_params())
    self.assertRegex(logs.output[0], 'frozen')

  @parameterized.parameters(
    (lambda rate: optax.sgd(rate),),
    (lambda rate: optax.adam(rate),),
    (lambda rate: optax.chain(optax.scale_by_adam(), optax.sgd(rate)),),
  )
  def test_negated_bases_that_warm_up_are_refused(self, make):
    warmup = optax.linear_schedule(0.0, 0.1, 1000)
    with self.assertRaisesRegex(ValueError, 'negated gradient'):
      lib.with_layca(make(warmup), 0.1)
    # The rest is trained by such a schedule, not frozen.
    with self.assertNoLogs('absl', 'WARNING'):
      tx = lib.with_layca(optax.identity(), 0.1, others=make(warmup))
      tx.init(make_params())

  @parameterized.parameters(
    lib.layca_sgd,
    lib.layca_amom_sgd,
    lib.layca_adam,
    lib.layca_rmsprop,
    lib.layca_adagrad,
  )
  def test_every_alias_knows_keras_eps(self, alias):
    params = train(alias(0.1, keras_eps=True))
    if alias in (lib.layca_sgd, lib.layca_amom_sgd, lib.layca_rmsprop):
      assert_trees_equal(params, train(alias(0.1)))  # Nothing to change.
    else:
      self.assertTrue(np.isfinite(params['Dense_0']['kernel']).all())

  def test_selections(self):
    def by_function(path, leaf):
      return path == 'Dense_0/bias' or leaf.ndim == 2

    params = make_params()
    params['Dense_0']['bias'] = jnp.arange(1.0, 5.0)
    for select in (
      by_function,
      {'Dense_0': True, 'scale': False},
      {'Dense_0/kernel': 1, 'Dense_0/bias': 1, 'scale': 0},
    ):
      tx = lib.with_layca(optax.identity(), 0.1, select=select)
      updates, _ = tx.update(make_gradient(), tx.init(params), params)
      moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
      self.assertEqual(
        moved, {'Dense_0': {'kernel': True, 'bias': True}, 'scale': False}
      )
    for select in (lambda path, leaf: False, {'Dense_0': 0, 'scale': 0}):
      with self.assertRaisesRegex(ValueError, 'select chooses none.*scale'):
        lib.with_layca(optax.identity(), 0.1, select=select).init(params)
    with self.assertRaisesRegex(ValueError, 'element'):
      lib.with_layca(optax.identity(), 0.1, select=True).init(params)

  def test_options_by_path_for_the_whole_tree(self):
    params = {
      'Conv_10': {'kernel': jnp.ones((3, 2)), 'bias': jnp.zeros(2)},
      'Conv_2': {'kernel': jnp.ones((3, 2))},
    }
    order = ['Conv_2/kernel', 'Conv_10/kernel']
    factors = lib.depth_multipliers(order, 0.5)
    tx = lib.layca_sgd(1.0, multipliers=factors)
    gradient = jax.tree.map(
      lambda p: jnp.arange(p.size, dtype=p.dtype).reshape(p.shape), params
    )
    updates, _ = tx.update(gradient, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    turned = lib.step_tangent(params, new)
    self.assertAlmostEqual(float(turned['Conv_10']['kernel']), 1.0, delta=1e-5)
    self.assertAlmostEqual(
      float(turned['Conv_2']['kernel']), 0.5**5, delta=1e-6
    )

  @parameterized.parameters(
    (lambda: optax.adam(1e-3),),
    (lambda: optax.sgd(0.1, momentum=0.9),),
    (lambda: optax.chain(optax.clip(1.0), optax.scale(-1.0)),),
    (lambda: optax.scale_by_learning_rate(lambda count: 0.1),),
  )
  def test_a_negated_base_is_refused(self, base):
    with self.assertRaisesRegex(ValueError, 'negated.*scale_by_adam'):
      lib.with_layca(base(), 0.1)

  @parameterized.parameters(
    (lambda: optax.scale_by_adam(),),
    (lambda: optax.scale_by_sign(),),
    (lambda: optax.add_noise(1.0, 0.55, jax.random.key(0)),),
    (lambda: optax.masked(optax.trace(0.9), {'scale': False}),),
    (lambda: optax.clip_by_global_norm(1.0),),
  )
  def test_other_bases_are_not(self, base):
    lib.with_layca(base(), 0.1)

  def test_layca_inside_the_base_is_refused(self):
    base = optax.chain(lib.layca(0.1), optax.scale(0.5))
    with self.assertRaisesRegex(ValueError, 'contains layca already'):
      lib.with_layca(base, 0.1)
    with self.assertRaisesRegex(TypeError, 'base is a float'):
      lib.with_layca(0.1, 0.1)

  def test_traced_hyperparameters(self):
    order = ['Dense_0/kernel']

    def factory(learning_rate, momentum, alpha):
      return lib.layca_sgd(
        learning_rate,
        momentum,
        multipliers=lib.depth_multipliers(order, alpha),
      )

    tx = optax.inject_hyperparams(factory)(0.1, 0.0, 0.3)
    assert_trees_equal(train(tx), train(lib.layca_sgd(0.1)), 1e-6)
    # By their own names, with defaults that are no numbers.
    for alias in (lib.layca_adam, lib.layca_rmsprop, lib.layca_adagrad):
      injected = optax.inject_hyperparams(alias)(learning_rate=0.1)
      assert_trees_equal(train(injected), train(alias(0.1)), 1e-6)
    options = {'target_norm': 'current', 'layer_axes': -1}
    injected = optax.inject_hyperparams(lib.layca_sgd)(0.1, **options)
    assert_trees_equal(
      train(injected), train(lib.layca_sgd(0.1, **options)), 1e-6
    )

    def run(rate):
      return train(lib.layca_sgd(rate, 0.9), 2)

    rates = jnp.asarray([0.1, 0.01])
    both = jax.vmap(run)(rates)
    for i, rate in enumerate(rates):
      part = jax.tree.map(lambda x, i=i: x[i], both)
      assert_trees_equal(part, run(rate), 1e-6)


class CheckChainTest(parameterized.TestCase):
  def test_sound_chains_pass(self):
    for tx in (
      lib.layca(0.1),
      lib.layca(0.1, target_norm=7.0),
      lib.hyperball(0.1),
      lib.layca_adam(0.1),
      optax.chain(optax.trace(0.9), lib.layca(0.1), optax.identity()),
      optax.chain(lib.layca_sgd(0.1), lib.track_layer_rotation()),
    ):
      self.assertIs(lib.check_chain(tx), tx)
    tx = lib.with_layca(optax.trace(0.9), 0.1, others=optax.sgd(0.1))
    lib.check_chain(tx, make_params())

  @parameterized.parameters(
    (lambda: optax.chain(lib.layca(3.0**-7), optax.scale(0.5)), 'norm of'),
    (
      lambda: optax.chain(
        lib.layca(0.1, target_norm='current'), optax.scale(0.5)
      ),
      'norm of',
    ),
    (
      lambda: optax.chain(lib.layca(0.1, target_norm=3.0), optax.scale(0.5)),
      'norm of',
    ),
    (
      lambda: optax.chain(lib.layca(0.1), optax.add_decayed_weights(-0.1)),
      'norm of',
    ),
    (lambda: optax.chain(optax.adam(0.1), lib.layca(0.1)), 'uphill'),
    (lambda: optax.chain(lib.layca(0.1), optax.scale(-1.0)), 'norm of|uphill'),
    (lambda: optax.adam(0.1), 'no layca'),
  )
  def test_others_do_not(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      lib.check_chain(make())


if __name__ == '__main__':
  absltest.main()
