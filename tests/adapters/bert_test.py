"""BERT through the programs: its vocabulary, its segments, its pooler."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers import adapters, roberta
from jaxpapers.adapters import trees, wordpiece
from jaxpapers.nn import EncoderConfig
from jaxpapers.roberta import squad
from tests.adapters import jobs_test, scripts_test
from tests.helpers import scripts

_WORDS = (
  '[PAD] [UNK] [CLS] [SEP] the a day walk home sun light warm beach gold rain'
  ' cloud cold grey storm'
).split()
bert = functools.partial(jobs_test.script, '_adapters_bert')


@functools.cache
def folder():
  """A random BERT with a pooler; its words are whole tokens."""
  root = scripts_test.folder() / 'bert'
  config = EncoderConfig(
    len(_WORDS),
    32,
    2,
    2,
    64,
    max_len=24,
    pad_id=0,
    position_offset=0,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    gelu='tanh',
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    initializer_range=0.2,
  )
  ids = jnp.zeros((1, 4), jnp.int32)
  init = roberta.RobertaForMaskedLM(config).init
  params = dict(init(jax.random.key(0), ids)['params'])
  kernel = 0.2 * np.random.default_rng(0).normal(size=(32, 32))
  params['pooler'] = {
    'dense': {
      'kernel': jnp.asarray(kernel, jnp.float32),
      'bias': jnp.zeros(32),
    }
  }
  roberta.save_pretrained(root, config, params)
  (root / 'vocab.txt').write_text('\n'.join(_WORDS) + '\n')
  return root, params


class PartsTest(absltest.TestCase):
  def test_segments(self):
    ids = jnp.array([[2, 7, 3, 8, 9, 3, 0, 0], [2, 7, 3, 0, 0, 0, 0, 0]])
    self.assertEqual(
      bert().segments(ids, 3, 0).tolist(),
      [[0, 0, 0, 1, 1, 1, 0, 0], [0] * 8],
    )

  def test_windows(self):
    words = wordpiece.WordPiece({w: i for i, w in enumerate(_WORDS)})
    questions = [
      squad.SquadQuestion('q', 'the day', 'a warm beach', (('beach', 7),))
    ]
    features = bert().with_one_separator(
      squad.squad_features(questions, words, max_len=20, max_question_len=8)
    )
    wanted = '[CLS] the day [SEP] a warm beach [SEP]'
    self.assertEqual([_WORDS[i] for i in features.ids[0]], wanted.split())
    self.assertEqual(features.fields['start'].tolist(), [6])
    self.assertEqual(features.fields['end'].tolist(), [6])
    # Logits that point at the answer give its text.
    logits = np.zeros((1, 8), np.float32)
    logits[0, 6] = 9
    answers = squad.squad_answers(questions, features, logits, logits)
    self.assertEqual(answers.best, {'q': 'beach'})


class ProgramsTest(absltest.TestCase):
  @pytest.mark.slow
  def test_finetune_as_the_authors(self):
    root, params = folder()
    workdir = scripts_test.folder() / 'bert_run'
    flags = [
      flag for flag in scripts_test.common() if 'config.model' not in flag
    ]
    flags = (*flags, f'--config.model={root}', '--config.task=weather')
    scripts_test.run(
      self,
      'adapters_finetune',
      *flags,
      '--config.adapter.preset=houlsby2019_code',
      '--config.head=linear',
      '--config.epochs=20',
      '--config.learning_rate=5e-3',
      '--config.seeds=(0, 1)',
      f'--workdir={workdir}',
    )
    rows = json.loads((workdir / 'results.json').read_text())
    for row in rows:
      self.assertGreater(row['test_accuracy'], 0.65)
    task = adapters.load_task(workdir / 'task_0.safetensors')
    # The pooler stays what it was, and is not the task's.
    self.assertSameElements(task['classifier'], ['output'])
    model = bert().BertForSequenceClassification(
      roberta.load_pretrained(root, heads=())[0],
      adapter=adapters.AdapterConfig(16),
      num_labels=2,
      sep_id=3,
    )
    base = {
      'encoder': params['encoder'],
      'classifier': {'dense': params['pooler']['dense']},
    }
    question = {'task': 'w', 'text': 'the warm day', 'text_b': 'sun'}
    ids = jnp.asarray(
      [[_WORDS.index(w) for w in '[CLS] the warm day [SEP] sun [SEP]'.split()]]
    )
    whole = adapters.init_adapters(jax.random.key(0), model, base, ids)
    logits = model.apply({'params': adapters.insert_task(whole, task)}, ids)[0]
    (workdir / 'in.jsonl').write_text(json.dumps(question) + '\n')
    scripts_test.run(
      self,
      'adapters_serve_bank',
      f'--model={root}',
      f'--tasks=w={workdir}/task_0.safetensors',
      f'--input={workdir}/in.jsonl',
      f'--output={workdir}/out.jsonl',
      f'--compilation_cache={scripts_test.folder()}/cache',
    )
    answer = json.loads((workdir / 'out.jsonl').read_text())
    for c, p in zip(('rainy', 'sunny'), jax.nn.softmax(logits), strict=True):
      self.assertAlmostEqual(answer['probabilities'][c], float(p), places=4)
    self.assertNotIn(
      'classifier/dense/kernel', trees.flatten(task), 'the pooler was trained'
    )

  @pytest.mark.nightly
  def test_a_linear_head_needs_a_pooler(self):
    done = scripts.run(
      'adapters_finetune',
      *scripts_test.common(),
      '--config.task=weather',
      '--config.head=linear',
      f'--workdir={scripts_test.folder()}/refused',
    )
    scripts.assert_usage_error(self, done, '--config.head=mlp')


if __name__ == '__main__':
  absltest.main()
