"""The programs, as users run them, on a task that the test makes."""

import functools
import json
import pathlib
import signal
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers import adapters, roberta
from jaxpapers.nn import EncoderConfig
from tests.helpers import scripts

_SUNNY = ('sun', 'light', 'warm', 'beach', 'gold')
_RAINY = ('rain', 'cloud', 'cold', 'grey', 'storm')


@functools.cache
def folder():
  """A random model with a vocabulary, and a task that a word decides."""
  root = pathlib.Path(tempfile.mkdtemp(prefix='adapters_scripts_'))
  rng = np.random.default_rng(0)
  rows = []
  for i in range(200):
    words = list(rng.choice(['the', 'a', 'day', 'walk', 'home'], 4))
    pool, label = ((_SUNNY, 'sunny'), (_RAINY, 'rainy'))[i % 2]
    words.insert(int(rng.integers(5)), str(rng.choice(pool)))
    rows.append(f'{label}\t{" ".join(words)}')
  (root / 'weather.tsv').write_text('\n'.join(rows) + '\n')
  # Large enough for most words to be one token.
  bpe = roberta.ByteLevelBPE.train([root / 'weather.tsv'], 340)
  config = EncoderConfig(
    bpe.vocab_size,
    32,
    2,
    2,
    64,
    max_len=32,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    initializer_range=0.2,
  )
  params = roberta.RobertaForMaskedLM(config).init(
    jax.random.key(0), jnp.zeros((1, 4), jnp.int32)
  )['params']
  roberta.save_pretrained(root / 'model', config, params)
  bpe.save(root / 'model')
  return root


def common():
  root = folder()
  return (
    f'--config.model={root}/model',
    f'--config.data={root}',
    '--config.max_len=16',
    '--config.adapter.size=16',
    '--config.batch_size=20',
    f'--compilation_cache={root}/cache',
    '--quiet',
  )


def run(case, name, *flags):
  done = scripts.run(name, *flags)
  case.assertEqual(done.returncode, 0, done.stderr[-3000:])
  return done


@functools.cache
def finetuned():
  """A run of adapters_finetune, two seeds."""
  root = folder()
  done = scripts.run(
    'adapters_finetune',
    *common(),
    '--config.task=weather',
    '--config.epochs=12',
    '--config.learning_rate=3e-3',
    '--config.seeds=(0, 1)',
    f'--workdir={root}/run',
  )
  return root / 'run', done


