"""The record of a search: in memory, or in a folder that workers share."""

import dataclasses
import json
import math
import os
import pathlib
import socket
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from jaxpapers.training.shared_studies import is_dead, this_process


@dataclasses.dataclass(frozen=True)
class Trial:
  """One evaluated architecture.

  Attributes:
    index: Its number in the search, from 0.
    tokens: int32 `[blocks, 6]`.
    macs: Its multiply-adds.
    accuracy: What the evaluation returned; may be NaN.
    score: The reward; minus infinity where there is none.
    info: What the algorithm wants to know later.
  """

  index: int
  tokens: np.ndarray
  macs: int
  accuracy: float
  score: float
  info: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """As JSON has it; null for numbers that JSON has not."""

    def finite(x):
      return x if math.isfinite(x) else None

    return {
      'index': self.index,
      'tokens': np.asarray(self.tokens).tolist(),
      'macs': int(self.macs),
      'accuracy': finite(self.accuracy),
      'reward': finite(self.score),
      'info': dict(self.info),
    }

  @classmethod
  def from_json(cls, row: Mapping[str, Any]) -> 'Trial':
    """The inverse of `to_json`."""
    accuracy, score = row['accuracy'], row['reward']
    return cls(
      int(row['index']),
      np.array(row['tokens'], np.int32),
      int(row['macs']),
      math.nan if accuracy is None else float(accuracy),
      -math.inf if score is None else float(score),
      dict(row['info']),
    )


class History(Protocol):
  """Where trials are recorded."""

  def open(self, settings: Mapping[str, Any]) -> None:
    """Begins, or goes on with a record of the same settings."""

  def claim(self, budget: int) -> int | None:
    """A number below `budget` that nobody else gets; None if all are taken."""

  def record(self, trial: Trial) -> None:
    """Keeps a finished trial."""

  def finished(self) -> list[Trial]:
    """All finished trials, by index."""


class MemoryHistory:
  """A record that ends with the process."""

  def __init__(self):
    """Makes an empty record."""
    self._trials: dict[int, Trial] = {}
    self._claimed = 0

  def open(self, settings):
    """Does nothing."""
    del settings

  def claim(self, budget):
    """The next number."""
    if self._claimed >= budget:
      return None
    self._claimed += 1
    return self._claimed - 1

  def record(self, trial):
    """Keeps a finished trial."""
    self._trials[trial.index] = trial

  def finished(self):
    """All finished trials, by index."""
    # Recorded in the order of indices: they need not be sorted.
    return list(self._trials.values())


class FolderHistory:
  """A record in a folder, which workers on several machines may share.

      search.json               the settings
      trials/WORKER.jsonl       trials that this worker finished, one a line
      claims/000012             number 12 is taken, and by whom

  A number is claimed by linking its file, which only one worker can. A claim
  of a process of this machine that is no longer there is void; those of other
  machines that died become void with `retry`.
  """

  def __init__(self, folder: str | os.PathLike, *, retry: bool = False):
    """Opens a record.

    Args:
      folder: Is made if need be.
      retry: Whether claims of other machines without a result are void. Only
        when no other machine is at work.

    Raises:
      ValueError: If the folder is a URL: objects there cannot be claimed.
    """
    if '://' in str(folder):
      raise ValueError(
        f'{folder} is a URL; expected a folder of a file system. Workers'
        ' without one share a database of optuna.'
      )
    self._folder = pathlib.Path(folder).expanduser()
    self._retry = retry
    name = f'{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}'
    self._own = self._folder / 'trials' / f'{name}.jsonl'
    self._ticket = self._folder / 'claims' / f'worker-{name}'
    self._offsets: dict[pathlib.Path, int] = {}
    self._trials: dict[int, Trial] = {}
    self._next = 0  # Below it all numbers are taken by somebody alive.

  def open(self, settings):
    """Begins, or goes on with a record of the same settings.

    Args:
      settings: What the search is, as JSON has it.

    Raises:
      ValueError: If the folder holds a search of other settings.
    """
    for name in ('trials', 'claims'):
      (self._folder / name).mkdir(parents=True, exist_ok=True)
    path = self._folder / 'search.json'
    text = json.dumps(settings, indent=2, sort_keys=True) + '\n'
    if not path.exists():
      temporary = path.with_name(f'search.json.{uuid.uuid4().hex}.partial')
      temporary.write_text(text)
      try:
        os.link(temporary, path)  # Fails if somebody else was faster.
      except FileExistsError:
        pass
      finally:
        temporary.unlink()
    check_settings(json.loads(path.read_text()), json.loads(text), self._folder)
    self._ticket.write_text(json.dumps(this_process()))
    self._void_claims(self._retry)

  def claim(self, budget):
    """A number that nobody else gets.

    Args:
      budget: Below which.

    Returns:
      The number; None if all are taken.
    """
    while True:
      if self._next >= budget:
        # Somebody may have died in the meantime.
        if not self._void_claims(False):
          return None
        self._next = 0
        continue
      index, self._next = self._next, self._next + 1
      try:
        # A link appears with its content, and only if there is none.
        os.link(self._ticket, self._claim_path(index))
        return index
      except FileExistsError:
        continue

  def record(self, trial):
    """Keeps a finished trial."""
    with open(self._own, 'a', encoding='utf-8') as file:
      file.write(json.dumps(trial.to_json()) + '\n')
      file.flush()
      os.fsync(file.fileno())

  def finished(self):
    """All finished trials of all workers, by index."""
    before = len(self._trials)
    for path in sorted((self._folder / 'trials').glob('*.jsonl')):
      with open(path, 'rb') as file:
        file.seek(self._offsets.get(path, 0))
        content = file.read()
      # Half a line is being written, or was when its writer was killed.
      complete = content[: content.rfind(b'\n') + 1]
      self._offsets[path] = self._offsets.get(path, 0) + len(complete)
      for line in complete.splitlines():
        trial = Trial.from_json(json.loads(line))
        # The first one counts if a claim was void and its worker was not dead.
        self._trials.setdefault(trial.index, trial)
    if len(self._trials) > before:
      self._trials = dict(sorted(self._trials.items()))
    return list(self._trials.values())

  def _claim_path(self, index: int) -> pathlib.Path:
    return self._folder / 'claims' / f'{index:06d}'

  def _void_claims(self, everybody: bool) -> int:
    """Removes claims of workers that died before they had a result."""
    voided = 0
    done = {trial.index for trial in self.finished()}
    for path in sorted((self._folder / 'claims').glob('[0-9]*')):
      if not path.name.isdigit() or int(path.name) in done:
        continue
      try:
        owner = json.loads(path.read_text())
      except FileNotFoundError:
        continue
      if everybody or is_dead(owner):
        # Only one of several workers that find it can rename it.
        try:
          gone = path.with_name(f'void-{path.name}-{uuid.uuid4().hex[:6]}')
          os.rename(path, gone)
          gone.unlink()
          voided += 1
        except FileNotFoundError:
          pass
    return voided


def check_settings(before: Any, now: Any, where: Any) -> None:
  """Refuses to go on with the record of another search.

  Args:
    before: Settings in the record.
    now: Settings of this search.
    where: The record, for the message.

  Raises:
    ValueError: If they differ; names one that does.
  """
  for name in sorted(set(before) | set(now)):
    old, new = before.get(name), now.get(name)
    if isinstance(old, dict) and isinstance(new, dict):
      check_settings(old, new, where)
    elif old != new:
      raise ValueError(
        f'{where} holds another search: {name} was {old!r} there and is'
        f' {new!r} here. Choose another place, or remove that one.'
      )
