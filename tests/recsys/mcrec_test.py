"""Tests of MCRec and of the paths that it looks at."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import recsys
from jaxpapers.recsys import mcrec_network, meta_paths
from tests.helpers import goldens

_GOLDEN = goldens.load_npz('recsys', 'neural_keras.npz')
_NAMES = {
  'user_embedding': 'user_feedback_embedding/embeddings',
  'item_embedding': 'item_feedback_embedding/embeddings',
  **{
    ours: {part: f'{name}/{part}' for part in ('kernel', 'bias')}
    for ours, name in (
      ('umtm_conv', 'umtm_conv'),
      ('umum_conv', 'umum_conv'),
      ('umtmum_conv', 'umtmum_conv'),
      ('uuum_conv', 'uuum_conv'),
      ('kind_attention_1', 'metapath_attention_layer_1'),
      ('kind_attention_2', 'metapath_attention_layer_2'),
      ('user_gate', 'user_attention_layer'),
      ('item_gate', 'item_attention_layer'),
      ('layer_0', 'item_layer0'),
      ('layer_1', 'item_layer1'),
      ('head', 'prediction'),
    )
  },
}


class GoldenTest(absltest.TestCase):
  def test_predictions_loss_gradients(self):
    params = jax.tree.map(
      lambda name: jnp.asarray(
        goldens.normal(
          f'mcrec/{name}', _GOLDEN[f'mcrec/grad/{name}:0'].shape, 0.25
        ),
        jnp.float32,
      ),
      _NAMES,
    )
    paths = [
      goldens.normal(f'mcrec/input_{k}', (10, *shape, 8), 0.5)
      for k, shape in enumerate(((2, 4), (3, 4), (2, 6), (2, 4)))
    ]
    paths = [x.astype(np.float32) for x in paths]
    self.assertEqual([x.shape[2] for x in paths], list(meta_paths.STEPS))
    users, items, labels = (
      _GOLDEN[f'ncf/{name}'] for name in ('users', 'items', 'labels')
    )
    module = mcrec_network.MCRec(7, 11, 8, layers=(16, 8))

    def loss(params):
      logits = module.apply({'params': params}, users, items, paths)
      return mcrec_network.mcrec_loss(
        module, params, users, items, paths, labels
      ), jax.nn.sigmoid(logits)

    (value, predicted), gradients = jax.jit(
      jax.value_and_grad(loss, has_aux=True)
    )(params)
    np.testing.assert_allclose(predicted, _GOLDEN['mcrec/pred'], atol=1e-6)
    np.testing.assert_allclose(value, _GOLDEN['mcrec/loss'], rtol=1e-6)

    def check(gradient, name):
      expected = _GOLDEN[f'mcrec/grad/{name}:0']
      # A bias that softmax takes away has a gradient of rounding errors.
      scale = max(np.abs(expected).max(), 1e-3)
      np.testing.assert_allclose(gradient, expected, atol=1e-5 * scale)

    jax.tree.map(check, gradients, _NAMES)


def _data(seed=2, users=9, items=8, types=3):
  rng = np.random.default_rng(seed)
  has = rng.random((users, items)) < 0.4
  has[0] = False  # Somebody without history,
  has[:, 1] = False  # and something that nobody has.
  kinds = rng.random((items, types)) < 0.4
  features = rng.standard_normal((users + items + types, 5))
  return has, kinds, features


class PathsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.has, cls.types, features = _data()
    cls.x = recsys.from_dense(cls.has)
    cls.paths = recsys.make_paths(cls.x, cls.types, features, near=3)
    cls.pairs = list(itertools.product(range(9), range(8)))
    found = recsys.paths_of(cls.paths, *map(jnp.array, zip(*cls.pairs)))
    cls.found = dict(zip(meta_paths.KINDS, map(np.asarray, found)))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cls.similar = unit @ unit.T
    cls.linked = np.zeros((9, 9), bool)
    for user, (ids, valid) in enumerate(
      zip(*meta_paths._near(cls.has, 3), strict=True)
    ):
      cls.linked[user, np.asarray(ids)[np.asarray(valid)]] = True

  def instances(self, kind, user, item):
    """All paths by brute force: what makes each its own -> best value."""
    has, types, linked = self.has, self.types, self.linked
    first_items = [m for m in np.flatnonzero(has[user]) if m != item]
    others = [v for v in np.flatnonzero(has[:, item]) if v != user]
    u, i, t0 = user, 9 + item, 17
    if kind == 'umtm':
      every = [
        (u, 9 + m, t0 + t, i)
        for m in first_items
        for t in range(3)
        if types[m, t] and types[item, t]
      ]
    elif kind == 'umum':
      every = [
        (u, 9 + m, v, i) for m in first_items for v in others if has[v, m]
      ]
    elif kind == 'umtmum':
      every = [
        (u, 9 + m, t0 + t, 9 + n, v, i)
        for m in first_items
        for t in range(3)
        for n in range(8)
        for v in others
        if types[m, t] and types[n, t] and n != m and has[v, n]
      ]
    else:
      every = [
        (u, w, v, i)
        for w in range(9)
        for v in others
        if linked[user, w] and linked[w, v]
      ]
    best = {}
    for path in every:
      value = self.value(path)
      # One path for each last user, or for each beginning of umtm.
      name = path[:3] if kind == 'umtm' else path[-2]
      best[name] = max(best.get(name, -np.inf), value)
    return every, sorted(best.values(), reverse=True)[:5]

  def value(self, path):
    return sum(self.similar[a, b] for a, b in itertools.pairwise(path))

  @parameterized.parameters(*meta_paths.KINDS)
  def test_best_paths(self, kind):
    counts = []
    for pair, nodes in zip(self.pairs, self.found[kind], strict=True):
      every, values = self.instances(kind, *pair)
      there = [tuple(path) for path in nodes.tolist() if path[0] != 20]
      self.assertLen(there, len(values), (kind, pair))
      self.assertLessEqual(set(there), set(every))
      found = sorted(map(self.value, there), reverse=True)
      np.testing.assert_allclose(found, values, atol=1e-5)
      counts.append(len(there))
      # What is missing is the node without features.
      self.assertTrue((nodes[len(there) :] == 20).all())
    self.assertEqual(min(counts), 0)
    self.assertGreater(max(counts), 1)

  def test_no_path_by_the_link_itself(self):
    # A pair of training looks as it would if it were not there: same kinds of
    # paths, none of which begins with the item or comes from the user again.
    for kind, nodes in self.found.items():
      for (user, item), paths in zip(self.pairs, nodes, strict=True):
        for path in paths[paths[:, 0] != 20]:
          if kind != 'uuum':
            self.assertNotEqual(path[1], 9 + item)
          if kind != 'umtm':
            self.assertNotEqual(path[-2], user)

  def test_missing_node_is_zero(self):
    self.assertEqual(self.paths.nodes.shape, (21, 5))
    np.testing.assert_array_equal(self.paths.nodes[20], 0)

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, 'expected 20 rows'):
      recsys.make_paths(self.x, self.types, np.zeros((3, 5)))
    with self.assertRaisesRegex(ValueError, 'each of the 8 items'):
      recsys.make_paths(self.x, self.types[:3], np.zeros((20, 5)))
    with self.assertRaisesRegex(ValueError, 'Leave out rare users'):
      recsys.make_paths(self.x, self.types, np.zeros((20, 5)), max_bytes=10)


@pytest.mark.slow
class FitTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    rng = np.random.default_rng(0)
    # Two groups of users with items of their own, of two types.
    dense = np.zeros((20, 16), np.float32)
    test = np.zeros_like(dense)
    for user in range(20):
      own = rng.permutation(8)[:5] + 8 * (user % 2)
      dense[user, own] = 1
      test[user, own[0]] = 1
    cls.types = np.zeros((16, 2))
    cls.types[:8, 0] = cls.types[8:, 1] = 1
    cls.train = recsys.from_dense(dense - test)
    cls.test = recsys.from_dense(test)
    cls.epochs = []

    def monitor(epoch, model):
      cls.epochs.append(epoch)
      return epoch == 20

    cls.model = recsys.fit(
      'MCRec',
      cls.train,
      {
        'embedding': 8,
        'filters': 8,
        'layers': (8,),
        'node_dim': 4,
        'batch_size': 32,
        'learning_rate': 1e-2,
        'epochs': 30,
      },
      features=cls.types,
      monitor=monitor,
    )

  def test_learns(self):
    self.assertEqual(self.epochs, list(range(1, 21)))
    result = recsys.evaluate_model(
      self.model, self.train, self.test, (4,), metrics=('recall',)
    )
    # Four items of a user's group are left, and eight others: .33 by chance;
    # the deviation of a mean over twenty users is below .11.
    self.assertGreater(result.mean('recall', 4), 0.7)

  def test_candidates(self):
    scores = recsys.score(self.model, self.train, [3, 5])
    some = recsys.score_candidates(
      self.model, self.train, [3, 5], np.array([[2, 15], [0, 7]])
    )
    np.testing.assert_allclose(some[0], scores[0][[2, 15]], atol=1e-5)
    np.testing.assert_allclose(some[1], scores[1][[0, 7]], atol=1e-5)
    with self.assertRaisesRegex(ValueError, 'do not extend'):
      recsys.score(self.model, recsys.from_dense(np.eye(3, 16)), [0])

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, 'negatives is 0'):
      recsys.mcrec(self.train, self.types, negatives=0)


class FindingTest(absltest.TestCase):
  def test_own_ndcg(self):
    # One of four test items found, on top: perfect for MCRec's authors.
    train = recsys.from_dense(np.zeros((1, 8)))
    test = recsys.interactions([0] * 4, [0, 5, 6, 7], shape=(1, 8))
    scores = np.arange(8, 0, -1, np.float32)[None]
    result = recsys.evaluate_model(
      lambda users: scores[users],
      train,
      test,
      (3,),
      metrics=('ndcg', 'ndcg_retrieved'),
    )
    self.assertEqual(result.mean('ndcg_retrieved', 3), 1)
    self.assertLess(result.mean('ndcg', 3), 0.5)


if __name__ == '__main__':
  absltest.main()
