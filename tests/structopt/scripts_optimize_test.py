"""Tests of scripts/structopt_optimize.py, in processes of its own."""

import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time

import numpy as np
import PIL.Image
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.structopt import runs
from jaxpapers.structopt.history import History
from tests.helpers import goldens, scripts

_SCRIPT = 'structopt_optimize'
_NAME = 'mbb_beam_96x32_0.5'
_OTHER = 'cantilever_beam_full_96x32_0.4'  # of the same size: compiled once
_TINY_CNN = (
  '--cnn_kwargs=latent_size=8; dense_channels=4; conv_filters=(8, 4, 1);'
  ' resizes=(1, 2, 1)'
)


class RunTest(parameterized.TestCase):
  """The tests share a cache of compiled programs, as a user's runs do."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.cache = tempfile.TemporaryDirectory()
    cls.straight = tempfile.TemporaryDirectory()
    cls.flags = (
      f'--problem={_NAME}',
      '--methods=oc,mma',
      '--steps=3',
      '--frames=2',
      f'--compilation_cache={cls.cache.name}',
    )
    cls.done = scripts.run(
      _SCRIPT, *cls.flags, f'--save_dir={cls.straight.name}'
    )

  @classmethod
  def tearDownClass(cls):
    cls.cache.cleanup()
    cls.straight.cleanup()
    super().tearDownClass()

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def names(self, folder):
    """All files in a folder, hidden ones too."""
    return sorted(p.name for p in folder.rglob('*') if p.is_file())

  def test_runs_to_the_end(self):
    self.assertEqual(self.done.returncode, 0, self.done.stderr)
    folder = pathlib.Path(self.straight.name)
    self.assertEqual(
      self.names(folder),
      [
        f'{method}_constant.{suffix}'
        for method in ('mma', 'oc')
        for suffix in ('gif', 'json', 'npz', 'png')
      ],
    )
    golden = goldens.load_json('structopt', 'trajectories.json')[_NAME]
    for run in runs.find(folder):
      expected = golden[run.key.method]['losses'][:4]
      np.testing.assert_allclose(run.losses, expected, rtol=1e-6)
      self.assertEqual(run.metadata['settings']['steps'], 3)
      history = History.load(run.stem)
      self.assertEqual(history.best_design.shape, (32, 96))
      with PIL.Image.open(runs.with_suffix(run.stem, '.png')) as image:
        self.assertEqual(image.width, 6 * image.height)  # mirrored once
      with PIL.Image.open(runs.with_suffix(run.stem, '.gif')) as image:
        self.assertEqual(image.n_frames, 2)

  def test_table_beside_the_paper(self):
    (run,) = [
      run for run in runs.find(self.straight.name) if run.key.method == 'oc'
    ]
    value = run.losses.min()
    row = f'OC 1 {value:.6g} 210.507 {100 * (value / 210.507 - 1):+.2f} %'
    lines = [line.split() for line in self.done.stdout.splitlines()]
    self.assertIn([_NAME, *row.split()], lines)

  def test_finished_runs_are_skipped(self):
    folder = pathlib.Path(self.straight.name)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*.*')}
    done = scripts.run(_SCRIPT, *self.flags, f'--save_dir={folder}')
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('0 of 2 runs to make', done.stdout)
    self.assertIn('210.507', done.stdout)
    after = {p: p.stat().st_mtime_ns for p in folder.rglob('*.*')}
    self.assertEqual(before, after)

  def test_other_settings_are_not_mixed_in(self):
    done = scripts.run(
      _SCRIPT, *self.flags, '--steps=2', f'--save_dir={self.straight.name}'
    )
    scripts.assert_usage_error(
      self, done, 'was made with steps=3, not 2', '--overwrite'
    )

  def test_killed_and_started_again(self):
    flags = (*self.flags, f'--save_dir={self.folder}')
    process = subprocess.Popen(
      scripts.command(_SCRIPT, *flags),
      env=scripts.environment(),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    self.addCleanup(process.kill)
    first = self.folder / _NAME / 'oc_constant.json'
    deadline = time.monotonic() + 300
    while not first.exists() and time.monotonic() < deadline:
      self.assertIsNone(process.poll(), 'ended before its first run did')
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Visible files are whole: the record of the first run can be read, and of
    # the second there is none.
    self.assertLen(runs.find(self.folder), 1)
    first_record = first.read_bytes()
    # What a kill in the middle of a write leaves behind.
    (self.folder / _NAME / '.mma_constant.0123abcd.npz').write_bytes(b'PK')
    done = scripts.run(_SCRIPT, *flags)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('1 of 2 runs to make', done.stdout)
    self.assertEqual(
      self.names(self.folder), self.names(pathlib.Path(self.straight.name))
    )
    self.assertEqual(first.read_bytes(), first_record)
    for run, other in zip(
      runs.find(self.folder), runs.find(self.straight.name), strict=True
    ):
      self.assertEqual(run.key, other.key)
      # The same program on the same machine; threads may sum in other orders.
      np.testing.assert_allclose(run.losses, other.losses, rtol=1e-9)

  @pytest.mark.slow
  def test_two_processes_share_the_work(self):
    with socket.socket() as server:
      server.bind(('localhost', 0))
      port = server.getsockname()[1]
    flags = (
      f'--problem={_NAME},{_OTHER}',
      *self.flags[1:],
      f'--save_dir={self.folder}',
      f'--coordinator_address=localhost:{port}',
      '--num_processes=2',
    )
    processes = [
      subprocess.Popen(
        scripts.command(_SCRIPT, *flags, f'--process_id={i}'),
        env=scripts.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(2)
    ]
    for process in processes:
      self.addCleanup(process.kill)
    outputs = [process.communicate(timeout=500) for process in processes]
    for i, (process, (out, error)) in enumerate(zip(processes, outputs)):
      self.assertEqual(process.returncode, 0, error)
      self.assertIn(f'[process {i}] ', out)
      self.assertIn('2 of 2 runs to make', out)
      mine, others = (_NAME, _OTHER) if i == 0 else (_OTHER, _NAME)
      self.assertIn(f'2/2 {mine} mma constant', out)
      self.assertNotIn(f'{others} mma constant', out)
    # The first one waits for the other and prints the table of all.
    self.assertLen(re.findall(r'(?m)^\S+ +(?:OC|MMA) +1 ', outputs[0][0]), 4)
    self.assertNotIn('difference', outputs[1][0])
    self.assertLen(runs.find(self.folder), 4)
    for run in runs.find(self.folder, _NAME):
      (other,) = [r for r in runs.find(self.straight.name) if r.key == run.key]
      np.testing.assert_allclose(run.losses, other.losses, rtol=1e-9)

  @pytest.mark.slow
  def test_batch_of_seeds(self):
    done = scripts.run(
      _SCRIPT,
      f'--problem={_NAME}',
      '--num_seeds=2',
      '--batch=2',
      '--steps=2',
      _TINY_CNN,
      f'--save_dir={self.folder}',
      f'--compilation_cache={self.cache.name}',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    found = runs.find(self.folder)
    self.assertEqual([run.key.seed for run in found], [0, 1])
    first, second = (run.losses for run in found)
    self.assertGreater(np.abs(first - second).min(), 0)
    median = f'{np.median([first.min(), second.min()]):.6g}'
    best = f'{min(first.min(), second.min()):.6g}'
    self.assertRegex(done.stdout, rf'CNN-LBFGS +2 +{median} .* 2 +{best} ')
    settings = found[0].metadata['settings']
    self.assertEqual(settings['cnn_kwargs']['conv_filters'], [8, 4, 1])
    suffixes = {pathlib.Path(name).suffix for name in self.names(self.folder)}
    self.assertEqual(suffixes, {'.json', '.npz', '.png'})

  @pytest.mark.slow
  def test_demo(self):
    done = scripts.run(
      _SCRIPT, '--demo', f'--save_dir={self.folder}', timeout=1200
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn(f'Picture:   {self.folder / "demo.png"}', done.stdout)
    values = {
      run.key.method: run.losses.min() for run in runs.find(self.folder)
    }
    self.assertLen(values, 4)
    # What the picture is there to show.
    self.assertEqual(min(values, key=values.get), 'cnn-lbfgs')
    with PIL.Image.open(self.folder / 'demo.gif') as image:
      self.assertGreater(image.n_frames, 20)


class FlagsTest(parameterized.TestCase):
  @parameterized.parameters(
    (['--problm=x'], "Unknown command line flag 'problm'"),
    (['--problem=mbb_beam_96x32'], f'Did you mean {_NAME}'),
    (['--problem_filter=mbb_baem'], 'matches none', 'Did you mean mbb_beam'),
    (['--problem_filter=('], 'not a regular expression'),
    (
      [f'--problem={_NAME}', '--methods=cnn-lbgfs'],
      "no method 'cnn-lbgfs'. Did you mean cnn-lbfgs",
    ),
    (['--steps=0', '--quick_run'], 'not a positive integer'),
    ([], 'Which tasks?'),
    (['stray'], "Unexpected argument 'stray'"),
    (
      [f'--problem={_NAME}', '--cnn_kwargs=latent_sise=3'],
      'latent_sise',
      '--cnn_kwargs',
    ),
    ([f'--problem={_NAME}', '--cnn_kwargs=3'], "cannot read '3'"),
    (['--demo', f'--problem={_NAME}'], 'leave out --problem'),
    (['--config=nowhere.py'], "--config: cannot read 'nowhere.py'"),
  )
  def test_wrong_flags(self, flags, *words):
    with tempfile.TemporaryDirectory() as folder:
      target = pathlib.Path(folder) / 'new'
      done = scripts.run(_SCRIPT, *flags, f'--save_dir={target}')
      scripts.assert_usage_error(self, done, *words)
      self.assertFalse(target.exists())

  def test_help_teaches(self):
    done = scripts.run(_SCRIPT, '--help')
    self.assertIn('Examples:', done.stdout)
    # Commands that can be pasted: their line breaks are still there.
    self.assertIn(f'--problem={_NAME} \\\n', done.stdout)
    for flag in ('--problem_filter', '--[no]quick_run', '--save_dir'):
      self.assertIn(f'\n  {flag}', done.stdout)
    self.assertNotIn('Traceback', done.stderr)

  def test_config_file(self):
    with tempfile.TemporaryDirectory() as folder:
      config = pathlib.Path(folder) / 'mine.py'
      config.write_text(
        'import ml_collections\n'
        'def get_config():\n'
        '  return ml_collections.ConfigDict(\n'
        '    {"problem_filter": "hoop", "methods": ["mna"], "stepps": 3})\n'
      )
      done = scripts.run(_SCRIPT, f'--config={config}')
      scripts.assert_usage_error(self, done, "'stepps', which is no flag")
      config.write_text(config.read_text().replace('stepps', 'num_seeds'))
      done = scripts.run(_SCRIPT, f'--config={config}')
      scripts.assert_usage_error(self, done, "no method 'mna'")
      # The command line wins.
      done = scripts.run(_SCRIPT, f'--config={config}', '--methods=oo')
      scripts.assert_usage_error(self, done, "no method 'oo'")

  def test_configs_of_the_repository_name_flags(self):
    folder = scripts.ROOT / 'scripts' / 'configs' / 'structopt'
    text = (scripts.ROOT / 'scripts' / f'{_SCRIPT}.py').read_text('utf-8')
    files = list(folder.glob('*.py'))
    self.assertNotEmpty(files)
    for file in files:
      names = re.findall(r'config\.(\w+) = ', file.read_text('utf-8'))
      self.assertNotEmpty(names)
      for name in names:
        self.assertIn(f"  '{name}',", text)


if __name__ == '__main__':
  absltest.main()
