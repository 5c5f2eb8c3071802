"""Weights of five libraries: names, files, and what does not fit."""

import pathlib
import sys
import tempfile
import warnings
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import efficientnet, weights
from jaxpapers.data import files
from jaxpapers.efficientnet import pretrained, pretrained_names
from tests.efficientnet import golden_weights
from tests.helpers import goldens


def flat(tree):
  return {k: np.asarray(v) for k, v in weights.flatten(tree).items()}


def assert_same(found, expected):
  found, expected = flat(found), flat(expected)
  assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
  for path, array in expected.items():
    np.testing.assert_array_equal(found[path], array, err_msg=path)


def to_tf_layout(array):
  """Torch's layout of a weight in that of TensorFlow."""
  return np.transpose(array, (2, 3, 1, 0)) if array.ndim == 4 else array.T


class NamesTest(parameterized.TestCase):
  def expected(self):
    config = efficientnet.ModelConfig()
    return config, golden_weights.variables(config)

  def test_timm(self):
    config, variables = self.expected()
    rows = goldens.load_json('efficientnet', 'timm_keys_b0.json')
    state = {name: golden_weights.value(name, shape) for name, shape in rows}
    assert_same(pretrained.from_state_dict(state, config), variables)
    # And back: all 360 entries, in timm's order.
    back = pretrained.to_timm_state_dict(variables)
    self.assertSameElements(back, [name for name, _ in rows])
    for name, array in back.items():
      np.testing.assert_array_equal(array, state[name])
      self.assertEqual(array.dtype, state[name].dtype)

  @parameterized.parameters('torchvision', 'lukemelas')
  def test_other_names_of_torch(self, format):
    config, variables = self.expected()
    if format == 'torchvision':
      config = config.replace(padding='symmetric')
    rows = goldens.load_json('efficientnet', f'{format}_names_b0.json')
    shapes = dict(goldens.load_json('efficientnet', 'timm_keys_b0.json'))
    state = {
      theirs: golden_weights.value(timm, shapes[timm])
      for theirs, timm, *_ in rows
    }
    self.assertEqual(pretrained_names.detect_format(state), format)
    assert_same(pretrained.from_state_dict(state, config), variables)
    back = pretrained.to_state_dict(variables, format)
    self.assertSameElements(back, state)

  def test_tensorflow(self):
    config, variables = self.expected()
    shapes = dict(goldens.load_json('efficientnet', 'timm_keys_b0.json'))
    state = {'global_step': np.int64(7)}
    rows = goldens.load_json('efficientnet', 'tf_ckpt_names_b0.json')
    for name, shape, timm in rows:
      array = golden_weights.value(timm, shapes[timm])
      array = to_tf_layout(array) if array.ndim > 1 else array
      if 'depthwise' in name:
        array = np.transpose(array, (0, 1, 3, 2))
      self.assertEqual(array.shape, tuple(shape))
      full = f'efficientnet-b0/{name}'
      state[full] = np.zeros_like(array)  # Averages are preferred.
      state[f'{full}/ExponentialMovingAverage'] = array
      state[f'{full}/RMSProp'] = array
      state[f'{full}/RMSProp_1'] = array
    assert_same(pretrained.from_state_dict(state, config), variables)
    plain = pretrained.from_state_dict(state, config, average=False)
    self.assertEqual(np.abs(plain['params']['stem_conv']['kernel']).max(), 0)
    back = pretrained.to_state_dict(variables, 'tf')
    for name, _, _ in rows:
      np.testing.assert_array_equal(
        back[name], state[f'efficientnet-b0/{name}/ExponentialMovingAverage']
      )
    self.assertLen(back, len(rows))

  @parameterized.parameters('lite0', 'edgetpu-s')
  def test_variants_there_and_back(self, variant):
    config = efficientnet.config_for(
      f'efficientnet-{variant}', width=0.25, depth=0.5
    )
    variables = golden_weights.variables(config)
    for format in pretrained_names.FORMATS:
      state = pretrained.to_state_dict(variables, format)
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert_same(pretrained.from_state_dict(state, config), variables)

  def test_names_of_edgetpu_and_lite(self):
    config = efficientnet.config_for('efficientnet-edgetpu-s')
    names = golden_weights.timm_shapes(config)
    self.assertEqual(names['blocks.0.0.conv_exp.weight'], (96, 32, 3, 3))
    self.assertEqual(names['blocks.3.0.conv_pwl.weight'], (96, 384, 1, 1))
    lite = golden_weights.timm_shapes(
      efficientnet.config_for('efficientnet-lite0')
    )
    self.assertFalse([name for name in lite if '.se.' in name])


class FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.config = golden_weights.tiny()
    self.variables = golden_weights.variables(self.config)

  def test_safetensors(self):
    path = self.folder / 'model.safetensors'
    pretrained.save_pretrained(path, self.variables)
    for place in (path, self.folder, str(path)):
      found = pretrained.load_pretrained(place, self.config)
      assert_same(found, self.variables)
    with self.assertRaisesRegex(ValueError, 'format is'):
      pretrained.save_pretrained(path, self.variables, 'keras')

  def test_torch_prefixes_and_half_types(self):
    state = golden_weights.state_dict(self.config)
    halves = {f'module.{k}': v.astype(np.float16) for k, v in state.items()}
    found = pretrained.from_state_dict(halves, self.config)
    kernel = found['params']['stem_conv']['kernel']
    self.assertEqual(kernel.dtype, np.float32)
    expected = self.variables['params']['stem_conv']['kernel']
    np.testing.assert_allclose(kernel, expected, rtol=1e-3, atol=1e-6)

  @parameterized.parameters('weights', 'whole model')
  def test_keras(self, kind):
    import h5py

    path = self.folder / 'net.h5'
    state = pretrained.to_state_dict(self.variables, 'keras')
    with h5py.File(path, 'w') as file:
      root = file if kind == 'weights' else file.create_group('model_weights')
      for name, array in state.items():
        layer, _, variable = name.partition('/')
        root[f'{layer}/{layer}/{variable}:0'] = array
      root['normalization/normalization/mean:0'] = np.zeros(3)
      root['normalization/normalization/variance:0'] = np.ones(3)
      if kind != 'weights':
        file['optimizer_weights/x/stem_conv/kernel:0'] = np.zeros(3)
    found = pretrained.load_pretrained(path, self.config)
    assert_same(found, self.variables)

  def test_keras_names(self):
    state = pretrained.to_state_dict(self.variables, 'keras')
    for name in (
      'stem_conv/kernel',
      'block1a_dwconv/depthwise_kernel',
      'block1a_bn/moving_variance',
      'block2a_expand_bn/beta',
      'block4b_se_reduce/bias',
      'block7a_project_bn/gamma',
      'top_conv/kernel',
      'predictions/kernel',
    ):
      self.assertIn(name, state)
    # As the first keras-applications called it.
    state['probs/kernel'] = state.pop('predictions/kernel')
    state['probs/bias'] = state.pop('predictions/bias')
    assert_same(pretrained.from_state_dict(state, self.config), self.variables)

  def test_keras_3_numbers_its_layers(self):
    import h5py

    path = self.folder / 'net.weights.h5'
    with h5py.File(path, 'w') as file:
      file['layers/conv2d/vars/0'] = np.zeros(3)
    with self.assertRaisesRegex(ValueError, 'numbers its layers'):
      pretrained.load_pretrained(path, self.config)
    path.write_bytes(b'nonsense')
    with self.assertRaisesRegex(files.CorruptFileError, 'no HDF5 file'):
      pretrained.load_pretrained(path, self.config)
    with self.assertRaises(FileNotFoundError):
      pretrained.load_pretrained(self.folder / 'none.h5', self.config)

  def test_works_without_torch(self):
    path = self.folder / 'model.safetensors'
    pretrained.save_pretrained(path, self.variables)
    absent = {'torch': None, 'tensorflow': None}
    with mock.patch.dict(sys.modules, absent):
      found = pretrained.load_pretrained(path, self.config)
    assert_same(found, self.variables)


class MismatchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.config = golden_weights.tiny()
    self.state = golden_weights.state_dict(self.config)

  def load(self, config=None, **options):
    return pretrained.from_state_dict(
      self.state, config or self.config, **options
    )

  def test_missing_and_unexpected(self):
    del self.state['blocks.2.0.conv_dw.weight']
    self.state['blocks.9.0.conv_dw.weight'] = np.zeros(3)
    with self.assertRaises(weights.WeightMismatchError) as caught:
      self.load()
    self.assertEqual(
      caught.exception.missing, ['params/stage2_block0/depthwise_conv/kernel']
    )
    self.assertEqual(caught.exception.unexpected, ['blocks.9.0.conv_dw.weight'])
    self.assertIn('another network', str(caught.exception))

  def test_shape(self):
    self.state['conv_stem.weight'] = np.zeros((8, 3, 5, 5))
    with self.assertRaisesRegex(
      weights.WeightMismatchError,
      r'params/stem_conv/kernel: conv_stem.weight is \(8, 3, 5, 5\), expected'
      r' \(8, 3, 3, 3\)',
    ):
      self.load()

  def test_other_network(self):
    with self.assertRaisesRegex(
      weights.WeightMismatchError,
      'another network.*first difference: params/stem_conv/kernel',
    ) as caught:
      self.load(efficientnet.ModelConfig(num_classes=10))
    self.assertNotEmpty(caught.exception.missing)

  def test_classes(self):
    other = self.config.replace(num_classes=7)
    with self.assertRaisesRegex(
      weights.WeightMismatchError, 'new_head=jax.random.key'
    ):
      self.load(other)
    found = self.load(other, new_head=jax.random.key(0))
    head = found['params']['classifier']
    self.assertEqual(head['kernel'].shape, (other.head_width, 7))
    self.assertLess(np.abs(head['kernel']).max(), 7**-0.5)
    # A head that fits stays, also when asked.
    kept = self.load(self.config, new_head=jax.random.key(0))
    np.testing.assert_array_equal(
      kept['params']['classifier']['kernel'].T, self.state['classifier.weight']
    )
    headless = self.load(self.config.replace(num_classes=0))
    self.assertNotIn('classifier', headless['params'])

  def test_channels(self):
    rgb = self.load()['params']['stem_conv']['kernel']
    gray = self.load(in_channels=1)['params']['stem_conv']['kernel']
    np.testing.assert_allclose(gray[:, :, 0], rgb.sum(2), rtol=1e-6)
    seven = self.load(in_channels=7)['params']['stem_conv']['kernel']
    self.assertEqual(seven.shape, (3, 3, 7, 8))
    for c in range(7):
      np.testing.assert_allclose(
        seven[:, :, c], rgb[:, :, c % 3] * 3 / 7, rtol=1e-6
      )
    with self.assertRaisesRegex(ValueError, 'in_channels is 0'):
      self.load(in_channels=0)

  def test_formats(self):
    with self.assertRaisesRegex(ValueError, "names of 'timm'"):
      self.load(format='keras')
    with self.assertRaisesRegex(ValueError, "format is 'onnx'"):
      self.load(format='onnx')
    with self.assertRaisesRegex(ValueError, 'not those of an EfficientNet'):
      pretrained.from_state_dict({'fc.weight': np.zeros(3)}, self.config)
    state = pretrained.to_state_dict(self.load(), 'torchvision')
    with self.assertWarnsRegex(UserWarning, "padding 'symmetric'"):
      pretrained.from_state_dict(state, self.config)


if __name__ == '__main__':
  absltest.main()
