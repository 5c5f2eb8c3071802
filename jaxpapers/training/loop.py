"""The loop of a training run: steps, numbers, checkpoints, and stopping."""

import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from jaxpapers.training import checkpoint as checkpoint_lib
from jaxpapers.training import preemption, throughput, writers
from jaxpapers.training import sharding as sharding_lib
from jaxpapers.training.state import TrainState

# Steps that may be under way before the loop waits for the oldest: enough to
# keep devices busy, few enough to notice a NaN soon.
_IN_FLIGHT = 4


class NonFiniteLossError(FloatingPointError):
  """The loss became NaN or infinite; says at which step."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Something to measure now and then during a run.

  Attributes:
    name: Split under which its numbers are written.
    function: Maps the state to a dictionary of floats or arrays. It must not
      keep the state: the next step takes its memory.
    every: It runs after step s when `s % every == offset % every`.
    offset: See `every`.
    at_start: Whether it runs before the first step of a new run, too.
    at_end: Whether it runs after the last step in any case.
  """

  name: str
  function: Callable[[TrainState], Mapping[str, Any]]
  every: int
  offset: int = 0
  at_start: bool = False
  at_end: bool = False

  def __post_init__(self):
    if self.every < 1:
      raise ValueError(f'every is {self.every}; expected 1 or more.')

  def due(self, step: int, last: bool) -> bool:
    """Whether it runs after this step."""
    if last and self.at_end:
      return True
    return step % self.every == self.offset % self.every


@dataclasses.dataclass(frozen=True)
class FitResult:
  """How a run ended.

  Attributes:
    state: The last state.
    step: Its step.
    reason: 'done', 'stopped' (by `stop_when`) or 'preempted' (by SIGTERM).
    message: What `stop_when` said, or where the checkpoint is.
  """

  state: TrainState
  step: int
  reason: str
  message: str = ''

  @property
  def finished(self) -> bool:
    """Whether there is nothing left to do; False after a SIGTERM."""
    return self.reason != 'preempted'


