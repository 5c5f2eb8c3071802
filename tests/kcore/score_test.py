"""Tests of the s-core."""

import jax
import numpy as np
from absl.testing import absltest

from jaxpapers import kcore
from tests.kcore import samples


class ScoreTest(absltest.TestCase):
  def test_thirteen_thresholds_of_bct(self):
    golden = samples.load('score_wu.npz')
    weights = golden['W']
    self.assertLen(golden['s'], 13)
    with jax.enable_x64(True):
      for s, expected in zip(golden['s'], golden['in_score']):
        mask = np.asarray(kcore.s_core_mask(weights, s))
        # BCT shows a core by the strengths that are left, so that it cannot
        # tell isolated nodes from removed ones.
        left = mask & ((weights * mask).sum(1) > 0)
        np.testing.assert_array_equal(left, expected.astype(bool))

  def test_equal_weights_give_the_k_core(self):
    adj = samples.random_graph(1)
    core = np.asarray(kcore.coreness(adj))
    for k in range(1, core.max() + 2):
      # 0.25 and its multiples are exact in any type.
      mask = kcore.s_core_mask(adj * 0.25, 0.25 * k)
      np.testing.assert_array_equal(mask, core >= k)
      np.testing.assert_array_equal(kcore.s_core_mask(adj, k), core >= k)

  def test_jit_and_vmap_over_thresholds(self):
    weights = samples.load('score_wu.npz')['W'].astype(np.float32)
    s = np.linspace(0, 5, 7, dtype=np.float32)
    single = [kcore.s_core_mask(weights, x) for x in s]
    mask = jax.jit(jax.vmap(kcore.s_core_mask, (None, 0)))(weights, s)
    np.testing.assert_array_equal(mask, single)

  def test_bad_input(self):
    weights = np.array([[0, 1.0], [1.0, 0]])
    with self.assertRaisesRegex(ValueError, 'weights has a negative entry'):
      kcore.s_core_mask(-weights, 1.0)
    with self.assertRaisesRegex(ValueError, 'weights is not symmetric'):
      kcore.s_core_mask(np.triu(weights), 1.0)
    with self.assertRaisesRegex(ValueError, 'weights has 2 self-loops'):
      kcore.s_core_mask(weights + np.eye(2), 1.0)
    with self.assertRaisesRegex(ValueError, 's is nan'):
      kcore.s_core_mask(weights, np.nan)


if __name__ == '__main__':
  absltest.main()
