"""Tests of image folders: generic, ImageNet's, Tiny-ImageNet's."""

import io
import pathlib
import tempfile

import numpy as np
import scipy.io
from absl.testing import absltest, parameterized
from PIL import Image

from jaxpapers import data
from tests.helpers import data as data_files

_WNIDS = ('n01440764', 'n01443537', 'n02119789')


def _encode(color, form='JPEG', mode='RGB', size=(8, 6)):
  stream = io.BytesIO()
  Image.new(mode, size, color).save(stream, form)
  return stream.getvalue()


def _put(path, content=None, color=(10, 20, 30)):
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(content, str):
    path.write_text(content)
  else:
    path.write_bytes(_encode(color) if content is None else content)


class FolderCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))


class DecodeTest(parameterized.TestCase):
  @parameterized.parameters(
    ('L', 'JPEG', 90, (90, 90, 90)),
    ('L', 'PNG', 91, (91, 91, 91)),
    ('RGB', 'PNG', (1, 2, 3), (1, 2, 3)),
    ('RGBA', 'PNG', (1, 2, 3, 0), (1, 2, 3)),
    ('1', 'PNG', 1, (255, 255, 255)),
    ('I;16', 'PNG', 0x1234, (0x12, 0x12, 0x12)),
    ('P', 'GIF', 0, (0, 0, 0)),
    ('CMYK', 'JPEG', (0, 0, 0, 0), (255, 255, 255)),
  )
  def test_every_mode_becomes_rgb(self, mode, form, color, expected):
    image = data.decode_image(_encode(color, form, mode))
    self.assertEqual(image.shape, (6, 8, 3))
    self.assertEqual(image.dtype, np.uint8)
    self.assertTrue((image == expected).all(), image[0, 0])
    self.assertTrue(image.flags.writeable)

  @parameterized.parameters((b'',), (b'GIF89a',), (b'<html>',))
  def test_no_image(self, content):
    with self.assertRaisesRegex(
      data.CorruptFileError, f'a/b.png: cannot .*has {len(content)} bytes'
    ):
      data.decode_image(content, 'a/b.png')

  @parameterized.parameters('JPEG', 'PNG')
  def test_cut_short(self, form):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, form)
    with self.assertRaisesRegex(data.CorruptFileError, 'truncated'):
      data.decode_image(stream.getvalue()[:-1500])

  def test_real_jpegs(self):
    path = data_files.require('efficientnet', 'cifar10_jpeg_subset.npz')
    with np.load(path) as stored:
      content, offsets = stored['jpeg_bytes'].tobytes(), stored['offsets']
      labels, names = stored['labels'][:200], stored['class_names']
    items = [content[offsets[i] : offsets[i + 1]] for i in range(200)]
    source = data.ImageSource(items, labels, names.tolist())
    self.assertEmpty(data.find_corrupt(source))
    batch = next(data.batches(source, 200, shuffle=False))
    self.assertEqual(batch['image'].shape, (200, 32, 32, 3))
    np.testing.assert_array_equal(batch['label'], labels)
    # Natural images: no channel is dark, bright or flat.
    mean, std = data.pixel_statistics(batch['image'])
    self.assertBetween(mean, 90, 150)
    self.assertBetween(std, 45, 80)


