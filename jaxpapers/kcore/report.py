"""Files of an analysis: JSON, figures, the network, a page to read.

Everything is written under a temporary name first, so that a program that is
killed leaves no half of a file.
"""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from jaxpapers.kcore import (
  figures,
  figures_maps,
  pipeline,
  report_html,
  sensitivity,
)

_STEEP = 4.0  # n J R from which the sigmoid of the model counts as a step


def write(
  analysis: pipeline.Analysis,
  folder: Any,
  *,
  say: Callable[[str], Any] = lambda text: None,
) -> epath.Path:
  """Writes all files of an analysis into a folder.

  results.json has every number, network.npz the shown network (for the scripts
  kcore_null and kcore_collapse), figures/ the pictures, and report.html all of
  it on one page that needs no other file.

  Args:
    analysis: what to write.
    folder: local, or of any store that etils writes; made if it is not there.
      Files of the same names are replaced.
    say: called with a line before each stage.

  Returns:
    Path of report.html.

  Example:
    >>> write(analysis, 'kcore_output')  # doctest: +SKIP
  """
  folder = epath.Path(folder)
  numbers = summary(analysis)
  put(folder / 'results.json', to_json(numbers))
  put(folder / 'network.npz', network_file(analysis))
  say('figures')
  pictures = {}
  for name, figure in draw(analysis).items():
    pictures[name] = figures.to_png(figure)
    put(folder / 'figures' / f'{name}.png', pictures[name])
  page = report_html.page(numbers, pictures)
  return put(folder / 'report.html', page.encode())


