"""The programs, as a user runs them, on text that the test makes."""

import functools
import json
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import jax
import ml_collections
import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers import training
from jaxpapers.product_keys import recipes
from tests.helpers import data, scripts

TINY = {
  'num_layers': 1,
  'd_model': 8,
  'num_heads': 1,
  'memory_positions': '0',
  'length': 8,
  'batch_size': 8,
  'n_keys': 8,
  'k_dim': 4,
  'heads': 1,
  'knn': 2,
  'num_steps': 40,
  'log_every': 5,
  'checkpoint_every': 10,
  'value_optimizer': 'lazy',
}


def rows(workdir):
  """Rows of numbers, those of an interrupted write left out."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines if line.endswith('}')]


class ScriptsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    letters = np.random.default_rng(0).integers(97, 123, 4000, dtype=np.uint8)
    self.text = self.folder / 'text'
    self.text.write_bytes(letters.tobytes())

  def _flags(self, workdir):
    return [
      f'--config.train={self.text}',
      f'--workdir={self.folder / workdir}',
      '--quiet',
      *(f'--config.{name}={value}' for name, value in TINY.items()),
    ]

  def _kill_at_a_checkpoint(self, name, *flags, workdir):
    """Runs a program until it has written a checkpoint."""
    process = subprocess.Popen(
      scripts.command(name, *flags),
      env=scripts.environment(),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    limit = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < limit:
      if any(workdir.glob('**/checkpoints/[0-9]*')):
        break
      time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

  @pytest.mark.slow
  def test_a_killed_run_goes_on_to_the_same_numbers(self):
    name = 'product_keys_train_lm'
    done = scripts.run(name, *self._flags('whole'))
    self.assertEqual(done.returncode, 0, done.stderr)
    workdir = self.folder / 'killed'
    self._kill_at_a_checkpoint(name, *self._flags('killed'), workdir=workdir)
    # What was there at that moment goes on on 8 devices as well.
    meshed = self.folder / 'meshed'
    shutil.copytree(workdir, meshed)
    done = scripts.run(name, *self._flags('killed'))
    self.assertEqual(done.returncode, 0, done.stderr)
    expected, found = rows(self.folder / 'whole'), rows(workdir)
    self.assertEqual([r['step'] for r in found], [r['step'] for r in expected])
    for one, two in zip(found, expected):
      self.assertEqual(one['loss'], two['loss'])
      self.assertEqual(one['grad_norm'], two['grad_norm'])
    done = scripts.run(
      name,
      *self._flags('meshed'),
      '--mesh=data:2,mem:4',
      XLA_FLAGS='--xla_force_host_platform_device_count=8',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    found = rows(meshed)
    self.assertEqual([r['step'] for r in found], [r['step'] for r in expected])
    # Other devices sum in another order.
    for one, two in zip(found, expected):
      self.assertAlmostEqual(one['loss'], two['loss'], delta=1e-4)
    one, two = self._last_state('whole'), self._last_state('meshed')
    for name in ('values', 'first moments', 'second moments'):
      self.assertGreater(np.abs(two[name]).max(), 0, name)
      np.testing.assert_allclose(
        two[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name
      )

  def _last_state(self, workdir):
    """Table and moments of a run's newest checkpoint."""
    workdir = self.folder / workdir
    config = ml_collections.ConfigDict(
      json.loads((workdir / 'config.json').read_text())
    )
    like, _ = recipes.language_model_job(config, 256).abstract(
      training.make_mesh('data:1')
    )
    with training.Checkpoints(workdir / 'checkpoints') as checkpoints:
      state, _ = checkpoints.restore(like)
    tables = {
      jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(
        (state.params, state.opt_state)
      )
      if 'memory' in jax.tree_util.keystr(path) and leaf.ndim == 2
    }
    found = {'values': tables.pop(next(p for p in tables if p[0] == '0'))}
    for name, field in (('first moments', 'mu'), ('second moments', 'nu')):
      path = next(p for p in tables if f'/{field}/' in p)
      found[name] = tables[path]
    return found

  @pytest.mark.nightly
  def test_usage_of_a_language_model(self):
    flags = [
      *self._flags('lm'),
      '--config.num_steps=3',
      '--config.num_layers=2',
      '--config.memory_positions=0,1+',
      '--config.share_values=true',
    ]
    done = scripts.run('product_keys_train_lm', *flags)
    self.assertEqual(done.returncode, 0, done.stderr)
    flags = [
      f'--run={self.folder / "lm"}',
      f'--text={self.text}',
      f'--workdir={self.folder / "usage"}',
    ]
    done = scripts.run('product_keys_usage', *flags)
    self.assertEqual(done.returncode, 0, done.stderr)
    report = json.loads((self.folder / 'usage/usage.json').read_text())
    self.assertEqual(report['step'], 3)
    memories = report['memories']
    self.assertLen(memories, 3)
    # All tokens of the text, filled up to 63 blocks of 64, with 2 reads each.
    places = [n for n in memories if n != 'all layers']
    for name in places:
      self.assertEqual(memories[name]['reads'], 63 * 64 * 2)
      self.assertLen(memories[name]['heads'], 1)
      self.assertGreater(memories[name]['usage'], 0)
    self.assertEqual(memories['all layers']['reads'], 2 * 63 * 64 * 2)
    arrays = np.load(self.folder / 'usage/usage.npz')
    mass = sum(arrays[f'{name}/weight'].sum(axis=0) for name in places)
    z = mass[mass > 0] / mass.sum()
    self.assertAlmostEqual(
      memories['all layers']['kl_w'],
      np.log(64) + (z * np.log(z)).sum(),
      places=6,
    )
    self.assertTrue((self.folder / 'usage/usage.png').is_file())
    # On 8 devices, the table in parts: the same but for rounding.
    flags[-1] = f'--workdir={self.folder / "sharded"}'
    done = scripts.run(
      'product_keys_usage',
      *flags,
      '--mesh=data:2,mem:4',
      XLA_FLAGS='--xla_force_host_platform_device_count=8',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    other = json.loads((self.folder / 'sharded/usage.json').read_text())
    for name in memories:
      self.assertAlmostEqual(
        other['memories'][name]['kl_w'], memories[name]['kl_w'], delta=1e-3
      )

  @pytest.mark.nightly
  def test_cmudict(self):
    random = np.random.default_rng(0)
    words = sorted(
      {
        ''.join(random.choice(list('abcde'), random.integers(2, 6)))
        for _ in range(400)
      }
    )
    dictionary = self.folder / 'dict'
    # A sound for each letter: something to learn.
    dictionary.write_text(
      ''.join(f'{w} {" ".join(c.upper() for c in w)}\n' for w in words)
    )
    flags = [
      f'--config.dictionary={dictionary}',
      f'--workdir={self.folder / "cmudict"}',
      "--config.variants=('dense','memory_32')",
      '--config.seeds=(0,1)',
      '--config.epochs=20',
      '--config.batch_size=32',
      '--config.width=16',
      '--config.k_dim=8',
      '--config.learning_rate=1e-2',
      '--quiet',
    ]
    # Killed in the middle, it goes on where it was.
    self._kill_at_a_checkpoint(
      'product_keys_cmudict', *flags, workdir=self.folder / 'cmudict'
    )
    done = scripts.run('product_keys_cmudict', *flags)
    self.assertEqual(done.returncode, 0, done.stderr)
    results = json.loads((self.folder / 'cmudict/results.json').read_text())
    self.assertEqual(
      [(row['variant'], row['seed']) for row in results],
      [(v, s) for s in (0, 1) for v in ('dense', 'memory_32')],
    )
    for row in results:
      # Six sounds, the filling included: 1.8 nats by chance.
      self.assertLess(row['train_loss'], 0.9)
      self.assertEqual('usage' in row, row['variant'] != 'dense')
    means = (self.folder / 'cmudict/results.md').read_text()
    accuracy = [
      r['test_accuracy'] for r in results if r['variant'] == 'memory_32'
    ]
    self.assertIn(
      f'{np.mean(accuracy):.4f} ± {np.std(accuracy, ddof=1):.4f}', means
    )
    self.assertTrue((self.folder / 'cmudict/capacity.png').is_file())
    done = scripts.run(
      'product_keys_usage',
      f'--run={self.folder / "cmudict/memory_32/seed_1"}',
      f'--text={dictionary}',
      f'--workdir={self.folder / "usage"}',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    report = json.loads((self.folder / 'usage/usage.json').read_text())
    (found,) = report['memories'].values()
    self.assertAlmostEqual(found['usage'], results[-1]['usage'], places=9)
    self.assertAlmostEqual(found['kl_w'], results[-1]['kl_w'], places=5)

  @pytest.mark.nightly
  def test_what_a_memory_is_worth_on_cmudict(self):
    dictionary = data.require(
      'product_keys', 'cmudict.dict', source='github.com/cmusphinx/cmudict'
    )
    done = scripts.run(
      'product_keys_cmudict',
      f'--config.dictionary={dictionary}',
      f'--workdir={self.folder / "cmudict"}',
      "--config.variants=('dense','memory_128','memory_128_no_norm')",
      '--quiet',
      timeout=3600,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    results = json.loads((self.folder / 'cmudict/results.json').read_text())

    def mean(name, variant):
      values = [row[name] for row in results if row['variant'] == variant]
      self.assertLen(values, 3)
      return np.mean(values)

    accuracy = functools.partial(mean, 'test_accuracy')
    memory, bare = 'memory_128', 'memory_128_no_norm'
    self.assertGreaterEqual(accuracy(memory) - accuracy('dense'), 0.01)
    self.assertGreaterEqual(accuracy(memory) - accuracy(bare), 0.02)
    self.assertGreaterEqual(mean('usage', memory), 2 * mean('usage', bare))
    self.assertLess(mean('kl_w', memory), mean('kl_w', bare))

  @pytest.mark.nightly
  def test_benchmark(self):
    flags = ['--tokens=16', '--width=16', '--k_dim=8', '--knn=4']
    done = scripts.run(
      'product_keys_benchmark',
      *flags,
      '--n_keys=8,16',
      '--flat_limit=64',
      '--modes=auto',
      '--repeats=1',
      f'--workdir={self.folder / "cost"}',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    found = json.loads((self.folder / 'cost/benchmark.json').read_text())
    first, second = found['rows']
    self.assertEqual((first['slots'], second['slots']), (64, 256))
    for name in ('product_search', 'dense_forward', 'auto_step'):
      self.assertGreater(first[f'{name}_milliseconds'], 0)
    self.assertIn('flat_search_milliseconds', first)
    self.assertNotIn('flat_search_milliseconds', second)
    # A query of 4 heads x 8, 16 + 16 or 256 keys, 4 x 4 rows of 16.
    self.assertAlmostEqual(
      second['megaflop_per_token']['product'],
      2e-6 * (16 * 32 + 16 * 32 + 16 * 16),
    )
    self.assertAlmostEqual(
      second['megaflop_per_token']['flat'],
      2e-6 * (16 * 32 + 256 * 32 + 16 * 16),
    )
    self.assertTrue((self.folder / 'cost/scaling.png').is_file())

  def test_usage_errors(self):
    for name, flags, words in (
      ('product_keys_train_lm', [], '--config.train is empty'),
      (
        'product_keys_train_lm',
        [f'--config.train={self.text}', '--config.memory_positions=9'],
        'memory_positions has',
      ),
      ('product_keys_cmudict', [], '--config.dictionary is empty'),
      (
        'product_keys_usage',
        [f'--run={self.folder}', f'--text={self.text}'],
        'has no config.json',
      ),
      ('product_keys_benchmark', ['--n_keys=4'], 'knn is 32'),
    ):
      done = scripts.run(name, f'--workdir={self.folder / "w"}', *flags)
      scripts.assert_usage_error(self, done, words)


if __name__ == '__main__':
  absltest.main()
