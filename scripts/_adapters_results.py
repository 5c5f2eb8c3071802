"""What the adapter programs write: tables, task files, figures."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxpapers import adapters


def show(rows: Sequence[Mapping[str, Any]]) -> None:
  """Prints rows as a table, without columns that are empty everywhere."""
  names = [
    name
    for name in dict.fromkeys(name for row in rows for name in row)
    if any(row.get(name) is not None for row in rows)
  ]
  lines = [names] + [[_text(row.get(name)) for name in names] for row in rows]
  widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
  for line in lines:
    print('  '.join(x.rjust(w) for x, w in zip(line, widths)), flush=True)


def _text(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, float):
    return f'{value:.4f}' if 0.01 <= abs(value) < 1e5 else f'{value:.4g}'
  return str(value)


def save_tasks(folder, config, problem, trained, rows) -> None:
  """Writes the parameters of each member, with all that serving needs."""
  for i, member in enumerate(trained.members):
    adapters.save_task(
      folder / f'task_{member.seed}.safetensors',
      trained.of(i),
      metadata={
        'task': config.task,
        'kind': problem.goal.kind,
        'classes': list(problem.goal.classes),
        'mode': config.mode,
        'config': json.loads(config.to_json_best_effort()),
        'scores': rows[i],
      },
    )


def write_json(path: epath.Path, content: Any) -> None:
  """Writes JSON; NaN as null, which every reader knows."""
  write(path, json.dumps(_plain(content), indent=2) + '\n')


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, np.generic):
    return _plain(value.item())
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value


def write_csv(path: epath.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows as a table."""
  text = io.StringIO()
  names = list(dict.fromkeys(name for row in rows for name in row))
  writer = csv.DictWriter(text, names, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write(path, text.getvalue())


def save_figure(path: epath.Path, figure: Any) -> None:
  """Writes a figure as PNG."""
  content = io.BytesIO()
  figure.savefig(content, format='png', dpi=120)
  write(path, content.getvalue())


def write(path: epath.Path, content: str | bytes) -> None:
  """Writes a file, which appears only when it is complete."""
  path = epath.Path(path)
  temporary = path.parent / f'{path.name}.partial'
  if isinstance(content, bytes):
    temporary.write_bytes(content)
  else:
    temporary.write_text(content)
  temporary.replace(path)
