"""The record of an optimization run, how it is gathered and stored."""

import dataclasses
import io
import json
import uuid
from typing import Any, NamedTuple

import numpy as np

from jaxpapers.structopt import fem, lbfgs

_ARRAYS = ('best_design', 'best_feasible_design', 'final_design', 'frames')


@dataclasses.dataclass(frozen=True)
class History:
  """What an optimization run did and found.

  Attributes:
    problem: Name of the task.
    method: Name of the method.
    losses: Compliance at every evaluation, in the order of evaluation (line
      searches and inner iterations included); float64 [evaluations].
    feasible: Whether the volume constraint held at each evaluation, to 1e-6.
    best_design: Physical densities of the lowest loss, [nely, nelx].
    best_feasible_design: The same among the feasible evaluations. MMA may
      evaluate points of too large a volume.
    final_design: Physical densities of the last evaluation.
    steps: Index up to which evaluations were allowed.
    seconds: Wall time, compilation included; for a batch that of all of it.
    converged: Whether the method stopped by itself before `steps`.
    message: Why it stopped.
    frames: Best designs on the way, [frames, nely, nelx]; empty unless
      `save_every` was given.
    frame_evaluations: Number of evaluations at which each frame was taken.
    metadata: Whatever the caller wants to keep along, in JSON types.
  """

  problem: str
  method: str
  losses: np.ndarray
  feasible: np.ndarray
  best_design: np.ndarray
  best_feasible_design: np.ndarray
  final_design: np.ndarray
  steps: int
  seconds: float
  converged: bool
  message: str
  frames: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros((0, 0, 0), np.float32)
  )
  frame_evaluations: tuple[int, ...] = ()
  metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def evaluations(self) -> int:
    """Number of evaluations recorded, at most `steps + 1`."""
    return len(self.losses)

  @property
  def evals(self) -> int:
    """Alias of `evaluations`."""
    return self.evaluations

  @property
  def best_evaluation(self) -> int:
    """Index of the lowest loss."""
    return int(np.argmin(self.losses))

  @property
  def best_loss(self) -> float:
    """Lowest loss: the value that the paper reports for a run."""
    return float(np.min(self.losses))

  @property
  def best_feasible_loss(self) -> float:
    """Lowest loss among the feasible evaluations; infinite without any."""
    return float(np.min(self.losses[self.feasible], initial=np.inf))

  @property
  def cummin(self) -> np.ndarray:
    """Running minimum of the losses."""
    return np.minimum.accumulate(self.losses)

  def padded(self, steps: int | None = None) -> np.ndarray:
    """Running minimum at evaluations 0 to `steps`, the paper's curves.

    Args:
      steps: Last index; the run's own by default. A run that stopped earlier is
        filled with its last value.

    Returns:
      float64 [steps + 1].
    """
    steps = self.steps if steps is None else steps
    curve = self.cummin[: steps + 1]
    return np.pad(curve, (0, steps + 1 - len(curve)), mode='edge')

  def save(self, path: Any) -> None:
    """Writes `<path>.npz` and then `<path>.json`, each by renaming.

    The JSON file comes last: where it exists, the record is complete.

    Args:
      path: Stem of both names, local or on any file system that etils.epath
        knows, such as gs://. Its folder is created.
    """
    path = _epath(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(
      buffer,
      losses=self.losses,
      feasible=self.feasible,
      **{name: getattr(self, name) for name in _ARRAYS},
    )
    _write(path, '.npz', buffer.getvalue())
    record = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in _ARRAYS + ('losses', 'feasible')
    }
    record |= {
      'evaluations': self.evaluations,
      'best_loss': self.best_loss,
      'best_feasible_loss': (
        self.best_feasible_loss if self.feasible.any() else None
      ),
      'losses': self.losses.tolist(),
    }
    text = json.dumps(record, indent=1)
    _write(path, '.json', text.encode())

  @classmethod
  def load(cls, path: Any) -> 'History':
    """Reads what `save` wrote.

    Args:
      path: Stem of the two names.

    Returns:
      An equal History.

    Raises:
      FileNotFoundError: The record is missing or incomplete.
    """
    path = _epath(path)
    record = json.loads(_with_suffix(path, '.json').read_text())
    with np.load(io.BytesIO(_with_suffix(path, '.npz').read_bytes())) as arrays:
      record |= {name: arrays[name] for name in arrays.files}
    record['frame_evaluations'] = tuple(record['frame_evaluations'])
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: record[key] for key in record if key in names})


def _epath(path: Any):
  from etils import epath  # imports slowly

  return epath.Path(path)


def _with_suffix(path, suffix: str):
  # Not Path.with_suffix: task names contain dots, as in 'l_shape_0.4'.
  return path.parent / (path.name + suffix)


def _write(path, suffix: str, content: bytes) -> None:
  """Writes a file under a temporary name and renames it."""
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex}{suffix}'
  temporary.write_bytes(content)
  temporary.replace(_with_suffix(path, suffix))


class Progress(NamedTuple):
  """What a callback is told.

  Attributes:
    problem: Name of the task.
    method: Name of the method.
    evaluations: Evaluations done.
    steps: Index of the last evaluation that is allowed.
    loss: Loss of the last evaluation.
    best_loss: Lowest loss.
  """

  problem: str
  method: str
  evaluations: int
  steps: int
  loss: float
  best_loss: float


class Log:
  """Gathers the record of one run on the host."""

  def __init__(self, problem: str, method: str, steps: int):
    self.problem, self.method, self.steps = problem, method, steps
    self.losses: list[float] = []
    self.feasible: list[bool] = []
    self.frames: list[np.ndarray] = []
    self.frame_evaluations: list[int] = []
    self.status = lbfgs.RUNNING

  @property
  def evaluations(self) -> int:
    return len(self.losses)

  def extend(self, record, evaluations: int, status: int) -> None:
    """Takes over the evaluations that are new; stops at a bad number."""
    new = evaluations - self.evaluations
    self.losses += np.asarray(record.losses)[:new].tolist()
    self.feasible += np.asarray(record.feasible)[:new].tolist()
    self.status = status
    if status == lbfgs.NOT_FINITE:
      raise fem.SolveError(
        f'{self.method} on problem {self.problem!r}, evaluation'
        f' {self.evaluations - 1}: the compliance is {self.losses[-1]} or its'
        ' gradient is not finite. The linear solver did not converge, or the'
        " design has become singular; try solver='direct', a larger emin, or"
        ' another start.'
      )

  def frame(self, design) -> None:
    self.frames.append(np.asarray(design, np.float32))
    self.frame_evaluations.append(self.evaluations)

  def progress(self, best_loss: float) -> Progress:
    return Progress(
      problem=self.problem,
      method=self.method,
      evaluations=self.evaluations,
      steps=self.steps,
      loss=self.losses[-1],
      best_loss=best_loss,
    )

  def history(self, run: Any, seconds: float) -> History:
    nely, nelx = run.design.shape
    return History(
      problem=self.problem,
      method=self.method,
      losses=np.array(self.losses, np.float64),
      feasible=np.array(self.feasible, bool),
      best_design=np.asarray(run.best_design),
      best_feasible_design=np.asarray(run.best_feasible_design),
      final_design=np.asarray(run.design),
      steps=self.steps,
      seconds=seconds,
      converged=self.status == lbfgs.CONVERGED,
      message=lbfgs.MESSAGES[self.status],
      frames=np.array(self.frames, np.float32).reshape(-1, nely, nelx),
      frame_evaluations=tuple(self.frame_evaluations),
    )
