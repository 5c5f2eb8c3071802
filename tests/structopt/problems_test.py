"""Tests of the design tasks against the published suite."""

import json
import pathlib
import zlib

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers.structopt import domain, families, grids, problems

_TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata' / 'structopt'


class GoldenTest(absltest.TestCase):
  """Every task equals the published one."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.table = json.loads((_TESTDATA / 'problems.json').read_text())
    cls.arrays = dict(np.load(_TESTDATA / 'problems.npz'))
    cls.problems = {name: build() for name, build in problems.PROBLEMS.items()}

  def test_names_and_order(self):
    self.assertEqual(
      list(problems.PROBLEMS), [row['name'] for row in self.table]
    )
    self.assertLen(problems.PROBLEMS, 116)

  def test_scalars(self):
    for row in self.table:
      with self.subTest(row['name']):
        problem = self.problems[row['name']]
        self.assertEqual(problem.name, row['name'])
        self.assertEqual(problem.category, row['category'])
        self.assertEqual(problem.nelx, row['nelx'])
        self.assertEqual(problem.nely, row['nely'])
        self.assertEqual(problem.volume_fraction, row['volfrac'])
        self.assertEqual(problem.volfrac, row['volfrac'])
        self.assertEqual(problem.mirror_left, row['mirror_left'])
        self.assertEqual(problem.mirror_right, row['mirror_right'])
        self.assertEqual(problem.design_fraction, row['design_fraction'])

  def test_mask(self):
    for row in self.table:
      with self.subTest(row['name']):
        expected = np.ones((row['nely'], row['nelx']))
        if row['mask_zero_rect_y0y1x0x1']:
          y0, y1, x0, x1 = row['mask_zero_rect_y0y1x0x1']
          expected[y0:y1, x0:x1] = 0
        np.testing.assert_array_equal(self.problems[row['name']].mask, expected)

  def test_supports(self):
    for k, row in enumerate(self.table):
      with self.subTest(row['name']):
        problem = self.problems[row['name']]
        dofs = np.flatnonzero(problem.fixed.ravel())
        self.assertLen(dofs, row['n_fixed'])
        crc = zlib.crc32(dofs.astype('<i8').tobytes())
        self.assertEqual(crc, row['fixed_crc32'])
        begin, end = self.arrays['fixed_ptr'][k : k + 2]
        np.testing.assert_array_equal(dofs, self.arrays['fixed_dof'][begin:end])
        self.assertEqual(np.count_nonzero(problem.free), row['n_free'])

  def test_loads(self):
    for k, row in enumerate(self.table):
      with self.subTest(row['name']):
        forces = self.problems[row['name']].forces.ravel()
        begin, end = self.arrays['load_ptr'][k : k + 2]
        expected = np.zeros_like(forces)
        expected[self.arrays['load_dof'][begin:end]] = self.arrays['load_val'][
          begin:end
        ]
        np.testing.assert_array_equal(
          np.flatnonzero(forces), self.arrays['load_dof'][begin:end]
        )
        # Loads are at most 4, written with a handful of rounded operations.
        np.testing.assert_allclose(forces, expected, rtol=0, atol=1e-15)

  def test_lazy_and_read_only(self):
    build = problems.PROBLEMS['roof_64x64_0.2']
    self.assertTrue(callable(build))
    with self.assertRaises(ValueError):
      build().forces[0, 0, 0] = 1.0
    with self.assertRaises(TypeError):
      problems.PROBLEMS['mine'] = build


class ViewsTest(absltest.TestCase):
  def test_y_major_views(self):
    # Neither square nor symmetric, so that a wrong orientation shows.
    problem = problems.get_problem('cantilever_beam_two_point_64x48_0.4')
    self.assertEqual(problem.nodal_forces.shape, (49, 65, 2))
    self.assertEqual(problem.nodal_forces[24, 64, 1], -1.0)
    self.assertFalse(problem.free[12, 0].any())
    self.assertFalse(problem.free[36, 0].any())
    self.assertTrue(problem.free[0, 12].all())

  def test_views_of_traced_load_cases(self):
    problem = families.multipoint_circle(12, 10, num_points=3)
    self.assertEqual(problem.nodal_forces.shape, (3, 11, 13, 2))
    traced = jax.jit(lambda p: (p.nodal_forces, p.free, p.design_fraction))
    forces, free, fraction = traced(problem)
    np.testing.assert_array_equal(forces, problem.nodal_forces)
    np.testing.assert_array_equal(free, problem.free)
    self.assertEqual(float(fraction), 1.0)

  def test_is_a_pytree(self):
    problem = families.mbb_beam(6, 4)
    leaves, treedef = jax.tree.flatten(problem)
    self.assertLen(leaves, 4)  # forces, fixed, mask, volume fraction
    rebuilt = jax.tree.unflatten(treedef, leaves)
    self.assertEqual(rebuilt.name, 'mbb_beam_6x4_0.5')


class FamiliesTest(parameterized.TestCase):
  @parameterized.parameters(
    families.mbb_beam,
    families.cantilever_beam_full,
    families.cantilever_beam_two_point,
    families.pure_bending_moment,
    families.michell_centered_both,
    families.michell_centered_below,
    families.crane,
    families.tower,
    families.center_support,
    families.column,
    families.roof,
    families.causeway_bridge,
    families.suspended_bridge,
    families.canyon_bridge,
    families.drawbridge,
    families.dam,
    families.ramp,
    families.staircase,
    families.staggered_points,
    families.multistory_building,
    families.multipoint_circle,
  )
  def test_other_sizes(self, family):
    for width, height in ((61, 23), (23, 61), (30, 30)):
      problem = family(width=width, height=height, density=0.45)
      self.assertEqual((problem.nelx, problem.nely), (width, height))
      self.assertEqual(problem.mask.shape, (height, width))
      self.assertEndsWith(problem.name, f'_{width}x{height}_0.45')

  def test_square_families_at_other_sizes(self):
    for family in (
      families.l_shape,
      families.two_level_bridge,
      families.thin_support_bridge,
    ):
      self.assertEqual(family(40, 40, 0.4).nelx, 40)
      with self.assertRaisesRegex(ValueError, 'square.*width=80.*height=48'):
        family(80, 48, 0.4)

  def test_hoop_needs_a_half_circle(self):
    self.assertEqual(families.hoop(20, 40, 0.3).nely, 40)
    with self.assertRaisesRegex(ValueError, 'height = 2 \\* width'):
      families.hoop(40, 40, 0.3)

  def test_break_symmetry_moves_loads_by_one_node(self):
    plain = families.staggered_points(48, 32)
    moved = families.staggered_points(48, 32, break_symmetry=True)
    np.testing.assert_array_equal(moved.forces[1:-1], plain.forces[:-2])

  def test_position_off_the_grid(self):
    with self.assertRaisesRegex(ValueError, 'force_position'):
      families.ground_structure(20, 60, 0.5)
    with self.assertRaisesRegex(ValueError, 'support_position'):
      families.cantilever_beam_two_point(20, 20, support_position=1.5)

  def test_size_must_be_a_positive_integer(self):
    with self.assertRaisesRegex(ValueError, 'width'):
      families.mbb_beam(width=0)
    with self.assertRaisesRegex(ValueError, 'height'):
      families.mbb_beam(height=10.5)

  def test_antialiasing_matches_scikit_image(self):
    try:
      from skimage import draw
    except ImportError:
      self.skipTest('scikit-image is not installed')
    for stop in ((30, 7), (30, 30), (11, 41), (30, 0)):
      rows, columns, values = draw.line_aa(0, 0, *stop)
      expected = np.zeros((31, 42))
      expected[rows, columns] = values
      got = grids.antialiased_line((31, 42), (0, 0), stop)
      np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    for radius in (3, 10, 17, 32, 45):
      rows, columns, values = draw.circle_perimeter_aa(radius, radius, radius)
      expected = np.zeros((2 * radius + 1, 2 * radius + 1))
      expected[rows, columns] = values
      got = grids.antialiased_circle(expected.shape, (radius, radius), radius)
      np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


class ValidationTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    fixed = np.zeros((7, 5, 2), bool)
    fixed[0] = True
    forces = np.zeros((7, 5, 2))
    forces[-1, -1, 1] = -1.0
    self.good = {
      'name': 'stub',
      'forces': forces,
      'fixed': fixed,
      'volume_fraction': 0.4,
    }

  def _refuse(self, pattern, **changes):
    with self.assertRaisesRegex(ValueError, pattern):
      domain.make_problem(**{**self.good, **changes})

  def test_good(self):
    problem = domain.make_problem(**self.good)
    self.assertIs(problem.validate(), problem)
    self.assertEqual((problem.nelx, problem.nely), (6, 4))

  @parameterized.parameters(0.0, 1.0, -0.1, 1.5, float('nan'))
  def test_volume_fraction(self, value):
    self._refuse('volume_fraction.*between 0 and 1', volume_fraction=value)

  def test_fixed(self):
    self._refuse('fixed has shape', fixed=np.zeros((7, 5), bool))
    self._refuse('no fixed dofs', fixed=np.zeros((7, 5, 2), bool))
    self._refuse('fixed must hold only zeros', fixed=2 * self.good['fixed'])

  def test_mechanisms(self):
    roller = np.zeros((7, 5, 2), bool)
    roller[:, -1, 1] = True  # slides along x
    self._refuse('fixed leaves a mechanism.* 2 of the 3', fixed=roller)
    hinge = np.zeros((7, 5, 2), bool)
    hinge[3, 2] = True  # turns about the node
    self._refuse('fixed leaves a mechanism.* 2 of the 3', fixed=hinge)
    hinge[3, 2] = (True, False)
    self._refuse('fixed leaves a mechanism.* 1 of the 3', fixed=hinge)
    concurrent = np.zeros((7, 5, 2), bool)
    concurrent[3, 2] = True
    concurrent[5, 2, 0] = True  # a third support through the same point
    self._refuse('fixed leaves a mechanism', fixed=concurrent)
    concurrent[5, 2, 1] = True
    domain.make_problem(**{**self.good, 'fixed': concurrent})

  def test_forces(self):
    self._refuse('forces has shape', forces=np.zeros((7, 5)))
    self._refuse('swap', forces=self.good['forces'].swapaxes(0, 1))
    self._refuse('no load cases', forces=np.zeros((0, 7, 5, 2)))
    self._refuse('forces is zero', forces=np.zeros((7, 5, 2)))
    for value in (np.nan, np.inf):
      forces = self.good['forces'].copy()
      forces[1, 1, 1] = value
      self._refuse('forces has 1 entries', forces=forces)
    forces = np.zeros((7, 5, 2))
    forces[0, 2, 1] = -1
    self._refuse('forces acts only on fixed dofs', forces=forces)

  def test_each_load_case_must_work(self):
    cases = np.stack([self.good['forces'], np.zeros((7, 5, 2))])
    self._refuse('zero everywhere in load case 1', forces=cases)

  def test_load_on_void(self):
    mask = np.ones((4, 6))
    mask[:, -2:] = 0
    self._refuse('forces acts only on nodes.*mask', mask=mask)
    mask[-1, -1] = 1
    domain.make_problem(**self.good, mask=mask)

  def test_mask(self):
    self._refuse('mask has shape \\(6, 4\\)', mask=np.ones((6, 4)))
    self._refuse('mask is zero', mask=np.zeros((4, 6)))
    self._refuse('mask must hold only', mask=np.full((4, 6), 0.5))
    self._refuse('mask must hold only', mask=np.full((4, 6), np.nan))

  def test_solid(self):
    self._refuse('solid has shape', solid=np.ones((6, 4)))
    self._refuse('solid must hold only', solid=np.full((4, 6), 0.5))
    self._refuse('solid already fills 1', solid=np.ones((4, 6)))
    mask, solid = np.ones((4, 6)), np.zeros((4, 6))
    mask[0, 0], solid[0, 0] = 0, 1
    self._refuse('solid prescribes material', mask=mask, solid=solid)
    problem = domain.make_problem(**self.good, solid=solid)
    self.assertEqual(problem.solid.dtype, bool)

  def test_self_weight_needs_no_load(self):
    problem = domain.make_problem(
      **{**self.good, 'forces': np.zeros((7, 5, 2))}, self_weight=0.01
    )
    self.assertEqual(problem.self_weight, 0.01)
    self._refuse('self_weight must be finite', self_weight=float('inf'))

  def test_validate_after_replace(self):
    problem = domain.make_problem(**self.good)
    with self.assertRaisesRegex(ValueError, 'mask has shape'):
      problem.replace(mask=np.ones((3, 3))).validate()

  def test_unknown_name_suggests(self):
    with self.assertRaisesRegex(ValueError, 'mean mbb_beam_96x32_0.5'):
      problems.get_problem('mbb_baem_96x32_0.5')
    with self.assertRaisesRegex(ValueError, 'one of the 116'):
      problems.get_problem('zzzzzz')
    with self.assertRaisesRegex(ValueError, 'got None'):
      problems.get_problem(None)
    with self.assertRaisesRegex(KeyError, 'mean mbb_beam_96x32_0.5'):
      problems.PROBLEMS['mbb_baem_96x32_0.5']
    self.assertNotIn('mbb_baem_96x32_0.5', problems.PROBLEMS)


if __name__ == '__main__':
  absltest.main()
