"""Tests of the readers, on small folders in the real formats."""

import pathlib
import tempfile

import h5py
import numpy as np
import scipy.io
from absl.testing import absltest, parameterized
from PIL import Image

from jaxpapers.data import CorruptFileError
from jaxpapers.osnet import cuhk03, datasets, synth
from tests.helpers import data


def _write(path, seed=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (8, 4, 3))
  Image.fromarray(pixels.astype(np.uint8)).save(path)


class _Folder(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    # A folder that looks like the name of an image.
    self.folder = pathlib.Path(folder.name) / '12_c3'
    self.folder.mkdir()

  def write(self, *names):
    for number, name in enumerate(names):
      _write(self.folder / name, number)


class MarketTest(_Folder):
  def test_round_trip_of_synthetic_people(self):
    benchmark = synth.make_benchmark(0, 4, 4, (16, 8))
    synth.write_market_folder(self.folder, benchmark)
    found = datasets.Market1501(self.folder)
    for name in ('train', 'query', 'gallery'):
      images, split = getattr(benchmark, name), getattr(found, name)
      self.assertLen(split.paths, len(images.pids))
      # Written with identities from 1; the readers sort by them.
      order = np.argsort(split.pids, kind='stable')
      np.testing.assert_array_equal(order, np.arange(len(order)))
      for field in ('pids', 'camids'):
        expected = getattr(images, field) + (field == 'pids')
        np.testing.assert_array_equal(
          np.sort(getattr(split, field)), np.sort(expected)
        )
      self.assertEqual(found.counts[name]['identities'], 4)

  def test_junk_distractors_and_folders_that_look_like_names(self):
    self.write(
      'Market-1501-v15.09.15/bounding_box_train/0002_c1s1_000451_03.jpg',
      'Market-1501-v15.09.15/bounding_box_train/0007_c6s1_000451_03.jpg',
      'Market-1501-v15.09.15/query/0001_c5s1_000151_00.jpg',
      'Market-1501-v15.09.15/bounding_box_test/-1_c2s1_000401_02.jpg',
      'Market-1501-v15.09.15/bounding_box_test/0000_c3s1_000401_02.jpg',
      'Market-1501-v15.09.15/bounding_box_test/0001_c4s1_000401_02.jpg',
    )
    folder = self.folder / 'Market-1501-v15.09.15'
    (folder / 'query' / 'Thumbs.db').write_text('no image')
    found = datasets.Market1501(self.folder)
    self.assertEqual(found.train.pids.tolist(), [2, 7])
    self.assertEqual(found.train.camids.tolist(), [0, 5])
    self.assertEqual(found.gallery.pids.tolist(), [0, 1])
    self.assertEqual(
      found.counts['gallery'],
      {
        'images': 2,
        'identities': 1,
        'cameras': 2,
        'junk': 1,
        'distractors': 1,
      },
    )
    # Trains on those of the test too, without junk and distractors.
    combined = datasets.open_reid('market1501', self.folder, combine_all=True)
    self.assertEqual(sorted(combined.train.pids.tolist()), [1, 1, 2, 7])
    self.write('Market-1501-v15.09.15/images/0000_c1s1_000001_00.jpg')
    more = datasets.Market1501(self.folder, distractors=True)
    self.assertEqual(more.counts['gallery']['distractors'], 2)

  def test_duke(self):
    self.write(
      'DukeMTMC-reID/bounding_box_train/0001_c2_f0046182.jpg',
      'DukeMTMC-reID/query/0005_c8_f0046985.jpg',
      'DukeMTMC-reID/bounding_box_test/0005_c1_f0046985.jpg',
    )
    found = datasets.DukeMTMC(self.folder)
    self.assertEqual(found.query.pids.tolist(), [5])
    self.assertEqual(found.query.camids.tolist(), [7])

  def test_missing_and_strange_files(self):
    with self.assertRaisesRegex(FileNotFoundError, 'bounding_box_train'):
      datasets.Market1501(self.folder)
    self.write(
      'bounding_box_train/person.jpg',
      'query/0001_c1.jpg',
      'bounding_box_test/0001_c2.jpg',
    )
    with self.assertRaisesRegex(ValueError, '1 of 1 images.*person.jpg'):
      datasets.Market1501(self.folder)


class FolderTest(_Folder):
  def test_names_instead_of_numbers(self):
    self.write('bob-hall.png', 'alice-door.png', 'sub/bob-door.png')
    found = datasets.image_folder(
      self.folder, r'^(?P<pid>\w+)-(?P<cam>\w+)\.', first_camera=0
    )
    self.assertEqual(found.pids.tolist(), [0, 1, 1])
    self.assertEqual(found.camids.tolist(), [0, 1, 0])

  def test_without_cameras_and_with_files_to_skip(self):
    self.write('3_a.png', '3_b.png', 'x.png')
    found = datasets.image_folder(
      self.folder, r'^(?P<pid>\d+)_', unmatched='skip'
    )
    self.assertEqual(found.pids.tolist(), [3, 3])
    self.assertEqual(found.camids.tolist(), [0, 1])
    self.assertEqual(found.excluded, {'unmatched': 1})

  def test_people_of_two_folders_are_the_same(self):
    self.write('query/bob-hall.png', 'query/carol-hall.png')
    self.write('gallery/alice-door.png', 'gallery/carol-hall.png')
    query, gallery = datasets.image_folders(
      (self.folder / 'query', self.folder / 'gallery'),
      r'^(?P<pid>\w+)-(?P<cam>\w+)\.',
    )
    self.assertEqual(query.pids.tolist(), [1, 2])
    self.assertEqual(gallery.pids.tolist(), [0, 2])
    self.assertEqual(query.camids.tolist(), [1, 1])
    self.assertEqual(gallery.camids.tolist(), [0, 1])

  def test_two_folders_without_cameras(self):
    self.write('query/1_a.png', 'query/2_a.png', 'more/1_b.png', 'more/2_b.png')
    folders = [self.folder / name for name in ('query', 'more', 'query')]
    query, more, again = datasets.image_folders(folders, r'^(?P<pid>\d)_')
    # No match is of the query's camera but the query itself.
    self.assertFalse(set(query.camids) & set(more.camids))
    self.assertEqual(query.camids.tolist(), again.camids.tolist())

  @parameterized.parameters(
    (r'(?P<who>\d)', 'expected a group'), ('(', "pattern is '\\('")
  )
  def test_bad_pattern(self, pattern, message):
    with self.assertRaisesRegex(ValueError, message):
      datasets.image_folder(self.folder, pattern)

  def test_relabel_and_merge(self):
    labels, classes = datasets.relabel([9, 4, 9, 0])
    self.assertEqual(labels.tolist(), [2, 1, 2, 0])
    self.assertEqual(classes.tolist(), [0, 4, 9])
    splits = [
      datasets.ReIDSplit(('a', 'b'), np.array([4, 9]), np.array([0, 5])),
      datasets.ReIDSplit(('c',), np.array([4]), np.array([0])),
    ]
    both, source = datasets.merge(splits)
    self.assertEqual(both.paths, ('a', 'b', 'c'))
    self.assertEqual(both.pids.tolist(), [0, 1, 2])
    self.assertEqual(both.camids.tolist(), [0, 1, 2])
    self.assertEqual(source.tolist(), [0, 0, 1])


class MSMT17Test(_Folder):
  def _make(self, version, train, test):
    folder = self.folder / version
    for part, images, rows in (
      ('train', train, ['0000_000_01_0303morning_0015_0.jpg 0']),
      ('val', train, ['0000_001_15_0303morning_0015_0.jpg 0']),
      ('query', test, ['0000_002_02_0303noon_0015_0.jpg 0']),
      ('gallery', test, ['0001_003_03_0303noon_0015_0.jpg 1']),
    ):
      lines = [f'{row[:4]}/{row}' for row in rows]
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f'list_{part}.txt').write_text('\n'.join(lines) + '\n')
      for line in lines:
        _write(folder / images / line.split()[0])

  @parameterized.parameters(
    ('MSMT17_V1', 'train', 'test'),
    ('MSMT17_V2', 'mask_train_v2', 'mask_test_v2'),
  )
  def test_both_versions(self, version, train, test):
    self._make(version, train, test)
    found = datasets.MSMT17(self.folder)
    self.assertEqual(found.train.camids.tolist(), [0])
    self.assertEqual(found.query.camids.tolist(), [1])
    # Other people than those of training.
    self.assertEqual(found.query.pids.tolist(), [1])
    self.assertEqual(found.gallery.pids.tolist(), [2])
    for split in (found.train, found.query, found.gallery):
      self.assertTrue(all(pathlib.Path(p).exists() for p in split.paths))
    combined = datasets.open_reid('msmt17', self.folder, combine_all=True)
    self.assertEqual(combined.train.pids.tolist(), [0, 0, 1, 2])
    self.assertEqual(combined.train.camids.tolist(), [0, 14, 1, 2])

  def test_bad_list(self):
    self._make('MSMT17_V1', 'train', 'test')
    (self.folder / 'MSMT17_V1' / 'list_query.txt').write_text('a.jpg one\n')
    with self.assertRaisesRegex(ValueError, 'list_query.txt, line 1'):
      datasets.MSMT17(self.folder)


