"""Configs of language models: what they refuse, and how their state lies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import product_keys as pk
from jaxpapers import training
from jaxpapers.product_keys import recipes

VOCAB = 11


def small(**changes):
  config = recipes.language_model_config('tiny')
  config.update(
    {
      'd_model': 8,
      'num_heads': 2,
      'num_layers': 2,
      'length': 6,
      'batch_size': 4,
      'n_keys': 8,
      'k_dim': 4,
      'heads': 2,
      'knn': 2,
    }
    | changes
  )
  return config


class RecipesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('product', pk.ProductKeyMemory, (64, 8)),
    ('flat', pk.FlatMemory, (8, 8)),
    ('plus', pk.MemoryPlus, (64, 8)),
    ('peer', pk.PEER, (64, 8)),
  )
  def test_kinds(self, kind, expected, shape):
    model = recipes.make_model(small(kind=kind, query_norm='none'), VOCAB)
    self.assertIs(type(model.memory), expected)
    self.assertIsNone(model.memory.query_norm)
    job = recipes.language_model_job(small(kind=kind), VOCAB)
    params, _ = jax.eval_shape(job.init, jax.random.key(0))
    for table in jax.tree.leaves(params['memory']):
      self.assertEqual(table.shape, shape)

  def test_without_a_memory_it_is_a_transformer(self):
    job = recipes.language_model_job(small(memory_positions=''), VOCAB)
    self.assertFalse(job.sparse)
    params, state = jax.eval_shape(job.init, jax.random.key(0))
    self.assertEqual(list(params), ['params'])
    self.assertEmpty(jax.tree.leaves(state))

  def test_paper(self):
    # Section 4.3: 12 layers of 1024, 16 heads, a table of 512 x 512 rows.
    job = recipes.language_model_job(
      recipes.language_model_config('paper'), 60000
    )
    params, _ = jax.eval_shape(job.init, jax.random.key(0))
    (table,) = jax.tree.leaves(params['memory'])
    self.assertEqual(table.shape, (262144, 1024))
    encoder = params['params']['encoder']
    layers = [name for name in encoder if name.startswith('layers_')]
    self.assertLen(layers, 12)
    self.assertEqual(job.batch['inputs'].shape, (256, 256))

  @parameterized.parameters(
    ('row', 'mem', ('mem',)),
    ('column', 'mem', (None, 'mem')),
    ('row', 'data', ('data',)),
  )
  def test_tables_and_moments_lie_on_the_mesh(self, kind, axis, expected):
    job = recipes.language_model_job(
      small(table_sharding=kind, table_axis=axis), VOCAB
    )
    mesh = training.make_mesh('data:1,mem:1')
    state, _ = job.abstract(mesh)
    found = [
      leaf.sharding.spec
      for path, leaf in jax.tree_util.tree_leaves_with_path(
        (state.params, state.opt_state)
      )
      if 'memory' in jax.tree_util.keystr(path) and leaf.shape == (64, 8)
    ]
    self.assertLen(found, 3)
    for spec in found:
      spec = tuple(spec)
      while spec and spec[-1] is None:
        spec = spec[:-1]
      self.assertEqual(spec, expected)

  def test_bag_of_a_mesh(self):
    config = small()
    self.assertIs(recipes.bag_for(config, None), pk.embedding_bag)
    plain = training.make_mesh('data:1')
    self.assertIs(recipes.bag_for(config, plain), pk.embedding_bag)
    bag = recipes.bag_for(config, training.make_mesh('data:1,mem:1'))
    values = jnp.arange(12.0).reshape(6, 2)
    ids, weights = jnp.array([[1, 5]]), jnp.array([[0.5, 2.0]])
    np.testing.assert_allclose(
      jax.jit(bag)(values, ids, weights),
      pk.embedding_bag(values, ids, weights),
    )

  @pytest.mark.slow
  def test_evaluation(self):
    # The loss of held-out text, in nats, from running statistics.
    config = small(dropout=0.0)
    job = recipes.language_model_job(config, VOCAB)
    state = job.state(jax.random.key(0))
    random = np.random.default_rng(0)
    batches = [
      {
        name: random.integers(0, VOCAB, (4, 6)).astype(np.int32)
        for name in ('inputs', 'targets')
      }
      for _ in range(2)
    ]
    evaluation = recipes.make_evaluation(
      config, VOCAB, lambda: iter(batches), None
    )
    found = evaluation.function(state)
    model = recipes.make_model(config, VOCAB)
    apply = jax.jit(functools.partial(model.apply, train=False))
    losses = []
    for batch in batches:
      logits = apply({**state.params, **state.model_state}, batch['inputs'])
      log_p = np.asarray(jax.nn.log_softmax(logits))
      picked = np.take_along_axis(log_p, batch['targets'][..., None], 2)
      losses.append(-picked.mean())
    np.testing.assert_allclose(found['loss'], np.mean(losses), rtol=1e-5)
    self.assertEqual(found['count'], 2 * 4 * 6)

  def test_bad_fields(self):
    with self.assertRaisesRegex(ValueError, "size is 'huge'"):
      recipes.language_model_config('huge')
    for changes, words in (
      ({'kind': 'hash'}, "kind is 'hash'"),
      ({'table_sharding': 'diagonal'}, "table_sharding is 'diagonal'"),
      ({'memory_positions': '2'}, "memory_positions has '2'"),
      ({'query_norm': 'group'}, "query_norm is 'group'"),
      ({'knn': 9}, 'knn is 9'),
      ({'k_dim': 5}, 'k_dim is 5'),
      ({'value_optimizer': 'sgd'}, "mode is 'sgd'"),
    ):
      with self.assertRaisesRegex(ValueError, words):
        recipes.language_model_job(small(**changes), VOCAB).abstract()


if __name__ == '__main__':
  absltest.main()
