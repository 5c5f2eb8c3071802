"""Folders of pre-trained models, read and written."""

import json
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import weights
from jaxpapers.data import CorruptFileError
from jaxpapers.nn import stack_layers
from jaxpapers.roberta import model as models
from jaxpapers.roberta import pretrained
from tests.helpers import devices, goldens
from tests.roberta import golden_weights


def assert_same(ours, theirs):
  """Two trees are equal, bit by bit."""
  found, flat = weights.flatten(ours), weights.flatten(theirs)
  absltest.TestCase().assertCountEqual(found, flat)
  for path, leaf in flat.items():
    np.testing.assert_array_equal(found[path], leaf, path, strict=True)


class FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder) / 'deep' / 'model'
    self.config = golden_weights.config()
    self.params = golden_weights.params()

  def save(self, **options):
    pretrained.save_pretrained(self.folder, self.config, self.params, **options)

  def files(self):
    return sorted(path.name for path in self.folder.iterdir())

  def test_there_and_back(self):
    self.save()
    self.assertEqual(self.files(), ['config.json', 'model.safetensors'])
    config, params = pretrained.load_pretrained(self.folder)
    self.assertEqual(config, self.config)
    assert_same(params, self.params)
    for leaf in jax.tree.leaves(params):
      self.assertIsInstance(leaf, jax.Array)

  def test_several_files_beside_others(self):
    self.folder.mkdir(parents=True)
    (self.folder / 'vocab.json').write_text('{}')
    self.save(max_shard_bytes=20_000)
    self.assertIn('vocab.json', self.files())
    self.assertIn('model-00003-of-00008.safetensors', self.files())
    assert_same(pretrained.load_pretrained(self.folder)[1], self.params)
    self.save()
    self.assertLen(self.files(), 3)
    assert_same(pretrained.load_pretrained(self.folder)[1], self.params)

  def test_scanned_and_padded(self):
    self.config = self.config.replace(scan_layers=True, vocab_multiple=64)
    table = self.params['encoder']['token_embedding']['embedding']
    bias = self.params['lm_head']['bias']
    padded = stack_layers(self.params)
    padded['encoder']['token_embedding']['embedding'] = np.pad(
      table, [(0, 31), (0, 0)], constant_values=9
    )
    padded['lm_head']['bias'] = np.pad(bias, (0, 31), constant_values=9)
    plain, self.params = self.params, padded
    self.save()
    # How it was run is not what it is.
    config, params = pretrained.load_pretrained(self.folder)
    self.assertEqual(config, golden_weights.config())
    assert_same(params, plain)
    config, params = pretrained.load_pretrained(
      self.folder, scan_layers=True, vocab_multiple=64, dropout_rate=0.3
    )
    self.assertEqual(config, self.config.replace(dropout_rate=0.3))
    table = params['encoder']['token_embedding']['embedding']
    self.assertEqual(table.shape, (128, 32))
    np.testing.assert_array_equal(table[97:], 0)
    query = params['encoder']['layers']['attention']['query']['kernel']
    self.assertEqual(query.shape, (3, 32, 4, 8))

  def test_half_precision(self):
    self.config = self.config.replace(param_dtype=jnp.bfloat16)
    self.params = golden_weights.params(dtype=jnp.bfloat16)
    self.save()
    content = json.loads((self.folder / 'config.json').read_text())
    self.assertEqual(content['torch_dtype'], 'bfloat16')
    _, params = pretrained.load_pretrained(
      self.folder, param_dtype=jnp.bfloat16
    )
    assert_same(params, self.params)
    # Parameters are float32 unless asked for.
    _, params = pretrained.load_pretrained(self.folder)
    assert_same(
      params, jax.tree.map(lambda x: x.astype(np.float32), self.params)
    )

  @parameterized.parameters(
    ('cls_extra', 'classifier', 'RobertaForSequenceClassification'),
    ('mc_extra', 'choice', 'RobertaForMultipleChoice'),
    ('qa_extra', 'qa', 'RobertaForQuestionAnswering'),
  )
  def test_fine_tuned(self, extra, head, architecture):
    self.params = golden_weights.params(extra, head='')
    self.save()
    content = json.loads((self.folder / 'config.json').read_text())
    self.assertEqual(content['architectures'], [architecture])
    if head == 'classifier':
      self.assertLen(content['id2label'], 3)
    self.assertEqual(
      list(pretrained.load_pretrained(self.folder)[1]), ['encoder']
    )
    _, params = pretrained.load_pretrained(self.folder, heads=None)
    assert_same(params, self.params)
    _, params = pretrained.load_pretrained(self.folder, heads=(head,))
    self.assertIn(head, params)

  def test_untied_however_equal(self):
    table = self.params['encoder']['token_embedding']['embedding']
    self.params['lm_head']['decoder'] = table.copy()
    self.save()
    assert_same(pretrained.load_pretrained(self.folder)[1], self.params)

  def test_a_new_head_on_a_pretrained_encoder(self):
    self.save()
    config, loaded = pretrained.load_pretrained(self.folder)
    model = models.RobertaForSequenceClassification(config, num_labels=3)
    ids = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids)['params']
    fresh = jax.tree.map(lambda x: jnp.full(x.shape, 7, x.dtype), shapes)
    params = weights.merge(fresh, loaded, allow_unexpected=('^lm_head/',))
    assert_same(params['encoder'], self.params['encoder'])
    assert_same(params['classifier'], fresh['classifier'])

  @parameterized.parameters(
    {'norm': 'pre'},
    {'position_offset': 3, 'max_len': 23},
    {'causal': True, 'activation_dropout_rate': 0.2},
    {'type_vocab_size': 0, 'initializer': 'truncated_normal'},
    {'position_offset': 0, 'max_len': 26, 'gelu': 'tanh', 'pad_id': 0},
  )
  def test_other_encoders(self, **changes):
    self.config = self.config.replace(**changes)
    encoder = self.params['encoder']
    if self.config.norm == 'pre':
      encoder['final_norm'] = encoder.pop('embedding_norm')
    if not self.config.type_vocab_size:
      del encoder['token_type_embedding']
    self.save()
    config, params = pretrained.load_pretrained(self.folder)
    self.assertEqual(config, self.config)
    assert_same(params, self.params)

  def test_on_a_mesh(self):
    self.save()
    np.savez(
      self.folder / 'expected.npz',
      **{
        k.replace('/', '|'): v for k, v in weights.flatten(self.params).items()
      },
    )
    # Vocabulary, heads and the rest are divided as soon as they are read.
    out = devices.run(
      f"""
      import numpy as np
      from jaxpapers import training, weights
      from jaxpapers.roberta import pretrained, sharding
      mesh = training.make_mesh('fsdp:2,model:4')
      rules = sharding.encoder_rules('fsdp+tensor')
      _, params = pretrained.load_pretrained(
        {str(self.folder)!r}, mesh=mesh, rules=rules, vocab_multiple=4
      )
      flat = weights.flatten(params)
      expected = np.load({str(self.folder / 'expected.npz')!r})
      assert len(flat) == len(expected.files)
      for path, leaf in flat.items():
        assert len(leaf.sharding.device_set) == 8, path
        value = expected[path.replace('/', '|')]
        np.testing.assert_array_equal(np.asarray(leaf)[:len(value)], value)
      for path in ('token_embedding/embedding', 'layers_1/ffn/output/kernel'):
        leaf = flat['encoder/' + path]
        print(path, leaf.addressable_shards[0].data.size * 8 == leaf.size)
      """
    )
    self.assertEqual(out.count('True'), 2, out)

  def test_refused(self):
    with self.assertRaisesRegex(FileNotFoundError, 'There is no .*model'):
      pretrained.load_pretrained(self.folder)
    self.folder.mkdir(parents=True)
    with self.assertRaisesRegex(
      FileNotFoundError, 'neither config.json .* nor one of model.pt'
    ):
      pretrained.load_pretrained(self.folder)
    self.save()
    path = self.folder / 'config.json'
    content = json.loads(path.read_text())
    path.write_text('{')
    with self.assertRaisesRegex(CorruptFileError, 'config.json is no JSON'):
      pretrained.load_pretrained(self.folder)
    path.write_text('[]')
    with self.assertRaisesRegex(CorruptFileError, 'no JSON object'):
      pretrained.load_pretrained(self.folder)
    path.write_text(json.dumps({**content, 'vocab_size': 96}))
    with self.assertRaisesRegex(
      ValueError, r'vocab_size 96, but .*token_embedding/embedding\) has 97'
    ):
      pretrained.load_pretrained(self.folder)
    path.write_text(json.dumps({**content, 'intermediate_size': 60}))
    with self.assertRaisesRegex(
      weights.WeightMismatchError, 'model.safetensors does not fit.\n9 of an'
    ):
      pretrained.load_pretrained(self.folder)
    path.write_text(json.dumps(content))
    (self.folder / 'model.safetensors').unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'holds no weights'):
      pretrained.load_pretrained(self.folder)

  def test_nothing_is_written_that_cannot_be_written_whole(self):
    self.params['encoder']['layers_0']['ffn_adapter'] = {'w': np.zeros(1)}
    with self.assertRaises(weights.WeightMismatchError):
      self.save()
    self.assertFalse(self.folder.exists())


class FairseqFolderTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    # Written by torch, with the names and the container of 2019.
    self.file = goldens.path('weights', 'fairseq_legacy.pt')

  def test_model(self):
    shutil.copy(self.file, self.folder / 'model.pt')
    for path in (self.folder, self.file):
      config, params = pretrained.load_pretrained(path)
      self.assertEqual(
        config,
        models.EncoderConfig(
          11, 8, 2, 2, 12, max_len=8, attention_dropout_rate=0.2
        ),
      )
      self.assertCountEqual(params, ['encoder', 'lm_head'])
      state = weights.open_state_dict(path)
      fused = state[
        'decoder.sentence_encoder.layers.1.self_attn.in_proj_weight'
      ]
      x = goldens.normal('x', (3, 8))
      query, key, value = np.split(x @ fused.T, 3, axis=1)
      attention = params['encoder']['layers_1']['attention']
      for name, expected in (('query', query), ('key', key), ('value', value)):
        ours = np.einsum('bi,ihd->bhd', x, attention[name]['kernel'])
        # Of the same float64 products in another order.
        np.testing.assert_allclose(ours.reshape(3, 8), expected, rtol=1e-6)
      ids = jnp.array([[0, 5, 6, 2, 1]])
      model = models.RobertaForMaskedLM(config)
      logits = jax.jit(model.apply)({'params': params}, ids)
      self.assertTrue(jnp.isfinite(logits).all())

  def test_heads(self):
    with self.assertRaisesRegex(ValueError, 'head_name is None.*mnli, sts_b'):
      pretrained.load_pretrained(self.file, heads=None)
    _, params = pretrained.load_pretrained(
      self.file, heads=('classifier',), head_name='sts_b'
    )
    self.assertCountEqual(params, ['encoder', 'classifier'])
    state = weights.open_state_dict(self.file)
    np.testing.assert_array_equal(
      params['classifier']['output']['kernel'],
      state['classification_heads.sts_b.out_proj.weight'].T,
    )

  def test_to_hugging_face(self):
    config, params = pretrained.load_pretrained(self.file)
    pretrained.save_pretrained(self.folder, config, params)
    again, same = pretrained.load_pretrained(self.folder)
    self.assertEqual(again, config)
    assert_same(same, params)


if __name__ == '__main__':
  absltest.main()
