"""What a structural design task is: a grid, supports, loads and a mask."""

from typing import Any

import numpy as np
from flax import struct

_RIGID_BODY_MODES = 3  # of the plane: two translations and one rotation


@struct.dataclass
class Problem:
  """A minimum-compliance design task on a regular grid of unit squares.

  Element fields are `(nely, nelx)` with row 0 at the top. The boundary
  conditions are x-major, `(nelx + 1, nely + 1, 2)`: index `[i, j]` is the node
  in column `i` and row `j` (counted downwards), and the last axis is (x, y)
  with positive y pointing down the rows. Flattened in C order they are the
  degree-of-freedom vector of Hoyer et al. (2019). The finite-element functions
  take the y-major views `nodal_forces` and `free` instead, which are oriented
  like the element fields.

  Problems are PyTrees: the arrays and the volume fraction are leaves, the rest
  is static. Use `make_problem`, which validates, to build one, and `replace`
  to change one.

  Attributes:
    name: identifies the task in tables and file names.
    nelx: number of elements along x.
    nely: number of elements along y.
    forces: nodal loads `(nelx + 1, nely + 1, 2)` float64, or
      `(cases, nelx + 1, nely + 1, 2)` for several load cases, whose
      compliances are summed. A load on a fixed dof does no work.
    fixed: `(nelx + 1, nely + 1, 2)` bool, True where the displacement is zero.
    mask: `(nely, nelx)` float64, 1 where material may be placed, 0 in the void.
    volume_fraction: mean density that is allowed over the masked-in elements.
    solid: `(nely, nelx)` bool, True where material is prescribed (passive
      solid), or None.
    self_weight: weight of a full element; 0 switches self-weight off.
    category: the family that the task belongs to.
  """

  name: str = struct.field(pytree_node=False)
  nelx: int = struct.field(pytree_node=False)
  nely: int = struct.field(pytree_node=False)
  forces: Any
  fixed: Any
  mask: Any
  volume_fraction: Any
  solid: Any = None
  self_weight: float = struct.field(pytree_node=False, default=0.0)
  category: str = struct.field(pytree_node=False, default='')

  @property
  def volfrac(self):
    """Alias of `volume_fraction`, as the literature abbreviates it."""
    return self.volume_fraction

  @property
  def nodal_forces(self):
    """Loads as y-major nodal arrays `(..., nely + 1, nelx + 1, 2)`."""
    return self.forces.swapaxes(-3, -2)

  @property
  def free(self):
    """Unconstrained dofs as a y-major array `(nely + 1, nelx + 1, 2)` bool."""
    return ~self.fixed.swapaxes(0, 1)

  @property
  def mirror_left(self):
    """Whether the left wall is a symmetry plane: rollers along all of it."""
    return _is_symmetry_plane(self.fixed[0])

  @property
  def mirror_right(self):
    """Whether the right wall is a symmetry plane: rollers along all of it."""
    return _is_symmetry_plane(self.fixed[-1])

  @property
  def design_fraction(self):
    """Fraction of the elements in which material may be placed."""
    return self.mask.mean()

  def validate(self) -> 'Problem':
    """Checks that the task is well posed; see `validate_problem`.

    Returns:
      The problem itself, so that calls can be chained.

    Raises:
      ValueError: names the field that is wrong, what it holds and what to do.
    """
    validate_problem(self)
    return self


