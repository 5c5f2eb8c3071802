"""Whether the recipe learns: a small network on 8000 images of CIFAR-10."""

import pathlib
import tempfile

import pytest
from absl.testing import absltest

from jaxpapers import training
from tests.helpers import data, scripts


class LearningTest(absltest.TestCase):
  @pytest.mark.nightly
  def test_eight_epochs(self):
    archive = data.require('efficientnet', 'cifar10_jpeg_subset.npz')
    config = scripts.ROOT / 'scripts' / 'configs' / 'efficientnet' / 'cifar.py'
    with tempfile.TemporaryDirectory() as folder:
      done = scripts.run(
        'efficientnet_train',
        f'--config={config}',
        '--config.data.kind=archive',
        f'--config.data.folder={archive}',
        f'--workdir={folder}',
        '--quiet',
        timeout=3000,
      )
      self.assertEqual(done.returncode, 0, done.stderr)
      rows = training.read_metrics(folder, 'test')
      raw = training.read_metrics(folder, 'test_raw')
      self.assertTrue(pathlib.Path(folder, 'model.safetensors').is_file())
    self.assertEqual(rows['step'].tolist(), [80 * k for k in range(1, 9)])
    # A tenth is chance; torch with the same network and optimizer, but without
    # averages and with slower statistics, came to .345.
    self.assertGreater(rows['accuracy'][-1], 0.28)
    self.assertGreater(raw['accuracy'][-1], 0.28)


if __name__ == '__main__':
  absltest.main()
