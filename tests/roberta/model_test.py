"""RoBERTa's models against Hugging Face's, and what they refuse."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jaxpapers.nn import stack_layers
from jaxpapers.roberta import config as configs
from jaxpapers.roberta import losses
from jaxpapers.roberta import model as models
from tests.roberta import golden_weights

# float32 results of an independent implementation are this close to the golden
# float64 ones (README of the golden file).
LOGITS, HIDDEN, LOSS = 2e-5, 5e-6, 1e-6


def masked_rows(labels):
  """Positions [B, K], targets and weights of the golden file's labels."""
  most = int((labels != -100).sum(1).max())
  positions = np.argsort(labels == -100, axis=1, kind='stable')[:, :most]
  targets = np.take_along_axis(labels, positions, axis=1)
  weights = (targets != -100).astype(np.float32)
  return positions, np.where(targets == -100, 0, targets), weights


class GoldenTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.golden = golden_weights.numbers()
    self.ids = self.golden['mlm_input_ids']
    self.seen = self.ids != 1
    self.params = golden_weights.params()

  def close(self, ours, golden, atol):
    np.testing.assert_allclose(ours, golden, rtol=0, atol=atol)

  @parameterized.parameters(
    {},
    {'scan_layers': True, 'remat': True},
    {'attention_impl': 'xla'},
  )
  def test_forward(self, **changes):
    config = golden_weights.config(**changes)
    params = stack_layers(self.params) if config.scan_layers else self.params
    model = models.RobertaForMaskedLM(config)
    logits = jax.jit(model.apply)({'params': params}, self.ids)
    self.close(logits[self.seen], self.golden['mlm_logits'][self.seen], LOGITS)
    encoder = {'params': params['encoder']}
    _, hiddens = models.transformer.TransformerEncoder(config).apply(
      encoder, self.ids, capture_hiddens=True
    )
    self.assertLen(hiddens, 4)
    for i, hidden in enumerate(hiddens):
      golden = self.golden[f'hidden_{i}']
      self.close(hidden[self.seen], golden[self.seen], HIDDEN)

  def test_forward_in_float64(self):
    # Softmax, norms and GELU follow the type: no digit is lost on the way.
    with jax.enable_x64(True):
      config = golden_weights.config(dtype=jnp.float64, param_dtype=jnp.float64)
      params = golden_weights.params(dtype=np.float64)
      model = models.RobertaForMaskedLM(config)
      logits = model.apply({'params': params}, jnp.asarray(self.ids))
      self.assertEqual(logits.dtype, jnp.float64)
      self.close(logits[self.seen], self.golden['mlm_logits'][self.seen], 1e-11)

  def test_gradients(self):
    model = models.RobertaForMaskedLM(golden_weights.config())
    positions, targets, weights = masked_rows(self.golden['mlm_labels'])

    def loss(params):
      logits = model.apply({'params': params}, self.ids, positions=positions)
      total, count = losses.mlm_loss(logits, targets, weights)
      return total / count

    value, gradients = jax.jit(jax.value_and_grad(loss))(self.params)
    self.close(value, self.golden['mlm_loss'], LOSS)
    compared = 0
    for name, golden in self.golden.items():
      if not name.startswith('grad/'):
        continue
      path, golden = golden_weights.from_torch(name[5:], golden)
      ours = golden_weights.at(gradients, path)
      self.assertEqual(ours.shape, golden.shape, name)
      if name.endswith('key.bias'):
        # Softmax does not see a shift of all keys: only rounding is left.
        self.assertLess(np.abs(ours).max(), 1e-6)
        self.assertLess(np.abs(golden).max(), 1e-12)
      else:
        self.close(ours, golden, 1e-5 * np.abs(golden).max())
      compared += 1
    self.assertEqual(compared, 11)
    norm = float(optax.tree.norm(gradients))
    np.testing.assert_allclose(norm, self.golden['grad_global_norm'], rtol=1e-6)

  def test_classification(self):
    model = models.RobertaForSequenceClassification(
      golden_weights.config(), num_labels=3
    )
    params = golden_weights.params('cls_extra', head='')
    ids = self.golden['input_ids'][self.golden['cls_rows']]

    def loss(params):
      logits = model.apply({'params': params}, ids)
      return losses.cross_entropy(
        logits, self.golden['cls_labels']
      ).mean(), logits

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, logits), gradients = grad(params)
    self.close(logits, self.golden['cls_logits'], LOGITS)
    self.close(value, self.golden['cls_loss'], LOSS)
    for name in (
      'classifier.dense.weight',
      'roberta.encoder.layer.0.output.dense.weight',
    ):
      path, golden = golden_weights.from_torch(
        name, self.golden[f'cls_grad/{name}']
      )
      ours = golden_weights.at(gradients, path)
      self.close(ours, golden, 1e-5 * np.abs(golden).max())

  def test_multiple_choice(self):
    model = models.RobertaForMultipleChoice(
      golden_weights.config(), head='pooler'
    )
    params = golden_weights.params('mc_extra', head='')
    ids = self.golden['input_ids'][self.golden['mc_rows']]
    logits = model.apply({'params': params}, ids)
    self.close(logits, self.golden['mc_logits'], LOGITS)
    loss = losses.cross_entropy(logits, self.golden['mc_labels']).mean()
    self.close(loss, self.golden['mc_loss'], LOSS)
    # The mask and positions of each choice travel with it.
    again = model.apply(
      {'params': params},
      ids,
      attention_mask=ids != 1,
      position_ids=np.stack(
        [models.transformer.make_position_ids(i, 1) for i in ids]
      ),
    )
    self.close(again, logits, 0)

  def test_question_answering(self):
    model = models.RobertaForQuestionAnswering(golden_weights.config())
    params = golden_weights.params('qa_extra', head='')
    ids = self.golden['input_ids']
    seen = ids != 1
    start, end, answerable = model.apply({'params': params}, ids)
    self.assertIsNone(answerable)
    self.close(start[seen], self.golden['qa_start_logits'][seen], LOGITS)
    self.close(end[seen], self.golden['qa_end_logits'][seen], LOGITS)
    loss = losses.span_loss(
      start[:1], end[:1], self.golden['qa_start'], self.golden['qa_end']
    )
    self.close(loss[0], self.golden['qa_loss_row0'], LOSS)


