"""Tests of the whole analysis, on goldens and on what they imply."""

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.kcore import glm, io, pipeline, sensitivity, study
from jaxpapers.kcore.null import NullSummary
from tests.helpers import data, goldens

_QUICK = pipeline.Options(num_nulls=0, sensitivity=False, max_couplings=0)


def small_study(networks=3):
  """Three modules of twelve nodes, in a few networks."""
  module = np.repeat([0, 1, 2], 12)
  corr = []
  for g in range(networks):
    shared = goldens.normal(f'kcore/small_shared{g}', (4, 60))
    noise = goldens.normal(f'kcore/small_noise{g}', (36, 60))
    x = np.linspace(0.6, 1.4, 36)[:, None] * noise
    x = x + 0.8 * shared[module] + 0.8 * shared[3]
    c = np.corrcoef(x)
    corr.append(np.triu(c, 1) + np.triu(c, 1).T + np.eye(36))
  return study.Study(
    'small',
    corr,
    [f'network {g}' for g in range(networks)],
    module,
    ['a', 'b', 'c'],
    goldens.normal('kcore/small_coords', (36, 3)),
    np.arange(36) % 4 == 0,
    'other state',
  )


def haxby_runs():
  """The runs of the real slice, their voxels and what was seen."""
  folder = data.require(
    'kcore',
    'haxby_slice',
    source='github.com/PyMVPA/PyMVPA, mvpa2/data',
  )
  bold = io.load_bold(folder / 'bold.nii.gz', folder / 'mask.nii.gz')
  lines = (folder / 'attributes_literal.txt').read_text().split('\n')
  kinds, chunk = np.array([line.split() for line in lines if line]).T
  runs = []
  for r in range(12):
    scans = chunk == str(r)
    runs.append(
      study.Run(
        f'run {r}',
        bold.series[:, scans],
        (kinds[scans] != 'rest').astype(float),
        (kinds[scans] == 'scrambledpix').astype(float),
      )
    )
  return runs, bold


class HaxbyTest(parameterized.TestCase):
  def test_golden(self):
    runs, bold = haxby_runs()
    golden = goldens.load_npz('kcore', 'haxby_pipeline.npz')
    listed = goldens.load_json('kcore', 'haxby_pipeline.json')
    design = glm.pooled_design(
      [glm.design_matrix(run.stimulus, bold.tr) for run in runs]
    )
    series = np.concatenate([run.series for run in runs], axis=1)
    with jax.enable_x64(True):
      t, dof = glm.glm_tmap(series, design)
      self.assertEqual(int(dof), int(golden['dof']))
      np.testing.assert_allclose(t, golden['t_pooled'], rtol=0, atol=1e-6)
    made = study.bold_study(runs, bold.coords, bold.tr, affine=bold.affine)
    node = golden['node_mask']
    expected = bold.coords[node] @ bold.affine[:3, :3].T + bold.affine[:3, 3]
    np.testing.assert_allclose(made.coords, expected)
    np.testing.assert_array_equal(made.module, golden['module'])
    self.assertEqual(np.bincount(made.module).tolist(), [14, 12, 12, 20])
    np.testing.assert_array_equal(made.other, golden['scrambled_active'])
    analysis = pipeline.analyze(made, _QUICK)
    for r, row in enumerate(listed['runs']):
      result = analysis.results[r]
      np.testing.assert_array_equal(result.coreness, golden['coreness'][r])
      self.assertLen(result.edges, row['edges'])
      self.assertEqual(result.occupancy.tolist(), row['shell_occupancy'])
      self.assertEqual(
        result.core_by_module.tolist(), row['kmax_module_counts']
      )
      np.testing.assert_allclose(
        result.network.lambda_in, row['lambda_in'], atol=1e-12
      )
    # What does not reproduce, and is documented: no overlap, all modules.
    self.assertGreater(min(test.p for test in analysis.overlaps), 0.6)
    self.assertIsNone(analysis.shared)
    self.assertGreater(analysis.frequency.random_level, 0.9)


