"""Tests of the Layca scripts, in processes of their own, on tiny data."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

import numpy as np
import PIL.Image
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import data
from tests.helpers import repository, scripts

_CONFIGS = scripts.ROOT / 'scripts' / 'configs' / 'layca'
_LONG = 400  # Epochs of a run that is long enough to be killed.


def write_mnist(folder):
  """Digits that a small network can tell apart, in the official format."""
  rng = np.random.default_rng(0)
  patterns = rng.integers(0, 2, (10, 28, 28)) * 160
  for name, count in (('train', 64), ('t10k', 40)):
    label = np.arange(count) % 10
    image = patterns[label] + rng.integers(0, 95, (count, 28, 28))
    data.write_idx(folder / f'{name}-images-idx3-ubyte', image.astype(np.uint8))
    data.write_idx(folder / f'{name}-labels-idx1-ubyte', label.astype(np.uint8))


def read_curves(path):
  with np.load(path) as stored:
    return {name: stored[name] for name in stored.files}


def read_table(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


class ScriptsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.data = self.folder / 'mnist'
    self.data.mkdir()
    write_mnist(self.data)

  def flags(self, name, workdir, epochs):
    """A small version of the script's experiment."""
    common = [
      f'--workdir={self.folder / workdir}',
      f'--config.data_dir={self.data}',
      '--config.train_examples=60',
      '--config.batch_size=16',
      '--config.evaluate_every=2',
      '--compilation_cache=',
      '--quiet',
    ]
    if name == 'layca_mnist':
      return [
        *common,
        f'--config.epochs={epochs}',
        '--config.model.hidden=12',
        '--config.units=(1, 3)',
        '--config.learning_rates=(0.1, 0.01)',
        '--config.drops=((1,), ())',
      ]
    common.append('--config.model.hidden=(9, 8)')
    if name == 'layca_sweep':
      return [
        f'--config={_CONFIGS}/alpha.py:mnist-small',
        *common,
        f'--config.epochs={epochs}',
        '--config.alphas=(-0.5, 0.0, 0.5)',
        '--config.seeds=(3,)',
      ]
    config = {'layca_compare': 'adaptive', 'layca_replay': 'replay'}[name]
    settings = {
      'layca_compare': (
        'adam',
        'adam_layca',
        'sgd_layca',
        'rmsprop',
        'rmsprop_layca',
      ),
      'layca_replay': ('adam', 'sgd_layca', 'sgd_l2'),
    }[name]
    if name == 'layca_compare':
      common.append("--config.only=('adam', 'sgd_layca')")
    return [
      f'--config={_CONFIGS}/{config}.py:mnist-small',
      *common,
      *(f'--config.settings.{s}.epochs={epochs}' for s in settings),
    ]

  def run_script(self, name, workdir, epochs, *more):
    done = scripts.run(name, *self.flags(name, workdir, epochs), *more)
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    return done.stdout

  def assert_pictures(self, folder, *names):
    for name in names:
      with PIL.Image.open(folder / f'{name}.png') as image:
        self.assertGreater(min(image.size), 200)
        # Something is drawn in it.
        self.assertGreater(np.asarray(image.convert('L')).std(), 5)

  def test_mnist(self):
    published = self.folder / 'paper.json'
    published.write_text(json.dumps({'3^-2': [None, 0.5], '0.1': [None, 0.5]}))
    folder = self.folder / 'run'
    text = self.run_script(
      'layca_mnist', 'run', 4, f'--paper_curves={published}'
    )
    curves = read_curves(folder / 'curves.npz')
    # 60 examples in batches of 16: 4 steps, of which the last has 12.
    np.testing.assert_array_equal(curves['rotation_step'], [1, 5, 9, 13])
    np.testing.assert_array_equal(curves['test_step'], [8, 16])
    np.testing.assert_array_equal(curves['train_step'], [4, 8, 12, 16])
    self.assertEqual(curves['rotation'].shape, (4, 2, 2))
    # After the first step, arctan of the rate whatever the gradient.
    for member, rate in enumerate((0.1, 0.01)):
      np.testing.assert_allclose(
        curves['rotation'][0, member], 1 - (1 + rate**2) ** -0.5, rtol=1e-3
      )
    self.assertEqual(curves['features_before'].shape, (2, 2, 28, 28))
    np.testing.assert_array_equal(*curves['features_before'])
    rows = read_table(folder / 'summary.csv')
    gap = abs(curves['rotation'][1, 0, 0] - 0.5)
    self.assertEqual(rows[0]['largest difference to the paper'], f'{gap:.4f}')
    self.assertEqual(rows[1]['largest difference to the paper'], '')
    self.assertIn(rows[0]['test %'], text)
    self.assert_pictures(folder, 'rotation', 'layers', 'features')
    first = read_table(folder / 'curves.csv')[0]
    self.assertEqual((first['step'], first['split']), ('1', 'rotation'))
    self.assertAlmostEqual(
      float(first['rotation:dense0/kernel']), curves['rotation'][0, 0, 0], 5
    )
    # Nothing is trained twice.
    before = (folder / 'curves.npz').read_bytes()
    text = self.run_script('layca_mnist', 'run', 4)
    self.assertIn('nothing left to train', text)
    self.assertEqual((folder / 'curves.npz').read_bytes(), before)

  @pytest.mark.slow
  def test_sweep(self):
    folder = self.folder / 'run'
    paper = self.folder / 'paper.json'
    paper.write_text(
      json.dumps({'alpha': {'mnist-small': [[0.5, 0.123], [0.0, 0.456]]}})
    )
    text = self.run_script(
      'layca_sweep', 'run', 3, f'--paper_accuracies={paper}'
    )
    rows = read_table(folder / 'summary.csv')
    self.assertEqual([row['alpha'] for row in rows], ['-0.5', '+0', '+0.5'])
    self.assertEqual([row['paper %'] for row in rows], ['', '45.60', '12.30'])
    self.assertIn(rows[0]['test %'], text)
    curves = read_curves(folder / 'curves.npz')
    self.assertEqual(curves['rotation'].shape, (3, 3, 3))
    first, middle, last = curves['rotation'][0].T
    # Negative alpha favours the first layer, positive the last.
    np.testing.assert_allclose(first[:2], first[0], rtol=1e-3)
    self.assertLess(first[2], 0.01 * first[0])
    self.assertLess(last[0], 0.01 * last[2])
    self.assertLess(middle[0], middle[1])
    self.assert_pictures(folder, 'accuracy', 'layers', 'learning')
    # The same members, two at a time.
    self.run_script('layca_sweep', 'parts', 3, '--config.members_at_once=2')
    parts = read_curves(self.folder / 'parts' / 'curves.npz')
    # The first epoch: products of other sizes add up in another order, and
    # networks with relu soon make much of that.
    for name, rows in (('train_loss', 1), ('rotation', 2)):
      np.testing.assert_allclose(
        parts[name][:rows], curves[name][:rows], rtol=1e-3, atol=1e-6
      )
    self.assertEqual(
      parts['test_accuracy'].shape, curves['test_accuracy'].shape
    )

  @pytest.mark.slow
  def test_compare(self):
    folder = self.folder / 'run'
    text = self.run_script('layca_compare', 'run', 3)
    rows = read_table(folder / 'summary.csv')
    self.assertEqual([row['setting'] for row in rows], ['adam', 'sgd_layca'])
    gap = float(rows[0]['test %']) - float(rows[1]['test %'])
    self.assertAlmostEqual(
      float(rows[0]['against sgd_layca']), gap, delta=0.011
    )
    self.assertIn('adam', text)
    self.assert_pictures(folder, 'layers', 'learning')
    self.assertTrue((folder / 'adam' / 'curves.csv').is_file())
    self.assertFalse((folder / 'rmsprop').exists())

  @pytest.mark.slow
  def test_replay(self):
    folder = self.folder / 'run'
    self.run_script('layca_replay', 'run', 3)
    with np.load(folder / 'rotations.npz') as stored:
      table = stored['tangents']
    self.assertEqual(table.shape, (9, 3))  # 3 epochs of 3 full batches.
    self.assertGreater(table.min(), 0)
    replayed = read_curves(folder / 'replayed' / 'curves.npz')
    # The first step turns each layer as Adam's first step did.
    np.testing.assert_allclose(
      replayed['rotation'][0, 0], 1 - (1 + table[0] ** 2) ** -0.5, rtol=1e-3
    )
    rows = read_table(folder / 'summary.csv')
    self.assertEqual(
      [row['run'] for row in rows], ['adam', 'replayed', 'sgd_l2']
    )
    self.assert_pictures(folder, 'layers', 'learning', 'steps')

  @pytest.mark.nightly
  def test_values_given_for_all_hold_in_every_setting(self):
    folder = self.folder / 'run'
    done = scripts.run(
      'layca_compare',
      f'--config={_CONFIGS}/weight_decay.py:mnist-small',
      f'--workdir={folder}',
      f'--config.data_dir={self.data}',
      '--config.batch_size=16',
      '--config.model.hidden=(9, 8)',
      '--config.epochs=2',
      '--config.learning_rates=(0.03,)',
      '--config.optimizer.momentum=0.5',
      "--config.only=('sgd_l2', 'sgd_layca')",
      '--config.settings.sgd_layca.epochs=1',
      '--compilation_cache=',
      '--quiet',
    )
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    written = json.loads((folder / 'config.json').read_text())['settings']
    for name, epochs in (('sgd_l2', 2), ('sgd_layca', 1)):
      curves = read_curves(folder / name / 'curves.npz')
      self.assertLen(curves['train_step'], epochs)
      self.assertEqual(written[name]['epochs'], epochs)
      self.assertEqual(written[name]['learning_rates'], [0.03])
      self.assertEqual(written[name]['optimizer']['momentum'], 0.5)
    for row in read_table(folder / 'summary.csv'):
      self.assertEqual(row['learning rate'], '0.03')

  @pytest.mark.nightly
  def test_wide_resnet_on_cifar(self):
    # Augmentation, dropout, a validation set, momentum, no smaller last batch.
    rng = np.random.default_rng(0)
    cifar = self.folder / 'cifar'
    cifar.mkdir()
    for name, count in (('train', 80), ('test', 20)):
      rows = rng.integers(0, 256, (count, 2 + 3072), np.uint8)
      rows[:, 0] %= 20
      rows[:, 1] %= 100
      rows.tofile(cifar / f'{name}.bin')
    for kind in ('coarse', 'fine'):
      names = [f'{kind}{i}' for i in range({'coarse': 20, 'fine': 100}[kind])]
      (cifar / f'{kind}_label_names.txt').write_text('\n'.join(names) + '\n')
    settings = ('sgd', 'sgd_l2', 'sgd_layca')
    done = scripts.run(
      'layca_compare',
      f'--config={_CONFIGS}/weight_decay.py:C100-WRN',
      f'--config.data_dir={cifar}',
      f'--workdir={self.folder / "run"}',
      '--config.model.depth=10',
      '--config.model.widen=1',
      '--config.batch_size=16',
      '--config.best_validation=True',
      *(f'--config.settings.{name}.epochs=2' for name in settings),
      '--compilation_cache=',
      '--quiet',
    )
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    for name in settings:
      curves = read_curves(self.folder / 'run' / name / 'curves.npz')
      # 72 of 80 examples train, in 4 full batches of 16.
      np.testing.assert_array_equal(curves['train_step'], [4, 8])
      self.assertEqual(curves['validation_accuracy'].shape, (2, 1))
      # 6 3x3 in 3 blocks, the first, 2 shortcuts, dense.
      self.assertEqual(curves['rotation'].shape, (2, 1, 10))

  def interrupt(self, name, subfolder, epochs, number):
    """Starts a run, and ends it when there is a checkpoint."""
    process = subprocess.Popen(
      scripts.command(name, *self.flags(name, 'killed', epochs)),
      env=scripts.environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    checkpoints = self.folder / 'killed' / subfolder / 'checkpoints'
    deadline = time.monotonic() + 500
    while process.poll() is None and time.monotonic() < deadline:
      found = checkpoints.is_dir() and [
        entry for entry in os.listdir(checkpoints) if entry.isdigit()
      ]
      if found:
        process.send_signal(number)
        break
      time.sleep(0.01)
    out, error = process.communicate(timeout=100)
    return process.returncode, out, error

  def assert_resumes(self, name, subfolder, number):
    returncode, out, error = self.interrupt(name, subfolder, _LONG, number)
    killed = self.folder / 'killed'
    self.assertFalse((killed / subfolder / 'curves.npz').exists(), error)
    if number == signal.SIGTERM:
      self.assertEqual(returncode, 0, error)
      self.assertIn('The same command goes on from there', out)
    else:
      self.assertEqual(returncode, -number)
    self.run_script(name, 'killed', _LONG)
    self.run_script(name, 'straight', _LONG)
    resumed = read_curves(killed / subfolder / 'curves.npz')
    straight = read_curves(self.folder / 'straight' / subfolder / 'curves.npz')
    self.assertSameElements(resumed, straight)
    for key, value in straight.items():
      if key == 'about' or number == signal.SIGKILL:
        np.testing.assert_array_equal(resumed[key], value, key)
      elif key.startswith('train_'):
        # SIGTERM saves within an epoch, whose mean then lacks its beginning.
        same = (resumed[key] == value).reshape(len(value), -1).all(1)
        self.assertGreaterEqual(same.sum(), len(value) - 1)
      else:
        np.testing.assert_array_equal(resumed[key], value, key)

  @pytest.mark.slow
  def test_mnist_resumes_after_a_kill(self):
    self.assert_resumes('layca_mnist', 'part0', signal.SIGKILL)

  @pytest.mark.nightly
  def test_sweep_resumes_after_a_kill(self):
    self.assert_resumes('layca_sweep', '', signal.SIGKILL)

  @pytest.mark.nightly
  def test_compare_resumes_after_sigterm(self):
    self.assert_resumes('layca_compare', 'adam', signal.SIGTERM)

  @pytest.mark.nightly
  def test_replay_resumes_after_a_kill(self):
    self.assert_resumes('layca_replay', 'adam', signal.SIGKILL)

  def test_usage_errors(self):
    for name, flags, words in (
      (
        'layca_mnist',
        [f'--config.data_dir={self.folder}/none', '--config.train_examples=0'],
        ('--config.data_dir', 'MNIST', 'train-images'),
      ),
      ('layca_mnist', ['--config.epochs=0'], ('epochs is 0', '1 or more')),
      ('layca_mnist', ['--paper_curves=missing.json'], ('--paper_curves',)),
      ('layca_mnist', ['--config.epoch=1'], ('no field', 'epoch')),
      ('layca_sweep', ['--config.alphas=(2.0,)'], ('alpha is 2.0',)),
      ('layca_sweep', ['--config.dataset=svhn'], ('svhn', 'cifar10')),
      ('layca_compare', ["--config.only=('lion',)"], ('lion', 'sgd_layca')),
      ('layca_replay', ['--config.recorded=lion'], ('lion', 'adam')),
      (
        'layca_replay',
        ['--config.settings.adam.learning_rates=(0.1, 0.2)'],
        ('settings.adam has several members',),
      ),
      ('layca_sweep', ["--config.optimizer.base='lion'"], ('lion', 'adagrad')),
      ('layca_mnist', ['--config.units=(5, 900)'], ('units', '900', '0 to')),
      ('layca_mnist', ['--config.augment=True'], ('augment', 'mnist')),
      (
        'layca_compare',
        [f'--config={_CONFIGS}/rho.py:mnist-small'],
        ('no settings', 'weight_decay.py'),
      ),
      (
        'layca_sweep',
        [f'--config={_CONFIGS}/weight_decay.py:mnist-small'],
        ('comparison', 'layca_compare'),
      ),
      ('layca_sweep', [], ('batch_size is 125', '64 training examples')),
      ('layca_sweep', ['--config.members_at_once=-1'], ('members_at_once',)),
      ('layca_sweep', ['--config.rotation_every=-1'], ('rotation_every',)),
      ('layca_sweep', ['--config.learning_rates=(-0.1,)'], ('-0.1', '0 or')),
    ):
      workdir = self.folder / 'errors'
      defaults = [f'--config.data_dir={self.data}', f'--workdir={workdir}']
      file = [flag for flag in flags if flag.startswith('--config=')]
      flags = [flag for flag in flags if flag not in file]
      defaults = [*file, *defaults, '--compilation_cache=']
      done = scripts.run(name, *defaults, *flags)
      scripts.assert_usage_error(self, done, *words)
      self.assertFalse(workdir.exists())  # The next command begins afresh.

  @parameterized.parameters(
    ('layca_sweep', 'data:-1', 18, ('batch_size is 18', '--mesh=data:1')),
    ('layca_compare', 'data:4', 18, ('batch_size is 18', '--mesh=data:1')),
    (
      'layca_sweep',
      'data:1,population:4',
      16,
      ('3 members', 'axis population', 'members_at_once'),
    ),
  )
  def test_devices_that_cannot_share(self, name, mesh, size, words):
    workdir = self.folder / 'run'
    done = scripts.run(
      name,
      *self.flags(name, 'run', 1),
      f'--mesh={mesh}',
      f'--config.batch_size={size}',
      XLA_FLAGS='--xla_force_host_platform_device_count=4',
    )
    scripts.assert_usage_error(self, done, *words)
    self.assertFalse(workdir.exists())

  @pytest.mark.nightly
  def test_replay_of_a_run_that_ended_early(self):
    folder = self.folder / 'run'
    self.run_script(
      'layca_replay', 'run', 3, '--config.stopping.finished_loss=9'
    )
    with np.load(folder / 'rotations.npz') as stored:
      self.assertEqual(stored['tangents'].shape, (3, 3))  # An epoch of three.
      self.assertGreater(stored['tangents'].min(), 0)
    replayed = read_curves(folder / 'replayed' / 'curves.npz')
    self.assertLen(replayed['train_step'], 1)

  def test_wrong_config_files(self):
    config = repository.ROOT / 'scripts' / 'configs' / 'layca' / 'mnist.py'
    for value, words in (
      ('missing.py', ('cannot read', 'missing.py')),
      (f'{config}:9', ("variant is '9'", ':5')),
    ):
      done = scripts.run('layca_mnist', f'--config={value}')
      scripts.assert_usage_error(self, done, *words)

  @parameterized.parameters(
    'layca_mnist', 'layca_sweep', 'layca_compare', 'layca_replay'
  )
  def test_help(self, name):
    done = scripts.run(name, '--help')
    for word in ('Examples:', 'learning_rates', 'curves.npz', '--[no]quiet:'):
      self.assertIn(word, done.stdout)


if __name__ == '__main__':
  absltest.main()
