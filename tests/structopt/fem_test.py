"""Finite elements: parity with the authors' code, derivatives, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.structopt import (
  density,
  elements,
  families,
  fem,
  multigrid,
  problems,
)
from tests.helpers import goldens

PHYSICS = goldens.load_json('structopt', 'physics.json')
SAMPLES = goldens.load_npz('structopt', 'physics.npz')
# Each mesh size costs a compilation of each solver.
QUICK = (
  'mbb_beam_96x32_0.5',
  'staggered_points_64x64_0.3',
  'l_shape_0.4_64x64_0.4',
  'causeway_bridge_top_128x128_0.2',
)
REST = tuple(name for name in PHYSICS if name not in QUICK)


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


def value_and_grad(x, problem, solver):
  return _objective(np.shape(x), solver)(
    x, problem.mask, problem.nodal_forces, problem.free
  )


def relative(a, b):
  return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


class ElementTest(parameterized.TestCase):
  @parameterized.parameters(0, 1)
  def test_equals_the_original(self, case):
    unit = goldens.load_npz('structopt', 'small.npz')
    young, poisson = unit[f'ke{case}_par']
    ours = elements.element_stiffness(young, poisson)
    np.testing.assert_allclose(ours, unit[f'ke{case}'], rtol=0, atol=1e-15)

  def test_equals_scikit_fem(self):
    skfem = self._skfem()
    from skfem.helpers import ddot, sym_grad, trace

    young, poisson = 1.7, 0.27
    # Plane stress is plane strain with a modified first Lame constant.
    lam = young * poisson / (1 - poisson**2)
    mu = young / (2 * (1 + poisson))

    @skfem.BilinearForm
    def form(u, v, w):
      del w
      strain, virtual = sym_grad(u), sym_grad(v)
      return 2 * mu * ddot(strain, virtual) + lam * trace(strain) * trace(
        virtual
      )

    mesh = skfem.MeshQuad(
      np.array([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]]),
      np.array([[0], [1], [2], [3]]),
    )
    basis = skfem.Basis(mesh, skfem.ElementVector(skfem.ElementQuad1()))
    theirs = form.assemble(basis).toarray()
    dofs = basis.nodal_dofs.T[mesh.t[:, 0]].reshape(-1)
    np.testing.assert_allclose(
      elements.element_stiffness(young, poisson),
      theirs[np.ix_(dofs, dofs)],
      atol=1e-14,
    )

  def _skfem(self):
    try:
      import skfem
    except ImportError:
      self.skipTest('scikit-fem is not installed (extra [test]).')
    return skfem

  def test_null_space_is_the_rigid_motions(self):
    values = np.linalg.eigvalsh(elements.element_stiffness())
    expected = [0, 0, 0, 0.49450549, 0.49450549, 0.76923077, 0.76923077]
    np.testing.assert_allclose(values, [*expected, 1.42857143], atol=1e-8)

  def test_both_ways_of_applying_it_agree(self):
    rng = np.random.default_rng(0)
    youngs, u = rng.random((5, 7)), rng.standard_normal((2, 6, 8))
    unit = elements.element_stiffness()
    one = elements.apply_fused(jnp.asarray(youngs), jnp.asarray(u), unit)
    two = elements.apply_gemm(jnp.asarray(youngs), jnp.asarray(u), unit)
    np.testing.assert_allclose(one, two, atol=1e-14)

  def test_bad_material(self):
    with self.assertRaisesRegex(ValueError, 'young must be a positive'):
      elements.element_stiffness(0.0)
    with self.assertRaisesRegex(ValueError, 'poisson must lie'):
      elements.element_stiffness(1.0, 0.7)


class ParityTest(parameterized.TestCase):
  """Compliance and gradients of the original code on real designs."""

  @parameterized.parameters(*QUICK)
  def test_direct(self, name):
    self._check(name, 'direct', 1e-9, 1e-7)

  @parameterized.parameters(*REST)
  @pytest.mark.nightly
  def test_direct_on_more(self, name):
    # The original's own gradients are good to 1e-6 at 384 x 128.
    large = name == 'mbb_beam_384x128_0.3'
    self._check(name, 'direct', 1e-9, 1e-6 if large else 1e-7)

  # The residual is 1e-8; the compliance error is its square, the gradient's is
  # of its order times the conditioning of the islands of solid.
  def test_multigrid(self):
    self._check('mbb_beam_96x32_0.5', 'mgcg', 1e-8, 1e-6)

  @parameterized.parameters(
    'staggered_points_64x64_0.3', 'mbb_beam_384x128_0.3'
  )
  @pytest.mark.nightly
  def test_multigrid_on_more(self, name):
    self._check(name, 'mgcg', 1e-8, 1e-6)

  @parameterized.parameters('mbb_beam_96x32_0.5', 'hoop_32x64_0.25')
  def test_host(self, name):
    self._check(name, 'host', 1e-9, 1e-7)

  def _check(self, name, solver, value_tol, gradient_tol):
    problem = problems.get_problem(name)
    golden = PHYSICS[name]
    cells = SAMPLES[f'{name}/cells']
    value, gradient = value_and_grad(design(name), problem, solver)
    truth = golden['A']['compliance_longdouble_refined']
    np.testing.assert_allclose(value, truth, rtol=value_tol)
    self.assertLess(
      relative(np.ravel(gradient)[cells], SAMPLES[f'{name}/A_grad']),
      gradient_tol,
    )
    np.testing.assert_allclose(
      np.linalg.norm(gradient), golden['A']['grad_norm'], rtol=gradient_tol
    )
    uniform = problem.volume_fraction * problem.mask
    value, gradient = value_and_grad(uniform, problem, solver)
    np.testing.assert_allclose(value, golden['C']['compliance'], rtol=value_tol)
    np.testing.assert_allclose(
      np.linalg.norm(gradient), golden['C']['grad_norm'], rtol=gradient_tol
    )

  @parameterized.parameters(*QUICK)
  def test_volume_constrained_logits(self, name):
    self._check_logits(name)

  @parameterized.parameters(*REST)
  @pytest.mark.nightly
  def test_volume_constrained_logits_of_more(self, name):
    self._check_logits(name)

  def _check_logits(self, name):
    problem = problems.get_problem(name)
    z = 3 * goldens.normal(f'{name}/logits', (problem.nely, problem.nelx))
    golden = PHYSICS[name]['B']
    self.assertAlmostEqual(z[0, 0], golden['z00'], delta=1e-12)

    def densities(z):
      return density.volume_sigmoid(z, problem.volume_fraction, problem.mask)

    x, pull = jax.vjp(densities, jnp.asarray(z))
    value, slope = value_and_grad(x, problem, 'direct')
    (gradient,) = pull(slope)
    np.testing.assert_allclose(value, golden['compliance'], rtol=1e-9)
    cells = SAMPLES[f'{name}/cells']
    self.assertLess(
      relative(np.ravel(gradient)[cells], SAMPLES[f'{name}/B_grad']), 1e-7
    )
    # Shifting all logits changes nothing under the volume constraint.
    self.assertLess(abs(float(jnp.sum(gradient))), 1e-9 * golden['grad_norm'])

  @parameterized.parameters(
    'l_shape_0.4_64x64_0.4', 'staggered_points_64x64_0.3'
  )
  def test_displacements(self, name):
    problem = problems.get_problem(name)
    u, info = fem.solve_displacement(
      young_of(design(name), problem),
      problem.nodal_forces,
      problem.free,
      solver='direct',
    )
    self.assertTrue(info.converged)
    dofs = SAMPLES[f'{name}/dofs']
    ours = np.asarray(u).swapaxes(0, 1).reshape(-1)[dofs]
    # Displacements of floating islands are ill-conditioned in any solver.
    self.assertLess(relative(ours, SAMPLES[f'{name}/A_u']), 1e-6)


class MultigridTest(parameterized.TestCase):
  @parameterized.parameters(*QUICK)
  @pytest.mark.nightly
  def test_iterations_and_compliance(self, name):
    self._check(name)

  @parameterized.parameters(*REST)
  @pytest.mark.nightly
  def test_more_iterations_and_compliance(self, name):
    self._check(name)

  def _check(self, name):
    problem = problems.get_problem(name)
    youngs = young_of(design(name), problem)
    forces = problem.nodal_forces
    u, info = fem.solve_displacement(
      youngs, forces, problem.free, solver='mgcg', tol=1e-8
    )
    self.assertTrue(info.converged)
    self.assertLessEqual(float(info.residual), 1e-8)
    islands = name.startswith('staggered_points')
    self.assertLessEqual(int(info.iterations), 250 if islands else 120)
    unit = elements.element_stiffness()
    force = elements.apply_stiffness(youngs, jnp.moveaxis(u, -1, 0), unit)
    energy = jnp.sum(jnp.moveaxis(force, 0, -1) * u)
    np.testing.assert_allclose(
      2 * jnp.sum(forces * u) - energy,
      PHYSICS[name]['A']['compliance_longdouble_refined'],
      rtol=1e-8,
    )

  @pytest.mark.nightly
  def test_preconditioner_is_symmetric_and_positive(self):
    rng = np.random.default_rng(1)
    youngs = jnp.asarray(1e-9 + rng.random((32, 64)) ** 3)
    mask = np.ones((2, 33, 65))
    mask[:, :, 0] = 0
    unit = elements.element_stiffness()
    hierarchy = multigrid.build(youngs, jnp.asarray(mask), unit)
    self.assertNotEmpty(hierarchy.levels)
    a, b = (jnp.asarray(rng.standard_normal(mask.shape) * mask) for _ in 'ab')
    m_a = multigrid.v_cycle(hierarchy, unit, a)
    m_b = multigrid.v_cycle(hierarchy, unit, b)
    np.testing.assert_allclose(
      jnp.vdot(b, m_a), jnp.vdot(a, m_b), rtol=1e-9, atol=0
    )
    self.assertGreater(float(jnp.vdot(a, m_a)), 0)
    np.testing.assert_array_equal(np.asarray(m_a)[mask == 0], 0)

  @pytest.mark.nightly
  def test_initial_guess_saves_iterations(self):
    name = 'mbb_beam_96x32_0.5'
    problem = problems.get_problem(name)
    solve = functools.partial(
      fem.solve_displacement,
      forces=problem.nodal_forces,
      free=problem.free,
      solver='mgcg',
    )
    x = design(name)
    # From zero explicitly, so that both solves are one program.
    start = np.zeros_like(problem.nodal_forces)
    before, cold = solve(young_of(x, problem), x0=start)
    after, warm = solve(young_of(0.98 * x, problem), x0=before)
    self.assertLess(int(warm.iterations), int(cold.iterations))
    exact, _ = fem.solve_displacement(
      young_of(0.98 * x, problem),
      problem.nodal_forces,
      problem.free,
      solver='host',
    )
    self.assertLess(relative(after, np.asarray(exact)), 1e-5)


class NeverSilentTest(parameterized.TestCase):
  """Unconverged and singular solves are rescued or reported."""

  def setUp(self):
    super().setUp()
    # Unfiltered black-and-white noise: hinges of single nodes everywhere.
    noise = np.random.default_rng(0).random((72, 72))
    self.youngs = np.where(noise < 0.7, 1.0, 1e-9)
    # Here the load itself sits on an island: displacements of 1e9, for which
    # rounding alone leaves residuals of 1e-5, whatever the solver.
    noise = np.random.default_rng(3).random((72, 72))
    self.island = np.where(noise < 0.5, 1.0, 1e-9)
    self.problem = families.mbb_beam(72, 72, 0.5)

  @pytest.mark.slow
  def test_auto_falls_back_where_multigrid_diverges(self):
    args = self.youngs, self.problem.nodal_forces, self.problem.free
    u, info = fem.solve_displacement(*args, maxiter=40)
    self.assertTrue(info.fallback)
    self.assertTrue(info.converged)
    self.assertLessEqual(float(info.residual), 1e-8)
    exact, _ = fem.solve_displacement(*args, solver='host')
    np.testing.assert_allclose(u, exact, rtol=0, atol=1e-5 * np.abs(u).max())

  @pytest.mark.nightly
  def test_what_no_solver_can_reach_is_reported(self):
    args = self.island, self.problem.nodal_forces, self.problem.free
    u, info = fem.solve_displacement(*args, maxiter=40)
    self.assertTrue(info.fallback)
    self.assertFalse(info.converged)
    self.assertGreater(float(info.residual), 1e-8)
    self.assertGreater(float(np.abs(u).max()), 1e8)
    with self.assertRaisesRegex(fem.SolveError, '1.0e-08 was asked for'):
      fem.compliance(*args, solver='direct')
    # The value is far better than the residual: two solvers agree.
    value = fem.compliance(*args, solver='direct', accept=1e-4)
    other = fem.compliance(*args, solver='host', accept=1e-4)
    np.testing.assert_allclose(value, other, rtol=1e-4)
    gradient = jax.grad(fem.compliance)(*args, solver='direct', accept=1e-4)
    self.assertTrue(np.isfinite(gradient).all())
    with self.assertRaisesRegex(ValueError, 'accept=1e-09 and tol=1e-08'):
      fem.compliance(*args, accept=1e-9)

  @pytest.mark.nightly
  def test_auto_rescues_only_the_failed_examples_of_a_batch(self):
    easy = np.full_like(self.youngs, 0.2)
    batch = jnp.stack([easy, self.youngs])

    def solve(youngs):
      return fem.solve_displacement(
        youngs, self.problem.nodal_forces, self.problem.free, maxiter=40
      )

    u, info = jax.vmap(solve)(batch)
    np.testing.assert_array_equal(info.fallback, [False, True])
    np.testing.assert_array_equal(info.converged, [True, True])
    alone, _ = solve(easy)
    np.testing.assert_allclose(u[0], alone, rtol=1e-9, atol=1e-9)

  def test_compliance_raises_outside_jit_and_is_nan_inside(self):
    problem = families.mbb_beam(24, 16, 0.5)

    def value(youngs):
      return fem.compliance(
        youngs,
        problem.nodal_forces,
        problem.free,
        solver='mgcg',
        maxiter=3,
      )

    youngs = np.where(np.eye(16, 24, 3), 1.0, 1e-6)
    with self.assertRaisesRegex(fem.SolveError, 'after 3 iterations'):
      value(youngs)
    inside, gradient = jax.jit(jax.value_and_grad(value))(youngs)
    self.assertTrue(np.isnan(inside))
    self.assertTrue(np.isnan(gradient).all())

  def test_singular_matrix_is_reported(self):
    problem = families.mbb_beam(24, 16, 0.5)
    _, info = fem.solve_displacement(
      np.zeros((16, 24)), problem.nodal_forces, problem.free, solver='direct'
    )
    self.assertFalse(info.converged)


class BadInputTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.problem = families.mbb_beam(24, 16, 0.5)
    self.args = {
      'youngs': np.full((16, 24), 0.5),
      'forces': self.problem.nodal_forces,
      'free': self.problem.free,
    }

  @parameterized.parameters(
    ({'solver': 'cg'}, 'solver must be one of'),
    ({'precision': 'single'}, 'precision must be one of'),
    ({'tol': 0.0}, 'tol must be positive'),
    ({'youngs': np.ones((2, 16, 24))}, 'use jax.vmap'),
    ({'youngs': np.full((16, 24), np.nan)}, 'youngs holds 384 NaN'),
    ({'youngs': np.full((16, 24), -1.0)}, 'youngs must be non-negative'),
    ({'forces': np.zeros((17, 25))}, 'forces must have shape'),
    ({'forces': np.full((17, 25, 2), np.inf)}, 'forces holds NaN'),
    ({'free': np.ones((17, 25, 2), bool)}, 'free leaves 0 displacements'),
    ({'free': np.ones((17, 25, 2))}, 'free must be boolean'),
    ({'free': np.zeros((17, 25, 2), bool)}, 'act on fixed displacements only'),
  )
  def test_refused(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      fem.compliance(**{**self.args, **change})

  def test_x_major_arrays_are_recognised(self):
    with self.assertRaisesRegex(ValueError, 'It looks x-major'):
      fem.compliance(
        self.args['youngs'], self.problem.forces, self.problem.free
      )


if __name__ == '__main__':
  absltest.main()
