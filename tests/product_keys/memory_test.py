"""Tests of memory layers beside the golden numbers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import product_keys as pk
from jaxpapers.product_keys import queries
from tests.product_keys.notebook import notebook_case

SMALL = {'n_keys': 8, 'k_dim': 8, 'heads': 2, 'knn': 3}


def tokens(shape=(2, 5, 16), seed=0):
  return jnp.asarray(
    np.random.default_rng(seed).standard_normal(shape), jnp.float32
  )


def made(module, x, **options):
  return module.init(jax.random.key(0), x, train=False, **options)


class PaddingTest(parameterized.TestCase):
  @parameterized.parameters('batch', 'layer', 'qk', None)
  def test_padding_changes_nothing(self, norm):
    module = pk.ProductKeyMemory(**SMALL, query_norm=norm)
    x = tokens()
    variables = made(module, x)
    junk = jnp.concatenate([x, 100 * tokens((2, 3, 16), 1)], axis=1)
    junk = junk.at[0, 6].set(jnp.nan)
    mask = jnp.arange(8)[None] < jnp.array([[5], [5]])

    def apply(x, mask):
      y, changed = module.apply(
        variables, x, mask=mask, train=True, mutable=['batch_stats', 'reads']
      )
      read = changed.pop('reads')['values']
      state = pk.memory_usage_update(
        pk.memory_usage_init(64), read['ids'], read['weights']
      )
      return y, changed, state

    alone = apply(x, None)
    padded = jax.jit(apply)(junk, mask)
    np.testing.assert_allclose(padded[0][:, :5], alone[0], atol=1e-6)
    np.testing.assert_array_equal(padded[0][:, 5:], 0)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      padded[1:],
      alone[1:],
    )

  def test_traced_batches_of_one_token_keep_statistics(self):
    norm = pk.MaskedBatchNorm()
    x = tokens((4, 3))
    variables = norm.init(jax.random.key(0), x, train=False)
    for count in (0, 1, 2):
      _, changed = jax.jit(
        lambda mask: norm.apply(
          variables, x, mask, train=True, mutable='batch_stats'
        )
      )(jnp.arange(4) < count)
      same = bool((changed['batch_stats']['mean'] == 0).all())
      self.assertEqual(same, count < 2)


class LayerTest(parameterized.TestCase):
  @pytest.mark.nightly
  def test_key_kinds_and_switches(self):
    x = tokens()
    for options in (
      {'key_init': 'gaussian', 'normalize_keys': True},
      {'key_init': 'xlm', 'train_keys': False},
      {'key_init': 'binary', 'n_keys': 16},
      {'zero_values': True, 'train_query': False},
      {'detach_input': True, 'score': 'relu', 'score_subtract': 'median'},
      {'query_net': 'per_half', 'query_norm': 'batch'},
    ):
      module = pk.ProductKeyMemory(**(SMALL | options))
      variables = made(module, x)

      def loss(variables, x, module=module):
        return jnp.sum(module.apply(variables, x, train=False) ** 2)

      gradients, grad_x = jax.grad(loss, argnums=(0, 1))(variables, x)
      keys = variables['params'].get('keys')
      if options.get('normalize_keys'):
        np.testing.assert_allclose(jnp.linalg.norm(keys, axis=-1), 1, rtol=1e-6)
      if options.get('train_keys') is False:
        self.assertNotIn('keys', variables['params'])
        self.assertEqual(variables['constants']['keys'].shape, (2, 2, 8, 4))
      if options.get('key_init') == 'binary':
        np.testing.assert_array_equal(jnp.abs(keys), 0.5)
        self.assertLen({tuple(k) for k in np.asarray(keys[0, 0])}, 16)
      if options.get('zero_values'):
        np.testing.assert_array_equal(variables['memory']['values'], 0)
      still = jax.tree.leaves(gradients['params']['query'])
      moves = any(float(jnp.abs(g).max()) > 0 for g in still)
      self.assertEqual(
        moves,
        options.get('train_query', True) and not options.get('zero_values'),
      )
      if options.get('detach_input'):
        np.testing.assert_array_equal(grad_x, 0)

  def test_layers_begin_with_other_keys_unless_asked(self):
    x = tokens()
    for kind, same in (('uniform', False), ('xlm', True)):
      module = pk.ProductKeyMemory(**SMALL, key_init=kind)
      one, two = (
        module.init(jax.random.key(i), x, train=False)['params']['keys']
        for i in range(2)
      )
      self.assertEqual(bool((one == two).all()), same)

  def test_dropout(self):
    x = tokens()
    for name in ('input_dropout', 'query_dropout', 'value_dropout'):
      module = pk.ProductKeyMemory(**SMALL, query_norm=None, **{name: 0.5})
      variables = made(module, x)
      apply = functools.partial(module.apply, variables, x)
      plain = apply(train=False)
      one = apply(train=True, rngs={'dropout': jax.random.key(1)})
      two = apply(deterministic=False, rngs={'dropout': jax.random.key(1)})
      np.testing.assert_array_equal(one, two)
      self.assertGreater(float(jnp.abs(one - plain).max()), 1e-3)

  def test_output_norm_and_addressing_loss(self):
    x = tokens()
    module = pk.ProductKeyMemory(**SMALL, score='relu', output_norm=True)
    variables = made(module, x)
    self.assertNotIn('losses', variables)
    y, changed = module.apply(variables, x, train=False, mutable=['losses'])
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(-1), 1, atol=1e-2)
    self.assertBetween(float(changed['losses']['addressing']), -np.log(8), 0)

  def test_dense_values_are_a_parameter(self):
    module = pk.ProductKeyMemory(**SMALL, sparse_values=False)
    variables = made(module, tokens())
    self.assertEqual(variables['params']['values'].shape, (64, 16))
    self.assertNotIn('memory', variables)

  @pytest.mark.slow
  def test_vmap_over_memories(self):
    module = pk.ProductKeyMemory(**SMALL)
    x = tokens()
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.vmap(lambda key: module.init(key, x, train=False))(keys)

    def loss(variables):
      return jnp.sum(module.apply(variables, x, train=False) ** 2)

    together = jax.vmap(jax.value_and_grad(loss))(many)
    for i in range(3):
      alone = jax.value_and_grad(loss)(jax.tree.map(lambda v, i=i: v[i], many))
      jax.tree.map(
        lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5),
        together,
        alone,
      )

  @pytest.mark.slow
  def test_bfloat16(self):
    module, variables, x = notebook_case('pub_pk_medium')
    narrow = x.astype(jnp.bfloat16)
    variables['memory'] = jax.tree.map(
      lambda v: v.astype(jnp.bfloat16), variables['memory']
    )
    options = {'train': False, 'mutable': 'reads'}
    y, reads = module.apply(variables, narrow, **options)
    expected, wanted = module.apply(variables, x, **options)
    self.assertEqual(y.dtype, jnp.bfloat16)
    wide, again = module.apply(variables, narrow.astype(jnp.float32), **options)
    error = jnp.linalg.norm(y.astype(jnp.float32) - wide)
    self.assertLess(float(error / jnp.linalg.norm(wide)), 0.02)
    ids = reads['reads']['values']['ids']
    self.assertGreaterEqual(
      float((ids == again['reads']['values']['ids']).mean()), 0.99
    )
    # And rounding x itself: some slots change, most do not.
    same = (ids[..., None] == wanted['reads']['values']['ids'][:, None]).any(-1)
    self.assertGreater(float(same.mean()), 0.9)
    self.assertEqual(expected.dtype, jnp.float32)

  def test_quantized_tables(self):
    module = pk.ProductKeyMemory(**SMALL)
    x = tokens()
    variables = dict(made(module, x))
    table = variables['memory']['values']
    quantized = pk.quantize_values(table)
    self.assertEqual(quantized.rows.dtype, jnp.int8)
    half_step = quantized.scale[:, None] / 2 * (1 + 1e-5)
    self.assertTrue(
      bool((jnp.abs(quantized.dequantize() - table) <= half_step).all())
    )
    apply = functools.partial(module.apply, x=x, train=False)
    small = apply({**variables, 'memory': {'values': quantized}})
    wide = apply({**variables, 'memory': {'values': quantized.dequantize()}})
    np.testing.assert_allclose(small, wide, atol=1e-6)
    experts = pk.PEER(**SMALL)
    variables = dict(made(experts, x))
    tables = {k: pk.quantize_values(v) for k, v in variables['memory'].items()}
    small, wide = (
      experts.apply({**variables, 'memory': memory}, x, train=False)
      for memory in (
        tables,
        {k: v.dequantize() for k, v in tables.items()},
      )
    )
    np.testing.assert_allclose(small, wide, atol=1e-5)
    with self.assertRaisesRegex(ValueError, 'values has NaN'):
      pk.quantize_values(table * jnp.nan)
    with self.assertRaisesRegex(ValueError, 'values has shape'):
      pk.quantize_values(table[0])


class ImageTest(parameterized.TestCase):
  def _apply(self, module, x, **options):
    variables = made(module, jnp.nan_to_num(x))
    y, changed = module.apply(
      variables, x, train=True, mutable=['batch_stats', 'reads'], **options
    )
    return y, changed, variables

  @parameterized.parameters('one', 'per_half')
  @pytest.mark.slow
  def test_kernels_of_one_pixel_are_the_network_for_tokens(self, net):
    x = tokens((2, 3, 4, 16))
    options = SMALL | {'query_net': net, 'query_sizes': (6,)}
    y, changed, variables = self._apply(
      pk.ProductKeyMemory(**options, query_kernels=(1, 1)), x
    )
    convolutions = variables['params'].pop('query')
    plain = {}
    if net == 'one':
      for i in range(2):
        layer = convolutions['net'][f'conv_{i}']
        plain[f'dense_{i}'] = layer | {'kernel': layer['kernel'][0, 0]}
        plain[f'norm_{i}'] = convolutions['net'][f'norm_{i}']
    else:
      for i in range(2):
        layer = convolutions['nets'][f'conv_{i}']
        plain[f'kernel_{i}'] = layer['kernel'][:, 0, 0]
        plain[f'bias_{i}'] = layer['bias']
        norm = convolutions['nets'][f'norm_{i}']
        plain[f'norm_{i}'] = jax.tree.map(jnp.ravel, norm)
    stats = made(pk.ProductKeyMemory(**options), x)['batch_stats']
    same, wanted = pk.ProductKeyMemory(**options).apply(
      {
        'params': variables['params'] | {'query': plain},
        'memory': variables['memory'],
        'batch_stats': stats,
      },
      x,
      train=True,
      mutable=['batch_stats', 'reads'],
    )
    np.testing.assert_allclose(y, same, atol=1e-5)
    jax.tree.map(
      np.testing.assert_array_equal,
      changed['reads']['values']['ids'],
      wanted['reads']['values']['ids'],
    )

  def test_convolution(self):
    # The query by plain sums over neighbours.
    x = tokens((1, 4, 5, 3))
    module = queries.QueryConvolutions(
      groups=1, features=(8,), kernels=(3,), train=False
    )
    variables = module.init(jax.random.key(0), x)
    layer = variables['params']['net']['conv_0']
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.asarray(layer['bias'])
    for i in range(3):
      for j in range(3):
        part = padded[:, i : i + 4, j : j + 5]
        expected = expected + part @ np.asarray(layer['kernel'][i, j])
    np.testing.assert_allclose(
      module.apply(variables, x), expected.reshape(20, 8), atol=1e-5
    )

  def test_residual(self):
    x = tokens((1, 3, 3, 4))
    module = queries.QueryConvolutions(
      groups=1, features=(6, 6), kernels=(1, 1), residual=True, train=False
    )
    variables = module.init(jax.random.key(0), x)
    net = variables['params']['net']

    def layer(name, x):
      y = x @ net[name]['kernel'][0, 0]
      return y + net[name]['bias'] if 'bias' in net[name] else y

    y = x.reshape(9, 4)
    self.assertEqual(net['conv_0_in']['kernel'].shape, (1, 1, 4, 4))
    self.assertNotIn('bias', net['residual_0'])
    self.assertNotIn('residual_1', net)
    for i in range(2):
      inner = layer(f'conv_{i}_out', nn.relu(layer(f'conv_{i}_in', y)))
      y = nn.relu(inner + (layer('residual_0', y) if i == 0 else y))
    np.testing.assert_allclose(
      module.apply(variables, x), layer('last', y), atol=1e-5
    )

  @pytest.mark.slow
  def test_masked_pixels_change_nothing(self):
    x = tokens((2, 3, 4, 16))
    mask = jnp.ones((2, 3, 4), bool).at[:, :, 3].set(False)
    module = pk.ProductKeyMemory(**SMALL, query_kernels=(3,))
    y, changed, _ = self._apply(module, x, mask=mask)
    junk = x.at[:, :, 3].set(jnp.nan)
    other, again, _ = self._apply(module, junk, mask=mask)
    narrow, alone, _ = self._apply(module, x[:, :, :3])
    np.testing.assert_array_equal(y, other)
    np.testing.assert_allclose(y[:, :, :3], narrow, atol=1e-6)
    for a, b in ((changed, again), (changed, alone)):
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        a['batch_stats'],
        b['batch_stats'],
      )

  def test_without_bias(self):
    for options in ({}, {'query_net': 'per_half', 'query_sizes': (6,)}):
      module = pk.ProductKeyMemory(**(SMALL | options), query_bias=False)
      names = jax.tree_util.tree_leaves_with_path(
        made(module, tokens())['params']['query']
      )
      names = [jax.tree_util.keystr(path) for path, _ in names]
      self.assertFalse(
        any('bias' in n and 'norm' not in n for n in names), names
      )


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'k_dim': 7}, 'k_dim is 7; expected an even number'),
    ({'knn': 9}, 'knn is 9; expected 1 to 8'),
    ({'knn': 0}, 'knn is 0'),
    ({'n_keys': 46341}, 'n_keys has 46341'),
    ({'query_sizes': None, 'query_norm': None}, 'k_dim is 8 and x is 16'),
    ({'query_sizes': None, 'k_dim': 16}, "query_norm is 'batch'"),
    ({'heads': 0}, 'heads is 0'),
    ({'query_norm': 'rms'}, "query_norm is 'rms'"),
    ({'query_net': 'two'}, "query_net is 'two'"),
    ({'score': 'sigmoid'}, "score is 'sigmoid'"),
    ({'score_subtract': 'max'}, "score_subtract is 'max'"),
    ({'key_init': 'zeros'}, "key_init is 'zeros'"),
    ({'key_init': 'binary'}, "key_init is 'binary' with 8 keys of 4"),
    ({'temperature': 0}, 'temperature is 0'),
    ({'modulo': 65}, 'modulo is 65'),
    ({'input_dropout': 1.0}, 'input_dropout is 1.0'),
    ({'v_dim': 0}, 'v_dim is 0'),
    ({'query_kernels': (2,)}, r'query_kernels is \(2,\); expected 1 odd'),
    ({'query_kernels': (3, 3)}, 'query_kernels is'),
    ({'query_residual': True}, 'query_residual is True'),
    (
      {'query_kernels': (3,), 'query_sizes': None, 'k_dim': 16}
      | {'query_norm': None},
      'query_kernels is .* without a query network',
    ),
  )
  def test_sizes(self, options, words):
    module = pk.ProductKeyMemory(**(SMALL | options))
    with self.assertRaisesRegex(ValueError, words):
      made(module, tokens((1, 2, 16)))

  def test_flat_memory(self):
    with self.assertRaisesRegex(ValueError, 'knn is 9'):
      made(pk.FlatMemory(n_keys=8, k_dim=7, heads=1, knn=9), tokens((1, 2, 16)))

  def test_tokens(self):
    module = pk.ProductKeyMemory(**SMALL)
    x = tokens()
    variables = made(module, x)
    train = functools.partial(
      module.apply, variables, train=True, mutable=['batch_stats']
    )
    none = jnp.zeros((2, 5), bool)
    one = none.at[0, 0].set(True)
    for words, call in (
      ('x has shape', lambda: train(x[:, :0])),
      ('x has shape', lambda: train(x[0, 0])),
      ('mask leaves no valid token', lambda: train(x, mask=none)),
      ('mask leaves 1 valid tokens', lambda: train(x, mask=one)),
      ('mask leaves 1 valid tokens', lambda: train(x[:1, :1])),
      ('x has NaN in 1 tokens', lambda: train(x.at[0, 0, 0].set(jnp.nan))),
      ('mask has shape', lambda: train(x, mask=none[0])),
      ('expected one of both', lambda: module.apply(variables, x)),
      (
        'values has shape',
        lambda: train(x, values=jnp.zeros((63, 16))),
      ),
    ):
      with self.assertRaisesRegex(ValueError, words):
        call()
    with self.assertRaisesRegex(TypeError, 'mask is int32'):
      train(x, mask=none.astype(jnp.int32))
    with self.assertRaisesRegex(TypeError, 'x is int32'):
      train(x.astype(jnp.int32))

    image = module.clone(query_kernels=(3,))
    with self.assertRaisesRegex(ValueError, r'expected \[..., height, width'):
      image.apply(variables, x[0], train=False)

  def test_variants(self):
    with self.assertRaisesRegex(ValueError, "gate is 'tanh'"):
      made(pk.MemoryPlus(n_keys=8, heads=1, knn=2, gate='tanh'), tokens())
    with self.assertRaisesRegex(ValueError, 'values has 3 parts'):
      made(
        pk.PEER(n_keys=8, k_dim=8, heads=1, knn=2),
        tokens(),
        values=(jnp.zeros((64, 16)),) * 3,
      )
    with self.assertRaisesRegex(ValueError, 'shuffle_query with 5 heads'):
      queries.shuffled_queries(jnp.zeros((2, 16)), 5)


if __name__ == '__main__':
  absltest.main()
