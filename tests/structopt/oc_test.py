"""Tests of the optimality-criteria step."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.structopt import density, problems
from jaxpapers.structopt import oc as oc_lib

_TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata' / 'structopt'


def _case(seed=0, shape=(12, 20)):
  rng = np.random.default_rng(seed)
  mask = np.ones(shape)
  mask[:4, 12:] = 0
  x = rng.uniform(0.1, 0.7, shape) * mask
  dc = -rng.lognormal(0, 2, shape) * mask
  dv = np.asarray(jax.grad(lambda y: density.mean_density(y, mask))(x))
  return x, dc, dv, mask


class OptimalityCriteriaTest(parameterized.TestCase):
  def test_golden_step(self):
    golden = np.load(_TESTDATA / 'small.npz')
    problem = problems.PROBLEMS['l_shape_0.4_64x64_0.4']()
    x, dc, dv, expected = (
      golden[key].reshape(64, 64)
      for key in ('oc_x', 'oc_dc', 'oc_dv', 'oc_xnew')
    )
    new = oc_lib.optimality_criteria(
      x, dc, dv, problem.volume_fraction, problem.mask
    )
    inside = (np.abs(expected - x) < 0.19) & (expected > 0) & (expected < 1)
    self.assertGreater(inside.sum(), 1000)  # not only the clipped ones
    # The original bisects the multiplier to an absolute 5e-11.
    np.testing.assert_allclose(new, expected, rtol=0, atol=1e-6)

  def test_volume_moves_and_bounds(self):
    x, dc, dv, mask = _case()
    new = np.asarray(oc_lib.optimality_criteria(x, dc, dv, 0.35, mask))
    self.assertAlmostEqual(
      float(density.mean_density(new, mask)), 0.35, delta=1e-12
    )
    self.assertLessEqual(np.abs(new - x).max(), 0.2 + 1e-15)
    self.assertGreaterEqual(new.min(), 0)
    self.assertLessEqual(new.max(), 1)
    self.assertTrue((new[mask == 0] == 0).all())

  @parameterized.parameters(1e-12, 1e12)
  def test_does_not_depend_on_the_units_of_the_objective(self, unit):
    x, dc, dv, mask = _case()
    expected = oc_lib.optimality_criteria(x, dc, dv, 0.35, mask)
    new = oc_lib.optimality_criteria(x, unit * dc, dv, 0.35, mask)
    np.testing.assert_allclose(new, expected, rtol=0, atol=1e-12)

  def test_unattainable_volume_goes_as_far_as_the_moves_allow(self):
    x, dc, dv, mask = _case()
    full = np.asarray(oc_lib.optimality_criteria(x, dc, dv, 0.999, mask))
    inside = mask > 0
    np.testing.assert_allclose(
      full[inside], np.minimum(x + 0.2, 1)[inside], atol=1e-6
    )
    empty = oc_lib.optimality_criteria(x, dc, dv, 1e-3, mask)
    np.testing.assert_allclose(empty, np.maximum(x - 0.2, 0), atol=1e-6)

  def test_positive_gradients_shrink_those_elements(self):
    x, dc, dv, mask = _case()
    dc[6, 3] = 5.0
    new = oc_lib.optimality_criteria(x, dc, dv, 0.35, mask)
    self.assertAlmostEqual(float(new[6, 3]), max(x[6, 3] - 0.2, 0))
    everywhere = oc_lib.optimality_criteria(x, -dc, dv, 0.35, mask)
    self.assertTrue(np.isfinite(everywhere).all())

  def test_other_volume_move_and_damping(self):
    x, dc, dv, mask = _case()
    new = np.asarray(
      oc_lib.optimality_criteria(
        x, dc, np.full_like(x, 1 / x.size), 0.3, move=0.05, volume=jnp.mean
      )
    )
    self.assertAlmostEqual(float(new.mean()), 0.3, delta=0.04)
    self.assertLessEqual(np.abs(new - x).max(), 0.05 + 1e-15)
    damped = oc_lib.optimality_criteria(x, dc, dv, 0.35, mask, damping=0.1)
    bold = oc_lib.optimality_criteria(x, dc, dv, 0.35, mask)
    damped, bold = np.asarray(damped), np.asarray(bold)
    self.assertLess(np.abs(damped - x).sum(), np.abs(bold - x).sum())

  def test_jit_vmap_and_dtype(self):
    x, dc, dv, mask = _case()
    expected = oc_lib.optimality_criteria(x, dc, dv, 0.35, mask)
    self.assertEqual(expected.dtype, np.float64)
    with jax.enable_x64(True):

      def step(x, dc):
        return oc_lib.optimality_criteria(x, dc, dv, 0.35, mask)

      np.testing.assert_allclose(jax.jit(step)(x, dc), expected, atol=1e-13)
      both = jax.vmap(step)(np.stack([x, x[:, ::-1]]), np.stack([dc, dc]))
      np.testing.assert_allclose(both[0], expected, atol=1e-13)
      np.testing.assert_allclose(both[1], step(x[:, ::-1], dc), atol=1e-13)
    single = oc_lib.optimality_criteria(
      x.astype(np.float32), dc, dv, 0.35, mask
    )
    self.assertEqual(single.dtype, np.float32)
    np.testing.assert_allclose(single, expected, atol=1e-4)

  def test_bad_input(self):
    x, dc, dv, mask = _case()
    with self.assertRaisesRegex(ValueError, 'dc has shape'):
      oc_lib.optimality_criteria(x, dc.T, dv, 0.35, mask)
    with self.assertRaisesRegex(ValueError, 'mask has shape'):
      oc_lib.optimality_criteria(x, dc, dv, 0.35, mask.T)
    with self.assertRaisesRegex(ValueError, 'move is -1'):
      oc_lib.optimality_criteria(x, dc, dv, 0.35, mask, move=-1)
    with self.assertRaisesRegex(ValueError, 'damping is 0'):
      oc_lib.optimality_criteria(x, dc, dv, 0.35, mask, damping=0)
    with self.assertRaisesRegex(ValueError, 'volfrac must lie'):
      oc_lib.optimality_criteria(x, dc, dv, 1.2, mask)
    with self.assertRaisesRegex(ValueError, 'x ranges over'):
      oc_lib.optimality_criteria(x + 1, dc, dv, 0.35, mask)
    with self.assertRaisesRegex(ValueError, 'dc has .* NaN'):
      oc_lib.optimality_criteria(x, dc * np.nan, dv, 0.35, mask)


if __name__ == '__main__':
  absltest.main()
