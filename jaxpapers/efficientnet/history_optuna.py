"""The record of a search in a storage of optuna, which workers share."""

import json
from typing import Any

from jaxpapers.efficientnet.history import Trial, check_settings
from jaxpapers.efficientnet.search_space import DIMENSIONS, OPTIONS
from jaxpapers.training import shared_studies


class OptunaHistory:
  """A study of optuna with two objectives, accuracy and multiply-adds.

  Any tool of optuna can read it: tokens are categorical parameters, `b3_kernel`
  for example. The numbers of trials, which the storage gives out once, are
  those of the search.
  """

  def __init__(
    self, storage: str, name: str = 'search', *, retry: bool = False
  ):
    """Opens a record.

    Args:
      storage: URL of a database, 'sqlite:///search.db', or a journal file on a
        file system that the workers share.
      name: Of the study.
      retry: Whether trials without a result, of other machines that died, are
        run again. Only when no other worker is running. Those of processes of
        this machine that are no longer there always are.

    Raises:
      ImportError: If optuna is missing.
    """
    try:
      import optuna
    except ImportError as error:
      raise ImportError(
        'A search that shares a storage needs optuna: pip install'
        " 'jaxpapers[efficientnet]'."
      ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    self._optuna = optuna
    self._storage, self._name, self._retry = storage, name, retry
    self._given: dict[str, Any] = {}
    self._open: dict[int, Any] = {}
    self._trials: dict[int, Trial] = {}
    self._seen: set[int] = set()
    self._study: Any = None

  def open(self, settings):
    """Begins, or goes on with a study of the same settings.

    Args:
      settings: What the search is, as JSON has it.

    Raises:
      ValueError: If the study is a search of other settings.
    """
    optuna = self._optuna
    self._study = optuna.create_study(
      storage=shared_studies.open_storage(self._storage),
      study_name=self._name,
      sampler=shared_studies.given_sampler(self._given),
      directions=['maximize', 'minimize'],
      load_if_exists=True,
    )
    text = json.dumps(settings, sort_keys=True)
    # Whoever is first writes; all read what was written.
    if 'settings' not in self._study.user_attrs:
      self._study.set_user_attr('settings', text)
    known = json.loads(self._study.user_attrs['settings'])
    where = f'the study {self._name!r} in {self._storage}'
    check_settings(known, json.loads(text), where)
    shared_studies.void_dead(self._study, self._retry, _values)

  def claim(self, budget):
    """A number that nobody else gets.

    Args:
      budget: Below which.

    Returns:
      The number; None if all are taken.
    """
    while True:
      if not self._left(budget):
        # Somebody may have died in the meantime.
        if shared_studies.void_dead(self._study, values=_values):
          continue
        return None
      trial = shared_studies.ask(self._study)
      left = self._left(budget, trial.number)
      if not left:
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        continue
      # Its own number, or the first hole that a dead worker left: proposals
      # look at all trials before them.
      index = min(left)
      trial.set_user_attr('index', index)
      self._open[index] = trial
      return index

  def _left(self, budget, own=None):
    """Numbers that nobody has, apart from the trial of the number `own`."""
    left = set(range(budget))
    running = self._optuna.trial.TrialState.RUNNING
    for trial in self._study.get_trials(deepcopy=False):
      taken = 'trial' in trial.user_attrs or trial.state == running
      if taken and trial.number != own:
        left.discard(trial.user_attrs.get('index', trial.number))
    return left

  def record(self, trial):
    """Keeps a finished trial."""
    running = self._open.pop(trial.index)
    for block, row in enumerate(trial.tokens.tolist()):
      for name, value, options in zip(DIMENSIONS, row, OPTIONS, strict=True):
        key = f'b{block}_{name}'
        self._given[key] = value
        running.suggest_categorical(key, list(range(options)))
    row = trial.to_json()
    running.set_user_attr('trial', json.dumps(row))
    if row['accuracy'] is None:
      self._study.tell(running, state=self._optuna.trial.TrialState.FAIL)
    else:
      self._study.tell(running, (trial.accuracy, float(trial.macs)))

  def finished(self):
    """All finished trials of all workers, by index."""
    for trial in self._study.get_trials(deepcopy=False):
      text = trial.user_attrs.get('trial')
      if text is None or trial.number in self._seen:
        continue
      self._seen.add(trial.number)
      found = Trial.from_json(json.loads(text))
      self._trials.setdefault(found.index, found)
    self._trials = dict(sorted(self._trials.items()))
    return list(self._trials.values())


def _values(trial: Any) -> tuple[float, float] | None:
  """Objectives of a trial whose worker died before it told the study."""
  row = json.loads(trial.user_attrs.get('trial', 'null'))
  if row is None or row['accuracy'] is None:
    return None
  return row['accuracy'], float(row['macs'])
