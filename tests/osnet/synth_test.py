import dataclasses
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.osnet import synth

FINE = {'logo', 'logo_side', 'shoes'}
MID = {'pattern'}
COARSE = {'bag', 'skirt'}


class PopulationTest(parameterized.TestCase):
  def test_siblings_differ_in_one_size_only(self):
    people = synth.make_population(40, 1)
    cues = [f.name for f in dataclasses.fields(people) if f.name != 'kind']
    for base in range(0, 40, 4):
      for kind, allowed in ((1, FINE), (2, MID), (3, COARSE)):
        differing = {
          name
          for name in cues
          if (
            getattr(people, name)[base] != getattr(people, name)[base + kind]
          ).any()
        }
        self.assertNotEmpty(differing)
        self.assertLessEqual(differing, allowed)
        self.assertEqual(people.kind[base + kind], kind)

  def test_same_seed_same_people(self):
    first, again = synth.make_population(8, 5), synth.make_population(8, 5)
    np.testing.assert_array_equal(first.torso, again.torso)
    other = synth.make_population(8, 6)
    self.assertTrue((first.torso != other.torso).any())

  @parameterized.parameters(0, 3, 10)
  def test_groups_are_whole(self, count):
    with self.assertRaisesRegex(ValueError, f'num_identities is {count};'):
      synth.make_population(count)


class RenderTest(parameterized.TestCase):
  @parameterized.parameters(((64, 32),), ((128, 64),), ((40, 24),))
  def test_any_size(self, size):
    people = synth.make_population(4, 0)
    image = synth.render(people, 1, 2, 3, size)
    self.assertEqual((image.shape, image.dtype), ((*size, 3), np.uint8))
    self.assertGreater(np.ptp(image), 60)
    np.testing.assert_array_equal(image, synth.render(people, 1, 2, 3, size))
    self.assertTrue((image != synth.render(people, 1, 2, 4, size)).any())

  def test_cues_are_visible(self):
    # The same place, light and noise: what differs is where the cue is.
    people = synth.make_population(4, 2)
    rows = {}
    for kind in (1, 2, 3):
      base = synth.render(people, 0, 0, 11).astype(int)
      other = synth.render(people, kind, 0, 11).astype(int)
      changed = (np.abs(base - other) > 20).any(-1)
      rows[kind] = np.flatnonzero(changed.any(1))
      self.assertGreater(changed.sum(), 5)
      self.assertLess(changed.mean(), 0.5)
    # The pattern is on the torso only.
    self.assertGreater(rows[2].min(), 8)
    self.assertLess(rows[2].max(), 46)

  def test_cameras_differ(self):
    people = synth.make_population(4, 0)
    means = np.stack(
      [
        np.mean(
          [synth.render(people, 0, c, s).mean((0, 1)) for s in range(3)], 0
        )
        for c in range(synth.NUM_CAMERAS)
      ]
    )
    apart = np.abs(means[:, None] - means[None]).max(-1)
    self.assertGreater(apart[~np.eye(6, dtype=bool)].min(), 3)

  @parameterized.parameters((4, 0, 'identity is 4'), (0, 6, 'camera is 6'))
  def test_bad_input(self, identity, camera, message):
    with self.assertRaisesRegex(ValueError, message):
      synth.render(synth.make_population(4), identity, camera, 0)


class BenchmarkTest(absltest.TestCase):
  def test_splits(self):
    benchmark = synth.make_benchmark(0, 8, 4, (32, 16))
    self.assertLen(benchmark.train, 8 * 6 * 2)
    self.assertLen(benchmark.query, 4 * 6)
    self.assertLen(benchmark.gallery, 4 * 6 * 2)
    self.assertEmpty(set(benchmark.train.pids) & set(benchmark.query.pids))
    self.assertEqual(set(benchmark.query.pids), set(benchmark.gallery.pids))
    self.assertEqual(set(benchmark.query.camids), set(range(6)))

  def test_market_folder(self):
    benchmark = synth.make_benchmark(0, 4, 4, (32, 16))
    folder = synth.write_market_folder(tempfile.mkdtemp(), benchmark)
    names = sorted(p.name for p in (folder / 'query').iterdir())
    self.assertLen(names, 24)
    self.assertRegex(names[0], r'^0005_c1s1_\d{6}_00\.jpg$')
    self.assertLen(list((folder / 'bounding_box_train').iterdir()), 48)
    self.assertLen(list((folder / 'bounding_box_test').iterdir()), 48)

  def test_error_scales(self):
    people = synth.make_population(8, 0)
    shares = synth.error_scales(
      people,
      [10, 10, 11, 10, 13, 11, 12, 14],
      [10, 11, 10, 12, 10, 13, 12, 11],
      first=10,
    )
    self.assertEqual(
      shares,
      {
        'right': 2 / 8,
        'fine': 2 / 8,
        'mid': 1 / 8,
        'coarse': 1 / 8,
        'two': 1 / 8,
        'stranger': 1 / 8,
      },
    )
    self.assertAlmostEqual(sum(shares.values()), 1)


if __name__ == '__main__':
  absltest.main()
