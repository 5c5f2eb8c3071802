"""Tests of the search for the k best keys."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.product_keys import retrieval


def draw(seed, rounded=False):
  """Queries and keys of random sizes, and k; each head is a draw."""
  rng = np.random.default_rng(seed)
  n, heads = int(rng.integers(4, 65)), 20
  k = int(rng.integers(1, n + 1))
  q = rng.standard_normal((1, heads, 2, 4)).astype(np.float32)
  keys = rng.standard_normal((heads, 2, n, 4)).astype(np.float32)
  if rounded:
    # Products of halves and integers are exact, and often equal.
    q, keys = np.round(q), np.round(2 * keys) / 2
  return q, keys, k


def brute_force(q, keys):
  """Scores of all n^2 slots and those of the halves."""
  s = np.einsum('thpd,hpnd->thpn', q.astype(np.float64), keys)
  n = keys.shape[2]
  all_scores = s[:, :, 0, :, None] + s[:, :, 1, None, :]
  return all_scores.reshape(*s.shape[:2], n * n), s


search = jax.jit(retrieval.product_key_topk, static_argnums=2)


class ProductKeyTopkTest(parameterized.TestCase):
  def test_exhaustive_search_finds_the_same(self):
    for seed in range(10):
      q, keys, k = draw(seed)
      scores, ids = search(q, keys, k)
      every, _ = brute_force(q, keys)
      expected = np.argsort(-every, axis=-1)[..., :k]
      np.testing.assert_allclose(
        scores, np.take_along_axis(every, expected, -1), atol=1e-5
      )
      np.testing.assert_array_equal(np.sort(ids), np.sort(expected))

  def test_ties_follow_ranks(self):
    # Among equal sums: first the better rank in the first half, then in the
    # second; equal scores of a half are ranked by their number.
    for seed in range(10):
      q, keys, k = draw(seed, rounded=True)
      scores, ids = search(q, keys, k)
      every, halves = brute_force(q, keys)
      n = keys.shape[2]
      order = np.argsort(-halves, axis=-1, kind='stable')
      first, second = order[:, :, 0], order[:, :, 1]
      by_rank = (first[..., :, None] * n + second[..., None, :]).reshape(
        *every.shape
      )
      ranked = np.take_along_axis(every, by_rank, -1)
      place = np.argsort(-ranked, axis=-1, kind='stable')[..., :k]
      expected = np.take_along_axis(by_rank, place, -1)
      np.testing.assert_array_equal(ids, expected)
      np.testing.assert_array_equal(
        scores, np.take_along_axis(every, expected, -1).astype(np.float32)
      )

  @parameterized.parameters(1, 2, 3, 8, 16, 32, 64, 128)
  def test_pruning_changes_no_bit(self, k):
    rng = np.random.default_rng(k)
    q = rng.standard_normal((3, 1, 2, 4)).astype(np.float32)
    keys = rng.standard_normal((1, 2, 130, 4)).astype(np.float32)
    for round_to in (None, 1.0):
      if round_to:
        q, keys = np.round(q), np.round(keys)
      pruned, full = (
        jax.jit(
          functools.partial(retrieval.product_key_topk, k=k, prune=prune)
        )(q, keys)
        for prune in (True, False)
      )
      np.testing.assert_array_equal(pruned[0], full[0])
      np.testing.assert_array_equal(pruned[1], full[1])

  @parameterized.parameters((16, 50), (32, 119), (64, 280), (128, 645))
  def test_candidates(self, k, expected):
    def widths(prune):
      closed = jax.make_jaxpr(
        lambda q, keys: retrieval.product_key_topk(q, keys, k, prune=prune)
      )(jnp.zeros((1, 1, 2, 4)), jnp.zeros((1, 2, 128, 4)))
      tops = [e for e in closed.eqns if e.primitive.name == 'top_k']
      return [e.invars[0].aval.shape[-1] for e in tops]

    self.assertEqual(widths(True), [128, expected])
    self.assertEqual(widths(False), [128, k * k])

  def test_one_codebook_and_gradients(self):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((5, 2, 2, 3)).astype(np.float32)
    keys = rng.standard_normal((6, 3)).astype(np.float32)

    def total(q, keys):
      return jnp.sum(retrieval.product_key_topk(q, keys, 2)[0] ** 2)

    shared = jax.grad(total, argnums=(0, 1))(q, keys)
    own = jax.grad(total, argnums=(0, 1))(
      q, np.broadcast_to(keys, (2, 2, 6, 3))
    )
    np.testing.assert_allclose(shared[0], own[0], rtol=1e-6)
    np.testing.assert_allclose(shared[1], own[1].sum((0, 1)), rtol=1e-5)

  def test_jit_vmap_and_bfloat16(self):
    q, keys, k = draw(3)
    expected = retrieval.product_key_topk(q, keys, k)

    def one(q, keys):
      return retrieval.product_key_topk(q, keys, k)

    both = jax.jit(jax.vmap(one))(
      np.stack([q, -q]), np.stack([keys, keys[..., ::-1, :]])
    )
    np.testing.assert_allclose(both[0][0], expected[0], atol=1e-5)
    np.testing.assert_array_equal(both[1][0], expected[1])
    narrow = jnp.asarray(q, jnp.bfloat16), jnp.asarray(keys, jnp.bfloat16)
    scores, ids = one(*narrow)
    self.assertEqual(scores.dtype, jnp.float32)
    again = one(*(x.astype(jnp.float32) for x in narrow))
    np.testing.assert_array_equal(ids, again[1])

  def test_flat_keys(self):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((3, 2, 5)).astype(np.float32)
    keys = rng.standard_normal((2, 40, 5)).astype(np.float32)
    scores, ids = retrieval.flat_key_topk(q, keys, 7)
    every = np.einsum('thd,hnd->thn', q, keys)
    np.testing.assert_array_equal(ids, np.argsort(-every)[..., :7])
    np.testing.assert_allclose(
      scores, np.take_along_axis(every, np.asarray(ids), -1), atol=1e-5
    )
    one = retrieval.flat_key_topk(q, keys[0], 7)
    np.testing.assert_array_equal(one[1][:, 0], ids[:, 0])

  def test_search_in_parts_is_the_whole_search(self):
    # Two parts of 36 tokens, of which one is padding, in three blocks each.
    rng = np.random.default_rng(0)
    q = rng.standard_normal((71, 4, 2, 4)).astype(np.float32)
    keys = rng.standard_normal((4, 2, 40, 4)).astype(np.float32)
    weights = rng.standard_normal((71, 4, 9)).astype(np.float32)
    options = {'k': 9, 'prune': True, 'precision': 'highest'}

    def gradients(search):
      def total(q, keys):
        scores, ids = search(q, keys)
        return jnp.sum(jnp.sin(scores) * weights), (scores, ids)

      return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))

    whole = gradients(
      functools.partial(retrieval._all_at_once, top=jax.lax.top_k, **options)
    )
    with (
      mock.patch.object(retrieval, '_BLOCKS', 3),
      mock.patch.object(retrieval, '_SCORES', 8 * 40 * 36),
    ):
      parts = gradients(functools.partial(retrieval.product_key_topk, k=9))
      got, found = parts(q, keys)
    wanted, expected = whole(q, keys)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for g, w in zip(got, wanted):
      np.testing.assert_allclose(g, w, atol=1e-6 * np.abs(w).max())
    # Sums of these are exact: many scores are equal, some are NaN.
    q, keys = np.round(q), np.round(2 * keys) / 2
    q[3, 1] = np.nan
    _, found = parts(q, keys)
    jax.tree.map(np.testing.assert_array_equal, found, whole(q, keys)[1])

  def test_flat_search_by_threads(self):
    rng = np.random.default_rng(0)
    q = np.round(rng.standard_normal((130, 2, 3))).astype(np.float32)
    keys = np.round(rng.standard_normal((2, 70, 3))).astype(np.float32)
    scores, ids = jax.jit(retrieval.flat_key_topk, static_argnums=2)(q, keys, 5)
    every = np.einsum('thd,hnd->thn', q, keys)
    expected = np.argsort(-every, kind='stable')[..., :5]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(
      scores, np.take_along_axis(every, expected, -1)
    )

  def test_recall(self):
    q, keys, k = draw(5)
    exact = search(q, keys, k)

    def approximate(q, keys):
      return retrieval.product_key_topk(q, keys, k, recall=0.9)

    jitted = jax.jit(approximate)
    self.assertIn('approx_top_k', str(jax.make_jaxpr(approximate)(q, keys)))
    # On CPU everything is found.
    jax.tree.map(np.testing.assert_array_equal, jitted(q, keys), exact)
    flat = q[:, :, 0], keys[:, 0]
    jax.tree.map(
      np.testing.assert_array_equal,
      retrieval.flat_key_topk(*flat, k, recall=0.9),
      retrieval.flat_key_topk(*flat, k),
    )
    with self.assertRaisesRegex(ValueError, 'recall is 0'):
      retrieval.product_key_topk(q, keys, k, recall=0.0)

  @parameterized.parameters((64, 2), (32, 4), (12, 3), (512, 16), (30, 7))
  def test_top_of_thinned_rows_is_the_top_of_all(self, n, k):
    random = np.random.default_rng(n)
    scores = random.standard_normal((200, n)).astype(np.float32)
    scores[:50] = (
      np.round(2 * scores[:50]) / 2
    )  # Ties, and zeros of both signs.
    scores[50:60] = 1.5
    scores[60:90][random.random((30, n)) < 0.05] = np.nan
    scores[90:120][random.random((30, n)) < 0.3] = np.inf
    scores[120:150][random.random((30, n)) < 0.9] = -np.inf
    scores[150:160] *= 3e38 / np.abs(scores[150:160]).max()
    thinned = np.asarray(
      jax.jit(retrieval._without_hopeless, static_argnums=1)(scores, k)
    )
    expected = jax.lax.top_k(scores, k)
    for got, want in zip(jax.lax.top_k(thinned, k), expected):
      np.testing.assert_array_equal(got, want)
      np.testing.assert_array_equal(np.signbit(got), np.signbit(want))
    if n >= 8 * k:  # It is of use: most of a plain row is gone.
      gone = np.isneginf(thinned[160:]).mean()
      self.assertGreater(gone, 1 - 2 * k / n)

  def test_addressing_loss(self):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((5, 2, 2, 3)).astype(np.float32)
    keys = rng.standard_normal((2, 2, 6, 3)).astype(np.float32)
    s = np.exp(np.einsum('thpd,hpnd->thpn', q, keys))
    p = (s / s.sum(-1, keepdims=True))[:3].mean(0)
    mask = jnp.arange(5) < 3
    loss = retrieval.addressing_loss(q, keys, mask)
    np.testing.assert_allclose(loss, (p * np.log(p)).sum(-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(
      loss, retrieval.addressing_loss(q[:3], keys), rtol=1e-6
    )
    # One key alone: no NaN, nor in the gradient.
    far = jax.value_and_grad(retrieval.addressing_loss)(1e4 * q[:1], keys)
    self.assertEqual(float(far[0]), 0)
    self.assertTrue(bool(jnp.isfinite(far[1]).all()))

  def test_bad_input(self):
    q, keys = jnp.zeros((2, 3, 2, 4)), jnp.zeros((3, 2, 8, 4))
    with self.assertRaisesRegex(ValueError, 'k is 9; expected 1 to 8'):
      retrieval.product_key_topk(q, keys, 9)
    with self.assertRaisesRegex(ValueError, 'k is 0'):
      search(q, keys, 0)
    with self.assertRaisesRegex(ValueError, 'q has shape'):
      search(q[:, :, 0], keys, 2)
    with self.assertRaisesRegex(ValueError, 'keys has shape'):
      search(q, keys[:2], 2)
    with self.assertRaisesRegex(ValueError, 'expected 1 to 46340'):
      jax.eval_shape(
        lambda q, keys: search(q, keys, 2),
        jax.ShapeDtypeStruct((1, 1, 2, 1), 'float32'),
        jax.ShapeDtypeStruct((1, 2, 46341, 1), 'float32'),
      )
    with self.assertRaisesRegex(ValueError, 'k is 9'):
      retrieval.flat_key_topk(q[:, :, 0], keys[:, 0], 9)
    with self.assertRaisesRegex(ValueError, 'q has shape'):
      retrieval.flat_key_topk(q, keys[:, 0], 2)
    with self.assertRaisesRegex(ValueError, 'keys has shape'):
      retrieval.flat_key_topk(q[:, :, 0], keys, 2)


if __name__ == '__main__':
  absltest.main()
