"""Tests of scripts/structopt_extras.py, in processes of its own."""

import pathlib
import re
import tempfile

import numpy as np
import PIL.Image
import pytest
from absl.testing import absltest, parameterized

from tests.helpers import scripts

_SCRIPT = 'structopt_extras'


class ExtrasTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def _run(self, example, scale, steps):
    done = scripts.run(
      _SCRIPT,
      f'--example={example}',
      f'--save_dir={self.folder}',
      f'--scale={scale}',
      f'--steps={steps}',
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    with PIL.Image.open(self.folder / f'{example}.png') as image:
      self.assertGreater(min(image.size), 200)
      self.assertGreater(np.asarray(image.convert('L')).std(), 5)
    arrays = dict(np.load(self.folder / f'{example}.npz'))
    self.assertNotEmpty(arrays)
    for name, array in arrays.items():
      self.assertTrue(np.isfinite(array).all(), name)
    return done.stdout, arrays

  def test_mechanism(self):
    text, arrays = self._run('mechanism', 0.4, 60)
    move = re.search(r'input moves (\S+), output (\S+) elements', text)
    self.assertGreater(float(move[1]), 0)
    self.assertLess(float(move[2]), 0)
    self.assertEqual(arrays['design'].shape, (16, 32))

  @pytest.mark.slow
  def test_self_weight(self):
    # Converged: 200 steps give volumes that agree to five digits.
    text, arrays = self._run('self_weight', 0.5, 120)
    self.assertLen(re.findall(r'volume \S+ of 0.25 allowed', text), 3)
    light, _, heavy = (
      arrays[f'weight_{weight}.design'].mean()
      for weight in ('0.0', '0.003', '0.02')
    )
    # Weightless material is used up: nothing is gained by leaving it out.
    self.assertAlmostEqual(light, 0.25, delta=2.5e-4)
    # Of heavy material 4.3 % are left out.
    self.assertLess(heavy, 0.98 * 0.25)
    # And the compliance it was left out for: a start of all that is allowed.
    losses = arrays['weight_0.02.losses']
    self.assertLess(losses[-1], 0.05 * losses[0])

  @parameterized.parameters('multi_load', 'heaviside', 'cantilever3d')
  @pytest.mark.nightly
  def test_runs(self, example):
    self._run(example, 0.34, 16)

  def test_usage(self):
    for flags, words in (
      ([], ['example']),
      (['--example=bridge'], ['example', 'multi_load']),
      (['--example=mechanism', '--scale=9'], ['scale']),
    ):
      done = scripts.run(_SCRIPT, *flags)
      scripts.assert_usage_error(self, done, *words)


if __name__ == '__main__':
  absltest.main()
