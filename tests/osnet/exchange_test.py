"""Checkpoints of torchreid: names, files, and what is refused."""

import dataclasses
import os
import pickle
import sys
import tempfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import osnet, weights
from jaxpapers.osnet import exchange, torch_writer
from tests.helpers import goldens
from tests.osnet import golden_weights

SMALL = dataclasses.replace(
  osnet.CONFIGS['osnet_x0_25'], blocks_per_stage=(1, 1, 1), feature_dim=16
)


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def temporary(case):
  """Path of a file that will be gone."""
  folder = tempfile.TemporaryDirectory()
  case.addCleanup(folder.cleanup)
  return os.path.join(folder.name, 'x.pth')


class NamesTest(parameterized.TestCase):
  @parameterized.parameters('osnet_x1_0', 'osnet_ain_x1_0')
  def test_names_and_shapes_are_torchreids(self, model):
    wanted = goldens.load_json('osnet', 'torch_state_dict_keys.json')[model]
    state = golden_weights.state(osnet.CONFIGS[model], 751)
    self.assertEqual({k: list(x.shape) for k, x in state.items()}, wanted)

  @parameterized.parameters(
    ({}, 'auto'),
    ({}, 'ain'),
    ({'instance_norm': ('outside', None, None)}, 'torchreid'),
    ({'instance_norm': ('inside', 'both', 'outside')}, 'auto'),
    ({'streams': (1, 1, 1, 1)}, 'auto'),
    ({'streams': (4,), 'aggregation': 'add'}, 'auto'),
    ({'aggregation': 'separate', 'gate_norm': True}, 'auto'),
    ({'aggregation': 'fixed', 'lite': False}, 'auto'),
    ({'aggregation': 'streamwise', 'feature_dim': None}, 'auto'),
    ({'stem_norm': 'instance', 'stem': 'cifar'}, 'auto'),
  )
  def test_there_and_back(self, changes, naming):
    cfg = dataclasses.replace(SMALL, **changes)
    state = golden_weights.state(cfg, 3, naming)
    variables = osnet.from_torch_state_dict(state, cfg)
    same(osnet.to_torch_state_dict(variables, cfg, naming), state)
    like = exchange.expected(cfg, 3)
    self.assertEqual(jax.tree.structure(variables), jax.tree.structure(like))


class FileTest(absltest.TestCase):
  def features(self, file):
    state = osnet.load_torch_checkpoint(goldens.path('osnet', file))
    variables = osnet.from_torch_state_dict(state, SMALL)
    self.assertEqual(variables['params']['classifier']['kernel'].shape[1], 5)
    x = golden_weights.images('ckpt', 2, 64, 32)
    return self.apply(variables, x).features

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.apply = staticmethod(jax.jit(osnet.OSNet(SMALL, 5).apply))

  def test_files_of_both_containers(self):
    self.assertNotIn('torch', sys.modules)
    golden = goldens.load_npz('osnet', 'tiny_ckpt_features.npz')
    (wanted,) = golden.values()
    np.testing.assert_allclose(
      self.features('tiny_legacy.pth.tar'), wanted, atol=1e-5, rtol=0
    )
    # float16 numbers in the file.
    np.testing.assert_allclose(
      self.features('tiny_zip.pth.tar-7'), wanted, atol=2e-3, rtol=0
    )

  def test_written_files_are_read_back(self):
    state = golden_weights.state(SMALL, 5)
    state['half'] = np.arange(6, dtype=np.float16).reshape(2, 3)[:, ::2]
    state['brain'] = np.asarray(jnp.ones((2, 2), jnp.bfloat16))
    state['empty'] = np.zeros((0, 3), np.float32)
    path = temporary(self)
    osnet.save_torch_checkpoint(path, state)
    same(osnet.load_torch_checkpoint(path), state)
    extra = {'epoch': 250, 'rank1': np.float32(0.5), 'ids': [1, 'a', None]}
    osnet.save_torch_checkpoint(path, state, extra=extra)
    same(osnet.load_torch_checkpoint(path), state)
    tree = weights.read_torch(path)
    self.assertEqual(
      {k: tree[k] for k in extra},
      {'epoch': 250, 'rank1': 0.5, 'ids': [1, 'a', None]},
    )

  def test_storages_are_aligned(self):
    path = temporary(self)
    arrays = {'a': np.ones(3, np.float32), 'b': np.ones((), np.int64)}
    torch_writer.write_torch(path, arrays)
    with zipfile.ZipFile(path) as archive:
      self.assertIsNone(archive.testzip())
      for entry in archive.infolist():
        if '/data/' in entry.filename:
          start = entry.header_offset + 30 + len(entry.filename)
          self.assertEqual((start + len(entry.extra)) % 64, 0)

  def test_what_cannot_be_written(self):
    path = temporary(self)
    with self.assertRaisesRegex(TypeError, r"tree\['f'\] is a builtin"):
      torch_writer.write_torch(path, {'f': len})
    with self.assertRaisesRegex(TypeError, 'key 1; expected texts'):
      torch_writer.write_torch(path, {1: 2})
    with self.assertRaisesRegex(TypeError, 'complex64'):
      torch_writer.write_torch(path, {'c': np.ones(1, np.complex64)})


class RefusalTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.state = golden_weights.state(SMALL, 5)

  def test_a_renamed_array_is_named(self):
    state = dict(self.state)
    state['conv3.0.gate.fc9.weight'] = state.pop('conv3.0.gate.fc1.weight')
    with self.assertRaises(weights.WeightMismatchError) as caught:
      osnet.from_torch_state_dict(state, SMALL)
    self.assertEqual(
      caught.exception.missing, ['params/conv3_0/gate/fc1/kernel']
    )
    self.assertEqual(caught.exception.unexpected, ['conv3.0.gate.fc9.weight'])

  def test_a_missing_array_is_named_but_for_the_classifier(self):
    state = {k: x for k, x in self.state.items() if 'classifier' not in k}
    variables = osnet.from_torch_state_dict(state, SMALL)
    self.assertNotIn('classifier', variables['params'])
    with self.assertRaisesRegex(ValueError, 'params/classifier/kernel'):
      osnet.from_torch_state_dict(state, SMALL, allow_missing=(), num_classes=5)
    del state['conv5.bn.running_var']
    with self.assertRaisesRegex(ValueError, 'batch_stats/conv5/norm/var'):
      osnet.from_torch_state_dict(state, SMALL)

  def test_classes(self):
    variables = osnet.from_torch_state_dict(self.state, SMALL, num_classes=0)
    self.assertNotIn('classifier', variables['params'])
    with self.assertRaisesRegex(ValueError, r'\(5, 16\), expected \(7, 16\)'):
      osnet.from_torch_state_dict(self.state, SMALL, num_classes=7)

  def test_another_network(self):
    other = dataclasses.replace(SMALL, channels=(16, 64, 96, 192))
    with self.assertRaisesRegex(ValueError, 'another network of CONFIGS'):
      osnet.from_torch_state_dict(self.state, other)
    ain = dataclasses.replace(SMALL, instance_norm=('inside', None, None))
    with self.assertRaises(weights.WeightMismatchError) as caught:
      osnet.from_torch_state_dict(self.state, ain)
    self.assertIn(
      'params/conv2_0/instance_norm_inside/scale', caught.exception.missing
    )

  def test_namings(self):
    ain = dataclasses.replace(SMALL, streams=(2, 1))
    variables = {'params': {}, 'batch_stats': {}}
    with self.assertRaisesRegex(ValueError, r'streams \(2, 1\)'):
      osnet.to_torch_state_dict(variables, ain, 'torchreid')
    with self.assertRaisesRegex(ValueError, "naming is 'timm'"):
      osnet.to_torch_state_dict(variables, SMALL, 'timm')
    folded = dataclasses.replace(SMALL, folded=True)
    with self.assertRaisesRegex(ValueError, 'folded'):
      osnet.to_torch_state_dict(variables, folded)
    with self.assertRaisesRegex(ValueError, r"variables has \['params'\]"):
      osnet.to_torch_state_dict({'params': {}}, SMALL)

  def test_deep_networks_with_instance_norms(self):
    # Of five stages a pixel would be left of 64.
    cfg = osnet.OSNetConfig(
      channels=(8, *(64,) * 5),
      blocks_per_stage=(1,) * 5,
      streams=(1,),
      instance_norm=('inside',) * 5,
    )
    found = exchange.expected(cfg)['params']['conv6_0']
    self.assertIn('instance_norm_inside', found)

  def test_a_file_that_runs_code(self):
    class Attack:
      def __reduce__(self):
        return os.system, ('touch attacked',)

    path = temporary(self)
    with zipfile.ZipFile(path, 'w') as archive:
      content = pickle.dumps({'state_dict': Attack()}, 2)
      archive.writestr('archive/data.pkl', content)
      archive.writestr('archive/version', '3\n')
    with self.assertRaisesRegex(weights.UnsafePickleError, r'\w+\.system'):
      osnet.load_torch_checkpoint(path)
    self.assertFalse(os.path.exists('attacked'))


if __name__ == '__main__':
  absltest.main()
