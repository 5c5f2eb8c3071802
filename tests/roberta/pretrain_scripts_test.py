"""roberta_pretrain and roberta_study, in processes of their own."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

import jax
import numpy as np
import PIL.Image
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import training
from jaxpapers.roberta import (
  blocks,
  bpe,
  pretrained,
  pretraining,
  pretraining_data,
  tokenization,
)
from jaxpapers.roberta import model as model_lib
from tests.helpers import scripts

_CONFIGS = scripts.ROOT / 'scripts' / 'configs' / 'roberta'
_LONG = 400  # Steps of a run that is long enough to be killed.


def write_text(path, documents, seed):
  """Sentences in which one word says much about the next."""
  rng = np.random.default_rng(seed)
  words = [f'{a}{b}' for a in 'bdfgklmnprst' for b in ('an', 'el', 'ir', 'ov')]
  follows = np.random.default_rng(0).integers(len(words), size=(len(words), 2))
  with path.open('w') as file:
    for _ in range(documents):
      for _ in range(rng.integers(3, 7)):
        word, sentence = rng.integers(len(words)), []
        for _ in range(rng.integers(4, 14)):
          sentence.append(words[word])
          word = follows[word, rng.integers(2)]
        file.write(' '.join(sentence) + '.\n')
      file.write('\n')


def rows(folder, split=None):
  """Lines of metrics.jsonl, without rates."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return [
    {k: v for k, v in row.items() if 'per_second' not in k}
    for row in found
    if split in (None, row['split'])
  ]


class ScriptsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.data = pathlib.Path(folder.name)
    for seed, (name, count) in enumerate((('train', 60), ('valid', 12))):
      write_text(cls.data / f'{name}.txt', count, seed)
    cls.tokenizer = bpe.ByteLevelBPE.train(cls.data / 'train.txt', 320)
    for name in ('train', 'valid'):
      tokenization.tokenize_corpus(
        cls.data / f'{name}.txt',
        cls.tokenizer,
        cls.data / name,
        num_workers=0,
      )

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def flags(self, name, *more):
    return [
      f'--workdir={self.folder / name}',
      f'--config.corpus={self.data / "train"}',
      f'--config.valid={self.data / "valid"}',
      '--config.model.hidden_size=16',
      '--config.model.num_layers=1',
      '--config.model.mlp_dim=32',
      '--config.model.max_len=32',
      '--config.block_size=32',
      '--compilation_cache=',
      '--quiet',
      *more,
    ]

  def pretrain(self, name, steps, *more):
    return self.flags(
      name,
      '--config.batch_size=8',
      f'--config.num_steps={steps}',
      '--config.optimizer.warmup_steps=2',
      f'--config.evaluate_every={max(1, steps // 2)}',
      f'--config.checkpoint_every={max(1, steps // 10)}',
      '--config.log_every=2',
      *more,
    )

  def run_script(self, script, flags, **variables):
    done = scripts.run(script, *flags, **variables)
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    return done.stdout

  @pytest.mark.slow
  def test_documents_of_several_lengths_to_a_folder(self):
    out = self.run_script(
      'roberta_pretrain',
      self.pretrain(
        'run',
        8,
        '--config.format=doc',
        '--config.buckets=(16, 32)',
        '--config.accumulate=2',
        '--config.masking.whole_words=True',
        '--config.model.scan_layers=True',
      ),
    )
    folder = self.folder / 'run' / 'model'
    self.assertIn(str(folder), out)
    train = rows(self.folder / 'run', 'train')
    self.assertEqual([row['step'] for row in train], list(range(2, 9, 2)))
    self.assertEqual(train[0]['overflow'], 0)
    valid = rows(self.folder / 'run', 'valid')
    self.assertEqual([row['step'] for row in valid], [0, 4, 8])
    self.assertAlmostEqual(
      valid[-1]['perplexity'], np.exp(valid[-1]['loss']), delta=0.05
    )
    # What was exported is the model that was measured last.
    config, params = pretrained.load_pretrained(folder)
    tokenizer = bpe.ByteLevelBPE.from_directory(folder)
    for text in ('ban del', 'Anything else?'):
      self.assertEqual(tokenizer.encode(text), self.tokenizer.encode(text))
    model = model_lib.RobertaForMaskedLM(config)
    scheme = pretraining.MaskingScheme(
      config.vocab_size,
      tokenizer.mask_id,
      config.pad_id,
      word_starts=tokenizer.word_start_mask(),
    )
    metric_fn = jax.jit(pretraining.make_held_out_metrics(model, scheme))
    source = blocks.BlockSource(self.data / 'valid', 'doc', 32)
    total = count = 0.0
    for part in source.buckets((16, 32)):
      for batch in pretraining_data.held_out_batches([part], [16]):
        metrics = metric_fn(params, {}, batch)
        total += float(metrics['loss'] * metrics['count'])
        count += float(metrics['count'])
    self.assertEqual(count, valid[-1]['count'])
    self.assertAlmostEqual(total / count, valid[-1]['loss'], delta=1e-4)

  @parameterized.parameters('full', 'segment_pairs')
  @pytest.mark.slow
  def test_resumes_after_a_kill(self, format):
    flags = self.pretrain('killed', _LONG, f'--config.format={format}')
    process = subprocess.Popen(
      scripts.command('roberta_pretrain', *flags),
      env=scripts.environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    checkpoints = self.folder / 'killed' / 'checkpoints'
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
      found = checkpoints.is_dir() and [
        entry for entry in os.listdir(checkpoints) if entry.isdigit()
      ]
      if found:
        process.send_signal(signal.SIGKILL)
        break
      time.sleep(0.01)
    _, error = process.communicate(timeout=100)
    self.assertEqual(process.returncode, -signal.SIGKILL, error)
    self.assertFalse((self.folder / 'killed' / 'model').exists())
    self.run_script('roberta_pretrain', flags)
    straight = self.pretrain('straight', _LONG, f'--config.format={format}')
    self.run_script('roberta_pretrain', straight)
    resumed = rows(self.folder / 'killed')
    self.assertEqual(resumed, rows(self.folder / 'straight'))
    name = pathlib.Path('model', 'model.safetensors')
    self.assertEqual(
      (self.folder / 'killed' / name).read_bytes(),
      (self.folder / 'straight' / name).read_bytes(),
    )
    train = [row['loss'] for row in resumed if row['split'] == 'train']
    self.assertLess(np.mean(train[-10:]), np.mean(train[:10]) - 0.5)
    if format == 'segment_pairs':
      self.assertIn('nsp_accuracy', resumed[-1])
      return
    # And training can go on from the folder, in another way of keeping layers.
    more = self.pretrain(
      'more',
      1,
      f'--config.init_from={self.folder / "straight" / "model"}',
      '--config.model.scan_layers=True',
      '--config.optimizer.warmup_steps=1',
    )
    self.run_script('roberta_pretrain', more)
    first = rows(self.folder / 'more', 'valid')[0]
    last = [row for row in resumed if row['split'] == 'valid'][-1]
    self.assertEqual((first['step'], last['step']), (0, _LONG))
    self.assertAlmostEqual(first['loss'], last['loss'], delta=1e-4)

  def study(self, name, *more):
    return [
      f'--config={_CONFIGS}/study.py:smoke',
      *self.flags('study', f'--study={name}', *more),
    ]

  def check_study(self, settings, seeds=2):
    folder = self.folder / 'study'
    results = json.loads((folder / 'results.json').read_text())
    self.assertSameElements(results['settings'], settings)
    for name, result in results['settings'].items():
      curves = {k: np.array(v) for k, v in result['curves'].items()}
      shape = (seeds, len(curves['valid_step']))
      self.assertEqual(curves['valid_loss'].shape, shape, name)
      self.assertEqual(curves['valid_step'][-1], result['num_steps'])
      # Seeds differ, in weights at the start and in masks after it.
      self.assertTrue((np.ptp(curves['valid_loss'], 0) > 0).all())
    with open(folder / 'summary.csv', newline='') as file:
      table = {row['setting']: row for row in csv.DictReader(file)}
    self.assertSameElements(table, settings)
    for picture in ('curves', 'points'):
      with PIL.Image.open(folder / f'{picture}.png') as image:
        self.assertGreater(min(image.size), 200)
        self.assertGreater(np.asarray(image.convert('L')).std(), 5)
    return results, table

  @pytest.mark.nightly
  def test_study_of_masks(self):
    flags = self.study('masking')
    self.run_script('roberta_study', flags)
    results, table = self.check_study(('1 mask', '10 masks', 'dynamic'))
    curves = {
      name: np.array(result['curves']['train_loss'])
      for name, result in results['settings'].items()
    }
    # Two epochs: the first masks are the same in all, then one repeats its own.
    np.testing.assert_array_equal(curves['10 masks'], curves['dynamic'])
    same = curves['1 mask'] == curves['dynamic']
    self.assertTrue(same[:, 0].all())
    self.assertFalse(same[:, 1].any())
    # Nothing is trained twice.
    before = (self.folder / 'study' / 'results.json').read_bytes()
    out = self.run_script('roberta_study', flags)
    self.assertNotIn('steps.', out)
    after = (self.folder / 'study' / 'results.json').read_bytes()
    self.assertEqual(after, before)

  @pytest.mark.nightly
  def test_study_of_batches(self):
    self.run_script('roberta_study', self.study('batch'))
    results, _ = self.check_study(('4', '8'))
    tuning = results['settings']['4']['tuning']
    self.assertSameElements(tuning, ('0.001', '0.002'))
    best = min(tuning, key=tuning.get)
    self.assertEqual(results['settings']['4']['learning_rate'], float(best))
    self.assertEqual(results['settings']['4']['num_steps'], 8)
    self.assertEqual(results['settings']['8']['num_steps'], 4)

  @pytest.mark.nightly
  def test_study_of_formats_as_a_population(self):
    flags = self.study('format', '--config.members_at_once=0')
    self.run_script('roberta_study', flags)
    names = [f'{kind} sentences' for kind in ('full', 'doc')]
    names += [f'{kind} pairs' for kind in ('segment', 'sentence')]
    results, table = self.check_study(names)
    for name in names:
      self.assertEqual(bool(table[name]['pairs %']), 'pairs' in name)
      tokens = results['settings'][name]['tokens_per_step']
      self.assertBetween(tokens, 112, 144)  # 128 asked for.

  def test_usage_errors(self):
    for script, flags, words in (
      ('roberta_pretrain', ['--config.corpus='], ('config.corpus', 'tokenize')),
      (
        'roberta_pretrain',
        [f'--config.corpus={self.folder}'],
        ('config.corpus', 'index.json'),
      ),
      (
        'roberta_pretrain',
        ['--config.block_size=64'],
        ('block_size is 64', '32'),
      ),
      ('roberta_pretrain', ['--config.format=book'], ("'book'", 'full, doc')),
      (
        'roberta_pretrain',
        ['--config.vocab_size=50265'],
        ('vocab_size is 50265', '320'),
      ),
      ('roberta_pretrain', ['--config.accumulate=3'], ('accumulate, 3',)),
      ('roberta_pretrain', ['--config.batch_size=9999'], ('9999',)),
      ('roberta_study', ['--config.valid='], ('config.valid',)),
    ):
      workdir = self.folder / 'errors'
      if script == 'roberta_pretrain':
        flags = self.pretrain('errors', 4, *flags)
      else:
        flags = [f'--config={_CONFIGS}/study.py:smoke',
                 *self.flags('errors', *flags)]  # fmt: skip
      done = scripts.run(script, *flags)
      scripts.assert_usage_error(self, done, *words)
      self.assertFalse(workdir.exists(), flags)  # Nothing half written.

  def test_devices_that_cannot_share(self):
    done = scripts.run(
      'roberta_pretrain',
      *self.pretrain('run', 4, '--config.accumulate=4'),
      XLA_FLAGS='--xla_force_host_platform_device_count=4',
    )
    scripts.assert_usage_error(self, done, '2 sequences', '4 devices', '--mesh')
    self.assertFalse((self.folder / 'run').exists())

  @pytest.mark.nightly
  def test_eight_devices_are_one(self):
    """The same losses from FSDP and tensor parallelism, through the script."""
    found = {}
    for mesh, count in (('data:1', 1), ('data:2,fsdp:2,model:2', 8)):
      self.run_script(
        'roberta_pretrain',
        self.pretrain(
          mesh,
          6,
          f'--mesh={mesh}',
          '--config.sharding=fsdp+tensor',
          '--config.model.vocab_multiple=64',
          '--config.model.dropout_rate=0.0',
          '--config.model.attention_dropout_rate=0.0',
        ),
        XLA_FLAGS=f'--xla_force_host_platform_device_count={count}',
      )
      found[count] = rows(self.folder / mesh)
    self.assertLen(found[8], len(found[1]))
    for one, many in zip(found[1], found[8]):
      self.assertEqual(one['count'], many['count'])
      # Sums in another order, in float32, and Adam in between.
      self.assertAlmostEqual(one['loss'], many['loss'], delta=1e-4)


class ConfigsTest(parameterized.TestCase):
  def test_refused(self):
    for change, words in (
      ({'buckets': (8, 512)}, "format 'full'; only doc"),
      ({'format': 'doc', 'buckets': (8, 16)}, 'last is block_size, 512'),
      ({'num_steps': 0}, 'num_steps is 0'),
      ({'max_blocks': -1}, 'max_blocks is -1'),
      ({'vocab_size': 0}, 'no tokenizer'),
      ({'optimizer.warmup_steps': 500_001}, 'warmup is 500001'),
      ({'masking.whole_words': True}, 'give tokenizer'),
      ({'masking.mask_prob': 0.0}, 'mask_prob'),
      ({'model.num_heads': 5}, 'num_heads'),
      ({'sharding': 'zero'}, "'zero'"),
    ):
      with self.assertRaisesRegex(Exception, words):
        _job('pretrain_base', **change)

  def test_sizes(self):
    """Parameters of the recipes, by shapes alone."""
    for name, expected in (
      ('pretrain_base', 124_696_665),
      ('pretrain_large', 355_411_033),
      ('pretrain_fairseq', 124_696_665),
      ('pretrain_nyu', 124_696_665),
    ):
      job = _job(name)
      shapes = jax.eval_shape(job.init, jax.random.key(0))[0]
      count = sum(x.size for x in jax.tree.leaves(shapes))
      if name == 'pretrain_large':  # 39 rows and biases that fill up the table.
        count -= 39 * (1024 + 1)
      self.assertEqual(count, expected, name)
      self.assertEqual(job.batch['ids'].shape[1], 512)
      self.assertEqual(job.batch['ids'].shape[0] % job.accumulate, 0)


def _job(name, **changes):
  """Job of a config, through the script's own function."""
  import importlib.util
  import sys

  folder = str(scripts.ROOT / 'scripts')
  sys.path.insert(0, folder)
  try:
    import _roberta_pretraining
  finally:
    sys.path.remove(folder)
  spec = importlib.util.spec_from_file_location(name, _CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.update_from_flattened_dict(changes)
  job = _roberta_pretraining.make_problem(config).job
  assert isinstance(job, training.Job)
  return job


if __name__ == '__main__':
  absltest.main()
