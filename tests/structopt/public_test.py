"""The names and signatures that `jaxpapers.structopt` promises."""

import inspect

import jax
from absl.testing import absltest, parameterized

from jaxpapers import structopt

_NAMES = (
  'Problem',
  'PROBLEMS',
  'get_problem',
  'element_stiffness',
  'solve_displacement',
  'SolveInfo',
  'compliance',
  'cone_filter',
  'volume_sigmoid',
  'simp',
  'heaviside',
  'physical_density',
  'make_objective',
  'CNNDesign',
  'PixelDesign',
  'dynamic_depth',
  'mma',
  'optimality_criteria',
  'optimize',
  'optimize_batch',
  'History',
)


class PublicTest(parameterized.TestCase):
  def test_names(self):
    self.assertContainsSubset(_NAMES, structopt.__all__)
    self.assertLen(set(structopt.__all__), len(structopt.__all__))
    for name in structopt.__all__:
      self.assertTrue(hasattr(structopt, name), name)

  @parameterized.parameters(
    ('element_stiffness', ('young', 'poisson'), ()),
    (
      'solve_displacement',
      ('youngs', 'forces', 'free'),
      ('solver', 'tol', 'maxiter', 'x0'),
    ),
    ('compliance', ('youngs', 'forces', 'free'), ('solver', 'tol', 'maxiter')),
    ('cone_filter', ('x', 'radius', 'mask'), ()),
    ('volume_sigmoid', ('z', 'volfrac', 'mask'), ()),
    ('simp', ('x', 'p', 'emin', 'e0'), ()),
    ('heaviside', ('x', 'beta', 'eta'), ()),
    (
      'physical_density',
      ('z', 'problem'),
      ('constrain_volume', 'filter_radius'),
    ),
    ('make_objective', ('problem',), ('penal', 'constrain_volume', 'solver')),
    ('mma', ('lower', 'upper', 'n_constraints'), ()),
    ('optimality_criteria', ('x', 'dc', 'dv', 'volfrac', 'mask'), ()),
    ('optimize', ('problem', 'method', 'steps', 'key'), ('seed',)),
    ('optimize_batch', ('problems', 'keys'), ()),
    ('dynamic_depth', ('width', 'height'), ()),
  )
  def test_signatures(self, name, positional, keywords):
    parameters = inspect.signature(getattr(structopt, name)).parameters
    self.assertEqual(tuple(parameters)[: len(positional)], positional)
    for keyword in keywords:
      kind = parameters[keyword].kind
      self.assertEqual(kind, inspect.Parameter.KEYWORD_ONLY, keyword)

  def test_defaults(self):
    design = structopt.CNNDesign(nely=32, nelx=64)
    self.assertEqual(design.latent_size, 128)
    self.assertEqual(design.dense_channels, 32)
    self.assertEqual(design.resizes, (1, 2, 2, 2, 1))
    self.assertEqual(design.conv_filters, (128, 64, 32, 16, 1))
    self.assertEqual(design.offset_scale, 10.0)
    self.assertEqual(design.kernel_size, (5, 5))
    defaults = {
      name: parameter.default
      for function in (structopt.simp, structopt.physical_density)
      for name, parameter in inspect.signature(function).parameters.items()
    }
    self.assertEqual(
      [defaults[name] for name in ('p', 'emin', 'e0', 'filter_radius')],
      [3.0, 1e-9, 1.0, 2.0],
    )

  def test_every_name_is_documented(self):
    for name in structopt.__all__:
      if name != 'PROBLEMS':
        self.assertNotEmpty(inspect.getdoc(getattr(structopt, name)), name)

  def test_history_and_problem_aliases(self):
    problem = structopt.get_problem('mbb_beam_96x32_0.5')
    self.assertEqual(problem.volfrac, problem.volume_fraction)
    run = structopt.optimize(problem, 'oc', steps=2)
    self.assertEqual(run.evals, 3)
    self.assertEqual(run.losses.shape, run.feasible.shape)
    self.assertEqual(run.best_design.shape, (32, 96))
    self.assertFalse(jax.config.jax_enable_x64)  # nothing global is switched


if __name__ == '__main__':
  absltest.main()
