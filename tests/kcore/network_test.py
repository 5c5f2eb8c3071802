"""Tests of functional networks."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import kcore
from tests.kcore import samples

MODES = {'exact': None, 'step0.01': 0.01}


def small():
  golden = samples.load('percolation.npz')
  return golden, golden['small/C'], golden['small/module']


class FunctionalNetworkTest(parameterized.TestCase):
  @parameterized.product(mode=tuple(MODES), x64=(False, True))
  def test_golden_small(self, mode, x64):
    golden, corr, module = small()
    with jax.enable_x64(x64):
      net = kcore.functional_network(corr, module, step=MODES[mode])
    expected = np.unpackbits(golden[f'small/{mode}/A'])[: 52 * 52]
    np.testing.assert_array_equal(net.adj, expected.reshape(52, 52))
    np.testing.assert_array_equal(net.weights, np.where(net.adj, corr, 0))
    for name in ('lambda_in', 'lambda_out'):
      np.testing.assert_allclose(
        getattr(net, name), golden[f'small/{mode}/{name}'], rtol=0, atol=1e-12
      )
    counts = samples.load('percolation.json')[f'small/{mode}']
    links = kcore.module_link_counts(net.adj, module)
    self.assertEqual(np.trace(links), counts['in_links'])
    self.assertEqual(np.triu(links, 1).sum(), counts['out_links'])
    core = np.asarray(kcore.coreness(net.adj))
    np.testing.assert_array_equal(core, golden[f'small/{mode}/coreness'])

  @parameterized.product(
    mode=tuple(MODES), name=('myconnectome608', 'synth_seed0', 'synth_seed1')
  )
  def test_golden_large(self, mode, name):
    if name == 'myconnectome608':
      corr, module = samples.myconnectome()
    else:
      made = kcore.synth_bold(int(name[-1]))
      corr, module = kcore.correlation_matrix(made.series), made.module
    golden = samples.load('percolation.npz')
    net = kcore.functional_network(corr, module, step=MODES[mode])
    name = f'{name}/{mode}'
    expected = samples.unpack(golden[f'{name}/A_packed'], len(corr))
    np.testing.assert_array_equal(net.adj, expected)
    np.testing.assert_allclose(
      net.lambda_in, golden[f'{name}/lambda_in'], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
      net.lambda_out, golden[f'{name}/lambda_out'], rtol=0, atol=1e-12
    )
    core = np.asarray(kcore.coreness(net.adj))
    np.testing.assert_array_equal(core, golden[f'{name}/coreness'])
    if name == 'myconnectome608/step0.01':
      links = kcore.module_link_counts(net.adj, module)
      self.assertEqual(np.trace(links), 501)
      self.assertEqual(np.triu(links, 1).sum(), 816)
      self.assertEqual(core.max(), 8)
      inner = np.bincount(module[core == 8], minlength=7)
      np.testing.assert_array_equal(inner, [0, 0, 6, 1, 4, 10, 1])

  def test_largest_jump(self):
    _, corr, module = small()
    jump = samples.load('percolation.json')['small']['largest_jump']
    net = kcore.functional_network(
      corr, module, strategy='largest_jump', step=None
    )
    np.testing.assert_allclose(net.lambda_out, jump['level'], rtol=0, atol=0)
    inside = net.lambda_in[0]
    self.assertGreater(inside, jump['level'])
    same = module[:, None] == module[None]
    expected = np.where(same, corr >= inside, corr >= jump['level'])
    np.fill_diagonal(expected, False)
    np.testing.assert_array_equal(net.adj, expected)
    # Nothing happens to the giant component between the two.
    levels, values = kcore.quantize_levels(corr)
    curve = kcore.percolation_curve(levels)
    at = np.searchsorted(values, [inside, jump['level']])
    giant = kcore.giant_at(curve, at.astype(np.int32))
    np.testing.assert_array_equal(giant, [jump['S1_before'], jump['S1_after']])

  def test_largest_jump_on_a_grid(self):
    _, corr, module = small()
    net = kcore.functional_network(corr, module, strategy='largest_jump')
    self.assertAlmostEqual(net.lambda_in[0] - net.lambda_out[0, 0], 0.01)

  def test_global_threshold_and_density(self):
    _, corr, module = small()
    expected = corr >= 0.5
    np.fill_diagonal(expected, False)
    for labels in (None, module):
      net = kcore.functional_network(
        corr, labels, strategy='global', threshold=0.5
      )
      np.testing.assert_array_equal(net.adj, expected)
    for density in (0.01, 0.1, 0.5, 1.0):
      net = kcore.functional_network(
        corr, strategy='global', density=density, step=None
      )
      pairs = 52 * 51 // 2
      self.assertEqual(net.adj.sum() // 2, int(np.ceil(density * pairs)))
      np.testing.assert_array_equal(
        net.adj, (corr >= net.lambda_in[0]) & ~np.eye(52, dtype=bool)
      )

  def test_a_link_at_the_threshold_counts(self):
    corr = np.array([[1, 0.9, 0.5], [0.9, 1, 0.4], [0.5, 0.4, 1]])
    net = kcore.functional_network(corr, np.array([0, 0, 1]))
    np.testing.assert_array_equal(
      net.adj, [[False, True, True], [True, False, False], [True, False, False]]
    )

  def test_bad_input(self):
    _, corr, module = small()
    network = kcore.functional_network
    lopsided = corr.copy()
    lopsided[0, 1] += 1e-12
    hole = corr.copy()
    hole[0, 1] = hole[1, 0] = np.inf
    gap = np.where(module == 2, 3, module)
    for call, message in (
      (lambda: network(lopsided, module), 'corr is not symmetric'),
      (lambda: network(hole, module), 'corr has 2 entries that are NaN or inf'),
      (lambda: network(corr[:4], module), 'corr has shape'),
      (lambda: network(corr), 'module is None'),
      (lambda: network(corr, []), r'module is \[\]'),
      (lambda: network(corr, module[:4]), r'module has shape \(4,\)'),
      (lambda: network(corr, gap), r'module: no node has label \[2\]'),
      (lambda: network(corr, module * 0), 'module holds one label only'),
      (lambda: network(corr, module, quorum=1.0), 'quorum is 1.0'),
      (lambda: network(corr, module, step=-1), 'step is -1'),
      (lambda: network(corr, module, strategy='x'), "strategy is 'x'"),
      (lambda: network(corr, module, threshold=0.3), 'threshold is 0.3; only'),
      (lambda: network(corr, strategy='global'), 'expected exactly one'),
      (
        lambda: network(corr, strategy='global', density=0.0),
        'density is 0.0',
      ),
      (
        lambda: network(corr, strategy='global', threshold=np.nan),
        'threshold is nan',
      ),
      (lambda: jax.jit(network)(corr, module), 'corr is traced'),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        call()


class SinglePrecisionTest(absltest.TestCase):
  def test_grid_ties(self):
    upper = np.triu(np.arange(36).reshape(6, 6), 1) / 100
    corr = upper + upper.T + np.eye(6)
    module = np.array([0, 0, 0, 1, 1, 1])
    single = corr.astype(np.float32)
    for options in (
      dict(strategy='module_merge', step=0.01),
      dict(strategy='global', threshold=0.29),
    ):
      expected = kcore.functional_network(corr, module, **options)
      found = kcore.functional_network(single, module, **options)
      np.testing.assert_array_equal(found.adj, expected.adj)
      self.assertEqual(found.weights.dtype, np.float64)


if __name__ == '__main__':
  absltest.main()
