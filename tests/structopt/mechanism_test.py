"""Compliant mechanisms: the general adjoint, the force inverter, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.structopt import density, fem, mechanism


class OutputDisplacementTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.task = mechanism.force_inverter(12, 8)
    rng = np.random.default_rng(0)
    self.x = rng.uniform(0.2, 0.9, (8, 12))
    self.v = rng.standard_normal((8, 12))

  def loss(self, x, **kwargs):
    return mechanism.output_displacement(x, self.task, **kwargs)[0]

  def test_equals_a_dense_solution(self):
    problem = self.task.problem
    x = density.cone_filter(self.x, 2.0, problem.mask)
    youngs = np.asarray(density.simp(x, emin=1e-3))
    # Columns of K: forces that hold unit displacements.
    free = np.flatnonzero(problem.free)
    size = problem.free.size
    stiffness = np.zeros((size, size))
    unit = fem.element_stiffness(1.0, 0.3)
    node = np.arange(9 * 13).reshape(9, 13)
    for i in range(8):
      for j in range(12):
        corners = [
          node[i, j],
          node[i, j + 1],
          node[i + 1, j + 1],
          node[i + 1, j],
        ]
        dofs = np.array([2 * n + c for n in corners for c in (0, 1)])
        stiffness[np.ix_(dofs, dofs)] += youngs[i, j] * unit
    stiffness += np.diag(self.task.nodal_springs.ravel())
    u = np.zeros(size)
    u[free] = np.linalg.solve(
      stiffness[np.ix_(free, free)], problem.nodal_forces.ravel()[free]
    )
    expected = self.task.nodal_output.ravel() @ u
    np.testing.assert_allclose(self.loss(self.x), expected, rtol=1e-9)

  @parameterized.parameters('direct', 'host')
  def test_gradient(self, solver):
    @jax.jit
    def loss(x):
      return self.loss(x, solver=solver, tol=1e-11)

    h = 1e-5
    with jax.enable_x64(True):
      slope = (loss(self.x + h * self.v) - loss(self.x - h * self.v)) / (2 * h)
      ours = jnp.vdot(jax.jit(jax.grad(loss))(self.x), self.v)
    np.testing.assert_allclose(ours, slope, rtol=1e-5)

  def test_stiffer_workpiece_moves_less(self):
    soft = mechanism.force_inverter(12, 8, output_spring=0.01)
    stiff = mechanism.force_inverter(12, 8, output_spring=10.0)
    move = [
      abs(mechanism.output_displacement(self.x, task)[0])
      for task in (soft, stiff)
    ]
    self.assertGreater(move[0], 5 * move[1])

  def test_unconverged_is_nan(self):
    self.assertTrue(np.isnan(self.loss(self.x, tol=1e-30)))


class ForceInverterTest(absltest.TestCase):
  @pytest.mark.slow
  def test_inverts_within_its_volume(self):
    task = mechanism.force_inverter(24, 12)
    calls = []
    run = mechanism.optimize_mechanism(
      task, steps=60, callback=lambda n, loss: calls.append((n, loss))
    )
    # At the start the output follows the push; a mechanism answers it.
    self.assertGreater(run.losses[0], 0)
    self.assertLess(run.loss, -0.5)
    self.assertLessEqual(run.design.mean(), 0.3 + 1e-6)
    self.assertEqual([n for n, _ in calls], list(range(1, 62)))
    np.testing.assert_array_equal([loss for _, loss in calls], run.losses)
    again, _ = mechanism.output_displacement(run.design, task, filter_radius=1)
    np.testing.assert_allclose(again, run.loss, rtol=1e-9)

  def test_bad_arguments(self):
    task = mechanism.force_inverter(8, 4)
    for change, words in (
      ({'springs': -task.springs}, 'springs go down to -0.1'),
      ({'springs': task.springs[1:]}, r'springs has shape \(8, 5, 2\)'),
      ({'output': np.zeros_like(task.output)}, 'output is zero'),
      ({'output': task.output * np.nan}, 'output has entries that are NaN'),
    ):
      with self.assertRaisesRegex(ValueError, words):
        task.replace(**change).validate()
    with self.assertRaisesRegex(ValueError, 'constrain_volume'):
      mechanism.optimize_mechanism(task, 2, constrain_volume=True)
    with self.assertRaisesRegex(ValueError, 'steps'):
      mechanism.optimize_mechanism(task, 0)


if __name__ == '__main__':
  absltest.main()
