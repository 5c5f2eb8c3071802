"""efficientnet_convert and efficientnet_classify as a user runs them."""

import json
import pathlib
import tempfile

import numpy as np
import pytest
from absl.testing import absltest

from jaxpapers import efficientnet, weights
from jaxpapers.efficientnet import pretrained
from tests.efficientnet import golden_weights
from tests.helpers import scripts


class ScriptsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def write(self, format='timm'):
    config = efficientnet.config_for('efficientnet-b0')
    variables = golden_weights.variables(config)
    path = self.folder / f'{format}.safetensors'
    pretrained.save_pretrained(path, variables, format)
    return path, variables

  def test_convert(self):
    path, variables = self.write()
    output = self.folder / 'new' / 'out.safetensors'
    done = scripts.run(
      'efficientnet_convert',
      '--model=tf_efficientnet_b0.aa_in1k',
      f'--weights={path}',
      '--to=lukemelas',
      '--in_channels=1',
      f'--output={output}',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('360 arrays', done.stdout)
    state = weights.open_state_dict(output)
    kernel = variables['params']['stem_conv']['kernel']
    np.testing.assert_allclose(
      state['_conv_stem.weight'][:, 0],
      kernel.sum(2).transpose(2, 0, 1),
      rtol=1e-6,
    )
    self.assertEqual([p.name for p in output.parent.iterdir()], [output.name])

  def test_convert_refuses(self):
    path = self.folder / 'x.safetensors'
    weights.write_safetensors(path, {'fc.weight': np.zeros((2, 2))})
    for flags, words in (
      (('--model=b0', f'--weights={path}'), ('--weights', 'EfficientNet')),
      (('--model=b77', f'--weights={path}'), ('--model', 'b77')),
      (('--model=b0', '--weights=none.pth'), ('--weights', 'none.pth')),
    ):
      done = scripts.run('efficientnet_convert', *flags)
      scripts.assert_usage_error(self, done, *words)

  @pytest.mark.slow
  def test_classify(self):
    import PIL.Image

    path, variables = self.write()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(self.folder / 'a.png')
    (self.folder / 'b.png').write_bytes(b'nonsense')
    # Of the same name, in another folder.
    (self.folder / 'other').mkdir()
    PIL.Image.fromarray(pixels[::-1]).save(self.folder / 'other' / 'a.png')
    names = self.folder / 'names.json'
    names.write_text(
      json.dumps({i: [f'n{i}', f'thing {i}'] for i in range(1000)})
    )
    output = self.folder / 'maps'
    done = scripts.run(
      'efficientnet_classify',
      '--model=efficientnet-b0',
      f'--weights={path}',
      f'--image={self.folder}/*.png',
      f'--image={self.folder}/other/a.png',
      f'--names={names}',
      f'--output={output}',
      '--resolution=64',
      '--maps=2',
      '--json',
    )
    # One image was skipped, and named.
    self.assertEqual(done.returncode, 1, done.stderr)
    lines = done.stdout.strip().splitlines()
    self.assertLen(lines, 3)
    self.assertIn('b.png: skipped', lines[1])
    row = json.loads(lines[0])
    self.assertLen(row['top'], 5)
    # The same by hand.
    from jaxpapers.efficientnet import preprocess

    config = efficientnet.config_for('b0', resolution=64)
    x = preprocess.normalize(preprocess.preprocess_eval(pixels, 64))[None]
    logits = efficientnet.EfficientNet(config).apply(variables, x)
    best = int(np.argmax(logits[0]))
    self.assertEqual(row['top'][0]['class'], best)
    self.assertEqual(row['top'][0]['name'], f'thing {best}')
    for name in ('a_cam.png', 'a_2_cam.png'):
      with PIL.Image.open(output / name) as picture:
        self.assertEqual(picture.size, (3 * 64, 64))

  def test_classify_refuses(self):
    done = scripts.run(
      'efficientnet_classify', '--model=b0', '--weights=x', '--image=none.jpg'
    )
    scripts.assert_usage_error(self, done, '--image', 'none.jpg')


if __name__ == '__main__':
  absltest.main()