class FinetuneTest(absltest.TestCase):
  @pytest.mark.slow
  def test_finetune_ablate_serve(self):
    workdir, done = finetuned()
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    rows = json.loads((workdir / 'results.json').read_text())
    self.assertEqual([row['seed'] for row in rows], [0, 1])
    for row in rows:
      self.assertEqual(row['status'], 'ok')
      # Of the most frequent class of the training texts it is .35.
      self.assertGreater(row['test_accuracy'], 0.65)
      self.assertEqual(
        row['trained_in_encoder'],
        adapters.adapter_param_count(2, 32, 16)
        + adapters.layer_norm_param_count(2, 32),
      )
    task = adapters.load_task(workdir / 'task_1.safetensors')
    self.assertEqual(adapters.count_params(task), rows[1]['trained'])

    run(
      self,
      'adapters_ablate',
      f'--run={workdir}',
      '--split=test',
      '--spans_at_once=2',
      f'--compilation_cache={folder()}/cache',
    )
    removal = json.loads((workdir / 'removal.json').read_text())
    self.assertTrue((workdir / 'removal.png').stat().st_size > 5000)
    np.testing.assert_allclose(
      removal['accuracy'],
      [row['test_accuracy'] for row in rows],
      atol=1e-6,
    )
    self.assertEqual(np.array(removal['without_span']).shape, (2, 2, 2))

    questions = [
      {'task': 'w1', 'text': 'the sun walk', 'id': 3},
      {'task': 'w0', 'text': 'a storm day'},
      {'task': 'nobody', 'text': 'x'},
      {'task': 'w0'},
      {'task': 'w0', 'text': 'gold beach', 'text_b': 'warm'},
    ]
    lines = [json.dumps(q) for q in questions]
    lines.insert(2, 'no json')
    (workdir / 'in.jsonl').write_text('\n'.join(lines) + '\n\n')
    run(
      self,
      'adapters_serve_bank',
      f'--model={folder()}/model',
      '--tasks='
      + ','.join(f'w{i}={workdir}/task_{i}.safetensors' for i in (0, 1)),
      '--batch_size=4',
      '--capacity=4',
      f'--input={workdir}/in.jsonl',
      f'--output={workdir}/out.jsonl',
      f'--compilation_cache={folder()}/cache',
    )
    answers = [
      json.loads(line)
      for line in (workdir / 'out.jsonl').read_text().splitlines()
    ]
    self.assertLen(answers, 6)
    self.assertEqual(answers[0]['id'], 3)
    for answer in (answers[0], answers[1], answers[5]):
      self.check_answer(workdir, answer)
    self.assertIn('not JSON', answers[2]['error'])
    self.assertIn("'nobody' is not in the bank", answers[3]['error'])
    self.assertIn('no "text"', answers[4]['error'])

  def check_answer(self, workdir, answer):
    """Against the model with the parameters of that task alone."""
    encoder, base = roberta.load_pretrained(folder() / 'model', heads=())
    bpe = roberta.ByteLevelBPE.from_directory(folder() / 'model')
    model = roberta.RobertaForSequenceClassification(
      encoder, adapter=adapters.AdapterConfig(16), num_labels=2
    )
    ids = bpe.encode_single(answer['text'])
    if 'text_b' in answer:
      ids = bpe.encode_pair(answer['text'], answer['text_b'])
    ids = jnp.asarray([ids], jnp.int32)
    params = adapters.init_adapters(jax.random.key(0), model, base, ids)
    path = workdir / f'task_{answer["task"][1:]}.safetensors'
    task = adapters.load_task(path, like=params)
    logits = model.apply({'params': adapters.insert_task(params, task)}, ids)[0]
    classes = adapters.load_task_metadata(path)['classes']
    self.assertEqual(answer['label'], classes[int(logits.argmax())])
    for c, p in zip(classes, jax.nn.softmax(logits), strict=True):
      self.assertAlmostEqual(answer['probabilities'][c], float(p), places=4)

  @pytest.mark.slow
  def test_killed_and_resumed(self):
    root = folder()
    flags = (
      *common(),
      '--config.task=weather',
      '--config.epochs=40',
      '--config.seeds=(5,)',
      '--config.log_every=8',
    )
    command = scripts.command(
      'adapters_finetune', *flags, f'--workdir={root}/killed'
    )
    process = subprocess.Popen(
      command,
      env=scripts.environment(),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    checkpoints = root / 'killed' / 'checkpoints'
    deadline = time.time() + 300
    while time.time() < deadline and process.poll() is None:
      if checkpoints.exists() and any(
        path.name.isdigit() for path in checkpoints.iterdir()
      ):
        break
      time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    self.assertFalse((root / 'killed' / 'results.json').exists())
    run(self, 'adapters_finetune', *flags, f'--workdir={root}/killed')
    run(self, 'adapters_finetune', *flags, f'--workdir={root}/whole')
    name = 'task_5.safetensors'
    self.assertEqual(
      (root / 'killed' / name).read_bytes(),
      (root / 'whole' / name).read_bytes(),
    )


class SweepsTest(absltest.TestCase):
  @pytest.mark.nightly
  def test_tradeoff(self):
    workdir = folder() / 'tradeoff'
    done = run(
      self,
      'adapters_tradeoff',
      *common(),
      "--config.tasks=('weather',)",
      '--config.sizes=(2, 4)',
      '--config.layers=(1,)',
      '--config.epoch_grid=(2,)',
      '--config.seeds=(0, 1)',
      f'--workdir={workdir}',
    )
    for name in ('tradeoff.png', 'weather.png', 'selected.csv', 'trials.csv'):
      self.assertGreater((workdir / name).stat().st_size, 100, name)
    lines = (workdir / 'selected.csv').read_text().splitlines()
    self.assertLen(lines, 1 + 6)
    self.assertIn('layer_norm', done.stdout)
    # Everything is in the study: nothing is trained again.
    again = run(
      self,
      'adapters_tradeoff',
      *common(),
      "--config.tasks=('weather',)",
      '--config.sizes=(2, 4)',
      '--config.layers=(1,)',
      '--config.epoch_grid=(2,)',
      '--config.seeds=(0, 1)',
      f'--workdir={workdir}',
    )
    self.assertNotIn('task=weather', again.stdout)

  @pytest.mark.nightly
  def test_init_scale(self):
    workdir = folder() / 'scales'
    done = run(
      self,
      'adapters_init_scale',
      *common(),
      "--config.tasks=('weather',)",
      '--config.scales=(0.0, 1e-2, 1e30)',
      '--config.epochs=4',
      '--config.seeds=(0, 1)',
      f'--workdir={workdir}',
    )
    self.assertGreater((workdir / 'scales.png').stat().st_size, 5000)
    lines = (workdir / 'scales.csv').read_text().splitlines()
    self.assertLen(lines, 1 + 6)
    # Members whose loss is NaN do not stop the others.
    self.assertEqual([line.count('failed') for line in lines[5:]], [1, 1])
    self.assertEqual([line.count(',ok,') for line in lines[1:5]], [1] * 4)
    self.assertIn('scales.png', done.stdout)


class UsageTest(absltest.TestCase):
  """Wrong flags, refused in one line; one process for each program."""

  def test_finetune(self):
    done = scripts.run(
      'adapters_finetune', '--config.mode=lora', '--workdir=unused'
    )
    scripts.assert_usage_error(self, done, '--config.mode', 'layer_norm')

  @pytest.mark.slow
  def test_ablate(self):
    with tempfile.TemporaryDirectory() as empty:
      done = scripts.run('adapters_ablate', f'--run={empty}')
      scripts.assert_usage_error(self, done, 'adapters_finetune')

  @pytest.mark.slow
  def test_serve(self):
    done = scripts.run('adapters_serve_bank', '--model=nowhere', '--tasks=spam')
    scripts.assert_usage_error(self, done, 'NAME=FILE')


class ConfigsTest(absltest.TestCase):
  def test_all_configs(self):
    import importlib.util

    found = sorted((scripts.ROOT / 'scripts/configs/adapters').glob('*.py'))
    self.assertLen(found, 4)
    for path in found:
      spec = importlib.util.spec_from_file_location(path.stem, path)
      module = importlib.util.module_from_spec(spec)
      spec.loader.exec_module(module)
      self.assertIsInstance(module.get_config(), ml_collections.ConfigDict)


if __name__ == '__main__':
  absltest.main()
