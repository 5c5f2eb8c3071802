"""Tests of similarities, weightings, neighbours and random walks."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxpapers import recsys
from jaxpapers.recsys import similarities, weighting
from tests.helpers import data, goldens

_SMALL = goldens.load_npz('recsys', 'similarity_small.npz')
_R = _SMALL['R'].astype(np.float32)


def _cases():
  return [key for key in _SMALL if key.startswith(('item/', 'user/'))]


def _arguments(key):
  """Matrix, kind and options that a golden was made with."""
  side, kind_of_data, kind, shrink, _ = key.split('/')
  x = _R if kind_of_data == 'rating' else (_R > 0).astype(np.float32)
  x = x if side == 'item' else x.T
  options = {'shrink': float(shrink[6:]), 'alpha': 0.3, 'tversky': (0.4, 1.3)}
  if kind == 'cosine_nonorm':
    kind, options['normalize'] = 'cosine', False
  elif kind.startswith('euclidean'):
    kind, form, norm, average = kind.split('_')
    options |= {
      'euclidean': {'lin': 'linear'}.get(form, form),
      'normalize': norm == 'norm1',
      'average_row': average == 'avgrow1',
    }
  return x, kind, options


class SimilarityTest(parameterized.TestCase):
  def test_every_golden(self):
    seen = 0
    for key in _cases():
      x, kind, options = _arguments(key)
      dense = np.asarray(recsys.similarity(x, kind, **options))
      blocks = list(recsys.similarity_blocks(x, kind, block=7, **options))
      host = np.concatenate([block for _, block in blocks], 1)
      # float32 sums in another order; euclidean ones near 0 distance are huge.
      np.testing.assert_allclose(host, dense, rtol=1e-5, atol=2e-6)
      expected = _SMALL[key]
      if 'top7' in key:
        if kind == 'pearson' and key.endswith('top7'):
          continue  # The original counts entries twice: see the README.
        for kept in (
          np.asarray(recsys.top_k_columns(jnp.asarray(dense), 7)),
          recsys.top_k_columns(dense, 7),
          similarities.sparse_top_k(iter(blocks), 7, len(host)).toarray(),
        ):
          np.testing.assert_allclose(
            np.sort(kept, 0), np.sort(expected, 0), atol=2e-6, err_msg=key
          )
      else:
        np.testing.assert_allclose(
          dense, expected, rtol=1e-5, atol=2e-6, err_msg=key
        )
      seen += 1
    self.assertGreaterEqual(seen, 46)

  @parameterized.parameters(('TFIDF', recsys.tf_idf), ('BM25', recsys.bm25))
  def test_weighting(self, name, function):
    for x, suffix in ((_R, ''), ((_R > 0).astype(np.float32), '_binary')):
      ours = function(x.T).T.toarray()
      expected = _SMALL[f'{name}_items_as_rows{suffix}']
      np.testing.assert_allclose(ours, expected, atol=2e-6)

  @parameterized.parameters(*similarities.KINDS)
  def test_jit_vmap_grad(self, kind):
    x = jnp.asarray(_R[:, :12])

    def total(shrink):
      return recsys.similarity(x, kind, shrink=shrink).sum()

    shrinks = jnp.array([0.5, 3.0, 20.0])
    loop = [total(s) for s in shrinks]
    np.testing.assert_allclose(
      jax.jit(jax.vmap(total))(shrinks), jnp.stack(loop), rtol=1e-5
    )
    gradient = jax.grad(total)(3.0)
    # The difference of two float32 sums of about a hundred terms.
    step = 0.05
    expected = (total(3.0 + step) - total(3.0 - step)) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=2e-2, atol=2e-4)

  def test_sweep_equals_loop(self):
    x = jnp.asarray(_R)
    grid = jnp.stack(
      jnp.meshgrid(jnp.linspace(0, 100, 8), jnp.linspace(0, 2, 8)), -1
    ).reshape(-1, 2)

    def one(setting):
      return recsys.similarity(
        x, 'asymmetric', shrink=setting[0], alpha=setting[1]
      )

    together = jax.jit(jax.vmap(one))(grid)
    step = jax.jit(one)
    for setting, ours in zip(grid, together, strict=True):
      np.testing.assert_allclose(ours, step(setting), rtol=1e-6, atol=1e-6)

  @pytest.mark.nightly
  def test_sweep_at_the_size_of_movielens(self):
    rng = np.random.default_rng(0)
    x = jnp.asarray((rng.random((943, 1682)) < 0.06).astype(np.float32))
    grid = jnp.stack(
      jnp.meshgrid(jnp.linspace(0, 500, 8), jnp.linspace(0, 2, 8)), -1
    ).reshape(-1, 2)

    def one(x, setting):
      return recsys.similarity(
        x, 'asymmetric', shrink=setting[0], alpha=setting[1]
      ).max(0)  # What is compared does not have to be stored.

    # The Gram matrix does not depend on the setting: it is made once.
    together = jax.jit(jax.vmap(one, (None, 0)))
    step = jax.jit(one)
    seconds = []
    for run in (
      lambda: together(x, grid),
      lambda: jnp.stack([step(x, setting) for setting in grid]),
    ):
      found = jax.block_until_ready(run())  # Compiles.
      began = time.process_time()
      jax.block_until_ready(run())
      seconds.append((time.process_time() - began, found))
    (fast, a), (slow, b) = seconds
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    self.assertGreater(slow / fast, 5)

  def test_row_weights(self):
    weights = np.linspace(0.5, 2, len(_R)).astype(np.float32)
    plain = recsys.similarity(_R, row_weights=weights)
    gram = (_R * weights[:, None]).T @ _R
    norm = np.linalg.norm(_R, axis=0)
    expected = gram / (np.outer(norm, norm) + 1e-6)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-6)
    host = np.concatenate(
      [b for _, b in recsys.similarity_blocks(_R, row_weights=weights)], 1
    )
    np.testing.assert_allclose(host, expected, rtol=1e-5, atol=1e-6)

  def test_top_k_ties(self):
    w = np.array([[1.0, 0], [1, 2], [1, -1], [0, -2]], np.float32)
    for xp in (np.asarray, jnp.asarray):
      kept = np.asarray(recsys.top_k_columns(xp(w), 2))
      self.assertEqual(kept[:, 0].tolist(), [1, 1, 0, 0])
      self.assertEqual(kept[:, 1].tolist(), [0, 2, 0, 0])
      kept = np.asarray(recsys.top_k_columns(xp(w), 2, ties='keep'))
      self.assertEqual(kept[:, 0].tolist(), [1, 1, 1, 0])
      self.assertIs(recsys.top_k_columns(w, 9), w)
    with self.assertRaisesRegex(ValueError, 'k is 0'):
      recsys.top_k_columns(w, 0)

  @parameterized.parameters(True, False)
  def test_keep_top_is_a_stable_sort(self, zeros):
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.integers(-5, 4, (50, 40)), 0).astype(np.float32)
    keep = similarities.keep_top(rows, 6, zeros=zeros)
    order = np.argsort(-rows, axis=1, kind='stable')[:, :6]
    expected = np.zeros_like(keep)
    np.put_along_axis(expected, order, True, 1)
    expected &= (rows != 0) | zeros
    np.testing.assert_array_equal(keep, expected)

  def test_bad_input(self):
    with self.assertRaisesRegex(ValueError, 'kind'):
      recsys.similarity(_R, 'cosinus')
    with self.assertRaisesRegex(ValueError, 'two axes'):
      recsys.similarity(_R[0])
    with self.assertRaisesRegex(ValueError, 'negative'):
      recsys.tf_idf(-_R)
    with self.assertRaisesRegex(ValueError, 'weighting'):
      weighting.weight(_R, 'idf')


class WalksTest(parameterized.TestCase):
  @parameterized.parameters(
    ('P3alpha/full/alpha1', dict(beta=0.0, normalize=False)),
    ('P3alpha/full/alpha0', dict(alpha=0.0, beta=0.0, normalize=False)),
    ('P3alpha/topK9/alpha0.6/norm', dict(top_k=9, alpha=0.6, beta=0.0)),
    ('RP3beta/full/alpha1/beta0.6/nonorm', dict(normalize=False)),
    ('RP3beta/topK9/alpha0.7/beta0.4/norm', dict(top_k=9, alpha=0.7, beta=0.4)),
  )
  def test_golden(self, key, options):
    options = {'top_k': None, **options}
    x = recsys.from_dense(_R)
    ours = recsys.rp3_beta(x, block=7, **options).weights.toarray()
    np.testing.assert_allclose(ours, _SMALL[key], atol=2e-6)
    dense = recsys.walk_weights(
      _R,
      options.get('alpha', 1.0),
      options.get('beta', 0.6),
      top_k=options['top_k'],
      normalize=options.get('normalize', True),
    )
    np.testing.assert_allclose(dense, ours, atol=1e-6)

  def test_counts_may_be_whole_numbers(self):
    counts = (_R > 0).astype(int)
    np.testing.assert_allclose(
      recsys.walk_weights(counts, 1, 1),
      recsys.walk_weights(counts.astype(np.float32), 1.0, 1.0),
      rtol=1e-6,
    )

  def test_gradient(self):
    def loss(alpha):
      return (recsys.walk_weights(_R[:, :10], alpha, 0.3) ** 2).sum()

    step = 0.02
    expected = (loss(0.7 + step) - loss(0.7 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(0.7), expected, rtol=1e-2)

  def test_negative_values(self):
    x = recsys.interactions([0], [0], [-1], allow_negative=True)
    with self.assertRaisesRegex(ValueError, 'negative'):
      recsys.p3_alpha(x)


class NeighboursTest(parameterized.TestCase):
  def test_scores_on_real_data(self):
    path = data.require('recsys', 'deepcf_lastfm_loo99.npz')
    x = recsys.load_parts(path, ('train',))['train'].binary()
    golden = goldens.load_npz('recsys', 'lastfm_full_topk_scores.npz')
    knn = {'top_k': None}
    models = {
      'ItemKNN asymmetric a0.2 s10': recsys.item_knn(
        x, similarity='asymmetric', alpha=0.2, shrink=10, **knn
      ),
      **{
        f'ItemKNN {kind} s5': recsys.item_knn(
          x, similarity=kind, shrink=5, **knn
        )
        for kind in ('jaccard', 'dice')
      },
      'ItemKNN tversky a0.3 b1.5 s5': recsys.item_knn(
        x, similarity='tversky', tversky=(0.3, 1.5), shrink=5, **knn
      ),
      'UserKNN cosine s10': recsys.user_knn(x, shrink=10, **knn),
      'UserKNN cosine s10 TF-IDF': recsys.user_knn(
        x, shrink=10, weighting='TF-IDF', score_with='weighted', **knn
      ),
      'UserKNN cosine s10 BM25': recsys.user_knn(
        x, shrink=10, weighting='BM25', score_with='weighted', **knn
      ),
      'UserKNN asymmetric a0.8 s0': recsys.user_knn(
        x, similarity='asymmetric', alpha=0.8, shrink=0, **knn
      ),
      'P3alpha a0.8 norm': recsys.p3_alpha(x, alpha=0.8, normalize=True, **knn),
      'RP3beta a0.8 b0.4 norm': recsys.rp3_beta(x, alpha=0.8, beta=0.4, **knn),
      'RP3beta a0.8 b0.4': recsys.rp3_beta(
        x, alpha=0.8, beta=0.4, normalize=False, **knn
      ),
    }
    self.assertSameElements(models, golden)
    for name, model in models.items():
      ours = recsys.score(model, x, [0, 7, 300])
      np.testing.assert_allclose(
        ours, golden[name], rtol=1e-5, atol=1e-6, err_msg=name
      )

  def test_directions_and_score_with(self):
    x = recsys.from_dense(_R)
    reverse = recsys.user_knn(x, top_k=3)
    forward = recsys.user_knn(x, top_k=3, neighbours='forward')
    np.testing.assert_array_equal(
      reverse.weights.toarray(), forward.weights.toarray().T
    )
    self.assertLessEqual((forward.weights.toarray() != 0).sum(1).max(), 3)
    raw = recsys.score(recsys.user_knn(x, weighting='BM25'), x, [0])
    weighted = recsys.score(
      recsys.user_knn(x, weighting='BM25', score_with='weighted'), x, [0]
    )
    self.assertGreater(np.abs(raw - weighted).max(), 0.1)
    with self.assertRaisesRegex(ValueError, 'neighbours'):
      recsys.user_knn(x, neighbours='both')
    with self.assertRaisesRegex(ValueError, 'score_with'):
      recsys.item_knn(x, score_with='tf')

  def test_content_and_hybrid(self):
    x = recsys.from_dense(_R)
    features = (np.arange(40)[:, None] % 4 == np.arange(4)).astype(float)
    features[3] = 0  # An item without features.
    content = recsys.content_knn(x, features, top_k=None, shrink=0)
    weights = content.weights.toarray()
    same = (features @ features.T > 0) & ~np.eye(40, dtype=bool)
    np.testing.assert_array_equal(weights > 0, same)
    both = recsys.hybrid_knn(x, features, feature_weight=1e-6, shrink=5)
    alone = recsys.item_knn(x, shrink=5)
    np.testing.assert_allclose(
      both.weights.toarray(), alone.weights.toarray(), atol=1e-5
    )
    with self.assertRaisesRegex(ValueError, 'one for each item'):
      recsys.content_knn(x, features[:5])


class LastfmTest(parameterized.TestCase):
  @parameterized.parameters(
    # Without ties at the edge of lists and neighbourhoods all is the same.
    ('ItemKNN cosine k200 s50 TF-IDF', 2e-5),
    ('ItemKNN cosine k200 s50 BM25', 2e-5),
    ('iALS log f16 a5 eps0.1 r1e-3 e10', 2e-5),
    ('EASE_R l2=1000', 2e-5),
    ('EASE_R l2=100 topK50', 2e-5),
    # One user of 1741 is 5.7e-4.
    ('RP3beta a0.8 b0.4 k100 norm', 1e-3),
    ('ItemKNN jaccard k80 s5', 1e-3),
  )
  @pytest.mark.slow
  def test_metrics_of_the_original(self, name, tolerance):
    path = data.require('recsys', 'deepcf_lastfm_loo99.npz')
    parts = recsys.load_parts(path, ('train', 'test'))
    with np.load(path) as file:
      negatives = file['test_negatives'][np.argsort(file['test_user'])]
    x, test = parts['train'].binary(), parts['test'].binary()
    golden = goldens.load_json('recsys', 'lastfm_loo99.json')[name]
    parameters = golden['params']
    if name.startswith('ItemKNN'):
      model = recsys.item_knn(
        x,
        top_k=parameters['topK'],
        shrink=parameters['shrink'],
        similarity=parameters['similarity'],
        weighting=parameters.get('feature_weighting', 'none'),
        score_with='weighted',
      )
    elif name.startswith('iALS'):
      model = recsys.ials(
        42, x, factors=16, alpha=5, reg=1e-3, epochs=10, scaling='log',
        epsilon=0.1, cold='keep',
      )  # fmt: skip
    elif name.startswith('EASE'):
      model = recsys.ease(x, l2=parameters['l2_norm'], top_k=parameters['topK'])
    else:
      model = recsys.rp3_beta(x, top_k=100, alpha=0.8, beta=0.4)
    for protocol, options in (
      ('loo99_exclude_seen', dict(negatives=negatives)),
      ('full_exclude_seen', {}),
    ):
      expected = golden['metrics'][protocol]
      cutoffs = [int(c) for c in expected]
      result = recsys.evaluate_model(model, x, test, cutoffs, **options)
      for cutoff in cutoffs:
        for key in ('NDCG', 'RECALL', 'MAP', 'MRR', 'HIT_RATE'):
          self.assertAlmostEqual(
            result.mean(key.lower(), cutoff),
            expected[str(cutoff)][key],
            delta=tolerance,
            msg=f'{protocol} {key}@{cutoff}',
          )


if __name__ == '__main__':
  absltest.main()
