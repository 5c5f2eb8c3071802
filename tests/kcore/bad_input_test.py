"""What every entry point refuses, and that it names the argument."""

import pathlib
import tempfile

import jax
import nibabel
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import kcore
from tests.helpers import goldens

_MODULE = np.array([0, 0, 0, 1, 1, 1])


def _corr():
  corr = np.corrcoef(goldens.normal('kcore/bad', (6, 30)))
  corr = np.triu(corr, 1)
  return corr + corr.T + np.eye(6)


def _params(**changes):
  ring = np.roll(np.eye(5), 1, axis=1)
  params = kcore.CollapseParams(0.1, 1.0, 60.0, 1.0, 1.0, ring + ring.T)
  return params._replace(**changes)


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(np.nan, np.inf)
  def test_corr_not_finite(self, value):
    corr = _corr()
    corr[1, 2] = corr[2, 1] = value
    for refuse in (
      lambda: kcore.functional_network(corr, _MODULE),
      lambda: kcore.quantize_levels(corr, 0.01),
    ):
      with self.assertRaisesRegex(ValueError, 'corr'):
        refuse()

  @parameterized.parameters(
    (None,),
    (np.full(6, -1),),
    (np.full(6, np.nan),),
    ([None] * 6,),
    (list('abcdef'),),
    (_MODULE[:5],),
  )
  def test_module_of_link_counts(self, module):
    with self.assertRaisesRegex(ValueError, 'module'):
      kcore.module_link_counts(np.zeros((6, 6)), module)

  @parameterized.parameters(
    (np.inf, None, 'J is inf'),
    (np.ones(5), None, r'J has shape \(5,\).*weights in adj'),
    (np.ones((5, 5)), None, 'J has shape'),
    (1.0, np.ones(4), 'x0 has shape'),
    (1.0, np.ones(1), 'x0 has shape'),
  )
  def test_steady_state(self, J, x0, message):
    with self.assertRaisesRegex(ValueError, message):
      kcore.steady_state(_params(J=J), x0)

  def test_corr_not_symmetric(self):
    corr = _corr()
    # The last bit is enough: the network would have a link one way only.
    corr[1, 2] = np.nextafter(corr[1, 2], 2)
    with self.assertRaisesRegex(ValueError, 'corr'):
      kcore.functional_network(corr, _MODULE)
    with self.assertRaisesRegex(ValueError, 'corr'):
      kcore.functional_network(_corr()[:5], _MODULE)

  @parameterized.parameters(
    (None,),
    (np.zeros(0, int),),
    (_MODULE[:5],),
    (_MODULE - 1,),
    (_MODULE * 2,),
    (_MODULE / 2,),
    (np.zeros(6, int),),
    (np.full(6, -1),),
    (np.full(6, np.nan),),
    ([None] * 6,),
    (list('abcdef'),),
  )
  def test_module_labels(self, module):
    with self.assertRaisesRegex(ValueError, 'module'):
      kcore.functional_network(_corr(), module)

  def test_modules_that_never_merge(self):
    # Negative levels are no link: the two modules stay apart.
    levels = np.full((4, 4), -1, np.int32)
    levels[0, 1] = levels[1, 0] = levels[2, 3] = levels[3, 2] = 5
    inside, between = kcore.module_merge_thresholds(
      levels, np.array([0, 0, 1, 1]), 2
    )
    self.assertEqual((inside.tolist(), int(between[0, 1])), ([-1, -1], -1))

  def test_self_loops_and_directed_links(self):
    loop = np.eye(3, dtype=bool)
    directed = np.zeros((3, 3), bool)
    directed[0, 1] = True
    for adj in (loop, directed):
      for refuse in (
        lambda adj=adj: kcore.coreness(adj),
        lambda adj=adj: kcore.k_core_mask(adj, 1),
        lambda adj=adj: kcore.steady_state(_params(adj=adj.astype(float))),
        lambda adj=adj: kcore.s_core_mask(adj.astype(float), 1.0),
      ):
        with self.assertRaisesRegex(ValueError, 'adj|weights'):
          refuse()
    key = jax.random.key(0)
    for edges in ([[0, 0], [1, 2]], [[0, 1], [1, 0]], [[0, 1], [2, 7]]):
      with self.assertRaisesRegex(ValueError, 'edges'):
        kcore.rewire(key, np.array(edges), 4)
      with self.assertRaisesRegex(ValueError, 'edges'):
        kcore.null_coreness(key, np.array(edges), 4, 2)

  def test_one_edge_comes_back_as_it_is(self):
    result = kcore.rewire(jax.random.key(0), np.array([[0, 1]]), 3)
    self.assertEqual(result.edges.tolist(), [[0, 1]])
    self.assertEqual(int(result.accepted), 0)

  @parameterized.parameters(
    ({'I': 1.0}, 'I'),
    ({'J': -0.1}, 'J'),
    ({'R': 0.0}, 'R'),
    ({'R': -1.0}, 'R'),
    ({'n': 0.0}, 'n'),
  )
  def test_model(self, changes, name):
    with self.assertRaisesRegex(ValueError, rf'\b{name}\b'):
      kcore.steady_state(_params(**changes))
    if 'J' not in changes:
      with self.assertRaisesRegex(ValueError, rf'\b{name}\b'):
        kcore.collapse_curve(_params(**changes), np.array([1.0]))

  def test_critical_coupling(self):
    for args in ((0, 0.1, 1.0, 1.0), (5, 2.0, 1.0, 1.0), (5, 0.1, -1.0, 1.0)):
      with self.assertRaises(ValueError):
        kcore.critical_coupling(*args)

  def test_unusable_voxels_are_dropped_and_counted(self):
    series = goldens.normal('kcore/bad_series', (5, 20))
    series[1] = 3.0
    series[3, 4] = np.nan
    with self.assertWarnsRegex(UserWarning, 'dropped 2 of 5'):
      corr = kcore.correlation_matrix(series)
    self.assertEqual(corr.shape, (3, 3))
    self.assertEqual(
      kcore.usable_series(series).tolist(), [True, False, True, False, True]
    )
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'bold.nii.gz'
      image = nibabel.Nifti1Image(
        series.reshape(5, 1, 1, 20).astype(np.float32), np.eye(4)
      )
      image.header.set_zooms((1, 1, 1, 2.0))
      nibabel.save(image, path)
      with self.assertWarnsRegex(UserWarning, 'dropped 2 of 5'):
        bold = kcore.load_bold(path)
    self.assertEqual(bold.coords[:, 0].tolist(), [0, 2, 4])

  def test_under_mixed_null_warns_with_the_number(self):
    ring = np.stack([np.arange(40), (np.arange(40) + 1) % 40], 1)
    with self.assertWarnsRegex(kcore.UnderMixedWarning, r'\d\.\d\d accepted'):
      kcore.null_coreness(jax.random.key(0), ring, 40, 4, rounds=2)


if __name__ == '__main__':
  absltest.main()
