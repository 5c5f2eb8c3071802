"""The 116 design tasks of Hoyer et al. (2019), by name."""

import difflib
import functools
import types
from collections.abc import Callable, Mapping

from jaxpapers.structopt import domain, families

Problem = domain.Problem
make_problem = domain.make_problem
validate_problem = domain.validate_problem

# (category, family, fixed parameters, rows); a row is (width, height, volume
# fraction) and, where it differs within the category, one more parameter.
# The order is that of the paper's appendix.
_CATALOGUE = (
  (
    'mbb_beam',
    families.mbb_beam,
    {},
    (
      (96, 32, 0.5),
      (192, 64, 0.4),
      (384, 128, 0.3),
      (192, 32, 0.5),
      (384, 64, 0.4),
    ),
  ),
  (
    'cantilever_beam_full',
    families.cantilever_beam_full,
    {'force_position': 0},
    ((96, 32, 0.4), (192, 64, 0.3), (384, 128, 0.2), (384, 128, 0.15)),
  ),
  (
    'cantilever_beam_two_point',
    families.cantilever_beam_two_point,
    {'support_position': 0.25, 'force_position': 0.5},
    ((64, 48, 0.4), (128, 96, 0.3), (256, 192, 0.2), (256, 192, 0.15)),
  ),
  (
    'pure_bending_moment',
    families.pure_bending_moment,
    {'support_position': 0.45},
    ((32, 64, 0.15), (64, 128, 0.125), (128, 256, 0.1)),
  ),
  (
    'ground_structure',
    families.ground_structure,
    {'force_position': 0.5},
    ((64, 64, 0.12), (128, 128, 0.1), (256, 256, 0.07), (256, 256, 0.05)),
  ),
  (
    'michell_centered_both',
    families.michell_centered_both,
    {'position': 0.05},
    ((32, 64, 0.12), (64, 128, 0.12), (128, 256, 0.12), (128, 256, 0.06)),
  ),
  (
    'michell_centered_below',
    families.michell_centered_below,
    {'position': 0.25},
    ((64, 64, 0.12), (128, 128, 0.12), (256, 256, 0.12), (256, 256, 0.06)),
  ),
  (
    'l_shape_0.2',
    families.l_shape,
    {'aspect': 0.2},
    ((64, 64, 0.4), (128, 128, 0.3), (256, 256, 0.2)),
  ),
  (
    'l_shape_0.4',
    families.l_shape,
    {'aspect': 0.4},
    ((64, 64, 0.4), (128, 128, 0.3), (256, 256, 0.2)),
  ),
  (
    'crane',
    families.crane,
    {'aspect': 0.5, 'force_position': 0.9},
    ((64, 64, 0.3), (128, 128, 0.2), (256, 256, 0.15), (256, 256, 0.1)),
  ),
  (
    'center_support',
    families.center_support,
    {},
    ((64, 64, 0.15), (128, 128, 0.1), (256, 256, 0.1), (256, 256, 0.05)),
  ),
  (
    'column',
    families.column,
    {},
    (
      (32, 128, 0.3),
      (64, 256, 0.3),
      (128, 512, 0.1),
      (128, 512, 0.3),
      (128, 512, 0.5),
    ),
  ),
  (
    'roof',
    families.roof,
    {},
    (
      (64, 64, 0.2),
      (128, 128, 0.15),
      (256, 256, 0.4),
      (256, 256, 0.2),
      (256, 256, 0.1),
    ),
  ),
  (
    'causeway_bridge_top',
    families.causeway_bridge,
    {'deck_level': 1},
    (
      (64, 64, 0.3),
      (128, 128, 0.2),
      (256, 256, 0.1),
      (128, 64, 0.3),
      (256, 128, 0.2),
    ),
  ),
  (
    'causeway_bridge_middle',
    families.causeway_bridge,
    {'deck_level': 0.5},
    ((64, 64, 0.12), (128, 128, 0.1), (256, 256, 0.08)),
  ),
  (
    'causeway_bridge_low',
    families.causeway_bridge,
    {'deck_level': 0.3},
    ((64, 64, 0.12), (128, 128, 0.1), (256, 256, 0.08)),
  ),
  (
    'two_level_bridge',
    families.two_level_bridge,
    {'deck_height': 0.2},
    ((64, 64, 0.2), (128, 128, 0.16), (256, 256, 0.12)),
  ),
  (
    'free_suspended_bridge',
    families.suspended_bridge,
    {'span_position': 0.2, 'anchored': False},
    ((64, 64, 0.15), (128, 128, 0.1), (256, 256, 0.075), (256, 256, 0.05)),
  ),
  (
    'anchored_suspended_bridge',
    families.suspended_bridge,
    {'span_position': 0.1, 'anchored': True},
    ((64, 64, 0.15), (128, 128, 0.1), (256, 256, 0.075), (256, 256, 0.05)),
  ),
  (
    'canyon_bridge',
    families.canyon_bridge,
    {'deck_level': 1},
    ((64, 64, 0.16), (128, 128, 0.12), (256, 256, 0.1), (256, 256, 0.05)),
  ),
  (
    'thin_support_bridge',
    families.thin_support_bridge,
    {'design_width': 0.25},
    ((64, 64, 0.3), (128, 128, 0.2), (256, 256, 0.15), (256, 256, 0.1)),
  ),
  (
    'drawbridge',
    families.drawbridge,
    {},
    ((64, 64, 0.2), (128, 128, 0.15), (256, 256, 0.1)),
  ),
  (
    'hoop',
    families.hoop,
    {},
    ((32, 64, 0.25), (64, 128, 0.2), (128, 256, 0.15)),
  ),
  (
    'dam',
    families.dam,
    {},
    (
      (64, 64, 0.2),
      (128, 128, 0.15),
      (256, 256, 0.05),
      (256, 256, 0.1),
      (256, 256, 0.2),
    ),
  ),
  (
    'ramp',
    families.ramp,
    {},
    ((64, 64, 0.3), (128, 128, 0.2), (256, 256, 0.2), (256, 256, 0.1)),
  ),
  (
    'staircase',
    families.staircase,
    {},
    (
      (64, 64, 0.3, {'num_stories': 3}),
      (128, 128, 0.2, {'num_stories': 3}),
      (256, 256, 0.15, {'num_stories': 3}),
      (128, 512, 0.15, {'num_stories': 6}),
    ),
  ),
  (
    'staggered_points',
    families.staggered_points,
    {'interval': 16},
    (
      (64, 64, 0.3),
      (128, 128, 0.3),
      (256, 256, 0.3),
      (256, 256, 0.5),
      (64, 128, 0.3),
      (128, 256, 0.3),
      (32, 128, 0.3),
      (64, 256, 0.3),
      (128, 512, 0.3),
      (128, 512, 0.15, {'interval': 32}),
    ),
  ),
  (
    'multistory_building',
    families.multistory_building,
    {},
    (
      (32, 64, 0.5, {'interval': 16}),
      (64, 128, 0.4, {'interval': 32}),
      (128, 256, 0.3, {'interval': 64}),
      (128, 512, 0.25, {'interval': 64}),
      (128, 512, 0.2, {'interval': 128}),
    ),
  ),
)