def make_problem(
  *,
  name: str,
  forces,
  fixed,
  volume_fraction: float,
  mask=None,
  solid=None,
  self_weight: float = 0.0,
  category: str = '',
) -> Problem:
  """Builds a validated `Problem` from boundary conditions.

  Args:
    name: identifies the task in tables and file names.
    forces: nodal loads `(nelx + 1, nely + 1, 2)`, or with a leading axis of
      load cases.
    fixed: `(nelx + 1, nely + 1, 2)`, non-zero where the displacement is zero.
    volume_fraction: mean density over the masked-in elements, in (0, 1).
    mask: `(nely, nelx)` of zeros and ones, by default all ones.
    solid: `(nely, nelx)` of zeros and ones, by default no passive solids.
    self_weight: weight of a full element.
    category: family of the task.

  Returns:
    The problem, with read-only arrays.

  Raises:
    ValueError: if the task is not well posed (see `validate_problem`).

  Example:
    >>> fixed = np.zeros((5, 3, 2), bool)
    >>> fixed[0] = True
    >>> forces = np.zeros((5, 3, 2))
    >>> forces[-1, -1, 1] = -1.0
    >>> make_problem(
    ...   name='stub', forces=forces, fixed=fixed, volume_fraction=0.5
    ... ).nelx
    4
  """
  forces = np.array(forces, np.float64)
  fixed = np.asarray(fixed)
  if fixed.ndim != 3 or fixed.shape[2] != 2 or min(fixed.shape[:2]) < 2:
    raise ValueError(
      f'fixed has shape {fixed.shape}; expected (nelx + 1, nely + 1, 2) with '
      'nelx and nely at least 1: one flag for each node and direction.'
    )
  nelx, nely = fixed.shape[0] - 1, fixed.shape[1] - 1
  mask = np.ones((nely, nelx)) if mask is None else np.array(mask, np.float64)
  if solid is not None:
    solid = np.asarray(solid)
    _check_binary('solid', solid)
    solid = solid.astype(bool)
  if not fixed.dtype == bool:
    _check_binary('fixed', fixed)
  problem = Problem(
    name=name,
    nelx=nelx,
    nely=nely,
    forces=forces,
    fixed=np.array(fixed, bool),
    mask=mask,
    volume_fraction=float(volume_fraction),
    solid=solid,
    self_weight=float(self_weight),
    category=category,
  )
  validate_problem(problem)
  for array in (problem.forces, problem.fixed, problem.mask, problem.solid):
    if array is not None:
      array.flags.writeable = False
  return problem


def validate_problem(problem: Problem) -> None:
  """Raises ValueError unless `problem` has a solution worth looking for.

  Checks, on concrete arrays: shapes; finite loads; binary mask, solids and
  supports; volume fraction in (0, 1) with room for the passive solids;
  supports that exclude every rigid motion; and in every load case a load that
  does work on material. Disconnected parts of a mask are not examined.

  Args:
    problem: the task to examine.

  Raises:
    ValueError: names the field that is wrong, what it holds and what to do.
  """
  nelx, nely = problem.nelx, problem.nely
  if nelx < 1 or nely < 1:
    raise ValueError(
      f'nelx and nely must be at least 1, got nelx={nelx} and nely={nely}.'
    )
  _check_arrays(problem)
  _check_volume(problem)
  _check_supports(problem)
  _check_loads(problem)


def _check_arrays(problem: Problem) -> None:
  """Checks shapes and that the values are finite or binary."""
  nelx, nely = problem.nelx, problem.nely
  nodes, elements = (nelx + 1, nely + 1, 2), (nely, nelx)
  forces = np.asarray(problem.forces)
  if forces.shape[-3:] != nodes or forces.ndim not in (3, 4):
    hint = ''
    if forces.shape[-3:] == (nely + 1, nelx + 1, 2):
      hint = ' It looks y-major: swap its first two node axes.'
    raise ValueError(
      f'forces has shape {forces.shape}; expected {nodes} (x-major nodes), or '
      f'that with one leading axis of load cases.{hint}'
    )
  if forces.ndim == 4 and not len(forces):
    raise ValueError('forces has no load cases; expected at least one.')
  if not np.isfinite(forces).all():
    raise ValueError(
      f'forces has {np.count_nonzero(~np.isfinite(forces))} entries that are '
      'NaN or infinite; every load must be finite.'
    )
  for name, array, shape in (
    ('fixed', problem.fixed, nodes),
    ('mask', problem.mask, elements),
    ('solid', problem.solid, elements),
  ):
    if array is None and name == 'solid':
      continue
    array = np.asarray(array)
    if array.shape != shape:
      layout = 'x-major nodes' if name == 'fixed' else '(nely, nelx)'
      raise ValueError(
        f'{name} has shape {array.shape}; expected {shape} ({layout}).'
      )
    _check_binary(name, array)


