"""Tests of ranking, metrics, ties, significance and audits."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import recsys
from jaxpapers.recsys import evaluation, significance
from tests.helpers import data, goldens

_GOLDEN = goldens.load_json('recsys', 'evaluator.json')
_INPUTS = goldens.load_npz('recsys', 'evaluator_inputs.npz')
_TRAIN = recsys.from_dense(_INPUTS['seen'])
_TEST = recsys.from_dense(_INPUTS['relevance'])
_NEGATIVES = recsys.from_dense(_INPUTS['negatives'])
_NAMES = {'DIVERSITY_MEAN_INTER_LIST': 'mean_inter_list'}


def _scores(users):
  return _INPUTS['scores'][users]


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters(
    ('holdout_graded_exclude_seen', dict(graded=True)),
    ('holdout_binary_exclude_seen', {}),
    ('holdout_binary_include_seen', dict(exclude_seen=False)),
    ('holdout_binary_min2_ratings', dict(min_ratings=2)),
    (
      'holdout_binary_ignore_items_0_1_2_users_0',
      dict(ignore_items=[0, 1, 2], ignore_users=[0]),
    ),
    ('negsample_binary_exclude_seen', dict(negatives=_NEGATIVES)),
    (
      'negsample_binary_include_seen',
      dict(negatives=_NEGATIVES, exclude_seen=False),
    ),
  )
  def test_every_metric(self, protocol, options):
    golden = _GOLDEN[protocol]
    cutoffs = [int(c) for c in golden]
    result = recsys.evaluate_model(_scores, _TRAIN, _TEST, cutoffs, **options)
    means = result.means()
    for cutoff in cutoffs:
      for name, expected in golden[str(cutoff)].items():
        if name == 'DIVERSITY_SIMILARITY':
          ours = recsys.intra_list_diversity(
            result.lists, _INPUTS['item_diversity'], cutoff, compat=True
          ).mean()
        else:
          ours = means[_NAMES.get(name, name.lower())][cutoff]
        self.assertAlmostEqual(ours, expected, delta=1e-6, msg=(name, cutoff))

  def test_per_user(self):
    result = recsys.evaluate_model(_scores, _TRAIN, _TEST, (5,))
    for row, golden in enumerate(_GOLDEN['per_user_at5_exclude_seen']):
      self.assertEqual(result.users[row], golden['user'])
      self.assertEqual(result.lists.items[row].tolist(), golden['ranked'])
      for name, key in (
        ('precision', 'precision'),
        ('precision_recall_min_den', 'prmin'),
        ('recall', 'recall'),
        ('map', 'ap'),
        ('mrr', 'rr'),
        ('arhr', 'arhr'),
        ('roc_auc', 'auc'),
        ('ndcg', 'ndcg_binary'),
        ('hit_rate', 'hits'),
      ):
        self.assertAlmostEqual(
          result.per_user[name][row, 0], golden[key], delta=1e-6, msg=name
        )

  def test_definitions_of_other_authors(self):
    result = recsys.evaluate_model(_scores, _TRAIN, _TEST, (3, 5, 10))
    for column, cutoff in enumerate(('3', '5', '10')):
      golden = _GOLDEN['multvae_authors_metrics'][cutoff]
      for ours, key in (
        ('ndcg_truncated', 'ndcg'),
        ('recall_truncated', 'recall'),
      ):
        np.testing.assert_allclose(
          result.per_user[ours][:, column], golden[key], atol=1e-12
        )
    np.testing.assert_allclose(
      result.per_user['ndcg_retrieved'][:, 1],
      _GOLDEN['mcrec_authors_ndcg_at5'],
      atol=1e-12,
    )
    self.assertLess(
      result.mean('ndcg', 3), result.mean('ndcg_truncated', 3) - 0.01
    )


class TiesTest(parameterized.TestCase):
  def _case(self, seed=0, users=6, items=8):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (users, items)).astype(np.float32)
    positive = rng.random((users, items)) < 0.35
    positive[:, 0] |= ~positive.any(1)
    return scores, positive

  def test_expected_is_the_mean_over_all_orders(self):
    scores, positive = self._case(users=4, items=6)
    train = recsys.interactions([], [], shape=(4, 6))
    test = recsys.from_dense(positive)
    cutoffs = (1, 2, 4)
    expected = recsys.evaluate_model(
      lambda u: scores[u], train, test, cutoffs, ties='expected'
    )
    total: dict = {}
    count = 0
    for order in itertools.permutations(range(6)):
      order = np.array(order)
      settled = recsys.evaluate_model(
        lambda u, order=order: scores[u][:, order],
        train,
        recsys.from_dense(positive[:, order]),
        cutoffs,
        metrics=tuple(expected.per_user),
      )
      count += 1
      for name, values in settled.per_user.items():
        total[name] = total.get(name, 0) + values
    for name, values in expected.per_user.items():
      np.testing.assert_allclose(
        values, total[name] / count, atol=1e-12, err_msg=name
      )

  @parameterized.parameters(0, 1, 2)
  def test_bounds_and_shuffles(self, seed):
    scores, positive = self._case(seed)
    order = np.random.default_rng(seed).permutation(8)
    train = recsys.interactions([], [], shape=(6, 8))
    results = {}
    for name, columns in (('plain', np.arange(8)), ('shuffled', order)):
      test = recsys.from_dense(positive[:, columns])
      for ties in ('pessimistic', 'expected', 'optimistic'):
        results[name, ties] = recsys.evaluate_model(
          lambda u, columns=columns: scores[u][:, columns],
          train,
          test,
          (1, 3, 8),
          ties=ties,
        ).per_user
    for metric, values in results['plain', 'expected'].items():
      for ties in ('pessimistic', 'expected', 'optimistic'):
        np.testing.assert_allclose(
          results['plain', ties][metric],
          results['shuffled', ties][metric],
          atol=1e-12,
        )
      low = results['plain', 'pessimistic'][metric]
      high = results['plain', 'optimistic'][metric]
      self.assertTrue((low <= values + 1e-12).all(), metric)
      self.assertTrue((values <= high + 1e-12).all(), metric)

  @parameterized.parameters(0, 1, 2)
  def test_bounds_of_graded_metrics(self, seed):
    scores, positive = self._case(seed)
    rng = np.random.default_rng(seed)
    test = recsys.from_dense(positive * rng.integers(1, 6, positive.shape))
    train = recsys.interactions([], [], shape=(6, 8))
    low, middle, high = (
      recsys.evaluate_model(
        lambda u: scores[u],
        train,
        test,
        (1, 3, 8),
        metrics=('ndcg', 'ndcg_truncated'),
        ties=ties,
        graded=True,
      ).per_user
      for ties in ('pessimistic', 'expected', 'optimistic')
    )
    for name, values in middle.items():
      self.assertTrue((low[name] <= values + 1e-12).all(), name)
      self.assertTrue((values <= high[name] + 1e-12).all(), name)
    self.assertGreater((high['ndcg'] - low['ndcg']).max(), 0.1)

  def test_no_ties_no_difference(self):
    values = [
      recsys.evaluate_model(
        _scores, _TRAIN, _TEST, (5,), metrics=('ndcg', 'map', 'mrr'), ties=ties
      ).per_user
      for ties in ('index', 'expected', 'optimistic', 'pessimistic')
    ]
    for other in values[1:]:
      for name in values[0]:
        np.testing.assert_allclose(other[name], values[0][name], atol=1e-12)

  def test_rank_candidates_under_jit_and_vmap(self):
    scores, positive = self._case()
    plain = recsys.rank_candidates(scores, positive)
    mapped = jax.vmap(lambda s, p: recsys.rank_candidates(s[None], p[None]))(
      jnp.asarray(scores), jnp.asarray(positive)
    )
    np.testing.assert_allclose(mapped.hit[:, 0], plain.hit, atol=1e-6)
    np.testing.assert_allclose(mapped.none[:, 0], plain.none, atol=1e-6)

  def test_undefined_metrics_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'not defined for expected'):
      recsys.evaluate_model(
        _scores, _TRAIN, _TEST, (5,), metrics=('roc_auc',), ties='expected'
      )


def _negative(x):
  return dataclasses.replace(x, value=-x.value)


class BadInputTest(parameterized.TestCase):
  def test_refusals(self):
    def run(model=_scores, train=_TRAIN, test=_TEST, cutoffs=(5,), **options):
      return recsys.evaluate_model(model, train, test, cutoffs, **options)

    nan = _INPUTS['scores'].copy()
    nan[3, 4] = np.nan
    empty = recsys.interactions([], [], shape=_TEST.shape)
    wide = recsys.interactions([0], [0], shape=(14, 26))
    for arguments, words in (
      (dict(model=lambda u: nan[u]), 'NaN for 1 users'),
      (dict(cutoffs=(26,)), 'only 25 items'),
      (dict(cutoffs=()), 'positive numbers'),
      (dict(test=empty), 'nothing to evaluate'),
      (dict(test=wide), 'equal numbers'),
      (dict(train=_TEST), 'in train too'),
      (dict(negatives=np.zeros((3, 4), int)), 'one row for each'),
      (dict(metrics=('accuracy',)), 'metrics has'),
      (dict(ties='random'), 'ties is'),
      (dict(model=lambda u: nan[u][:, :4]), 'returned shape'),
      (dict(model='EASE'), 'no score function'),
      (dict(test=_negative(_TEST), graded=True), 'no relevances'),
      (dict(profiles=wide), 'profiles has shape'),
    ):
      error = TypeError if 'no score' in words else ValueError
      with self.assertRaisesRegex(error, words):
        run(**arguments)

  def test_counts(self):
    result = recsys.evaluate_model(
      _scores, _TRAIN, _TEST, (20,), negatives=_NEGATIVES
    )
    report = result.report
    self.assertEqual(report['evaluated_users'], 12)
    with self.assertRaisesRegex(ValueError, 'cutoff is 10'):
      result.mean('ndcg', 10)
    with self.assertRaisesRegex(ValueError, "metric is 'auc'"):
      result.mean('auc', 20)
    self.assertEqual(report['users_without_test_items'], 2)
    self.assertEqual(report['candidates_dropped_as_seen'], 27)
    self.assertGreater(report['test_items_unseen_in_train'], 0)
    self.assertEqual(report['users_without_negatives'], 0)
    user = int(result.users[0])
    fewer = _NEGATIVES.select(_NEGATIVES.user != user)
    result = recsys.evaluate_model(_scores, _TRAIN, _TEST, negatives=fewer)
    self.assertEqual(result.report['users_without_negatives'], 1)

  def test_overlap_when_allowed(self):
    both = recsys.union(_TRAIN, _TEST.binary())
    result = recsys.evaluate_model(
      _scores, both, _TEST, (5,), allow_overlap=True
    )
    self.assertEqual(result.report['test_pairs_in_train'], len(_TEST))
    self.assertEqual(result.mean('hit_rate', 5), 0)

  @parameterized.parameters(*sorted(recsys.METHODS))
  @pytest.mark.slow
  def test_nothing_is_nan(self, name):
    method = recsys.METHODS[name]
    dense = np.zeros((6, 5))
    dense[0] = 1  # Has everything.
    dense[1, :2] = dense[2, 1:4] = dense[3, 0] = dense[5, 3] = 1
    dense[:, 4] = 0  # A cold item, and user 4 has nothing.
    features = np.eye(5)[:, :3]  # Two items without features.
    train = recsys.from_dense(dense)
    test = recsys.interactions([1, 3, 4], [2, 1, 0], shape=(6, 5))
    options = {'top_k': 50} if 'top_k' in method.space else {}
    if 'factors' in method.space:
      options['factors'] = 2
    options |= {
      k: 2 for k in method.fixed if 'epochs' in k or k == 'last_sweeps'
    }
    options |= {k: 4 for k in ('embedding', 'filters') if k in method.fixed}
    if 'batch_size' in method.space:
      options['batch_size'] = 4
    model = recsys.fit(name, train, options, features=features)
    scores = np.asarray(recsys.score(model, train, np.arange(6)))
    self.assertEqual(scores.shape, (6, 5))
    self.assertTrue(np.isfinite(scores).all())
    result = recsys.evaluate_model(model, train, test, (1, 5))
    for values in (*result.per_user.values(), *result.beyond.values()):
      self.assertTrue(np.isfinite(values).all())

  def test_one_item(self):
    train = recsys.interactions([0], [0], shape=(2, 1))
    test = recsys.interactions([1], [0], shape=(2, 1))
    model = recsys.item_knn(train, top_k=10)
    result = recsys.evaluate_model(model, train, test, (1,))
    self.assertEqual(result.mean('recall', 1), 1.0)


class SignificanceTest(parameterized.TestCase):
  def test_golden(self):
    golden = _GOLDEN['significance']
    found = recsys.paired_tests(golden['a'], golden['b'])
    np.testing.assert_allclose(found.t, golden['ttest_rel'], rtol=1e-9)
    np.testing.assert_allclose(found.wilcoxon, golden['wilcoxon'], rtol=1e-9)
    self.assertEqual(found.chosen, 't')
    repo = golden['repo']
    for letter in 'ab':
      ours = significance.normality(np.array(golden[letter]))
      upper = letter.upper()
      for name, key in (
        ('dagostino', 'dagostino'),
        ('kolmogorov', 'kolmogorov'),
      ):
        self.assertAlmostEqual(
          ours[name], repo[f'{upper} normal_{key}_p_value'], delta=1e-9
        )
      # Its approximation changed in scipy.
      self.assertAlmostEqual(
        ours['shapiro'], repo[f'{upper} normal_saphiro_p_value'], delta=1e-5
      )

  def test_bootstrap(self):
    rng = np.random.default_rng(0)
    difference = rng.normal(0.3, 1, 400)
    found = recsys.paired_tests(difference, np.zeros(400))
    error = difference.std() / 20
    mean = difference.mean()
    # The normal interval; 10 000 resamples leave a percent or two.
    np.testing.assert_allclose(
      found.interval, (mean - 1.96 * error, mean + 1.96 * error), rtol=0.08
    )
    np.testing.assert_allclose(
      recsys.confidence_interval(difference), found.interval, rtol=0.08
    )
    self.assertLess(found.bootstrap, 1e-3)

  def test_many_methods_are_corrected_together(self):
    rng = np.random.default_rng(0)
    b = rng.random(60)
    a = {str(shift): b + rng.normal(shift, 0.1, 60) for shift in (0, 0.05, 1)}
    found = recsys.paired_tests(a, b, correction='holm', resamples=10)
    alone = {k: recsys.paired_tests(v, b, resamples=10) for k, v in a.items()}
    raw = [test.p for test in alone.values()]
    self.assertEqual([test.p for test in found.values()], raw)
    np.testing.assert_allclose(
      [test.corrected for test in found.values()], recsys.correct(raw)
    )
    self.assertEqual(alone['0'].corrected, alone['0'].p)
    everything = recsys.compare_all({**a, 'b': b}, 'b', resamples=10)
    self.assertEqual(everything['0.05'][0], found['0.05'])
    self.assertEqual(everything['0.05'][1], found['0.05'].corrected)
    with self.assertRaisesRegex(ValueError, 'method'):
      recsys.paired_tests(a, b, correction='sidak', resamples=10)

  def test_equal_vectors_and_refusals(self):
    found = recsys.paired_tests(np.ones(5), np.ones(5))
    self.assertEqual(found.chosen, 'equal')
    self.assertTrue(np.isnan(found.p))
    for a, b, words in (
      (np.ones(4), np.ones(5), 'same users'),
      (np.ones(2), np.zeros(2), 'three or more'),
      (np.array([1, np.nan, 2]), np.ones(3), 'NaN'),
    ):
      with self.assertRaisesRegex(ValueError, words):
        recsys.paired_tests(a, b)

  def test_corrections(self):
    p = np.array([0.01, 0.04, 0.03, np.nan, 0.005])
    np.testing.assert_allclose(
      recsys.correct(p), [0.03, 0.06, 0.06, np.nan, 0.02]
    )
    np.testing.assert_allclose(
      recsys.correct(p, 'benjamini-hochberg'), [0.02, 0.04, 0.04, np.nan, 0.02]
    )
    rng = np.random.default_rng(0)
    vectors = {name: rng.random(30) for name in 'abc'}
    vectors['b'] += 1
    found = recsys.compare_all(vectors, 'a')
    self.assertEqual(set(found), {'b', 'c'})
    self.assertLess(found['b'][1], 1e-6)
    self.assertGreater(found['c'][1], 0.05)


class AuditTest(parameterized.TestCase):
  @parameterized.parameters(
    ('citeulike_a_cmn_loo100.npz', 1115),
    ('deepcf_lastfm_loo99.npz', 2434),
    ('deepcf_amusic_loo99.npz', 348),
  )
  def test_seen_negatives(self, name, expected):
    path = data.require('recsys', name)
    parts = recsys.load_parts(path, ('train', 'test'))
    with np.load(path) as file:
      negatives = file['test_negatives'][np.argsort(file['test_user'])]
    parts = {key: part.binary() for key, part in parts.items()}
    report = recsys.audit_split(parts['train'], parts['test'], negatives)
    self.assertEqual(report.seen_negatives, expected)
    self.assertIn('seen_negatives', report.flags)
    self.assertNotIn('popularity_shift', report.flags)
    if 'lastfm' in name:
      model = recsys.item_knn(parts['train'], top_k=100, shrink=0)
      for exclude, hits in ((True, 0.8937), (False, 0.8811)):
        result = recsys.evaluate_model(
          model,
          parts['train'],
          parts['test'],
          (10,),
          negatives=negatives,
          exclude_seen=exclude,
        )
        self.assertAlmostEqual(result.mean('hit_rate', 10), hits, delta=1e-3)
    if 'amusic' in name:
      model = recsys.item_knn(parts['train'], top_k=100, shrink=0)
      ties = recsys.audit_ties(
        model, parts['train'], parts['test'], negatives=negatives,
        exclude_seen=False,
      )  # fmt: skip
      self.assertLess(ties.pessimistic, 0.3)
      self.assertAlmostEqual(ties.expected, 0.328, delta=5e-3)
      self.assertGreater(ties.optimistic, 0.85)

  def test_table_29(self):
    path = data.require('recsys', 'ml1m_5star_spectralcf_split.npz')
    parts = recsys.load_parts(path, ('train', 'test'))
    report = recsys.audit_split(parts['train'], parts['test'])
    self.assertEqual(round(report.tau_train, 2), 0.87)
    self.assertEqual(round(report.tau_test, 2), 0.44)
    self.assertEqual(round(report.test['gini'], 2), 0.92)
    self.assertLess(report.tau, 0.6)
    self.assertEqual(report.gini, report.test['gini'])
    self.assertEqual(report.shannon, report.test['shannon'])
    self.assertIn('popularity_shift', report.flags)
    full = recsys.union(parts['train'], parts['test'])
    train, test = recsys.split_user_fraction(0, full)
    report = recsys.audit_split(train, test)
    self.assertGreater(report.tau_test, 0.8)
    self.assertEqual(round(report.test['gini'], 2), 0.79)
    self.assertNotIn('popularity_shift', report.flags)

  def test_overlap_and_history(self):
    train = recsys.interactions([0, 0, 1], [0, 1, 0], shape=(3, 4))
    test = recsys.interactions([0, 1, 2], [1, 2, 3], shape=(3, 4))
    report = recsys.audit_split(train, test, np.array([[2], [2], [1]]))
    self.assertEqual(
      set(report.flags),
      {'overlap', 'negatives_in_test', 'users_without_history', 'items_unseen'}
      | (set(report.flags) & {'popularity_shift'}),
    )
    with self.assertRaisesRegex(ValueError, 'test is empty'):
      recsys.audit_split(train, test.select(np.zeros(3, bool)))

  def test_intra_list_diversity(self):
    lists = recsys.Lists(
      np.array([0, 1]), np.array([[0, 2], [1, -1]]), np.zeros((2, 2))
    )
    distances = np.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(
      recsys.intra_list_diversity(lists, distances, 2), [(2 + 6) / 2, 0]
    )

  def test_evaluation_of_known_part(self):
    self.assertIs(evaluation.USER_METRICS, recsys.METRICS)
    known = recsys.interactions([2], [0], shape=(3, 3))
    train = recsys.interactions([0, 0, 1, 1], [0, 1, 0, 1], shape=(3, 3))
    test = recsys.interactions([2], [1], shape=(3, 3))
    model = recsys.item_knn(train, shrink=0)
    result = recsys.evaluate_model(model, train, test, (1,), profiles=known)
    self.assertEqual(result.mean('recall', 1), 1.0)
    # Popularity is that of training, not of the known part.
    self.assertEqual(result.report['test_items_unseen_in_train'], 0)
    self.assertEqual(result.mean('average_popularity', 1), 1.0)


if __name__ == '__main__':
  absltest.main()