class ImageFolderTest(FolderCase):
  def test_classes_are_sorted_subfolders(self):
    _put(self.root / 'dog' / 'b.JPG', color=(200, 0, 0))
    _put(self.root / 'dog' / 'deep' / 'a.png', _encode((0, 200, 0), 'PNG'))
    _put(self.root / 'cat' / 'x.jpeg', color=(0, 0, 200))
    _put(self.root / 'cat' / 'notes.txt', 'no image')
    _put(self.root / 'cat' / '.hidden.jpg')
    _put(self.root / '.cache' / 'y.jpg')
    _put(self.root / 'readme.md', 'no class')
    source = data.open_image_folder(self.root)
    self.assertEqual(source.class_names, ('cat', 'dog'))
    self.assertEqual(source.labels.tolist(), [0, 1, 1])
    names = [pathlib.Path(source.name(i)) for i in range(3)]
    expected = ['cat/x.jpeg', 'dog/b.JPG', 'dog/deep/a.png']
    self.assertEqual(names, [self.root / name for name in expected])
    channels = [source[i]['image'].mean((0, 1)).argmax() for i in range(3)]
    self.assertEqual(channels, [2, 0, 1])
    self.assertEqual(source[2]['label'].dtype, np.int32)

  def test_given_classes_keep_their_labels(self):
    _put(self.root / 'dog' / 'b.jpg')
    source = data.open_image_folder(
      self.root, class_names=('ant', 'cat', 'dog')
    )
    self.assertEqual(source.labels.tolist(), [2])
    with self.assertRaisesRegex(ValueError, r"subfolders \['dog'\], .* not in"):
      data.open_image_folder(self.root, class_names=('ant', 'cat'))

  def test_undecoded(self):
    content = _encode((1, 2, 3))
    _put(self.root / 'a' / 'x.jpg', content)
    source = data.open_image_folder(self.root, decode=None)
    self.assertEqual(source[0], {'encoded': content, 'label': 0})

  def test_names_beyond_ascii(self):
    _put(self.root / 'chat' / 'été 1.jpg')
    source = data.open_image_folder(self.root)
    self.assertEndsWith(source.name(0), 'été 1.jpg')
    self.assertEqual(source[0]['image'].shape, (6, 8, 3))

  def test_missing(self):
    with self.assertRaisesRegex(FileNotFoundError, 'nowhere does not exist'):
      data.open_image_folder(self.root / 'nowhere')
    (self.root / 'empty').mkdir()
    with self.assertRaisesRegex(FileNotFoundError, '<name of the class>/'):
      data.open_image_folder(self.root)

  def test_corrupt_files_are_named(self):
    for name in 'abcd':
      _put(self.root / 'k' / f'{name}.jpg')
    _put(self.root / 'k' / 'b.jpg', b'not a jpeg')
    _put(self.root / 'k' / 'd.jpg', b'')
    source = data.open_image_folder(self.root)
    found = data.find_corrupt(source, num_threads=2)
    self.assertEqual([index for index, _ in found], [1, 3])
    self.assertIn(str(self.root / 'k' / 'b.jpg'), found[0][1])
    with self.assertRaisesRegex(data.CorruptFileError, r'k/b\.jpg: cannot be'):
      list(data.batches(source, 4, num_epochs=1))
    good = np.setdiff1d(np.arange(4), [index for index, _ in found])
    steps = data.batches(data.Subset(source, good), 2, num_epochs=1)
    self.assertLen(list(steps), 1)

  def test_labels_and_items_must_match(self):
    with self.assertRaisesRegex(ValueError, r'shape \[2\]; expected one for'):
      data.ImageSource(['a.jpg'], [0, 1], ('x', 'y'))
    with self.assertRaisesRegex(ValueError, 'from 2 to 2; expected 0 to 1'):
      data.ImageSource(['a.jpg'], [2], ('x', 'y'))