def fit(
  state: TrainState,
  train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]],
  batches: Iterable[Any],
  *,
  num_steps: int,
  workdir: str | os.PathLike | None = None,
  mesh: jax.sharding.Mesh | None = None,
  evaluations: Sequence[Evaluation] = (),
  stop_when: Callable[[int, str, Mapping[str, Any]], str | None] | None = None,
  log_every: int = 100,
  checkpoint_every: int | None = None,
  keep: int = 3,
  metric_writers: Sequence[writers.Writer] | None = None,
  tensorboard: bool = True,
  console: bool = True,
  examples_per_step: float | None = None,
  flops_per_step: float | None = None,
) -> FitResult:
  """Trains until `num_steps` updates have been made, whatever comes between.

  With a `workdir` the run can be killed at any time: the same call goes on from
  the newest checkpoint and makes the same numbers as if nothing had happened,
  bit for bit on the same hardware. For that the position of the data iterator
  is saved too: an iterator with `get_state` and `set_state` (grain's have them)
  is set, in every process to the state it had in the first; of any other the
  batches that were used up are drawn again.

  SIGTERM saves a checkpoint and returns; a loss that is NaN or infinite stops
  the run before a checkpoint of it is written. A population goes on while one
  of its members has a finite loss.

  Args:
    state: The state to begin with, from `create_state`. Its memory is used by
      the first step, or freed when the run resumes.
    train_step: What `make_train_step` made.
    batches: Trees of numpy arrays, this process's share of each batch.
    num_steps: Number of updates of the whole run, those of an interrupted one
      included.
    workdir: Folder for checkpoints and numbers, local or gs://. Without one
      nothing is saved.
    mesh: That of `train_step`.
    evaluations: What to measure, and when.
    stop_when: Called with step, split and numbers of every row that is written;
      a text that it returns ends the run for that reason. All processes must
      come to the same answer. When a run resumes, the rows before are shown to
      it again: it may remember the best of them, say.
    log_every: Steps between two rows of training numbers, which are means over
      these steps.
    checkpoint_every: Steps between two checkpoints; by default ten in a run.
      The last step is always saved.
    keep: How many checkpoints to keep.
    metric_writers: Where numbers go besides `<workdir>/metrics.jsonl` and
      `<workdir>/tensorboard`.
    tensorboard: Whether to write event files, where tensorboardX is installed.
    console: Whether to show a progress bar and lines of numbers.
    examples_per_step: Examples or tokens in a global batch, for the rate.
    flops_per_step: Floating-point operations of a step over all devices, for
      the utilisation; by default those of `estimate_flops`, where the device's
      peak is known.

  Returns:
    The last state and why the run ended.

  Raises:
    NonFiniteLossError: Names the step and the last good checkpoint.
    ValueError: If the data end too early, or a checkpoint does not fit.

  Example:
    >>> fit(state, step, batches, num_steps=1000)  # doctest: +SKIP
  """
  for name, value in (
    ('num_steps', num_steps),
    ('log_every', log_every),
    ('checkpoint_every', 1 if checkpoint_every is None else checkpoint_every),
  ):
    if value < 1:
      raise ValueError(f'{name} is {value}; expected 1 or more.')
  run = _Run(
    state,
    batches,
    num_steps,
    workdir,
    keep,
    stop_when,
    checkpoint_every or max(1, num_steps // 10),
    log_every,
  )
  with preemption.StopSignal() as stop:
    try:
      stopped = run.resume()
      if stopped is not None:
        return FitResult(run.state, run.step, 'stopped', stopped)
      run.open_writers(metric_writers, tensorboard, console)
      return run.train(
        train_step,
        mesh,
        evaluations,
        stop,
        throughput_of=lambda state, batch: throughput.Throughput(
          examples_per_step,
          _flops(flops_per_step, train_step, state, batch),
        ),
      )
    finally:
      run.close()


def _flops(given, train_step, state, batch) -> float | None:
  if given is not None or throughput.peak_flops() is None:
    return given
  if not hasattr(train_step, 'trace'):
    return None
  return throughput.estimate_flops(train_step, state, batch)


class _Run:
  """One call of `fit`."""

  def __init__(
    self,
    state,
    batches,
    num_steps,
    workdir,
    keep,
    stop_when,
    checkpoint_every,
    log_every,
  ):
    self.state, self.num_steps = state, num_steps
    self.batches = iter(batches)
    self.workdir = workdir and epath.Path(workdir).expanduser()
    self.stop_when = stop_when
    self.checkpoint_every, self.log_every = checkpoint_every, log_every
    self.checkpoints = None
    if self.workdir is not None:
      self.checkpoints = checkpoint_lib.Checkpoints(
        self.workdir / 'checkpoints', keep
      )
    self.step = _step_of(state)
    self.saved = None
    self.pending = collections.deque()
    self.window = []
    self.writers = []
    self.console = None

  # Beginning and end.

  def resume(self) -> str | None:
    """Goes on from the newest checkpoint; why not, if the run was stopped."""
    if self.checkpoints is None or self.checkpoints.latest() is None:
      return None
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      self.state,
    )
    # Two states may be more than the devices hold.
    for leaf in jax.tree.leaves(self.state):
      leaf.delete()
    self.state, position = self.checkpoints.restore(like)
    self.step = self.saved = _step_of(self.state)
    self.window = [
      {name: np.asarray(value) for name, value in row.items()}
      for row in position['window']
    ]
    if position['batches'] is not None and hasattr(self.batches, 'set_state'):
      self.batches.set_state(position['batches'])
    else:
      drawn = sum(1 for _ in itertools.islice(self.batches, self.step))
      if drawn < self.step:
        raise ValueError(
          f'batches ended after {drawn}; the run had used {self.step}.'
        )
    logging.info('Resumed from step %d of %s.', self.step, self.workdir)
    reason = None
    if self.stop_when is not None:
      for step, split, row in writers.read_rows(self.workdir):
        if step <= self.step:
          reason = self.stop_when(step, split, row) or reason
    return reason

  def open_writers(self, metric_writers, tensorboard, console) -> None:
    self.writers = [
      *writers.default_writers(
        self.workdir,
        -1 if self.saved is None else self.saved,
        tensorboard=tensorboard,
      ),
      *(metric_writers or ()),
    ]
    if console and jax.process_index() == 0:
      self.console = writers.Console(self.num_steps, self.step)
      if self.saved:
        self.console.say(f'Resumed from step {self.saved} in {self.workdir}.')
      self.writers.append(self.console)

  def close(self) -> None:
    for writer in self.writers:
      writer.close()
    if self.checkpoints is not None:
      self.checkpoints.close()

  # The walk.

  def train(self, train_step, mesh, evaluations, stop, throughput_of):
    rates = None
    if mesh is not None:
      _check_devices(self.state, mesh)
    if self.step == 0:
      for evaluation in evaluations:
        if evaluation.at_start:
          reason = self.evaluate(evaluation)
          if reason:
            return self.end('stopped', reason)
    while self.step < self.num_steps:
      batch = self.draw(stop)
      if batch is None:
        self.save()
        return self.end('preempted', self.interrupted())
      batch = sharding_lib.put_batch(batch, mesh)
      if rates is None:
        before = jax.tree.map(lambda x: x.sharding, self.state)
      self.state, metrics = train_step(self.state, batch)
      self.step += 1
      self.pending.append((self.step, metrics))
      if rates is None:
        # The first step compiles: it is part of no rate.
        self.drain(0)
        if mesh is not None:
          _check_shardings(before, self.state)
        rates = throughput_of(self.state, batch)
      else:
        rates.count()
        self.drain(_IN_FLIGHT)
      if self.console is not None:
        loss = self.window[-1]['loss'].mean() if self.window else None
        self.console.advance(self.step, loss)
      last = self.step == self.num_steps
      due = [e for e in evaluations if e.due(self.step, last)]
      saving = last or self.step % self.checkpoint_every == 0
      row = last or self.step % self.log_every == 0
      if row or due or saving:
        # Before the clock stops: these steps are among those it has counted.
        self.drain(0)
      reason = None
      if row:
        reason = self.write('train', _means(self.window) | rates.read())
        self.window.clear()
      rates.pause()
      for evaluation in due:
        reason = self.evaluate(evaluation) or reason
      preempted = stop.arrived(self.step) and not last
      if saving or reason or preempted:
        self.save()
      if reason:
        return self.end('stopped', reason)
      if preempted:
        return self.end('preempted', self.interrupted())
      rates.start()
    return self.end('done', '')

  def draw(self, stop):
    """The next batch; None if reading it failed because of SIGTERM."""
    try:
      return next(self.batches)
    except Exception as error:
      # A signal to the whole process group ends worker processes, too.
      if jax.process_count() == 1 and stop.arrived(self.step):
        return None
      if not isinstance(error, StopIteration):
        raise
      raise ValueError(
        f'batches ended after step {self.step}; num_steps is'
        f' {self.num_steps}. Repeat the data, or ask for fewer steps.'
      ) from None

  def drain(self, leave: int) -> None:
    """Fetches the numbers of all steps but the newest few; checks the loss."""
    while len(self.pending) > leave:
      step, metrics = self.pending.popleft()
      metrics = {k: np.asarray(v) for k, v in jax.device_get(metrics).items()}
      if not np.isfinite(metrics['loss']).any():
        loss = metrics['loss'].ravel()[0]
        raise NonFiniteLossError(self.not_finite(step, loss))
      self.window.append(metrics)

  def not_finite(self, step, loss) -> str:
    saved = (
      f'The last good checkpoint is step {self.saved} in'
      f' {self.checkpoints.folder}.'
      if self.saved is not None
      else 'There is no checkpoint before it.'
    )
    return (
      f'The loss is {loss} at step {step}. {saved} A lower learning rate,'
      ' gradient clipping or a look at the data of that step may help.'
    )

  def evaluate(self, evaluation):
    return self.write(evaluation.name, dict(evaluation.function(self.state)))

  def write(self, split, metrics):
    for writer in self.writers:
      writer.write(self.step, split, metrics)
    return self.stop_when and self.stop_when(self.step, split, metrics)

  def save(self) -> None:
    if self.checkpoints is None:
      return
    self.drain(0)
    # The loss was that of the parameters before the step.
    if not _any_finite(self.state):
      raise NonFiniteLossError(
        self.not_finite(self.step, 'finite, but the parameters are not')
      )
    position = {
      'batches': self.batches.get_state()
      if hasattr(self.batches, 'get_state')
      else None,
      # Steps since the last row, so that the next one is the same mean.
      'window': self.window,
    }
    # First: rows that are lost would not be written again after the checkpoint.
    for writer in self.writers:
      writer.flush()
    self.checkpoints.save(self.step, self.state, position)
    self.saved = self.step

  def interrupted(self) -> str:
    if self.checkpoints is None:
      return f'SIGTERM at step {self.step}; without a workdir nothing is saved.'
    self.checkpoints.wait()
    return (
      f'SIGTERM: saved step {self.step} of {self.num_steps} in'
      f' {self.checkpoints.folder}. The same command goes on from there.'
    )

  def end(self, reason, message) -> FitResult:
    if self.console is not None and message:
      self.console.say(message)
    return FitResult(self.state, self.step, reason, message)