class SynthTest(parameterized.TestCase):
  def _check(self, analysis, streams):
    for result, test, stream in zip(
      analysis.results, analysis.overlaps, streams, strict=True
    ):
      counts = result.link_counts
      self.assertLen(result.edges, stream['edges'])
      self.assertEqual(np.trace(counts), stream['in_links'])
      self.assertEqual(np.triu(counts, 1).sum(), stream['out_links'])
      self.assertEqual(result.k_max, stream['k_max'])
      self.assertEqual(result.core.sum(), stream['n_kmax'])
      self.assertEqual(
        result.core_by_module.tolist(), stream['kmax_module_counts']
      )
      self.assertEqual(result.occupancy[0], stream['isolated'])
      self.assertEqual(result.thirds.tolist(), stream['tercile_occupancy'])
      self.assertGreater(result.u_index, 0)
      np.testing.assert_allclose(
        result.network.lambda_in, stream['lambda_in'], atol=1e-12
      )
      self.assertEqual(test.num_shared, stream['overlap_n_x'])
      np.testing.assert_allclose(test.p, stream['hypergeom_p'], rtol=1e-9)

  @pytest.mark.slow
  def test_golden(self):
    golden = goldens.load_json('kcore', 'synth_pipeline.json')
    made = study.synthetic_study(10)
    self.assertEqual(made.other.sum(), golden['subliminal_consensus_size'])
    self.assertEqual(
      np.bincount(made.module[made.other], minlength=7).tolist(),
      golden['subliminal_consensus_modules'],
    )
    analysis = pipeline.analyze(made, _QUICK)
    self._check(analysis, golden['streams'])
    self.assertEqual(
      [result.k_max for result in analysis.results],
      [95, 75, 82, 79, 82, 115, 86, 97, 104, 82],
    )
    self.assertEqual(analysis.frequency.count.tolist(), [10] * 3 + [0] * 4)
    shared = np.all([result.core for result in analysis.results], axis=0)
    np.testing.assert_array_equal(analysis.shared, shared)

  def test_first_seed(self):
    golden = goldens.load_json('kcore', 'synth_pipeline.json')['streams'][:1]
    made = study.synthetic_study(1)
    # The map of all ten seeds is that of the slow test.
    result = pipeline.analyze_network(made.corr[0], made.module)
    self.assertEqual(result.k_max, golden[0]['k_max'])
    self.assertEqual(
      result.core_by_module.tolist(), golden[0]['kmax_module_counts']
    )


class AnalyzeTest(parameterized.TestCase):
  def test_parts(self):
    said = []
    options = pipeline.Options(
      num_nulls=30, null_networks=2, shown=1, max_couplings=8
    )
    analysis = pipeline.analyze(small_study(), options, say=said.append)
    self.assertGreater(len(said), 3)
    self.assertEqual(list(analysis.nulls), [1, 2])
    for index, null in analysis.nulls.items():
      self.assertIsInstance(null, NullSummary)
      self.assertLen(null.k_max, 30)
      # Degrees stay, hence isolated nodes too.
      isolated = analysis.results[index].occupancy[0]
      self.assertEqual((null.occ_mean[0], null.occ_std[0]), (isolated, 0.0))
    shown = analysis.shown
    self.assertEqual(shown.name, 'network 1')
    self.assertEqual(shown.core_sizes[0], 36)
    self.assertEqual(shown.core_sizes[-1], shown.core.sum())
    self.assertEqual(np.sum(shown.occupancy), 36)
    self.assertEqual(analysis.table[0].k_max, shown.k_max)
    self.assertEqual(analysis.table[0].links, len(shown.edges))

  def test_percolation_curve_by_brute_force(self):
    import scipy.sparse.csgraph as csgraph

    made = small_study(1)
    result = pipeline.analyze_network(made.corr[0], made.module)
    self.assertTrue(np.all(np.diff(result.threshold) < 0))
    for threshold, giant, second in zip(
      result.threshold, result.giant, result.second, strict=True
    ):
      linked = np.round(made.corr[0] / 0.01, 9) >= round(threshold / 0.01)
      np.fill_diagonal(linked, False)
      _, label = csgraph.connected_components(linked)
      sizes = np.sort(np.append(np.bincount(label), 0))[::-1]
      self.assertEqual((giant, second), (sizes[0], sizes[1]))

  def test_network_without_links(self):
    options = _QUICK._replace(
      strategy='global', threshold=2.0, max_couplings=5, num_nulls=5
    )
    analysis = pipeline.analyze(small_study(1), options)
    self.assertEqual(analysis.shown.k_max, 0)
    self.assertFalse(analysis.shown.core.any())
    self.assertIsNone(analysis.sweep)

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'shown is 3'):
      pipeline.analyze(small_study(), _QUICK._replace(shown=3))
    broken = small_study(1)
    broken.corr[0][0, 1] += 0.1
    with self.assertRaisesRegex(ValueError, 'corr'):
      pipeline.analyze(broken, _QUICK)
    one = small_study(1)._replace(module=np.zeros(36, int))
    with self.assertRaisesRegex(ValueError, 'module'):
      pipeline.analyze(one, _QUICK)
    with self.assertRaisesRegex(ValueError, 'I is|alpha|threshold'):
      pipeline.analyze(small_study(1), _QUICK._replace(max_couplings=5, I=2.0))