def _check_binary(name: str, array: np.ndarray) -> None:
  """Raises unless every entry of `array` is 0 or 1."""
  wrong = array[(array != 0) & (array != 1)]
  if wrong.size:
    raise ValueError(
      f'{name} must hold only zeros and ones, got {wrong.size} other values '
      f'such as {wrong.flat[0]}.'
    )


def _check_volume(problem: Problem) -> None:
  """Checks the volume fraction, the design region and the passive solids."""
  fraction = float(problem.volume_fraction)
  if not 0.0 < fraction < 1.0:
    raise ValueError(
      f'volume_fraction must lie strictly between 0 and 1, got {fraction}: it '
      'is the mean density over the elements that the mask leaves open.'
    )
  if not np.isfinite(problem.self_weight):
    raise ValueError(f'self_weight must be finite, got {problem.self_weight}.')
  mask = np.asarray(problem.mask)
  if not mask.any():
    raise ValueError(
      'mask is zero everywhere: at least one element must be open to design.'
    )
  if problem.solid is None:
    return
  solid = np.asarray(problem.solid, bool)
  outside = np.count_nonzero(solid & (mask == 0))
  if outside:
    raise ValueError(
      f'solid prescribes material in {outside} elements that mask forces to be '
      'void; clear one of the two there.'
    )
  share = solid.sum() / mask.sum()
  if share >= fraction:
    raise ValueError(
      f'solid already fills {share:.4g} of the design region, which leaves '
      f'nothing of volume_fraction={fraction}; raise volume_fraction or '
      'prescribe fewer solid elements.'
    )


def _check_supports(problem: Problem) -> None:
  """Checks that the fixed dofs exclude every rigid motion."""
  fixed = np.asarray(problem.fixed, bool)
  if not fixed.any():
    raise ValueError(
      'fixed has no fixed dofs: the structure would float away; fix at least '
      'three dofs, for example one node in x and y and another in y.'
    )
  x, y, axis = np.nonzero(fixed)
  # A dof sees the translation along its own axis and, turned about the
  # centre, the rotation (-y, x); centring and scaling keep the rank clear.
  x = (x - problem.nelx / 2) / max(problem.nelx, problem.nely)
  y = (y - problem.nely / 2) / max(problem.nelx, problem.nely)
  modes = np.stack([axis == 0, axis == 1, np.where(axis == 0, -y, x)], 1)
  rank = np.linalg.matrix_rank(modes.astype(np.float64))
  if rank < _RIGID_BODY_MODES:
    raise ValueError(
      f'fixed leaves a mechanism: its {len(axis)} fixed dofs exclude only '
      f'{rank} of the 3 rigid motions of the plane (two translations, one '
      'rotation); fix more dofs.'
    )


def _check_loads(problem: Problem) -> None:
  """Checks that in every load case some load does work on material."""
  if problem.self_weight:
    return
  forces = np.asarray(problem.forces)
  fixed = np.asarray(problem.fixed, bool)
  open_ = np.pad(np.asarray(problem.mask).T > 0, 1)
  touches = open_[1:, 1:] | open_[:-1, 1:] | open_[1:, :-1] | open_[:-1, :-1]
  cases = forces.reshape((-1,) + fixed.shape)
  for number, case in enumerate(cases):
    which = f' in load case {number}' if forces.ndim == 4 else ''
    if not case.any():
      raise ValueError(f'forces is zero everywhere{which}; apply a load.')
    if not case[~fixed].any():
      raise ValueError(
        f'forces acts only on fixed dofs{which}, where it does no work; move '
        'the load or free those dofs.'
      )
    if not case[~fixed & touches[..., None]].any():
      raise ValueError(
        f'forces acts only on nodes{which} that touch no element which the '
        'mask leaves open, so that void would carry the load; move the load '
        'or open the mask there.'
      )


def _is_symmetry_plane(wall) -> bool:
  """Whether a wall `(nely + 1, 2)` is on rollers but not clamped."""
  return bool(wall[:, 0].all() and not wall[:, 1].all())
