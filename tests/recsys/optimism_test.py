"""Tests of epochs: chosen on validation data, or shown to be chosen on test."""

import numpy as np
from absl.testing import absltest

from jaxpapers import recsys
from jaxpapers.recsys import methods, models, reproduction, search, studies


class _Epochs:
  """A method whose model of epoch e is given: each ranks one item first."""

  def __init__(self, first_items):
    self._first = first_items

  def __call__(self, train, epochs=20, seed=0, monitor=None):
    for epoch in range(1, epochs + 1):
      scores = np.zeros(train.num_items, np.float32)
      scores[self._first(epoch)] = 1.0
      model = models.PopularityModel(scores)
      if monitor is not None and monitor(epoch, model):
        break
    return model


class EpochsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    # Validation items are item 2 for all, test items 3.
    pairs = {
      'train': recsys.interactions([0, 1, 2], [0, 0, 1], shape=(3, 5)),
      'validation': recsys.interactions([0, 1, 2], [2, 2, 2], shape=(3, 5)),
      'test': recsys.interactions([0, 1, 2], [3, 3, 3], shape=(3, 5)),
    }
    self.data = studies.Data(
      recsys.union(pairs['train'], pairs['validation']),
      pairs['test'],
      pairs['train'],
      pairs['validation'],
    )
    # Item 2 is first in epoch 10 only, the test item in 15 only.
    method = methods.Method(
      'Epochs of a test',
      _Epochs(lambda epoch: {10: 2, 15: 3}.get(epoch, 4)),
      fixed={'epochs': 20},
      random=True,
      iterative=True,
      family='neural',
    )
    methods.register(method)
    self.addCleanup(methods.METHODS.pop, method.name)
    self.name = method.name

  def test_validation_data_choose(self):
    goal = {'metric': 'hit_rate', 'cutoff': 1}
    chosen, value = reproduction.choose_epochs(self.data, self.name, {}, **goal)
    self.assertEqual((chosen, value), ({'epochs': 10}, 1.0))
    found = reproduction.tune_method(
      self.data, self.name, name='epochs', **goal
    )
    self.assertLen(found.trials, 1)  # Nothing but epochs to choose.
    self.assertEqual(reproduction.best_parameters(found.best), chosen)
    objective = recsys.validation_objective(
      self.name,
      self.data.search_train,
      self.data.validation,
      max_epochs=3,
      **goal,
    )
    # Too few for a look: the last fit is no longer.
    self.assertEqual(objective({'seed': 1})['epochs'], 3)
    # What is given is not chosen again.
    given = {'epochs': 3}
    self.assertEqual(
      reproduction.choose_epochs(self.data, self.name, given, **goal),
      (given, None),
    )

  def test_test_data_choose_only_where_it_says_so(self):
    found = recsys.best_test_epochs(
      self.name, self.data.train, self.data.test, metrics=('hit_rate',),
      cutoff=1, every=5,
    )  # fmt: skip
    self.assertEqual(found.best, {'hit_rate': (15, 1.0)})
    self.assertEqual(list(found.history), [5, 10, 15, 20])
    with self.assertRaisesRegex(ValueError, 'no epochs to choose'):
      recsys.best_test_epochs('EASE_R', self.data.train, self.data.test)
    with self.assertRaisesRegex(ValueError, 'fewer epochs'):
      recsys.best_test_epochs(
        self.name, self.data.train, self.data.test, {'epochs': 2}, every=5
      )

  def test_baselines_beside_networks(self):
    self.assertEqual(
      reproduction.baselines_of(self.name, self.data), reproduction.BASELINES
    )
    self.assertEqual(reproduction.baselines_of('EASE_R', self.data), ())
    for name in reproduction.BASELINES:
      self.assertEqual(methods.find(name).family, 'baseline')

  def test_phases_are_monitors_of_their_own(self):
    data = self.data
    monitor = recsys.EarlyStopping(
      data.search_train, data.validation, metric='hit_rate', cutoff=1,
      every=1, patience=2,
    )  # fmt: skip
    phase = monitor.phase('epochs_before')
    good, bad = (
      models.PopularityModel(np.eye(5, dtype=np.float32)[i]) for i in (2, 4)
    )
    looks = [phase(e, model) for e, model in enumerate([bad, good, bad, bad])]
    self.assertEqual(looks, [False, False, False, True])
    self.assertIs(phase.result(bad), good)
    self.assertEqual(monitor.epochs(), {'epochs_before': 1})
    self.assertEqual(monitor.history, [])
    trial = search.Trial(0, {'a': 1}, 0.5, {'epochs': 4, 'epochs_before': 1})
    self.assertEqual(
      reproduction.best_parameters(trial),
      {'a': 1, 'epochs': 4, 'epochs_before': 1},
    )


if __name__ == '__main__':
  absltest.main()
