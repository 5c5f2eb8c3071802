"""Whole training runs of the original code, repeated with Flax modules."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import layca as lib
from tests.helpers import goldens


class Mlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(16, param_dtype=x.dtype, name='dense0')(x)
    x = nn.BatchNorm(
      use_running_average=False,
      momentum=0.99,
      epsilon=1e-3,
      param_dtype=x.dtype,
      name='bn',
    )(x)
    return nn.Dense(4, param_dtype=x.dtype, name='densef')(nn.relu(x))


class Convolutions(nn.Module):
  @nn.compact
  def __call__(self, x):
    for i, channels in enumerate((6, 8, 10)):
      stride = 2 if i == 2 else 1
      conv = nn.Conv(
        channels,
        (3, 3),
        stride,
        use_bias=False,
        param_dtype=x.dtype,
        name=f'conv{i}',
      )
      x = nn.BatchNorm(
        use_running_average=False,
        momentum=0.99,
        epsilon=1e-3,
        use_bias=False,
        use_scale=False,
        param_dtype=x.dtype,
      )(nn.relu(conv(x)))
    x = x.mean((1, 2))
    return nn.Dense(5, use_bias=False, param_dtype=x.dtype, name='last_dense')(
      x
    )


def fill_kernels(params, tag):
  """Kernels that follow from the name of their layer."""

  def fill(path, leaf):
    if not lib.is_kernel(path):
      return leaf
    name = f'{tag}|{path[0].key}/kernel'
    scale = np.prod(leaf.shape[:-1]) ** -0.5
    return jnp.asarray(goldens.normal(name, leaf.shape, scale))

  return jax.tree_util.tree_map_with_path(fill, params)


def make_batches(tag, shape, classes):
  """Inputs, and labels from a random linear teacher."""
  x = goldens.normal(f'{tag}|X', shape)
  flat = x.reshape(shape[0] * shape[1], -1)
  teacher = goldens.normal(f'{tag}|teacher', (flat.shape[1], classes))
  return x, np.argmax(flat @ teacher, 1).reshape(shape[:2])


def train(module, tx, tag, batches, kernels):
  """Losses before each step, rotations after it, and the last variables."""
  variables = module.init(jax.random.key(0), batches[0][0])
  params = variables['params']
  stats = jax.tree.map(jnp.float64, variables['batch_stats'])
  start = params = fill_kernels(params, tag)

  @jax.jit
  def run(params, stats, batches):
    def step(carry, batch):
      params, stats, state = carry
      x, y = batch

      def loss(params):
        logits, new = module.apply(
          {'params': params, 'batch_stats': stats}, x, mutable=['batch_stats']
        )
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return entropy.mean(), new['batch_stats']

      (value, stats), slope = jax.value_and_grad(loss, has_aux=True)(params)
      updates, state = tx.update(slope, state, params)
      params = optax.apply_updates(params, updates)
      turned = lib.layer_rotation(params, start)
      turned = jnp.stack([turned[name]['kernel'] for name in kernels])
      return (params, stats, state), (value, turned)

    carry = (params, stats, tx.init(params))
    carry, out = jax.lax.scan(step, carry, batches)
    return carry[:2], out

  (params, stats), (losses, rotations) = run(params, stats, batches)
  return losses, rotations, params, stats, start


class TrainingTest(parameterized.TestCase):
  @parameterized.parameters(('sgd', 3.0**-2.5), ('adam', 3.0**-3))
  def test_mlp(self, base, rate):
    golden = goldens.load_npz('layca', f'train_mlp_{base}.npz')
    tag, kernels = 'mlp-pub', ('dense0', 'densef')
    batches = make_batches(tag, (20, 32, 20), 4)
    np.testing.assert_array_equal(batches[0][0, :2], golden['X0'])
    np.testing.assert_array_equal(batches[1][0, :8], golden['y0'])
    alias = {
      'sgd': lib.layca_sgd,
      'adam': functools.partial(lib.layca_adam, keras_eps=True),
    }[base]
    with jax.enable_x64(True):
      schedule = lib.keras_step_schedule(rate, 0.2, (15,), 1)
      losses, rotations, params, stats, start = train(
        Mlp(), alias(schedule), tag, batches, kernels
      )
    np.testing.assert_allclose(losses, golden['loss'], rtol=0, atol=1e-10)
    np.testing.assert_allclose(
      rotations, golden['cosine_distance'], rtol=0, atol=1e-10
    )
    for name in kernels:
      np.testing.assert_allclose(
        params[name]['kernel'],
        golden[f'final_{name}_kernel'],
        rtol=0,
        atol=1e-10,
      )
    # Frozen to the last bit.
    np.testing.assert_array_equal(
      params['dense0']['bias'], golden['final_dense0_bias']
    )
    for name, value in (('scale', 1), ('bias', 0)):
      np.testing.assert_array_equal(params['bn'][name], start['bn'][name])
      np.testing.assert_array_equal(params['bn'][name], value)
    np.testing.assert_allclose(
      [stats['bn']['mean'], stats['bn']['var']],
      golden['bn_gamma_beta_mean_var'][2:],
      # Keras keeps the unbiased variance of a batch.
      atol=1e-2,
    )

  @pytest.mark.slow
  def test_convolutions_with_multipliers(self):
    golden = goldens.load_npz('layca', 'train_conv_alpha0.3.npz')
    tag, kernels = 'conv-pub', ('conv0', 'conv1', 'conv2', 'last_dense')
    batches = make_batches(tag, (10, 8, 8, 8, 3), 5)
    with jax.enable_x64(True):
      order = lib.layer_order(Convolutions(), batches[0][0])
      self.assertEqual(order, [f'{name}/kernel' for name in kernels])
      factors = lib.depth_multipliers(order, 0.3)
      np.testing.assert_allclose(
        list(factors.values()), golden['multipliers'], rtol=0, atol=1e-12
      )
      schedule = lib.keras_step_schedule(3.0**-2, 0.2, (7,), 1)
      losses, rotations, params, _, _ = train(
        Convolutions(),
        lib.layca_sgd(schedule, multipliers=factors),
        tag,
        batches,
        kernels,
      )
    np.testing.assert_allclose(losses, golden['loss'], rtol=0, atol=1e-10)
    np.testing.assert_allclose(
      rotations, golden['cosine_distance'], rtol=0, atol=1e-10
    )
    for name in kernels:
      np.testing.assert_allclose(
        params[name]['kernel'], golden[f'final_{name}'], rtol=0, atol=1e-10
      )


if __name__ == '__main__':
  absltest.main()
