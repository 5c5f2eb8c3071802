"""Runs in processes of their own: killed, told to stop, two as one."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from absl.testing import absltest

from tests.helpers import scripts
from tests.helpers.repository import ROOT


def start(*flags, **options) -> subprocess.Popen:
  """The toy program as a process."""
  return subprocess.Popen(
    [sys.executable, '-m', 'tests.training.toy', *flags],
    env=scripts.environment(),
    cwd=ROOT,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def finish(process, timeout=300.0):
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err


def rows(folder):
  text = (pathlib.Path(folder) / 'metrics.jsonl').read_text()
  return [
    {k: v for k, v in json.loads(line).items() if 'per_second' not in k}
    for line in text.splitlines()
  ]


class ProcessesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def run_toy(self, name, *flags):
    code, out, err = finish(start(f'--workdir={self.folder / name}', *flags))
    self.assertEqual(code, 0, out + err)
    return out

  def test_kill_and_resume_is_the_straight_run(self):
    self.run_toy('straight')
    # Between two checkpoints, with rows written after the first of them.
    process = start(f'--workdir={self.folder / "run"}', '--kill_at=28')
    code, out, err = finish(process)
    self.assertEqual(code, -signal.SIGKILL, out + err)
    out = self.run_toy('run')
    self.assertRegex(out, r'Resumed from step (10|20) in')
    self.assertIn('done at 40', out)
    self.assertEqual(rows(self.folder / 'run'), rows(self.folder / 'straight'))

  def test_sigterm_exits_with_0(self):
    process = start(
      f'--workdir={self.folder / "run"}', '--num_steps=100000', '--pause=0.01'
    )
    metrics = self.folder / 'run' / 'metrics.jsonl'
    for _ in range(1200):
      if metrics.exists() and metrics.read_text():
        break
      time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    self.assertEqual(code, 0, out + err)
    self.assertRegex(out, r'SIGTERM: saved step \d+ of 100000 in .*\n')
    self.assertRegex(out, 'preempted at')

  def two(self, name, *flags, interrupt=None):
    """Two processes as one program; returns their codes and outputs."""
    with socket.socket() as s:
      s.bind(('localhost', 0))
      port = s.getsockname()[1]
    processes = [
      start(
        f'--workdir={self.folder / name}',
        f'--coordinator=localhost:{port}',
        '--num_processes=2',
        f'--process_id={index}',
        *flags,
      )
      for index in range(2)
    ]
    if interrupt is not None:
      metrics = self.folder / name / 'metrics.jsonl'
      for _ in range(1200):
        if metrics.exists() and metrics.read_text():
          break
        time.sleep(0.1)
      processes[interrupt].send_signal(signal.SIGTERM)
    return [finish(process) for process in processes]

  def test_two_processes_are_one(self):
    self.run_toy('one')
    for code, out, err in self.two('two'):
      self.assertEqual(code, 0, out + err)
    expected, found = rows(self.folder / 'one'), rows(self.folder / 'two')
    self.assertLen(found, len(expected))
    for a, b in zip(found, expected):
      self.assertEqual(a['step'], b['step'])
      # Sums in another order, in float32, and Adam in between.
      self.assertAlmostEqual(a['loss'], b['loss'], delta=1e-6)

  @pytest.mark.slow
  def test_processes_that_share_a_part_of_the_batch(self):
    # The mesh has no batch axis: both load all of it, and split the model.
    self.run_toy('one', '--num_steps=12')
    for code, out, err in self.two('two', '--num_steps=12', '--mesh=model:2'):
      self.assertEqual(code, 0, out + err)
    expected, found = rows(self.folder / 'one'), rows(self.folder / 'two')
    np.testing.assert_allclose(
      [row['loss'] for row in found],
      [row['loss'] for row in expected],
      rtol=0,
      atol=1e-6,
    )

  @pytest.mark.slow
  def test_population_over_processes(self):
    flags = ('--num_steps=12', '--members=2')
    self.run_toy('one', *flags)
    ends = self.two('two', *flags, '--mesh=population:2')
    for code, out, err in ends:
      self.assertEqual(code, 0, out + err)
    expected, found = rows(self.folder / 'one'), rows(self.folder / 'two')
    np.testing.assert_allclose(
      [row['loss'] for row in found],
      [row['loss'] for row in expected],
      rtol=0,
      atol=1e-6,
    )

  @pytest.mark.slow
  def test_sigterm_to_the_group_with_workers(self):
    # As terminals and some schedulers send it: to grain's processes, too.
    process = start(
      f'--workdir={self.folder / "run"}',
      '--num_steps=1000000',
      '--num_workers=2',
      start_new_session=True,
    )
    metrics = self.folder / 'run' / 'metrics.jsonl'
    for _ in range(1200):
      if metrics.exists() and metrics.read_text():
        break
      time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    code, out, err = finish(process)
    self.assertEqual(code, 0, out + err)
    self.assertRegex(out, r'SIGTERM: saved step \d+ of 1000000 in .*\n')

  def test_sigterm_to_one_of_two_stops_both(self):
    ends = self.two('two', '--num_steps=100000', '--pause=0.01', interrupt=1)
    for code, out, err in ends:
      self.assertEqual(code, 0, out + err)
    steps = [out.split('preempted at ')[1].split()[0] for _, out, _ in ends]
    self.assertEqual(steps[0], steps[1])
    # Two processes saved it; one goes on.
    process = start(
      f'--workdir={self.folder / "two"}', f'--num_steps={int(steps[0]) + 3}'
    )
    code, out, err = finish(process)
    self.assertEqual(code, 0, err)
    self.assertIn(f'Resumed from step {steps[0]}', out)


if __name__ == '__main__':
  absltest.main()
