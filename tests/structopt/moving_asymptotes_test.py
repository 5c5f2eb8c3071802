"""Tests of the method of moving asymptotes."""

import jax
import jax.numpy as jnp
import nlopt
import numpy as np
import pytest
import scipy.optimize
from absl.testing import absltest, parameterized

from jaxpapers.structopt import moving_asymptotes as mma_lib


def _quadratic_problem(seed, n, m):
  """A convex objective with m convex constraints, 0 strictly feasible."""
  rng = np.random.default_rng(seed)
  root = rng.normal(size=(n, n))
  hessian = root @ root.T / n + 0.1 * np.eye(n)
  linear = 2 * rng.normal(size=n)
  slopes = rng.normal(size=(m, n))
  curvatures = rng.uniform(0.1, 1.0, size=(m, n))
  limits = rng.uniform(0.3, 1.0, size=m) * n / 6

  def objective(x):
    return 0.5 * x @ hessian @ x + linear @ x, hessian @ x + linear

  def constraints(x):
    values = slopes @ x + (curvatures * x * x).sum(1) - limits
    return values, slopes + 2 * curvatures * x

  return objective, constraints


def _run_nlopt(objective, constraints, m, x, evaluations):
  losses = []
  opt = nlopt.opt(nlopt.LD_MMA, len(x))
  opt.set_lower_bounds(-1.0)
  opt.set_upper_bounds(2.0)

  def f(x, grad):
    value, gradient = objective(x)
    grad[:] = gradient
    losses.append(value)
    return float(value)

  def g(result, x, grad):
    result[:], jacobian = constraints(x)
    if grad.size:
      grad[:] = jacobian

  opt.set_min_objective(f)
  opt.add_inequality_mconstraint(g, np.full(m, 1e-8))
  opt.set_maxeval(evaluations)
  opt.optimize(x)
  return np.array(losses)


def _run(objective, constraints, m, x, evaluations):
  init, update = mma_lib.mma(-1.0, 2.0, m, shape=x.shape)
  state, losses = init(x), []
  for _ in range(evaluations):
    trial = np.asarray(state.trial)
    value, grad = objective(trial)
    losses.append(value)
    state = update(state, value, grad, *constraints(trial))
  return np.array(losses), state


