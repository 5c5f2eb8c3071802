"""`optimize` and `optimize_batch`: from a task to the record of a run."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxpapers.structopt import arguments, batch, domain, lbfgs, methods
from jaxpapers.structopt.history import History, Log, Progress

optimize_batch = batch.optimize_batch


def optimize(
  problem: domain.Problem,
  method: str = 'cnn-lbfgs',
  steps: int = 1000,
  key: jax.Array | None = None,
  *,
  seed: int | None = None,
  cnn_kwargs: Mapping[str, Any] | None = None,
  dynamic_depth: bool = False,
  backend: str = 'device',
  projection: Any = None,
  learning_rate: float = 1e-2,
  save_every: int | None = None,
  callback: Callable[[Progress], None] | None = None,
  **physics: Any,
) -> History:
  """Optimizes the design of a task with one of the paper's methods.

  Every evaluation of the compliance is recorded, those of line searches and of
  MMA's inner iterations too; evaluations are numbered from 0 to `steps`.

  Args:
    problem: The task; validated here.
    method: `cnn-lbfgs` (the paper's), `pixel-lbfgs`, `mma`, `oc`, `adam` (on
      the network's weights) or `pixel-adam`.
    steps: Index of the last evaluation.
    key: Typed key of the network's initial weights, `jax.random.key(seed)`. The
      methods without a network start from that network's logits as well;
      without a key they start from a constant. The network then takes key 0.
    seed: Instead of `key`: `key(seed)`, or none if it is -1.
    cnn_kwargs: Arguments of `models.CNNDesign`, such as `latent_size`.
    dynamic_depth: Whether `models.dynamic_depth` chooses the architecture.
    backend: Where L-BFGS runs: `device`, or `scipy` for SciPy's L-BFGS-B on the
      host, with which the paper's numbers were made.
    projection: None, or (beta, eta) of the Heaviside projection, or a function
      from the number of evaluations to such a pair. Where its result changes
      (it is asked every few evaluations) the optimizer starts afresh from the
      last design, and the best designs of the softer projection are dropped.
    learning_rate: Step size of Adam.
    save_every: Keep the best design every so many evaluations, as `frames`.
    callback: Called with a `Progress` every few evaluations.
    **physics: `penal`, `emin`, `e0`, `filter_radius`, `constrain` of
      `objective.design_compliance`, and `solver`, `tol`, `maxiter`,
      `precision`, `poisson` of `fem.compliance`.

  Returns:
    The record of the run.

  Raises:
    ValueError: An argument is wrong or the problem is ill posed.
    fem.SolveError: The objective was not finite or its linear system could not
      be solved; names the problem, the method and the evaluation.

  Example:
    >>> from jaxpapers.structopt import problems
    >>> task = problems.mbb_beam(48, 16, 0.5)
    >>> optimize(task, 'oc', steps=20).best_loss < 300
    True
  """
  key = arguments.single_key(key, seed)
  settings = arguments.parse_settings(
    problem,
    method,
    cnn_kwargs,
    dynamic_depth,
    projection,
    learning_rate,
    physics,
  )
  steps = arguments.positive('steps', steps)
  if save_every is not None:
    save_every = arguments.positive('save_every', save_every)
  if backend not in ('device', 'scipy'):
    raise ValueError(f"backend is {backend!r}; expected 'device' or 'scipy'.")
  if backend == 'scipy':
    if not method.endswith('lbfgs'):
      raise ValueError(
        f"backend='scipy' has only L-BFGS; method {method!r} needs 'device'."
      )
    if callable(projection):
      raise ValueError(
        "projection is a function, which backend='scipy' cannot follow; give"
        " one (beta, eta) or use backend='device'."
      )
  problem.validate()
  run_on = _optimize_scipy if backend == 'scipy' else _optimize_device
  return run_on(problem, settings, steps, key, projection, save_every, callback)


def _optimize_device(
  problem, settings, steps, key, projection, save_every, callback
):
  """Runs `methods.advance` until the evaluations are used up."""
  began = time.perf_counter()
  log = Log(problem.name, settings.method, steps)
  with jax.enable_x64(True):
    anonymous = arguments.anonymous(problem)
    run = methods.begin(settings, _start(settings, anonymous, key))
    sharpness = arguments.sharpness(projection, 0)
    limit = 0
    while limit <= steps and int(run.status) == lbfgs.RUNNING:
      limit = min(limit + methods.CHUNK, steps + 1)
      if save_every is not None:
        next_frame = (log.evaluations // save_every + 1) * save_every
        limit = min(limit, next_frame)
      wanted = arguments.sharpness(projection, log.evaluations)
      if wanted != sharpness:
        run, sharpness = _sharpened(settings, run), wanted
      run, record = methods.advance(
        run, anonymous, sharpness, np.int32(limit), settings=settings
      )
      log.extend(record, int(run.evaluations), int(run.status))
      if save_every is not None and log.evaluations % save_every == 0:
        log.frame(run.best_design)
      if callback is not None:
        callback(log.progress(float(run.best_loss)))
  seconds = time.perf_counter() - began
  return log.history(
    jax.tree.map(np.asarray, run._replace(optimizer=())), seconds
  )


def _sharpened(settings, run):
  """Starts the optimizer afresh where it is, for another objective."""
  state = run.optimizer
  # MMA and L-BFGS hold an accepted point besides their trial.
  variables = getattr(state, 'params', getattr(state, 'center', state.trial))
  fresh = methods.begin(settings, variables)
  return fresh._replace(evaluations=run.evaluations)


def _optimize_scipy(
  problem, settings, steps, key, projection, save_every, callback
):
  """Runs SciPy's L-BFGS-B, recording each evaluation on the host."""
  began = time.perf_counter()
  log = Log(problem.name, settings.method, steps)
  with jax.enable_x64(True):
    anonymous = arguments.anonymous(problem)
    sharpness = arguments.sharpness(projection, 0)
    run = None

    def value_and_grad(variables):
      nonlocal run
      (loss, design), grad = methods.evaluate_once(
        variables, anonymous, sharpness, settings=settings
      )
      status = lbfgs.RUNNING if np.isfinite(loss) else lbfgs.NOT_FINITE
      if log.evaluations <= steps:
        run = _with_evaluation(run, loss, design)
        losses = np.asarray(loss)[None]
        log.extend(
          methods.Record(losses, np.ones(1, bool)), log.evaluations + 1, status
        )
        if save_every is not None and log.evaluations % save_every == 0:
          log.frame(run.best_design)
        if callback is not None:
          callback(log.progress(float(run.best_loss)))
      return loss, grad

    _, message = lbfgs.scipy_lbfgs(
      value_and_grad, _start(settings, anonymous, key), steps
    )
  seconds = time.perf_counter() - began
  history = log.history(run, seconds)
  return dataclasses.replace(
    history,
    message=f'SciPy: {message}',
    converged=history.evaluations <= steps,
  )


def _with_evaluation(run, loss, design):
  """The host's counterpart of the bookkeeping in `methods.advance`."""
  loss, design = float(loss), np.asarray(design)
  if run is None or loss < run.best_loss:
    best_loss, best_design = loss, design
  else:
    best_loss, best_design = run.best_loss, run.best_design
  return methods.Run(
    optimizer=(),
    evaluations=0,
    status=lbfgs.RUNNING,
    loss=loss,
    design=design,
    best_loss=best_loss,
    best_design=best_design,
    best_feasible_loss=best_loss,
    best_feasible_design=best_design,
  )


def _start(settings, problem, key):
  if key is None and settings.network:
    key = jax.random.key(0)
  return methods.start_point(settings, problem, key)
