"""Configurations of Hugging Face and fairseq."""

import jax.numpy as jnp
from absl.testing import absltest, parameterized

from jaxpapers import weights
from jaxpapers.nn import EncoderConfig
from jaxpapers.roberta import config as configs
from jaxpapers.roberta import pretrained_config
from jaxpapers.roberta.pretrained_config import config_from_hf, config_to_hf

# Of the released models, as far as it says anything about the encoder.
ROBERTA_BASE = {
  'architectures': ['RobertaForMaskedLM'],
  'attention_probs_dropout_prob': 0.1,
  'bos_token_id': 0,
  'eos_token_id': 2,
  'hidden_act': 'gelu',
  'hidden_dropout_prob': 0.1,
  'hidden_size': 768,
  'initializer_range': 0.02,
  'intermediate_size': 3072,
  'layer_norm_eps': 1e-05,
  'max_position_embeddings': 514,
  'model_type': 'roberta',
  'num_attention_heads': 12,
  'num_hidden_layers': 12,
  'pad_token_id': 1,
  'type_vocab_size': 1,
  'vocab_size': 50265,
}


def opaque(state):
  """A namespace as a file of torch holds it."""
  found = weights.Opaque()
  found.state = state
  return found


class HuggingFaceTest(parameterized.TestCase):
  def test_roberta(self):
    config = config_from_hf(ROBERTA_BASE)
    self.assertEqual(config, configs.roberta_base(type_vocab_size=1))
    written = config_to_hf(config, {'lm_head': {}})
    self.assertEqual({**written, **ROBERTA_BASE}, written)
    self.assertTrue(written['tie_word_embeddings'])
    self.assertNotIn('jaxpapers', written)

  def test_bert(self):
    config = config_from_hf({'model_type': 'bert'})
    # Google's code has the tanh approximation, their port of it has not.
    expected = configs.bert_base(gelu='erf', initializer='normal')
    self.assertEqual(config, expected)
    self.assertEqual(config_to_hf(config)['model_type'], 'bert')
    self.assertEqual(config_to_hf(config)['architectures'], ['BertModel'])

  def test_what_is_not_said_is_what_it_is_there(self):
    # 1e-12 and 510 positions, unlike the released models.
    config = config_from_hf({'model_type': 'roberta'})
    self.assertEqual((config.layer_norm_eps, config.max_len), (1e-12, 510))

  def test_overrides(self):
    config = config_from_hf(ROBERTA_BASE, scan_layers=True, dropout_rate=0.0)
    self.assertTrue(config.scan_layers)
    self.assertEqual(config.dropout_rate, 0.0)

  @parameterized.parameters(
    ({'hidden_act': 'gelu_new'}, {'gelu': 'tanh'}),
    ({'hidden_act': 'gelu_pytorch_tanh'}, {'gelu': 'tanh'}),
    ({'is_decoder': True}, {'causal': True}),
    ({'pad_token_id': 3}, {'pad_id': 3, 'max_len': 510}),
    ({'model_type': 'xlm-roberta', 'vocab_size': 9}, {'vocab_size': 9}),
  )
  def test_choices(self, theirs, ours):
    expected = configs.roberta_base(type_vocab_size=1).replace(**ours)
    self.assertEqual(config_from_hf({**ROBERTA_BASE, **theirs}), expected)

  @parameterized.parameters(
    ({'model_type': 'gpt2'}, "model_type is 'gpt2'; expected one of roberta"),
    ({'model_type': None}, 'model_type is None'),
    ({'model_type': 'roberta-prelayernorm'}, 'normalises the embeddings'),
    ({'hidden_act': 'relu'}, "hidden_act is 'relu'; expected one of gelu"),
    ({'position_embedding_type': 'relative_key'}, "'relative_key'; expected"),
    ({'num_attention_heads': 7}, 'num_heads is 7; expected a divisor'),
  )
  def test_refused(self, changes, pattern):
    with self.assertRaisesRegex(ValueError, pattern):
      config_from_hf({**ROBERTA_BASE, **changes})

  @parameterized.parameters(
    # What is about training alone does not keep others from reading it.
    ({'activation_dropout_rate': 0.2}, 'roberta'),
    ({'initializer': 'truncated_normal'}, 'roberta'),
    ({'type_vocab_size': 0}, 'roberta'),
    ({'causal': True}, 'roberta'),
    ({'scan_layers': True, 'remat': True, 'vocab_multiple': 128}, 'roberta'),
    ({'norm': 'pre'}, 'jaxpapers-encoder'),
    ({'position_offset': 2}, 'jaxpapers-encoder'),
    ({'position_offset': 0}, 'bert'),
    ({'position_offset': 0, 'norm': 'pre'}, 'jaxpapers-encoder'),
  )
  def test_there_and_back(self, changes, kind):
    config = configs.roberta_base(type_vocab_size=1).replace(**changes)
    written = config_to_hf(config)
    self.assertEqual(written['model_type'], kind)
    run = {'scan_layers': False, 'remat': False, 'vocab_multiple': 1}
    self.assertEqual(config_from_hf(written), config.replace(**run))

  def test_heads_that_are_not_theirs(self):
    # They would come up with a random head, and no error.
    roberta = configs.roberta_base(type_vocab_size=1)
    head = {'output': {'bias': _Shaped()}, 'pooler': {}}
    for config, params in (
      (roberta, head),
      (configs.bert_base(initializer='normal'), {'classifier': head}),
    ):
      written = config_to_hf(config, params)
      self.assertEqual(written['model_type'], 'jaxpapers-encoder')
      self.assertEqual(config_from_hf(written), config)


