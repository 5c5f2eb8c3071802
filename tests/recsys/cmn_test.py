"""Tests of the collaborative memory network."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxpapers import recsys
from jaxpapers.recsys import cmn_network, cmn_training
from tests.helpers import goldens

_ALL = goldens.load_npz('recsys', 'neural_tf1.npz')
_GOLDEN = {
  name.removeprefix('cmn/'): value
  for name, value in _ALL.items()
  if name.startswith('cmn/')
}
_NAMES = {
  'memory': 'MemoryEmbed/embeddings:0',
  'output': 'MemoryOutput/embeddings:0',
  'item': 'ItemMemory/embeddings:0',
  'hop_1': {
    'kernel': 'UserMemoryLayer/HopMap1/w:0',
    'bias': 'UserMemoryLayer/HopMap1/b:0',
  },
  'hop_2': {
    'kernel': 'UserMemoryLayer/HopMap2/w:0',
    'bias': 'UserMemoryLayer/HopMap2/b:0',
  },
  'mix': {'kernel': 'Layer/LinearWx/w:0', 'bias': 'Layer/LinearWx/b:0'},
  'head': {'kernel': 'OutputVector/w:0'},
}
_GMF_NAMES = {
  'memory': 'MemoryEmbed/embeddings:0',
  'item': 'ItemMemory/embeddings:0',
  'head': {'kernel': 'OutputVector/LinearWx/w:0'},
}


def _load(prefix, names, scale):
  def one(name):
    shape = _ALL[f'{prefix}/grad/{name}'].shape
    return jnp.asarray(
      goldens.normal(f'{prefix}/{name}', shape, scale), jnp.float32
    )

  return jax.tree.map(one, names)


def _assert_gradients(gradients, names, prefix):
  def check(gradient, name):
    expected = _ALL[f'{prefix}/grad/{name}']
    np.testing.assert_allclose(
      gradient, expected, atol=1e-5 * np.abs(expected).max()
    )

  jax.tree.map(check, gradients, names)


class GoldenTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.params = _load('cmn', _NAMES, 0.4)
    module = cmn_network.CMN(8, 10, 5, 3)
    cls.pairs = [
      (
        _GOLDEN['users'],
        _GOLDEN[side],
        _GOLDEN[f'neigh_{side}'],
        np.arange(5) < _GOLDEN[f'len_{side}'][:, None],
      )
      for side in ('pos', 'neg')
    ]

    def score(params):
      return module.apply({'params': params}, *cls.pairs[0])

    def loss(params):
      return cmn_training.cmn_loss(module, params, *cls.pairs, 0.1)

    cls.score = staticmethod(jax.jit(score))
    cls.loss = staticmethod(jax.jit(jax.value_and_grad(loss)))

  def test_scores_loss_gradients(self):
    np.testing.assert_allclose(
      self.score(self.params), _GOLDEN['score'], rtol=1e-5
    )
    loss, gradients = self.loss(self.params)
    np.testing.assert_allclose(loss, _GOLDEN['loss'], rtol=1e-6)
    _assert_gradients(gradients, _NAMES, 'cmn')

  def test_steps(self):
    optimizer = cmn_training._optimizer(1e-3)
    items, neighbours = (
      np.stack([pair[k] for pair in self.pairs]) for k in (1, 2)
    )
    touched = cmn_network.touched_rows(
      self.params, _GOLDEN['users'], items, neighbours
    )
    # Two items are in no pair, and one user is nobody's neighbour.
    self.assertEqual(int(touched['item'].sum()), 8)
    update = jax.jit(optimizer.update)
    params, losses = self.params, []
    state = optimizer.init(params)
    for _ in range(4):
      loss, gradients = self.loss(params)
      losses.append(loss)
      updates, state = update(gradients, state, touched=touched)
      params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(
      losses, _GOLDEN['loss_before_each_rmsprop_step'], rtol=1e-6
    )
    np.testing.assert_allclose(
      self.score(params), _GOLDEN['score_after_4_steps'], atol=1e-6
    )
    rest = ~np.asarray(touched['item'])
    np.testing.assert_array_equal(
      params['item'][rest], self.params['item'][rest]
    )

  def test_pairwise_gmf(self):
    params = _load('pairgmf', _GMF_NAMES, 0.7)
    module = cmn_network.PairwiseGMF(8, 10, 5)
    u, i, j = (_GOLDEN[name] for name in ('users', 'pos', 'neg'))
    scores = module.apply({'params': params}, u, i)
    np.testing.assert_allclose(scores, _ALL['pairgmf/score'], atol=1e-6)
    # Its last step kills half of the scores here.
    self.assertEqual(int((scores == 0).sum()), 2)
    loss, gradients = jax.jit(
      jax.value_and_grad(
        lambda p: cmn_training.gmf_loss(module, p, u, i, j, 1e-4)
      )
    )(params)
    np.testing.assert_allclose(loss, _ALL['pairgmf/loss'], rtol=1e-6)
    _assert_gradients(gradients, _GMF_NAMES, 'pairgmf')


class NeighboursTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    #        item 0: users 1, 2; item 1: nobody; item 2: user 0
    self.x = recsys.interactions([1, 2, 0], [0, 0, 2], shape=(3, 3))
    self.table, self.width = cmn_network.put_neighbours(self.x)

  def neighbours(self, user, item, **options):
    ids, valid = cmn_network.neighbours_of(
      self.table, jnp.array([user]), jnp.array([item]), self.width, **options
    )
    return sorted(np.asarray(ids)[np.asarray(valid)].tolist())

  def test_a_positive_pair_of_training_has_the_user(self):
    self.assertEqual(self.width, 2)
    self.assertEqual(self.neighbours(1, 0), [1, 2])
    # No pair of test has: the user does not have the item.
    self.assertEqual(self.neighbours(0, 0), [1, 2])
    self.assertEqual(self.neighbours(1, 0, exclude_self=True), [2])
    self.assertEqual(self.neighbours(0, 2, exclude_self=True), [0])

  @parameterized.parameters(('user', 2), ('item', 1))
  def test_an_item_without_users(self, empty, expected):
    # The item's number for a user's: what the authors' training does.
    self.assertEqual(self.neighbours(2, 1, empty=empty), [expected])


class FitTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # Two groups of users, each with items of its own; one item of each user
    # is left for test.
    rng = np.random.default_rng(0)
    dense = np.zeros((40, 24), np.float32)
    test = np.zeros_like(dense)
    for user in range(40):
      own = rng.permutation(12)[:7] + 12 * (user % 2)
      dense[user, own] = 1
      test[user, own[0]] = 1
    cls.train = recsys.from_dense(dense - test)
    cls.test = recsys.from_dense(test)
    cls.seen = []

    def monitor(epoch, model):
      cls.seen.append((epoch, model))
      return epoch == 15

    cls.model = recsys.fit(
      'CMN',
      cls.train,
      {
        'dim': 8,
        'epochs': 20,
        'pretrain_epochs': 10,
        'batch_size': 64,
        'learning_rate': 1e-2,
        'l2': 1e-4,
      },
      monitor=monitor,
    )

  def test_learns(self):
    result = recsys.evaluate_model(
      self.model, self.train, self.test, (7,), metrics=('recall',)
    )
    popular = recsys.evaluate_model(
      recsys.top_popular(self.train),
      self.train,
      self.test,
      (7,),
      metrics=('recall',),
    )
    # Six items of a user's group are left, and twelve others. The deviation of
    # a mean over forty users is below .08.
    self.assertGreater(result.mean('recall', 7), 0.65)
    self.assertLess(popular.mean('recall', 7), 0.55)

  def test_monitor(self):
    self.assertEqual([epoch for epoch, _ in self.seen], list(range(1, 16)))
    first = np.asarray(self.seen[0][1].params['memory'])
    last = np.asarray(self.model.params['memory'])
    self.assertTrue(np.isfinite(first).all())
    self.assertGreater(np.abs(first - last).max(), 1e-3)

  def test_candidates_alone(self):
    known = recsys.union(self.train, self.test)
    negatives = recsys.sample_negatives(0, known, np.arange(40), 5)
    result = recsys.evaluate_model(
      self.model, self.train, self.test, (3,), negatives=negatives
    )
    # A plain function of users scores all items: the same numbers.
    everything = recsys.evaluate_model(
      lambda users: recsys.score(self.model, self.train, users),
      self.train,
      self.test,
      (3,),
      negatives=negatives,
    )
    for name, values in everything.per_user.items():
      np.testing.assert_allclose(result.per_user[name], values, atol=1e-6)
    calls = []
    original = cmn_training.score_pairs

    def count(model, users, items):
      calls.append(len(users))
      return original(model, users, items)

    with mock.patch.object(cmn_training, 'score_pairs', count):
      recsys.evaluate_model(
        self.model, self.train, self.test, (3,), negatives=negatives
      )
    self.assertEqual(sum(calls), 40 * 6)

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, 'hops is 0'):
      recsys.cmn(self.train, hops=0)
    with self.assertRaisesRegex(ValueError, 'do not extend'):
      recsys.score(self.model, recsys.from_dense(np.eye(3, 24)), [0])


if __name__ == '__main__':
  absltest.main()
