"""Trials have an owner from their first moment; those of the dead end."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from unittest import mock

import optuna
from absl.testing import absltest, parameterized

from jaxpapers.training import shared_studies

RUNNING = optuna.trial.TrialState.RUNNING


def storage_of(kind):
  folder = pathlib.Path(tempfile.mkdtemp())
  return {
    'memory': None,
    'journal': str(folder / 'new' / 'record'),
    'database': f'sqlite:///{folder}/record.db',
  }[kind]


def study_of(storage, **options):
  return optuna.create_study(
    study_name='s',
    storage=shared_studies.open_storage(storage),
    load_if_exists=True,
    **options,
  )


class SharedStudiesTest(parameterized.TestCase):
  @parameterized.parameters('memory', 'journal', 'database')
  def test_ask(self, kind):
    storage = storage_of(kind)
    study = study_of(storage)
    others = study if storage is None else study_of(storage)
    for number, one in enumerate((study, others, study)):
      trial = shared_studies.ask(one)
      self.assertEqual(trial.number, number)
      x = trial.suggest_float('x', 0, 1)
      one.tell(trial, x)
    self.assertLen({trial.value for trial in study.trials}, 3)
    waiting = shared_studies.ask(study)
    (seen,) = others.get_trials(states=(RUNNING,))
    self.assertEqual(seen.number, waiting.number)
    self.assertEqual(
      seen.user_attrs[shared_studies.OWNER], shared_studies.this_process()
    )

  def test_each_write_to_the_storage_leaves_an_owner(self):
    storage = storage_of('journal')
    study = study_of(storage)
    before = pathlib.Path(storage).read_text().splitlines()
    shared_studies.ask(study)
    after = pathlib.Path(storage).read_text().splitlines()
    self.assertLen(after, len(before) + 1)
    self.assertIn('"owner"', after[-1])

  def test_only_the_dead_are_voided(self):
    study = study_of(None)
    for _ in range(4):
      shared_studies.ask(study)
    living = shared_studies.this_process()
    child = subprocess.Popen([sys.executable, '-c', ''])
    child.wait()
    owners = [
      living,
      living | {'pid': child.pid},
      living | {'host': 'another'},
      living | {'pid': child.pid},
    ]
    for trial, owner in zip(study.trials, owners, strict=True):
      study._storage.set_trial_user_attr(trial._trial_id, 'owner', owner)
    study._storage.set_trial_user_attr(study.trials[3]._trial_id, 'it', 0.5)
    ended = shared_studies.void_dead(
      study, values=lambda trial: trial.user_attrs.get('it')
    )
    self.assertEqual(ended, 2)
    self.assertEqual(
      [trial.state.name for trial in study.trials],
      ['RUNNING', 'FAIL', 'RUNNING', 'COMPLETE'],
    )
    self.assertEqual(study.trials[3].value, 0.5)
    self.assertEqual(shared_studies.void_dead(study), 0)
    self.assertEqual(shared_studies.void_dead(study, everybody=True), 2)

  def test_who_is_dead(self):
    mine = shared_studies.this_process()
    self.assertEqual(mine['pid'], os.getpid())
    self.assertEqual(mine['host'], socket.gethostname())
    self.assertFalse(shared_studies.is_dead(mine))
    self.assertFalse(shared_studies.is_dead(None))
    if mine['started'] is None:
      self.skipTest('this system does not say when a process began')
    # A process before this one, with its number.
    self.assertTrue(shared_studies.is_dead(mine | {'started': '1'}))

  def test_killed_but_not_waited_for(self):
    if not hasattr(os, 'waitid') or not os.path.exists('/proc/self/stat'):
      self.skipTest('this system does not say in which state a process is')
    child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)
    with mock.patch.object(os, 'getpid', lambda: child.pid):
      owner = shared_studies.this_process()
    self.assertFalse(shared_studies.is_dead(owner))
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    self.assertTrue(shared_studies.is_dead(owner))
    child.communicate()
    self.assertTrue(shared_studies.is_dead(owner))

  def test_processes_that_may_not_be_looked_at(self):
    mine = shared_studies.this_process()
    with mock.patch.object(
      pathlib.Path, 'read_bytes', side_effect=FileNotFoundError
    ):
      self.assertFalse(shared_studies.is_dead(mine | {'started': '1'}))

  @parameterized.parameters('journal', 'database')
  def test_two_void_the_same_trial(self, kind):
    storage = storage_of(kind)
    study, other = study_of(storage), study_of(storage)
    trial = shared_studies.ask(study)
    # The sampler hears of a trial after its state was read, and before it is
    # written.
    sampler = shared_studies.given_sampler({})
    sampler.after_trial = lambda *_: other.tell(
      trial.number, state=optuna.trial.TrialState.FAIL
    )
    study.sampler = sampler
    self.assertEqual(shared_studies.void_dead(study, everybody=True), 1)
    self.assertEqual(study.trials[0].state.name, 'FAIL')

  def test_given_sampler(self):
    given = {'a': 2, 'b': 'x'}
    study = study_of(None, sampler=shared_studies.given_sampler(given))
    trial = shared_studies.ask(study)
    self.assertEqual(trial.suggest_categorical('a', [1, 2]), 2)
    given['b'] = 'y'
    self.assertEqual(trial.suggest_categorical('b', ['x', 'y']), 'y')


if __name__ == '__main__':
  absltest.main()