class LabelsTest(parameterized.TestCase):
  PARAMS = {'classifier': {'output': {'bias': jnp.zeros(3)}}}

  def test_there_and_back(self):
    config = configs.roberta_base(type_vocab_size=1)
    names = ('no', 'maybe', 'yes')
    written = config_to_hf(
      config, self.PARAMS, labels=names, head_dropout_rate=0.0
    )
    self.assertEqual(written['id2label'], {'0': 'no', '1': 'maybe', '2': 'yes'})
    self.assertEqual(written['label2id'], {'no': 0, 'maybe': 1, 'yes': 2})
    self.assertEqual(written['classifier_dropout'], 0.0)
    self.assertEqual(pretrained_config.labels_from_hf(written), names)
    plain = config_to_hf(config, self.PARAMS)
    self.assertEqual(plain['id2label']['2'], 'LABEL_2')
    self.assertNotIn('classifier_dropout', plain)
    self.assertEqual(pretrained_config.labels_from_hf(plain), ())
    self.assertEqual(pretrained_config.labels_from_hf({}), ())

  def test_order(self):
    ours = ('contradiction', 'neutral', 'not_entailment')
    order = pretrained_config.label_order(
      ('Not-Entailment', 'CONTRADICTION', 'neutral'), ours
    )
    self.assertEqual(order, [1, 2, 0])
    for theirs in ((), ('a', 'b', 'c')):
      self.assertIsNone(pretrained_config.label_order(theirs, ours))

  def test_refused(self):
    for theirs in (('a', 'b'), ('a', 'b', 'x'), ('a', 'a', 'b')):
      with self.assertRaisesRegex(ValueError, 'expected a, b, c, in any order'):
        pretrained_config.label_order(theirs, ('a', 'b', 'c'))
    for damaged in ({'1': 'a'}, ['a'], {'x': 'a'}):
      with self.assertRaisesRegex(ValueError, 'id2label is'):
        pretrained_config.labels_from_hf({'id2label': damaged})
    config = configs.roberta_base(type_vocab_size=1)
    with self.assertRaisesRegex(ValueError, 'labels are a, b; expected 3'):
      config_to_hf(config, self.PARAMS, labels=('a', 'b'))


class _Shaped:
  shape = (3,)


class FairseqTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    before = 'encoder.sentence_encoder'
    self.shapes = {
      f'{before}.embed_tokens.weight': (50, 32),
      f'{before}.embed_positions.weight': (18, 32),
      f'{before}.layers.0.fc1.weight': (64, 32),
      f'{before}.layers.10.fc1.weight': (64, 32),
    }
    self.expected = EncoderConfig(
      50, 32, 11, 4, 64, max_len=16, activation_dropout_rate=0.3
    )
    self.settings = {
      'encoder_attention_heads': 4,
      'activation_dropout': 0.3,
      'max_positions': 12345,  # The weights are right.
    }

  def test_settings_of_all_times(self):
    node = {k: opaque({'_val': v}) for k, v in self.settings.items()}
    for settings in (
      self.settings,
      opaque(self.settings),
      opaque({'_content': node}),
    ):
      config = pretrained_config.config_from_fairseq(settings, self.shapes)
      self.assertEqual(config, self.expected)

  def test_choices(self):
    self.settings['activation_fn'] = 'gelu_accurate'
    self.shapes['encoder.sentence_encoder.layer_norm.weight'] = (32,)
    config = pretrained_config.config_from_fairseq(self.settings, self.shapes)
    self.assertEqual((config.gelu, config.norm), ('tanh', 'pre'))

  def test_refused(self):
    from_fairseq = pretrained_config.config_from_fairseq
    with self.assertRaisesRegex(
      ValueError, 'how many attention heads.*num_head'
    ):
      from_fairseq(None, self.shapes)
    config = from_fairseq(None, self.shapes, num_heads=8)
    self.assertEqual(config.num_heads, 8)
    with self.assertRaisesRegex(ValueError, "activation_fn is 'relu'"):
      from_fairseq({**self.settings, 'activation_fn': 'relu'}, self.shapes)
    del self.shapes['encoder.sentence_encoder.embed_tokens.weight']
    with self.assertRaisesRegex(ValueError, 'embed_tokens.*not a RoBERTa'):
      from_fairseq(self.settings, self.shapes)


if __name__ == '__main__':
  absltest.main()
