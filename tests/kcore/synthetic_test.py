"""Tests of the generator."""

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.kcore import synthetic
from tests.helpers import goldens


class SynthBoldTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, 'conscious'), (7, 'conscious'), (1003, 'subliminal')
  )
  def test_golden(self, seed, state):
    golden = goldens.load_npz('kcore', 'synth_bold.npz')
    made = synthetic.synth_bold(seed, state)
    # Equal to the bit where it was made; exp may round elsewhere.
    kwargs = {'rtol': 1e-12, 'atol': 1e-12}
    rows = golden[f'{state}{seed}/rows']
    np.testing.assert_allclose(made.series[[0, 271, 609]], rows, **kwargs)
    sums = golden[f'{state}{seed}/row_sums']
    np.testing.assert_allclose(made.series.sum(1), sums, atol=1e-10)
    np.testing.assert_allclose(made.stimulus, golden['stimulus'], **kwargs)
    np.testing.assert_array_equal(made.coords, golden['coords'])
    np.testing.assert_array_equal(made.module, golden['module'])

  def test_regions(self):
    made = synthetic.synth_bold(0)
    sizes = [region.size for region in synthetic.REGIONS]
    self.assertEqual(np.bincount(made.module).tolist(), sizes)
    self.assertLen(np.unique(made.coords, axis=0), 610)
    self.assertTrue(np.all(made.coords >= 0))
    self.assertTrue(np.all(made.coords < synthetic.SHAPE))

  def test_states_differ_in_loading_only(self):
    # The same noise: far fewer signals in the subliminal state.
    seen, masked = (synthetic.synth_bold(5, s) for s in synthetic.STATES)
    for made, low, high in ((seen, 0.6, 1.0), (masked, 0.3, 0.6)):
      corr = [
        np.corrcoef(made.stimulus, made.series[made.module == m].mean(0))[0, 1]
        for m in synthetic.CORE_MODULES
      ]
      self.assertGreater(min(corr), 0.9)
      single = made.series[np.isin(made.module, synthetic.CORE_MODULES)]
      mean = np.mean([np.corrcoef(made.stimulus, x)[0, 1] for x in single])
      self.assertBetween(mean, low, high)

  def test_other_lengths(self):
    made = synthetic.synth_bold(0, num_scans=40, tr=2.0, block=5)
    self.assertEqual(made.series.shape, (610, 40))
    self.assertAlmostEqual(made.stimulus.std(), 1.0)

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'state is'):
      synthetic.synth_bold(0, 'asleep')
    with self.assertRaisesRegex(ValueError, 'seed is -1'):
      synthetic.synth_bold(-1)
    with self.assertRaisesRegex(ValueError, 'num_scans is 10'):
      synthetic.synth_bold(0, num_scans=10)
    with self.assertRaisesRegex(ValueError, 'tr is 0'):
      synthetic.synth_bold(0, tr=0)


if __name__ == '__main__':
  absltest.main()
