"""The paper's optimization methods behind one ask-and-tell interface.

A method is a start, a map from its variables to the objective, and an optimizer
that consumes one evaluation at a time. `advance` evaluates and updates in a
compiled loop that runs a bounded number of evaluations, so that the host can
show progress, stop at numbers that are not finite, and take pictures. Problems
enter it as arguments: one compiled program serves all tasks of a size.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpapers.structopt import (
  density,
  domain,
  lbfgs,
  models,
  moving_asymptotes,
  objective,
  oc,
)

METHODS = ('cnn-lbfgs', 'pixel-lbfgs', 'mma', 'oc', 'adam', 'pixel-adam')

# Evaluations in one call of `advance`, the length of its record.
CHUNK = 25
# Violation of the volume fraction up to which a design counts as feasible.
_FEASIBLE = 1e-6
# Relative residual up to which an evaluation counts; see `fem.compliance`.
_ACCEPT = 1e-4


@dataclasses.dataclass(frozen=True)
class Settings:
  """What selects a compiled program. Hashable; see `runner.optimize`.

  Attributes:
    method: One of `METHODS`.
    nely: Elements along y.
    nelx: Elements along x.
    cnn: Arguments of `models.CNNDesign`, as sorted pairs.
    physics: Arguments of `objective.design_compliance`, as sorted pairs.
    projected: Whether there is a Heaviside projection.
    learning_rate: Step size of Adam.
  """

  method: str
  nely: int
  nelx: int
  cnn: tuple[tuple[str, Any], ...] = ()
  physics: tuple[tuple[str, Any], ...] = ()
  projected: bool = False
  learning_rate: float = 1e-2

  @property
  def network(self) -> bool:
    """Whether the variables are the weights of the CNN."""
    return self.method in ('cnn-lbfgs', 'adam')

  @property
  def densities(self) -> bool:
    """Whether the variables are densities under a volume constraint."""
    return self.method in ('mma', 'oc')

  @property
  def filter_radius(self) -> float:
    """Radius of the cone filter."""
    return dict(self.physics).get('filter_radius', 2.0)

  def design(self) -> models.CNNDesign:
    """The network."""
    return models.CNNDesign(nely=self.nely, nelx=self.nelx, **dict(self.cnn))


class Run(NamedTuple):
  """State of a run.

  Attributes:
    optimizer: State of the method.
    evaluations: Evaluations done, int32.
    status: A status of `lbfgs`; `lbfgs.RUNNING` while there is work to do.
    loss: Loss of the last evaluation.
    design: Physical densities of the last evaluation, float64 [nely, nelx].
    best_loss: Lowest loss.
    best_design: Its physical densities.
    best_feasible_loss: Lowest loss of a feasible evaluation.
    best_feasible_design: Its physical densities.
  """

  optimizer: Any
  evaluations: jax.Array
  status: jax.Array
  loss: jax.Array
  design: jax.Array
  best_loss: jax.Array
  best_design: jax.Array
  best_feasible_loss: jax.Array
  best_feasible_design: jax.Array


class Record(NamedTuple):
  """What one call of `advance` evaluated.

  Attributes:
    losses: Loss of each evaluation, NaN beyond the last; float64 [CHUNK].
    feasible: Whether its volume was allowed, bool [CHUNK].
  """

  losses: jax.Array
  feasible: jax.Array


class _OCState(NamedTuple):
  """Optimality criteria: the densities to evaluate next."""

  trial: jax.Array


class _AdamState(NamedTuple):
  """Adam: the parameters to evaluate next and the moments."""

  trial: Any
  moments: Any


@functools.partial(jax.jit, static_argnums=0)
def start_point(
  settings: Settings, problem: domain.Problem, key: jax.Array | None
) -> Any:
  """The variables at which a run starts.

  Args:
    settings: Selects the method.
    problem: The task.
    key: Typed key that initialises the network, whose logits also start the
      methods without a network; None starts those from a constant.

  Returns:
    Weights of the network as one vector, logits, or densities.

  Raises:
    ValueError: The network does not fit the size of the problem.
  """
  if key is None:
    # The paper starts the logits, too, at the volume fraction.
    return jnp.asarray(problem.volume_fraction * problem.mask, jnp.float64)
  weights = settings.design().init(key)
  if settings.network:
    return ravel(weights)
  logits = settings.design().apply(weights).astype(jnp.float64)
  if not settings.densities:
    return logits
  return density.volume_sigmoid(logits, problem.volume_fraction, problem.mask)


def ravel(weights: Any) -> jax.Array:
  """The weights as one vector: optimizers then compile three times faster."""
  leaves = jax.tree.leaves(weights)
  dtype = jnp.result_type(*leaves)
  return jnp.concatenate([leaf.astype(dtype).ravel() for leaf in leaves])


def unravel(settings: Settings, vector: jax.Array) -> Any:
  """The variables of the network from the vector that `ravel` made."""
  shapes = jax.eval_shape(settings.design().init, jax.random.key(0))
  leaves, tree = jax.tree.flatten(shapes)
  ends = itertools.accumulate(leaf.size for leaf in leaves)
  return jax.tree.unflatten(
    tree,
    [
      vector[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype)
      for leaf, end in zip(leaves, ends, strict=True)
    ],
  )


def begin(settings: Settings, start: Any) -> Run:
  """The state before the first evaluation.

  Args:
    settings: Selects the method.
    start: Variables from `start_point`, or any of that structure.

  Returns:
    The state that `advance` takes.
  """
  field = jnp.zeros((settings.nely, settings.nelx), jnp.float64)
  infinite = jnp.full((), jnp.inf, jnp.float64)
  run = Run(
    optimizer=_init(settings, start),
    evaluations=jnp.zeros((), jnp.int32),
    status=jnp.full((), lbfgs.RUNNING, jnp.int32),
    loss=infinite,
    design=field,
    best_loss=infinite,
    best_design=field,
    best_feasible_loss=infinite,
    best_feasible_design=field,
  )
  # Buffers that are shared, as most zeros here, cannot be donated.
  return jax.tree.map(jnp.copy, run)


def _init(settings: Settings, start: Any) -> Any:
  """The optimizer's first state."""
  if settings.method.endswith('lbfgs'):
    return lbfgs.lbfgs().init(start)
  if settings.method == 'mma':
    return _mma(settings).init(start)
  if settings.method == 'oc':
    return _OCState(trial=start)
  return _AdamState(start, _adam(settings).init(start))


