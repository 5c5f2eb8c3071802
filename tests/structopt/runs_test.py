"""Tests of folders of runs and of the sweep that fills them."""

import dataclasses
import pathlib
import tempfile
from unittest import mock

import numpy as np
import PIL.Image
from absl.testing import absltest, parameterized

from jaxpapers.structopt import fem, problems, runs, sweep
from jaxpapers.structopt.history import History, Progress
from jaxpapers.structopt.runs import CONSTANT, Key

_NAME = 'causeway_bridge_top_64x64_0.3'  # symmetry planes on both sides
_OTHER = 'l_shape_0.4_64x64_0.4'


def _history(losses=(3.0, 2.0, 2.5), frames=0, problem=_NAME, method='oc'):
  rng = np.random.default_rng(0)
  task = problems.get_problem(problem)
  design = rng.random((task.nely, task.nelx))
  return History(
    problem=problem,
    method=method,
    losses=np.array(losses),
    feasible=np.ones(len(losses), bool),
    best_design=design,
    best_feasible_design=design,
    final_design=design,
    steps=len(losses) - 1,
    seconds=1.0,
    converged=False,
    message='',
    frames=rng.random((frames, *design.shape)).astype(np.float32),
    frame_evaluations=tuple(range(1, frames + 1)),
    metadata={'seed': -1},
  )


class FolderTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def files(self):
    """Names of all files, hidden ones too, relative to the folder."""
    return sorted(
      path.relative_to(self.folder).as_posix()
      for path in self.folder.rglob('*')
      if path.is_file()
    )


