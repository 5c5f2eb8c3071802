"""Tests of EASE, SLIM, factorisations and sampled methods."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import recsys
from jaxpapers.recsys import (
  factors,
  implicit_als,
  linear,
  sampling,
  sgd,
  slim,
  slim_active,
  slim_sweeps,
)
from jaxpapers.recsys import gram as gram_lib
from tests.helpers import goldens

_GOLDEN = goldens.load_npz('recsys', 'linear_small.npz')
_R = goldens.load_npz('recsys', 'similarity_small.npz')['R'].astype(np.float32)
_DATA = {'rating': _R, 'binary': (_R > 0).astype(np.float32)}


class EaseTest(parameterized.TestCase):
  @parameterized.parameters('rating', 'binary')
  def test_golden(self, kind):
    x = recsys.from_dense(_DATA[kind])
    # The textbook's Gram matrix, also on ratings, where the original differs.
    expected = _GOLDEN[f'{kind}/EASE_l2_10_B_true_gram']
    np.testing.assert_allclose(
      recsys.ease(x, l2=10).weights, expected, atol=1e-6
    )
    gram = _DATA[kind].T @ _DATA[kind]
    jitted = jax.jit(recsys.ease_weights)
    np.testing.assert_allclose(jitted(gram, 10.0), expected, atol=1e-5)
    np.testing.assert_allclose(linear._refined(gram, 10.0), expected, atol=1e-5)
    single = linear._host_ease(x, 10.0, np.float32)
    np.testing.assert_allclose(single, expected, atol=1e-5)
    if kind == 'rating':
      wrong = _GOLDEN[f'{kind}/EASE_l2_10_B']
      self.assertGreater(np.abs(wrong - expected).max(), 0.1)

  def test_path_equals_single_fits(self):
    x = recsys.from_dense(_R)
    for l2, model in recsys.ease_path(x, [5.0, 500.0]):
      np.testing.assert_allclose(
        model.weights, recsys.ease(x, l2=l2).weights, atol=1e-6
      )

  def test_refusals(self):
    x = recsys.from_dense(_R)
    with self.assertRaisesRegex(ValueError, 'l2 is 0'):
      recsys.ease(x, l2=0)
    with self.assertRaisesRegex(ValueError, 'GB for two dense matrices'):
      recsys.ease(x, max_bytes=100)
    with self.assertRaisesRegex(ValueError, 'GB for two dense matrices'):
      next(recsys.ease_path(x, [1.0], max_bytes=100))

  def test_gram_in_blocks_of_users(self):
    x = recsys.from_dense(_R)
    # Ratings are exact in bfloat16, and their sums in float32.
    np.testing.assert_array_equal(
      gram_lib.device_gram(x.csr, block=7), linear.dense_gram(x)
    )
    weights = np.linspace(0.1, 3, 30, dtype=np.float32)
    for values, rows in ((_R / 3, None), (_R, weights)):
      x = recsys.from_dense(values)
      np.testing.assert_allclose(
        gram_lib.device_gram(x.csr, rows, block=7),
        gram_lib.symmetric_gram(x.csr, rows),
        rtol=1e-6,
      )


class SlimTest(parameterized.TestCase):
  @parameterized.product(
    kind=['rating', 'binary'], setting=[(0.05, 0.1), (0.01, 0.9)]
  )
  def test_golden_and_duality_gap(self, kind, setting):
    alpha, ratio = setting
    x = recsys.from_dense(_DATA[kind])
    expected = _GOLDEN[f'{kind}/SLIM_alpha{alpha}_l1ratio{ratio}_W']
    model = recsys.slim_elastic_net(
      x, alpha=alpha, l1_ratio=ratio, top_k=None, tol=1e-7, max_iter=20000
    )
    # float32: the optimum is flat.
    np.testing.assert_allclose(model.weights.toarray(), expected, atol=1e-5)
    l1, l2 = alpha * ratio * 30, alpha * (1 - ratio) * 30
    gram = _DATA[kind].T.astype(float) @ _DATA[kind]
    with jax.enable_x64(True):
      weights = np.asarray(
        slim.solve_slim(
          jnp.asarray(gram), jnp.asarray(gram), jnp.arange(40), l1, l2,
          np.linalg.eigvalsh(gram)[-1] + l2, tol=1e-13, max_iter=50000,
        )
      )  # fmt: skip
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    for j in range(40):
      rest = np.arange(40) != j
      gap = slim.duality_gap(
        gram[np.ix_(rest, rest)], gram[rest, j], gram[j, j],
        weights[rest, j], l1, l2,
      )  # fmt: skip
      self.assertLess(abs(gap), 1e-8)

  def test_sparse_route_equals_dense(self):
    x = recsys.from_dense(_R)
    settings = (0.05 * 0.1 * 30, 0.05 * 0.9 * 30, 1e-7, 20000)
    gram = slim._sparse_gram(x)
    found = [b for _, b in slim._sparse_blocks(gram, settings, 16)]
    expected = _GOLDEN['rating/SLIM_alpha0.05_l1ratio0.1_W']
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=1e-5)
    found = [b for _, b in slim._working_sets(gram.toarray(), settings, 16)]
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=1e-5)
    for most in (8192, 25):  # All items but one meet 39.
      with mock.patch.object(slim_active, '_MOST', most):
        found = [b for _, b in slim._met(gram.toarray(), settings, 16)]
      np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=1e-5)
    with mock.patch.object(slim_active, '_MOST', 25):
      _, solved = slim_active.solve_met(
        gram.toarray(), np.arange(40), *settings[:3]
      )
    self.assertEqual(int(solved.sum()), 1)
    found = [b for _, b in slim._dense_blocks(gram.toarray(), settings, 16)]
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=1e-5)

  def test_sweeps_over_blocks_while_columns_leave(self):
    rng = np.random.default_rng(0)
    x = (rng.random((150, 100)) < 0.15).astype(np.float32)
    x[:, 1] = x[:, 0]  # Equal items need many sweeps.
    gram = x.T @ x
    columns = np.arange(100)[::-1]
    seen = []
    real = slim_sweeps._sweep

    def sweep(*arguments):
      seen.append(len(arguments[3]))
      return real(*arguments)

    with (
      mock.patch.object(slim_sweeps, '_sweep', sweep),
      mock.patch.object(slim_sweeps, '_BLOCK', 32),
      mock.patch.object(slim_sweeps, '_CHEAP', 0),
    ):
      weights = slim_sweeps.sweep_columns(gram, columns, 0.3, 3.0)
    self.assertEqual(sorted(set(seen)), [25, 50, 100])
    gradient = gram @ weights + 3.0 * weights - gram[:, columns] + 0.3
    gradient[columns, np.arange(100)] = 0
    # The conditions of an optimum, up to float32 sums of some 50 terms.
    np.testing.assert_allclose(gradient[weights > 0], 0, atol=1e-3)
    self.assertGreater(gradient.min(), -1e-3)
    self.assertTrue((weights[columns, np.arange(100)] == 0).all())

  def test_working_sets_grow(self):
    rng = np.random.default_rng(0)
    x = (rng.random((300, 200)) < 0.15).astype(np.float32)
    gram = x.T @ x
    settings = (0.3, 3.0, 1e-7, 20000)
    with mock.patch.object(slim, '_FIRST', 4):
      found = [b for _, b in slim._working_sets(gram, settings, 64)]
    weights = np.concatenate(found, 1)
    self.assertGreater((weights > 0).sum(0).max(), 20)
    gradient = gram @ weights + 3.0 * weights - gram + 0.3
    np.fill_diagonal(gradient, 0)
    # The conditions of an optimum, up to float32 sums of some 50 terms.
    np.testing.assert_allclose(gradient[weights > 0], 0, atol=1e-3)
    self.assertGreater(gradient.min(), -1e-3)
    self.assertTrue((np.diag(weights) == 0).all())

  def test_working_sets_end_before_the_optimum(self):
    rng = np.random.default_rng(0)
    x = (rng.random((300, 200)) < 0.15).astype(np.float32)
    # Three sweeps are too few: items with a weight to come stay in the sets.
    settings = (0.3, 0.003, 1e-7, 3)
    real = slim._solve_sets
    with mock.patch.object(slim, '_solve_sets', side_effect=real) as solve:
      found = [b for _, b in slim._working_sets(x.T @ x, settings, 200)]
    self.assertLess(solve.call_count, 100)
    self.assertTrue(np.isfinite(found[0]).all())

  @parameterized.parameters(
    (dict(alpha=0), 'alpha'), (dict(l1_ratio=2), 'l1_ratio')
  )
  def test_refusals(self, options, words):
    with self.assertRaisesRegex(ValueError, words):
      recsys.slim_elastic_net(recsys.from_dense(_R), **options)


class FactorsTest(parameterized.TestCase):
  @parameterized.parameters('rating', 'binary')
  def test_svd_golden(self, kind):
    x = recsys.from_dense(_DATA[kind])
    model = recsys.pure_svd(x, factors=5)
    np.testing.assert_allclose(
      model.users @ model.items.T, _GOLDEN[f'{kind}/PureSVD5_scores'], atol=5e-6
    )
    np.testing.assert_allclose(
      recsys.truncated_svd(x, 8)[1],
      _GOLDEN[f'{kind}/singular_values'],
      rtol=1e-10,
    )
    new = recsys.item_model_of_factors(model.items)
    np.testing.assert_allclose(
      recsys.score(new, x, [2, 5]),
      recsys.score(model, x, [2, 5]),
      atol=1e-4,
    )

  def test_fold_in_of_new_users(self):
    x = recsys.from_dense(_R)
    model = recsys.pure_svd(x, factors=3)
    new = recsys.interactions([1, 1], [0, 4], [2, 3], shape=(2, 40))
    expected = (2 * model.items[0] + 3 * model.items[4]) / np.sqrt(2)
    ours = recsys.score(recsys.fold_in(model, new), new, [1])
    np.testing.assert_allclose(ours[0], model.items @ expected, rtol=1e-4)
    with self.assertRaisesRegex(ValueError, 'new users'):
      recsys.score(model, new, [1])

  @parameterized.product(
    kind=['rating', 'binary'], scaling=['linear', 'log'], epochs=[1, 3]
  )
  def test_ials_golden(self, kind, scaling, epochs):
    model = recsys.ials(
      None,
      recsys.from_dense(_DATA[kind]),
      factors=4,
      alpha=5.0,
      reg=0.02,
      epsilon=0.1,
      epochs=epochs,
      scaling=scaling,
      init=_GOLDEN['ials_item_init'],
      cold='keep',
    )
    users = _GOLDEN[f'{kind}/iALS_{scaling}_epoch{epochs}_U']
    warm = ~np.isnan(users).any(1)
    self.assertEqual(int((~warm).sum()), 1)
    np.testing.assert_allclose(model.users[warm], users[warm], atol=1e-6)
    self.assertTrue((model.users[~warm] == 0).all())
    np.testing.assert_allclose(
      model.items, _GOLDEN[f'{kind}/iALS_{scaling}_epoch{epochs}_V'], atol=1e-6
    )

  def test_ials_on_a_device_equals_the_host(self):
    x = recsys.from_dense(_R)
    host = recsys.ials(3, x, factors=4, epochs=2)
    with (
      mock.patch.object(jax, 'default_backend', lambda: 'gpu'),
      mock.patch.object(implicit_als, '_BLOCK', 128),
    ):
      device = recsys.ials(3, x, factors=4, epochs=2)
    # Systems of rank-deficient rows, with a penalty of 1e-3, in float32.
    for name in ('users', 'items'):
      np.testing.assert_allclose(
        getattr(device, name), getattr(host, name), rtol=2e-3, atol=2e-4
      )

  def test_cold_items_are_zero(self):
    model = recsys.ials(
      jax.random.key(0), recsys.from_dense(_R), factors=3, epochs=2
    )
    self.assertTrue((model.items[5] == 0).all())
    self.assertTrue(np.isfinite(model.items).all())

  @parameterized.parameters(
    ('multiplicative', 'nndsvda', 'frobenius'),
    ('multiplicative', 'random', 'kullback-leibler'),
    ('coordinate', 'random', 'frobenius'),
  )
  def test_nmf_falls_and_fits(self, solver, init, loss):
    x = recsys.from_dense(_R)
    errors = []
    for iterations in (1, 5, 60):
      model = recsys.nmf(
        x, factors=20, solver=solver, init=init, loss=loss,
        iterations=iterations, tol=0, seed=1,
      )  # fmt: skip
      self.assertGreaterEqual(min(model.users.min(), model.items.min()), 0)
      rows = x.user, x.item, x.value
      if loss == 'frobenius':
        errors.append(np.linalg.norm(model.users @ model.items.T - _R))
      else:
        errors.append(factors._divergence(model.users, model.items, rows))
    self.assertGreater(errors[0], errors[1])
    self.assertGreater(errors[1], errors[2])
    self.assertLess(errors[2], 0.75 * errors[0])

  def test_refusals(self):
    x = recsys.from_dense(_R)
    ials = functools.partial(recsys.ials, 0)
    for function, options, words in (
      (recsys.pure_svd, dict(factors=31), 'factors is 31'),
      (recsys.nmf, dict(solver='als'), 'solver'),
      (
        recsys.nmf,
        dict(solver='coordinate', loss='kullback-leibler'),
        'coordinate',
      ),
      (ials, dict(scaling='exp'), 'scaling'),
      (ials, dict(reg=0.0), 'reg'),
      (ials, dict(init=np.zeros((3, 3))), 'init has shape'),
      (recsys.bpr_mf, dict(sgd_mode='lion'), 'sgd_mode'),
      (recsys.bpr_mf, dict(batch_size=0), 'batch_size'),
      (recsys.funk_svd, dict(negative_quota=1.0), 'negative_quota'),
      (recsys.slim_bpr, dict(max_bytes=10), 'GB'),
      (recsys.slim_bpr, dict(top_k=0), 'k is 0'),
      (recsys.slim_elastic_net, dict(top_k=2.5), 'k is 2.5'),
      (recsys.rp3_beta, dict(top_k=-1), 'k is -1'),
      (recsys.item_knn, dict(top_k=0), 'k is 0'),
      (recsys.user_knn, dict(top_k='all'), "k is 'all'"),
    ):
      with self.assertRaisesRegex(ValueError, words):
        function(x, **options)


def _blocks(users=60, items=24, seed=0):
  """Two groups of users with items of their own, and what was left out."""
  rng = np.random.default_rng(seed)
  group = np.arange(users) % 2
  own = (np.arange(items) % 2) == group[:, None]
  train = own & (rng.random((users, items)) < 0.6)
  return recsys.from_dense(train), own & ~train, ~own


class SampledTest(parameterized.TestCase):
  @parameterized.parameters(
    (recsys.bpr_mf, dict(factors=4, batch_size=8, learning_rate=0.05)),
    (
      recsys.funk_svd,
      dict(factors=4, batch_size=8, learning_rate=0.02, negative_quota=0.5),
    ),
    (recsys.asy_svd, dict(factors=4, learning_rate=0.01, negative_quota=0.5)),
    (recsys.slim_bpr, dict(learning_rate=0.05, top_k=12, symmetric=True)),
    (recsys.slim_bpr, dict(learning_rate=0.05, top_k=12, symmetric=False)),
  )
  def test_learns_the_groups(self, function, options):
    x, own, other = _blocks()
    mode = 'adagrad' if function is recsys.slim_bpr else 'adam'
    model = function(x, epochs=15, sgd_mode=mode, seed=1, **options)
    scores = np.asarray(recsys.score(model, x, np.arange(60)))
    better = np.mean(
      [
        (scores[u, own[u]][:, None] > scores[u, other[u]]).mean()
        for u in range(60)
        if own[u].any()
      ]
    )
    self.assertGreater(better, 0.9)
    again = function(x, epochs=15, sgd_mode=mode, seed=1, **options)
    np.testing.assert_array_equal(
      scores, np.asarray(recsys.score(again, x, np.arange(60)))
    )

  @pytest.mark.slow
  def test_draws(self):
    x, _, _ = _blocks()
    csr = sampling.put(x)
    users = sampling.draw_users(jax.random.key(0), csr, (4000,))
    i, value = sampling.draw_positives(jax.random.key(1), csr, users)
    j, found = sampling.draw_negatives(jax.random.key(2), csr, users, 24)
    dense = x.to_dense()
    self.assertTrue((dense[users, i] == value).all())
    self.assertTrue((dense[users, j] == 0).all())
    self.assertTrue(np.asarray(found).all())
    counts = np.bincount(np.asarray(i)[np.asarray(users) == 0], minlength=24)
    self.assertEqual(set(np.flatnonzero(counts)), set(np.flatnonzero(dense[0])))
    asked = jnp.broadcast_to(jnp.arange(24), (60, 24))
    np.testing.assert_array_equal(
      sampling.has(csr, jnp.arange(60), asked), dense > 0
    )

  @parameterized.parameters(*sgd.MODES)
  def test_rows_are_summed_and_others_stay(self, mode):
    table = jnp.arange(12.0).reshape(4, 3)
    gradients = jnp.ones((3, 3)) * jnp.array([[1.0], [2.0], [4.0]])
    rows = jnp.array([2, 0, 2])
    new, state = sgd.update_rows(
      mode, table, sgd.init(mode, table), rows, gradients, 0.5, 0.0
    )
    move, _ = sgd.direction(
      mode, sgd.init(mode, table[0]), jnp.full(3, 5.0), 0.0
    )
    np.testing.assert_allclose(new[2], table[2] + 0.5 * move, rtol=1e-6)
    np.testing.assert_array_equal(new[1], table[1])
    np.testing.assert_array_equal(new[3], table[3])
    for part in state:
      self.assertTrue((part[1] == 0).all())

  def test_early_stopping_keeps_the_best(self):
    x, own, _ = _blocks()
    validation = recsys.from_dense(own)
    monitor = recsys.EarlyStopping(x, validation, every=1, patience=2, cutoff=5)
    model = recsys.fit(
      'MF BPR',
      x,
      dict(factors=4, sgd_mode='adam', learning_rate=0.05, epochs=200),
      monitor=monitor,
    )
    self.assertIs(model, monitor.best)
    values = [value for _, value in monitor.history]
    self.assertEqual(monitor.best_value, max(values))
    self.assertEqual(values.index(max(values)) + 1, monitor.best_epoch)
    self.assertLess(len(values), 200)
    self.assertLen(values, monitor.best_epoch + 2)

  def test_metrics_of_the_original_are_in_reach(self):
    from tests.helpers import data

    path = data.require('recsys', 'deepcf_lastfm_loo99.npz')
    parts = recsys.load_parts(path, ('train', 'test'))
    with np.load(path) as file:
      negatives = file['test_negatives'][np.argsort(file['test_user'])]
    x, test = parts['train'].binary(), parts['test'].binary()
    golden = goldens.load_json('recsys', 'lastfm_loo99.json')
    model = recsys.bpr_mf(
      x, factors=32, sgd_mode='adam', learning_rate=0.02, batch_size=64,
      positive_reg=1e-3, negative_reg=1e-3, epochs=60, seed=1,
    )  # fmt: skip
    result = recsys.evaluate_model(model, x, test, (10,), negatives=negatives)
    expected = [
      golden[f'MF_BPR f32 adam lr0.02 b64 e60 seed{seed}']['metrics'][
        'loo99_exclude_seen'
      ]['10']['NDCG']
      for seed in (1, 2, 3)
    ]
    # Three seeds of the original: their mean, three times their spread.
    self.assertLess(
      abs(result.mean('ndcg', 10) - np.mean(expected)),
      max(3 * np.ptp(expected), 0.02),
    )


class SampledSlowTest(parameterized.TestCase):
  @parameterized.parameters('SLIM_BPR', 'MF_FunkSVD')
  @pytest.mark.slow
  def test_metrics_of_the_original_are_in_reach(self, kind):
    from tests.helpers import data

    path = data.require('recsys', 'deepcf_lastfm_loo99.npz')
    parts = recsys.load_parts(path, ('train', 'test'))
    with np.load(path) as file:
      negatives = file['test_negatives'][np.argsort(file['test_user'])]
    x, test = parts['train'].binary(), parts['test'].binary()
    golden = goldens.load_json('recsys', 'lastfm_loo99.json')
    if kind == 'SLIM_BPR':
      model = recsys.slim_bpr(
        x, top_k=200, epochs=30, sgd_mode='adagrad', learning_rate=0.05,
        lambda_i=1e-3, lambda_j=1e-4, compat=True, seed=1,
      )  # fmt: skip
    else:
      model = recsys.funk_svd(
        x, factors=16, sgd_mode='adam', learning_rate=2e-3, batch_size=32,
        item_reg=1e-4, user_reg=1e-4, negative_quota=0.3, epochs=30,
        compat=True, seed=1,
      )  # fmt: skip
    result = recsys.evaluate_model(model, x, test, (10,), negatives=negatives)
    expected = [
      value['metrics']['loo99_exclude_seen']['10']['NDCG']
      for name, value in golden.items()
      if name.startswith(kind)
    ]
    self.assertGreaterEqual(len(expected), 2)
    self.assertLess(
      abs(result.mean('ndcg', 10) - np.mean(expected)),
      max(3 * np.ptp(expected), 0.02),
    )


if __name__ == '__main__':
  absltest.main()
