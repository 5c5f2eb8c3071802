"""Where the numbers of a run go: JSON lines, TensorBoard, the console."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

METRICS_FILE = 'metrics.jsonl'


class Writer(Protocol):
  """What `fit` expects of a writer."""

  def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
    """Takes the numbers of one step: floats, or arrays in a population."""

  def flush(self) -> None:
    """Everything written so far outlives the process."""

  def close(self) -> None:
    """Flushes for the last time."""


class JsonLines:
  """One JSON object a line in `<folder>/metrics.jsonl`.

  `{"step": 100, "split": "train", "loss": 0.5, ...}`. Numbers that JSON does
  not have are the strings 'nan', 'inf' and '-inf'.
  """

  def __init__(self, folder: str | os.PathLike, step: int = -1):
    """Opens the file, and drops its lines of later steps.

    Args:
      folder: Local or gs://; is made if need be.
      step: Step of the checkpoint from which the run resumes, -1 for a new
        run: what an interrupted run wrote after it will be written again.
    """
    folder = epath.Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    self._path = folder / METRICS_FILE
    self._lines = [
      json.dumps(row) for row in _rows(self._path) if row['step'] <= step
    ]
    # Object stores cannot append: there the file is written anew at a flush.
    self._remote = '://' in str(folder)
    self._file = None
    self._rewrite()
    if not self._remote:
      self._lines.clear()
      self._file = open(self._path, 'a', encoding='utf-8')

  def _rewrite(self):
    text = ''.join(line + '\n' for line in self._lines)
    temporary = self._path.parent / (self._path.name + '.partial')
    temporary.write_text(text)
    temporary.replace(self._path)

  def write(self, step, split, metrics):
    reserved = {'step', 'split'} & set(metrics)
    if reserved:
      raise ValueError(
        f'a metric of {split!r} is called {reserved.pop()!r}, which is a column'
        ' of every row. Choose another name.'
      )
    row = {'step': int(step), 'split': split}
    row |= {name: _jsonable(value) for name, value in metrics.items()}
    line = json.dumps(row)
    if self._file is None:
      self._lines.append(line)
    else:
      self._file.write(line + '\n')
      self._file.flush()

  def flush(self):
    if self._file is None:
      self._rewrite()
    else:
      os.fsync(self._file.fileno())

  def close(self):
    self.flush()
    if self._file is not None:
      self._file.close()


class TensorBoard:
  """Event files for TensorBoard, through tensorboardX.

  Metrics appear as `<split>/<name>`, members of a population as
  `<split>/<name>/<index>`.
  """

  def __init__(self, folder: str | os.PathLike, step: int = -1):
    """Opens an event file.

    Args:
      folder: Local or gs://.
      step: As for `JsonLines`: TensorBoard hides what earlier files say of
        later steps.

    Raises:
      ImportError: If tensorboardX is not installed.
    """
    try:
      import tensorboardX
    except ImportError as error:
      raise ImportError(
        "TensorBoard files need tensorboardX: pip install 'jaxpapers[training]'"
      ) from error
    self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=step + 1)

  def write(self, step, split, metrics):
    for name, value in metrics.items():
      value = np.asarray(value, np.float64)
      if value.ndim == 0:
        self._writer.add_scalar(f'{split}/{name}', float(value), step)
      else:
        for index, entry in enumerate(value.ravel()):
          self._writer.add_scalar(f'{split}/{name}/{index}', float(entry), step)

  def flush(self):
    self._writer.flush()

  def close(self):
    self._writer.close()


class Console:
  """A progress bar, and a line for every row of numbers.

  The bar is drawn only where somebody watches (standard error is a terminal);
  the lines go to standard output.
  """

  def __init__(self, total: int, step: int = 0, every: float = 0.0):
    """Begins.

    Args:
      total: Number of steps of the whole run.
      step: Where it begins.
      every: Training rows follow each other after at least that many seconds;
        those of evaluations are always shown.
    """
    from tqdm import tqdm

    self._tqdm = tqdm
    self._bar = tqdm(
      total=total, initial=step, unit='step', disable=None, dynamic_ncols=True
    )
    self._every, self._last = every, -math.inf

  def advance(self, step: int, loss: float | None = None) -> None:
    """Moves the bar."""
    self._bar.update(step - self._bar.n)
    if loss is not None:
      self._bar.set_postfix(loss=f'{loss:.4g}', refresh=False)

  def write(self, step, split, metrics):
    now = time.monotonic()
    if split == 'train':
      if now - self._last < self._every:
        return
      self._last = now
    shown = '  '.join(f'{k} {_short(v)}' for k, v in metrics.items())
    self.say(f'step {step}  {split}  {shown}')

  def say(self, text: str) -> None:
    """Prints a line above the bar."""
    self._tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()

  def flush(self):
    pass

  def close(self):
    self._bar.close()


def default_writers(
  folder: str | os.PathLike | None, step: int, *, tensorboard: bool = True
) -> list[Writer]:
  """JSON lines and TensorBoard files below a folder.

  Args:
    folder: The run's folder; without one there is nothing to write to.
    step: As for `JsonLines`.
    tensorboard: Whether to write event files, where tensorboardX is installed.

  Returns:
    Writers for the first process; the others get none.
  """
  if folder is None or jax.process_index() != 0:
    return []
  writers: list[Writer] = [JsonLines(folder, step)]
  if tensorboard:
    try:
      writers.append(TensorBoard(epath.Path(folder) / 'tensorboard', step))
    except ImportError:
      pass
  return writers


def read_metrics(
  folder: str | os.PathLike, split: str
) -> dict[str, np.ndarray]:
  """Reads what a run wrote to its `metrics.jsonl`.

  Args:
    folder: The run's folder.
    split: 'train', or the name of an evaluation.

  Returns:
    'step' `[rows]` int64 and every metric `[rows, ...]` float64, rows in the
    order of steps; NaN where a row lacks a metric. Empty without such rows.
  """
  rows = [r for r in _rows(_metrics_path(folder)) if r.get('split') == split]
  if not rows:
    return {}
  names = dict.fromkeys(
    name for row in rows for name in row if name not in ('step', 'split')
  )
  columns = {'step': np.array([row['step'] for row in rows], np.int64)}
  for name in names:
    values = [np.array(row[name], float) for row in rows if name in row]
    missing = np.full(values[0].shape, np.nan)
    columns[name] = np.stack(
      [np.array(row[name], float) if name in row else missing for row in rows]
    )
  return columns


def read_rows(
  folder: str | os.PathLike,
) -> list[tuple[int, str, dict[str, Any]]]:
  """All rows of a run's `metrics.jsonl`, in the order of writing.

  Args:
    folder: The run's folder.

  Returns:
    Step, split and metrics of each: floats, or arrays in a population.
  """
  found = []
  for row in _rows(_metrics_path(folder)):
    step, split = row.pop('step'), row.pop('split')
    metrics = {name: np.array(value, float) for name, value in row.items()}
    found.append(
      (step, split, {n: v if v.ndim else v[()] for n, v in metrics.items()})
    )
  return found


def _metrics_path(folder) -> epath.Path:
  return epath.Path(folder).expanduser() / METRICS_FILE


def _rows(path: epath.Path) -> list[dict[str, Any]]:
  """The complete lines of a file; a killed process may leave half a line."""
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(row, dict) and 'step' in row:
      rows.append(row)
  return rows


def _jsonable(value):
  value = np.asarray(value)
  if value.ndim:
    return [_jsonable(entry) for entry in value]
  if np.issubdtype(value.dtype, np.integer) or value.dtype == bool:
    return int(value)
  number = float(value)
  return number if math.isfinite(number) else str(number)


def _short(value) -> str:
  value = np.asarray(value)
  if value.ndim == 0:
    return f'{value:d}' if value.dtype.kind in 'iu' else f'{float(value):.4g}'
  if value.size <= 4:
    return '[' + ' '.join(_short(v) for v in value.ravel()) + ']'
  return f'[{_short(value.min())} .. {_short(value.max())}]'