class StoreTest(FolderTestCase):
  @parameterized.parameters(
    (Key(_OTHER, 'cnn-lbfgs', 12), 'cnn-lbfgs_seed12'),
    (Key(_OTHER, 'mma', CONSTANT), 'mma_constant'),
  )
  def test_names(self, key, name):
    path = runs.stem(self.folder, key)
    self.assertEqual(str(path), str(self.folder / _OTHER / name))
    # Suffixes must not replace what follows a dot of the name.
    self.assertEqual(
      runs.with_suffix(runs.stem('x', Key('a', 'b_0.4', 0)), '.png').name,
      'b_0.4_seed0.png',
    )

  @parameterized.parameters(True, False)
  def test_stores_and_finds(self, keep_frames):
    key = Key(_NAME, 'oc', CONSTANT)
    history = _history(frames=3)
    problem = problems.get_problem(_NAME)
    self.assertIsNone(runs.load(self.folder, key))
    runs.save(self.folder, key, history, problem, keep_frames)
    self.assertEqual(
      self.files(),
      [f'{_NAME}/oc_constant.{s}' for s in ('gif', 'json', 'npz', 'png')],
    )
    (found,) = runs.find(self.folder)
    self.assertEqual(found.key, key)
    self.assertEqual(found.steps, 2)
    np.testing.assert_array_equal(found.losses, history.losses)
    loaded = History.load(found.stem)
    np.testing.assert_array_equal(loaded.best_design, history.best_design)
    self.assertLen(loaded.frames, 3 * keep_frames)
    with PIL.Image.open(runs.with_suffix(found.stem, '.png')) as image:
      # Twice as wide for each of two symmetry planes, and enlarged.
      self.assertEqual(image.size, (4 * 64 * 2, 64 * 2))
      self.assertEqual(
        image.getpixel((2 * 64 + 1, 1)), image.getpixel((127, 0))
      )
    with PIL.Image.open(runs.with_suffix(found.stem, '.gif')) as image:
      self.assertEqual((image.n_frames, image.size), (3, (512, 128)))

  def test_find_orders_filters_and_ignores(self):
    problem = problems.get_problem(_NAME)
    for key in (
      Key(_OTHER, 'mma', 10),
      Key(_OTHER, 'mma', 9),
      Key(_OTHER, 'mma', CONSTANT),
      Key(_NAME, 'cnn-lbfgs', 0),
    ):
      runs.save(self.folder, key, _history(), problem)
    (self.folder / _NAME / 'notes.json').write_text('mine')
    (self.folder / _NAME / '.oc_seed0.1f.json').write_text('{')
    (self.folder / 'summary.json').write_text('{}')
    self.assertEqual(
      [tuple(run.key) for run in runs.find(self.folder)],
      [
        (_NAME, 'cnn-lbfgs', 0),
        (_OTHER, 'mma', CONSTANT),
        (_OTHER, 'mma', 9),
        (_OTHER, 'mma', 10),
      ],
    )
    self.assertLen(runs.find(self.folder, 'bridge'), 1)

  def test_unfinished_and_damaged(self):
    key = Key(_NAME, 'oc', 1)
    runs.save(self.folder, key, _history(), problems.get_problem(_NAME))
    file = self.folder / _NAME / 'oc_seed1.json'
    content = file.read_text()
    file.unlink()  # As if killed before the last file.
    self.assertIsNone(runs.load(self.folder, key))
    self.assertEmpty(runs.find(self.folder))
    for damaged in (content[: len(content) // 2], '[]', '{"steps": 3}'):
      file.write_text(damaged)
      with self.assertRaisesRegex(ValueError, 'oc_seed1.json.*remove it'):
        runs.load(self.folder, key)
    with self.assertRaisesRegex(ValueError, "There is no folder 'nowhere'"):
      runs.find('nowhere')

  def test_clean_removes_only_its_own_leftovers(self):
    (self.folder / _NAME).mkdir()
    for name in (
      '.mma_seed1.png.0a',
      '.mma_seed1.ff.npz',
      '.mma_seed10.ff.npz',
    ):
      (self.folder / _NAME / name).write_text('half')
    (self.folder / _NAME / 'mma_seed1.png').write_text('whole')
    runs.clean(self.folder, Key(_NAME, 'mma', 1))
    runs.clean(self.folder, Key('not there', 'mma', 1))
    self.assertEqual(
      self.files(), [f'{_NAME}/.mma_seed10.ff.npz', f'{_NAME}/mma_seed1.png']
    )


class PlanTest(parameterized.TestCase):
  def test_seeds(self):
    keys = runs.plan(['a', 'b'], ['cnn-lbfgs', 'mma'], 2, 1)
    self.assertEqual(
      [tuple(key) for key in keys if key.problem == 'b'],
      [
        ('b', 'cnn-lbfgs', 0),
        ('b', 'cnn-lbfgs', 1),
        ('b', 'mma', CONSTANT),
        ('b', 'mma', 0),
      ],
    )
    self.assertLen(set(keys), 8)

  @parameterized.product(count=(1, 2, 3, 7, 50), num_seeds=(1, 4))
  def test_shares_are_a_fair_partition(self, count, num_seeds):
    keys = runs.plan(['c', 'a', 'b'], ['mma', 'cnn-lbfgs', 'oc'], num_seeds, 2)
    shares = [runs.share(keys, i, count) for i in range(count)]
    self.assertCountEqual(sum(shares, []), keys)
    pairs = [{(key.problem, key.seed) for key in share} for share in shares]
    self.assertLessEqual(max(map(len, pairs)) - min(map(len, pairs)), 1)

  def test_two_tasks_go_to_two_processes(self):
    keys = runs.plan(['a', 'b'], ['mma', 'oc'])
    self.assertEqual({k.problem for k in runs.share(keys, 1, 2)}, {'b'})

  def test_suggestion(self):
    self.assertEqual(runs.suggestion('mna', ['mma']), ' Did you mean mma?')
    self.assertEqual(runs.suggestion('xyz', ['mma']), '')


class SweepTest(FolderTestCase):
  """The optimizers are replaced: they have tests of their own."""

  def setUp(self):
    super().setUp()
    self.calls = []

    def optimize(problem, method, *, steps, seed, callback, **kwargs):
      self.calls.append((problem.name, method, seed, kwargs))
      if seed == 13:
        raise fem.SolveError('bad luck')
      if callback:
        callback(Progress(problem.name, method, steps + 1, steps, 1.0, 1.0))
      count = 2 if kwargs['save_every'] else 0
      return _history(np.full(steps + 1, 1.0), count, problem.name, method)

    def optimize_batch(problems_, keys, method, **kwargs):
      self.calls.append((len(problems_), method, keys is None, kwargs))
      if any(problem.name == _OTHER for problem in problems_):
        raise fem.SolveError('bad luck')
      callback = kwargs['callback']
      if callback:
        callback([Progress(p.name, method, 1, 1, 1.0, 1.0) for p in problems_])
      return [_history(problem=p.name, method=method) for p in problems_]

    for module, function in (
      (sweep.runner, optimize),
      (sweep.batch, optimize_batch),
    ):
      patch = mock.patch.object(module, function.__name__, function)
      patch.start()
      self.addCleanup(patch.stop)
    self.settings = sweep.Settings(steps=2, cnn_kwargs={'resizes': (1, 2)})

  def test_skips_what_is_finished(self):
    keys = runs.plan([_NAME], ['oc', 'mma', 'adam'])
    todo = sweep.pending(keys, self.folder, self.settings)
    self.assertEqual(todo, keys)
    self.assertEmpty(sweep.execute(keys[:2], self.folder, self.settings))
    todo = sweep.pending(keys, self.folder, self.settings)
    self.assertEqual(todo, keys[2:])
    other = dataclasses.replace(self.settings, steps=3)
    with self.assertRaisesRegex(ValueError, 'made with steps=2, not 3; choose'):
      sweep.pending(keys, self.folder, other)

  def test_a_failure_does_not_stop_the_others(self):
    keys = [Key(_NAME, 'oc', seed) for seed in (1, 13, 2)]
    seen = []
    failures = sweep.execute(
      keys,
      self.folder,
      self.settings,
      finished=lambda key, result: seen.append((key, type(result))),
    )
    self.assertEqual(
      seen,
      list(zip(keys, [History, sweep.Failure, History])),
    )
    self.assertEqual(
      [(f.key.seed, f.reason) for f in failures], [(13, 'bad luck')]
    )
    self.assertLen(runs.find(self.folder), 2)

  def test_arguments_reach_the_optimizer(self):
    settings = dataclasses.replace(
      self.settings, backend='scipy', solver='direct', dynamic_depth=True
    )
    shown = []
    for method in ('pixel-lbfgs', 'mma'):
      sweep.execute(
        [Key(_NAME, method, CONSTANT)],
        self.folder,
        settings,
        frames=2,
        progress=lambda group: shown.append,
      )
    first, second = (call[-1] for call in self.calls)
    self.assertEqual(first['backend'], 'scipy')
    self.assertEqual(second['backend'], 'device')  # MMA has no other.
    self.assertEqual(first['save_every'], 1)
    self.assertEqual(first['solver'], 'direct')
    self.assertTrue(first['dynamic_depth'])
    self.assertEqual(first['cnn_kwargs'], {'resizes': (1, 2)})
    self.assertEqual([type(s[0]) for s in shown], [Progress, Progress])
    run = runs.load(self.folder, Key(_NAME, 'mma', CONSTANT))
    self.assertEqual(run.metadata['settings'], settings.metadata())

  def test_batches_hold_what_can_be_stacked(self):
    keys = runs.plan(
      [_NAME, 'canyon_bridge_64x64_0.16', 'mbb_beam_96x32_0.5'],
      ['adam', 'mma'],
      num_seeds=2,
      baseline_seeds=1,
    )
    sweep.execute(keys, self.folder, self.settings, batch_size=3)
    sizes = [call[:3] for call in self.calls if len(call) == 4]
    # Two square tasks: four runs of Adam in batches of three, two constant
    # starts, two seeds; the beam has a batch of Adam to itself.
    batches = [size for size in sizes if isinstance(size[0], int)]
    self.assertCountEqual(
      batches,
      [(3, 'adam', False), (2, 'mma', True), (2, 'mma', False)]
      + [(2, 'adam', False)],
    )
    self.assertLen(sizes, len(batches) + 3)
    self.assertLen(runs.find(self.folder), len(keys))

  def test_a_failed_batch_is_made_one_by_one(self):
    keys = [Key(name, 'mma', CONSTANT) for name in (_NAME, _OTHER)]
    failures = sweep.execute(keys, self.folder, self.settings, batch_size=2)
    self.assertEmpty(failures)
    self.assertLen(self.calls, 3)
    self.assertLen(runs.find(self.folder), 2)

  def test_scipy_runs_are_not_batched(self):
    keys = [Key(_NAME, 'cnn-lbfgs', seed) for seed in range(3)]
    settings = dataclasses.replace(self.settings, backend='scipy')
    sweep.execute(keys, self.folder, settings, batch_size=3)
    self.assertEqual([call[2] for call in self.calls], [0, 1, 2])


if __name__ == '__main__':
  absltest.main()