def _step_of(state: TrainState) -> int:
  """The step of a state, of a population that of its first member."""
  # Of a population over several processes each sees its own members.
  return int(np.ravel(state.step.addressable_shards[0].data)[0])


def _check_devices(state: TrainState, mesh: jax.sharding.Mesh) -> None:
  devices = set(mesh.devices.flat)
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if leaf.sharding.device_set != devices:
      raise ValueError(
        f'{sharding_lib.path_name(path)} of the state lies on'
        f' {len(leaf.sharding.device_set)} device(s), the mesh has'
        f' {len(devices)}. Give create_state, make_train_step and fit the same'
        ' mesh.'
      )


def _check_shardings(before, state: TrainState) -> None:
  """A step that moves the state would be compiled again, and may not fit."""
  for (path, old), leaf in zip(
    jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(state)
  ):
    if not old.is_equivalent_to(leaf.sharding, leaf.ndim):
      raise ValueError(
        f'{sharding_lib.path_name(path)} lay on the mesh as {old.spec}, after'
        f' the first step as {leaf.sharding.spec}. Give create_state and'
        ' make_train_step the same rules.'
      )


def _any_finite(state: TrainState) -> bool:
  """Whether all parameters are finite, in a population those of any member."""
  axes = jnp.ndim(state.step)
  return bool(jax.device_get(_any_member_finite(state.params, axes)))


@functools.partial(jax.jit, static_argnums=1)
def _any_member_finite(params, axes: int):
  finite = jnp.ones((1,) * axes, bool)
  for leaf in jax.tree.leaves(params):
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      finite &= jnp.isfinite(leaf).all(tuple(range(axes, leaf.ndim)))
  return finite.any()


def _means(rows: list[dict[str, np.ndarray]]) -> dict[str, Any]:
  """Means over steps; counts are added up."""
  if not rows:
    return {}
  return {
    name: np.sum([r[name] for r in rows], 0, dtype=np.float64)
    if name == 'count'
    else np.mean([r[name] for r in rows], 0, dtype=np.float64)
    for name in rows[0]
  }
