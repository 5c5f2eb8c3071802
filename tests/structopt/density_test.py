"""Tests of filters, volume constraints and projections."""

import math
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jaxpapers.structopt import checks, density, domain, families, roots

_TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata' / 'structopt'
_GOLDEN = dict(np.load(_TESTDATA / 'small.npz'))


def _double(x):
  """A float64 JAX array, whatever the x64 mode is."""
  with jax.enable_x64(True):
    return jnp.asarray(x, jnp.float64)


def _random(*shape, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  return _double(scale * rng.standard_normal(shape))


def _brute_force_filter(x, radius, mask):
  """The filter's definition, element by element."""
  out = np.zeros_like(x)
  for i in np.ndindex(*x.shape):
    total = weight = 0.0
    for j in np.ndindex(*x.shape):
      w = max(0.0, radius - math.dist(i, j)) * mask[j]
      total += w * x[j]
      weight += w
    out[i] = mask[i] * total / weight if mask[i] else 0.0
  return out


class ConeFilterTest(parameterized.TestCase):
  @parameterized.parameters(range(5))
  def test_golden(self, case):
    x, mask = _GOLDEN[f'cone{case}_x'], _GOLDEN[f'cone{case}_mask']
    radius = float(_GOLDEN[f'cone{case}_radius'])
    y, vjp = jax.vjp(lambda x: density.cone_filter(x, radius, mask), _double(x))
    (gradient,) = vjp(_double(_GOLDEN[f'cone{case}_ct']))
    # A few tens of additions of numbers of order one.
    np.testing.assert_allclose(y, _GOLDEN[f'cone{case}_y'], atol=1e-14)
    np.testing.assert_allclose(gradient, _GOLDEN[f'cone{case}_vjp'], atol=1e-14)

  @parameterized.parameters(1.0, 1.2, 2.0, 3.5, 4.0, 9.0)
  def test_definition(self, radius):
    x = np.asarray(_random(5, 7))
    mask = np.ones((5, 7))
    mask[1:3, 2:] = 0
    np.testing.assert_allclose(
      density.cone_filter(x, radius, mask),
      _brute_force_filter(x, radius, mask),
      atol=1e-14,
    )

  def test_traced_mask_equals_known_mask(self):
    x = _random(6, 8)
    mask = np.ones((6, 8))
    mask[:2, :3] = 0
    traced = jax.jit(lambda x, m: density.cone_filter(x, 2.0, m))(x, mask)
    np.testing.assert_allclose(
      traced, density.cone_filter(x, 2.0, mask), atol=1e-15
    )

  def test_keeps_precision(self):
    self.assertEqual(density.cone_filter(np.ones((3, 3))).dtype, np.float64)
    single = jnp.ones((3, 3), jnp.float32)
    self.assertEqual(
      density.cone_filter(single, 2.0, np.ones((3, 3))).dtype, np.float32
    )

  def test_batches(self):
    x, mask = _random(4, 5, 6), np.ones((5, 6))
    mask[0, 0] = 0

    def run(x):
      return density.cone_filter(x, 2.0, mask)

    loop = np.stack([run(row) for row in x])
    np.testing.assert_array_equal(jax.vmap(run)(x), loop)
    np.testing.assert_array_equal(run(x), loop)
    slope = jax.grad(lambda x: density.simp(run(x)).reshape(-1)[7])
    np.testing.assert_allclose(
      jax.vmap(slope)(x), np.stack([slope(row) for row in x]), atol=1e-15
    )

  @hypothesis.given(
    shape=st.sampled_from([(1, 1), (1, 6), (5, 4), (9, 7)]),
    radius=st.sampled_from([0.5, 1.3, 2.0, 4.7]),
    seed=st.integers(0, 2**16),
  )
  @hypothesis.settings(max_examples=25, deadline=None)
  def test_is_an_average(self, shape, radius, seed):
    rng = np.random.default_rng(seed)
    mask = (rng.random(shape) < 0.8).astype(float)
    x = rng.random(shape)
    y = np.asarray(density.cone_filter(x, radius, mask))
    self.assertGreaterEqual(y.min(), 0)
    self.assertLessEqual(y.max(), x.max() + 1e-15)
    self.assertTrue((y[mask == 0] == 0).all())
    constant = density.cone_filter(np.full(shape, 0.3), radius, mask)
    np.testing.assert_allclose(constant, 0.3 * mask, atol=1e-15)

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'radius must be positive'):
      density.cone_filter(np.ones((3, 3)), 0.0)
    with self.assertRaisesRegex(ValueError, 'mask has shape'):
      density.cone_filter(np.ones((3, 4)), 2.0, np.ones((4, 3)))
    with self.assertRaisesRegex(ValueError, 'x has shape'):
      density.cone_filter(np.ones(3))

  def test_mean_density(self):
    mask = np.ones((4, 6))
    mask[:2, 3:] = 0
    full = density.mean_density(np.ones((4, 6)), mask)
    np.testing.assert_allclose(full, 1.0, atol=1e-15)
    x = np.asarray(_random(4, 6))
    expected = _brute_force_filter(x, 2.0, mask).sum() / mask.sum()
    np.testing.assert_allclose(
      density.mean_density(x, mask), expected, atol=1e-14
    )


