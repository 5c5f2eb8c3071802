"""The programs, as a user runs them, on text that the test makes."""

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

  @pytest.mark.slow
  def test_a_killed_run_goes_on_to_the_same_numbers(self):
    name = 'product_keys_train_lm'
    done = scripts.run(name, *self._flags('whole'))
    self.assertEqual(done.returncode, 0, done.stderr)
    process = subprocess.Popen(
      scripts.command(name, *self._flags('killed')),
      env=scripts.environment(),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    workdir = self.folder / 'killed'
    limit = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < limit:
      if any((workdir / 'checkpoints').glob('[0-9]*')):
        break
      time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = scripts.run(name, *self._flags('killed'))
    self.assertEqual(done.returncode, 0, done.stderr)
    expected, found = rows(self.folder / 'whole'), rows(workdir)
    self.assertEqual([r['step'] for r in found], [r['step'] for r in expected])
    for one, two in zip(found, expected):
      self.assertEqual(one['loss'], two['loss'])
      self.assertEqual(one['grad_norm'], two['grad_norm'])

  def test_usage_errors(self):
    for name, flags, words in (
      ('product_keys_train_lm', [], '--config.train is empty'),
      (
        'product_keys_train_lm',
        [f'--config.train={self.text}', '--config.memory_positions=9'],
        'memory_positions has',
      ),
      ('product_keys_cmudict', [], '--config.dictionary is empty'),
    ):
      done = scripts.run(name, f'--workdir={self.folder / "w"}', *flags)
      scripts.assert_usage_error(self, done, words)


if __name__ == '__main__':
  absltest.main()