class CUHK03Test(_Folder):
  def _hdf5(self):
    """Two pairs of cameras, three people with ten images each, one missing."""
    path = self.folder / 'cuhk03_release' / 'cuhk-03.mat'
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    self.pixels = {}
    with h5py.File(path, 'w') as file:
      reference = h5py.special_dtype(ref=h5py.Reference)

      def store(array):
        name = f'#refs#/{len(file.get("#refs#", {}))}'
        file[name] = array
        return file[name].ref

      for boxes in ('detected', 'labeled'):
        pairs = []
        for pair, people in ((1, 2), (2, 1)):
          cells = np.empty((10, people), object)
          for person in range(people):
            for i in range(10):
              pixels = rng.integers(0, 256, (9, 5, 3)).astype(np.uint8)
              if (person, i) == (0, 9):
                cells[i, person] = store(np.zeros(2, np.uint64))  # Empty.
                continue
              key = (boxes, pair, person + 1, i + 1)
              self.pixels[key] = pixels
              cells[i, person] = store(pixels.T)
          file.create_dataset(f'{boxes}_{pair}', (10, people), reference)
          file[f'{boxes}_{pair}'][...] = cells
          pairs.append(file[f'{boxes}_{pair}'].ref)
        file.create_dataset(boxes, (1, 2), reference)[...] = np.array(
          [pairs], object
        )
      tests = [store(np.array([[1.0, 2.0]]).T), store(np.array([[2.0, 1.0]]).T)]
      file.create_dataset('testsets', (1, 2), reference)[...] = np.array(
        [tests], object
      )
    return path

  def _protocol(self):
    names = ['1_001_1_01.png', '1_001_2_06.png', '1_002_1_01.png']
    names += ['1_002_2_07.png']
    scipy.io.savemat(
      self.folder / 'cuhk03_new_protocol_config_labeled.mat',
      {
        'filelist': np.array([[name] for name in names], object),
        'labels': np.array([[1], [1], [2], [2]]),
        'camId': np.array([[1], [2], [1], [2]]),
        'train_idx': np.array([[1], [2]]),
        'query_idx': np.array([[3]]),
        'gallery_idx': np.array([[4]]),
      },
    )

  def test_both_protocols(self):
    self._hdf5()
    self._protocol()
    found = datasets.open_reid('cuhk03', self.folder, cuhk03='labeled-new')
    self.assertEqual(found.protocol, 'market1501')
    self.assertEqual(found.train.camids.tolist(), [0, 1])
    self.assertEqual(found.query.pids.tolist(), [2])
    path = pathlib.Path(found.gallery.paths[0])
    self.assertEqual(path.name, '1_002_2_07.png')
    np.testing.assert_array_equal(
      np.asarray(Image.open(path)), self.pixels['labeled', 1, 2, 7]
    )
    classic = datasets.CUHK03(self.folder, protocol='classic', split=1)
    self.assertEqual(classic.protocol, 'cuhk03')
    self.assertEqual(classic.counts['query']['identities'], 1)
    self.assertEqual(classic.counts['train']['images'], 19)
    self.assertEqual(classic.query.camids.tolist(), [0] * 5 + [1] * 4)
    # torchreid unpacks images there as well, without our list of splits.
    (self.folder / 'splits_classic.json').unlink()
    again = datasets.CUHK03(self.folder, protocol='classic', split=1)
    self.assertEqual(again.query.paths, classic.query.paths)
    with self.assertRaisesRegex(ValueError, 'is 2; expected 0 to 1'):
      datasets.CUHK03(self.folder, protocol='classic', split=2)
    with self.assertRaisesRegex(ValueError, "cuhk03 is 'new'"):
      datasets.open_reid('cuhk03', self.folder, cuhk03='new')

  def test_bad_files(self):
    with self.assertRaisesRegex(FileNotFoundError, 'cuhk-03.mat'):
      datasets.CUHK03(self.folder)
    path = self.folder / 'cuhk-03.mat'
    path.write_bytes(b'nothing')
    with self.assertRaisesRegex(CorruptFileError, 'version 7.3'):
      datasets.CUHK03(self.folder)
    with h5py.File(path, 'w') as file:
      file['other'] = 1
    with self.assertRaisesRegex(CorruptFileError, "no 'detected'"):
      datasets.CUHK03(self.folder)

  @parameterized.parameters(
    ('detected', 7365, 1400, 5332), ('labeled', 7368, 1400, 5328)
  )
  def test_the_real_protocol(self, boxes, *expected):
    path = data.require(
      'osnet', 'cuhk03', f'cuhk03_new_protocol_config_{boxes}.mat'
    )
    parts = cuhk03.new_protocol(path)
    self.assertEqual([len(part.paths) for part in parts], list(expected))
    people = [set(part.pids.tolist()) for part in parts]
    self.assertEqual([len(one) for one in people], [767, 700, 700])
    self.assertFalse(people[0] & people[1])
    self.assertEqual(people[1], people[2])


