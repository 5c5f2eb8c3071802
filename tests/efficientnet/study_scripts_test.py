"""The scaling and the search program, as users run them."""

import csv
import functools
import json
import pathlib
import signal
import subprocess
import tempfile
import time

import numpy as np
import pytest
from absl.testing import absltest

from tests.helpers import scripts
from tests.helpers.repository import ROOT

CONFIGS = ROOT / 'scripts' / 'configs' / 'efficientnet'


def temporary():
  return pathlib.Path(tempfile.mkdtemp(prefix='efficientnet_studies_'))


@functools.cache
def cifar():
  """Files of CIFAR-10's binary version with few images, easy to tell apart."""
  folder = temporary()
  rng = np.random.default_rng(0)
  names = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
  for name in names:
    labels = np.arange(40, dtype=np.uint8) % 10
    planes = rng.integers(0, 60, (40, 3, 32, 32))
    planes += (labels[:, None, None, None] * 19) % 190
    rows = np.concatenate([labels[:, None], planes.reshape(40, -1)], 1)
    (folder / name).write_bytes(rows.astype(np.uint8).tobytes())
  return folder


def rows_of(path):
  with open(path, encoding='utf-8') as file:
    return list(csv.DictReader(file))


def study_flags(workdir):
  return (
    f'--config={CONFIGS}/scaling.py:study-small',
    f'--config.data={cifar()}',
    f'--workdir={workdir}',
    "--config.base.blocks=('r1_k3_s22_e1_i32_o16_se0.25',)",
    '--config.base.head_filters=64',
    '--config.base.resolution=8',
    '--config.factors=(2,1,1)',
    '--config.seeds=(0,)',
    '--config.recipe.epochs=3',
    '--config.recipe.batch_size=40',
    '--quiet',
  )


class ScalingTest(absltest.TestCase):
  def test_table(self):
    done = scripts.run('efficientnet_scaling', '--table=table7')
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('1,800,091,280', done.stdout)
    self.assertIn('1.9B', done.stdout)

  @pytest.mark.slow
  def test_study_goes_on_after_kill(self):
    workdir = temporary()
    process = subprocess.Popen(
      scripts.command('efficientnet_scaling', *study_flags(workdir)),
      env=scripts.environment(),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    try:
      deadline = time.monotonic() + 400
      while not list(workdir.glob('runs/claims/000001')):
        self.assertLess(time.monotonic(), deadline)
        self.assertIsNone(process.poll())
        time.sleep(0.05)
    finally:
      process.send_signal(signal.SIGKILL)
      process.wait()
    done = scripts.run('efficientnet_scaling', *study_flags(workdir))
    self.assertEqual(done.returncode, 0, done.stderr)
    rows = rows_of(workdir / 'results.csv')
    names = [row['network'] for row in rows]
    self.assertEqual(
      names, ['base', 'width', 'depth', 'resolution', 'compound']
    )
    for row in rows:
      self.assertEqual(row['seeds'], '1')
      self.assertBetween(float(row['accuracy']), 0, 1)
    self.assertTrue((workdir / 'study.png').read_bytes().startswith(b'\x89PNG'))
    # Nothing is left: no training, the same table.
    again = scripts.run('efficientnet_scaling', *study_flags(workdir))
    self.assertNotIn('seed 0', again.stdout)
    self.assertEqual(rows_of(workdir / 'results.csv'), rows)

  @pytest.mark.slow
  def test_usage_errors(self):
    small = f'--config={CONFIGS}/scaling.py:study-small'
    for flags, words in (
      ((small, '--config.data=/nowhere'), ('CIFAR-10', '/nowhere')),
      (
        (small, f'--config.data={cifar()}', '--config.family=vgg'),
        ('family', 'mobilenet_v2'),
      ),
      (
        (small, f'--config.data={cifar()}', '--config.base.width=-1.'),
        ('--config.base', 'width'),
      ),
    ):
      done = scripts.run(
        'efficientnet_scaling', *flags, f'--workdir={temporary()}'
      )
      scripts.assert_usage_error(self, done, *words)


class SearchTest(absltest.TestCase):
  @pytest.mark.slow
  def test_synthetic(self):
    workdir = temporary()
    flags = (
      f'--config={CONFIGS}/search.py:synthetic',
      '--config.seeds=(0,1)',
      '--config.budget=90',
      '--config.ppo.batch=30',
      f'--workdir={workdir}',
      '--quiet',
    )
    done = scripts.run('efficientnet_search', *flags)
    self.assertEqual(done.returncode, 0, done.stderr)
    rows = rows_of(workdir / 'trials.csv')
    self.assertLen(rows, 3 * 2 * 90)
    for row in rows_of(workdir / 'front.csv'):
      self.assertIn(row, rows)
    best = json.loads((workdir / 'best.json').read_text())
    self.assertEqual(best['reward'], max(float(r['reward']) for r in rows))
    self.assertLen(best['blocks'], 7)
    for name in ('front', 'progress', 'costs'):
      content = (workdir / f'{name}.png').read_bytes()
      self.assertTrue(content.startswith(b'\x89PNG'))
    # What is done with the result may change, what was searched may not.
    again = scripts.run('efficientnet_search', *flags, '--config.retrain=2')
    self.assertEqual(again.returncode, 0, again.stderr)
    other = scripts.run('efficientnet_search', *flags, '--config.budget=91')
    self.assertEqual(other.returncode, 2)
    self.assertIn('budget was 90 there', other.stderr)

  @pytest.mark.slow
  def test_trains_a_population(self):
    workdir = temporary()
    flags = (
      f'--config={CONFIGS}/search.py:small',
      f'--config.data={cifar()}',
      '--config.space.reference=((8,),(1,))',
      '--config.space.strides=(2,)',
      '--config.space.resolution=8',
      '--config.budget=6',
      '--config.members=4',
      '--config.evolution.population=4',
      '--config.images=100',
      '--config.validation=50',
      '--config.recipe.batch_size=50',
      '--config.retrain=1',
      f'--storage={workdir}/search.journal',
      f'--workdir={workdir}',
    )
    done = scripts.run('efficientnet_search', *flags)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('trial 5: accuracy', done.stdout)
    self.assertLen(rows_of(workdir / 'trials.csv'), 6)
    retrained = rows_of(workdir / 'retrained.csv')
    self.assertBetween(float(retrained[0]['test_accuracy']), 0, 1)

  @pytest.mark.slow
  def test_usage_errors(self):
    for flags, words in (
      (("--config.algorithms=('annealing',)",), ('annealing', 'evolution')),
      (('--config.evaluator=guess',), ('evaluator', 'guess', 'population')),
      (('--config.data=/nowhere',), ('/nowhere',)),
      (('--config.budget=0',), ('budget is 0',)),
      (('--config.evolution.sample=99',), ('sample is 99', 'population 64')),
      (('--config.objective.target=0.0',), ('target is 0.0',)),
    ):
      done = scripts.run(
        'efficientnet_search', *flags, f'--workdir={temporary()}'
      )
      scripts.assert_usage_error(self, done, *words)


if __name__ == '__main__':
  absltest.main()
