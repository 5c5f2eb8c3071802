"""What programs show and write: tables, JSON, figures; whole or not at all."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpapers import data


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
    if 0.01 <= abs(value) < 10:
      return f'{value:.4f}'
    return f'{value:.4g}' if abs(value) < 1e5 else f'{value:,.0f}'
  return str(value)


def write_json(path: Any, content: Any) -> None:
  """Writes JSON as everybody reads it: null is what is no number, NaN."""
  data.write_file(path, json.dumps(_plain(content), indent=2) + '\n')


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, np.generic):
    return _plain(value.item())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_csv(path: Any, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows as a table."""
  text = io.StringIO()
  names = list(dict.fromkeys(name for row in rows for name in row))
  writer = csv.DictWriter(text, names, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  data.write_file(path, text.getvalue())


def save_figure(path: Any, figure: Any) -> None:
  """Writes a figure as PNG."""
  content = io.BytesIO()
  figure.savefig(content, format='png', dpi=120)
  data.write_file(path, content.getvalue())
