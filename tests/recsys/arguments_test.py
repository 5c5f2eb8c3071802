"""Tests of arguments that choose between two definitions."""

import jax
import numpy as np
from absl.testing import absltest

from jaxpapers import recsys
from jaxpapers.recsys import ranking


class ArgumentsTest(absltest.TestCase):
  def test_idcg(self):
    rng = np.random.default_rng(0)
    test = recsys.from_dense(rng.random((6, 12)) < 0.5)
    train = recsys.from_dense(np.zeros((6, 12)))
    scores = rng.random((6, 12))
    lists = recsys.rank_full(lambda u: scores[u], train, np.arange(6), 5)
    names = ('ndcg', 'recall', 'ndcg_truncated')
    both = recsys.evaluate(lists, test, (2, 5), names)
    cut = recsys.evaluate(lists, test, (2, 5), ('ndcg',), idcg='truncated')
    self.assertEqual(list(cut), ['ndcg'])
    np.testing.assert_array_equal(cut['ndcg'], both['ndcg_truncated'])
    self.assertLess(both['ndcg'].mean(), cut['ndcg'].mean())
    whole = recsys.evaluate(lists, test, (2, 5), names, idcg='all')
    for name in names:
      np.testing.assert_array_equal(whole[name], both[name])
    with self.assertRaisesRegex(ValueError, 'idcg is'):
      recsys.evaluate(lists, test, idcg='best')

  def test_order_of_ties(self):
    train = recsys.interactions([0, 1], [0, 3], shape=(2, 4))
    scores = np.array([[9, 1, 2, 1], [5, 5, 5, 9]], np.float32)
    users = np.arange(2)
    lists = {
      ties: recsys.rank_full(lambda u: scores[u], train, users, 4, ties=ties)
      for ties in ('index', 'reverse')
    }
    self.assertEqual(
      lists['index'].items.tolist(), [[2, 1, 3, -1], [0, 1, 2, -1]]
    )
    self.assertEqual(
      lists['reverse'].items.tolist(), [[2, 3, 1, -1], [2, 1, 0, -1]]
    )
    np.testing.assert_array_equal(
      lists['index'].scores, lists['reverse'].scores
    )
    seen = ranking.pad_pairs([train.pairs_of(users)], 2)
    for ties, expected in lists.items():
      items, *_ = ranking.top_items_device(scores, seen, 4, ties=ties)
      np.testing.assert_array_equal(items, expected.items)
    with self.assertRaisesRegex(ValueError, 'ties is'):
      recsys.rank_full(lambda u: scores[u], train, users, 4, ties='expected')

  def test_candidates_by_position_and_by_name(self):
    scores = np.array([[3, 3, 1, 9]], np.float32)
    positive, seen = np.array([[0, 1, 0, 0]]), np.array([[0, 0, 0, 1]])
    first = recsys.rank_candidates(scores, positive, seen, 'pessimistic')
    second = recsys.rank_candidates(
      scores, pos_mask=positive, seen_mask=seen, ties='pessimistic'
    )
    self.assertEqual(first.hit.tolist(), [[0, 1, 0, 0]])
    self.assertEqual(first.length.tolist(), [3])
    for a, b in zip(first, second, strict=True):
      np.testing.assert_array_equal(a, b)

  def test_models_of_items_are_their_weights(self):
    rng = np.random.default_rng(0)
    x = recsys.from_dense(rng.random((20, 8)) < 0.4)
    for model in (recsys.ease(x, 3.0), recsys.item_knn(x)):
      weights = np.asarray(model)
      self.assertEqual(weights.shape, (8, 8))
      np.testing.assert_allclose(
        recsys.score(model, x, [3, 5]), x.to_dense([3, 5]) @ weights, rtol=1e-5
      )

  def test_positions_and_keys(self):
    rng = np.random.default_rng(0)
    x = recsys.from_dense(rng.random((20, 8)) < 0.4)
    one = recsys.ials(0, x, 2, 3.0, 0.1, 'log', epochs=1)
    other = recsys.ials(
      0, x, factors=2, alpha=3.0, reg=0.1, scaling='log', epochs=1
    )
    np.testing.assert_array_equal(one.items, other.items)
    features = np.eye(8)[:, :4]
    np.testing.assert_array_equal(
      np.asarray(recsys.hybrid_knn(x, features, 0.3)),
      np.asarray(recsys.hybrid_knn(x, features, feature_weight=0.3)),
    )
    np.testing.assert_array_equal(
      recsys.ease(x, 3.0).weights, recsys.ease(x, l2=3.0).weights
    )
    one = recsys.slim_elastic_net(x, 0.01, 0.2, 1e-4).weights
    other = recsys.slim_elastic_net(x, alpha=0.01, l1_ratio=0.2, tol=1e-4)
    np.testing.assert_array_equal(one.toarray(), other.weights.toarray())
    options = {'factors': 2, 'epochs': 1}
    first, second, third = (
      recsys.ials(jax.random.key(seed), x, **options).items
      for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    self.assertGreater(np.abs(first - third).max(), 1e-3)
    fitted = recsys.fit('iALS', x, options, seed=7)
    np.testing.assert_array_equal(
      fitted.items, recsys.ials(7, x, **options).items
    )


if __name__ == '__main__':
  absltest.main()
