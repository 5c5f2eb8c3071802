"""Attention: plain, fused, by hand; which is taken; what padding means."""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.nn import attention, transformer

SIZES = (50, 16, 1, 2, 24)
IDS = np.array([[0, 9, 8, 7, 6, 2], [0, 9, 8, 2, 1, 1]])
NO_DROPOUT = {'attention_dropout_rate': 0.0, 'max_len': 8}


def inputs(seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(rng.standard_normal((2, 6, 2, 8)), dtype) for _ in range(3)
  )


def by_hand(query, key, value, seen):
  """Loops over examples, heads and queries, in float64."""
  out = np.zeros(query.shape)
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  for b, s, a in np.ndindex(*query.shape[:3]):
    scores = key[b, :, a] @ query[b, s, a] / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max()) * seen[b, s]
    out[b, s, a] = weights / weights.sum() @ value[b, :, a]
  return out


class ImplementationsTest(parameterized.TestCase):
  @parameterized.product(causal=[False, True], masked=['none', 'any', 'right'])
  def test_by_hand(self, causal, masked):
    mask = {
      'none': None,
      'any': np.array([[1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]], bool),
      'right': np.array([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]], bool),
    }[masked]
    seen = np.ones((2, 6, 6), bool) if mask is None else mask[:, None, :]
    if causal:
      seen = seen & np.tri(6, dtype=bool)
    seen = np.broadcast_to(seen, (2, 6, 6))
    query, key, value = inputs()
    wanted = by_hand(query, key, value, seen)
    plain = attention.plain_attention(query, key, value, mask, causal=causal)
    np.testing.assert_allclose(plain, wanted, atol=2e-6)
    fused = attention.fused_attention(
      query,
      key,
      value,
      None if mask is None else jnp.asarray(mask),
      causal=causal,
      right_padding=masked == 'right',
    )
    np.testing.assert_allclose(fused, wanted, atol=2e-6)

  def test_softmax_is_wide(self):
    # float64 stays float64; bfloat16 is normalised in float32.
    with jax.enable_x64(True):
      query, key, value = inputs(dtype=np.float64)
      out = attention.plain_attention(query, key, value)
      wanted = by_hand(query, key, value, np.ones((2, 6, 6)))
      np.testing.assert_allclose(out, wanted, atol=1e-14)
    query, key, _ = inputs(dtype=jnp.bfloat16)
    ones = jnp.ones((2, 6, 2, 8), jnp.bfloat16)
    out = attention.plain_attention(query, key, ones)
    self.assertEqual(out.dtype, jnp.bfloat16)
    # Probabilities are rounded to 8 bits, but were normalised before.
    np.testing.assert_allclose(out.astype(np.float32), 1, atol=2**-8)

  def test_nothing_to_see(self):
    query, key, value = inputs()
    mask = jnp.zeros((2, 6), bool)
    out = attention.plain_attention(query, key, value, mask)
    mean = jnp.broadcast_to(value.mean(1, keepdims=True), value.shape)
    chex.assert_trees_all_close(out, mean, atol=1e-6)
    for right in (False, True):
      out = attention.fused_attention(
        query, key, value, mask, right_padding=right
      )
      chex.assert_tree_all_finite(out)

  def test_dropout_acts_on_probabilities(self):
    query, key, value = inputs()
    eye = jnp.broadcast_to(jnp.eye(6, 8)[:, None], value.shape)
    still = attention.plain_attention(query, key, eye)
    drop = functools.partial(
      attention.plain_attention, query, key, eye, dropout_rate=0.25
    )
    dropped = drop(dropout_key=jax.random.key(0))
    # Values are unit vectors, so the output is the row of probabilities.
    ratio = np.asarray(dropped / still)[..., :6]
    kept = np.abs(ratio) > 0.5
    self.assertBetween(kept.mean(), 0.6, 0.9)
    np.testing.assert_allclose(ratio, kept / 0.75, rtol=1e-5)
    keys = jax.random.split(jax.random.key(1), 4000)
    mean = jax.vmap(lambda k: drop(dropout_key=k))(keys).mean(0)
    # Standard error: sqrt(.25 / .75 / 4000) = 1 % of a probability below 1.
    np.testing.assert_allclose(mean, still, atol=0.04)


