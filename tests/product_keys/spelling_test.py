"""The capacity experiment, in small."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.product_keys import spelling, usage

SHAPES = (4, 3, 5)


def small(**changes):
  config = spelling.spelling_config()
  config.update(width=8, k_dim=4, batch_size=6, **changes)
  return config


def words(seed=0):
  random = np.random.default_rng(seed)
  return {
    'letters': jnp.asarray(random.integers(0, 28, (6, 4)), jnp.int32),
    'phones': jnp.asarray(random.integers(0, 5, (6, 3)), jnp.int32),
  }


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, letters):
  return model.apply(variables, letters, train=False)


class SpellingTest(parameterized.TestCase):
  @parameterized.parameters(
    # Embedding 28 x 16 x 128, two norms, 480 logits; and the block.
    ('dense', 2 * 4 * 128**2 + 5 * 128),
    ('memory_128', 128**2 * 128 + 2 * 128 * 64 + 128**2 + 3 * 128),
    ('memory_256', 256**2 * 128 + 2 * 256 * 64 + 128**2 + 3 * 128),
    ('memory_128_no_norm', 128**2 * 128 + 2 * 128 * 64 + 128**2 + 128),
  )
  def test_parameters(self, variant, block):
    config = spelling.spelling_config()
    _, job = spelling.spelling_job(config, variant, (16, 12, 40))
    params, _ = jax.eval_shape(job.init, jax.random.key(0))
    total = sum(x.size for x in jax.tree.leaves(params))
    rest = 28 * 16 * 128 + 4 * 128 + 128 * 480 + 480
    self.assertEqual(total, rest + block)

  def test_loss_counts_fillings_and_accuracy_whole_words(self):
    model, job = spelling.spelling_job(small(), 'dense', SHAPES)
    params, state = jax.jit(job.init)(jax.random.key(0))
    batch = words()
    logits = apply(model, params, batch['letters'])
    self.assertEqual(logits.shape, (6, 3, 5))
    log_p = np.asarray(jax.nn.log_softmax(logits))
    picked = np.take_along_axis(
      log_p, np.asarray(batch['phones'])[..., None], 2
    )
    loss, _ = jax.jit(job.loss_fn)(params, state, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, -picked.mean(), rtol=1e-5)
    # The model's own answers, of which one place of one word is changed.
    answer = np.array(logits.argmax(-1))
    answer[2, 1] = (answer[2, 1] + 1) % 5
    metric_fn = jax.jit(spelling.spelling_metrics(model))
    found = metric_fn(params, state, batch | {'phones': jnp.asarray(answer)})
    np.testing.assert_allclose(found['accuracy'], 5 / 6, rtol=1e-6)

  def test_letters_have_places(self):
    model, job = spelling.spelling_job(small(), 'dense', SHAPES)
    params, _ = jax.jit(job.init)(jax.random.key(0))
    letters = jnp.array([[0, 1, 2, 27], [1, 0, 2, 27]])
    one, two = apply(model, params, letters)
    self.assertGreater(float(jnp.abs(one - two).max()), 1e-3)

  @parameterized.parameters('dense', 'auto')
  @pytest.mark.slow
  def test_learns(self, optimizer):
    config = small(value_optimizer=optimizer, learning_rate=1e-2)
    model, job = spelling.spelling_job(config, 'memory_32', SHAPES)
    self.assertEqual(job.sparse, optimizer == 'auto')
    state, step, batch = job.state(jax.random.key(0)), job.step(), words()
    losses = []
    for _ in range(30):
      state, metrics = step(state, batch)
      losses.append(float(metrics['loss']))
    self.assertLess(losses[-1], 0.5 * losses[0])
    found = usage.measure_usage(
      spelling.spelling_reads(model),
      {**state.params, **state.model_state},
      [batch],
      model.block.num_slots,
      config.heads,
    )
    # 6 words, 2 heads, 8 reads.
    self.assertEqual(found['block'].counts.sum(axis=1).tolist(), [48, 48])

  def test_rates(self):
    # Adam's first update has the size of the rate: 1e-3, and 4e-3 of values.
    _, job = spelling.spelling_job(small(), 'memory_32', SHAPES)
    params, _ = jax.jit(job.init)(jax.random.key(0))
    gradients = jax.tree.map(jnp.ones_like, params)
    update = jax.jit(lambda g, p: job.tx.update(g, job.tx.init(p), p)[0])
    updates = update(gradients, params)
    tables = updates.pop('memory')
    for tree, rate in ((tables, 4e-3), (updates, 1e-3)):
      for update in jax.tree.leaves(tree):
        np.testing.assert_allclose(update, -rate, rtol=1e-4)

  def test_bad_variant(self):
    with self.assertRaisesRegex(
      ValueError, "variants has 'memory_7'; expected"
    ):
      spelling.spelling_job(small(), 'memory_7', SHAPES)


if __name__ == '__main__':
  absltest.main()