class ImageNetTest(FolderCase):
  # Labels of val images 1 .. 4 by rank of the wnid.
  _LABELS = (2, 0, 2, 1)

  def _put_train(self):
    for number, wnid in enumerate(_WNIDS):
      for k in range(2):
        _put(self.root / 'train' / wnid / f'{wnid}_{k + number}.JPEG')

  def _put_flat_val(self):
    for k in range(1, 5):
      color = (50 * k, 0, 0)
      _put(self.root / 'val' / f'ILSVRC2012_val_{k:08d}.JPEG', color=color)

  def _check_val(self, **options):
    source = data.open_imagenet(self.root, 'val', **options)
    self.assertEqual(source.labels.tolist(), list(self._LABELS))
    self.assertEqual(source.class_names, _WNIDS)
    self.assertAlmostEqual(source[2]['image'][0, 0, 0], 150, delta=3)  # JPEG

  def test_train(self):
    self._put_train()
    source = data.open_imagenet(self.root)
    self.assertEqual(source.labels.tolist(), [0, 0, 1, 1, 2, 2])
    self.assertEqual(source.class_names, _WNIDS)
    self.assertEndsWith(source.name(3), 'n01443537/n01443537_2.JPEG')

  def test_val_in_folders(self):
    self._put_train()
    _put(self.root / 'val' / _WNIDS[2] / 'ILSVRC2012_val_00000001.JPEG')
    source = data.open_imagenet(self.root, 'val')
    self.assertEqual(source.labels.tolist(), [2])  # of the training folders

  @parameterized.parameters(True, False)
  def test_flat_val_with_kaggle_csv(self, with_train):
    if with_train:
      self._put_train()
    self._put_flat_val()
    lines = ['ImageId,PredictionString']
    for k in (4, 2, 1, 3):  # in no order, with one or two boxes
      wnid = _WNIDS[self._LABELS[k - 1]]
      boxes = f' {wnid} 1 2 3 4' * (k % 2)
      lines.append(f'ILSVRC2012_val_{k:08d},{wnid} 10 20 30 40{boxes} ')
    _put(self.root / 'LOC_val_solution.csv', '\n'.join(lines) + '\n')
    self._check_val()

  @parameterized.parameters('root', 'val')
  def test_flat_val_with_a_wnid_a_line(self, place):
    self._put_flat_val()
    text = ''.join(f'{_WNIDS[label]}\n' for label in self._LABELS)
    folder = self.root / 'val' if place == 'val' else self.root
    _put(folder / 'imagenet_2012_validation_synset_labels.txt', text)
    self._check_val()

  @parameterized.parameters('wnid', 'index')
  def test_flat_val_with_names_and_labels(self, kind):
    self._put_train()
    self._put_flat_val()
    words = _WNIDS if kind == 'wnid' else range(3)
    lines = [
      f'ILSVRC2012_val_{k:08d}.JPEG {words[self._LABELS[k - 1]]}'
      for k in (3, 1, 2, 4)
    ]
    _put(self.root / 'mine.txt', '\n'.join(lines))
    self._check_val(labels_file=self.root / 'mine.txt')

  def test_flat_val_with_the_development_kit(self):
    self._put_flat_val()
    kit = self.root / 'ILSVRC2012_devkit_t12' / 'data'
    kit.mkdir(parents=True)
    ids = {_WNIDS[2]: 1, _WNIDS[0]: 2, _WNIDS[1]: 3}  # not the sorted order
    synsets = np.zeros(3, [('ILSVRC2012_ID', 'O'), ('WNID', 'O')])
    for row, (wnid, number) in zip(synsets, ids.items()):
      row['ILSVRC2012_ID'], row['WNID'] = float(number), wnid
    scipy.io.savemat(kit / 'meta.mat', {'synsets': synsets[:, None]})
    text = ''.join(f'{ids[_WNIDS[label]]}\n' for label in self._LABELS)
    truth = kit / 'ILSVRC2012_validation_ground_truth.txt'
    truth.write_text(text)
    self._check_val()

    truth.write_text(text.replace('3', '9'))
    with self.assertRaisesRegex(data.CorruptFileError, "'9' is no id of"):
      data.open_imagenet(self.root, 'val')
    (kit / 'meta.mat').unlink()
    with self.assertRaisesRegex(FileNotFoundError, "kit's meta.mat"):
      data.open_imagenet(self.root, 'val')

  @parameterized.parameters(
    ('n01440764\n' * 3, '3 labels; expected one for each of the 4 images'),
    ('1\n2\n3\n4\n', 'numbers without file names'),
    ('a n01440764 x\nb n01440764 x', 'line 1: .*expected a file name and'),
    ('ILSVRC2012_val_00000001 n01440764', 'no label for 3 of the 4 images'),
    ('n09999999\n' * 4, r"classes \['n09999999'\] are no folders of"),
  )
  def test_labels_that_do_not_fit(self, text, message):
    self._put_train()
    self._put_flat_val()
    _put(self.root / 'val_labels.txt', text)
    with self.assertRaisesRegex(
      data.CorruptFileError, f'val_labels.txt.*{message}'
    ):
      data.open_imagenet(self.root, 'val')

  def test_missing(self):
    with self.assertRaisesRegex(FileNotFoundError, 'ILSVRC2012_img_train.tar'):
      data.open_imagenet(self.root)
    self._put_train()
    with self.assertRaisesRegex(FileNotFoundError, r'6,744,924,160 bytes'):
      data.open_imagenet(self.root, 'val')
    self._put_flat_val()
    with self.assertRaisesRegex(FileNotFoundError, r'labels of ImageNet'):
      data.open_imagenet(self.root, 'val')
    with self.assertRaisesRegex(ValueError, "split is 'test'"):
      data.open_imagenet(self.root, 'test')


