"""Tests of the scripts, in processes of their own, on small made data."""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

import jax
import nibabel
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.kcore import coreness, edges, null, pipeline
from tests.helpers import data, goldens, scripts

_TR, _SCANS = 2.0, 80


def _volume(stimulus, tag):
  """A recording (9, 4, 3, T): two blocks of voxels follow the stimulus."""
  from jaxpapers.kcore import glm

  noise = goldens.normal(f'kcore/scripts/{tag}', (9, 4, 3, _SCANS))
  shared = goldens.normal(f'kcore/scripts/{tag}/shared', (2, _SCANS))
  series = 0.3 * noise
  response = glm.design_matrix(stimulus, _TR)[:, 0]
  series[1:4, 1:3] += response + 0.3 * shared[0]
  series[6:8] += response + 0.3 * shared[1]
  return np.round(1000 + 100 * series).astype(np.int16)


def _save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = nibabel.Nifti1Image(array, np.diag([3.0, 3.0, 3.0, 1.0]))
  if array.ndim == 4:
    image.header.set_xyzt_units('mm', 'sec')
    image.header.set_zooms((3.0, 3.0, 3.0, _TR))
  nibabel.save(image, path)


def _edges(n=30, m=90):
  """A random graph, as a text file has it."""
  upper = np.argwhere(np.triu(np.ones((n, n), bool), 1))
  chosen = goldens.rng('kcore/scripts/graph').permutation(len(upper))[:m]
  chosen = upper[np.sort(chosen)]
  return np.append(chosen[chosen[:, 1] < n - 1], [[0, n - 1]], axis=0)


class ScriptTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.out = self.folder / 'out'

  def run_script(self, name, *flags, code=0):
    done = scripts.run(name, *flags, f'--save_dir={self.out}')
    self.assertEqual(done.returncode, code, done.stderr + done.stdout)
    return done

  def load(self, name):
    return json.loads((self.out / name).read_text('utf-8'))

  def write_edges(self):
    path = self.folder / 'edges.txt'
    np.savetxt(path, _edges(), fmt='%d')
    return path


