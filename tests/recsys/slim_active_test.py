"""Tests of SLIM's columns that are solved on the items with a weight."""

from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.recsys import slim_active, slim_sweeps


class SlimActiveTest(parameterized.TestCase):
  @parameterized.parameters(0, 80)
  def test_columns_are_solved_on_what_is_active(self, alone):
    rng = np.random.default_rng(0)
    x = (rng.random((150, 128)) < 0.15).astype(np.float32)
    # Items that meet no other are at rest, and have left, before.
    x[:, 128 - alone :] = np.eye(150, alone)
    x[:alone, : 128 - alone] = 0
    gram, columns = x.T @ x, np.arange(128)[::-1]
    real, results = slim_sweeps.solve_active, []

    def solve(*arguments):
      results.append(real(*arguments))
      return results[-1]

    with mock.patch.object(slim_sweeps, 'solve_active', solve):
      weights = slim_sweeps.sweep_columns(gram, columns, 0.3, 3.0, tol=1e-5)
    self.assertTrue(results[0][1].all())
    gradient = gram @ weights + 3.0 * weights - gram[:, columns] + 0.3
    gradient[columns, np.arange(128)] = 0
    # The conditions of an optimum, as near as tol of a curvature of some 25.
    np.testing.assert_allclose(gradient[weights > 0], 0, atol=1e-4)
    self.assertGreater(gradient.min(), -1e-4)
    self.assertTrue((weights[columns, np.arange(128)] == 0).all())
    self.assertEqual((weights > 0).any(0).sum(), 128 - alone)

  def test_on_what_is_met(self):
    # Seven users for an item, of sixteen groups that do not meet.
    rng = np.random.default_rng(0)
    x = np.kron(np.eye(16), np.ones((12, 8))) * (rng.random((192, 128)) < 0.6)
    x = x.astype(np.float32)
    gram, columns = x.T @ x, np.arange(128)
    met, solved = slim_active.solve_met(gram, columns, 0.3, 3.0, 1e-6)
    self.assertTrue(solved.all())
    with mock.patch.object(slim_sweeps, '_CHEAP', 0):
      swept = slim_sweeps.sweep_columns(gram, columns, 0.3, 3.0, tol=1e-6)
    # Changes of 1e-6 are left by sweeps, and some as large to come.
    np.testing.assert_allclose(met, swept, atol=1e-5)

  def test_columns_that_cannot_be_solved_go_on(self):
    # Twins and no penalty: any share of the two is an optimum.
    x = np.repeat(np.eye(40, 6, dtype=np.float32), 2, 1)
    x += np.roll(x, 1, 0)
    gram, columns = x.T @ x, np.arange(12)
    with mock.patch.object(slim_active, '_STEPS', 0):
      weights = slim_sweeps.sweep_columns(gram, columns, 0.1, 1e-6)
      start = np.zeros((12, 12), np.float32), gram - np.float32(0.1)
      _, solved = slim_active.solve_active(gram, columns, *start, 0.1, 0, 1e-6)
    self.assertFalse(solved.any())
    # The twin explains an item, up to the penalty: 1 - .1 / 2.
    np.testing.assert_allclose(weights[columns, columns ^ 1], 0.95, atol=1e-3)


if __name__ == '__main__':
  absltest.main()