class TinyImageNetTest(FolderCase):
  def setUp(self):
    super().setUp()
    tiny = self.tiny = self.root / 'tiny-imagenet-200'
    # The order of wnids.txt, which is not sorted.
    _put(tiny / 'wnids.txt', 'n02119789\nn01440764\n')
    _put(
      tiny / 'words.txt', 'n01440764\ttench, Tinca tinca\nn00001740\tentity\n'
    )
    grey = _encode(77, 'JPEG', 'L', (64, 64))
    for wnid in ('n02119789', 'n01440764'):
      _put(tiny / 'train' / wnid / 'images' / f'{wnid}_0.JPEG', grey)
      _put(tiny / 'train' / wnid / f'{wnid}_boxes.txt', f'{wnid}_0.JPEG\t0\t0')
    for k, color in enumerate([(200, 0, 0), (0, 200, 0), (0, 0, 200)]):
      content = _encode(color, size=(64, 64))
      _put(tiny / 'val' / 'images' / f'val_{k}.JPEG', content)
    wnids = ['n01440764', 'n02119789', 'n02119789']
    lines = [f'val_{k}.JPEG\t{wnids[k]}\t0\t32\t44\t62\n' for k in (1, 0, 2)]
    _put(tiny / 'val' / 'val_annotations.txt', ''.join(lines))

  @parameterized.parameters('', 'tiny-imagenet-200')
  def test_train(self, inside):
    source = data.open_tiny_imagenet(self.root / inside)
    self.assertEqual(source.class_names, ('n02119789', 'n01440764'))
    self.assertEqual(source.labels.tolist(), [0, 1])
    self.assertEndsWith(source.name(1), 'n01440764/images/n01440764_0.JPEG')
    self.assertEqual(source[0]['image'].shape, (64, 64, 3))  # was grey
    self.assertTrue((source[0]['image'] == 77).all())

  def test_val_follows_the_annotations(self):
    source = data.open_tiny_imagenet(self.root, 'val')
    self.assertEqual(source.labels.tolist(), [0, 1, 0])
    channels = [source[i]['image'].mean((0, 1)).argmax() for i in range(3)]
    self.assertEqual(channels, [1, 0, 2])

  def test_words(self):
    words = data.tiny_imagenet_words(self.root)
    self.assertEqual(words['n01440764'], 'tench, Tinca tinca')

  def test_does_not_fit(self):
    annotations = self.tiny / 'val' / 'val_annotations.txt'
    annotations.write_text('val_0.JPEG\tn01440764\nval_1.JPEG n02119789\n')
    with self.assertRaisesRegex(data.CorruptFileError, r'txt, line 2:.* a tab'):
      data.open_tiny_imagenet(self.root, 'val')
    (self.tiny / 'wnids.txt').write_text('n02119789\n')
    with self.assertRaisesRegex(data.CorruptFileError, r"lacks \['n01440"):
      data.open_tiny_imagenet(self.root)

  def test_missing(self):
    with self.assertRaisesRegex(FileNotFoundError, '248,100,043 bytes'):
      data.open_tiny_imagenet(self.root / 'other')
    (self.tiny / 'val' / 'val_annotations.txt').unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'val split'):
      data.open_tiny_imagenet(self.root, 'val')
    with self.assertRaisesRegex(ValueError, "'test' has no labels"):
      data.open_tiny_imagenet(self.root, 'test')


if __name__ == '__main__':
  absltest.main()
