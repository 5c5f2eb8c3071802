"""Losses of fine-tuning, predictions, and batches of few lengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import training
from jaxpapers.roberta import bpe, finetune, finetune_data, model, tasks
from tests.helpers import data, devices, goldens
from tests.roberta import tiny

KINDS = finetune.KINDS
# No dropout: what is compared is compared exactly.
DRY = {'dropout_rate': 0.0, 'attention_dropout_rate': 0.0}


@functools.cache
def make_model(kind):
  config = tiny.config(**DRY)
  return {
    'classification': lambda: model.RobertaForSequenceClassification(
      config, num_labels=3
    ),
    'regression': lambda: model.RobertaForSequenceClassification(
      config, num_labels=1
    ),
    'choice': lambda: model.RobertaForMultipleChoice(config),
    'span': lambda: model.RobertaForQuestionAnswering(config, answerable=True),
    'wsc': lambda: model.RobertaForMaskedLM(config),
  }[kind]()


@functools.cache
def make_params(kind):
  """Parameters that follow from their names: nothing is compiled."""
  shape = (1, 2, 4) if kind == 'choice' else (1, 4)
  abstract = jax.eval_shape(
    make_model(kind).init, jax.random.key(0), jnp.zeros(shape, jnp.int32)
  )
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.asarray(
      goldens.normal(jax.tree_util.keystr(path), x.shape, 0.2), x.dtype
    ),
    abstract['params'],
  )


def make_examples(kind, count=6):
  """Random examples of 3 to 11 tokens."""
  rng = goldens.rng(kind)
  choices = {'choice': 2, 'wsc': 3}.get(kind, 0)
  texts = [
    rng.integers(5, 300, rng.integers(3, 12)).tolist()
    for _ in range(count * max(choices, 1))
  ]
  if choices:
    texts = [texts[i : i + choices] for i in range(0, len(texts), choices)]
  fields = {
    'classification': {'label': rng.integers(0, 3, count)},
    'regression': {'label': rng.uniform(0, 5, count).astype(np.float32)},
    'choice': {'label': rng.integers(0, 2, count)},
    'span': {
      'start': rng.integers(0, 3, count),
      'end': rng.integers(0, 3, count),
      'answerable': rng.integers(0, 2, count),
    },
    'wsc': {
      'positions': rng.integers(0, 3, (count, 3, 2)),
      'targets': rng.integers(5, 300, (count, 3, 2)),
      'weights': np.array([[[1, 1], [1, 0], [1, 0]]] * count, np.float32),
      'candidates': rng.integers(0, 2, (count, 2)).astype(bool),
    },
  }[kind]
  return finetune_data.TokenExamples(texts, fields)


def batch_of(kind, length, indices=range(6)):
  indices = np.array(indices)
  return make_examples(kind).rows(indices, length)


@functools.cache
def loss_of(kind):
  loss_fn = finetune.make_finetune_loss(make_model(kind), kind)
  return jax.jit(lambda p, batch: loss_fn(p, {}, batch, jax.random.key(0)))


class LossTest(parameterized.TestCase):
  @parameterized.parameters(*KINDS)
  def test_padding_changes_nothing(self, kind):
    params = make_params(kind)
    loss, (_, metrics) = loss_of(kind)(params, batch_of(kind, 12))
    self.assertEqual(metrics['count'], 6)
    self.assertTrue(np.isfinite(loss))
    # Longer rows, and examples that only fill the batch up.
    wider = batch_of(kind, 20, [0, 1, 2, 3, 4, 5, 5, 5])
    wider['mask'] = np.arange(8) < 6
    padded, (_, metrics) = loss_of(kind)(params, wider)
    self.assertEqual(metrics['count'], 6)
    # Sums over more tokens are added in another order.
    np.testing.assert_allclose(padded, loss, rtol=2e-6)

  def test_regression_is_on_a_scale_of_one(self):
    kind = 'regression'
    batch = batch_of(kind, 12)
    predict = finetune.make_predict(make_model(kind), kind)
    scores = np.asarray(predict(make_params(kind), batch)['score'])
    loss, _ = loss_of(kind)(make_params(kind), batch)
    expected = np.mean(((scores - batch['label']) / 5) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)

  def test_span_and_answerable_losses_add_up(self):
    batch = batch_of('span', 12)
    outputs = finetune.make_predict(make_model('span'), 'span')(
      make_params('span'), batch
    )
    each = []
    for i in range(6):
      size = (batch['ids'][i] != 1).sum()
      ends = 0.0
      for name in ('start', 'end'):
        logits = np.asarray(outputs[name][i][:size], np.float64)
        ends -= logits[batch[name][i]] - np.log(np.exp(logits).sum())
      sign = 2 * batch['answerable'][i] - 1
      there = np.log1p(np.exp(-sign * float(outputs['answerable'][i])))
      each.append(ends / 2 + there)
    loss, _ = loss_of('span')(make_params('span'), batch)
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)

  @pytest.mark.slow
  def test_accumulation_counts_examples(self):
    # The last batch of an epoch has fewer examples; microbatches too.
    kind = 'classification'
    batch = batch_of(kind, 12, [0, 1, 2, 3, 4, 5, 5, 5])
    batch['mask'] = np.array([1, 1, 0, 1, 0, 0, 0, 1], bool)
    norms, params = [], make_params(kind)
    for accumulate in (1, 4):
      tx = optax.sgd(0.1)
      step = training.make_train_step(
        finetune.make_finetune_loss(make_model(kind), kind),
        tx,
        accumulate=accumulate,
        donate=False,
      )
      state = training.create_state(
        lambda key: (params, {}), tx, jax.random.key(0)
      )
      _, metrics = step(state, batch)
      norms.append(metrics['grad_norm'])
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-5)

  def test_kinds(self):
    glue = tasks.GLUE_TASKS
    self.assertEqual(finetune.kind_of(glue['STS-B']), 'regression')
    self.assertEqual(finetune.kind_of(glue['MNLI']), 'classification')
    with self.assertRaisesRegex(ValueError, "task is 'tagging'; expected"):
      finetune.make_finetune_loss(make_model('span'), 'tagging')


class PredictTest(parameterized.TestCase):
  @parameterized.parameters('classification', 'span')
  def test_in_the_order_of_the_examples(self, kind):
    examples = make_examples(kind)
    predict = finetune.make_predict(make_model(kind), kind)
    bare = finetune_data.TokenExamples(examples.ids, {})
    params = make_params(kind)
    got = finetune.predict_all(predict, params, bare, 4, lengths=(6, 12))
    single = [
      predict(params, bare.rows(np.array([i]), 12)) for i in range(len(bare))
    ]
    for name, values in got.items():
      self.assertLen(values, 6)
      for i, value in enumerate(values):
        expected = np.asarray(single[i][name][0])
        if value.ndim and kind == 'span':
          size = len(examples.ids[i])
          value, expected = value[:size], expected[:size]
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


class MeshTest(absltest.TestCase):
  @pytest.mark.slow
  def test_eight_devices_are_one(self):
    devices.run(
      """
      import jax, numpy as np, optax
      from jaxpapers import training
      from jaxpapers.roberta import finetune, finetune_data, sharding
      from tests.roberta import finetune_test as t

      kind = 'span'
      model, params = t.make_model(kind), t.make_params(kind)
      examples = t.make_examples(kind, 12)
      tx, found = optax.sgd(0.1), []
      rules = sharding.encoder_rules('fsdp')
      for mesh in (None, training.make_mesh('data:4,fsdp:2')):
        on_mesh = {} if mesh is None else {'mesh': mesh, 'rules': rules}
        state = training.create_state(
          lambda key: (jax.tree.map(jax.numpy.copy, params), {}),
          tx, jax.random.key(0), **on_mesh)
        # Placed where the new ones lie.
        state = finetune.with_pretrained(state, params)
        step = training.make_train_step(
          finetune.make_finetune_loss(model, kind), tx, **on_mesh)
        batches = finetune_data.TokenBatches(
          examples, 8, seed=0, lengths=(12,))
        for _ in range(2):
          batch = training.put_batch(next(batches), mesh)
          state, metrics = step(state, batch)
        predict = finetune.make_predict(model, kind, mesh=mesh)
        outputs = finetune.predict_all(
          predict, state.params, examples, 8, mesh=mesh, lengths=(12,))
        found.append((float(metrics['loss']), np.stack(outputs['start'])))
      (loss, start), (other, start_on_mesh) = found
      # Sums over shards are added in another order.
      np.testing.assert_allclose(other, loss, rtol=1e-5)
      np.testing.assert_allclose(
        start_on_mesh, start, rtol=1e-3, atol=1e-4)
      """
    )


class PretrainedTest(absltest.TestCase):
  def new_state(self, kind='classification'):
    params = make_params(kind)
    return training.create_state(
      lambda key: (jax.tree.map(lambda x: x + 1, params), {}),
      optax.sgd(0.5),
      jax.random.key(1),
    )

  def test_encoder_is_taken_and_head_is_new(self):
    encoder = make_params('wsc')['encoder']
    before = jax.tree.map(np.array, encoder)
    step = training.make_train_step(
      finetune.make_finetune_loss(
        make_model('classification'), 'classification'
      ),
      optax.sgd(0.5),
    )
    results = []
    for _ in range(2):
      state = self.new_state()
      head = jax.tree.map(np.array, state.params['classifier'])
      state = finetune.with_pretrained(state, {'encoder': encoder})
      jax.tree.map(
        np.testing.assert_array_equal, state.params['encoder'], before
      )
      jax.tree.map(
        np.testing.assert_array_equal, state.params['classifier'], head
      )
      state, metrics = step(state, batch_of('classification', 12))
      results.append(float(metrics['loss']))
    # The steps did not write into the pre-trained arrays: a second seed starts
    # from the same.
    jax.tree.map(np.testing.assert_array_equal, encoder, before)
    self.assertEqual(*results)

  def test_refused(self):
    state = self.new_state()
    with self.assertRaisesRegex(
      ValueError, 'pretrained has lm_head; the model'
    ):
      finetune.with_pretrained(state, {'lm_head': {}})
    with self.assertRaisesRegex(ValueError, 'encoder has the structure'):
      finetune.with_pretrained(state, {'encoder': {}})
    wrong = jax.tree.map(lambda x: x[..., None], state.params['encoder'])
    with self.assertRaisesRegex(
      ValueError, r'encoder/.* has shape .*the model'
    ):
      finetune.with_pretrained(state, {'encoder': wrong})


class LearningTest(absltest.TestCase):
  @pytest.mark.slow
  def test_learns_to_tell_two_words_apart(self):
    words = [tiny.tokenizer().encode(w)[0] for w in ('good', 'bad')]
    rng = goldens.rng('learn')
    labels = rng.integers(0, 2, 64)
    texts = [
      [0, *rng.integers(200, 300, rng.integers(1, 9)), words[label], 2]
      for label in labels
    ]
    examples = finetune_data.TokenExamples(texts, {'label': labels})
    network = model.RobertaForSequenceClassification(tiny.config())
    tx = optax.adam(3e-3)
    state = training.create_state(
      lambda key: (
        network.init(key, jnp.zeros((1, 4), jnp.int32))['params'],
        {},
      ),
      tx,
      jax.random.key(0),
    )
    step = training.make_train_step(
      finetune.make_finetune_loss(network, 'classification'), tx
    )
    batches = finetune_data.TokenBatches(examples, 16, seed=0, lengths=(12,))
    for _ in range(60):
      state, _ = step(state, next(batches))
    predict = finetune.make_predict(network, 'classification')
    got = finetune.predict_all(predict, state.params, examples, 64)
    accuracy = np.mean(np.stack(got['logits']).argmax(-1) == labels)
    self.assertGreater(accuracy, 0.95)


class BatchesTest(absltest.TestCase):
  def make(self, **options):
    texts = [[0] * size for size in (3, 9, 20, 4, 5, 33, 6)]
    examples = finetune_data.TokenExamples(texts, {'label': np.arange(7)})
    options = {'seed': 3, 'lengths': (8, 16)} | options
    return finetune_data.TokenBatches(examples, 4, **options)

  def test_an_epoch_has_every_example_once(self):
    batches = self.make()
    self.assertEqual(batches.steps_per_epoch, 2)
    orders = []
    for _ in range(2):
      parts = [next(batches) for _ in range(2)]
      seen = np.concatenate([p['label'][p['mask']] for p in parts])
      self.assertCountEqual(seen, range(7))
      orders.append(seen.tolist())
      for part in parts:
        longest = (part['ids'] == 0).sum(1).max()
        self.assertEqual(
          part['ids'].shape[1], next(n for n in (8, 16, 32, 48) if n >= longest)
        )
    self.assertNotEqual(*orders)

  def test_processes_share_batches_of_one_length(self):
    whole = self.make()
    parts = [self.make(process_index=i, process_count=2) for i in (0, 1)]
    for _ in range(4):
      expected = next(whole)
      got = [next(part) for part in parts]
      for name in ('ids', 'label', 'mask'):
        joined = np.concatenate([g[name] for g in got])
        np.testing.assert_array_equal(joined, expected[name])

  def test_resumes(self):
    first = self.make()
    for _ in range(3):
      next(first)
    second = self.make()
    second.set_state(first.get_state())
    for _ in range(3):
      jax.tree.map(np.testing.assert_array_equal, next(first), next(second))
    with self.assertRaisesRegex(ValueError, 'state has seed = 3; .* 4'):
      self.make(seed=4).set_state(first.get_state())

  def test_refused(self):
    with self.assertRaisesRegex(ValueError, 'label has 1 entries for 2'):
      finetune_data.TokenExamples([[1], [2]], {'label': np.zeros(1)})
    with self.assertRaisesRegex(ValueError, 'ids are empty'):
      finetune_data.TokenExamples([], {})
    with self.assertRaisesRegex(ValueError, 'batch_size is 4; .* 3'):
      self.make(process_count=3)


class GlueTokensTest(absltest.TestCase):
  def test_fairseq_packing(self):
    folder = data.require('roberta', 'encoder.json').parent
    tokenizer = bpe.ByteLevelBPE.from_directory(folder)
    from jaxpapers.roberta import glue

    for pair in goldens.load_json('roberta', 'formats.json')['glue_pairs']:
      split = glue.GlueSplit(
        tasks.GLUE_TASKS['RTE'],
        'test',
        [pair['a']],
        [pair['b']] if pair['b'] else None,
        None,
        ['0'],
      )
      examples = finetune_data.glue_examples(split, tokenizer)
      self.assertEqual(examples.ids[0], pair['ids'])


if __name__ == '__main__':
  absltest.main()
