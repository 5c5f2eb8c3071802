"""Sweeps that machines share, and what is read off them."""

import concurrent.futures
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.adapters import recipes, sweep

GRID = {'size': (2, 8, 64), 'learning_rate': (1e-3, 3e-3)}


def run(point):
  """A score that is known; the largest rate fails at the largest size."""
  if point == {'size': 64, 'learning_rate': 3e-3}:
    return {'value': float('nan'), 'test': []}
  score = point['size'] * point['learning_rate']
  return {'value': score, 'test': [score, score + 0.1, score + 0.5]}


class SweepTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  @parameterized.parameters(None, 'journal', 'sqlite')
  def test_whole_grid_once(self, kind):
    storage = {
      None: None,
      'journal': str(self.folder / 'sweep.journal'),
      'sqlite': f'sqlite:///{self.folder}/sweep.db',
    }[kind]
    points = sweep.grid_points(GRID)
    calls, lines = [], []

    def counted(point):
      calls.append(point)
      return run(point)

    trials = sweep.run_sweep(counted, points, storage=storage, say=lines.append)
    self.assertEqual(calls, points)
    self.assertEqual([t.params for t in trials], points)
    self.assertEqual([t.status for t in trials], ['ok'] * 5 + ['failed'])
    self.assertIsNone(trials[-1].value)
    self.assertIn('failed', lines[-1])
    if storage:
      again = sweep.run_sweep(counted, points, storage=storage)
      self.assertLen(calls, len(points))
      self.assertEqual(again, trials)
      with self.assertRaisesRegex(ValueError, 'another grid'):
        sweep.run_sweep(run, points[:-1], storage=storage)

  def test_several_workers(self):
    storage = str(self.folder / 'sweep.journal')
    points = sweep.grid_points({'size': tuple(range(12))})
    calls = []

    def counted(point):
      calls.append(point['size'])
      return {'value': float(point['size']), 'test': []}

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      workers = [
        pool.submit(sweep.run_sweep, counted, points, storage=storage)
        for _ in range(3)
      ]
      for worker in workers:
        worker.result()
    self.assertEqual(sorted(calls), list(range(12)))
    trials = sweep.run_sweep(counted, points, storage=storage)
    self.assertEqual([t.value for t in trials], list(range(12)))

  def test_a_machine_that_is_slow_to_begin(self):
    # It has its number, and has not yet written down which point that is.
    storage = f'sqlite:///{self.folder}/sweep.db'
    points = sweep.grid_points({'size': (1, 2, 3)})
    optuna = sweep._optuna()
    study = optuna.create_study(
      storage=storage, study_name='adapters', direction='maximize'
    )
    study.ask()
    fine = lambda point: {'value': 1.0, 'test': []}  # noqa: E731
    trials = sweep.run_sweep(fine, points, storage=storage)
    self.assertEqual([t.params['size'] for t in trials], [2, 3])
    trials = sweep.run_sweep(fine, points, storage=storage, retry=True)
    self.assertEqual([t.params['size'] for t in trials], [1, 2, 3])

  def test_holes_are_filled_once(self):
    storage = f'sqlite:///{self.folder}/sweep.db'
    optuna = sweep._optuna()
    study = optuna.create_study(
      storage=storage, study_name='adapters', direction='maximize'
    )
    for _ in range(2):
      study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    first, second = study.ask(), study.ask()
    self.assertEqual(sweep._claim(study, first.number, 2), 0)
    first.set_user_attr('point', 0)
    self.assertEqual(sweep._claim(study, second.number, 2), 1)
    second.set_user_attr('point', 1)
    self.assertIsNone(sweep._claim(study, study.ask().number, 2))

  def test_a_machine_that_died(self):
    storage = str(self.folder / 'sweep.journal')
    points = sweep.grid_points({'size': (1, 2, 3)})

    def dies(point):
      if point['size'] == 2:
        raise KeyboardInterrupt
      return {'value': 1.0, 'test': []}

    with self.assertRaises(KeyboardInterrupt):
      sweep.run_sweep(dies, points, storage=storage)
    fine = lambda point: {'value': 1.0, 'test': []}  # noqa: E731
    # Somebody may still be at it.
    trials = sweep.run_sweep(fine, points, storage=storage)
    self.assertEqual([t.params['size'] for t in trials], [1, 3])
    trials = sweep.run_sweep(fine, points, storage=storage, retry=True)
    self.assertEqual([t.params['size'] for t in trials], [1, 2, 3])

  def test_killed_before_the_study_was_told(self):
    storage = self.folder / 'sweep.journal'
    points = sweep.grid_points({'size': (1, 2)})
    fine = lambda point: {'value': point['size'] / 4, 'test': []}  # noqa: E731
    whole = sweep.run_sweep(fine, points, storage=str(storage))
    lines = storage.read_text().splitlines(keepends=True)
    storage.write_text(''.join(lines[:-1]))
    again = sweep.run_sweep(fine, points, storage=str(storage), retry=True)
    self.assertEqual(again, whole)
    self.assertEqual([trial.value for trial in again], [0.25, 0.5])

  def test_selection(self):
    trials = sweep.run_sweep(run, sweep.grid_points(GRID))
    chosen = sweep.select(trials, ('size',))
    self.assertEqual(
      [(c.group['size'], c.params['learning_rate']) for c in chosen],
      [(2, 3e-3), (8, 3e-3), (64, 1e-3)],
    )
    last = chosen[-1]
    self.assertEqual(last.failed, 1)
    scores = np.array([0.064, 0.164, 0.564])
    self.assertAlmostEqual(last.mean, scores.mean())
    self.assertAlmostEqual(last.median, 0.164)
    self.assertAlmostEqual(last.sem, scores.std(ddof=1) / np.sqrt(3))

  def test_percentiles(self):
    sizes, table = sweep.percentile_curve(
      {'a': {8: 0.8, 64: 0.9}, 'b': {64: 0.6, 8: 0.7, 1: 0.1}},
      {'a': 0.9, 'b': 0.7},
    )
    self.assertEqual(sizes, [8, 64])
    gaps = np.array([[-0.1, 0.0], [0.0, -0.1]])
    np.testing.assert_allclose(
      table, np.percentile(gaps, (20, 50, 80), axis=0), atol=1e-12
    )

  def test_bad_arguments(self):
    with self.assertRaisesRegex(ValueError, "no values for 'size'"):
      sweep.grid_points({'size': ()})
    with self.assertRaisesRegex(ValueError, 'points is empty'):
      sweep.run_sweep(run, [])
    with self.assertRaisesRegex(ValueError, 'scores has tasks'):
      sweep.percentile_curve({'a': {1: 0.0}}, {'b': 0.0})
    with self.assertRaisesRegex(ValueError, 'no setting in common'):
      sweep.percentile_curve({'a': {1: 0.0}, 'b': {2: 0.0}}, {'a': 0, 'b': 0})


class RecipesTest(absltest.TestCase):
  def test_grid_of_the_paper(self):
    config = recipes.tradeoff_config('paper')
    config.tasks = ('sms_spam',)
    points = recipes.tradeoff_points(config)
    # 10 sizes, 8 numbers of layers, and three modes without; 4 rates, 3 epochs.
    self.assertLen(points, (10 + 8 + 3) * 4 * 3)
    sizes = {p['size'] for p in points if p['mode'] == 'adapter'}
    self.assertEqual(sizes, {2**n for n in range(10)})
    setting = recipes.setting_of(config, points[-1])
    self.assertEqual((setting.mode, setting.epochs), ('head', 100))
    top = next(p for p in points if p['mode'] == 'top_k')
    self.assertEqual(recipes.setting_of(config, top).k, 1)
    with self.assertRaisesRegex(ValueError, "variant is 'large'"):
      recipes.tradeoff_config('large')
    with self.assertRaisesRegex(ValueError, "variant is 'x'"):
      recipes.scale_config('x')


if __name__ == '__main__':
  absltest.main()
