"""The loss of pre-training: its masks, its exactness, compiled once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import training
from jaxpapers.nn import transformer
from jaxpapers.roberta import model as model_lib
from jaxpapers.roberta import pretraining
from tests.helpers import devices

VOCAB, MASK, PAD, LENGTH = 60, 59, 1, 24


def make_model(nsp=False, **changes):
  options = {'dropout_rate': 0.0, 'attention_dropout_rate': 0.0} | changes
  config = transformer.EncoderConfig(
    VOCAB, 16, 1, 2, 32, max_len=LENGTH, type_vocab_size=2 * nsp, **options
  )
  return model_lib.RobertaForMaskedLM(config, nsp=nsp)


def make_scheme(**changes):
  return pretraining.MaskingScheme(VOCAB, MASK, PAD, **changes)


@functools.cache
def initial(nsp=False):
  init = pretraining.make_init(make_model(nsp), make_scheme())
  return jax.jit(init)(jax.random.key(0))[0]


def make_batch(size=8, epoch=0, seed=0, shortest=3):
  """Sequences of many lengths, so of many numbers of hidden tokens."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(5, MASK, (size, LENGTH)).astype(np.int32)
  lengths = rng.integers(shortest, LENGTH + 1, size)
  ids[np.arange(LENGTH) >= lengths[:, None]] = PAD
  ids[:, 0] = 0
  return {
    'ids': ids,
    'example_id': np.arange(size, dtype=np.int32),
    'epoch': np.full(size, epoch, np.int32),
  }


def pairs_batch(size=8):
  batch = make_batch(size)
  rng = np.random.default_rng(1)
  segments = np.arange(LENGTH) > rng.integers(1, LENGTH, size)[:, None]
  return batch | {
    'token_type_ids': segments.astype(np.int32),
    'next': rng.integers(0, 2, size).astype(np.int32),
  }


@functools.cache
def mask_program(scheme):
  return jax.jit(lambda key, batch: scheme.mask(key, batch))


def hidden(batch, seed=0, **scheme):
  """Which tokens are hidden, bool [B, S], and what became of them."""
  masked = mask_program(make_scheme(**scheme))(jax.random.key(seed), batch)
  chosen = np.zeros(batch['ids'].shape, bool)
  rows, slots = np.nonzero(np.asarray(masked.weights))
  chosen[rows, np.asarray(masked.positions)[rows, slots]] = True
  return chosen, np.asarray(masked.inputs)


class MasksTest(parameterized.TestCase):
  def test_depend_on_seed_epoch_and_example_alone(self):
    batch = make_batch(32)
    chosen, inputs = hidden(batch)
    order = np.random.default_rng(2).permutation(32)
    moved, moved_inputs = hidden({k: v[order] for k, v in batch.items()})
    np.testing.assert_array_equal(moved, chosen[order])
    np.testing.assert_array_equal(moved_inputs, inputs[order])
    few, _ = hidden({k: v[:8] for k, v in batch.items()})
    np.testing.assert_array_equal(few, chosen[:8])
    for other in (hidden(batch, seed=1), hidden(make_batch(32, epoch=1))):
      same = (other[0] == chosen).all(1).mean()
      self.assertLess(same, 0.3)  # Short ones may have none, or the same.
    self.assertFalse(chosen[batch['ids'] == PAD].any())
    # The first token can be hidden; with `never` it cannot.
    many = [make_batch(32, epoch=e) for e in range(20)]
    self.assertTrue(any(hidden(b)[0][:, 0].any() for b in many))
    never = [hidden(b, never=(0, 2))[0] for b in many]
    self.assertFalse(any(c[:, 0].any() for c in never))
    self.assertGreater(np.mean(never), 0.03)

  @parameterized.parameters(1, 3)
  def test_static_masks_take_turns(self, number):
    found = [
      hidden(make_batch(32, epoch=e), num_masks=number)[1] for e in range(7)
    ]
    for epoch in range(7):
      for other in range(epoch):
        same = (found[epoch] == found[other]).all()
        self.assertEqual(same, (epoch - other) % number == 0)
    # The masks of the first epochs are the dynamic ones.
    np.testing.assert_array_equal(found[0], hidden(make_batch(32))[1])

  def test_masks_of_the_model_state(self):
    batch = make_batch(32, epoch=5)
    scheme = make_scheme()
    key = jax.random.key(7)
    state = scheme.state(key)[pretraining.MASKING]
    self.assertTrue(bool(state['key'] == key))
    for number in (0, 4):
      expected = mask_program(make_scheme(num_masks=number))(key, batch)
      found = jax.jit(scheme.mask)(key, batch, jnp.int32(number))
      np.testing.assert_array_equal(found.inputs, expected.inputs)

  def test_examples_that_fill_up(self):
    batch = make_batch(8) | {'mask': np.arange(8) < 5}
    chosen, inputs = hidden(batch)
    self.assertTrue(chosen[:5].any())
    self.assertFalse(chosen[5:].any())
    np.testing.assert_array_equal(inputs[5:], batch['ids'][5:])

  def test_bad_schemes(self):
    for changes, words in (
      ({'num_masks': -1}, 'num_masks is -1; expected 0 or more'),
      ({'mask_id': VOCAB}, f'mask_id is {VOCAB} in a vocabulary of {VOCAB}'),
      ({'pad_id': -1}, 'pad_id is -1'),
    ):
      values = {'vocab_size': VOCAB, 'mask_id': MASK} | changes
      with self.assertRaisesRegex(ValueError, words):
        pretraining.MaskingScheme(**values)
    with self.assertRaisesRegex(ValueError, 'mask_prob is 1'):
      make_scheme(mask_prob=1.0)


