"""The training programs as a user runs them: data, kill, evaluation, errors."""

import io
import json
import pathlib
import tempfile

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from PIL import Image

from jaxpapers import training
from tests.helpers import scripts

_CONFIGS = scripts.ROOT / 'scripts' / 'configs' / 'efficientnet'
# Two blocks: most of the time goes to compilation.
_TINY = (
  "--config.model.options.blocks=('r1_k3_s11_e1_i32_o16_se0.25',"
  "'r1_k3_s22_e2_i16_o24_se0.25')",
  '--config.model.options.width=0.25',
  '--config.model.options.depth=1.0',
  '--config.model.options.resolution=16',
)


def write_folder(folder, classes, per_class, corrupt=()):
  """Class folders of small images whose colour tells the class."""
  rng = np.random.default_rng(0)
  for split, count in (('train', per_class), ('test', per_class // 2)):
    for label, name in enumerate(classes):
      place = folder / split / name
      place.mkdir(parents=True)
      for k in range(count):
        pixels = rng.integers(0, 60, (20, 24, 3), np.uint8)
        pixels[..., label % 3] += 150
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, 'JPEG')
        content = stream.getvalue()
        if f'{split}/{name}/{k}' in corrupt:
          content = content[:100]
        (place / f'{k}.jpg').write_bytes(content)


class ScriptsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.data = self.folder / 'images'

  def flags(self, workdir, *more):
    return [
      f'--config={_CONFIGS / "cifar.py"}',
      *_TINY,
      '--config.data.kind=folder',
      f'--config.data.folder={self.data}',
      '--config.batch_size=4',
      '--config.epochs=3',
      '--config.evaluate_every=1',
      '--config.checkpoint_every=0.5',
      f'--workdir={self.folder / workdir}',
      '--quiet',
      *more,
    ]

  def run_script(self, name, *flags):
    done = scripts.run(name, *flags)
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    return done.stdout

  @pytest.mark.slow
  def test_train_evaluate_transfer(self):
    write_folder(
      self.data, 'abc', 8, corrupt=('train/a/1', 'test/b/0', 'test/b/1')
    )
    done = scripts.run('efficientnet_train', *self.flags('run'))
    scripts.assert_usage_error(self, done, '1.jpg', 'data.corrupt=skip')
    out = self.run_script(
      'efficientnet_train',
      *self.flags(
        'run2',
        '--config.data.corrupt=skip',
        '--config.augment=autoaugment',
        '--config.crop=box',
        '--config.mixup=0.2',
        '--config.accumulate=2',
      ),
    )
    run = self.folder / 'run2'
    self.assertIn('24 images of 3 classes, 6 steps an epoch, 18 in all', out)
    self.assertIn('3 corrupt images were left out', out)
    rows = training.read_metrics(run, 'test')
    self.assertEqual(rows['count'].tolist(), [10, 10, 10])
    self.assertIn('accuracy', training.read_metrics(run, 'test_raw'))
    self.assertTrue((run / 'model.safetensors').is_file())
    network = json.loads((run / 'network.json').read_text())
    self.assertEqual(network['class_names'], ['a', 'b', 'c'])

    # The newest checkpoint says the same as the last evaluation did.
    path = self.folder / 'numbers.json'
    out = self.run_script(
      'efficientnet_eval', f'--weights={run}', f'--json={path}'
    )
    numbers = json.loads(path.read_text())
    self.assertAlmostEqual(numbers['accuracy'], rows['accuracy'][-1], places=6)
    self.assertAlmostEqual(
      numbers['cross_entropy'], rows['cross_entropy'][-1], places=5
    )
    self.assertEqual((numbers['images'], numbers['corrupt']), (10, 2))
    self.assertIn('2 corrupt ones left out', out)

    # Two classes rather than three: only with a new head.
    other = self.folder / 'other'
    write_folder(other, 'xy', 6)
    common = [
      *self.flags('tuned'),
      '--config.epochs=1',
      f'--config.data.folder={other}',
      f'--config.init_from={run}',
    ]
    common[0] = f'--config={_CONFIGS / "transfer.py"}'
    common.append('--config.bfloat16=False')
    done = scripts.run('efficientnet_transfer', *common)
    scripts.assert_usage_error(self, done, 'classifier', '2', 'new_head=True')
    self.assertFalse((self.folder / 'tuned').exists())
    out = self.run_script(
      'efficientnet_transfer', *common, '--config.new_head=True'
    )
    self.assertIn('12 images of 2 classes', out)
    # A foreign file, whose classes are checked against the images.
    tuned = self.folder / 'tuned' / 'model.safetensors'
    done = scripts.run(
      'efficientnet_eval',
      f'--weights={tuned}',
      '--data_kind=folder',
      f'--data_folder={self.data}',
      '--num_classes=2',
    )
    scripts.assert_usage_error(self, done, '2 classes', '3', 'new_head')

  @pytest.mark.slow
  def test_resumes_after_a_kill(self):
    write_folder(self.data, 'abc', 16)
    flags = [
      '--config.augment=autoaugment',
      '--config.epochs=20',
      '--config.evaluate_every=10',
    ]
    scripts.kill_at_checkpoint(
      self,
      'efficientnet_train',
      *self.flags('killed', *flags),
      checkpoints=self.folder / 'killed' / 'checkpoints',
    )
    self.assertFalse((self.folder / 'killed' / 'model.safetensors').exists())
    for name in ('killed', 'straight'):
      self.run_script('efficientnet_train', *self.flags(name, *flags))
    for split in ('train', 'test', 'test_raw'):
      killed = training.read_metrics(self.folder / 'killed', split)
      straight = training.read_metrics(self.folder / 'straight', split)
      for name in straight:
        if 'second' not in name:  # Rates are of the clock.
          np.testing.assert_array_equal(killed[name], straight[name], name)
    weights = [
      (self.folder / name / 'model.safetensors').read_bytes()
      for name in ('killed', 'straight')
    ]
    self.assertEqual(*weights)

  @pytest.mark.slow
  def test_usage_errors(self):
    self.data.mkdir()
    base = self.flags('errors')
    for name, flags, words in (
      ('efficientnet_train', [], ('name of the class',)),
      ('efficientnet_train', ['--config.epochs=0'], ('epochs is 0',)),
      (
        'efficientnet_train',
        ['--config.model.name=efficientnet-b9'],
        ('efficientnet-b9', 'tf_efficientnet_', 'b0'),
      ),
      ('efficientnet_transfer', [], ('init_from is empty',)),
    ):
      own = list(base)
      if name == 'efficientnet_transfer':
        own[0] = f'--config={_CONFIGS / "transfer.py"}'
      done = scripts.run(name, *own, *flags)
      scripts.assert_usage_error(self, done, *words)
      self.assertFalse((self.folder / 'errors').exists())
    done = scripts.run(
      'efficientnet_eval', f'--weights={self.folder / "none.safetensors"}'
    )
    scripts.assert_usage_error(self, done, 'data.folder is empty')

  @parameterized.parameters(
    'efficientnet_train', 'efficientnet_transfer', 'efficientnet_eval'
  )
  @pytest.mark.slow
  def test_help(self, name):
    done = scripts.run(name, '--help')
    self.assertIn('Examples:', done.stdout)


if __name__ == '__main__':
  absltest.main()
