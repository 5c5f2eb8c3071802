"""What is trained, on layers side by side and on scanned ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers import adapters, nn
from jaxpapers.adapters import trees


def model_params(scan=False, num_layers=3, with_adapters=True, pre_norm=False):
  """Parameters as a classifier on an encoder has them; all different."""
  layer = {
    'attention': {'query': {'kernel': (4, 2, 2), 'bias': (2, 2)}},
    'attention_norm': {'scale': (4,), 'bias': (4,)},
    'ffn': {'output': {'kernel': (6, 4), 'bias': (4,)}},
    'ffn_norm': {'scale': (4,), 'bias': (4,)},
  }
  if with_adapters:
    layer['ffn_adapter'] = {'down': {'kernel': (4, 2), 'bias': (2,)}}
  norm = {'scale': (4,), 'bias': (4,)}
  encoder = {
    'token_embedding': {'embedding': (9, 4)},
    **{f'layers_{i}': layer for i in range(num_layers)},
    'final_norm' if pre_norm else 'embedding_norm': norm,
  }
  shapes = {
    'encoder': encoder,
    'classifier': {
      'dense': {'kernel': (4, 4), 'bias': (4,)},
      'output': {'kernel': (4, 3), 'bias': (3,)},
    },
  }
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  return nn.stack_layers(params) if scan else params


def paths(tree):
  return sorted(trees.flatten(tree))


class PartitionTest(parameterized.TestCase):
  @parameterized.product(
    mode=['full', 'adapter', 'layer_norm', 'top_k', 'head'], scan=[False, True]
  )
  def test_merge_is_the_inverse(self, mode, scan):
    params = model_params(scan)
    k = 2 if mode == 'top_k' else None
    trainable, frozen = adapters.partition_params(params, mode, k=k)
    merged = adapters.merge_params(trainable, frozen)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    self.assertEqual(
      adapters.count_params(trainable) + adapters.count_params(frozen),
      adapters.count_params(params),
    )

  @parameterized.parameters(
    ('adapter', {}), ('layer_norm', {}), ('top_k', {'k': 1}),
    ('top_k', {'k': 2, 'train_embeddings': True}),
    ('adapter', {'head': 'linear', 'train_layer_norm': False}),
  )  # fmt: skip
  def test_scanned_layers_train_the_same(self, mode, options):
    apart = adapters.partition_params(model_params(), mode, **options)
    scanned = adapters.partition_params(model_params(True), mode, **options)
    self.assertEqual(
      adapters.count_params(apart[0]), adapters.count_params(scanned[0])
    )
    gradients = jax.tree.map(
      lambda x: 2 * x, nn.unstack_layers(model_params(True))
    )
    wanted = adapters.partition_params(gradients, mode, **options)[0]

    @jax.jit
    def loss(trainable):
      merged = adapters.merge_params(trainable, scanned[1])
      return sum(jnp.sum(x**2) for x in jax.tree.leaves(merged))

    found = jax.grad(loss)(scanned[0])
    rows = sum(float(jnp.sum(x)) for x in jax.tree.leaves(found))
    self.assertAlmostEqual(
      rows, sum(float(jnp.sum(x)) for x in jax.tree.leaves(wanted)), places=3
    )

  def test_adapter(self):
    trainable, _ = adapters.partition_params(model_params(), 'adapter')
    found = paths(trainable)
    self.assertLen([p for p in found if '_adapter/' in p], 6)
    self.assertLen([p for p in found if '_norm/' in p], 14)
    self.assertIn('encoder/embedding_norm/scale', found)
    self.assertLen([p for p in found if p.startswith('classifier/')], 4)
    self.assertLen(found, 24)

  def test_linear_head_leaves_the_pooler(self):
    trainable, _ = adapters.partition_params(
      model_params(), 'head', head='linear'
    )
    self.assertEqual(
      paths(trainable), ['classifier/output/bias', 'classifier/output/kernel']
    )

  def test_top_k(self):
    trainable, _ = adapters.partition_params(
      model_params(pre_norm=True), 'top_k', k=1
    )
    body = {p.split('/')[1] for p in paths(trainable) if p[0] == 'e'}
    self.assertEqual(body, {'layers_2', 'final_norm'})
    everything, frozen = adapters.partition_params(
      model_params(), 'top_k', k=3, train_embeddings=False
    )
    self.assertEqual(
      paths(frozen),
      [
        'encoder/embedding_norm/bias',
        'encoder/embedding_norm/scale',
        'encoder/token_embedding/embedding',
      ],
    )
    del everything
    with self.assertRaisesRegex(ValueError, "mode 'full'"):
      adapters.partition_params(
        model_params(), 'top_k', k=3, train_embeddings=True
      )

  def test_top_k_of_scanned_layers_takes_rows(self):
    params = model_params(True)
    trainable, frozen = adapters.partition_params(params, 'top_k', k=1)
    kernel = params['encoder']['layers']['ffn']['output']['kernel']
    np.testing.assert_array_equal(
      trainable['encoder']['layers']['ffn']['output']['kernel'], kernel[2:]
    )
    np.testing.assert_array_equal(
      frozen['encoder']['layers']['ffn']['output']['kernel'], kernel[:2]
    )

  def test_on_shapes(self):
    shapes = jax.eval_shape(lambda: model_params(True))
    trainable, frozen = adapters.partition_params(shapes, 'top_k', k=2)
    leaf = trainable['encoder']['layers']['ffn_norm']['scale']
    self.assertEqual((leaf.shape, leaf.dtype), ((2, 4), jnp.float32))
    self.assertEqual(
      frozen['encoder']['layers']['ffn_norm']['scale'].shape, (1, 4)
    )

  def test_function_of_a_path(self):
    trainable, _ = adapters.partition_params(
      model_params(), lambda path: path.endswith('bias')
    )
    self.assertTrue(all(p.endswith('bias') for p in paths(trainable)))

  @parameterized.parameters(
    ({'mode': 'lora'}, "mode is 'lora'"),
    ({'mode': 'top_k'}, 'k is None'),
    ({'mode': 'top_k', 'k': 4}, 'k is 4; .* from 1 to 3'),
    ({'mode': 'top_k', 'k': 0}, "mode 'head'"),
    ({'mode': 'adapter', 'k': 2}, "k is 2 .* mode is 'adapter'"),
    ({'mode': 'head', 'head': 'decoder'}, "head='decoder' matches no path"),
    ({'mode': lambda path: True}, 'would train everything'),
    ({'mode': lambda path: False}, 'would train nothing'),
    (
      {'mode': 'layer_norm', 'names': adapters.Names(norm='LayerNorm')},
      "matches 'LayerNorm'",
    ),
    (
      {'mode': 'head', 'names': adapters.Names(body='^bert/')},
      'everything would be head',
    ),
  )
  def test_bad_arguments(self, options, words):
    with self.assertRaisesRegex(ValueError, words):
      adapters.partition_params(model_params(), **options)

  def test_models_without_the_parts(self):
    with self.assertRaisesRegex(ValueError, 'init_adapters'):
      adapters.partition_params(model_params(with_adapters=False), 'adapter')
    encoder = {'encoder': model_params()['encoder']}
    with self.assertRaisesRegex(ValueError, 'matches no path of params'):
      adapters.partition_params(encoder, 'adapter')
    with self.assertRaisesRegex(TypeError, 'nested mappings'):
      adapters.partition_params([jnp.ones(3)], 'full')
    with self.assertRaisesRegex(TypeError, 'a is a list'):
      adapters.partition_params({'a': [jnp.ones(3)]}, 'full')
    with self.assertRaisesRegex(ValueError, 'without slashes'):
      adapters.partition_params({'a/b': jnp.ones(3)}, 'full')

  def test_merging_what_does_not_fit(self):
    params = model_params()
    trainable, _ = adapters.partition_params(params, 'adapter')
    with self.assertRaisesRegex(ValueError, 'insert_task'):
      adapters.merge_params(trainable, params)
    with self.assertRaisesRegex(ValueError, 'a is an array in one'):
      adapters.merge_params({'a': jnp.ones(2)}, {'a': {'b': jnp.ones(2)}})


class LabelsTest(absltest.TestCase):
  def test_optimizer_keeps_nothing_of_frozen_leaves(self):
    params = model_params()
    labels = adapters.trainable_labels(params, 'adapter')
    trainable, frozen = adapters.partition_params(params, 'adapter')
    tx = optax.partition(
      {'train': optax.adam(1e-2), 'freeze': optax.set_to_zero()}, labels
    )
    state = tx.init(params)
    own = optax.adam(1e-2).init(trainable)
    self.assertEqual(adapters.tree_bytes(state), adapters.tree_bytes(own))

    @jax.jit
    def update(params, state):
      updates, _ = tx.update(params, state, params)
      return optax.apply_updates(params, updates)

    new = update(params, state)
    _, still = adapters.partition_params(new, 'adapter')
    jax.tree.map(np.testing.assert_array_equal, still, frozen)
    moved, _ = adapters.partition_params(new, 'adapter')
    for path, leaf in trees.flatten(moved).items():
      before = trees.flatten(trainable)[path]
      self.assertTrue((leaf != before).all(), path)

  def test_rows_have_no_label(self):
    with self.assertRaisesRegex(ValueError, 'partition_params'):
      adapters.trainable_labels(model_params(True), 'top_k', k=1)
    labels = adapters.trainable_labels(model_params(True), 'top_k', k=3)
    self.assertEqual(labels['encoder']['layers']['ffn_norm']['scale'], 'train')
    with self.assertRaisesRegex(TypeError, 'kay'):
      adapters.trainable_labels(model_params(), 'head', kay=1)


if __name__ == '__main__':
  absltest.main()
