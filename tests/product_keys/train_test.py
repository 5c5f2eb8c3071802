"""Tests of training steps: what they keep in memory, and microbatches."""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import product_keys as pk
from jaxpapers import training
from jaxpapers.product_keys import lazy_rows

MEMORY = pk.ProductKeyMemory(n_keys=12, k_dim=8, heads=2, knn=3)


def language_model(memory=MEMORY, width=16, length=8, **options):
  return pk.TransformerLM(
    20,
    1,
    width,
    2,
    memory_positions='0',
    memory=memory,
    max_len=length,
    **options,
  )


def init_of(model, length=8):
  def init(key):
    tokens = jnp.zeros((1, length), jnp.int32)
    variables = dict(model.init(key, tokens, train=False))
    return {n: variables.pop(n) for n in ('params', 'memory')}, variables

  return init


def text(examples=4, length=8, seed=0):
  tokens = np.random.default_rng(seed).integers(0, 20, (examples, length + 1))
  return {
    'inputs': jnp.asarray(tokens[:, :-1]),
    'targets': jnp.asarray(tokens[:, 1:]),
  }


class InPlaceTest(parameterized.TestCase):
  @parameterized.parameters(('auto', 2**18), ('lazy', 2**14))
  def test_a_step_makes_nothing_of_the_size_of_the_table(self, mode, chunk):
    # 65,536 slots of width 128, 64 tokens with 16 reads; their 1024 rows are
    # updated at once, or 128 at a time.
    self.enter_context(mock.patch.object(lazy_rows, '_CHUNK', chunk))
    memory = pk.ProductKeyMemory(n_keys=256, k_dim=16, heads=2, knn=8)
    model = language_model(memory, 128, 64)
    tx = pk.memory_optimizer(optax.adam(1e-3), mode=mode)
    state = training.abstract_state(init_of(model, 64), tx)
    tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    step = pk.make_memory_train_step(pk.language_model_loss(model), tx)
    batch = {'inputs': tokens, 'targets': tokens}
    compiled = step.lower(state, batch).compile()
    used = compiled.memory_analysis()
    table = 65536 * 128 * 4
    self.assertLess(used.temp_size_in_bytes, 0.2 * table)
    # Table and both moments are the memory of those that were passed in.
    self.assertGreater(used.alias_size_in_bytes, 3 * table)
    made = re.findall(
      r'= f32\[65536,128\]\S* (?:copy|add|multiply|broadcast|select)\(',
      compiled.as_text(),
    )
    self.assertEmpty(made)

  def test_without_the_order_the_table_is_copied(self):
    # So that the test above can fail: a table that is read after the update.
    def step(table, ids, weights):
      y = pk.embedding_bag(table, ids, weights, impl='scan')
      gradient = pk.row_sparse_sum([(ids, weights, y)], table.shape[0])
      moved = table + gradient
      return moved, pk.embedding_bag(table, ids, weights + 1, impl='scan')

    shapes = [
      jax.ShapeDtypeStruct(shape, dtype)
      for shape, dtype in (
        ((65536, 64), 'float32'),
        ((8, 128), 'int32'),
        ((8, 128), 'float32'),
      )
    ]
    jitted = jax.jit(step, donate_argnums=0)
    used = jitted.lower(*shapes).compile().memory_analysis()
    self.assertGreater(used.temp_size_in_bytes, 65536 * 64 * 4)


class AccumulationTest(parameterized.TestCase):
  def _gradients(self, model, batch, accumulate):
    tx = pk.memory_optimizer(optax.sgd(0.1))
    state = training.create_state(init_of(model), tx, jax.random.key(0))
    function = pk.sparse_value_and_grad(
      pk.language_model_loss(model), accumulate=accumulate
    )
    (loss, (_, metrics)), gradients = jax.jit(function)(
      state.params, state.model_state, batch, jax.random.key(1)
    )
    rows = jax.tree.leaves(
      gradients.pop('memory'), is_leaf=lambda x: isinstance(x, pk.RowSparse)
    )
    return loss, metrics, gradients, [g.dense(144) for g in rows]

  @pytest.mark.slow
  def test_microbatches_are_one_batch(self):
    # Unequal numbers of valid tokens; no statistics of a batch.
    model = language_model(MEMORY.clone(query_norm=None))
    batch = text()
    batch['mask'] = jnp.arange(8) < jnp.array([8, 3, 5, 1])[:, None]
    one = self._gradients(model, batch, 1)
    two = self._gradients(model, batch, 2)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      one,
      two,
    )
    self.assertEqual(int(two[1]['count']), 17)

  @pytest.mark.nightly
  def test_statistics_run_through_microbatches(self):
    model = language_model()
    tx = pk.memory_optimizer(optax.sgd(0.1), mode='lazy')
    job = pk.MemoryJob(
      init_of(model),
      pk.language_model_loss(model),
      tx,
      jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), text()),
      accumulate=2,
    )
    state = job.state(jax.random.key(0))
    before = jax.device_get(state.model_state)
    # Plain Python: one microbatch after the other, with dense gradients.
    loss_fn = pk.language_model_loss(model)
    model_state, total = state.model_state, None
    rng = jax.random.fold_in(state.rng, 0)
    for i in range(2):
      part = jax.tree.map(lambda x, i=i: x[i::2], text())
      (_, (model_state, _)), gradient = jax.value_and_grad(
        loss_fn, has_aux=True
      )(state.params, model_state, part, jax.random.fold_in(rng, i))
      half = jax.tree.map(lambda x: x / 2, gradient)
      total = half if total is None else jax.tree.map(jnp.add, total, half)
    expected = jax.device_get((model_state, optax.tree.norm(total)))
    state, metrics = job.step()(state, text())
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      (state.model_state, metrics['grad_norm']),
      expected,
    )
    self.assertFalse(
      np.allclose(
        jax.tree.leaves(before)[0], jax.tree.leaves(state.model_state)[0]
      )
    )

  @pytest.mark.slow
  def test_two_tables_of_peer(self):
    memory = pk.PEER(n_keys=12, k_dim=8, heads=2, knn=3, query_norm=None)
    model = language_model(memory)
    one = self._gradients(model, text(), 1)
    four = self._gradients(model, text(), 4)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      one,
      four,
    )

  def test_bad_input(self):
    loss_fn = pk.language_model_loss(language_model())
    with self.assertRaisesRegex(ValueError, 'accumulate is 0'):
      pk.sparse_value_and_grad(loss_fn, accumulate=0)
    with self.assertRaisesRegex(ValueError, "'inputs' has 4 examples"):
      self._gradients(language_model(), text(), 3)
    function = pk.sparse_value_and_grad(lambda p, s, b, r: (0.0, (s, {})))
    table = {'memory': {'values': jnp.ones((4, 2))}}
    with self.assertRaisesRegex(ValueError, "params has .'params'."):
      function({'params': {}}, {}, text(), jax.random.key(0))
    with self.assertRaisesRegex(ValueError, "without 'reads'"):
      function(table, {}, text(), jax.random.key(0))


if __name__ == '__main__':
  absltest.main()
