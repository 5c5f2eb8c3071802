"""Tests of L-BFGS and its line search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from absl.testing import absltest, parameterized

from jaxpapers.structopt import lbfgs as lbfgs_lib
from jaxpapers.structopt import line_search


def _rosenbrock(x):
  return scipy.optimize.rosen(x), scipy.optimize.rosen_der(x)


def _quartic(x):
  weights = np.logspace(0, 6, len(x))
  return (weights * x**4).sum() + (x**2).sum(), 4 * weights * x**3 + 2 * x


def _wavy(x):
  rng = np.random.default_rng(1)
  root = rng.normal(size=(len(x), len(x)))
  hessian = root @ root.T / len(x) + 0.05 * np.eye(len(x))
  linear = rng.normal(size=len(x))
  value = 0.5 * x @ hessian @ x + linear @ x + np.cos(2 * x).sum()
  return value, hessian @ x + linear - 2 * np.sin(2 * x)


def _run(function, x, evaluations, **kwargs):
  init, update = lbfgs_lib.lbfgs(**kwargs)
  state, losses = init(x), []
  while int(state.status) == lbfgs_lib.RUNNING and len(losses) < evaluations:
    value, grad = function(np.asarray(state.trial))
    losses.append(value)
    state = update(state, value, grad)
  return np.array(losses), state


def _run_scipy(function, x, evaluations):
  losses = []

  def recorded(x):
    value, grad = function(x)
    losses.append(value)
    return value, grad

  x, message = lbfgs_lib.scipy_lbfgs(recorded, x, evaluations)
  return np.array(losses), x, message


class LBFGSTest(parameterized.TestCase):
  @parameterized.parameters(
    (_rosenbrock, np.full(10, -1.2), 60),
    (_rosenbrock, np.array([-1.2, 1.0]), 40),
    (_quartic, np.linspace(1, 2, 8), 45),
    (_wavy, np.full(50, 2.0), 30),
  )
  def test_follows_scipy_evaluation_by_evaluation(self, function, x, count):
    expected, _, _ = _run_scipy(function, x, 100)
    losses, _ = _run(function, x, 100)
    # The same algorithm in the same precision: only the order of summation
    # differs, which each step amplifies.
    np.testing.assert_allclose(losses[:12], expected[:12], rtol=1e-12)
    np.testing.assert_allclose(losses[:count], expected[:count], rtol=1e-6)
    self.assertLen(losses, len(expected))

  def test_converges_and_then_stands_still(self):
    losses, state = _run(_rosenbrock, np.full(6, -1.2), 300)
    self.assertEqual(int(state.status), lbfgs_lib.CONVERGED)
    self.assertIn('converged', lbfgs_lib.MESSAGES[int(state.status)])
    np.testing.assert_allclose(state.params, np.ones(6), atol=1e-7)
    self.assertEqual(int(state.evaluations), len(losses))
    _, update = lbfgs_lib.lbfgs()
    again = update(state, 1e3, np.ones(6))
    jax.tree.map(np.testing.assert_array_equal, again, state)

  def test_restarts_once_then_gives_up(self):
    # A gradient of the wrong sign: no step along it ever decreases the value.
    def liar(x):
      return float(x @ x), -2 * x

    losses, state = _run(liar, np.array([1.0, 2.0]), 200)
    self.assertEqual(int(state.status), lbfgs_lib.SEARCH_FAILED)
    self.assertLess(len(losses), 60)
    np.testing.assert_array_equal(state.params, [1.0, 2.0])

  def test_bad_memory_is_dropped_and_the_run_goes_on(self):
    scales = np.arange(1.0, 9.0)
    init, update = lbfgs_lib.lbfgs(max_line_search_steps=2)
    state, spoilt = init(np.full(8, 3.0)), 0
    for _ in range(60):
      x = np.asarray(state.trial)
      value = 0.5 * x @ (scales * x)
      # Once, after some steps, a whole line search sees absurd values.
      if int(state.iterations) == 3 and int(state.restarts) == 0:
        value, spoilt = value + 1e6, spoilt + 1
      state = update(state, value, scales * x)
    self.assertEqual(spoilt, 2)
    self.assertEqual(int(state.restarts), 1)
    np.testing.assert_allclose(state.params, np.zeros(8), atol=1e-6)

  @parameterized.parameters(np.nan, np.inf)
  def test_a_value_that_is_not_finite_ends_the_run(self, bad):
    init, update = lbfgs_lib.lbfgs()
    state = update(init(np.ones(3)), 1.0, np.ones(3))
    self.assertEqual(int(state.status), lbfgs_lib.RUNNING)
    by_value = update(state, bad, np.ones(3))
    self.assertEqual(int(by_value.status), lbfgs_lib.NOT_FINITE)
    by_grad = update(state, 1.0, np.array([1.0, bad, 1.0]))
    self.assertEqual(int(by_grad.status), lbfgs_lib.NOT_FINITE)

  def test_float32_trees_with_float64_values(self):
    # The minimum lies on a plateau of 1e4: float32 values could not resolve
    # differences below 1e-3.
    target = {'a': np.float32([1, 2, 3]), 'b': np.float32([[4.0]])}
    weights = {'a': np.float32([1, 10, 100]), 'b': np.float32([[3.0]])}

    def function(params):
      with jax.enable_x64(True):
        difference = jax.tree.map(
          lambda p, t: p.astype(jnp.float64) - t, params, target
        )
        parts = jax.tree.map(lambda d, w: (w * d**2).sum(), difference, weights)
        grads = jax.tree.map(lambda d, w: 2 * w * d, difference, weights)
        return 1e4 + sum(jax.tree.leaves(parts)), grads

    init, update = lbfgs_lib.lbfgs()
    state = init(jax.tree.map(np.zeros_like, target))
    for _ in range(40):
      state = update(state, *function(state.trial))
    self.assertEqual(state.value.dtype, np.float64)
    self.assertEqual(state.params['a'].dtype, np.float32)
    jax.tree.map(
      lambda p, t: np.testing.assert_allclose(p, t, rtol=1e-5),
      state.params,
      target,
    )
    self.assertLess(float(state.value) - 1e4, 1e-8)

  @pytest.mark.slow
  def test_vmap_equals_loop_although_searches_differ(self):
    starts = np.stack([np.full(4, -1.2), np.full(4, 0.5), np.full(4, 3.0)])
    init, update = lbfgs_lib.lbfgs()
    with jax.enable_x64(True):
      batch = jax.vmap(init)(jnp.asarray(starts))
      many = jax.jit(jax.vmap(update))
      for _ in range(25):
        told = [_rosenbrock(x) for x in np.array(batch.trial)]
        batch = many(batch, *[np.stack(part) for part in zip(*told)])
    self.assertGreater(len(set(batch.iterations.tolist())), 1)
    for i, x in enumerate(starts):
      _, single = _run(_rosenbrock, x, 25)
      np.testing.assert_allclose(batch.params[i], single.params, rtol=1e-9)
      self.assertEqual(batch.iterations[i], single.iterations)

  def test_scipy_path_keeps_the_tree_and_counts(self):
    calls = []

    def function(params):
      calls.append(params)
      value = float((params['a'] ** 2).sum() + ((params['b'] - 2) ** 2).sum())
      return value, {'a': 2 * params['a'], 'b': 2 * (params['b'] - 2)}

    start = {'a': np.ones((2, 2), np.float32), 'b': np.zeros(3)}
    result, message = lbfgs_lib.scipy_lbfgs(function, start, 50)
    self.assertEqual(calls[0]['a'].dtype, np.float32)
    self.assertEqual(calls[0]['a'].shape, (2, 2))
    np.testing.assert_allclose(result['a'], 0, atol=1e-6)
    np.testing.assert_allclose(result['b'], 2, atol=1e-6)
    self.assertIn('CONVERGENCE', message)

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'memory_size is 0'):
      lbfgs_lib.lbfgs(0)
    with self.assertRaisesRegex(ValueError, 'max_line_search_steps is 0'):
      lbfgs_lib.lbfgs(max_line_search_steps=0)


class LineSearchTest(parameterized.TestCase):
  @parameterized.parameters(1e-3, 1e-1, 1.0, 10.0, 1e3)
  def test_strong_wolfe_conditions_hold(self, first_step):
    # The first test function of Moré & Thuente (1994), beta = 2.
    def f(a):
      return -a / (a * a + 2)

    def slope(a):
      return (a * a - 2) / (a * a + 2) ** 2

    with jax.enable_x64(True):
      state = line_search.begin(
        jnp.asarray(f(0.0)), jnp.asarray(slope(0.0)), jnp.asarray(first_step)
      )
      for _ in range(30):
        if state.done:
          break
        a = float(state.step)
        state = line_search.advance(
          state, jnp.asarray(f(a)), jnp.asarray(slope(a))
        )
    self.assertTrue(bool(state.done))
    a = float(state.step)
    self.assertLessEqual(f(a), 1e-3 * a * slope(0.0))
    self.assertLessEqual(abs(slope(a)), 0.9 * abs(slope(0.0)))


if __name__ == '__main__':
  absltest.main()