class LossTest(parameterized.TestCase):
  def expected(self, batch, params, model, masked):
    """Losses of the hidden tokens from the logits of all, in numpy."""
    output = jax.jit(model.apply)(
      {'params': params},
      masked.inputs,
      token_type_ids=batch.get('token_type_ids'),
    )
    logits, follows = output if model.nsp else (output, None)
    logits = np.asarray(logits, np.float64)
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
      logits, batch['ids'][..., None], -1
    )[..., 0]  # fmt: skip
    chosen, _ = hidden(batch)
    right = (logits.argmax(-1) == batch['ids'])[chosen]
    return nll[chosen], right, follows

  def test_is_the_mean_over_hidden_tokens(self):
    batch, params = make_batch(), initial()
    model, scheme = make_model(), make_scheme()
    loss_fn = pretraining.make_pretrain_loss(model, scheme, seed=0)
    loss, (state, metrics) = jax.jit(loss_fn)(
      params, {}, batch, jax.random.key(1)
    )
    masked = jax.jit(scheme.mask)(jax.random.key(0), batch)
    nll, right, _ = self.expected(batch, params, model, masked)
    self.assertGreater(len(nll), 8)
    self.assertAlmostEqual(float(loss), nll.mean(), delta=1e-5)
    self.assertEqual(float(metrics['count']), len(nll))
    self.assertAlmostEqual(float(metrics['accuracy']), right.mean(), delta=1e-6)
    self.assertEqual(state, {})

  def test_pairs(self):
    batch, params = pairs_batch(), initial(True)
    model, scheme = make_model(True), make_scheme()
    loss_fn = pretraining.make_pretrain_loss(model, scheme, nsp_weight=0.5)
    loss, (_, metrics) = jax.jit(loss_fn)(params, {}, batch, jax.random.key(1))
    masked = jax.jit(scheme.mask)(jax.random.key(0), batch)
    nll, _, follows = self.expected(batch, params, model, masked)
    follows = np.asarray(follows, np.float64)
    nsp = np.log(np.exp(follows).sum(-1)) - follows[
      np.arange(8), batch['next']
    ]  # fmt: skip
    self.assertAlmostEqual(
      float(loss), nll.mean() + 0.5 * nsp.mean(), delta=1e-5
    )
    self.assertAlmostEqual(float(metrics['nsp_loss']), nsp.mean(), delta=1e-5)
    right = (follows.argmax(-1) == batch['next']).mean()
    self.assertAlmostEqual(float(metrics['nsp_accuracy']), right, delta=1e-6)

  def test_nothing_hidden(self):
    batch = make_batch()
    batch['ids'] = np.full_like(batch['ids'], PAD)
    loss_fn = pretraining.make_pretrain_loss(make_model(), make_scheme())
    loss, (_, metrics) = jax.jit(loss_fn)(
      initial(), {}, batch, jax.random.key(0)
    )
    self.assertEqual(float(metrics['count']), 0)
    self.assertEqual(float(loss), 0)

  def test_whole_words(self):
    starts = np.arange(VOCAB) % 3 == 0
    scheme = make_scheme(word_starts=starts)
    loss_fn = pretraining.make_pretrain_loss(make_model(), scheme)
    batch = make_batch(64, shortest=LENGTH)
    _, (_, metrics) = jax.jit(loss_fn)(initial(), {}, batch, jax.random.key(0))
    self.assertEqual(float(metrics['overflow']), 0)
    masked = jax.jit(scheme.mask)(jax.random.key(0), batch)
    chosen = np.zeros(batch['ids'].shape, bool)
    rows, slots = np.nonzero(np.asarray(masked.weights))
    chosen[rows, np.asarray(masked.positions)[rows, slots]] = True
    inside = ~starts[batch['ids']][:, 1:]
    np.testing.assert_array_equal(chosen[:, 1:][inside], chosen[:, :-1][inside])

  def test_held_out(self):
    scheme = make_scheme(num_masks=3)
    metric_fn = pretraining.make_held_out_metrics(make_model(), scheme, seed=4)
    step = training.make_eval_step(metric_fn)
    params = initial()
    state = training.create_state(
      lambda key: (params, {}), optax.sgd(0.0), jax.random.key(0)
    )
    whole = [make_batch(16, shortest=6)]
    halves = [{k: v[i::2] for k, v in whole[0].items()} for i in range(2)]
    results = []
    for batches in (whole, halves, [make_batch(16, epoch=2, shortest=6)]):
      metrics = training.evaluate(state, step, batches)
      results.append(pretraining.with_perplexity(metrics))
    # Tokens are added up, not batches; and the epoch does not matter.
    for metrics in results[1:]:
      self.assertEqual(metrics['count'], results[0]['count'])
      for name in ('loss', 'perplexity', 'accuracy'):
        np.testing.assert_allclose(metrics[name], results[0][name], rtol=1e-5)
    np.testing.assert_allclose(
      results[0]['perplexity'], np.exp(results[0]['loss']), rtol=1e-6
    )


