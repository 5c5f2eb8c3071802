"""Tests of scores, relative errors, the published numbers and their reports."""

import json
import pathlib
import tempfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized
from scipy import io as scipy_io

from jaxpapers.structopt import analysis, methods, published, reports
from jaxpapers.structopt.analysis import Scores
from jaxpapers.structopt.runs import Key, Run
from tests.helpers import goldens

# Recomputed from the appendix with the definitions of the paper's notebook.
_MEANS = {
  'typical': {
    'small': (0.0232, 0.1832, 0.0192, 0.0385),
    'large': (0.0148, 0.5481, 0.0348, 0.0700),
    'all': (0.0193, 0.3531, 0.0265, 0.0531),
  },
  'ensemble': {
    'small': (0.0037, 0.0580, 0.0028, 0.0149),
    'large': (0.0013, 0.2234, 0.0149, 0.0632),
    'all': (0.0026, 0.1350, 0.0084, 0.0374),
  },
}
_ENSEMBLE_COUNTS = {
  0.0: (67, 0, 49, 2),
  0.001: (75, 0, 53, 5),
  0.005: (94, 0, 72, 19),
  0.01: (106, 2, 89, 33),
  0.02: (115, 11, 99, 51),
  0.05: (116, 33, 112, 86),
}


def _scores(values, counts=None, methods_=('cnn-lbfgs', 'mma')):
  values = np.array(values, np.float64)
  names = tuple(
    f'toy{i}_32x{64 if i % 2 else 1024}' for i in range(len(values))
  )
  return Scores(names, methods_, values, counts)


def _run(method, seed, losses, problem='toy_32x32'):
  losses = np.array(losses, np.float64)
  return Run(Key(problem, method, seed), losses, len(losses) - 1)


class PublishedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    typical, ensemble = published.paper_scores()
    self.scores = {'typical': typical, 'ensemble': ensemble}

  @parameterized.parameters(
    (kind, group) for kind in _MEANS for group in _MEANS[kind]
  )
  def test_mean_relative_errors(self, kind, group):
    means = analysis.mean_relative_errors(self.scores[kind])[group]
    # The numbers above are rounded to four decimals.
    np.testing.assert_allclose(means, _MEANS[kind][group], atol=5.1e-5, rtol=0)

  @parameterized.parameters(*_ENSEMBLE_COUNTS.items())
  def test_counts(self, tolerance, expected):
    counts = analysis.counts_within(self.scores['ensemble'], tolerance)
    self.assertEqual(tuple(counts), expected)

  def test_best_counts_of_typical_scores(self):
    counts = analysis.counts_within(self.scores['typical'])
    self.assertEqual(tuple(counts), (42, 0, 48, 26))

  def test_rows_and_columns_are_where_they_belong(self):
    # A second run of the authors' code was compared with these values.
    again = goldens.load_json('structopt', 'paper_1000step_rerun.json')
    self.assertLen(again, 4)
    for problem, by_method in again.items():
      for method in ('mma', 'oc', 'pixel-lbfgs'):
        value = self.scores['typical'].value(problem, method)
        self.assertEqual(value, by_method[method]['paper'], (problem, method))

  def test_typical_is_never_below_the_ensemble(self):
    typical, ensemble = self.scores.values()
    self.assertEqual(typical.problems, ensemble.problems)
    self.assertLen(typical.problems, 116)
    self.assertTrue((typical.values >= ensemble.values).all())


class ScoreTest(parameterized.TestCase):
  def test_definitions(self):
    typical, ensemble = analysis.score(
      [
        _run('cnn-lbfgs', 0, [9, 5, 6]),
        _run('cnn-lbfgs', 1, [9, 3, 1]),
        _run('cnn-lbfgs', 2, [9, 8, 8]),
        _run('mma', -1, [9, 7, 7]),
        _run('mma', 0, [4, 4, 4]),
      ],
      step=1,
    )
    self.assertEqual(typical.methods, ('cnn-lbfgs', 'mma'))
    np.testing.assert_array_equal(typical.values, [[5, 7]])
    np.testing.assert_array_equal(typical.counts, [[3, 1]])
    np.testing.assert_array_equal(ensemble.values, [[3, 4]])
    np.testing.assert_array_equal(ensemble.counts, [[3, 2]])

  def test_a_run_that_stopped_keeps_its_best(self):
    typical, _ = analysis.score([_run('oc', -1, [3, 2, np.nan, np.nan])])
    self.assertEqual(typical.value('toy_32x32', 'oc'), 2)

  def test_missing_runs(self):
    typical, ensemble = analysis.score(
      [
        _run('mma', 0, [4], 'a_32x32'),
        _run('oc', -1, [5], 'b_32x32'),
        _run('oc', -1, [np.nan], 'c_32x32'),
      ]
    )
    np.testing.assert_array_equal(np.isnan(typical.values).sum(), 5)
    self.assertEqual(ensemble.value('a_32x32', 'mma'), 4)
    self.assertEmpty(ensemble.complete().problems)
    self.assertTrue(np.isnan(typical.value('a_32x32', 'adam')))
    with self.assertRaisesRegex(ValueError, 'scores has missing values'):
      analysis.relative_errors(typical)

  def test_order_of_methods(self):
    runs = [_run(m, 0, [1]) for m in ('zebra', 'oc', 'adam', 'cnn-lbfgs')]
    methods_ = analysis.score(runs)[0].methods
    self.assertEqual(methods_, ('cnn-lbfgs', 'oc', 'adam', 'zebra'))

  @parameterized.parameters(*methods.METHODS)
  def test_networks_are_known(self, method):
    settings = methods.Settings(method, 8, 8)
    self.assertEqual(settings.network, method in analysis.NETWORK_METHODS)
    self.assertIn(method, analysis.TITLES)