def _mma(settings: Settings) -> moving_asymptotes.MMA:
  return moving_asymptotes.mma(0.0, 1.0, shape=(settings.nely, settings.nelx))


def _adam(settings: Settings) -> optax.GradientTransformation:
  return optax.adam(settings.learning_rate)


def evaluate(
  settings: Settings,
  problem: domain.Problem,
  projection: Any,
  variables: Any,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
  """Objective, physical densities and gradient at some variables.

  Args:
    settings: Selects the method and the physics.
    problem: The task.
    projection: (beta, eta), used if `settings.projected`.
    variables: Weights as a vector, logits or densities.

  Returns:
    `(loss, densities), gradient`.
  """

  def function(variables):
    z = variables
    if settings.network:
      z = settings.design().apply(unravel(settings, variables))
    physics = dict(settings.physics)
    # A trial may leave a load on an island. Its huge compliance is what a line
    # search needs in order to turn back.
    physics.setdefault('accept', max(_ACCEPT, physics.get('tol', 0.0)))
    return objective.design_compliance(
      z,
      problem,
      constrain_volume=not settings.densities,
      projection=projection if settings.projected else None,
      **physics,
    )

  return jax.value_and_grad(function, has_aux=True)(variables)


def _volume(settings, problem, projection):
  """The mean physical density over the mask, as a function of densities."""

  def volume(x):
    physical = density.physical_density(
      x,
      problem,
      constrain_volume=False,
      filter_radius=settings.filter_radius,
      projection=projection if settings.projected else None,
    )
    return physical.sum() / problem.mask.sum()

  return volume


def _tell(settings, problem, projection, state, loss, grad):
  """Hands one evaluation to the optimizer.

  Returns:
    The optimizer's next state, its status, and the excess of the volume.
  """
  running = jnp.full((), lbfgs.RUNNING, jnp.int32)
  none = jnp.zeros((), jnp.float64)
  if settings.method.endswith('lbfgs'):
    state = lbfgs.lbfgs().update(state, loss, grad)
    return state, state.status, none
  if not settings.densities:
    updates, moments = _adam(settings).update(grad, state.moments)
    trial = optax.apply_updates(state.trial, updates)
    return _AdamState(trial, moments), running, none
  volume = _volume(settings, problem, projection)
  used, slope = jax.value_and_grad(volume)(state.trial)
  excess = used - problem.volume_fraction
  if settings.method == 'mma':
    state = _mma(settings).update(state, loss, grad, excess, slope)
    return state, running, excess
  mask = problem.mask
  if problem.solid is not None:
    mask = mask * (1 - problem.solid)
  elif not settings.projected:
    weights = slope  # the volume is linear in the densities
    volume = functools.partial(jnp.vdot, weights)
  trial = oc.optimality_criteria(
    state.trial, grad, slope, problem.volume_fraction, mask, volume=volume
  )
  return _OCState(trial), running, excess


def _advance(
  run: Run,
  problem: domain.Problem,
  projection: Any,
  limit: jax.Array,
  settings: Settings,
) -> tuple[Run, Record]:
  first = run.evaluations
  record = Record(
    losses=jnp.full((CHUNK,), jnp.nan, jnp.float64),
    feasible=jnp.zeros((CHUNK,), bool),
  )

  def unfinished(carry):
    run, _ = carry
    room = jnp.minimum(limit, first + CHUNK)
    return (run.status == lbfgs.RUNNING) & (run.evaluations < room)

  def body(carry):
    run, record = carry
    (loss, design), grad = evaluate(
      settings, problem, projection, run.optimizer.trial
    )
    optimizer, status, excess = _tell(
      settings, problem, projection, run.optimizer, loss, grad
    )
    feasible = excess <= _FEASIBLE
    better = loss < run.best_loss
    allowed = feasible & (loss < run.best_feasible_loss)
    index = run.evaluations - first
    record = Record(
      losses=record.losses.at[index].set(loss),
      feasible=record.feasible.at[index].set(feasible),
    )
    run = Run(
      optimizer=optimizer,
      evaluations=run.evaluations + 1,
      status=jnp.where(jnp.isfinite(loss), status, lbfgs.NOT_FINITE),
      loss=loss,
      design=design,
      best_loss=jnp.where(better, loss, run.best_loss),
      best_design=jnp.where(better, design, run.best_design),
      best_feasible_loss=jnp.where(allowed, loss, run.best_feasible_loss),
      best_feasible_design=jnp.where(allowed, design, run.best_feasible_design),
    )
    return run, record

  return jax.lax.while_loop(unfinished, body, (run, record))


@functools.partial(jax.jit, static_argnames='settings', donate_argnums=0)
def advance(
  run: Run,
  problem: domain.Problem,
  projection: Any,
  limit: jax.Array,
  *,
  settings: Settings,
) -> tuple[Run, Record]:
  """Evaluates and updates, at most `CHUNK` times.

  Args:
    run: State; donated.
    problem: The task. Its static fields select the program, so strip its name.
    projection: (beta, eta) of the Heaviside projection, float64 scalars.
    limit: Number of evaluations at which to stop, int32.
    settings: Selects method and physics.

  Returns:
    The next state and the record of the evaluations made.
  """
  return _advance(run, problem, projection, limit, settings)


@functools.partial(
  jax.jit, static_argnames=('settings', 'mesh'), donate_argnums=0
)
def advance_batch(
  runs: Run,
  problems: domain.Problem,
  projection: Any,
  limit: jax.Array,
  *,
  settings: Settings,
  mesh: jax.sharding.Mesh,
) -> tuple[Run, Record]:
  """`advance` for stacked runs and problems, split over the mesh.

  Each device loops on its own until its share is done: no device waits for
  another's line search or linear solver.

  Args:
    runs: Stacked states, their number a multiple of the mesh's size; donated.
    problems: Stacked problems.
    projection: As in `advance`, shared.
    limit: As in `advance`, shared.
    settings: Selects method and physics.
    mesh: A mesh of one axis.

  Returns:
    Stacked states and records.
  """
  (axis,) = mesh.axis_names
  split, whole = jax.P(axis), jax.P()

  def share(runs, problems, projection, limit):
    return jax.vmap(
      lambda run, problem: _advance(run, problem, projection, limit, settings)
    )(runs, problems)

  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(split, split, whole, whole),
    out_specs=split,
    check_vma=False,
  )(runs, problems, projection, limit)


@functools.partial(jax.jit, static_argnames='settings')
def evaluate_once(
  variables: Any,
  problem: domain.Problem,
  projection: Any,
  *,
  settings: Settings,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
  """`evaluate`, compiled, for optimizers on the host."""
  return evaluate(settings, problem, projection, variables)
