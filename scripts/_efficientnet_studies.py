"""What the scaling and the search program share: tables and figures."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import _command_line
import jax
from etils import epath

from jaxpapers import training


def check_run(run: Any, batch_size: int | None = None) -> None:
  """Refuses what workers that share a record cannot do.

  Args:
    run: The flags.
    batch_size: That of the recipe; None if nothing is trained.

  Raises:
    UsageError: If processes are joined, a record would lie where it cannot, or
      the devices cannot share a batch.
  """
  if jax.process_count() > 1:
    raise _command_line.UsageError(
      f'{jax.process_count()} processes are joined, but each trains networks of'
      ' its own here. Start the program on each machine without --distributed,'
      ' with one --workdir that all see'
    )
  if '://' in str(run.workdir):
    raise _command_line.UsageError(
      f'--workdir={run.workdir} is a URL; expected a folder of a file system:'
      ' workers claim their shares there'
    )
  if batch_size is not None:
    check_batch(batch_size, run.mesh, '--config.recipe.batch_size')


def check_batch(size: int, mesh: jax.sharding.Mesh, flag: str) -> None:
  """Refuses a batch that the devices cannot share.

  Raises:
    UsageError: Names the flag.
  """
  try:
    training.batch_sharding(mesh).shard_shape((size,))
  except ValueError as error:
    raise _command_line.UsageError(
      f'{flag} is {size}, which the {mesh.size} devices of --mesh cannot share'
      ' evenly'
    ) from error


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
