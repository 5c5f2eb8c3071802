"""Tests that what runs on an accelerator gives the numbers of the host.

Here they run on the CPU: only the question where one is is answered otherwise.
"""

from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from scipy import sparse

from jaxpapers import recsys
from jaxpapers.recsys import gram, metrics, similarities


def _data(seed=0, shape=(60, 90), density=0.2):
  rng = np.random.default_rng(seed)
  stars = rng.integers(1, 11, shape) / 2
  return recsys.from_dense(stars * (rng.random(shape) < density))


def _accelerator():
  return mock.patch.object(jax, 'default_backend', lambda: 'gpu')


class AcceleratorTest(parameterized.TestCase):
  @parameterized.parameters(
    ('cosine', {'shrink': 3.0}),
    ('asymmetric', {'alpha': 0.3}),
    ('tversky', {'tversky': (0.5, 2.0)}),
    ('euclidean', {'average_row': True}),
    ('cosine', {'row_weights': np.linspace(0.2, 2, 60)}),
  )
  def test_neighbours(self, kind, options):
    x = _data()
    host = similarities.similarity_top_k(x, kind, k=7, block=32, **options)
    with _accelerator():
      # 90 columns: the last of three blocks overlaps the second.
      found = similarities.similarity_top_k(x, kind, k=7, block=32, **options)
    np.testing.assert_allclose(found.toarray(), host.toarray(), rtol=2e-5)

  def test_entries_of_one_place_are_added(self):
    twice = sparse.csr_array(
      (np.ones(4), [0, 0, 1, 1], [0, 3, 4]), shape=(2, 2)
    )
    expected = (twice.toarray().T @ twice.toarray()).tolist()
    self.assertEqual(gram.symmetric_gram(twice).tolist(), expected)
    self.assertEqual(np.asarray(gram.device_gram(twice)).tolist(), expected)
    host = similarities.similarity_top_k(twice, 'cosine', k=2).toarray()
    np.testing.assert_allclose(host[0, 1], 0.5**0.5, rtol=1e-5)
    with _accelerator():
      found = similarities.similarity_top_k(twice, 'cosine', k=2)
    np.testing.assert_allclose(found.toarray(), host, rtol=1e-6)
    with self.assertRaisesRegex(ValueError, r'row_weights has shape \(3,\)'):
      gram.device_gram(twice, np.ones(3))

  def test_ease(self):
    x = _data()
    host = recsys.ease(x, 20.0)
    with _accelerator():
      found = recsys.ease(x, 20.0)
    np.testing.assert_allclose(found.weights, host.weights, atol=2e-6)

  def test_evaluation(self):
    train, test = recsys.split_user_fraction(0, _data())
    rng = np.random.default_rng(1)
    factors = recsys.FactorModel(
      rng.standard_normal((60, 5), np.float32),
      rng.standard_normal((90, 5), np.float32),
      item_bias=rng.standard_normal(90, np.float32),
    )
    for model in (factors, recsys.ease(train), recsys.item_knn(train)):
      options = {'ignore_items': [3, 50], 'block': 16}
      host = recsys.evaluate_model(model, train, test, (3, 20), **options)
      # Hits of 6 users at a time.
      few = mock.patch.object(metrics, '_MASK_BYTES', 90 * 6)
      with _accelerator(), few:
        found = recsys.evaluate_model(model, train, test, (3, 20), **options)
      self.assertEqual(found.report, host.report)
      np.testing.assert_array_equal(found.lists.items, host.lists.items)
      for name in host.per_user:
        np.testing.assert_allclose(
          found.per_user[name], host.per_user[name], rtol=1e-12
        )
      for name in host.beyond:
        np.testing.assert_allclose(found.beyond[name], host.beyond[name])

  def test_scores_that_are_no_numbers(self):
    train, test = recsys.split_user_fraction(0, _data())
    model = recsys.FactorModel(
      np.full((60, 2), np.nan, np.float32), np.ones((90, 2), np.float32)
    )
    with _accelerator(), self.assertRaisesRegex(ValueError, 'NaN for 60 users'):
      recsys.evaluate_model(model, train, test)


if __name__ == '__main__':
  absltest.main()
