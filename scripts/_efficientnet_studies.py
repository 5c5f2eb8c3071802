"""What the scaling and the search program share: tables and figures."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath


def show(rows: Sequence[Mapping[str, Any]]) -> None:
  """Prints rows as a table, without columns that are empty everywhere."""
  names = [
    name
    for name in dict.fromkeys(name for row in rows for name in row)
    if any(row.get(name) not in (None, '') for row in rows)
  ]
  lines = [names] + [[_text(row.get(name)) for name in names] for row in rows]
  widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
  for line in lines:
    print('  '.join(x.rjust(w) for x, w in zip(line, widths)), flush=True)


def _text(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, int) and not isinstance(value, bool):
    return f'{value:,}'
  if isinstance(value, float):
    return f'{value:.4g}' if abs(value) < 1e5 else f'{value:,.0f}'
  return str(value)


def write_json(path: Any, content: Any) -> None:
  """Writes JSON."""
  write(path, json.dumps(content, indent=2) + '\n')


def write_csv(path: Any, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows as a table."""
  text = io.StringIO()
  names = list(dict.fromkeys(name for row in rows for name in row))
  writer = csv.DictWriter(text, names, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write(path, text.getvalue())


def save_figure(path: Any, figure: Any) -> None:
  """Writes a figure as PNG."""
  content = io.BytesIO()
  figure.savefig(content, format='png', dpi=120)
  write(path, content.getvalue())


def write(path: Any, content: str | bytes) -> None:
  """Writes a file, which appears only when it is complete."""
  path = epath.Path(path)
  temporary = path.parent / f'{path.name}.partial'
  if isinstance(content, bytes):
    temporary.write_bytes(content)
  else:
    temporary.write_text(content)
  temporary.replace(path)