class VIPeRTest(_Folder):
  def test_splits(self):
    for camera, angle in (('cam_a', 45), ('cam_b', 90)):
      self.write(*(f'VIPeR/{camera}/{pid:03d}_{angle}.bmp' for pid in range(6)))
    self.write('VIPeR/cam_b/009_90.bmp')  # Not in the other camera.
    seen = set()
    for split in range(0, 6, 2):
      one, swapped = (
        datasets.open_reid('viper', self.folder, split=split + i)
        for i in (0, 1)
      )
      self.assertLen(one.train.paths, 6)
      people = set(one.query.pids.tolist())
      self.assertEqual(people, set(one.gallery.pids.tolist()))
      self.assertEqual(people | set(one.train.pids.tolist()), set(range(6)))
      self.assertEqual(set(one.query.camids.tolist()), {0})
      self.assertEqual(swapped.query.paths, one.gallery.paths)
      self.assertEqual(swapped.train.paths, one.train.paths)
      seen.add(tuple(sorted(people)))
      again = datasets.VIPeR(self.folder, split=split)
      self.assertEqual(again.query.paths, one.query.paths)
    self.assertGreater(len(seen), 1)
    with self.assertRaisesRegex(ValueError, 'is 20; expected 0 to 19'):
      datasets.VIPeR(self.folder, split=20)

  def test_missing(self):
    with self.assertRaisesRegex(FileNotFoundError, 'cam_a'):
      datasets.VIPeR(self.folder)