class VolumeSigmoidTest(parameterized.TestCase):
  @parameterized.parameters(range(4))
  def test_golden(self, case):
    average = float(_GOLDEN[f'sig{case}_avg'])
    y, vjp = jax.vjp(
      lambda z: density.volume_sigmoid(z, average),
      _double(_GOLDEN[f'sig{case}_x']),
    )
    (gradient,) = vjp(_double(_GOLDEN[f'sig{case}_ct']))
    # The published bisection stops at a width of 1e-12.
    np.testing.assert_allclose(y, _GOLDEN[f'sig{case}_y'], atol=1e-12)
    expected = _GOLDEN[f'sig{case}_vjp']
    error = np.linalg.norm(np.asarray(gradient) - expected)
    self.assertLess(error, 1e-9 * np.linalg.norm(expected))

  @hypothesis.given(
    size=st.sampled_from([1, 2, 50]),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e3, 1e5]),
    offset=st.sampled_from([0.0, -50.0, 1e4]),
    fraction=st.sampled_from([0.001, 0.05, 0.3, 0.5, 0.999]),
    seed=st.integers(0, 2**16),
  )
  @hypothesis.settings(max_examples=60, deadline=None)
  def test_mean_and_finite_derivatives(
    self, size, scale, offset, fraction, seed
  ):
    rng = np.random.default_rng(seed)
    z = _double(offset + scale * rng.standard_normal(size))
    x, gradient = map(
      np.asarray,
      _sigmoid_vjp(z, _double(fraction), _double(rng.standard_normal(size))),
    )
    # The shift is a float64 of the size of the logits, which bounds how well
    # the mean can be met: slope at most 1/4, a few roundings.
    size_of_shift = 1 + np.abs(np.asarray(z)).max()
    self.assertLess(abs(x.mean() - fraction), 1e-12 + 1e-15 * size_of_shift)
    self.assertTrue(np.isfinite(gradient).all())
    # Adding a constant to all logits changes nothing.
    self.assertLess(abs(np.sum(gradient)), 1e-10)

  def test_extreme_logits_in_single_precision(self):
    z = jnp.asarray(np.asarray(_random(200, scale=1e3)), jnp.float32)
    x = density.volume_sigmoid(z, 0.999)
    self.assertEqual(x.dtype, jnp.float32)
    # Shifts near 2e3 resolve 1e-4; a slope of 1/4 over 200 entries.
    self.assertLess(abs(float(x.mean()) - 0.999), 1e-5)
    gradient = jax.grad(lambda z: density.volume_sigmoid(z, 0.999)[3])(z)
    self.assertTrue(np.isfinite(gradient).all())

  def test_order_is_kept_and_masked_entries_are_void(self):
    z, mask = _random(8, 9), np.ones((8, 9))
    mask[2:5, 3:] = 0
    x = np.asarray(density.volume_sigmoid(z, 0.3, mask))
    self.assertAlmostEqual(x.sum() / mask.sum(), 0.3, delta=1e-12)
    self.assertTrue((x[mask == 0] == 0).all())
    inside = np.asarray(z)[mask > 0].argsort()
    self.assertTrue((np.diff(x[mask > 0][inside]) > 0).all())

  def test_masked_logits_do_not_matter(self):
    z, mask = np.asarray(_random(4, 5)), np.ones((4, 5))
    mask[0, 0] = 0
    other = z.copy()
    other[0, 0] = 1e6

    def function(z):
      return density.volume_sigmoid(z, 0.3, mask)

    np.testing.assert_array_equal(function(z), function(other))
    (gradient,) = jax.vjp(function, _double(other))[1](_random(4, 5, seed=1))
    gradient = np.asarray(gradient)
    self.assertEqual(gradient[0, 0], 0)
    self.assertTrue(np.isfinite(gradient).all())

  def test_forward_and_reverse_mode_agree(self):
    z, dz, ct = (_random(40, seed=s, scale=3.0) for s in range(3))

    def function(z):
      return density.volume_sigmoid(z, 0.2)

    _, dx = jax.jvp(function, (z,), (dz,))
    (gradient,) = jax.vjp(function, z)[1](ct)
    forward, reverse = np.vdot(ct, dx), np.vdot(gradient, dz)
    np.testing.assert_allclose(forward, reverse, rtol=1e-12)

  def test_derivative_in_the_volume_fraction(self):
    with jax.enable_x64(True):
      z = _random(30, scale=2.0)

      def function(v):
        return (density.volume_sigmoid(z, v) ** 2).sum()

      slope = jax.grad(function)(jnp.asarray(0.3))
      step = 1e-5
      difference = (function(0.3 + step) - function(0.3 - step)) / (2 * step)
    # Central difference: third derivatives of order 100 times step**2.
    np.testing.assert_allclose(slope, difference, rtol=1e-7)

  def test_bad_input(self):
    for value in (0.0, 1.0, 1.2, float('nan')):
      with self.assertRaisesRegex(ValueError, 'volfrac must'):
        density.volume_sigmoid(np.zeros(3), value)
    with self.assertRaisesRegex(ValueError, 'mask has shape'):
      density.volume_sigmoid(np.zeros((3, 4)), 0.3, np.ones((4, 3)))
    with self.assertRaisesRegex(ValueError, 'mask is zero'):
      density.volume_sigmoid(np.zeros((3, 4)), 0.3, np.zeros((3, 4)))

  def test_nan_logits_give_nan(self):
    x = density.volume_sigmoid(np.array([0.0, np.nan, 1.0]), 0.3)
    self.assertTrue(np.isnan(x).all())


