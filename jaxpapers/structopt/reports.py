"""Tables as text and the figure of the comparison of methods."""

from collections.abc import Sequence

import numpy as np

from jaxpapers.structopt import analysis
from jaxpapers.structopt.analysis import Scores

# Distinguishable in greyscale and with any colour vision (Okabe & Ito).
_COLOURS = ('#d55e00', '#0072b2', '#009e73', '#7f7f7f', '#cc79a7', '#e69f00')
_DASHES = ('-', '--', '-.', ':', '-', '--')


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Aligned columns; the first of the rows' cells to the left, the rest right.

  Args:
    headers: titles of the columns.
    rows: cells; columns whose cells do not begin with a digit, a sign or a dash
      are aligned to the left.

  Returns:
    Lines without trailing spaces.
  """
  widths = [max(map(len, column)) for column in zip(headers, *rows)]
  left = [
    not any(row[i][:1] in '0123456789+-' for row in rows if row[i])
    for i in range(len(headers))
  ]
  lines = []
  for cells in (headers, ['-' * width for width in widths], *rows):
    padded = [
      cell.ljust(width) if to_left else cell.rjust(width)
      for cell, width, to_left in zip(cells, widths, left)
    ]
    lines.append('  '.join(padded).rstrip())
  return '\n'.join(lines)


def title(method: str) -> str:
  """What a method is called in print."""
  return analysis.TITLES.get(method, method)


def means(typical: Scores, ensemble: Scores) -> str:
  """Mean relative errors, typical and ensemble, by size of the tasks.

  Args:
    typical: typical scores without gaps.
    ensemble: ensemble scores without gaps.

  Returns:
    A table with four decimals.
  """
  rows = []
  for kind, scores in (('typical', typical), ('ensemble', ensemble)):
    errors = analysis.mean_relative_errors(scores)
    for name in analysis.GROUPS:
      number = len(scores.group(name).problems)
      if number:
        cells = [f'{value:.4f}' for value in errors[name]]
        rows.append([kind, name, str(number), *cells])
  return table(['score', 'tasks', 'number', *map(title, typical.methods)], rows)


def counts(typical: Scores, ensemble: Scores) -> str:
  """On how many tasks each method is the best, or within a tolerance of it.

  Args:
    typical: typical scores without gaps.
    ensemble: ensemble scores without gaps.

  Returns:
    A table. A tie counts for all methods that tie.
  """
  rows = []
  for kind, scores in (('typical', typical), ('ensemble', ensemble)):
    for name in analysis.GROUPS:
      part = scores.group(name)
      if part.problems:
        best = analysis.counts_within(part)
        rows.append([kind, name, 'best', *map(str, best)])
    for tolerance in analysis.TOLERANCES:
      within = analysis.counts_within(scores, tolerance)
      rows.append(
        [kind, 'all', f'within {100 * tolerance:g} %', *map(str, within)]
      )
  return table(['score', 'tasks', '', *map(title, typical.methods)], rows)


def compliances(typical: Scores, ensemble: Scores) -> str:
  """The compliances of all tasks, as in the paper's appendix.

  Args:
    typical: typical scores.
    ensemble: ensemble scores of the same tasks.

  Returns:
    A table with the typical scores to the left of the ensemble's.
  """
  methods = [title(method) for method in typical.methods]
  rows = [
    [problem, *map(number, one), *map(number, best)]
    for problem, one, best in zip(
      typical.problems, typical.values, ensemble.values
    )
  ]
  headers = ['task', *methods, *(f'{method}, best' for method in methods)]
  return table(headers, rows)


def beside_paper(
  typical: Scores, ensemble: Scores, paper: tuple[Scores, Scores]
) -> str:
  """Our scores, those of the paper and the difference in percent.

  Args:
    typical: typical scores of our runs, with counts.
    ensemble: their ensemble scores, with counts.
    paper: the paper's typical and ensemble scores.

  Returns:
    A table with a row for each task and method that was run. The ensemble is
    left out where every method has a single run.
  """
  kinds = [(typical, paper[0], 'typical'), (ensemble, paper[1], 'best')]
  if ensemble.counts.max(initial=0) <= 1 and (
    (typical.counts == ensemble.counts).all()
  ):
    kinds = kinds[:1]
  rows = []
  for i, problem in enumerate(ensemble.problems):
    for j, method in enumerate(ensemble.methods):
      if not ensemble.counts[i, j]:
        continue
      row = [problem, title(method)]
      for ours, theirs, _ in kinds:
        value, other = ours.values[i, j], theirs.value(problem, method)
        row += [str(ours.counts[i, j]), number(value), number(other)]
        row.append(difference(value, other))
      rows.append(row)
  headers = ['task', 'method']
  for *_, name in kinds:
    headers += ['runs', name, 'paper', 'difference']
  return table(headers, rows)


def number(value: float) -> str:
  """Six digits; a dash for what is missing."""
  return f'{value:.6g}' if np.isfinite(value) else '-'


def difference(value: float, other: float) -> str:
  """How far a value is above another, in percent."""
  if not (np.isfinite(value) and np.isfinite(other)):
    return '-'
  return f'{100 * (value / other - 1):+.2f} %'


def distribution_figure(typical: Scores, ensemble: Scores):
  """The paper's comparison: distributions of the relative error.

  One panel for each score and size of task. The curves say on which fraction
  of the tasks a method comes within a relative error of the best; marks on the
  lower edge are the means.

  Args:
    typical: typical scores without gaps, of at least one task.
    ensemble: ensemble scores without gaps.

  Returns:
    A `matplotlib.figure.Figure`.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ImportError(
      'Figures need matplotlib: pip install jaxpapers[structopt]'
    ) from error
  groups = [g for g in ('small', 'large') if typical.group(g).problems]
  figure = Figure(figsize=(5.2 * len(groups) + 0.4, 7.2), layout='constrained')
  panels = figure.subplots(2, len(groups), squeeze=False, sharey=True)
  kinds = (
    ('typical', 'Typical: median CNN run, others from a constant', typical),
    ('ensemble', 'Best of all runs', ensemble),
  )
  x = 100 * analysis.THRESHOLDS
  for row, (_, heading, scores) in zip(panels, kinds):
    errors = analysis.mean_relative_errors(scores)
    for axes, name in zip(row, groups):
      part = scores.group(name)
      curves = analysis.distribution(part)
      for j, method in enumerate(scores.methods):
        style = {'color': _COLOURS[j % 6], 'linestyle': _DASHES[j % 6]}
        mean = 100 * errors[name][j]
        label = f'{title(method)}, mean {mean:.2f} %'
        axes.plot(x, curves[:, j], label=label, linewidth=2, **style)
        # A mean beyond the edge is an arrow that leaves the panel.
        inside = mean <= x[-1]
        axes.plot(
          min(mean, x[-1]),
          0.0,
          marker=2 if inside else '>',  # 2: a tick upwards
          color=style['color'],
          markersize=12 if inside else 8,
          markeredgewidth=3 if inside else 0,
          clip_on=False,
          zorder=3,
        )
      axes.set_xlim(0, x[-1])
      axes.set_ylim(0, 1.005)
      axes.set_title(f'{heading}\n{len(part.problems)} {name} tasks')
      axes.grid(alpha=0.25)
      # Where the paper's curves leave room.
      place = {'loc': 'lower right', 'bbox_to_anchor': (1, 0.06)}
      if name == 'large':
        place = {'loc': 'center right', 'bbox_to_anchor': (1, 0.67)}
      axes.legend(fontsize=9, **place)
      axes.set_xticks(range(0, 21, 5))
      axes.spines[['top', 'right']].set_visible(False)
    row[0].set_ylabel('fraction of tasks')
  for axes in panels[-1]:
    axes.set_xlabel('relative error to the best method, %')
  return figure
