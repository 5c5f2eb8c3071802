"""Tests of the programs that evaluate and search, run as a user does."""

import dataclasses
import json
import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from PIL import Image

from jaxpapers import osnet
from jaxpapers.osnet import synth
from tests.helpers import scripts

_SIZE = (32, 16)


def _model(folder):
  """A small network with random weights, as osnet_train leaves one."""
  config = osnet.OSNetConfig(
    channels=(8, 16, 16),
    blocks_per_stage=(1, 1),
    streams=(1, 2),
    gate_reduction=2,
    feature_dim=16,
  )
  net = osnet.OSNet(config, 4)
  variables = jax.jit(net.init)(jax.random.key(0), jnp.ones((1, *_SIZE, 3)))
  osnet.save_torch_checkpoint(
    folder / 'model.pth', osnet.to_torch_state_dict(variables, config)
  )
  about = {
    'model': 'small',
    'network': dataclasses.asdict(config),
    'height': _SIZE[0],
    'width': _SIZE[1],
    'metric': 'cosine',
  }
  (folder / 'network.json').write_text(json.dumps(about))
  return net, variables


class ProgramsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    temporary = tempfile.TemporaryDirectory()
    cls.addClassCleanup(temporary.cleanup)
    cls.folder = pathlib.Path(temporary.name)
    cls.net, cls.variables = _model(cls.folder)
    cls.benchmark = synth.make_benchmark(0, 4, 8, _SIZE)
    synth.write_market_folder(cls.folder / 'market1501', cls.benchmark)

  def _run(self, name, *flags):
    return scripts.run(
      name,
      f'--weights={self.folder}',
      f'--cache={self.folder / "cache"}',
      *flags,
    )

  @pytest.mark.slow
  def test_evaluates_and_searches(self):
    gallery = self.folder / 'market1501' / 'bounding_box_test'
    output = self.folder / 'report'
    flags = (
      '--dataset=market1501',
      f'--data={self.folder}',
      '--rerank',
      '--k1=5',
      '--k2=2',
      '--examples=2',
      '--top=3',
      f'--output={output}',
    )
    done = self._run('osnet_eval', *flags)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertNotIn('kept from before', done.stdout)
    report = json.loads((output / 'report.json').read_text())
    numbers = report['results']['market1501']
    self.assertEqual(
      numbers['counts']['gallery'],
      {'images': 96, 'identities': 8, 'cameras': 6},
    )
    # The same as from the library.
    query, gallery_images = self.benchmark.query, self.benchmark.gallery
    found = osnet.Market1501(self.folder)

    @jax.jit
    def embed(x):
      return self.net.apply(self.variables, x).features

    features = [
      np.asarray(
        embed(
          jnp.stack([osnet.load_image(path, _SIZE) for path in split.paths])
        )
      )
      for split in (found.query, found.gallery)
    ]
    expected = osnet.rank_metrics(
      *features,
      found.query.pids,
      found.gallery.pids,
      found.query.camids,
      found.gallery.camids,
      metric='cosine',
    )
    plain = numbers['ranking']['features']
    self.assertAlmostEqual(plain['mAP'], expected.mAP, places=4)
    self.assertEqual(plain['queries'], len(query.pids))
    self.assertLen(plain['cmc'], 50)
    self.assertIn('re-ranked', numbers['ranking'])
    self.assertBetween(numbers['verification']['auc'], 0, 1)
    rows = (output / 'queries_market1501.csv').read_text().splitlines()
    self.assertLen(rows, 1 + len(query.pids))
    self.assertLen(gallery_images.pids, 96)
    page = (output / 'report.html').read_text()
    # Nothing is fetched from elsewhere.
    self.assertNotRegex(page, r'(src|href)="(?!data:|#)')
    self.assertNotIn('url(', page)
    self.assertNotIn('<script', page)
    pictures = re.findall(r'data:image/jpeg;base64', page)
    # Four lists of at most two rows, each of a query, a map and three images.
    self.assertLen(pictures, 4 * 2 * 5)
    self.assertEqual(page.count('<svg'), 4)

    with self.subTest('features are kept'):
      image = found.query.paths[0]
      done = self._run(
        'osnet_search',
        f'--image={image}',
        f'--gallery={gallery}',
        '--top=4',
        f'--output={self.folder / "found"}',
      )
      self.assertEqual(done.returncode, 0, done.stderr)
      self.assertIn('gallery: features of 96 images, kept', done.stdout)
      (one,) = json.loads((self.folder / 'found' / 'found.json').read_text())
      dist, index = osnet.nearest(
        features[0][:1], features[1], 4, metric='cosine'
      )
      # float32 of another batch size.
      np.testing.assert_allclose(
        [row['distance'] for row in one['found']], dist[0], atol=1e-5
      )
      self.assertEqual(
        one['found'][0]['image'], found.gallery.paths[index[0, 0]]
      )
      picture = Image.open(self.folder / 'found' / one['picture'])
      self.assertEqual(picture.size, (5 * 24 + 12 + 3 * 6, 40))

  @pytest.mark.slow
  def test_unreadable_images_and_missing_identities(self):
    folder = self.folder / 'own'
    for part, names in (
      ('query', ('1_c1_a.png', '7_c1_a.png', '2_c1_a.png')),
      ('gallery', ('1_c2_a.png', '1_c3_a.png', '3_c2_a.png', '-1_c2_a.png')),
    ):
      (folder / part).mkdir(parents=True)
      for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (*_SIZE, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name)
    (folder / 'query' / '2_c1_a.png').write_bytes(b'no image')
    flags = [
      f'--query={folder / "query"}',
      f'--gallery={folder / "gallery"}',
      f'--output={folder / "report"}',
    ]
    done = self._run('osnet_eval', *flags)
    scripts.assert_usage_error(self, done, '2_c1_a.png', '--skip_unreadable')
    done = self._run('osnet_eval', *flags, '--skip_unreadable')
    self.assertEqual(done.returncode, 0, done.stderr)
    report = json.loads((folder / 'report' / 'report.json').read_text())
    result = report['results']['folder']
    self.assertEqual(result['counts']['query']['unreadable'], 1)
    self.assertEqual(result['counts']['query']['without a match'], 1)
    self.assertEqual(result['counts']['gallery']['junk'], 1)
    self.assertEqual(result['ranking']['features']['queries'], 1)
    self.assertIn('2_c1_a.png', result['unreadable'][0])


class FlagsTest(parameterized.TestCase):
  def test_refused_before_anything_is_read(self):
    done = scripts.run(
      'osnet_eval', '--weights=none', '--output=none', '--dataset=duke'
    )
    scripts.assert_usage_error(self, done, "'duke' is none of market1501")

  @parameterized.parameters(
    ('osnet_eval', ['--output=none'], '--dataset'),
    ('osnet_eval', ['--output=none', '--dataset=msmt17'], '--data'),
    ('osnet_eval', ['--output=none', '--query=a'], '--gallery'),
    (
      'osnet_eval',
      ['--output=none', '--dataset=synthetic'],
      'there is no file none',
    ),
    ('osnet_search', ['--image=none.jpg', '--gallery=here'], 'none.jpg'),
  )
  @pytest.mark.nightly
  def test_refused(self, name, flags, word):
    done = scripts.run(name, '--weights=none', *flags)
    scripts.assert_usage_error(self, done, word)


if __name__ == '__main__':
  absltest.main()
