"""Data sets in a bucket: a mapping of gs:// to a local folder stands for it."""

import contextlib
import io
import os
import pathlib
import tarfile
import tempfile
import types

import numpy as np
from absl.testing import absltest
from etils import epath
from PIL import Image

from jaxpapers import data

_BUCKET = 'gs://bucket'


@contextlib.contextmanager
def _bucket(root):
  def local(path):
    path = os.fspath(path)
    if not path.startswith(_BUCKET):
      raise FileNotFoundError(path)
    return str(root) + path[len(_BUCKET) :]

  def put(_, path, mode='r', **options):
    return open(local(path), mode, **options)

  def size(_, path):
    return types.SimpleNamespace(length=os.stat(local(path)).st_size)

  def matches(_, pattern):
    found = pathlib.Path(local(pattern)).parent.glob(os.path.basename(pattern))
    return [_BUCKET + str(path)[len(str(root)) :] for path in found]

  with epath.testing.mock_epath(
    open=put,
    exists=lambda _, path: os.path.exists(local(path)),
    isdir=lambda _, path: os.path.isdir(local(path)),
    listdir=lambda _, path: os.listdir(local(path)),
    replace=lambda _, path, to: os.replace(local(path), local(to)),
    stat=size,
    glob=matches,
  ):
    yield


class BucketTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.enterContext(_bucket(self.root))

  def test_idx_and_mnist(self):
    images = np.arange(2 * 784).astype(np.uint8).reshape(2, 28, 28)
    data.write_idx(f'{_BUCKET}/train-images-idx3-ubyte.gz', images)
    data.write_idx(f'{_BUCKET}/train-labels-idx1-ubyte', np.array([3, 4], 'u1'))
    np.savez(self.root / 'mnist_test.npz', images=images, labels=[5, 6])
    train = data.load_mnist(_BUCKET)
    np.testing.assert_array_equal(train['image'], images)
    self.assertEqual(train['label'].tolist(), [3, 4])
    test = data.load_mnist(_BUCKET, 'test')
    self.assertEqual(test['label'].tolist(), [5, 6])
    self.assertLen(list(self.root.iterdir()), 3)
    with self.assertRaisesRegex(FileNotFoundError, 'gs://bucket/x does not'):
      data.load_mnist(f'{_BUCKET}/x')

  def test_cifar_archive(self):
    with tarfile.open(self.root / 'cifar-10-binary.tar.gz', 'w:gz') as tar:
      info = tarfile.TarInfo('cifar-10-batches-bin/test_batch.bin')
      content = b'\x07' + bytes(range(256)) * 12
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
    loaded = data.load_cifar10(_BUCKET, 'test')
    self.assertEqual(loaded['label'].tolist(), [7])
    path = self.root / 'cifar-10-binary.tar.gz'
    path.write_bytes(path.read_bytes()[:60])
    with self.assertRaisesRegex(data.CorruptFileError, 'got 60'):
      data.load_cifar10(_BUCKET, 'test')

  def test_images(self):
    stream = io.BytesIO()
    Image.new('RGB', (4, 4), (9, 9, 9)).save(stream, 'PNG')
    for wnid in ('n1', 'n2'):
      folder = self.root / 'imagenet' / 'train' / wnid
      folder.mkdir(parents=True)
      (folder / f'{wnid}_0.png').write_bytes(stream.getvalue())
    source = data.open_imagenet(f'{_BUCKET}/imagenet')
    self.assertEqual(source.name(1), f'{_BUCKET}/imagenet/train/n2/n2_0.png')
    batch = next(data.batches(source, 2, shuffle=False))
    self.assertEqual(batch['label'].tolist(), [0, 1])
    self.assertTrue((batch['image'] == 9).all())


if __name__ == '__main__':
  absltest.main()
