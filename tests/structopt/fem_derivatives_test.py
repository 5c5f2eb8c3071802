"""Finite elements: derivatives, any mesh size, and the laws of mechanics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.structopt import (
  density,
  direct,
  elements,
  families,
  fem,
  host,
  problems,
)
from tests.helpers import goldens

PHYSICS = goldens.load_json('structopt', 'physics.json')
SAMPLES = goldens.load_npz('structopt', 'physics.npz')


def setUpModule():
  # Every test here is about float64 numbers; the scope is this file's own.
  global _scope
  _scope = jax.enable_x64(True)
  _scope.__enter__()


def tearDownModule():
  _scope.__exit__(None, None, None)


def design(name):
  return SAMPLES[f'{name}/design_u8'] / 255.0


def young_of(x, problem):
  return density.simp(density.cone_filter(x, 2.0, problem.mask))


@functools.cache
def _objective(shape, solver):
  """One compiled value and gradient per mesh size and solver."""
  del shape

  def value(x, mask, forces, free):
    youngs = density.simp(density.cone_filter(x, 2.0, mask))
    return fem.compliance(youngs, forces, free, solver=solver)

  return jax.jit(jax.value_and_grad(value))


def _count(jaxpr, name):
  """How often a primitive occurs in a program, called functions included."""
  count = 0
  for equation in jaxpr.eqns:
    count += equation.primitive.name == name
    for value in equation.params.values():
      for inner in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          count += _count(inner, name)
  return count


def value_and_grad(x, problem, solver):
  return _objective(np.shape(x), solver)(
    x, problem.mask, problem.nodal_forces, problem.free
  )


def relative(a, b):
  return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


class DerivativeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.problem = families.mbb_beam(24, 16, 0.5)
    rng = np.random.default_rng(5)
    self.x = jnp.asarray(0.2 + 0.7 * rng.random((16, 24)))
    self.v = jnp.asarray(rng.standard_normal((16, 24)))
    self.w = jnp.asarray(rng.standard_normal((16, 24)))

  def value(self, solver):
    def value(x):
      return fem.compliance(
        young_of(x, self.problem),
        self.problem.nodal_forces,
        self.problem.free,
        solver=solver,
        tol=1e-11,
      )

    return value

  @parameterized.parameters('direct', 'mgcg', 'host', 'auto')
  def test_gradient_and_forward_mode(self, solver):
    f = jax.jit(self.value(solver))
    h = 1e-5
    slope = (f(self.x + h * self.v) - f(self.x - h * self.v)) / (2 * h)
    _, forward = jax.jvp(f, (self.x,), (self.v,))
    reverse = jnp.vdot(jax.grad(f)(self.x), self.v)
    np.testing.assert_allclose(forward, slope, rtol=1e-6)
    np.testing.assert_allclose(reverse, forward, rtol=1e-10)

  @parameterized.parameters('direct', 'mgcg')
  @pytest.mark.nightly
  def test_hessian_vector_products(self, solver):
    gradient = jax.jit(jax.grad(self.value(solver)))
    h = 1e-5
    _, product = jax.jvp(gradient, (self.x,), (self.v,))
    difference = (
      gradient(self.x + h * self.v) - gradient(self.x - h * self.v)
    ) / (2 * h)
    self.assertLess(relative(product, np.asarray(difference)), 1e-4)
    # Reverse over reverse is the same symmetric matrix.
    back = jax.grad(lambda x: jnp.vdot(gradient(x), self.w))(self.x)
    np.testing.assert_allclose(
      jnp.vdot(back, self.v), jnp.vdot(product, self.w), rtol=1e-9
    )

  def test_second_derivatives_are_symmetric(self):
    gradient = jax.grad(self.value('direct'))
    a = jax.grad(lambda x: jnp.vdot(gradient(x), self.v))(self.x)
    b = jax.grad(lambda x: jnp.vdot(gradient(x), self.w))(self.x)
    np.testing.assert_allclose(
      jnp.vdot(a, self.w), jnp.vdot(b, self.v), rtol=1e-10
    )

  def test_derivative_with_respect_to_forces(self):
    youngs = young_of(self.x, self.problem)

    def value(forces):
      return fem.compliance(youngs, forces, self.problem.free)

    forces = jnp.asarray(self.problem.nodal_forces)
    gradient = jax.grad(value)(forces)
    # The compliance is a quadratic form of the loads: f . dc/df = 2 c.
    np.testing.assert_allclose(
      jnp.vdot(gradient, forces), 2 * value(forces), rtol=1e-12
    )

  @pytest.mark.nightly
  def test_displacements_are_differentiable(self):
    def corner(x):
      u, _ = fem.solve_displacement(
        young_of(x, self.problem),
        self.problem.nodal_forces,
        self.problem.free,
        solver='direct',
      )
      return u[0, 0, 1]

    h = 1e-5
    slope = (corner(self.x + h * self.v) - corner(self.x - h * self.v)) / (
      2 * h
    )
    ours = jnp.vdot(jax.grad(corner)(self.x), self.v)
    np.testing.assert_allclose(ours, slope, rtol=1e-6)

  @parameterized.parameters('direct', 'mgcg')
  def test_vmap_equals_loop(self, solver):
    batch = jnp.stack([self.x, 0.5 * self.x, 1 - 0.5 * self.x, self.x**2])
    f = jax.jit(jax.value_and_grad(self.value(solver)))
    values, gradients = jax.vmap(f)(batch)
    for i in range(4):
      value, gradient = f(batch[i])
      np.testing.assert_allclose(values[i], value, rtol=1e-12)
      np.testing.assert_allclose(
        gradients[i], gradient, rtol=1e-9, atol=1e-9 * float(value)
      )

  def test_gradient_factorises_once_and_solves_once(self):
    value = self.value('direct')
    x = jax.ShapeDtypeStruct((16, 24), jnp.float64)

    def products(f):
      return _count(jax.make_jaxpr(f)(x).jaxpr, 'dot_general')

    # The factorisation and the substitutions are matrix products: a second
    # one of either would add to their number.
    self.assertGreater(products(value), 10)
    self.assertEqual(products(jax.value_and_grad(value)), products(value))

    # The counter sees a second solve where there is one.
    def squared(x):
      return value(x) + value(x**2)

    self.assertEqual(products(squared), 2 * products(value))

  def test_inside_a_float32_program(self):
    with jax.enable_x64(False):
      x = jnp.asarray(self.x, jnp.float32)
      self.assertEqual(x.dtype, jnp.float32)
      value, gradient = jax.jit(jax.value_and_grad(self.value('direct')))(x)
    self.assertEqual(value.dtype, jnp.float64)
    self.assertEqual(gradient.dtype, jnp.float32)
    exact = self.value('direct')(self.x)
    np.testing.assert_allclose(value, exact, rtol=1e-6)


class MeshTest(parameterized.TestCase):
  @parameterized.product(
    case=(
      (60, 20, 0.5, 1007.0221007240507),
      (61, 23, 0.45, 1011.9109424265052),
    ),
    solver=('direct', 'mgcg'),
  )
  def test_any_size(self, case, solver):
    nelx, nely, fraction, expected = case
    problem = families.mbb_beam(nelx, nely, fraction)
    x = np.full((nely, nelx), fraction)
    value = fem.compliance(
      young_of(x, problem), problem.nodal_forces, problem.free, solver=solver
    )
    np.testing.assert_allclose(value, expected, rtol=1e-9)

  @parameterized.parameters((1, 1), (1, 7), (3, 2), (5, 29), (31, 4))
  def test_direct_equals_host_on_odd_meshes(self, ny, nx):
    rng = np.random.default_rng(ny * 100 + nx)
    youngs = 1e-3 + rng.random((ny, nx))
    free = np.ones((ny + 1, nx + 1, 2), bool)
    free[:, 0] = False
    forces = rng.standard_normal((2, ny + 1, nx + 1, 2))
    u, info = fem.solve_displacement(youngs, forces, free, solver='direct')
    v, _ = fem.solve_displacement(youngs, forces, free, solver='host')
    self.assertTrue(info.converged)
    np.testing.assert_allclose(u, v, rtol=1e-8, atol=1e-10)

  def test_direct_equals_dense(self):
    rng = np.random.default_rng(8)
    problem = families.cantilever_beam_full(24, 20, 0.4)
    youngs = 1e-9 + rng.random((20, 24)) ** 3
    unit = elements.element_stiffness()
    matrix = host.assemble(youngs, problem.free, unit).toarray()
    expected = np.zeros(problem.free.shape)
    expected[problem.free] = np.linalg.solve(
      matrix, problem.nodal_forces[problem.free]
    )
    u, _ = fem.solve_displacement(
      youngs, problem.nodal_forces, problem.free, solver='direct'
    )
    np.testing.assert_allclose(u, expected, rtol=1e-7, atol=1e-7)

  def test_plan_covers_every_node_once(self):
    for ny, nx in ((32, 64), (23, 61), (100, 36)):
      plan = direct.make_plan(ny, nx)
      gone = sum(
        group.eliminated * len(group.blocks)
        for level in plan.levels
        for group in level
      )
      py, px = plan.padded
      self.assertEqual(gone, (py + 1) * (px + 1))
      self.assertLessEqual(py * px, 1.6 * ny * nx)

  @parameterized.parameters('direct', 'mgcg')
  @pytest.mark.nightly
  def test_mixed_precision_reaches_the_same_tolerance(self, solver):
    name = 'l_shape_0.4_64x64_0.4'
    problem = problems.get_problem(name)
    args = (
      young_of(design(name), problem),
      problem.nodal_forces,
      problem.free,
    )
    _, info = fem.solve_displacement(*args, solver=solver, precision='mixed')
    self.assertTrue(info.converged)
    value = fem.compliance(*args, solver=solver, precision='mixed')
    truth = PHYSICS[name]['A']['compliance_longdouble_refined']
    np.testing.assert_allclose(value, truth, rtol=1e-8)
    if solver == 'direct':
      # The float32 factor is nearly the inverse.
      self.assertLess(int(info.iterations), 10)

  @pytest.mark.slow
  def test_mixed_precision_survives_islands(self):
    # Rounding makes the float32 factor of the first design indefinite; it is
    # made again of lifted moduli, for that design alone.
    names = 'staggered_points_64x64_0.3', 'staircase_64x64_0.3'
    tasks = [problems.get_problem(name) for name in names]
    youngs = np.stack(
      [young_of(design(name), task) for name, task in zip(names, tasks)]
    )
    forces = np.stack([task.nodal_forces for task in tasks])
    free = np.stack([task.free for task in tasks])

    def value(*args):
      return fem.compliance(*args, solver='direct', precision='mixed')

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(value)))(
      youngs, forces, free
    )
    for i, name in enumerate(names):
      truth = PHYSICS[name]['A']['compliance_longdouble_refined']
      np.testing.assert_allclose(values[i], truth, rtol=1e-8)
      exact = jax.grad(fem.compliance)(
        jnp.asarray(youngs[i]), forces[i], free[i], solver='host'
      )
      # Of the densities: the void around an island moves by what rounding
      # makes of it, but has no slope in them.
      slope = youngs[i] ** (2 / 3)
      self.assertLess(
        relative(gradients[i] * slope, np.asarray(exact) * slope), 1e-6
      )

  def test_a_factorisation_of_the_users_own(self):
    problem = families.cantilever_beam_full(12, 8, 0.4)
    youngs = jnp.asarray(0.1 + np.random.default_rng(1).random((8, 12)))
    factor = fem.factorize(fem.make_plan(8, 12), youngs, problem.free)
    cases = np.stack([problem.nodal_forces, 2 * problem.nodal_forces])
    u, _ = fem.solve_displacement(youngs, cases, problem.free, solver='host')
    np.testing.assert_allclose(factor.solve(cases), u, rtol=1e-9, atol=1e-9)


class MechanicsTest(parameterized.TestCase):
  """Closed forms and laws that any linear elastic structure obeys."""

  @parameterized.parameters('direct', 'mgcg')
  def test_uniform_tension_is_exact(self, solver):
    # A bar of length 12 and height 6, one corner pinned, its left end on
    # rollers, pulled evenly: c = F^2 L / (E A).
    ny, nx, pull = 6, 12, 3.0
    free = np.ones((ny + 1, nx + 1, 2), bool)
    free[:, 0, 0] = False
    free[0, 0, 1] = False
    forces = np.zeros((ny + 1, nx + 1, 2))
    forces[:, -1, 0] = pull / ny
    forces[[0, -1], -1, 0] /= 2
    value = fem.compliance(
      np.full((ny, nx), 2.0), forces, free, solver=solver, tol=1e-12
    )
    np.testing.assert_allclose(value, pull**2 * nx / (2.0 * ny), rtol=1e-12)

  @pytest.mark.slow
  def test_beam_converges_to_theory(self):
    # Tip deflection of a clamped beam of slenderness 10 under a tip load:
    # bending and shear, E = 1, load 1, thickness 1. Bilinear elements
    # converge with the square of the element size.
    theory = 4 * 10**3 + 1.2 * 10 * 2 * 1.3
    errors = []
    for n in (4, 8, 16):
      problem = families.cantilever_beam_full(10 * n, n, 0.5)
      forces = np.zeros((n + 1, 10 * n + 1, 2))
      forces[:, -1, 1] = 1 / n
      forces[[0, -1], -1, 1] /= 2
      value = fem.compliance(np.ones((n, 10 * n)), forces, problem.free)
      errors.append(abs(float(value) / theory - 1))
    self.assertLess(errors[2], 0.01)
    self.assertGreater(errors[0] / errors[1], 3.0)

  @pytest.mark.slow
  def test_scaling_symmetry_and_monotonicity(self):
    rng = np.random.default_rng(2)
    problem = families.cantilever_beam_full(24, 12, 0.4, 0.5)
    youngs = 0.1 + rng.random((12, 24))
    f, free = problem.nodal_forces, problem.free
    value = float(fem.compliance(youngs, f, free))
    self.assertAlmostEqual(
      float(fem.compliance(youngs, 3 * f, free)) / (9 * value), 1, places=12
    )
    self.assertAlmostEqual(
      float(fem.compliance(3 * youngs, f, free)) * 3 / value, 1, places=12
    )
    flipped = fem.compliance(
      youngs[::-1], f[::-1] * np.array([1, -1]), free[::-1]
    )
    self.assertAlmostEqual(float(flipped) / value, 1, places=11)
    gradient = jax.grad(lambda e: fem.compliance(e, f, free))(
      jnp.asarray(youngs)
    )
    self.assertLess(float(jnp.max(gradient)), 0)

  @pytest.mark.slow
  def test_load_cases_share_one_factorisation(self):
    problem = families.cantilever_beam_full(24, 16, 0.4)
    forces = np.zeros((2, 17, 25, 2))
    forces[0, 16, 24, 1] = -1
    forces[1, 4, 20, 0] = 0.7
    youngs = jnp.asarray(0.1 + np.random.default_rng(0).random((16, 24)))

    def value(forces):
      return lambda e: fem.compliance(e, forces, problem.free, solver='direct')

    both = value(forces)(youngs)
    alone = [value(forces[i])(youngs) for i in range(2)]
    np.testing.assert_allclose(both, sum(alone), rtol=1e-12)

    def loops(f):
      return jax.jit(f).lower(youngs).as_text().count('stablehlo.while')

    self.assertEqual(loops(value(forces)), loops(value(forces[0])))


if __name__ == '__main__':
  absltest.main()
