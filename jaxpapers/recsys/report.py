"""Tables of a reproduction: as text, as CSV, and as a page of its own."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpapers import __version__
from jaxpapers.recsys import published
from jaxpapers.recsys.reproduction import Row, columns_of, within
from jaxpapers.recsys.studies import Study

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;margin:0;background:#f6f7f8}
main{max-width:75rem;margin:0 auto;padding:2rem 1.5rem 4rem;background:#fff}
h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2rem 0 .4rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #e3e5e8;
white-space:nowrap}th{border-bottom:2px solid #bbb;vertical-align:bottom}
td:first-child,th:first-child{text-align:left}small{color:#666}
.best{font-weight:700}.off{background:#fde2dd}.on{background:#e6f4e6}
.note{background:#fff7e6;border-left:4px solid #e69f00;padding:.5rem .9rem}
"""


def state(row: Row) -> str:
  """One word on how a row compares with the published one."""
  if row.error:
    return 'failed'
  if row.agrees is None:
    return '-'
  if row.source != 'published':
    return 'tuned'
  return 'agrees' if row.agrees else 'differs'


def text(study: Study, rows: Sequence[Row]) -> str:
  """The table in plain text: ours over the published values."""
  labels = columns_of(study)
  lines = [['', *labels, 'max diff', '', 'fit s', 'eval s']]
  for row in rows:
    if row.error:
      lines.append([row.method, f'failed: {row.error}'])
      continue
    lines.append(
      [
        row.method,
        *(f'{row.values[label]:.4f}' for label in labels),
        _worst(row),
        state(row),
        f'{row.fit_seconds:.1f}',
        f'{row.evaluate_seconds:.1f}',
      ]
    )
    if row.published:
      lines.append(
        ['  published']
        + [
          f'{row.published[label]:.4f}' if label in row.published else ''
          for label in labels
        ]
      )
  neural = _neural(study)
  for name, values in neural.items():
    lines.append(
      [f'{name} (published)']
      + [f'{values[label]:.4f}' if label in values else '' for label in labels]
    )
  full = [line for line in lines if not str(line[-1]).startswith('failed')]
  widths = [
    max(len(line[i]) for line in full if i < len(line))
    for i in range(len(lines[0]))
  ]
  out = [study.title, study.notes] if study.notes else [study.title]
  for line in lines:
    cells = [
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=False))
    ]
    out.append('  '.join(cells).rstrip())
  return '\n'.join(out) + '\n'


def _worst(row):
  if not row.differences:
    return ''
  return f'{max(row.differences.values(), key=abs):+.4f}'


def _neural(study):
  """Published rows that are no baselines of ours."""
  result = {}
  for name in study.tables:
    table = published.table(name)
    for method, values in table['rows'].items():
      if method.startswith(study.neural) or method == 'CDL':
        known = {
          label: value
          for label, value in zip(table['columns'], values, strict=False)
          if value is not None
        }
        result.setdefault(method, {}).update(known)
  return result


