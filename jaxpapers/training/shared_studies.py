"""Studies of optuna that any number of processes and machines work on.

What a search or a sweep has done lies in a database or a file that all of them
see, and any of them may be killed at any moment.
"""

import os
import pathlib
import socket
import uuid
from collections.abc import Callable, Mapping
from typing import Any

OWNER, _TICKET = 'owner', 'ticket'


def open_storage(storage: str | None) -> Any:
  """What `optuna.create_study` takes as storage.

  Args:
    storage: URL of a database, 'sqlite:///search.db' or 'mysql://...'; or a
      file, 'search.journal', on a file system that the workers share; None for
      the memory of this process.

  Returns:
    A storage, or what optuna makes one of.
  """
  if storage is None or '://' in storage:
    return storage
  from optuna.storages import JournalStorage
  from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

  path = pathlib.Path(storage.removeprefix('journal:')).expanduser()
  path.parent.mkdir(parents=True, exist_ok=True)
  # A lock that network file systems have, too.
  lock = JournalFileOpenLock(str(path))
  return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def ask(study: Any) -> Any:
  """A new trial that says from its first moment whose it is.

  `study.ask()` and a note of the owner behind it are two steps: of a worker
  that is killed between them remains a trial that runs for ever and is
  nobody's.

  Args:
    study: A study of optuna.

  Returns:
    A running trial; its attribute `OWNER` is what `this_process` says.
  """
  import optuna

  states, ticket = optuna.trial.TrialState, uuid.uuid4().hex
  study.add_trial(
    optuna.trial.create_trial(
      state=states.RUNNING,
      user_attrs={OWNER: this_process(), _TICKET: ticket},
    )
  )
  for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
    if trial.user_attrs.get(_TICKET) == ticket:
      return optuna.trial.Trial(study, trial._trial_id)
  raise RuntimeError(
    f'the study {study.study_name!r} lost a trial that was just added: its'
    ' storage does not show what was written to it.'
  )


def void_dead(
  study: Any,
  everybody: bool = False,
  values: Callable[[Any], Any] = lambda trial: None,
) -> int:
  """Fails running trials of workers that died.

  Args:
    study: A study of optuna, whose trials come from `ask`.
    everybody: Also those of other machines, of which nothing is known here: all
      that run.
    values: Maps a trial to its values, if its worker had written them down and
      died before it ended the trial; such a trial is ended with them.

  Returns:
    How many trials were ended, here or by another worker just now.
  """
  import optuna

  states, voided = optuna.trial.TrialState, 0
  for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
    if everybody or is_dead(trial.user_attrs.get(OWNER)):
      known = values(trial)
      state = states.FAIL if known is None else states.COMPLETE
      try:
        study.tell(trial.number, known, state, skip_if_finished=True)
      except optuna.exceptions.UpdateFinishedTrialError:
        pass  # Another worker was faster, between two steps of `tell`.
      voided += 1
  return voided


def given_sampler(given: Mapping[str, Any]) -> Any:
  """A sampler of optuna that takes the values it is given.

  Args:
    given: Parameter -> value; read when a trial asks.

  Returns:
    The sampler.
  """
  import optuna

  class Given(optuna.samplers.BaseSampler):
    def infer_relative_search_space(self, study, trial):
      return {}

    def sample_relative(self, study, trial, search_space):
      return {}

    def sample_independent(self, study, trial, param_name, distribution):
      return given[param_name]

  return Given()


def this_process() -> dict[str, Any]:
  """What tells this process from all others, for `is_dead`."""
  pid = os.getpid()
  return {'host': socket.gethostname(), 'pid': pid, 'started': _look(pid)[1]}


def is_dead(owner: Mapping[str, Any] | None) -> bool:
  """Whether a process of this machine has ended.

  Args:
    owner: What `this_process` said in it.

  Returns:
    False for other machines, of which nothing is known here.
  """
  if owner is None or owner['host'] != socket.gethostname():
    return False
  try:
    os.kill(owner['pid'], 0)
  except ProcessLookupError:
    return True
  except PermissionError:  # It is somebody else's.
    pass
  state, started = _look(owner['pid'])
  if state in ('Z', 'X'):  # Killed, and its parent has not yet asked for it.
    return True
  # Its number may have been given to another process; in a container that is
  # started again, programs often have the numbers they had before.
  then = owner.get('started')
  return None not in (then, started) and then != started


def _look(pid: int) -> tuple[str | None, str | None]:
  """State of a process, and when it began, as Linux counts.

  None where it cannot be asked: other systems, or somebody else's processes.
  """
  try:
    content = pathlib.Path(f'/proc/{pid}/stat').read_bytes()
  except OSError:
    return None, None
  # Behind the program's name, in parentheses, in which there may be anything.
  fields = content.rpartition(b')')[2].split()
  return fields[0].decode(), fields[19].decode()
