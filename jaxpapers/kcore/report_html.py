"""The page that shows an analysis: one HTML file with all pictures inside."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpapers import __version__

_STYLE = """
body{font:16px/1.55 system-ui,sans-serif;color:#222;margin:0;background:#f6f7f8}
main{max-width:62rem;margin:0 auto;padding:2rem 1.5rem 4rem;background:#fff}
h1{font-size:1.7rem;margin:.2rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .4rem}
p{margin:.4rem 0 .8rem}figure{margin:.8rem 0}img{max-width:100%;height:auto}
.tiles{display:flex;flex-wrap:wrap;gap:.7rem;margin:1.2rem 0}
.tile{flex:1 1 8rem;background:#eef3f8;border-radius:.5rem;padding:.6rem .9rem}
.tile b{display:block;font-size:1.45rem}.tile span{font-size:.85rem;color:#555}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e3e5e8}
th{border-bottom:2px solid #bbb;font-weight:600;vertical-align:bottom}
td:first-child,th:first-child{text-align:left}
.note{background:#fff7e6;border-left:4px solid #e69f00;padding:.5rem .9rem}
small{color:#666}
"""


def page(numbers: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
  """Puts the numbers and the figures of an analysis on one page.

  Args:
    numbers: from `report.summary`.
    pictures: name -> PNG, named as by `report.draw`.

  Returns:
    HTML that needs no other file and no network.

  Example:
    >>> page(report.summary(analysis), {})[:15]  # doctest: +SKIP
    '<!doctype html>'
  """
  shown = numbers['networks'][numbers['shown']]
  parts = [
    f'<h1>{_text(numbers["title"])}</h1>',
    f'<p>k-core percolation after <a href="https://arxiv.org/abs/1903.09630">'
    f'Arese Lucini et al. (2019)</a>. Shown: {_text(shown["name"])}, one of '
    f'{len(numbers["networks"])} network(s).</p>',
    _tiles(numbers, shown),
    _facts(numbers),
  ]
  for name, heading, text in _sections(numbers, shown):
    picture = pictures.get(name)
    if picture is None and not text:
      continue
    parts.append(f'<h2>{heading}</h2>')
    if picture is not None:
      data = base64.b64encode(picture).decode()
      parts.append(
        f'<figure><img alt="{heading}" src="data:image/png;base64,{data}">'
        '</figure>'
      )
    parts.append(text)
  parts += [
    _all_networks(numbers),
    f'<p><small>jaxpapers {__version__}</small></p>',
  ]
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f'<title>{_text(numbers["title"])}: k-cores</title>'
    f'<style>{_STYLE}</style><main>' + '\n'.join(parts) + '</main></html>\n'
  )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """An HTML table.

  Args:
    head: titles of the columns.
    rows: cells, as text or numbers.

  Returns:
    HTML.

  Example:
    >>> table(['k'], [[3]])[-25:]
    '3</td></tr></table></div>'
  """
  lines = [f'<th>{_text(cell)}</th>' for cell in head]
  body = ''.join(
    '<tr>' + ''.join(f'<td>{_text(cell)}</td>' for cell in row) + '</tr>'
    for row in rows
  )
  return (
    f'<div class="scroll"><table><tr>{"".join(lines)}</tr>{body}</table></div>'
  )


def _text(value):
  if isinstance(value, (bool, np.bool_)):
    return 'yes' if value else 'no'
  if isinstance(value, (float, np.floating)):
    return f'{value:.3g}' if np.isfinite(value) else '–'
  if isinstance(value, (list, tuple, np.ndarray)):
    return ', '.join(_text(item) for item in value)
  return html.escape(str(value))


def _tiles(numbers, shown):
  tiles = [
    (numbers['nodes'], f'nodes in {len(numbers["modules"])} modules'),
    (shown['links'], 'links'),
    (shown['k_max'], 'k_max'),
    (shown['core_size'], 'nodes in the k_max-core'),
  ]
  if 'null' in shown:
    null = shown['null']
    tiles.append(
      (
        f'{null["k_max_mean"]:.1f} ± {null["k_max_std"]:.2f}',
        f'k_max of {null["number"]} random networks, p = {null["p"]:.2g}',
      )
    )
  return (
    '<div class="tiles">'
    + ''.join(
      f'<div class="tile"><b>{_text(value)}</b><span>{_text(name)}</span></div>'
      for value, name in tiles
    )
    + '</div>'
  )


def _facts(numbers):
  sizes = zip(numbers['modules'], numbers['module_sizes'], strict=True)
  rows = [[name, value] for name, value in numbers['facts'].items()]
  rows.append(['modules', '; '.join(f'{n} {s}' for n, s in sizes)])
  options = numbers['options']
  step = 'exact' if options['step'] is None else options['step']
  rows.append(
    [
      'network',
      f'strategy {options["strategy"]}, step {step}, quorum '
      f'{options["quorum"]}',
    ]
  )
  return table(['data', ''], rows)


def _sections(numbers, shown):
  """(figure, heading, HTML below it) in the order of the page."""
  modules = numbers['modules']
  yield (
    'percolation',
    'Percolation of the correlations',
    '<p>Links appear from strong to weak. Where clusters join, the largest '
    'component jumps. A module takes its own links from &lambda;<sub>in</sub>, '
    'just above the jump at which it joins another; links between two modules '
    'count from &lambda;<sub>out</sub>, the level of their merge.</p>',
  )
  rows = [
    [
      modules[a],
      float(shown['lambda_in'][a]),
      *(
        '–'
        if a == b or not np.isfinite(shown['lambda_out'][a][b])
        else f'{shown["lambda_out"][a][b]:.3g}'
        for b in range(len(modules))
      ),
      *(int(x) for x in shown['link_counts'][a]),
    ]
    for a in range(len(modules))
  ]
  head = ['module', 'λ_in']
  head += [f'λ_out {b + 1}' for b in range(len(modules))]
  head += [f'links {b + 1}' for b in range(len(modules))]
  yield (
    'matrix',
    'The network, sorted by module',
    f'<p>{shown["links_inside"]} links within modules and '
    f'{shown["links_between"]} between them. A module that merges late has a '
    'low threshold and many links to all others; the counts tell.</p>'
    + table(head, rows),
  )
  thirds = shown['thirds']
  yield (
    'shells',
    'Occupancy of the k-shells',
    f'<p>Outer, middle and inner third of the shells hold {thirds[0]:.0f}, '
    f'{thirds[1]:.0f} and {thirds[2]:.0f} nodes: '
    + (
      f'a U, index {shown["u_index"]:.2f}.</p>'
      if shown['u_index'] > 0
      else 'no U.</p>'
    ),
  )
  yield (
    'shell_picture',
    'The network by k-shell',
    '<p>Force-directed: nodes repel, links pull, each shell keeps to its ring.'
    '</p>',
  )
  yield 'core_voxels', 'Where the nested cores lie', ''
  yield 'core_graph', 'The nested cores as graphs', ''
  rows = [
    [name, int(n), int(size)]
    for name, n, size in zip(
      modules, shown['core_by_module'], numbers['module_sizes'], strict=True
    )
  ]
  yield (
    'core_sizes',
    'Nodes in each k-core',
    table(['module', f'in the {shown["k_max"]}-core', 'nodes'], rows),
  )
  yield 'null', 'Against random networks of the same degrees', _null(shown)
  yield 'frequency', 'Modules in the innermost core', _frequency(numbers)
  yield 'two_states', 'The core and the second state', _second(numbers, shown)
  yield 'collapse', 'Collapse of activity', _collapse(numbers, shown)
  yield '', 'Does the core depend on these choices?', _sensitivity(numbers)


def _null(shown):
  if 'null' not in shown:
    return ''
  null = shown['null']
  mixed = '' if null['mixed'] else ' <b>The ensemble may be under-mixed.</b>'
  if not null['mixed']:
    mixed += (
      ' An under-mixed null still looks like the real network, and makes it '
      'look less special than it is.'
    )
  return (
    f'<p>k<sub>max</sub> is {shown["k_max"]}; of {null["number"]} random '
    f'networks with the same degrees the largest has {null["k_max_largest"]}, '
    f'the mean is {null["k_max_mean"]:.2f} ± {null["k_max_std"]:.2f} '
    f'(z = {_text(null["z"])}, p = {null["p"]:.2g}; p cannot be smaller than '
    f'{1 / (1 + null["number"]):.2g} here). Each took {null["rounds"]} rounds '
    f'and {null["swaps_per_edge"]:.1f} accepted swaps per edge.{mixed}</p>'
  )


def _frequency(numbers):
  if 'cluster_frequency' not in numbers:
    return ''
  test = numbers['cluster_frequency']
  rows = [
    [name, int(test['count'][m]), *(float(test[key][m]) for key in keys)]
    for keys in [('frequency', 'p_binomial', 'p_exact')]
    for m, name in enumerate(numbers['modules'])
  ]
  return (
    '<p>A module counts for a network if it has a node in its '
    'k<sub>max</sub>-core. The exact p places the modules of each network at '
    'random.</p>'
    + table(['module', 'networks', 'frequency', 'p binomial', 'p exact'], rows)
  )


def _second(numbers, shown):
  if 'second_state' not in numbers:
    return ''
  second, test = numbers['second_state'], shown['overlap']
  text = (
    f'<p>{test["num_shared"]} of the {test["num_core"]} nodes of the core are '
    f'among the {test["num_other"]} of the map ({_text(second["name"])}); '
    f'{test["mean"]:.1f} ± {test["std"]:.1f} would be by chance '
    f'(hypergeometric p = {test["p"]:.2g}). '
  )
  shared = second['shared_by_passing_networks']
  text += (
    'In no network is p below 1e-5.</p>'
    if shared is None
    else f'{shared} nodes are in the core of every network with p below 1e-5.'
    '</p>'
  )
  return text


def _collapse(numbers, shown):
  if 'collapse' not in numbers:
    return ''
  c, options = numbers['collapse'], numbers['options']
  after = (
    'After the collapse no coupling of the sweep brings activity back: the '
    'silent state is stable by itself.'
  )
  if np.any(c['up']):
    first = c['J'][np.flatnonzero(c['up'])[0]]
    after = f'After the collapse activity comes back at J = {first:.4g}.'
  steep = ''
  if c['steep'] < c['couplings']:
    steep = (
      '; where the sigmoid is steep on the scale of one neighbour '
      f'(n J R ≥ 4), at {c["steep_and_equal"]} of {c["steep"]}'
    )
  return (
    f'<p>Steady states of the dynamical model with I = {options["I"]}, '
    f'R = {options["R"]}, n = {options["n"]}, α = {options["alpha"]} (the '
    'paper gives no values). As the coupling J falls, nodes fall silent core '
    f'by core, and the {shown["k_max"]}-core last, at J<sub>c</sub> = '
    f'{c["critical"]:.4g} for a steep sigmoid. Active nodes equal the k-core '
    f'at {c["equal_to_cores"]} of {c["couplings"]} couplings{steep}. '
    f'{after}</p>'
  )


def _sensitivity(numbers):
  if 'sensitivity' not in numbers:
    return ''
  rows = [
    [
      row['strategy'],
      'exact' if row['step'] is None else row['step'],
      '–' if row['quorum'] is None else row['quorum'],
      *(
        [row['problem'], '', '', '', '']
        if row['problem']
        else [
          row['links'],
          row['k_max'],
          row['core_size'],
          row['core_by_module'],
          f'{row["jaccard"]:.2f}',
        ]
      ),
    ]
    for row in numbers['sensitivity']
  ]
  grids = numbers['sensitivity_ranges']['grids']
  everything = numbers['sensitivity_ranges']['all']
  head = ['strategy', 'step', 'quorum', 'links', 'k_max', 'core']
  head += ['by module', 'shared with row 1']
  return (
    '<p class="note">k<sub>max</sub> is robust, the location of the core is '
    'not: on a real connectome (MyConnectome) k<sub>max</sub> hardly changes '
    'with the grid of thresholds, while the core moves to other modules. A '
    'module that merges late gets a low &lambda;<sub>in</sub>, hence many '
    'links, and can host the core for that reason alone. Read claims about '
    'where a core lies together with this table.</p>'
    f'<p>Here, over the grids k<sub>max</sub> goes from {grids["k_max"][0]} to '
    f'{grids["k_max"][1]}, the core from {grids["core_size"][0]} to '
    f'{grids["core_size"][1]} nodes, and {len(grids["modules"])} different '
    'set(s) of modules host it. Over all rows, which also change how many '
    f'links there are, k<sub>max</sub> goes from {everything["k_max"][0]} to '
    f'{everything["k_max"][1]} with {len(everything["modules"])} set(s) of '
    'modules.</p>' + table(head, rows)
  )


def _all_networks(numbers):
  rows = []
  for network in numbers['networks']:
    row = [
      network['name'],
      network['links'],
      network['k_max'],
      network['core_size'],
      network['core_by_module'],
      f'{network["u_index"]:.2f}' if np.isfinite(network['u_index']) else '–',
    ]
    if 'second_state' in numbers:
      row.append(network['overlap']['p'])
    if 'null' in network:
      row.append(f'{network["null"]["k_max_mean"]:.2f}')
      row.append(network['null']['p'])
    elif any('null' in other for other in numbers['networks']):
      row += ['', '']
    rows.append(row)
  head = ['network', 'links', 'k_max', 'core', 'by module', 'U index']
  if 'second_state' in numbers:
    head.append('overlap p')
  if any('null' in network for network in numbers['networks']):
    head += ['null k_max', 'null p']
  return '<h2>All networks</h2>' + table(head, rows)
