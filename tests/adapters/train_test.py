"""Steps that train a part: what is computed, kept, moved, and what is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import adapters, nn, training
from jaxpapers.adapters import trees
from jaxpapers.nn import EncoderConfig
from tests.adapters import golden_models
from tests.helpers import devices


@functools.cache
def problem(num_layers=1, hidden=16, length=6, scan=False, seed=0):
  """Model, parameters with adapters, a batch and a loss."""
  config = EncoderConfig(
    50,
    hidden,
    num_layers,
    2,
    4 * hidden,
    max_len=length,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    scan_layers=scan,
  )
  model = golden_models.Classifier(
    config, adapters.AdapterConfig(4, init_std=0.05)
  )
  rng = np.random.default_rng(seed)
  ids = jnp.asarray(rng.integers(2, 50, (8, length)), jnp.int32)
  batch = {'ids': ids, 'labels': jnp.asarray(ids[:, 1] % 3)}
  params = jax.jit(model.init)(jax.random.key(seed), ids)['params']

  def loss_fn(params, model_state, batch, rng):
    del rng
    logits = model.apply({'params': params}, batch['ids'])
    labels = jax.nn.one_hot(batch['labels'], 3)
    loss = optax.softmax_cross_entropy(logits, labels).mean()
    return loss, (model_state, {'count': jnp.asarray(len(logits), float)})

  return model, params, batch, loss_fn


@functools.cache
def run(mode, steps=5, compress=None):
  """A short training; the state, the step and the losses."""
  _, params, batch, loss_fn = problem()
  trainable, frozen = adapters.partition_params(params, mode)
  if compress:
    frozen = adapters.compress_frozen(frozen, compress)
  tx = adapters.bert_adam(1e-2)
  state = adapters.create_finetune_state(trainable, tx, jax.random.key(0))
  step = adapters.make_finetune_step(loss_fn, tx, frozen)
  losses = []
  for _ in range(steps):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  return state, step, losses


class StepTest(parameterized.TestCase):
  def test_only_the_trained_part_is_in_the_state(self):
    _, params, _, _ = problem()
    before = jax.tree.map(np.array, params)
    state, step, losses = run('adapter')
    self.assertLess(losses[-1], losses[0])
    trainable, frozen = adapters.partition_params(params, 'adapter')
    self.assertEqual(
      jax.tree.structure(state.params), jax.tree.structure(trainable)
    )
    # Two float32 moments of what is trained, and the number of updates.
    count = adapters.count_params(trainable)
    self.assertEqual(adapters.tree_bytes(state.opt_state), 8 * count + 4)
    for path, leaf in trees.flatten(state.params).items():
      self.assertTrue(bool(jnp.any(leaf != trees.flatten(trainable)[path])))
    # Neither donated nor changed: base and frozen tree are what they were.
    jax.tree.map(np.testing.assert_array_equal, params, before)
    for path, leaf in trees.flatten(step.frozen).items():
      own = trees.flatten(frozen)[path]
      self.assertEqual(
        leaf.unsafe_buffer_pointer(), own.unsafe_buffer_pointer()
      )

  @pytest.mark.slow
  def test_gradients_are_those_of_the_whole_model(self):
    _, params, batch, loss_fn = problem(2)

    def loss(params):
      return loss_fn(params, {}, batch, None)[0]

    whole = jax.jit(jax.grad(loss))(params)
    for mode, k in (('adapter', None), ('top_k', 1)):
      trainable, frozen = adapters.partition_params(params, mode, k=k)
      wanted, _ = adapters.partition_params(whole, mode, k=k)

      def part(trainable, frozen=frozen):
        return loss(adapters.merge_params(trainable, frozen))

      found = jax.jit(jax.grad(part))(trainable)
      self.assertEqual(jax.tree.structure(found), jax.tree.structure(wanted))
      jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        found,
        wanted,
      )

  @pytest.mark.slow
  def test_clipping_sees_what_is_trained(self):
    # Spec A.5: clipping the whole tree would shrink the updates further.
    _, params, batch, loss_fn = problem()
    gradients = jax.jit(jax.grad(lambda p: loss_fn(p, {}, batch, None)[0]))(
      params
    )
    labels = adapters.trainable_labels(params, 'adapter')
    clip = optax.clip_by_global_norm(1e-2)
    freeze = {'freeze': optax.set_to_zero()}
    within = optax.partition({'train': clip} | freeze, labels)
    around = optax.chain(
      clip, optax.partition({'train': optax.identity()} | freeze, labels)
    )
    norms = []
    for tx in (within, around):
      updates, _ = tx.update(gradients, tx.init(params), params)
      norms.append(float(optax.tree.norm(updates)))
    self.assertAlmostEqual(norms[0], 1e-2, places=6)
    self.assertLess(norms[1], 0.9e-2)

  def test_sequence_of_tasks_has_perfect_memory(self):
    model, params, batch, loss_fn = problem()
    trainable, frozen = adapters.partition_params(params, 'adapter')
    tx = adapters.bert_adam(1e-2)
    step = adapters.make_finetune_step(loss_fn, tx, frozen)
    predict = jax.jit(
      lambda task: model.apply(
        {'params': adapters.merge_params(task, step.frozen)}, batch['ids']
      )
    )

    def train(labels):
      state = adapters.create_finetune_state(trainable, tx, jax.random.key(0))
      for _ in range(3):
        state, _ = step(state, batch | {'labels': labels})
      return state.params

    first = train(batch['labels'])
    before = np.asarray(predict(first))
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(frozen)]
    second = train((batch['labels'] + 1) % 3)
    np.testing.assert_array_equal(predict(first), before)
    self.assertTrue((np.asarray(predict(second)) != before).any())
    self.assertEqual(
      pointers,
      [x.unsafe_buffer_pointer() for x in jax.tree.leaves(step.frozen)],
    )

  @pytest.mark.slow
  def test_top_rows_of_scanned_layers(self):
    _, params, batch, loss_fn = problem(2, scan=True)
    _, apart, _, apart_loss = problem(2)
    unstacked = {**params, 'encoder': nn.unstack_layers(params['encoder'])}
    self.assertEqual(jax.tree.structure(unstacked), jax.tree.structure(apart))
    tx = optax.adam(1e-2)
    results = []
    for tree, loss in ((params, loss_fn), (unstacked, apart_loss)):
      trainable, frozen = adapters.partition_params(tree, 'top_k', k=1)
      state = adapters.create_finetune_state(trainable, tx, jax.random.key(0))
      self.assertEqual(
        adapters.tree_bytes(state.opt_state),
        8 * adapters.count_params(trainable) + 4,
      )
      step = adapters.make_finetune_step(loss, tx, frozen)
      for _ in range(3):
        state, metrics = step(state, batch)
      results.append(float(metrics['loss']))
    self.assertAlmostEqual(results[0], results[1], places=5)

  @pytest.mark.slow
  def test_accumulation_and_evaluation(self):
    _, params, batch, loss_fn = problem()
    trainable, frozen = adapters.partition_params(params, 'adapter')
    tx = optax.sgd(0.1)
    new = []
    for accumulate in (1, 4):
      state = adapters.create_finetune_state(trainable, tx, jax.random.key(0))
      step = adapters.make_finetune_step(
        loss_fn, tx, frozen, accumulate=accumulate
      )
      new.append(step(state, batch)[0].params)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *new
    )
    evaluate = adapters.make_finetune_eval_step(
      lambda params, model_state, batch: {
        'loss': loss_fn(params, model_state, batch, None)[0]
      },
      frozen,
    )
    state = adapters.create_finetune_state(trainable, tx, jax.random.key(0))
    found = training.evaluate(state, evaluate, [batch, batch])
    self.assertAlmostEqual(
      float(found['loss']),
      float(loss_fn(params, {}, batch, None)[0]),
      places=5,
    )

  @pytest.mark.nightly
  def test_population_shares_the_frozen_tree(self):
    _, params, batch, loss_fn = problem()
    trainable, frozen = adapters.partition_params(params, 'adapter')
    tx = adapters.bert_adam(1e-2)
    scales = jnp.array([1.0, 0.5])
    many = jax.tree.map(lambda x: jnp.stack([x * s for s in scales]), trainable)
    keys = jax.random.split(jax.random.key(0), 2)
    state = adapters.create_finetune_state(many, tx, keys)
    step = adapters.make_finetune_step(loss_fn, tx, frozen, population=True)
    for _ in range(2):
      state, metrics = step(state, batch)
    one = adapters.make_finetune_step(loss_fn, tx, frozen)
    for i in range(2):
      alone = adapters.create_finetune_state(
        jax.tree.map(lambda x, i=i: x[i], many), tx, keys[i]
      )
      for _ in range(2):
        alone, own = one(alone, batch)
      self.assertAlmostEqual(
        float(metrics['loss'][i]), float(own['loss']), places=5
      )

  def test_nan_stops_the_run(self):
    # Spec H18: a learning rate of the paper's sweep times a thousand.
    rng = np.random.default_rng(0)
    params = {
      'encoder': {'kernel': jnp.asarray(rng.normal(size=(4, 4)))},
      'my_adapter': {'kernel': jnp.asarray(rng.normal(size=(4, 4)))},
    }
    batch = {'x': jnp.asarray(rng.normal(size=(8, 4)))}

    def loss_fn(params, model_state, batch, rng):
      del rng
      x = batch['x'] @ params['encoder']['kernel']
      loss = ((x @ params['my_adapter']['kernel']) ** 4).sum()
      return loss, (model_state, {})

    trainable, frozen = adapters.partition_params(
      params, lambda path: 'adapter' in path
    )
    tx = optax.sgd(3.0)
    state = adapters.create_finetune_state(trainable, tx, jax.random.key(0))
    step = adapters.make_finetune_step(loss_fn, tx, frozen)
    with self.assertRaisesRegex(training.NonFiniteLossError, 'at step'):
      training.fit(
        state, step, [batch] * 40, num_steps=40, console=False, log_every=10
      )


class CostTest(absltest.TestCase):
  @pytest.mark.slow
  def test_floating_point_operations(self):
    # Spec G and H10: wide enough for matrix products to be what counts.
    _, params, batch, loss_fn = problem(num_layers=6, hidden=64, length=24)

    def cost(mode, **options):
      trainable, frozen = adapters.partition_params(params, mode, **options)
      tx = adapters.bert_adam(1e-3)
      state = jax.eval_shape(
        lambda: adapters.create_finetune_state(trainable, tx, jax.random.key(0))
      )
      step = adapters.make_finetune_step(loss_fn, tx, frozen)
      return step.lower(state, batch).compile().cost_analysis()['flops']

    full = cost('full')
    self.assertBetween(cost('adapter') / full, 0.5, 0.72)
    self.assertBetween(cost('top_k', k=1) / full, 0.3, 0.5)
    self.assertLess(cost('head') / full, 0.4)


class CompressTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_int8_trains_as_in_float32(self):
    self.check('int8', 0.45, 0.02)

  @pytest.mark.slow
  def test_bfloat16_trains_as_in_float32(self):
    self.check('bfloat16', 0.5, 0.02)

  def check(self, kind, size, gap):
    _, _, wanted = run('adapter')
    state, step, losses = run('adapter', compress=kind)
    np.testing.assert_allclose(losses, wanted, rtol=gap)
    self.assertNotEqual(losses, wanted)
    _, params, _, _ = problem()
    _, frozen = adapters.partition_params(params, 'adapter')
    ratio = adapters.tree_bytes(step.frozen) / adapters.tree_bytes(frozen)
    self.assertLessEqual(ratio, size)
    for leaf in jax.tree.leaves(state.params):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_integers_are_within_half_a_step(self):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 40, 7)))
    frozen = {'layers': {'kernel': x}, 'embedding': {'embedding': x[0] * 9}}
    small = adapters.compress_frozen(frozen, 'int8')
    kernel = small['layers']['kernel']
    # A factor per layer and output.
    self.assertEqual(kernel.scale.shape, (3, 1, 7))
    error = np.abs(kernel.decompress() - x)
    self.assertLessEqual((error / kernel.scale).max(), 0.5 + 1e-3)
    self.assertEqual(small['embedding']['embedding'].scale.shape, (40, 1))
    zeros = {'a': {'kernel': jnp.zeros((3, 2))}}
    merged = adapters.merge_params({}, adapters.compress_frozen(zeros, 'int8'))
    np.testing.assert_array_equal(merged['a']['kernel'], zeros['a']['kernel'])
    with self.assertRaisesRegex(ValueError, "kind is 'int4'"):
      adapters.compress_frozen(frozen, 'int4')


_MESH = """
import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxpapers import adapters, training
from tests.adapters import train_test

