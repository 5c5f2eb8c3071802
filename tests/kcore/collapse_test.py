"""Tests of the collapse model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import kcore
from tests.kcore import samples

GRAPHS = ('karate', 'er200_m800', 'two_clusters_bridges')


def adjacency(name):
  golden = samples.load('coreness.npz')
  edges = kcore.Edges(golden[f'{name}/edges'], int(golden[f'{name}/n']))
  return np.asarray(kcore.adjacency_matrix(edges)), golden[f'{name}/coreness']


def golden_params(name):
  values = samples.load('dynamics.json')[name]['params']
  adj, core = adjacency(name)
  J = samples.load('dynamics.npz')[f'{name}/J']
  return kcore.CollapseParams(**values, J=1.0, adj=adj), J, core


def complete(size, **changes):
  params = kcore.CollapseParams(0.1, 1.0, 60.0, 1.0, 0.5, 1.0 - np.eye(size))
  return params._replace(**changes)


class SteadyStateTest(parameterized.TestCase):
  @parameterized.parameters(*GRAPHS)
  def test_golden_and_cores(self, name):
    params, J, core = golden_params(name)
    expected = samples.load('dynamics.npz')[f'{name}/x_steady']
    with jax.enable_x64(True):
      x = jax.vmap(lambda j: kcore.steady_state(params._replace(J=j)))(J)
      still = jax.vmap(
        lambda x, j: kcore.collapse_rhs(0.0, x, params._replace(J=j))
      )(x, J)
    x = np.asarray(x)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(still, 0, atol=1e-12)
    for k in range(1, core.max() + 2):
      np.testing.assert_array_equal(x[k - 1] > params.alpha, core >= k)
    # Beyond k_max: collapsed, at I R and not at 0.
    np.testing.assert_allclose(x[-1], params.I * params.R, rtol=0, atol=1e-10)

  @parameterized.parameters(*GRAPHS)
  def test_float32_has_the_same_active_sets(self, name):
    params, J, core = golden_params(name)
    x = jax.vmap(lambda j: kcore.steady_state(params._replace(J=j)))(J)
    self.assertEqual(x.dtype, jnp.float32)
    sizes = (x > params.alpha).sum(1)
    expected = [(core >= k).sum() for k in range(1, core.max() + 2)]
    np.testing.assert_array_equal(sizes, expected)

  def test_step_is_on_at_the_threshold(self):
    # K_J = (alpha / R - I) / J = 2, exactly, gives the 2-core: degree < K_J is
    # what goes.
    params = complete(3, I=0.0, alpha=1.0, J=0.5, n=np.inf)
    np.testing.assert_array_equal(kcore.steady_state(params), 1.0)
    params = params._replace(J=0.499)
    np.testing.assert_array_equal(kcore.steady_state(params), 0.0)

  @parameterized.product(
    name=('karate', 'two_clusters_bridges'),
    values=((0.1, 1.0, 1.0), (0.2, 2.0, 3.0), (0.3, 0.7, 0.9)),
    x64=(False, True),
  )
  def test_step_at_integer_levels_prunes_to_the_core(self, name, values, x64):
    # Nodes at the threshold: rounding must not switch them off.
    adj, core = adjacency(name)
    background, resistance, alpha = values
    k = np.arange(1, core.max() + 1)
    params = kcore.CollapseParams(
      background, resistance, np.inf, alpha, 1.0, adj.astype(float)
    )
    with jax.enable_x64(x64):
      J = (alpha / resistance - background) / k
      x = kcore.collapse_curve(params, J, adiabatic=False)
      active = kcore.active_nodes(x, alpha)
    np.testing.assert_array_equal(active, core >= k[:, None])

  def test_scalar_start_and_empty_sweep(self):
    params = complete(3)
    low = kcore.steady_state(params, 0.1)
    np.testing.assert_array_equal(
      low, kcore.steady_state(params, np.full(3, 0.1))
    )
    self.assertEqual(kcore.collapse_curve(params, np.zeros(0)).shape, (0, 3))

  def test_step_gives_cores_and_unequal_couplings_s_cores(self):
    adj, core = adjacency('karate')
    params = kcore.CollapseParams(0.1, 1.0, np.inf, 1.0, 1.0, adj)
    for k in range(1, 6):
      x = kcore.steady_state(params._replace(J=0.9 / (k - 0.5)))
      np.testing.assert_array_equal(x > 1, core >= k)
    weights = samples.load('score_wu.npz')['W'][:60, :60]
    for s in (0.5, 1.0, 2.0):
      with jax.enable_x64(True):
        params = kcore.CollapseParams(0.1, 1.0, np.inf, 1.0, 0.9 / s, weights)
        active = kcore.steady_state(params) >= 1.0
        np.testing.assert_array_equal(active, kcore.s_core_mask(weights, s))

  @parameterized.parameters(
    (5.0, 0.41441), (20.0, 0.33900), (80.0, 0.31251), (np.inf, 0.3)
  )
  def test_tipping_point_of_a_regular_graph(self, n, expected):
    params = complete(4, n=n)
    with jax.enable_x64(True):
      top = jax.jit(lambda J: jnp.max(kcore.steady_state(params._replace(J=J))))
      low, high = 0.2, 0.6
      while high - low > 1e-6:
        middle = 0.5 * (low + high)
        if top(middle) > 0.75:
          high = middle
        else:
          low = middle
    self.assertAlmostEqual(high, expected, delta=1e-4)

  def test_is_where_the_differential_equation_ends(self):
    from scipy import integrate

    params, J, _ = golden_params('karate')
    params = params._replace(J=J[1], n=6.0, adj=params.adj.astype(float))
    with jax.enable_x64(True):
      start = kcore.fully_active(params)
      rhs = jax.jit(kcore.collapse_rhs)
      done = integrate.solve_ivp(
        lambda t, x: np.asarray(rhs(t, x, params)),
        (0, 200),
        start,
        method='LSODA',
        rtol=1e-10,
        atol=1e-12,
      )
      x = kcore.steady_state(params)
    # The tolerance of the solver.
    np.testing.assert_allclose(done.y[:, -1], x, rtol=0, atol=1e-7)

  def test_start_between_two_states_does_not_oscillate(self):
    # Full steps would swap the two nodes of a pair for ever.
    params = complete(2, J=1.0)
    with jax.enable_x64(True):
      x = kcore.steady_state(params, np.array([1.1, 0.1]))
      np.testing.assert_allclose(kcore.collapse_rhs(0, x, params), 0, atol=1e-9)
      low = kcore.steady_state(params, np.array([0.1, 0.1]))
      high = kcore.steady_state(params)
    np.testing.assert_allclose(low, 0.1, atol=1e-9)
    # The sigmoid of slope 60 is 6e-6 below 1 there.
    np.testing.assert_allclose(high, 1.1, atol=1e-5)

  @pytest.mark.slow
  def test_jit_and_vmap_over_matrices(self):
    batch = np.stack([samples.random_graph(s, n=20, p=0.3) for s in range(3)])
    params = kcore.CollapseParams(0.1, 1.0, 20.0, 1.0, 0.5, None)

    def solve(adj):
      return kcore.steady_state(params._replace(adj=adj))

    single = [solve(adj) for adj in batch]
    # A lane may take more steps than it needs: float32 rounding.
    np.testing.assert_allclose(
      jax.jit(jax.vmap(solve))(batch), single, rtol=2e-6
    )


class GradientTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.golden = samples.load('dynamics_grad_karate.json')
    adj, _ = adjacency('karate')
    self.params = kcore.CollapseParams(**self.golden['params'], adj=adj * 1.0)

  def total(self, params):
    return jnp.sum(kcore.steady_state(params))

  def test_golden_in_both_modes(self):
    with jax.enable_x64(True):
      params = jax.tree.map(jnp.asarray, self.params)
      np.testing.assert_allclose(
        kcore.steady_state(params), self.golden['x_steady'], atol=1e-12
      )
      reverse = jax.jit(jax.grad(self.total))(params)
      _, pull = jax.vjp(self.total, params)
      (by_vjp,) = pull(jnp.ones(()))
      # Central differences with a step of 1e-5 are good to 1e-7.
      for name, expected in self.golden['grad_sum_x'].items():
        with self.subTest(name):
          found = getattr(reverse, name)
          np.testing.assert_allclose(found, expected, rtol=1e-5)
          np.testing.assert_allclose(getattr(by_vjp, name), found, rtol=1e-12)

          def along(value, name=name):
            return self.total(params._replace(**{name: value}))

          start = getattr(params, name)
          _, forward = jax.jvp(along, (start,), (jnp.ones(()),))
          np.testing.assert_allclose(forward, found, rtol=1e-9)

  def test_edges_against_differences(self):
    adj = self.params.adj
    with jax.enable_x64(True):
      saliency = jax.jit(jax.grad(self.total))(
        jax.tree.map(jnp.asarray, self.params)
      ).adj
      step = 1e-5
      total = jax.jit(lambda adj: self.total(self.params._replace(adj=adj)))
      for i, j in ((0, 1), (33, 32), (2, 8)):
        change = np.zeros_like(adj)
        change[i, j] = step
        slope = (total(adj + change) - total(adj - change)) / (2 * step)
        # Differences of a sum of 36 are good to 36 * 2e-16 / 1e-5 and step^2.
        np.testing.assert_allclose(saliency[i, j], slope, rtol=1e-6)

  def test_through_the_iteration(self):
    def total(J, implicit):
      params = self.params._replace(J=J)
      return jnp.sum(kcore.steady_state(params, implicit_diff=implicit))

    with jax.enable_x64(True):
      slopes = [
        jax.jvp(lambda J, how=how: total(J, how), (0.32,), (1.0,))[1]
        for how in (True, False)
      ]
    np.testing.assert_allclose(*slopes, rtol=1e-9)


class CollapseCurveTest(absltest.TestCase):
  def test_hysteresis(self):
    params, _, _ = golden_params('karate')
    J = np.linspace(0.15, 1.2, 22)
    with jax.enable_x64(True):
      down = kcore.collapse_curve(params, J[::-1])[::-1]
      up = kcore.collapse_curve(params, J, x0=params.I * params.R)
      fresh = kcore.collapse_curve(params, J, adiabatic=False)
    active_down = (np.asarray(down) > params.alpha).sum(1)
    active_up = (np.asarray(up) > params.alpha).sum(1)
    # Nothing wakes up by itself: each node needs K_J > 0 active neighbours.
    np.testing.assert_array_equal(active_up, 0)
    self.assertTrue((np.diff(active_down) >= 0).all())
    self.assertEqual(active_down[0], 0)
    self.assertGreater(active_down[-1], 30)
    critical = kcore.critical_coupling(4, params.I, params.R, params.alpha)
    self.assertAlmostEqual(critical, 0.225)
    # A slope of 60 tips a few per cent earlier.
    self.assertAlmostEqual(J[active_down > 0][0], critical, delta=0.06)
    # Falling from full activity passes through the highest states.
    np.testing.assert_allclose(down, fresh, rtol=0, atol=1e-8)

  def test_rising_branch_returns_at_a_low_slope(self):
    # A soft sigmoid lets the collapsed state lose its stability, at a higher
    # coupling than the one at which the active state ends.
    params = complete(4, n=2.0)
    J = np.linspace(0.3, 1.5, 25)
    with jax.enable_x64(True):
      down = kcore.collapse_curve(params, J[::-1])[::-1, 0]
      up = kcore.collapse_curve(params, J, x0=0.1)[:, 0]
    self.assertTrue((np.asarray(up) <= np.asarray(down) + 1e-9).all())
    np.testing.assert_allclose(up[-1], down[-1], atol=1e-9)

  def test_gradient_along_a_sweep(self):
    params = complete(4, n=5.0)
    J = jnp.array([0.6, 0.5])

    def last(background):
      curve = kcore.collapse_curve(params._replace(I=background), J)
      return jnp.sum(curve[-1])

    def direct(background):
      changed = params._replace(I=background, J=0.5)
      return jnp.sum(kcore.steady_state(changed))

    with jax.enable_x64(True):
      np.testing.assert_allclose(
        jax.grad(last)(0.1), jax.grad(direct)(0.1), rtol=1e-9
      )


class BadInputTest(absltest.TestCase):
  def test_each_argument_is_named(self):
    loop = np.ones((3, 3))
    directed = np.triu(1.0 - np.eye(3))
    for changes, message in (
      ({'I': 1.0}, 'alpha is 1.0 and I R is 1.0'),
      ({'I': np.nan}, 'I is nan'),
      ({'R': 0.0}, 'R is 0.0'),
      ({'R': -1.0}, 'R is -1.0'),
      ({'n': 0.0}, 'n is 0.0'),
      ({'J': -0.1}, 'J is -0.1'),
      ({'adj': loop}, 'adj has 3 self-loops'),
      ({'adj': directed}, 'adj is not symmetric'),
      ({'adj': np.eye(3) - 1.0}, 'adj has a negative entry'),
      ({'adj': np.zeros(3)}, r'adj has shape \(3,\)'),
    ):
      params = complete(3, **changes)
      with self.subTest(message):
        with self.assertRaisesRegex(ValueError, message):
          kcore.steady_state(params)
        if 'J' not in changes:
          with self.assertRaisesRegex(ValueError, message):
            kcore.collapse_curve(params, np.array([0.5]))
    with self.assertRaisesRegex(ValueError, 'J is .*-0.5'):
      kcore.collapse_curve(complete(3), np.array([0.5, -0.5]))
    with self.assertRaisesRegex(ValueError, r'J has shape \(\)'):
      kcore.collapse_curve(complete(3), 0.5)
    with self.assertRaisesRegex(ValueError, 'alpha is 1.0 and I R is 1.2'):
      kcore.critical_coupling(4, 1.2, 1.0, 1.0)
    with self.assertRaisesRegex(ValueError, 'k_max is 0'):
      kcore.critical_coupling(0, 0.1, 1.0, 1.0)
    with self.assertRaisesRegex(ValueError, 'R is 0'):
      kcore.critical_coupling(4, 0.1, 0, 1.0)


if __name__ == '__main__':
  absltest.main()
