"""Tests of the figures and files of an analysis."""

import base64
import io
import json
import pathlib
import re
import tempfile
import types

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jaxpapers.kcore import figures, figures_maps, pipeline, report, study
from jaxpapers.kcore.null import NullSummary
from tests.helpers import goldens

_EVERYTHING = [
  'percolation',
  'matrix',
  'shells',
  'shell_picture',
  'core_voxels',
  'core_graph',
  'core_sizes',
  'null',
  'frequency',
  'two_states',
  'collapse',
]


def _study():
  module = np.repeat([0, 1], 8)
  corr = []
  for g in range(2):
    shared = goldens.normal(f'kcore/report_shared{g}', (3, 40))
    x = goldens.normal(f'kcore/report{g}', (16, 40)) + 1.2 * shared[module]
    c = np.corrcoef(x + 1.2 * shared[2])
    corr.append(np.triu(c, 1) + np.triu(c, 1).T + np.eye(16))
  coords = goldens.normal('kcore/report_coords', (16, 3))
  names = ['left <front>', 'right']
  return study.Study(
    'Made & small',
    corr,
    ['run A', 'run B'],
    module,
    names,
    coords,
    np.arange(16) % 3 == 0,
    'masked words',
    {'source': 'test'},
  )


class ReportTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.analysis = pipeline.analyze(
      _study(), pipeline.Options(num_nulls=10, max_couplings=6)
    )
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.folder = pathlib.Path(folder.name) / 'deep' / 'er'
    cls.page = report.write(cls.analysis, cls.folder)

  def test_files(self):
    names = sorted(path.name for path in self.folder.iterdir())
    self.assertEqual(
      names, ['figures', 'network.npz', 'report.html', 'results.json']
    )
    pictures = {path.stem for path in (self.folder / 'figures').iterdir()}
    self.assertEqual(pictures, set(_EVERYTHING))
    for path in (self.folder / 'figures').iterdir():
      with Image.open(path) as image:
        pixels = np.asarray(image.convert('L'))
      # Not blank, and something in the middle.
      self.assertGreater(pixels.std(), 3, path.name)
      self.assertGreater(pixels.shape[1], 600, path.name)

  def test_json_is_what_was_computed(self):
    text = (self.folder / 'results.json').read_text('utf-8')
    numbers = json.loads(text, parse_constant=self.fail)
    shown = self.analysis.shown
    self.assertEqual(numbers['networks'][0]['k_max'], shown.k_max)
    self.assertEqual(numbers['networks'][0]['links'], len(shown.edges))
    self.assertEqual(
      numbers['networks'][0]['occupancy'], shown.occupancy.tolist()
    )
    self.assertEqual(
      numbers['networks'][0]['null']['p'],
      self.analysis.nulls[0].p_value(shown.k_max),
    )
    self.assertEqual(
      numbers['cluster_frequency']['count'],
      self.analysis.frequency.count.tolist(),
    )
    self.assertLen(numbers['sensitivity'], len(self.analysis.table))

  def test_page_is_self_contained(self):
    text = self.page.read_text('utf-8')
    self.assertNotRegex(text, r'(src|href)="(?!data:|https://arxiv)')
    pictures = re.findall(r'base64,([^"]+)"', text)
    self.assertLen(pictures, len(_EVERYTHING))
    for name, encoded in zip(_EVERYTHING, pictures, strict=True):
      file = (self.folder / 'figures' / f'{name}.png').read_bytes()
      self.assertEqual(base64.b64decode(encoded), file, name)
    self.assertIn('the location of the core is not', text)
    self.assertIn('Made &amp; small', text)
    self.assertIn('left &lt;front&gt;', text)
    self.assertNotIn('<front>', text)

  def test_network_file_feeds_the_scripts(self):
    shown = self.analysis.shown
    with np.load(self.folder / 'network.npz') as file:
      np.testing.assert_array_equal(file['edges'], shown.edges)
      self.assertEqual(int(file['num_nodes']), 16)
      u, v = file['edges'].T
      np.testing.assert_array_equal(
        file['weights'], self.analysis.study.corr[0][u, v]
      )
      np.testing.assert_array_equal(file['coreness'], shown.coreness)

  def test_bare_analysis(self):
    bare = _study()._replace(coords=None, other=None)
    bare = bare._replace(corr=bare.corr[:1], names=bare.names[:1])
    options = pipeline.Options(num_nulls=0, sensitivity=False, max_couplings=0)
    analysis = pipeline.analyze(bare, options)
    self.assertEqual(
      list(report.draw(analysis)),
      [
        'percolation',
        'matrix',
        'shells',
        'shell_picture',
        'core_graph',
        'core_sizes',
      ],
    )
    with tempfile.TemporaryDirectory() as folder:
      text = report.write(analysis, folder).read_text('utf-8')
    for absent in ('random networks', 'second state', 'Collapse'):
      self.assertNotIn(absent, text)

  def test_no_links(self):
    options = pipeline.Options(
      strategy='global', threshold=2.0, num_nulls=5, sensitivity=False
    )
    analysis = pipeline.analyze(_study(), options)
    self.assertEqual(list(report.draw(analysis)), ['percolation', 'matrix'])
    with tempfile.TemporaryDirectory() as folder:
      report.write(analysis, folder)

  def test_put_leaves_the_old_file_if_it_fails(self):
    with tempfile.TemporaryDirectory() as folder:
      path = report.put(pathlib.Path(folder) / 'x', b'old')
      with self.assertRaises(TypeError):
        report.put(path, 'text, not bytes')
      self.assertEqual(path.read_bytes(), b'old')


