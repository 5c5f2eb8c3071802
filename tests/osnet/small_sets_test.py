"""Tests of the readers of small data sets, on folders in their formats."""

import pathlib
import tempfile

import numpy as np
import scipy.io
from absl.testing import absltest, parameterized

from jaxpapers.data import CorruptFileError
from jaxpapers.osnet import datasets


class SmallSetsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def write(self, folder, names):
    (self.folder / folder).mkdir(parents=True, exist_ok=True)
    for name in names:  # Only names are read here.
      (self.folder / folder / name).write_bytes(b'')

  def open(self, name, split=0, **options):
    return datasets.open_reid(name, self.folder, split=split, **options)

  def _grid(self):
    place = 'grid/underground_reid'
    people = range(1, 7)
    self.write(
      f'{place}/probe',
      [f'{p:04d}_{1 + p % 8}_25004_1_2_3_4.jpeg' for p in people],
    )
    self.write(
      f'{place}/gallery',
      [f'{p:04d}_{1 + (p + 3) % 8}_25010_5_6_7_8.jpeg' for p in people]
      + [f'0000_{c}_25023_1_1_1_{c}.jpeg' for c in (1, 5, 6)],
    )
    # As in its file: a cell of structs; the people are the third field.
    cells = np.empty((1, 2), object)
    for number, trained in enumerate(([2, 3, 5], [1, 2, 6])):
      fields = ('a', 'b', 'people')
      record = np.empty((1, 1), [(field, object) for field in fields])
      values = (np.ones((1, 4)), np.zeros((3, 1)), np.array([trained]))
      record[0, 0] = values
      cells[0, number] = record
    path = self.folder / place / 'features_and_partitions.mat'
    scipy.io.savemat(path, {'trainIdxAll': cells})
    return path

  def test_grid(self):
    path = self._grid()
    data = self.open('grid')
    self.assertEqual(sorted(data.train.pids.tolist()), [2, 2, 3, 3, 5, 5])
    self.assertEqual(data.query.pids.tolist(), [1, 4, 6])
    self.assertEqual(data.gallery.pids.tolist(), [0, 0, 0, 1, 4, 6])
    self.assertEqual(data.gallery.camids.tolist(), [0, 4, 5, 4, 7, 1])
    self.assertEqual(data.query.camids.tolist(), [1, 4, 6])
    self.assertEqual(data.counts['gallery']['distractors'], 3)
    self.assertEqual(data.counts['gallery']['identities'], 3)
    self.assertTrue(
      data.query.paths[0].endswith('probe/0001_2_25004_1_2_3_4.jpeg')
    )
    self.assertEqual(self.open('grid', 1).query.pids.tolist(), [3, 4, 5])
    everyone = self.open('grid', combine_all=True).train
    self.assertEqual(sorted(set(everyone.pids.tolist())), [1, 2, 3, 4, 5, 6])
    with self.assertRaisesRegex(ValueError, 'is 2; expected 0 to 1'):
      self.open('grid', 2)
    scipy.io.savemat(path, {'trainIdxAll': np.zeros((1, 2))})
    with self.assertRaisesRegex(CorruptFileError, 'trainIdxAll'):
      self.open('grid')

  def test_cuhk01(self):
    self.write(
      'cuhk01/campus',
      [f'{p:04d}{i:03d}.png' for p in range(1, 6) for i in (1, 2, 3, 4)],
    )
    one, swapped = self.open('cuhk01', 4), self.open('cuhk01', 5)
    # 2 of 5 people to train on, as 485 of 971.
    self.assertLen(one.train.paths, 8)
    self.assertLen(set(one.query.pids.tolist()), 3)
    self.assertFalse(
      set(one.train.pids.tolist()) & set(one.query.pids.tolist())
    )
    for split, images, camera in ((one.query, '12', 0), (one.gallery, '34', 1)):
      self.assertLen(split.paths, 6)
      self.assertEqual({path[-5] for path in split.paths}, set(images))
      self.assertEqual(set(split.camids.tolist()), {camera})
      for path, pid in zip(split.paths, split.pids, strict=True):
        self.assertIn(f'/{pid:04d}00', path)
    self.assertEqual(swapped.query.paths, one.gallery.paths)
    seen = {self.open('cuhk01', s).query.paths for s in range(0, 12, 2)}
    self.assertGreater(len(seen), 1)
    with self.assertRaisesRegex(
      ValueError, 'of cuhk01 is 20; expected 0 to 19'
    ):
      self.open('cuhk01', 20)
    self.write('cuhk01/campus', ['0001005.png'])
    with self.assertRaisesRegex(ValueError, 'a name such as 0001001.png'):
      self.open('cuhk01')

  def test_ilids(self):
    place = 'ilids/i-LIDS_Pedestrian/Persons'
    self.write(
      place,
      [f'{p:04d}{i:03d}.jpg' for p in range(1, 6) for i in range(1, 3 + p % 3)],
    )
    seen = set()
    for split in range(4):
      data = self.open('ilids', split)
      self.assertEqual(data.query.pids.tolist(), data.gallery.pids.tolist())
      self.assertLen(set(data.query.pids.tolist()), 3)  # 60 of 119.
      # The same image is never both; so no match is left out of a ranking.
      self.assertTrue((data.query.camids != data.gallery.camids).all())
      trained = set(data.train.pids.tolist())
      self.assertEqual(trained | set(data.query.pids.tolist()), {1, 2, 3, 4, 5})
      self.assertLen(data.train.paths, sum(2 + p % 3 for p in trained))
      self.assertEqual(self.open('ilids', split).query.paths, data.query.paths)
      seen.add(data.query.paths)
    self.assertGreater(len(seen), 1)
    with self.assertRaisesRegex(
      ValueError, 'split of ilids is 10; expected 0 to 9'
    ):
      self.open('ilids', 10)
    self.write(place, ['0009001.jpg'])
    with self.assertRaisesRegex(ValueError, 'person 9 has one image'):
      self.open('ilids')

  def test_prid(self):
    place = 'prid2011/prid_2011/single_shot'
    for camera, last in (('a', 202), ('b', 204)):
      people = [1, 2, 3, 4, *range(201, last + 1)]
      self.write(
        f'{place}/cam_{camera}', [f'person_{p:04d}.png' for p in people]
      )
    one, swapped = self.open('prid', 2), self.open('prid', 3)
    self.assertLen(one.train.paths, 4)
    self.assertLen(one.query.paths, 2)
    tested = set(one.query.pids.tolist())
    self.assertLess(max(tested), 5)
    # 201 and beyond are other people in each camera: of the gallery's only.
    self.assertEqual(
      set(one.gallery.pids.tolist()), tested | {201, 202, 203, 204}
    )
    self.assertTrue(all('/cam_b/' in path for path in one.gallery.paths))
    self.assertEqual(set(one.query.camids.tolist()), {0})
    self.assertEqual(set(swapped.gallery.pids.tolist()), tested | {201, 202})
    self.assertEqual(set(swapped.query.camids.tolist()), {1})
    self.assertEqual(set(swapped.query.pids.tolist()), tested)
    self.assertEqual(swapped.train.paths, one.train.paths)
    self.assertGreater(
      len({self.open('prid', s).query.paths for s in range(0, 10, 2)}), 1
    )
    self.write(f'{place}/cam_a', ['somebody_1.png'])
    with self.assertRaisesRegex(ValueError, 'somebody_1.png: expected a name'):
      self.open('prid')

  @parameterized.parameters(
    ('grid', 'features_and_partitions'),
    ('cuhk01', 'campus'),
    ('ilids', 'Persons'),
    ('prid', 'single_shot'),
  )
  def test_missing(self, name, wanted):
    with self.assertRaisesRegex(FileNotFoundError, wanted):
      self.open(name)


if __name__ == '__main__':
  absltest.main()
