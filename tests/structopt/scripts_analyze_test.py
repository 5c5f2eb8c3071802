"""Tests of scripts/structopt_analyze.py, in processes of its own."""

import json
import pathlib
import tempfile

import numpy as np
import PIL.Image
from absl.testing import absltest, parameterized
from scipy import io as scipy_io

from jaxpapers.structopt import problems, published, reports, runs
from jaxpapers.structopt.history import History
from tests.helpers import scripts

_SCRIPT = 'structopt_analyze'
_NAMES = ('mbb_beam_96x32_0.5', 'l_shape_0.4_64x64_0.4')

# Mean relative errors of the paper's appendix; see analysis_test.
_TABLE = """
typical small 62 0.0232 0.1832 0.0192 0.0385
typical large 54 0.0148 0.5481 0.0348 0.0700
typical all 116 0.0193 0.3531 0.0265 0.0531
ensemble small 62 0.0037 0.0580 0.0028 0.0149
ensemble large 54 0.0013 0.2234 0.0149 0.0632
ensemble all 116 0.0026 0.1350 0.0084 0.0374
ensemble all best 67 0 49 2
ensemble all within 0.1 % 75 0 53 5
ensemble all within 1 % 106 2 89 33
ensemble all within 5 % 116 33 112 86
"""


def save_run(folder, problem, method, seed, losses):
  """Stores a run with the given losses and an empty design."""
  task = problems.get_problem(problem)
  design = np.zeros((task.nely, task.nelx))
  history = History(
    problem=problem,
    method=method,
    losses=np.array(losses, np.float64),
    feasible=np.ones(len(losses), bool),
    best_design=design,
    best_feasible_design=design,
    final_design=design,
    steps=len(losses) - 1,
    seconds=1.0,
    converged=False,
    message='',
    metadata={'seed': seed},
  )
  runs.save(folder, runs.Key(problem, method, seed), history, task)


class AnalyzeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def run_script(self, *flags):
    """Output as a list of the words of each line."""
    done = scripts.run(_SCRIPT, *flags)
    self.assertEqual(done.returncode, 0, done.stderr)
    return done.stdout, [line.split() for line in done.stdout.splitlines()]

  def test_the_paper(self):
    text, lines = self.run_script('--tasks', f'--save_dir={self.folder}')
    for row in _TABLE.strip().splitlines():
      self.assertIn(row.split(), lines)
    self.assertIn(
      'mbb_beam_96x32_0.5 206.454 220.68 209.808 210.507'.split(),
      [line[:5] for line in lines],
    )
    # A count that is quoted for the paper, and that its tables do not give.
    self.assertNotRegex(text, r'\b99\b.{1,30}\b66\b')
    self.assertEqual(
      sorted(path.name for path in self.folder.iterdir()),
      ['distribution.csv', 'distribution.png', 'summary.json'],
    )
    with PIL.Image.open(self.folder / 'distribution.png') as image:
      self.assertGreater(min(image.size), 800)
    numbers = json.loads((self.folder / 'summary.json').read_text())
    self.assertEqual(
      numbers['ensemble']['count_within']['all']['0.0'], [67, 0, 49, 2]
    )
    csv = (self.folder / 'distribution.csv').read_text().splitlines()
    row = [f'{count / 116:.6f}' for count in (67, 0, 49, 2)]
    self.assertIn(','.join(['ensemble', 'all', '0.000', *row]), csv)

  def test_part_of_the_paper(self):
    _, lines = self.run_script('--methods=mma,oc', '--problem_filter=^mbb_beam')
    typical, _ = published.paper_scores()
    names = [n for n in typical.problems if n.startswith('mbb_beam')]
    values = typical.select(names, ['mma', 'oc']).values
    means = (values / values.min(1, keepdims=True) - 1).mean(0)
    self.assertIn(
      ['typical', 'all', '5', *(f'{mean:.4f}' for mean in means)], lines
    )

  def test_runs_beside_the_paper(self):
    beam, shape = _NAMES
    for seed, losses in enumerate(([400, 300], [400, 210], [400, 220])):
      save_run(self.folder, beam, 'cnn-lbfgs', seed, losses)
    save_run(self.folder, beam, 'mma', -1, [300, 200, 100])
    save_run(self.folder, shape, 'mma', -1, [300, 250])
    _, lines = self.run_script(f'--runs={self.folder}')

    def row(problem, method, counts, ours):
      cells = [problem, reports.title(method)]
      for count, value, paper in zip(counts, ours, published.paper_scores()):
        theirs = paper.value(problem, method)
        cells += [str(count), reports.number(value), reports.number(theirs)]
        cells += reports.difference(value, theirs).split()
      return cells

    # Up to the last evaluation that all runs have.
    self.assertIn(row(beam, 'cnn-lbfgs', (3, 3), (220, 210)), lines)
    self.assertIn(row(beam, 'mma', (1, 1), (200, 200)), lines)
    self.assertIn(row(shape, 'mma', (1, 1), (250, 250)), lines)
    self.assertIn('1 tasks lack runs'.split(), [line[:4] for line in lines])
    self.assertIn('typical all 1 0.1000 0.0000'.split(), lines)
    self.assertIn('ensemble all 1 0.0500 0.0000'.split(), lines)
    # The paper's values of that task, between these two methods.
    paper = published.paper_scores()[0].select([beam], ['cnn-lbfgs', 'mma'])
    excess = f'{paper.values[0, 1] / paper.values[0, 0] - 1:.4f}'
    self.assertIn(['typical', 'all', '1', '0.0000', excess], lines)
    _, lines = self.run_script(f'--runs={self.folder}', '--methods=mma')
    self.assertNotIn('CNN-LBFGS', sum(lines, []))

  def test_netcdf(self):
    path = self.folder / 'losses.nc'
    losses = np.array([[[9, 3], [9, 1]], [[8, 2], [np.nan] * 2]])
    with scipy_io.netcdf_file(path, 'w') as file:
      texts = {
        'problem_name': [_NAMES[0]],
        'method_name': ['pixels-mma', 'cnn-lbfgs'],
      }
      for name, size in (
        ('problem_name', 1),
        ('method_name', 2),
        ('seed', 2),
        ('step', 2),
      ):
        file.createDimension(name, size)
      file.createDimension('letters', 24)
      for name, values in texts.items():
        variable = file.createVariable(name, 'c', (name, 'letters'))
        for i, value in enumerate(values):
          variable[i] = np.array(list(value.ljust(24, '\0')), 'S1')
      file.createVariable('seed', 'i', ('seed',))[:] = [-1, 0]
      dimensions = ('problem_name', 'method_name', 'seed', 'step')
      loss = file.createVariable('loss', 'f', dimensions)
      # Networks have no constant start.
      loss[:] = np.stack([losses[0], losses[1][::-1]])[None]
    _, lines = self.run_script(f'--netcdf={path}', '--tasks')
    # Typical CNN 2, MMA 3; best CNN 2, MMA 1.
    self.assertIn([_NAMES[0], '2', '3', '2', '1'], lines)
    self.assertIn('typical all 1 0.0000 0.5000'.split(), lines)
    self.assertIn('ensemble all 1 1.0000 0.0000'.split(), lines)

  @parameterized.parameters(
    (['--rnus=x'], "Unknown command line flag 'rnus'"),
    (['--runs=nowhere'], "no folder 'nowhere'"),
    (['--netcdf=nowhere.nc'], "no file 'nowhere.nc'"),
    (['--runs=a', '--netcdf=b'], 'not both'),
    (['--methods=nma'], "no 'nma' here", 'Did you mean mma'),
    (['--step=100'], 'evaluation 1000 only'),
    (['--problem_filter=xyz'], 'nothing to compare'),
    (['--problem_filter=('], 'not a regular expression'),
  )
  def test_wrong_flags(self, flags, *words):
    scripts.assert_usage_error(self, scripts.run(_SCRIPT, *flags), *words)

  def test_steps_that_runs_do_not_have(self):
    save_run(self.folder, _NAMES[0], 'mma', -1, [300, 250])
    done = scripts.run(_SCRIPT, f'--runs={self.folder}', '--step=5')
    scripts.assert_usage_error(
      self, done, '--step=5 is beyond the end of 1 runs', 'constant with 1'
    )


if __name__ == '__main__':
  absltest.main()
