"""What the fine-tuning programs do with unusual models, labels and numbers."""

import functools
import importlib
import json
import math
import pathlib
import sys
import tempfile
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from etils import epath

from jaxpapers.roberta import (
  bpe,
  finetune_recipes,
  pretrained,
  pretraining_recipes,
  tasks,
)
from jaxpapers.roberta import model as models
from tests.helpers import devices, scripts
from tests.roberta import tiny


@functools.cache
def script(name):
  """A module of the programs that defines no flags by itself."""
  folder = str(scripts.ROOT / 'scripts')
  sys.path.insert(0, folder)
  try:
    return importlib.import_module(name)
  finally:
    sys.path.remove(folder)


class FolderTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def save(self, model, tokenizer=None, *, name='model', **fields):
    """Writes a model with random weights and its vocabulary."""
    ids = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), ids)['params']
    folder = self.folder / name
    pretrained.save_pretrained(folder, model.config, params, **fields)
    (tokenizer or tiny.tokenizer()).save(folder)
    return params

  def config(self, **fields):
    config = finetune_recipes.finetune_config()
    config.update({'model': str(self.folder / 'model'), **fields})
    return config

  def task(self, kind, make_model, **fields):
    recipe = tasks.Recipe(1e-3, 8, num_epochs=1)
    return script('_roberta_finetuning').Task(
      'a task', kind, recipe, make_model, 'accuracy', 100, {}, **fields
    )


class ModelTest(FolderTestCase):
  def test_an_untied_head_stays_untied(self):
    lib = script('_roberta_finetuning')
    params = self.save(models.RobertaForMaskedLM(tiny.config(), tie=False))
    task = self.task(
      'wsc', models.RobertaForMaskedLM, choices=3, heads=('lm_head',)
    )
    base = lib.load_base(self.config(), task)
    model = lib.make_model(task, base.encoder, base.params)
    self.assertFalse(model.tie)
    ids = jnp.arange(4, 12)[None]
    untied = models.RobertaForMaskedLM(tiny.config(), tie=False)
    expected = jax.jit(untied.apply)({'params': params}, ids)
    got = jax.jit(model.apply)({'params': base.params}, ids)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    # The step has a place for the table, too.
    job = lib.make_job(self.config(), task, base)
    state = jax.eval_shape(lambda: job.state(jax.random.key(0), None))
    self.assertEqual(
      state.params['lm_head']['decoder'].shape,
      base.params['lm_head']['decoder'].shape,
    )

  def test_pre_training_goes_on_untied(self):
    self.save(models.RobertaForMaskedLM(tiny.config(), tie=False))
    exchange = script('_roberta_exchange')
    config = pretraining_recipes.pretrain_config('tiny')
    config.block_size, config.vocab_size, config.mask_id = 32, 0, -1
    config.tokenizer = config.init_from = str(self.folder / 'model')
    encoder, initial = exchange.load_initial(config)
    problem = script('_roberta_pretraining').make_problem(
      config,
      bpe.ByteLevelBPE.from_directory(config.tokenizer),
      encoder=encoder,
      tie=exchange.is_tied(initial),
    )
    params, _ = jax.eval_shape(problem.job.init, jax.random.key(0))
    self.assertEqual(
      jax.tree.map(jnp.shape, params), jax.tree.map(jnp.shape, initial)
    )
    self.assertTrue(exchange.is_tied(None))

  def test_rows_for_tensor_parallelism(self):
    lib = script('_roberta_finetuning')
    self.save(models.RobertaForMaskedLM(tiny.config()))
    task = self.task(
      'wsc', models.RobertaForMaskedLM, choices=2, heads=('lm_head',)
    )
    for sharding, rows in (('fsdp', 320), ('fsdp+tensor', 384)):
      base = lib.load_base(self.config(sharding=sharding), task)
      self.assertEqual(base.encoder.vocab_size, 320)
      self.assertEqual(base.encoder.vocab_rows, rows)
      table = base.params['encoder']['token_embedding']['embedding']
      self.assertLen(table, rows)


class LabelsTest(FolderTestCase):
  OURS = ('contradiction', 'neutral', 'entailment')

  def load(self, **fields):
    lib = script('_roberta_finetuning')
    task = self.task('classification', self.classifier, labels=self.OURS)
    return lib.load_base(self.config(**fields), task).params['classifier']

  def classifier(self, encoder):
    return models.RobertaForSequenceClassification(encoder, num_labels=3)

  def test_a_head_in_the_order_of_somebody_else(self):
    theirs = ('ENTAILMENT', 'Neutral', 'CONTRADICTION')
    params = self.save(self.classifier(tiny.config()), labels=theirs)
    old = params['classifier']['output']
    for field in ('evaluate_only', 'keep_head'):
      got = self.load(**{field: True})['output']
      np.testing.assert_array_equal(got['kernel'], old['kernel'][:, ::-1])
      np.testing.assert_array_equal(got['bias'], old['bias'][::-1])

  def test_a_head_of_another_task(self):
    usage_error = script('_command_line').UsageError
    self.save(
      models.RobertaForSequenceClassification(tiny.config(), num_labels=2)
    )
    with self.assertRaisesRegex(usage_error, 'has 2 outputs; .* contradiction'):
      self.load(evaluate_only=True)
    self.save(
      self.classifier(tiny.config()), labels=('neutral', 'joy', 'anger')
    )
    with self.assertRaisesRegex(usage_error, 'joy, anger; expected contrad'):
      self.load(evaluate_only=True)

  def test_names_that_say_nothing(self):
    params = self.save(self.classifier(tiny.config()))
    np.testing.assert_array_equal(
      self.load(evaluate_only=True)['output']['kernel'],
      params['classifier']['output']['kernel'],
    )