def _build(name: str, category: str, family, kwargs) -> Problem:
  """Calls a family and gives the task its name in the suite."""
  return family(**kwargs).replace(name=name, category=category)


class _Catalogue(dict):
  """A dictionary whose missing names are answered with the nearest ones."""

  def __missing__(self, name):
    near = difflib.get_close_matches(str(name), self, n=3, cutoff=0.5)
    hint = f' Did you mean {", ".join(near)}?' if near else ''
    raise KeyError(
      f'name must be one of the {len(self)} tasks in '
      f'jaxpapers.structopt.PROBLEMS, got {name!r}.{hint}'
    )


def _catalogue() -> Mapping[str, Callable[[], Problem]]:
  problems = _Catalogue()
  for category, family, common, rows in _CATALOGUE:
    for width, height, density, *special in rows:
      name = f'{category}_{width}x{height}_{density}'
      kwargs = {'width': width, 'height': height, 'density': density, **common}
      for parameters in special:
        kwargs.update(parameters)
      problems[name] = functools.partial(_build, name, category, family, kwargs)
  return types.MappingProxyType(problems)


PROBLEMS: Mapping[str, Callable[[], Problem]] = _catalogue()
"""Builders of the 116 tasks by name, in the paper's order."""


def get_problem(name: str) -> Problem:
  """Builds one of the 116 tasks.

  Args:
    name: `{category}_{nelx}x{nely}_{volume fraction}`, a key of `PROBLEMS`.

  Returns:
    The problem.

  Raises:
    ValueError: if there is no such task; the message suggests near names.

  Example:
    >>> get_problem('mbb_beam_96x32_0.5').nelx
    96
  """
  try:
    build = PROBLEMS[name]
  except KeyError as error:
    raise ValueError(error.args[0]) from None
  return build()
