"""What the fine-tuning programs write: best parameters, results, a figure."""

import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import _training_command_line
import jax
import numpy as np
from etils import epath

from jaxpapers import data, training
from jaxpapers.roberta import figures


class Best:
  """The best evaluation of a run, and its parameters on disk.

  A run that is killed and goes on makes the same evaluations again: the best
  of what was written stays the best.

  Attributes:
    step: Its step, -1 before there is one.
    metrics: Its numbers.
  """

  def __init__(self, folder: epath.Path, name: str, patience: int):
    self._folder, self._name, self._patience = folder, name, patience
    self._path = folder / 'best.json'
    self._seen = []
    self.step, self.metrics = -1, {}
    if self._path.exists():
      stored = json.loads(self._path.read_text())
      self.step, self.metrics = stored['step'], numbers(stored['metrics'])

  def offer(self, step: int, metrics: Mapping[str, float], params: Any) -> None:
    """Keeps parameters if they are the best so far."""
    if self.step >= 0 and _score(metrics, self._name) <= _score(
      self.metrics, self._name
    ):
      return
    target, old = self._folder / f'best-{step}', self.step
    if target.exists() and jax.process_index() == 0:
      target.rmtree()
    training.save(target, params)
    self.step = step
    self.metrics = {name: float(value) for name, value in metrics.items()}
    if jax.process_index() == 0:
      text = to_json({'step': step, 'metrics': self.metrics})
      data.write_file(self._path, text + '\n')
      if old >= 0 and old != step:
        (self._folder / f'best-{old}').rmtree()

  def restore(self, like: Any) -> Any:
    """The best parameters, lying as `like`."""
    return training.restore(self._folder / f'best-{self.step}', like)

  def stop_when(self, step: int, split: str, metrics: Mapping[str, Any]):
    """For `training.fit`: ends a run that no longer gets better."""
    if split != 'dev' or not self._patience:
      return None
    self._seen.append(_score(metrics, self._name))
    waited = len(self._seen) - 1 - int(np.argmax(self._seen))
    if waited < self._patience:
      return None
    return (
      f'Stopped at step {step}: {self._name} has not improved in {waited}'
      ' evaluations.'
    )


def _score(metrics, name) -> float:
  """The main metric; what is no number is worse than any."""
  value = float(metrics.get(name, math.nan))
  return value if math.isfinite(value) else -math.inf


def conclude(
  run: _training_command_line.Run,
  task: Any,
  found: Mapping[int, Mapping[str, Any]],
  export: Callable[[epath.Path, int, epath.Path], None] | None,
) -> None:
  """Writes what all seeds together say, the best model and the figure.

  Args:
    run: The flags.
    task: A `_roberta_finetuning.Task`.
    found: Seed -> its results.
    export: Writes the model of a folder and a step; None for none.
  """
  rows = {seed: numbers(result['best']) for seed, result in found.items()}
  names = list(next(iter(rows.values())))
  columns = {name: [row[name] for row in rows.values()] for name in names}
  summary = {
    'task': task.name,
    'main_metric': task.main_metric,
    # Of numbers one of which is NaN it is NaN.
    'median': {n: float(np.median(v)) for n, v in columns.items()},
    'mean': {n: float(np.mean(v)) for n, v in columns.items()},
    'seeds': {str(seed): result for seed, result in found.items()},
  }
  if len(rows) > 1:
    summary['stdev'] = {n: float(np.std(v, ddof=1)) for n, v in columns.items()}
  best = max(rows, key=lambda seed: _score(rows[seed], task.main_metric))
  summary['best_seed'] = best
  shown = {f'seed {seed}': row for seed, row in rows.items()}
  if len(rows) > 1:
    shown['median'] = summary['median']
  show(task.name, shown)
  target = run.workdir / 'model'
  if export is not None and not (target / 'config.json').exists():
    export(run.workdir / f'seed{best}', found[best]['best_step'], target)
    _training_command_line.say(f'The best model is in {target}.')
  if run.first:
    _draw(run, task, found)
  write_results(run, run.workdir / 'results.json', summary)
  _training_command_line.say(
    f'Results, predictions and the figure are in {run.workdir}.'
  )


def _draw(run, task, found) -> None:
  curves = []
  for seed in found:
    rows = training.read_metrics(run.workdir / f'seed{seed}', 'dev')
    _, first = np.unique(rows['step'], return_index=True)
    curves.append((rows['step'][first], rows[task.main_metric][first]))
  length = min(len(steps) for steps, _ in curves)
  if length < 2:
    return
  # Runs that were stopped early are shorter than the others.
  values = np.stack([values[:length] for _, values in curves])
  label = f'{len(curves)} seed{"s" * (len(curves) > 1)}'
  figure = figures.seed_curves(
    [(task.name, [(label, curves[0][0][:length], values)])],
    xlabel='update',
    ylabel=f'{task.main_metric} on dev',
  )
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=130)
  data.write_file(run.workdir / 'dev.png', buffer.getvalue())


def show(name: str, rows: Mapping[str, Mapping[str, float]]) -> None:
  """Prints a table, a row for each seed."""
  names = list(next(iter(rows.values())))
  width = max(len(title) for title in (*rows, name))
  widths = [max(len(n), 8) for n in names]
  lines = [
    '  '.join([name.ljust(width), *(n.rjust(w) for n, w in zip(names, widths))])
  ]
  for title, row in rows.items():
    cells = [f'{row[n]:.4g}'.rjust(w) for n, w in zip(names, widths)]
    lines.append('  '.join([title.ljust(width), *cells]))
  _training_command_line.say('\n'.join(lines))


def write_results(run: Any, path: epath.Path, content: Any) -> None:
  """Writes JSON, in the first process only."""
  if run.first:
    data.write_file(path, to_json(content, indent=2) + '\n')


def to_json(content: Any, indent: int | None = None) -> str:
  """JSON as everybody reads it: null is what is no number, NaN."""
  return json.dumps(_without_nan(content), indent=indent, allow_nan=False)


def _without_nan(content):
  if isinstance(content, Mapping):
    return {name: _without_nan(value) for name, value in content.items()}
  if isinstance(content, list | tuple):
    return [_without_nan(value) for value in content]
  if isinstance(content, float) and not math.isfinite(content):
    return None
  return content


def numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
  """Metrics that were read from JSON, with NaN for null."""
  return {
    name: math.nan if value is None else float(value)
    for name, value in metrics.items()
  }


def remove(run: Any, folder: epath.Path) -> None:
  """Removes what is no longer needed, in the first process only."""
  if run.first and folder.exists():
    folder.rmtree()
