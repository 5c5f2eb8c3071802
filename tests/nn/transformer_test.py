"""The encoder's options: each against the plain one, or by hand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.nn import transformer

SMALL = {
  'vocab_size': 50,
  'hidden_size': 16,
  'num_layers': 2,
  'num_heads': 2,
  'mlp_dim': 24,
  'max_len': 12,
}
IDS = np.array([[0, 9, 8, 7, 6, 2], [0, 9, 8, 2, 1, 1]])


def config(**changes):
  return transformer.EncoderConfig(**SMALL | changes)


def make(seed=0, **changes):
  """An encoder with weights that are not the initial, almost zero ones."""
  encoder = transformer.TransformerEncoder(config(**changes))
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), IDS)
  rng = np.random.default_rng(seed)
  variables = jax.tree.map(
    lambda p: jnp.asarray(
      0.3 * rng.standard_normal(p.shape) + (p.ndim == 1), p.dtype
    ),
    shapes,
  )
  return encoder, variables


@functools.partial(
  jax.jit,
  static_argnums=0,
  static_argnames=('deterministic', 'capture_hiddens'),
)
def run(encoder, variables, ids=IDS, **inputs):
  return encoder.apply(variables, ids, **inputs)


class PositionsTest(parameterized.TestCase):
  def test_padding_anywhere_shifts_nothing(self):
    ids = jnp.array(
      [[0, 5, 6, 2, 1, 1], [1, 1, 0, 5, 6, 2], [0, 1, 5, 1, 6, 2]]
    )
    self.assertEqual(
      transformer.make_position_ids(ids, 1).tolist(),
      [[2, 3, 4, 5, 1, 1], [1, 1, 2, 3, 4, 5], [2, 1, 3, 1, 4, 5]],
    )

  def test_padding_anywhere_changes_nothing(self):
    encoder, variables = make()
    row = IDS[:1]
    plain = run(encoder, variables, row)
    for left, right in ((0, 3), (3, 0), (2, 2)):
      padded = np.pad(row, ((0, 0), (left, right)), constant_values=1)
      out = run(encoder, variables, padded)
      # Sums in another order: a few units in the last place.
      chex.assert_trees_all_close(
        out[:, left : left + 6], plain, atol=1e-6, rtol=0
      )
    middle = np.insert(row, [3, 3], 1, axis=1)
    out = np.delete(run(encoder, variables, middle), [3, 4], axis=1)
    chex.assert_trees_all_close(out, plain, atol=1e-6, rtol=0)

  def test_plain_positions(self):
    encoder, variables = make(position_offset=0)
    table = variables['params']['position_embedding']['embedding']
    self.assertEqual(table.shape, (12, 16))
    _, hiddens = run(encoder, variables, capture_hiddens=True)
    ids = np.tile(np.arange(6), (2, 1))
    _, again = run(encoder, variables, position_ids=ids, capture_hiddens=True)
    chex.assert_trees_all_equal(hiddens, again)
    # Not the positions that skip padding.
    left = run(encoder, variables, np.array([[1, 1, 0, 9, 8, 2]]))
    right = run(encoder, variables, np.array([[0, 9, 8, 2, 1, 1]]))
    self.assertGreater(np.abs(left[0, 2:] - right[0, :4]).max(), 1e-3)

  def test_offset(self):
    encoder, variables = make(position_offset=3)
    table = variables['params']['position_embedding']['embedding']
    self.assertEqual(table.shape, (15, 16))
    shifted = {'params': dict(variables['params'])}
    shifted['params']['position_embedding'] = {'embedding': table[3:]}
    plain, _ = make(position_offset=0)
    chex.assert_trees_all_equal(run(encoder, variables), run(plain, shifted))

  def test_segments(self):
    encoder, variables = make(type_vocab_size=2)
    zeros = np.zeros_like(IDS)
    chex.assert_trees_all_equal(
      run(encoder, variables), run(encoder, variables, token_type_ids=zeros)
    )
    other = run(encoder, variables, token_type_ids=zeros + 1)
    self.assertGreater(np.abs(other - run(encoder, variables)).max(), 0.01)


class VariantsTest(parameterized.TestCase):
  def test_pre_norm(self):
    encoder, variables = make(norm='pre')
    params = variables['params']
    self.assertIn('final_norm', params)
    self.assertNotIn('embedding_norm', params)
    out, hiddens = run(encoder, variables, capture_hiddens=True)
    self.assertLen(hiddens, 3)

    # One layer by hand from its parts.
    cfg, layer = encoder.config, params['layers_0']
    seen, x = jnp.asarray(IDS != 1), hiddens[0]

    def norm(x, weights):
      x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(
        x.var(-1, keepdims=True) + 1e-5
      )
      return x * weights['scale'] + weights['bias']

    x = x + transformer.SelfAttention(cfg).apply(
      {'params': layer['attention']}, norm(x, layer['attention_norm']), seen
    )
    x = x + transformer.FeedForward(cfg).apply(
      {'params': layer['ffn']}, norm(x, layer['ffn_norm'])
    )
    chex.assert_trees_all_close(x, hiddens[1], atol=1e-5)
    chex.assert_trees_all_close(
      norm(hiddens[2], params['final_norm']), out, atol=1e-5
    )

  def test_causal(self):
    encoder, variables = make(causal=True)
    ids = np.array([[0, 9, 8, 7, 6, 2]])
    changed = ids.copy()
    changed[0, 4] = 30
    before, after = (
      run(encoder, variables, ids),
      run(encoder, variables, changed),
    )
    chex.assert_trees_all_equal(before[:, :4], after[:, :4])
    self.assertGreater(np.abs(before[:, 4:] - after[:, 4:]).min(), 1e-6)

  def test_mask(self):
    encoder, variables = make()
    mask = np.array([[1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 0]], bool)
    changed = IDS.copy()
    changed[0, 3] = 30
    before = run(encoder, variables, attention_mask=mask)
    after = run(encoder, variables, changed, attention_mask=mask)
    keep = np.array([0, 1, 2, 4, 5])
    chex.assert_trees_all_equal(before[:, keep], after[:, keep])
    chex.assert_trees_all_equal(
      run(encoder, variables), run(encoder, variables, attention_mask=IDS != 1)
    )

  def test_tanh(self):
    erf, variables = make()
    tanh, _ = make(gelu='tanh')
    gap = np.abs(run(erf, variables) - run(tanh, variables)).max()
    self.assertBetween(gap, 1e-6, 1e-2)

  def test_vocabulary_of_a_multiple(self):
    encoder, variables = make(vocab_multiple=16)
    table = variables['params']['token_embedding']['embedding']
    self.assertEqual(table.shape, (64, 16))
    fresh = encoder.init(jax.random.key(0), IDS)['params']['token_embedding']
    self.assertTrue((fresh['embedding'][50:] == 0).all())
    variables['params']['token_embedding'] = {'embedding': table[:50]}
    plain, _ = make()
    out = run(plain, variables)
    variables['params']['token_embedding'] = {'embedding': table}
    chex.assert_trees_all_equal(run(encoder, variables), out)

  @parameterized.parameters(
    {'scan_layers': True},
    {'scan_layers': True, 'remat': 'dots_saveable'},
  )
  @pytest.mark.nightly
  def test_layers_scanned_or_recomputed(self, **changes):
    plain, variables = make()
    other = transformer.TransformerEncoder(config(**changes))
    params = variables['params']
    stacked = params
    if other.config.scan_layers:
      stacked = transformer.stack_layers(params)
      chex.assert_trees_all_equal(transformer.unstack_layers(stacked), params)
      shapes = jax.eval_shape(other.init, jax.random.key(0), IDS)['params']
      chex.assert_trees_all_equal_shapes_and_dtypes(stacked, shapes)

    def loss(params, encoder):
      out, hiddens = run(encoder, {'params': params}, capture_hiddens=True)
      return jnp.sum(out**2) + sum(jnp.sin(h).sum() for h in hiddens)

    grad = jax.value_and_grad(loss)
    value, gradients = jax.jit(lambda p: grad(p, other))(stacked)
    wanted, expected = jax.jit(lambda p: grad(p, plain))(params)
    if other.config.scan_layers:
      gradients = transformer.unstack_layers(gradients)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    # Sums of some thousand terms in another order.
    chex.assert_trees_all_close(gradients, expected, atol=2e-4, rtol=1e-4)

  def test_scanned_layers_start_unequal(self):
    encoder = transformer.TransformerEncoder(config(scan_layers=True))
    params = encoder.init(jax.random.key(0), IDS)['params']
    kernel = params['layers']['ffn']['output']['kernel']
    self.assertGreater(np.abs(kernel[0] - kernel[1]).max(), 0.01)

  def test_types(self):
    encoder, variables = make(dtype=jnp.bfloat16)
    out = run(encoder, variables)
    self.assertEqual(out.dtype, jnp.bfloat16)
    for leaf in jax.tree.leaves(variables):
      self.assertEqual(leaf.dtype, jnp.float32)
    plain, _ = make()
    wanted = run(plain, variables)
    error = np.abs(out.astype(np.float32) - wanted)[IDS != 1].mean()
    self.assertLess(error / np.abs(wanted).mean(), 0.03)
    half, made = make(param_dtype=jnp.bfloat16)
    self.assertEqual(run(half, made).dtype, jnp.float32)
    for leaf in jax.tree.leaves(made):
      self.assertEqual(leaf.dtype, jnp.bfloat16)

  @pytest.mark.slow
  def test_extremes_are_finite(self):
    encoder, variables = make()
    for ids in (
      np.array([[5]]),
      np.full((1, 12), 7),
      np.array([[1, 1, 1], [0, 4, 2]]),
    ):
      grad = jax.grad(lambda v, ids=ids: jnp.square(run(encoder, v, ids)).sum())
      chex.assert_tree_all_finite(run(encoder, variables, ids))
      chex.assert_tree_all_finite(grad(variables))

  def test_members_of_a_population(self):
    encoder, variables = make()
    _, other = make(seed=1)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), variables, other)
    outs = jax.vmap(lambda v: run(encoder, v))(both)
    chex.assert_trees_all_close(outs[0], run(encoder, variables), atol=1e-5)
    chex.assert_trees_all_close(outs[1], run(encoder, other), atol=1e-5)


class DropoutTest(parameterized.TestCase):
  """Where dropout acts, seen from what a rate of almost one leaves."""

  def rates(self, **rates):
    names = ('dropout', 'attention_dropout', 'activation_dropout')
    return {f'{name}_rate': rates.get(name, 0.0) for name in names}

  def apply(self, encoder, variables, seed=0):
    return run(
      encoder,
      variables,
      deterministic=False,
      capture_hiddens=True,
      rngs={'dropout': jax.random.key(seed)},
    )

  def test_embeddings_and_blocks(self):
    encoder, variables = make(**self.rates(dropout=0.5))
    _, hiddens = self.apply(encoder, variables)
    _, still = run(encoder, variables, capture_hiddens=True)
    kept = np.asarray(hiddens[0]) != 0
    self.assertBetween(kept.mean(), 0.35, 0.65)
    # After the norm of the embeddings, scaled by 1 / (1 - rate).
    np.testing.assert_allclose(
      hiddens[0][kept], 2 * np.asarray(still[0])[kept], rtol=1e-5
    )
    self.assertGreater(np.abs(hiddens[1] - still[1]).max(), 0.1)

  @parameterized.parameters('attention_dropout', 'activation_dropout')
  def test_inside_blocks(self, name):
    encoder, variables = make(**self.rates(**{name: 0.5}))
    _, hiddens = self.apply(encoder, variables)
    _, still = run(encoder, variables, capture_hiddens=True)
    chex.assert_trees_all_equal(hiddens[0], still[0])
    self.assertGreater(np.abs(hiddens[1] - still[1]).max(), 0.01)
    _, other = self.apply(encoder, variables, seed=1)
    self.assertGreater(np.abs(hiddens[1] - other[1]).max(), 0.01)

  def test_layers_draw_anew(self):
    # With zero kernels but unit biases a block adds its dropout mask.
    for scan in (False, True):
      encoder, variables = make(
        num_layers=3,
        scan_layers=scan,
        norm='pre',
        **self.rates(dropout=0.5),
      )
      zero = jax.tree.map(jnp.zeros_like, variables)
      layers = zero['params']
      for name in [n for n in layers if n.startswith('layers')]:
        bias = layers[name]['ffn']['output']['bias']
        layers[name]['ffn']['output']['bias'] = jnp.ones_like(bias)
      _, hiddens = self.apply(encoder, zero)
      masks = [np.asarray(b - a) for a, b in zip(hiddens, hiddens[1:])]
      self.assertEqual(set(np.unique(masks)), {0.0, 2.0})
      self.assertGreater((masks[0] != masks[1]).mean(), 0.3)
      self.assertGreater((masks[1] != masks[2]).mean(), 0.3)

  def test_same_key_same_mask(self):
    encoder, variables = make()
    chex.assert_trees_all_equal(
      self.apply(encoder, variables), self.apply(encoder, variables)
    )

  def test_no_key(self):
    encoder, variables = make()
    with self.assertRaisesRegex(Exception, 'dropout'):
      run(encoder, variables, deterministic=False)


class StackTest(absltest.TestCase):
  def test_nested_and_on_the_host(self):
    tree = {
      'encoder': {f'layers_{i}': {'w': np.full(2, i)} for i in range(11)},
      'head': {'bias': np.zeros(1)},
    }
    stacked = transformer.stack_layers(tree)
    kept = stacked['encoder']['layers']['w']
    self.assertIsInstance(kept, np.ndarray)
    # By number and not by name: 2 comes before 10.
    self.assertEqual(kept[:, 0].tolist(), list(range(11)))
    chex.assert_trees_all_equal(transformer.unstack_layers(stacked), tree)

  def test_gaps_and_differences(self):
    with self.assertRaisesRegex(ValueError, r'layers \[0, 2\]'):
      transformer.stack_layers(
        {'layers_0': {'w': np.ones(1)}, 'layers_2': {'w': np.ones(1)}}
      )
    with self.assertRaisesRegex(ValueError, 'layers_1 differs'):
      transformer.stack_layers(
        {'layers_0': {'w': np.ones(1)}, 'layers_1': {'w': np.ones(2)}}
      )
    with self.assertRaisesRegex(ValueError, 'leading axes'):
      transformer.unstack_layers(
        {'layers': {'a': np.ones((2, 1)), 'b': np.ones((3, 1))}}
      )


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'ids': np.zeros((2, 13), int)}, 'max_len is 12'),
    ({'ids': np.zeros(4, int)}, r'ids has shape \(4,\)'),
    ({'ids': np.zeros((2, 0), int)}, 'at least'),
    ({'ids': np.array([[0, 50]])}, 'ids has values from 0 to 50'),
    ({'ids': np.array([[0, -1]])}, 'ids has values from -1'),
    ({'token_type_ids': IDS * 0 + 1}, 'token_type_ids has values'),
    ({'token_type_ids': IDS[:1]}, 'token_type_ids has shape'),
    ({'position_ids': IDS * 0 + 14}, 'position_ids has values'),
    ({'attention_mask': IDS[:, :3] != 1}, 'attention_mask has shape'),
    ({'adapter_inputs': {'gate': np.ones((2, 2))}}, 'has no adapter'),
  )
  def test_values(self, inputs, message):
    encoder, variables = make()
    with self.assertRaisesRegex(ValueError, message):
      encoder.apply(variables, **{'ids': IDS} | inputs)

  def test_types(self):
    encoder, variables = make()
    with self.assertRaisesRegex(TypeError, 'ids is float'):
      encoder.apply(variables, IDS.astype(np.float32))
    with self.assertRaisesRegex(TypeError, 'ids is a list; expected an array'):
      encoder.apply(variables, IDS.tolist())
    with self.assertRaisesRegex(TypeError, 'attention_mask is int'):
      run(encoder, variables, attention_mask=np.ones_like(IDS))

  def test_out_of_range_under_jit(self):
    # Indexing would silently take the nearest row.
    encoder, variables = make()
    apply = jax.jit(lambda ids: run(encoder, variables, ids))
    for wrong in (50, -1):
      out = apply(np.array([[0, wrong, 2], [0, 5, 2]]))
      self.assertTrue(np.isnan(out[0]).all())
      self.assertFalse(np.isnan(out[1]).any())

  @parameterized.parameters(
    ({'num_heads': 3}, 'num_heads is 3; expected a divisor'),
    ({'num_layers': 0}, 'num_layers is 0'),
    ({'gelu': 'relu'}, "gelu is 'relu'"),
    ({'norm': 'rms'}, "norm is 'rms'"),
    ({'attention_impl': 'flash'}, "attention_impl is 'flash'"),
    ({'padding': 'left'}, "padding is 'left'"),
    ({'initializer': 'zeros'}, "initializer is 'zeros'"),
    ({'dropout_rate': 1.0}, 'dropout_rate is 1.0'),
    ({'dropout_bits': 7}, 'dropout_bits is 7'),
    ({'pad_id': 50}, 'pad_id is 50'),
    ({'position_offset': 'padd'}, "position_offset is 'padd'"),
    ({'position_offset': -1}, 'position_offset is -1'),
    ({'type_vocab_size': -1}, 'type_vocab_size is -1'),
    ({'layer_norm_eps': 0.0}, 'layer_norm_eps is 0.0'),
    ({'remat': 'everything'}, "remat is 'everything'"),
  )
  def test_configs(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      config(**changes)


if __name__ == '__main__':
  absltest.main()