class TensorParallelTest(FolderTestCase):
  @pytest.mark.slow
  def test_an_odd_vocabulary_on_a_mesh(self):
    text = self.folder / 'text.txt'
    text.write_text(
      'The cat saw the dog, and the bird saw the man with the mouse.\n' * 20
      + 'Nobody knows why it ran after them, good or bad, hot or cold.\n' * 20
    )
    tokenizer = bpe.ByteLevelBPE.train([text], 321)
    self.assertEqual(tokenizer.vocab_size, 321)
    config = tiny.config().replace(vocab_size=321)
    self.save(models.RobertaForMaskedLM(config), tokenizer)
    rows = [
      {
        'qID': str(i),
        'sentence': 'The cat saw the dog and _ ran.',
        'option1': 'the cat',
        'option2': 'the dog',
        'answer': '12'[i % 2],
      }
      for i in range(8)
    ]
    for name in ('train_xl', 'dev'):
      path = self.folder / f'{name}.jsonl'
      path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    found = {}
    for mesh, kind in (('data:2', 'data'), ('data:1,model:2', 'tensor')):
      workdir = self.folder / kind
      done = scripts.run(
        'roberta_finetune_choice',
        '--task=winogrande',
        f'--model={self.folder / "model"}',
        f'--data={self.folder}',
        f'--workdir={workdir}',
        f'--mesh={mesh}',
        f'--config.sharding={kind}',
        '--config.updates=2',
        '--config.batch_size=8',
        '--config.dropout=0',
        '--config.attention_dropout=0',
        '--config.lengths=(32,)',
        '--config.log_every=1',
        '--quiet',
        XLA_FLAGS=devices.environment(2)['XLA_FLAGS'],
      )
      self.assertEqual(done.returncode, 0, done.stderr)
      _, found[kind] = pretrained.load_pretrained(workdir / 'model')
    table = found['tensor']['encoder']['token_embedding']['embedding']
    self.assertLen(table, 321)
    # Two steps of Adam; sums are in another order.
    jax.tree.map(
      lambda got, expected: np.testing.assert_allclose(
        got, expected, atol=1e-4
      ),
      found['tensor'],
      found['data'],
    )


class ResultsTest(FolderTestCase):
  def test_nan_is_null(self):
    lib = script('_roberta_finetuning_results')
    path = self.folder / 'results.json'
    content = {'best': {'pearson': math.nan, 'f1': 0.5}, 'all': [1, math.nan]}
    lib.write_results(types.SimpleNamespace(first=True), path, content)

    def refuse(word):
      raise AssertionError(f'{word} is no JSON')

    stored = json.loads(path.read_text(), parse_constant=refuse)
    self.assertEqual(
      stored, {'best': {'pearson': None, 'f1': 0.5}, 'all': [1, None]}
    )
    numbers = lib.numbers(stored['best'])
    self.assertTrue(math.isnan(numbers.pop('pearson')))
    self.assertEqual(numbers, {'f1': 0.5})

  def test_a_run_without_a_number_goes_on(self):
    lib = script('_roberta_finetuning_results')
    params, folder = {'w': jnp.ones(2)}, epath.Path(self.folder)
    first = lib.Best(folder, 'pearson', 0)
    first.offer(1, {'pearson': math.nan, 'loss': 2.0}, params)
    self.assertNotIn('NaN', (self.folder / 'best.json').read_text())
    again = lib.Best(folder, 'pearson', 0)
    self.assertEqual(again.step, 1)
    again.offer(2, {'pearson': math.nan, 'loss': 1.0}, params)
    self.assertEqual(again.step, 1)
    again.offer(3, {'pearson': -0.5, 'loss': 1.0}, params)
    self.assertEqual(lib.Best(folder, 'pearson', 0).step, 3)

  def test_seeds_one_of_which_has_no_number(self):
    lib = script('_roberta_finetuning_results')
    run = types.SimpleNamespace(first=False, workdir=self.folder)
    task = types.SimpleNamespace(name='STS-B', main_metric='pearson')
    written = {}
    results = {
      seed: {'best': {'pearson': value}, 'best_step': 1}
      # Of a seed that was read from its file there is null.
      for seed, value in ((1, 0.2), (2, None), (3, 0.1))
    }
    with absltest.mock.patch.object(
      lib, 'write_results', lambda run, path, found: written.update(found)
    ):
      lib.conclude(run, task, results, export=None)
    self.assertEqual(written['best_seed'], 1)
    for name in ('median', 'mean', 'stdev'):
      self.assertTrue(math.isnan(written[name]['pearson']), name)


if __name__ == '__main__':
  absltest.main()
