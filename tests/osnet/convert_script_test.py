"""osnet_convert as a user runs it."""

import os
import tempfile

import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers import osnet, weights
from tests.helpers import scripts
from tests.osnet import golden_weights


class ConvertTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = folder.name

  def path(self, name):
    return os.path.join(self.folder, name)

  def convert(self, *flags):
    return scripts.run('osnet_convert', '--model=osnet_x0_25', *flags)

  @pytest.mark.slow
  def test_there_and_back(self):
    state = golden_weights.state(osnet.CONFIGS['osnet_x0_25'], 5)
    osnet.save_torch_checkpoint(
      self.path('a.pth'),
      {f'module.{k}': x for k, x in state.items()},
      extra={'epoch': 3},
    )
    done = self.convert(
      f'--weights={self.path("a.pth")}',
      f'--output={self.path("new/b.safetensors")}',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('204,429 parameters, of which 2,565 classify', done.stdout)
    done = self.convert(
      f'--weights={self.path("new/b.safetensors")}',
      f'--output={self.path("c.pth.tar")}',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    back = osnet.load_torch_checkpoint(self.path('c.pth.tar'))
    self.assertSameElements(back, state)
    for name, array in state.items():
      np.testing.assert_array_equal(back[name], array)
    done = self.convert(
      f'--weights={self.path("c.pth.tar")}',
      '--num_classes=0',
      '--fold',
      f'--output={self.path("folded.safetensors")}',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    folded = weights.open_state_dict(self.path('folded.safetensors'))
    self.assertIn('params/conv5/norm/bias', folded)
    self.assertNotIn('params/classifier/bias', folded)

  def test_wrong_flags(self):
    scripts.assert_usage_error(
      self,
      self.convert(f'--weights={self.path("none.pth")}'),
      '--weights',
      'no file',
    )

  @pytest.mark.nightly
  def test_more_wrong_flags(self):
    state = golden_weights.state(osnet.CONFIGS['osnet_x0_25'], 5)
    del state['fc.0.bias']
    osnet.save_torch_checkpoint(self.path('a.pth'), state)
    weights_flag = f'--weights={self.path("a.pth")}'
    scripts.assert_usage_error(
      self, self.convert(weights_flag), 'params/fc/linear/bias'
    )
    scripts.assert_usage_error(
      self,
      self.convert(weights_flag, '--output=x.npz'),
      'x.npz',
      '.safetensors',
    )
    scripts.assert_usage_error(
      self, self.convert(weights_flag, '--fold', '--output=x.pth'), '--fold'
    )


if __name__ == '__main__':
  absltest.main()