class ComparisonTest(parameterized.TestCase):
  def test_sizes(self):
    self.assertFalse(analysis.is_large('l_shape_0.4_128x128_0.3'))
    self.assertTrue(analysis.is_large('a_256x128_0.3'))
    self.assertFalse(analysis.is_large('a_256x127'))
    with self.assertRaisesRegex(ValueError, "problem is 'bridge'; expected"):
      analysis.is_large('bridge')

  def test_groups(self):
    scores = _scores([[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(scores.group('small').values, [[3, 4]])
    np.testing.assert_array_equal(
      scores.group('large').values, [[1, 2], [5, 6]]
    )
    with self.assertRaisesRegex(ValueError, "name is 'tiny'; expected one of"):
      scores.group('tiny')

  def test_select(self):
    scores = _scores([[1, 2], [3, 4]], np.array([[1, 1], [2, 9]]))
    part = scores.select([scores.problems[1]], ['mma', 'cnn-lbfgs'])
    np.testing.assert_array_equal(part.values, [[4, 3]])
    np.testing.assert_array_equal(part.counts, [[9, 2]])

  def test_ties_count_for_both(self):
    scores = _scores([[1, 1], [1, 2]])
    np.testing.assert_array_equal(analysis.counts_within(scores), [2, 1])

  def test_empty_group_has_no_mean(self):
    means = analysis.mean_relative_errors(_scores([[1, 2]]))
    self.assertTrue(np.isnan(means['small']).all())
    np.testing.assert_array_equal(means['large'], [0, 1])

  @hypothesis.settings(deadline=None, max_examples=30)
  @hypothesis.given(
    st.lists(st.tuples(*[st.floats(0.1, 100)] * 2), min_size=1, max_size=8),
    st.floats(0.5, 50),
  )
  def test_invariants(self, values, factor):
    scores = _scores(values)
    errors = analysis.relative_errors(scores)
    self.assertTrue((errors.min(1) == 0).all())
    # The unit of the loads does not matter.
    scaled = _scores(factor * scores.values)
    np.testing.assert_allclose(
      analysis.relative_errors(scaled), errors, rtol=1e-9, atol=1e-12
    )
    curves = analysis.distribution(scores)
    self.assertTrue((np.diff(curves, axis=0) >= 0).all())
    np.testing.assert_allclose(
      curves[0] * len(values), analysis.counts_within(scores), rtol=1e-12
    )
    at = analysis.distribution(scores, np.array([1e9]))
    np.testing.assert_array_equal(at, 1.0)

  def test_csv_holds_the_curves(self):
    scores = _scores([[1, 1.1], [2, 2]])
    lines = analysis.distribution_csv(scores, scores).splitlines()
    self.assertEqual(lines[0], 'kind,group,threshold,cnn-lbfgs,mma')
    self.assertIn('typical,large,0.099,1.000000,0.000000', lines)
    self.assertIn('ensemble,all,0.101,1.000000,1.000000', lines)
    self.assertLen(lines, 1 + 2 * 3 * 201)

  def test_summary_is_json(self):
    scores = _scores([[1, 1.5], [2, np.nan]])
    text = json.dumps(analysis.summary(scores, scores, 7), allow_nan=False)
    kind = json.loads(text)['typical']
    self.assertEqual(kind['tasks'], {'small': 0, 'large': 1, 'all': 1})
    self.assertEqual(kind['mean_relative_error']['all'], [0, 0.5])
    self.assertEqual(kind['mean_relative_error']['small'], [None, None])
    self.assertEqual(kind['count_within']['all']['0.0'], [1, 0])
    self.assertEqual(kind['compliance']['toy1_32x64'], [2, None])


class NetcdfTest(parameterized.TestCase):
  """Files in the layout in which xarray writes netCDF-3."""

  def new_path(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    return pathlib.Path(folder.name) / 'losses.nc'

  def write(self, losses, order=(0, 1, 2, 3), without=()):
    path = self.new_path()
    names = ('problem_name', 'method_name', 'seed', 'step')
    with scipy_io.netcdf_file(path, 'w') as file:
      for name, size in zip(names, losses.shape):
        file.createDimension(name, size)
      file.createDimension('string16', 16)
      for name, texts in (
        ('problem_name', ['b_32x32', 'a_256x256_0.1']),
        ('method_name', ['pixels-mma', 'cnn-lbfgs', 'new']),
      ):
        if name not in without:
          variable = file.createVariable(name, 'c', (name, 'string16'))
          for i, text in enumerate(texts):
            variable[i] = np.array(list(text.ljust(16, '\0')), 'S1')
      variable = file.createVariable('seed', 'i', ('seed',))
      variable[:] = [-1, 0]
      if 'loss' not in without:
        variable = file.createVariable('loss', 'f', [names[i] for i in order])
        variable[:] = losses.transpose(order)
    return path

  @parameterized.parameters(((0, 1, 2, 3),), ((3, 1, 0, 2),))
  def test_reads_back(self, order):
    losses = np.arange(2 * 3 * 2 * 4.0).reshape(2, 3, 2, 4)
    losses[0, 1, 0] = np.nan  # A network has no constant start.
    losses[1, 0, 1, 2:] = np.nan
    found = {
      run.key: run.losses
      for run in published.read_netcdf(self.write(losses, order))
    }
    self.assertLen(found, 11)
    self.assertNotIn(Key('b_32x32', 'cnn-lbfgs', -1), found)
    for i, problem in enumerate(('b_32x32', 'a_256x256_0.1')):
      for j, method in enumerate(('mma', 'cnn-lbfgs', 'new')):
        for k, seed in enumerate((-1, 0)):
          key = Key(problem, method, seed)
          if key in found:
            np.testing.assert_array_equal(found[key], losses[i, j, k])
    typical, _ = analysis.score(published.read_netcdf(self.write(losses)), 1)
    self.assertEqual(typical.problems, ('b_32x32', 'a_256x256_0.1'))
    self.assertEqual(typical.value('a_256x256_0.1', 'mma'), 24)

  def test_other_files(self):
    losses = np.zeros((2, 3, 2, 4))
    with self.assertRaisesRegex(ValueError, "no variable 'method_name'"):
      list(published.read_netcdf(self.write(losses, without='method_name')))
    with self.assertRaisesRegex(ValueError, "no variable 'loss'"):
      list(published.read_netcdf(self.write(losses, without=('loss',))))
    with self.assertRaisesRegex(ValueError, 'is not a netCDF-3 file.*nccopy'):
      path = self.new_path()
      path.write_bytes(b'\x89HDF\r\n\x1a\n' + 99 * b'x')
      list(published.read_netcdf(path))
    with self.assertRaisesRegex(ValueError, 'There is no file'):
      list(published.read_netcdf('nowhere.nc'))


class ReportsTest(absltest.TestCase):
  def test_table(self):
    text = reports.table(['name', 'x'], [['a', '1.5'], ['bcdef', '-']])
    self.assertEqual(text, 'name     x\n-----  ---\na      1.5\nbcdef    -')

  def test_beside_the_paper(self):
    problem = 'mbb_beam_96x32_0.5'
    paper = published.paper_scores()
    one = Scores((problem,), ('mma', 'adam'), np.array([[230.7888, 5.0]]))
    counts = np.array([[1, 1]])
    single = Scores(one.problems, one.methods, one.values, counts)
    lines = reports.beside_paper(single, single, paper).splitlines()
    self.assertEqual(
      [line.split() for line in lines[2:]],
      [
        [problem, 'MMA', '1', '230.789', '209.808', '+10.00', '%'],
        [problem, 'CNN-Adam', '1', '5', '-', '-'],
      ],
    )
    many = Scores(one.problems, one.methods, one.values, 3 * counts)
    lines = reports.beside_paper(single, many, paper).splitlines()
    best = paper[1].value(problem, 'mma')
    self.assertIn(f'3  230.789  {reports.number(best)}', lines[2])

  def test_tables_of_the_paper(self):
    typical, ensemble = published.paper_scores()
    lines = reports.means(typical, ensemble).splitlines()
    means = [line.split() for line in lines]
    expected = [
      [kind, group, *(f'{value:.4f}' for value in row)]
      for kind, groups in _MEANS.items()
      for group, row in groups.items()
    ]
    self.assertEqual([row[:2] + row[3:] for row in means[2:]], expected)
    counts = reports.counts(typical, ensemble).splitlines()
    self.assertIn('ensemble all best 67 0 49 2'.split(), map(str.split, counts))

  def test_figure(self):
    typical, ensemble = published.paper_scores()
    figure = reports.distribution_figure(typical, ensemble)
    self.assertLen(figure.axes, 4)
    axes = figure.axes[3]
    self.assertIn('54 large tasks', axes.get_title())
    curves = analysis.distribution(ensemble.group('large'))
    drawn = [line for line in axes.lines if len(line.get_xdata()) > 1]
    for j, line in enumerate(drawn):
      np.testing.assert_array_equal(line.get_ydata(), curves[:, j])
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    self.assertAlmostEqual(marks[2].get_xdata()[0], 1.494, places=3)
    # Beyond the edge.
    self.assertEqual(marks[1].get_xdata()[0], 20)


if __name__ == '__main__':
  absltest.main()