class AnalyzeTest(ScriptTest):
  @pytest.mark.slow
  def test_bids_folder(self):
    for run in (1, 2):
      stimulus = (np.arange(_SCANS) // 8 % 2).astype(float)
      func = self.folder / 'data' / 'sub-01' / 'func'
      stem = f'sub-01_task-words_run-{run}'
      _save(func / f'{stem}_bold.nii.gz', _volume(stimulus, f'bids{run}'))
      if run == 2:
        # Only voxels that are in the masks of all runs are used.
        mask = np.ones((9, 4, 3), np.uint8)
        mask[0] = 0
        _save(func / f'{stem}_desc-brain_mask.nii.gz', mask)
      rows = ['onset\tduration\ttrial_type']
      for block in range(1, 10, 2):
        kind = 'masked' if block > 5 else 'word'
        rows.append(f'{8 * block * _TR}\t{8 * _TR}\t{kind}')
      rows.append('0\t16\trest')
      (func / f'{stem}_events.tsv').write_text('\n'.join(rows) + '\n')
    done = self.run_script(
      'kcore_analyze',
      f'--data={self.folder / "data"}',
      '--second_condition=masked',
      '--num_nulls=8',
    )
    numbers = self.load('results.json')
    self.assertEqual(
      [network['name'] for network in numbers['networks']],
      ['sub-01_task-words_run-1', 'sub-01_task-words_run-2'],
    )
    self.assertEqual(numbers['facts']['voxels'], 8 * 12)
    self.assertEqual(numbers['module_sizes'], [18, 24])
    # Both blocks of voxels follow masked words as well.
    self.assertEqual(numbers['second_state']['nodes'], 42)
    self.assertIn('report.html', done.stdout)
    self.assertTrue((self.out / 'report.html').is_file())

  @pytest.mark.nightly
  def test_labelled_scans_and_atlas(self):
    stimulus = (np.arange(_SCANS) // 8 % 2).astype(float)
    folder = self.folder / 'data'
    _save(folder / 'bold.nii.gz', _volume(stimulus, 'labels'))
    mask = np.ones((9, 4, 3), np.uint8)
    mask[0] = 0
    _save(folder / 'mask.nii.gz', mask)
    atlas = np.ones((9, 4, 3), np.int16)
    atlas[:, 2:] = 2
    _save(folder / 'atlas.nii.gz', atlas)
    lines = [f'{"face" if on else "rest"} 0' for on in stimulus]
    (folder / 'attributes.txt').write_text('\n'.join(lines))
    self.run_script(
      'kcore_analyze',
      f'--data={folder}',
      f'--atlas={folder / "atlas.nii.gz"}',
      '--num_nulls=0',
      '--nosensitivity',
    )
    numbers = self.load('results.json')
    self.assertEqual(numbers['facts']['voxels'], 8 * 12)
    self.assertEqual(numbers['modules'], ['region 1', 'region 2'])
    self.assertEqual(sum(numbers['module_sizes']), 42)

  @pytest.mark.slow
  def test_matrix(self):
    series = goldens.normal('kcore/scripts/matrix', (30, 40))
    module = np.arange(30) % 3
    series += goldens.normal('kcore/scripts/shared', (3, 40))[module]
    corr = np.corrcoef(series + 0.5 * series[0])
    upper = corr[np.triu_indices(30, 1)]
    np.save(self.folder / 'corr.npy', upper)
    names = ['net_2', 'net_10', 'none']
    rows = [
      f'{i}\t{names[m]}\t{x}\t{2 * x}\t0'
      for i, (m, x) in enumerate(zip(module, range(30), strict=True))
    ]
    (self.folder / 'nodes.tsv').write_text('\n'.join(rows))
    self.run_script(
      'kcore_analyze',
      f'--matrix={self.folder / "corr.npy"}',
      f'--labels={self.folder / "nodes.tsv"}',
      '--label_column=2',
      '--label_pattern=net_.*',
      '--coord_columns=3,4,5',
      '--num_nulls=5',
      '--step=0',
    )
    numbers = self.load('results.json')
    self.assertEqual(numbers['modules'], ['net_2', 'net_10'])
    self.assertIsNone(numbers['options']['step'])
    kept = np.flatnonzero(module < 2)
    square = np.triu(corr, 1) + np.triu(corr, 1).T + np.eye(30)
    result = pipeline.analyze_network(
      square[np.ix_(kept, kept)],
      module[kept],
      pipeline.Options(step=None),
    )
    self.assertEqual(numbers['networks'][0]['k_max'], result.k_max)
    self.assertEqual(numbers['networks'][0]['links'], len(result.edges))

  @pytest.mark.slow
  def test_generator_end_to_end(self):
    self.run_script(
      'kcore_analyze', '--synthetic', '--num_streams=2', '--num_nulls=10'
    )
    numbers = self.load('results.json')
    self.assertEqual([n['k_max'] for n in numbers['networks']], [95, 75])
    self.assertEqual(
      [n['core_by_module'][3:] for n in numbers['networks']], [[0] * 4] * 2
    )
    self.assertLen(list((self.out / 'figures').iterdir()), 11)

  @pytest.mark.slow
  def test_haxby_end_to_end(self):
    folder = data.require('kcore', 'haxby_slice')
    began = time.perf_counter()
    self.run_script(
      'kcore_analyze', f'--data={folder}', '--second_condition=scrambledpix'
    )
    # Three minutes are promised on two idle cores; tests run beside others.
    self.assertLess(time.perf_counter() - began, 400)
    numbers = self.load('results.json')
    golden = goldens.load_json('kcore', 'haxby_pipeline.json')
    self.assertEqual(
      [n['k_max'] for n in numbers['networks']],
      [row['k_max'] for row in golden['runs']],
    )
    self.assertEqual(numbers['second_state']['nodes'], 19)

  def test_usage_errors(self):
    empty = self.folder / 'empty'
    empty.mkdir()
    for flags, words in (
      ([], ['--data', '--matrix', '--synthetic']),
      (['--synthetic', f'--data={empty}'], ['Give one of']),
      ([f'--data={empty / "none"}'], ['there is no folder']),
      ([f'--data={empty}'], ['neither sub-*']),
      ([f'--matrix={empty / "none.npy"}'], ['--labels']),
      (['--synthetic', '--p_value=2'], ['--p_value=2']),
      (['--synthetic', '--strategy=best'], ['strategy']),
    ):
      done = scripts.run('kcore_analyze', *flags, f'--save_dir={self.out}')
      scripts.assert_usage_error(self, done, *words)
    self.assertFalse(self.out.exists())


class NullTest(ScriptTest):
  _FLAGS = ('--num_nulls=600', '--chunk=20', '--rounds=25', '--seed=3')

  def _expected(self):
    graph = _edges()
    return null.null_coreness(
      jax.random.key(3), graph, 30, 600, rounds=25, chunk=200
    )

  @pytest.mark.slow
  def test_killed_run_resumes_to_the_same_numbers(self):
    network = f'--network={self.write_edges()}'
    state = self.out / 'null_state.npz'
    flags = (network, *self._FLAGS, f'--save_dir={self.out}')
    process = subprocess.Popen(
      scripts.command('kcore_null', *flags, '--save_every=0'),
      env=scripts.environment(),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    try:
      deadline = time.monotonic() + 300
      while not state.exists() and time.monotonic() < deadline:
        self.assertIsNone(process.poll())
        time.sleep(0.002)
    finally:
      os.kill(process.pid, signal.SIGKILL)
      process.wait()
    self.assertFalse((self.out / 'null.json').exists())
    with np.load(state) as file:
      done = int(file['done'])
    self.assertBetween(done, 20, 580)
    finished = self.run_script('kcore_null', network, *self._FLAGS)
    self.assertIn(f'{done} random networks are there', finished.stdout)
    numbers, expected = self.load('null.json'), self._expected()
    self.assertEqual(numbers['num_nulls'], 600)
    self.assertEqual(numbers['occupancy_mean'], expected.occ_mean.tolist())
    self.assertEqual(numbers['occupancy_std'], expected.occ_std.tolist())
    self.assertEqual(numbers['k_max_mean'], expected.k_max.mean())
    values = np.asarray(coreness(edges.Edges(_edges(), 30)))
    self.assertEqual(numbers['p'], expected.p_value(values.max()))
    self.assertTrue((self.out / 'null.png').is_file())

  @pytest.mark.nightly
  def test_more_nulls_devices_and_mixing(self):
    network = f'--network={self.write_edges()}'
    flags = ('--chunk=64', '--rounds=25', '--seed=3', '--mixing')
    self.run_script('kcore_null', network, '--num_nulls=100', *flags)
    # On four devices, and on from there: the same numbers as on one.
    done = scripts.run(
      'kcore_null',
      network,
      '--num_nulls=600',
      *flags,
      f'--save_dir={self.out}',
      XLA_FLAGS='--xla_force_host_platform_device_count=4',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('4 cpu device(s); 100 random networks', done.stdout)
    numbers = self.load('null.json')
    self.assertEqual(
      numbers['occupancy_mean'], self._expected().occ_mean.tolist()
    )
    self.assertEqual(numbers['mixing']['rounds'], [5, 10, 20, 40])
    other = scripts.run(
      'kcore_null', network, '--seed=4', f'--save_dir={self.out}'
    )
    scripts.assert_usage_error(self, other, 'another run', '--overwrite')

  def test_usage_errors(self):
    one = self.folder / 'one.txt'
    one.write_text('0 1\n')
    loop = self.folder / 'loop.txt'
    loop.write_text('0 0\n0 1\n1 2\n')
    for flags, words in (
      ([], ['--network']),
      ([f'--network={self.folder / "none"}'], ['there is no file']),
      ([f'--network={one}'], ['1 edge']),
      ([f'--network={loop}'], ['loop']),
      ([f'--network={one}', '--num_nulls=0'], ['num_nulls']),
    ):
      done = scripts.run('kcore_null', *flags, f'--save_dir={self.out}')
      scripts.assert_usage_error(self, done, *words)


class CollapseTest(ScriptTest):
  @parameterized.parameters(('inf',), ('60',))
  @pytest.mark.nightly
  def test_sweeps(self, slope):
    self.run_script(
      'kcore_collapse', f'--network={self.write_edges()}', f'--slope={slope}'
    )
    numbers = self.load('collapse.json')
    values = np.asarray(coreness(edges.Edges(_edges(), 30)))
    self.assertEqual(numbers['k_max'], values.max())
    sizes = [int(np.sum(values >= np.ceil(k))) for k in numbers['K']]
    self.assertEqual(numbers['core_sizes'], sizes)
    self.assertEqual(numbers['down'], sizes)
    self.assertEqual(numbers['critical'], 0.9 / values.max())
    self.assertTrue((self.out / 'collapse.png').is_file())

  def test_usage_error(self):
    done = scripts.run(
      'kcore_collapse', f'--network={self.write_edges()}', '--background=3'
    )
    scripts.assert_usage_error(self, done, 'I')


class HelpTest(parameterized.TestCase):
  @parameterized.parameters('kcore_analyze', 'kcore_null', 'kcore_collapse')
  def test_help_teaches(self, name):
    done = scripts.run(name, '--help')
    self.assertIn(f'python scripts/{name}.py', done.stdout)
    self.assertIn('--save_dir', done.stdout)


if __name__ == '__main__':
  absltest.main()
