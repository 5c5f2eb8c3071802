"""Weights under the names of Hugging Face and fairseq, and what is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import weights
from jaxpapers.nn import stack_layers
from jaxpapers.roberta import config as configs
from jaxpapers.roberta import model as models
from jaxpapers.roberta import pretrained
from tests.roberta import golden_weights

EXTRAS = {'cls_extra': 'classifier', 'mc_extra': 'choice', 'qa_extra': 'qa'}
# Names of Hugging Face -> fairseq's of 2019, before 0.9.
_FAIRSEQ = (
  (r'^roberta\.embeddings\.word_', 'decoder.sentence_encoder.embed_tokens|'),
  (
    r'^roberta\.embeddings\.position_',
    'decoder.sentence_encoder.embed_positions|',
  ),
  (r'\|embeddings', ''),
  (r'^roberta\.embeddings\.', 'decoder.sentence_encoder.'),
  (r'^roberta\.encoder\.layer', 'decoder.sentence_encoder.layers'),
  (r'encoder\.LayerNorm', 'encoder.emb_layer_norm'),
  (r'attention\.output\.LayerNorm', 'self_attn_layer_norm'),
  (r'attention\.output\.dense', 'self_attn.out_proj'),
  (r'intermediate\.dense', 'fc1'),
  (r'output\.dense', 'fc2'),
  (r'output\.LayerNorm', 'final_layer_norm'),
  (r'^lm_head', 'decoder.lm_head'),
)
_BERT = (
  (r'^roberta\.', 'bert.'),
  (r'lm_head\.dense', 'cls.predictions.transform.dense'),
  (r'lm_head\.layer_norm', 'cls.predictions.transform.LayerNorm'),
  (r'lm_head\.bias', 'cls.predictions.bias'),
  (r'LayerNorm\.weight', 'LayerNorm.gamma'),
  (r'LayerNorm\.bias', 'LayerNorm.beta'),
)


@functools.cache
def hf_state(*extras, head='lm_head'):
  """The golden model under its own names."""
  listed = [
    (name, shape)
    for name, shape in golden_weights.spec()['parameters_mlm']
    if name.startswith('roberta') or (head and name.startswith(head))
  ]
  for extra in extras:
    listed += golden_weights.spec()[extra]
  return {
    name: golden_weights.torch_value(name, shape).astype(np.float32)
    for name, shape in listed
  }


def renamed(state, pairs):
  """A state dict under other names."""
  out = {}
  for name, value in state.items():
    for pattern, replacement in pairs:
      name = re.sub(pattern, replacement, name)
    out[name] = value
  return out


def fairseq_state(fused):
  """The golden model as fairseq wrote it, without its constant segment row."""
  state = dict(hf_state())
  del state['roberta.embeddings.token_type_embeddings.weight']
  state = renamed(state, _FAIRSEQ)
  pattern = re.compile(r'(.*)attention\.self\.(query|key|value)\.(\w+)$')
  for name in list(state):
    match = pattern.fullmatch(name)
    if match:
      layer, which, leaf = match.groups()
      state[f'{layer}self_attn.{which[0]}_proj.{leaf}'] = state.pop(name)
  if fused:
    for name in [n for n in state if '.q_proj.' in n]:
      parts = [state.pop(name.replace('q_proj', f'{x}_proj')) for x in 'qkv']
      fused_name = name.replace('q_proj.', 'in_proj_')
      state[fused_name] = np.concatenate(parts)
  state['decoder.lm_head.weight'] = state[
    'decoder.sentence_encoder.embed_tokens.weight'
  ]
  state['decoder.sentence_encoder.version'] = np.ones(1)
  state['decoder.sentence_encoder.embed_positions._float_tensor'] = np.ones(1)
  return state


def assert_same(ours, theirs):
  """Two trees are equal, bit by bit."""
  flat = weights.flatten(theirs)
  found = weights.flatten(ours)
  absltest.TestCase().assertCountEqual(found, flat)
  for path, leaf in flat.items():
    np.testing.assert_array_equal(found[path], leaf, path, strict=True)


class HuggingFaceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.config = golden_weights.config()

  def test_logits(self):
    golden = golden_weights.numbers()
    ids = golden['mlm_input_ids']
    params = pretrained.params_from_hf(hf_state(), self.config)
    model = models.RobertaForMaskedLM(self.config)
    logits = jax.jit(model.apply)({'params': params}, ids)
    # The tolerance of an independent implementation (the golden's README).
    np.testing.assert_allclose(
      logits[ids != 1], golden['mlm_logits'][ids != 1], rtol=0, atol=2e-5
    )

  @parameterized.parameters(
    {},
    {'scan_layers': True},
    {'vocab_multiple': 64},
    {'scan_layers': True, 'vocab_multiple': 16},
  )
  def test_there_and_back(self, **changes):
    config = golden_weights.config(**changes)
    params = pretrained.params_from_hf(hf_state(), config)
    like = pretrained.expected_params(config)
    self.assertEqual(
      jax.tree.map(lambda x: (x.shape, x.dtype), params),
      jax.tree.map(lambda x: (x.shape, x.dtype), like),
    )
    if config.vocab_multiple == 1:
      ours = golden_weights.params()
      assert_same(params, stack_layers(ours) if config.scan_layers else ours)
    else:
      table = params['encoder']['token_embedding']['embedding']
      self.assertEqual(table.shape, (config.vocab_rows, 32))
      np.testing.assert_array_equal(table[97:], 0)
    state = pretrained.params_to_hf(params, config)
    self.assertCountEqual(state, hf_state())
    for name, value in hf_state().items():
      np.testing.assert_array_equal(state[name], value, name, strict=True)

  @parameterized.parameters(*EXTRAS)
  def test_heads(self, extra):
    state = hf_state(extra, head='')
    params = pretrained.params_from_hf(state, self.config)
    assert_same(params, golden_weights.params(extra, head=''))
    again = pretrained.params_to_hf(params, self.config)
    self.assertCountEqual(again, state)
    for name, value in state.items():
      np.testing.assert_array_equal(again[name], value, name)
    # The encoder alone, for a new head; heads that it has not are no error.
    chosen = pretrained.params_from_hf(state, self.config, heads=('lm_head',))
    self.assertEqual(list(chosen), ['encoder'])

  def test_heads_of_ours(self):
    encoder = golden_weights.params(head='')
    rng = np.random.default_rng(0)

    def dense(outputs):
      return {
        'kernel': rng.standard_normal((32, outputs), np.float32),
        'bias': rng.standard_normal(outputs, np.float32),
      }

    for heads in (
      {'answerable': {'dense': dense(32), 'output': dense(1)}, 'qa': dense(2)},
      {'pooler': {'dense': dense(32)}, 'output': dense(3)},
    ):
      params = {**encoder, **heads}
      state = pretrained.params_to_hf(params, self.config)
      assert_same(pretrained.params_from_hf(state, self.config), params)
    regression = {**encoder, 'pooler': {'dense': dense(32)}, 'output': dense(1)}
    state = pretrained.params_to_hf(regression, self.config)
    again = pretrained.params_from_hf(state, self.config, choice=False)
    assert_same(again, regression)
    follows = {**encoder, 'nsp': {'dense': dense(32), 'output': dense(2)}}
    state = pretrained.params_to_hf(follows, self.config)
    again = pretrained.params_from_hf(state, self.config)
    # The pooler was trained with this head; fine-tuning may start from it.
    assert_same(again.pop('pooler'), {'dense': follows['nsp']['dense']})
    assert_same(again, follows)

  def test_bert(self):
    config = self.config.replace(position_offset=0, max_len=26)
    state = renamed(hf_state(), _BERT)
    words = state['bert.embeddings.word_embeddings.weight']
    state['cls.predictions.decoder.weight'] = words
    state['cls.predictions.decoder.bias'] = state['cls.predictions.bias']
    state['bert.embeddings.position_ids'] = np.arange(26)[None]
    params = pretrained.params_from_hf(state, config)
    assert_same(params, golden_weights.params())
    again = pretrained.params_to_hf(params, config)
    self.assertCountEqual(again, renamed(hf_state(), _BERT[:-2]))

  def test_untied(self):
    state = dict(hf_state())
    words = state['roberta.embeddings.word_embeddings.weight']
    state['lm_head.decoder.weight'] = words.copy()
    state['lm_head.decoder.bias'] = state['lm_head.bias']
    assert_same(
      pretrained.params_from_hf(state, self.config), golden_weights.params()
    )
    kept = pretrained.params_from_hf(state, self.config, tie=False)
    np.testing.assert_array_equal(kept['lm_head']['decoder'], words)
    state['lm_head.decoder.weight'] = words + 1
    params = pretrained.params_from_hf(state, self.config)
    np.testing.assert_array_equal(params['lm_head']['decoder'], words + 1)
    again = pretrained.params_to_hf(params, self.config)
    self.assertCountEqual(again, state)
    # An untied model there adds the decoder's bias, not the other.
    state['lm_head.decoder.bias'] = state['lm_head.bias'] + 1
    params = pretrained.params_from_hf(state, self.config)
    np.testing.assert_array_equal(
      params['lm_head']['bias'], state['lm_head.decoder.bias']
    )
    # A tied one has one bias only: adding both was an error of old versions.
    state['lm_head.decoder.weight'] = words
    with self.assertRaisesRegex(ValueError, 'both lm_head/bias, but differ'):
      pretrained.params_from_hf(state, self.config)

  def test_segments_of_fairseq(self):
    state = fairseq_state(False)
    table = np.ones((2, 32), np.float32)
    prefix = next(n for n in state if n.endswith('embed_tokens.weight'))
    prefix = prefix.removesuffix('embed_tokens.weight')
    state[f'{prefix}segment_embeddings.weight'] = table
    with self.assertRaisesRegex(
      weights.WeightMismatchError, 'Set type_vocab_size=2 in the config'
    ):
      pretrained.params_from_fairseq(
        state, self.config.replace(type_vocab_size=0)
      )

  def test_without_segments(self):
    config = self.config.replace(type_vocab_size=0)
    with self.assertRaisesRegex(
      weights.WeightMismatchError, 'Set type_vocab_size=1 in the config'
    ):
      pretrained.params_from_hf(hf_state(), config)
    params = golden_weights.params()
    del params['encoder']['token_type_embedding']
    state = pretrained.params_to_hf(params, config)
    self.assertCountEqual(state, hf_state())
    zeros = state['roberta.embeddings.token_type_embeddings.weight']
    np.testing.assert_array_equal(zeros, np.zeros((1, 32)), strict=False)
    assert_same(pretrained.params_from_hf(state, config), params)

  def test_what_does_not_fit(self):
    state = dict(hf_state())
    with self.assertRaises(weights.WeightMismatchError) as caught:
      pretrained.params_from_hf(state, self.config.replace(mlp_dim=60))
    self.assertLen(caught.exception.misshaped, 9)
    self.assertIn(
      'encoder/layers_2/ffn/intermediate/kernel: roberta.encoder.layer.2'
      '.intermediate.dense.weight is (64, 32), expected (60, 32) for (32, 60)',
      str(caught.exception),
    )
    for changes, path in (
      ({'vocab_size': 96}, r'token_embedding/embedding: .*\(97, 32\), exp.*96'),
      ({'max_len': 25}, r'position_embedding/embedding: .*\(26, 32\), exp.*27'),
      ({'num_layers': 2}, r'layer\.2\.attention\.self\.query\.weight'),
      ({'num_layers': 4}, r'encoder/layers_3/attention/query/kernel'),
      ({'norm': 'pre'}, r'encoder/final_norm/scale'),
    ):
      for scanned in (False, True):
        config = self.config.replace(scan_layers=scanned, **changes)
        pattern = path if not scanned else path.replace('layers_3', 'layers')
        with self.assertRaisesRegex(weights.WeightMismatchError, pattern):
          pretrained.params_from_hf(state, config)
    state['roberta.x'] = np.zeros(1, np.float32)
    del state['lm_head.dense.bias']
    with self.assertRaises(weights.WeightMismatchError) as caught:
      pretrained.params_from_hf(state, self.config)
    self.assertEqual(caught.exception.missing, ['lm_head/dense/bias'])
    self.assertEqual(caught.exception.unexpected, ['roberta.x'])
    part = pretrained.params_from_hf(state, self.config, strict=False)
    self.assertNotIn('bias', part['lm_head']['dense'])

  def test_export_of_what_has_no_name_there(self):
    params = golden_weights.params()
    params['encoder']['layers_0']['ffn_adapter'] = {'w': np.zeros(1)}
    with self.assertRaisesRegex(
      weights.WeightMismatchError, 'layers_0/ffn_adapter/w'
    ):
      pretrained.params_to_hf(params, self.config)

  def test_type_of_the_parameters(self):
    config = self.config.replace(param_dtype=jnp.bfloat16)
    params = pretrained.params_from_hf(hf_state(), config)
    for leaf in jax.tree.leaves(params):
      self.assertEqual(leaf.dtype, jnp.bfloat16)
    state = pretrained.params_to_hf(params, config)
    again = pretrained.params_from_hf(state, config)
    assert_same(again, params)

  @parameterized.parameters(
    (configs.roberta_base, 124_697_433),
    (configs.roberta_large, 355_411_033 + 1_024),
  )
  def test_number_of_parameters(self, make, expected):
    tree = pretrained.expected_params(make(type_vocab_size=1))
    sizes = [leaf.size for leaf in jax.tree.leaves(tree)]
    self.assertEqual(sum(sizes), expected)


class FairseqTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.config = golden_weights.config(type_vocab_size=0)
    self.params = golden_weights.params()
    del self.params['encoder']['token_type_embedding']

  @parameterized.product(fused=(False, True), scanned=(False, True))
  def test_names_of_2019(self, fused, scanned):
    config = self.config.replace(scan_layers=scanned)
    params = pretrained.params_from_fairseq(fairseq_state(fused), config)
    assert_same(params, stack_layers(self.params) if scanned else self.params)

  def test_names_of_today(self):
    state = pretrained.params_to_fairseq(self.params, self.config)
    self.assertIn('encoder.sentence_encoder.layernorm_embedding.weight', state)
    self.assertIn(
      'encoder.sentence_encoder.layers.2.self_attn.k_proj.bias', state
    )
    np.testing.assert_array_equal(
      state['encoder.lm_head.weight'],
      state['encoder.sentence_encoder.embed_tokens.weight'],
    )
    assert_same(pretrained.params_from_fairseq(state, self.config), self.params)
    old = renamed(fairseq_state(False), ((r'^decoder', 'encoder'),))
    old = renamed(old, ((r'emb_layer_norm', 'layernorm_embedding'),))
    extra = {name for name in old if 'version' in name or '_float' in name}
    self.assertCountEqual(state, set(old) - extra)

  def test_pre_norm(self):
    config = self.config.replace(norm='pre')
    params = self.params
    norm = params['encoder'].pop('embedding_norm')
    params['encoder']['final_norm'] = norm
    state = pretrained.params_to_fairseq(params, config)
    self.assertIn('encoder.sentence_encoder.layer_norm.weight', state)
    assert_same(pretrained.params_from_fairseq(state, config), params)
    state = pretrained.params_to_hf(params, config)
    assert_same(pretrained.params_from_hf(state, config), params)

  def test_classification_heads(self):
    head = golden_weights.params('cls_extra', head='')['classifier']
    params = {**self.params, 'classifier': head}
    state = pretrained.params_to_fairseq(params, self.config, head_name='rte')
    self.assertIn('classification_heads.rte.out_proj.weight', state)
    assert_same(pretrained.params_from_fairseq(state, self.config), params)
    for name, value in list(state.items()):
      if 'rte' in name:
        state[name.replace('rte', 'mnli_2')] = value + 1
    with self.assertRaisesRegex(ValueError, 'head_name is None.*mnli_2, rte'):
      pretrained.params_from_fairseq(state, self.config)
    chosen = pretrained.params_from_fairseq(
      state, self.config, head_name='mnli_2'
    )
    np.testing.assert_array_equal(
      chosen['classifier']['output']['kernel'], head['output']['kernel'] + 1
    )
    without = pretrained.params_from_fairseq(
      state, self.config, heads=('lm_head',)
    )
    assert_same(without, self.params)

  def test_what_does_not_fit(self):
    state = fairseq_state(True)
    config = self.config.replace(num_layers=4, mlp_dim=63)
    with self.assertRaises(weights.WeightMismatchError) as caught:
      pretrained.params_from_fairseq(state, config)
    self.assertIn(
      'encoder/layers_3/attention/query/bias', caught.exception.missing
    )
    self.assertLen(caught.exception.misshaped, 9)
    name = 'decoder.sentence_encoder.layers.0.self_attn.in_proj_weight'
    state[name] = state[name][:-3]
    with self.assertRaisesRegex(
      weights.WeightMismatchError, r'in_proj_weight is \(93, 32\), .*\(96, 32\)'
    ):
      pretrained.params_from_fairseq(state, self.config)


if __name__ == '__main__':
  absltest.main()
