"""Tests of scripts/structopt_gallery.py, in processes of its own."""

import base64
import html.parser
import io
import pathlib
import tempfile

import numpy as np
import PIL.Image
from absl.testing import absltest, parameterized

from jaxpapers.structopt import problems, render, runs
from jaxpapers.structopt.history import History
from tests.helpers import scripts

_SCRIPT = 'structopt_gallery'
_BRIDGE = 'causeway_bridge_top_64x64_0.3'
_BEAM = 'mbb_beam_96x32_0.5'


class _Page(html.parser.HTMLParser):
  """Tags with their attributes, and the text."""

  def __init__(self, path):
    super().__init__()
    self.tags, self.words = [], []
    self.feed(path.read_text('utf-8'))

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.words.append(data)

  def all(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]

  @property
  def text(self):
    return ' '.join(self.words)


class GalleryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.designs = {}
    for i, (problem, method, seed, loss) in enumerate(
      (
        (_BEAM, 'mma', -1, 250.0),
        (_BRIDGE, 'mma', -1, 14.0),
        (_BRIDGE, 'cnn-lbfgs', 0, 13.5),
        (_BRIDGE, 'cnn-lbfgs', 1, 12.5),
        (_BRIDGE, 'cnn-lbfgs', 2, 13.0),
      )
    ):
      self.save_run(runs.Key(problem, method, seed), loss, i)

  def save_run(self, key, loss, number):
    task = problems.get_problem(key.problem)
    design = np.random.default_rng(number).random((task.nely, task.nelx))
    self.designs[key] = design
    history = History(
      problem=key.problem,
      method=key.method,
      losses=np.array([999.0, loss]),
      feasible=np.ones(2, bool),
      best_design=design,
      best_feasible_design=1 - design,
      final_design=1 - design,
      steps=1,
      seconds=1.0,
      converged=False,
      message='',
      metadata={'seed': key.seed},
    )
    runs.save(self.folder, key, history, task)

  def page(self, *flags):
    done = scripts.run(_SCRIPT, f'--runs={self.folder}', *flags)
    self.assertEqual(done.returncode, 0, done.stderr)
    path = pathlib.Path(done.stdout.split()[-1])
    self.assertIn(str(path), done.stdout)
    return _Page(path)

  def test_shows_the_best_design_of_each_method(self):
    page = self.page()
    images = page.all('img')
    expected = [
      runs.Key(_BEAM, 'mma', -1),
      runs.Key(_BRIDGE, 'cnn-lbfgs', 1),
      runs.Key(_BRIDGE, 'mma', -1),
    ]
    self.assertLen(images, 3)
    for image, key in zip(images, expected):
      self.assertIn(key.problem, image['alt'])
      kind, _, data = image['src'].partition(',')
      self.assertEqual(kind, 'data:image/png;base64')
      with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        np.testing.assert_array_equal(
          np.array(picture),
          render.to_image(self.designs[key], problems.get_problem(key.problem)),
        )
    self.assertIn('CNN-LBFGS: 12.5', page.text)
    self.assertIn('+12.00 % from the best', page.text)
    self.assertIn('seed 1, best of 3 runs', page.text)
    # Typical MMA of the paper: 209.808.
    self.assertIn(f'{100 * (250 / 209.808 - 1):+.2f} % from', page.text)

  def test_needs_no_other_file(self):
    page = self.page()
    for _, attributes in page.tags:
      for name in ('src', 'href', 'srcset', 'action', 'data'):
        self.assertTrue(attributes.get(name, 'data:').startswith('data:'))
    source = (self.folder / 'gallery.html').read_text('utf-8')
    for word in ('http', '@import', 'url('):
      self.assertNotIn(word, source)
    # string.Template leaves no name unfilled.
    self.assertNotRegex(source, r'\$[a-z]')

  def test_can_be_filtered_by_family(self):
    page = self.page()
    families = [o['value'] for o in page.all('option') if 'value' in o]
    sections = page.all('section')
    self.assertEqual([s['id'] for s in sections], [_BEAM, _BRIDGE])
    for section in sections:
      self.assertIn(section['data-family'], families)
    self.assertAlmostEqual(float(sections[1]['data-spread']), 0.12)
    self.assertEqual(sections[0]['data-size'], str(96 * 32))

  def test_part_of_the_runs(self):
    output = self.folder / 'other' / 'page.html'
    page = self.page(
      '--methods=mma', '--problem_filter=bridge', f'--output={output}'
    )
    self.assertTrue(output.exists())
    self.assertLen(page.all('img'), 1)
    self.assertNotIn(_BEAM, page.text)

  @parameterized.parameters(
    ([], 'Give --runs'),
    (['--runs=nowhere'], "no folder 'nowhere'"),
    (['--runs=FOLDER', '--methods=mna'], "no 'mna' among these runs"),
    (['--runs=FOLDER', '--problem_filter=xyz'], 'no runs'),
    (['--runs=FOLDER', '--problem_filter=('], 'regular expression'),
    (['--rnus=x'], "Unknown command line flag 'rnus'"),
  )
  def test_wrong_flags(self, flags, *words):
    flags = [flag.replace('FOLDER', str(self.folder)) for flag in flags]
    scripts.assert_usage_error(self, scripts.run(_SCRIPT, *flags), *words)
    self.assertFalse((self.folder / 'gallery.html').exists())


if __name__ == '__main__':
  absltest.main()