def to_csv(study: Study, rows: Sequence[Row]) -> str:
  """The table as CSV, a line for each method and column."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(
    [
      'study', 'method', 'source', 'column', 'value', 'low', 'high',
      'published', 'difference', 'state', 'parameters', 'fit_seconds',
      'evaluate_seconds', 'error',
    ]
  )  # fmt: skip
  for row in rows:
    common = [
      _parameters(row.parameters),
      f'{row.fit_seconds:.3f}',
      f'{row.evaluate_seconds:.3f}',
      row.error,
    ]
    for label in columns_of(study) if not row.error else ('',):
      low, high = row.intervals.get(label, ('', ''))
      writer.writerow(
        [
          study.name, row.method, row.source, label,
          row.values.get(label, ''), low, high,
          row.published.get(label, ''), row.differences.get(label, ''),
          state(row), *common,
        ]
      )  # fmt: skip
  return out.getvalue()


def _parameters(parameters):
  return ' '.join(f'{key}={value}' for key, value in parameters.items())


def page(
  sections: Sequence[tuple[Study, Sequence[Row], Mapping[str, Any]]],
) -> str:
  """A page that needs no other file and no network.

  Args:
    sections: Study, its rows, and method -> (difference to the best baseline,
      corrected p), or nothing.
  """
  parts = [
    '<h1>Top-n recommendation, computed again</h1>',
    '<p>After <a href="https://arxiv.org/abs/1907.06902">Ferrari Dacrema,'
    ' Cremonesi &amp; Jannach (2019)</a> and its'
    ' <a href="https://arxiv.org/abs/1911.07698">extension (2021)</a>. In each'
    ' cell our value, below it the published one; <span class="off">marked'
    '</span> where they differ by more than the tolerance of the row.</p>',
  ]
  for study, rows, tests in sections:
    parts.append(f'<h2>{_escape(study.title)}</h2>')
    if study.notes:
      parts.append(f'<p class="note">{_escape(study.notes)}</p>')
    parts.append(_html_table(study, rows, tests))
  parts += [_papers(), f'<p><small>jaxpapers {__version__}</small></p>']
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    '<title>Top-n recommendation, computed again</title>'
    f'<style>{_STYLE}</style><main>' + '\n'.join(parts) + '</main></html>\n'
  )


def _html_table(study, rows, tests):
  labels = columns_of(study)
  good = [row for row in rows if not row.error]
  best = {
    label: max((row.values[label] for row in good), default=None)
    for label in labels
  }
  head = ['method', *labels, 'parameters', 'fit s', 'eval s', 'p']
  lines = ['<tr>' + ''.join(f'<th>{_escape(x)}</th>' for x in head) + '</tr>']
  for row in rows:
    if row.error:
      lines.append(
        f'<tr><td>{_escape(row.method)}</td><td class="off" colspan='
        f'"{len(head) - 1}">{_escape(row.error)}</td></tr>'
      )
      continue
    cells = [f'<td>{_escape(row.method)}<br><small>{state(row)}</small></td>']
    for label in labels:
      cells.append(_cell(row, label, best[label]))
    test = tests.get(row.method)
    cells += [
      f'<td><small>{_escape(_parameters(row.parameters))}</small></td>',
      f'<td>{row.fit_seconds:.1f}</td>',
      f'<td>{row.evaluate_seconds:.1f}</td>',
      f'<td>{test[1]:.2g}</td>' if test else '<td></td>',
    ]
    lines.append(f'<tr>{"".join(cells)}</tr>')
  for name, values in _neural(study).items():
    cells = ''.join(
      f'<td>{values[label]:.4f}</td>' if label in values else '<td></td>'
      for label in labels
    )
    lines.append(
      f'<tr><td>{_escape(name)}<br><small>published</small></td>{cells}</tr>'
    )
  note = (
    '<p><small>p: paired test of the metric that is tuned for, user by user,'
    ' against the best method of the table; corrected after Holm.</small></p>'
    if tests
    else ''
  )
  return f'<div class="scroll"><table>{"".join(lines)}</table></div>{note}'


def _cell(row, label, best):
  value = row.values[label]
  kind = ['best'] if value == best else []
  known = ''
  if label in row.published:
    known = f'<br><small>{row.published[label]:.4f}</small>'
    if row.source == 'published' and not within(
      label, row.differences[label], row.tolerance
    ):
      kind.append('off')
  title = ''
  if label in row.intervals:
    low, high = row.intervals[label]
    title = f' title="95 % of users: {low:.4f} to {high:.4f}"'
  return f'<td class="{" ".join(kind)}"{title}>{value:.4f}{known}</td>'


def _papers():
  lines = [
    '<tr><th>method</th><th>venue</th><th>reproducible</th><th>finding</th>'
    '</tr>'
  ]
  for paper in published.PAPERS:
    lines.append(
      f'<tr><td>{_escape(paper.name)}</td><td>{paper.venue}</td>'
      f'<td>{"yes" if paper.reproducible else "no"}</td>'
      '<td style="white-space:normal;text-align:left">'
      f'{_escape(paper.finding)}</td></tr>'
    )
  count = sum(paper.reproducible for paper in published.PAPERS)
  return (
    f'<h2>{count} of {len(published.PAPERS)} papers were reproducible</h2>'
    f'<table>{"".join(lines)}</table>'
  )


def _escape(value):
  return html.escape(str(value))