_, params, batch, loss_fn = train_test.problem(hidden=32)
batch = jax.tree.map(np.asarray, batch)
rules = [
  (r'intermediate/kernel', P(None, 'model')),
  (r'ffn/output/kernel', P('model', None)),
  (r'(query|key|value)/kernel', P(None, 'model')),
]
mesh = training.make_mesh('data:4,model:2')
tx = adapters.bert_adam(1e-2)
trainable, frozen = adapters.partition_params(params, 'adapter')
frozen = adapters.compress_frozen(frozen, 'int8')
states = []
for options in ({}, {'mesh': mesh, 'rules': rules}):
  state = adapters.create_finetune_state(
    trainable, tx, jax.random.key(0), **options)
  step = adapters.make_finetune_step(loss_fn, tx, frozen, **options)
  result = training.fit(
    state, step, [batch] * 4, num_steps=4, mesh=options.get('mesh'),
    console=False)
  states.append(result.state)
leaf = step.frozen['encoder']['layers_0']['ffn']['intermediate']['kernel']
assert leaf.values.sharding.spec == P(None, 'model'), leaf.values.sharding
assert leaf.scale.sharding.spec == P(None, 'model'), leaf.scale.sharding
jax.tree.map(
  lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
  states[0].params, states[1].params)
print('fine')
"""


class MeshTest(absltest.TestCase):
  @pytest.mark.slow
  def test_sharded_frozen_tree(self):
    self.assertIn('fine', devices.run(_MESH))


if __name__ == '__main__':
  absltest.main()