class FiguresTest(parameterized.TestCase):
  def _lines(self, figure, axis=0):
    return [line.get_ydata() for line in figure.axes[axis].lines]

  def test_null_band_draws_these_numbers(self):
    null = NullSummary(
      np.array([2, 2, 3], np.int32),
      np.array([1.0, 4.0, 5.0, 0.5]),
      np.array([0.0, 1.0, 2.0, 0.5]),
      np.array([9, 9, 9]),
      3,
      20,
    )
    figure = figures.null_band(np.array([1, 3, 0, 2, 4]), null)
    mean, real = self._lines(figure)
    # The real network reaches shell 4, which no random one has.
    np.testing.assert_array_equal(mean, [4.0, 5.0, 0.5, 0.0])
    np.testing.assert_array_equal(real, [3, 0, 2, 4])
    bars = [bar.get_height() for bar in figure.axes[1].patches]
    np.testing.assert_allclose(bars, [2 / 3, 1 / 3])

  def test_shells_are_stacked_by_module(self):
    result = types.SimpleNamespace(
      coreness=np.array([0, 1, 1, 2, 2, 2]),
      k_max=2,
      occupancy=np.array([1, 2, 3]),
    )
    figure = figures.shells(result, np.array([0, 0, 1, 1, 1, 0]), ['a', 'b'])
    bars = figure.axes[0].patches
    self.assertEqual([bar.get_height() for bar in bars], [1, 1, 1, 2])
    self.assertEqual([bar.get_y() for bar in bars], [0, 0, 1, 1])

  def test_nested(self):
    for k_max, expected in (
      (0, []),
      (1, [1]),
      (5, [1, 5]),
      (7, [1, 5, 7]),
      (95, [1, 5, 10, 95]),
    ):
      result = types.SimpleNamespace(k_max=k_max)
      self.assertEqual(figures.nested(result), expected)

  def test_one_slice_is_seen_from_above_only(self):
    flat = np.zeros((4, 3))
    flat[:, :2] = goldens.normal('kcore/flat', (4, 2))
    core = np.array([True, False, True, False])
    for coords, panels in ((flat, 3), (flat[:, [0, 2, 1]], 6)):
      figure = figures_maps.two_states(
        core, ~core, coords, core_name='a', other_name='b'
      )
      self.assertLen(figure.axes, panels)

  def test_png(self):
    figure, _ = figures.new_figure(2.0, 1.0)
    with Image.open(io.BytesIO(figures.to_png(figure, 100))) as image:
      self.assertEqual(image.size, (200, 100))


if __name__ == '__main__':
  absltest.main()