def put(path: Any, content: bytes) -> epath.Path:
  """Writes a file under a temporary name, then renames it.

  Args:
    path: of the file; its folder is made.
    content: its bytes.

  Returns:
    The path.

  Example:
    >>> put('results.json', b'{}')  # doctest: +SKIP
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.parent / f'.{path.name}.partial'
  partial.write_bytes(content)
  partial.replace(path)
  return path


def to_json(numbers: dict) -> bytes:
  """A dictionary as JSON that every reader takes: no NaN, no infinity.

  Args:
    numbers: from `summary`; numpy types are allowed.

  Returns:
    UTF-8 text, indented.

  Example:
    >>> print(to_json({'z': np.float64('nan')}).decode().strip())
    {
     "z": null
    }
  """
  return (json.dumps(_plain(numbers), indent=1) + '\n').encode()


def _plain(value):
  if isinstance(value, dict):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, np.generic):
    return _plain(value.item())
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value


def network_file(analysis: pipeline.Analysis) -> bytes:
  """The shown network as the bytes of an .npz file.

  Args:
    analysis: of which.

  Returns:
    Arrays edges int32[m, 2], num_nodes, weights float64[m], module, coreness.

  Example:
    >>> network_file(analysis)[:2]  # doctest: +SKIP
    b'PK'
  """
  result = analysis.shown
  buffer = io.BytesIO()
  np.savez_compressed(
    buffer,
    edges=result.edges,
    num_nodes=len(result.coreness),
    weights=result.network.weights[tuple(result.edges.T)],
    module=analysis.study.module,
    coreness=result.coreness,
  )
  return buffer.getvalue()


def draw(analysis: pipeline.Analysis) -> dict[str, Any]:
  """All figures that an analysis has the numbers for.

  Args:
    analysis: of which.

  Returns:
    Name -> matplotlib figure, in the order of the report.

  Example:
    >>> list(draw(analysis))[:2]  # doctest: +SKIP
    ['percolation', 'matrix']
  """
  study, result = analysis.study, analysis.shown
  module, names = study.module, study.module_names
  drawn = {
    'percolation': figures.percolation(result, names),
    'matrix': figures_maps.matrix(result, module, names),
  }
  if not len(result.edges):
    return drawn
  place = figures_maps.linked_layout(result, module)
  drawn['shells'] = figures.shells(result, module, names)
  drawn['shell_picture'] = figures_maps.shell_picture(
    result, module, names, place
  )
  if study.coords is not None:
    drawn['core_voxels'] = figures_maps.core_voxels(
      result, module, study.coords, names
    )
  drawn['core_graph'] = figures_maps.core_graph(result, module, names, place)
  drawn['core_sizes'] = figures.core_sizes(result)
  nulls = analysis.nulls.get(analysis.options.shown)
  if nulls is not None:
    drawn['null'] = figures.null_band(result.occupancy, nulls)
  if analysis.frequency is not None:
    drawn['frequency'] = figures.cluster_frequency(
      analysis.frequency, names, len(analysis.results)
    )
  if study.other is not None and study.coords is not None:
    drawn['two_states'] = figures_maps.two_states(
      result.core,
      study.other,
      study.coords,
      core_name=f'{result.k_max}-core',
      other_name=study.other_name,
    )
  if analysis.sweep is not None:
    drawn['collapse'] = figures.collapse(analysis.sweep, len(module))
  return drawn


def summary(analysis: pipeline.Analysis) -> dict:
  """Every number of an analysis.

  Args:
    analysis: of which.

  Returns:
    A dictionary of Python and numpy values, for `to_json`.

  Example:
    >>> summary(analysis)['networks'][0]['k_max']  # doctest: +SKIP
    95
  """
  study, options = analysis.study, analysis.options
  module = study.module
  numbers = {
    'title': study.title,
    'facts': study.facts,
    'options': options._asdict(),
    'nodes': len(module),
    'modules': list(study.module_names),
    'module_sizes': np.bincount(module, minlength=len(study.module_names)),
    'shown': options.shown,
    'networks': [
      _network(analysis, index) for index in range(len(analysis.results))
    ],
  }
  if analysis.frequency is not None:
    numbers['cluster_frequency'] = analysis.frequency._asdict()
  if study.other is not None:
    numbers['second_state'] = {
      'name': study.other_name,
      'nodes': int(study.other.sum()),
      'by_module': np.bincount(
        module[study.other], minlength=len(study.module_names)
      ),
      'shared_by_passing_networks': None
      if analysis.shared is None
      else int(analysis.shared.sum()),
    }
  if analysis.sweep is not None:
    sweep = analysis.sweep
    steep = options.n * sweep.J * options.R >= _STEEP
    equal = sweep.down == sweep.core_sizes
    numbers['collapse'] = {
      **sweep._asdict(),
      'couplings': len(sweep.J),
      'equal_to_cores': int(equal.sum()),
      'steep': int(steep.sum()),
      'steep_and_equal': int(np.sum(steep & equal)),
      'largest_difference': int(np.abs(sweep.down - sweep.core_sizes).max()),
    }
  if analysis.table is not None:
    numbers['sensitivity'] = [row._asdict() for row in analysis.table]
    numbers['sensitivity_ranges'] = _ranges(analysis.table)
  return numbers


def _network(analysis, index):
  result = analysis.results[index]
  inside = int(np.trace(result.link_counts))
  row = {
    'name': result.name,
    'links': len(result.edges),
    'links_inside': inside,
    'links_between': len(result.edges) - inside,
    'link_counts': result.link_counts,
    'lambda_in': result.network.lambda_in,
    'lambda_out': result.network.lambda_out,
    'k_max': result.k_max,
    'occupancy': result.occupancy,
    'core_size': int(result.core.sum()),
    'core_by_module': result.core_by_module,
    'thirds': result.thirds,
    'u_index': result.u_index,
  }
  if analysis.overlaps is not None:
    row['overlap'] = analysis.overlaps[index]._asdict()
  null = analysis.nulls.get(index)
  if null is not None:
    row['null'] = {
      'number': len(null.k_max),
      'k_max_mean': float(np.mean(null.k_max)),
      'k_max_std': float(np.std(null.k_max)),
      'k_max_largest': int(np.max(null.k_max)),
      'z': null.z_score(result.k_max),
      'p': null.p_value(result.k_max),
      'occupancy_mean': null.occ_mean,
      'occupancy_std': null.occ_std,
      'swaps_per_edge': null.swaps_per_edge,
      'rounds': null.rounds,
      'mixed': null.mixed,
    }
  return row


def _ranges(table: list[sensitivity.SensitivityRow]) -> dict:
  """Smallest and largest values over grids of the table, and over all of it."""
  made = [row for row in table if not row.problem]
  first = table[0]
  grids = [
    row
    for row in made
    if row.strategy == first.strategy and row.quorum == first.quorum
  ]
  ranges = {}
  for name, rows in (('grids', grids), ('all', made)):
    ranges[name] = {
      'k_max': [min(r.k_max for r in rows), max(r.k_max for r in rows)],
      'core_size': [
        min(r.core_size for r in rows),
        max(r.core_size for r in rows),
      ],
      'jaccard': [min(r.jaccard for r in rows), max(r.jaccard for r in rows)],
      'modules': sorted(
        {tuple(np.flatnonzero(r.core_by_module).tolist()) for r in rows}
      ),
    }
  return ranges
