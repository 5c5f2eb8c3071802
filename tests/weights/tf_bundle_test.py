"""Checkpoints of TensorFlow: one that it wrote, and damaged ones."""

import pathlib
import shutil
import tempfile

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxpapers.data import files
from jaxpapers.weights import tf_bundle
from tests.helpers import goldens

_INDEX = 'model.ckpt.index'
_DATA = 'model.ckpt.data-00000-of-00001'
_KERNEL = 'efficientnet-b0/stem/conv2d/kernel'


class TfBundleTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    for name in (_INDEX, _DATA):
      shutil.copyfile(goldens.path('weights_tf', name), self.folder / name)

  def test_all_arrays(self):
    state = tf_bundle.open_tf_checkpoint(self.folder / 'model.ckpt')
    self.assertLen(state, 68)
    for name in (_KERNEL, f'{_KERNEL}/ExponentialMovingAverage'):
      expected = goldens.normal(name, (3, 3, 3, 8)).astype(np.float32)
      np.testing.assert_array_equal(state[name], expected)
    for i in range(60):
      name = f'efficientnet-b0/blocks_{i}/tpu_batch_normalization/moving_mean'
      expected = goldens.normal(f'm{i}', (3,)).astype(np.float32)
      np.testing.assert_array_equal(state[name], expected)
    self.assertEqual(state['global_step'], 218949)
    self.assertEqual(state['global_step'].shape, ())
    bias = state['efficientnet-b0/head/dense/bias']
    np.testing.assert_array_equal(
      bias, goldens.normal('efficientnet-b0/head/dense/bias', (5,))
    )
    half = goldens.normal('half', (2, 3)).astype(np.float16)
    np.testing.assert_array_equal(state['half'], half)
    self.assertEqual(state['bf'].dtype, jnp.bfloat16)
    expected = goldens.normal('bf', (4,)).astype(np.float32)
    np.testing.assert_allclose(
      state['bf'].astype(np.float32), expected, rtol=2**-8
    )

  def test_places(self):
    for place in (self.folder, self.folder / _INDEX, str(self.folder)):
      self.assertLen(tf_bundle.open_tf_checkpoint(place), 68)
    for name in (_INDEX, _DATA):
      other = name.replace('model', 'other')
      shutil.copyfile(self.folder / name, self.folder / other)
    with self.assertRaisesRegex(FileNotFoundError, 'holds 2 checkpoints'):
      tf_bundle.open_tf_checkpoint(self.folder)
    # The path of the machine that wrote it does not count.
    latest = 'model_checkpoint_path: "/elsewhere/other.ckpt"\n'
    (self.folder / 'checkpoint').write_text(latest)
    state = tf_bundle.open_tf_checkpoint(self.folder)
    self.assertEqual(state.path.name, 'other.ckpt.index')

  def test_missing(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no file'):
      tf_bundle.open_tf_checkpoint(self.folder / 'none')
    (self.folder / _DATA).unlink()
    with self.assertRaisesRegex(FileNotFoundError, _DATA):
      tf_bundle.open_tf_checkpoint(self.folder)

  def test_damaged_index(self):
    path = self.folder / _INDEX
    content = path.read_bytes()
    for damaged in (
      b'',
      content[:-1],
      content[100:],
      bytes([content[0] ^ 1]) + content[1:],
      content[:500] + b'\xff' * 40 + content[540:],
    ):
      path.write_bytes(damaged)
      with self.assertRaisesRegex(files.CorruptFileError, 'index'):
        tf_bundle.open_tf_checkpoint(self.folder)

  def test_damaged_numbers(self):
    path = self.folder / _DATA
    content = bytearray(path.read_bytes())
    content[-300:] = bytes(300)
    path.write_bytes(content)
    state = tf_bundle.open_tf_checkpoint(self.folder)
    with self.assertRaisesRegex(files.CorruptFileError, 'checksum'):
      for name in state:
        state[name]
    path.write_bytes(content[:-300])
    state = tf_bundle.open_tf_checkpoint(self.folder, verify=False)
    with self.assertRaisesRegex(files.CorruptFileError, 'cut short'):
      for name in state:
        state[name]


if __name__ == '__main__':
  absltest.main()
