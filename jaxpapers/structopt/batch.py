"""Many optimization runs of one size at once, over all devices."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.structopt import arguments, domain, lbfgs, methods
from jaxpapers.structopt.history import History, Log, Progress


def optimize_batch(
  problems: domain.Problem | Sequence[domain.Problem],
  keys: Any = None,
  method: str = 'cnn-lbfgs',
  steps: int = 1000,
  *,
  mesh: jax.sharding.Mesh | None = None,
  devices: Sequence[jax.Device] | None = None,
  cnn_kwargs: Mapping[str, Any] | None = None,
  dynamic_depth: bool = False,
  projection: tuple[float, float] | None = None,
  learning_rate: float = 1e-2,
  callback: Callable[[Sequence[Progress]], None] | None = None,
  **physics: Any,
) -> list[History]:
  """Runs many seeds and problems of one size at once.

  The runs are stacked, vmapped and split over the devices; each counts its own
  evaluations, line searches and early stops. Run i pairs `problems[i]` with
  `keys[i]`; a single problem or a single key (or None) serves all runs.

  Args:
    problems: One task or several of the same size, number of load cases,
      self-weight and presence of passive solids.
    keys: None, a typed key, an array of them (`jax.random.split(key, n)`), or a
      sequence of keys; see `optimize`.
    method: See `optimize`.
    steps: Index of the last evaluation.
    mesh: Mesh of one axis over which to split the runs.
    devices: Instead of `mesh`: the devices. All local ones by default.
    cnn_kwargs: See `optimize`.
    dynamic_depth: See `optimize`.
    projection: None or one (beta, eta).
    learning_rate: See `optimize`.
    callback: Called every few evaluations with one `Progress` for each run.
    **physics: See `optimize`.

  Returns:
    One record for each run. Their `seconds` are those of the whole batch.

  Raises:
    ValueError: The problems cannot be stacked, or an argument is wrong.
    fem.SolveError: As in `optimize`; names the run.

  Example:
    >>> from jaxpapers.structopt import problems
    >>> task = problems.mbb_beam(48, 16, 0.5)
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> runs = optimize_batch(task, keys, 'mma', steps=5)
    >>> [run.evaluations for run in runs]
    [6, 6]
  """
  steps = arguments.positive('steps', steps)
  if callable(projection):
    raise ValueError(
      'projection is a function; optimize_batch takes one (beta, eta).'
    )
  problems, keys = _paired(problems, keys)
  _check_stackable(problems)
  settings = arguments.parse_settings(
    problems[0],
    method,
    cnn_kwargs,
    dynamic_depth,
    projection,
    learning_rate,
    physics,
  )
  for problem in problems:
    problem.validate()
  if mesh is not None and devices is not None:
    raise ValueError('Give mesh or devices, not both.')
  if mesh is None:
    devices = jax.local_devices() if devices is None else list(devices)
    mesh = jax.sharding.Mesh(np.array(devices), ('runs',))
  if len(mesh.axis_names) != 1:
    raise ValueError(
      f'mesh has the axes {mesh.axis_names}; expected one, over which the runs'
      ' are split.'
    )
  began = time.perf_counter()
  count = len(problems)
  logs = [Log(problem.name, method, steps) for problem in problems]
  # Padding runs repeat the last one; their results are dropped.
  padding = -count % mesh.size
  problems = problems + problems[-1:] * padding
  keys = keys + keys[-1:] * padding
  with jax.enable_x64(True):
    split = jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names[0]))
    stacked = _stack([arguments.anonymous(problem) for problem in problems])
    if keys[0] is None and settings.network:
      keys = [jax.random.key(0)] * len(keys)

    def begin(problem, key):
      start = methods.start_point(settings, problem, key)
      return methods.begin(settings, start)

    stacked = jax.device_put(stacked, split)
    stacked_keys = None if keys[0] is None else jnp.stack(keys)
    runs = jax.jit(jax.vmap(begin), out_shardings=split)(stacked, stacked_keys)
    sharpness = arguments.sharpness(projection, 0)
    limit = 0
    status = np.full(count, lbfgs.RUNNING)
    while limit <= steps and (status == lbfgs.RUNNING).any():
      limit = min(limit + methods.CHUNK, steps + 1)
      runs, records = methods.advance_batch(
        runs, stacked, sharpness, np.int32(limit), settings=settings, mesh=mesh
      )
      # Only what the host reads crosses over: the weights stay.
      records, evaluations, all_status, best = jax.device_get(
        (records, runs.evaluations, runs.status, runs.best_loss)
      )
      status = all_status[:count]
      for i, log in enumerate(logs):
        record = jax.tree.map(lambda a, i=i: a[i], records)
        log.extend(record, int(evaluations[i]), int(status[i]))
      if callback is not None:
        callback([log.progress(float(b)) for log, b in zip(logs, best)])
    final = jax.device_get(runs._replace(optimizer=()))
  seconds = time.perf_counter() - began
  return [
    log.history(jax.tree.map(lambda a, i=i: a[i], final), seconds)
    for i, log in enumerate(logs)
  ]


def _paired(problems, keys):
  """Lists of equal length from one or several problems and keys."""
  if isinstance(problems, (domain.Problem, str)):
    problems = [problems]
  problems = list(problems)
  for problem in problems:
    if not isinstance(problem, domain.Problem):
      raise TypeError(
        f'problems holds {problem!r}; expected a Problem, such as'
        " get_problem('mbb_beam_96x32_0.5')."
      )
  if keys is None:
    keys = [None]
  elif arguments.is_key(keys):
    keys = list(keys.reshape(-1))
  else:
    keys = [arguments.single_key(key, None) for key in keys]
  if not problems or not keys:
    raise ValueError('problems and keys must not be empty.')
  if any(key is None for key in keys) and any(key is not None for key in keys):
    raise ValueError('keys mixes None with keys; start these runs separately.')
  count = max(len(problems), len(keys))
  if len(problems) not in (1, count) or len(keys) not in (1, count):
    raise ValueError(
      f'{len(problems)} problems and {len(keys)} keys cannot be paired; give'
      ' as many of both, or one of either.'
    )
  if len(problems) == 1:
    problems = problems * count
  if len(keys) == 1:
    keys = keys * count
  return problems, keys


def _check_stackable(problems) -> None:
  """Raises unless the problems have the same size and structure."""

  def kind(problem):
    return {
      '(nely, nelx)': (problem.nely, problem.nelx),
      'shape of forces': np.shape(problem.forces),
      'self_weight': problem.self_weight,
      'presence of solid': problem.solid is not None,
    }

  first = kind(problems[0])
  for problem in problems[1:]:
    for name, value in kind(problem).items():
      if value != first[name]:
        raise ValueError(
          f'problems cannot be stacked: {name} is {first[name]} in'
          f' {problems[0].name!r} and {value} in {problem.name!r}; run them in'
          ' separate batches.'
        )


def _stack(problems):
  return jax.tree.map(lambda *leaves: np.stack(leaves), *problems)