class MMATest(parameterized.TestCase):
  @parameterized.product(m=(1, 2, 4), seed=(0, 1, 2))
  def test_agrees_with_nlopt_evaluation_by_evaluation(self, m, seed):
    objective, constraints = _quadratic_problem(seed, 10, m)
    expected = _run_nlopt(objective, constraints, m, np.zeros(10), 40)
    losses, _ = _run(objective, constraints, m, np.zeros(10), 40)
    # NLopt solves its dual to rounding of the dual's value, so its multipliers
    # and with them its points carry an error of about sqrt(1e-16) = 1e-8.
    # Late inner iterations amplify it: rho is a gap over a squared step.
    np.testing.assert_allclose(losses[:20], expected[:20], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)

  @parameterized.parameters(1, 3)
  def test_reaches_the_optimum_that_another_method_finds(self, m):
    objective, constraints = _quadratic_problem(7, 6, m)
    losses, state = _run(objective, constraints, m, np.zeros(6), 150)
    reference = scipy.optimize.minimize(
      objective,
      np.zeros(6),
      jac=True,
      method='SLSQP',
      bounds=[(-1, 2)] * 6,
      constraints=[
        {
          'type': 'ineq',
          'fun': lambda x: -constraints(x)[0],
          'jac': lambda x: -constraints(x)[1],
        }
      ],
      options={'ftol': 1e-12, 'maxiter': 500},
    )
    self.assertLessEqual(float(state.infeasibility), 1e-8)
    self.assertAlmostEqual(float(state.value), reference.fun, delta=1e-4)
    # The accepted points improve; the start is far from the optimum.
    self.assertGreater(losses[0] - reference.fun, 1.0)

  def test_recovers_from_an_infeasible_start(self):
    for m in (1, 3):
      objective, constraints = _quadratic_problem(0, 12, m)
      _, state = _run(objective, constraints, m, np.full(12, 1.7), 60)
      _, expected = _run(objective, constraints, m, np.zeros(12), 60)
      self.assertGreater(constraints(np.full(12, 1.7))[0].max(), 1)
      self.assertLessEqual(float(state.infeasibility), 1e-8)
      # The problem is convex: the same optimum from both sides.
      self.assertAlmostEqual(
        float(state.value), float(expected.value), delta=1e-4
      )

  def test_float64_without_the_global_switch(self):
    init, update = mma_lib.mma(0.0, 1.0, shape=(3,))
    state = init(np.full(3, 0.5, np.float32))

    @jax.jit
    def step(state):
      with jax.enable_x64(True):
        x = state.trial
        told = (x**2).sum(), 2 * x, 1 - x.sum(), -jnp.ones(3)
      return update(state, *told)

    self.assertFalse(jax.config.jax_enable_x64)
    for _ in range(40):
      state = step(state)
    for name in ('trial', 'value', 'sigma', 'multipliers'):
      self.assertEqual(getattr(state, name).dtype, np.float64, name)
    np.testing.assert_allclose(state.center, np.full(3, 1 / 3), atol=1e-6)
    self.assertEqual(int(state.evaluations), 40)

  @parameterized.parameters(1, 2)
  @pytest.mark.slow
  def test_vmap_equals_loop(self, m):
    problems = [_quadratic_problem(seed, 5, m) for seed in range(3)]
    init, update = mma_lib.mma(-1.0, 2.0, m, shape=(5,))
    with jax.enable_x64(True):
      batch = jax.vmap(init)(np.zeros((3, 5)))
      many = jax.jit(jax.vmap(update))
      for _ in range(8):
        told = []
        for (objective, constraints), x in zip(problems, np.array(batch.trial)):
          told.append((*objective(x), *constraints(x)))
        batch = many(batch, *[np.stack(part) for part in zip(*told)])
    for i, (objective, constraints) in enumerate(problems):
      _, single = _run(objective, constraints, m, np.zeros(5), 8)
      # Rounding differs and grows by a digit per inner iteration.
      np.testing.assert_allclose(
        batch.trial[i], single.trial, rtol=0, atol=1e-9
      )

  def test_any_shape_of_x(self):
    objective, constraints = _quadratic_problem(3, 6, 1)
    _, flat = _run(objective, constraints, 1, np.zeros(6), 5)
    init, update = mma_lib.mma(-1.0, np.full((2, 3), 2.0))
    state = init(np.zeros((2, 3)))
    for _ in range(5):
      x = np.asarray(state.trial).ravel()
      value, grad = objective(x)
      constraint, jacobian = constraints(x)
      state = update(
        state, value, grad.reshape(2, 3), constraint[0], jacobian.reshape(2, 3)
      )
    np.testing.assert_allclose(
      np.ravel(state.trial), flat.trial, rtol=0, atol=1e-12
    )

  def test_unbounded_variables(self):
    init, update = mma_lib.mma(-np.inf, np.inf, shape=(2,))
    state = init(np.array([5.0, -3.0]))
    for _ in range(80):
      x = np.asarray(state.trial)
      state = update(
        state, ((x - 1) ** 2).sum(), 2 * (x - 1), x.sum() - 1.0, np.ones(2)
      )
    np.testing.assert_allclose(state.center, [0.5, 0.5], atol=1e-5)

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'n_constraints is 0'):
      mma_lib.mma(0.0, 1.0, 0)
    with self.assertRaisesRegex(ValueError, 'lower is not below upper'):
      mma_lib.mma(np.zeros(2), np.array([1.0, 0.0]))
    with self.assertRaisesRegex(ValueError, 'do not broadcast|not broadcast'):
      mma_lib.mma(np.zeros(2), np.ones(2), shape=(1,))
    init, update = mma_lib.mma(0.0, 1.0, shape=(2,))
    with self.assertRaisesRegex(ValueError, r'x has shape \(3,\)'):
      init(np.zeros(3))
    state = init(np.zeros(2))
    with self.assertRaisesRegex(ValueError, r'grad has shape \(3,\)'):
      update(state, 1.0, np.zeros(3), 0.0, np.zeros(2))
    _, update = mma_lib.mma(0.0, 1.0, 2, shape=(2,))
    with self.assertRaisesRegex(ValueError, 'constraints has shape'):
      update(state, 1.0, np.zeros(2), np.zeros(3), np.zeros((2, 2)))


if __name__ == '__main__':
  absltest.main()
