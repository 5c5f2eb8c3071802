"""Solids: element, mechanics, derivatives, optimality criteria, pictures."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from absl.testing import absltest, parameterized

from jaxpapers.structopt import elements, render3d, solid3d


def _rod(nx, ny, nz):
  """Supports that let a rod along x change its cross-section freely."""
  free = np.ones((nz + 1, ny + 1, nx + 1, 3), bool)
  free[:, :, 0, 0] = False
  free[:, 0, :, 1] = False
  free[0, :, :, 2] = False
  return free


def _end_load(free):
  """Unit traction in x on the far end, as consistent nodal loads."""
  nz, ny, nx = (n - 1 for n in free.shape[:3])
  weight = np.ones((nz + 1, ny + 1))
  weight[[0, -1]] /= 2
  weight[:, [0, -1]] /= 2
  forces = np.zeros(free.shape)
  forces[:, :, nx, 0] = weight
  return forces


class HexTest(absltest.TestCase):
  def test_rigid_motions_and_symmetry(self):
    stiffness = elements.hex_stiffness(0.3)
    np.testing.assert_allclose(stiffness, stiffness.T, atol=1e-16)
    values = np.linalg.eigvalsh(stiffness)
    self.assertEqual(int((np.abs(values) < 1e-12).sum()), 6)
    self.assertGreater(values[6], 1e-3)

  def test_against_scikit_fem(self):
    try:
      import skfem
      from skfem.models import elasticity
    except ImportError:
      self.skipTest('scikit-fem is not installed')

    mesh = skfem.MeshHex()
    basis = skfem.Basis(mesh, skfem.ElementVector(skfem.ElementHex1()))
    form = elasticity.linear_elasticity(*elasticity.lame_parameters(1.0, 0.3))
    theirs = skfem.asm(form, basis).toarray()
    ours = elements.hex_stiffness(0.3)
    # The same operator in another order of corners.
    np.testing.assert_allclose(
      np.linalg.eigvalsh(ours), np.linalg.eigvalsh(theirs), atol=1e-13
    )

  def test_patch(self):
    # A rod in tension: stress 1 everywhere, for any Young's modulus.
    free = _rod(6, 3, 2)
    youngs = np.full((2, 3, 6), 2.0)
    for solver in ('mgcg', 'host'):
      u, info = solid3d.solve_displacement_3d(
        youngs, _end_load(free), free, solver=solver, tol=1e-12
      )
      self.assertTrue(info.converged)
      z, y, x = np.meshgrid(
        np.arange(3), np.arange(4), np.arange(7), indexing='ij'
      )
      exact = np.stack([x, -0.3 * y, -0.3 * z], -1) / 2.0
      np.testing.assert_allclose(u, exact, atol=1e-9)


class ComplianceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.task = solid3d.cantilever_3d(8, 4, 3)
    rng = np.random.default_rng(0)
    self.youngs = rng.uniform(1e-9, 1.0, self.task.shape) ** 3
    self.v = rng.standard_normal(self.task.shape)

  def value(self, youngs, solver='mgcg', **kwargs):
    return solid3d.compliance_3d(
      youngs, self.task.forces, self.task.free, solver=solver, **kwargs
    )

  @parameterized.parameters('double', 'mixed')
  def test_multigrid_equals_host(self, precision):
    ours = self.value(self.youngs, precision=precision)
    exact = self.value(self.youngs, 'host')
    self.assertEqual(ours.dtype, jnp.float64)
    np.testing.assert_allclose(ours, exact, rtol=1e-9)

  def test_gradient(self):
    with jax.enable_x64(True):
      f = jax.jit(jax.value_and_grad(functools.partial(self.value, tol=1e-11)))
      h = 1e-6
      y = jnp.asarray(0.1 + self.youngs)
      slope = (f(y + h * self.v)[0] - f(y - h * self.v)[0]) / (2 * h)
      ours = jnp.vdot(f(y)[1], self.v)
    np.testing.assert_allclose(ours, slope, rtol=1e-6)

  def test_load_cases_add_up(self):
    side = np.zeros_like(self.task.forces)
    side[0, -1, -1, 0] = 1.0
    cases = np.stack([self.task.forces, side])
    together = solid3d.compliance_3d(self.youngs, cases, self.task.free)
    alone = [
      float(solid3d.compliance_3d(self.youngs, f, self.task.free))
      for f in cases
    ]
    np.testing.assert_allclose(together, sum(alone), rtol=1e-9)

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'plane meshes only'):
      self.value(self.youngs, 'direct')
    with self.assertRaisesRegex(ValueError, r'\[nelz, nely, nelx\]'):
      self.value(self.youngs[0])
    with self.assertRaisesRegex(ValueError, 'forces must have shape'):
      solid3d.compliance_3d(
        self.youngs, self.task.forces[..., :2], self.task.free
      )
    with self.assertRaisesRegex(ValueError, 'density must lie strictly'):
      solid3d.cantilever_3d(8, 4, 2, 1.0)
    with self.assertRaisesRegex(ValueError, 'depth'):
      solid3d.cantilever_3d(8, 4, 0)


class OptimizeTest(absltest.TestCase):
  @pytest.mark.slow
  def test_cantilever(self):
    task = solid3d.cantilever_3d(16, 8, 4, 0.2)
    run = solid3d.optimize_solid(task, steps=12)
    self.assertLen(run.losses, 13)
    self.assertLess(run.losses[-1], 0.35 * run.losses[0])
    np.testing.assert_allclose(run.design.mean(), 0.2, atol=1e-4)
    # The mesh has a multigrid hierarchy; iterations do not explode.
    self.assertLessEqual(run.iterations.max(), 60)
    vertices, faces, normals = render3d.surface(run.design)
    self.assertGreater(len(faces), 100)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=1e-6)
    # Vertices lie around the elements they belong to.
    self.assertTrue((vertices >= -1).all())
    self.assertTrue((vertices <= np.array([17, 9, 5])).all())
    figure = render3d.draw_solid(run.design, mirror_z=True, title='beam')
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    image = np.asarray(PIL.Image.open(buffer).convert('RGB'))
    # Blue of the surface somewhere, white paper somewhere.
    blue = (image[..., 2].astype(int) - image[..., 0]) > 40
    self.assertGreater(blue.mean(), 0.02)
    self.assertGreater((image == 255).all(-1).mean(), 0.3)

  def test_unconverged_is_reported(self):
    task = solid3d.cantilever_3d(8, 4, 2, 0.3)
    with self.assertRaisesRegex(Exception, 'Raise maxiter'):
      solid3d.optimize_solid(task, steps=2, tol=1e-30)

  def test_no_surface(self):
    with self.assertRaisesRegex(ValueError, 'no surface'):
      render3d.surface(np.zeros((2, 2, 2)))


if __name__ == '__main__':
  absltest.main()