class ChoiceTest(parameterized.TestCase):
  def choose(self, backend='cpu', training=False, **changes):
    config = transformer.EncoderConfig(*SIZES, attention_dropout_rate=0.0)
    config = config.replace(**changes)
    with mock.patch.object(jax, 'default_backend', lambda: backend):
      return attention.choose_implementation(config, training)

  def test_by_name(self):
    for name in ('plain', 'xla', 'cudnn'):
      for backend in ('cpu', 'gpu'):
        self.assertEqual(
          self.choose(backend, training=True, attention_impl=name), name
        )

  def test_auto(self):
    half = {'attention_impl': 'auto', 'dtype': jnp.bfloat16}
    self.assertEqual(self.choose('gpu', **half), 'cudnn')
    self.assertEqual(self.choose('cpu', **half), 'plain')
    self.assertEqual(self.choose('tpu', **half), 'plain')
    self.assertEqual(self.choose('gpu', attention_impl='auto'), 'plain')
    self.assertEqual(self.choose('gpu', num_heads=4, **half), 'plain')
    drops = half | {'attention_dropout_rate': 0.1}
    self.assertEqual(self.choose('gpu', training=True, **drops), 'plain')
    self.assertEqual(self.choose('gpu', training=False, **drops), 'cudnn')

  @parameterized.parameters(
    ('7.5', 'plain'), ('9.0', 'cudnn'), ('gfx', 'plain')
  )
  def test_generations(self, capability, expected):
    device = mock.Mock(compute_capability=capability)
    with mock.patch.object(jax, 'local_devices', lambda: [device]):
      chosen = self.choose('gpu', attention_impl='auto', dtype=jnp.bfloat16)
    self.assertEqual(chosen, expected)

  @parameterized.parameters('xla', 'cudnn')
  def test_no_dropout_in_fused(self, name):
    drops = {'attention_impl': name, 'attention_dropout_rate': 0.1}
    self.assertEqual(self.choose(**drops), name)
    with self.assertRaisesRegex(ValueError, 'attention_dropout_rate is 0.1'):
      self.choose(training=True, **drops)


class EncoderTest(parameterized.TestCase):
  def encoders(self, **changes):
    plain = transformer.TransformerEncoder(
      transformer.EncoderConfig(*SIZES, **NO_DROPOUT)
    )
    fused = transformer.TransformerEncoder(
      transformer.EncoderConfig(*SIZES, **NO_DROPOUT | changes)
    )
    return plain, fused, plain.init(jax.random.key(0), IDS)

  @parameterized.parameters('any', 'right')
  def test_same_as_plain(self, padding):
    plain, fused, variables = self.encoders(
      attention_impl='xla', padding=padding
    )
    seen = IDS != 1

    def loss(variables, encoder):
      return jnp.where(
        seen[..., None], jnp.sin(encoder.apply(variables, IDS)), 0
      ).sum()

    chex.assert_trees_all_close(
      jax.value_and_grad(loss)(variables, fused),
      jax.value_and_grad(loss)(variables, plain),
      atol=1e-5,
    )

  def test_promise_of_right_padding_broken(self):
    # Lengths would look at the wrong tokens: NaN rather than that.
    _, fused, variables = self.encoders(attention_impl='xla', padding='right')
    ids = np.array([[0, 9, 1, 7, 6, 2], [0, 9, 8, 2, 1, 1]])
    out = jax.jit(fused.apply)(variables, ids)
    self.assertTrue(np.isnan(out[0]).all())
    self.assertFalse(np.isnan(out[1]).any())

  def test_lengths_reach_cudnn(self):
    _, fused, variables = self.encoders(
      attention_impl='cudnn', padding='right', dtype=jnp.bfloat16
    )
    calls = []

    def spy(query, *_, **options):
      calls.append((query, options))
      return query

    with mock.patch.object(jax.nn, 'dot_product_attention', spy):
      fused.apply(variables, IDS)
    ((query, options),) = calls
    self.assertEqual(query.dtype, jnp.bfloat16)
    self.assertEqual(options['implementation'], 'cudnn')
    self.assertIsNone(options['mask'])
    self.assertEqual(options['key_value_seq_lengths'].tolist(), [6, 4])

  def test_mask_reaches_cudnn(self):
    _, fused, variables = self.encoders(attention_impl='cudnn')
    calls = []

    def spy(query, *_, **options):
      calls.append(options)
      return query

    with mock.patch.object(jax.nn, 'dot_product_attention', spy):
      fused.apply(variables, IDS)
    (options,) = calls
    self.assertIsNone(options['key_value_seq_lengths'])
    np.testing.assert_array_equal(options['mask'][:, 0, 0], IDS != 1)


if __name__ == '__main__':
  absltest.main()
