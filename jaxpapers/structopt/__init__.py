"""Neural structural optimization on a differentiable finite-element solver.

Hoyer, Sohl-Dickstein and Greydanus (2019), arXiv:1909.04240.
"""

from jaxpapers.structopt.density import (
  beta_continuation,
  cone_filter,
  heaviside,
  mean_density,
  physical_density,
  self_weight,
  simp,
  volume_sigmoid,
)
from jaxpapers.structopt.domain import Problem, make_problem
from jaxpapers.structopt.fem import (
  SolveError,
  compliance,
  element_stiffness,
  solve_displacement,
)
from jaxpapers.structopt.models import CNNDesign, PixelDesign, dynamic_depth
from jaxpapers.structopt.moving_asymptotes import mma
from jaxpapers.structopt.objective import make_objective
from jaxpapers.structopt.oc import optimality_criteria
from jaxpapers.structopt.problems import PROBLEMS, get_problem
from jaxpapers.structopt.runner import History, optimize, optimize_batch
from jaxpapers.structopt.solvers import SolveInfo

__all__ = [
  'beta_continuation',
  'CNNDesign',
  'compliance',
  'cone_filter',
  'dynamic_depth',
  'element_stiffness',
  'get_problem',
  'heaviside',
  'History',
  'make_objective',
  'make_problem',
  'mean_density',
  'mma',
  'optimality_criteria',
  'optimize',
  'optimize_batch',
  'physical_density',
  'PixelDesign',
  'Problem',
  'PROBLEMS',
  'self_weight',
  'simp',
  'solve_displacement',
  'SolveError',
  'SolveInfo',
  'volume_sigmoid',
]