@functools.cache
def initial_base():
  """RoBERTa-base at its start. Scanned, since that compiles sooner."""
  model = models.RobertaForMaskedLM(configs.roberta_base(scan_layers=True))
  ids = jnp.zeros((1, 4), jnp.int32)
  return model, jax.jit(model.init)(jax.random.key(0), ids)['params']


class InitialisationTest(absltest.TestCase):
  def test_statistics(self):
    # fairseq: N(0, .02^2) for every kernel and table, pad rows and biases 0.
    _, params = initial_base()
    kernels = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      if name.endswith(('kernel', 'embedding')):
        kernels += 1
        # 590,000 numbers at least: .1 % is the standard error.
        np.testing.assert_allclose(np.std(leaf), 0.02, rtol=0.01, err_msg=name)
        self.assertGreater(np.abs(leaf).max(), 0.06, 'not truncated')
      elif name.endswith('scale'):
        self.assertTrue((leaf == 1).all())
      else:
        self.assertTrue((leaf == 0).all(), name)
    self.assertEqual(kernels, 2 + 6 + 1)
    encoder = params['encoder']
    for table in ('token_embedding', 'position_embedding'):
      rows = encoder[table]['embedding']
      self.assertTrue((rows[1] == 0).all())
      self.assertTrue((rows[0] != 0).all())

  def test_first_loss_is_that_of_guessing(self):
    model, params = initial_base()
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 50264, (2, 32))
    masked = np.where(np.arange(32) < 16, 50264, ids)
    logits = jax.jit(model.apply)(
      {'params': params}, masked, positions=np.tile(np.arange(16), (2, 1))
    )
    total, count = losses.mlm_loss(logits, ids[:, :16], np.ones((2, 16)))
    self.assertEqual(count, 32)
    np.testing.assert_allclose(total / count, np.log(50265), rtol=0.03)

  def test_truncated(self):
    config = configs.bert_base(num_layers=1, hidden_size=96)
    encoder = models.transformer.TransformerEncoder(config)
    params = jax.jit(encoder.init)(jax.random.key(0), jnp.ones((1, 4), int))
    table = params['params']['token_embedding']['embedding']
    self.assertLessEqual(np.abs(table).max(), 0.04)
    np.testing.assert_allclose(np.std(table), 0.8796 * 0.02, rtol=0.01)
    self.assertTrue((table[0] != 0).any())

  def test_numbers_of_parameters(self):
    def count(config):
      model = models.RobertaForMaskedLM(config)
      ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
      shapes = jax.eval_shape(model.init, jax.random.key(0), ids)
      return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    self.assertEqual(count(configs.roberta_base()), 124_696_665)
    self.assertEqual(
      count(configs.roberta_base(type_vocab_size=1)), 124_697_433
    )
    self.assertEqual(count(configs.roberta_base(scan_layers=True)), 124_696_665)
    self.assertEqual(
      count(configs.roberta_large(type_vocab_size=1)), 355_412_057
    )

  def test_bert_encoders(self):
    # 109,482,240 and 335,141,888 with the pooler, H^2 + H.
    for config, wanted in (
      (configs.bert_base(), 109_482_240),
      (configs.bert_large(), 335_141_888),
    ):
      model = models.RobertaForSequenceClassification(
        config, num_labels=1, head='pooler'
      )
      ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
      params = jax.eval_shape(model.init, jax.random.key(0), ids)['params']
      del params['output']
      total = sum(leaf.size for leaf in jax.tree.leaves(params))
      self.assertEqual(total, wanted)


class HeadsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.config = golden_weights.config()
    self.ids = golden_weights.numbers()['mlm_input_ids']

  def test_positions_are_gathered(self):
    model = models.RobertaForMaskedLM(self.config)
    params = {'params': golden_weights.params()}
    everywhere = model.apply(params, self.ids)
    positions = jnp.array([[3, 0], [1, 1], [2, 0], [15, 7], [4, 5]])
    some = model.apply(params, self.ids, positions=positions)
    wanted = jnp.take_along_axis(everywhere, positions[..., None], 1)
    chex.assert_trees_all_close(some, wanted, atol=2e-6)

  def test_position_out_of_range(self):
    model = models.RobertaForMaskedLM(self.config)
    params = {'params': golden_weights.params()}
    for wrong in (-1, 16):
      positions = jnp.full((5, 1), wrong)
      with self.assertRaisesRegex(ValueError, 'positions has values from'):
        model.apply(params, self.ids, positions=positions)
      logits = jax.jit(lambda p: model.apply(params, self.ids, positions=p))(
        positions
      )
      self.assertTrue(np.isnan(logits).all())
    with self.assertRaisesRegex(ValueError, 'positions has shape'):
      model.apply(params, self.ids, positions=jnp.zeros((4, 1), int))

  def test_impossible_labels(self):
    logits, labels = jnp.zeros((2, 3)), np.array([0, 3])
    with self.assertRaisesRegex(ValueError, 'labels has values from 0 to 3'):
      losses.cross_entropy(logits, labels)
    # No values under jit: NaN, where a gather would take the last class.
    loss = jax.jit(losses.cross_entropy)(logits, labels)
    np.testing.assert_array_equal(np.isnan(loss), [False, True])

  def test_untied(self):
    model = models.RobertaForMaskedLM(self.config, tie=False)
    params = golden_weights.params()
    table = params['encoder']['token_embedding']['embedding']
    params['lm_head']['decoder'] = table
    tied = models.RobertaForMaskedLM(self.config)
    chex.assert_trees_all_equal(
      model.apply({'params': params}, self.ids),
      tied.apply({'params': golden_weights.params()}, self.ids),
    )
    params['lm_head']['decoder'] = 2 * table
    self.assertGreater(
      np.abs(
        model.apply({'params': params}, self.ids)
        - tied.apply({'params': golden_weights.params()}, self.ids)
      ).max(),
      0.1,
    )
    with self.assertRaisesRegex(ValueError, 'needs the token table'):
      models.heads.MaskedLMHead(self.config).init(
        jax.random.key(0), jnp.ones((1, 32))
      )

  def test_next_sentence(self):
    config = self.config.replace(type_vocab_size=2)
    model = models.RobertaForMaskedLM(config, nsp=True)
    segments = np.arange(16)[None] >= 8
    segments = np.tile(segments, (5, 1)).astype(np.int32)
    variables = model.init(jax.random.key(0), self.ids)
    logits, follows = model.apply(variables, self.ids, token_type_ids=segments)
    self.assertEqual(logits.shape, (5, 16, 97))
    self.assertEqual(follows.shape, (5, 2))
    _, other = model.apply(variables, self.ids, token_type_ids=1 - segments)
    self.assertGreater(np.abs(other - follows).max(), 1e-6)

  def test_answerable(self):
    model = models.RobertaForQuestionAnswering(self.config, answerable=True)
    variables = model.init(jax.random.key(0), self.ids)
    start, end, there = model.apply(variables, self.ids)
    self.assertEqual(
      (start.shape, end.shape, there.shape), ((5, 16),) * 2 + ((5,),)
    )
    self.assertIn('dense', variables['params']['answerable'])

  @parameterized.parameters('classifier', 'pooler')
  def test_head_dropout(self, head):
    model = models.RobertaForSequenceClassification(
      self.config, num_labels=2, head_dropout_rate=0.5, head=head
    )
    variables = model.init(jax.random.key(0), self.ids)
    still = model.apply(variables, self.ids)
    outs = [
      model.apply(
        variables,
        self.ids,
        deterministic=False,
        rngs={'dropout': jax.random.key(seed)},
      )
      for seed in (0, 0, 1)
    ]
    chex.assert_trees_all_equal(outs[0], outs[1])
    self.assertGreater(np.abs(outs[0] - outs[2]).max(), 1e-4)
    self.assertGreater(np.abs(outs[0] - still).max(), 1e-4)

  def test_impossible_heads(self):
    for make in (
      models.RobertaForSequenceClassification,
      models.RobertaForMultipleChoice,
    ):
      with self.assertRaisesRegex(ValueError, "head is 'linear'"):
        make(self.config, head='linear').init(jax.random.key(0), self.ids)
    with self.assertRaisesRegex(ValueError, 'num_labels is 0'):
      models.RobertaForSequenceClassification(self.config, num_labels=0).init(
        jax.random.key(0), self.ids
      )
    choice = models.RobertaForMultipleChoice(self.config)
    with self.assertRaisesRegex(ValueError, 'choices, length'):
      choice.init(jax.random.key(0), self.ids)
    with self.assertRaisesRegex(ValueError, 'attention_mask has shape'):
      choice.init(
        jax.random.key(0), self.ids[None], attention_mask=self.ids != 1
      )

  def test_bfloat16(self):
    # 8 bits of mantissa: a few per cent, but the loss is made in float32.
    config = self.config.replace(dtype=jnp.bfloat16)
    model = models.RobertaForMaskedLM(config)
    logits = model.apply({'params': golden_weights.params()}, self.ids)
    self.assertEqual(logits.dtype, jnp.float32)
    golden = golden_weights.numbers()['mlm_logits']
    seen = self.ids != 1
    error = np.abs(logits[seen] - golden[seen]).mean() / np.abs(golden).mean()
    self.assertLess(error, 0.03)


if __name__ == '__main__':
  absltest.main()
