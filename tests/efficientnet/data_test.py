"""Image sets in all their layouts, and corrupt images among them."""

import io
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jaxpapers import data as shared_data
from jaxpapers.data import tfrecord
from jaxpapers.efficientnet import data, proxy, recipes


def encoded(value, size=(12, 10), kind='PNG'):
  """An image file of one colour."""
  stream = io.BytesIO()
  Image.new('RGB', size, (value, 2 * value, 3 * value)).save(stream, kind)
  return stream.getvalue()


class DataTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)

  def write(self, path, content):
    path = self.folder / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

  def write_records(self, prefix, count, per_file=3):
    for k in range(count):
      examples = [
        tfrecord.encode_example(
          {
            'image/encoded': [encoded(k * per_file + i)],
            'image/class/label': [1 + (k * per_file + i) % 5],
            'image/filename': ['n0.JPEG'],
          }
        )
        for i in range(per_file)
      ]
      name = f'{prefix}-{k:05d}-of-{count:05d}'
      tfrecord.write_tfrecord(self.folder / name, examples)

  def write_damaged(self, name):
    examples = (
      b'\x08\x05',
      tfrecord.encode_example({'image/class/label': [1]}),
      tfrecord.encode_example({'image/encoded': [1], 'image/class/label': [1]}),
    )
    tfrecord.write_tfrecord(self.folder / name, examples)

  def test_tfrecords(self):
    self.write_records('train', 4)
    self.write_records('validation', 2)

    def opened(split, **options):
      options = {'num_classes': 5} | options
      return data.open_images('tfrecord', self.folder, split, **options)

    train = opened('train', minival_shards=1)
    minival = opened('minival', minival_shards=1)
    self.assertLen(train, 9)
    self.assertLen(minival, 3)
    self.assertLen(opened('test'), 6)
    example = train.source[2]
    self.assertEqual(example['label'], 0)  # The record 5, of label 1.
    self.assertEqual(example['image'].shape, (10, 12, 3))
    self.assertEqual(example['image'][0, 0].tolist(), [5, 10, 15])
    self.assertEqual(minival.source[0]['image'][0, 0].tolist(), [0, 0, 0])
    with self.assertRaisesRegex(ValueError, 'label 5; expected 1 to 4'):
      opened('train', num_classes=4).source[4]
    self.write_damaged('train-00003-of-00004')
    for index, words in (
      (9, 'train-00003-of-00004, record 0: a payload.*tf.train.Example'),
      (10, 'record 1: has .*expected image/encoded'),
      (11, 'record 2: has .*expected image/encoded'),
    ):
      with self.assertRaisesRegex(shared_data.CorruptFileError, words):
        opened('train').source[index]
    with self.assertRaisesRegex(ValueError, 'minival_shards is 4'):
      opened('train', minival_shards=4)
    (self.folder / 'train-00002-of-00004').unlink()
    with self.assertRaisesRegex(FileNotFoundError, '3 of the 4 files'):
      opened('train')
    with self.assertRaisesRegex(FileNotFoundError, 'train-00000-of-01024'):
      data.open_images('tfrecord', self.folder / 'none', 'train')

  def test_folders(self):
    for split, names in (('train', 'abc'), ('test', 'ac')):
      for k, name in enumerate(names):
        self.write(f'{split}/{name}/0.png', encoded(k))
    train = data.open_images('folder', self.folder, 'train')
    self.assertEqual(train.class_names, ('a', 'b', 'c'))
    test = data.open_images(
      'folder', self.folder, 'test', class_names=train.class_names
    )
    self.assertEqual([test.source[k]['label'] for k in range(2)], [0, 2])
    self.assertEqual(test.num_classes, 3)
    alone = data.open_images('folder', self.folder, 'test')
    self.assertEqual(alone.class_names, train.class_names)
    self.assertEqual([alone.source[k]['label'] for k in range(2)], [0, 2])
    with self.assertRaisesRegex(FileNotFoundError, 'name of the class'):
      data.open_images('folder', self.folder / 'none', 'test')

  def test_cifar(self):
    rng = np.random.default_rng(0)
    for name in [f'data_batch_{k}' for k in range(1, 6)] + ['test_batch']:
      rows = rng.integers(0, 256, (4, 3073), np.uint8)
      rows[:, 0] %= 10
      self.write(f'{name}.bin', rows.tobytes())
    names = '\n'.join(f'name{k}' for k in range(10))
    self.write('batches.meta.txt', names.encode())
    train = data.open_images('cifar10', self.folder, 'train')
    self.assertLen(train, 20)
    self.assertEqual(train.num_classes, 10)
    self.assertEqual(train.class_names[3], 'name3')
    self.assertEqual(train.source[0]['image'].shape, (32, 32, 3))

  def test_archive(self):
    images = [encoded(k, (32, 32), 'JPEG') for k in range(4)]
    path = self.folder / 'images.npz'
    np.savez(
      path,
      jpeg_bytes=np.frombuffer(b''.join(images), np.uint8),
      offsets=np.cumsum([0, *map(len, images)]),
      labels=np.array([0, 1, 1, 0], np.uint8),
      is_test=np.array([False, True, False, True]),
      class_names=np.array(['cat', 'dog']),
    )
    test = data.open_images('archive', path, 'test')
    self.assertLen(test, 2)
    self.assertEqual(test.class_names, ('cat', 'dog'))
    self.assertEqual([test.source[k]['label'] for k in (0, 1)], [1, 0])
    self.assertAlmostEqual(test.source[1]['image'].mean(), 6, delta=1.5)
    whole = path.read_bytes()
    for content in (b'no archive', b'', whole[: len(whole) // 2]):
      path.write_bytes(content)
      for read in (
        lambda: data.open_images('archive', path, 'test'),
        lambda: proxy.load_images(path),
      ):
        with self.assertRaisesRegex(shared_data.CorruptFileError, 'jpeg_bytes'):
          read()

  def test_bad_names(self):
    with self.assertRaisesRegex(ValueError, "kind is 'svhn'.*cifar10"):
      data.open_images('svhn', self.folder, 'train')
    with self.assertRaisesRegex(ValueError, "split is 'minival'"):
      data.open_images('cifar10', self.folder, 'minival')

  def source_with_damage(self):
    items = [encoded(k) for k in range(6)]
    items[2] = items[3] = b'no image'
    return shared_data.ImageSource(items, [0, 1, 2, 3, 4, 5], 'abcdef')

  def test_corrupt_images_are_refused(self):
    batches = shared_data.batches(
      self.source_with_damage(), 2, shuffle=False, num_threads=0
    )
    next(batches)
    with self.assertRaisesRegex(shared_data.CorruptFileError, 'image 2'):
      next(batches)
    batches.close()

  def test_corrupt_images_are_skipped(self):
    log = self.folder / 'run' / 'corrupt.tsv'
    source = data.SkipCorrupt(self.source_with_damage(), log)
    for _ in range(2):
      batches = shared_data.batches(
        source,
        4,
        shuffle=False,
        num_epochs=1,
        remainder='pad',
        transform=data.EvalTransform(8),
      )
      first, second = batches
      batches.close()
      self.assertEqual(first['label'].tolist(), [0, 1, 4, 4])
      self.assertEqual(first['sound'].tolist(), [True, True, False, False])
      self.assertEqual(second['mask'].tolist(), [True, True, False, False])
      self.assertEqual(first['image'].shape, (4, 8, 8, 3))
    self.assertSameElements(source.found, ['image 2', 'image 3'])
    self.assertEqual(data.corrupt_images(log), ['image 2', 'image 3'])
    self.assertIn('cannot be decoded', log.read_text())
    self.assertEqual(data.corrupt_images(self.folder / 'none'), [])

  def test_nothing_but_corrupt_images(self):
    source = shared_data.ImageSource([b'x', b'y'], [0, 0], 'a')
    with self.assertRaisesRegex(shared_data.CorruptFileError, 'all of the'):
      data.SkipCorrupt(source)[0]

  def test_training_batches_are_reproducible(self):
    items = [encoded(k) for k in range(6)]
    source = shared_data.ImageSource(items, range(6), 'abcdef')

    def make(threads):
      return shared_data.batches(
        source,
        2,
        seed=3,
        transform=data.TrainTransform(8, {'augment': 'autoaugment'}),
        num_threads=threads,
      )

    one, other = make(0), make(3)
    for _ in range(5):
      a, b = next(one), next(other)
      self.assertEqual(a['image'].dtype, np.uint8)
      np.testing.assert_array_equal(a['image'], b['image'])
      np.testing.assert_array_equal(a['label'], b['label'])
    other.set_state(one.get_state())
    np.testing.assert_array_equal(next(one)['image'], next(other)['image'])
    one.close()
    other.close()


class RecipesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('augment', 'cutmix', "augment is 'cutmix'.*autoaugment"),
    ('accumulate', 3, 'accumulate is 3'),
    ('bn_batch_size', 3, 'bn_batch_size is 3'),
    ('ema', 1.0, 'ema is 1.0'),
    ('epochs', 0.0, 'epochs is 0'),
    ('evaluate_on', 'minival', 'minival_shards'),
    ('model.name', 'efficientnet-b9', 'efficientnet-b9'),
    ('optimizer.name', 'adam', "optimizer.name is 'adam'.*rmsprop"),
    ('data.corrupt', 'ignore', "data.corrupt is 'ignore'"),
    ('model.options.padding', 'VALID', "padding is 'VALID'"),
  )
  def test_bad_configs(self, field, value, words):
    config = recipes.train_config()
    recipes.check(config)
    *path, name = field.split('.')
    node = config
    for part in path:
      node = node[part]
    node[name] = value
    with self.assertRaisesRegex(ValueError, words):
      recipes.check(config)

  def test_network_of_a_config(self):
    config = recipes.train_config()
    network = recipes.model_config(config, 1000)
    self.assertEqual(network.survival_prob, 0.8)
    self.assertEqual(network.dtype, 'bfloat16')
    config.model.options.survival_prob = 0.0
    config.model.options.stem_stride = 1
    config.model.options.head_filters = 640
    config.bfloat16 = False
    network = recipes.model_config(config, 7)
    self.assertIsNone(network.survival_prob)
    self.assertIsNone(network.dtype)
    self.assertEqual((network.stem_stride, network.num_classes), (1, 7))
    self.assertEqual(network.head_width, 640)

  def test_the_papers_numbers(self):
    config = recipes.train_config()
    self.assertEqual(config.optimizer.base_learning_rate * 4096 / 256, 0.256)
    self.assertEqual(
      (config.ema, config.label_smoothing, config.epochs), (0.9999, 0.1, 350)
    )
    self.assertEqual(config.optimizer.weight_decay, 1e-5)


if __name__ == '__main__':
  absltest.main()