class PA100KTest(_Folder):
  def _make(self, labels=None):
    content = {'attributes': np.array([['Hat'], ['Glasses'], ['Bag']], object)}
    for number, part in enumerate(('train', 'val', 'test')):
      names = [f'{10 * number + i:06d}.jpg' for i in range(2)]
      content[f'{part}_images_name'] = np.array([[n] for n in names], object)
      content[f'{part}_label'] = (
        np.array([[0, 1, 0], [1, 1, 0]]) if labels is None else labels
      )
    folder = self.folder / 'PA-100K'
    (folder / 'data').mkdir(parents=True)
    scipy.io.savemat(folder / 'annotation.mat', content)

  def test_round_trip(self):
    self._make()
    found = datasets.PA100K(self.folder)
    self.assertEqual(found.attributes, ('Hat', 'Glasses', 'Bag'))
    self.assertEqual(found.test.labels.tolist(), [[0, 1, 0], [1, 1, 0]])
    self.assertEndsWith(found.val.paths[1], 'PA-100K/data/000011.jpg')
    train, test = datasets.open_pa100k(self.folder)
    self.assertEqual(train.paths, found.train.paths)
    self.assertEqual(test.paths, found.test.paths)

  def test_bad_files(self):
    with self.assertRaisesRegex(FileNotFoundError, 'annotation.mat'):
      datasets.PA100K(self.folder)
    self._make(np.array([[0, 1, 2], [1, 1, 0]]))
    with self.assertRaisesRegex(ValueError, 'other than 0 and 1'):
      datasets.PA100K(self.folder)
    path = self.folder / 'PA-100K' / 'annotation.mat'
    scipy.io.savemat(path, {'train_label': np.zeros((2, 3))})
    with self.assertRaisesRegex(CorruptFileError, 'train_images_name is miss'):
      datasets.PA100K(self.folder)
    path.write_bytes(b'x' * 200)
    with self.assertRaisesRegex(CorruptFileError, 'version 5'):
      datasets.PA100K(self.folder)


if __name__ == '__main__':
  absltest.main()
