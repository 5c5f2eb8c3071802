"""The search for places of instance norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest

from jaxpapers import osnet
from jaxpapers.osnet import exchange
from tests.osnet import golden_weights

TINY = osnet.OSNetConfig(
  channels=(8, 16),
  blocks_per_stage=(1,),
  streams=(1,),
  gate_reduction=4,
  feature_dim=8,
)


class SearchTest(absltest.TestCase):
  def test_temperatures(self):
    found = [osnet.temperature_at(e) for e in (0, 20, 40, 60, 80, 119)]
    self.assertEqual(found, [10, 5, 2.5, 1.25, 1, 1])
    self.assertEqual(osnet.temperature_at(19), 10)
    with self.assertRaisesRegex(ValueError, 'epoch is -1'):
      osnet.temperature_at(-1)

  def test_finds_the_only_block_that_can_reduce_the_loss(self):
    # All candidates have the same convolutions; the target is what they give
    # with an instance norm on the residual (INv1).
    block = osnet.MixedOSBlock(16, TINY)
    x = jax.random.normal(jax.random.key(0), (8, 6, 4, 16))
    # Images of different contrast, which only an instance norm evens out.
    x = x * jnp.exp(jax.random.normal(jax.random.key(1), (8, 1, 1, 1)))
    keys = {'params': jax.random.key(2), 'gumbel': jax.random.key(3)}
    variables = golden_weights.fresh(
      lambda keys: block.init(keys, x, False), keys
    )
    params, stats = dict(variables['params']), variables['batch_stats']
    for i in range(4):
      params[f'block{i}'] = {**params[f'block{i}']}
      for name, tree in params['block0'].items():
        params[f'block{i}'][name] = tree
    teacher = osnet.OSBlock(
      16,
      osnet.config_for(
        'osnet_x1_0', streams=(1,), gate_reduction=4, affine=False
      ),
      'inside',
    )
    inside = {'params': params['block1'], 'batch_stats': stats['block1']}
    target = jax.jit(lambda v: teacher.apply(v, x, False))(inside)
    tx = optax.sgd(0.5)

    @jax.jit
    def step(alpha, state, key, temperature):
      def loss(alpha):
        y = block.apply(
          {'params': {**params, 'alpha': alpha}, 'batch_stats': stats},
          x,
          False,
          temperature,
          rngs={'gumbel': key},
        )
        return jnp.square(y - target).mean()

      value, grad = jax.value_and_grad(loss)(alpha)
      update, state = tx.update(grad, state)
      return optax.apply_updates(alpha, update), state, value

    alpha = params['alpha']
    state, values = tx.init(alpha), []
    for i in range(200):
      temperature = osnet.temperature_at(i, every=33)
      alpha, state, value = step(alpha, state, jax.random.key(i), temperature)
      values.append(float(value))
    self.assertEqual(int(jnp.argmax(alpha)), 1, alpha)
    self.assertLess(np.mean(values[-40:]), 0.7 * np.mean(values[:40]))

  @pytest.mark.slow
  def test_network(self):
    net = osnet.SearchOSNet(TINY, 3)
    x = jax.random.normal(jax.random.key(0), (2, 16, 8, 3))
    keys = {'params': jax.random.key(1), 'gumbel': jax.random.key(2)}
    variables = golden_weights.fresh(net.init, keys, x)
    leaves = jax.tree_util.tree_leaves_with_path(variables['params'])
    names = {path[-1].key for path, _ in leaves}
    self.assertNotIn('scale', names)  # Of no norm.

    @jax.jit
    def loss(params, key):
      out, _ = net.apply(
        {**variables, 'params': params},
        x,
        True,
        5.0,
        rngs={'gumbel': key},
        mutable=['batch_stats'],
      )
      labels = jnp.array([0, 2])
      return osnet.cross_entropy_label_smoothing(out.logits, labels)

    grads = jax.jit(jax.grad(loss))(variables['params'], jax.random.key(3))
    self.assertTrue(np.any(grads['conv2_0']['alpha']))
    cfg = osnet.child_config(variables['params'], TINY)
    self.assertEqual(cfg.instance_norm, (None,))  # All alpha are one.
    child = exchange.expected(cfg, 3)['params']
    self.assertIn('scale', child['conv2_0']['conv1']['norm'])

  def test_children(self):
    cfg = osnet.OSNetConfig(channels=(8, 64, 64), blocks_per_stage=(1, 2))
    alpha = np.eye(4)
    params = {
      'conv3_1': {'alpha': alpha[3]},
      'conv3_0': {'alpha': alpha[1]},
      'conv2_0': {'alpha': alpha[2]},
      'conv5': {},
    }
    found = osnet.child_config(params, cfg)
    self.assertEqual(found.instance_norm, ('outside', 'inside', 'both'))
    with self.assertRaisesRegex(ValueError, 'expected 6 blocks'):
      osnet.child_config(params, osnet.OSNetConfig())
    with self.assertRaisesRegex(ValueError, 'no blocks with alpha'):
      osnet.architecture_weights({'conv5': {}})


if __name__ == '__main__':
  absltest.main()
