"""Runs an experiment of many tasks, methods and seeds into a folder."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxpapers
from jaxpapers.structopt import batch, problems, runner, runs
from jaxpapers.structopt.history import History, Progress


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the runs of an experiment are made; stored with each of them.

  Attributes:
    steps: index of the last evaluation.
    cnn_kwargs: arguments of `models.CNNDesign`.
    dynamic_depth: see `runner.optimize`.
    backend: see `runner.optimize`; methods that are not L-BFGS take `device`.
    solver: see `fem.compliance`.
  """

  steps: int = 1000
  cnn_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  dynamic_depth: bool = False
  backend: str = 'device'
  solver: str = 'auto'

  def metadata(self) -> dict[str, Any]:
    """In JSON types."""
    kwargs = dataclasses.asdict(self)
    kwargs['cnn_kwargs'] = {
      k: list(v) if isinstance(v, tuple) else v
      for k, v in sorted(self.cnn_kwargs.items())
    }
    return kwargs


@dataclasses.dataclass(frozen=True)
class Failure:
  """A run that could not be made, and why."""

  key: runs.Key
  reason: str


def pending(
  keys: Sequence[runs.Key], folder, settings: Settings
) -> list[runs.Key]:
  """The runs that are not finished.

  Args:
    keys: the runs of an experiment.
    folder: where they are stored.
    settings: how they are to be made.

  Returns:
    Those that the folder lacks.

  Raises:
    ValueError: the folder has one of them, made with other settings.
  """
  wanted = settings.metadata()
  missing = []
  for key in keys:
    run = runs.load(folder, key)
    if run is None:
      missing.append(key)
      continue
    made = run.metadata.get('settings', {})
    for name, value in wanted.items():
      if made.get(name) != value:
        raise ValueError(
          f'{str(run.stem)!r} was made with {name}={made.get(name)!r}, not'
          f' {value!r}; choose another folder or overwrite its runs.'
        )
  return missing


def execute(
  keys: Sequence[runs.Key],
  folder,
  settings: Settings,
  *,
  batch_size: int = 1,
  frames: int = 0,
  keep_frames: bool = False,
  progress: Callable[[Sequence[runs.Key]], Any] | None = None,
  finished: Callable[[runs.Key, History | Failure], None] | None = None,
) -> list[Failure]:
  """Makes runs one after another, or in batches of one size, and stores them.

  A run that fails is reported and the others go on.

  Args:
    keys: the runs.
    folder: where they are stored.
    settings: how they are made.
    batch_size: how many runs of the same method and size are made at once by
      `optimize_batch`. It takes no frames.
    frames: how many pictures there are in the animation of a run; 0 for none.
    keep_frames: see `runs.save`.
    progress: called with the runs that are about to be made; returns a function
      that is called with a list of their `Progress` every few evaluations, or a
      context manager of such a function.
    finished: called with every run and its record, or why it failed.

  Returns:
    The runs that failed.

  Raises:
    ValueError: an argument is wrong or a task is ill posed.
  """
  save_every = math.ceil(settings.steps / frames) if frames else None
  failures = []

  def done(key, result):
    if isinstance(result, Failure):
      failures.append(result)
    else:
      metadata = {
        'seed': key.seed,
        'settings': settings.metadata(),
        'jaxpapers': jaxpapers.__version__,
      }
      result = dataclasses.replace(result, metadata=metadata)
      problem = problems.get_problem(key.problem)
      runs.save(folder, key, result, problem, keep_frames)
    if finished is not None:
      finished(key, result)

  for group in _groups(keys, settings, batch_size):
    for key in group:
      runs.clean(folder, key)
    if len(group) > 1:
      try:
        with _Callback(progress, group) as callback:
          histories = _together(group, settings, callback)
      except FloatingPointError:
        pass  # One of them failed: find out which, and make the others.
      else:
        for key, history in zip(group, histories, strict=True):
          done(key, history)
        continue
    for key in group:
      try:
        with _Callback(progress, [key]) as callback:
          result = _alone(key, settings, save_every, callback)
      except FloatingPointError as error:
        result = Failure(key, str(error))
      done(key, result)
  return failures


class _Callback:
  """Enters what `progress` returns, whichever of the three kinds it is."""

  def __init__(self, progress, group):
    self._made = None if progress is None else progress(group)

  def __enter__(self):
    if hasattr(self._made, '__enter__'):
      return self._made.__enter__()
    return self._made

  def __exit__(self, *error):
    if hasattr(self._made, '__exit__'):
      return self._made.__exit__(*error)
    return None


def _groups(keys, settings, batch_size):
  """Runs that can be made together, in lists of at most `batch_size`."""
  if batch_size == 1:
    return [[key] for key in keys]
  groups: dict[Any, list[runs.Key]] = {}
  for i, key in enumerate(keys):
    problem = problems.get_problem(key.problem)
    kind: Any = (
      key.method,
      key.seed == runs.CONSTANT,
      np.shape(problem.forces),
      problem.solid is None,
      problem.self_weight,
    )
    if settings.backend == 'scipy' and key.method.endswith('lbfgs'):
      kind = i  # SciPy makes one run at a time.
    groups.setdefault(kind, []).append(key)
  return [
    group[i : i + batch_size]
    for group in groups.values()
    for i in range(0, len(group), batch_size)
  ]


def _arguments(settings: Settings) -> dict[str, Any]:
  return {
    'steps': settings.steps,
    'cnn_kwargs': settings.cnn_kwargs,
    'dynamic_depth': settings.dynamic_depth,
    'solver': settings.solver,
  }


def _alone(key, settings, save_every, callback):
  def one(progress: Progress):
    callback([progress])

  return runner.optimize(
    problems.get_problem(key.problem),
    key.method,
    seed=key.seed,
    backend=settings.backend if key.method.endswith('lbfgs') else 'device',
    save_every=save_every,
    callback=one if callback else None,
    **_arguments(settings),
  )


def _together(group, settings, callback):
  seeded = group[0].seed != runs.CONSTANT
  return batch.optimize_batch(
    [problems.get_problem(key.problem) for key in group],
    [jax.random.key(key.seed) for key in group] if seeded else None,
    group[0].method,
    callback=callback,
    **_arguments(settings),
  )