class SweepTest(parameterized.TestCase):
  def test_falls_core_by_core(self):
    # K5 with a path hung to it: cores of 5 nodes up to k = 4, of 8 for k = 1.
    edges = [(i, j) for i in range(5) for j in range(i)]
    edges += [(4, 5), (5, 6), (6, 7)]
    coreness = [4] * 5 + [1] * 3
    sweep = pipeline.sweep_couplings(np.array(edges), coreness)
    self.assertEqual(sweep.K.tolist(), [4.5, 3.5, 2.5, 1.5, 0.5])
    self.assertEqual(sweep.core_sizes.tolist(), [0, 5, 5, 5, 8])
    self.assertEqual(sweep.down.tolist(), [0, 5, 5, 5, 8])
    self.assertEqual(sweep.up.tolist(), [0] * 5)
    # From the core alone the path lights up node by node.
    self.assertEqual(sweep.turned.tolist(), [0, 5, 5, 5, 8])
    self.assertAlmostEqual(sweep.critical, 0.9 / 4)
    between = (sweep.J[0], sweep.J[1])
    self.assertBetween(sweep.critical, *between)

  def test_rising_branch_stays_below(self):
    made = small_study(1)
    result = pipeline.analyze_network(made.corr[0], made.module)
    edges, coreness = result.edges, result.coreness
    # The core is a clique here, which a slope of 60 would let collapse early.
    options = pipeline.Options(n=600.0)
    sweep = pipeline.sweep_couplings(edges, coreness, options)
    soft = pipeline.sweep_couplings(edges, coreness)
    self.assertTrue(np.all(sweep.turned <= sweep.down))
    self.assertTrue(np.all(np.diff(sweep.down) >= 0))
    np.testing.assert_array_equal(sweep.down, sweep.core_sizes)
    self.assertTrue(np.all(soft.down <= sweep.down))
    self.assertLess(soft.down[1], sweep.down[1])

  def test_few_couplings_keep_the_collapse(self):
    n = 40
    edges = np.array([(i, j) for i in range(n) for j in range(i)])
    options = pipeline.Options(max_couplings=6)
    sweep = pipeline.sweep_couplings(edges, [n - 1] * n, options)
    self.assertLessEqual(len(sweep.J), 7)
    self.assertEqual(sweep.K[:2].tolist(), [n - 0.5, n - 1.5])
    self.assertEqual(sweep.core_sizes[:2].tolist(), [0, n])

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'edges is empty'):
      pipeline.sweep_couplings(np.zeros((0, 2), int), [0, 0])


class SensitivityTest(parameterized.TestCase):
  def test_myconnectome_k_max_stays_and_the_core_moves(self):
    folder = data.require('kcore', 'myconnectome')
    table = (folder / 'parcel_data.txt').read_text().splitlines()
    names = np.array([line.split('\t')[8] for line in table])
    full = study.matrix_study(
      np.load(folder / 'meancorr_utr.npy'), np.zeros(630, int)
    )
    kept = np.flatnonzero(np.char.startswith(names, '7Networks_'))
    module = np.array([int(name[-1]) - 1 for name in names[kept]])
    corr = full.corr[0][np.ix_(kept, kept)]
    rows = sensitivity.sensitivity_table(corr, module, quorums=())
    grids = {row.step: row for row in rows if row.strategy == 'module_merge'}
    # Figures of the reference computation by igraph.
    steps = (None, 0.005, 0.01, 0.02, 0.05)
    self.assertEqual([grids[s].k_max for s in steps], [8, 8, 8, 8, 7])
    hosts = [np.flatnonzero(grids[s].core_by_module) + 1 for s in steps]
    self.assertEqual(hosts[0].tolist(), [5, 7])
    self.assertEqual(hosts[1].tolist(), [5, 7])
    self.assertEqual(hosts[2].tolist(), [3, 4, 5, 6, 7])
    self.assertEqual(hosts[3].tolist(), [3, 4, 5, 6, 7])
    self.assertLen(hosts[4], 6)
    self.assertEqual(grids[0.05].core_size, 58)
    self.assertEqual(grids[None].jaccard, 0.0)

  def test_rows(self):
    made = small_study(1)
    rows = sensitivity.sensitivity_table(made.corr[0], made.module)
    self.assertLen(rows, 9)
    first, last = rows[0], rows[-1]
    self.assertEqual((first.strategy, first.step), ('module_merge', 0.01))
    self.assertEqual(first.jaccard, 1.0)
    self.assertEqual(last.strategy, 'global')
    # The grid may give a few links more for the same density.
    self.assertGreaterEqual(last.links, first.links)
    for row in rows:
      self.assertEqual(row.problem, '')
      self.assertEqual(row.core_by_module.sum(), row.core_size)


if __name__ == '__main__':
  absltest.main()