class StepTest(parameterized.TestCase):
  def job(self, **options):
    model, scheme = make_model(), make_scheme()
    own = options.pop('own_masks', False)
    return training.Job(
      pretraining.make_init(model, scheme, own_masks=own),
      pretraining.make_pretrain_loss(model, scheme),
      options.pop('tx', optax.sgd(1.0)),
      pretraining.abstract_batch(8, LENGTH),
      **options,
    )

  def test_shapes_of_a_batch(self):
    for batch, pairs in ((make_batch(), False), (pairs_batch(), True)):
      self.assertEqual(
        jax.tree.map(lambda x: (x.shape, x.dtype), batch),
        jax.tree.map(
          lambda x: (x.shape, x.dtype),
          pretraining.abstract_batch(8, LENGTH, pairs=pairs),
        ),
      )

  def test_compiles_once(self):
    job = self.job()
    step, state = job.step(), job.state(jax.random.key(0))
    losses = []
    for number in range(20):
      state, metrics = step(state, make_batch(epoch=number // 3, seed=1))
      losses.append(float(metrics['loss']))
    self.assertEqual(step._cache_size(), 1)
    # A batch is hidden elsewhere in each epoch: it is no step like the others.
    self.assertLen(set(losses), 20)
    self.assertLess(np.mean(losses[-5:]), np.mean(losses[:5]))

  @pytest.mark.slow
  def test_accumulation_is_exact(self):
    batch = make_batch(32)
    chosen, _ = hidden(batch)
    # As the step divides it; the numbers of hidden tokens are unequal.
    counts = [chosen[i::4].sum() for i in range(4)]
    self.assertGreater(max(counts), 1.2 * min(counts))
    with jax.enable_x64(True):
      model = make_model(dtype=jnp.float64, param_dtype=jnp.float64)
      params = jax.tree.map(lambda x: np.asarray(x, np.float64), initial())
      loss_fn = pretraining.make_pretrain_loss(model, make_scheme())

      def gradient(parts):
        # The step of SGD with rate 1 is the gradient.
        tx = optax.sgd(1.0)
        state = training.create_state(
          lambda key: (jax.tree.map(jnp.asarray, params), {}),
          tx,
          jax.random.key(0),
        )
        step = training.make_train_step(loss_fn, tx, accumulate=parts)
        new, metrics = step(state, batch)
        self.assertEqual(float(metrics['count']), chosen.sum())
        return jax.tree.map(lambda a, b: a - np.asarray(b), params, new.params)

      def distance(one, other):
        gap = optax.tree.norm(jax.tree.map(np.subtract, one, other))
        return float(gap / optax.tree.norm(one))

      whole = gradient(1)
      # The counts are float32 sums of ones, exact; the rest is float64.
      self.assertLess(distance(whole, gradient(4)), 1e-6)
      # What the mean of the microbatches' means would be.
      part = jax.jit(
        jax.grad(lambda p, b: loss_fn(p, {}, b, jax.random.key(0))[0])
      )
      means = [
        part(params, {k: v[i::4] for k, v in batch.items()}) for i in range(4)
      ]
      mean = jax.tree.map(lambda *g: sum(np.asarray(x) for x in g) / 4, *means)
      self.assertGreater(distance(whole, mean), 1e-3)

  @pytest.mark.slow
  def test_population_is_the_runs_alone(self):
    job, many = self.job(own_masks=True), self.job(own_masks=True, population=2)
    keys = jax.random.split(jax.random.key(3), 2)
    states = many.state(keys)
    step, many_step = job.step(), many.step()
    alone = [job.state(key) for key in keys]
    masks = [
      jax.random.key_data(s.model_state[pretraining.MASKING]['key'])
      for s in alone
    ]
    self.assertFalse((masks[0] == masks[1]).all())
    for number in range(3):
      batch = make_batch(epoch=number)
      states, metrics = many_step(states, batch)
      for index in range(2):
        alone[index], own = step(alone[index], batch)
        self.assertEqual(float(own['count']), float(metrics['count'][index]))
        self.assertAlmostEqual(
          float(own['loss']), float(metrics['loss'][index]), delta=1e-4
        )

  @pytest.mark.slow
  def test_eight_devices_are_one(self):
    devices.run("""
      import jax, numpy as np, optax
      from jaxpapers import training
      from jaxpapers.roberta import pretraining, sharding
      from jaxpapers.training import aot
      from tests.roberta import pretraining_test as t
      losses, sent = {}, {}
      for name, kind in (
        (None, 'data'), ('data:8', 'data'), ('data:2,fsdp:4', 'fsdp'),
        ('data:2,fsdp:4', 'gathered'),
      ):
        mesh = name and training.make_mesh(name)
        model, scheme = t.make_model(), t.make_scheme()
        inner = pretraining.make_pretrain_loss(model, scheme)
        traces = []
        def loss_fn(*arguments):
          traces.append(kind)
          return inner(*arguments)
        tx = optax.adam(1e-2)
        rules = sharding.encoder_rules('fsdp') if 'fsdp' in (name or '') else ()
        state = training.create_state(
          pretraining.make_init(model, scheme), tx, jax.random.key(0),
          mesh=mesh, rules=rules)
        step = training.make_train_step(
          loss_fn, tx, mesh=mesh, rules=rules,
          gather_axis='fsdp' if kind == 'gathered' else None)
        batch = training.put_batch(t.make_batch(16), mesh)
        text = step.lower(state, batch).compile().as_text()
        found = aot.count_collectives(text).values()
        sent[kind] = sum(size for _, size in found)
        rows = []
        for number in range(4):
          batch = t.make_batch(16, epoch=number)
          state, metrics = step(state, training.put_batch(batch, mesh))
          rows.append([float(metrics[k]) for k in ('loss', 'count')])
        assert len(traces) == 1, (kind, traces)
        losses[kind if name else 'one'] = np.array(rows)
      one = losses.pop('one')
      assert len(losses) == 3
      for other in losses.values():
        np.testing.assert_array_equal(other[:, 1], one[:, 1])
        # Sums in another order, in float32, and Adam in between.
        np.testing.assert_allclose(other[0], one[0], rtol=1e-6)
        np.testing.assert_allclose(other, one, rtol=1e-5)
      # Parameters out, gradients back and again for replicated ones: nothing
      # that grows with the batch.
      size = sum(x.nbytes for x in jax.tree.leaves(state.params))
      assert sent['gathered'] < 3 * size, (sent, size)
      assert sent['gathered'] < 0.7 * sent['fsdp'], sent
      print(sent, size)
    """)


if __name__ == '__main__':
  absltest.main()