@jax.jit
def _sigmoid_vjp(z, fraction, cotangent):
  x, vjp = jax.vjp(lambda z: density.volume_sigmoid(z, fraction), z)
  return x, vjp(cotangent)[0]


class RootTest(parameterized.TestCase):
  @parameterized.parameters(
    (lambda x: (x**3 - 2, 3 * x**2), 0.0, 1e4, 2 ** (1 / 3)),
    (lambda x: (jnp.tanh(50 * (x - 1)), 0.0 * x), -3.0, 9.0, 1.0),
    (lambda x: (x - 5, 1.0 + 0 * x), 5.0, 6.0, 5.0),
    (lambda x: (jnp.cbrt(x), jnp.cbrt(x) ** -2.0 / 3), -1.0, 2.0, 0.0),
  )
  def test_root(self, function, low, high, root):
    with jax.enable_x64(True):
      x = roots.monotone_root(function, jnp.asarray(low), jnp.asarray(high))
    # At x = 0 with slope infinity, bisection stops at 4 ulp of one.
    np.testing.assert_allclose(x, root, rtol=1e-14, atol=1e-15)


class PointwiseTest(parameterized.TestCase):
  def test_simp(self):
    np.testing.assert_allclose(
      density.simp(np.array([0.0, 0.5, 1.0])),
      [1e-9, 0.125 + 0.875e-9, 1.0],
      rtol=1e-15,
    )
    np.testing.assert_allclose(
      density.simp(np.array([0.5]), 2.5, 0.1, 2.0), 0.1 + 0.5**2.5 * 1.9
    )
    self.assertEqual(density.simp(jnp.ones(2, jnp.float32)).dtype, np.float32)
    with self.assertRaisesRegex(ValueError, 'p must be a positive exponent'):
      density.simp(np.ones(2), 0)

  def test_simp_derivatives_at_zero(self):
    with jax.enable_x64(True):
      for penal in (1, 2, 3.0, 2.5):
        slope = jax.grad(lambda x, p=penal: density.simp(x, p))(0.0)
        curvature = jax.grad(jax.grad(lambda x: density.simp(x, 3.0)))(0.0)
        self.assertEqual(slope, (1 - 1e-9) if penal == 1 else 0)
        self.assertEqual(curvature, 0)

  @parameterized.parameters((1.0, 0.5), (8.0, 0.5), (32.0, 0.3))
  def test_heaviside(self, beta, eta):
    x = np.linspace(0, 1, 101)
    y = np.asarray(density.heaviside(x, beta, eta))
    self.assertAlmostEqual(y[0], 0, delta=1e-15)
    self.assertAlmostEqual(y[-1], 1, delta=1e-15)
    self.assertTrue((np.diff(y) >= 0).all())
    expected = (math.tanh(beta * eta) + np.tanh(beta * (x - eta))) / (
      math.tanh(beta * eta) + math.tanh(beta * (1 - eta))
    )
    np.testing.assert_allclose(y, expected, atol=1e-15)

  def test_heaviside_limits(self):
    x = np.linspace(0, 1, 11)
    # The deviation from the identity is of the order of beta**2.
    np.testing.assert_allclose(density.heaviside(x, 1e-3), x, atol=1e-6)
    np.testing.assert_allclose(
      density.heaviside(x, 1e3), [0] * 5 + [0.5] + [1] * 5, atol=1e-12
    )

  def test_heaviside_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'beta must be positive'):
      density.heaviside(np.ones(2), 0.0)
    with self.assertRaisesRegex(ValueError, 'eta must lie'):
      density.heaviside(np.ones(2), 1.0, 1.0)

  def test_beta_continuation(self):
    schedule = jax.jit(
      lambda step: density.beta_continuation(
        step, start=2.0, factor=1.5, every=10, maximum=5.0
      )
    )
    got = [float(schedule(step)) for step in (0, 9, 10, 20, 30, 10**6)]
    self.assertEqual(got, [2.0, 2.0, 3.0, 4.5, 5.0, 5.0])

  def test_self_weight(self):
    x = np.arange(6.0).reshape(2, 3)
    forces = np.asarray(density.self_weight(x, 0.4))
    self.assertEqual(forces.shape, (3, 4, 2))
    self.assertTrue((forces[..., 0] == 0).all())
    np.testing.assert_allclose(forces[..., 1].sum(), -0.4 * x.sum())
    # A corner carries a quarter of its element, an inner node four quarters.
    np.testing.assert_allclose(forces[2, 3, 1], -0.1 * x[1, 2])
    np.testing.assert_allclose(
      forces[1, 1, 1], -0.1 * (x[0, 0] + x[0, 1] + x[1, 0] + x[1, 1])
    )
    slope = jax.grad(lambda x: density.self_weight(x, 0.4)[1, 1, 1])
    np.testing.assert_allclose(
      slope(_double(x)), [[-0.1, -0.1, 0], [-0.1, -0.1, 0]]
    )

  def test_check_densities(self):
    checks.check_densities(np.array([0.0, 1.0]))
    for value in (np.nan, np.inf):
      with self.assertRaisesRegex(ValueError, 'x0 has 1 entries'):
        checks.check_densities(np.array([0.5, value]), 'x0')
    for value in (-0.01, 1.01):
      with self.assertRaisesRegex(ValueError, 'x ranges over'):
        checks.check_densities(np.array([0.5, value]))
    # Traced values cannot be looked at.
    jax.jit(lambda x: checks.check_densities(x) or x)(np.array([2.0]))


class PhysicalDensityTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.problem = families.l_shape(20, 20, 0.4)
    solid = np.zeros((20, 20))
    solid[:, 0] = 1
    self.with_solid = self.problem.replace(solid=solid > 0).validate()
    self.z = _random(20, 20, scale=3.0)

  def _fraction(self, x):
    return np.asarray(x).sum() / self.problem.mask.sum()

  def test_published_order(self):
    x = density.volume_sigmoid(self.z, 0.4, self.problem.mask)
    self.assertAlmostEqual(self._fraction(x), 0.4, delta=1e-12)
    np.testing.assert_array_equal(
      density.physical_density(self.z, self.problem),
      density.cone_filter(x, 2.0, self.problem.mask),
    )

  def test_without_volume_constraint(self):
    x = np.random.default_rng(0).random((20, 20))
    np.testing.assert_allclose(
      density.physical_density(x, self.problem, constrain_volume=False),
      _brute_force_filter(x, 2.0, self.problem.mask),
      atol=1e-14,
    )

  @parameterized.parameters(
    (None, False), (None, True), ((8.0, 0.4), False), ((32.0, 0.5), True)
  )
  def test_physical_volume(self, projection, solid):
    problem = self.with_solid if solid else self.problem
    x = density.physical_density(
      self.z, problem, projection=projection, constrain='physical'
    )
    self.assertAlmostEqual(self._fraction(x), 0.4, delta=1e-12)

  def test_passive_solids(self):
    x = np.asarray(
      density.physical_density(self.z, self.with_solid, filter_radius=1.0)
    )
    self.assertAlmostEqual(self._fraction(x), 0.4, delta=1e-12)
    smooth = np.asarray(density.physical_density(self.z, self.with_solid))
    for result in (x, smooth):
      np.testing.assert_array_equal(result[:, 0], 1)
      self.assertTrue((result[self.problem.mask == 0] == 0).all())

  @parameterized.parameters('design', 'physical')
  def test_derivatives(self, constrain):
    weights = np.asarray(_random(20, 20, seed=5))
    direction = _random(20, 20, seed=6)

    def function(z):
      x = density.physical_density(
        z, self.with_solid, projection=(4.0, 0.5), constrain=constrain
      )
      return (weights * x**3).sum()

    with jax.enable_x64(True):
      gradient = jax.jit(jax.grad(function))
      step = 1e-5
      above, below = self.z + step * direction, self.z - step * direction
      slope = np.vdot(gradient(self.z), direction)
      difference = (function(above) - function(below)) / (2 * step)
      np.testing.assert_allclose(slope, difference, rtol=1e-7)
      _, curvature = jax.jvp(gradient, (self.z,), (direction,))
      difference = (gradient(above) - gradient(below)) / (2 * step)
      error = np.linalg.norm(curvature - difference)
      self.assertLess(error, 1e-7 * np.linalg.norm(difference))
      reverse = jax.grad(lambda z: jnp.vdot(gradient(z), direction))(self.z)
      np.testing.assert_allclose(
        reverse, curvature, rtol=0, atol=1e-12 * np.abs(curvature).max()
      )
      # Shifting all logits leaves the density as it is.
      self.assertLess(abs(gradient(self.z).sum()), 1e-11)

  @parameterized.parameters('design', 'physical')
  def test_float64_without_x64_mode(self, constrain):
    def function(z):
      return density.physical_density(
        z, self.problem, constrain=constrain, projection=(4.0, 0.5)
      )

    def element(z):
      return function(z)[-1, -1]

    def curvature(z):
      return jax.jvp(jax.grad(element), (z,), (z,))[1]

    for f in (function, jax.grad(element), curvature):
      got = jax.jit(f)(self.z)
      self.assertEqual(got.dtype, np.float64)
      with jax.enable_x64(True):
        expected = jax.jit(f)(self.z)
      np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13)

  @parameterized.parameters('design', 'physical')
  def test_vmap(self, constrain):
    batch = _random(3, 20, 20, scale=2.0)

    def function(z):
      return density.physical_density(z, self.problem, constrain=constrain)

    loop = np.stack([function(z) for z in batch])
    np.testing.assert_allclose(jax.vmap(function)(batch), loop, atol=1e-14)

  def test_problem_as_jit_argument(self):
    with jax.enable_x64(True):
      got = jax.jit(density.physical_density)(self.z, self.with_solid)
    np.testing.assert_allclose(
      got, density.physical_density(self.z, self.with_solid), atol=1e-14
    )

  def test_single_precision(self):
    z = jnp.asarray(np.asarray(self.z), jnp.float32)
    x = density.physical_density(z, self.with_solid)
    self.assertEqual(x.dtype, jnp.float32)
    np.testing.assert_allclose(
      x, density.physical_density(self.z, self.with_solid), atol=2e-6
    )

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'z has shape'):
      density.physical_density(np.zeros((20, 21)), self.problem)
    with self.assertRaisesRegex(ValueError, 'constrain must be'):
      density.physical_density(self.z, self.problem, constrain='volume')
    with self.assertRaisesRegex(ValueError, 'volume_fraction'):
      density.physical_density(
        self.z, self.problem.replace(volume_fraction=1.0)
      )
    broken = np.array(self.z)
    broken[3, 4] = np.nan
    with self.assertRaisesRegex(ValueError, 'z has 1 entries that are NaN'):
      density.physical_density(broken, self.problem)
    for value in (-0.1, 1.1):
      with self.assertRaisesRegex(ValueError, 'z ranges over'):
        density.physical_density(
          np.full((20, 20), value), self.problem, constrain_volume=False
        )
    self.assertIsInstance(self.problem, domain.Problem)


if __name__ == '__main__':
  absltest.main()
