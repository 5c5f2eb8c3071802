"""Tests of the choice of the number of rounds."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.kcore import null, pipeline
from tests.kcore import samples


class EnoughRoundsTest(parameterized.TestCase):
  def test_sparse_graph_takes_the_least(self):
    edges, n = samples.network_edges('myconnectome608')
    self.assertEqual(pipeline.enough_rounds(jax.random.key(0), edges, n), 20)

  def test_dense_core_takes_more_and_then_is_mixed(self):
    # One switch in five is accepted there.
    edges, n = samples.network_edges('synth_seed0')
    rounds = pipeline.enough_rounds(jax.random.key(0), edges, n)
    self.assertBetween(rounds, 55, 75)
    summary = null.null_coreness(jax.random.key(1), edges, n, 10, rounds=rounds)
    self.assertTrue(summary.mixed)

  def test_complete_graph_does_not_hang(self):
    # No switch is possible at all.
    edges = np.argwhere(np.triu(np.ones((6, 6), bool), 1))
    self.assertEqual(pipeline.enough_rounds(jax.random.key(0), edges, 6), 500)


if __name__ == '__main__':
  absltest.main()
